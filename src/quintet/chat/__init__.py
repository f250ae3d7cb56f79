"""Conversations: a chat format per family, one event type for answers, templates in a sandbox. No torch.

`chat_format(model_type or tokenizer)` returns the format. `format.render(messages, ...)` gives the prompt, whose ids
are `prompt.ids(tokenizer)`; `format.parser(tokenizer, prompt)` takes the answer's tokens one by one and gives events.
"""

from __future__ import annotations

from quintet.chat.base import ChatFormat
from quintet.chat.events import ChatEvent, collect, split_messages
from quintet.chat.messages import Call, Turn, read_messages
from quintet.chat.pieces import Piece, Rendered
from quintet.chat.registry import chat_format
from quintet.chat.stream import ChatParser
from quintet.chat.tools import function_schema, tool_schemas

__all__ = [
    "Call",
    "ChatEvent",
    "ChatFormat",
    "ChatParser",
    "Piece",
    "Rendered",
    "Turn",
    "chat_format",
    "collect",
    "function_schema",
    "read_messages",
    "split_messages",
    "tool_schemas",
]
