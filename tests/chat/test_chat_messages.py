"""Conversations and tools as people give them: the good ones in one form, the bad ones with a clear error."""

from __future__ import annotations

import enum
import json
from typing import Any, Literal, Optional, Union

import pytest

from quintet.chat import Call, function_schema, read_messages, tool_schemas
from quintet.chat.tools import check_schema, function_tools
from quintet.errors import ChatError


def test_messages_in_one_form() -> None:
    turns = read_messages(
        [
            {"role": "human", "content": ["a", {"type": "text", "text": "b"}, {"type": "input_text", "text": "c"}]},
            {
                "role": "assistant",
                "content": None,
                "thinking": "t",
                "tool_calls": [{"id": 7, "function": {"name": "f"}}],
            },
            {"role": "tool", "tool_call_id": "7", "content": "x", "refusal": None},
            {"role": "function", "content": "y"},
            {"role": "assistant", "content": "", "channel": "final", "unknown": 1},
        ]
    )
    assert [turn.role for turn in turns] == ["user", "assistant", "tool", "tool", "assistant"]
    assert turns[0].content == "abc" and turns[1].reasoning == "t"
    assert turns[1].calls == (Call("f", "{}", "7"),) and turns[1].calls[0].values() == {}
    assert (turns[2].name, turns[3].name) == ("f", "f") and turns[4].channel == "final"
    flat = read_messages([{"role": "assistant", "tool_calls": [{"name": "f", "arguments": {"a": "\u00e9"}}]}])
    assert flat[0].calls[0].arguments == '{"a": "\u00e9"}'


USER = {"role": "user", "content": "x"}


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        (None, "must be a list of messages .*, not None of type NoneType"),
        ("hi", "must be a list of messages .*, not 'hi' of type str"),
        (b"hi", "must be a list of messages .* of type bytes"),
        (USER, "must be a list of messages .* of type dict"),
        (iter([USER]), "must be a list of messages .* of type list_iterator"),
        ([], "The conversation is empty"),
        ([USER, None], "Message 1 must be a dict .* not None"),
        ([b"x"], "Message 0 must be a dict .* not b'x'"),
        ([{"content": "x"}], "Message 0 has the role None, but it must be one of"),
        ([{"role": "asistant", "content": "x"}], "role 'asistant', but .*Did you mean 'assistant'"),
        ([{"role": ["user"], "content": "x"}], r"Message 0 has the role \['user'\]"),
        ([{"role": "user"}], r"Message 0 \(role 'user'\) has no content"),
        ([{"role": "assistant", "content": None}], "has no content"),
        ([{"role": "user", "content": b"x"}], "must be a text or a list .* not b'x' of type bytes.* Decode it first"),
        ([{"role": "user", "content": 5}], "must be a text or a list of text parts, not 5 of type int"),
        ([{"role": "user", "content": {"text": "x"}}], "of type dict"),
        ([{"role": "user", "content": [5]}], "a part of the content must be .* not 5"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}], "read and write text only"),
        ([{"role": "user", "content": [{"type": "text", "text": None}]}], "a part of the content must be"),
        ([{**USER, "tool_calls": [{"name": "f"}]}], "only an assistant's message can have tool calls"),
        (
            [{**USER, "reasoning": "x"}],
            "only an assistant's message can have tool calls or reasoning, not one of 'user'",
        ),
        ([{"role": "assistant", "tool_calls": "f"}], "tool_calls must be a list, not 'f'"),
        ([{"role": "assistant", "tool_calls": [None]}], "a tool call must be .* not None"),
        ([{"role": "assistant", "tool_calls": [{"function": {"name": ""}}]}], "a tool call must be"),
        (
            [{"role": "assistant", "tool_calls": [{"name": "f", "arguments": 5}]}],
            "arguments of 'f' must be a dict or JSON",
        ),
        (
            [{"role": "assistant", "tool_calls": [{"name": "f", "arguments": {"a": b""}}]}],
            "arguments of 'f' are not JSON",
        ),
        ([{**USER, "name": 5}], "Message 0: name must be a text, not 5"),
        ([{**USER, "channel": ""}], "Message 0: channel must be a text, not ''"),
        ([{"role": "assistant", "content": "", "reasoning": 5}], "Message 0, reasoning: the content must be a text"),
    ],
    ids=range(29),
)
def test_bad_messages(messages: Any, message: str) -> None:
    with pytest.raises(ChatError, match=message):
        read_messages(messages)


class Colour(enum.Enum):
    """Colours."""

    RED = "red"
    BLUE = 2


class Tools:
    """A class whose methods are tools."""

    def find(self, text: str) -> list[str]:
        """Find.

        Args:
            text: What
        """
        return [text]


def everything(
    a: int,
    b: float,
    c: str,
    d: bool,
    e: list[int],
    f: dict[str, float],
    g: tuple[int, str],
    h: Literal["x", "y", 3],
    i: Colour,
    j: Any,
    k: Optional[int],  # noqa: UP045 (both spellings are to be read)
    l: int | str = 1,  # noqa: E741
    m: Union[list[int], str, None] = None,  # noqa: UP007
    n: list = [],  # noqa: B006
    o: tuple = (),
    p: dict | None = None,
) -> str:
    """Do everything,
    at once.

    More of it.

    Args:
        a: An a (choices: [1, 2])
        b: A b,
            on two lines
        c: c: with a colon
        d: d
        e: e
        f: f
        g: g
        h: h
        i: i
        j: j
        k: k
        l: l

        m: m
        n: n
        o: o
        p: p

    Returns:
        A text,
        of lines.

    Raises:
        ValueError: Never.
    """
    return ""


def bare() -> None:
    """Do nothing."""


@pytest.mark.parametrize("function", [everything, bare, Tools().find], ids=["everything", "bare", "method"])
def test_schemas_of_functions_are_the_references(function: Any) -> None:
    utils = pytest.importorskip("transformers.utils.chat_template_utils")
    expected = utils.get_json_schema(function)
    found = function_schema(function)
    assert found == expected
    assert list(found["function"]["parameters"]["properties"]) == list(expected["function"]["parameters"]["properties"])
    assert tool_schemas([function]) == [found]


def no_docstring(a: int) -> None:
    pass


def no_hint(a) -> None:  # type: ignore[no-untyped-def]
    """Do.

    Args:
        a: a
    """


def no_description(a: int, b: int) -> None:
    """Do.

    Args:
        a: a
    """


def bad_hint(a: Tools) -> None:
    """Do.

    Args:
        a: a
    """


def bad_choices(a: str) -> None:
    """Do.

    Args:
        a: a (choices: x, y)
    """


def open_tuple(a: tuple[int, ...]) -> None:
    """Do.

    Args:
        a: a
    """


def unknown_name(a: Missing) -> None:  # type: ignore[name-defined]  # noqa: F821
    """Do.

    Args:
        a: a
    """


GOOD = {"name": "f", "description": "F.", "parameters": {"type": "object", "properties": {"a": {"type": "string"}}}}


def changed(**parameters: Any) -> dict[str, Any]:
    return {**GOOD, "parameters": {**GOOD["parameters"], **parameters}}  # type: ignore[dict-item]


@pytest.mark.parametrize(
    ("tool", "message"),
    [
        (no_docstring, "The tool no_docstring has no docstring"),
        (no_hint, "The argument 'a' of the tool no_hint has no type hint"),
        (no_description, "The argument 'b' of the tool no_description is not described"),
        (bad_hint, "bad_hint.a.: the type hint .*Tools.* has no JSON schema"),
        (open_tuple, "open_tuple.a.: the type hint .* has no JSON schema"),
        (bad_choices, "bad_choices.a.: the choices 'x, y' are not a JSON list"),
        (unknown_name, "The type hints of the tool unknown_name cannot be read: name 'Missing'"),
        (5, "Tool 0 must be a function .* not 5"),
        (None, "Tool 0 must be a function .* not None"),
        (b"x", "Tool 0 must be a function"),
        (Tools, "Tool 0 must be a function"),
        ({}, "the name is None, but must be"),
        ({"type": 5}, "type must be 'function', not 5"),
        ({"type": "function", "function": 5}, "'function' must be a dict .* not 5"),
        ({"name": "a b"}, "the name is 'a b', but must be 1 to 128 letters"),
        ({"name": "x" * 200}, "the name is 'xxx"),
        ({"name": "f", "description": 5}, "the description must be a text, not 5"),
        ({"name": "f", "parameters": 5}, "parameters must be a JSON schema .a dict., not 5"),
        ({"name": "f", "parameters": [1]}, "parameters must be a JSON schema"),
        ({"name": "f", "parameters": True}, "parameters must be a JSON schema"),
        ({"name": "f", "parameters": b"x"}, "Tool 0 is not JSON"),
        (changed(type="array"), "a tool's parameters must be of the type 'object', not 'array'"),
        (changed(properties=[1]), "properties must be a dict of schemas"),
        (changed(properties={"a": 5}), "parameters.a must be a JSON schema .a dict., not 5"),
        (changed(properties={"a": {"type": "strng"}}), "'strng' is no JSON type.*Did you mean 'string'"),
        (changed(properties={"a": {"type": ["string", 5]}}), "5 is no JSON type"),
        (changed(properties={"a": {"type": {}}}), "{} is no JSON type"),
        (changed(properties={"a": {"enum": []}}), "enum must be a list of values"),
        (changed(properties={"a": {"type": "array", "items": 5}}), "parameters.a, items must be a JSON schema"),
        (changed(properties={"a": {"anyOf": 5}}), "anyOf must be a list of schemas"),
        (changed(properties={"a": {"oneOf": [5]}}), "oneOf 0 must be a JSON schema"),
        (changed(required="a"), "required must be a list of names"),
        (changed(required=[5]), "required must be a list of names"),
    ],
    ids=range(33),
)
def test_bad_tools(tool: Any, message: str) -> None:
    with pytest.raises(ChatError, match=message):
        tool_schemas([tool])


@pytest.mark.parametrize("tools", [None, 5, "f", b"f", {"name": "f"}, GOOD], ids=range(6))
def test_tools_that_are_no_list(tools: Any) -> None:
    with pytest.raises(ChatError, match="tools must be a list of functions or of dicts"):
        tool_schemas(tools)


def test_tools_that_are_nested_too_deeply_or_hold_themselves() -> None:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(70):
        schema = {"type": "array", "items": schema}
    with pytest.raises(ChatError, match="nested more than 64 levels"):
        tool_schemas([changed(properties={"a": schema})])
    loop: dict[str, Any] = {"name": "f"}
    loop["parameters"] = loop
    with pytest.raises(ChatError, match="Tool 0 is not JSON"):
        tool_schemas([loop])


def test_good_tools_are_copied_as_they_are() -> None:
    wrapped = {"type": "function", "function": GOOD, "strict": True}
    other = {"type": "code_interpreter"}
    found = tool_schemas([GOOD, wrapped, other])
    assert found == [GOOD, wrapped, other] and found[0] is not GOOD
    assert [each["name"] for each in function_tools([wrapped, {**GOOD, "name": "g"}])] == ["f", "g"]
    assert tool_schemas([]) == [] and json.dumps(found)
    check_schema(True, "x")
    check_schema({"type": "object", "additionalProperties": False}, "x", top=True)
