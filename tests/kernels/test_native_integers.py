"""Weights of 8 and 4 bits: layouts, rounding, and products that are those of the dequantised weights."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from quintet.errors import InputError
from quintet.kernels.integers import (
    int4_linear,
    int4_linear_reference,
    int8_linear,
    int8_linear_reference,
    native_int4_linear,
    native_int8_linear,
    round_activations,
)
from quintet.kernels.loader import FEW_ROWS, library, status
from quintet.kernels.packing import (
    dequantize_int4,
    dequantize_int8,
    pack_int4,
    pack_zero_point,
    quantize_int4,
    quantize_int8,
    unpack_int4,
    unpack_zero_point,
)

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# Largest difference to the exact product, as a share of its largest value: the rounding of the result, and sums.
BOUNDS = {torch.float32: 2e-6, torch.bfloat16: 4e-3, torch.float16: 6e-4}
# out, in, group of weights of 4 bits; long ones have more scales than are widened at once, threads share the largest
NIBBLES = (
    *((1, 32, 32), (5, 96, 32), (70, 256, 128), (33, 96, 96), (11, 8288, 32), (3, 16640, 128)),
    *((13, 320, 64), (6, 384, 192), (5, 288, 96), (2, 160, 160), (66, 4128, 32)),
)
BYTES = (
    (66, 2077, None),
    (1, 1, None),
    (9, 31, None),
    (70, 257, None),
    (5, 96, 32),
    (18, 96, 96),
    (33, 256, 128),
    (11, 8288, 32),
)
# What x may be multiplied as without being rounded.
EXACT = ("bf16", "tiles")
# Numbers of rows: each of the few, and many, the last in no tile's multiple.
ROWS = (*range(1, FEW_ROWS + 1), 9, 12, 33)
needs_native = pytest.mark.skipif(library() is None, reason=f"no native kernels: {status().reason}")


def near(got: torch.Tensor | None, exact: torch.Tensor) -> None:
    assert got is not None and got.shape == exact.shape
    assert float((got.double() - exact).abs().max()) <= BOUNDS[got.dtype] * max(1e-30, float(exact.abs().max()))


def numbers(outputs: int, inputs: int) -> torch.Tensor:
    """A weight with groups of all sizes of numbers, and one of zeros."""
    weight = torch.randn(outputs, inputs) * torch.logspace(1, -1, inputs)
    weight[0, : inputs // 2] = 0
    return weight


def check_everything() -> None:
    """What every level of instructions must do; also run in processes of their own."""
    torch.manual_seed(5)
    for at, dtype in enumerate(DTYPES):
        for outputs, inputs, group in NIBBLES:
            scale_dtype = DTYPES[(at + outputs) % 3]
            x, bias = torch.randn(max(ROWS), inputs).to(dtype), torch.randn(outputs).to(dtype)
            for symmetric in (True, False):
                given = quantize_int4(numbers(outputs, inputs), group, symmetric, scale_dtype)
                exact = x.double() @ dequantize_int4(*given, torch.float64).t() + bias.double()
                for order in EXACT:
                    alone = torch.cat([native_int4_linear(row, *given, bias, order) for row in x.split(1)])
                    for rows in ROWS:
                        got = native_int4_linear(x[:rows], *given, bias, order)
                        near(got, exact[:rows])
                        assert torch.equal(got, alone[:rows]), "a row depends on its batch"
        for outputs, inputs, group in BYTES:
            x, bias = torch.randn(max(ROWS), inputs).to(dtype), torch.randn(outputs).to(dtype)
            weight, scale = quantize_int8(numbers(outputs, inputs), group, DTYPES[(at + outputs) % 3])
            exact = x.double() @ dequantize_int8(weight, scale, torch.float64).t()
            for order in EXACT:
                alone = torch.cat([native_int8_linear(row, weight, scale, None, order) for row in x.split(1)])
                for rows in ROWS:
                    near(native_int8_linear(x[:rows], weight, scale, bias, order), exact[:rows] + bias.double())
                    got = native_int8_linear(x[:rows], weight, scale, None, order)
                    near(got, exact[:rows])
                    assert torch.equal(got, alone[:rows]), "a row depends on its batch"


@needs_native
@pytest.mark.parametrize("threads", [1, 2, 1000])
def test_equals_the_dequantised_product(threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        check_everything()
    finally:
        torch.set_num_threads(before)


@needs_native
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("symmetric", [True, False])
def test_every_code_is_exact(dtype: torch.dtype, symmetric: bool) -> None:
    """One input at a time: each product is one of the weights, to the bit, at every code and every zero point."""
    codes = (torch.arange(32) + torch.arange(16)[:, None]) % 16  # (16, 32)
    zeros = None if symmetric else pack_zero_point(torch.arange(16)[:, None])
    packed, scale = pack_int4(codes), torch.full((16, 1), 0.5, dtype=dtype)
    exact = dequantize_int4(packed, scale, zeros)
    weight = torch.arange(-128, 128, dtype=torch.int8).view(8, 32)
    for begin in range(0, 32, FEW_ROWS):
        x = torch.eye(32, dtype=dtype)[begin : begin + FEW_ROWS]
        for order in EXACT:
            got = native_int4_linear(x, packed, scale, zeros, None, order)
            assert torch.equal(got, exact[:, begin : begin + FEW_ROWS].t())
            for groups in (scale[:8], scale[:8, 0]):
                got = native_int8_linear(x, weight, groups, None, order)
                assert torch.equal(got, dequantize_int8(weight, groups)[:, begin : begin + FEW_ROWS].t())


@needs_native
def test_orders_in_memory() -> None:
    weight, scale, zeros = quantize_int4(torch.randn(10, 64), 32, False)
    x, bias = torch.randn(64, 4).t(), torch.randn(20)[::2]
    exact = x.double() @ dequantize_int4(weight, scale, zeros, torch.float64).t()
    near(native_int4_linear(x, weight, scale, zeros, bias), exact + bias.double())
    near(native_int4_linear(x.reshape(2, 2, 64), weight, scale, zeros), exact.view(2, 2, 10))
    near(native_int4_linear(x[0], weight, scale, zeros), exact[0])
    # starts that no instruction likes, as in a mapped file
    raw = torch.zeros(weight.numel() * 4 + 1, dtype=torch.uint8)
    moved = raw[1:].numpy().view("int32").reshape(10, 8)
    moved[:] = weight.numpy()
    twisted = torch.from_numpy(moved)
    assert twisted.data_ptr() % 4 == 1
    near(native_int4_linear(x, twisted, scale, zeros), exact)


@needs_native
def test_what_is_not_taken() -> None:
    weight, scale, zeros = quantize_int4(torch.randn(10, 64), 32, False)
    x = torch.randn(2, 64)
    assert native_int4_linear(x.double(), weight, scale, zeros) is None
    assert native_int4_linear(x[:, :56], weight, scale, zeros) is None
    assert native_int4_linear(x[:0], weight, scale, zeros) is None
    assert native_int4_linear(x, weight[:9], scale, zeros) is None  # buffers that are too short are not read
    assert native_int4_linear(x, weight, scale[:, :1], zeros) is None
    assert native_int4_linear(x, weight, scale, zeros[:1]) is None
    assert native_int4_linear(x, weight, scale, zeros[:, :1]) is None
    assert native_int4_linear(x, weight.long(), scale, zeros) is None
    assert native_int4_linear(x, weight.t().contiguous().t(), scale, zeros) is None
    assert native_int4_linear(x, weight, scale, zeros, torch.randn(9)) is None
    assert native_int4_linear(x, weight, scale, zeros, torch.randn(10).half()) is None
    assert native_int4_linear(x, *quantize_int4(torch.randn(10, 64), 16)) is None
    eight, scale = quantize_int8(torch.randn(10, 64), 16)
    assert native_int8_linear(x, eight, scale) is None
    assert native_int8_linear(x, eight, scale[:, :3]) is None
    assert native_int8_linear(x, eight.short(), scale) is None


@needs_native
def test_numbers_that_would_run_wild_are_refused() -> None:
    found, nothing = library(), torch.zeros(64)
    at = nothing.data_ptr()
    fine = [8, 0, 0, 0, 1, 64, 1, 64, at, at, None, at, 64, None, at, 1]
    assert found.quintet_integers(*fine) == 0
    wrong = [
        (0, 5),
        (1, 3),
        (2, -1),
        (2, 3),
        (3, -1),
        (3, 3),
        (4, 0),
        (4, 1 << 40),
        (5, -1),
        (6, -1),
        (7, 0),
        (7, 48),
        (7, 16),
        (7, 128),
        (10, at),
    ]
    for place, value in [*wrong, (12, -1)]:
        assert found.quintet_integers(*fine[:place], value, *fine[place + 1 :]) == 1, (place, value)
    four = [4, *fine[1:]]
    assert found.quintet_integers(*four[:5], 48, 1, 48, *four[8:]) == 1
    library().quintet_integers(*four[:6], 0, *four[7:])  # no outputs


@given(outputs=st.integers(1, 20), words=st.integers(1, 6), seed=st.integers(0, 99))
def test_packing_and_back(outputs: int, words: int, seed: int) -> None:
    codes = torch.randint(0, 16, (outputs, 8 * words), generator=torch.Generator().manual_seed(seed))
    packed = pack_int4(codes)
    assert packed.dtype == torch.int32 and packed.shape == (outputs, words)
    assert torch.equal(unpack_int4(packed), codes.to(torch.uint8))
    for place in range(8):
        assert torch.equal(packed >> 4 * place & 15, codes[:, place::8].int())
    zeros = pack_zero_point(codes)
    assert zeros.shape == (-(-outputs // 8), 8 * words)
    assert torch.equal(unpack_zero_point(zeros, outputs), codes.to(torch.uint8))
    for output in range(outputs):
        assert torch.equal(zeros[output // 8] >> 4 * (output % 8) & 15, codes[output].int())


@pytest.mark.parametrize("dtype", DTYPES)
def test_rounding_keeps_to_half_a_step(dtype: torch.dtype) -> None:
    weight = (torch.randn(12, 128) * 3).to(dtype)
    for group in (None, 32, 128):
        eight, scale = quantize_int8(weight, group)
        assert scale.dtype == dtype and scale.shape == (12, 128 // (group or 128))
        step = scale.double().repeat_interleave(group or 128, dim=1)
        error = (dequantize_int8(eight, scale, torch.float64) - weight.double()).abs()
        assert bool((error <= 0.51 * step).all()) or dtype == torch.bfloat16  # whose scale has fewer digits than 127
        assert bool((error <= 0.51 * step + weight.double().abs() * 2**-8).all())
    for group in (32, 128):
        packed, scale, zeros = quantize_int4(weight, group, symmetric=False)
        step = scale.double().repeat_interleave(group, dim=1)
        error = (dequantize_int4(packed, scale, zeros, torch.float64) - weight.double()).abs()
        assert bool((error <= 1.07 * step).all())  # half a step of the number, and of the zero point
        packed, scale, zeros = quantize_int4(weight, group)
        assert zeros is None
        step = scale.double().abs().repeat_interleave(group, dim=1)
        largest = weight.double().unflatten(-1, (-1, group)).abs().amax(dim=-1)
        assert bool((torch.isclose(largest, 8 * scale.double().abs(), rtol=1e-2)).all())
        error = (dequantize_int4(packed, scale, None, torch.float64) - weight.double()).abs()
        assert bool((error <= 1.07 * step).all())  # 7 is the last one on one side


def test_zeros_stay_zeros() -> None:
    weight = torch.zeros(3, 64)
    assert not dequantize_int8(*quantize_int8(weight, 32)).any()
    for symmetric in (True, False):
        assert not dequantize_int4(*quantize_int4(weight, 32, symmetric)).any()
    x = torch.randn(2, 64)
    x[0, :32] = 0
    assert not round_activations(x)[0, :32].any() and not round_activations(x).isnan().any()


def test_rounded_activations_keep_to_half_a_step() -> None:
    x = torch.randn(5, 2, 70) * 4
    rounded = round_activations(x)
    for begin in (0, 32, 64):
        part, close = x[..., begin : begin + 32], rounded[..., begin : begin + 32]
        assert bool(((part - close).abs() <= part.abs().amax(dim=-1, keepdim=True) / 253).all())
    assert torch.equal(rounded[1:2, 1], round_activations(x[1:2, 1]))
    assert round_activations(x.bfloat16()).dtype == torch.float32


@pytest.fixture(params=["as it is", "without the library"])
def either(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    if request.param == "without the library":
        from quintet.kernels import integers

        monkeypatch.setattr(integers, "library", lambda: None)
    yield


@pytest.mark.usefixtures("either")
@pytest.mark.parametrize("activations", ["bf16", "int8"])
@pytest.mark.parametrize("rows", [1, 3, 12, 33])
def test_operators(rows: int, activations: str) -> None:
    x, bias = torch.randn(rows, 96), torch.randn(9)
    exact = (round_activations(x) if activations == "int8" else x).double()
    eight, scale = quantize_int8(torch.randn(9, 96), 32)
    wanted = exact @ dequantize_int8(eight, scale, torch.float64).t() + bias.double()
    near(int8_linear(x, eight, scale, bias, activations), wanted)
    near(int8_linear_reference(x, eight, scale, bias, activations), wanted)
    packed, scale, zeros = quantize_int4(torch.randn(9, 96), 32, False)
    wanted = exact @ dequantize_int4(packed, scale, zeros, torch.float64).t()
    near(int4_linear(x, packed, scale, zeros, None, activations), wanted)
    near(int4_linear_reference(x, packed, scale, zeros, None, activations), wanted)


@pytest.mark.usefixtures("either")
def test_operators_for_compilers() -> None:
    x, bias = torch.randn(2, 1, 64), torch.randn(9)
    eight, scale = quantize_int8(torch.randn(9, 64))
    torch.library.opcheck(torch.ops.quintet.int8_linear.default, (x, eight, scale, bias))
    torch.library.opcheck(torch.ops.quintet.int8_linear.default, (x.half(), eight, scale[:, 0], None, "int8"))
    packed, scale, zeros = quantize_int4(torch.randn(9, 64), 32, False)
    torch.library.opcheck(torch.ops.quintet.int4_linear.default, (x, packed, scale, zeros, bias))
    torch.library.opcheck(torch.ops.quintet.int4_linear.default, (x.bfloat16(), packed, scale.bfloat16()))


def test_operators_refuse_what_disagrees() -> None:
    x = torch.randn(2, 64)
    eight, scale = quantize_int8(torch.randn(9, 64), 32)
    with pytest.raises(InputError, match=r"x of shape \[2, 32\] .* for a weight of 64 inputs"):
        int8_linear(x[:, :32], eight, scale)
    with pytest.raises(InputError, match=r"Pass \(out, in\) of int8"):
        int8_linear(x, eight.int(), scale)
    with pytest.raises(InputError, match=r"scales of shape \[8, 2\] .* for 9 outputs"):
        int8_linear(x, eight, scale[:8])
    with pytest.raises(InputError, match=r"scales of shape \[9, 2\] and torch.int32"):
        int8_linear(x, eight, scale.int())
    with pytest.raises(InputError, match="3 groups do not divide 64 inputs"):
        int8_linear(x, eight, torch.ones(9, 3))
    with pytest.raises(InputError, match="0 groups do not divide 64 inputs"):
        int8_linear(x, eight, scale[:, :0])
    with pytest.raises(InputError, match=r"a bias of shape \[8\] for 9 outputs"):
        int8_linear(x, eight, scale, torch.randn(8))
    with pytest.raises(InputError, match="activations='int9' is not one of bf16, int8"):
        int8_linear(x, eight, scale, None, "int9")
    packed, scale, zeros = quantize_int4(torch.randn(9, 64), 32, False)
    with pytest.raises(InputError, match=r"Pass \(out, in / 8\) of int32"):
        int4_linear(x, eight, scale)
    with pytest.raises(InputError, match=r"x of shape \[2, 32\] .* for a weight of 64 inputs"):
        int4_linear(x[:, :32], packed, scale)
    with pytest.raises(InputError, match=r"zero points of shape \[1, 2\].*Pass \[2, 2\] of int32"):
        int4_linear(x, packed, scale, zeros[:1])


def test_weights_that_cannot_be_packed() -> None:
    with pytest.raises(InputError, match="12 inputs cannot be packed"):
        pack_int4(torch.zeros(2, 12, dtype=torch.uint8))
    with pytest.raises(InputError, match="groups of 48 do not divide 64 inputs"):
        quantize_int8(torch.randn(2, 64), 48)
    with pytest.raises(InputError, match="groups of 0 do not divide"):
        quantize_int4(torch.randn(2, 64), 0)
    with pytest.raises(InputError, match=r"a weight of shape \[64\]"):
        quantize_int4(torch.randn(64))
    with pytest.raises(InputError, match="torch.int64; pass"):
        quantize_int8(torch.ones(2, 64).long())
