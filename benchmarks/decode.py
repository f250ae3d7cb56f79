"""Tokens per second of greedy decoding after a short prompt, quintet against transformers.

Both in one process, in alternating rounds, with the same weights, dtype and threads. The first new token comes from
the prompt and is not timed. Beside them: which part of the machine's limit that is, the limit being the measured read
bandwidth divided by the bytes that a token must read (each weight once, and the keys and values so far).
"""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import common


class Clock:
    """A streamer that keeps the time of every column of tokens."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: object) -> None:
        """Note the time; called with the prompt, then with each column."""
        self.times.append(time.perf_counter())

    def end(self) -> None:
        """Nothing is held back."""


def tokens_per_second(model: Any, prompts: Any, tokens: int, kept: list[Any] | None = None) -> float:
    """Decode so many tokens of every row after the first; return tokens of all rows per second."""
    import torch

    clock = Clock()
    out = model.generate(
        prompts,
        attention_mask=torch.ones_like(prompts),
        do_sample=False,
        max_new_tokens=tokens + 1,
        pad_token_id=0,
        streamer=clock,
    )
    if kept is not None:
        kept.append(out)
    return float(prompts.shape[0] * tokens / (clock.times[-1] - clock.times[1]))


def bytes_per_step(model: Any, rows: int, length: float) -> int:
    """Return what one step must read: every weight except the position table, and keys and values of `length` tokens.

    The token embedding counts once: as the head, to which it is tied; the rows that are looked up are nothing.
    """
    config = model.config
    weights = sum(p.numel() for p in model.parameters()) - config.n_positions * config.n_embd
    cache = 2 * config.n_layer * config.n_embd * rows * length
    return int((weights + cache) * next(model.parameters()).element_size())


def fitting(models: dict[str, Any], prompts: Any, wanted: int, seconds: float, rounds: int) -> int:
    """Return how many tokens to decode: `wanted`, or fewer (from 4 on) when rounds of it would take too long."""
    probe = min(wanted, 2)
    per_token = sum(prompts.shape[0] / tokens_per_second(model, prompts, probe) for model in models.values())
    return max(min(wanted, 4), min(wanted, int(seconds / (rounds + 1) / per_token)))


def main() -> None:
    """Measure every dtype and batch size."""
    parser = common.parser(__doc__)
    parser.add_argument("--dtypes", default="fp32,bf16,fp16")
    parser.add_argument("--batches", default="1,8")
    parser.add_argument("--prompt", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--seconds", type=float, default=45.0, help="bound for each dtype and batch size")
    args = parser.parse_args()

    import torch

    from quintet.cli.machine import read_bandwidth

    threads = common.set_threads(args.threads)
    folder = common.checkpoint(args.work_dir, args.model_shape)
    bandwidth = read_bandwidth()["gb_s"]
    for dtype in args.dtypes.split(","):
        models = {peer: common.load_model(peer, folder, dtype) for peer in common.PEERS}
        for rows in map(int, args.batches.split(",")):
            torch.manual_seed(1)
            prompts = torch.randint(common.SHAPES[args.model_shape]["vocab_size"], (rows, args.prompt))
            tokens = fitting(models, prompts, args.tokens, args.seconds, args.rounds)
            outs: dict[str, list[Any]] = {peer: [] for peer in models}
            runs = {peer: partial(tokens_per_second, models[peer], prompts, tokens, outs[peer]) for peer in models}
            values = common.alternate(runs, args.rounds, seconds=args.seconds)
            read = bytes_per_step(models["quintet"], rows, args.prompt + tokens / 2)
            limit = rows * bandwidth * 1e9 / read
            result = common.summary(values, 2)
            common.emit(
                "decode",
                {
                    "model": args.model_shape,
                    "dtype": dtype,
                    "batch": rows,
                    "prompt": args.prompt,
                    "tokens": tokens,
                    "rounds": len(values["quintet"]),
                    "tok_s": result,
                    "ratio": round(common.ratio(values, *common.PEERS), 3),
                    "same_tokens": bool(torch.equal(outs["quintet"][0], outs["transformers"][0])),
                    "read_gb_s": bandwidth,
                    "mb_per_step": round(read / 1e6, 1),
                    "limit_tok_s": round(limit, 1),
                    "fraction_of_limit": round(result["quintet"]["median"] / limit, 3),
                },
                threads,
            )


if __name__ == "__main__":
    main()
