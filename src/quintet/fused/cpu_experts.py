"""Experts on a CPU without gradients: the same sums, their products by the way that is fastest for size and type."""

from __future__ import annotations

import torch
from torch import nn

from quintet.fused.cpu_linear import LINEAR_TWINS, cpu_linear, fits, twin
from quintet.layers.experts import Experts, clamped_swiglu
from quintet.swap import SwapReport, swap

__all__ = ["CpuExperts", "use_cpu_twins"]


class CpuExperts(Experts):
    """Experts that take the fast way without gradients."""

    def compute(self, x: torch.Tensor, *parts: torch.Tensor) -> torch.Tensor:
        """Return what one expert says to (n, D) tokens."""
        gate_up, gate_up_bias, down, down_bias = parts
        both = cpu_linear(x, gate_up.t(), gate_up_bias)  # (n, 2F)
        if both is None:
            return super().compute(x, *parts)
        inner = clamped_swiglu(both, self.alpha, self.limit)  # (n, F)
        out = cpu_linear(inner, down.t(), down_bias)  # (n, D)
        return inner @ down + down_bias if out is None else out


def _experts(module: nn.Module) -> nn.Module | None:
    assert isinstance(module, Experts), "the table maps the type"
    if not fits(module.gate_up_proj):
        return None
    for weight in (module.gate_up_proj, module.down_proj):
        weight.data = Experts.lay_out(weight.data)
    return twin(CpuExperts, module)


def use_cpu_twins(model: nn.Module) -> SwapReport:
    """Swap the linear layers and experts that are on a CPU for their twins; elsewhere nothing changes."""
    return swap(model, {**LINEAR_TWINS, Experts: _experts})
