"""Chats as inputs of a pipeline: what is one, and how an answer is put into it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["answered", "chat_or_stream", "continues", "is_chat", "is_message"]


def is_message(value: Any) -> bool:
    """Whether `value` is one message of a chat."""
    return isinstance(value, Mapping) and "role" in value and "content" in value


def is_chat(value: Any) -> bool:
    """Whether `value` is a list of messages."""
    return isinstance(value, (list, tuple)) and bool(value) and all(map(is_message, value))


def continues(chat: Any, asked: bool | None) -> bool:
    """Whether a chat's last message is to be continued: as asked, else when it is the assistant's."""
    return chat[-1]["role"] == "assistant" if asked is None else bool(asked)


def answered(chat: Any, text: str, asked: bool | None) -> list[Any]:
    """The chat with the new text: in its last message, or as a message of its own."""
    if not continues(chat, asked):
        return [*chat, {"role": "assistant", "content": text}]
    last = chat[-1]
    return [*chat[:-1], {"role": last["role"], "content": last["content"] + text}]


def chat_or_stream(stream: Any) -> Any:
    """Read a generator's first item: messages are one chat; anything else stays a stream."""
    for first in stream:
        if is_message(first):
            return [first, *stream]

        def again(first: Any = first) -> Any:
            yield first
            yield from stream

        return again()
    return iter(())
