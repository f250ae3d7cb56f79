"""What generation is given: a model, and what it is to continue.

Letters: B rows, T tokens of the prompt that are not read yet, P tokens that a given cache holds already.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from quintet.cache import Cache

__all__ = ["PER_TOKEN", "GenerativeModel", "Prompt"]

# Arguments of `forward` with one value per token, which grow with the sequence.
PER_TOKEN = ("position_ids", "token_type_ids")


class GenerativeModel(Protocol):
    """What generation needs of a model."""

    config: Any
    generation_config: Any
    training: bool
    forward: Callable[..., Any]

    @property
    def device(self) -> torch.device:
        """Where the model's inputs belong."""

    def _position_limit(self) -> int | None:
        """Return how many positions the model has, or None."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run a forward pass."""


@dataclass
class Prompt:
    """What a model is to continue, checked and on the model's device.

    Args:
        ids: (B, S) tokens that the result begins with; (B, 0) for a prompt of embeddings alone.
        feed: (B, T) those that the model has not read yet; None with embeddings.
        embeds: (B, T, E) embeddings to read in place of tokens, or None.
        mask: (B, P + T) with 1 for real tokens and 0 for padding; None when there is no padding.
        cache: Keys and values of the first P tokens, or None.
        past: P.
        per_token: Arguments of `forward` in PER_TOKEN, each (B, T).
        others: Further arguments of `forward`, passed on unchanged.
    """

    ids: torch.Tensor
    feed: torch.Tensor | None = None
    embeds: torch.Tensor | None = None
    mask: torch.Tensor | None = None
    cache: Cache | None = None
    past: int = 0
    per_token: dict[str, torch.Tensor] = field(default_factory=dict)
    others: dict[str, Any] = field(default_factory=dict)

    @property
    def unread(self) -> int:
        """T."""
        tensor = self.feed if self.embeds is None else self.embeds
        return 0 if tensor is None else tensor.shape[1]

    @property
    def positions(self) -> int:
        """Positions that the longest row takes up once it is read."""
        given = self.per_token.get("position_ids")
        if given is not None:
            return int(given[:, -1].max()) + 1
        return self.past + self.unread if self.mask is None else int(self.mask.sum(dim=1).max())
