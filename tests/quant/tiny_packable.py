"""Tiny models that can be packed in every format, and what packed tensors stand for."""

from __future__ import annotations

from typing import Any

import torch

from quintet.auto import family_of
from quintet.kernels.packing import dequantize_int4, dequantize_int8

__all__ = ["logits", "model_of", "numbers"]


def model_of(family: str, **overrides: Any) -> Any:
    """A tiny causal model, always with the same weights, in sizes that groups of 32 divide."""
    record = family_of(family)
    torch.manual_seed(0)
    wide = {"intermediate_size": 64} if family in ("gpt_neox", "seed_oss") else {}
    return record.classes["causal-lm"](record.tiny(**{**wide, **overrides})).eval()


def logits(model: Any, ids: torch.Tensor | None = None) -> torch.Tensor:
    """Logits without gradients, of two rows of tokens unless others are given."""
    with torch.no_grad():
        found: torch.Tensor = model(torch.arange(12).view(2, 6) * 5 % 90 if ids is None else ids).logits
    return found


def numbers(packed: dict[str, torch.Tensor], dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """What the packed tensors of a linear layer stand for."""
    if "weight" in packed:
        return dequantize_int8(packed["weight"], packed["weight_scale"], dtype)
    zero = packed.get("weight_zero_point")
    return dequantize_int4(packed["weight_packed"], packed["weight_scale"], zero, dtype)
