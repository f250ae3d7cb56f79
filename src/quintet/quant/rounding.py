"""How numbers of a weight become whole numbers of 8 or 4 bits: the scale of each group, then the rounding.

With 4 bits the largest number of a group need not decide its scale: clipping it a little leaves the others with a finer
grid. A few scales are tried, and the one with the least squared error counts. For whole numbers c (the zero point taken
off) the best scale is s = <w, c> / <c, c>, and the error that it leaves is <w, w> - <w, c>^2 / <c, c>; so the largest
<w, c>^2 / <c, c> wins, and c is rounded once more with its s. With 8 bits there is nothing to gain.

Letters: G groups of an output, n inputs in each.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from quintet.errors import CheckpointError, InputError
from quintet.kernels.packing import pack_int4, pack_zero_point
from quintet.pages import ask_for_large_pages

__all__ = ["Grid", "check_scales", "fit_grid", "round_weight"]

# What the first guess of a scale is multiplied with. Symmetric codes go from -8 to 7, so that a negative factor changes
# which end of the group is clipped.
FACTORS = (1.0, 0.94, 0.88, 0.82)
TURNED = (-1.12, -1.04, -0.94)
# Numbers worked on at once: they and what is made of them stay in the cache.
TILE = 1 << 18


@dataclass(frozen=True)
class Grid:
    """The numbers that each group of a weight can have: (code - zero) * scale.

    Args:
        bits: 8 or 4.
        scale: (out, G), in the type that it is stored in.
        zero: (out, G) of float32; None where it is the same for all.
    """

    bits: int
    scale: torch.Tensor
    zero: torch.Tensor | None = None

    @property
    def limits(self) -> tuple[int, int]:
        """The lowest and the highest code."""
        return (-127, 127) if self.bits == 8 else (0, 15)

    def zeros(self) -> torch.Tensor:
        """(out, G), or a number for all, of float32."""
        return torch.tensor(0.0 if self.bits == 8 else 8.0) if self.zero is None else self.zero

    def codes(self, weight: torch.Tensor) -> torch.Tensor:
        """Return the nearest codes, (out, in) of one byte each, of an (out, in) weight."""
        zero = self.zeros()[..., None]
        found = torch.empty(weight.shape, dtype=torch.int8 if self.bits == 8 else torch.uint8, device=weight.device)
        ask_for_large_pages(found)
        for begin, end in _rows(weight):
            values = weight[begin:end].float().unflatten(-1, (self.scale.shape[1], -1))  # (rows, in) -> (rows, G, n)
            own = zero if self.zero is None else zero[begin:end]
            whole = (values / self.scale[begin:end].float()[..., None] + own).round().clamp(*self.limits)
            found[begin:end] = whole.flatten(-2)  # (rows, G, n) -> (rows, in)
        return found

    def values(self, codes: torch.Tensor) -> torch.Tensor:
        """Return the numbers, (out, in) of float32, that codes stand for."""
        whole = codes.unflatten(-1, (self.scale.shape[1], -1)) - self.zeros()[..., None]  # (out, G, n)
        return (whole * self.scale.float()[..., None]).flatten(-2)

    def stored(self, codes: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the tensors of a packed layer by name."""
        if self.bits == 8:
            return {"weight": codes.to(torch.int8), "weight_scale": self.scale}
        packed = {
            "weight_packed": pack_int4(codes.to(torch.uint8)),
            "weight_scale": self.scale,
            "weight_shape": torch.tensor(codes.shape),
        }
        return packed if self.zero is None else {**packed, "weight_zero_point": pack_zero_point(self.zero)}


def round_weight(
    weight: torch.Tensor,
    bits: int,
    group: int | None,
    symmetric: bool = True,
    *,
    importance: torch.Tensor | None = None,
    name: str = "weight",
) -> dict[str, torch.Tensor]:
    """Round each number of a weight to the nearest that its group has, and pack the result.

    Args:
        weight: (out, in) of a float type.
        bits: 8 or 4.
        group: Inputs that share a scale; None for all of an output.
        symmetric: Without zero points.
        importance: As `fit_grid`.
        name: For errors.

    Returns:
        The tensors of a packed layer by name.

    Raises:
        InputError: As `fit_grid`.
    """
    grid = fit_grid(weight, bits, group, symmetric, importance=importance, name=name)
    return grid.stored(grid.codes(weight))


def fit_grid(
    weight: torch.Tensor,
    bits: int,
    group: int | None,
    symmetric: bool = True,
    *,
    importance: torch.Tensor | None = None,
    name: str = "weight",
) -> Grid:
    """Find the scale of each group, and its zero point.

    Args:
        weight: (out, in) of a float type; the scales are stored in it.
        bits: 8 or 4.
        group: Inputs that share a scale; None for all of an output.
        symmetric: Without zero points.
        importance: (in,) how much the squared error of each input counts; None for all alike.
        name: For errors.

    Raises:
        InputError: numbers that are not finite, or too large for the type of the scales.
    """
    size = weight.shape[1] if group is None else group
    weights = None if importance is None else importance.float().view(-1, size)  # (in,) -> (G, n)
    scales, zeros = [], []
    for begin, end in _rows(weight):
        values = weight[begin:end].float().unflatten(-1, (-1, size))  # (rows, in) -> (rows, G, n)
        if bits == 8:
            scale = values.abs().amax(dim=-1) / 127
        else:
            scale, zero = _search(values, symmetric, weights)
            zeros.append(zero)
        scales.append(scale.to(weight.dtype))
    scale = torch.cat(scales)
    if not bool(torch.isfinite(scale).all()):
        raise InputError(
            f"{name} has numbers that are not finite (or too large for scales in {weight.dtype}), and they cannot be "
            "packed. Get the checkpoint again, or name the module in modules_to_not_convert."
        )
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)  # of a group of zeros: nothing is divided by zero
    return Grid(bits, scale, None if symmetric or bits == 8 else torch.cat(zeros))


def _rows(weight: torch.Tensor) -> Iterator[tuple[int, int]]:
    step = max(1, TILE // max(1, weight.shape[1]))
    for begin in range(0, len(weight), step):
        yield begin, min(begin + step, len(weight))


def _search(values: torch.Tensor, symmetric: bool, weights: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the best of a few scales of groups of 4 bits, and their zero points: both (rows, G)."""
    high, low = values.amax(dim=-1), values.amin(dim=-1)
    if symmetric:
        first = torch.where(high > -low, high, low) / -8
        zero = torch.full_like(first, 8)
    else:
        high, low = high.clamp(min=0), low.clamp(max=0)
        first = (high - low) / 15
        zero = (-low / torch.where(first == 0, 1, first)).round_().clamp_(0, 15)
    safe = torch.where(first == 0, 1, first)
    best, gain = first, torch.full_like(first, -1)
    for factor in FACTORS + TURNED if symmetric else FACTORS:
        codes = (values / (safe * factor)[..., None]).add_(zero[..., None]).round_().clamp_(0, 15).sub_(zero[..., None])
        counted = codes if weights is None else codes * weights
        along = (values * counted).sum(dim=-1)
        across = (codes * counted).sum(dim=-1)
        found = torch.where(across == 0, 0, along * along / across)
        better = found > gain
        gain = torch.where(better, found, gain)
        best = torch.where(better & (along != 0), along / across, best)
    return torch.where(torch.isfinite(first), best, first), zero


def check_scales(scales: torch.Tensor, name: str) -> None:
    """Check the scales of a file: one that is no number would spread over everything behind it.

    Raises:
        CheckpointError: Some are infinite or not a number.
    """
    if not bool(torch.isfinite(scales).all()):
        raise CheckpointError(f"'{name}' has scales that are not finite. The file is damaged; get it again.")
