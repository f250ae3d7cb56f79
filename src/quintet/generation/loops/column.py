"""What a loop yields: one new token of every row, and what is known about it.

Letters: B rows, V vocabulary, N best tokens asked for.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch

__all__ = ["Column", "add_log_probabilities"]


@dataclass(eq=False)
class Column:
    """One column of new tokens.

    Args:
        tokens: (B,) the token of each row; the padding token in rows that were finished before.
        ids: The same on the host.
        finished: Whether each row is finished, this token included.
        scores: (B, V) processed scores that it was chosen from; None unless asked for.
        logits: (B, V) scores as the model gave them; None unless asked for.
        collected: Further outputs of the forward pass that the scores come from ("attentions", "hidden_states").
        logprobs: (B,) log-probability that the model gave each token, before any processor; 0 in rows that were
            finished before, so that sums over columns are those of the texts. None unless asked for.
        top_ids: (B, N) the model's most likely tokens, best first; the padding token in rows that were finished before.
            None unless asked for.
        top_logprobs: (B, N) their log-probabilities; -inf in rows that were finished before.
    """

    tokens: torch.Tensor
    ids: list[int]
    finished: list[bool]
    scores: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    collected: dict[str, Any] = field(default_factory=dict)
    logprobs: torch.Tensor | None = None
    top_ids: torch.Tensor | None = None
    top_logprobs: torch.Tensor | None = None


def add_log_probabilities(
    column: Column, logits: torch.Tensor, best: int, done: torch.Tensor | None, pad: int | None
) -> None:
    """Put the log-probabilities of the column's tokens under the model's scores into it.

    log p_i = s_i - log(sum_j exp(s_j)), without the (B, V) tensor of them all.

    Args:
        column: Tokens are read, log-probabilities written.
        logits: (B, V).
        best: N; 0 for none.
        done: (B,) rows that were finished before; None for none.
        pad: The padding token, which rows that are done get for their best ones.
    """
    total = logits.logsumexp(dim=-1, keepdim=True)  # (B, 1)
    # A padding token may lie outside the vocabulary; its row is set to 0 below.
    tokens = column.tokens if done is None else column.tokens.masked_fill(done, 0)
    column.logprobs = (logits.gather(-1, tokens[:, None]) - total)[:, 0]
    if best:
        values, column.top_ids = logits.topk(min(best, logits.shape[-1]), dim=-1)
        column.top_logprobs = values - total
    if done is None:
        return
    column.logprobs.masked_fill_(done, 0)
    if column.top_ids is not None and column.top_logprobs is not None:
        column.top_ids.masked_fill_(done[:, None], 0 if pad is None else pad)
        column.top_logprobs.masked_fill_(done[:, None], -math.inf)
