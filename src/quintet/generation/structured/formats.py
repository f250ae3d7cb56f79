"""What `response_format` may hold: read, checked and measured before anything is made of it. No torch, no llguidance.

Both OpenAI's form, {"type": "json_schema", "json_schema": {"name": ..., "schema": ...}}, and the plain one,
{"type": "json_schema", "schema": ...}, are read.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from quintet.errors import GenerationError, suggest

__all__ = ["KINDS", "Form", "StructuredLimits", "read_format"]


@dataclass(frozen=True)
class StructuredLimits:
    """How large a form may be: what comes from outside must not keep a machine busy.

    Args:
        max_bytes: Of a schema (as JSON), a grammar or a regular expression.
        max_depth: Values inside of values in a schema.
        max_values: Values in a schema, those of its lists and enums too.
        max_choices: Texts to choose from.
        max_seconds: Time to compile.
        max_grammar: Symbols of the grammar that is made of it.
        max_items: Items of the parser in one step.
        max_states: States of the lexer; each takes up to 2 kB.
    """

    max_bytes: int = 256 * 1024
    max_depth: int = 64
    max_values: int = 20_000
    max_choices: int = 5_000
    max_seconds: float = 5.0
    max_grammar: int = 200_000
    max_items: int = 50_000
    max_states: int = 50_000


@dataclass(frozen=True)
class Form:
    """A form, checked.

    Args:
        kind: "json_schema", "regex", "choice", "lark" or "llguidance".
        text: The schema, the list of choices or llguidance's form as JSON; otherwise the text itself.
    """

    kind: str
    text: str


def read_format(given: Any, limits: StructuredLimits | None = None) -> Form | None:
    """Read a `response_format`.

    Args:
        given: A dict with "type"; None and {"type": "text"} ask for nothing.
        limits: How large it may be.

    Returns:
        The form, or None for text as it comes.

    Raises:
        GenerationError: it is no such dict, or larger than the limits.
    """
    if given is None:
        return None
    limits = limits or StructuredLimits()
    if not isinstance(given, Mapping) or not isinstance(given.get("type"), str):
        raise GenerationError(
            f"response_format is {_short(given)}, but must be a dict with a 'type': one of {', '.join(KINDS)}. For "
            'JSON of any kind use {"type": "json_object"}.'
        )
    kind = given["type"]
    if kind not in KINDS:
        raise GenerationError(
            f"response_format has the type {kind!r}, but must have one of {', '.join(KINDS)}.{suggest(kind, KINDS)}"
        )
    form = KINDS[kind](given, limits)
    if form is not None and len(form.text.encode("utf-8", "replace")) > limits.max_bytes:
        raise GenerationError(
            f"response_format of type {kind!r} has {len(form.text.encode('utf-8', 'replace'))} bytes, and at most "
            f"{limits.max_bytes} are read. Make it smaller."
        )
    return form


def _nothing(given: Mapping[str, Any], limits: StructuredLimits) -> None:
    _only(given, ())


def _json_object(given: Mapping[str, Any], limits: StructuredLimits) -> Form:
    _only(given, ())
    return Form("json_schema", '{"type": "object"}')


def _json_schema(given: Mapping[str, Any], limits: StructuredLimits) -> Form:
    inside = given.get("json_schema")
    if inside is not None:
        _only(given, ("json_schema",))
        if not isinstance(inside, Mapping) or "schema" not in inside:
            raise GenerationError(
                f"response_format['json_schema'] is {_short(inside)}, but must be a dict with a 'schema', such as "
                '{"name": "answer", "schema": {"type": "object"}}.'
            )
        given = inside
    elif "schema" not in given:
        raise GenerationError(
            "response_format of type 'json_schema' has no schema. Give it as "
            '{"type": "json_schema", "json_schema": {"name": "answer", "schema": {...}}}.'
        )
    _only(given, ("name", "description", "schema", "strict"))
    if given.get("strict") not in (None, True, False):
        raise GenerationError(f"response_format has strict={given['strict']!r}, but it must be true or false.")
    schema = given["schema"]
    if schema is not True and not isinstance(schema, Mapping):  # True allows anything, False nothing
        raise GenerationError(f"the schema of response_format is {_short(schema)}, but must be a dict.")
    _measure(schema, limits)
    return Form("json_schema", _as_json({} if schema is True else schema))


def _regex(given: Mapping[str, Any], limits: StructuredLimits) -> Form:
    return Form("regex", _text(given, "regex", "pattern"))


def _choice(given: Mapping[str, Any], limits: StructuredLimits) -> Form:
    _only(given, ("choice", "choices"))
    texts = given.get("choice", given.get("choices"))
    if not isinstance(texts, (list, tuple)) or not texts or not all(isinstance(one, str) and one for one in texts):
        raise GenerationError(
            f"response_format of type 'choice' has {_short(texts)} to choose from, but needs a list of texts, none of "
            'them empty, such as {"type": "choice", "choice": ["yes", "no"]}.'
        )
    if len(texts) > limits.max_choices:
        raise GenerationError(
            f"response_format offers {len(texts)} choices, and at most {limits.max_choices} are read. Give fewer."
        )
    return Form("choice", _as_json(list(dict.fromkeys(texts))))


def _grammar(given: Mapping[str, Any], limits: StructuredLimits) -> Form:
    grammar = given.get("grammar")
    if isinstance(grammar, Mapping):
        _only(given, ("grammar",))
        _measure(grammar, limits)
        return Form("llguidance", _as_json(grammar))
    text = _text(given, "grammar", "lark")
    return Form("llguidance" if text.lstrip().startswith("{") else "lark", text)


KINDS: dict[str, Callable[[Mapping[str, Any], StructuredLimits], Form | None]] = {
    "text": _nothing,
    "json_object": _json_object,
    "json_schema": _json_schema,
    "regex": _regex,
    "choice": _choice,
    "grammar": _grammar,
}
"""How the types are read."""


def _only(given: Mapping[str, Any], known: tuple[str, ...]) -> None:
    for name in given:
        if name != "type" and name not in known:
            near = suggest(str(name), known)
            raise GenerationError(
                f"response_format has the key {name!r}, which does not belong there.{near} Leave it out."
            )


def _text(given: Mapping[str, Any], *names: str) -> str:
    _only(given, names)
    found = [given[name] for name in names if name in given]
    if len(found) != 1 or not isinstance(found[0], str) or not found[0]:
        raise GenerationError(
            f"response_format of type {given['type']!r} has {_short(found[0] if found else None)} as its {names[0]}, "
            f"but must have one text there: {{'type': {given['type']!r}, {names[0]!r}: '...'}}."
        )
    return found[0]


def _measure(schema: Any, limits: StructuredLimits) -> None:
    """Walk through a schema without going deep on the stack."""
    pending: list[tuple[Any, int]] = [(schema, 1)]
    count = 0
    while pending:
        value, depth = pending.pop()
        count += 1
        if depth > limits.max_depth:
            raise GenerationError(
                f"the schema of response_format is more than {limits.max_depth} values deep. Make it flatter, with "
                "$defs and $ref for parts that repeat."
            )
        if count > limits.max_values:
            raise GenerationError(
                f"the schema of response_format holds more than {limits.max_values} values. Make it smaller."
            )
        if isinstance(value, Mapping):
            pending += [(one, depth + 1) for one in value.values()]
        elif isinstance(value, (list, tuple)):
            pending += [(one, depth + 1) for one in value]


def _as_json(value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise GenerationError(
            f"response_format cannot be written as JSON: {error}. Use dicts, lists, texts, numbers, booleans and None."
        ) from error


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
