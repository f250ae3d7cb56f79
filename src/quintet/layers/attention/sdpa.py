"""Attention by torch's fused kernels.

Letters: B rows, H query heads, G key/value heads, R = H / G heads of a group, T new tokens, K keys, D head size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F

from quintet.layers.attention.eager import Output, eager
from quintet.layers.attention.rules import additive, fold_queries, fold_rule, window_pieces
from quintet.layers.attention.sinks import lse_kernels, with_sinks
from quintet.layers.masks import MaskSpec

__all__ = ["sdpa"]

# Up to so many new tokens the heads of a group are folded into rows of one head, so that a key is read once for all of
# them. Measured (one core, 32 heads over 8 of 64, 2,048 keys, bfloat16): 0.42 ms against 5.5 ms for 1 token, 0.64
# against 1.28 for 2, 1.18 against 2.11 for 5, 3.4 against 4.0 for 16, the same for 128 (float32: much the same).
FOLD = 16

# On a CPU: largest float32 copy of keys and values at a time, in bytes. Measured (one core, 16 heads of 64, 4,096 keys)
# 1.7, 1.5, 1.7 and 16 ms with 1, 2, 4 and 16 MiB: large pieces are new pages at every call. With 256 keys 4 is best.
COPY = 4 << 20


def sdpa(
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
    """Attention by torch's fused kernels; they never form the weights, so none are returned."""
    if sinks is not None and _needs_weights(q, mask, dropout):
        return eager(q, k, v, mask, scale=scale, dropout=dropout, upcast=upcast, sinks=sinks)[0], None
    pieces = window_pieces(mask)
    if not pieces:
        return _attend(q, k, v, mask, scale, dropout, sinks), None
    parts = [
        _attend(q[:, :, start:end], k[:, :, low:high], v[:, :, low:high], rule, scale, dropout, sinks)
        for start, end, low, high, rule in pieces
    ]
    return torch.cat(parts, dim=2), None  # (B, H, T, D)


def _needs_weights(q: torch.Tensor, mask: MaskSpec, dropout: float) -> bool:
    """Whether sinks are beyond the kernels, or a decoding step without one would copy all keys to append one."""
    if dropout or (mask.given is not None and mask.given.requires_grad):
        return True
    masked = not (mask.everything or mask.square_causal)
    return q.shape[2] <= FOLD and lse_kernels(q, masked=masked) is None


def _attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: MaskSpec,
    scale: float,
    dropout: float,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """Arrange heads, rule and dtype as the kernels like them, run one, and put the heads back: (B, H, T, D)."""
    rows, heads, tokens, size = q.shape
    groups = k.shape[1]
    folded = heads != groups and tokens <= FOLD
    causal = mask.square_causal and not mask.everything and not (folded and tokens > 1)
    dtype = q.dtype
    widened = _is_slow(q, rows_of_a_head=tokens * (heads // groups if folded else 1))
    compute = torch.float32 if widened else dtype
    rule = None if causal or mask.everything else additive(mask, compute, q.device)
    sink = None if sinks is None else sinks.view(1, heads, 1)  # (1, H, 1)
    if folded:
        q = fold_queries(q, groups)  # (B, G, R * T, D)
        rule = None if rule is None else fold_rule(rule, heads, groups, tokens)
        # (1, H, 1) -> (1, G, R * T)
        sink = None if sink is None else sink.expand(1, heads, tokens).reshape(1, groups, -1)
    if widened:
        out = _in_float32(q, k, v, rule, sink, causal=causal, dropout=dropout, scale=scale).to(dtype)
    else:
        out = _kernel(q, k, v, rule, sink, causal=causal, dropout=dropout, scale=scale)
    return out.reshape(rows, heads, tokens, size)


def _is_slow(q: torch.Tensor, rows_of_a_head: int) -> bool:
    """Whether float32 copies of keys and values are quicker than the kernel for this dtype.

    Measured on a CPU (one core with AVX-512 and its bf16 dot product, 16 heads of 64, 512 keys): the kernel takes
    0.65 ms in bfloat16 and 1.03 ms in float16 for one query, 0.14 and 0.16 ms through float32, the copies included;
    in float16 a prompt too (128 queries: 7.9 against 3.2 ms). For two rows or more bfloat16 is quick itself.
    """
    if q.device.type != "cpu":
        return False
    return q.dtype == torch.float16 or (q.dtype == torch.bfloat16 and rows_of_a_head == 1)


def _in_float32(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    rule: torch.Tensor | None,
    sink: torch.Tensor | None,
    **options: Any,
) -> torch.Tensor:
    """Run the kernel in float32, over so few groups at a time that the copies stay small: (B, G or H, ..., D)."""
    groups = k.shape[1]
    if torch.compiler.is_compiling():  # a number of turns that depends on the length is a program for each length
        return _kernel(q.float(), k.float(), v.float(), rule, sink, **options)
    each = 4 * (k[:, :1].numel() + v[:, :1].numel())
    count = max(1, COPY // max(1, each))
    repeated = q.shape[1] // groups
    parts = []
    for start in range(0, groups, count):
        few, heads = slice(start, start + count), slice(start * repeated, (start + count) * repeated)
        parts.append(
            _kernel(
                q[:, heads].float(),
                k[:, few].float(),
                v[:, few].float(),
                rule if rule is None or rule.shape[1] == 1 else rule[:, heads],
                None if sink is None else sink[:, heads],
                **options,
            )
        )
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def _kernel(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    rule: torch.Tensor | None,
    sink: torch.Tensor | None,
    *,
    causal: bool,
    dropout: float,
    scale: float,
) -> torch.Tensor:
    """One fused call where the kernel shares keys among the heads of a group, else one for each head of the groups."""
    heads, groups = q.shape[1], k.shape[1]
    if heads != groups and not _shares_keys(q, rule, dropout):
        repeated = heads // groups
        each = [
            _kernel(
                q[:, member::repeated],  # (B, G, T, D): the member-th head of each group
                k,
                v,
                rule if rule is None or rule.shape[1] == 1 else rule[:, member::repeated],
                None if sink is None else sink[:, member::repeated],
                causal=causal,
                dropout=dropout,
                scale=scale,
            )
            for member in range(repeated)
        ]
        return torch.stack(each, dim=2).flatten(1, 2)  # (B, G, R, T, D) -> (B, H, T, D)
    if sink is not None:
        return with_sinks(q, k, v, rule, sink, causal=causal, scale=scale)
    grouped: dict[str, bool] = {"enable_gqa": True} if heads != groups else {}  # torch 2.4 has no such argument
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=rule, dropout_p=dropout, is_causal=causal, scale=scale, **grouped
    )


def _shares_keys(q: torch.Tensor, rule: torch.Tensor | None, dropout: float) -> bool:
    """Whether the kernel reads the keys of a group in place; otherwise torch repeats them for every head."""
    if q.device.type == "cuda":  # only its flash kernel does, which takes no mask and no float32
        return rule is None and q.dtype in (torch.float16, torch.bfloat16) and _TORCH >= (2, 5)
    # The CPU's flash kernel does, which takes no dropout and no mask that learns.
    return _TORCH >= (2, 9) and not dropout and not (rule is not None and rule.requires_grad)


_TORCH = tuple(int(part) for part in torch.__version__.split(".")[:2])
