"""Processors that look at the length: no end too early, one in time, tokens that must stand at a place.

Letters: B rows, V vocabulary, S tokens so far.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from quintet.generation import checks, sampling
from quintet.generation.processors.base import LogitsProcessor, TokenIds, check_in_vocabulary, ids_tensor

__all__ = [
    "ExponentialDecayLengthPenalty",
    "ForcedBOSTokenLogitsProcessor",
    "ForcedEOSTokenLogitsProcessor",
    "MinLengthLogitsProcessor",
    "MinNewTokensLengthLogitsProcessor",
]


class _NoEos(LogitsProcessor):
    """Rules out the end-of-sequence tokens while `_too_short(length)`."""

    def __init__(self, eos_token_id: TokenIds, device: Any) -> None:
        self.eos_token_id = ids_tensor("eos_token_id", eos_token_id, device)

    def _too_short(self, length: int) -> bool:
        raise NotImplementedError  # pragma: no cover - both subclasses define it

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """See LogitsProcessor."""
        if not self._too_short(input_ids.shape[-1]):
            return scores
        ids = self.eos_token_id = self.eos_token_id.to(scores.device)
        ids = ids[(ids >= 0) & (ids < scores.shape[-1])]
        return scores.index_fill(-1, ids, -math.inf)


class MinLengthLogitsProcessor(_NoEos):
    """Rules out the end of the sequence below a total length, prompt included.

    Args:
        min_length: The total length.
        eos_token_id: One id or several.
        device: Where the ids are kept.
    """

    def __init__(self, min_length: int, eos_token_id: TokenIds, device: Any = "cpu") -> None:
        super().__init__(eos_token_id, device)
        checks.require("min_length", min_length, checks.integer(0))
        self.min_length = min_length

    def _too_short(self, length: int) -> bool:
        return length < self.min_length


class MinNewTokensLengthLogitsProcessor(_NoEos):
    """Rules out the end of the sequence below a number of new tokens.

    Args:
        prompt_length_to_skip: Length of the prompt.
        min_new_tokens: Number of tokens after it.
        eos_token_id: One id or several.
        device: Where the ids are kept.
    """

    def __init__(
        self, prompt_length_to_skip: int, min_new_tokens: int, eos_token_id: TokenIds, device: Any = "cpu"
    ) -> None:
        super().__init__(eos_token_id, device)
        checks.require("prompt_length_to_skip", prompt_length_to_skip, checks.integer(0))
        checks.require("min_new_tokens", min_new_tokens, checks.integer(0))
        self.prompt_length_to_skip = prompt_length_to_skip
        self.min_new_tokens = min_new_tokens

    def _too_short(self, length: int) -> bool:
        return length - self.prompt_length_to_skip < self.min_new_tokens


class ForcedBOSTokenLogitsProcessor(LogitsProcessor):
    """Leaves one token after the first: the text begins with it, as translation models want their language.

    Args:
        bos_token_id: The token.
    """

    def __init__(self, bos_token_id: int) -> None:
        checks.require("bos_token_id", bos_token_id, checks.usable_id)
        self.bos_token_id = int(bos_token_id)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """See LogitsProcessor."""
        if input_ids.shape[-1] != 1:
            return scores
        check_in_vocabulary("forced_bos_token_id", self.bos_token_id, scores.shape[-1])
        forced = torch.full_like(scores, -math.inf)
        forced[:, self.bos_token_id] = 0
        return forced


class ForcedEOSTokenLogitsProcessor(LogitsProcessor):
    """Leaves only end-of-sequence tokens where the length limit would cut the text.

    Args:
        max_length: The limit in tokens, prompt included.
        eos_token_id: One id or several, all of them equally likely.
        device: Where the ids are kept.
    """

    def __init__(self, max_length: int, eos_token_id: TokenIds, device: Any = "cpu") -> None:
        checks.require("max_length", max_length, checks.integer(1))
        self.max_length = max_length
        self.eos_token_id = ids_tensor("eos_token_id", eos_token_id, device)
        self._largest = _largest(self.eos_token_id)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """See LogitsProcessor."""
        if input_ids.shape[-1] != self.max_length - 1:
            return scores
        check_in_vocabulary("forced_eos_token_id", self._largest, scores.shape[-1])
        forced = torch.full_like(scores, -math.inf)
        return forced.index_fill_(-1, self.eos_token_id.to(scores.device), 0)


class ExponentialDecayLengthPenalty(LogitsProcessor):
    """Makes the end of the sequence likelier with every token beyond a length; see `sampling.decay_length`.

    Args:
        exponential_decay_length_penalty: The pair (start, factor): new tokens after which it begins, and its growth.
        eos_token_id: One id or several.
        input_ids_seq_length: Length of the prompt.
    """

    def __init__(
        self,
        exponential_decay_length_penalty: tuple[int, float],
        eos_token_id: TokenIds,
        input_ids_seq_length: int,
    ) -> None:
        name = "exponential_decay_length_penalty"
        checks.require(name, exponential_decay_length_penalty, checks.decay_pair)
        checks.require("input_ids_seq_length", input_ids_seq_length, checks.integer(0))
        start, self.regulation_factor = exponential_decay_length_penalty
        self.regulation_start = start + input_ids_seq_length
        self.eos_token_id = ids_tensor("eos_token_id", eos_token_id, "cpu")
        self._largest = _largest(self.eos_token_id)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """See LogitsProcessor."""
        beyond = input_ids.shape[-1] - self.regulation_start
        if beyond <= 0:
            return scores
        check_in_vocabulary("eos_token_id", self._largest, scores.shape[-1])
        self.eos_token_id = self.eos_token_id.to(scores.device)
        return sampling.decay_length(scores, self.eos_token_id, self.regulation_factor, beyond)


def _largest(ids: torch.Tensor) -> int:
    """Return the largest of some ids, once: asking the device at every step would wait for it."""
    checks.require("eos_token_id", ids.tolist(), checks.usable_ids)
    return int(ids.max())
