"""`quintet tokenize`: text to tokens and ids, and ids back to text."""

from __future__ import annotations

import argparse
import json
import re
import sys
from typing import TYPE_CHECKING

from quintet.cli.common import (
    BUNDLED_MODEL,
    add_examples,
    add_json,
    print_json,
    printable,
    read_input,
    style,
    use_color,
)
from quintet.errors import UsageError

if TYPE_CHECKING:
    from quintet.tokenizers import BatchEncoding, PreTrainedTokenizerBase

__all__ = ["add_arguments", "run"]

MAX_INPUT_BYTES = 256 * 2**20
# Of a longer text the ids would push the text itself off the screen; --ids has them.
MOST_SHOWN_IDS = 200
# Black on four light backgrounds in turn: neighbouring tokens always differ, and spaces can be seen.
_BACKGROUNDS = ("\x1b[30;48;5;153m", "\x1b[30;48;5;223m", "\x1b[30;48;5;158m", "\x1b[30;48;5;218m")
_RESET = "\x1b[0m"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.usage = "%(prog)s [TEXT | - | --file FILE] [options]"
    add_examples(
        parser,
        'quintet tokenize "Once upon a time"              # coloured tokens on a terminal',
        'quintet tokenize "Once upon a time" | cat        # one token a line: id, tab, token',
        'quintet tokenize "Once upon a time" --offsets    # where in the text each token stands',
        "quintet tokenize --file book.txt --count         # the text as it is, its last newline too",
        "quintet tokenize --model ./my-gpt2 --json < prompt.txt",
        "quintet tokenize --decode 46 1549 648            # ids back to text",
    )
    parser.add_argument("text", nargs="*", metavar="TEXT", help="the text, or ids with --decode; '-': stdin")
    parser.add_argument("--file", "-f", metavar="FILE", help="read a UTF-8 file ('-': stdin)")
    parser.add_argument(
        "--model",
        "-m",
        default=BUNDLED_MODEL,
        metavar="MODEL",
        help="folder or name (default: the bundled storyteller)",
    )
    parser.add_argument("--revision", help="branch, tag or commit of a model that is loaded by name")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--ids", action="store_true", help="print only the ids, in one line")
    form.add_argument("--offsets", action="store_true", help="one token a line: id, first character, end, token")
    form.add_argument("--count", action="store_true", help="print only how many tokens there are")
    form.add_argument("--decode", action="store_true", help="the input is ids (numbers); print their text")
    add_json(form, "count, ids, tokens and offsets")


def run(args: argparse.Namespace) -> int:
    """Read the input, load the tokenizer (and no torch), print what was asked for."""
    source = _read_input(args)
    ids = _read_ids(source) if args.decode else []

    from quintet.tokenizers.auto import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(args.model, revision=args.revision)
    if args.decode:
        text = tokenizer.decode(ids)
        # A terminal would obey escape sequences in a text; a pipe must get exactly what the ids say.
        print(printable(text) if sys.stdout.isatty() else text)
        return 0
    encoding = tokenizer(source, verbose=False, return_offsets_mapping=True)
    ids = encoding["input_ids"]
    if args.count:
        print(len(ids))
    elif args.ids:
        print(*ids)
    elif args.json:
        offsets = [list(span) for span in encoding["offset_mapping"]]
        print_json({"count": len(ids), "ids": ids, "tokens": encoding.tokens(), "offsets": offsets})
    elif use_color(sys.stdout) and not args.offsets:
        _print_coloured(tokenizer, source, encoding)
    else:
        _print_rows(tokenizer, source, encoding, offsets=args.offsets)
    return 0


def _read_input(args: argparse.Namespace) -> str:
    """Return the text from the arguments, the file or stdin, exactly as it is.

    Raises:
        UsageError: There is none, or there are two.
        InputError: It is too long, or not UTF-8.
    """
    words: list[str] = args.text
    if words and args.file is not None:
        raise UsageError("a text and --file were both given. Give one of them.")
    if len(words) > 1 and not args.decode:
        raise UsageError(f"{len(words)} texts were given. Put quotes around the text to make it one.")
    if words and words != ["-"]:
        return " ".join(words)
    if args.file is not None:
        return read_input(args.file, MAX_INPUT_BYTES)
    if words or (sys.stdin is not None and not sys.stdin.isatty()):
        return read_input("-", MAX_INPUT_BYTES)
    raise UsageError('no text. Give one: quintet tokenize "Once upon a time", --file FILE, or text on stdin.')


def _read_ids(text: str) -> list[int]:
    """Read numbers between blanks, commas or brackets, as --ids and --json print them."""
    words = [word for word in re.split(r"[\s,\[\]]+", text) if word]
    for word in words:
        if not re.fullmatch(r"[0-9]{1,10}", word):
            raise UsageError(f"--decode takes token ids, and {word[:40]!r} is none. Give numbers such as 46 1549 648.")
    if not words:
        raise UsageError("--decode got no ids. Give numbers such as 46 1549 648.")
    return [int(word) for word in words]


def _pieces(tokenizer: PreTrainedTokenizerBase, text: str, encoding: BatchEncoding) -> list[str | bytes]:
    """The text of each token; bytes for a token that is only a part of a character."""
    pieces: list[str | bytes] = []
    for index, (start, end) in zip(encoding["input_ids"], encoding["offset_mapping"], strict=True):
        raw = tokenizer.token_bytes(index)
        if raw is None:
            pieces.append(text[start:end])
            continue
        try:
            pieces.append(raw.decode("utf-8"))
        except UnicodeDecodeError:
            pieces.append(raw)
    return pieces


def _print_rows(tokenizer: PreTrainedTokenizerBase, text: str, encoding: BatchEncoding, *, offsets: bool) -> None:
    """One token a line, in columns; on a terminal the tokens in the colours of `_print_coloured`."""
    rows = zip(encoding["input_ids"], encoding["offset_mapping"], _pieces(tokenizer, text, encoding), strict=True)
    for number, (index, (start, end), piece) in enumerate(rows):
        shown = printable(json.dumps(piece, ensure_ascii=False) if isinstance(piece, str) else repr(piece))
        if use_color(sys.stdout):
            shown = f"{_BACKGROUNDS[number % len(_BACKGROUNDS)]}{shown}{_RESET}"
        print(index, *((start, end) if offsets else ()), shown, sep="\t")


def _print_coloured(tokenizer: PreTrainedTokenizerBase, text: str, encoding: BatchEncoding) -> None:
    parts = []
    for number, piece in enumerate(_pieces(tokenizer, text, encoding)):
        if isinstance(piece, bytes):
            shown = "".join(f"<{byte:02x}>" for byte in piece)
        else:
            shown = printable(piece.replace("\t", "\\t"))
        colour = _BACKGROUNDS[number % len(_BACKGROUNDS)]
        # A background that runs over a line's end colours the rest of the line in many terminals.
        lines = [f"{colour}{line}{_RESET}" if line else "" for line in shown.replace("\n", "\u23ce\n").split("\n")]
        parts.append("\n".join(lines))
    print("".join(parts))
    if len(encoding["input_ids"]) <= MOST_SHOWN_IDS:
        places = enumerate(encoding["input_ids"])
        print(*(f"{_BACKGROUNDS[number % len(_BACKGROUNDS)]}{index}{_RESET}" for number, index in places))
    count = len(encoding["input_ids"])
    ratio = f", {len(text) / count:.1f} characters a token" if count else ""
    print(style(f"{count} tokens, {len(text)} characters{ratio}", "dim", sys.stdout))
