"""Milliseconds a step of beam search after a short prompt, quintet against transformers.

Both in one process, in alternating rounds, with the same weights and threads. What reading the prompt takes is measured
by a run of two tokens, and taken off.
"""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import common


def ms_per_step(model: Any, prompts: Any, beams: int, tokens: int, kept: list[Any] | None = None) -> float:
    """Search with so many beams and tokens, and return what each step after the second took."""
    import torch

    seconds = []
    for count in (2, tokens):
        began = time.perf_counter()
        out = model.generate(
            prompts,
            attention_mask=torch.ones_like(prompts),
            do_sample=False,
            num_beams=beams,
            max_new_tokens=count,
            pad_token_id=0,
        )
        seconds.append(time.perf_counter() - began)
    if kept is not None:
        kept.append(out)
    return (seconds[1] - seconds[0]) / (tokens - 2) * 1e3


def main() -> None:
    """Measure every number of rows and beams."""
    parser = common.parser(__doc__)
    parser.add_argument("--cases", default="1x4,4x4", help="rows x beams")
    parser.add_argument("--prompt", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=45.0, help="bound for each case")
    args = parser.parse_args()

    import torch

    threads = common.set_threads(args.threads)
    folder = common.checkpoint(args.work_dir, args.model_shape)
    models = {peer: common.load_model(peer, folder, "fp32") for peer in common.PEERS}
    for case in args.cases.split(","):
        rows, beams = map(int, case.split("x"))
        torch.manual_seed(1)
        prompts = torch.randint(common.SHAPES[args.model_shape]["vocab_size"], (rows, args.prompt))
        outs: dict[str, list[Any]] = {peer: [] for peer in models}
        runs = {peer: partial(ms_per_step, models[peer], prompts, beams, args.tokens, outs[peer]) for peer in models}
        values = common.alternate(runs, args.rounds, seconds=args.seconds)
        common.emit(
            "generation_beams",
            {
                "model": args.model_shape,
                "dtype": "fp32",
                "batch": rows,
                "beams": beams,
                "prompt": args.prompt,
                "tokens": args.tokens,
                "rounds": len(values["quintet"]),
                "ms_step": common.summary(values, 2),
                "ratio": round(common.ratio(values, "transformers", "quintet"), 2),
                "same_tokens": bool(torch.equal(outs["quintet"][0], outs["transformers"][0])),
            },
            threads,
        )


if __name__ == "__main__":
    main()
