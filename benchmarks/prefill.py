"""Tokens per second of reading a prompt of 512 tokens, quintet against transformers.

Both in one process, in alternating rounds, logits for the last token only. Beside them GFLOP/s against the fastest
matrix product found on this machine in the same dtype.
"""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import common


def seconds_of(model: Any, ids: Any) -> float:
    """Return the seconds of one forward pass with a cache."""
    import torch

    with torch.inference_mode():
        began = time.perf_counter()
        model(input_ids=ids, use_cache=True, logits_to_keep=1)
        return time.perf_counter() - began


def gflop(config: Any, tokens: int) -> float:
    """Return the arithmetic of a prefill: 2 operations per weight and token, causal attention, one row of the head.

    A block has 12 E^2 weights; scores and weighing cost 4 T S E, of which causality needs half.
    """
    blocks = config.n_layer * (24 * config.n_embd**2 * tokens + 2 * tokens**2 * config.n_embd)
    return float((blocks + 2 * config.n_embd * config.vocab_size) / 1e9)


def matmul_peak(dtype: str, size: int = 1536) -> float:
    """Return the GFLOP/s of the fastest way found to multiply two square matrices."""
    import torch

    kind = getattr(torch, common.DTYPES[dtype])
    a, b = torch.randn(size, size).to(kind), torch.randn(size, size).to(kind)
    ways = {"linear": lambda: torch.nn.functional.linear(a, b), "mm": lambda: torch.mm(a, b)}
    onednn = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
    if onednn is not None and dtype == "fp32":  # torch multiplies float32 with MKL, which is not the fastest everywhere
        ways["onednn"] = lambda: onednn(a, b, None, "none", [], "")
    if dtype == "fp16":  # without float16 instructions torch multiplies number by number
        ways["in float32"] = lambda: torch.mm(a.float(), b.float()).half()
        if onednn is not None:
            ways["onednn in float32"] = lambda: onednn(a.float(), b.float(), None, "none", [], "").half()
    best = 0.0
    with torch.inference_mode():
        for way in ways.values():
            end, passes = time.perf_counter() + 0.5, 0
            while passes < 2 or time.perf_counter() < end:
                began = time.perf_counter()
                way()
                best = max(best, 2 * size**3 / (time.perf_counter() - began) / 1e9)
                passes += 1
    return best


def main() -> None:
    """Measure every dtype."""
    parser = common.parser(__doc__)
    parser.add_argument("--dtypes", default="fp32,bf16,fp16")
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--seconds", type=float, default=30.0, help="bound for each dtype")
    args = parser.parse_args()

    import torch

    threads = common.set_threads(args.threads)
    folder = common.checkpoint(args.work_dir, args.model_shape)
    torch.manual_seed(1)
    ids = torch.randint(common.SHAPES[args.model_shape]["vocab_size"], (1, args.tokens))
    for dtype in args.dtypes.split(","):
        models = {peer: common.load_model(peer, folder, dtype) for peer in common.PEERS}
        models["quintet"].optimize()
        runs = {peer: partial(seconds_of, models[peer], ids) for peer in models}
        times = common.alternate(runs, args.rounds, seconds=args.seconds)
        values = {peer: [args.tokens / one for one in times[peer]] for peer in times}
        result = common.summary(values, 1)
        work = gflop(models["quintet"].config, args.tokens)
        speeds = {peer: round(work * result[peer]["median"] / args.tokens, 1) for peer in result}
        peak = matmul_peak(dtype)
        common.emit(
            "prefill",
            {
                "model": args.model_shape,
                "dtype": dtype,
                "tokens": args.tokens,
                "rounds": len(values["quintet"]),
                "tok_s": result,
                "ratio": round(common.ratio(values, *common.PEERS), 3),
                "gflop_s": speeds,
                "matmul_gflop_s": round(peak, 1),
                "fraction_of_limit": round(speeds["quintet"] / peak, 3),
            },
            threads,
        )


if __name__ == "__main__":
    main()
