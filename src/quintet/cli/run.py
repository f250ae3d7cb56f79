"""`quintet run TASK`: a pipeline on a text, a file or JSON lines; results as JSON lines."""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import IO, Any

from quintet.cli.common import (
    DTYPES,
    add_examples,
    add_machine_options,
    choose_device,
    positive_int,
    print_json,
    read_input,
    set_threads,
    show_progress,
    whole_number,
)
from quintet.errors import InputError, UsageError
from quintet.pipelines.tasks import ALIASES, TASKS, Task, find_task

__all__ = ["add_arguments", "run"]

MAX_TEXT_BYTES = 64 * 2**20
MAX_LINE_BYTES = 16 * 2**20
FORMS = ("text", "lines", "jsonl")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.usage = "%(prog)s TASK [TEXT | --file FILE] [options]"
    add_examples(
        parser,
        'quintet run text-generation "Once upon a time" -o max_new_tokens=40',
        "quintet run text-classification --model ./my-classifier --file reviews.jsonl --batch-size 16",
        "cat reviews.txt | quintet run sentiment-analysis -m ./my-classifier --input lines -o top_k=3",
        'quintet run question-answering "Who came?" -m ./my-qa --context "The cat came."',
        'quintet run zero-shot-classification "A goal!" -m ./my-nli --labels sport,music',
    )
    width = max(map(len, TASKS))
    parser.description = "\n".join(
        [
            "Run a model for one task. Each item gives one line of JSON: its id and its output.",
            "",
            "tasks:",
            *(f"  {task.name:<{width}}  {task.what}" for task in TASKS.values()),
            "",
            "JSON lines: a text, or an object with the task's fields and perhaps an id:",
            '  {"text": ...} or {"text": ..., "text_pair": ...}; {"question": ..., "context": ...};',
            '  {"sequence": ..., "candidate_labels": [...]}; {"messages": [{"role": ..., "content": ...}]} is a chat.',
        ]
    )
    parser.add_argument("task", metavar="TASK", help="see above; also " + ", ".join(ALIASES))
    parser.add_argument("text", nargs="?", metavar="TEXT", help="one item; '-' or nothing: stdin")
    parser.add_argument("--file", "-f", metavar="FILE", help="read items from a file ('-': stdin)")
    parser.add_argument(
        "--input",
        choices=FORMS,
        help="what a file or stdin holds: one text, a text in each line, or JSON lines (default: JSON lines for stdin "
        "and for files named .jsonl or .ndjson, else one text)",
    )
    parser.add_argument("--model", "-m", metavar="MODEL", help="folder or name (default: storyteller where it can)")
    parser.add_argument(
        "--batch-size", type=positive_int, default=1, metavar="N", help="items read at once (default: 1)"
    )
    parser.add_argument("--context", metavar="TEXT", help="question-answering: where the answer is")
    parser.add_argument("--labels", metavar="A,B", help="zero-shot-classification: the labels")
    parser.add_argument(
        "--option",
        "-o",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="an option of the pipeline; the value is JSON or a text; may be given several times",
    )
    parser.add_argument("--seed", type=whole_number, metavar="N", help="for the same random choices again")
    machine = parser.add_argument_group("machine")
    machine.add_argument("--dtype", choices=DTYPES, default="auto", help="number format (default: as stored)")
    add_machine_options(machine)


def run(args: argparse.Namespace) -> int:
    """Read items, load the model, print a line of JSON for each item as soon as it is done."""
    task = _task(args.task)
    _check(args, task)
    options = dict(_option(one) for one in args.option)
    if args.labels is not None:
        options["candidate_labels"] = args.labels
    items = iter(_items(args, task))
    try:
        items = itertools.chain(
            [next(items)], items
        )  # nothing to do, or a wrong first line: before the model is loaded
    except StopIteration:
        raise InputError("there are no items: the input is empty.") from None

    import torch

    from quintet.pipelines import pipeline

    set_threads(args.threads)
    pipe = pipeline(
        task.name,
        model=args.model or task.default,
        revision=args.revision,
        device=choose_device(args.device),
        dtype=DTYPES[args.dtype],
    )
    if args.seed is not None:
        torch.manual_seed(args.seed)
    names: deque[Any] = deque()

    def inputs() -> Iterator[Any]:
        for name, item in items:
            names.append(name)
            yield item

    # On a terminal the results are the progress, and a bar would stand between them.
    progress = show_progress() and not sys.stdout.isatty()
    for output in pipe(inputs(), batch_size=args.batch_size, progress=progress, **options):
        print_json({"id": names.popleft(), "output": output})
    return 0


def _task(name: str) -> Task:
    from quintet.errors import ConfigError

    try:
        return find_task(name)
    except ConfigError as error:
        raise UsageError(str(error)) from None


def _check(args: argparse.Namespace, task: Task) -> None:
    """Refuse options that do not go together, before anything is read or loaded."""
    if args.text not in (None, "-") and args.file is not None:
        raise UsageError("a text and --file were both given. Give one of them.")
    if args.text not in (None, "-") and args.input is not None:
        raise UsageError("--input says what a file or stdin holds, and a text was given. Leave it out.")
    for name, wanted in (("context", "question-answering"), ("labels", "zero-shot-classification")):
        if getattr(args, name) is not None and task.name != wanted:
            raise UsageError(f"--{name} is for {wanted}, not for {task.name}. Leave it out.")
    if args.model is None and task.default is None:
        raise UsageError(f"there is no default model for {task.name}. Give one: --model MODEL.")


def _option(text: str) -> tuple[str, Any]:
    """Read NAME=VALUE; a value that is no JSON is a text."""
    name, sign, value = text.partition("=")
    if not sign or not name.isidentifier():
        raise UsageError(f"--option takes NAME=VALUE, and {text!r} is none. For example: -o top_k=3.")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _items(args: argparse.Namespace, task: Task) -> Iterable[tuple[Any, Any]]:
    """Give each item with its id, as the input is read."""
    if args.text not in (None, "-"):
        return [(0, _shaped(args.text, args, task, "the text"))]
    file = "-" if args.file is None else args.file
    if file == "-" and args.text is None and args.file is None and (sys.stdin is None or sys.stdin.isatty()):
        raise UsageError("no input. Give a text, --file FILE, or JSON lines on stdin.")
    form = args.input or ("jsonl" if file == "-" or file.endswith((".jsonl", ".ndjson")) else "text")
    if form == "text":
        text = read_input(file, MAX_TEXT_BYTES).removeprefix("\ufeff").replace("\r\n", "\n").removesuffix("\n")
        return [(0, _shaped(text, args, task, "the text"))]
    read = _json_line if form == "jsonl" else _text_line
    return _lines(file, lambda line, number: read(line, number, args, task))


def _lines(file: str, read: Callable[[str, int], tuple[Any, Any]]) -> Iterator[tuple[Any, Any]]:
    """Read the lines of a file or stdin that are not empty, one at a time."""
    if file == "-":
        if sys.stdin is not None:
            yield from _decoded("stdin", sys.stdin.buffer, read)
        return
    with open(file, "rb") as stream:
        yield from _decoded(f"'{file}'", stream, read)


def _decoded(name: str, stream: IO[bytes], read: Callable[[str, int], tuple[Any, Any]]) -> Iterator[tuple[Any, Any]]:
    count = 0
    for number in itertools.count(1):
        data = stream.readline(MAX_LINE_BYTES + 1)
        if not data:
            return
        if len(data) > MAX_LINE_BYTES:
            raise InputError(f"{name}, line {number} is longer than {MAX_LINE_BYTES >> 20} MiB. Split it first.")
        try:
            line = data.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise InputError(
                f"{name}, line {number} is not UTF-8 text: byte {error.start} is 0x{data[error.start]:02x}. Convert it."
            ) from None
        if not line.strip():
            continue
        try:
            given, item = read(line, number)
        except InputError as error:
            raise InputError(f"{name}, line {number}: {error}") from None
        yield count if given is None else given, item
        count += 1


def _text_line(line: str, number: int, args: argparse.Namespace, task: Task) -> tuple[Any, Any]:
    return None, _shaped(line, args, task, "the line")


def _json_line(line: str, number: int, args: argparse.Namespace, task: Task) -> tuple[Any, Any]:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise InputError(f"not JSON: {error}. For plain text use --input lines, or --input text.") from None
    name = value.pop("id", None) if isinstance(value, dict) else None
    return name, _shaped(value, args, task, "the item")


def _shaped(value: Any, args: argparse.Namespace, task: Task, what: str) -> Any:
    """Turn a text or a JSON value into what the pipeline takes."""
    if isinstance(value, dict):
        if task.name == "text-generation" and "messages" in value:
            value = value["messages"]
        elif task.name not in ("question-answering", "zero-shot-classification") and [*value] in (["text"], ["prompt"]):
            (value,) = value.values()
        elif task.name == "zero-shot-classification" and "text" in value:
            value = {("sequence" if name == "text" else name): one for name, one in value.items()}
        elif task.name == "question-answering" and "context" not in value and args.context is not None:
            value = {**value, "context": args.context}
    if task.name == "question-answering" and isinstance(value, str):
        if args.context is None:
            raise InputError(f"{what} is a question without a context. Give --context, or JSON lines with both.")
        return {"question": value, "context": args.context}
    if task.name == "zero-shot-classification" and args.labels is None:
        own = value.get("candidate_labels") if isinstance(value, dict) else None
        given = any(option.partition("=")[0] == "candidate_labels" for option in args.option)
        if own is None and not given:
            raise InputError(f"{what} has no labels. Give --labels A,B, or candidate_labels in each JSON line.")
    return value
