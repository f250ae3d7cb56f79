"""Every batch from 1 to 33, sums in float32, and tensors in any order or at any byte: the same numbers, to the bit."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import quintet
from quintet.kernels.attention import attention_reference, native_attention
from quintet.kernels.head import native_head_topk
from quintet.kernels.integers import native_int4_linear, native_int8_linear
from quintet.kernels.linear import native_matmul, native_matvec
from quintet.kernels.loader import FEW_ROWS, LEVELS, NATIVE_OPS, library, status
from quintet.kernels.mxfp4 import mxfp4_experts_reference, native_mxfp4_experts, native_mxfp4_matvec
from quintet.kernels.norms import (
    layer_norm_reference,
    native_layer_norm,
    native_rms_norm,
    native_rope,
    rms_norm_reference,
    rope_reference,
)
from quintet.kernels.packing import dequantize_int4, dequantize_int8, quantize_int4, quantize_int8
from quintet.quant.mxfp4 import unpack

pytestmark = pytest.mark.skipif(library() is None, reason=f"no native kernels: {status().reason}")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
MOST = 33
# Largest difference to the exact product, as a share of its largest value: the rounding of the result, and sums.
BOUNDS = {torch.float32: 2e-6, torch.bfloat16: 4e-3, torch.float16: 6e-4}
# Length of the differences, as a share of the length of the product.
LENGTHS = {torch.float32: 1e-6, torch.bfloat16: 2e-3, torch.float16: 3e-4}

Parts = dict[str, torch.Tensor]
# Makes the tensors of an operation, all in one piece; calls it on tensors; says in float64 what it should give.
Made = tuple[Parts, Callable[[Parts], torch.Tensor | None], torch.Tensor]


def matvec(dtype: torch.dtype, inputs: int = 135, outputs: int = 29) -> Made:
    parts = {"x": torch.randn(MOST, inputs), "weight": torch.randn(outputs, inputs), "bias": torch.randn(outputs)}
    parts = {name: part.to(dtype) for name, part in parts.items()}
    exact = parts["x"].double() @ parts["weight"].double().t() + parts["bias"].double()
    return parts, lambda p: native_matvec(p["x"], p["weight"], p["bias"]), exact


def matmul(dtype: torch.dtype) -> Made:
    parts, _, exact = matvec(dtype, 134, 61)
    return parts, lambda p: native_matmul(p["x"], p["weight"], p["bias"]), exact


def int8(dtype: torch.dtype, group: int | None = 32, inputs: int = 160, outputs: int = 29) -> Made:
    weight, scale = quantize_int8(torch.randn(outputs, inputs), group, dtype)
    parts = {"x": torch.randn(MOST, inputs).to(dtype), "weight": weight, "scale": scale}
    parts["bias"] = torch.randn(outputs).to(dtype)
    exact = parts["x"].double() @ dequantize_int8(weight, scale, torch.float64).t() + parts["bias"].double()
    return parts, lambda p: native_int8_linear(p["x"], p["weight"], p["scale"], p["bias"]), exact


def int8_channels(dtype: torch.dtype) -> Made:
    return int8(dtype, None, 135)


def int4(dtype: torch.dtype, inputs: int = 160, outputs: int = 29) -> Made:
    weight, scale, zeros = quantize_int4(torch.randn(outputs, inputs), 32, False, dtype)
    assert zeros is not None
    parts = {"x": torch.randn(MOST, inputs).to(dtype), "weight": weight, "scale": scale, "zeros": zeros}
    parts["bias"] = torch.randn(outputs).to(dtype)
    exact = parts["x"].double() @ dequantize_int4(weight, scale, zeros, torch.float64).t() + parts["bias"].double()
    return parts, lambda p: native_int4_linear(p["x"], p["weight"], p["scale"], p["zeros"], p["bias"]), exact


def packed(outputs: int, groups: int, *lead: int) -> tuple[torch.Tensor, torch.Tensor]:
    blocks = torch.randint(0, 256, (*lead, outputs, groups, 16), dtype=torch.uint8)
    return blocks, torch.randint(113, 126, (*lead, outputs, groups), dtype=torch.uint8)


def mxfp4(dtype: torch.dtype, groups: int = 5, outputs: int = 29) -> Made:
    blocks, scales = packed(outputs, groups)
    parts = {"x": torch.randn(MOST, 32 * groups).to(dtype), "blocks": blocks, "scales": scales}
    parts["bias"] = torch.randn(outputs).to(dtype)
    exact = parts["x"].double() @ unpack(blocks, scales, torch.float64).t() + parts["bias"].double()
    return parts, lambda p: native_mxfp4_matvec(p["x"], p["blocks"], p["scales"], p["bias"]), exact


def experts(dtype: torch.dtype, count: int = 4, hidden: int = 96, inner: int = 64) -> Made:
    names = ("into", "into_scales", "into_bias", "out", "out_scales", "out_bias")
    stacks = (
        *(*packed(2 * inner, hidden // 32, count), torch.randn(count, 2 * inner).to(dtype)),
        *(*packed(hidden, inner // 32, count), torch.randn(count, hidden).to(dtype)),
    )
    parts = {"x": torch.randn(MOST, hidden).to(dtype), "indices": torch.randint(0, count, (MOST, 2))}
    parts |= {"shares": torch.rand(MOST, 2).to(dtype), **dict(zip(names, stacks, strict=True))}
    wide = [part if part.dtype == torch.uint8 else part.double() for part in stacks]
    exact = mxfp4_experts_reference(parts["x"].double(), parts["indices"], parts["shares"].double(), wide, 1.7, 7.0)

    def call(p: Parts) -> torch.Tensor | None:
        return native_mxfp4_experts(p["x"], p["indices"], p["shares"], [p[name] for name in names], 1.7, 7.0)

    return parts, call, exact


def attention(dtype: torch.dtype, tokens: int = 3, keys: int = 40) -> Made:
    parts = {"queries": torch.randn(MOST, 4, tokens, 20), "sinks": torch.randn(4)}
    parts |= {name: torch.randn(MOST, 2, keys, 20) for name in ("keys", "values")}
    parts = {name: part.to(dtype) for name, part in parts.items()}
    parts["seen"] = torch.rand(MOST, keys) > 0.2
    q, sinks, k, v = (part.double() for name, part in parts.items() if name != "seen")
    exact = attention_reference(q, k, v, 0.2, True, 30, parts["seen"], sinks)

    def call(p: Parts) -> torch.Tensor | None:
        return native_attention(p["queries"], p["keys"], p["values"], 0.2, True, 30, p["seen"], p["sinks"])

    return parts, call, exact


def attention_of_prompts(dtype: torch.dtype) -> Made:
    return attention(dtype, 30, 35)


def head(dtype: torch.dtype, inputs: int = 135, outputs: int = 29, best: int = 7) -> Made:
    parts, _, logits = matvec(dtype, inputs, outputs)

    def call(p: Parts) -> torch.Tensor | None:
        found = [native_head_topk(some, p["weight"], best, bias=p["bias"]) for some in p["x"].split(FEW_ROWS)]
        return None if None in found else torch.cat([one[0] for one in found]).to(dtype)  # type: ignore[index]

    return parts, call, logits.topk(best).values


def norm(dtype: torch.dtype, size: int = 135) -> tuple[Parts, torch.Tensor]:
    parts = {"x": torch.randn(MOST, size), "residual": torch.randn(MOST, size), "scale": torch.randn(size)}
    parts = {name: part.to(dtype) for name, part in {**parts, "shift": torch.randn(size)}.items()}
    return parts, (parts["x"] + parts["residual"]).double()  # the sum is rounded before it is normed


def rms_norm(dtype: torch.dtype) -> Made:
    parts, total = norm(dtype)
    del parts["shift"]

    def call(p: Parts) -> torch.Tensor | None:
        found = native_rms_norm(p["x"], p["scale"], 1e-5, p["residual"])
        return None if found is None else found[0]

    return parts, call, rms_norm_reference(total, parts["scale"].double(), 1e-5)[0]


def layer_norm(dtype: torch.dtype) -> Made:
    parts, total = norm(dtype)

    def call(p: Parts) -> torch.Tensor | None:
        found = native_layer_norm(p["x"], p["scale"], p["shift"], 1e-5, p["residual"])
        return None if found is None else found[0]

    return parts, call, layer_norm_reference(total, parts["scale"].double(), parts["shift"].double(), 1e-5)[0]


def rope(dtype: torch.dtype) -> Made:
    angles = torch.randn(MOST, 5, 16)
    parts = {"queries": torch.randn(MOST, 3, 5, 24), "cosines": angles.cos(), "sines": angles.sin()}
    parts = {name: part.to(dtype) for name, part in parts.items()}
    exact = rope_reference(*(part.double() for part in parts.values()))
    return parts, lambda p: native_rope(p["queries"], p["cosines"], p["sines"]), exact


OPERATIONS: list[Callable[..., Made]] = [
    *(matvec, matmul, int8, int8_channels, int4, mxfp4, experts),
    *(attention, attention_of_prompts, head, rms_norm, layer_norm, rope),
]
BY_ROW = ("x", "indices", "shares", "residual", "queries", "keys", "values", "seen", "cosines", "sines")
# These may lie in any order; of the others a kernel may take some orders only.
ANY_ORDER = ("x", "indices", "shares", "residual", "bias", "seen", "sinks", "cosines", "sines")
# Twice and more for what is rounded on the way, where products are of bfloat16: the values between the two products of
# an expert, the shares of attention. The second is of the length.
LOOSER: dict[Callable[..., Made], tuple[float, float]] = {
    **{experts: (4, 2), attention: (3, 2), attention_of_prompts: (3, 2)},
}


def test_no_operation_is_left_out() -> None:
    """The blocks of a model have tests of their own, in tests/fused."""
    called = {"int8": "int8_linear", "int8_channels": "int8_linear", "int4": "int4_linear", "mxfp4": "mxfp4_matvec"}
    called |= {"experts": "mxfp4_experts", "attention_of_prompts": "attention", "head": "head_topk"}
    assert {called.get(make.__name__, make.__name__) for make in OPERATIONS} == {*NATIVE_OPS} - {"blocks"}


def named(value: Any) -> str:
    return getattr(value, "__name__", str(value))


@pytest.mark.parametrize("dtype", DTYPES, ids=named)
@pytest.mark.parametrize("make", OPERATIONS, ids=named)
def test_every_batch_from_1_to_33(make: Callable[..., Made], dtype: torch.dtype) -> None:
    torch.manual_seed(2)
    parts, call, exact = make(dtype)
    alone = call({name: part[:1] if name in BY_ROW else part for name, part in parts.items()})
    assert alone is not None
    apart, length = LOOSER.get(make, (1, 1))
    bound = BOUNDS[dtype] * float(exact.abs().max()) * apart
    for rows in range(1, MOST + 1):
        for begin in {0, MOST - rows}:
            part = slice(begin, begin + rows)
            got = call({name: one[part] if name in BY_ROW else one for name, one in parts.items()})
            assert got is not None and got.dtype == dtype and got.shape == exact[part].shape
            assert float((got.double() - exact[part]).abs().max()) <= bound
            assert float((got.double() - exact[part]).norm() / exact[part].norm()) <= LENGTHS[dtype] * length
            if begin == 0:
                assert torch.equal(got[:1], alone), f"a row depends on its batch of {rows}"


@pytest.mark.parametrize("dtype", DTYPES, ids=named)
@pytest.mark.parametrize("inputs", [33, 2880, 20001, 20002])
def test_long_sums_are_in_float32(dtype: torch.dtype, inputs: int) -> None:
    """Of numbers of one sign, where a sum of 8 bits would stop growing."""
    torch.manual_seed(4)
    x, weight = torch.rand(9, inputs).to(dtype), torch.rand(17, inputs).to(dtype)
    exact = x.double() @ weight.double().t()
    if float(exact.max()) > torch.finfo(dtype).max:
        pytest.skip("more than the type holds")
    for rows in (1, 9):
        for product in (native_matvec, native_matmul):
            got = product(x[:rows], weight)
            assert got is not None
            assert float(((got.double() - exact[:rows]) / exact[:rows]).abs().max()) <= BOUNDS[dtype]
            assert float((got.double() - exact[:rows]).norm() / exact[:rows].norm()) <= LENGTHS[dtype]


def misplaced(part: torch.Tensor) -> torch.Tensor:
    """The same numbers, beginning at a byte that no type likes."""
    raw = torch.empty(part.nbytes + 1, dtype=torch.uint8)[1:].numpy()
    raw[:] = part.contiguous().view(torch.uint8).numpy().reshape(-1)
    numpy_type = {1: "int8", 2: "int16", 4: "int32", 8: "int64"}[part.element_size()]
    moved = torch.from_numpy(raw.view(numpy_type)).view(part.dtype).view(part.shape)
    assert moved.data_ptr() % 2 == 1 and torch.equal(moved, part)
    return moved


def strided(part: torch.Tensor) -> torch.Tensor:
    """The same numbers with others between them."""
    wide = torch.zeros(*(2 * size for size in part.shape), dtype=part.dtype)
    view = wide[tuple(slice(1, None, 2) for _ in part.shape)]
    view.copy_(part)
    assert not view.is_contiguous()
    return view


def turned(part: torch.Tensor) -> torch.Tensor:
    """The same numbers, the first dimension running fastest."""
    return part.movedim(0, -1).contiguous().movedim(-1, 0)


CASES = [(make, name) for make in OPERATIONS for name in make(torch.float32)[0]]


@pytest.mark.parametrize("rows", [1, 8, 33])
@pytest.mark.parametrize("dtype", DTYPES, ids=named)
@pytest.mark.parametrize(("make", "name"), CASES, ids=named)
def test_orders_and_starts_in_memory(make: Callable[..., Made], name: str, dtype: torch.dtype, rows: int) -> None:
    """What begins anywhere is read as it is; other orders are read, or left to plain PyTorch."""
    torch.manual_seed(3)
    parts, call, _ = make(dtype)
    parts = {key: part[:rows] if key in BY_ROW else part for key, part in parts.items()}
    want = call(parts)
    assert want is not None
    got = call({**parts, name: misplaced(parts[name])})
    assert got is not None and torch.equal(got, want)
    for change in (strided, turned):
        got = call({**parts, name: change(parts[name])})
        assert got is None or torch.equal(got, want)
        assert got is not None or name not in ANY_ORDER, "activations may have any order"


@pytest.mark.parametrize("dtype", DTYPES, ids=named)
def test_a_weight_that_is_part_of_a_larger_one(dtype: torch.dtype) -> None:
    torch.manual_seed(5)
    for make in (matvec, matmul):
        parts, call, _ = make(dtype)
        outputs, inputs = parts["weight"].shape
        large = torch.full((3 * outputs, 300), float("nan"), dtype=dtype)
        view = large[1::3, 7 : 7 + inputs]
        view.copy_(parts["weight"])
        assert torch.equal(call({**parts, "weight": view}), call(parts))  # type: ignore[arg-type]


EVERYTHING = """
import test_kernel_inputs as tests
from quintet.kernels.loader import status
for dtype in tests.DTYPES:
    for make in tests.OPERATIONS:
        tests.test_every_batch_from_1_to_33(make, dtype)
    for inputs in (33, 2880):
        tests.test_long_sums_are_in_float32(dtype, inputs)
    for make, name in tests.CASES:
        for rows in (1, 33):
            tests.test_orders_and_starts_in_memory(make, name, dtype, rows)
print(status().level)
"""


@pytest.mark.parametrize("level", LEVELS)
def test_every_level(level: str) -> None:
    native = library()
    assert native is not None
    if native.quintet_has(level.encode()) != 1:
        pytest.skip(f"this CPU has no {level}")
    if level == status().level:
        pytest.skip("the level of the tests above")
    path = os.pathsep.join([str(Path(__file__).parent), str(Path(quintet.__file__).parents[1])])
    env = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "QUINTET_ISA": level}
    command = [sys.executable, "-c", EVERYTHING]
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip() == level
