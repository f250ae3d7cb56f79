"""The loops of `generate`: overhead, batches, beams, prompt lookup, sampling, rows that end, against transformers.

Both libraries in one process, in alternating rounds, with the same weights and the same calls; where quintet can do
without what a row is about, that is measured as well. Speeds are those of new tokens after the first, which comes from
the prompt and is not timed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import common

# One layer that computes next to nothing: what is left is the loop.
OVERHEAD = {"n_embd": 8, "vocab_size": 100, "n_layer": 1, "n_head": 2, "n_positions": 1024}
Made = tuple[float, Any]


def seconds(model: Any, prompts: Any, tokens: int, **options: Any) -> Made:
    """Return the seconds for so many tokens after the first of every row, and the tokens."""
    import torch

    mask = torch.ones_like(prompts)
    spent = []
    for count in (1, tokens + 1):
        torch.manual_seed(2)
        given = {name: value() if name == "generator" else value for name, value in options.items()}
        began = time.perf_counter()
        out = model.generate(prompts, attention_mask=mask, max_new_tokens=count, pad_token_id=0, **given)
        spent.append(time.perf_counter() - began)
    return spent[1] - spent[0], getattr(out, "sequences", out)


def speed(model: Any, prompts: Any, tokens: int, kept: list[Any], **options: Any) -> float:
    """Return new tokens of all rows per second, padding not counted; put all tokens into `kept`."""
    spent, out = seconds(model, prompts, tokens, **options)
    kept[:] = [out]
    new = out[:, prompts.shape[1] + 1 :]
    return float((new != 0).sum()) / spent


def overhead(model: Any, steps: int) -> float:
    """Return the microseconds of a step of `generate` beside the model's own forward pass with a cache."""
    import torch

    prompt = torch.tensor([[5, 6, 7, 8]])
    whole, _ = seconds(model, prompt, steps, do_sample=False)
    with torch.no_grad():
        cache = model(input_ids=prompt, use_cache=True, logits_to_keep=1).past_key_values
        token = torch.tensor([[9]])
        began = time.perf_counter()
        for _ in range(steps):
            model(input_ids=token, past_key_values=cache, use_cache=True, logits_to_keep=1, return_dict=True)
        bare = time.perf_counter() - began
    return (whole - bare) / steps * 1e6


def tiny_checkpoint(work_dir: Path) -> Path:
    """Return a folder with the model of the overhead, made once."""
    folder = work_dir / "one-layer"
    if not (folder / "config.json").exists():
        import torch

        from quintet.models.gpt2 import GPT2Config, GPT2LMHeadModel

        torch.manual_seed(0)
        GPT2LMHeadModel(GPT2Config(**OVERHEAD, bos_token_id=99, eos_token_id=99)).save_pretrained(folder)
    return folder


def copying_checkpoint(work_dir: Path, shape: str) -> Path:
    """Return a folder with a model of that shape that continues every token with the next id, made once.

    It computes as much as any other: its blocks add next to nothing, and its head, which is not tied, is the embedding
    moved by one row.
    """
    folder = work_dir / f"{shape}-copying"
    if not (folder / "config.json").exists():
        import torch

        from quintet.models.gpt2 import GPT2Config, GPT2LMHeadModel

        torch.manual_seed(0)
        sizes = common.SHAPES[shape]
        last = sizes["vocab_size"] - 1
        model = GPT2LMHeadModel(GPT2Config(**sizes, tie_word_embeddings=False, bos_token_id=last, eos_token_id=last))
        with torch.no_grad():
            model.transformer.wpe.weight.mul_(1e-3)
            for block in model.transformer.h:
                block.attn.c_proj.weight.mul_(1e-3)
                block.mlp.c_proj.weight.mul_(1e-3)
            model.lm_head.weight.copy_(model.transformer.wte.weight.roll(1, 0))
        model.save_pretrained(folder)
    return folder


def copying_prompt(length: int, change: int) -> Any:
    """Return (1, S) ids that count up, every `change`-th of them another, and then begin anew."""
    import torch

    text = torch.arange(100, 100 + length)
    text[::change] = 7
    return torch.cat([text, torch.tensor([101])])[None]


class Bench:
    """Runs the comparisons and prints their lines."""

    def __init__(self, args: Any) -> None:
        self.args, self.threads = args, common.set_threads(args.threads)

    def load(self, folder: Path) -> dict[str, Any]:
        """Return the model in both libraries, in float32."""
        return {peer: common.load_model(peer, folder, "fp32") for peer in common.PEERS}

    def emit(self, what: str, unit: str, values: dict[str, list[float]], better: int, **fields: Any) -> None:
        """Print a line; a ratio above one says that quintet is ahead, where more is `better` (1) or less (-1)."""
        others = [name for name in values if name != "quintet"]
        pairs = {name: ("quintet", name) if better > 0 else (name, "quintet") for name in others}
        record: dict[str, Any] = {"what": what, "unit": unit, "rounds": len(values["quintet"])}
        record["speed"] = common.summary(values, 2)
        record["ratio"] = {name: round(common.ratio(values, *pair), 3) for name, pair in pairs.items()}
        common.emit("generation", record | fields, self.threads)

    def compare(self, what: str, runs: dict[str, Callable[[list[Any]], float]], **fields: Any) -> None:
        """Measure speeds in turns and print them, and whether both libraries gave the same tokens."""
        import torch

        kept: dict[str, list[Any]] = {name: [] for name in runs}
        turns = {name: partial(run, kept[name]) for name, run in runs.items()}
        values = common.alternate(turns, self.args.rounds, seconds=self.args.seconds)
        if set(common.PEERS) <= set(kept):
            fields["same_tokens"] = torch.equal(*(kept[peer][0] for peer in common.PEERS))
        self.emit(what, "tokens/s", values, 1, **fields)

    def overheads(self) -> None:
        """The loop beside the model."""
        models = self.load(tiny_checkpoint(self.args.work_dir))
        runs = {peer: partial(overhead, model, 300) for peer, model in models.items()}
        self.emit("loop beside the model", "us a step", common.alternate(runs, max(self.args.rounds, 1) * 3), -1)

    def plain(self) -> None:
        """Greedy, by beams, and with draws."""
        import torch

        models = self.load(common.checkpoint(self.args.work_dir, self.args.model_shape))
        vocabulary = common.SHAPES[self.args.model_shape]["vocab_size"]
        torch.manual_seed(1)
        prompts = torch.randint(1, vocabulary, (32, self.args.prompt))
        few = self.args.tokens // 2

        def each(rows: int, tokens: int, **options: Any) -> dict[str, Callable[[list[Any]], float]]:
            return {
                peer: lambda kept, model=model: speed(model, prompts[:rows], tokens, kept, **options)
                for peer, model in models.items()
            }

        def ours(rows: int, tokens: int, **options: Any) -> Callable[[list[Any]], float]:
            return lambda kept: speed(models["quintet"], prompts[:rows], tokens, kept, **options)

        self.compare("greedy, 32 rows", each(32, few), tokens=few)
        self.compare("4 beams", each(1, self.args.tokens, num_beams=4), tokens=self.args.tokens)
        draws = {"do_sample": True, "temperature": 0.8, "top_k": 50, "top_p": 0.95}
        self.compare("draws, 8 rows", each(8, few, **draws), tokens=few)
        own = ours(8, few, **draws, generator=lambda: torch.Generator().manual_seed(2))
        runs = {"quintet": own, "without": ours(8, few, **draws)}
        self.compare("draws with a generator, 8 rows", runs, tokens=few, without="the global generator")
        # So many tokens end a row that half of them have ended after a quarter of the steps.
        ends = list(range(1, vocabulary, max(self.args.tokens // 3, 2)))
        draws = {"do_sample": True, "top_k": 0, "eos_token_id": ends}
        runs = each(32, self.args.tokens, **draws)
        runs["without"] = ours(32, self.args.tokens, **draws, return_dict_in_generate=True)
        self.compare("32 rows that end one by one", runs, tokens=self.args.tokens, without="finished rows kept")

    def lookup(self) -> None:
        """Guesses from the prompt, where the text repeats it."""
        models = self.load(copying_checkpoint(self.args.work_dir, self.args.model_shape))
        prompt, tokens = copying_prompt(2 * self.args.tokens + 8, 16), self.args.tokens

        def run(peer: str, kept: list[Any], **options: Any) -> float:
            return speed(models[peer], prompt, tokens, kept, do_sample=False, **options)

        runs = {peer: partial(run, peer, prompt_lookup_num_tokens=10) for peer in common.PEERS}
        runs["without"] = partial(run, "quintet")
        name = "prompt lookup, a copy with every 16th token changed"
        self.compare(name, runs, tokens=tokens, without="plain greedy")


def main() -> None:
    """Measure every row."""
    parser = common.parser(__doc__)
    parser.add_argument("--prompt", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--seconds", type=float, default=30.0, help="bound for each row")
    args = parser.parse_args()
    bench = Bench(args)
    bench.overheads()
    bench.plain()
    bench.lookup()


if __name__ == "__main__":
    main()
