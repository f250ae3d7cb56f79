"""Stopping criteria: callables `(input_ids, scores) -> done (B,)` that `generate` asks after every column of tokens.

`StopRules` is how the loops ask: the usual criteria (length, time, end-of-sequence tokens) are answered on the host
from the tokens that were read anyway, so that they cost no tensor work and no further wait for the device.

Letters: B rows, S tokens so far.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from quintet.errors import GenerationError
from quintet.generation.stop_strings import StopStringMatcher

__all__ = [
    "ConfidenceCriteria",
    "EosTokenCriteria",
    "MaxLengthCriteria",
    "MaxTimeCriteria",
    "StopRules",
    "StopStringCriteria",
    "StoppingCriteria",
    "StoppingCriteriaList",
]

Scores = tuple[torch.Tensor, ...] | None


class StoppingCriteria:
    """Base of all criteria; a subclass defines `__call__`."""

    def __call__(self, input_ids: torch.Tensor, scores: Scores, **kwargs: Any) -> torch.Tensor | bool:
        """Return which rows are done: a (B,) bool tensor, or one bool for all.

        Args:
            input_ids: (B, S) tokens so far, prompt included; not to be written to.
            scores: The processed scores of every step, when `generate` was asked to return them, else None.
            **kwargs: Nothing at present.
        """
        raise NotImplementedError(f"{type(self).__name__} must define __call__(input_ids, scores).")


def _all_rows(input_ids: torch.Tensor, done: bool) -> torch.Tensor:
    return torch.full((input_ids.shape[0],), done, device=input_ids.device, dtype=torch.bool)


class MaxLengthCriteria(StoppingCriteria):
    """Stops at a total length, prompt included.

    Args:
        max_length: The length.
        max_position_embeddings: Accepted for the reference's signature; `generate` checks the model's limit itself.
    """

    def __init__(self, max_length: int, max_position_embeddings: int | None = None) -> None:
        self.max_length = max_length
        self.max_position_embeddings = max_position_embeddings

    def __call__(self, input_ids: torch.Tensor, scores: Scores, **kwargs: Any) -> torch.Tensor:
        """See StoppingCriteria."""
        return _all_rows(input_ids, input_ids.shape[1] >= self.max_length)


class MaxTimeCriteria(StoppingCriteria):
    """Stops after the first column that is complete `max_time` seconds after the start.

    Args:
        max_time: Seconds.
        initial_timestamp: Start, as `time.time()` gives it; None for now.
    """

    def __init__(self, max_time: float, initial_timestamp: float | None = None) -> None:
        self.max_time = max_time
        self.initial_timestamp = time.time() if initial_timestamp is None else initial_timestamp

    def is_over(self) -> bool:
        """Whether the time is used up."""
        return time.time() - self.initial_timestamp > self.max_time

    def __call__(self, input_ids: torch.Tensor, scores: Scores, **kwargs: Any) -> torch.Tensor:
        """See StoppingCriteria."""
        return _all_rows(input_ids, self.is_over())


class EosTokenCriteria(StoppingCriteria):
    """Stops a row whose last token is an end-of-sequence token.

    Args:
        eos_token_id: One id or several.
    """

    def __init__(self, eos_token_id: int | list[int] | torch.Tensor) -> None:
        if not isinstance(eos_token_id, torch.Tensor):
            eos_token_id = torch.tensor([eos_token_id] if isinstance(eos_token_id, int) else list(eos_token_id))
        self.eos_token_id = eos_token_id.reshape(-1)

    def __call__(
        self, input_ids: torch.Tensor, scores: Scores, new_token_length: int = 1, **kwargs: Any
    ) -> torch.Tensor:
        """See StoppingCriteria; the last `new_token_length` tokens are looked at."""
        self.eos_token_id = self.eos_token_id.to(input_ids.device)
        return torch.isin(input_ids[:, -new_token_length:], self.eos_token_id).any(dim=-1)


class StopStringCriteria(StoppingCriteria):
    """Stops a row when its last token completes one of the strings, wherever the token boundaries fall.

    The string may begin inside a token (of the prompt too) and end inside the last one: "stop" is found in
    "las" + "topper". A string that was complete before the last token does not count again.

    Args:
        tokenizer: The model's tokenizer.
        stop_strings: One string or several.
    """

    def __init__(self, tokenizer: Any, stop_strings: str | Sequence[str]) -> None:
        self.stop_strings: tuple[str, ...] = (stop_strings,) if isinstance(stop_strings, str) else tuple(stop_strings)
        self._matcher = StopStringMatcher(tokenizer, self.stop_strings)

    def __call__(self, input_ids: torch.Tensor, scores: Scores, **kwargs: Any) -> torch.Tensor:
        """See StoppingCriteria."""
        # Every token has at least one byte, so no match reaches further back than the longest string has bytes.
        tail = input_ids[:, -self._matcher.reach :].tolist()
        return torch.tensor([self._matcher.ends_with_stop(row) for row in tail], device=input_ids.device)


class ConfidenceCriteria(StoppingCriteria):
    """Stops after a token that the model was not sure of, so that a draft model gives up before its guesses get bad.

    Args:
        assistant_confidence_threshold: Least probability of a token.
    """

    def __init__(self, assistant_confidence_threshold: float) -> None:
        self.assistant_confidence_threshold = assistant_confidence_threshold

    def __call__(self, input_ids: torch.Tensor, scores: Scores, **kwargs: Any) -> torch.Tensor:
        """See StoppingCriteria.

        Raises:
            GenerationError: there are no scores.
        """
        if scores is None:
            raise GenerationError(
                "is_assistant=True stops at tokens that the model is not sure of, and needs the scores for that. Set "
                "return_dict_in_generate=True and output_scores=True; or is_assistant=False, which a draft model "
                "that is passed as assistant_model does not need."
            )
        chosen = scores[-1].softmax(dim=-1).gather(1, input_ids[:, -1:])[:, 0]  # (B,)
        return chosen < self.assistant_confidence_threshold


class StoppingCriteriaList(list[Callable[..., Any]]):
    """A list of criteria that is one itself: a row is done when one of them says so."""

    def __call__(self, input_ids: torch.Tensor, scores: Scores, **kwargs: Any) -> torch.Tensor:
        """See StoppingCriteria."""
        done = _all_rows(input_ids, False)
        for criterion in self:
            done = done | criterion(input_ids, scores, **kwargs)
        return done

    @property
    def max_length(self) -> int | None:
        """The length of the first MaxLengthCriteria, or None."""
        return next((one.max_length for one in self if isinstance(one, MaxLengthCriteria)), None)


class StopRules:
    """The criteria of one run, compiled for a loop, and which rows are done.

    Args:
        criteria: What to stop at.
        rows: B.
        length: Tokens of the prompt.
    """

    def __init__(self, criteria: Sequence[Callable[..., Any]], rows: int, length: int) -> None:
        self.done = [False] * rows
        self.any_done = False
        # The reference fills finished rows with the padding token only when a criterion knows the end-of-sequence ids.
        self.pads_rows = any(hasattr(one, "eos_token_id") for one in criteria)
        self._length = length
        self._max_length: int | None = None
        self._eos: set[int] = set()
        self._clocks: list[MaxTimeCriteria] = []
        self._others: list[Callable[..., Any]] = []
        for one in criteria:  # exact types only: a subclass may answer differently
            if type(one) is MaxLengthCriteria:
                limits = [one.max_length] if self._max_length is None else [one.max_length, self._max_length]
                self._max_length = min(limits)
            elif type(one) is EosTokenCriteria:
                self._eos.update(one.eos_token_id.tolist())
            elif type(one) is MaxTimeCriteria:
                self._clocks.append(one)
            else:
                self._others.append(one)

    @property
    def reads_ids(self) -> bool:
        """Whether a criterion looks at more than the last token."""
        return bool(self._others)

    def forget(self) -> None:
        """Take no row as done any more: in beam search the rows of a step do not continue those of the one before."""
        self.done, self.any_done = [False] * len(self.done), False

    def update(self, tokens: list[int], input_ids: Callable[[], torch.Tensor], scores: Callable[[], Scores]) -> bool:
        """Take note of one column of tokens.

        Args:
            tokens: The column, one token per row.
            input_ids: Gives the (B, S) tokens so far, the column included; called only when a criterion wants them.
            scores: Gives the scores of every step, or None; called only when a criterion wants them.

        Returns:
            Whether every row is done.
        """
        self._length += 1
        if self._eos:
            for row, token in enumerate(tokens):
                if token in self._eos:
                    self.done[row] = self.any_done = True
        if (self._max_length is not None and self._length >= self._max_length) or any(
            clock.is_over() for clock in self._clocks
        ):
            self.done = [True] * len(self.done)
        for criterion in self._others:
            self._ask(criterion, input_ids(), scores())
        if not self.any_done:
            self.any_done = True in self.done
        return False not in self.done

    def _ask(self, criterion: Callable[..., Any], input_ids: torch.Tensor, scores: Scores) -> None:
        answer = criterion(input_ids, scores)
        rows = len(self.done)
        if isinstance(answer, torch.Tensor) and answer.numel() == rows:
            answers = answer.reshape(-1).tolist()
        elif isinstance(answer, bool) or (isinstance(answer, torch.Tensor) and answer.numel() == 1):
            answers = [bool(answer)] * rows
        else:
            got = tuple(answer.shape) if isinstance(answer, torch.Tensor) else repr(answer)
            raise GenerationError(
                f"the stopping criterion {type(criterion).__name__} returned {got}, but must return a bool tensor of "
                f"shape ({rows},), one answer per row, or one bool."
            )
        self.done = [before or bool(now) for before, now in zip(self.done, answers, strict=True)]
