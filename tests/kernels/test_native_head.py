"""The best of the output head: the tokens of a sorted row, ties and all, at every level, in every format."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
import torch

from quintet.errors import InputError
from quintet.kernels.head import MOST_WANTED, head_topk, head_topk_reference, native_head_topk
from quintet.kernels.integers import native_int4_linear, native_int8_linear
from quintet.kernels.linear import native_matvec
from quintet.kernels.loader import FEW_ROWS, LEVELS, library, status
from quintet.kernels.packing import quantize_int4, quantize_int8

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
needs_native = pytest.mark.skipif(library() is None, reason=f"no native kernels: {status().reason}")


def same_as_sorted(found: Any, row: torch.Tensor, k: int) -> None:
    """Compare with a row of logits, of any type, to the bit."""
    row = row.float()
    values, tokens = row.sort(dim=-1, descending=True, stable=True)
    assert torch.equal(found[0], values[..., :k]) and torch.equal(found[1], tokens[..., :k])
    torch.testing.assert_close(found[2], row.logsumexp(-1), rtol=2e-6, atol=1e-5)


def check_everything() -> None:
    """What every level of instructions must do; also run in processes of their own."""
    torch.manual_seed(3)
    for dtype in DTYPES:
        for outputs, inputs in ((1, 7), (255, 33), (257, 64), (1500, 96), (70_001, 32)):
            weight, bias = torch.randn(outputs, inputs).to(dtype), torch.randn(outputs).to(dtype)
            for rows in (1, 3, FEW_ROWS):
                x = torch.randn(rows, inputs).to(dtype)
                for k in (1, 5, 700):
                    if k <= outputs:
                        added = bias if k == 5 else None
                        found = native_head_topk(x, weight, k, bias=added)
                        same_as_sorted(found, native_matvec(x, weight, added), k)
        for group in (None, 32):
            weight, x = torch.randn(1001, 96), torch.randn(2, 96).to(dtype)
            q, scale = quantize_int8(weight, group)
            found = native_head_topk(x, q, 9, scale.to(dtype))
            same_as_sorted(found, native_int8_linear(x, q, scale.to(dtype)), 9)
        for symmetric in (True, False):
            packed, scale, zeros = quantize_int4(torch.randn(1001, 96), 32, symmetric)
            found = native_head_topk(x, packed, 9, scale, zeros)
            same_as_sorted(found, native_int4_linear(x, packed, scale, zeros), 9)


@needs_native
def test_here() -> None:
    check_everything()


@pytest.mark.parametrize("level", LEVELS)
def test_every_level(level: str) -> None:
    native = library()
    if native is None or native.quintet_has(level.encode()) != 1:
        pytest.skip(f"no {level} here")
    code = f"import sys; sys.path.insert(0, {os.path.dirname(__file__)!r}); import test_native_head as t; "
    code += f"assert t.status().level == {level!r}; t.check_everything(); print('same')"
    env = {**os.environ, "QUINTET_ISA": level, "QUINTET_NATIVE": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0 and done.stdout.strip() == "same", done.stderr[-2000:]


@needs_native
@pytest.mark.parametrize("dtype", DTYPES)
def test_equal_logits_come_in_order(dtype: torch.dtype) -> None:
    """Whole slices of the vocabulary are equal, so that only the token decides."""
    weight = torch.ones(5000, 16, dtype=dtype)
    weight[4000:4003] = 2
    weight[::7] = -0.0
    x = torch.ones(2, 16, dtype=dtype)
    x[1] = 0  # nothing but zeros of both signs
    for k in (1, 3, 40, 1000):
        same_as_sorted(native_head_topk(x, weight, k), native_matvec(x, weight), k)


@needs_native
def test_numbers_that_are_none() -> None:
    weight = torch.randn(3000, 8)
    x = torch.randn(3, 8)
    weight[700, 0], weight[20, 1] = float("nan"), float("inf")
    x[1, 0] = x[1, 1] = x[2, 0] = 0
    x[0, 1] = 1
    weight[:, 0][weight[:, 0].isnan()] = float("inf")
    got, row = native_head_topk(x, weight, 6), native_matvec(x, weight).float()
    values, tokens = row.sort(dim=-1, descending=True, stable=True)
    assert torch.equal(got[1], tokens[:, :6]) and torch.equal(got[0].isnan(), values[:, :6].isnan())
    assert torch.equal(got[0].nan_to_num(1e30), values[:, :6].nan_to_num(1e30))
    assert torch.equal(got[2].isnan(), row.logsumexp(-1).isnan())
    lost = torch.full((300, 4), -float("inf"))
    values, tokens, total = native_head_topk(torch.ones(1, 4), lost, 2)
    assert (values == -float("inf")).all() and tokens.tolist() == [[0, 1]] and total.item() == -float("inf")


@needs_native
@pytest.mark.parametrize("threads", [2, 3, 7])
def test_neither_threads_nor_other_rows_change_a_bit(threads: int) -> None:
    weight, x = torch.randn(30_000, 64).bfloat16(), torch.randn(5, 64).bfloat16()
    want = native_head_topk(x, weight, 20)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        for _ in range(5):
            for got, right in zip(native_head_topk(x, weight, 20), want, strict=True):
                assert torch.equal(got, right)
        for got, right in zip(native_head_topk(x[3], weight, 20), want, strict=True):
            assert torch.equal(got, right[3])
    finally:
        torch.set_num_threads(before)


@needs_native
def test_orders_in_memory() -> None:
    wide = torch.randn(400, 80)
    x = torch.randn(6, 64)[::2]
    same_as_sorted(native_head_topk(x, wide[:, 3:67], 4), native_matvec(x, wide[:, 3:67]), 4)
    assert native_head_topk(x, wide[:64].t()[:, :64], 4) is None
    assert native_head_topk(torch.randn(FEW_ROWS + 1, 80), wide, 4) is None
    assert native_head_topk(torch.randn(1, 80), torch.randn(2000, 80), MOST_WANTED + 1) is None
    assert native_head_topk(torch.randn(1, 80).double(), wide.double(), 1) is None
    values, tokens, total = native_head_topk(torch.randn(80), wide, 4, log_sum=False)
    assert values.shape == tokens.shape == (4,) and total.numel() == 0


def test_operator() -> None:
    x, weight = torch.randn(2, 1, 64), torch.randn(90, 64)
    op = torch.ops.quintet.head_topk.default
    torch.library.opcheck(op, (x, weight, 3))
    torch.library.opcheck(op, (x.bfloat16(), weight.bfloat16(), 90, None, None, torch.randn(90).bfloat16()))
    eight, scale = quantize_int8(weight)
    torch.library.opcheck(op, (x, eight, 3, scale))
    packed, scales, zeros = quantize_int4(weight, 32, False)
    torch.library.opcheck(op, (x[0, 0], packed, 3, scales, zeros))
    many = torch.randn(20, 64)
    for got, want in zip(head_topk(many, weight, 7), head_topk_reference(many, weight, 7), strict=True):
        assert torch.equal(got, want)
    same_as_sorted(head_topk_reference(many.double(), weight.double(), 7), many.double() @ weight.double().t(), 7)


def test_operator_refuses_what_disagrees() -> None:
    x, weight = torch.randn(2, 64), torch.randn(90, 64)
    eight, scale = quantize_int8(weight)
    with pytest.raises(InputError, match="k is 0 and must be from 1 to 90"):
        head_topk(x, weight, 0)
    with pytest.raises(InputError, match="k is 91"):
        head_topk(x, weight, 91)
    with pytest.raises(InputError, match="a weight of torch.int8 without scales"):
        head_topk(x, eight, 1)
    with pytest.raises(InputError, match="a weight of torch.float32 with scales"):
        head_topk(x, weight, 1, scale)
    with pytest.raises(InputError, match=r"x of shape \[2, 63\] and a weight of shape \[90, 64\]"):
        head_topk(x[:, 1:], weight, 1)
    with pytest.raises(InputError, match="zero_point belongs to weights of 4 bits"):
        head_topk(x, eight, 1, scale, torch.zeros(12, 1, dtype=torch.int32))
    with pytest.raises(InputError, match=r"a bias of shape \[3\] for 90 outputs"):
        head_topk(x, weight, 1, None, None, torch.randn(3))
