"""GPT-1 and GPT-2's linear layer, whose weight is stored (in, out)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from quintet.pages import copy_in_large_pages

__all__ = ["Conv1D", "columns_of_heads"]


class Conv1D(nn.Module):
    """`y = x @ weight + bias` with `weight` of shape (nx, nf), the layout of the published checkpoints.

    Args:
        nf: Output features.
        nx: Input features.
    """

    def __init__(self, nf: int, nx: int) -> None:
        super().__init__()
        self.nf = nf
        self.nx = nx
        self.weight = nn.Parameter(torch.empty(nx, nf))
        self.bias = nn.Parameter(torch.zeros(nf))
        if self.weight.device.type != "meta":
            nn.init.normal_(self.weight, std=0.02)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (..., nx) to (..., nf)."""
        return nn.functional.linear(x, self.weight.t(), self.bias)

    @staticmethod
    def lay_out(tensor: torch.Tensor) -> torch.Tensor:
        """Return the tensor in the memory order that products of a few rows are fastest with; the loader calls it.

        In half precision on a CPU that is each output's weights side by side, (out, in): 1.3 times as fast as (in, out)
        in bfloat16, 10 times in float16 (`benchmarks/micro.py`). Anything else stays as it is stored, in the mapped
        file. Shape and values stay.
        """
        if tensor.dim() == 2 and tensor.device.type == "cpu" and tensor.dtype in (torch.bfloat16, torch.float16):
            return copy_in_large_pages(tensor.t()).t()
        return tensor

    def select(self, index: torch.Tensor, dim: int) -> None:
        """Keep the inputs (`dim` 0) or outputs (`dim` 1) at `index`, in place."""
        index = index.to(self.weight.device)
        self.weight = nn.Parameter(self.weight.detach().index_select(dim, index), self.weight.requires_grad)
        if dim == 1:
            self.bias = nn.Parameter(self.bias.detach().index_select(0, index), self.bias.requires_grad)
        self.nx, self.nf = self.weight.shape

    def extra_repr(self) -> str:
        """Sizes, for print(model)."""
        return f"nf={self.nf}, nx={self.nx}"


def columns_of_heads(num_heads: int, head_dim: int, heads: Iterable[int]) -> torch.Tensor:
    """Return which of the (num_heads * head_dim) columns belong to `heads`, for `Conv1D.select`, (kept * head_dim,)."""
    return torch.arange(num_heads * head_dim).view(num_heads, head_dim)[list(heads)].reshape(-1)
