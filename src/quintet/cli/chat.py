"""`quintet chat`: talk with a model in the terminal, or line by line through pipes."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import secrets
import sys
from collections.abc import Iterator
from typing import Any

from quintet.chat import ChatEvent
from quintet.chat.registry import format_of_model
from quintet.cli.common import (
    BUNDLED_MODEL,
    DTYPES,
    add_examples,
    add_json,
    add_machine_options,
    choose_device,
    positive_int,
    print_json,
    read_input,
    set_threads,
    use_color,
)
from quintet.cli.conversation import Conversation, Halt
from quintet.cli.generate import add_sampling_options, check_sampling, check_vocabulary, sampling_options
from quintet.cli.slash import COMMANDS, EFFORTS, Chat, command
from quintet.cli.terminal import Keyboard, Pipe, Screen
from quintet.errors import InputError, QuintetError, UsageError

__all__ = ["add_arguments", "run"]

MAX_TOOLS_BYTES = 2**20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.usage = "%(prog)s [MODEL] [options]"
    add_examples(
        parser,
        "quintet chat                                     # the bundled storyteller; it was never taught to talk",
        "quintet chat ./gpt-oss-20b --effort low --hide-reasoning",
        'quintet chat ./seed-oss --system "Answer in one sentence." --greedy',
        "quintet chat ./gpt-oss-20b < questions.txt > answers.txt    # a line is a turn",
        'echo "Hello" | quintet chat --json --seed 1',
    )
    parser.add_argument("model", nargs="?", metavar="MODEL", help="folder or name (default: the bundled storyteller)")
    talk = parser.add_argument_group("conversation (inside: /help)")
    talk.add_argument("--system", metavar="TEXT", help="what the model is told before the conversation")
    talk.add_argument("--effort", choices=EFFORTS, help="how long the model may think, where its format has that")
    talk.add_argument("--tools", metavar="FILE", help="JSON file with a list of tools that the model may call")
    talk.add_argument("--load", metavar="FILE", help="go on with a conversation that /save has written")
    talk.add_argument(
        "--max-new-tokens",
        "-n",
        type=positive_int,
        metavar="N",
        help="tokens of an answer at most (default: 4096, of a plain transcript 256)",
    )
    add_sampling_options(parser)
    machine = parser.add_argument_group("machine and output")
    machine.add_argument("--hide-reasoning", action="store_true", help='one line "thought for N tokens" in its place')
    machine.add_argument("--no-color", action="store_true", help="no colours; the variable NO_COLOR does the same")
    machine.add_argument("--dtype", choices=DTYPES, default="auto", help="number format (default: as stored)")
    add_machine_options(machine)
    add_json(machine, "each event and each finished answer")


def run(args: argparse.Namespace) -> int:
    """Load the model, then read messages and answer them until there are no more."""
    check_sampling(args)
    tools = _tools(args.tools)
    with _colors(not args.no_color):
        return _talk(args, tools)


def _talk(args: argparse.Namespace, tools: list[Any] | None) -> int:
    interactive = bool(sys.stdin and sys.stdin.isatty() and sys.stdout.isatty() and not args.json)
    screen = Screen(interactive=interactive, fold=args.hide_reasoning)
    chat = _open(args, tools, screen)
    if args.load is not None:
        command(chat, f"/load {args.load}")
    keys: Keyboard | Pipe = Keyboard(use_color(sys.stdout), COMMANDS, screen.note) if interactive else Pipe()
    while not chat.over:
        text = keys.read()
        if text is None:
            break
        try:
            if _line(chat, text, args):
                keys.answered()
        except (QuintetError, OSError) as error:
            if not interactive or isinstance(error, BrokenPipeError):
                raise
            screen.error(_words(error))
        except KeyboardInterrupt:  # between answers; during one it only stops the answer
            if not interactive:
                raise
    if interactive:
        screen.note("Bye.")
    return 0


def _line(chat: Chat, text: str, args: argparse.Namespace) -> bool:
    """Carry out a command, or answer a message; return whether there was an answer."""
    if not text.strip():
        return False
    if text.startswith("/") and not text.startswith("//"):
        command(chat, text)
        message, again = chat.send, chat.again
        chat.send, chat.again = None, False
        if message is None and not again:
            return False
    else:
        message = {"role": "user", "content": text.removeprefix("/") if text.startswith("//") else text}
    _turn(chat, message, args)
    return True


def _open(args: argparse.Namespace, tools: list[Any] | None, screen: Screen) -> Chat:
    """Load the model and say what it is. Imports torch."""
    from quintet.auto import AutoConfig, AutoModelForCausalLM
    from quintet.tokenizers.auto import AutoTokenizer

    name = BUNDLED_MODEL if args.model is None else args.model
    set_threads(args.threads)
    if screen.interactive:
        screen.note(f"Loading {name} ...")
    tokenizer = AutoTokenizer.from_pretrained(name, revision=args.revision)
    family = AutoConfig.from_pretrained(name, revision=args.revision).model_type
    form = format_of_model(family, tokenizer)
    if args.effort is not None and "reasoning_effort" not in form.options:
        raise UsageError(
            f"--effort: the chat format of this model, {form.name}, has no reasoning effort. Leave it out."
        )
    model = AutoModelForCausalLM.from_pretrained(
        name, revision=args.revision, dtype=DTYPES[args.dtype], device_map=choose_device(args.device)
    )
    model.eval()
    check_vocabulary(model, tokenizer)
    model.optimize()  # what is wrong with the native kernels is said before the first answer begins
    seed = secrets.randbelow(2**32) if args.seed is None else args.seed
    talk = Conversation(
        model, tokenizer, form, sampling_options(args), seed, args.max_new_tokens, args.system, args.effort, tools
    )
    talk.check()
    if screen.interactive:
        whose = "the bundled model" if args.model is None else family
        limit = f", {talk.limit} tokens" if talk.limit is not None else ""
        how = "greedy" if args.greedy else f"seed {seed}"
        screen.note(f"{name} ({whose}), format {form.name}{limit}, {how}. /help lists the commands.")
    return Chat(talk, screen, name)


def _turn(chat: Chat, message: dict[str, Any] | None, args: argparse.Namespace) -> None:
    """Answer `message`, or with None what the conversation ends with, and say how fast that was."""
    show = _print_event if args.json else chat.screen.show
    with Halt(catch=chat.screen.interactive) as halt, _finishing(chat.screen, args.json):
        answer = chat.talk.answer(show, halt) if message is None else chat.talk.ask(message, show, halt)
    if args.json:
        print_json(
            {
                "event": "answer",
                "message": answer.message,
                "tokens": answer.tokens,
                "reasoning_tokens": answer.reasoning_tokens,
                "seconds": round(answer.seconds, 3),
                "tok_s": answer.speed,
                "finish_reason": answer.finish_reason,
                "seed": None if args.greedy else chat.talk.seed,
                "model": chat.name,
            }
        )
        return
    first = "" if answer.first is None else f", the first after {answer.first:.2f} s"
    line = f"{answer.tokens} tokens in {answer.seconds:.2f} s: {answer.speed:g} tokens/s{first}"
    why = {
        "interrupted": ". Stopped; /retry asks again.",
        "length": ". Stopped at the length of --max-new-tokens.",
        "context": f". Stopped: the context of {chat.talk.limit} tokens is full; /reset begins a new conversation.",
        "tool_call": ". The model waits for the tool: /tool RESULT gives it.",
    }
    chat.screen.note(line + why.get(answer.finish_reason, ""))
    if chat.screen.interactive:
        print()


@contextlib.contextmanager
def _colors(wanted: bool) -> Iterator[None]:
    """Without colours: as if the variable NO_COLOR were set, which the warnings of the library obey too."""
    before = os.environ.get("NO_COLOR")
    try:
        if not wanted:
            os.environ["NO_COLOR"] = "1"
        yield
    finally:
        if not wanted and before is None:
            os.environ.pop("NO_COLOR", None)


@contextlib.contextmanager
def _finishing(screen: Screen, quiet: bool) -> Iterator[None]:
    """End the line of an answer, however it ends."""
    try:
        yield
    finally:
        if not quiet:
            screen.finish()


def _print_event(event: ChatEvent, thought: int) -> None:
    fields = ("message", "role", "name", "channel", "recipient", "content_type", "text", "reason")
    found = {name: getattr(event, name) for name in fields}
    print_json({"event": event.kind, "part": event.part, "tool": event.tool, **found})


def _tools(file: str | None) -> list[Any] | None:
    if file is None:
        return None
    try:
        tools = json.loads(read_input(file, MAX_TOOLS_BYTES))
    except ValueError as error:
        if isinstance(error, QuintetError):
            raise
        raise InputError(f"--tools: '{file}' is not JSON: {error}.") from None
    if not isinstance(tools, list):
        raise InputError(f"--tools: '{file}' must hold a list of tools, not a {type(tools).__name__}.")
    return tools


def _words(error: Exception) -> str:
    if isinstance(error, OSError) and not isinstance(error, QuintetError) and error.filename:
        return f"{error.strerror}: {error.filename!r}."
    return str(error)
