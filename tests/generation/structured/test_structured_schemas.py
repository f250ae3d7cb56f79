"""JSON schemas: every answer that is allowed is valid, and every valid answer that people expect is allowed."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest

from quintet.errors import GenerationError
from quintet.generation.structured import compile_form
from quintet.generation.structured.processor import FormRow

CLOSED: dict[str, Any] = {"additionalProperties": False}
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "home": {
            "type": "object",
            "properties": {"city": {"enum": ["Paris", "Rome"]}, "floor": {"type": ["integer", "null"]}},
            "required": ["city", "floor"],
            **CLOSED,
        },
    },
    "required": ["name", "age", "home"],
    **CLOSED,
}
TREE = {
    "$ref": "#/$defs/node",
    "$defs": {
        "node": {
            "type": "object",
            "properties": {
                "value": {"type": "integer", "minimum": 0, "maximum": 9},
                "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]},
            },
            "required": ["value", "next"],
            **CLOSED,
        }
    },
}

# name: (schema, answers that fit, answers that do not)
SCHEMAS: dict[str, tuple[Any, list[str], list[str]]] = {
    "nested": (
        PERSON,
        ['{"name": "Ann", "age": 30, "home": {"city": "Paris", "floor": null}}'],
        [
            '{"name": "Ann", "age": 151, "home": {"city": "Rome", "floor": 1}}',
            '{"name": "Ann", "age": 1, "home": {"city": "Oslo", "floor": 1}}',
            '{"name": "Ann", "age": 1}',
            '{"name": "Anneliese", "age": 1, "home": {"city": "Rome", "floor": 1}}',
        ],
    ),
    "array": (
        {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 3},
        ["[true, false]", "[true,false,true]"],
        ["[true]", "[true,true,true,true]", "[1,2]", "[]"],
    ),
    "tuple": (
        {"type": "array", "prefixItems": [{"type": "integer"}, {"type": "string"}], "items": False, "minItems": 2},
        ['[1, "a"]'],
        ['["a", 1]', '[1, "a", 2]', "[1]"],
    ),
    "enum": ({"enum": ["red", 3, None, [1, {"a": "b"}]]}, ['"red"', "3", "null", '[1, {"a": "b"}]'], ['"blue"', "4"]),
    "const": ({"const": {"kind": "cat", "legs": 4}}, ['{"kind": "cat", "legs": 4}'], ['{"kind": "dog", "legs": 4}']),
    "any of": ({"anyOf": [{"type": "integer"}, {"const": "many"}]}, ["7", '"many"'], ['"few"', "true"]),
    "one of": ({"oneOf": [{"type": "integer"}, {"type": "boolean"}]}, ["7", "true"], ['"7"']),
    "all of": (
        {
            "allOf": [
                {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
                {"type": "object", "properties": {"b": {"type": "null"}}, "required": ["b"]},
            ],
        },
        ['{"a": 1, "b": null}'],
        ['{"a": 1}', '{"a": 1, "b": 2}'],
    ),
    "recursive": (
        TREE,
        ['{"value": 1, "next": null}', '{"value": 1, "next": {"value": 2, "next": null}}'],
        ['{"value": 1, "next": {}}', '{"value": 1}'],
    ),
    "pattern": (
        {"type": "string", "pattern": "^[a-z]{2}-[0-9]+$"},
        ['"ab-1"', '"xy-009"'],
        ['"ab-"', '"AB-1"', '"ab-1x"'],
    ),
    "pattern anywhere": ({"type": "string", "pattern": "b+", "maxLength": 9}, ['"abba"', '"b"'], ['"acca"', '""']),
    "date": ({"type": "string", "format": "date"}, ['"2024-02-29"'], ['"2024-13-01"', '"today"']),
    "date-time": ({"type": "string", "format": "date-time"}, ['"2024-02-29T10:00:00Z"'], ['"2024-02-29"']),
    "uuid": ({"type": "string", "format": "uuid"}, ['"123e4567-e89b-12d3-a456-426614174000"'], ['"123e4567"']),
    "ipv4": ({"type": "string", "format": "ipv4"}, ['"127.0.0.1"'], ['"256.0.0.1"', '"1.2.3"']),
    "email": ({"type": "string", "format": "email"}, ['"ann@example.com"'], ['"ann"']),
    "integer bounds": (
        {"type": "integer", "minimum": -3, "exclusiveMaximum": 12},
        ["-3", "0", "11"],
        ["-4", "12", "100", "1.5"],
    ),
    "number bounds": ({"type": "number", "minimum": 0.5, "maximum": 2}, ["0.5", "1.25", "2"], ["0.4", "2.1", "3"]),
    "multiples": ({"type": "integer", "multipleOf": 5, "minimum": 0, "maximum": 99}, ["0", "35"], ["7", "100"]),
    "lengths": ({"type": "string", "minLength": 2, "maxLength": 3}, ['"ab"', '"äöü"', '"a\\n"'], ['"a"', '"abcd"']),
    "null": ({"type": "null"}, ["null"], ["none", "0"]),
    "union of types": ({"type": ["string", "null"], "maxLength": 4}, ['"ab"', "null"], ["1"]),
    "optional": (
        {"type": "object", "properties": {"a": {"type": "null"}, "b": {"type": "null"}}, "required": ["b"], **CLOSED},
        ['{"b": null}', '{"a": null, "b": null}'],
        ['{"a": null}', '{"b": null, "c": null}'],
    ),
    "map": (
        {"type": "object", "additionalProperties": {"type": "integer"}, "maxProperties": 2},
        ["{}", '{"x": 1}', '{"x": 1, "yy": 2}'],
        ['{"x": "1"}', '{"a": 1, "b": 2, "c": 3}'],
    ),
    "pattern properties": (
        {"type": "object", "patternProperties": {"^n_": {"type": "integer"}}, **CLOSED},
        ['{"n_a": 1}'],
        ['{"a": 1}', '{"n_a": "x"}'],
    ),
    "definitions": (
        {"type": "array", "items": {"$ref": "#/definitions/x"}, "maxItems": 2, "definitions": {"x": {"type": "null"}}},
        ["[null]", "[]"],
        ["[1]"],
    ),
    "annotations": (
        {"title": "T", "description": "d", "default": 1, "examples": [2], "$comment": "c", "type": "integer"},
        ["5"],
        ['"5"'],
    ),
    "all there is": (True, ["1", "[{}]", '"a"'], ["x"]),
    "anything": ({"type": ["integer", "array"], "items": True, "maxItems": 1}, ["1", '[{"a": [1]}]', "[]"], ["{}"]),
}
NAMES = pytest.mark.parametrize("name", SCHEMAS)


def form(schema: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}


def fits(schema: Any, tokenizer: Any, text: str) -> bool:
    """Whether the form allows just this text as an answer."""
    compiled = compile_form(form(schema), tokenizer)
    assert compiled is not None
    end = tokenizer.eos_token_id
    row = FormRow(compiled, None, [], [end])
    for token in [
        *(index for byte in text.encode() for index in [compiled.vocabulary.bytes.index(bytes([byte]))]),
        end,
    ]:
        matcher = row._matcher
        if token != end and not matcher.validate_tokens([token]):
            return False
        if token == end:
            return bool(row.allowed()[end])
        row.advance(token)
    return False


@NAMES
def test_what_fits_and_what_does_not(small: Any, name: str) -> None:
    schema, good, bad = SCHEMAS[name]
    for text in good:
        jsonschema.validate(json.loads(text), schema)
        assert fits(schema, small, text), text
    for text in bad:
        assert not fits(schema, small, text), text


@NAMES
def test_every_answer_is_valid(small: Any, drawn: Any, name: str) -> None:
    schema = SCHEMAS[name][0]
    checker = jsonschema.Draft202012Validator(schema, format_checker=jsonschema.FormatChecker())
    texts = [drawn(form(schema), small, seed) for seed in range(12)]
    assert any(texts)
    for text in filter(None, texts):
        checker.validate(json.loads(text))


@pytest.mark.parametrize("seed", range(20))
def test_any_object(small: Any, drawn: Any, seed: int) -> None:
    text = drawn({"type": "json_object"}, small, seed)
    assert text is None or isinstance(json.loads(text), dict)


def test_spaces_have_a_bound(small: Any) -> None:
    pretty = json.dumps({"a": [1, {"b": None}]}, indent=4)
    compact = json.dumps({"a": [1, {"b": None}]}, separators=(",", ":"))
    for text, good in (
        (pretty, True),
        (compact, True),
        ('{  "a": 1}', False),
        ('{"a":\n\n1}', False),
        (' {"a":1}', False),
    ):
        assert fits({"type": "object"}, small, text) is good


# --- what cannot be held to ----------------------------------------------------------------------------------------

UNSUPPORTED: dict[str, tuple[Any, str]] = {
    "not": ({"not": {"type": "string"}}, "cannot be held to.*not"),
    "if": ({"if": {"type": "string"}, "then": {"minLength": 1}}, "cannot be held to.*if"),
    "unique": ({"type": "array", "items": {}, "uniqueItems": True}, "cannot be held to.*uniqueItems"),
    "contains": ({"type": "array", "contains": {"type": "null"}}, "cannot be held to.*contains"),
    "dependent": ({"type": "object", "dependentRequired": {"a": ["b"]}}, "cannot be held to.*dependentRequired"),
    "format": ({"type": "string", "format": "iban"}, "cannot be held to.*iban"),
    "overlapping one of": ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "cannot be held to.*oneOf"),
    "look-ahead": ({"type": "string", "pattern": "(?=a)b"}, "cannot be held to.*look-around"),
    "back reference": ({"type": "string", "pattern": r"(a)\1"}, "cannot be held to.*backreferences"),
    "remote": ({"$ref": "http://example.com/schema"}, "cannot be held to.*example.com"),
    "file": ({"$ref": "file:///etc/passwd"}, "cannot be held to.*passwd"),
    "missing": ({"$ref": "#/$defs/none"}, "cannot be held to.*none"),
    "type": ({"type": "strng"}, "cannot be held to.*strng"),
    "false": (False, "is False, but must be a dict"),
    "never": ({"enum": []}, "cannot be held to"),
    "bounds": ({"type": "integer", "minimum": 3, "maximum": 2}, "cannot be held to.*minimum"),
    "required": ({"type": "object", "properties": {}, "required": ["a"], **CLOSED}, "cannot be held to.*required"),
    "itself": ({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}, "allows no answer at all"),
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_what_is_not_supported_is_an_error(small: Any, name: str) -> None:
    schema, words = UNSUPPORTED[name]
    with pytest.raises(GenerationError, match=f"(?s)the schema of response_format {words}"):
        compile_form(form(schema), small)
