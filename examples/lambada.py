"""LAMBADA with the bundled model, or any other: how often it guesses the last word of a passage.

    python examples/lambada.py
    python examples/lambada.py --model ./my-gpt2 --batch-size 32
    python examples/lambada.py --limit 200 --show 5

The same numbers come from `quintet eval lambada` and, through `quintet.integrations.lm_eval`, from lm-eval's task
lambada_openai. This script also shows some of the passages, with what the model would have written.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import example_data

SOURCE = "The test set of 5,153 passages is published as EleutherAI/lambada_openai and by OpenAI with GPT-2."


def guess(model: Any, tokenizer: Any, context: str, tokens: int) -> str:
    """Return what greedy decoding writes after a context."""
    ids = tokenizer(context, return_tensors="pt")["input_ids"][:, -(model.config.max_position_embeddings - tokens) :]
    output = model.generate(ids.to(model.device), max_new_tokens=tokens, do_sample=False)
    return str(tokenizer.decode(output[0, ids.shape[1] :]))


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Evaluate, print, return the numbers."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="storyteller", help="folder or name (default: the bundled model)")
    parser.add_argument("--file", type=Path, help="JSON lines with a text each (default: lambada_test.jsonl)")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--limit", type=int, help="only the first passages")
    parser.add_argument("--show", type=int, default=3, help="passages to show with the model's guess")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, help="CPU threads")
    args = parser.parse_args(argv)
    file = example_data.find("lambada_test.jsonl", args.file, SOURCE)

    import torch

    from quintet import AutoModelForCausalLM, AutoTokenizer
    from quintet.evaluate import encode_pair, evaluate_lambada, read_records, split_last_word

    if args.threads:
        torch.set_num_threads(args.threads)
    texts = read_records(file, args.limit)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForCausalLM.from_pretrained(args.model, device_map=args.device).eval()

    def progress(done: int, total: int) -> None:
        if sys.stderr.isatty():
            print(f"\r{done} of {total} passages", end="" if done < total else "\n", file=sys.stderr, flush=True)

    result = evaluate_lambada(model, tokenizer, texts, batch_size=args.batch_size, progress=progress)
    error = result.accuracy_stderr or 0.0
    print(f"{args.model} on {result.records} passages: accuracy {result.accuracy:.2%} (standard error {error:.2%}),")
    print(
        f"perplexity of the last word {result.perplexity:,.1f}, of {result.target_tokens / result.records:.2f} tokens"
    )
    for text in texts[: args.show]:
        context, word = split_last_word(text)
        context_ids, word_ids = encode_pair(tokenizer, context, word)
        written = guess(model, tokenizer, context, len(word_ids))
        print(f"\n...{context[-150:]}\n   wanted:{word}\n   greedy:{written}")
    return {"accuracy": result.accuracy, "perplexity": result.perplexity, "records": result.records}


if __name__ == "__main__":
    main()
