"""What a chat reads from and writes to: a terminal with a person, or pipes. No torch, and nothing of models.

Whatever comes from a model passes `printable`: no control sequence reaches the terminal.
"""

from __future__ import annotations

import shutil
import sys
import textwrap
import time
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import IO

from quintet.chat import ChatEvent
from quintet.cli.common import printable, style
from quintet.errors import InputError

__all__ = ["Keyboard", "Pipe", "Screen", "gather"]

MAX_LINE_BYTES = 16 * 2**20
BLOCK = '"""'
# Ctrl-C this soon after an answer was meant for the answer.
GRACE_SECONDS = 1.0
_STYLES = {"reasoning": "dim", "budget": "dim", "other": "dim", "tool_call": "cyan"}
_HIDDEN = ("reasoning", "budget")


def gather(next_line: Callable[[bool], str | None]) -> str | None:
    r"""Read one message: a line; lines that end in a backslash and the one after; or all between two lines of \"\"\".

    Args:
        next_line: Returns the next line, or None at the end; its argument says whether the message goes on.

    Returns:
        The message, or None when there is none left.
    """
    text = next_line(False)
    if text is None:
        return None
    if text.lstrip().startswith(BLOCK):
        text = text.lstrip()[len(BLOCK) :]
        while not text.rstrip().endswith(BLOCK):
            line = next_line(True)
            if line is None:
                return text.removeprefix("\n")
            text += "\n" + line
        return text.rstrip().removesuffix(BLOCK).removeprefix("\n").removesuffix("\n")
    while text.endswith("\\"):
        line = next_line(True)
        text = text[:-1] + ("" if line is None else "\n" + line)
        if line is None:
            break
    return text


class Pipe:
    """Messages from a file or a pipe."""

    def read(self) -> str | None:
        """Return the next message, or None at the end.

        Raises:
            InputError: A line that is too long or not UTF-8.
        """
        return gather(self._line)

    def answered(self) -> None:
        """Say that an answer has ended: of no interest here."""

    def _line(self, more: bool) -> str | None:
        data = b"" if sys.stdin is None else sys.stdin.buffer.readline(MAX_LINE_BYTES + 1)
        if not data:
            return None
        if len(data) > MAX_LINE_BYTES:
            raise InputError(f"a line of stdin is longer than {MAX_LINE_BYTES >> 20} MiB. Split it first.")
        try:
            return data.decode("utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise InputError(
                f"stdin is not UTF-8 text: a line has byte 0x{data[error.start]:02x} at {error.start}. Convert it."
            ) from None


class Keyboard:
    """Messages that a person types, with history and completion where the standard library has readline.

    Args:
        color: Whether to colour the prompt.
        names: Of commands, to complete.
        hint: Tells the person something.
    """

    def __init__(self, color: bool, names: Iterable[str], hint: Callable[[str], object]) -> None:
        self._readline = _readline()
        self._hint, self._names = hint, sorted(names)
        self._color, self._lines, self._answered = color, 0, -GRACE_SECONDS
        if self._readline is not None:
            self._readline.set_auto_history(False)  # a message of several lines is one entry
            self._readline.set_completer(self._complete)
            self._readline.set_completer_delims(" \t\n")
            self._readline.parse_and_bind("tab: complete")

    def answered(self) -> None:
        """Say that an answer has ended just now."""
        self._answered = time.monotonic()

    def read(self) -> str | None:
        """Return the next message; "" when Ctrl-C took back what was typed; None when the person leaves."""
        self._lines = 0
        try:
            text = gather(self._line)
        except KeyboardInterrupt:
            print()
            typed = self._lines or (self._readline is not None and self._readline.get_line_buffer())
            if typed:
                return ""
            if time.monotonic() - self._answered < GRACE_SECONDS:
                self._hint("The answer had ended. Ctrl-C again leaves.")
                return ""
            return None
        if text is None:
            print()
        elif text.strip() and self._readline is not None:
            self._readline.add_history(text)
        return text

    def _line(self, more: bool) -> str | None:
        try:
            text = input(self._prompt("... " if more else "> "))
        except EOFError:
            return None
        self._lines += 1
        return text

    def _prompt(self, text: str) -> str:
        if not self._color:
            return text
        # Readline counts columns; between these two marks nothing has a width.
        begin, end = ("\x01", "\x02") if self._readline is not None else ("", "")
        return f"{begin}\x1b[1;36m{end}{text}{begin}\x1b[0m{end}"

    def _complete(self, text: str, number: int) -> str | None:
        found = [f"/{name} " for name in self._names if f"/{name}".startswith(text)] if text.startswith("/") else []
        return found[number] if number < len(found) else None


def _readline() -> ModuleType | None:
    """The standard library's readline; a Python built without it does without history."""
    try:
        import readline
    except ImportError:
        return None
    return readline


class Screen:
    """Shows answers as they come, and the program's own words.

    With a person at the terminal everything goes to stdout. Otherwise answers and tool calls do, and all else goes to
    stderr: reasoning, notes, speed.

    Args:
        interactive: A person is at the terminal.
        fold: Show reasoning as one line.
    """

    def __init__(self, *, interactive: bool, fold: bool = False) -> None:
        self.interactive, self.fold = interactive, fold
        self._message: int | None = None  # the message that is being shown
        self._part = ""
        self._newlines = ""  # held back: those at the end of a message are not shown
        self._empty = True  # nothing of this message yet
        self._thought = 0

    def show(self, event: ChatEvent, thought: int) -> None:
        """Show an event of an answer; `thought` is how many tokens of reasoning there have been."""
        self._thought = thought
        if event.kind not in ("start", "text", "tool_call"):
            return
        if event.message != self._message and (event.text or event.tool):
            self._close(event.part)
            self._message, self._part, self._empty = event.message, event.part, True
            if event.tool:
                self._write(f"tool call: {event.tool} ", event.part)
            elif self._folds and self.interactive:
                self._write("thinking ...", event.part)  # until `_close` writes over it
        if event.text and not self._folds:
            self._text(event.text)

    def finish(self) -> None:
        """End the answer; what comes next begins on a line of its own."""
        self._close("")
        self._message, self._part = None, ""

    def note(self, text: str) -> None:
        """Say something of the program's own."""
        stream = self._stream("note")
        for line in printable(text).split("\n"):
            parts = _wrapped(line, self._width()) or [""]
            for part in parts:
                self._put(style(part, "dim", stream), stream)
                self._put("\n", stream)

    def error(self, text: str) -> None:
        """Say what went wrong."""
        stream = sys.stdout if self.interactive else sys.stderr
        mark = style("error:", "red", stream)
        self._put(f"{mark} {' '.join(printable(text).split())}\n", stream)

    def text(self, text: str, part: str) -> None:
        """Show a whole text as a message of that part."""
        self._part, self._message, self._empty = part, -1, True
        self._text(text)
        self.finish()

    @property
    def _folds(self) -> bool:
        return self.fold and self._part in _HIDDEN

    def _text(self, text: str) -> None:
        if self._empty:
            text = text.lstrip("\n")
        kept = text.rstrip("\n")
        if kept:
            self._write(self._newlines + kept, self._part)
            self._newlines, self._empty = "", False
        self._newlines += text[len(kept) :]

    def _close(self, following: str) -> None:
        """End the line of the message that was shown last."""
        self._newlines = ""
        if self._message is None:
            return
        if self._folds:
            line = f"thought for {self._thought} tokens"
            self._write(f"\r{line}\n" if self.interactive else f"{line}\n", self._part)
        else:
            gap = "\n" if self.interactive and following and self._part in _HIDDEN else ""
            self._write("\n" + gap, self._part)

    def _stream(self, part: str) -> IO[str]:
        return sys.stdout if self.interactive or part in ("answer", "preamble", "tool_call") else sys.stderr

    def _write(self, text: str, part: str) -> None:
        stream = self._stream(part)
        name = _STYLES.get(part)
        begin = "\r" if text.startswith("\r") else ""
        text = printable(text[len(begin) :])
        if name and text.strip("\n"):
            text = style(text, name, stream)
        self._put(begin + text, stream)

    def _put(self, text: str, stream: IO[str]) -> None:
        encoding = getattr(stream, "encoding", None) or "utf-8"
        # A terminal that knows fewer characters gets the others as escapes.
        stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        stream.flush()

    def _width(self) -> int:
        return max(shutil.get_terminal_size().columns - 1, 20) if self.interactive else 10_000


def _wrapped(line: str, width: int) -> list[str]:
    """Wrap a line; a second column, behind two blanks or more, stays one where there is room for it."""
    head, gap, rest = line.partition("  ")
    indent = len(line) - len(rest.lstrip()) if gap and head.strip() else 0
    if indent > width // 2:
        line, indent = f"{head}  {rest.lstrip()}", 4
    return textwrap.wrap(line, width, subsequent_indent=" " * indent, break_on_hyphens=False)
