"""Conversations as people give them, checked, in one form for every chat format."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from quintet.errors import ChatError, suggest

__all__ = ["ROLES", "Call", "Turn", "read_messages", "short", "text_of"]

ROLES = ("system", "developer", "user", "assistant", "tool")
_ALIASES = {"function": "tool", "human": "user", "model": "assistant", "ai": "assistant"}
# Under which names people pass a message's reasoning; the first that is there counts.
_REASONING = ("reasoning_content", "thinking", "reasoning")


@dataclass(frozen=True)
class Call:
    """One call of a tool.

    Args:
        name: The tool.
        arguments: Its arguments as JSON text, or what the model wrote instead of it.
        call_id: What the answer refers to.
    """

    name: str
    arguments: str
    call_id: str | None = None

    def values(self) -> dict[str, Any]:
        """Return the arguments as a dict.

        Raises:
            ChatError: They are no JSON object.
        """
        try:
            found = json.loads(self.arguments or "{}")
        except ValueError as cause:
            raise ChatError(
                f"The arguments of the call of {self.name!r} are not JSON: {self.arguments[:80]!r} ({cause})."
            ) from cause
        if not isinstance(found, dict):
            raise ChatError(f"The arguments of the call of {self.name!r} must be a JSON object, not {found!r}.")
        return found


@dataclass(frozen=True)
class Turn:
    """One message, checked.

    Args:
        role: One of `ROLES`.
        content: Its text.
        reasoning: The model's reasoning before it.
        calls: The tools that it calls.
        name: Name of the author beside the role; of a tool's answer, the tool.
        channel, recipient, content_type: As in gpt-oss' format, where given.
    """

    role: str
    content: str = ""
    reasoning: str = ""
    calls: tuple[Call, ...] = ()
    name: str | None = None
    channel: str | None = None
    recipient: str | None = None
    content_type: str | None = None


def read_messages(messages: Any) -> list[Turn]:
    """Check a conversation and bring it into one form.

    Args:
        messages: A list of dicts with `role` and `content` (text, or a list of `{"type": "text", "text": ...}`);
            an assistant's may have `tool_calls` and `reasoning_content` (also named `thinking` or `reasoning`), a
            tool's has `tool_call_id` or `name`. `channel`, `recipient` and `content_type` are taken as they are.

    Raises:
        ChatError: No list, an empty one, or a message that is not like this; it says which.
    """
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Sequence):
        raise ChatError(
            f"A conversation must be a list of messages such as {{'role': 'user', 'content': 'Hello'}}, not "
            f"{short(messages)} of type {type(messages).__name__}."
        )
    if not messages:
        raise ChatError("The conversation is empty. Give at least one message: [{'role': 'user', 'content': 'Hello'}].")
    turns: list[Turn] = []
    names: dict[str, str] = {}  # of tools, by the ids of their calls
    last = None
    for number, message in enumerate(messages):
        turn = _read(message, f"Message {number}", names, last)
        for call in turn.calls:
            last = call.name
            if call.call_id is not None:
                names[call.call_id] = call.name
        turns.append(turn)
    return turns


def _read(message: Any, where: str, names: Mapping[str, str], last: str | None) -> Turn:
    if not isinstance(message, Mapping):
        raise ChatError(f"{where} must be a dict with 'role' and 'content', not {short(message)}.")
    given = message.get("role")
    role = _ALIASES.get(given, given) if isinstance(given, str) else given
    if role not in ROLES:
        hint = suggest(str(given), ROLES)
        raise ChatError(f"{where} has the role {given!r}, but it must be one of {list(ROLES)}.{hint}")
    reasoning = next((message[key] for key in _REASONING if message.get(key) is not None), "")
    calls = _read_calls(message.get("tool_calls"), where)
    if role != "assistant" and (calls or reasoning):
        raise ChatError(f"{where}: only an assistant's message can have tool calls or reasoning, not one of {role!r}.")
    content = message.get("content")
    if content is None and not (calls or reasoning):
        raise ChatError(f"{where} (role {role!r}) has no content. Give it a text, '' if it has nothing to say.")
    keys = ("name", "channel", "recipient", "content_type")
    texts = {key: _optional_text(message.get(key), key, where) for key in keys}
    if role == "tool" and not texts["name"]:
        # A tool's answer names the call that it answers; the format wants the tool's own name.
        texts["name"] = names.get(str(message.get("tool_call_id")), last)
    return Turn(role, text_of(content, where), text_of(reasoning, f"{where}, reasoning"), calls, **texts)


def text_of(content: Any, where: str = "A message") -> str:
    """Return the text of a message's content: a string, or a list of text parts.

    Raises:
        ChatError: Bytes, numbers, parts that are not text (pictures, sound).
    """
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, (list, tuple)):
        return "".join(_part(part, where) for part in content)
    hint = " Decode it first: content.decode('utf-8')." if isinstance(content, (bytes, bytearray)) else ""
    raise ChatError(
        f"{where}: the content must be a text or a list of text parts, not {short(content)} of type "
        f"{type(content).__name__}.{hint}"
    )


def _part(part: Any, where: str) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, Mapping) else None
    text = part.get("text") if isinstance(part, Mapping) else None
    if kind not in ("text", "input_text", "output_text") or not isinstance(text, str):
        raise ChatError(
            f"{where}: a part of the content must be {{'type': 'text', 'text': ...}}, not {short(part)}. These models "
            "read and write text only."
        )
    return text


def _read_calls(calls: Any, where: str) -> tuple[Call, ...]:
    if calls is None:
        return ()
    if not isinstance(calls, (list, tuple)):
        raise ChatError(f"{where}: tool_calls must be a list, not {short(calls)}.")
    return tuple(_read_call(call, where) for call in calls)


def _read_call(call: Any, where: str) -> Call:
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str) or not function["name"]:
        raise ChatError(
            f"{where}: a tool call must be {{'type': 'function', 'function': {{'name': ..., 'arguments': ...}}}}, not "
            f"{short(call)}."
        )
    arguments = function.get("arguments")
    if arguments is None:
        arguments = "{}"
    elif isinstance(arguments, Mapping):
        try:
            arguments = json.dumps(arguments, ensure_ascii=False)
        except (TypeError, ValueError) as cause:
            raise ChatError(f"{where}: the arguments of {function['name']!r} are not JSON: {cause}.") from cause
    elif not isinstance(arguments, str):
        name = function["name"]
        raise ChatError(f"{where}: the arguments of {name!r} must be a dict or JSON text, not {short(arguments)}.")
    call_id = call.get("id")
    return Call(function["name"], arguments, None if call_id is None else str(call_id))


def _optional_text(value: Any, key: str, where: str) -> str | None:
    if value is not None and (not isinstance(value, str) or not value):
        raise ChatError(f"{where}: {key} must be a text, not {short(value)}.")
    return value


def short(value: Any) -> str:
    """Return `repr(value)`, cut to a length that fits into a message."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
