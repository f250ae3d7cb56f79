"""Warpers: temperature, and filters that leave the likelier tokens.

Letters: B rows, V vocabulary. A `PerRow` setting is a number, or a (B,) tensor with one value for each row. Scores
that are ruled out become `fill`. Nothing is changed in place.
"""

from __future__ import annotations

import math

import torch

__all__ = [
    "PerRow",
    "epsilon",
    "eta",
    "min_p",
    "temperature",
    "top_h",
    "top_k",
    "top_p",
    "typical",
]

PerRow = float | torch.Tensor

# Tokens that top_h looks at; more of them would cost more and change little.
TOP_H_TOKENS = 100

# Below this vocabulary a sort costs less than looking for columns that may be left out of it.
SMALL_VOCABULARY = 4096


def column(value: PerRow, scores: torch.Tensor) -> PerRow:
    """Return a (B,) setting as a (B, 1) column in the dtype of the scores; a number as it is."""
    if isinstance(value, torch.Tensor):
        return value.to(device=scores.device, dtype=scores.dtype).reshape(-1, 1)  # (B,) -> (B, 1)
    return value


def temperature(scores: torch.Tensor, value: PerRow) -> torch.Tensor:
    """Divide the scores by a temperature: below 1 sharpens the distribution, above 1 flattens it.

    Args:
        scores: (B, V).
        value: Above 0.
    """
    return scores / column(value, scores)


def top_k(scores: torch.Tensor, k: int | torch.Tensor, *, fill: float = -math.inf) -> torch.Tensor:
    """Keep the `k` best scores of each row, and those equal to the last of them.

    Args:
        scores: (B, V).
        k: Number of scores to keep; 0 keeps all; (B,) integers for one number per row.
        fill: What the others become.
    """
    vocabulary = scores.shape[-1]
    if isinstance(k, int):
        if k <= 0 or k >= vocabulary:
            return scores
        threshold = torch.topk(scores, k).values[:, -1:]  # (B, 1)
        return scores.masked_fill(scores < threshold, fill)
    k = k.to(device=scores.device, dtype=torch.long).reshape(-1, 1)  # (B, 1)
    widest = int(k.max())
    if widest <= 0:
        return scores
    best = torch.topk(scores, min(widest, vocabulary)).values  # (B, K), best first
    threshold = best.gather(1, (k - 1).clamp(0, best.shape[1] - 1))
    threshold = threshold.masked_fill((k <= 0) | (k >= vocabulary), -math.inf)
    return scores.masked_fill(scores < threshold, fill)


def top_p(scores: torch.Tensor, p: PerRow, *, fill: float = -math.inf, keep: int = 1) -> torch.Tensor:
    """Keep the smallest set of most likely tokens whose probabilities add up to `p` (Holtzman et al. 2020).

    Args:
        scores: (B, V).
        p: From 0 to 1; 1 keeps all.
        fill: What the others become.
        keep: Number of tokens that stay in any case.
    """
    live = _live_columns(scores)
    part = scores if live is None else scores[:, live]  # (B, U)
    ascending, order = torch.sort(part, dim=-1)
    below = ascending.softmax(dim=-1).cumsum(dim=-1)  # (B, U): a token's probability and that of all less likely ones
    limit = 1 - column(p, scores)
    out = below <= limit
    out[:, -keep:] = False
    out = torch.zeros_like(out).scatter_(1, order, out)  # from sorted order to token order
    if live is not None:
        out = torch.ones_like(scores, dtype=torch.bool).index_copy_(1, live, out)
    return scores.masked_fill(out, fill)


def _live_columns(scores: torch.Tensor) -> torch.Tensor | None:
    """Return the columns that some row has not ruled out, when leaving out the others makes a sort cheaper.

    After `top_k` a few dozen of 50,000 columns are left, and sorting all of them would cost more than the whole rest
    of the step. Looking would stall a GPU, where the sort is cheap.
    """
    if scores.device.type != "cpu" or scores.shape[-1] <= SMALL_VOCABULARY:
        return None
    columns = (scores != -math.inf).any(dim=0).nonzero().squeeze(1)  # (U,), in token order
    if columns.numel() == 0 or columns.numel() * 4 > scores.shape[-1]:
        return None
    return columns


def min_p(scores: torch.Tensor, p: PerRow, *, fill: float = -math.inf, keep: int = 1) -> torch.Tensor:
    """Keep the tokens that are at least `p` times as likely as the most likely one (Nguyen et al. 2024).

    Args:
        scores: (B, V).
        p: From 0 to 1; 0 keeps all.
        fill: What the others become.
        keep: Number of tokens that stay in any case.
    """
    probabilities = scores.softmax(dim=-1)  # (B, V)
    out = probabilities < column(p, scores) * probabilities.amax(dim=-1, keepdim=True)
    best = torch.topk(probabilities, min(keep, scores.shape[-1])).indices  # (B, keep)
    return scores.masked_fill(out.scatter_(1, best, False), fill)


def top_h(scores: torch.Tensor, h: PerRow, *, fill: float = -math.inf) -> torch.Tensor:
    """Keep the most likely tokens whose entropy adds up to at most `h` times that of all (Potraka et al. 2025).

    Only the best `TOP_H_TOKENS` are looked at, and their probabilities add up to 1, as in the reference.

    Args:
        scores: (B, V).
        h: Above 0 and at most 1.
        fill: What the others become.
    """
    best, order = torch.topk(scores, min(TOP_H_TOKENS, scores.shape[-1]))  # (B, K), best first
    # Computed as the reference does, rounding included: with h = 1 the last tokens stand exactly on the limit.
    logs = best - best.logsumexp(dim=-1, keepdim=True)
    probabilities = logs.softmax(dim=-1)
    entropy = -(logs.clamp(min=torch.finfo(logs.dtype).min) * probabilities).sum(dim=-1, keepdim=True)  # (B, 1)
    so_far = (-probabilities * probabilities.log()).cumsum(dim=-1)  # (B, K); NaN from the first ruled out token on
    stays = so_far <= entropy * column(h, scores)
    stays[:, 0] = True
    out = torch.ones_like(scores, dtype=torch.bool).scatter_(1, order, ~stays)
    return scores.masked_fill(out, fill)


def typical(scores: torch.Tensor, mass: PerRow, *, fill: float = -math.inf, keep: int = 1) -> torch.Tensor:
    """Keep the tokens that surprise as much as is to be expected, up to probability `mass` (Meister et al. 2022).

    Tokens are taken in the order of the distance between their surprise, -log p, and the entropy.

    Args:
        scores: (B, V).
        mass: Above 0 and below 1.
        fill: What the others become.
        keep: Number of tokens that stay in any case.
    """
    logs = scores.log_softmax(dim=-1)  # (B, V)
    entropy = -(logs * logs.exp()).nansum(dim=-1, keepdim=True)  # (B, 1); a ruled out token gives 0 * inf
    distance, order = torch.sort((-logs - entropy).abs(), dim=-1)
    covered = scores.gather(1, order).softmax(dim=-1).cumsum(dim=-1)  # (B, V), in that order
    last = (covered < column(mass, scores)).sum(dim=-1, keepdim=True).clamp(max=scores.shape[-1] - 1)  # (B, 1)
    out = distance > distance.gather(1, last)
    out[:, :keep] = False
    return scores.masked_fill(torch.zeros_like(out).scatter_(1, order, out), fill)


def epsilon(scores: torch.Tensor, cutoff: PerRow, *, fill: float = -math.inf, keep: int = 1) -> torch.Tensor:
    """Keep the tokens of at least probability `cutoff` (Hewitt et al. 2022, section 4.1).

    Args:
        scores: (B, V).
        cutoff: From 0 to 1.
        fill: What the others become.
        keep: Number of tokens that stay in any case, and those equal to the last of them.
    """
    return _below(scores, column(cutoff, scores), fill, keep)


def eta(scores: torch.Tensor, cutoff: PerRow, *, fill: float = -math.inf, keep: int = 1) -> torch.Tensor:
    """Keep the tokens of at least probability min(cutoff, sqrt(cutoff) * exp(-entropy)) (Hewitt et al. 2022, 4.2).

    Args:
        scores: (B, V).
        cutoff: From 0 to 1.
        fill: What the others become.
        keep: Number of tokens that stay in any case, and those equal to the last of them.
    """
    logs = scores - scores.logsumexp(dim=-1, keepdim=True)  # (B, V)
    entropy = -(logs.clamp(min=torch.finfo(logs.dtype).min) * logs.softmax(dim=-1)).sum(dim=-1, keepdim=True)  # (B, 1)
    limit = torch.as_tensor(column(cutoff, scores), dtype=scores.dtype, device=scores.device)
    return _below(scores, torch.minimum(limit, limit.sqrt() * (-entropy).exp()), fill, keep)


def _below(scores: torch.Tensor, limit: PerRow, fill: float, keep: int) -> torch.Tensor:
    """Rule out the tokens whose probability is below the limit, but never the best `keep`."""
    best = torch.topk(scores, min(keep, scores.shape[-1])).values[:, -1:]  # (B, 1)
    return scores.masked_fill((scores.softmax(dim=-1) < limit) & (scores < best), fill)
