"""Where a decoding step spends its time: ways to compute GPT-2's linear layers, attention, norms and activation.

Weights rotate so that they come from memory, not from a cache. `--cpu-time` counts this thread's processor time with
one thread, which still compares fairly on a machine that is busy with something else.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import common

LAYERS = {"c_attn": (768, 2304), "c_proj": (768, 768), "c_fc": (768, 3072), "mlp_c_proj": (3072, 768)}
COPIES = 12

Ways = dict[str, Callable[[int], Any]]


def measure(way: Callable[[int], Any], copies: int, seconds: float, clock: Callable[[], float]) -> dict[str, float]:
    """Return the 10 % quantile and the median of calls, in microseconds."""
    for index in range(copies):
        way(index)
    times: list[float] = []
    end = clock() + seconds
    while clock() < end or len(times) < 5:
        began = clock()
        way(len(times) % copies)
        times.append((clock() - began) * 1e6)
    times.sort()
    return {"us_q10": round(times[len(times) // 10], 1), "us_median": round(times[len(times) // 2], 1)}


def linear_ways(inputs: int, outputs: int, rows: int, dtype: Any, copies: int) -> Ways:
    """Return ways to compute `x @ W + b` for W stored (in, out), as published, and turned to (out, in)."""
    import torch
    from torch.nn import functional as F

    from quintet.fused.cpu_linear import cpu_linear

    stored = [torch.randn(inputs, outputs).to(dtype) for _ in range(copies)]
    turned = [w.t().contiguous() for w in stored]
    bias, x = torch.randn(outputs).to(dtype), torch.randn(rows, inputs).to(dtype)
    ways: Ways = {
        "addmm, stored (transformers)": lambda i: torch.addmm(bias, x, stored[i]),
        "linear, turned": lambda i: F.linear(x, turned[i], bias),
    }
    for name, weights in (("stored", [w.t() for w in stored]), ("turned", turned)):
        if cpu_linear(x, weights[0], bias) is not None:  # None: the plain product is what quintet uses
            ways[f"cpu_linear, {name}"] = lambda i, weights=weights: cpu_linear(x, weights[i], bias)
    if dtype == torch.float16 and rows > 1:
        ways["linear in float32, turned"] = lambda i: F.linear(x.float(), turned[i].float(), bias.float()).to(dtype)
    if rows == 1:
        index, start, factors = torch.arange(inputs), torch.tensor([0]), x[0].contiguous()
        ways["embedding_bag, stored"] = lambda i: F.embedding_bag(
            index, stored[i], start, mode="sum", per_sample_weights=factors
        ).add_(bias)
    ways.update(_onednn(stored, turned, x, bias))
    return ways


def _onednn(stored: list[Any], turned: list[Any], x: Any, bias: Any) -> Ways:
    """Ways through oneDNN, where this torch has its private operators and they take this dtype."""
    import torch

    pack = getattr(torch.ops.mkldnn, "_reorder_linear_weight", None)
    linear = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
    if pack is None or linear is None:
        return {}
    try:
        packed = [pack(w, 64) for w in turned]
        linear(x, packed[0], bias, "none", [], "")
    except (RuntimeError, NotImplementedError):
        return {}
    return {
        "oneDNN, stored": lambda i: linear(x, stored[i].t(), bias, "none", [], ""),
        "oneDNN, turned": lambda i: linear(x, turned[i], bias, "none", [], ""),
        "oneDNN, packed": lambda i: linear(x, packed[i], bias, "none", [], ""),
    }


def other_ways(dtype: Any, length: int = 160) -> dict[str, Ways]:
    """Return what else a block does with one token."""
    import torch
    from torch.nn import functional as F

    x, wide = torch.randn(1, 1, 768).to(dtype), torch.randn(1, 1, 3072).to(dtype)
    scale, shift = torch.ones(768, dtype=dtype), torch.zeros(768, dtype=dtype)
    q = torch.randn(1, 12, 1, 64).to(dtype)
    k, v = torch.randn(1, 12, length, 64).to(dtype), torch.randn(1, 12, length, 64).to(dtype)
    return {
        "layer_norm": {"layer_norm": lambda i: F.layer_norm(x, (768,), scale, shift)},
        "gelu": {"gelu tanh": lambda i: F.gelu(wide, approximate="tanh")},
        f"attention over {length}": {
            "sdpa": lambda i: F.scaled_dot_product_attention(q, k, v),
            "matmul, softmax, matmul": lambda i: torch.softmax(q @ k.transpose(-1, -2) * 0.125, -1) @ v,
        },
    }


def main() -> None:
    """Measure every way."""
    parser = common.parser(__doc__, shape=False)
    parser.add_argument("--dtypes", default="fp32,bf16,fp16")
    parser.add_argument("--row-counts", default="1,8")
    parser.add_argument("--layers", default=",".join(LAYERS))
    parser.add_argument("--seconds", type=float, default=0.15, help="for each way")
    parser.add_argument("--copies", type=int, default=COPIES)
    parser.add_argument("--cpu-time", action="store_true", help="this thread's processor time, with one thread")
    args = parser.parse_args()

    import torch

    threads = common.set_threads(1 if args.cpu_time else args.threads)
    clock = time.thread_time if args.cpu_time else time.perf_counter

    def report(op: str, dtype: str, rows: int, size: int, ways: Ways, copies: int) -> None:
        for name, way in ways.items():
            found = measure(way, copies, args.seconds, clock)
            facts = {"op": op, "dtype": dtype, "rows": rows, "way": name, **found}
            if size:
                facts["gb_s"] = round(size / found["us_q10"] / 1e3, 1)
            common.emit("micro", {**facts, "clock": "cpu" if args.cpu_time else "wall"}, threads)

    with torch.no_grad():
        for dtype in args.dtypes.split(","):
            kind = getattr(torch, common.DTYPES[dtype])
            for layer in args.layers.split(","):
                inputs, outputs = LAYERS[layer]
                for rows in map(int, args.row_counts.split(",")):
                    ways = linear_ways(inputs, outputs, rows, kind, args.copies)
                    report(layer, dtype, rows, inputs * outputs * kind.itemsize, ways, args.copies)
            for op, ways in other_ways(kind).items():
                report(op, dtype, 1, 0, ways, 1)


if __name__ == "__main__":
    main()
