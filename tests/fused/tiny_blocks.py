"""Tiny models and batches for tests of the native step."""

from __future__ import annotations

from typing import Any

import torch

from quintet.auto import family_of
from quintet.quant.config import IntegerConfig

__all__ = ["FORMATS", "TOLERANCE", "batch", "model_of"]

FORMATS = {
    "plain": None,
    "int8": IntegerConfig(8),
    "int4": IntegerConfig(4, head_bits=8),
    "int4-zeros": IntegerConfig(4, symmetric=False),
}
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 4e-3}


def model_of(family: str, dtype: torch.dtype = torch.float32, form: str = "plain", **overrides: Any) -> Any:
    """A tiny causal model; gpt-oss with experts in MXFP4, as native code takes them."""
    record = family_of(family)
    torch.manual_seed(0)
    wide = {"intermediate_size": 64} if family in ("gpt_neox", "seed_oss") else {}
    model = record.classes["causal-lm"](record.tiny(**{**wide, **overrides})).eval()
    if family == "gpt_oss":
        model.quantize("mxfp4")
    if FORMATS[form] is not None:
        model.quantize(FORMATS[form])
    return model.to(dtype)


def batch(rows: int, length: int, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens, and a mask with rows that are padded on the left by different lengths."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.ones(rows, length, dtype=torch.long)
    for row in range(1, rows):
        mask[row, : row % 4] = 0
    return torch.randint(1, 90, (rows, length), generator=generator), mask
