"""Norms and rotary positions as operators: natively what the references say, with and without a residual."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from quintet.errors import InputError
from quintet.kernels import norms
from quintet.kernels.loader import library, status
from quintet.kernels.norms import (
    layer_norm,
    layer_norm_reference,
    native_layer_norm,
    native_rms_norm,
    native_rope,
    rms_norm,
    rms_norm_reference,
    rope,
    rope_reference,
)

BOUNDS = {torch.float32: 1e-6, torch.bfloat16: 4e-3, torch.float16: 6e-4}
needs_native = pytest.mark.skipif(library() is None, reason=f"no native kernels: {status().reason}")


def near(got: torch.Tensor, exact: torch.Tensor) -> None:
    assert got.shape == exact.shape
    # half a step of the type at each number, and what sums in float32 lose
    bound = BOUNDS[got.dtype] * (exact.abs() + 1)
    assert bool(((got.double() - exact.double()).abs() <= bound).all())


@needs_native
@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16], ids=["wide", "narrow"])
@pytest.mark.parametrize("shape", [(1,), (3, 7), (2, 5, 64), (300, 257)])
def test_norms(shape: tuple[int, ...], weights: torch.dtype, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x, residual = torch.randn(shape).to(dtype), torch.randn(shape).to(dtype)
    weight, bias = torch.randn(shape[-1]).to(weights), torch.randn(shape[-1]).to(weights)
    wide = weight.double(), bias.double()
    for added in (None, residual):
        got, total = native_rms_norm(x, weight, 1e-5, added)
        summed = x if added is None else x + added
        assert torch.equal(total, x.new_empty(0) if added is None else summed)
        near(got, rms_norm_reference(summed.double(), wide[0], 1e-5)[0])
        for given in (None, bias):
            got, total = native_layer_norm(x, weight, given, 1e-5, added)
            assert torch.equal(total, x.new_empty(0) if added is None else summed)
            exact = layer_norm_reference(summed.double(), wide[0], None if given is None else wide[1], 1e-5)[0]
            near(got, exact)
            rows = [native_layer_norm(row, weight, given, 1e-5)[0] for row in summed.reshape(-1, shape[-1])]
            assert torch.equal(torch.stack(rows), got.reshape(-1, shape[-1])), "a row depends on its batch"


@needs_native
@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("size", [2, 6, 24])
@pytest.mark.parametrize("texts", [1, 3])
def test_rope(texts: int, size: int, dtype: torch.dtype) -> None:
    x = torch.randn(3, 5, 4, 24).to(dtype).transpose(1, 2)  # (B, H, T, D) of a projection
    cos, sin = torch.randn(texts, 5, size), torch.randn(texts, 5, size)
    near(native_rope(x, cos, sin), rope_reference(x.double(), cos.double(), sin.double()))
    narrow = cos.to(dtype), sin.to(dtype)
    near(native_rope(x, *narrow), rope_reference(x.double(), *(part.double() for part in narrow)))


@pytest.fixture(params=["as it is", "without the library"])
def either(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    if request.param == "without the library":
        monkeypatch.setattr(norms, "library", lambda: None)
    yield


@pytest.mark.usefixtures("either")
def test_operators() -> None:
    x, weight, bias, residual = torch.randn(2, 3, 10), torch.randn(10), torch.randn(10), torch.randn(2, 3, 10)
    ops = torch.ops.quintet
    for added in (None, residual):
        for got, exact in zip(
            rms_norm(x, weight, 1e-5, added), rms_norm_reference(x, weight, 1e-5, added), strict=True
        ):
            near(got, exact)
        wanted = layer_norm_reference(x, weight, bias, 1e-5, added)
        for got, exact in zip(layer_norm(x, weight, bias, 1e-5, added), wanted, strict=True):
            near(got, exact)
    torch.library.opcheck(ops.rms_norm.default, (x, weight, 1e-5))
    torch.library.opcheck(ops.layer_norm.default, (x, weight, None, 1e-5))
    heads, cos, sin = torch.randn(2, 3, 5, 8), torch.randn(1, 5, 6), torch.randn(1, 5, 6)
    near(rope(heads, cos, sin), rope_reference(heads, cos, sin))
    torch.library.opcheck(ops.rope.default, (heads, cos, sin))
    assert rms_norm(x.double(), weight.double(), 1e-5)[0].dtype == torch.float64


@needs_native
def test_operators_with_a_residual() -> None:
    x, weight, residual = torch.randn(2, 10), torch.randn(10), torch.randn(2, 10)
    torch.library.opcheck(torch.ops.quintet.rms_norm.default, (x, weight, 1e-5, residual))
    torch.library.opcheck(torch.ops.quintet.layer_norm.default, (x, weight, weight, 1e-5, residual))


@needs_native
def test_what_is_not_taken_and_what_is_refused() -> None:
    x, weight = torch.randn(2, 10), torch.randn(10)
    assert native_rms_norm(x.double(), weight.double(), 1e-5) is None
    assert native_rms_norm(x, weight[:9], 1e-5) is None and native_rms_norm(x, weight, 1e-5, x[:1]) is None
    assert native_layer_norm(x, weight, weight.half(), 1e-5) is None and native_rms_norm(x[:0], weight, 1e-5) is None
    heads, cos = torch.randn(2, 3, 5, 8), torch.randn(1, 5, 6)
    assert native_rope(heads[0], cos, cos) is None and native_rope(heads, cos[:, :4], cos[:, :4]) is None
    assert native_rope(heads, cos[..., :5], cos[..., :5]) is None and native_rope(heads[..., ::2], cos, cos) is None
    native, at = library(), x.data_ptr()
    for kind, dtype, rows, size in ((2, 0, 1, 1), (0, 3, 1, 1), (0, 0, 0, 1), (0, 0, 1, -1), (1, 0, 1 << 40, 1 << 20)):
        assert native.quintet_norm(kind, dtype, 0, rows, size, at, None, None, at, None, 0.0, at, 1) == 1
    assert native.quintet_norm(0, 0, 0, 1, 1, at, at, None, at, None, 0.0, at, 1) == 1
    assert native.quintet_rope(0, 0, 1, 1, 1, 4, 6, 1, at, at, at, at, at, 1) == 1


def test_what_does_not_fit_is_said() -> None:
    x, weight = torch.randn(2, 10), torch.randn(10)
    with pytest.raises(InputError, match=r"rms_norm: x of shape \[2, 10\].*weight of shape \[9\]"):
        rms_norm(x, weight[:9], 1e-5)
    with pytest.raises(InputError, match=r"a bias of shape \[3\] for 10 numbers"):
        layer_norm(x, weight, weight[:3], 1e-5)
    with pytest.raises(InputError, match=r"a residual of shape \[1, 10\].*Pass the same"):
        rms_norm(x, weight, 1e-5, x[:1])
    with pytest.raises(InputError, match=r"rope: x of shape \[2, 10\].*R even and at most D"):
        rope(x, torch.randn(1, 5, 6), torch.randn(1, 5, 6))
