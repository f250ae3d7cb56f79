"""What computes a model on this machine: by kinds of modules, after `optimize()` or as it would be."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import nn

from quintet.fused.blocks import FusedBlocks, is_list_of
from quintet.fused.cpu_experts import CpuExperts
from quintet.fused.cpu_linear import NATIVE_ROWS, CpuConv1D, CpuLinear, onednn
from quintet.fused.cpu_norm import CpuRMSNorm
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
    counts: dict[tuple[str, str], int] = {}
    fused = False
    for module in model.modules():
        kind = _PLAIN.get(type(module), type(module)) if swapped else type(module)
        if isinstance(module, FusedBlocks) or (fusible and is_list_of(module, kinds)):
            entry = ("blocks", _blocks(module, dtype))
            counts[entry] = counts.get(entry, 0) + len(module)  # type: ignore[arg-type]
            fused = True
            continue
        found = _foreign(module) if id(module) in foreign else _entry(module, kind, dtype)
        if found is not None:
            counts[found] = counts.get(found, 0) + 1
    config = getattr(model, "config", None)
    if config is not None:
        counts[("attentions", _attention(config._attn_implementation, fused))] = config.num_hidden_layers
    return [Computed(what, number, how) for (what, how), number in counts.items()]


def _entry(module: nn.Module, kind: type[nn.Module], dtype: torch.dtype) -> tuple[str, str] | None:
    """The kind of a module for people and what computes it; None for one that holds nothing of interest."""
    if isinstance(module, PackedExperts):
        return "lists of experts in MXFP4", _packed_experts()
    if isinstance(module, PackedLinear):
        where = module.group is None or module.group % 32 == 0
        native = status().native and where
        how = f"native {status().level}" if native else "unpacked where they are used, torch"
        return f"linear layers in int{module.bits}", how
    if kind in (CpuLinear, CpuConv1D):
        return "linear layers", _linear(dtype)
    if kind is CpuExperts:
        return "lists of experts", f"weighted sums of rows for few tokens, then {_product(dtype)}"
    if kind is CpuRMSNorm:
        return "RMS norms", "torch, in place for many tokens"
    if kind in _PLAIN:
        names = {Experts: "lists of experts", RMSNorm: "RMS norms"}
        return names.get(kind, "linear layers"), "plain modules, torch"
    return None


def _foreign(module: nn.Module) -> tuple[str, str]:
    package = type(module).__module__.partition(".")[0]
    name = "bitsandbytes" if package == "bitsandbytes" else "torchao"
    return f"linear layers of {name}", name


def _blocks(module: nn.Module, dtype: torch.dtype) -> str:
    """What computes a decoding step; of a list that is not fused yet only the kinds of its modules are looked at."""
    known = module.fits(dtype) if isinstance(module, FusedBlocks) else not _holds_strangers(module)
    if not known:
        return "one by one: a module, or its tensors, are of a kind that native code does not know"
    return f"in one native call for steps of up to {FEW_ROWS} tokens, else one by one as below"


def _attention(backend: str, fused: bool) -> str:
    native = fused and backend == "sdpa"  # another one was asked for by name
    return f"native {status().level} where it is faster, else {backend}" if native else backend


def _holds_strangers(blocks: nn.Module) -> bool:
    return bool(foreign_of(blocks)) or any(isinstance(module, Experts) for module in blocks.modules())


def _linear(dtype: torch.dtype) -> str:
    rows = NATIVE_ROWS.get(dtype, 0) if status().native else 0
    return f"native {status().level} for up to {rows} rows, then {_product(dtype)}" if rows else _product(dtype)


def _product(dtype: torch.dtype) -> str:
    name = "oneDNN" if onednn() is not None else "torch"
    return f"{name} in float32, slice by slice" if dtype == torch.float16 else name


def _packed_experts() -> str:
    rows, level = packed_rows(), status().level
    if not rows:
        return "unpacked where they are used, torch"
    return f"native {level}" if rows > 2**30 else f"native {level} for up to {rows} tokens, then unpacked"
