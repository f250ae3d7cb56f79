"""Cases of question answering, and the answers that transformers 4.56.2, which still has the task, gives to them.

python tests/pipelines/golden_question_answering.py     (with transformers 4.56.2) writes question_answering.json
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import torch

FILE = Path(__file__).with_name("question_answering.json")
SENTENCES = (
    "Once upon a time there was a little house at the edge of a deep forest.",
    "In the house lived an old woman and her cat, whose name was Wolfgang.",
    "One morning the cat went out to see the King of the birds, and did not come back.",
    "The old woman took her lantern, and looked for him under every tree until it was dark.",
)
CONTEXT = " ".join(SENTENCES)
LONG = " ".join(SENTENCES * 6)
QUESTION = "Who lived in the house?"

# (context, options)
CASES: list[tuple[str, dict[str, Any]]] = [
    (CONTEXT, {}),
    (CONTEXT, {"top_k": 4}),
    (CONTEXT, {"top_k": 3, "max_answer_len": 2}),
    (CONTEXT, {"top_k": 3, "align_to_words": False}),
    (CONTEXT, {"top_k": 3, "handle_impossible_answer": True}),
    (SENTENCES[1], {"top_k": 50}),
    (LONG, {}),
    (LONG, {"top_k": 5, "max_seq_len": 64, "doc_stride": 16}),
    (LONG, {"top_k": 2, "max_seq_len": 40, "align_to_words": False}),
    (LONG, {"top_k": 3, "max_seq_len": 64, "handle_impossible_answer": True, "max_answer_len": 4}),
]
# The names of the classes, and sizes.
MODELS: dict[str, dict[str, int]] = {
    "GPT2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 512, "vocab_size": 4096},
    "GPTNeoX": {
        **{"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64},
        **{"max_position_embeddings": 512, "vocab_size": 4096},
    },
}


def model_of(library: Any, name: str) -> torch.nn.Module:
    """Make one of the models, with transformers or with quintet."""
    config = getattr(library, f"{name}Config")(**MODELS[name])
    model: torch.nn.Module = getattr(library, f"{name}ForQuestionAnswering")(config).eval()
    fill(model)
    return model


def fill(model: torch.nn.Module) -> None:
    """Give a model weights that are the same on every machine and with every release of torch."""
    with torch.no_grad():
        for number, (name, parameter) in enumerate(model.named_parameters()):
            scale = 1.0 if number == 0 else 2.5 if name.startswith("qa_outputs") else 0.4
            places = torch.arange(parameter.numel(), dtype=torch.float64)
            values = torch.sin(places * places * 0.37 + places + number) * scale
            parameter.copy_(values.reshape(parameter.shape))


def main() -> None:
    import transformers

    folder = str(Path(sys.argv[1]))  # the bundled model's folder, for its tokenizer
    results: dict[str, Any] = {"made_with": f"transformers {transformers.__version__}"}
    warnings.simplefilter("ignore")
    tokenizer = transformers.GPT2TokenizerFast.from_pretrained(folder)
    for name in MODELS:
        model = model_of(transformers, name)
        pipe = transformers.pipeline("question-answering", model=model, tokenizer=tokenizer, device="cpu")
        results[name] = [pipe(question=QUESTION, context=context, **options) for context, options in CASES]
    FILE.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
