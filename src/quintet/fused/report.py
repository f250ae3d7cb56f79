"""What computes a model on this machine: by kinds of modules, after `optimize()` or as it would be."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import nn

from quintet.fused.blocks import ROWS_BY_INPUT, FusedBlocks, is_list_of
from quintet.fused.cpu_experts import CpuExperts
from quintet.fused.cpu_linear import NATIVE_ROWS, UPCAST_ROWS, CpuConv1D, CpuLinear, onednn
from quintet.fused.cpu_norm import CpuRMSNorm
from quintet.kernels.integers import takes_groups
from quintet.kernels.linear import TYPES, matmul_pays
from quintet.kernels.loader import FEW_ROWS, library, packed_rows, status
from quintet.layers.conv1d import Conv1D
from quintet.layers.experts import Experts
from quintet.layers.norm import RMSNorm
from quintet.quant.foreign import foreign_of
from quintet.quant.packed_experts import PackedExperts
from quintet.quant.packed_linear import PackedLinear
from quintet.swap import SwapReport

__all__ = ["Computed", "OptimizeReport", "computed_by"]


@dataclass(frozen=True)
class Computed:
    """What computes the modules of one kind.

    Args:
        what: The kind.
        modules: How many there are.
        how: What computes them.
    """

    what: str
    modules: int
    how: str


@dataclass
class OptimizeReport(SwapReport):
    """What `optimize()` did; `print` it to see what computes the model.

    Args:
        model: The model, which `computed` describes as it is when asked.
    """

    model: nn.Module | None = field(default=None, repr=False, compare=False)

    @property
    def computed(self) -> list[Computed]:
        """What computes each kind of modules, those that were swapped before among them."""
        if self.model is None:
            return []
        return computed_by(self.model, next(p.dtype for p in self.model.parameters() if p.is_floating_point()))

    def describe(self) -> str:
        """Return a line for each kind of modules."""
        found = self.computed
        width = max((len(one.what) for one in found), default=0)
        lines = [f"{one.what:<{width}} {one.modules:>5}  {one.how}" for one in found]
        lines.append(f"{len(self.replaced)} modules swapped by this call; with gradients plain modules compute")
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.describe()


# Plain modules, and the twins that take their place on a CPU.
_PLAIN: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: CpuLinear,
    Conv1D: CpuConv1D,
    Experts: CpuExperts,
    RMSNorm: CpuRMSNorm,
}
_NAMES: dict[str, type[nn.Module] | tuple[type[nn.Module], ...]] = {
    "linear layers": (nn.Linear, Conv1D),
    "lists of experts": Experts,
    "RMS norms": RMSNorm,
}
_UNPACKED = "unpacked where they are used, torch"


def computed_by(model: nn.Module, dtype: torch.dtype, *, swapped: bool = False) -> list[Computed]:
    """Return what computes a model, kind by kind.

    Args:
        model: A model, on the meta device too.
        dtype: Type of its activations.
        swapped: As it would be on this machine's CPU after `optimize()`, whatever device the model is on now.
    """
    kinds = tuple(getattr(model, "_no_split_modules", ()))
    fusible = swapped and getattr(model, "block_map", None) is not None and library() is not None
    foreign = {id(module) for module in foreign_of(model).values()}
    # twins compute as plain modules in other types and on other devices
    fast = dtype in TYPES and (swapped or all(p.device.type == "cpu" for p in model.parameters()))
    counts: dict[tuple[str, str], int] = {}
    fused = False
    for module in model.modules():
        kind = _PLAIN.get(type(module), type(module)) if swapped else type(module)
        if isinstance(module, FusedBlocks) or (fusible and is_list_of(module, kinds)):
            entry = ("blocks", _blocks(module, dtype))
            counts[entry] = counts.get(entry, 0) + len(module)  # type: ignore[arg-type]
            fused = True
            continue
        found = _foreign(module) if id(module) in foreign else _entry(module, kind, dtype, fast)
        if found is not None:
            counts[found] = counts.get(found, 0) + 1
    config = getattr(model, "config", None)
    if config is not None:
        counts[("attentions", _attention(config._attn_implementation, fused and fast))] = config.num_hidden_layers
    return [Computed(what, number, how) for (what, how), number in counts.items()]


def _entry(module: nn.Module, kind: type[nn.Module], dtype: torch.dtype, fast: bool) -> tuple[str, str] | None:
    """The kind of a module for people and what computes it; None for one that holds nothing of interest."""
    if isinstance(module, PackedExperts):
        return "lists of experts in MXFP4", _packed_experts() if fast else _UNPACKED
    if isinstance(module, PackedLinear):
        groups = 1 if module.group is None else module.in_features // module.group
        native = status().native and fast and takes_groups(module.bits, module.in_features, groups)
        return f"linear layers in int{module.bits}", f"native {status().level}" if native else _UNPACKED
    if kind not in _PLAIN and kind not in _PLAIN.values():
        return None
    what = next(name for name, kinds in _NAMES.items() if issubclass(kind, kinds))
    if kind in _PLAIN or not fast:
        return what, "plain modules, torch"
    if kind is CpuExperts:
        return what, f"weighted sums of rows for few tokens, then {_product(dtype)}"
    if kind is CpuRMSNorm:
        return what, f"native {status().level}" if status().native else "torch, in place for many tokens"
    if _is_by_input(module, dtype):
        return f"{what} stored (in, out)", _linear(dtype, native=False)
    if matmul_pays(dtype, 2):  # an odd number of inputs is too rare to be told
        return what, f"native {status().level}"
    return what, _linear(dtype, native=status().native)


def _foreign(module: nn.Module) -> tuple[str, str]:
    package = type(module).__module__.partition(".")[0]
    name = "bitsandbytes" if package == "bitsandbytes" else "torchao"
    return f"linear layers of {name}", name


def _blocks(module: nn.Module, dtype: torch.dtype) -> str:
    """What computes a step; of a list that is not fused yet only the kinds of its modules are looked at."""
    if isinstance(module, FusedBlocks):
        most = module.most_tokens(dtype)
    elif dtype not in TYPES or _holds_strangers(module):
        most = 0
    elif any(_is_by_input(one, dtype) for one in module.modules()):
        most = ROWS_BY_INPUT
    else:
        most = None if matmul_pays(dtype, 2) else FEW_ROWS
    if most == 0:
        return "one by one: a module, or its tensors, are of a kind that native code does not know"
    return f"in one native call{'' if most is None else f' for steps of up to {most} tokens'}, else one by one as below"


def _is_by_input(module: nn.Module, dtype: torch.dtype) -> bool:
    """Whether a weight is and stays (in, out) in memory, which native code reads within a step only.

    In 16 bits `optimize()` turns such weights, by `Conv1D.lay_out`.
    """
    stays = isinstance(module, CpuConv1D) or (isinstance(module, Conv1D) and dtype == torch.float32)
    return stays and module.weight.stride(1) == 1  # type: ignore[operator]


def _attention(backend: str, fused: bool) -> str:
    native = fused and backend == "sdpa"  # another one was asked for by name
    return f"native {status().level} where it is faster, else {backend}" if native else backend


def _holds_strangers(blocks: nn.Module) -> bool:
    return bool(foreign_of(blocks)) or any(isinstance(module, Experts) for module in blocks.modules())


def _linear(dtype: torch.dtype, *, native: bool) -> str:
    if native:
        return f"native {status().level} for up to {NATIVE_ROWS[dtype]} rows, then {_product(dtype)}"
    few = f"torch for up to {UPCAST_ROWS - 1} rows, then " if dtype == torch.float16 else ""
    return f"{few}{_product(dtype)}"


def _product(dtype: torch.dtype) -> str:
    name = "oneDNN" if onednn() is not None else "torch"
    return f"{name} in float32, slice by slice" if dtype == torch.float16 else name


def _packed_experts() -> str:
    rows, level = packed_rows(), status().level
    if not rows:
        return _UNPACKED
    return f"native {level}" if rows > 2**30 else f"native {level} for up to {rows} tokens, then unpacked"
