"""Attention by its definition: the reference of the other backends, and the one that has the weights.

Letters: B rows, H query heads, G key/value heads (H is a multiple of G), T new tokens, K keys, D head size.
"""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch.amp import is_autocast_available
from torch.nn import functional as F

from quintet.layers.masks import MaskSpec

__all__ = ["Output", "eager", "scores_to_output"]

Output = tuple[torch.Tensor, torch.Tensor | None]


def eager(
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
    """Attention by its definition, softmax(q k^T * scale) v (Vaswani et al., arXiv 1706.03762), weights returned.

    `upcast` computes the scores in float32 (GPT-2's `reorder_and_upcast_attn`), and so does float16, in which a product
    that is not scaled yet soon passes the largest value, 65504.
    """
    if upcast or q.dtype == torch.float16:
        # Inside autocast a matmul would be 16-bit again; where there is no autocast (meta) there is nothing to leave.
        device = q.device.type
        with torch.autocast(device, enabled=False) if is_autocast_available(device) else nullcontext():
            scores = _per_group(q.float() * scale, k.float().transpose(-1, -2))  # (B, H, T, K)
    else:
        scores = _per_group(q, k.transpose(-1, -2)) * scale  # (B, H, T, K)
    return scores_to_output(scores, v, mask, dropout, sinks)


def _per_group(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
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
    return _per_group(F.dropout(weights, dropout) if dropout else weights, v), weights
