"""Shaping of next-token scores and choice of a token: pure functions, every setting a number or one value per row.

The processor classes wrap these for `generate`, and a batch of requests with different settings calls them directly.

Letters: B rows, V vocabulary, S tokens so far. A `PerRow` setting is a number, or a (B,) tensor with one value for
each row. Scores that are ruled out become -inf. Nothing is changed in place.
"""

from __future__ import annotations

import math

import torch

__all__ = [
    "PerRow",
    "greedy",
    "min_p",
    "repetition_penalty",
    "sample",
    "temperature",
    "top_k",
    "top_p",
]

PerRow = float | torch.Tensor

# Below this vocabulary a sort costs less than looking for columns that may be left out of it.
SMALL_VOCABULARY = 4096


def _column(value: PerRow, scores: torch.Tensor) -> PerRow:
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
    return scores / _column(value, scores)


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
    limit = 1 - _column(p, scores)
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
    out = probabilities < _column(p, scores) * probabilities.amax(dim=-1, keepdim=True)
    best = torch.topk(probabilities, min(keep, scores.shape[-1])).indices  # (B, keep)
    return scores.masked_fill(out.scatter_(1, best, False), fill)


def repetition_penalty(
    scores: torch.Tensor,
    input_ids: torch.Tensor,
    penalty: PerRow,
    *,
    ignore: int | torch.Tensor | None = None,
) -> torch.Tensor:
    """Make the tokens that occur in `input_ids` less likely: score * penalty below 0, score / penalty above (CTRL).

    Keskar et al. 2019, section 4.1. However often a token occurs, it is penalised once.

    Args:
        scores: (B, V).
        input_ids: (B, S) tokens so far.
        penalty: Above 1 repeats less, below 1 more.
        ignore: Number of leading tokens that do not count, such as padding; (B,) for one number per row.
    """
    vocabulary = scores.shape[-1]
    if isinstance(ignore, int):
        input_ids = input_ids[:, ignore:]
    # Ids without a score (an embedding larger than the head) and ignored places share one spare column at the end.
    places = input_ids.clamp(max=vocabulary)  # (B, S)
    if isinstance(ignore, torch.Tensor):
        position = torch.arange(input_ids.shape[1], device=input_ids.device)
        places = places.masked_fill(position < ignore.to(input_ids.device).reshape(-1, 1), vocabulary)
    padded = torch.nn.functional.pad(scores, (0, 1))  # (B, V + 1)
    found = padded.gather(1, places)  # (B, S)
    penalty = _column(penalty, scores)
    found = torch.where(found < 0, found * penalty, found / penalty)
    return padded.scatter(1, places, found)[:, :vocabulary]


def greedy(scores: torch.Tensor) -> torch.Tensor:
    """Return the token with the highest score of each row, (B,); -1 where no score is usable (NaN, or all -inf)."""
    best, tokens = scores.max(dim=-1)
    return torch.where(best > -math.inf, tokens, -1)


def sample(scores: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
    """Draw one token of each row with the probabilities softmax(scores).

    The exponential race: the smallest E_i / p_i with E_i exponential belongs to i with probability p_i. It is what
    `torch.multinomial` does for one draw, with the same random numbers, without its checks of the probabilities.

    Args:
        scores: (B, V).
        generator: Source of randomness; None for the global one of the device.

    Returns:
        (B,) tokens; -1 where the scores give no distribution (NaN, inf, or all -inf).
    """
    race = scores.softmax(dim=-1)  # (B, V)
    race /= torch.empty_like(race).exponential_(1, generator=generator)
    best, tokens = race.max(dim=-1)
    return torch.where(best > 0, tokens, -1)
