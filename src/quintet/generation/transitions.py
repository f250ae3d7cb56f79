"""What each new token of a result was worth: the scores of a run, looked up along its texts.

Letters: B texts, S tokens of a text, N new ones at most, R rows of a step, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from quintet.errors import InputError

__all__ = ["transition_scores"]


def transition_scores(
    sequences: torch.Tensor,
    scores: Sequence[torch.Tensor],
    beam_indices: torch.Tensor | None = None,
    normalize_logits: bool = False,
) -> torch.Tensor:
    """See `GenerationMixin.compute_transition_scores`."""
    _check(sequences, scores, beam_indices)
    texts, steps = sequences.shape[0], len(scores)
    if beam_indices is None:
        rows = torch.arange(texts, device=sequences.device)[:, None].expand(texts, steps)  # (B, N)
        ended = torch.zeros_like(rows, dtype=torch.bool)
    else:
        rows = beam_indices.to(device=sequences.device, dtype=torch.long)
        longest = int((rows >= 0).sum(dim=1).max())
        rows, ended = rows[:, :longest], rows[:, :longest] < 0
    new = rows.shape[1]
    if sequences.shape[1] < new:
        raise InputError(
            f"sequences has {sequences.shape[1]} tokens a row, and the scores are those of {new} new tokens. Pass "
            "`sequences` as generate() returned it."
        )
    tokens = sequences[:, sequences.shape[1] - new :].masked_fill(ended, 0)  # (B, N)
    rows = rows.masked_fill(ended, 0)
    vocabulary = scores[0].shape[-1]
    if tokens.numel() and not 0 <= int(tokens.min()) <= int(tokens.max()) < vocabulary:
        wrong = int(tokens.max()) if int(tokens.max()) >= vocabulary else int(tokens.min())
        raise InputError(
            f"sequences holds the token {wrong}, and the scores are of {vocabulary} tokens. Pass sequences and scores "
            "of the same call."
        )
    columns = []
    for step in range(new):
        values = scores[step].log_softmax(dim=-1) if normalize_logits else scores[step]
        columns.append(values[rows[:, step], tokens[:, step]])  # (R, V) -> (B,)
    if not columns:
        return scores[0].new_zeros((texts, 0))
    return torch.stack(columns, dim=1).masked_fill(ended, 0)


def _check(sequences: torch.Tensor, scores: Sequence[torch.Tensor], beam_indices: torch.Tensor | None) -> None:
    if not isinstance(sequences, torch.Tensor) or sequences.dim() != 2:
        got = tuple(sequences.shape) if isinstance(sequences, torch.Tensor) else type(sequences).__name__
        raise InputError(f"sequences is {got}, but must be a tensor of shape (rows, tokens).")
    if not isinstance(scores, (list, tuple)) or not scores:
        raise InputError(
            f"scores is {scores!r}, but must hold one tensor for each new token. Call generate() with "
            "return_dict_in_generate=True and output_scores=True, and pass its `scores`."
        )
    rows = scores[0].shape[0]
    if beam_indices is None:
        if rows != sequences.shape[0]:
            raise InputError(
                f"sequences has {sequences.shape[0]} rows and the scores have {rows}. After beam search pass "
                "beam_indices too."
            )
        return
    if beam_indices.dim() != 2 or beam_indices.shape[0] != sequences.shape[0] or beam_indices.shape[1] > len(scores):
        raise InputError(
            f"beam_indices has shape {tuple(beam_indices.shape)}, but must be ({sequences.shape[0]}, at most "
            f"{len(scores)}): the one that generate() returned with these sequences and scores."
        )
    if bool((beam_indices >= rows).any()):
        raise InputError(
            f"beam_indices names row {int(beam_indices.max())}, and the scores have {rows}. Pass sequences, scores and "
            "beam_indices of the same call."
        )
