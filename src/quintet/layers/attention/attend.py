"""Attention, once for every family: append to the cache, then run the backend of this forward pass.

Letters: B rows, H query heads, G key/value heads (H is a multiple of G), T new tokens, K keys, D head size.
"""

from __future__ import annotations

import warnings
from functools import cache

import torch

from quintet.layers.attention.eager import Output
from quintet.layers.attention.native import native
from quintet.layers.attention.table import BACKENDS
from quintet.layers.masks import MaskSpec
from quintet.layers.step import Step

__all__ = ["attend", "cross_attend"]


def attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    step: Step,
    layer_idx: int,
    *,
    scale: float,
    dropout: float = 0.0,
    upcast: bool = False,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """Append new keys and values to the cache and attend over all of them.

    Args:
        q: (B, H, T, D) of the new tokens.
        k, v: (B, G, T, D) of the new tokens; query head h uses key/value head h * G // H.
        step: This forward pass; its mask counts the cached tokens.
        layer_idx: Which layer of the cache.
        scale: Factor of the scores.
        dropout: Probability with which a weight is dropped; 0 outside training.
        upcast: Compute the scores in float32.
        sinks: (H,) scores of a key without a value that every query sees, see `scores_to_output`; None for none.

    Returns:
        (B, T, H * D).

    Raises:
        ConfigError: the backend cannot do what is asked; the message names those that can.
    """
    if step.cache is not None:
        k, v = step.cache.update(k, v, layer_idx)
    out, weights = _run(q, k, v, step.masks[layer_idx], step, scale, dropout, upcast, sinks)
    if step.head_mask is not None:
        factor = step.head_mask[layer_idx].to(out.dtype)[None, :, None, None]  # (1, H, 1, 1)
        out = out * factor
        weights = None if weights is None else weights * factor
    if step.output_attentions and weights is not None:
        step.attentions.append(weights)
    return out.transpose(1, 2).flatten(2)  # (B, T, H * D)


def cross_attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    step: Step,
    *,
    scale: float,
    dropout: float = 0.0,
    upcast: bool = False,
) -> torch.Tensor:
    """Attend from (B, H, T, D) queries over the encoder's (B, H, S_enc, D) keys and values; returns (B, T, H * D)."""
    mask = step.encoder_mask or MaskSpec(q.shape[2], k.shape[2], causal=False)
    out, weights = _run(q, k, v, mask, step, scale, dropout, upcast)
    if step.output_attentions and weights is not None:
        step.cross_attentions.append(weights)
    return out.transpose(1, 2).flatten(2)  # (B, T, H * D)


def _run(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: MaskSpec,
    step: Step,
    scale: float,
    dropout: float,
    upcast: bool,
    sinks: torch.Tensor | None = None,
) -> Output:
    """Run the backend of this forward pass, or the one that can give what it asks for."""
    backend = step.backend
    if step.output_attentions or upcast:
        # Weights and float32 scores are what the fused kernels cannot give: eager computes the same numbers and can.
        if backend != "eager" and step.output_attentions and not torch.compiler.is_compiling():
            _warn_that_eager_steps_in()
        backend = "eager"
    run = native if backend == "native" else BACKENDS[backend]
    return run(q, k, v, mask, scale=scale, dropout=dropout, upcast=upcast, sinks=sinks)


@cache  # once for a process
def _warn_that_eager_steps_in() -> None:
    warnings.warn(
        "output_attentions=True: only the eager attention backend has the weights, so it computes this call; the "
        "numbers are the same, it takes more time and memory. model.set_attn_implementation('eager') chooses it for "
        "good.",
        UserWarning,
        stacklevel=2,
    )
