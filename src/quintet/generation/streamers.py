"""Streamers: objects that `generate` hands the prompt, every new token and the end of the text as they come.

A text streamer gives out every character as soon as it is complete, and never a part of one. The texts that it gives,
joined, are the tokenizer's decoding of all tokens. No torch here: tokens are read through `tolist()`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from queue import Queue
from typing import Any

from quintet.errors import GenerationError

__all__ = ["AsyncTextIteratorStreamer", "BaseStreamer", "TextIteratorStreamer", "TextStreamer"]

REPLACEMENT = "\ufffd"
# A character has at most four bytes, and so at most four byte tokens; beyond this the bytes are just not UTF-8.
MAX_PENDING = 8


class BaseStreamer:
    """Base of all streamers."""

    def put(self, value: Any) -> None:
        """Take the prompt, (B, S), and then each column of new tokens, (B,)."""
        raise NotImplementedError(f"{type(self).__name__} must define put(value).")

    def end(self) -> None:
        """Take note that the text is complete."""
        raise NotImplementedError(f"{type(self).__name__} must define end().")

    def fail(self, error: BaseException) -> None:
        """Take note that `generate` stopped with an error; called in place of `end`."""


class _TailDecoder:
    """Decodes one token at a time with any tokenizer that has `decode`, in linear time.

    A token's text is what it adds to the decoding of the few tokens before it: alone, it could lose its leading space.
    """

    def __init__(self, tokenizer: Any, decode_kwargs: dict[str, Any]) -> None:
        self._tokenizer = tokenizer
        self._kwargs = decode_kwargs
        self._ids: list[int] = []
        self._context = 0  # how many of the ids have been given out; they are kept to decode the next ones after
        self._shown = ""  # the text of those
        self._text = ""  # the text of all ids

    def _decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, **self._kwargs)) if ids else ""

    def put(self, token: int) -> str:
        """Take a token and return the characters that are complete now."""
        text = self._decode([*self._ids, token])
        if self._ids and text == self._text and not self._decode([token]):
            return ""  # a special token that is left out; bytes of one character may stand on both of its sides
        self._ids.append(token)
        self._text = text
        if text.endswith(REPLACEMENT) and len(self._ids) - self._context < MAX_PENDING:
            return ""
        complete = len(self._ids) - self._unfinished()
        whole = self._decode(self._ids[:complete])
        if len(whole) <= len(self._shown):
            return ""
        piece = whole[len(self._shown) :]
        self._ids, self._context = self._ids[self._context :], complete - self._context
        self._shown, self._text = self._decode(self._ids[: self._context]), self._decode(self._ids)
        return piece

    def _unfinished(self) -> int:
        """Count the tokens at the end that may be the beginning of a character: at most three bytes, shown as one."""
        for count in (1, 2, 3) if self._text.endswith(REPLACEMENT) else ():
            if self._decode(self._ids[:-count]) + REPLACEMENT == self._text:
                return count
        return 0

    def end(self) -> str:
        """Return what is left, bytes of an incomplete character as the tokenizer shows them."""
        rest = self._text[len(self._shown) :]
        self._ids, self._context, self._shown, self._text = [], 0, "", ""
        return rest


class TextStreamer(BaseStreamer):
    """Prints the text of one sequence while it is being made.

    Args:
        tokenizer: The model's tokenizer.
        skip_prompt: Leave out the prompt.
        **decode_kwargs: Keywords of the tokenizer's `decode`, such as `skip_special_tokens=True`.
    """

    def __init__(self, tokenizer: Any, skip_prompt: bool = False, **decode_kwargs: Any) -> None:
        self.tokenizer = tokenizer
        self.skip_prompt = skip_prompt
        self.decode_kwargs = decode_kwargs
        self.next_tokens_are_prompt = True
        self._decoder = self._new_decoder()

    def _new_decoder(self) -> Any:
        if hasattr(self.tokenizer, "stream_decoder"):
            return self.tokenizer.stream_decoder(**self.decode_kwargs)
        return _TailDecoder(self.tokenizer, self.decode_kwargs)

    def put(self, value: Any) -> None:
        """Take tokens and hand on the text that they complete.

        Raises:
            GenerationError: more than one row.
        """
        rows = value.tolist()
        if rows and isinstance(rows[0], list):
            if len(rows) > 1:
                raise GenerationError(_one_row(type(self).__name__, len(rows)))
            rows = rows[0]
        elif len(rows) > 1 and not self.next_tokens_are_prompt:
            raise GenerationError(_one_row(type(self).__name__, len(rows)))
        is_prompt, self.next_tokens_are_prompt = self.next_tokens_are_prompt, False
        if is_prompt and self.skip_prompt:
            return
        text = "".join([self._decoder.put(token) for token in rows])
        if text:
            self.on_finalized_text(text)

    def end(self) -> None:
        """Hand on what is left, and get ready for the next text."""
        text = self._decoder.end()
        self._decoder = self._new_decoder()
        self.next_tokens_are_prompt = True
        self.on_finalized_text(text, stream_end=True)

    def fail(self, error: BaseException) -> None:
        """Forget the text that was begun."""
        self._decoder = self._new_decoder()
        self.next_tokens_are_prompt = True

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Do something with a piece of text; subclasses override it.

        Args:
            text: Complete characters that follow the last piece.
            stream_end: Whether this is the last piece, which may be empty.
        """
        print(text, flush=True, end="\n" if stream_end else "")


def _one_row(name: str, rows: int) -> str:
    return (
        f"{name} shows one sequence, and got {rows} rows. Generate for one prompt with num_return_sequences=1, or read "
        "model.generate_iter(...)."
    )


class _Failure:
    def __init__(self, error: BaseException) -> None:
        self.error = error


class TextIteratorStreamer(TextStreamer):
    """Gives the pieces of text through an iterator, for a consumer in another thread than `generate`.

    When `generate` fails, the iterator raises the same error.

    Args:
        tokenizer: The model's tokenizer.
        skip_prompt: Leave out the prompt.
        timeout: Seconds to wait for a piece before `queue.Empty` is raised; None waits for ever.
        **decode_kwargs: Keywords of the tokenizer's `decode`.
    """

    def __init__(
        self, tokenizer: Any, skip_prompt: bool = False, timeout: float | None = None, **decode_kwargs: Any
    ) -> None:
        super().__init__(tokenizer, skip_prompt, **decode_kwargs)
        self.text_queue: Queue[Any] = Queue()
        self.stop_signal = None
        self.timeout = timeout

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Put the piece into the queue."""
        if text:
            self.text_queue.put(text)
        if stream_end:
            self.text_queue.put(self.stop_signal)

    def fail(self, error: BaseException) -> None:
        """Make the iterator raise `error`."""
        super().fail(error)
        self.text_queue.put(_Failure(error))

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        value = self.text_queue.get(timeout=self.timeout)
        if isinstance(value, _Failure):
            raise value.error
        if value is self.stop_signal:
            raise StopIteration
        return str(value)


class AsyncTextIteratorStreamer(TextStreamer):
    """Gives the pieces of text through an asynchronous iterator; make it inside the event loop that reads it.

    When `generate` (in another thread) fails, the iterator raises the same error.

    Args:
        tokenizer: The model's tokenizer.
        skip_prompt: Leave out the prompt.
        timeout: Seconds to wait for a piece before TimeoutError is raised; None waits for ever.
        **decode_kwargs: Keywords of the tokenizer's `decode`.
    """

    def __init__(
        self, tokenizer: Any, skip_prompt: bool = False, timeout: float | None = None, **decode_kwargs: Any
    ) -> None:
        super().__init__(tokenizer, skip_prompt, **decode_kwargs)
        self.text_queue: asyncio.Queue[Any] = asyncio.Queue()
        self.stop_signal = None
        self.timeout = timeout
        try:
            self.loop = asyncio.get_running_loop()
        except RuntimeError as error:
            raise GenerationError(
                "AsyncTextIteratorStreamer must be made inside a running event loop: in an `async def`."
            ) from error

    def _hand_over(self, value: Any) -> None:
        self.loop.call_soon_threadsafe(self.text_queue.put_nowait, value)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Put the piece into the queue of the event loop."""
        if text:
            self._hand_over(text)
        if stream_end:
            self._hand_over(self.stop_signal)

    def fail(self, error: BaseException) -> None:
        """Make the iterator raise `error`."""
        super().fail(error)
        self._hand_over(_Failure(error))

    def __aiter__(self) -> AsyncIterator[str]:
        return self

    async def __anext__(self) -> str:
        try:
            value = await asyncio.wait_for(self.text_queue.get(), self.timeout)
        except asyncio.TimeoutError as error:  # before Python 3.11 another class than the built-in
            raise TimeoutError(f"no text came for {self.timeout} seconds.") from error
        if isinstance(value, _Failure):
            raise value.error
        if value is self.stop_signal:
            raise StopAsyncIteration
        return str(value)
