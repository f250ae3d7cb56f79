"""Options of commands about what an answer has to be: its form, and how long the model may think before it."""

from __future__ import annotations

import argparse
import json
from typing import Any

from quintet.cli.common import read_input, whole_number
from quintet.errors import UsageError

__all__ = ["add_answer_options", "answer_options"]

# More than any schema that is accepted; it keeps `--response-format /dev/zero` from filling the memory.
MAX_FORM_BYTES = 2**20


def add_answer_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options; `answer_options` reads them."""
    group = parser.add_argument_group("the answer")
    group.add_argument(
        "--response-format",
        metavar="FORM",
        help="hold the text to a form: 'json' for any JSON object, or a file with a JSON schema or a response_format",
    )
    group.add_argument(
        "--thinking-budget",
        type=whole_number,
        metavar="N",
        help="tokens that the model may think before it answers (0: not at all; Seed-OSS and gpt-oss)",
    )


def answer_options(args: argparse.Namespace) -> dict[str, Any]:
    """Return the keywords of `model.generate`.

    Raises:
        UsageError: the file holds no JSON object.
        InputError: the file is too large, or not UTF-8.
        OSError: there is no such file.
    """
    options: dict[str, Any] = {}
    if args.thinking_budget is not None:
        options["thinking_budget"] = args.thinking_budget
    if args.response_format is not None:
        options["response_format"] = _form(args.response_format)
    return options


def _form(given: str) -> dict[str, Any]:
    from quintet.generation.structured.formats import KINDS

    if given == "json":
        return {"type": "json_object"}
    try:
        found = json.loads(read_input(given, MAX_FORM_BYTES))
    except (json.JSONDecodeError, RecursionError) as error:
        raise UsageError(f"--response-format: {given} is no JSON: {error}. Give a file with a JSON schema.") from error
    if not isinstance(found, dict):
        raise UsageError(f"--response-format: {given} holds no JSON object. Give a file with a JSON schema.")
    # The type of a schema is "object", "array", ...; that of a response_format is another.
    kind = found.get("type")
    return found if isinstance(kind, str) and kind in KINDS else {"type": "json_schema", "schema": found}
