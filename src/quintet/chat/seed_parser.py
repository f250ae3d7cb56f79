"""Reads what a Seed-OSS model writes, token by token, whatever it is.

`<seed:think>` begins reasoning, `<seed:cot_budget_reflect>` in it a note about the thinking budget, `<seed:tool_call>`
calls such as `<function=get_weather>`, `<parameter=city>Paris</parameter>`, `</function>`; each has its closing tag,
and everything else is the answer. The arguments of a call come out as pieces of JSON; the tools' schemas say of what
type they are, and what is not known to be something else is a string.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping, Sequence
from typing import Any

from quintet.chat.events import ChatEvent
from quintet.chat.pieces import Piece, token_id
from quintet.chat.stream import ChatParser, overlap

__all__ = ["SEED_TOKENS", "SeedParser", "argument_value"]

BOS, EOS = "<seed:bos>", "<seed:eos>"
THINK, END_THINK = "<seed:think>", "</seed:think>"
REFLECT, END_REFLECT = "<seed:cot_budget_reflect>", "</seed:cot_budget_reflect>"
TOOL, END_TOOL = "<seed:tool_call>", "</seed:tool_call>"
SEED_TOKENS = (BOS, EOS, THINK, END_THINK, REFLECT, END_REFLECT, TOOL, END_TOOL)
FUNCTION, END_FUNCTION, PARAMETER, END_PARAMETER = "<function=", "</function>", "<parameter=", "</parameter>"
ROLES = ("assistant", "user", "system", "tool")
_LONGEST_NAME = 256
_LARGEST_VALUE, _DEEPEST_VALUE = 1 << 16, 50

# What a text can contain in each state. "role" is behind <seed:bos>, "name" and "key" are inside of a tag.
_MARKS: dict[str, tuple[str, ...]] = {
    "role": ("\n",),
    "tool": (FUNCTION,),
    "name": (">",),
    "function": (PARAMETER, END_FUNCTION),
    "key": (">",),
    "value": (END_PARAMETER,),
}


class SeedParser(ChatParser):
    """The parser of Seed-OSS' format; see `ChatParser`.

    Args:
        tokenizer: The tokenizer of the model.
        opened: The open pieces of the prompt.
        tools: The functions that were offered, by name: their schemas say of what type arguments are.
    """

    def __init__(
        self, tokenizer: Any, opened: Sequence[Piece] = (), tools: Mapping[str, Mapping[str, Any]] | None = None
    ) -> None:
        self._tools = tools or {}
        # A vocabulary without these tokens spells them in letters.
        self._spelled = tuple(name for name in SEED_TOKENS if token_id(tokenizer, name) is None)
        super().__init__(tokenizer, SEED_TOKENS, opened)

    def _reset(self) -> None:
        self._state = "answer"  # or "think", "reflect", or one of _MARKS
        self._back = "answer"  # where the end of a reflection leads
        self._number = -1
        self._role = "assistant"
        self._open: dict[str, Any] | None = None  # channel, recipient, content_type of the open message
        self._held = ""  # raw text for which no event has come yet
        self._buffer = ""  # text that may be the beginning of a mark
        self._function = ""  # the function that is being called
        self._given = 0  # how many of its arguments have been given
        self._kind = ""  # the type of the current one
        self._value: list[str] = []  # its text, where the type has to be known as a whole

    # --- events -------------------------------------------------------------------------------------------------------

    def _emit(self, kind: str, *, text: str = "", raw: str | None = None, reason: str | None = None) -> None:
        fields = self._open or {}
        raw = text if raw is None else raw
        self._events.append(ChatEvent(kind, self._number, role=self._role, text=text, raw=raw, reason=reason, **fields))

    def _begin(self, channel: str, recipient: str | None = None, content_type: str | None = None) -> None:
        self._number += 1
        self._open = {"channel": channel, "recipient": recipient, "content_type": content_type}
        raw, self._held = self._held, ""
        self._emit("start", raw=raw)

    def _close(self, reason: str, raw: str = "") -> None:
        """End the open message; without one, keep `raw` for the next event."""
        if self._open is None:
            self._held += raw
            return
        self._emit("end", raw=raw, reason=reason)
        self._open = None

    def _stray(self, text: str) -> None:
        self._emit("special", text=text, raw=self._held + text)
        self._held = ""

    # --- tokens -------------------------------------------------------------------------------------------------------

    def _special(self, name: str) -> None:
        self._spill()
        state = self._state
        if name in (BOS, EOS):
            self._leave_call()
            self._close("return" if name == EOS else "cut", raw=name if name == EOS else "")
            if name == BOS:
                self._held += name
            self._state = "role" if name == BOS else "answer"
        elif name == THINK and state in ("answer"):
            self._close("end")
            self._held += name
            self._state = "think"
        elif name == END_THINK and state in ("think", "reflect"):
            self._close("end" if state == "think" else "cut", raw=name)
            self._state = "answer"
        elif name == REFLECT and state in ("answer", "think"):
            self._close("end")
            self._held += name
            self._state, self._back = "reflect", "think" if state == "think" else "answer"
        elif name == END_REFLECT and state == "reflect":
            self._close("end", raw=name)
            self._state = self._back
        elif name == TOOL and state in ("answer", "think", "reflect"):
            # A call in the middle of thinking ends the thinking.
            self._close("end" if state == "answer" else "cut")
            self._held += name
            self._state = "tool"
        elif name == END_TOOL and state in _MARKS:
            self._leave_call()
            self._held += name
            self._state = "answer"
        else:
            self._stray(name)

    def _text(self, text: str) -> None:
        self._buffer += text
        while self._buffer:
            marks = (*_MARKS.get(self._state, ()), *self._spelled)
            found = [(place, mark) for mark in marks if (place := self._buffer.find(mark)) >= 0]
            if not found:
                kept = max((overlap(self._buffer, mark) for mark in marks), default=0)
                text, self._buffer = self._buffer[: len(self._buffer) - kept], self._buffer[len(self._buffer) - kept :]
                if text:
                    self._plain(text)
                return
            place, mark = min(found)
            text, self._buffer = self._buffer[:place], self._buffer[place + len(mark) :]
            if text:
                self._plain(text)
            if mark in SEED_TOKENS:
                rest, self._buffer = self._buffer, ""
                self._special(mark)
                self._buffer = rest
            elif mark in _MARKS.get(self._state, ()):
                self._mark(mark)
            else:
                # The text before the mark has led to a state in which it is none.
                self._plain(mark)

    def _spill(self) -> None:
        """Give out what is held back as possible beginning of a mark: none has come."""
        text, self._buffer = self._buffer, ""
        if text:
            self._plain(text)
        if self._state in ("name", "key"):
            self._drop_name()
        elif self._state == "role":
            self._end_role("")

    def _plain(self, text: str) -> None:
        """Take text without a mark in it."""
        if self._state in ("answer", "think", "reflect"):
            if self._open is None:
                stripped = text.lstrip()
                self._held += text[: len(text) - len(stripped)]
                if not stripped:
                    return
                channel = "final" if self._state == "answer" else "analysis"
                self._begin(channel, content_type="budget" if self._state == "reflect" else None)
                text = stripped
            self._emit("text", text=text)
        elif self._state == "role":
            self._value.append(text)
            if sum(map(len, self._value)) > _LONGEST_NAME:
                self._end_role("")
        elif self._state in ("name", "key"):
            self._value.append(text)
            if sum(map(len, self._value)) > _LONGEST_NAME or "\n" in text or "<" in text:
                self._drop_name()
        elif self._state == "value":
            self._argument(text)
        elif text.isspace() and self._state == "function":
            self._emit("tool_call", raw=text)
        elif text.isspace():
            self._held += text
        else:
            self._stray(text)

    def _finish(self) -> None:
        self._spill()
        self._leave_call()
        self._close("cut")
        if self._held:
            self._emit("special", raw=self._held)
            self._held = ""

    def _forget(self) -> None:
        self._held = ""

    # --- roles and calls ----------------------------------------------------------------------------------------------

    def _end_role(self, mark: str) -> None:
        """The word behind <seed:bos> is complete."""
        word, self._value = "".join(self._value), []
        self._state = "answer"
        self._role = word if word in ROLES else "assistant"
        if word in ROLES or not word:
            self._held += word + mark
        else:
            self._plain(word + mark)

    def _mark(self, mark: str) -> None:
        if self._state == "role":
            self._end_role(mark)
        elif mark in (FUNCTION, PARAMETER):
            self._state = "name" if mark == FUNCTION else "key"
            self._value = []
        elif mark == ">" and self._state == "name":
            self._function, self._given, self._value = "".join(self._value), 0, []
            self._held += f"{FUNCTION}{self._function}>"
            self._begin("commentary", self._function.strip() or "?", "json")
            self._state = "function"
        elif mark == ">":
            self._open_argument()
        elif mark == END_PARAMETER:
            self._close_argument(mark)
        else:
            self._emit("tool_call", text="}" if self._given else "{}", raw="")
            self._close("call", raw=mark)
            self._state = "tool"

    def _drop_name(self) -> None:
        """What was read as the name in a tag is too long or broken: it is stray text."""
        tag = FUNCTION if self._state == "name" else PARAMETER
        text, self._value = tag + "".join(self._value), []
        self._state = "tool" if self._state == "name" else "function"
        self._stray(text)

    def _open_argument(self) -> None:
        key, self._value = "".join(self._value), []
        schema = self._tools.get(self._function.strip(), {}).get("parameters") or {}
        found = (schema.get("properties") or {}).get(key.strip())
        kind = found.get("type") if isinstance(found, Mapping) else None
        kinds = kind if isinstance(kind, list) else [kind or "string"]
        self._kind = "string" if "string" in kinds else str(kinds[0] if kinds else "string")
        text = f"{', ' if self._given else '{'}{json.dumps(key.strip(), ensure_ascii=False)}: "
        self._given += 1
        self._emit("tool_call", text=text + ('"' if self._kind == "string" else ""), raw=f"{PARAMETER}{key}>")
        self._state = "value"

    def _argument(self, text: str) -> None:
        if self._kind == "string":
            self._emit("tool_call", text=json.dumps(text, ensure_ascii=False)[1:-1], raw=text)
        else:
            self._value.append(text)
            self._emit("tool_call", raw=text)

    def _close_argument(self, mark: str) -> None:
        text = '"' if self._kind == "string" else argument_value("".join(self._value))
        self._value = []
        self._emit("tool_call", text=text, raw=mark)
        self._state = "function"

    def _leave_call(self) -> None:
        """The call ends, or the output does, before its closing tag."""
        if self._state == "function":
            # All arguments are complete; only the tag is missing.
            self._emit("tool_call", text="}" if self._given else "{}", raw="")
            self._close("call")
        elif self._state == "value":
            # An argument is cut off: its JSON stays open, so that nobody takes it for whole.
            self._value = []
            self._close("cut")


def argument_value(text: str) -> str:
    """Return an argument that is no string as JSON: the model writes JSON or Python (`True`, `None`, `['a']`).

    What is neither is given as a string.
    """
    try:
        return json.dumps(json.loads(text, parse_constant=_refuse), ensure_ascii=False, allow_nan=False)
    except (ValueError, RecursionError):
        pass
    if len(text) <= _LARGEST_VALUE and _depth(text) <= _DEEPEST_VALUE:
        try:
            return json.dumps(ast.literal_eval(text.strip()), ensure_ascii=False, allow_nan=False)
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            pass
    return json.dumps(text, ensure_ascii=False)


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _depth(text: str) -> int:
    """An upper bound of the nesting, signs and brackets: the parser of Python may not survive a deep one."""
    return sum(text.count(char) for char in "([{-+~")
