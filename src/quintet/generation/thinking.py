"""The thinking budget: how many tokens a model may think before it has to answer, enforced where tokens are chosen.

Letters: B rows, V vocabulary, S tokens so far.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from quintet.errors import GenerationError
from quintet.generation.given import Prompt
from quintet.generation.resolve import warn
from quintet.generation.rows import RowFollower
from quintet.generation.thinking_formats import ThinkingFormat, thinking_format

__all__ = ["ThinkingBudgetLogitsProcessor", "ThinkingRow", "prompt_tokens", "thinking_processor"]


class ThinkingRow:
    """Where one row is in its thoughts, with the way back.

    Args:
        form: The format of the model.
        prompt: Tokens of the prompt, without padding.
        budget: How many tokens the row may think; None for as many as it likes.
    """

    def __init__(self, form: ThinkingFormat, prompt: Sequence[int], budget: int | None = None) -> None:
        self._form, self._budget = form, budget
        self._states = [form.begin(prompt, budget)]

    @property
    def forced(self) -> int | None:
        """The token that has to come next, or None."""
        pending = self._states[-1].pending
        return pending[0] if pending else None

    def advance(self, token: int) -> None:
        """See FollowedRow."""
        self._states.append(self._form.step(self._states[-1], token, self._budget))

    def back(self, count: int) -> None:
        """See FollowedRow."""
        del self._states[len(self._states) - count :]

    def copy(self) -> ThinkingRow:
        """See FollowedRow."""
        new = object.__new__(ThinkingRow)
        new._form, new._budget, new._states = self._form, self._budget, list(self._states)
        return new


class ThinkingBudgetLogitsProcessor(RowFollower[ThinkingRow]):
    """Ends the thoughts of each row at its budget, and writes the notes about the budget that Seed-OSS knows.

    A token that has to come gets all the probability. It belongs at the end of all processors.

    Args:
        rows: One for each row of the result.
        start: Tokens of the prompt in `input_ids`.
        copies: How many rows belong to one prompt.
    """

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """See LogitsProcessor."""
        forced = [row.forced for row in self.follow(input_ids)]
        rows = [row for row, token in enumerate(forced) if token is not None]
        if not rows:
            return scores
        scores = scores.clone()
        scores[rows] = -math.inf
        scores[rows, [token for token in forced if token is not None]] = 0.0
        return scores


def prompt_tokens(prompt: Prompt) -> list[list[int]]:
    """Return the tokens of each prompt without its padding."""
    tokens = prompt.ids.tolist()
    if prompt.mask is None:
        return tokens
    mask = prompt.mask[:, prompt.mask.shape[1] - prompt.ids.shape[1] :].tolist()
    return [
        [token for token, real in zip(row, known, strict=True) if real] for row, known in zip(tokens, mask, strict=True)
    ]


def thinking_processor(
    budget: int | Sequence[int] | None, tokenizer: Any, prompt: Prompt, *, copies: int = 1, room: int | None = None
) -> ThinkingBudgetLogitsProcessor | None:
    """Return the processor of a call; None when every row may think as long as it likes.

    Args:
        budget: Tokens of thinking, one number for all prompts or one for each; -1 and None for no limit.
        tokenizer: The tokenizer of the model.
        prompt: What is continued.
        copies: Rows that each prompt has while decoding.
        room: How many new tokens there can be.

    Raises:
        GenerationError: no tokenizer, one of a model that does not think, or a number of budgets that does not fit.
    """
    prompts = prompt_tokens(prompt)
    budgets = list(budget) if isinstance(budget, Sequence) else [-1 if budget is None else budget] * len(prompts)
    if len(budgets) != len(prompts):
        raise GenerationError(
            f"thinking_budget has {len(budgets)} numbers and there are {len(prompts)} prompts. Give one number for all "
            "prompts, or one for each."
        )
    if all(one < 0 for one in budgets):
        return None
    if tokenizer is None:
        raise GenerationError(
            f"thinking_budget={budget!r} needs the tokenizer, to know where thoughts begin and end. Pass "
            "generate(..., tokenizer=tokenizer)."
        )
    form = thinking_format(tokenizer)
    if form is None:
        raise GenerationError(
            f"thinking_budget={budget!r}, but {type(tokenizer).__name__} has no tokens that begin and end thoughts: "
            "those of Seed-OSS (<seed:think>, </seed:think>) or of gpt-oss (<|channel|>, <|message|>, <|end|>). Leave "
            "thinking_budget out for other models."
        )
    if room is not None and room <= max(budgets):
        warn(
            f"thinking_budget is {max(budgets)} and at most {room} new tokens can be generated: thoughts may leave no "
            "room for an answer. Raise max_new_tokens."
        )
    rows = [
        ThinkingRow(form, tokens, None if one < 0 else one)
        for tokens, one in zip(prompts, budgets, strict=True)
        for _ in range(copies)
    ]
    return ThinkingBudgetLogitsProcessor(rows, prompt.ids.shape[1], copies)
