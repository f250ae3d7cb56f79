"""What a pipeline may be called with: one item, a list, a data set or a stream; and how errors name an item."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from quintet.errors import InputError, QuintetError

__all__ = [
    "Results",
    "Source",
    "SizedResults",
    "checked_text",
    "compare_vocabularies",
    "located",
    "open_inputs",
    "with_progress",
]


logger = logging.getLogger("quintet.pipelines")


class Source:
    """Items of one call.

    Args:
        items: Gives them, once.
        form: "one", "list", "stream" (a generator comes back) or "data" (an iterator with a length comes back).
        size: How many there are, or None.
    """

    def __init__(self, items: Iterable[Any], form: str, size: int | None) -> None:
        self.items = items
        self.form = form
        self.size = size


def open_inputs(inputs: Any, is_item: Callable[[Any], bool]) -> Source:
    """Find out what a pipeline was called with.

    Args:
        inputs: What was given.
        is_item: Whether a list is one item (a chat, a list of words) and no list of items.

    Raises:
        InputError: None, bytes, an empty list, or something that gives no items.
    """
    if isinstance(inputs, (str, Mapping)) or is_item(inputs):
        return Source([inputs], "one", 1)
    if inputs is None:
        raise InputError("the input is None. Give a text, a list of texts, a data set or a generator.")
    if isinstance(inputs, (bytes, bytearray)):
        raise InputError(f"the input is {type(inputs).__name__}. Decode it first: text.decode('utf-8').")
    if isinstance(inputs, (list, tuple)):
        if not inputs:
            raise InputError("the input is an empty list. Give at least one item.")
        return Source(inputs, "list", len(inputs))
    if hasattr(inputs, "__getitem__") and hasattr(inputs, "__len__"):  # a data set, of torch or of others
        return Source((inputs[number] for number in range(len(inputs))), "data", len(inputs))
    if isinstance(inputs, Iterable):
        return _stream(inputs)
    raise InputError(
        f"the input is of type {type(inputs).__name__}. Give a text, a list of texts, a data set or a generator."
    )


def _stream(inputs: Iterable[Any]) -> Source:
    try:
        size = len(inputs)  # type: ignore[arg-type]
    except TypeError:
        return Source(inputs, "stream", None)
    return Source(inputs, "data", size)


def checked_text(value: Any, what: str = "the input") -> str:
    """Return `value` when it is a text.

    Raises:
        InputError: it is None, bytes or anything else.
    """
    if isinstance(value, str):
        return value
    if value is None:
        raise InputError(f"{what} is None, but must be a text.")
    if isinstance(value, (bytes, bytearray)):
        raise InputError(f"{what} is {type(value).__name__}, but must be a text. Decode it: text.decode('utf-8').")
    raise InputError(f"{what} is of type {type(value).__name__}, but must be a text.")


def compare_vocabularies(model: Any, tokenizer: Any) -> None:
    """Warn of a tokenizer with ids that the model lacks: a text with one of them will be refused.

    It is no error by itself, since a token that nobody uses does no harm.
    """
    tokens, rows = len(tokenizer), model.get_input_embeddings().num_embeddings
    if tokens > rows:
        logger.warning(
            "The tokenizer has %d tokens, but the model only %d: a text with one of the others is refused. Get the "
            "tokenizer of this model, or resize the model with resize_token_embeddings().",
            tokens,
            rows,
        )


def located(error: Exception, number: int) -> Exception:
    """Return the same error with the number of the item that it is about, counted from 0."""
    if isinstance(error, QuintetError):
        return type(error)(f"item {number} (counted from 0): {error}")
    return InputError(f"item {number} (counted from 0): {type(error).__name__}: {error}")


class Results(Iterator[Any]):
    """Results as they are made, one for each item."""

    def __init__(self, results: Iterator[Any]) -> None:
        self._results = results

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        return next(self._results)


class SizedResults(Results):
    """Results of a data set, whose number is known."""

    def __init__(self, results: Iterator[Any], size: int) -> None:
        super().__init__(results)
        self._size = size

    def __len__(self) -> int:
        return self._size


def with_progress(results: Iterator[Any], size: int | None, what: str) -> Iterator[Any]:
    """Pass results on and draw a bar on stderr."""
    import sys

    from tqdm import tqdm

    yield from tqdm(results, total=size, desc=what, unit="item", dynamic_ncols=True, file=sys.stderr)
