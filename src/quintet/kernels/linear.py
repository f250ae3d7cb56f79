"""A weight times few rows, `quintet::matvec`, and times many, `quintet::matmul`.

Few are as fast as the weight can be read from memory, many as fast as the CPU multiplies. Products are added up in
float32 (of bfloat16, by the CPU's dot instructions where it has them), and the result is rounded once.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional as F

from quintet.errors import InputError
from quintet.kernels.loader import check, has_pair_products, library

__all__ = [
    "TYPES",
    "check_bias",
    "linear_reference",
    "matmul",
    "matmul_pays",
    "matvec",
    "native_matmul",
    "native_matvec",
    "whole_bias",
]

Native = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor | None]
# Types that the native kernels know, by the number that they know them by.
TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


def whole_bias(
    bias: torch.Tensor | None, dtype: torch.dtype, outputs: int
) -> tuple[torch.Tensor | None, int | None] | None:
    """Return a bias in one piece, to be held while a native kernel runs, and where it is; None if no kernel takes it.

    Args:
        bias: (out,), or None, of which the result is None twice.
        dtype: Type of the activations, which it must have.
        outputs: How many it must have.
    """
    if bias is None:
        return None, None
    if bias.dtype != dtype or bias.shape != (outputs,) or not bias.is_cpu:
        return None
    bias = bias.contiguous()
    return bias, bias.data_ptr()


def check_bias(name: str, bias: torch.Tensor | None, outputs: int) -> None:
    """Check the shape of a bias that an operation called `name` was given.

    Raises:
        InputError: it is not one number for each output.
    """
    if bias is not None and bias.shape != (outputs,):
        raise InputError(f"{name}: a bias of shape {list(bias.shape)} for {outputs} outputs. Pass one number each.")


def native_matvec(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor | None:
    """Return `x @ weight.T + bias` by the native kernel for few rows, or None where it does not take it.

    For inference: no gradient flows, and no dispatcher is asked.

    Args:
        x: (..., in).
        weight: (out, in), its rows in one piece each.
        bias: (out,) or None.

    Returns:
        (..., out), or None: other types, devices or orders in memory; or there are no native kernels.
    """
    return _native("quintet_matvec", x, weight, bias)


def native_matmul(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor | None:
    """Return `x @ weight.T + bias` by the native kernel for many rows, or None where it does not take it.

    As `native_matvec`. Where `matmul_pays` says no, the kernel for few rows computes it.
    """
    return _native("quintet_matmul", x, weight, bias)


def matmul_pays(dtype: torch.dtype, inputs: int) -> bool:
    """Whether the native kernel for many rows is as fast as torch's: in bfloat16, by dot instructions of pairs."""
    return dtype == torch.bfloat16 and inputs % 2 == 0 and has_pair_products()


def _native(name: str, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor | None:
    kind = TYPES.get(x.dtype)
    native = library()
    if native is None or kind is None or weight.dtype != x.dtype or x.dim() == 0 or weight.dim() != 2:
        return None
    outputs, inputs = weight.shape
    stride, step = weight.stride()
    rows = x.numel() // inputs if inputs else 0
    if not rows or step != 1 or x.shape[-1] != inputs or not x.is_cpu or not weight.is_cpu:
        return None
    added = whole_bias(bias, x.dtype, outputs)
    if added is None:
        return None
    x = x.contiguous()
    out = torch.empty((*x.shape[:-1], outputs), dtype=x.dtype)
    check(
        getattr(native, name)(
            *(kind, rows, inputs, outputs, weight.data_ptr(), stride, x.data_ptr(), inputs),
            *(added[1], out.data_ptr(), torch.get_num_threads()),
        )
    )
    return out


def linear_reference(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """The same in plain PyTorch: sums in float32 (float64 for float64), rounded once."""
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    out = F.linear(x.to(wide), weight.to(wide), None if bias is None else bias.to(wide))
    return out.to(x.dtype)


def _check(name: str, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
    if weight.dim() != 2 or x.dim() == 0 or x.shape[-1] != weight.shape[1]:
        raise InputError(
            f"{name}: x of shape {list(x.shape)} and a weight of shape {list(weight.shape)} do not fit: "
            "the weight must be (out, in) and x (..., in)."
        )
    check_bias(name, bias, weight.shape[0])


def _computed(
    name: str, native: Native, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """What an operation gives: natively where the kernel takes it."""
    _check(name, x, weight, bias)
    out = native(x, weight, bias)
    return linear_reference(x, weight, bias) if out is None else out


def _empty(name: str, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """What a compiler has to know of it."""
    _check(name, x, weight, bias)
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


@torch.library.custom_op("quintet::matvec", mutates_args=())
def matvec(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Return `x @ weight.T + bias`, natively for few rows on a CPU.

    Args:
        x: (..., in).
        weight: (out, in).
        bias: (out,) or None.

    Returns:
        (..., out).

    Raises:
        InputError: shapes that do not belong together.
    """
    return _computed("matvec", native_matvec, x, weight, bias)


@matvec.register_fake
def _(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    return _empty("matvec", x, weight, bias)


@torch.library.custom_op("quintet::matmul", mutates_args=())
def matmul(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Return `x @ weight.T + bias`, natively for many rows of bfloat16 on a CPU; for the rest see `matvec`."""
    return _computed("matmul", native_matmul, x, weight, bias)


@matmul.register_fake
def _(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    return _empty("matmul", x, weight, bias)
