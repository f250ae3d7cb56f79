"""What the fused kernels need from a mask: tensors made once per forward pass, and windows cut into blocks.

Letters: B rows, H query heads, G key/value heads, R = H / G heads of a group, T new tokens, K keys, D head size.
"""

from __future__ import annotations

import torch

from quintet.layers.masks import MaskSpec

__all__ = ["Piece", "additive", "fold_queries", "fold_rule", "window_pieces"]

# Queries from, to; keys from, to; the rule among them.
Piece = tuple[int, int, int, int, MaskSpec]

# Fewest queries of a piece, and most pieces of a prompt. Measured (one core, 16 heads of 64, window 128): a prompt of
# 2,048 takes 196 ms over the whole mask, 109 ms as plain causal, 22, 25, 30, 39 ms in pieces of 32, 64, 128, 256.
BLOCK = 64
MOST_PIECES = 64


def additive(mask: MaskSpec, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Return the rule as numbers to add to the scores, broadcastable to (B, H, T, K): the caller's, or 0 and -inf.

    Kernels turn a bool mask into this in every layer; here it is made once for all layers of a kind.
    """
    bias = mask.bias(dtype, device)
    if bias is not None:
        return bias

    def make() -> torch.Tensor:
        rule = mask.boolean(device)
        return torch.zeros(rule.shape, dtype=dtype, device=device).masked_fill_(~rule, -torch.inf)

    return mask.once(("additive", dtype, device), make)


def window_pieces(mask: MaskSpec) -> list[Piece]:
    """Cut a prompt through a window into blocks of queries with the keys that they can see; [] when it does not pay.

    A query sees at most `window` keys, so a block of n queries needs window + n of them, not all, and the mask of the
    whole prompt, T x K, is never made.
    """
    window, keys, queries = mask.window, mask.keys, mask.queries
    if window is None or mask.given is not None or not mask.causal or torch.compiler.is_compiling():
        return []
    if queries <= BLOCK or keys <= window + 2 * BLOCK or not isinstance(mask.past, int):
        return []
    assert isinstance(mask.offset, int), "past and offset are both numbers or both tensors"
    past, offset, padding = mask.past, mask.offset, mask.padding

    def make() -> list[Piece]:
        block, pieces = max(BLOCK, -(-queries // MOST_PIECES)), []
        for start in range(0, queries, block):
            end = min(start + block, queries)
            low = max(0, past + start - window + 1 - offset)  # the first key that the first query sees
            high = past + end - offset  # one after the last query's own
            rule = MaskSpec(end - start, high - low, past + start, offset + low, window=window, padding=padding)
            pieces.append((start, end, low, high, rule))
        return pieces

    return mask.once(("pieces",), make)


def fold_queries(q: torch.Tensor, groups: int) -> torch.Tensor:
    """Make the heads of a group rows of one head, which see the same keys: (B, H, T, D) -> (B, G, R * T, D)."""
    rows, heads, tokens, size = q.shape
    return q.reshape(rows, groups, heads // groups * tokens, size)  # a view for T = 1


def fold_rule(rule: torch.Tensor, heads: int, groups: int, tokens: int) -> torch.Tensor:
    """Fold a rule (B or 1, H or 1, T or 1, K) as `fold_queries` folds queries, to (B or 1, G or 1, R * T or 1, K)."""
    if rule.shape[1] == rule.shape[2] == 1:
        return rule
    rule = rule.expand(-1, -1, tokens, -1)  # (B or 1, H or 1, T, K)
    repeated = heads // groups
    if rule.shape[1] == 1:
        return rule[:, :, None].expand(-1, -1, repeated, -1, -1).flatten(2, 3)  # (B or 1, 1, R * T, K)
    return rule.reshape(rule.shape[0], groups, repeated * tokens, rule.shape[-1])  # (B or 1, G, R * T, K)
