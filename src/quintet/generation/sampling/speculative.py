"""The choice of a token when a draft of it is there: algorithm 1 of Leviathan et al. 2023 (arXiv 2211.17192).

A draft x, drawn from q, is kept with probability min(1, p(x) / q(x)), and otherwise replaced by a token drawn from
the rest, max(0, p - q) scaled to 1. What comes out is distributed as p, whatever q is.

Letters: V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

__all__ = ["mixture", "speculate"]


def speculate(
    scores: torch.Tensor,
    draft: torch.Tensor,
    token: int,
    draw: Callable[[torch.Tensor], torch.Tensor],
    weight: float | None = None,
) -> torch.Tensor:
    """Return the token that a draft becomes, (1,); -1 where the scores give no distribution.

    Args:
        scores: (1, V) of the model, p = softmax(scores).
        draft: (1, V) that the draft was drawn from, q = softmax(draft).
        token: The draft x.
        draw: Draws a token of each row of scores.
        weight: w to verify against w * p + (1 - w) * q instead of p, which keeps more drafts and is not p's
            distribution any more (arXiv 2604.07622); None for p.
    """
    wanted, offered = scores.softmax(dim=-1), draft.softmax(dim=-1)
    chance = wanted[:, token] / offered[:, token]  # (1,)
    if weight is not None:
        chance = 1 - weight + weight * chance
    chance = chance.clamp(max=1)
    coin = draw(torch.stack([chance, 1 - chance], dim=-1).log())  # (1,): 0 is "keep"
    if int(coin) == 0:
        return torch.full_like(coin, token)
    rest = (wanted - offered).clamp(min=0)
    # Rounding can leave nothing when p and q are equal; p itself is then the same.
    return draw(torch.where(rest.sum() > 0, rest.log(), scores))


def mixture(scores: torch.Tensor, draft: torch.Tensor, weight: float) -> torch.Tensor:
    """Return the scores of w * p + (1 - w) * q, which greedy decoding may verify against.

    Args:
        scores: (1, V) of the model.
        draft: (1, V) that the draft was chosen from.
        weight: w.
    """
    return (weight * scores.softmax(dim=-1) + (1 - weight) * draft.softmax(dim=-1)).log()
