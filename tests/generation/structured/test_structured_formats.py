"""What `response_format` may hold, and forms that are meant to keep a machine busy."""

from __future__ import annotations

import builtins
import copy
import json
import re
import time
from typing import Any

import pytest

from quintet.errors import GenerationError
from quintet.generation.structured import Form, StructuredLimits, compile_form, read_format
from quintet.generation.structured.compile import _engine, allowed_tokens
from quintet.generation.structured.vocabulary import Vocabulary, vocabulary_of

SCHEMA = {"type": "integer"}
WRITTEN = json.dumps(SCHEMA)


@pytest.mark.parametrize(
    ("given", "form"),
    [
        (None, None),
        ({"type": "text"}, None),
        ({"type": "json_object"}, Form("json_schema", '{"type": "object"}')),
        ({"type": "json_schema", "schema": SCHEMA}, Form("json_schema", WRITTEN)),
        ({"type": "json_schema", "name": "n", "strict": True, "schema": SCHEMA}, Form("json_schema", WRITTEN)),
        ({"type": "json_schema", "json_schema": {"schema": SCHEMA}}, Form("json_schema", WRITTEN)),
        (
            {"type": "json_schema", "json_schema": {"name": "n", "description": "d", "strict": None, "schema": SCHEMA}},
            Form("json_schema", WRITTEN),
        ),
        ({"type": "regex", "regex": "a+"}, Form("regex", "a+")),
        ({"type": "regex", "pattern": "a+"}, Form("regex", "a+")),
        ({"type": "choice", "choice": ["a", "b", "a"]}, Form("choice", '["a", "b"]')),
        ({"type": "choice", "choices": ("a",)}, Form("choice", '["a"]')),
        ({"type": "grammar", "grammar": 'start: "a"'}, Form("lark", 'start: "a"')),
        ({"type": "grammar", "lark": 'start: "a"'}, Form("lark", 'start: "a"')),
        ({"type": "grammar", "grammar": {"grammars": []}}, Form("llguidance", '{"grammars": []}')),
        ({"type": "grammar", "grammar": ' {"grammars": []}'}, Form("llguidance", ' {"grammars": []}')),
    ],
)
def test_forms_that_are_read(given: Any, form: Form | None) -> None:
    assert read_format(given) == form


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("json", "response_format is 'json', but must be a dict with a 'type'"),
        ({}, r"response_format is \{\}, but must be a dict with a 'type'"),
        ({"type": 5}, "must be a dict with a 'type': one of text, json_object"),
        ({"type": "jsonschema"}, "the type 'jsonschema'.*Did you mean 'json_schema'"),
        ({"type": "json_object", "schema": {}}, "has the key 'schema', which does not belong there"),
        ({"type": "json_schema"}, "has no schema. Give it as"),
        ({"type": "json_schema", "json_schema": {"name": "n"}}, "must be a dict with a 'schema'"),
        ({"type": "json_schema", "json_schema": {"schema": {}}, "schema": {}}, "has the key 'schema'"),
        ({"type": "json_schema", "schema": [1]}, r"the schema of response_format is \[1\], but must be a dict"),
        ({"type": "json_schema", "schema": {}, "strict": "yes"}, "strict='yes', but it must be true or false"),
        ({"type": "json_schema", "schema": {}, "nmae": "x"}, "the key 'nmae'.*Did you mean 'name'"),
        ({"type": "json_schema", "schema": {"const": {1, 2}}}, "cannot be written as JSON"),
        ({"type": "json_schema", "schema": {"const": float("nan")}}, "cannot be written as JSON"),
        ({"type": "regex"}, "has None as its regex, but must have one text there"),
        ({"type": "regex", "regex": ""}, "has '' as its regex"),
        ({"type": "regex", "regex": "a", "pattern": "b"}, "must have one text there"),
        ({"type": "choice", "choice": []}, r"has \[\] to choose from, but needs a list of texts"),
        ({"type": "choice", "choice": ["a", ""]}, "none of them empty"),
        ({"type": "choice", "choice": "ab"}, "has 'ab' to choose from"),
        ({"type": "choice", "choice": [1]}, "needs a list of texts"),
        ({"type": "grammar", "grammar": 5}, "has 5 as its grammar"),
    ],
)
def test_forms_that_are_none(given: Any, words: str) -> None:
    with pytest.raises(GenerationError, match=words):
        read_format(given)


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "null"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"type": "json_schema", "schema": nested(70)}, "more than 64 values deep"),
        ({"type": "json_schema", "schema": nested(100_000)}, "more than 64 values deep"),
        ({"type": "json_schema", "schema": {"enum": list(range(30_000))}}, "holds more than 20000 values"),
        ({"type": "json_schema", "schema": {"enum": ["x" * 300_000]}}, "has 300014 bytes, and at most 262144"),
        ({"type": "regex", "regex": "x" * 300_000}, "has 300000 bytes"),
        ({"type": "grammar", "grammar": 'start: "' + "x" * 300_000 + '"'}, "has 3000.. bytes"),
        (
            {"type": "choice", "choice": [str(number) for number in range(6000)]},
            "offers 6000 choices, and at most 5000",
        ),
    ],
)
def test_forms_that_are_too_large(given: Any, words: str) -> None:
    with pytest.raises(GenerationError, match=words):
        read_format(given)


def test_a_schema_that_holds_itself_is_too_deep() -> None:
    schema: dict[str, Any] = {"type": "array"}
    schema["items"] = schema
    with pytest.raises(GenerationError, match="values deep"):
        read_format({"type": "json_schema", "schema": schema})


def test_other_limits(small: Any) -> None:
    given = {"type": "choice", "choice": ["a", "b"]}
    with pytest.raises(GenerationError, match="offers 2 choices, and at most 1"):
        compile_form(given, small, StructuredLimits(max_choices=1))
    with pytest.raises(GenerationError, match="more than 2 values deep"):
        compile_form({"type": "json_schema", "schema": nested(5)}, small, StructuredLimits(max_depth=2))


def test_compiling_has_a_time_limit(small: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quintet.generation.structured.compile._grammar", lambda engine, form: time.sleep(0.3) or "")
    with pytest.raises(GenerationError, match="compiling response_format took more than 0.05 seconds"):
        compile_form({"type": "json_object"}, small, StructuredLimits(max_seconds=0.05))


def wide(count: int, **more: Any) -> dict[str, Any]:
    return {"type": "object", "properties": {f"key{index}": {"type": "string"} for index in range(count)}, **more}


def exponential(levels: int) -> dict[str, Any]:
    """Each level refers twice to the next: two to the power of `levels` ways through it."""
    parts: dict[str, Any] = {f"l{levels}": {"type": "null"}}
    for level in range(levels):
        ref = {"$ref": f"#/$defs/l{level + 1}"}
        parts[f"l{level}"] = {"anyOf": [ref, {"type": "array", "items": ref, "maxItems": 2}]}
    return {"$ref": "#/$defs/l0", "$defs": parts}


def crossed(count: int) -> dict[str, Any]:
    """An allOf of anyOfs, which are multiplied out."""
    return {
        "allOf": [
            {"anyOf": [{"type": "integer", "minimum": a}, {"type": "string", "minLength": a}]} for a in range(count)
        ]
    }


HOSTILE: dict[str, dict[str, Any]] = {
    "exponential": {"type": "json_schema", "schema": exponential(18)},
    "crossed": {"type": "json_schema", "schema": crossed(30)},
    "wide": {"type": "json_schema", "schema": wide(2000)},
    "wide map": {"type": "json_schema", "schema": wide(1500, additionalProperties={"type": "integer"})},
    "giant enum": {"type": "json_schema", "schema": {"enum": [f"value {index}" for index in range(15_000)]}},
    "deep": {"type": "json_schema", "schema": nested(60)},
    "long arrays": {
        "type": "json_schema",
        "schema": {"type": "array", "items": {}, "minItems": 10**6, "maxItems": 10**9},
    },
    "long strings": {"type": "json_schema", "schema": {"type": "string", "minLength": 10**6, "maxLength": 10**9}},
    "many properties": {"type": "json_schema", "schema": {"type": "object", "minProperties": 10**6}},
    "patterns": {"type": "json_schema", "schema": {"type": "string", "pattern": "^(([a-z])+.)+[A-Z]([a-z])+$"}},
    "nested repeats": {"type": "regex", "regex": "((a{1,1000}){1,1000}){1,1000}b"},
    "catastrophic": {"type": "regex", "regex": "(a+)+(a|aa)*(.*a){25}$"},
    "all letters": {"type": "regex", "regex": r"(\p{L}{1,500}\s?){1,500}"},
    "left recursion": {"type": "grammar", "grammar": 'start: start start | "a"'},
    "ambiguous": {"type": "grammar", "grammar": 'start: a a a a a a a a\na: "x"* b?\nb: "x"* a?'},
    "choices": {"type": "choice", "choice": ["x" * index for index in range(1, 600)]},
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_forms_end_in_time(small: Any, name: str) -> None:
    """Each is compiled and followed for a while, or refused: none takes long, none raises anything else."""
    vocabulary_of(small)
    begun = time.monotonic()
    try:
        compiled = compile_form(HOSTILE[name], small, StructuredLimits(max_seconds=3.0))
        assert compiled is not None
        matcher = compiled.matcher()
        for _ in range(30):
            allowed = allowed_tokens(matcher, compiled.vocabulary).nonzero()[0]
            if matcher.is_error() or not len(allowed):
                break
            matcher.consume_token(int(allowed[len(allowed) // 2]))
    except GenerationError as error:
        assert "response_format" in str(error) and len(str(error)) < 1500
    assert time.monotonic() - begun < 8


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"type": "regex", "regex": "["}, "the regular expression of response_format cannot be held to.*unclosed"),
        ({"type": "regex", "regex": "(?=a)b"}, "look-around.*is not supported"),
        (
            {"type": "grammar", "grammar": 'start: "a" b'},
            "the grammar of response_format cannot be held to.*unknown name",
        ),
        ({"type": "grammar", "grammar": "x"}, "the grammar of response_format cannot be held to"),
        ({"type": "grammar", "grammar": 'begin: "a"'}, "the grammar of response_format cannot be held to.*start"),
        ({"type": "grammar", "grammar": '{"grammars": 5}'}, "the grammar of response_format cannot be held to"),
        ({"type": "grammar", "grammar": "{"}, "the grammar of response_format cannot be held to"),
        ({"type": "grammar", "grammar": 'start: start "a"'}, "the grammar of response_format allows no answer at all"),
    ],
)
def test_forms_that_do_not_compile(small: Any, given: Any, words: str) -> None:
    with pytest.raises(GenerationError, match=f"(?s){words}"):
        compile_form(given, small)


# --- the other kinds --------------------------------------------------------------------------------------------------

DATES = r"(19|20)\d\d-(0[1-9]|1[0-2])-[0-3]\d"
SUMS = """
start: sum
sum: term ("+" term){0,3}
term: NUMBER | "(" sum ")"
NUMBER: /[1-9][0-9]?/
"""


@pytest.mark.parametrize("seed", range(8))
def test_answers_of_the_other_kinds(small: Any, drawn: Any, seed: int) -> None:
    text = drawn({"type": "regex", "regex": DATES}, small, seed)
    assert re.fullmatch(DATES, text, re.ASCII)
    assert drawn({"type": "choice", "choice": ["yes", "no", 'ma"y\\be\n', "ü"]}, small, seed) in (
        "yes",
        "no",
        'ma"y\\be\n',
        "ü",
    )
    text = drawn({"type": "regex", "regex": r"a/[\d/]\n\\"}, small, seed)
    assert re.fullmatch(r"a/[0-9/]\n\\", text)
    text = drawn({"type": "grammar", "grammar": SUMS}, small, seed)
    assert text is None or (re.fullmatch(r"[0-9+()]+", text) and text.count("(") == text.count(")"))
    own = {"grammars": [{"json_schema": {"type": "array", "items": {"type": "null"}, "maxItems": 2}}]}
    assert all(one is None for one in json.loads(drawn({"type": "grammar", "grammar": own}, small, seed) or "[]"))


# --- tokenizers -------------------------------------------------------------------------------------------------------


def test_a_vocabulary_is_read_once_and_again_when_it_grows(make_bytes: Any) -> None:
    tokenizer = make_bytes(("<e>",), eos_token="<e>")
    first = vocabulary_of(tokenizer)
    assert vocabulary_of(tokenizer) is first and first.size == 257
    assert first.special == {256} and first.spell([104, 256, 10**6]) == bytes([first.bytes[104][0]])
    tokenizer.add_tokens(["word"])
    assert vocabulary_of(tokenizer) is not first and vocabulary_of(tokenizer).bytes[257] == b"word"

    class Unhashable:
        __hash__ = None  # type: ignore[assignment]

        def __getattr__(self, name: str) -> Any:
            return getattr(tokenizer, name)

        def __len__(self) -> int:
            return len(tokenizer)

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return tokenizer(*args, **kwargs)

    assert vocabulary_of(Unhashable()).size == 258


def test_a_tokenizer_whose_tokens_spell_another_text(make_bytes: Any) -> None:
    tokenizer = make_bytes(("<e>",), eos_token="<e>")
    tokenizer.decode = lambda ids, **options: "something else"
    with pytest.raises(GenerationError, match="one by one and 'something else' together"):
        Vocabulary(tokenizer)


def test_words_of_gpt1(data_dir: Any) -> None:
    """Its tokens end with the space behind the word."""
    from quintet import OpenAIGPTTokenizer

    folder = data_dir / "tokenizers" / "openai-gpt"
    tokenizer = OpenAIGPTTokenizer(vocab_file=str(folder / "vocab.json"), merges_file=str(folder / "merges.txt"))
    compiled = compile_form({"type": "choice", "choice": ['{"a b":1}', "see you"]}, tokenizer)
    assert compiled is not None
    for text in ('{"a b":1}', "see you"):
        matcher, ids = compiled.matcher(), compiled.vocabulary(text)
        assert matcher.consume_tokens(ids) and matcher.is_accepting()
        assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text


def test_a_compiled_form_is_not_copied(small: Any) -> None:
    compiled = compile_form({"type": "json_object"}, small)
    assert copy.deepcopy(compiled) is compiled
    assert compile_form({"type": "text"}, small) is None


def test_without_llguidance(small: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "llguidance":
            raise ModuleNotFoundError("No module named 'llguidance'", name=name)
        return real(name, *args, **kwargs)

    _engine.cache_clear()
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(GenerationError, match=re.escape('pip install "quintet[structured]"')):
        compile_form({"type": "json_object"}, small)
