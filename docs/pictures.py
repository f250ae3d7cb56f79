"""Draws the pictures of docs/shell.md: runs the real commands in a pseudo-terminal and writes what is seen as SVG.

    python docs/pictures.py            # all
    python docs/pictures.py chat info  # some

Unix only. Times and speeds in the pictures are those of the machine that drew them.
"""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from dataclasses import dataclass, field
from pathlib import Path
from xml.sax.saxutils import escape

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "docs" / "pictures"
COLUMNS = 96
PATIENCE = 300.0
PROMPT = r"> \x1b\[0m\Z"  # the coloured prompt of `quintet chat`, with nothing behind it

# By picture: command lines, each with what is typed, as pairs (wait for this, then type that).
PICTURES: dict[str, list[tuple[list[str], list[tuple[str, str]]]]] = {
    "chat": [
        (
            ["chat", "--seed", "11", "-n", "120", "--temperature", "0.7"],
            [
                (PROMPT, "Tell me about the king's daughter.\n"),
                (PROMPT, "/rety\n"),
                (PROMPT, "/tokens\n"),
                (PROMPT, "And the cat?\n"),
                (r"cat\?\r\n[^\r]{100,}", "\x03"),
                (PROMPT, "\x04"),
            ],
        )
    ],
    "generate": [(["generate", "Once upon a time", "--seed", "7", "-n", "90", "--temperature", "0.7"], [])],
    "info": [(["info", "storyteller"], [])],
    "run": [
        (["run", "text-generation", "The wolf said", "--seed", "1", "-o", "max_new_tokens=30"], []),
        (["run", "text-generation", "The cat", "--seed", "2", "-o", "max_new_tokens=12", "-o", "top_k=5"], []),
    ],
    "tokenize": [
        (["tokenize", "Once upon a time there was a na\u00efve little miller's boy."], []),
        (["tokenize", "a na\u00efve boy", "--offsets"], []),
    ],
}

DARK, LIGHT = "#1d2129", "#d8dce4"
BASIC = ("#3b4252", "#e06c75", "#98c379", "#e5c07b", "#61afef", "#c678dd", "#56b6c2", "#d8dce4")
WIDTH, HEIGHT, MARGIN, SIZE = 8.43, 19, 14, 14  # of a cell of the font, in pixels


@dataclass(frozen=True)
class Style:
    """How a character looks; colours are None where the picture's own count."""

    color: str | None = None
    back: str | None = None
    bold: bool = False
    dim: bool = False


@dataclass
class Screen:
    """As much of a terminal as our commands use: lines that only grow, colours, movements within a line."""

    columns: int = COLUMNS
    rows: list[dict[int, tuple[str, Style]]] = field(default_factory=lambda: [{}])
    row: int = 0
    column: int = 0
    style: Style = Style()

    def feed(self, text: str) -> None:
        """Obey what a program has printed."""
        for control, char in re.findall(r"(\x1b\[[?\d;]*[A-Za-z]|\x1b.)|(.)", text, re.DOTALL):
            if control:
                self._control(control)
            elif char == "\n":
                self._down()
            elif char == "\r":
                self.column = 0
            elif char == "\t":
                self.column = min(self.column // 8 * 8 + 8, self.columns - 1)
            elif char == "\b":
                self.column = max(self.column - 1, 0)
            elif char >= " ":
                if self.column == self.columns:
                    self._down()
                    self.column = 0
                self.rows[self.row][self.column] = (char, self.style)
                self.column += 1

    def _down(self) -> None:
        self.row += 1
        if self.row == len(self.rows):
            self.rows.append({})

    def _control(self, control: str) -> None:
        numbers = [int(number) for number in re.findall(r"\d+", control)]
        first = numbers[0] if numbers else 0
        kind = control[-1]
        if kind == "m":
            self._look(numbers or [0])
        elif kind == "K":  # erase to the end of the line, or all of it
            kept = self.column if first == 0 else 0
            self.rows[self.row] = {at: cell for at, cell in self.rows[self.row].items() if at < kept}
        elif kind == "A":
            self.row = max(self.row - max(first, 1), 0)
        elif kind == "C":
            self.column = min(self.column + max(first, 1), self.columns - 1)
        elif kind == "D":
            self.column = max(self.column - max(first, 1), 0)

    def _look(self, numbers: list[int]) -> None:
        look = self.style
        left = list(numbers)
        while left:
            number = left.pop(0)
            if number == 0:
                look = Style()
            elif number == 1:
                look = Style(look.color, look.back, True, look.dim)
            elif number == 2:
                look = Style(look.color, look.back, look.bold, True)
            elif number in (38, 48) and left[:1] == [5]:
                color, left = palette(left[1]), left[2:]
                both = (color, look.back) if number == 38 else (look.color, color)
                look = Style(*both, look.bold, look.dim)
            elif 30 <= number <= 37:
                look = Style("#15181e" if number == 30 else BASIC[number - 30], look.back, look.bold, look.dim)
        self.style = look


def palette(number: int) -> str:
    """The colour of a terminal's 256."""
    if number < 8:
        return BASIC[number]
    if number >= 232:
        return "#" + f"{8 + 10 * (number - 232):02x}" * 3
    steps = (0, 95, 135, 175, 215, 255)
    red, green, blue = (number - 16) // 36, (number - 16) // 6 % 6, (number - 16) % 6
    return f"#{steps[red]:02x}{steps[green]:02x}{steps[blue]:02x}"


def svg(screen: Screen) -> str:
    """The screen as a picture."""
    rows = list(screen.rows)
    while rows and not rows[-1]:
        rows.pop()
    width, height = round(screen.columns * WIDTH + 2 * MARGIN), len(rows) * HEIGHT + 2 * MARGIN
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}">',
        f'<rect width="{width}" height="{height}" rx="8" fill="{DARK}"/>',
        f'<g font-family="DejaVu Sans Mono, Menlo, Consolas, monospace" font-size="{SIZE}">',
    ]
    for number, row in enumerate(rows):
        for start, text, look in runs(row):
            x, y = MARGIN + start * WIDTH, MARGIN + number * HEIGHT
            length = len(text) * WIDTH
            if look.back is not None:
                parts.append(f'<rect x="{x:.1f}" y="{y}" width="{length:.1f}" height="{HEIGHT}" fill="{look.back}"/>')
            extra = ' font-weight="bold"' if look.bold else ""
            extra += ' opacity="0.6"' if look.dim else ""
            # Browsers drop spaces at the ends of a text and join several: each piece stands at a place of its own.
            for piece in re.finditer(r"\S+(?: \S+)*", text):
                place, length = x + piece.start() * WIDTH, len(piece[0]) * WIDTH
                parts.append(
                    f'<text x="{place:.1f}" y="{y + HEIGHT - 5}" fill="{look.color or LIGHT}" textLength="{length:.1f}"'
                    f"{extra}>{escape(piece[0])}</text>"
                )
    return "\n".join([*parts, "</g>", "</svg>"]) + "\n"


def runs(row: dict[int, tuple[str, Style]]) -> list[tuple[int, str, Style]]:
    """Neighbouring characters that look the same: where they begin, the text, the look."""
    found: list[tuple[int, str, Style]] = []
    for at in range(max(row, default=-1) + 1):
        char, look = row.get(at, (" ", Style()))
        if found and found[-1][2] == look:
            found[-1] = (found[-1][0], found[-1][1] + char, look)
        else:
            found.append((at, char, look))
    return found


def record(arguments: list[str], typed: list[tuple[str, str]]) -> str:
    """Run `quintet` with these arguments in a pseudo-terminal; return all that it printed."""
    end, inner = pty.openpty()
    fcntl.ioctl(inner, termios.TIOCSWINSZ, struct.pack("HHHH", 50, COLUMNS, 0, 0))
    own = "import fcntl, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
    program = own + "from quintet.cli.main import main; sys.exit(main(sys.argv[1:]))"
    environment = {**os.environ, "TERM": "xterm-256color", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    for name in ("NO_COLOR", "COLUMNS", "LINES"):
        environment.pop(name, None)
    process = subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        stdin=inner, stdout=inner, stderr=inner, start_new_session=True, env=environment,
    )  # fmt: skip
    os.close(inner)
    seen, place, left = "", 0, list(typed)
    limit = time.monotonic() + PATIENCE
    while time.monotonic() < limit:
        if left and (found := re.compile(left[0][0]).search(seen, place)):
            place = found.end()
            typing = left.pop(0)[1]
            if typing != "\x03":  # a person takes a moment, but an answer must not end meanwhile
                time.sleep(0.3)
            os.write(end, typing.encode())
        ready, _, _ = select.select([end], [], [], 0.2)
        try:
            data = os.read(end, 65536) if ready else b""
        except OSError:
            data = b""
        seen += data.decode("utf-8", "replace")
        if not data and process.poll() is not None:
            os.close(end)
            # Where this copy lies is nobody's business.
            return seen.replace(str(ROOT), "~/quintet")
    process.kill()
    raise SystemExit(f"quintet {' '.join(arguments)} did not end; it printed {seen!r}")


def shell_words(arguments: list[str]) -> str:
    """A command line as a person would type it."""
    return " ".join(f'"{word}"' if re.search(r"[^\w./=-]", word) else word for word in ["quintet", *arguments])


def draw(name: str) -> None:
    """Draw one picture."""
    screen = Screen()
    for number, (arguments, typed) in enumerate(PICTURES[name]):
        gap = "\r\n" if number else ""
        screen.feed(f"{gap}\x1b[0;32m$\x1b[0;1m {shell_words(arguments)}\x1b[0m\r\n")
        screen.feed(record(arguments, typed))
        screen.column = 0
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / f"{name}.svg").write_text(svg(screen), encoding="utf-8")
    print(FOLDER / f"{name}.svg")


if __name__ == "__main__":
    for wanted in sys.argv[1:] or PICTURES:
        draw(wanted)
