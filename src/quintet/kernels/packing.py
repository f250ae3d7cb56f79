"""Weights of 8 and 4 bits: where their numbers are, and how they are made; in plain PyTorch.

The layouts are those that `compressed-tensors` writes, so that its files are used as they are mapped.

8 bits ("int-quantized"):

- `weight`: (out, in) int8, q from -127 to 127.
- `weight_scale`: (out, G), G = 1 for one scale per output, or in / group. The number is q * scale.

4 bits ("pack-quantized"):

- `weight_packed`: (out, in / 8) int32. Input i of an output is code = word[i // 8] >> 4 * (i % 8) & 15; in bytes, two
  inputs in each, the first in the low half. Only inputs that are a multiple of 8 are packed.
- `weight_scale`: (out, G), G = in / group.
- `weight_zero_point`: (ceil(out / 8), G) int32, packed along the outputs: output o has
  zero = word[o // 8] >> 4 * (o % 8) & 15. Without it (symmetric weights) zero is 8. The number is
  (code - zero) * scale.
- `weight_shape`: (2,) int64, out and in; what is not stored here, as `weight_packed` and the bias say it.
"""

from __future__ import annotations

import torch

from quintet.errors import InputError
from quintet.pages import ask_for_large_pages

__all__ = [
    "dequantize_int4",
    "dequantize_int8",
    "pack_int4",
    "pack_zero_point",
    "quantize_int4",
    "quantize_int8",
    "unpack_int4",
    "unpack_zero_point",
]

# Numbers of 4 bits in a word.
WORD = 8


def _words(codes: torch.Tensor) -> torch.Tensor:
    """Pack the last dimension, a multiple of 8, of codes from 0 to 15: the first in the lowest bits."""
    pairs = codes.to(torch.uint8).unflatten(-1, (-1, 2))  # (..., n) -> (..., n / 2, 2)
    words = torch.empty(pairs.shape[:-1], dtype=torch.uint8, device=codes.device)
    ask_for_large_pages(words)
    return torch.bitwise_or(pairs[..., 0], pairs[..., 1] << 4, out=words).view(torch.int32)


def _codes(words: torch.Tensor) -> torch.Tensor:
    """The uint8 codes of packed words, eight for each along the last dimension."""
    pairs = words.contiguous().view(torch.uint8)
    return torch.stack([pairs & 15, pairs >> 4], dim=-1).flatten(-2)


def pack_int4(codes: torch.Tensor) -> torch.Tensor:
    """Return `weight_packed` of codes from 0 to 15.

    Args:
        codes: (..., out, in) of any integer type.

    Returns:
        (..., out, in / 8) int32.

    Raises:
        InputError: in is not a multiple of 8.
    """
    if codes.shape[-1] % WORD:
        raise InputError(f"{codes.shape[-1]} inputs cannot be packed: 8 share a word, so pass a multiple of 8.")
    return _words(codes)


def unpack_int4(packed: torch.Tensor) -> torch.Tensor:
    """Return the codes of `weight_packed`: (..., out, in / 8) int32 -> (..., out, in) uint8, from 0 to 15."""
    return _codes(packed)


def pack_zero_point(zeros: torch.Tensor) -> torch.Tensor:
    """Return `weight_zero_point` of codes from 0 to 15: (out, G) of any integer type -> (ceil(out / 8), G) int32."""
    padded = torch.nn.functional.pad(zeros.to(torch.uint8).t(), (0, -len(zeros) % WORD))  # (G, out, filled up)
    return _words(padded).t().contiguous()


def unpack_zero_point(packed: torch.Tensor, outputs: int) -> torch.Tensor:
    """Return the codes of `weight_zero_point`: (ceil(out / 8), G) int32 -> (out, G) uint8."""
    return _codes(packed.t())[:, :outputs].t()


def _groups(weight: torch.Tensor, group: int | None) -> torch.Tensor:
    inputs = weight.shape[-1]
    if weight.dim() != 2 or not weight.is_floating_point():
        raise InputError(f"a weight of shape {list(weight.shape)} and {weight.dtype}; pass (out, in) of a float type.")
    size = inputs if group is None else group
    if size < 1 or inputs % size:
        raise InputError(
            f"groups of {size} do not divide {inputs} inputs. Pass a size that does, or None for one scale."
        )
    return weight.float().unflatten(-1, (-1, size))  # (out, in) -> (out, G, group)


def _scale(largest: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A scale in the type that it is stored in, 1 where all numbers are zero: nothing is divided by zero."""
    scale = largest.to(dtype)
    return torch.where(scale == 0, torch.ones_like(scale), scale)


def quantize_int8(
    weight: torch.Tensor, group: int | None = None, scale_dtype: torch.dtype | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Round each number to a multiple of its group's scale, the largest of which is 127.

    Args:
        weight: (out, in) of a float type.
        group: Inputs that share a scale; None for all of an output.
        scale_dtype: What the scales are stored in; None for the weight's.

    Returns:
        `weight` (out, in) int8 and `weight_scale` (out, G).

    Raises:
        InputError: no matrix of a float type, or groups that do not divide the inputs.
    """
    values = _groups(weight, group)
    scale = _scale(values.abs().amax(dim=-1) / 127, scale_dtype or weight.dtype)  # (out, G)
    rounded = (values / scale.float()[..., None]).round().clamp(-127, 127)
    return rounded.to(torch.int8).flatten(-2), scale


def quantize_int4(
    weight: torch.Tensor, group: int = 32, symmetric: bool = True, scale_dtype: torch.dtype | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Round each number to one of 16 that its group has.

    Symmetric groups have multiples of a scale from -8 to 7, the largest number at -8 * scale, so that a scale may be
    negative; others are spread from the smallest (or zero) to the largest (or zero).

    Args:
        weight: (out, in) of a float type, in a multiple of 8.
        group: Inputs that share a scale.
        symmetric: Without zero points.
        scale_dtype: What the scales are stored in; None for the weight's.

    Returns:
        `weight_packed` (out, in / 8) int32, `weight_scale` (out, G) and `weight_zero_point` (ceil(out / 8), G) int32,
        or None of symmetric ones.

    Raises:
        InputError: no matrix of a float type, groups that do not divide the inputs, inputs that are no multiple of 8.
    """
    values, dtype = _groups(weight, group), scale_dtype or weight.dtype
    high, low = values.amax(dim=-1), values.amin(dim=-1)  # (out, G)
    if symmetric:
        scale = _scale(torch.where(high > -low, high, low) / -8, dtype)
        zeros, packed_zeros = torch.full_like(high, 8), None
    else:
        high, low = high.clamp(min=0), low.clamp(max=0)
        scale = _scale((high - low) / 15, dtype)
        zeros = (-low / scale.float()).round().clamp(0, 15)
        packed_zeros = pack_zero_point(zeros)
    codes = (values / scale.float()[..., None] + zeros[..., None]).round().clamp(0, 15)
    return pack_int4(codes.to(torch.uint8).flatten(-2)), scale, packed_zeros


def dequantize_int8(weight: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
    """Return the numbers of a weight of 8 bits.

    Args:
        weight: (out, in) int8.
        scale: (out, G) or (out,).
        dtype: Of the result, in which it is computed (float32 for 16-bit types); None for the scale's.

    Returns:
        (out, in).
    """
    dtype = dtype or scale.dtype
    wide = torch.promote_types(dtype, torch.float32)
    scale = scale.reshape(len(weight), -1)  # (out, G)
    values = weight.to(wide).unflatten(-1, (scale.shape[1], -1))  # (out, in) -> (out, G, group)
    return (values * scale.to(wide)[..., None]).flatten(-2).to(dtype)


def dequantize_int4(
    packed: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor | None = None, dtype: torch.dtype | None = None
) -> torch.Tensor:
    """Return the numbers of a weight of 4 bits.

    Args:
        packed: `weight_packed`, (out, in / 8) int32.
        scale: `weight_scale`, (out, G).
        zero_point: `weight_zero_point`, (ceil(out / 8), G) int32, or None.
        dtype: As `dequantize_int8`.

    Returns:
        (out, in).
    """
    dtype = dtype or scale.dtype
    wide = torch.promote_types(dtype, torch.float32)
    values = unpack_int4(packed).to(wide).unflatten(-1, (scale.shape[1], -1))  # (out, in) -> (out, G, group)
    zeros = 8 if zero_point is None else unpack_zero_point(zero_point, len(packed)).to(wide)[..., None]
    return ((values - zeros) * scale.to(wide)[..., None]).flatten(-2).to(dtype)
