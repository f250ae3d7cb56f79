"""Native kernels beside the machine's read bandwidth and plain PyTorch: one JSON line for each op, size, type and rows.

Weights rotate so that they come from memory, and not from a cache; ways alternate, so that a busy moment hits all.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import common

SIZES = ((768, 768), (2048, 2048), (4096, 4096), (2048, 8192))  # (in, out)
EXPERT = (32, 2880, 2880)  # E, D, F of gpt-oss-20b, of which each row asks 4
ROTATED = 160 * 2**20  # bytes of weights that are gone through before one is read again

Way = Callable[[int], Any]


def measure(ways: dict[str, Way], seconds: float) -> dict[str, float]:
    """Return the median seconds of a call of each way, taken in turns."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    turn, end = 0, time.perf_counter() + seconds
    while time.perf_counter() < end or turn < 7 * len(ways):
        for name, way in ways.items():
            turn += 1
            began = time.perf_counter()
            way(turn)
            times[name].append(time.perf_counter() - began)
    return {name: statistics.median(taken[1:]) for name, taken in times.items()}


def linear_ways(inputs: int, outputs: int, rows: int, dtype: Any) -> dict[str, Way]:
    """Ways to multiply a few rows by a weight (out, in)."""
    import torch

    from quintet.fused import cpu_linear as fused
    from quintet.kernels.linear import native_matvec

    copies = max(2, ROTATED // (inputs * outputs * dtype.itemsize)) | 1
    weights = [torch.zeros(outputs, inputs, dtype=dtype).add_(0.5) for _ in range(copies)]
    x = torch.randn(rows, inputs).to(dtype)

    def without(i: int) -> Any:
        out = fused.plain_product(x, weights[i % copies], None)
        return torch.nn.functional.linear(x, weights[i % copies]) if out is None else out

    ways: dict[str, Way] = {
        "torch": lambda i: torch.nn.functional.linear(x, weights[i % copies]),
        "fused without native": without,
    }
    if native_matvec(x, weights[0]) is not None:
        ways["native"] = lambda i: native_matvec(x, weights[i % copies])
    return ways


def expert_ways(rows: int, dtype: Any) -> dict[str, Way]:
    """Ways to ask 4 packed experts for each row."""
    import torch

    from quintet.kernels.mxfp4 import native_mxfp4_experts
    from quintet.layers.experts import RoutedExperts
    from quintet.quant.packed_experts import PackedExperts

    experts, hidden, inner = EXPERT
    made = PackedExperts(experts, hidden, inner).to(dtype)
    for name, parameter in made.named_parameters():
        if name.endswith("blocks"):
            parameter.data.random_(0, 256)
        elif name.endswith("scales"):
            parameter.data.fill_(120)
    x, weights = torch.randn(rows, hidden).to(dtype), torch.full((rows, 4), 0.25, dtype=dtype)
    asked = [torch.stack([torch.randperm(experts)[:4] for _ in range(rows)]) for _ in range(101)]
    ways: dict[str, Way] = {"torch": lambda i: RoutedExperts.forward(made, x, asked[i % 101], weights)}
    if native_mxfp4_experts(x, asked[0], weights, made.stacks(), 1.702, 7.0) is not None:
        ways["native"] = lambda i: native_mxfp4_experts(x, asked[i % 101], weights, made.stacks(), 1.702, 7.0)
    return ways


def main() -> None:
    """Measure and print."""
    parser = common.parser(__doc__, shape=False)
    parser.add_argument("--seconds", type=float, default=0.6, help="for each line")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 4, 8])
    args = parser.parse_args()
    import torch

    from quintet.cli.machine import read_bandwidth
    from quintet.kernels.loader import status

    threads = common.set_threads(args.threads)

    def line(op: str, size: list[int], dtype: Any, rows: int, read: float, taken: dict[str, float]) -> None:
        speeds = {way: round(read / seconds / 1e9, 1) for way, seconds in taken.items()}
        facts = {"op": op, "size": " x ".join(map(str, size)), "dtype": str(dtype).removeprefix("torch."), "rows": rows}
        facts |= {"level": status().level, "gb_s": speeds, "read_gb_s": read_bandwidth(seconds=0.3)["gb_s"]}
        common.emit("kernels", facts, threads)

    with torch.inference_mode():
        for dtype in (torch.bfloat16, torch.float16, torch.float32):
            for inputs, outputs in SIZES:
                for rows in args.rows:
                    taken = measure(linear_ways(inputs, outputs, rows, dtype), args.seconds)
                    line("matvec", [inputs, outputs], dtype, rows, inputs * outputs * dtype.itemsize, taken)
        for dtype in (torch.bfloat16, torch.float32):
            for rows in args.rows:
                taken = measure(expert_ways(rows, dtype), args.seconds)
                # bytes that each row reads; rows that share an expert find it in a cache, at best
                read = rows * 4 * 3 * EXPERT[1] * EXPERT[2] * 17 / 32
                line("mxfp4_experts", list(EXPERT), dtype, rows, read, taken)


if __name__ == "__main__":
    main()
