"""Processors for single tokens and sequences of them: biased, forbidden, allowed; and scores put in order.

Letters: B rows, V vocabulary, S tokens so far, N sequences.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from quintet.errors import GenerationError
from quintet.generation import checks, sampling
from quintet.generation.processors.base import (
    LogitsProcessor,
    TokenIds,
    check_in_vocabulary,
    ids_tensor,
)

__all__ = [
    "InfNanRemoveLogitsProcessor",
    "LogitNormalization",
    "NoBadWordsLogitsProcessor",
    "PrefixConstrainedLogitsProcessor",
    "SequenceBiasLogitsProcessor",
    "SuppressTokensAtBeginLogitsProcessor",
    "SuppressTokensLogitsProcessor",
]


class SequenceBiasLogitsProcessor(LogitsProcessor):
    """Adds a number to the score of the token that would complete a sequence.

    Args:
        sequence_bias: Pairs of token ids and a number, `[[[17, 4], -2.5], ...]`; or a dict `{(17, 4): -2.5}`.
    """

    _name = "sequence_bias"

    def __init__(self, sequence_bias: Sequence[Sequence[Any]] | Mapping[tuple[int, ...], float]) -> None:
        checks.require("sequence_bias", sequence_bias, checks.bias_of_sequences)
        pairs = sequence_bias.items() if isinstance(sequence_bias, Mapping) else sequence_bias
        self.sequence_bias = {tuple(int(one) for one in ids): float(bias) for ids, bias in pairs}
        self._largest = max(max(ids) for ids in self.sequence_bias)
        self._single: torch.Tensor | None = None
        self._longer: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """See LogitsProcessor."""
        single = self._single
        if single is None or single.shape[0] != scores.shape[-1] or single.device != scores.device:
            single = self._prepare(scores)
        bias = single.to(scores.dtype).expand_as(scores)  # (B, V)
        for begun, last, values in self._longer:
            if begun.shape[1] <= input_ids.shape[1]:
                same = (input_ids[:, None, -begun.shape[1] :] == begun).all(dim=-1)  # (B, N)
                bias = bias.index_add(1, last, torch.where(same, values, 0.0).to(scores.dtype))
        return scores + bias

    def _prepare(self, scores: torch.Tensor) -> torch.Tensor:
        """Make the tensors for a vocabulary and a device; sequences of equal length are compared at once."""
        check_in_vocabulary(self._name, self._largest, scores.shape[-1])
        single = torch.zeros(scores.shape[-1])
        by_length: dict[int, list[tuple[tuple[int, ...], float]]] = {}
        for ids, value in self.sequence_bias.items():
            if len(ids) == 1:
                single[ids[0]] = value
            else:
                by_length.setdefault(len(ids), []).append((ids, value))
        self._longer = [
            (
                torch.tensor([ids[:-1] for ids, _ in group], device=scores.device),  # (N, length - 1)
                torch.tensor([ids[-1] for ids, _ in group], device=scores.device),
                torch.tensor([value for _, value in group], dtype=torch.float32, device=scores.device),
            )
            for group in by_length.values()
        ]
        self._single = single.to(scores.device)
        return self._single


class NoBadWordsLogitsProcessor(SequenceBiasLogitsProcessor):
    """Rules out the token that would complete a forbidden sequence.

    Args:
        bad_words_ids: Sequences of token ids.
        eos_token_id: End-of-sequence tokens, which are never forbidden; one id, several, or None.
    """

    _name = "bad_words_ids"

    def __init__(self, bad_words_ids: list[list[int]], eos_token_id: TokenIds | None = None) -> None:
        checks.require("bad_words_ids", bad_words_ids, checks.id_sequences)
        self.bad_word_ids = bad_words_ids
        ends = set() if eos_token_id is None else {*ids_tensor("eos_token_id", eos_token_id, "cpu").tolist()}
        kept = [ids for ids in bad_words_ids if not (len(ids) == 1 and ids[0] in ends)]
        if not kept:
            raise GenerationError(
                f"bad_words_ids is {checks.shown(bad_words_ids)}, which holds end-of-sequence tokens only, and those "
                "are never forbidden by it. Use min_new_tokens, or suppress_tokens."
            )
        super().__init__({tuple(ids): -math.inf for ids in kept})


class SuppressTokensLogitsProcessor(LogitsProcessor):
    """Rules out tokens.

    Args:
        suppress_tokens: Their ids.
        device: Where the ids are kept.
    """

    def __init__(self, suppress_tokens: Sequence[int], device: Any = "cpu") -> None:
        self.suppress_tokens = _suppressed("suppress_tokens", suppress_tokens, device)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """See LogitsProcessor."""
        self.suppress_tokens = self.suppress_tokens.to(scores.device)
        return _without(scores, self.suppress_tokens)


class SuppressTokensAtBeginLogitsProcessor(LogitsProcessor):
    """Rules out tokens at one place, the first of the text.

    Args:
        begin_suppress_tokens: Their ids.
        begin_index: Number of tokens before that place.
        device: Where the ids are kept.
    """

    def __init__(self, begin_suppress_tokens: Sequence[int], begin_index: int, device: Any = "cpu") -> None:
        self.begin_suppress_tokens = _suppressed("begin_suppress_tokens", begin_suppress_tokens, device)
        self.set_begin_index(begin_index)

    def set_begin_index(self, begin_index: int) -> None:
        """Set the place."""
        checks.require("begin_index", begin_index, checks.integer(0))
        self.begin_index = int(begin_index)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """See LogitsProcessor."""
        if input_ids.shape[-1] != self.begin_index:
            return scores
        self.begin_suppress_tokens = self.begin_suppress_tokens.to(scores.device)
        return _without(scores, self.begin_suppress_tokens)


def _suppressed(name: str, ids: Sequence[int], device: Any) -> torch.Tensor:
    values = ids.tolist() if isinstance(ids, torch.Tensor) else ids
    checks.require(name, values, checks.id_list)
    return torch.tensor([int(one) for one in values], dtype=torch.long, device=device)


def _without(scores: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Rule out tokens; those that have no score cannot come anyway."""
    return scores.index_fill(-1, ids[ids < scores.shape[-1]], -math.inf)


class PrefixConstrainedLogitsProcessor(LogitsProcessor):
    """Leaves the tokens that a function allows after what is there (De Cao et al. 2021).

    Where all allowed tokens of every beam of a prompt are ruled out already, they get the score 0: the function wins.

    Args:
        prefix_allowed_tokens_fn: `(batch_id, input_ids) -> ids`: number of the prompt and its (S,) tokens, to the ids
            of the tokens that may follow, at least one.
        num_beams: Rows of a prompt, side by side.
    """

    def __init__(self, prefix_allowed_tokens_fn: Callable[[int, torch.Tensor], Sequence[int]], num_beams: int) -> None:
        if not callable(prefix_allowed_tokens_fn):
            raise GenerationError(
                f"prefix_allowed_tokens_fn is a {type(prefix_allowed_tokens_fn).__name__}, but must be a function "
                "(batch_id, input_ids) -> list of token ids."
            )
        checks.require("num_beams", num_beams, checks.integer(1))
        self._allowed, self._beams = prefix_allowed_tokens_fn, int(num_beams)
        self._numbers: list[int] | None = None

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """See LogitsProcessor."""
        rows, vocabulary = scores.shape
        if self._numbers is None or len(self._numbers) != rows:
            self._numbers = list(range(rows))
        forbidden = torch.ones((rows, vocabulary), dtype=torch.bool)
        for row, number in enumerate(self._numbers):
            forbidden[row, self._ids(number // self._beams, input_ids[row], vocabulary)] = False
        forbidden = forbidden.to(scores.device)
        left = scores.masked_fill(forbidden, -math.inf)
        dead = left.amax(dim=-1).isneginf().reshape(-1, self._beams).all(dim=-1)  # (B * beams,) -> (B,)
        forced = torch.zeros_like(scores).masked_fill_(forbidden, -math.inf)
        return torch.where(dead.repeat_interleave(self._beams)[:, None], forced, left)

    def select(self, rows: torch.Tensor) -> None:
        """See LogitsProcessor."""
        if self._numbers is not None:
            self._numbers = [self._numbers[row] for row in rows.tolist()]

    def _ids(self, prompt: int, tokens: torch.Tensor, vocabulary: int) -> torch.Tensor:
        found = self._allowed(prompt, tokens)
        values = found.tolist() if isinstance(found, torch.Tensor) else found
        values = list(values) if isinstance(values, (set, frozenset, range)) else values
        checks.require(f"what prefix_allowed_tokens_fn returned for row {prompt}", values, checks.id_list)
        if not values:
            raise GenerationError(
                f"prefix_allowed_tokens_fn allows no token for row {prompt} after {tokens.shape[0]} tokens, and one "
                "must follow. Return at least one id, such as the end-of-sequence token."
            )
        check_in_vocabulary("what prefix_allowed_tokens_fn returned", max(values), vocabulary)
        return torch.tensor([int(one) for one in values])


class InfNanRemoveLogitsProcessor(LogitsProcessor):
    """Replaces NaN and infinities, so that a broken model goes on; see `sampling.remove_invalid`."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """See LogitsProcessor."""
        return sampling.remove_invalid(scores)


class LogitNormalization(LogitsProcessor):
    """Turns scores into log-probabilities."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """See LogitsProcessor."""
        return scores.log_softmax(dim=-1)
