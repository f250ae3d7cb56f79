"""Penalties: scores changed by the tokens so far, by the length, or by a second model's opinion.

Letters: B rows, V vocabulary, S tokens so far, P tokens of a text that they are compared with, N tokens of an n-gram.
A `PerRow` setting is a number, or a (B,) tensor with one value for each row. Nothing is changed in place.
"""

from __future__ import annotations

import math

import torch

from quintet.generation.sampling.warp import PerRow, column

__all__ = [
    "decay_length",
    "guide",
    "hamming_diversity",
    "no_repeat_ngram",
    "remove_invalid",
    "repetition_penalty",
]


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
    penalty = column(penalty, scores)
    found = torch.where(found < 0, found * penalty, found / penalty)
    return padded.scatter(1, places, found)[:, :vocabulary]


def no_repeat_ngram(
    scores: torch.Tensor, input_ids: torch.Tensor, size: int, source: torch.Tensor | None = None
) -> torch.Tensor:
    """Rule out the tokens that would repeat a group of `size` tokens (Paulus et al. 2018, section 2.5).

    Args:
        scores: (B, V).
        input_ids: (B, S) tokens so far.
        size: N, at least 1.
        source: (B, P) text whose groups must not come again; None for the tokens so far.
    """
    source = input_ids if source is None else source
    length, vocabulary = input_ids.shape[1], scores.shape[-1]
    if source.shape[1] < size or length < size - 1:
        return scores
    windows = source.unfold(1, size, 1)  # (B, W, N): every group in the source
    begun = input_ids[:, length + 1 - size :]  # (B, N - 1): what the next token would complete
    same = (windows[..., :-1] == begun[:, None]).all(dim=-1)  # (B, W)
    # A spare column takes the last tokens of the other groups, and ids that have no score.
    last = windows[..., -1].clamp(max=vocabulary).masked_fill(~same, vocabulary)
    out = torch.zeros((scores.shape[0], vocabulary + 1), dtype=torch.bool, device=scores.device).scatter_(1, last, True)
    return scores.masked_fill(out[:, :vocabulary], -math.inf)


def decay_length(scores: torch.Tensor, ids: torch.Tensor, factor: PerRow, steps: PerRow) -> torch.Tensor:
    """Raise the scores of `ids` by |score| * (factor ** steps - 1), so that the text comes to its end.

    Args:
        scores: (B, V).
        ids: Tokens that end the text.
        factor: Above 1 to end sooner.
        steps: Tokens beyond the length at which it begins; 0 or less changes nothing.
    """
    chosen = scores[:, ids]  # (B, number of ids)
    factors = torch.as_tensor(column(factor, scores), dtype=torch.float64, device=scores.device)
    counts = torch.as_tensor(column(steps, scores), dtype=torch.float64, device=scores.device).clamp(min=0)
    growth = (factors**counts - 1).to(scores.dtype)
    most = torch.finfo(scores.dtype).max
    raised = (chosen + (chosen.abs() * growth).clamp(max=most)).clamp(max=most)  # of a long text it would overflow
    return scores.index_copy(1, ids, torch.where(chosen.isfinite(), raised, chosen))


def hamming_diversity(
    scores: torch.Tensor, chosen: torch.Tensor, penalty: float, counted: torch.Tensor | None = None
) -> torch.Tensor:
    """Lower each token by `penalty` for every earlier group that chose it (Vijayakumar et al. 2018, section 4).

    Args:
        scores: (B * beams of a group, V), the beams of a prompt side by side.
        chosen: (B, beams of the earlier groups) tokens that those groups chose in this step.
        penalty: Above 0.
        counted: (B, beams of the earlier groups) bool, whether each has a say; None for all.
    """
    counts = scores.new_zeros((chosen.shape[0], scores.shape[-1]))  # (B, V)
    weights = torch.ones_like(chosen, dtype=scores.dtype) if counted is None else counted.to(scores.dtype)
    counts.scatter_add_(1, chosen, weights)
    beams = scores.shape[0] // chosen.shape[0]
    return scores - penalty * counts.repeat_interleave(beams, dim=0)


def guide(scores: torch.Tensor, unconditional: torch.Tensor, scale: PerRow) -> torch.Tensor:
    """Move away from the scores of another prompt: u + scale * (c - u) on log-probabilities (Sanchez et al. 2023).

    Args:
        scores: (B, V), c before normalization.
        unconditional: (B, V), u before normalization.
        scale: 1 changes nothing, above 1 follows the prompt more.
    """
    wanted, unwanted = scores.log_softmax(dim=-1), unconditional.log_softmax(dim=-1)
    return column(scale, scores) * (wanted - unwanted) + unwanted


def remove_invalid(scores: torch.Tensor) -> torch.Tensor:
    """Replace NaN by 0, and infinities by the largest and smallest numbers of the dtype."""
    limits = torch.finfo(scores.dtype)
    return torch.nan_to_num(scores, nan=0.0, posinf=limits.max, neginf=limits.min)
