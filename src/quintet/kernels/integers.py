"""Weights of 8 and 4 bits times x: `quintet::int8_linear` and `quintet::int4_linear`, on the layouts of `packing`.

Weights are never rounded again: whole numbers are exact in bfloat16 and float32, and are scaled after the sum over a
block of inputs. Activations stay as they are, with sums in float32; or, with `activations="int8"`, are rounded to 8
bits in groups of 32 inputs, each times its own scale, at any number of rows.
"""

from __future__ import annotations

import torch

from quintet.errors import InputError
from quintet.kernels.linear import TYPES, check_bias, whole_bias
from quintet.kernels.loader import FEW_ROWS, check, has_byte_products, has_tile_products, library
from quintet.kernels.packing import WORD, dequantize_int4, dequantize_int8

__all__ = [
    "ACTIVATIONS",
    "activations_for",
    "check_activations",
    "int4_linear",
    "int4_linear_reference",
    "int8_linear",
    "int8_linear_reference",
    "native_int4_linear",
    "native_int8_linear",
    "native_layout",
    "round_activations",
    "takes_groups",
]

# What x is multiplied as, by the number that native kernels know it by: as it is, rounded to 8 bits, or as it is with
# sums in the order of tiles, where the CPU has them (AMX) and x is of bfloat16. Where not, as the first.
ACTIVATIONS = ("bf16", "int8", "tiles")
# Groups of the native kernels are one or more of these.
BLOCK = 32


def check_activations(name: str, activations: str) -> None:
    """Check what an operation called `name` is to multiply x as.

    Raises:
        InputError: it is not one of ACTIVATIONS.
    """
    if activations not in ACTIVATIONS:
        raise InputError(f"{name}: activations={activations!r} is not one of {', '.join(ACTIVATIONS)}.")


def takes_groups(bits: int, inputs: int, groups: int) -> bool:
    """Return whether native kernels know so many groups: of a multiple of 32 inputs; for 8 bits also one for all."""
    return groups > 0 and not inputs % groups and (not inputs // groups % BLOCK or (bits == 8 and groups == 1))


def native_layout(
    bits: int, inputs: int, weight: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor | None
) -> tuple[int, int, int, int | None] | None:
    """Return how native kernels are told of a packed weight, or None for a layout that they do not know.

    Args:
        bits: 8 or 4.
        inputs: Of the weight.
        weight: (out, in) int8, or (out, in / 8) int32 of 4 bits.
        scale: (out, G) or (out,).
        zero_point: (ceil(out / 8), G) int32 of 4 bits, or None.

    Returns:
        Type of the scales, inputs in a group, where the scales are, and where the zero points are, if there are any.
    """
    scale_kind = TYPES.get(scale.dtype)
    if scale_kind is None or weight.dim() != 2 or weight.shape[1] * 8 * weight.element_size() != bits * inputs:
        return None
    outputs, groups = weight.shape[0], scale.shape[1] if scale.dim() == 2 else 1
    if scale.shape != (outputs, groups) and scale.shape != (outputs,) or not takes_groups(bits, inputs, groups):
        return None
    if not (weight.is_cpu and scale.is_cpu and weight.is_contiguous() and scale.is_contiguous()):
        return None
    if zero_point is None:
        return scale_kind, inputs // groups, scale.data_ptr(), None
    fits = bits == 4 and zero_point.dtype == torch.int32 and zero_point.shape == (-(-outputs // WORD), groups)
    if not fits or not zero_point.is_contiguous() or not zero_point.is_cpu:
        return None
    return scale_kind, inputs // groups, scale.data_ptr(), zero_point.data_ptr()


def _native(
    bits: int,
    x: torch.Tensor,
    weight: torch.Tensor,
    scale: torch.Tensor,
    zero_point: torch.Tensor | None,
    bias: torch.Tensor | None,
    activations: str,
) -> torch.Tensor | None:
    native, kind = library(), TYPES.get(x.dtype)
    if native is None or kind is None or activations not in ACTIVATIONS or x.dim() == 0 or not x.is_cpu:
        return None
    inputs = x.shape[-1]
    rows = x.numel() // inputs if inputs else 0
    layout = native_layout(bits, inputs, weight, scale, zero_point) if rows else None
    if layout is None:
        return None
    outputs, (scale_kind, group, scales, zeros) = weight.shape[0], layout
    added = whole_bias(bias, x.dtype, outputs)
    if added is None:
        return None
    x = x.contiguous()
    out = torch.empty((*x.shape[:-1], outputs), dtype=x.dtype)
    check(
        native.quintet_integers(
            *(bits, kind, scale_kind, ACTIVATIONS.index(activations), rows, inputs, outputs, group),
            *(weight.data_ptr(), scales, zeros, x.data_ptr(), inputs, added[1], out.data_ptr()),
            torch.get_num_threads(),
        )
    )
    return out


def native_int8_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor | None = None,
    activations: str = "bf16",
) -> torch.Tensor | None:
    """Return `int8_linear` by the native kernel, or None where it does not take it.

    For inference: no gradient flows, and no dispatcher is asked. It takes rows of float32, bfloat16 or float16 on a
    CPU, scales of any of these types, groups of a multiple of 32 or one scale per output, tensors in one piece.
    """
    if weight.dtype != torch.int8:
        return None
    return _native(8, x, weight, scale, None, bias, activations)


def native_int4_linear(
    x: torch.Tensor,
    packed: torch.Tensor,
    scale: torch.Tensor,
    zero_point: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    activations: str = "bf16",
) -> torch.Tensor | None:
    """Return `int4_linear` by the native kernel, or None where it does not take it; as `native_int8_linear`."""
    if packed.dtype != torch.int32:
        return None
    return _native(4, x, packed, scale, zero_point, bias, activations)


def activations_for(choice: str, rows: int, dtype: torch.dtype) -> str:
    """Return what x is multiplied as, one of ACTIVATIONS.

    One to 8 rows wait for the weights, so that nothing is won by rounding them, or by tiles.

    Args:
        choice: What a layer was told: "bf16" never rounds, "int8" rounds many rows, and "auto" does so where it is
            faster, but never in float32.
        rows: Of x.
        dtype: Of x.
    """
    if rows <= FEW_ROWS:
        return "bf16"
    tiles = dtype == torch.bfloat16 and has_tile_products()
    byte_products = dtype in (torch.bfloat16, torch.float16) and not tiles and has_byte_products()
    if choice == "int8" or (choice == "auto" and byte_products):
        return "int8"
    return "tiles" if tiles else "bf16"


def round_activations(x: torch.Tensor) -> torch.Tensor:
    """Return x as 8 bits hold it: multiples of a 127th of each group's largest number.

    Args:
        x: (..., in); groups are of 32 inputs, the last one of what is left.

    Returns:
        (..., in) in float32, float64 for float64.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    padded = torch.nn.functional.pad(x.to(wide), (0, -x.shape[-1] % BLOCK)).unflatten(-1, (-1, BLOCK))  # (..., G, 32)
    scale = padded.abs().amax(dim=-1, keepdim=True) / 127
    rounded = torch.where(scale == 0, 0.0, (padded / scale).round() * scale)
    return rounded.flatten(-2)[..., : x.shape[-1]]


def _product(
    x: torch.Tensor, numbers: torch.Tensor, bias: torch.Tensor | None, activations: str, dtype: torch.dtype
) -> torch.Tensor:
    wide = numbers.dtype
    given = round_activations(x).to(wide) if activations == "int8" else x.to(wide)
    out = torch.nn.functional.linear(given, numbers, None if bias is None else bias.to(wide))
    return out.to(dtype)


def int8_linear_reference(
    x: torch.Tensor,
    weight: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor | None = None,
    activations: str = "bf16",
) -> torch.Tensor:
    """The same in plain PyTorch: sums in float32 (float64 for float64), rounded once."""
    numbers = dequantize_int8(weight, scale, torch.promote_types(x.dtype, torch.float32))
    return _product(x, numbers, bias, activations, x.dtype)


def int4_linear_reference(
    x: torch.Tensor,
    packed: torch.Tensor,
    scale: torch.Tensor,
    zero_point: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    activations: str = "bf16",
) -> torch.Tensor:
    """The same in plain PyTorch: sums in float32 (float64 for float64), rounded once."""
    numbers = dequantize_int4(packed, scale, zero_point, torch.promote_types(x.dtype, torch.float32))
    return _product(x, numbers, bias, activations, x.dtype)


def _check(
    name: str,
    x: torch.Tensor,
    shape: tuple[int, int],
    scale: torch.Tensor,
    bias: torch.Tensor | None,
    activations: str,
) -> None:
    outputs, inputs = shape
    if x.dim() == 0 or x.shape[-1] != inputs or not x.is_floating_point():
        raise InputError(
            f"{name}: x of shape {list(x.shape)} and {x.dtype} for a weight of {inputs} inputs. Pass (..., {inputs})."
        )
    groups = scale.shape[1] if scale.dim() == 2 else 1
    if (scale.shape != (outputs, groups) and scale.shape != (outputs,)) or not scale.is_floating_point():
        raise InputError(
            f"{name}: scales of shape {list(scale.shape)} and {scale.dtype} for {outputs} outputs. "
            f"Pass ({outputs}, groups) of a float type."
        )
    if not groups or inputs % groups:
        raise InputError(f"{name}: {groups} groups do not divide {inputs} inputs. Pass scales (out, in / group).")
    check_bias(name, bias, outputs)
    check_activations(name, activations)


def _check_int8(
    x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None, activations: str
) -> None:
    if weight.dtype != torch.int8 or weight.dim() != 2:
        raise InputError(
            f"int8_linear: a weight of shape {list(weight.shape)} and {weight.dtype}. Pass (out, in) of int8."
        )
    _check("int8_linear", x, (weight.shape[0], weight.shape[1]), scale, bias, activations)


def _check_int4(
    x: torch.Tensor,
    packed: torch.Tensor,
    scale: torch.Tensor,
    zero_point: torch.Tensor | None,
    bias: torch.Tensor | None,
    activations: str,
) -> None:
    if packed.dtype != torch.int32 or packed.dim() != 2 or scale.dim() != 2:
        raise InputError(
            f"int4_linear: a weight of shape {list(packed.shape)} and {packed.dtype} with scales of shape "
            f"{list(scale.shape)}. Pass (out, in / 8) of int32 and (out, groups)."
        )
    outputs = packed.shape[0]
    _check("int4_linear", x, (outputs, packed.shape[1] * WORD), scale, bias, activations)
    if zero_point is None:
        return
    wanted = (-(-outputs // WORD), scale.shape[1])
    if zero_point.dtype != torch.int32 or zero_point.shape != wanted:
        raise InputError(
            f"int4_linear: zero points of shape {list(zero_point.shape)} and {zero_point.dtype}. "
            f"Pass {list(wanted)} of int32: one for each group of 8 outputs."
        )


@torch.library.custom_op("quintet::int8_linear", mutates_args=())
def int8_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor | None = None,
    activations: str = "bf16",
) -> torch.Tensor:
    """Return `x @ W.T + bias` for a W of 8 bits.

    Args:
        x: (..., in).
        weight: (out, in) int8.
        scale: (out, G) or (out,) of a float type; G divides in.
        bias: (out,) or None.
        activations: "bf16": x in its own type. "int8": x rounded to 8 bits in groups of 32.

    Returns:
        (..., out) of x's type. No gradient flows.

    Raises:
        InputError: shapes, types or options that do not belong together.
    """
    _check_int8(x, weight, scale, bias, activations)
    out = native_int8_linear(x, weight, scale, bias, activations)
    return int8_linear_reference(x, weight, scale, bias, activations) if out is None else out


@int8_linear.register_fake
def _(
    x: torch.Tensor,
    weight: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor | None = None,
    activations: str = "bf16",
) -> torch.Tensor:
    _check_int8(x, weight, scale, bias, activations)
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


@torch.library.custom_op("quintet::int4_linear", mutates_args=())
def int4_linear(
    x: torch.Tensor,
    packed: torch.Tensor,
    scale: torch.Tensor,
    zero_point: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    activations: str = "bf16",
) -> torch.Tensor:
    """Return `x @ W.T + bias` for a W of 4 bits.

    Args:
        x: (..., in).
        packed: `weight_packed`, (out, in / 8) int32.
        scale: `weight_scale`, (out, G) of a float type; G divides in.
        zero_point: `weight_zero_point`, (ceil(out / 8), G) int32; None for symmetric weights.
        bias: (out,) or None.
        activations: "bf16": x in its own type. "int8": x rounded to 8 bits in groups of 32.

    Returns:
        (..., out) of x's type. No gradient flows.

    Raises:
        InputError: shapes, types or options that do not belong together.
    """
    _check_int4(x, packed, scale, zero_point, bias, activations)
    out = native_int4_linear(x, packed, scale, zero_point, bias, activations)
    return int4_linear_reference(x, packed, scale, zero_point, bias, activations) if out is None else out


@int4_linear.register_fake
def _(
    x: torch.Tensor,
    packed: torch.Tensor,
    scale: torch.Tensor,
    zero_point: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    activations: str = "bf16",
) -> torch.Tensor:
    _check_int4(x, packed, scale, zero_point, bias, activations)
    return x.new_empty((*x.shape[:-1], packed.shape[0]))
