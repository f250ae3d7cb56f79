"""Linear layers on a CPU without gradients: the same product, by the library that is fastest for its size and type.

A plain linear layer goes to MKL in float32, which computes `few rows x matrix` on one core and prompts at half the
speed of oneDNN, and in float16 to a loop that does not know vectors. What is used instead (`benchmarks/micro.py`,
`benchmarks/kernels.py`):

- weight (out, in) in memory: the native kernels of `kernels.linear`, where they are built; for few rows of any type,
  which read the weight at the speed of memory, and for many of bfloat16. What follows is for others and without them.
- float32, up to 4 rows, weight (out, in) in memory: one product per share of the outputs, as a batch, reads the weight
  with all cores at memory speed.
- float32 otherwise, in whatever order the weight is stored (it can stay in the mapped file), and bfloat16: oneDNN. A
  single row of many inputs in bfloat16 is given twice: oneDNN's way for two rows reads the weight 1.2 to 1.4 times as
  fast as the one for a single row.
- float16 from 4 rows on: convert a slice of the weight that fits a cache and multiply in float32.
- float16 below: torch's own, with the order in memory that `Conv1D.lay_out` gives.

oneDNN is 2.5 times as fast again in bfloat16 on weights packed in its own order; but a packed copy would go stale
unseen when somebody changes `weight.data`, as tools that merge adapters do, so weights are used as they stand.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import nn
from torch.nn import functional as F

from quintet.fused.notice import must_be_plain_and_say
from quintet.kernels.head import native_head_topk
from quintet.kernels.inference import must_be_plain
from quintet.kernels.linear import matmul_pays, native_matmul, native_matvec
from quintet.layers.conv1d import Conv1D
from quintet.swap import Twin

__all__ = ["LINEAR_TWINS", "CpuConv1D", "CpuLinear", "cpu_linear", "fits", "plain_product", "twin"]

# Up to so many rows the native kernel is the fastest; measured on 2 cores.
NATIVE_ROWS = {torch.float32: 8, torch.bfloat16: 8, torch.float16: 8}
# Up to here a batch of shares beats oneDNN; measured on 2 cores.
SHARE_ROWS = 4
# From so many inputs on a single bfloat16 row is given twice; at 1024 it made no difference.
PAIR_INPUTS = 1536
# From here on converting float16 weights costs less than multiplying in float16.
UPCAST_ROWS = 4
# Elements of a float16 weight converted at a time: 4 MiB of float32 stay in the last-level cache.
UPCAST_SLICE = 2**20

Linear = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]


@lru_cache
def shares(outputs: int, threads: int) -> int:
    """Return into how many equal parts to cut `outputs`: the smallest number from 2 * threads on, or 1 for none."""
    return next((c for c in range(2 * threads, 8 * threads + 64) if outputs % c == 0), 1)


@lru_cache
def onednn() -> Linear | None:
    """Return oneDNN's linear layer, or None where torch has none or it does not compute what it should.

    The op is the one that torch's compiler emits and not a documented function, so it is tried before it is trusted.
    """
    if not torch.backends.mkldnn.is_available():
        return None
    try:
        op = torch.ops.mkldnn._linear_pointwise

        def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
            out: torch.Tensor = op(x, weight, bias, "none", [], "")
            return out

        x, weight, bias = torch.arange(6.0).view(2, 3), torch.arange(12.0).view(3, 4).t(), torch.arange(4.0)
        with torch.no_grad():
            right = torch.equal(linear(x, weight, bias), x @ weight.t() + bias)
    except (AttributeError, RuntimeError, TypeError):
        return None
    return linear if right else None


def cpu_linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor | None:
    """Return `x @ weight.T + bias`, or None when the plain product should do it.

    Args:
        x: (..., in).
        weight: (out, in), in any order in memory.
        bias: (out,) or None.

    Returns:
        (..., out), or None: gradients are on, the device is not a CPU, autocast or a compiler is at work, or the plain
        product is as fast.
    """
    if must_be_plain_and_say() or x.device.type != "cpu" or x.dtype != weight.dtype:
        return None
    out = None
    if x.numel() // x.shape[-1] <= NATIVE_ROWS.get(x.dtype, 0):
        out = native_matvec(x, weight, bias)
    elif matmul_pays(x.dtype, x.shape[-1]):
        out = native_matmul(x, weight, bias)
    return plain_product(x, weight, bias) if out is None else out


def plain_product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor | None:
    """Return `x @ weight.T + bias` by what torch has, or None when `F.linear` should do it; as `cpu_linear`."""
    rows = x.numel() // x.shape[-1]
    if x.dtype == torch.float16 and rows >= UPCAST_ROWS:
        return _upcast(x, weight, bias)
    if x.dtype not in (torch.float32, torch.bfloat16) or rows == 0:
        return None
    few = rows <= SHARE_ROWS and x.dtype == torch.float32
    parts = shares(weight.shape[0], torch.get_num_threads()) if few else 1
    if parts > 1 and weight.is_contiguous() and torch.backends.mkl.is_available():
        return _by_shares(x, weight, bias, rows, parts)
    linear = onednn()
    if linear is None:
        return None
    if rows == 1 and x.dtype == torch.bfloat16 and weight.shape[1] >= PAIR_INPUTS and weight.is_contiguous():
        twice = x.reshape(1, -1).expand(2, -1)
        return linear(twice, weight, bias)[:1].reshape(*x.shape[:-1], weight.shape[0])
    return linear(x, weight, bias)


def _by_shares(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, rows: int, parts: int) -> torch.Tensor:
    outputs, inputs = weight.shape
    cut = weight.view(parts, outputs // parts, inputs)  # (out, in) -> (c, out / c, in)
    columns = x.reshape(rows, inputs).t().expand(parts, inputs, rows)  # (c, in, rows)
    if bias is None:
        out = torch.bmm(cut, columns)
    else:
        out = torch.baddbmm(bias.view(parts, outputs // parts, 1), cut, columns)
    # (c, out / c, rows) -> (out, rows) -> (rows, out)
    return out.view(outputs, rows).t().reshape(*x.shape[:-1], outputs)


def _upcast(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    outputs, inputs = weight.shape
    linear = onednn() or F.linear
    wide = x.float()
    out = x.new_empty((*x.shape[:-1], outputs))
    step = max(1, UPCAST_SLICE // inputs)
    for begin in range(0, outputs, step):
        part = slice(begin, begin + step)
        out[..., part] = linear(wide, weight[part].float(), None if bias is None else bias[part].float())
    return out


class CpuConv1D(Conv1D):
    """Conv1D that takes the fast way without gradients."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (..., nx) to (..., nf)."""
        out = cpu_linear(x, self.weight.t(), self.bias)
        return super().forward(x) if out is None else out


class CpuLinear(nn.Linear):
    """Linear that takes the fast way without gradients."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (..., in_features) to (..., out_features)."""
        out = cpu_linear(x, self.weight, self.bias)
        return super().forward(x) if out is None else out

    def best_outputs(self, x: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Return the k largest outputs in float32 and which they are, (..., k) each; None where `forward` has to."""
        if must_be_plain():
            return None
        found = native_head_topk(x, self.weight, k, bias=self.bias, log_sum=False)
        return None if found is None else found[:2]


def _conv1d(module: nn.Module) -> nn.Module | None:
    assert isinstance(module, Conv1D), "the table maps the type"
    if not fits(module.weight):
        return None
    module.weight.data = Conv1D.lay_out(module.weight.data)
    return twin(CpuConv1D, module)


def _linear(module: nn.Module) -> nn.Module | None:
    assert isinstance(module, nn.Linear), "the table maps the type"
    return twin(CpuLinear, module) if fits(module.weight) else None


def fits(weight: torch.Tensor) -> bool:
    """Whether there is anything to gain: the weight is on a CPU, in a type that is computed there."""
    return weight.device.type == "cpu" and weight.dtype in (torch.float32, torch.float16, torch.bfloat16)


def twin(kind: type[nn.Module], module: nn.Module) -> nn.Module:
    """Make a module of another class that *is* the old one: it shares parameters, hooks and training flag."""
    made = kind.__new__(kind)
    made.__dict__ = module.__dict__
    return made


LINEAR_TWINS: dict[type[nn.Module], Twin] = {Conv1D: _conv1d, nn.Linear: _linear}
