"""MXFP4: numbers of 4 bits in blocks of 32 that share a scale (OCP Microscaling Formats, MX, version 1.0).

An element is E2M1: a sign, two bits of exponent (bias 1), one of mantissa; its values are 0, 0.5, 1, 1.5, 2, 3, 4, 6
and their negatives. A scale is E8M0: the byte s stands for 2^(s - 127), and 255 for NaN. Two elements share a byte, the
first in its low half. Packed tensors are (..., G, 16) bytes of elements and (..., G) bytes of scales, for rows of 32 G
numbers each.
"""

from __future__ import annotations

import math
from functools import lru_cache
from itertools import product
from typing import NamedTuple

import torch

from quintet.errors import CheckpointError, InputError
from quintet.pages import ask_for_large_pages

__all__ = [
    "BLOCK",
    "NAN_SCALE",
    "Packed",
    "check_packed",
    "check_scales",
    "check_width",
    "pack",
    "unpack",
    "unpack_into",
    "wide_dtype",
]

BLOCK = 32
NAN_SCALE = 255
_BIAS = 127
_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
# Half way between neighbours; True where a number exactly there belongs to the upper one, whose last bit is 0.
_BETWEEN = ((0.25, False), (0.75, True), (1.25, False), (1.75, True), (2.5, False), (3.5, True), (5.0, False))
# Elements that are unpacked or packed at a time: what is made on the way fits a cache.
_CHUNK = 2**19
# A pair of elements of each type, moved as one.
_PAIRS = {torch.bfloat16: torch.int32, torch.float32: torch.int64, torch.float64: torch.complex128}


@lru_cache
def _tables(dtype: torch.dtype, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """The two elements of every byte (256,), as one number of twice the size; the value of every scale (256,)."""
    with torch.inference_mode(False):  # whoever comes first must not leave tensors that training cannot use
        values = torch.tensor([*_VALUES, *(-value for value in _VALUES)], dtype=torch.float64, device="cpu")
        byte = torch.arange(256, device="cpu")
        pairs = torch.stack([values[byte & 15], values[byte >> 4]], dim=1).to(dtype)  # (256, 2)
        scales = torch.ldexp(torch.ones(256, dtype=torch.float64, device="cpu"), byte - _BIAS)
        scales[NAN_SCALE] = torch.nan
        return pairs.view(_PAIRS[dtype]).view(-1).to(device), scales.to(dtype).to(device)


def unpack(blocks: torch.Tensor, scales: torch.Tensor, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    """Return the numbers of a packed tensor.

    Exact in bfloat16, float32 and float64, but for scales near the end of the type's range; rounded once in float16.

    Args:
        blocks: (..., G, 16) uint8.
        scales: (..., G) uint8; NaN comes of 255.
        dtype: Type of the result.

    Returns:
        (..., 32 G).

    Raises:
        CheckpointError: the shapes do not belong together.
    """
    check_packed(tuple(blocks.shape), tuple(scales.shape), "the packed tensor")
    *lead, groups = scales.shape
    # float16 has neither the range of the scales nor that of the bytes' pairs: it is rounded from float32
    wide = wide_dtype(dtype)
    flat, exponents = blocks.reshape(-1, groups, BLOCK // 2), scales.reshape(-1, groups)  # (R, G, 16), (R, G)
    out = torch.empty(len(flat), groups * BLOCK, dtype=dtype, device=blocks.device)
    step = max(1, _CHUNK // max(1, groups * BLOCK))
    index = torch.empty(min(step, len(flat)) * groups * BLOCK // 2, dtype=torch.int32, device=blocks.device)
    for begin in range(0, len(flat), step):
        part = slice(begin, begin + step)
        if dtype == wide:
            unpack_into(out[part], flat[part], exponents[part], index)
        else:
            rows = torch.empty(out[part].shape, dtype=wide, device=blocks.device)
            out[part] = unpack_into(rows, flat[part], exponents[part], index)
    return out.view(*lead, groups * BLOCK)


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the type that numbers of a type are unpacked in: itself, or float32."""
    return dtype if dtype in _PAIRS else torch.float32


def unpack_into(
    out: torch.Tensor, blocks: torch.Tensor, scales: torch.Tensor, index: torch.Tensor | None = None
) -> torch.Tensor:
    """Unpack rows to a place that is there: nothing is allocated, which costs more than the work itself does.

    By tables, two numbers at a time: the fastest that plain torch has.

    Args:
        out: (r, 32 G), contiguous, of a type that `wide_dtype` returns.
        blocks: (r, G, 16) uint8.
        scales: (r, G) uint8.
        index: int32, at least r * 16 G of them, for intermediate results; None makes it.

    Returns:
        `out`.
    """
    count = blocks.numel()
    # a compiler makes the tables part of its graph, and warns of caches
    tables = _tables.__wrapped__ if torch.compiler.is_compiling() else _tables
    pairs, powers = tables(out.dtype, blocks.device)
    if index is None or torch.compiler.is_compiling():
        values = pairs.index_select(0, blocks.reshape(-1).int()).view(out.dtype)
        out.view(-1).copy_(values)
    else:
        index = index[:count].copy_(blocks.reshape(-1))
        torch.index_select(pairs, 0, index, out=out.view(-1).view(pairs.dtype))
    shares = powers.index_select(0, scales.reshape(-1).int())  # (r * G,)
    out.view(-1, BLOCK).mul_(shares[:, None])
    return out


class Packed(NamedTuple):
    """A packed tensor, and what packing it cost.

    Attributes:
        blocks: (..., G, 16) uint8.
        scales: (..., G) uint8.
        error: Root of the squared differences to what was packed, as a share of the root of its squares.
    """

    blocks: torch.Tensor
    scales: torch.Tensor
    error: float


def pack(tensor: torch.Tensor, name: str = "the tensor") -> Packed:
    """Round a tensor to MXFP4, as section 6.3 of the specification says.

    The scale of a block is the largest power of two that is not above its largest magnitude, divided by 4, the largest
    power of two that an element can be. Elements are rounded to the nearest value, to the one with an even last bit
    where two are as near, and to 6 above it. A block of zeros gets the scale 1.

    Args:
        tensor: (..., 32 G) floats.
        name: Named in errors.

    Raises:
        InputError: the last size is not a multiple of 32, the tensor is no float, or holds a number that is not finite.
    """
    check_width(tensor.shape[-1] if tensor.dim() else 0, name)
    if not tensor.is_floating_point():
        raise InputError(f"{name} is {tensor.dtype}, and only floating tensors can be packed.")
    *lead, width = tensor.shape
    # what holds every value of the tensor, and its products with powers of two
    wide = torch.float64 if tensor.dtype == torch.float64 else torch.float32
    stack = tensor.flatten(0, -3) if tensor.dim() > 2 else tensor.reshape(1, -1, width)  # (S, R, 32 G), not a copy
    blocks = torch.empty(*stack.shape[:2], width // 2, dtype=torch.uint8, device=tensor.device)
    scales = torch.empty(*stack.shape[:2], width // BLOCK, dtype=torch.uint8, device=tensor.device)
    ask_for_large_pages(blocks)
    lost = torch.zeros(2, dtype=torch.float64, device=tensor.device)
    step = max(1, _CHUNK // width)
    for index, begin in product(range(len(stack)), range(0, stack.shape[1], step)):
        part = slice(begin, begin + step)
        rows = stack[index, part].to(wide).contiguous()
        bytes_, exponents = _pack_rows(rows.view(-1, BLOCK))
        blocks[index, part] = bytes_.view(-1, width // 2)
        scales[index, part] = exponents.view(-1, width // BLOCK)
        back = unpack(bytes_.view(len(rows), -1, BLOCK // 2), scales[index, part], wide)
        exact = rows.double()  # squares of float32 may not fit into it
        lost += torch.stack([(exact - back).square().sum(), exact.square().sum()])
    difference, whole = lost.tolist()
    if not math.isfinite(whole):
        raise InputError(
            f"{name} holds numbers that are not finite, which MXFP4 has none for. Repair it before packing."
        )
    error = math.sqrt(difference / whole) if whole else 0.0
    return Packed(blocks.view(*lead, width // BLOCK, BLOCK // 2), scales.view(*lead, width // BLOCK), error)


def _pack_rows(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Pack blocks (b, 32) to bytes (b, 16) and scales (b,)."""
    largest = rows.abs().amax(dim=1)  # (b,)
    # frexp: largest = m * 2^e with m from 0.5 to 1, so the power of two not above it is 2^(e - 1)
    exponent = torch.frexp(largest).exponent - 1 - 2
    exponent = torch.where(largest == 0, 0, exponent).clamp(-_BIAS, NAN_SCALE - 1 - _BIAS)
    scaled = torch.ldexp(rows, -exponent[:, None])  # (b, 32)
    magnitude = scaled.abs()
    edges = torch.tensor([edge for edge, _ in _BETWEEN], dtype=rows.dtype, device=rows.device)
    upward = torch.tensor([up for _, up in _BETWEEN], device=rows.device)
    edges = torch.where(upward, torch.nextafter(edges, torch.zeros_like(edges)), edges)
    codes = torch.bucketize(magnitude, edges, out_int32=True).to(torch.uint8)  # an edge belongs to the lower value
    codes |= torch.signbit(scaled).to(torch.uint8) << 3
    return codes[:, ::2] | (codes[:, 1::2] << 4), (exponent + _BIAS).to(torch.uint8)


def check_width(width: int, name: str) -> None:
    """Refuse rows that blocks of 32 do not fill.

    Raises:
        InputError: the width is not a multiple of 32.
    """
    if width < 1 or width % BLOCK:
        raise InputError(
            f"{name} has rows of {width} numbers, and MXFP4 needs a multiple of {BLOCK}. Leave it as it is (name its "
            "module in modules_to_not_convert), or use a model of another size."
        )


def check_packed(blocks: tuple[int, ...], scales: tuple[int, ...], name: str) -> None:
    """Refuse shapes of elements and scales that do not belong together.

    Raises:
        CheckpointError: naming the tensor and both shapes.
    """
    if blocks != (*scales, BLOCK // 2) or not scales:
        raise CheckpointError(
            f"{name}: blocks of shape {list(blocks)} and scales of shape {list(scales)} do not belong together: "
            f"{list(scales)} scales need blocks of {[*scales, BLOCK // 2]}. The checkpoint is damaged; get it again."
        )


def check_scales(scales: torch.Tensor, name: str) -> None:
    """Refuse the scale 255, which stands for NaN.

    Raises:
        CheckpointError: naming the tensor.
    """
    if scales.numel() and int(scales.max()) == NAN_SCALE:
        count = int((scales == NAN_SCALE).sum())
        raise CheckpointError(
            f"'{name}' holds the scale 255, which stands for NaN, {count} {'time' if count == 1 else 'times'}; 0 to "
            "254 are numbers. The checkpoint is damaged or was made from weights that were; get it again."
        )
