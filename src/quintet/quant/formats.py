"""Which formats the weights of a model, or the tensors of a file, are in; no number is read for it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from quintet.checkpoint.load import TensorSource
from quintet.quant.config import Quantization
from quintet.quant.foreign import TorchAoLinear, foreign_of
from quintet.quant.packed_experts import PackedExperts
from quintet.quant.packed_linear import PackedLinear
from quintet.quant.sources import ChangedSource

__all__ = ["fit_by_headers", "packed_formats", "stored_formats"]

# The last part of a tensor's name that tells its format, whatever stands before it.
_ENDINGS = {
    "_blocks": "mxfp4",
    "_scales": "mxfp4",
    ".weight_packed": "int4",
    ".weight_zero_point": "int4",
    ".weight_shape": "int4",
    ".SCB": "llm_int8",
    ".weight_format": "llm_int8",
}
_PLAIN = {"F64": "fp64", "F32": "fp32", "F16": "fp16", "BF16": "bf16"}


def packed_formats(model: nn.Module) -> list[str]:
    """Return the formats that weights of a model are packed in: experts first, then linear layers; often none."""
    found = []
    modules = list(model.modules())
    if any(isinstance(module, PackedExperts) for module in modules):
        found.append("mxfp4")
    found += [f"int{bits}" for bits in (8, 4) if any(isinstance(m, PackedLinear) and m.bits == bits for m in modules)]
    for module in foreign_of(model).values():
        name = "torchao" if isinstance(module, TorchAoLinear) else _bitsandbytes(module)
        if name not in found:
            found.append(name)
    return found


def _bitsandbytes(module: nn.Module) -> str:
    weight = getattr(module, "weight", None)
    return str(getattr(weight, "quant_type", "llm_int8"))


class _Headers(ChangedSource):
    """A checkpoint of which only names, types and shapes are read: every number is 0."""

    def __init__(self, inner: TensorSource) -> None:
        super().__init__(inner, (), ())

    def get(self, key: str) -> torch.Tensor:
        return torch.zeros((), dtype=self.dtype(key)).expand(self.shape(key))


def fit_by_headers(model: Any, source: TensorSource) -> None:
    """Give a model on the meta device the packed modules that a checkpoint has tensors for, as loading does.

    Args:
        model: Changed in place.
        source: The checkpoint; its numbers are not read.

    Raises:
        CheckpointError: Tensors that do not belong together.
        ConfigError: The format is another package's, which is not installed.
    """
    model._fit_to_checkpoint(
        _Headers(source),
        asked=Quantization(),
        rules=type(model).key_rules,
        dtype=model.dtype,
        device=torch.device("cpu"),
    )
    model.__dict__.pop("_finish_load", None)  # what would read the weights of another package's format


def stored_formats(tensors: Iterable[tuple[str, str, int]]) -> dict[str, int]:
    """Return the bytes in each format, scales included, from the headers of files.

    Args:
        tensors: Name, type as safetensors calls it, and bytes of each.
    """
    listed = list(tensors)
    names = {name for name, _, _ in listed}
    nested = {}  # by layer of bitsandbytes: its format
    for name in names:
        stem, mark, style = name.partition(".weight.quant_state.bitsandbytes__")
        if mark:
            nested[stem] = style
    found: dict[str, int] = {}
    for name, dtype, size in listed:
        style = _format(name, dtype, names, nested)
        found[style] = found.get(style, 0) + size
    return dict(sorted(found.items()))


def _format(name: str, dtype: str, names: set[str], nested: dict[str, str]) -> str:
    for ending, style in _ENDINGS.items():
        if name.endswith(ending) and (style != "mxfp4" or dtype == "U8"):
            return style
    layer = name.partition(".weight")[0]
    if layer in nested and name != f"{layer}.bias":
        return nested[layer]
    if name.endswith(".weight_scale"):
        return "int4" if f"{layer}.weight_packed" in names else "int8"
    if dtype == "I8":
        return "llm_int8" if f"{layer}.SCB" in names else "int8"
    return _PLAIN.get(dtype, dtype.lower())
