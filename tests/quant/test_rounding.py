"""The scales of groups: never worse than the largest number's, weighted by importance, at the edges of floats."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_packable import numbers

from quintet.errors import InputError
from quintet.kernels.packing import dequantize_int4, quantize_int4, quantize_int8
from quintet.quant import rounding
from quintet.quant.rounding import fit_grid, round_weight


@given(
    seed=st.integers(0, 2**16),
    rows=st.integers(1, 11),
    groups=st.integers(1, 4),
    group=st.sampled_from([8, 32, 128]),
    symmetric=st.booleans(),
    tail=st.sampled_from([1.0, 3.0]),
    shift=st.sampled_from([0.0, 0.05]),
)
def test_no_group_is_worse_than_with_the_scale_of_its_largest_number(
    seed: int, rows: int, groups: int, group: int, symmetric: bool, tail: float, shift: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(rows, groups * group, generator=generator, dtype=torch.float32)
    weight = drawn.sign() * drawn.abs() ** tail * 0.02 + shift
    plain = dequantize_int4(*quantize_int4(weight, group, symmetric), torch.float64)
    found = numbers(round_weight(weight, 4, group, symmetric))

    def errors(made: torch.Tensor) -> torch.Tensor:
        return ((made - weight) ** 2).unflatten(-1, (-1, group)).sum(-1)

    assert (errors(found) <= errors(plain) * (1 + 1e-4) + 1e-12).all()


@pytest.mark.parametrize(("group", "symmetric"), [(32, True), (32, False), (128, True), (128, False)])
def test_the_error_of_a_normal_weight_falls(group: int, symmetric: bool) -> None:
    weight = torch.randn(256, 512) * 0.02
    plain = dequantize_int4(*quantize_int4(weight, group, symmetric))
    found = numbers(round_weight(weight, 4, group, symmetric))
    assert (found - weight).norm() < 0.975 * (plain - weight).norm()


@pytest.mark.parametrize("group", [None, 32])
def test_eight_bits_are_those_of_the_kernels(group: int | None) -> None:
    weight = torch.randn(10, 96, dtype=torch.bfloat16)
    whole, scale = quantize_int8(weight, group)
    packed = round_weight(weight, 8, group)
    assert torch.equal(packed["weight"], whole) and torch.equal(packed["weight_scale"], scale)


@pytest.mark.parametrize("symmetric", [True, False])
def test_what_counts_more_is_rounded_better(symmetric: bool) -> None:
    weight, importance = torch.randn(64, 256), torch.rand(256) ** 8 + 1e-4
    blind, seeing = (
        ((numbers(round_weight(weight, 4, 64, symmetric, importance=one)) - weight) ** 2 @ importance.double()).sum()
        for one in (None, importance)
    )
    assert seeing < 0.95 * blind


@pytest.mark.parametrize("bits", [8, 4])
def test_tiles_make_no_difference(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.randn(37, 64)
    whole = round_weight(weight, bits, 32, bits == 8)
    monkeypatch.setattr(rounding, "TILE", 64 * 5)
    for name, tensor in round_weight(weight, bits, 32, bits == 8).items():
        assert torch.equal(tensor, whole[name]), name


@pytest.mark.parametrize("symmetric", [True, False])
def test_groups_of_zeros_and_of_one_number(symmetric: bool) -> None:
    weight = torch.zeros(4, 64)
    weight[1] = 0.25
    weight[2] = -0.25
    weight[3, :32] = 1e-30
    packed = round_weight(weight, 4, 32, symmetric)
    assert torch.isfinite(packed["weight_scale"]).all() and (packed["weight_scale"] != 0).all()
    assert torch.allclose(numbers(packed).float(), weight, rtol=1e-3, atol=1e-12)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_not_finite_are_refused(bits: int, bad: float) -> None:
    weight = torch.randn(4, 64)
    weight[2, 40] = bad
    with pytest.raises(InputError, match="blocks.3 has numbers that are not finite .* Get the checkpoint again"):
        fit_grid(weight, bits, 32, name="blocks.3")
