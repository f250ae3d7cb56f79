"""Reads what a gpt-oss model writes, token by token, whatever it is.

The grammar: `<|start|>{role}[ to={recipient}]<|channel|>{channel}[ to={recipient}][ <|constrain|>{type}]<|message|>
{content}` and one of `<|end|>`, `<|return|>`, `<|call|>`. After a prompt the first `<|start|>assistant` is already
there. What does not fit is read as follows:

- A header without `<|message|>`: when a message ends or begins, or it grows too long to be one, its text is content.
- `<|start|>` inside a message cuts it; so does `<|channel|>` when what follows is a header with its `<|message|>`.
- A missing `<|start|>`, role or channel is taken as the assistant's, in no channel.
- Any other special token is an event of its own, and no text.

Source of the grammar: the format's public description, github.com/openai/harmony, docs/format.md.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from quintet.chat.events import ChatEvent
from quintet.chat.pieces import Piece
from quintet.chat.stream import ChatParser

__all__ = ["CHANNELS", "ENDS", "HARMONY_TOKENS", "HarmonyParser"]

START, CHANNEL, CONSTRAIN, MESSAGE = "<|start|>", "<|channel|>", "<|constrain|>", "<|message|>"
ENDS = {"<|end|>": "end", "<|return|>": "return", "<|call|>": "call"}
HARMONY_TOKENS = (START, CHANNEL, CONSTRAIN, MESSAGE, *ENDS)
CHANNELS = ("analysis", "commentary", "final")
ROLES = ("assistant", "user", "system", "developer", "tool")
# A lone word behind the channel is a recipient, as in openai-harmony, unless it is one of these.
_TYPES = frozenset({"json", "code", "text"})
# No header is longer; tool names have at most 64 characters. What is longer was never meant as a header.
_LONGEST, _MOST_SPACES = 512, 8
_ROLE = re.compile(rf"\s*({'|'.join(ROLES)})(?![\w.-])")
_KNOWN_CHANNEL = re.compile(rf"\s*({'|'.join(CHANNELS)})(?!\w)")


@dataclass(frozen=True)
class _Header:
    """Who writes the message, where and to whom."""

    role: str = "assistant"
    name: str | None = None
    channel: str | None = None
    recipient: str | None = None
    content_type: str | None = None


class HarmonyParser(ChatParser):
    """The parser of gpt-oss' format; see `ChatParser`.

    Args:
        tokenizer: The tokenizer of the model.
        opened: The open pieces of the prompt; by default `<|start|>assistant`.
        role: With `opened` empty: the role of the first message, None when the tokens begin with `<|start|>`.
    """

    def __init__(self, tokenizer: Any, opened: Sequence[Piece] = (), role: str | None = None) -> None:
        self._first_role = role
        super().__init__(tokenizer, HARMONY_TOKENS, opened)

    def _reset(self) -> None:
        self._number = -1  # of the message
        self._header: _Header | None = None  # of the open message: None outside of one
        self._parts: list[Piece] | None = None  # of a header that is being read; None in content and between messages
        self._size = self._spaces = 0
        self._known = _Header()  # what the prompt says of the header that is being read
        if self._first_role is not None:
            self._open_header([])

    # --- events -------------------------------------------------------------------------------------------------------

    def _emit(self, kind: str, *, text: str = "", raw: str | None = None, reason: str | None = None) -> None:
        header = self._header or _Header()
        event = ChatEvent(
            kind,
            self._number,
            role=header.role,
            channel=header.channel,
            recipient=header.recipient,
            content_type=header.content_type,
            text=text,
            raw=text if raw is None else raw,
            reason=reason,
            name=header.name,
        )
        if kind == "text" and event.tool is not None:
            event = ChatEvent(**{**vars(event), "kind": "tool_call"})
        self._events.append(event)

    def _begin(self, header: _Header, raw: str) -> None:
        self._close("cut", raw="")
        self._number += 1
        self._header, self._parts = header, None
        self._emit("start", raw=raw)

    def _close(self, reason: str, raw: str) -> None:
        if self._header is not None:
            self._emit("end", raw=raw, reason=reason)
            self._header = None
        elif raw:
            self._emit("special", text=raw)

    # --- tokens -------------------------------------------------------------------------------------------------------

    def _text(self, text: str) -> None:
        if self._parts is None and self._header is not None:
            self._emit("text", text=text)
            return
        if self._parts is None:
            self._open_header([])
        self._add(Piece(text))

    def _special(self, name: str) -> None:
        if self._parts is None:
            if name in (START, CHANNEL) or (self._header is None and name in (CONSTRAIN, MESSAGE)):
                self._open_header([])
            elif name in ENDS:
                self._close(ENDS[name], raw=name)
                return
            else:
                self._emit("special", text=name)
                return
        self._header_special(name)

    def _open_header(self, parts: list[Piece]) -> None:
        self._parts, self._size, self._spaces = parts, 0, 0

    def _add(self, piece: Piece) -> None:
        self._parts = [] if self._parts is None else self._parts
        self._parts.append(piece)
        self._size += len(piece.text)
        self._spaces += piece.text.count(" ") + piece.text.count("\n")
        if self._size > _LONGEST or self._spaces > _MOST_SPACES:
            self._give_up()

    def _header_special(self, name: str) -> None:
        parts = self._parts or []
        if name == MESSAGE:
            role = (self._header.role if self._header else self._first_role) or None
            raw = "".join(piece.text for piece in parts) + name
            header = _with_defaults(_read_header(parts, role), self._known)
            self._first_role, self._known = None, _Header()
            self._begin(header, raw)
        elif name in ENDS:
            self._give_up()
            self._close(ENDS[name], raw=name)
        elif name == START:
            if parts:
                self._give_up()
            self._close("cut", raw="")
            self._first_role = None
            self._open_header([])
            self._add(Piece(name, special=True))
        else:
            self._add(Piece(name, special=True))

    def _give_up(self) -> None:
        """What was read as a header is none: give it out as content, but for the role and channel it begins with."""
        parts, self._parts = _merged(self._parts or []), None
        inside = self._header
        if inside is None:
            consumed, header, parts = _read_broken(parts)
            if not parts and not header.channel:
                # Nothing but a role, or nothing at all: no message.
                if consumed:
                    self._emit("special", text=consumed)
                return
            self._begin(header, consumed)
        self._first_role = None
        for piece in parts:
            self._emit("special" if piece.special else "text", text=piece.text)

    def _finish(self) -> None:
        if self._parts is not None:
            self._give_up()
        self._close("cut", raw="")

    def _forget(self) -> None:
        if self._parts is not None:
            # The prompt ends inside a header, as after `<|start|>assistant`: the role is known, the rest is to come.
            self._known = _read_header(self._parts, None)
            self._first_role = self._known.role
            self._open_header([])


def _merged(parts: Sequence[Piece]) -> list[Piece]:
    """Join neighbouring texts."""
    merged: list[Piece] = []
    texts: list[str] = []
    for piece in [*parts, None]:
        if piece is not None and not piece.special:
            texts.append(piece.text)
            continue
        if texts:
            merged.append(Piece("".join(texts)))
            texts = []
        if piece is not None:
            merged.append(piece)
    return merged


def _read_header(parts: Sequence[Piece], role: str | None) -> _Header:
    """Read a header that came to its `<|message|>`; `role` is what the prompt has said already."""
    channel = content_type = None
    front: list[str] = []  # words before the channel
    words: list[str] = []
    before = ""
    for piece in _merged(parts):
        if piece.special:
            before = "" if piece.text == START else piece.text
            continue
        found = piece.text.split()
        if not before:
            front += found
            continue
        if before == CHANNEL and channel is None and found:
            channel = found.pop(0)
        elif before == CONSTRAIN and content_type is None and found:
            content_type = found.pop(0)
        words += found
    name = None
    if role is None and front and front[0] in CHANNELS:
        role = "assistant"
    if role is None:
        role, name = _author(front)
    elif front and front[0] == role:
        front.pop(0)
    if channel is None and front and front[0] in CHANNELS:
        channel = front.pop(0)
    recipient, content_type = _addressee(front + words, content_type)
    return _Header(role, name, channel, recipient, content_type)


def _with_defaults(header: _Header, known: _Header) -> _Header:
    """Fill in what the prompt says already."""
    return _Header(
        header.role,
        header.name or known.name,
        header.channel or known.channel,
        header.recipient or known.recipient,
        header.content_type or known.content_type,
    )


def _author(words: list[str]) -> tuple[str, str | None]:
    """Take the role and name off the front of a header's words. A word that is no role is the name of a tool."""
    if not words or words[0].startswith("to="):
        return "assistant", None
    word = words.pop(0)
    role, colon, name = word.partition(":")
    if role in ROLES:
        return role, name if colon else None
    return "tool", word


def _addressee(words: list[str], content_type: str | None) -> tuple[str | None, str | None]:
    """Read recipient and content type from what is left of a header's words."""
    recipient = None
    rest = []
    for place, word in enumerate(words):
        if recipient is None and word.startswith("to="):
            recipient = word[3:]
            if not recipient and place + 1 < len(words):
                recipient = words[place + 1]
                words[place + 1] = ""
        elif word:
            rest.append(word)
    if rest and content_type is None and (recipient or len(rest) > 1 or rest[-1] in _TYPES):
        content_type = rest.pop()
    if rest and not recipient:
        recipient = rest.pop()
    return recipient or None, content_type


def _read_broken(parts: list[Piece]) -> tuple[str, _Header, list[Piece]]:
    """Split a header without `<|message|>` into its known beginning, what that says, and the rest."""
    rest = list(parts)
    consumed, role, channel = "", "assistant", None
    if rest and rest[0].text == START and rest[0].special:
        consumed = rest.pop(0).text
    if rest and not rest[0].special:
        found = _ROLE.match(rest[0].text)
        if found:
            role = found.group(1)
            consumed += found.group()
            rest[0] = Piece(rest[0].text[found.end() :])
    if len(rest) > 1 and not rest[0].special and not rest[0].text.strip() and rest[1].text == CHANNEL:
        consumed += rest.pop(0).text
    if len(rest) > 1 and rest[0].special and rest[0].text == CHANNEL and not rest[1].special:
        found = _KNOWN_CHANNEL.match(rest[1].text)
        if found:
            channel = found.group(1)
            consumed += CHANNEL + found.group()
            rest[:2] = [Piece(rest[1].text[found.end() :])]
    return consumed, _Header(role, channel=channel), [piece for piece in rest if piece.text]
