"""What a chat parser yields: one event type for every family, and the message that events add up to.

A model writes messages. Each has a `channel` that says whom it is for: "analysis" is its own reasoning, "final" the
answer, "commentary" a call of a tool or a word before one. A family without channels of its own gets these names from
its parser, so that a shell or a server needs one code path.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

__all__ = ["ChatEvent", "collect", "split_messages"]

# Recipients that are no tools: a message to them is a message to read.
_PEOPLE = frozenset({"assistant", "user", "all"})


@dataclass(frozen=True)
class ChatEvent:
    """One step of a model's output.

    The `raw` texts of all events, joined, are the decoded text of all tokens that were fed, special tokens included:
    nothing that the model wrote is lost, wherever it stood.

    Args:
        kind: "start" (a message begins; its header is known), "text" (a piece of text), "tool_call" (a piece of a
            tool call's arguments), "special" (a special token or stray text that means nothing where it stands),
            "end" (the message is over).
        message: Number of the message, from 0; -1 for a "special" before the first one.
        role: Who writes: "assistant", or what the model put there.
        channel: "analysis", "commentary", "final", or another that the model named; None when it named none.
        recipient: Whom a message is sent to, such as "functions.get_weather"; None for nobody in particular.
        content_type: "json", "code" or another that the model named.
        text: The new text, for "text" and "tool_call"; the name of the token, for "special".
        raw: The text of the tokens that this event stands for.
        reason: For "end": "end" (the message is complete), "return" (so is the turn), "call" (a tool is to be called),
            "cut" (the output stopped, or another message began, in the middle).
        name: Name of the author beside the role, such as the tool that answers.
    """

    kind: str
    message: int
    role: str = "assistant"
    channel: str | None = None
    recipient: str | None = None
    content_type: str | None = None
    text: str = ""
    raw: str = ""
    reason: str | None = None
    name: str | None = None

    @property
    def tool(self) -> str | None:
        """Name of the called tool without its namespace "functions.", None when the message calls none."""
        if self.role != "assistant" or self.recipient is None or self.recipient in _PEOPLE:
            return None
        return self.recipient.removeprefix("functions.")

    @property
    def part(self) -> str:
        """What a reader sees: "answer", "reasoning", "preamble" (words before a call), "tool_call", "budget", "other".

        "budget" is what Seed-OSS notes about the tokens it has left to think, "other" what it writes in the name of
        somebody else. A message in no channel, or in one that nobody knows, is an answer: better shown than hidden.
        """
        if self.role != "assistant":
            return "other"
        if self.tool is not None:
            return "tool_call"
        if self.content_type == "budget":
            return "budget"
        return {"analysis": "reasoning", "commentary": "preamble"}.get(self.channel or "", "answer")


def split_messages(events: Iterable[ChatEvent]) -> list[dict[str, Any]]:
    """Return each message of a parsed output by itself.

    Args:
        events: The events of one parser, from the first.

    Returns:
        Per message a dict with `role`, `name`, `channel`, `recipient`, `content_type`, `content` and `reason`. They
        can be given to `render` again.
    """
    found: dict[int, dict[str, Any]] = {}
    texts: dict[int, list[str]] = {}
    for event in events:
        if event.kind == "special":
            continue
        if event.message not in found:
            keys = ("role", "name", "channel", "recipient", "content_type")
            found[event.message] = {key: getattr(event, key) for key in keys}
            texts[event.message] = []
        texts[event.message].append(event.text if event.kind in ("text", "tool_call") else "")
        if event.kind == "end":
            found[event.message]["reason"] = event.reason
    return [
        {"reason": "cut", **message, "content": "".join(texts[number])} for number, message in sorted(found.items())
    ]


def collect(events: Iterable[ChatEvent]) -> dict[str, Any]:
    """Return the one assistant message that a turn's events add up to, in the form of the chat API.

    Args:
        events: The events of one parser, from the first.

    Returns:
        `{"role": "assistant", "content": ...}`, with `reasoning_content` and `tool_calls` where there are any. Text
        before a tool call is part of the content; text that was cut off is there as far as it came.
    """
    answer: list[str] = []
    reasoning: list[str] = []
    calls: dict[int, dict[str, Any]] = {}
    texts: dict[int, list[str]] = {}
    for event in events:
        if event.tool is not None and event.kind != "special":
            if event.message not in calls:
                function = {"name": event.tool, "arguments": ""}
                calls[event.message] = {"id": f"call_{len(calls)}", "type": "function", "function": function}
                texts[event.message] = []
            texts[event.message].append(event.text)
        elif event.kind == "text" and event.part == "reasoning":
            reasoning.append(event.text)
        elif event.kind == "text" and event.part in ("answer", "preamble"):
            answer.append(event.text)
    message: dict[str, Any] = {"role": "assistant", "content": "".join(answer)}
    if reasoning:
        message["reasoning_content"] = "".join(reasoning)
    for number, call in calls.items():
        call["function"]["arguments"] = "".join(texts[number])
    if calls:
        message["tool_calls"] = list(calls.values())
    return message
