"""Norms with an optional residual, and rotary positions: `quintet::rms_norm`, `quintet::layer_norm`, `quintet::rope`.

Everything is computed in float32 and rounded once; a sum with a residual is rounded before it is normed, as layers of
their own round it. Letters: D numbers of a row; B rows, H heads, T tokens, R rotated numbers of a head.
"""

from __future__ import annotations

import ctypes

import torch
from torch.nn import functional as F

from quintet.errors import InputError
from quintet.kernels.linear import TYPES
from quintet.kernels.loader import check, library

__all__ = [
    "layer_norm",
    "layer_norm_reference",
    "native_layer_norm",
    "native_rms_norm",
    "native_rope",
    "rms_norm",
    "rms_norm_reference",
    "rope",
    "rope_reference",
]

Pair = tuple[torch.Tensor, torch.Tensor]
# Kinds of norm, as `Norm` in csrc/cpu/blocks.h counts them.
LAYER, RMS = 0, 1
_Strides = ctypes.c_int64 * 3


def _native_norm(
    kind: int,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    eps: float,
    residual: torch.Tensor | None,
) -> Pair | None:
    native, dtype = library(), TYPES.get(x.dtype)
    if native is None or dtype is None or weight.dtype not in TYPES or not x.is_cpu or x.dim() == 0 or not x.numel():
        return None
    for part in (weight, bias):
        if part is not None and (part.shape != x.shape[-1:] or part.dtype != weight.dtype or not part.is_contiguous()):
            return None
    if residual is not None and (residual.shape != x.shape or residual.dtype != x.dtype):
        return None
    if not all(part is None or part.is_cpu for part in (weight, bias, residual)):
        return None
    x = x.contiguous()
    residual = None if residual is None else residual.contiguous()
    out = torch.empty_like(x)
    total = x.new_empty(0) if residual is None else torch.empty_like(x)
    check(
        native.quintet_norm(
            *(kind, dtype, TYPES[weight.dtype], x.numel() // x.shape[-1], x.shape[-1], x.data_ptr()),
            *((None, None) if residual is None else (residual.data_ptr(), total.data_ptr())),
            *(
                weight.data_ptr(),
                None if bias is None else bias.data_ptr(),
                eps,
                out.data_ptr(),
                torch.get_num_threads(),
            ),
        )
    )
    return out, total


def native_rms_norm(
    x: torch.Tensor, weight: torch.Tensor, eps: float, residual: torch.Tensor | None = None
) -> Pair | None:
    """Return `rms_norm` by the native kernel, or None where it does not take it; no gradient flows."""
    return _native_norm(RMS, x, weight, None, eps, residual)


def native_layer_norm(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, eps: float, residual: torch.Tensor | None = None
) -> Pair | None:
    """Return `layer_norm` by the native kernel, or None where it does not take it; no gradient flows."""
    return _native_norm(LAYER, x, weight, bias, eps, residual)


def native_rope(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor | None:
    """Return `rope` by the native kernel, or None where it does not take it; no gradient flows."""
    native, kind = library(), TYPES.get(x.dtype)
    if native is None or kind is None or x.dim() != 4 or not x.numel() or x.stride(3) != 1 or not x.is_cpu:
        return None
    if cos.dtype not in TYPES or not _turns(x, cos, sin) or not cos.is_cpu or not sin.is_cpu:
        return None
    cos, sin, out = cos.contiguous(), sin.contiguous(), x.new_empty(x.shape)
    check(
        native.quintet_rope(
            *(kind, TYPES[cos.dtype], *x.shape, cos.shape[2], cos.shape[0], x.data_ptr(), _Strides(*x.stride()[:3])),
            *(cos.data_ptr(), sin.data_ptr(), out.data_ptr(), torch.get_num_threads()),
        )
    )
    return out


def _turns(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> bool:
    if cos.dim() != 3 or cos.shape != sin.shape or cos.dtype != sin.dtype or x.dim() != 4:
        return False
    rows, tokens, size = cos.shape
    return rows in (1, x.shape[0]) and tokens == x.shape[2] and 0 < size <= x.shape[3] and size % 2 == 0


def _summed(x: torch.Tensor, residual: torch.Tensor | None) -> Pair:
    """What is normed, and the second result."""
    if residual is None:
        return x, x.new_empty(0)
    total = x + residual
    return total, total


def rms_norm_reference(x: torch.Tensor, weight: torch.Tensor, eps: float, residual: torch.Tensor | None = None) -> Pair:
    """The same in plain PyTorch, in float32 (float64 for float64)."""
    x, total = _summed(x, residual)
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return (wide * weight).to(x.dtype), total


def layer_norm_reference(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, eps: float, residual: torch.Tensor | None = None
) -> Pair:
    """The same in plain PyTorch, in float32 (float64 for float64)."""
    x, total = _summed(x, residual)
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    added = None if bias is None else bias.to(wide.dtype)
    return F.layer_norm(wide, x.shape[-1:], weight.to(wide.dtype), added, eps).to(x.dtype), total


def rope_reference(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """The same in plain PyTorch, in float32 (float64 for float64), rounded once."""
    wide = torch.promote_types(x.dtype, torch.float32)
    size = cos.shape[-1]
    cos, sin, turned = cos.to(wide)[:, None], sin.to(wide)[:, None], x[..., :size].to(wide)  # (B or 1, 1, T, R)
    first, second = turned.chunk(2, dim=-1)
    rotated = (turned * cos + torch.cat((-second, first), dim=-1) * sin).to(x.dtype)
    return torch.cat((rotated, x[..., size:]), dim=-1)


def _check_norm(
    name: str, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, residual: torch.Tensor | None
) -> None:
    if x.dim() == 0 or not x.is_floating_point() or weight.shape != x.shape[-1:]:
        raise InputError(
            f"{name}: x of shape {list(x.shape)} and {x.dtype} with a weight of shape {list(weight.shape)}. Pass "
            "(..., D) of a float type and (D,)."
        )
    if bias is not None and bias.shape != weight.shape:
        raise InputError(f"{name}: a bias of shape {list(bias.shape)} for {weight.shape[0]} numbers. Pass one each.")
    if residual is not None and (residual.shape != x.shape or residual.dtype != x.dtype):
        raise InputError(
            f"{name}: a residual of shape {list(residual.shape)} and {residual.dtype} for x of {list(x.shape)} and "
            f"{x.dtype}. Pass the same."
        )


def _check_rope(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> None:
    if not _turns(x, cos, sin) or not x.is_floating_point():
        raise InputError(
            f"rope: x of shape {list(x.shape)} and {x.dtype}, cos of {list(cos.shape)} and sin of {list(sin.shape)} do "
            "not fit: pass (B, H, T, D) of a float type and twice (B or 1, T, R), R even and at most D."
        )


@torch.library.custom_op("quintet::rms_norm", mutates_args=())
def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float, residual: torch.Tensor | None = None) -> Pair:
    """Divide by the root mean square of the last dimension and multiply by a weight.

    Args:
        x: (..., D).
        weight: (D,).
        eps: Added to the mean square.
        residual: (..., D) that is added first, or None.

    Returns:
        The norm (..., D), and x + residual (..., D), which is empty without a residual. No gradient flows.

    Raises:
        InputError: shapes or types that do not belong together.
    """
    _check_norm("rms_norm", x, weight, None, residual)
    out = native_rms_norm(x, weight, eps, residual)
    return rms_norm_reference(x, weight, eps, residual) if out is None else out


@torch.library.custom_op("quintet::layer_norm", mutates_args=())
def layer_norm(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, eps: float, residual: torch.Tensor | None = None
) -> Pair:
    """Subtract the mean of the last dimension, divide by the deviation, multiply by a weight and add a bias.

    Args:
        x: (..., D).
        weight: (D,).
        bias: (D,) or None.
        eps: Added to the variance.
        residual: (..., D) that is added first, or None.

    Returns:
        As `rms_norm`.

    Raises:
        InputError: shapes or types that do not belong together.
    """
    _check_norm("layer_norm", x, weight, bias, residual)
    out = native_layer_norm(x, weight, bias, eps, residual)
    return layer_norm_reference(x, weight, bias, eps, residual) if out is None else out


@torch.library.custom_op("quintet::rope", mutates_args=())
def rope(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate the first R numbers of each head by the angles of the tokens' positions; the others stay.

    Args:
        x: (B, H, T, D).
        cos, sin: (B or 1, T, R).

    Returns:
        (B, H, T, D). No gradient flows.

    Raises:
        InputError: shapes or types that do not belong together.
    """
    _check_rope(x, cos, sin)
    out = native_rope(x, cos, sin)
    return rope_reference(x, cos, sin) if out is None else out


def _fake_norm(x: torch.Tensor, residual: torch.Tensor | None) -> Pair:
    out = x.new_empty(x.shape)
    return out, x.new_empty(0) if residual is None else x.new_empty(x.shape)


@rms_norm.register_fake
def _(x: torch.Tensor, weight: torch.Tensor, eps: float, residual: torch.Tensor | None = None) -> Pair:
    _check_norm("rms_norm", x, weight, None, residual)
    return _fake_norm(x, residual)


@layer_norm.register_fake
def _(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, eps: float, residual: torch.Tensor | None = None
) -> Pair:
    _check_norm("layer_norm", x, weight, bias, residual)
    return _fake_norm(x, residual)


@rope.register_fake
def _(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    _check_rope(x, cos, sin)
    return x.new_empty(x.shape)
