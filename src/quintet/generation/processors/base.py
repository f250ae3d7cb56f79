"""What a processor is, the list of them, and what several of them share.

Letters: B rows, V vocabulary, S tokens so far.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch

from quintet.errors import GenerationError
from quintet.generation import checks

__all__ = [
    "LogitsProcessor",
    "LogitsProcessorList",
    "LogitsWarper",
    "TokenIds",
    "check_in_vocabulary",
    "expanded",
    "ids_tensor",
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
            GenerationError: a processor needs an argument that is not in `kwargs`, or returned no scores.
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
                scores = _checked(processor, processor(input_ids, scores, **kwargs), scores)
            else:
                scores = _checked(processor, processor(input_ids, scores), scores)
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


def _checked(processor: Callable[..., Any], after: Any, before: torch.Tensor) -> torch.Tensor:
    """Return what a processor has made of the scores, if that is scores of the same shape."""
    if isinstance(after, torch.Tensor) and after.shape == before.shape and after.is_floating_point():
        return after
    name = getattr(processor, "__name__", type(processor).__name__)
    if not isinstance(after, torch.Tensor):
        got = f"a {type(after).__name__}" if after is not None else "None (is a `return` missing?)"
    elif after.shape != before.shape:
        got = f"scores of shape {tuple(after.shape)} for {tuple(before.shape)}"
    else:
        got = f"scores of dtype {after.dtype}"
    raise GenerationError(
        f"the logits processor {name} returned {got}. It must return a floating-point score for each row and "
        "vocabulary entry."
    )


@lru_cache(maxsize=256)
def _extra_arguments(kind: type) -> tuple[str, ...]:
    """Names of the parameters that a processor class needs after (self, input_ids, scores); none for functions."""
    try:
        parameters = list(inspect.signature(kind.__call__).parameters.values())[3:]
    except (TypeError, ValueError):  # a callable without a Python signature
        return ()
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return tuple(one.name for one in parameters if one.kind in named and one.default is inspect.Parameter.empty)


def ids_tensor(name: str, ids: Any, device: Any) -> torch.Tensor:
    """Return token ids as a one-dimensional tensor.

    Args:
        name: Name of the argument, for the message.
        ids: One id, several, or a tensor of them.
        device: Where the result belongs, unless `ids` is a tensor.

    Raises:
        GenerationError: they are no integers.
    """
    if isinstance(ids, torch.Tensor):
        if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
            raise GenerationError(f"{name} is a tensor of {ids.dtype}, but must hold token ids (integers).")
        return ids.reshape(-1)
    checks.require(name, ids, checks.token_ids)
    values = [ids] if checks.is_id(ids) else list(ids)
    return torch.tensor([int(one) for one in values], device=device)


def check_in_vocabulary(name: str, largest: int, vocabulary: int) -> None:
    """Check ids against the number of scores.

    Args:
        name: Name of the argument, for the message.
        largest: The largest of the ids.
        vocabulary: V.

    Raises:
        GenerationError: the largest has no score.
    """
    if largest >= vocabulary:
        raise GenerationError(
            f"{name} holds the token id {largest}, but the model has scores for 0 to {vocabulary - 1}. Leave it out."
        )


def expanded(name: str, table: torch.Tensor, rows: int) -> torch.Tensor:
    """Return a tensor of one row per prompt with one row per sequence that is decoded: its rows repeated.

    Args:
        name: Name of the argument, for the message.
        table: (prompts, ...).
        rows: B, a multiple of the prompts.

    Raises:
        GenerationError: it is none.
    """
    if table.shape[0] == rows:
        return table
    if table.shape[0] == 0 or rows % table.shape[0]:
        raise GenerationError(f"{name} has {table.shape[0]} rows and the batch {rows}. Give one for each prompt.")
    return table.repeat_interleave(rows // table.shape[0], dim=0)
