"""What the commands share: the parser that suggests, colours, one-line messages, model options, JSON lines.

No torch at import; the functions that need it say so and import it themselves.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import IO, Any, NoReturn

from quintet.errors import InputError, UsageError, nearest, suggest

__all__ = [
    "BUNDLED_MODEL",
    "ByteBar",
    "CommandParser",
    "DTYPES",
    "add_examples",
    "add_json",
    "add_machine_options",
    "choose_device",
    "fraction",
    "messages_on_stderr",
    "one_line",
    "positive_float",
    "positive_int",
    "print_json",
    "print_table",
    "printable",
    "read_input",
    "set_threads",
    "show_progress",
    "style",
    "suggest_option",
    "use_color",
    "whole_number",
]

BUNDLED_MODEL = "storyteller"

# The names the commands take, and torch's own. "auto" is the type that the checkpoint is stored in.
DTYPES = {"auto": "auto", "fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}

_CODES = {"bold": "1", "dim": "2", "red": "1;31", "yellow": "1;33", "green": "32", "cyan": "36"}


class CommandParser(argparse.ArgumentParser):
    """An argument parser whose errors are one line with the nearest option, raised as `UsageError`.

    Abbreviated options are refused: `--temp` would change its meaning on the day a second option begins so.
    """

    def __init__(self, **kwargs: Any) -> None:
        kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(allow_abbrev=False, **kwargs)

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """Parse, and name the nearest option for each word that no option or argument takes."""
        parsed, extra = self.parse_known_args(args, namespace)
        if extra:
            options = [word.split("=")[0] for word in extra if word.startswith("-")]
            if not options:
                self.error(f"unexpected argument {extra[0]!r}.")
            self.error(f"unknown option {options[0]!r}.{suggest_option(options[0], self._option_string_actions)}")
        return parsed

    def error(self, message: str) -> NoReturn:
        """Raise the message as a `UsageError`; `main` prints it and exits with 2."""
        choice = re.search(r"invalid choice: '?([^' ]+)'? \(choose from (.*)\)", message)
        hint = suggest(choice[1], re.split(r"[', ]+", choice[2])) if choice else ""
        message = message if message.endswith((".", "?")) else message + "."
        raise UsageError(f"{message}{hint} See '{self.prog} --help'.")


def suggest_option(word: str, options: Iterable[str]) -> str:
    """Return `" Did you mean '--x'?"` for the option that `word` begins, or that looks like it, or an empty string."""
    names = [option[2:] for option in options if option.startswith("--")]
    name = word.lstrip("-")
    begun = [option for option in names if len(name) > 2 and option.startswith(name)]
    near = min(begun, key=len) if begun else nearest(name, names)
    return f" Did you mean '--{near}'?" if near else ""


def add_examples(parser: argparse.ArgumentParser, *examples: str) -> None:
    """Put `examples` (whole command lines; a comment may follow after two blanks and `#`) at the end of --help."""
    parser.epilog = "examples:\n" + "\n".join(f"  {line}" for line in examples)


def add_json(parser: argparse._ActionsContainer, what: str = "the result") -> None:
    """Add `--json`."""
    parser.add_argument("--json", action="store_true", help=f"print {what} as one line of JSON")


def add_machine_options(parser: argparse._ActionsContainer) -> None:
    """Add the options of every command that runs a model: device, threads, revision."""
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1 ... (default: cuda where there is one)")
    parser.add_argument("--threads", type=positive_int, metavar="N", help="CPU threads (default: torch's choice)")
    parser.add_argument("--revision", metavar="R", help="branch, tag or commit of a model that is loaded by name")


def positive_int(text: str) -> int:
    """An argparse type: a whole number of at least 1."""
    return _number(text, int, lambda value: 1 <= value < 2**63, "a whole number of at least 1")


def whole_number(text: str) -> int:
    """An argparse type: a whole number of at least 0."""
    return _number(text, int, lambda value: 0 <= value < 2**63, "a whole number of at least 0")


def positive_float(text: str) -> float:
    """An argparse type: a number above 0."""
    return _number(text, float, lambda value: 0 < value < float("inf"), "a number above 0")


def fraction(text: str) -> float:
    """An argparse type: a number from 0 to 1."""
    return _number(text, float, lambda value: 0 <= value <= 1, "a number from 0 to 1")


def _number(text: str, kind: Callable[[str], Any], allowed: Callable[[Any], bool], words: str) -> Any:
    try:
        value = kind(text)
    except ValueError:
        value = None
    if value is None or not allowed(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not {words}")
    return value


def choose_device(name: str) -> str:
    """Return the torch device for `--device name`. Imports torch.

    Raises:
        UsageError: the name is not a device, or this machine does not have it.
    """
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"unknown device {name!r}. Use cpu, cuda, cuda:0, cuda:1 ... or auto.") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(
            f"device {name!r} is not there: this torch sees {torch.cuda.device_count()} CUDA devices. "
            "Use --device cpu, or see 'quintet env'."
        )
    return str(device)


def set_threads(number: int | None) -> None:
    """Let torch use `number` CPU threads (None: leave its choice). Imports torch."""
    if number is not None:
        import torch

        torch.set_num_threads(number)


def read_input(file: str, limit: int) -> str:
    """Return the text of a UTF-8 file, or of stdin for "-", exactly as it is.

    Args:
        file: Path, or "-".
        limit: Bytes at most, so that `/dev/zero` and endless pipes do not fill the memory.

    Raises:
        InputError: it is larger, or not UTF-8.
        OSError: there is no such file, or it cannot be read.
    """
    if file == "-":
        name, data = "stdin", b"" if sys.stdin is None else sys.stdin.buffer.read(limit + 1)
    else:
        with open(file, "rb") as stream:
            name, data = f"'{file}'", stream.read(limit + 1)
    if len(data) > limit:
        raise InputError(f"{name} is larger than {limit >> 20} MiB. Split it first, or give a shorter text.")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{name} is not UTF-8 text: byte {error.start} is 0x{data[error.start]:02x}. Convert it to UTF-8."
        ) from None


def use_color(stream: IO[str]) -> bool:
    """Whether `stream` should get colours: NO_COLOR, then FORCE_COLOR, then whether it is a terminal."""
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR"):
        return True
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def style(text: str, name: str, stream: IO[str]) -> str:
    """Return `text` in the style `name` (bold, dim, red, ...) where `stream` takes colours, else as it is."""
    return f"\x1b[{_CODES[name]}m{text}\x1b[0m" if use_color(stream) else text


def show_progress() -> bool:
    """Whether to draw progress bars: only when a person watches stderr."""
    return sys.stderr.isatty()


# Spaces of other widths and the joiners of words and emoji: no terminal obeys them, and many texts hold them.
_HARMLESS = frozenset(
    "\n\t\xa0\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u200c\u200d\u202f\u205f\u3000"
)


def printable(text: str) -> str:
    """Return `text` with control characters other than newline and tab written as escapes.

    Model output, file names and config values come from strangers; an escape sequence in them must not reach the
    terminal, which would obey it.
    """
    return "".join(c if c in _HARMLESS or c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def one_line(text: str) -> str:
    """Return `text` as one printable line."""
    return " ".join(printable(text).split())


@contextlib.contextmanager
def messages_on_stderr() -> Iterator[None]:
    """Show warnings and the library's log records as `quintet: warning: ...`, without file names and source lines."""
    import logging
    import warnings

    def show(text: str) -> None:
        print(f"{style('quintet: warning:', 'yellow', sys.stderr)} {printable(text)}", file=sys.stderr)

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            show(record.getMessage())

    logger, handler = logging.getLogger("quintet"), Handler(logging.WARNING)
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *rest, **kwargs: show(one_line(str(message)))
        logger.addHandler(handler)
        try:
            yield
        finally:
            logger.removeHandler(handler)


def print_json(record: Mapping[str, Any]) -> None:
    """Print `record` as one line of JSON on stdout and flush it, so that a reader of the pipe has it at once."""
    print(json.dumps(record, ensure_ascii=False, allow_nan=False), flush=True)


def print_table(rows: Sequence[tuple[str, str]]) -> None:
    """Print pairs of a name and a value, the values under each other."""
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"{style(f'{name:<{width}}', 'bold', sys.stdout)}  {one_line(value)}")


class ByteBar:
    """A progress bar, in bytes unless told otherwise; silent when nobody watches."""

    def __init__(self, unit: str = "B") -> None:
        self.bar: Any = None
        self.unit = unit

    def __enter__(self) -> ByteBar:
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.close()

    def __call__(self, done: int, total: int) -> None:
        """Show that so much of all is done."""
        if not show_progress():
            return
        if self.bar is None:
            from tqdm import tqdm

            self.bar = tqdm(
                total=total, unit=self.unit, unit_scale=self.unit == "B", dynamic_ncols=True, file=sys.stderr
            )
        self.bar.update(done - self.bar.n)
