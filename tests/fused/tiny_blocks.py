"""Tiny models, batches and runs for tests of the native step."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
import torch

from quintet.auto import family_of
from quintet.kernels.linear import matmul_pays
from quintet.kernels.loader import FEW_ROWS, library
from quintet.quant.config import IntegerConfig

__all__ = ["FORMATS", "TOLERANCE", "batch", "check_level", "decode", "decode_whole", "model_of", "reads"]

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


def reads(dtype: torch.dtype, tokens: int) -> bool:
    """Whether native code reads so many tokens at once."""
    return tokens > FEW_ROWS and matmul_pays(dtype, 2)


def batch(rows: int, length: int, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens, and a mask with rows that are padded on the left by different lengths."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.ones(rows, length, dtype=torch.long)
    for row in range(1, rows):
        mask[row, : row % 4] = 0
    return torch.randint(1, 90, (rows, length), generator=generator), mask


def decode(
    model: Any, ids: torch.Tensor, mask: torch.Tensor | None, prompt: int, each: int = 1, cache: Any = None
) -> torch.Tensor:
    """Logits of the tokens behind the prompt, `each` at a time, over a cache: the model makes it unless it is given."""
    parts = []
    with torch.no_grad():
        for begin in (0, *range(prompt, ids.shape[1], each)):
            end = min(begin + each, ids.shape[1]) if begin else prompt
            told = None if mask is None else mask[:, :end]
            out = model(ids[:, begin:end], attention_mask=told, past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            parts.append(out.logits)
    return torch.cat(parts[1:], 1)


def decode_whole(
    model: Any, ids: torch.Tensor, mask: torch.Tensor | None, prompt: int, cache: Any = None, best: int | None = None
) -> list[Any]:
    """What native steps give for the tokens behind the prompt, one at a time; see `decode`."""
    found = []
    with torch.no_grad():
        told = None if mask is None else mask[:, :prompt]
        cache = model(ids[:, :prompt], attention_mask=told, past_key_values=cache, use_cache=True).past_key_values
        for place in range(prompt, ids.shape[1]):
            told = None if mask is None else mask[:, : place + 1]
            found.append(model.native_step(ids[:, place : place + 1], cache, told, best))
    return found


LEVEL_CHECK = """
import sys
import torch
sys.path.insert(0, {folder!r})
from tiny_blocks import TOLERANCE, batch, decode, decode_whole, model_of
from quintet import cache
from quintet.auto import model_types
from quintet.kernels.loader import status
assert status().level == {level!r}, status()
kind = getattr(cache, {cache!r})
for family in model_types():
    for dtype, tolerance in TOLERANCE.items():
        for form in {forms!r}:
            model = model_of(family, dtype, form)
            ids, mask = batch(2, 9)
            want = decode(model, ids, mask, 5, cache=kind(config=model.config)).float()
            model.optimize()
            got = decode(model, ids, mask, 5, cache=kind(config=model.config)).float()
            assert (got - want).abs().max() <= tolerance * want.abs().max(), (family, dtype, form)
            steps = decode_whole(model, ids, mask, 5, cache=kind(config=model.config))
            got = torch.stack([one.scores for one in steps], 1).float()
            assert (got - want).abs().max() <= tolerance * want.abs().max(), (family, dtype, form, "whole")
print("same")
"""


def check_level(level: str, forms: tuple[str, ...] = ("plain",), cache: str = "DynamicCache") -> None:
    """Compare steps with the modules in a process of its own, by the kernels of one set of instructions."""
    native = library()
    assert native is not None
    if native.quintet_has(level.encode()) != 1:
        pytest.skip(f"this CPU has no {level}")
    code = LEVEL_CHECK.format(folder=os.path.dirname(__file__), level=level, forms=forms, cache=cache)
    env = {**os.environ, "QUINTET_ISA": level, "QUINTET_NATIVE": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0 and done.stdout.strip() == "same", done.stderr[-2000:]
