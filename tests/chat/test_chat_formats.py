"""One way to talk to every family: the registry, the plain transcript, a tokenizer's template."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from chat_streams import UNKNOWN, Streams, check, fuzz

from quintet import AutoTokenizer
from quintet.auto import AutoConfig
from quintet.chat import ChatEvent, ChatFormat, chat_format, collect
from quintet.chat.registry import FORMATS, PLAIN
from quintet.chat.transcript import PlainParser, TemplateFormat, Transcript
from quintet.errors import ChatError

CHAT = [
    {"role": "system", "content": "A talk."},
    {"role": "user", "content": " Hi "},
    {"role": "assistant", "content": "Hello"},
    {"role": "user", "content": "Who are you?"},
]


def test_every_family_has_a_format() -> None:
    from quintet.auto import model_types

    assert {*FORMATS, *PLAIN} == set(model_types())


@pytest.mark.parametrize(
    ("name", "expected", "native"),
    [
        ("gpt_oss", "harmony", True),
        ("harmony", "harmony", True),
        ("seed_oss", "seed_oss", True),
        ("gpt2", "transcript", False),
        ("gpt_neox", "transcript", False),
        ("openai-gpt", "transcript", False),
        ("transcript", "transcript", False),
    ],
)
def test_formats_by_name(name: str, expected: str, native: bool, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "quintet.chat"):
        found = chat_format(name)
    assert (found.name, found.native) == (expected, native)
    # A format that is made up says so.
    assert ("no chat format of its own" in caplog.text) is not native


def test_formats_by_configuration_and_tokenizer(
    harmony_tokenizer: Any, seed_tokenizer: Any, make_bytes: Any, tiny_gpt2: Path
) -> None:
    class Config:
        model_type = "seed_oss"

    assert chat_format(Config).name == chat_format(Config()).name == "seed_oss"
    assert chat_format(AutoConfig.from_pretrained(tiny_gpt2)).name == "transcript"
    assert chat_format(harmony_tokenizer).name == "harmony"
    assert chat_format(seed_tokenizer).name == "seed_oss"
    assert chat_format(make_bytes(())).name == "transcript"
    assert chat_format(make_bytes((), chat_template="x")).name == "template"
    assert chat_format("gpt2", make_bytes((), chat_template="x")).name == "template"
    assert chat_format("gpt2", make_bytes(("<e>",), eos_token="<e>")).stop_tokens == ("<e>",)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("gpt-oss", "no family or chat format 'gpt-oss'.*Did you mean 'gpt_oss'"),
        (None, "needs a model type such as 'gpt_oss', .* not NoneType"),
        (b"gpt2", "not bytes"),
        (5, "not int"),
    ],
    ids=range(4),
)
def test_unknown_formats(source: Any, message: str) -> None:
    with pytest.raises(ChatError, match=message):
        chat_format(source)


def test_stop_ids(harmony_tokenizer: Any, seed_tokenizer: Any) -> None:
    assert chat_format("gpt_oss").stop_ids(harmony_tokenizer) == [200002, 200012]
    assert chat_format("seed_oss").stop_ids(seed_tokenizer) == [seed_tokenizer.eos_token_id]
    assert chat_format("gpt_oss").stop_ids(seed_tokenizer) == []


def test_a_transcript() -> None:
    prompt = Transcript().render(CHAT)
    assert prompt.text == "A talk.\nUser: Hi\nAssistant: Hello\nUser: Who are you?\nAssistant:"
    assert [piece.text for piece in prompt.pieces if piece.generated] == [" Hello"]
    assert Transcript().render(CHAT[:3], continue_final_message=True).text.endswith("\nAssistant: Hello")
    assert Transcript().render(CHAT, add_generation_prompt=False).text.endswith("you?\n")
    assert "Tool: x" in Transcript().render([{"role": "tool", "content": "x"}]).text


def test_a_transcript_cannot_call_tools() -> None:
    tool = {"name": "f"}
    with pytest.raises(ChatError, match="no chat format and was not trained to call tools"):
        Transcript().render(CHAT, tools=[tool])
    with pytest.raises(ChatError, match="with tool calls cannot be written as a plain transcript"):
        Transcript().render([{"role": "assistant", "tool_calls": [tool]}])
    with pytest.raises(ChatError, match="no option 'reasoning_effort'"):
        Transcript().render(CHAT, reasoning_effort="low")


def plain(tokenizer: Any, text: str, **options: Any) -> list[ChatEvent]:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    events = PlainParser(tokenizer, ("<e>",), ("\nUser:",), **options).parse(ids)
    check(tokenizer, ids, events)
    return events


@pytest.mark.parametrize(
    ("text", "content", "reason", "special"),
    [
        (" Fine.<e>", "Fine.", "return", ""),
        (" Fine.\nUser: And you?", "Fine.", "end", "\nUser: And you?"),
        (" Fine.\nUse", "Fine.\nUse", "cut", ""),
        (" \n", "", None, ""),
        ("<e>", "", None, "<e>"),
        ("a<p>b<e>c", "abc", "return", "<p>"),
    ],
    ids=range(6),
)
def test_plain_answers(text: str, content: str, reason: str | None, special: str, make_bytes: Any) -> None:
    events = plain(make_bytes(("<e>", "<p>")), text)
    ends = [event.reason for event in events if event.kind == "end"]
    assert collect(events)["content"] == content and ends[:1] == ([reason] if reason else [])
    assert "".join(event.text for event in events if event.kind == "special") == special
    assert all(event.part == "answer" for event in events if event.kind == "text")


def test_white_space_stays_where_a_message_goes_on(make_bytes: Any) -> None:
    tokenizer = make_bytes(("<e>",), eos_token="<e>")
    found = chat_format(tokenizer)
    goes_on = found.parser(tokenizer, found.render(CHAT[:3], continue_final_message=True))
    begins = found.parser(tokenizer, found.render(CHAT))
    ids = tokenizer(" you<e>", add_special_tokens=False)["input_ids"]
    assert collect(goes_on.parse(ids))["content"] == " you"
    assert collect(begins.parse(ids))["content"] == "you"


def test_random_streams_through_the_plain_parser(make_bytes: Any) -> None:
    tokenizer = make_bytes(("<e>", "<p>"))
    fragments = (b"\nUser:", b"\nUs", b" ", b"\n", b"hello", "\u00e9".encode(), b"\xff")
    streams = Streams(tokenizer, ("<e>", "<p>"), fragments, [" Fine.\nUser: x<e>"])
    fuzz(streams, lambda number: PlainParser(tokenizer, ("<e>",), ("\nUser:",), strip=number % 3 == 0), 1000, 3)


def test_a_tokenizers_template(make_bytes: Any) -> None:
    template = (
        "{% for m in messages %}{{ '<s>' + m.role + ':' + m.content + eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}<s>assistant:{% endif %}"
    )
    tokenizer = make_bytes(("<s>", "<e>"), bos_token="<s>", eos_token="<e>", chat_template=template)
    found = chat_format(tokenizer)
    prompt = found.render(CHAT)
    assert prompt.text.endswith("<s>user:Who are you?<e><s>assistant:")
    assert prompt.ids(tokenizer) == tokenizer.apply_chat_template(CHAT, add_generation_prompt=True)["input_ids"]
    answer = tokenizer("Me.<e>", add_special_tokens=False)["input_ids"]
    assert collect(found.parser(tokenizer, prompt).parse(answer))["content"] == "Me."
    with pytest.raises(ChatError, match="no option 'bos_token'"):
        found.render(CHAT, bos_token="x")
    with pytest.raises(ChatError, match="has the role 'wizard'"):
        TemplateFormat(tokenizer).render([{"role": "wizard", "content": "x"}])


@pytest.mark.parametrize("messages", [None, [], b"x", [{"role": "wizard", "content": "x"}], [None]], ids=range(5))
@pytest.mark.parametrize("name", ["gpt_oss", "seed_oss", "gpt2"])
def test_every_format_refuses_bad_messages(name: str, messages: Any) -> None:
    with pytest.raises(ChatError, match="conversation|Message 0"):
        chat_format(name).render(messages)


@pytest.mark.parametrize("name", ["gpt_oss", "seed_oss"])
@pytest.mark.parametrize("tools", [5, "f", [5], [{"name": "f", "parameters": {"type": "list"}}]], ids=range(4))
def test_every_format_refuses_bad_tools(name: str, tools: Any) -> None:
    with pytest.raises(ChatError, match="[Tt]ool"):
        chat_format(name).render(CHAT, tools=tools)


@pytest.mark.parametrize("name", ["gpt_oss", "seed_oss", "gpt2"])
def test_one_code_path_for_every_format(
    name: str, harmony_tokenizer: Any, seed_tokenizer: Any, make_bytes: Any
) -> None:
    tokenizer = {"gpt_oss": harmony_tokenizer, "seed_oss": seed_tokenizer}.get(name) or make_bytes(())
    found: ChatFormat = chat_format(name, tokenizer)
    prompt = found.render(CHAT)
    assert prompt.ids(tokenizer) and isinstance(prompt.text, str)
    written = {
        "gpt_oss": "<|channel|>final<|message|>Me.<|return|>",
        "seed_oss": "Me.<seed:eos>",
        "gpt2": " Me.\nUser:",
    }
    ids = [*tokenizer(written[name], add_special_tokens=False)["input_ids"], UNKNOWN]
    parser = found.parser(tokenizer, prompt)
    events = [event for index in ids for event in parser.feed(index)] + parser.end()
    check(tokenizer, ids, events)
    assert collect(events) == {"role": "assistant", "content": "Me."}


def test_gpt1s_words_come_with_their_spaces(data_dir: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(data_dir / "tokenizers" / "openai-gpt", tokenizer_type="openai-gpt")
    found = chat_format("openai-gpt", tokenizer)
    ids = tokenizer("hello there, my friend.")["input_ids"]
    assert collect(found.parser(tokenizer).parse(ids))["content"].strip() == tokenizer.decode(ids).strip()
