"""Seed-OSS: prompts as its published template writes them, and answers read with nothing lost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from chat_streams import Streams, check, fuzz, seconds_per_token
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quintet.chat import ChatEvent, chat_format, collect, split_messages
from quintet.chat.seed_oss import SeedOss, reflection_interval
from quintet.chat.seed_parser import SEED_TOKENS, SeedParser, argument_value
from quintet.errors import ChatError

# Made with the published template (ByteDance-Seed/Seed-OSS-36B-Instruct) and the reference's renderer.
PUBLISHED = json.loads((Path(__file__).parent / "seed_oss_prompts.json").read_text(encoding="utf-8"))
MESSAGES, TOOLS = PUBLISHED["messages"], PUBLISHED["tools"]
CASES: dict[str, tuple[list[dict[str, Any]], dict[str, Any]]] = {
    "plain": (MESSAGES, {}),
    "tools": (MESSAGES, {"tools": TOOLS}),
    "nosys": (MESSAGES[1:], {"tools": TOOLS}),
    "budget": (MESSAGES[1:2], {"thinking_budget": 1000}),
    "zero": (MESSAGES[1:2], {"thinking_budget": 0}),
    "json": (MESSAGES[:2], {"tools": TOOLS, "json_tools": True}),
    "closed": (MESSAGES[:-1], {"add_generation_prompt": False}),
}
FUNCTIONS = {
    "f": {"parameters": {"properties": {"n": {"type": "integer"}, "s": {"type": "string"}, "l": {"type": "array"}}}}
}
GOOD = [
    "<seed:think>Hm.</seed:think>\nFour.<seed:eos>",
    "<seed:think>a<seed:cot_budget_reflect>3 left</seed:cot_budget_reflect>b</seed:think>\nc<seed:eos>",
    "Look:\n\n<seed:tool_call>\n<function=f>\n<parameter=n>1</parameter>\n<parameter=s>a\nb</parameter>\n</function>\n"
    "</seed:tool_call><seed:eos>",
    "<seed:tool_call><function=f></function><function=g><parameter=x>y</parameter></function></seed:tool_call>",
    "Caf\u00e9 \U0001f98a <b> </function> <seed:eos>",
]
FRAGMENTS = [
    *(b"<function=", b"<parameter=", b"</parameter>", b"</function>", b">", b"n", b"\n", b" ", b"1", b"[1,", b"True"),
    *(b'"', b"\\", "\u00e9".encode(), b"\xff\xfe", b"<function=f>", b"<parameter=n>", b"hello", b"</", b"user\n"),
    *(b"<function=" + b"x" * 300, b"assistant\n", b"[" * 100),
]


def parse(tokenizer: Any, text: str, tools: Any = FUNCTIONS) -> list[ChatEvent]:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    events = SeedParser(tokenizer, (), tools).parse(ids)
    check(tokenizer, ids, events)
    return events


@pytest.mark.parametrize("case", CASES)
def test_prompts_are_those_of_the_published_template(case: str) -> None:
    messages, options = CASES[case]
    assert SeedOss().render(messages, **options).text == PUBLISHED["prompts"][case]


def test_markers_are_tokens_and_those_in_messages_are_text(seed_tokenizer: Any) -> None:
    prompt = SeedOss().render([{"role": "user", "content": "Hi <seed:eos>"}], tools=TOOLS)
    ids = prompt.ids(seed_tokenizer)
    count = {token: ids.count(seed_tokenizer.convert_tokens_to_ids(token)) for token in SEED_TOKENS}
    assert (count["<seed:bos>"], count["<seed:eos>"], count["<seed:tool_call>"]) == (3, 2, 1)


def test_the_loss_mask_is_what_the_model_writes(seed_tokenizer: Any) -> None:
    prompt = SeedOss().render(MESSAGES[:5], add_generation_prompt=False)
    ids, mask = prompt.ids_and_mask(seed_tokenizer)
    learnt = seed_tokenizer.decode([index for index, wanted in zip(ids, mask, strict=True) if wanted])
    assert learnt.startswith("<seed:think>hmm</seed:think>\nLet me see.\n\n<seed:tool_call>\n<function=get_weather>")
    assert (
        learnt.endswith("<seed:think>ok</seed:think>\nIt is sunny.<seed:eos>") and "sunny<seed:eos>" not in learnt[:-20]
    )


@pytest.mark.parametrize(
    ("budget", "interval"), [(0, 0), (1, 128), (512, 128), (513, 256), (3000, 512), (16384, 1024), (99999, 1024)]
)
def test_reflection_intervals(budget: int, interval: int) -> None:
    assert reflection_interval(budget) == interval


def test_effort_is_a_budget() -> None:
    def render(**options: Any) -> str:
        return SeedOss().render([{"role": "user", "content": "x"}], **options).text

    assert render(reasoning_effort="none") == render(thinking_budget=0)
    assert render(reasoning_effort="low") == render(thinking_budget=512)
    assert render(reasoning_effort="high") == render() == render(thinking_budget=-1)
    assert render(reasoning_effort="low", thinking_budget=1024) == render(thinking_budget=1024)


def test_what_a_reader_sees(seed_tokenizer: Any) -> None:
    events = parse(seed_tokenizer, GOOD[1])
    messages = split_messages(events)
    assert [(each["channel"], each["content_type"], each["content"], each["reason"]) for each in messages] == [
        ("analysis", None, "a", "end"),
        ("analysis", "budget", "3 left", "end"),
        ("analysis", None, "b", "end"),
        ("final", None, "c", "return"),
    ]
    parts = [event.part for event in events if event.kind == "start"]
    assert parts == ["reasoning", "budget", "reasoning", "answer"]
    # Notes about the budget are neither thoughts nor answer.
    assert collect(events) == {"role": "assistant", "content": "c", "reasoning_content": "ab"}


def test_tool_calls_are_json_of_the_schemas_types(seed_tokenizer: Any) -> None:
    text = (
        'Look:\n\n<seed:tool_call>\n<function=f>\n<parameter=n>3</parameter>\n<parameter=s>a "b"\n\\ </parameter>\n'
        "<parameter=l>['x', None, True]</parameter>\n<parameter=other>7</parameter>\n</function>\n<function=g>\n"
        "</function>\n</seed:tool_call>\nDone.<seed:eos>"
    )
    events = parse(seed_tokenizer, text)
    message = collect(events)
    first, second = message["tool_calls"]
    assert json.loads(first["function"]["arguments"]) == {
        "n": 3,
        "s": 'a "b"\n\\ ',
        "l": ["x", None, True],
        "other": "7",
    }
    assert (second["function"]["name"], second["function"]["arguments"]) == ("g", "{}")
    assert message["content"] == "Look:\n\nDone."
    assert [each["reason"] for each in split_messages(events)] == ["end", "call", "call", "return"]
    # Pieces come while the model writes.
    assert sum(event.kind == "tool_call" and bool(event.text) for event in events) > 10


def test_rendered_calls_are_read_back(seed_tokenizer: Any) -> None:
    arguments = {"city": "Paris <b>", "days": 2, "alerts": True}
    calls = [{"function": {"name": "get_weather", "arguments": arguments}}]
    prompt = SeedOss().render([{"role": "assistant", "tool_calls": calls}], add_generation_prompt=False)
    events = SeedOss().parser(seed_tokenizer, tools=TOOLS).parse(prompt.ids(seed_tokenizer))
    found = collect(events)["tool_calls"][0]["function"]
    assert (found["name"], json.loads(found["arguments"])) == ("get_weather", arguments)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    reasoning=st.text(st.characters(codec="utf-8"), max_size=20),
    content=st.text(st.characters(codec="utf-8"), min_size=1, max_size=20),
    values=st.dictionaries(st.sampled_from(["s", "t"]), st.text(st.characters(codec="utf-8"), max_size=20), max_size=2),
)
def test_answers_are_read_back(reasoning: str, content: str, values: dict[str, str], seed_tokenizer: Any) -> None:
    message = {"role": "assistant", "content": content, "reasoning_content": reasoning}
    if not reasoning.strip() and not content.strip():
        return
    calls = [{"function": {"name": "f", "arguments": values}}] if values else []
    prompt = SeedOss().render([{**message, "tool_calls": calls}], add_generation_prompt=False)
    ids = prompt.ids(seed_tokenizer)
    events = SeedParser(seed_tokenizer).parse(ids)
    check(seed_tokenizer, ids, events)
    found = collect(events)
    # The template strips both; the line ends before a call are the format's.
    assert found.get("reasoning_content", "").strip() == reasoning.strip()
    assert found["content"].strip() == content.strip()
    if values:
        assert json.loads(found["tool_calls"][0]["function"]["arguments"]) == values


def test_a_budget_of_nothing_is_answered_at_once(seed_tokenizer: Any) -> None:
    prompt = SeedOss().render([{"role": "user", "content": "x"}], thinking_budget=0)
    parser = SeedOss().parser(seed_tokenizer, prompt)
    text = "None left.</seed:cot_budget_reflect>\n</seed:think>\nFour.<seed:eos>"
    ids = seed_tokenizer(text, add_special_tokens=False)["input_ids"]
    events = parser.parse(ids)
    check(seed_tokenizer, ids, events)
    assert collect(events) == {"role": "assistant", "content": "Four."}
    assert [event.part for event in events if event.kind == "start"] == ["budget", "answer"]


# output -> (content, reasoning, special text)
BROKEN: dict[str, tuple[str, str, str]] = {
    "": ("", "", ""),
    "<seed:think>Hm": ("", "Hm", ""),
    "Hm</seed:think>Four.": ("HmFour.", "", "</seed:think>"),
    "<seed:think>a<seed:think>b</seed:think>c": ("c", "ab", "<seed:think>"),
    "<seed:think>a<seed:eos>": ("", "a", ""),
    "a<seed:pad>b": ("ab", "", "<seed:pad>"),
    "<seed:tool_call>what?</seed:tool_call>a": ("a", "", "what?"),
    "<seed:tool_call><function=f>x</function></seed:tool_call>": ("", "", "x"),
    "<seed:bos>user\nMe?": ("", "", ""),
    "<seed:cot_budget_reflect>1</seed:cot_budget_reflect>a": ("a", "", ""),
    "<function=f>": ("<function=f>", "", ""),
}


@pytest.mark.parametrize("text", BROKEN, ids=range(len(BROKEN)))
def test_broken_output(text: str, seed_tokenizer: Any) -> None:
    events = parse(seed_tokenizer, text)
    found = collect(events)
    special = "".join(event.text for event in events if event.kind == "special").strip()
    assert (found["content"], found.get("reasoning_content", ""), special) == BROKEN[text]


def test_cut_arguments_are_not_whole_json(seed_tokenizer: Any) -> None:
    for text, whole in (
        ("<seed:tool_call><function=f><parameter=s>del", False),
        ("<seed:tool_call><function=f><parameter=s>del</seed:tool_call>", False),
        ("<seed:tool_call><function=f><parameter=n>1", False),
        ("<seed:tool_call><function=f><parameter=n>1</parameter>", True),
        ("<seed:tool_call><function=f><parameter=n>1</parameter></seed:tool_call>", True),
    ):
        events = parse(seed_tokenizer, text)
        arguments = collect(events)["tool_calls"][0]["function"]["arguments"]
        assert split_messages(events)[0]["reason"] == ("call" if whole else "cut")
        if whole:
            assert json.loads(arguments) == {"n": 1}
        else:
            with pytest.raises(ValueError, match="Expecting|Unterminated"):
                json.loads(arguments)


def test_a_vocabulary_that_spells_the_tags(make_bytes: Any) -> None:
    tokenizer = make_bytes(())
    for text in GOOD:
        events = parse(tokenizer, text)
        parts = {event.part for event in events if event.kind == "start"}
        assert parts <= {"reasoning", "budget", "answer", "tool_call"} and "<seed:" not in collect(events)["content"]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *(
            ("1", 1),
            (" 2.5 ", 2.5),
            ("true", True),
            ("True", True),
            ("None", None),
            ("null", None),
            ('{"a": [1]}', {"a": [1]}),
        ),
        *(
            ("{'a': (1, 2)}", {"a": [1, 2]}),
            ("NaN", "NaN"),
            ("1e999", "1e999"),
            ("abc", "abc"),
            ("", ""),
            ("{1, 2}", "{1, 2}"),
        ),
        *(("[" * 100_000, "[" * 100_000), ("9" * 5000, "9" * 5000), ("-" * 5000 + "1", "-" * 5000 + "1"), ("\0", "\0")),
    ],
    ids=range(17),
)
def test_argument_values(text: str, value: Any) -> None:
    assert json.loads(argument_value(text)) == value


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"thinking_budget": -5}, "thinking_budget is -5, but must be a number of tokens"),
        ({"thinking_budget": "many"}, "thinking_budget is 'many'"),
        ({"thinking_budget": True}, "thinking_budget is True"),
        ({"reasoning_effort": "hgih"}, "reasoning_effort is 'hgih', but must be one of"),
        ({"reasoning_effort": ["low"]}, r"reasoning_effort is \['low'\]"),
        ({"thinking_bugdet": 5}, "no option 'thinking_bugdet'.*Did you mean 'thinking_budget'"),
        (
            {"tools": [{"type": "code_interpreter"}]},
            "of type 'code_interpreter'; this chat format knows functions only",
        ),
        ({"tools": [TOOLS[0], TOOLS[0]]}, "Two tools have the name 'get_weather'"),
    ],
    ids=range(8),
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ChatError, match=message):
        SeedOss().render([{"role": "user", "content": "x"}], **options)


def test_arguments_that_are_no_object() -> None:
    calls = [{"function": {"name": "f", "arguments": "[1]"}}]
    with pytest.raises(ChatError, match="arguments of the call of 'f' must be a JSON object"):
        SeedOss().render([{"role": "assistant", "tool_calls": calls}])
    calls[0]["function"]["arguments"] = "{oops"
    with pytest.raises(ChatError, match="arguments of the call of 'f' are not JSON: '{oops'"):
        chat_format("seed_oss").render([{"role": "assistant", "tool_calls": calls}])


@pytest.fixture(scope="module")
def streams(seed_tokenizer: Any) -> Streams:
    return Streams(seed_tokenizer, (*SEED_TOKENS, "<seed:pad>"), FRAGMENTS, GOOD)


def test_random_and_mutated_streams(streams: Streams) -> None:
    fuzz(streams, lambda number: SeedParser(streams.tokenizer, (), FUNCTIONS if number % 3 else None), 3000, 1)


@pytest.mark.slow
def test_a_hundred_thousand_random_and_mutated_streams(streams: Streams) -> None:
    fuzz(streams, lambda number: SeedParser(streams.tokenizer, (), FUNCTIONS if number % 3 else None), 100_000, 2)


def test_time_is_linear(streams: Streams) -> None:
    def parser() -> SeedParser:
        return SeedParser(streams.tokenizer, (), FUNCTIONS)

    tool, bos = streams.special[6], streams.special[0]
    open_value = [tool, *streams.fragments[15], *streams.fragments[16]]
    for head, body in (
        ([], streams.special),
        (open_value, streams.fragments[18]),
        ([tool], streams.fragments[0]),
        ([], [bos, 65]),
    ):
        short = seconds_per_token(parser, [*head, *list(body) * 200])
        long = seconds_per_token(parser, [*head, *list(body) * 6400])
        assert long < 6 * short + 1e-6, body
