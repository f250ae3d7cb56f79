"""Linear layers for a few rows on a CPU: a decoding step reads every weight once, so it should read at memory speed.

MKL computes float32 `matrix x few rows` on one core. The same product as a batch of `c` products, each with its share
of the outputs, uses all cores and is two to three times as fast (`benchmarks/micro.py`). Half precision has no such
gap: there the order in memory decides, see `Conv1D.lay_out`.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import nn

from quintet.layers.conv1d import Conv1D
from quintet.swap import SwapReport, swap

__all__ = ["FewRowsConv1D", "FewRowsLinear", "few_rows_linear", "use_few_rows"]

# With more rows than this the plain product, which reuses each weight, is as fast.
MAX_ROWS = 16
# Up to here it pays to multiply weight x rows, beyond it rows x weight.
WEIGHT_FIRST = 4


@lru_cache
def shares(outputs: int, threads: int) -> int:
    """Return into how many equal parts to cut `outputs`: the smallest number from 2 * threads on, or 1 for none."""
    return next((c for c in range(2 * threads, 8 * threads + 64) if outputs % c == 0), 1)


def few_rows_linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor | None:
    """Return `x @ weight.T + bias` for few rows, or None when the plain product should do it.

    Args:
        x: (..., in), at most MAX_ROWS rows.
        weight: (out, in), contiguous in memory.
        bias: (out,) or None.

    Returns:
        (..., out), or None.
    """
    inputs, outputs = x.shape[-1], weight.shape[0]
    rows = x.numel() // inputs
    if rows > MAX_ROWS or torch.is_grad_enabled() or torch.compiler.is_compiling() or x.dtype != torch.float32:
        return None
    parts = shares(outputs, torch.get_num_threads())
    if parts == 1 or x.device.type != "cpu" or not weight.is_contiguous() or torch.is_autocast_enabled("cpu"):
        return None
    flat = x.reshape(rows, inputs)
    cut = weight.view(parts, outputs // parts, inputs)  # (out, in) -> (c, out / c, in)
    if rows <= WEIGHT_FIRST:
        columns = flat.t().expand(parts, inputs, rows)  # (c, in, rows)
        if bias is None:
            out = torch.bmm(cut, columns)
        else:
            out = torch.baddbmm(bias.view(parts, outputs // parts, 1), cut, columns)
        out = out.view(outputs, rows).t()  # (c, out / c, rows) -> (out, rows) -> (rows, out)
    else:
        out = torch.bmm(flat.expand(parts, rows, inputs), cut.transpose(1, 2))  # (c, rows, out / c)
        out = out.transpose(0, 1).reshape(rows, outputs)
        out = out if bias is None else out.add_(bias)
    return out.reshape(*x.shape[:-1], outputs)


class FewRowsConv1D(Conv1D):
    """Conv1D that takes the fast way for few rows without gradients."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (..., nx) to (..., nf)."""
        out = few_rows_linear(x, self.weight.t(), self.bias)
        return super().forward(x) if out is None else out


class FewRowsLinear(nn.Linear):
    """Linear that takes the fast way for few rows without gradients."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (..., in_features) to (..., out_features)."""
        out = few_rows_linear(x, self.weight, self.bias)
        return super().forward(x) if out is None else out


def _conv1d(module: nn.Module) -> nn.Module | None:
    assert isinstance(module, Conv1D), "the table maps the type"
    if not _fits(module.weight):
        return None
    module.weight.data = Conv1D.lay_out(module.weight.data)
    return _twin(FewRowsConv1D, module)


def _linear(module: nn.Module) -> nn.Module | None:
    assert isinstance(module, nn.Linear), "the table maps the type"
    return _twin(FewRowsLinear, module) if _fits(module.weight) else None


def _fits(weight: torch.Tensor) -> bool:
    return weight.dtype == torch.float32 and weight.device.type == "cpu"


def _twin(kind: type[nn.Module], module: nn.Module) -> nn.Module:
    """Make a module of another class that *is* the old one: it shares parameters, hooks and training flag."""
    twin = kind.__new__(kind)
    twin.__dict__ = module.__dict__
    return twin


def use_few_rows(model: nn.Module) -> SwapReport:
    """Swap the linear layers of a float32 model on a CPU for these twins; elsewhere nothing changes."""
    if not torch.backends.mkl.is_available():  # measured against MKL; other libraries use their threads themselves
        return SwapReport()
    return swap(model, {Conv1D: _conv1d, nn.Linear: _linear})
