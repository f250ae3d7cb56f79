"""Attention, once for every family: append to the cache, then one backend of a table with one signature.

Letters: B rows, H heads, T new tokens, S all tokens, D head size.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch.amp import is_autocast_available
from torch.nn import functional as F

from quintet.errors import ConfigError, suggest
from quintet.layers.masks import MaskSpec
from quintet.layers.step import Step

__all__ = ["BACKENDS", "attend", "check_backend", "cross_attend", "scores_to_output"]

# (q, k, v, mask, scale, dropout, upcast) -> output (B, H, T, D), weights (B, H, T, S) or None
Backend = Callable[
    [torch.Tensor, torch.Tensor, torch.Tensor, MaskSpec, float, float, bool], tuple[torch.Tensor, torch.Tensor | None]
]


def eager(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: MaskSpec, scale: float, dropout: float, upcast: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Attention by its definition, softmax(q k^T * scale) v (Vaswani et al., arXiv 1706.03762), weights returned.

    `upcast` computes the scores in float32 (GPT-2's `reorder_and_upcast_attn`).
    """
    if upcast:
        # Inside autocast a matmul would be 16-bit again; where there is no autocast (meta) there is nothing to leave.
        device = q.device.type
        with torch.autocast(device, enabled=False) if is_autocast_available(device) else nullcontext():
            scores = torch.matmul(q.float() * scale, k.float().transpose(-1, -2))  # (B, H, T, S)
    else:
        scores = torch.matmul(q, k.transpose(-1, -2)) * scale  # (B, H, T, S)
    return scores_to_output(scores, v, mask, dropout)


def scores_to_output(
    scores: torch.Tensor, v: torch.Tensor, mask: MaskSpec, dropout: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mask, softmax and weigh: (B, H, T, S) scores and (B, H, S, D) values to (B, H, T, D) and the weights."""
    # In float32 whatever the scores are in: a half-precision sum overflows, and a softmax loses the small weights.
    precise = torch.promote_types(scores.dtype, torch.float32)
    bias = mask.bias(scores.dtype, scores.device)
    if bias is not None:
        scores = scores.to(precise) + bias
    elif not mask.everything:
        # The least finite value, not -inf, and set rather than added: no overflow, no NaN.
        scores = scores.masked_fill(~mask.boolean(scores.device), torch.finfo(scores.dtype).min)
    weights = torch.softmax(scores, dim=-1, dtype=precise).to(v.dtype)
    out = torch.matmul(F.dropout(weights, dropout) if dropout else weights, v)
    return out, weights


def sdpa(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: MaskSpec, scale: float, dropout: float, upcast: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Attention by torch's fused kernels; they never form the weights, so none are returned."""
    if mask.everything:
        out = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, scale=scale)
    elif mask.square_causal:
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=dropout, scale=scale)
    else:
        bias = mask.bias(q.dtype, q.device)
        attn_mask = mask.boolean(q.device) if bias is None else bias
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask, dropout_p=dropout, scale=scale)
    return out, None


BACKENDS: dict[str, Backend] = {"eager": eager, "sdpa": sdpa}


def check_backend(name: str) -> str:
    """Return `name` if it is a backend.

    Raises:
        ConfigError: it is not; the message lists them.
    """
    if name not in BACKENDS:
        hint = suggest(str(name), BACKENDS)
        raise ConfigError(f"unknown attn_implementation {name!r}; there are {', '.join(BACKENDS)}.{hint}")
    return name


def _run(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: MaskSpec,
    step: Step,
    scale: float,
    dropout: float,
    upcast: bool,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Run the backend of this forward pass, or the one that can give what it asks for."""
    # Weights and float32 scores are what the fused kernels cannot give: eager computes the same numbers and can.
    backend = "eager" if step.output_attentions or upcast else step.backend
    return BACKENDS[backend](q, k, v, mask, scale, dropout, upcast)


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
) -> torch.Tensor:
    """Append new keys and values to the cache and attend over all of them.

    Args:
        q, k, v: (B, H, T, D) of the new tokens.
        step: This forward pass; its mask counts the cached tokens.
        layer_idx: Which layer of the cache.
        scale: Factor of the scores.
        dropout: Probability with which a weight is dropped; 0 outside training.
        upcast: Compute the scores in float32.

    Returns:
        (B, T, H * D).
    """
    if step.cache is not None:
        k, v = step.cache.update(k, v, layer_idx)
    out, weights = _run(q, k, v, step.mask, step, scale, dropout, upcast)
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
