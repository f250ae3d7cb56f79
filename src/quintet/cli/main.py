"""The `quintet` command: one table of commands, and what all of them share.

This module imports neither torch nor argparse: `quintet --help` and a mistyped command answer at once. A command is a
module with `add_arguments(parser)` and `run(args) -> int`, imported only when it is the one asked for.

Exit codes: 0 done, 1 failed, 2 wrong command line, 130 interrupted with Ctrl-C.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from typing import NamedTuple

from quintet import __version__
from quintet.errors import QuintetError, UsageError, suggest

__all__ = ["COMMANDS", "Command", "main"]


class Command(NamedTuple):
    """Where a command lives, and the line that `quintet --help` prints for it."""

    module: str
    help: str


COMMANDS: dict[str, Command] = {
    "generate": Command("quintet.cli.generate", "continue a text, streaming it as it is written"),
    "chat": Command("quintet.cli.chat", "talk with a model in the terminal"),
    "info": Command("quintet.cli.info", "what a model is: family, shapes, parameters, memory"),
    "run": Command("quintet.cli.run", "any task on a text, a file or JSON lines: classify, answer, extract, generate"),
    "tokenize": Command("quintet.cli.tokenize", "text to token ids and back"),
    "eval": Command("quintet.cli.eval", "how good a model is: LAMBADA, perplexity of a text"),
    "train": Command("quintet.cli.train", "train a model on text files"),
    "train-tokenizer": Command("quintet.cli.train_tokenizer", "train a byte-level BPE on text files"),
    "convert": Command("quintet.cli.convert", "a checkpoint from the layout of its first release to ours, or back"),
    "quantize": Command("quintet.cli.quantize", "a model with packed weights: int8, int4, MXFP4"),
    "bench": Command("quintet.cli.bench", "measure a model: decode, prefill, batch, load, memory"),
    "env": Command("quintet.cli.env", "what this machine and this installation offer"),
}

EXIT_OK, EXIT_ERROR, EXIT_USAGE, EXIT_INTERRUPTED = 0, 1, 2, 130

GLOBAL_OPTIONS = ("--help", "--version", "--debug")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (default: the process's own) and return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in _before_double_dash(arguments)
    try:
        code = _dispatch(arguments)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader (`head`, a closed pager) has gone: nothing is wrong, and nobody is left to tell.
        # Python flushes stdout once more at exit, which must not fail again.
        _discard_stdout()
        return EXIT_ERROR
    except Exception as error:  # the one place where every error becomes one line
        if debug:
            import traceback

            traceback.print_exc()
        return _report(error, debug=debug)


def _dispatch(arguments: list[str]) -> int:
    """Read the options before the command, find the command, parse the rest with its parser and run it."""
    name, rest = "", arguments
    for index, argument in enumerate(arguments):
        if argument in ("-h", "--help"):
            print(_overview())
            return EXIT_OK
        if argument in ("-V", "--version"):
            print(f"quintet {__version__}")
            return EXIT_OK
        if argument == "--debug":
            continue
        if argument.startswith("-"):
            from quintet.cli.common import suggest_option

            hint = suggest_option(argument, GLOBAL_OPTIONS) or " A command's own options come after its name."
            raise UsageError(f"unknown option {argument!r} before the command.{hint} See 'quintet --help'.")
        name, rest = argument, arguments[index + 1 :]
        break
    if not name:
        print(_overview(), file=sys.stderr)
        return EXIT_USAGE
    if name == "help":
        if not rest:
            print(_overview())
            return EXIT_OK
        name, rest = rest[0], ["--help"]
    if name not in COMMANDS:
        hint = suggest(name, COMMANDS) or f" The commands are {', '.join(COMMANDS)}."
        raise UsageError(f"unknown command {name!r}.{hint} See 'quintet --help'.")

    from quintet.cli.common import CommandParser, messages_on_stderr

    module = importlib.import_module(COMMANDS[name].module)
    words = COMMANDS[name].help
    parser = CommandParser(prog=f"quintet {name}", description=f"{words[0].upper()}{words[1:]}.")
    module.add_arguments(parser)
    parser.add_argument("--debug", action="store_true", help="on an error, print the whole trace")
    try:
        args = parser.parse_args(rest)
    except SystemExit as stop:  # argparse leaves this way after --help
        return int(stop.code or 0)
    with messages_on_stderr():
        return int(module.run(args))


def _overview() -> str:
    width = max(map(len, COMMANDS))
    rows = "\n".join(f"  {name:<{width}}  {command.help}" for name, command in COMMANDS.items())
    return f"""usage: quintet COMMAND [options]

Open GPT models on an ordinary computer.

commands:
{rows}

options:
  -h, --help     this text; 'quintet COMMAND --help' for a command's options and examples
  -V, --version  the version
  --debug        on an error, print the whole trace (before or after the command)

examples:
  quintet generate "Once upon a time"
  quintet generate --model ./my-model --temperature 0.7 --seed 1 < prompt.txt
  quintet chat ./my-model --system "Be brief."
  quintet info storyteller
  quintet bench storyteller --json"""


def _report(error: Exception, *, debug: bool) -> int:
    """Print `error` on one line of stderr and return the exit code that it means."""
    from quintet.cli.common import one_line, style

    if isinstance(error, QuintetError):
        text = str(error)
    elif isinstance(error, OSError):
        text = f"{error.strerror}: {error.filename!r}" if error.filename and error.strerror else str(error)
    elif isinstance(error, MemoryError):
        text = "out of memory. Close other programs, or take a smaller model, batch or --dtype."
    else:
        text = f"unexpected {type(error).__name__}: {error}"
        if not debug:
            text += " (run again with --debug for the trace)"
    print(f"{style('quintet: error:', 'red', sys.stderr)} {one_line(text)}", file=sys.stderr)
    return EXIT_USAGE if isinstance(error, UsageError) else EXIT_ERROR


def _before_double_dash(arguments: list[str]) -> list[str]:
    return arguments[: arguments.index("--")] if "--" in arguments else arguments


def _discard_stdout() -> None:
    try:
        descriptor = sys.stdout.fileno()
    except (OSError, ValueError):  # not a real file: captured in a test or already closed
        return
    os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)


if __name__ == "__main__":
    sys.exit(main())
