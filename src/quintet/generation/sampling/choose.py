"""The choice of a token: the best one, or one drawn at random.

Letters: B rows, V vocabulary.
"""

from __future__ import annotations

import math

import torch

__all__ = ["greedy", "race", "sample"]


def greedy(scores: torch.Tensor) -> torch.Tensor:
    """Return the token with the highest score of each row, (B,); -1 where no score is usable (NaN, or all -inf)."""
    best, tokens = scores.max(dim=-1)
    return torch.where(best > -math.inf, tokens, -1)


def race(scores: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Return the winner of an exponential race in each row: it is token i with probability softmax(scores)[i].

    The smallest E_i / p_i with E_i exponential belongs to i with probability p_i.

    Args:
        scores: (B, V).
        noise: (B or 1, V) numbers above 0, drawn from the exponential distribution.

    Returns:
        (B,) tokens; -1 where the scores give no distribution (NaN, inf, or all -inf).
    """
    best, tokens = scores.softmax(dim=-1).div_(noise).max(dim=-1)
    return torch.where(best > 0, tokens, -1)


def sample(scores: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
    """Draw one token of each row with the probabilities softmax(scores).

    It is what `torch.multinomial` does for one draw, with the same random numbers, without its checks of the
    probabilities.

    Args:
        scores: (B, V).
        generator: Source of randomness; None for the global one of the device.

    Returns:
        (B,) tokens; -1 where the scores give no distribution (NaN, inf, or all -inf).
    """
    return race(scores, torch.empty_like(scores).exponential_(1, generator=generator))
