"""Which formats the weights of a model, or the tensors of a file, are in."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from quintet.quant.foreign import TorchAoLinear, foreign_of
from quintet.quant.packed_experts import PackedExperts
from quintet.quant.packed_linear import PackedLinear

__all__ = ["packed_formats", "stored_formats"]

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
