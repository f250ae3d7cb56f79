"""Processors against repetition: of tokens, of groups of them, of the prompt, and of other beams.

Letters: B rows, V vocabulary, S tokens so far, P tokens of the prompts.
"""

from __future__ import annotations

import torch

from quintet.errors import GenerationError
from quintet.generation import checks, sampling
from quintet.generation.processors.base import LogitsProcessor, expanded

__all__ = [
    "EncoderNoRepeatNGramLogitsProcessor",
    "EncoderRepetitionPenaltyLogitsProcessor",
    "HammingDiversityLogitsProcessor",
    "NoRepeatNGramLogitsProcessor",
    "RepetitionPenaltyLogitsProcessor",
]

_PENALTY = checks.number("a number above 0", lambda value: value > 0)
_SIZE = checks.integer(1)


class RepetitionPenaltyLogitsProcessor(LogitsProcessor):
    """Makes tokens that occurred less likely; see `sampling.repetition_penalty`.

    Args:
        penalty: Above 0; above 1 repeats less.
        prompt_ignore_length: Number of leading tokens that do not count, or a (B,) tensor with one number per row.
    """

    def __init__(self, penalty: float, prompt_ignore_length: int | torch.Tensor | None = None) -> None:
        checks.require("penalty", penalty, _PENALTY, " 1.0 is no penalty.")
        if isinstance(prompt_ignore_length, torch.Tensor):
            if prompt_ignore_length.dim() != 1:
                raise GenerationError(
                    f"prompt_ignore_length has shape {tuple(prompt_ignore_length.shape)}, but must be (rows,)."
                )
        elif prompt_ignore_length is not None:
            checks.require("prompt_ignore_length", prompt_ignore_length, checks.integer(0))
        self.penalty = float(penalty)
        self.prompt_ignore_length = prompt_ignore_length

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """See LogitsProcessor."""
        ignore = self.prompt_ignore_length
        if isinstance(ignore, torch.Tensor) and ignore.shape[0] != input_ids.shape[0]:
            raise GenerationError(
                f"prompt_ignore_length has {ignore.shape[0]} rows and the batch {input_ids.shape[0]}. Give one per row."
            )
        return sampling.repetition_penalty(scores, input_ids, self.penalty, ignore=ignore)

    def select(self, rows: torch.Tensor) -> None:
        """See LogitsProcessor."""
        if isinstance(self.prompt_ignore_length, torch.Tensor):
            self.prompt_ignore_length = self.prompt_ignore_length[rows.to(self.prompt_ignore_length.device)]


class _OfPrompts(LogitsProcessor):
    """A processor that compares with the prompts: one row for each, from the first call on one for each sequence."""

    def __init__(self, encoder_input_ids: torch.Tensor) -> None:
        self.encoder_input_ids = _prompts(encoder_input_ids)

    def _rows(self, scores: torch.Tensor) -> torch.Tensor:
        ids = expanded("encoder_input_ids", self.encoder_input_ids.to(scores.device), scores.shape[0])
        self.encoder_input_ids = ids
        return ids

    def select(self, rows: torch.Tensor) -> None:
        """See LogitsProcessor."""
        self.encoder_input_ids = self.encoder_input_ids[rows.to(self.encoder_input_ids.device)]


class EncoderRepetitionPenaltyLogitsProcessor(_OfPrompts):
    """Makes the tokens of the prompt likelier, so that the text keeps to it; the inverse of a repetition penalty.

    Args:
        penalty: Above 0; above 1 favours the prompt's tokens.
        encoder_input_ids: (prompts, P) the prompts, padding included.
    """

    def __init__(self, penalty: float, encoder_input_ids: torch.Tensor) -> None:
        checks.require("penalty", penalty, _PENALTY, " 1.0 is no penalty.")
        super().__init__(encoder_input_ids)
        self.penalty = 1 / float(penalty)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """See LogitsProcessor."""
        return sampling.repetition_penalty(scores, self._rows(scores), self.penalty)


class NoRepeatNGramLogitsProcessor(LogitsProcessor):
    """Rules out tokens that would repeat a group of tokens, the prompt's included; see `sampling.no_repeat_ngram`.

    Args:
        ngram_size: Number of tokens of a group; 1 lets every token occur once.
    """

    def __init__(self, ngram_size: int) -> None:
        checks.require("ngram_size", ngram_size, _SIZE)
        self.ngram_size = int(ngram_size)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """See LogitsProcessor."""
        return sampling.no_repeat_ngram(scores, input_ids, self.ngram_size)


class EncoderNoRepeatNGramLogitsProcessor(_OfPrompts):
    """Rules out tokens that would repeat a group of tokens of the prompt; see `sampling.no_repeat_ngram`.

    Args:
        encoder_ngram_size: Number of tokens of a group.
        encoder_input_ids: (prompts, P) the prompts, or (P,) one of them.
    """

    def __init__(self, encoder_ngram_size: int, encoder_input_ids: torch.Tensor) -> None:
        checks.require("encoder_ngram_size", encoder_ngram_size, _SIZE)
        super().__init__(encoder_input_ids)
        self.ngram_size = int(encoder_ngram_size)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """See LogitsProcessor."""
        return sampling.no_repeat_ngram(scores, input_ids, self.ngram_size, self._rows(scores))


class HammingDiversityLogitsProcessor(LogitsProcessor):
    """Keeps groups of beams apart: each loses what earlier groups chose; see `sampling.hamming_diversity`.

    Args:
        diversity_penalty: Above 0.
        num_beams: Beams of a prompt, all groups together.
        num_beam_groups: Number of groups, at least 2.
    """

    def __init__(self, diversity_penalty: float, num_beams: int, num_beam_groups: int) -> None:
        checks.require("diversity_penalty", diversity_penalty, _PENALTY)
        checks.require("num_beams", num_beams, checks.integer(2))
        checks.require("num_beam_groups", num_beam_groups, checks.integer(2))
        if num_beams % num_beam_groups:
            raise GenerationError(
                f"num_beam_groups is {num_beam_groups} and num_beams {num_beams}, but every group needs equally many "
                "beams. Make num_beams a multiple of num_beam_groups."
            )
        self.diversity_penalty = float(diversity_penalty)
        self.num_beams = int(num_beams)
        self.num_beam_groups = int(num_beam_groups)

    def __call__(  # type: ignore[override]
        self, input_ids: torch.Tensor, scores: torch.Tensor, current_tokens: torch.Tensor, beam_group_idx: int
    ) -> torch.Tensor:
        """Return the changed scores of one group.

        Args:
            input_ids: (B * beams of the group, S) tokens so far.
            scores: (B * beams of the group, V) of the next token.
            current_tokens: (B * num_beams,) tokens that the beams chose in this step; only earlier groups' are read.
            beam_group_idx: Which group it is, from 0.
        """
        done = beam_group_idx * (self.num_beams // self.num_beam_groups)
        if done == 0:
            return scores
        chosen = current_tokens.reshape(-1, self.num_beams)[:, :done]  # (B, beams of earlier groups)
        return sampling.hamming_diversity(scores, chosen, self.diversity_penalty)


def _prompts(ids: torch.Tensor) -> torch.Tensor:
    """Return prompts as a (prompts, P) tensor."""
    if not isinstance(ids, torch.Tensor) or ids.dim() not in (1, 2) or ids.is_floating_point():
        got = f"has shape {tuple(ids.shape)}" if isinstance(ids, torch.Tensor) else f"is a {type(ids).__name__}"
        raise GenerationError(f"encoder_input_ids {got}, but must be an integer tensor of shape (rows, tokens).")
    return ids[None] if ids.dim() == 1 else ids
