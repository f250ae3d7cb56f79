"""Logits processors: callables `(input_ids, scores) -> scores` that `generate` applies before a token is chosen.

Names and arguments are the reference's; the arithmetic is in `sampling.py`.

Letters: B rows, V vocabulary, S tokens so far.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch

from quintet.errors import GenerationError
from quintet.generation import sampling

__all__ = [
    "LogitsProcessor",
    "LogitsProcessorList",
    "LogitsWarper",
    "MinLengthLogitsProcessor",
    "MinNewTokensLengthLogitsProcessor",
    "MinPLogitsWarper",
    "RepetitionPenaltyLogitsProcessor",
    "TemperatureLogitsWarper",
    "TopKLogitsWarper",
    "TopPLogitsWarper",
]

TokenIds = int | list[int] | torch.Tensor


class LogitsProcessor:
    """Base of all processors; a subclass defines `__call__`."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return the changed scores.

        Args:
            input_ids: (B, S) tokens so far, prompt included; not to be written to.
            scores: (B, V) of the next token.
        """
        raise NotImplementedError(f"{type(self).__name__} must define __call__(input_ids, scores).")

    def select(self, rows: torch.Tensor) -> None:
        """Take note that the rows are now those at `rows`: a loop dropped or reordered some of them.

        Only a processor that keeps something per row has to do anything.

        Args:
            rows: (B',) which of the rows so far each new row goes on from.
        """

    def chosen(self, tokens: list[int]) -> None:
        """Take note of the token that each row got, before the model reads it: time to prepare the next call.

        Only a hint: not every loop gives it.
        """


LogitsWarper = LogitsProcessor  # older name for the processors that only sampling uses


class LogitsProcessorList(list[Callable[..., torch.Tensor]]):
    """A list of processors that is one itself: applies each in turn."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        """Apply every processor; those that take more than two arguments get `kwargs`.

        Raises:
            GenerationError: a processor needs an argument that is not in `kwargs`.
        """
        for processor in self:
            kind: type = type(processor)
            extra = _extra_arguments(kind)
            if extra:
                missing = [name for name in extra if name not in kwargs]
                if missing:
                    raise GenerationError(
                        f"{type(processor).__name__} also needs the argument(s) {', '.join(missing)}. Pass them as "
                        "keywords to the list, or bind them in the processor."
                    )
                scores = processor(input_ids, scores, **kwargs)
            else:
                scores = processor(input_ids, scores)
        return scores

    def select(self, rows: torch.Tensor) -> None:
        """Tell every processor which rows go on; see LogitsProcessor."""
        for processor in self:
            if isinstance(processor, LogitsProcessor):
                processor.select(rows)

    def chosen(self, tokens: list[int]) -> None:
        """Tell every processor which tokens were chosen; see LogitsProcessor."""
        for processor in self:
            if isinstance(processor, LogitsProcessor):
                processor.chosen(tokens)


@lru_cache(maxsize=256)
def _extra_arguments(kind: type) -> tuple[str, ...]:
    """Names of the parameters that a processor class needs after (self, input_ids, scores); none for functions."""
    try:
        parameters = list(inspect.signature(kind.__call__).parameters.values())[3:]
    except (TypeError, ValueError):  # a callable without a Python signature
        return ()
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return tuple(one.name for one in parameters if one.kind in named and one.default is inspect.Parameter.empty)


def _eos_tensor(eos_token_id: TokenIds, device: Any) -> torch.Tensor:
    if isinstance(eos_token_id, torch.Tensor):
        return eos_token_id.reshape(-1)
    return torch.tensor([eos_token_id] if isinstance(eos_token_id, int) else list(eos_token_id), device=device)


def _non_negative(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise GenerationError(f"{name} is {value!r}, but must be an integer of at least 0.")
    return value


def _keep(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise GenerationError(f"min_tokens_to_keep is {value!r}, but must be an integer of at least 1.")
    return value


class _NoEos(LogitsProcessor):
    """Rules out the end-of-sequence tokens while `_too_short(length)`."""

    def __init__(self, eos_token_id: TokenIds, device: Any) -> None:
        self.eos_token_id = _eos_tensor(eos_token_id, device)

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
        self.min_length = _non_negative("min_length", min_length)

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
        self.prompt_length_to_skip = _non_negative("prompt_length_to_skip", prompt_length_to_skip)
        self.min_new_tokens = _non_negative("min_new_tokens", min_new_tokens)

    def _too_short(self, length: int) -> bool:
        return length - self.prompt_length_to_skip < self.min_new_tokens


class TemperatureLogitsWarper(LogitsProcessor):
    """Divides the scores by a temperature above 0; see `sampling.temperature`."""

    def __init__(self, temperature: float) -> None:
        if isinstance(temperature, bool) or not isinstance(temperature, (int, float)) or not temperature > 0:
            raise GenerationError(
                f"temperature is {temperature!r}, but must be a number above 0. For the most likely token at every "
                "step use do_sample=False."
            )
        self.temperature = float(temperature)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """See LogitsProcessor."""
        return sampling.temperature(scores, self.temperature)


class TopKLogitsWarper(LogitsProcessor):
    """Keeps the `top_k` best scores; see `sampling.top_k`.

    Args:
        top_k: At least 1.
        filter_value: What the other scores become.
        min_tokens_to_keep: Lower limit of `top_k`.
    """

    def __init__(self, top_k: int, filter_value: float = -math.inf, min_tokens_to_keep: int = 1) -> None:
        if isinstance(top_k, bool) or not isinstance(top_k, int) or top_k < 1:
            raise GenerationError(f"top_k is {top_k!r}, but must be an integer of at least 1.")
        self.top_k = max(top_k, _keep(min_tokens_to_keep))
        self.filter_value = filter_value
        self.min_tokens_to_keep = min_tokens_to_keep

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """See LogitsProcessor."""
        return sampling.top_k(scores, self.top_k, fill=self.filter_value)


class TopPLogitsWarper(LogitsProcessor):
    """Keeps the smallest set of tokens with probability `top_p` together; see `sampling.top_p`.

    Args:
        top_p: From 0 to 1.
        filter_value: What the other scores become.
        min_tokens_to_keep: Number of tokens that stay in any case.
    """

    def __init__(self, top_p: float, filter_value: float = -math.inf, min_tokens_to_keep: int = 1) -> None:
        if isinstance(top_p, bool) or not isinstance(top_p, (int, float)) or not 0 <= top_p <= 1:
            raise GenerationError(f"top_p is {top_p!r}, but must be a number from 0 to 1.")
        self.top_p = float(top_p)
        self.filter_value = filter_value
        self.min_tokens_to_keep = _keep(min_tokens_to_keep)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """See LogitsProcessor."""
        return sampling.top_p(scores, self.top_p, fill=self.filter_value, keep=self.min_tokens_to_keep)


class MinPLogitsWarper(LogitsProcessor):
    """Keeps the tokens at least `min_p` times as likely as the best; see `sampling.min_p`.

    Args:
        min_p: From 0 to 1.
        filter_value: What the other scores become.
        min_tokens_to_keep: Number of tokens that stay in any case.
    """

    def __init__(self, min_p: float, filter_value: float = -math.inf, min_tokens_to_keep: int = 1) -> None:
        if isinstance(min_p, bool) or not isinstance(min_p, (int, float)) or not 0 <= min_p <= 1:
            raise GenerationError(f"min_p is {min_p!r}, but must be a number from 0 to 1.")
        self.min_p = float(min_p)
        self.filter_value = filter_value
        self.min_tokens_to_keep = _keep(min_tokens_to_keep)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """See LogitsProcessor."""
        return sampling.min_p(scores, self.min_p, fill=self.filter_value, keep=self.min_tokens_to_keep)


class RepetitionPenaltyLogitsProcessor(LogitsProcessor):
    """Makes tokens that occurred less likely; see `sampling.repetition_penalty`.

    Args:
        penalty: Above 0; above 1 repeats less.
        prompt_ignore_length: Number of leading tokens that do not count, or a (B,) tensor with one number per row.
    """

    def __init__(self, penalty: float, prompt_ignore_length: int | torch.Tensor | None = None) -> None:
        if isinstance(penalty, bool) or not isinstance(penalty, (int, float)) or not penalty > 0:
            raise GenerationError(f"penalty is {penalty!r}, but must be a number above 0; 1.0 is no penalty.")
        if isinstance(prompt_ignore_length, torch.Tensor):
            if prompt_ignore_length.dim() != 1:
                raise GenerationError(
                    f"prompt_ignore_length has shape {tuple(prompt_ignore_length.shape)}, but must be (rows,)."
                )
        elif prompt_ignore_length is not None:
            _non_negative("prompt_ignore_length", prompt_ignore_length)
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
