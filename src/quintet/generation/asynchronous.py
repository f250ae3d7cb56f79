"""Columns of tokens for an event loop: the model runs in a worker thread, one step ahead of the reader at most."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, TypeVar

__all__ = ["read_in_thread"]

ItemT = TypeVar("ItemT")
_END = object()


async def read_in_thread(items: Iterator[ItemT]) -> AsyncIterator[ItemT]:
    """Give what a generator gives, reading it in a thread of its own.

    The next item is made while the reader looks at this one, and no further one: a slow reader holds the generator up.
    When the reader stops (break, an exception, its task is cancelled), the item that is being made is waited for and
    thrown away, and the generator is closed, in its thread: nothing runs any more when control comes back.
    """
    loop = asyncio.get_running_loop()
    # One thread for the whole run: what is set for a thread (no gradients) stays set between two items.
    thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="quintet-generate")

    def ask(call: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:
        return loop.run_in_executor(thread, call, *args)

    coming = ask(next, items, _END)
    try:
        while (item := await asyncio.shield(coming)) is not _END:
            coming = ask(next, items, _END)
            yield item
    finally:
        close = getattr(items, "close", None)
        await _settled(coming)
        if close is not None:
            await _settled(ask(close))
        thread.shutdown(wait=False)


async def _settled(future: asyncio.Future[Any]) -> None:
    """Wait for a future whatever it ends with, and although the task may be cancelled again: a step is short."""
    while not future.done():
        with suppress(asyncio.CancelledError):
            await asyncio.wait([future])
    if not future.cancelled():
        future.exception()  # fetched: nobody else will, and asyncio would complain
