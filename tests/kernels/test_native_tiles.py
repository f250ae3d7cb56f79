"""Products with packed weights as they are, in whole numbers and in tiles, where rows, inputs and scales are unusual.

Other levels compute them in their own order, and are held to the same.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from quintet.kernels.integers import int4_linear, native_int4_linear, native_int8_linear
from quintet.kernels.linear import matmul, native_matmul
from quintet.kernels.loader import library, status
from quintet.kernels.mxfp4 import mxfp4_matvec, mxfp4_matvec_reference, native_mxfp4_experts, native_mxfp4_matvec
from quintet.kernels.packing import dequantize_int4, dequantize_int8, quantize_int4, quantize_int8
from quintet.quant.mxfp4 import pack, unpack

pytestmark = pytest.mark.skipif(library() is None, reason=f"no native kernels: {status().reason}")
Product = Callable[[torch.Tensor], "torch.Tensor | None"]
orders = pytest.mark.parametrize("order", ["bf16", "tiles"])


def packed(outputs: int, groups: int) -> tuple[torch.Tensor, torch.Tensor]:
    blocks = torch.randint(0, 256, (outputs, groups, 16), dtype=torch.uint8)
    return blocks, torch.randint(118, 131, (outputs, groups), dtype=torch.uint8)


def products(outputs: int, inputs: int, order: str) -> list[tuple[Product, torch.Tensor]]:
    """Every kind of product in an order, and its weight in float64."""
    plain = torch.randn(outputs, inputs).bfloat16()
    eight, channel = quantize_int8(torch.randn(outputs, inputs), None, torch.bfloat16)
    grouped = quantize_int8(torch.randn(outputs, inputs), 64, torch.float16)
    four = quantize_int4(torch.randn(outputs, inputs), 32, True, torch.bfloat16)
    pairs = quantize_int4(torch.randn(outputs, inputs), 64, False, torch.float16)
    zeros = quantize_int4(torch.randn(outputs, inputs), 128, False, torch.float32)
    whole = quantize_int4(torch.randn(outputs, inputs), inputs, True, torch.bfloat16)
    mx = packed(outputs, inputs // 32)
    return [
        (lambda x: native_matmul(x, plain), plain.double()),
        (lambda x: native_int8_linear(x, eight, channel, None, order), dequantize_int8(eight, channel, torch.float64)),
        (lambda x: native_int8_linear(x, *grouped, None, order), dequantize_int8(*grouped, torch.float64)),
        (lambda x: native_int4_linear(x, *four, None, order), dequantize_int4(*four, torch.float64)),
        (lambda x: native_int4_linear(x, *pairs, None, order), dequantize_int4(*pairs, torch.float64)),
        (lambda x: native_int4_linear(x, *zeros, None, order), dequantize_int4(*zeros, torch.float64)),
        (lambda x: native_int4_linear(x, *whole, None, order), dequantize_int4(*whole, torch.float64)),
        (lambda x: native_mxfp4_matvec(x, *mx, None, order), unpack(*mx, torch.float64)),
    ]


def share(got: torch.Tensor | None, exact: torch.Tensor) -> float:
    assert got is not None
    return float((got.double() - exact).norm() / exact.norm())


@orders
@pytest.mark.parametrize(
    ("rows", "outputs", "inputs"), [(200, 34, 8320), (70, 300, 256), (1050, 33, 384), (35, 50, 640), (20, 19, 128)]
)
def test_more_rows_than_are_prepared_at_a_time(rows: int, outputs: int, inputs: int, order: str) -> None:
    torch.manual_seed(1)
    x = torch.randn(rows, inputs).bfloat16()
    for product, weight in products(outputs, inputs, order):
        got = product(x)
        assert share(got, x.double() @ weight.t()) < 2e-3
        for row in (0, 7, 8, 15, 16, 31, 32, 63, 64, 69, rows - 1):
            if row < rows:
                assert torch.equal(product(x[row : row + 1])[0], got[row]), "a row depends on its batch"
        for count in (2, 3, 8, 9, 16, 17):
            assert torch.equal(product(x[:count]), got[:count]), "a row depends on its batch"


@orders
@pytest.mark.parametrize("group", [32, 64, 96, 128, 160, 192, 256, 288, 512])
def test_groups_of_any_length_are_summed_up_alike(group: int, order: str) -> None:
    """Sums of which nothing is left but their rounding, which tells in what order they were made."""
    torch.manual_seed(7)
    half = torch.randn(40, 3 * group).bfloat16()
    x = torch.cat([half, -half], dim=1)
    packed, scale, zeros = quantize_int4(torch.randn(50, 3 * group), group, False, torch.float32)
    four = torch.cat([packed, packed], dim=1), torch.cat([scale, scale], dim=1), torch.cat([zeros, zeros], dim=1)
    weight, scale = quantize_int8(torch.randn(50, 3 * group), group, torch.float32)
    eight = torch.cat([weight, weight], dim=1), torch.cat([scale, scale], dim=1)
    for multiply, parts in ((native_int4_linear, four), (native_int8_linear, eight)):
        many = multiply(x, *parts, None, order)
        assert many.abs().max() < 1e-2 * half.abs().max() * group
        for rows in (1, 2, 5, 9, 17):
            assert torch.equal(multiply(x[:rows], *parts, None, order), many[:rows]), rows


@orders
def test_rows_that_are_no_numbers_stay_alone(order: str) -> None:
    torch.manual_seed(2)
    for rows in (2, 3, 9, 40):
        x = torch.randn(rows, 256).bfloat16()
        bad = x.clone()
        bad[-1, 7], bad[1] = torch.inf, torch.nan
        others = [row for row in range(rows) if row not in (1, rows - 1)]
        for product, _ in products(20, 256, order):
            fine, got = product(x), product(bad)
            assert torch.equal(got[others], fine[others])
            assert got[1].isnan().all() and not got[-1].isfinite().any()


def test_activations_that_differ_by_much_keep_their_bits() -> None:
    """Some are 20 times as large as their neighbours, as in layers of language models: 8 bits leave 0.056 or more."""
    torch.manual_seed(8)
    x = torch.randn(9, 640)
    x[:, ::16] *= 20
    x = x.bfloat16()
    for product, weight in products(30, 640, "bf16"):
        small = x.clone()
        small[:, ::16] = 0
        rest = product(x).double() - product(x - small).double()  # what the small ones add
        assert share(rest, small.double() @ weight.t()) < 0.03  # bfloat16 rounds sums of the large ones


@orders
@pytest.mark.parametrize("rows", [1, 2, 5, 20, 50])
def test_scales_at_the_ends_of_their_range(rows: int, order: str) -> None:
    torch.manual_seed(3)
    blocks, scales = packed(40, 6)
    blocks[:, 2], x = 0x22, torch.randn(rows, 192).bfloat16() * 2.0**-20  # ones
    for value in (255, 254, 253, 4, 2):
        scales[3, 2] = value
        got = native_mxfp4_matvec(x, blocks, scales, None, order)
        wanted = mxfp4_matvec_reference(x.double(), blocks, scales)
        others = [output for output in range(40) if output != 3]
        assert share(got[:, others], wanted[:, others]) < 2e-3
        if value == 255:
            assert got[:, 3].isnan().all()
        else:
            assert share(got[:, 3], wanted[:, 3]) < 4e-3  # of two rows: as near as bfloat16 is
    scales[:] = torch.randint(2, 5, scales.shape, dtype=torch.uint8)  # all numbers are near the least
    x = x * 2.0**80
    got = native_mxfp4_matvec(x, blocks, scales, None, order)
    assert share(got, mxfp4_matvec_reference(x.double(), blocks, scales)) < 2e-3


@orders
def test_weights_may_begin_anywhere(order: str) -> None:
    torch.manual_seed(4)
    x = torch.randn(35, 96).bfloat16()
    for begin in (1, 3):
        blocks, scales = packed(21, 3)
        raw = torch.zeros(blocks.numel() + begin, dtype=torch.uint8)
        moved = raw[begin:].view(21, 3, 16)
        moved.copy_(blocks)
        for rows in (1, 5, 35):
            wanted = native_mxfp4_matvec(x[:rows], blocks, scales, None, order)
            assert torch.equal(native_mxfp4_matvec(x[:rows], moved, scales, None, order), wanted)
    weight, wide = torch.randn(40, 101).bfloat16(), torch.randn(40, 203).bfloat16()
    wide[:, 1:102] = weight
    narrow = torch.randn(20, 101).bfloat16()
    assert torch.equal(native_matmul(narrow, wide[:, 1:102]), native_matmul(narrow, weight))


@orders
def test_experts_that_many_rows_choose(order: str) -> None:
    """One that all rows ask, one that one row asks, one that is asked twice by a row, one that nobody asks."""
    torch.manual_seed(5)
    rows, hidden, inner, experts = 600, 64, 96, 4
    gate_up, gate_up_scales, _ = pack(torch.randn(experts, 2 * inner, hidden) * 0.1, "gate_up")
    down, down_scales, _ = pack(torch.randn(experts, hidden, inner) * 0.1, "down")
    stacks = (
        *(gate_up, gate_up_scales, torch.randn(experts, 2 * inner).bfloat16()),
        *(down, down_scales, torch.randn(experts, hidden).bfloat16()),
    )
    indices = torch.tensor([[0, 1]]).repeat(rows, 1)
    indices[::7, 1], indices[5], indices[9] = 0, torch.tensor([2, 0]), torch.tensor([1, 1])
    x, weights = torch.randn(rows, hidden).bfloat16(), torch.rand(rows, 2)
    got = native_mxfp4_experts(x, indices, weights, stacks, 1.702, 7.0, order)
    wide = tuple(part.float() if part.dtype == torch.bfloat16 else part for part in stacks)
    assert share(got, native_mxfp4_experts(x.float(), indices, weights, wide, 1.702, 7.0).double()) < 4e-3
    for row in (0, 5, 7, 9, 511, 512, 599):
        part = slice(row, row + 1)
        alone = native_mxfp4_experts(x[part], indices[part], weights[part], stacks, 1.702, 7.0, order)
        assert torch.equal(alone[0], got[row]), "a row depends on its batch"
    for part in (slice(5, 7), slice(4, 12), slice(0, 40)):
        some = native_mxfp4_experts(x[part], indices[part], weights[part], stacks, 1.702, 7.0, order)
        assert torch.equal(some, got[part]), "a row depends on its batch"


def test_operations_in_tiles() -> None:
    torch.manual_seed(6)
    x, mx, four = torch.randn(20, 64).bfloat16(), packed(10, 2), quantize_int4(torch.randn(10, 64), 32)
    torch.library.opcheck(torch.ops.quintet.mxfp4_matvec.default, (x, *mx, None, "tiles"))
    torch.library.opcheck(torch.ops.quintet.int4_linear.default, (x, *four, None, "tiles"))
    torch.library.opcheck(torch.ops.quintet.matmul.default, (x, torch.randn(10, 64).bfloat16(), None))
    assert torch.equal(mxfp4_matvec(x, *mx, None, "tiles"), native_mxfp4_matvec(x, *mx, None, "tiles"))
    assert torch.equal(int4_linear(x, *four, None, "tiles"), native_int4_linear(x, *four, None, "tiles"))
    wide = x.float()  # no other type has tiles
    assert torch.equal(native_mxfp4_matvec(wide, *mx, None, "tiles"), native_mxfp4_matvec(wide, *mx))
    if status().level != "amx":
        assert torch.equal(native_mxfp4_matvec(x, *mx, None, "tiles"), native_mxfp4_matvec(x, *mx))
    half = x.half()
    assert torch.equal(native_mxfp4_matvec(half, *mx, None, "tiles"), native_mxfp4_matvec(half, *mx))
    assert matmul(x[:0], torch.randn(10, 64).bfloat16()).shape == (0, 10)
