"""The numbers of MXFP4: every byte and scale, rounding against exact fractions, and what is refused."""

from __future__ import annotations

import itertools
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from quintet.errors import CheckpointError, InputError
from quintet.quant import mxfp4
from quintet.quant.mxfp4 import BLOCK, check_scales, pack, unpack

GRID = [0, 0.5, 1, 1.5, 2, 3, 4, 6]


def e2m1(code: int) -> Fraction:
    """A code's value from the definition: sign, 2 bits of exponent with bias 1, 1 bit of mantissa."""
    exponent, mantissa = (code >> 1) & 3, code & 1
    size = Fraction(mantissa, 2) if exponent == 0 else (1 + Fraction(mantissa, 2)) * 2 ** (exponent - 1)
    return -size if code & 8 else size


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_every_byte_and_scale_is_exact(dtype: torch.dtype) -> None:
    blocks = torch.arange(256, dtype=torch.uint8).view(1, 16, 16).expand(252, 16, 16)
    scales = torch.arange(252, dtype=torch.uint8).view(252, 1).expand(252, 16)
    got = unpack(blocks, scales, dtype).view(252, 256, 2)
    assert got.dtype == dtype
    for scale, byte in itertools.product((0, 1, 2, 90, 127, 128, 200, 251), range(256)):
        power = Fraction(2) ** (scale - 127)
        assert Fraction(got[scale, byte, 0].item()) == e2m1(byte & 15) * power
        assert Fraction(got[scale, byte, 1].item()) == e2m1(byte >> 4) * power
    assert torch.signbit(got[5, 0x08, 0]) and not torch.signbit(got[5, 0x00, 0])  # a negative zero stays one


def test_float16_is_rounded_once() -> None:
    blocks, scales = torch.randint(0, 256, (3, 4, 16), dtype=torch.uint8), torch.tensor([[97, 103, 127, 140]] * 3)
    got = unpack(blocks, scales.to(torch.uint8), torch.float16)
    assert torch.equal(got, unpack(blocks, scales.to(torch.uint8), torch.float64).half())


def test_a_nan_scale_gives_nan() -> None:
    got = unpack(torch.zeros(1, 1, 16, dtype=torch.uint8), torch.tensor([[255]], dtype=torch.uint8))
    assert got.isnan().all()


@pytest.mark.parametrize("chunk", [1, 100, 2**21])
def test_the_reference_unpacks_the_same(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mxfp4, "_CHUNK", chunk)
    blocks = torch.randint(0, 256, (3, 10, 2, 16), dtype=torch.uint8)
    scales = torch.randint(100, 140, (3, 10, 2), dtype=torch.uint8)
    want = convert_moe_packed_tensors(blocks.clone(), scales.clone())  # (E, in, out)
    assert torch.equal(unpack(blocks, scales).transpose(1, 2), want)


def test_without_rows() -> None:
    assert unpack(torch.empty(0, 2, 16, dtype=torch.uint8), torch.empty(0, 2, dtype=torch.uint8)).shape == (0, 64)


def rounded(value: Fraction, scale: Fraction) -> set[Fraction]:
    """What rounding to nearest allows: one value, or at a tie the one with an even code."""
    size = abs(value) / scale
    near = min(abs(size - Fraction(point)) for point in GRID)
    best = [index for index, point in enumerate(GRID) if abs(size - Fraction(point)) == near]
    chosen = best[0] if len(best) == 1 else next(index for index in best if index % 2 == 0)
    return {Fraction(GRID[chosen]) * scale * (1 if value > 0 else -1)}


@given(st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=BLOCK, max_size=BLOCK), st.integers(-60, 3))
def test_packing_rounds_to_nearest(numbers: list[float], shift: int) -> None:
    row = torch.ldexp(torch.tensor(numbers), torch.tensor(shift))
    blocks, scales, _ = pack(row[None])
    got = unpack(blocks, scales, torch.float64)[0]
    largest = max(abs(Fraction(number)) for number in row.tolist())
    if not largest:
        assert not got.any()
        return
    scale = Fraction(2) ** (int(scales) - 127)
    if 0 < int(scales) < 254:
        assert 4 * scale <= largest < 8 * scale
    for number, result in zip(row.tolist(), got.tolist(), strict=True):
        assert Fraction(result) in rounded(Fraction(number), scale)


def test_ties_go_to_the_even_code_and_large_ones_to_six() -> None:
    row = torch.zeros(BLOCK)
    row[:12] = torch.tensor([4.0, 0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, -0.25, -0.75, 7.9, -7.9])
    blocks, scales, _ = pack(row)
    assert int(scales) == 127
    want = [4, 0, 1, 1, 2, 2, 4, 4, 0, -1, 6, -6]
    assert unpack(blocks, scales)[:12].tolist() == want
    assert [int(byte) for byte in blocks[0, :2]] == [0x06, 0x22]  # first element in the low half


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_what_fits_is_packed_without_loss(dtype: torch.dtype) -> None:
    blocks = torch.randint(0, 256, (5, 3, 16), dtype=torch.uint8)
    blocks[..., 0] = 0x77  # a 6 in each block, so that no smaller scale would do
    scales = torch.randint(115, 135, (5, 3), dtype=torch.uint8)
    again = pack(unpack(blocks, scales, dtype))
    assert torch.equal(again.blocks, blocks) and torch.equal(again.scales, scales)
    assert again.error == 0


@pytest.mark.parametrize("chunk", [1, 70, 2**21])
def test_the_error_is_what_was_lost(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mxfp4, "_CHUNK", chunk)
    tensor = torch.randn(2, 7, 64)
    blocks, scales, error = pack(tensor)
    assert (blocks.shape, scales.shape) == ((2, 7, 2, 16), (2, 7, 2))
    back = unpack(blocks, scales, torch.float32)
    assert error == pytest.approx(((tensor - back).norm() / tensor.norm()).item(), rel=1e-5)
    assert 0.05 < error < 0.15  # of normal numbers
    assert pack(torch.zeros(1, 32)).error == 0


def test_the_smallest_numbers() -> None:
    tiny = torch.full((1, 32), 2.0**-126)
    blocks, scales, _ = pack(tiny)
    assert int(scales) == 0
    assert torch.equal(unpack(blocks, scales, torch.float32), tiny)


@pytest.mark.parametrize("width", [0, 31, 33, 48])
def test_other_widths_are_refused_by_name(width: int) -> None:
    with pytest.raises(InputError, match=rf"h\.0\.down has rows of {width} numbers, and MXFP4 needs a multiple of 32"):
        pack(torch.zeros(2, width), "h.0.down")


def test_what_cannot_be_packed() -> None:
    for bad in (float("nan"), float("inf")):
        tensor = torch.zeros(1, 32)
        tensor[0, 3] = bad
        with pytest.raises(InputError, match="w holds numbers that are not finite"):
            pack(tensor, "w")
    with pytest.raises(InputError, match=r"w is torch\.int64, and only floating"):
        pack(torch.zeros(1, 32, dtype=torch.long), "w")


def test_shapes_that_disagree() -> None:
    with pytest.raises(CheckpointError, match=r"blocks of shape \[2, 3, 16\] and scales of shape \[2, 4\] do not"):
        unpack(torch.zeros(2, 3, 16, dtype=torch.uint8), torch.zeros(2, 4, dtype=torch.uint8))


def test_nan_scales_are_refused_by_name() -> None:
    scales = torch.full((4, 4), 254, dtype=torch.uint8)
    check_scales(scales, "a_scales")
    check_scales(scales[:0], "a_scales")
    scales[1, 2] = 255
    with pytest.raises(CheckpointError, match="'a_scales' holds the scale 255, which stands for NaN, 1 time;"):
        check_scales(scales, "a_scales")
