"""`quintet train`: train a model on text files."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from typing import Any, get_type_hints

from quintet.cli.common import add_examples, add_json, print_json, show_progress
from quintet.errors import UsageError
from quintet.training.arguments import TrainingArguments


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments: a JSON file, and a flag for each training option."""
    add_examples(
        parser,
        "quintet train run.json",
        "quintet train run.json --max-steps 200 --output-dir trial",
        "quintet train --train-files book.txt --tokenizer my-tokenizer --output-dir run \\",
        "    --model n_embd=128 n_layer=4 n_head=4 n_positions=256 --block-size 256",
        "quintet train --init-from storyteller --tokenizer storyteller --train-files new.txt --output-dir tuned",
    )
    parser.add_argument("config", nargs="?", metavar="CONFIG", help="JSON file of the options below")
    kinds = get_type_hints(TrainingArguments)
    for field in dataclasses.fields(TrainingArguments):
        flag, text, kind = f"--{field.name.replace('_', '-')}", field.metadata["help"], kinds[field.name]
        if kind is bool:
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=None, help=text)
        elif kind == list[str]:
            parser.add_argument(flag, nargs="+", default=None, metavar="FILE", help=text)
        elif kind == dict[str, Any]:
            parser.add_argument(flag, nargs="+", default=None, metavar="KEY=VALUE", help=text)
        else:
            default = field.default if field.default not in ("", dataclasses.MISSING) else None
            note = "" if default is None else f" (default: {default})"
            parser.add_argument(flag, type=kind, default=None, metavar=kind.__name__.upper(), help=text + note)
    add_json(parser, "the summary")


def run(args: argparse.Namespace) -> int:
    """Train, with a progress bar on a terminal, and print where the results are."""
    names = [field.name for field in dataclasses.fields(TrainingArguments)]
    flags = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    if "model" in flags:
        flags["model"] = _pairs(flags["model"])
    options = TrainingArguments.from_sources(args.config, flags)

    from quintet.training.run import train

    with _Progress(options.max_steps) as progress:
        summary = train(options, progress)
    if args.json:
        print_json(summary)
        return 0
    print(f"best model: {summary['best_model']}")
    if summary["best_eval_loss"] is not None:
        per_byte = summary.get("bits_per_byte")
        extra = "" if per_byte is None else f", {per_byte:.4f} bits per byte"
        print(f"validation loss: {summary['best_eval_loss']:.4f} nats per token{extra}")
    print(f"plot: {summary['plot']}" if summary["plot"] else f"no plot: {summary['plot_problem']}")
    return 0


def _pairs(words: list[str]) -> dict[str, Any]:
    """Read KEY=VALUE words; a value that is JSON counts as such, anything else as text."""
    values: dict[str, Any] = {"model_type": "gpt2"}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or not key:
            raise UsageError(f"--model takes KEY=VALUE words, such as n_embd=128; got {word!r}.")
        try:
            values[key] = json.loads(text)
        except ValueError:
            values[key] = text
    return values


class _Progress:
    """A bar with loss, tokens per second and the time left; silent when nobody watches."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.bar: Any = None
        self.valid = ""

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.close()

    def __call__(self, record: dict[str, Any]) -> None:
        if not show_progress():
            return
        if self.bar is None:
            from tqdm import tqdm

            first = record["step"] if "loss" not in record else max(0, record["step"] - 1)
            self.bar = tqdm(total=self.steps, initial=first, unit="step", dynamic_ncols=True, file=sys.stderr)
        if "eval_loss" in record:
            self.valid = f" valid {record['eval_loss']:.3f}"
        else:
            self.bar.set_postfix_str(f"loss {record['loss']:.3f}{self.valid} {record['tokens_per_second']:,.0f} tok/s")
            self.bar.update(record["step"] - self.bar.n)
