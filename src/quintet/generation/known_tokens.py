"""Vocabularies with rows that are no tokens: a model never chooses what its tokenizer does not know.

Letters: B rows, V vocabulary, S tokens so far.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch

from quintet.errors import GenerationError
from quintet.generation.processors import LogitsProcessor

__all__ = ["KnownTokensLogitsProcessor", "known_tokens"]


class KnownTokensLogitsProcessor(LogitsProcessor):
    """Leaves only tokens that a tokenizer has: the rows of a padded vocabulary (50432 for 50277 tokens) are no tokens.

    Args:
        ids: Ids of all tokens, such as `tokenizer.get_vocab().values()`.

    Raises:
        GenerationError: `ids` is empty, or holds something else than numbers from 0 on.
    """

    def __init__(self, ids: Iterable[int]) -> None:
        known = torch.tensor(sorted({*ids}))
        if known.numel() == 0 or known.dtype != torch.int64 or int(known[0]) < 0:
            raise GenerationError("ids must be token ids from 0 on, at least one of them.")
        self.ids = known
        self._unknown: torch.Tensor | None = None

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """See LogitsProcessor."""
        size = scores.shape[-1]
        if self._unknown is None or self._unknown.shape[0] != size or self._unknown.device != scores.device:
            unknown = torch.ones(size, dtype=torch.bool)
            unknown[self.ids[self.ids < size]] = False
            self._unknown = unknown.to(scores.device)
        return scores.masked_fill(self._unknown, -math.inf)


def known_tokens(model: Any, tokenizer: Any) -> KnownTokensLogitsProcessor | None:
    """Return the processor that keeps a model to the tokens of its tokenizer; None where every row is a token.

    It reads the whole vocabulary: call it once for a model and a tokenizer, not for every text.

    Args:
        model: A model with `get_input_embeddings`.
        tokenizer: Any tokenizer with `get_vocab`.
    """
    ids = tokenizer.get_vocab().values()
    return KnownTokensLogitsProcessor(ids) if len(ids) < model.get_input_embeddings().num_embeddings else None
