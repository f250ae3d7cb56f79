"""What every parser is built on: tokens in, text and special tokens out, nothing lost."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, Protocol

from quintet.chat.events import ChatEvent
from quintet.chat.pieces import Piece, token_id
from quintet.errors import ChatError, TokenizerError

__all__ = ["ChatParser", "TokenReader", "overlap"]


class _Decoder(Protocol):
    def put(self, token_id: int) -> str: ...

    def end(self) -> str: ...


class TokenReader:
    """Turns ids into text and the names of special tokens; bytes of a character over several tokens are held back.

    Args:
        tokenizer: A tokenizer of this library.
        names: Tokens that the format gives a meaning, which need not be marked as special in the vocabulary.
    """

    def __init__(self, tokenizer: Any, names: Iterable[str] = ()) -> None:
        added = tokenizer.added_tokens_decoder
        self.specials: dict[int, str] = {index: str(token) for index, token in added.items() if token.special}
        for name in names:
            index = token_id(tokenizer, name)
            if index is not None:
                self.specials[index] = name
        self._decoder: _Decoder = tokenizer.stream_decoder()

    def read(self, index: int) -> tuple[str, str | None]:
        """Return the text that has become certain, and the special token behind it, if it is one.

        An id that the vocabulary does not have (models have more rows than tokens) is a special token "<|id|>".

        Raises:
            ChatError: `index` is not an integer.
        """
        if isinstance(index, bool) or not hasattr(index, "__index__"):
            raise ChatError(f"A parser takes token ids one by one, not {index!r} of type {type(index).__name__}.")
        index = index.__index__()
        name = self.specials.get(index)
        if name is None:
            try:
                return self._decoder.put(index), None
            except TokenizerError:
                name = f"<|{index}|>"
        return self._decoder.end(), name

    def end(self) -> str:
        """Return what was held back."""
        return self._decoder.end()


class ChatParser(ABC):
    """Feed a model's tokens one by one with `feed`, finish with `end`; both return events.

    Whatever the model wrote, a parser raises nothing and loses nothing: see `ChatEvent.raw`.

    Args:
        tokenizer: The tokenizer of the model.
        names: The special tokens of the format.
        opened: The pieces of the prompt's last, unfinished message: the model goes on from there.
    """

    def __init__(self, tokenizer: Any, names: Iterable[str] = (), opened: Sequence[Piece] = ()) -> None:
        self._reader = TokenReader(tokenizer, names)
        self._events: list[ChatEvent] = []
        self._ended = False
        self._reset()
        for piece in opened:
            if piece.special:
                self._special(piece.text)
            else:
                self._text(piece.text)
        # Only that a message has begun is news to whoever reads the answer; its text is in the prompt.
        started = [event for event in self._events if event.kind == "start"]
        self._events = [replace(event, raw="", text="") for event in started[-1:]]
        self._forget()

    def feed(self, token_id: int) -> list[ChatEvent]:
        """Take one token and return what has become certain, often nothing.

        Raises:
            ChatError: Not a token id, or `end` was called before.
        """
        if self._ended:
            raise ChatError("This parser has ended; make a new one for the next answer.")
        text, special = self._reader.read(token_id)
        if text:
            self._text(text)
        if special is not None:
            self._special(special)
        return self._taken()

    def end(self) -> list[ChatEvent]:
        """Say that no more tokens come; returns what was held back, and the "end" of a message that was cut off."""
        if not self._ended:
            self._ended = True
            text = self._reader.end()
            if text:
                self._text(text)
            self._finish()
        return self._taken()

    def parse(self, token_ids: Iterable[int]) -> list[ChatEvent]:
        """Feed all of `token_ids`, end, and return every event."""
        events = [event for index in token_ids for event in self.feed(index)]
        return events + self.end()

    def _taken(self) -> list[ChatEvent]:
        events, self._events = self._events, []
        return events

    @abstractmethod
    def _reset(self) -> None:
        """Set the state before the first token."""

    @abstractmethod
    def _text(self, text: str) -> None:
        """Take text."""

    @abstractmethod
    def _special(self, name: str) -> None:
        """Take a special token."""

    @abstractmethod
    def _finish(self) -> None:
        """Give out what is held back and end the open message."""

    def _forget(self) -> None:  # noqa: B027 (most formats have nothing to forget)
        """Drop from the state what belongs to the prompt and would otherwise be given out as the model's."""


def overlap(text: str, mark: str) -> int:
    """Length of the longest end of `text` that is a beginning of `mark`."""
    sizes = range(min(len(mark) - 1, len(text)), 0, -1)
    return next((size for size in sizes if mark.startswith(text[len(text) - size :])), 0)
