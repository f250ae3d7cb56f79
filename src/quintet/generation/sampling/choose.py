"""The choice of a token: the best one, or one drawn at random.

Letters: B rows, V vocabulary.
"""

from __future__ import annotations

import math

import torch

__all__ = ["greedy", "sample"]


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
