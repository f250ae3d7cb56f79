"""Attention, once for every family: append to the cache, then one backend of a table with one signature.

Letters: B rows, H query heads, G key/value heads (H is a multiple of G), T new tokens, K keys, D head size.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch.amp import is_autocast_available
from torch.nn import functional as F

from quintet.errors import ConfigError, suggest
from quintet.layers.masks import MaskSpec
from quintet.layers.step import Step

__all__ = ["BACKENDS", "attend", "check_backend", "cross_attend", "scores_to_output"]

Output = tuple[torch.Tensor, torch.Tensor | None]
# (q, k, v, mask, scale, dropout, upcast, sinks) -> output (B, H, T, D), weights (B, H, T, K) or None
Backend = Callable[
    [torch.Tensor, torch.Tensor, torch.Tensor, MaskSpec, float, float, bool, torch.Tensor | None], Output
]


def eager(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: MaskSpec,
    scale: float,
    dropout: float,
    upcast: bool,
    sinks: torch.Tensor | None,
) -> Output:
    """Attention by its definition, softmax(q k^T * scale) v (Vaswani et al., arXiv 1706.03762), weights returned.

    `upcast` computes the scores in float32 (GPT-2's `reorder_and_upcast_attn`), and so does float16, in which a product
    that is not scaled yet soon passes the largest value, 65504.
    """
    if upcast or q.dtype == torch.float16:
        # Inside autocast a matmul would be 16-bit again; where there is no autocast (meta) there is nothing to leave.
        device = q.device.type
        with torch.autocast(device, enabled=False) if is_autocast_available(device) else nullcontext():
            scores = per_group(q.float() * scale, k.float().transpose(-1, -2))  # (B, H, T, K)
    else:
        scores = per_group(q, k.transpose(-1, -2)) * scale  # (B, H, T, K)
    return scores_to_output(scores, v, mask, dropout, sinks)


def per_group(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Multiply (B, H, T, X) by (B, G, X, Y), each group of H / G heads by its own, with nothing repeated."""
    rows, heads, tokens, size = x.shape
    groups = y.shape[1]
    if heads == groups:
        return torch.matmul(x, y)
    folded = x.reshape(rows, groups, heads // groups * tokens, size)  # (B, H, T, X) -> (B, G, H / G * T, X)
    return torch.matmul(folded, y).view(rows, heads, tokens, y.shape[-1])


def scores_to_output(
    scores: torch.Tensor, v: torch.Tensor, mask: MaskSpec, dropout: float, sinks: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mask, softmax and weigh: (B, H, T, K) scores and (B, G, K, D) values to (B, H, T, D) and the weights.

    `sinks` (H,) are the scores of one key more that every query sees and that has no value (Xiao et al., arXiv
    2309.17453; learned in gpt-oss): they take part in the softmax and are dropped from the weights.
    """
    # In float32 whatever the scores are in: a half-precision sum overflows, and a softmax loses the small weights.
    precise = torch.promote_types(scores.dtype, torch.float32)
    bias = mask.bias(scores.dtype, scores.device)
    if bias is not None:
        scores = scores.to(precise) + bias
    elif not mask.everything:
        # The least finite value, not -inf, and set rather than added: no overflow, no NaN.
        scores = scores.masked_fill(~mask.boolean(scores.device), torch.finfo(scores.dtype).min)
    if sinks is not None:
        column = sinks.to(scores.dtype).view(1, -1, 1, 1).expand(*scores.shape[:3], 1)  # (H,) -> (B, H, T, 1)
        scores = torch.cat([scores, column], dim=-1)  # (B, H, T, K + 1)
    weights = torch.softmax(scores, dim=-1, dtype=precise).to(v.dtype)
    if sinks is not None:
        weights = weights[..., :-1]
    return per_group(F.dropout(weights, dropout) if dropout else weights, v), weights


def sdpa(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: MaskSpec,
    scale: float,
    dropout: float,
    upcast: bool,
    sinks: torch.Tensor | None,
) -> Output:
    """Attention by torch's fused kernels; they never form the weights, so none are returned."""
    if sinks is not None:
        return eager(q, k, v, mask, scale, dropout, upcast, sinks)[0], None
    rows, heads, tokens, size = q.shape
    groups = k.shape[1]
    if heads != groups and tokens == 1:
        # One query for each head: the heads of a group are rows that see the same keys, (B, H, 1, D) -> (B, G, H/G, D).
        q = q.view(rows, groups, heads // groups, size)
    grouped = q.shape[1] != groups
    kwargs: dict[str, Any] = {"dropout_p": dropout, "scale": scale, "enable_gqa": grouped}
    if mask.square_causal and not mask.everything:
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, **kwargs)
    elif mask.everything:
        out = F.scaled_dot_product_attention(q, k, v, **kwargs)
    else:
        bias = mask.bias(q.dtype, q.device)
        rule = mask.boolean(q.device) if bias is None else bias  # (B or 1, H or 1, T, K)
        if q.shape[1] != heads and rule.shape[1] == heads:
            rule = rule.view(-1, groups, heads // groups, rule.shape[-1])  # (B or 1, H, 1, K) -> (B or 1, G, H/G, K)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=rule, **kwargs)
    return out.reshape(rows, heads, tokens, size), None


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
    sinks: torch.Tensor | None = None,
) -> Output:
    """Run the backend of this forward pass, or the one that can give what it asks for."""
    # Weights and float32 scores are what the fused kernels cannot give: eager computes the same numbers and can.
    backend = "eager" if step.output_attentions or upcast else step.backend
    return BACKENDS[backend](q, k, v, mask, scale, dropout, upcast, sinks)


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
