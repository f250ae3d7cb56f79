"""Native kernels beside the machine's read bandwidth and plain PyTorch: sizes, types, numbers of rows and threads.

Weights rotate so that they come from memory, and not from a cache; ways alternate, so that a busy moment hits all.
Every way is given in bytes of the weights a second (GB/s, what counts for few rows) and in operations a second
(GFLOPS, what counts for many). `torch` is a plain product with weights of x's type, and for experts and blocks the
modules of plain PyTorch; `fused without native` is what quintet does without native kernels.
"""

from __future__ import annotations

import inspect
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import common

# (in, out) by operation and type.
SIZES: dict[str, dict[str, tuple[tuple[int, int], ...]]] = {
    "matvec": {"bf16": ((768, 768), (2048, 2048), (2048, 8192)), "fp16": ((2048, 2048),), "fp32": ((2048, 2048),)},
    "matmul": {"bf16": ((2048, 2048), (2048, 8192), (4096, 2880))},
    "int8_linear": {"bf16": ((2048, 2048), (2048, 8192))},
    "int4_linear": {"bf16": ((2048, 2048), (2048, 8192))},
    "mxfp4_matvec": {"bf16": ((2880, 2880),)},
    "head_topk": {"bf16": ((2880, 201_088),)},
}
TINY = {op: dict.fromkeys(sizes, ((64, 96),)) for op, sizes in SIZES.items()}
EXPERTS = {"large": (32, 2880, 2880), "tiny": (6, 64, 64)}  # E, D, F: those of gpt-oss-20b, of which each row asks 4
ASKED = 4
# A list of blocks and its format: a whole step through them, up to 8 rows in one call.
BLOCKS = {"large": ("gpt2:none", "gpt2:int8", "gpt2:int4", "gpt-oss:none"), "tiny": ("tiny:none", "tiny:int8")}
CONTEXT = 128  # tokens before a step
# Heads, groups and numbers of a head: `rows` are the tokens of a prompt, or one behind so many keys.
HEADS = {"large": ((16, 16, 64), (8, 8, 128), (64, 8, 64)), "tiny": ((4, 2, 16),)}
WINDOW = 128
WIDTHS = {"large": (1024, 2048, 2880), "tiny": (64,)}
OPERATIONS = (
    *SIZES,
    "mxfp4_experts",
    "attention",
    "attention_window",
    "attention_decode",
    "rms_norm",
    "layer_norm",
    "blocks",
)
ROTATED = 160 * 2**20  # bytes of weights that are gone through before one is read again

Way = Callable[[int], Any]
# What is measured: operation, size, type, bytes and products of weights for so many rows, and how to call it.
Case = tuple[str, str, str, Callable[[int], tuple[float, float]], Callable[[int], dict[str, Way]]]


def measure(ways: dict[str, Way], seconds: float) -> dict[str, float]:
    """Return the median seconds of a call of each way, taken in turns; the first counts where there is no second."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    turn, end = 0, time.perf_counter() + seconds
    while turn < 2 * len(ways) or time.perf_counter() < end:
        for name, way in ways.items():
            turn += 1
            if sum(times[name]) > 4 * seconds:  # so slow that one call says it
                continue
            began = time.perf_counter()
            way(turn)
            times[name].append(time.perf_counter() - began)
    return {name: statistics.median(taken[1:] or taken) for name, taken in times.items()}


def without_native(way: Way) -> Way:
    """Return the same call as it is where there are no native kernels."""
    from quintet.kernels import loader

    def called(i: int) -> Any:
        kept = loader._loaded
        loader._loaded = lambda: (None, loader.Status(False, None, None, "a benchmark"))  # type: ignore[assignment]
        try:
            return way(i)
        finally:
            loader._loaded = kept

    return called


def rotating(make: Callable[[], Any], size: float) -> list[Any]:
    """Return so many copies that they do not fit a cache; an odd number, as two or three ways take turns."""
    return [make() for _ in range(max(3, int(ROTATED / size)) | 1)]


def told(function: Callable[..., Any], activations: str, dtype: Any, rows: int = 1) -> dict[str, str] | None:
    """Return how a function is told of the activations, None where it knows only those of x's type."""
    from quintet.kernels.integers import activations_for

    if "activations" in inspect.signature(function).parameters:
        return {"activations": activations if activations == "int8" else activations_for(activations, rows, dtype)}
    return {} if activations == "bf16" else None


def taken(ways: dict[str, Way]) -> dict[str, Way]:
    """Leave out a native way that does not take this."""
    return {name: way for name, way in ways.items() if name != "native" or way(0) is not None}


def linear_case(op: str, dtype: str, size: tuple[int, int], activations: str) -> Case | None:
    """A product with one weight."""
    import torch

    from quintet.fused import cpu_linear as fused
    from quintet.kernels.integers import native_int4_linear, native_int8_linear
    from quintet.kernels.linear import native_matmul, native_matvec
    from quintet.kernels.mxfp4 import native_mxfp4_matvec
    from quintet.kernels.packing import quantize_int4, quantize_int8
    from quintet.quant.packed_experts import packed_linear
    from quintet.quant.packed_linear import LINEARS

    inputs, outputs = size
    kind = getattr(torch, common.DTYPES[dtype])
    plain = torch.randn(outputs, inputs).to(kind)
    native: Callable[..., Any] = {
        "matvec": native_matvec, "matmul": native_matmul, "int8_linear": native_int8_linear,
        "int4_linear": native_int4_linear, "mxfp4_matvec": native_mxfp4_matvec,
    }[op]  # fmt: skip
    unpacked = op in ("matvec", "matmul")
    if told(native, activations, kind) is None:
        return None
    if op == "mxfp4_matvec":
        shape = (outputs, inputs // 32)
        parts: Any = (torch.randint(0, 256, (*shape, 16), dtype=torch.uint8), torch.full(shape, 120, dtype=torch.uint8))
    else:
        parts = (plain,) if unpacked else {"int8": quantize_int8, "int4": quantize_int4}[op[:4]](plain)
    held = [part for part in parts if part is not None]
    size_bytes = sum(part.nbytes for part in held)
    weights = rotating(lambda: tuple(None if part is None else part.clone() for part in parts), size_bytes)
    plains = weights if unpacked else rotating(lambda: (plain.clone(),), plain.nbytes)

    def other(x: Any) -> Way:
        """Without native kernels."""
        if unpacked:
            return lambda i: plain_product(x, plains[i % len(plains)][0])
        if op == "mxfp4_matvec":
            return lambda i: packed_linear(x, *weights[i % len(weights)])
        module, _ = LINEARS[int(op[3])].from_plain(torch.nn.Linear(inputs, outputs, bias=False).to(kind))
        module.activations = activations
        return without_native(lambda i: module(x))

    def plain_product(x: Any, weight: Any) -> Any:
        out = fused.plain_product(x, weight, None)
        return torch.nn.functional.linear(x, weight) if out is None else out

    def ways(rows: int) -> dict[str, Way]:
        x = torch.randn(rows, inputs).to(kind)
        options = told(native, activations, kind, rows) or {}
        return taken(
            {
                "torch": lambda i: torch.nn.functional.linear(x, plains[i % len(plains)][0]),
                "fused without native": other(x),
                "native": lambda i: native(x, *weights[i % len(weights)], **options),
            }
        )

    return op, f"{inputs} x {outputs}", dtype, lambda rows: (size_bytes, rows * inputs * outputs), ways


def head_case(dtype: str, size: tuple[int, int], best: int = 50) -> Case:
    """The 50 best of an output head, beside a product and torch's search in its row."""
    import torch

    from quintet.fused import cpu_linear as fused
    from quintet.kernels.head import native_head_topk

    inputs, outputs = size
    weight = torch.randn(outputs, inputs).to(getattr(torch, common.DTYPES[dtype]))
    best = min(best, outputs)

    def row(x: Any) -> Any:
        out = fused.plain_product(x, weight, None)
        return torch.nn.functional.linear(x, weight) if out is None else out

    def ways(rows: int) -> dict[str, Way]:
        x = torch.randn(rows, inputs).to(weight.dtype)
        return taken(
            {
                "torch": lambda i: torch.nn.functional.linear(x, weight).float().topk(best),
                "fused without native": lambda i: row(x).float().topk(best),
                "native": lambda i: native_head_topk(x, weight, best, log_sum=False),
            }
        )

    return "head_topk", f"{inputs} x {outputs}", dtype, lambda rows: (weight.nbytes, rows * inputs * outputs), ways


def experts_case(shape: str, activations: str) -> Case | None:
    """The 4 experts that each row asks, packed."""
    import torch

    from quintet.kernels.mxfp4 import native_mxfp4_experts
    from quintet.layers.experts import RoutedExperts
    from quintet.quant.packed_experts import PackedExperts

    experts, hidden, inner = EXPERTS[shape]
    made = PackedExperts(experts, hidden, inner).to(torch.bfloat16)
    for name, parameter in made.named_parameters():
        if name.endswith("blocks"):
            parameter.data.random_(0, 256)
        elif name.endswith("scales"):
            parameter.data.fill_(120)

    def ways(rows: int) -> dict[str, Way]:
        x = torch.randn(rows, hidden).to(torch.bfloat16)
        weights = torch.full((rows, ASKED), 1 / ASKED, dtype=torch.bfloat16)
        asked = [torch.stack([torch.randperm(experts)[:ASKED] for _ in range(rows)]) for _ in range(31)]

        def native(i: int) -> Any:
            return native_mxfp4_experts(x, asked[i % 31], weights, made.stacks(), 1.702, 7.0, activations)

        return taken({"torch": lambda i: RoutedExperts.forward(made, x, asked[i % 31], weights), "native": native})

    def cost(rows: int) -> tuple[float, float]:
        numbers = 3 * hidden * inner  # of one expert; rows share some, and the more they are the more
        return expected(experts, rows) * numbers * 17 / 32, rows * ASKED * numbers

    return "mxfp4_experts", " x ".join(map(str, EXPERTS[shape])), "bf16", cost, ways


def expected(experts: int, rows: int) -> float:
    """Return how many experts so many rows ask, when each asks any."""
    return experts * (1 - (1 - min(1.0, ASKED / experts)) ** rows)


def attention_case(op: str, heads: tuple[int, int, int], dtype: str) -> Case:
    """Causal attention of a prompt of `rows` tokens, through a window and sinks, or of one token with `rows` keys."""
    import torch

    from quintet.kernels.attention import native_attention
    from quintet.layers.attention.sdpa import sdpa
    from quintet.layers.masks import MaskSpec

    count, groups, size = heads
    window = WINDOW if op == "attention_window" else None
    kind = getattr(torch, common.DTYPES[dtype])

    def ways(rows: int) -> dict[str, Way]:
        queries = 1 if op == "attention_decode" else rows
        q = torch.randn(1, queries, count, size).to(kind).transpose(1, 2)
        k, v = (torch.randn(1, groups, rows, size).to(kind) for _ in range(2))
        sinks = torch.zeros(count, dtype=kind) if window else None
        mask = MaskSpec(queries, rows, rows - queries, window=window)
        options = {"scale": size**-0.5, "dropout": 0.0, "upcast": False, "sinks": sinks}
        return taken(
            {
                "torch": lambda i: sdpa(q, k, v, mask, **options)[0],
                "native": lambda i: native_attention(q, k, v, size**-0.5, True, window, None, sinks),
            }
        )

    def cost(rows: int) -> tuple[float, float]:
        seen = rows if op == "attention_decode" else sum(min(t + 1, window or rows) for t in range(rows))
        return 2 * groups * rows * size * kind.itemsize, 2 * count * seen * size

    return op, " x ".join(map(str, heads)), dtype, cost, ways


def norm_case(op: str, width: int, dtype: str) -> Case:
    """A norm of rows."""
    import torch
    from torch.nn import functional as F

    from quintet.kernels.norms import native_layer_norm, native_rms_norm

    kind = getattr(torch, common.DTYPES[dtype])
    weight, bias = torch.ones(width, dtype=kind), torch.zeros(width, dtype=kind)

    def ways(rows: int) -> dict[str, Way]:
        x = torch.randn(rows, width).to(kind)
        if op == "layer_norm":
            plain: Way = lambda i: F.layer_norm(x, (width,), weight, bias, 1e-5)  # noqa: E731
            return taken({"torch": plain, "native": lambda i: native_layer_norm(x, weight, bias, 1e-5)})
        plain = lambda i: F.rms_norm(x, (width,), weight, 1e-5)  # noqa: E731
        return taken({"torch": plain, "native": lambda i: native_rms_norm(x, weight, 1e-5)})

    return op, str(width), dtype, lambda rows: (2 * rows * width * kind.itemsize, rows * width), ways


def blocks_case(name: str, work_dir: Path, activations: str) -> Case:
    """A step through all blocks of a model: up to 8 texts with a token each, or that many tokens of one text."""
    import copy

    import growth
    import torch

    from quintet.quant.packed_experts import count
    from quintet.quant.packed_linear import PackedLinear

    shape, _, packing = name.partition(":")
    model = growth.build(shape, work_dir, packing, optimize=False)
    for module in model.modules():
        if isinstance(module, PackedLinear):
            module.activations = activations
    plain = copy.deepcopy(model)
    model.optimize()
    size_bytes, chosen = common.bytes_per_step(model), getattr(model.config, "num_experts_per_tok", 0)
    share = chosen / model.config.num_local_experts if chosen else 1.0
    blocks = [p for key, p in plain.named_parameters() if "embed" not in key and ".wt" not in key and "head" not in key]
    numbers = sum(count(p) * (share if p.dim() in (3, 4) else 1) for p in blocks)

    def ways(rows: int) -> dict[str, Way]:
        texts, tokens = (rows, 1) if rows <= 8 else (1, rows)
        ids = torch.full((texts, tokens), 9)
        # each way has a cache of its own, which grows by a token at every call
        caches = {which: growth.filled(model, texts, CONTEXT) for which in ("torch", "fused", "native")}

        def step(which: Any, cache: str) -> Way:
            def call(i: int) -> Any:
                if caches[cache].get_seq_length() > 4 * CONTEXT + tokens:
                    caches[cache] = growth.filled(model, texts, CONTEXT)
                return which(ids, past_key_values=caches[cache], use_cache=True, logits_to_keep=1).logits

            return call

        made = {
            "torch": without_native(step(plain, "torch")),
            "fused without native": without_native(step(model, "fused")),
        }
        from quintet.kernels.loader import library

        return made if library() is None else {**made, "native": step(model, "native")}

    label = growth.MODELS[shape][0] + ("" if packing == "none" else f", {packing}")
    return "blocks", label, "bf16", lambda rows: (size_bytes, rows * numbers), ways


def cases(args: Any) -> Iterator[Case]:
    """Everything that is asked for, made when its turn comes."""
    for op in args.ops.split(","):
        if op in SIZES:
            for dtype, sizes in (TINY if args.shape == "tiny" else SIZES)[op].items():
                for size in sizes:
                    found = (
                        head_case(dtype, size) if op == "head_topk" else linear_case(op, dtype, size, args.activations)
                    )
                    if found:
                        yield found
        elif op == "mxfp4_experts":
            found = experts_case(args.shape, args.activations)
            if found:
                yield found
        elif op.startswith("attention"):
            for heads in HEADS[args.shape]:
                for dtype in ("bf16", "fp32"):
                    yield attention_case(op, heads, dtype)
        elif op.endswith("norm"):
            for width in WIDTHS[args.shape]:
                for dtype in ("bf16", "fp32"):
                    yield norm_case(op, width, dtype)
        else:
            for name in BLOCKS[args.shape]:
                yield blocks_case(name, args.work_dir, args.activations)


def main() -> None:
    """Measure and print."""
    parser = common.parser(__doc__, shape=False)
    parser.add_argument("--ops", default=",".join(OPERATIONS))
    parser.add_argument("--shape", choices=tuple(EXPERTS), default="large", help="tiny: for trying the script out")
    parser.add_argument("--seconds", type=float, default=0.3, help="for each line")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 64, 512])
    parser.add_argument("--activations", choices=("bf16", "int8"), default="bf16", help="as packed weights see them")
    parser.add_argument("--work-dir", type=Path, default=Path("/tmp/quintet-benchmarks"))
    args = parser.parse_args()
    unknown = set(args.ops.split(",")) - set(OPERATIONS)
    if unknown:
        parser.error(f"--ops {sorted(unknown)[0]}: known are {', '.join(OPERATIONS)}")
    import torch

    from quintet.cli.machine import read_bandwidth
    from quintet.kernels.loader import status

    with torch.inference_mode():
        for op, size, dtype, cost, ways in cases(args):
            facts = {"op": op, "size": size, "dtype": common.DTYPES[dtype], "activations": args.activations}
            for threads in common.thread_counts(args.threads):
                common.set_threads(threads)
                bandwidth = read_bandwidth(seconds=0.2)["gb_s"]
                for rows in args.rows:
                    (read, products), seconds = cost(rows), measure(ways(rows), args.seconds)
                    record = {**facts, "rows": rows, "threads": threads, "level": status().level}
                    record["gb_s"] = {way: float(f"{read / s / 1e9:.4g}") for way, s in seconds.items()}
                    record["gflop_s"] = {way: float(f"{2 * products / s / 1e9:.4g}") for way, s in seconds.items()}
                    common.emit("kernels", {**record, "read_gb_s": bandwidth}, threads)


if __name__ == "__main__":
    sys.exit(main())
