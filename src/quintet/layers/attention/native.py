"""Attention by the native kernel, where it takes the call and is the fastest; otherwise by torch's.

Nobody asks for it by name: the twin of a list of blocks (`fused/blocks.py`) has it take the place of `sdpa`.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from quintet.kernels.attention import native_attention, pays
from quintet.kernels.inference import must_be_plain
from quintet.layers.attention.eager import Output
from quintet.layers.attention.sdpa import sdpa
from quintet.layers.masks import MaskSpec
from quintet.layers.step import Step

__all__ = ["native", "with_native"]


def with_native(step: Step) -> Step:
    """Return a step with native attention in the place of torch's, where nobody asked for another and it may be."""
    if step.backend != "sdpa" or must_be_plain():  # autocast chooses the types that torch's attention computes in
        return step
    return replace(step, backend="native")


def native(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: MaskSpec,
    *,
    scale: float,
    dropout: float,
    upcast: bool,
    sinks: torch.Tensor | None,
) -> Output:
    """Attention without gradients, dropout and masks of the caller; `sdpa` does what is left. No weights."""
    if not dropout and not torch.is_grad_enabled() and not torch.compiler.is_compiling() and pays(q, k):
        out = _attend(q, k, v, mask, scale, sinks)
        if out is not None:
            return out, None
    return sdpa(q, k, v, mask, scale=scale, dropout=dropout, upcast=upcast, sinks=sinks)


def _attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: MaskSpec, scale: float, sinks: torch.Tensor | None
) -> torch.Tensor | None:
    """The kernel's result, or None for rules that it does not know."""
    if mask.given is not None or not isinstance(mask.past, int) or not isinstance(mask.offset, int):
        return None
    if mask.causal and mask.past - mask.offset + mask.queries != mask.keys:
        return None  # keys behind those of the queries
    padding = None
    if mask.padding is not None:
        padding = mask.once(("real keys", q.device), lambda: mask.real_keys(q.device))  # (B, K)
    return native_attention(q, k, v, scale, mask.causal, mask.window, padding, sinks)
