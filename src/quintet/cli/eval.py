"""`quintet eval TASK`: LAMBADA, or the perplexity of a text file."""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from quintet.cli.common import (
    BUNDLED_MODEL,
    DTYPES,
    add_examples,
    add_json,
    add_machine_options,
    choose_device,
    positive_int,
    print_json,
    print_table,
    set_threads,
    show_progress,
)
from quintet.errors import ConfigError, UsageError
from quintet.evaluate.data import read_records, read_text
from quintet.evaluate.tasks import TASKS, Task, find_task

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    add_examples(
        parser,
        "quintet eval lambada --file lambada_test.jsonl",
        "quintet eval perplexity --model ./my-model --file book.txt --stride 128 --json",
    )
    width = max(map(len, TASKS))
    parser.description = "\n".join(
        [
            "Measure how good a model is.",
            "",
            "tasks:",
            *(f"  {task.name:<{width}}  {task.what}; {task.file}" for task in TASKS.values()),
            "",
            "lambada: a passage's last word, with the space before it, is predicted from the rest. accuracy: greedy",
            "decoding writes all its tokens. perplexity: exp(-mean of log p(last word)). As lm-eval's lambada_openai.",
            "perplexity: windows slide over the text, and each token is predicted once, the first after bos.",
            "per token: exp(nats / tokens); bits per byte: nats / ln 2 / UTF-8 bytes; per word: exp(nats / words).",
        ]
    )
    parser.add_argument("task", metavar="TASK", help=" or ".join(TASKS))
    parser.add_argument("--file", "-f", required=True, metavar="FILE", help="what to predict")
    parser.add_argument(
        "--model", "-m", default=BUNDLED_MODEL, metavar="MODEL", help="folder or name (default: the storyteller)"
    )
    parser.add_argument("--batch-size", type=positive_int, default=8, metavar="N", help="rows at once (default: 8)")
    parser.add_argument(
        "--limit", type=positive_int, metavar="N", help="only the first N passages, or lines of the text"
    )
    parser.add_argument(
        "--window",
        type=positive_int,
        metavar="N",
        help="perplexity: tokens given at once (default: what the model has room for, 2048 at most)",
    )
    parser.add_argument(
        "--stride",
        type=positive_int,
        metavar="N",
        help="perplexity: tokens that the next window adds (default: half the window)",
    )
    machine = parser.add_argument_group("machine and output")
    machine.add_argument("--dtype", choices=DTYPES, default="auto", help="number format (default: as stored)")
    add_machine_options(machine)
    add_json(machine, "all numbers")


def run(args: argparse.Namespace) -> int:
    """Read the file, load the model, measure."""
    task = _check(args)
    # What is wrong with the file is said before a large model is loaded.
    read: Callable[..., Any] = read_records if task.name == "lambada" else read_text
    data = read(args.file, args.limit)

    from quintet.auto import AutoModelForCausalLM
    from quintet.tokenizers.auto import AutoTokenizer

    set_threads(args.threads)
    tokenizer = AutoTokenizer.from_pretrained(args.model, revision=args.revision)
    model = AutoModelForCausalLM.from_pretrained(
        args.model, revision=args.revision, dtype=DTYPES[args.dtype], device_map=choose_device(args.device)
    )
    model.eval()
    began = time.perf_counter()
    with _progress("passage" if task.name == "lambada" else "token") as progress:
        record = _measure(task, args, model, tokenizer, data, progress)
    record = {"task": task.name, "model": args.model, "file": args.file, **record}
    record["seconds"] = round(time.perf_counter() - began, 3)
    if args.json:
        print_json({name: None if value == math.inf else value for name, value in record.items()})
    else:
        print_table([(name.replace("_", " "), _shown(value)) for name, value in record.items()])
    return 0


def _measure(
    task: Task,
    args: argparse.Namespace,
    model: Any,
    tokenizer: Any,
    data: Any,
    progress: Callable[[int, int], None] | None,
) -> dict[str, Any]:
    """Imports torch."""
    if task.name == "lambada":
        from quintet.evaluate.lambada import evaluate_lambada

        return asdict(evaluate_lambada(model, tokenizer, data, batch_size=args.batch_size, progress=progress))
    from quintet.evaluate.perplexity import evaluate_perplexity

    result = evaluate_perplexity(
        model,
        tokenizer,
        data,
        window=args.window,
        stride=args.stride,
        batch_size=args.batch_size,
        progress=progress,
    )
    return asdict(result)


def _check(args: argparse.Namespace) -> Task:
    """Refuse what does not go together, before anything is read."""
    try:
        task = find_task(args.task)
    except ConfigError as error:
        raise UsageError(str(error)) from None
    for name in ("stride", "window"):
        if getattr(args, name) is not None and task.name != "perplexity":
            raise UsageError(f"--{name} is for perplexity, not for {task.name}. Leave it out.")
    if args.window is not None and args.stride is not None and args.stride > args.window:
        raise UsageError(f"--stride {args.stride} is larger than --window {args.window}: tokens would be left out.")
    return task


@contextmanager
def _progress(unit: str) -> Iterator[Callable[[int, int], None] | None]:
    """A bar on stderr where a person watches it."""
    if not show_progress():
        yield None
        return
    from tqdm import tqdm

    with tqdm(unit=unit, dynamic_ncols=True, file=sys.stderr) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield show


def _shown(value: Any) -> str:
    return f"{value:,.4f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
