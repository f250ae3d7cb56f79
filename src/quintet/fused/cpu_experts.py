"""Experts on a CPU without gradients: the same sums, their products by the way that is fastest for size and type.

An expert's weights are stored (in, out), and stay as they are, in the mapped file too. A row times such a matrix is a
weighted sum of its rows, which is what torch's embedding bag computes: near the memory's speed in every type, twice as
fast as oneDNN's product in 16 bits (one row, 2880 by 2880 and 5760, two cores). For more rows oneDNN is faster.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from quintet.fused.cpu_linear import LINEAR_TWINS, cpu_linear, fits, twin
from quintet.fused.cpu_norm import rms_norm
from quintet.kernels.inference import must_be_plain
from quintet.layers.experts import Experts, clamped_swiglu
from quintet.layers.norm import RMSNorm
from quintet.swap import SwapReport, swap

__all__ = ["CpuExperts", "bag_product", "use_cpu_twins"]

# Up to so many rows the weighted sum is the fastest; float16 has no other product that is not slow.
BAG_ROWS = {torch.float32: 1, torch.bfloat16: 3, torch.float16: 8}
# A row is summed in so many parts at most, one for each thread: each part is rounded to the type once.
MOST_PARTS = 8


def bag_product(x: torch.Tensor, stored: torch.Tensor) -> torch.Tensor | None:
    """Return `x @ stored` as weighted sums of the rows of `stored`, or None when another way is faster or needed.

    Args:
        x: (n, in).
        stored: (in, out), contiguous.

    Returns:
        (n, out), or None: gradients are on, there are many rows, or a compiler, autocast or another device is at work.
    """
    if must_be_plain():
        return None
    rows, inputs = x.shape
    fast = x.device.type == "cpu" and x.dtype == stored.dtype and 0 < rows <= BAG_ROWS.get(x.dtype, 0)
    if not fast or not stored.is_contiguous():
        return None
    parts = min(max(1, torch.get_num_threads() // rows), MOST_PARTS, inputs)
    step = -(-inputs // parts)
    begins = torch.arange(0, inputs, step)  # (parts,), the last part perhaps shorter
    index = torch.arange(inputs).repeat(rows)  # (n * in,)
    offsets = (torch.arange(0, rows * inputs, inputs)[:, None] + begins).view(-1)  # (n * parts,)
    sums = F.embedding_bag(index, stored, offsets, mode="sum", per_sample_weights=x.reshape(-1))
    if len(begins) == 1:
        return sums
    return sums.view(rows, len(begins), -1).float().sum(1).to(x.dtype)  # (n * parts, out) -> (n, out)


def _product(x: torch.Tensor, stored: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Return `x @ stored + bias`, (n, out), by the fastest way."""
    said = bag_product(x, stored)
    if said is not None:
        return said + bias
    out = cpu_linear(x, stored.t(), bias)
    return x @ stored + bias if out is None else out


class CpuExperts(Experts):
    """Experts that take the fast way without gradients."""

    def compute(self, x: torch.Tensor, *parts: torch.Tensor) -> torch.Tensor:
        """Return what one expert says to (n, D) tokens."""
        gate_up, gate_up_bias, down, down_bias = parts
        inner = clamped_swiglu(_product(x, gate_up, gate_up_bias), self.alpha, self.limit)  # (n, F)
        return _product(inner, down, down_bias)  # (n, D)


def _experts(module: nn.Module) -> nn.Module | None:
    assert isinstance(module, Experts), "the table maps the type"
    return twin(CpuExperts, module) if fits(module.gate_up_proj) else None


def use_cpu_twins(model: nn.Module) -> SwapReport:
    """Swap the linear layers, norms and experts that are on a CPU for their twins; elsewhere nothing changes."""
    return swap(model, {**LINEAR_TWINS, Experts: _experts, RMSNorm: rms_norm})
