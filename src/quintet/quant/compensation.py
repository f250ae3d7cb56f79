"""Rounding that makes up for its own errors: GPTQ, Frantar et al., https://arxiv.org/abs/2210.17323.

What counts is not the error of the weight W but that of its products with the inputs X that it meets, so with
H = X^T X the error tr((W - Q) H (W - Q)^T). The inputs' columns are rounded one after the other; what a column lost is
put into those that are not rounded yet, as far as they go together in H. That is the paper's algorithm with the scales
fixed before (weighted by the diagonal of H), the inputs that count most first, and many updates in one product.

Letters: G groups of an output, K columns of a panel.
"""

from __future__ import annotations

import torch

from quintet.errors import InputError
from quintet.quant.rounding import Grid, fit_grid

__all__ = ["round_compensating"]

# Share of the mean of the diagonal that is added to it: H of few or similar texts cannot be inverted otherwise.
DAMPING = 0.01
# Columns whose updates to the rest are gathered.
PANEL = 128


def round_compensating(
    weight: torch.Tensor,
    products: torch.Tensor,
    bits: int,
    group: int | None,
    symmetric: bool = True,
    *,
    name: str = "weight",
) -> dict[str, torch.Tensor]:
    """Round a weight so that its products with given inputs change least, and pack the result.

    Args:
        weight: (out, in) of a float type.
        products: (in, in) X^T X of the inputs, or a multiple; of float32.
        bits: 8 or 4.
        group: Inputs that share a scale; None for all of an output.
        symmetric: Without zero points.
        name: For errors.

    Returns:
        The tensors of a packed layer by name.

    Raises:
        InputError: The weight or the inputs are not finite.
    """
    importance = products.diagonal().clone()
    if not bool(torch.isfinite(importance).all()):
        raise InputError(
            f"{name} was given inputs that are not finite while calibrating. Calibrate in float32 or bfloat16, or name "
            "the module in modules_to_not_convert."
        )
    unused = importance == 0  # inputs that are always zero: what their columns become does not matter
    blind = bool(unused.all())
    grid = fit_grid(weight, bits, group, symmetric, importance=None if blind else importance, name=name)
    importance[unused] = 1
    order = importance.argsort(descending=True, stable=True)
    ordered = products[order][:, order]
    ordered.diagonal().copy_(importance[order])
    return grid.stored(_codes(weight.float().t()[order], grid, _factor(ordered), order))


def _factor(products: torch.Tensor) -> torch.Tensor:
    """Return U, (in, in) upper triangular, with U^T U the inverse of the products, whose diagonal it makes larger."""
    diagonal = products.diagonal()
    damping = DAMPING * float(diagonal.mean())
    while True:  # ends: a diagonal that is large enough makes any matrix definite
        diagonal += damping
        lower, failed = torch.linalg.cholesky_ex(products)
        if not int(failed):
            upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
            if not int(failed):
                return upper
        damping *= 4


def _codes(rest: torch.Tensor, grid: Grid, upper: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """Return the codes of a weight.

    Args:
        rest: (in, out), the weight's columns in the order of rounding; what columns lost is put into it.
        grid: Of the weight.
        upper: As `_factor` returns it, in the order of rounding.
        order: (in,) where each column is in the weight.

    Returns:
        (out, in), in the weight's order.
    """
    codes = torch.empty_like(rest)
    inputs = len(rest)
    scale = grid.scale.float().t().contiguous()  # (G, out)
    zero = grid.zeros().expand_as(grid.scale).t().contiguous()
    groups = (order // (inputs // len(scale))).tolist()
    for begin in range(0, inputs, PANEL):
        end = min(begin + PANEL, inputs)
        lost = torch.empty_like(rest[begin:end])  # (K, out)
        for column in range(begin, end):
            group = groups[column]
            code = torch.addcdiv(zero[group], rest[column], scale[group]).round_().clamp_(*grid.limits)
            codes[column] = code
            error = (rest[column] - (code - zero[group]) * scale[group]).div_(upper[column, column])
            lost[column - begin] = error
            rest[column + 1 : end].addr_(upper[column, column + 1 : end], error, alpha=-1)
        rest[end:].addmm_(upper[begin:end, end:].t(), lost, alpha=-1)
    return codes[order.argsort()].t().contiguous()
