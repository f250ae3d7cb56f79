"""What a loop yields: one new token of every row, and what is known about it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

__all__ = ["Column"]


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
    """

    tokens: torch.Tensor
    ids: list[int]
    finished: list[bool]
    scores: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    collected: dict[str, Any] = field(default_factory=dict)
