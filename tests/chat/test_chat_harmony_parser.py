"""What a gpt-oss model writes: as openai-harmony reads it where that can, and with nothing lost where it cannot."""

from __future__ import annotations

import re
from typing import Any

import pytest
from chat_streams import Streams, check, fuzz, seconds_per_token
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quintet.chat import ChatEvent, collect, split_messages
from quintet.chat.harmony import Harmony, HarmonyMessage, message_pieces
from quintet.chat.harmony_parser import HARMONY_TOKENS, HarmonyParser
from quintet.chat.pieces import Rendered
from quintet.errors import ChatError

FRAGMENTS = [
    *(b"assistant", b"analysis", b"final", b"commentary", b" to=functions.f", b" to=", b"json", b" ", b"\n", b"user"),
    *(b"hello there", "\u00e9".encode(), "\U0001f98a".encode(), b"\xff", b"\xe2\x82", b"functions.x", b":bob", b"{}"),
    *(b"assistant to=python", b"x " * 300, b"y" * 600),
]
GOOD = [
    "<|channel|>analysis<|message|>Think.<|end|><|start|>assistant<|channel|>final<|message|>Four.<|return|>",
    "<|channel|>commentary to=functions.f <|constrain|>json<|message|>{}<|call|>",
    " to=functions.f<|channel|>commentary<|message|>{}<|call|>",
    "<|channel|>commentary<|message|>Plan.<|end|>"
    "<|start|>assistant to=python<|channel|>analysis code<|message|>1<|call|>",
    "<|channel|>final<|message|>Caf\u00e9 \U0001f98a.<|return|><|endoftext|>",
]
TEXT = st.text(st.characters(codec="utf-8"), max_size=30).filter(lambda text: "<|" not in text)


def parse(tokenizer: Any, text: str, role: str | None = "assistant") -> list[ChatEvent]:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    events = HarmonyParser(tokenizer, role=role).parse(ids)
    check(tokenizer, ids, events)
    return events


def fields(message: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(message[key] for key in ("role", "name", "channel", "recipient", "content_type", "content"))


def theirs(oracle: Any, ids: list[int], role: str | None) -> list[tuple[Any, ...]]:
    import openai_harmony as oh

    found = oracle.parse_messages_from_completion_tokens(ids, None if role is None else oh.Role(role), strict=False)
    result = []
    for message in found:
        kind, recipient = message.content_type, message.recipient
        # The oracle keeps the marker in the type, and reads a type alone as a recipient.
        if kind is None and recipient in ("json", "code", "text", "<|constrain|>json"):
            kind, recipient = recipient, None
        kind = None if kind is None else kind.removeprefix("<|constrain|>")
        content = "".join(part.text for part in message.content)
        result.append((message.author.role.value, message.author.name, message.channel, recipient, kind, content))
    return result


MESSAGE = st.one_of(
    st.builds(
        HarmonyMessage,
        st.just("assistant"),
        TEXT,
        st.none(),
        st.sampled_from(["analysis", "commentary", "final", "odd"]),
        st.sampled_from([None, "functions.get_weather", "python"]),
        st.sampled_from([None, "json", "code", "<|constrain|>json"]),
    ),
    st.builds(HarmonyMessage, st.sampled_from(["user", "system", "developer"]), TEXT),
    st.builds(
        HarmonyMessage,
        st.just("tool"),
        TEXT,
        st.sampled_from(["functions.f", "python"]),
        st.sampled_from(["commentary", None]),
        st.just("assistant"),
    ),
)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(messages=st.lists(MESSAGE, min_size=1, max_size=5), moved=st.booleans())
def test_conversations_are_read_as_the_oracle_reads_them(
    messages: list[HarmonyMessage], moved: bool, oracle: Any, harmony_tokenizer: Any
) -> None:
    pieces = [piece for message in messages for piece in message_pieces(message)]
    text = Rendered(tuple(pieces)).text
    if moved:  # the recipient in the section of the channel
        text = re.sub(r"( to=[\w.]+)(<\|channel\|>\w+)", r"\2\1", text)
    ids = harmony_tokenizer(text, add_special_tokens=False)["input_ids"]
    events = HarmonyParser(harmony_tokenizer).parse(ids)
    check(harmony_tokenizer, ids, events)
    assert [fields(message) for message in split_messages(events)] == theirs(oracle, ids, None)
    assert {event.kind for event in events} <= {"start", "text", "tool_call", "end"}


@pytest.mark.parametrize("text", GOOD[:4])
def test_answers_are_read_as_the_oracle_reads_them(text: str, oracle: Any, harmony_tokenizer: Any) -> None:
    ids = harmony_tokenizer(text, add_special_tokens=False)["input_ids"]
    assert [fields(each) for each in split_messages(parse(harmony_tokenizer, text))] == theirs(oracle, ids, "assistant")


def test_the_oracle_reads_the_truncated_and_the_headless_alike(oracle: Any, harmony_tokenizer: Any) -> None:
    for text in (
        "<|channel|>final<|message|>a",
        "<|channel|>final hello you<|end|>",
        "<|channel|>odd<|message|><|end|>",
    ):
        ids = harmony_tokenizer(text, add_special_tokens=False)["input_ids"]
        found = [fields(message) for message in split_messages(parse(harmony_tokenizer, text))]
        expected = theirs(oracle, ids, "assistant")
        assert [(*each[:5], each[5].strip()) for each in found] == expected


# text of the output -> (role, channel, recipient, type, content, how it ended) of each message, special texts
BROKEN: dict[str, tuple[list[tuple[Any, ...]], list[str]]] = {
    "": ([], []),
    "<|end|>": ([], ["<|end|>"]),
    "<|start|>assistant": ([], ["<|start|>assistant"]),
    "Hi<|return|>": ([("assistant", None, None, None, "Hi", "return")], []),
    "<|channel|>final<|message|>a<|channel|>b<|end|>": (
        [("assistant", "final", None, None, "ab", "end")],
        ["<|channel|>"],
    ),
    "<|channel|>analysis<|message|>a<|channel|>final<|message|>b<|return|>": (
        [("assistant", "analysis", None, None, "a", "cut"), ("assistant", "final", None, None, "b", "return")],
        [],
    ),
    "<|channel|>analysis<|message|>a<|start|>assistant<|channel|>final<|message|>b": (
        [("assistant", "analysis", None, None, "a", "cut"), ("assistant", "final", None, None, "b", "cut")],
        [],
    ),
    "<|channel|>weird<|message|>a<|constrain|>b<|endoftext|>c<|return|>": (
        [("assistant", "weird", None, None, "abc", "return")],
        ["<|constrain|>", "<|endoftext|>"],
    ),
    "<|channel|>analysis<|message|>a<|end|>assistant<|channel|>final<|message|>b<|return|>": (
        [("assistant", "analysis", None, None, "a", "end"), ("assistant", "final", None, None, "b", "return")],
        [],
    ),
    "<|channel|>analysis<|message|>a<|end|>final<|message|>b": (
        [("assistant", "analysis", None, None, "a", "end"), ("assistant", "final", None, None, "b", "cut")],
        [],
    ),
    "<|message|>a<|end|><|message|>b<|end|>": (
        [("assistant", None, None, None, "a", "end"), ("assistant", None, None, None, "b", "end")],
        [],
    ),
    "<|channel|><|message|>a<|end|>": ([("assistant", None, None, None, "a", "end")], []),
    "<|channel|>commentary to= functions.f<|message|>{<|call|>": (
        [("assistant", "commentary", "functions.f", None, "{", "call")],
        [],
    ),
    "<|start|>system<|message|>Obey.<|end|>": ([("system", None, None, None, "Obey.", "end")], []),
    "<|start|><|channel|>final<|message|>a": ([("assistant", "final", None, None, "a", "cut")], []),
    "<|channel|>analysis<|channel|>final<|message|>a": ([("assistant", "analysis", "final", None, "a", "cut")], []),
}


@pytest.mark.parametrize("text", BROKEN, ids=range(len(BROKEN)))
def test_broken_output(text: str, harmony_tokenizer: Any) -> None:
    events = parse(harmony_tokenizer, text)
    keys = ("role", "channel", "recipient", "content_type", "content", "reason")
    found = [tuple(message[key] for key in keys) for message in split_messages(events)]
    assert (found, [event.text for event in events if event.kind == "special"]) == BROKEN[text]


def test_text_without_any_header_comes_out_while_it_is_written(harmony_tokenizer: Any) -> None:
    text = "I have forgotten everything that I knew about headers, channels and the like."
    parser = HarmonyParser(harmony_tokenizer, role="assistant")
    steps = [parser.feed(index) for index in harmony_tokenizer(text, add_special_tokens=False)["input_ids"]]
    first = next(number for number, events in enumerate(steps) if events)
    assert first < 12 and sum(map(bool, steps)) > 3
    assert collect([event for events in [*steps, parser.end()] for event in events])["content"] == text


def test_what_a_reader_sees(harmony_tokenizer: Any) -> None:
    text = (
        "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>commentary<|message|>Wait.<|end|>"
        '<|start|>assistant to=functions.f<|channel|>commentary <|constrain|>json<|message|>{"a": 1}<|call|>'
        "<|start|>functions.f to=assistant<|channel|>commentary<|message|>2<|end|>"
        "<|start|>assistant<|channel|>final<|message|>Two.<|return|>"
    )
    events = parse(harmony_tokenizer, text)
    starts = [event for event in events if event.kind == "start"]
    assert [event.part for event in starts] == ["reasoning", "preamble", "tool_call", "other", "answer"]
    assert [event.tool for event in starts] == [None, None, "f", None, None]
    assert {event.kind for event in events if event.message == 2} == {"start", "tool_call", "end"}
    assert collect(events) == {
        "role": "assistant",
        "content": "Wait.Two.",
        "reasoning_content": "Hm.",
        "tool_calls": [{"id": "call_0", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}],
    }


def test_an_answer_without_reasoning_goes_on_in_the_opened_channel(harmony_tokenizer: Any) -> None:
    prompt = Harmony().render([{"role": "user", "content": "Hi"}], reasoning_effort="none")
    ids = harmony_tokenizer("Hello.<|return|>", add_special_tokens=False)["input_ids"]
    events = Harmony().parser(harmony_tokenizer, prompt).parse(ids)
    assert [(event.kind, event.channel, event.raw) for event in events[:1]] == [("start", "final", "")]
    assert collect(events)["content"] == "Hello." and "".join(event.raw for event in events) == "Hello.<|return|>"
    plain = Harmony().render([{"role": "user", "content": "Hi"}])
    ids = harmony_tokenizer(GOOD[0], add_special_tokens=False)["input_ids"]
    assert collect(Harmony().parser(harmony_tokenizer, plain).parse(ids))["content"] == "Four."


def test_characters_over_several_tokens_and_broken_ones(harmony_tokenizer: Any) -> None:
    whole = "\U0001f9ff\U0001f1fa\u0303"
    parser = HarmonyParser(harmony_tokenizer, role="assistant")
    ids = harmony_tokenizer(f"<|channel|>final<|message|>{whole}", add_special_tokens=False)["input_ids"]
    pieces = [event.text for index in ids for event in parser.feed(index) if event.kind == "text"]
    assert "".join(pieces) == whole and not any("\ufffd" in piece for piece in pieces)
    # Cut in the middle of a character: one replacement character, and no error.
    events = HarmonyParser(harmony_tokenizer, role="assistant").parse(ids[:4])
    assert collect(events)["content"] == "\ufffd"


def test_what_is_no_token_is_the_callers_error(harmony_tokenizer: Any) -> None:
    parser = HarmonyParser(harmony_tokenizer)
    for wrong in (None, "a", b"a", 1.5, True, [1]):
        with pytest.raises(ChatError, match="takes token ids one by one"):
            parser.feed(wrong)  # type: ignore[arg-type]
    assert parser.end() == [] and parser.end() == []
    with pytest.raises(ChatError, match="has ended; make a new one"):
        parser.feed(1)


@pytest.fixture(scope="module")
def streams(make_bytes: Any) -> Streams:
    special = (*HARMONY_TOKENS, "<|endoftext|>")
    return Streams(make_bytes(special), special, FRAGMENTS, GOOD)


def test_random_and_mutated_streams(streams: Streams) -> None:
    fuzz(streams, lambda number: HarmonyParser(streams.tokenizer, role=(None, "assistant")[number // 2 % 2]), 3000, 1)


@pytest.mark.slow
def test_a_hundred_thousand_random_and_mutated_streams(streams: Streams) -> None:
    roles = (None, "assistant")
    fuzz(streams, lambda number: HarmonyParser(streams.tokenizer, role=roles[number // 2 % 2]), 100_000, 2)


def test_time_is_linear(streams: Streams) -> None:
    def parser() -> HarmonyParser:
        return HarmonyParser(streams.tokenizer, role="assistant")

    for ids in (streams.fragments[0], streams.special, [*streams.special[:3], *streams.fragments[1]], [32]):
        short = seconds_per_token(parser, list(ids) * 200)
        long = seconds_per_token(parser, list(ids) * 6400)
        assert long < 6 * short + 1e-6, ids  # 32 times as long; quadratic time would be 32 times as much per token
