"""apply_chat_template against the reference's, on templates in the style of the published ones."""

from __future__ import annotations

import enum
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch

from quintet.chat.template import apply_chat_template
from quintet.errors import ChatError
from quintet.tokenizers.fast import PreTrainedTokenizerFast

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
LLAMA = """{{- bos_token }}
{%- if messages[0].role == 'system' %}
    {%- set system = messages[0].content | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system = 'Be helpful.' %}
{%- endif %}
{{- '<|header|>system<|/header|>\\n\\n' + system + '<|eot|>' }}
{%- if tools is not none %}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
        {{- "\\n\\n" }}
    {%- endfor %}
{%- endif %}
{%- for message in messages %}
    {%- if message.role not in ['user', 'assistant', 'tool'] %}
        {{- raise_exception('unknown role ' ~ message.role) }}
    {%- endif %}
    {%- if 'tool_calls' in message and message.tool_calls %}
        {%- if not message.tool_calls | length == 1 %}
            {{- raise_exception('one call at a time') }}
        {%- endif %}
        {%- set call = message.tool_calls[0].function %}
        {{- '<|header|>assistant<|/header|>\\n\\n{"name": "' ~ call.name }}
        {{- '", "parameters": ' ~ call.arguments | tojson ~ '}' }}
    {%- else %}
        {{- '<|header|>' + message['role'] + '<|/header|>\\n\\n' + message['content'] | trim + '<|eot|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|header|>assistant<|/header|>\\n\\n' }}{%- endif %}
"""
OSS = """{%- macro kind(spec) -%}
    {%- if spec.type == 'array' -%}{{- kind(spec['items']) if spec['items'] else 'any' }}[]
    {%- elif spec.enum is defined -%}"{{ spec.enum | join('" | "') }}"
    {%- elif spec.type in ('integer', 'number') -%}number
    {%- else -%}{{ spec.type or 'any' }}{%- endif -%}
{%- endmacro -%}
<|start|>system<|message|>Reasoning: {{ reasoning_effort | default('medium') }}
{%- if tools %} Tools:
{%- for tool in tools %}
type {{ tool.function.name }} = (_: {
{%- for name, spec in tool.function.parameters.properties.items() %}
{{ name }}{{ '' if name in tool.function.parameters.required else '?' }}: {{ kind(spec) }},
{%- endfor %} }) => any;
{%- endfor %}
{%- endif %}<|end|>
{%- set ns = namespace(last=none, count=0) -%}
{%- for message in messages -%}
    {%- set ns.count = ns.count + 1 -%}
    {%- if message.role == 'assistant' and message.thinking -%}
        {%- if loop.last and not add_generation_prompt -%}
            {{- '<|start|>assistant<|channel|>analysis<|message|>' ~ message.thinking ~ '<|end|>' -}}
        {%- endif -%}
        {{- '<|start|>assistant<|channel|>final<|message|>' ~ message.content ~ '<|end|>' -}}
    {%- elif message.role == 'tool' -%}
        {%- if ns.last is none -%}{%- continue -%}{%- endif -%}
        {{- '<|start|>functions.' ~ ns.last ~ ' to=assistant<|message|>' ~ message.content | tojson ~ '<|end|>' -}}
    {%- else -%}
        {{- '<|start|>' ~ message.role ~ '<|message|>' ~ message.content ~ '<|end|>' -}}
    {%- endif -%}
    {%- if message.tool_calls -%}{%- set ns.last = message.tool_calls[-1].function.name -%}{%- endif -%}
{%- endfor -%}
{%- if documents %}{% for doc in documents %}[{{ loop.index }}/{{ loop.length }}] {{ doc.title | upper }}
{% endfor %}{% endif -%}
{%- if add_generation_prompt -%}<|start|>assistant{%- endif -%}
"""
SEED = """{%- set budgets = {0: 0, 512: 128, 1024: 256} -%}
{%- set ns = namespace(every=None) -%}
{%- for k, v in budgets | dictsort -%}
    {%- if ns.every is none and (thinking_budget | default(-1)) <= k -%}{%- set ns.every = v -%}{%- endif -%}
{%- endfor -%}
{%- for m in messages %}
{{ '<seed:bos>' + m.role }}
{%- if m.reasoning_content is defined and m.reasoning_content is string and m.reasoning_content | trim | length > 0 %}
{{ '\\n<seed:think>' + m.reasoning_content | trim + '</seed:think>' }}
{%- endif %}
{%- for call in m.tool_calls or [] %}
{%- if call.function is defined %}{% set call = call.function %}{% endif %}
{{ '<function=' + call.name + '>' }}
{%- for key, value in call.arguments | items %}
{{ '<parameter=' + key + '>' }}{{ value if value is string else value | string }}
{%- endfor %}
{%- endfor %}
{{ '\\n' + (m.content or '') | trim + '<seed:eos>' }}
{%- endfor %}
{{ '[every %d]' % ns.every if ns.every else '' }}{{ '{} {n:>4}'.format('a', n=3) }}
{%- if add_generation_prompt %}<seed:bos>assistant{% endif %}
"""
TEMPLATES = {"chatml": CHATML, "llama": LLAMA, "oss": OSS, "seed": SEED}


class Unit(str, enum.Enum):
    """A text with attributes that no template should see."""

    METRE = "metre"


def get_weather(city: str, days: int = 1, unit: Literal["c", "f"] = "c", tags: list[str] | None = None) -> str:
    """Return the weather
    of a city.

    Args:
        city: Where, such as
            "Paris"
        days: How many days
        unit: Degrees
        tags: Words (choices: ["a", "b"])

    Returns:
        A sentence.
    """
    return f"{city} {days} {unit} {tags}"


CALL = {
    "type": "function",
    "function": {"name": "get_weather", "arguments": {"city": "Par\u00eds <b>", "n": 2, "t": [True]}},
}
CHATS: dict[str, list[dict[str, Any]]] = {
    "plain": [{"role": "user", "content": "Hi  "}],
    "turns": [
        {"role": "system", "content": " Be kind. "},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello & <welcome>", "thinking": "hm"},
        {"role": "user", "content": "\u00e9\U0001f98a"},
        {"role": "assistant", "content": "Bye. ", "reasoning_content": " ho "},
    ],
    "calls": [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "content": "sunny"},
    ],
    "typed": [{"role": "user", "content": Unit.METRE, "extra": None}],
}
TOKENS = ("<|im_start|>", "<|im_end|>", "<|eot|>")


@pytest.fixture(scope="module")
def tokenizer(make_bytes: Any) -> PreTrainedTokenizerFast:
    return make_bytes(TOKENS, bos_token="<|im_start|>", eos_token="<|im_end|>", pad_token="<|eot|>")


@pytest.fixture(scope="module")
def reference(tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> Any:
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("reference")
    tokenizer.save_pretrained(folder)
    return transformers.PreTrainedTokenizerFast.from_pretrained(folder)


@pytest.mark.parametrize("prompts", [False, True])
@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("name", TEMPLATES)
def test_text_and_ids_are_the_references(name: str, chat: str, prompts: bool, tokenizer: Any, reference: Any) -> None:
    options = {
        "tools": None if chat == "plain" else [get_weather],
        "documents": [{"title": "a", "text": "b"}, {"title": "c", "text": "d"}],
        "add_generation_prompt": prompts,
        "chat_template": TEMPLATES[name],
        "reasoning_effort": "low",
        "thinking_budget": 600,
    }
    expected = reference.apply_chat_template(CHATS[chat], tokenize=False, **options)
    assert tokenizer.apply_chat_template(CHATS[chat], tokenize=False, **options) == expected
    theirs = dict(reference.apply_chat_template(CHATS[chat], **options))
    theirs.pop("token_type_ids", None)
    assert dict(tokenizer.apply_chat_template(CHATS[chat], **options)) == theirs


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("key", [True, "reasoning_content"])
def test_continued_messages_are_the_references(name: str, key: bool | str, tokenizer: Any, reference: Any) -> None:
    options = {"chat_template": TEMPLATES[name], "continue_final_message": key, "tokenize": False}
    try:
        expected = reference.apply_chat_template(CHATS["turns"], **options)
    except ValueError:
        with pytest.raises(ChatError, match="continue_final_message"):
            tokenizer.apply_chat_template(CHATS["turns"], **options)
    else:
        assert tokenizer.apply_chat_template(CHATS["turns"], **options) == expected


def test_parts_of_content_can_be_continued(tokenizer: Any, reference: Any) -> None:
    template = "{% for m in messages %}{{ m.role }}:{% for p in m.content %}{{ p.text }}|{% endfor %}{% endfor %}"
    chat = [{"role": "assistant", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b "}]}]
    options = {"chat_template": template, "continue_final_message": True, "tokenize": False}
    assert tokenizer.apply_chat_template(chat, **options) == reference.apply_chat_template(chat, **options)
    assert chat[0]["content"][1]["text"] == "b "
    with pytest.raises(ChatError, match="has no text to go on with"):
        tokenizer.apply_chat_template([{"role": "assistant", "content": []}], **options)


@pytest.mark.parametrize(
    "options", [{}, {"return_tensors": "pt", "padding": True}, {"truncation": True, "max_length": 60}]
)
def test_assistant_masks_are_the_references(options: dict[str, Any], tokenizer: Any, reference: Any) -> None:
    chats = [CHATS["turns"], CHATS["turns"][:3], CHATS["plain"]]
    options = {**options, "chat_template": CHATML, "return_assistant_tokens_mask": True}
    ours = tokenizer.apply_chat_template(chats, **options)
    theirs = reference.apply_chat_template(chats, **options)
    for key in ("input_ids", "attention_mask", "assistant_masks"):
        assert np.array_equal(np.asarray(ours[key], dtype=object), np.asarray(theirs[key], dtype=object)), key
    one = tokenizer.apply_chat_template(chats[0], chat_template=CHATML, return_assistant_tokens_mask=True)
    learnt = [index for index, wanted in zip(one["input_ids"], one["assistant_masks"], strict=True) if wanted]
    assert tokenizer.decode(learnt) == "Hello & <welcome><|im_end|>Bye. <|im_end|>"
    if "return_tensors" in options:
        assert isinstance(ours["assistant_masks"], torch.Tensor)


def test_forms_of_the_result(tokenizer: Any) -> None:
    chat = CHATS["plain"]
    whole = tokenizer.apply_chat_template(chat, chat_template=CHATML)
    assert set(whole) == {"input_ids", "attention_mask"}
    assert tokenizer.apply_chat_template(chat, chat_template=CHATML, return_dict=False) == whole["input_ids"]
    batch = tokenizer.apply_chat_template([chat, chat], chat_template=CHATML, return_dict=False)
    assert batch == [whole["input_ids"]] * 2
    texts = tokenizer.apply_chat_template([chat, chat], chat_template=CHATML, tokenize=False)
    assert isinstance(texts, list) and len(texts) == 2
    tensors = tokenizer.apply_chat_template(chat, chat_template=CHATML, return_tensors="np")
    assert tensors["input_ids"].shape == (1, len(whole["input_ids"]))
    masked = tokenizer.apply_chat_template(
        chat, chat_template=CHATML, tokenizer_kwargs={"return_special_tokens_mask": True}
    )
    assert "special_tokens_mask" in masked


def test_a_template_that_marks_nothing_warns(tokenizer: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "quintet.chat"):
        found = tokenizer.apply_chat_template(CHATS["turns"], chat_template=SEED, return_assistant_tokens_mask=True)
    assert set(found["assistant_masks"]) == {0} and "no {% generation %} block" in caplog.text


def test_templates_by_name_are_chosen_saved_and_read(make_bytes: Any, tmp_path: Path, reference: Any) -> None:
    several = {"default": "D", "tool_use": "T", "rag": "R"}
    tokenizer = make_bytes(TOKENS, chat_template=[{"name": key, "template": value} for key, value in several.items()])
    assert tokenizer.chat_template == several

    def text(**options: Any) -> str:
        return str(tokenizer.apply_chat_template(CHATS["plain"], tokenize=False, **options))

    assert [text(), text(tools=[get_weather]), text(chat_template="rag")] == ["D", "T", "R"]
    assert text(chat_template="{{ messages[0].role }}") == "user"
    with pytest.raises(ChatError, match="no chat template 'rga'; there are .*Did you mean 'rag'"):
        text(chat_template="rga")
    tokenizer.save_pretrained(tmp_path)
    assert {path.name for path in (tmp_path / "additional_chat_templates").iterdir()} == {"tool_use.jinja", "rag.jinja"}
    assert PreTrainedTokenizerFast.from_pretrained(tmp_path).chat_template == several
    assert type(reference).from_pretrained(tmp_path).get_chat_template("rag") == "R"
    tokenizer.chat_template = {"rag": "R"}
    with pytest.raises(ChatError, match=r"several chat templates and none is called 'default'.*\['rag'\]"):
        text()


def test_a_template_file_is_saved_and_read(make_bytes: Any, tmp_path: Path, reference: Any) -> None:
    tokenizer = make_bytes(TOKENS, chat_template=CHATML)
    tokenizer.save_pretrained(tmp_path)
    assert (tmp_path / "chat_template.jinja").read_text(encoding="utf-8") == CHATML
    assert "chat_template" not in json.loads((tmp_path / "tokenizer_config.json").read_text(encoding="utf-8"))
    again = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    assert again.get_chat_template() == CHATML == type(reference).from_pretrained(tmp_path).chat_template
    tokenizer.save_pretrained(tmp_path / "old", save_jinja_files=False)
    assert not (tmp_path / "old" / "chat_template.jinja").exists()
    assert PreTrainedTokenizerFast.from_pretrained(tmp_path / "old").chat_template == CHATML


def test_variables_and_special_tokens(tokenizer: Any) -> None:
    template = "{{ bos_token }}{{ eos_token }}{{ mine }}"
    chat = CHATS["plain"]
    assert (
        tokenizer.apply_chat_template(chat, chat_template=template, mine=3, tokenize=False) == "<|im_start|><|im_end|>3"
    )
    given = tokenizer.apply_chat_template(chat, chat_template=template, bos_token="B", tokenize=False)
    assert given == "B<|im_end|>"
    year = tokenizer.apply_chat_template(chat, chat_template="{{ strftime_now('%Y-%m-%d') }}", tokenize=False)
    assert len(year) == 10 and year.startswith("20")


def test_objects_become_plain_data(tokenizer: Any) -> None:
    @dataclass
    class Message:
        role: str
        content: str

    class Model:
        def model_dump(self) -> dict[str, str]:
            return {"role": "user", "content": "b"}

    found = tokenizer.apply_chat_template([Message("user", "a"), Model()], chat_template=CHATML, tokenize=False)
    assert found.count("<|im_start|>user\n") == 2


@pytest.mark.parametrize(
    ("chat", "message"),
    [
        (None, "must be a list of messages .* not None"),
        ("Hello", "must be a list of messages .* not 'Hello' of type str"),
        (b"Hello", "must be a list of messages .* of type bytes"),
        ({"role": "user"}, "must be a list of messages .* of type dict"),
        (5, "must be a list of messages .* of type int"),
        ([], "The conversation is empty"),
        ([[]], "The conversation is empty"),
        ([None], "Message 0 must be a dict with 'role' and 'content', not None"),
        (["a"], "Message 0 must be a dict .* not 'a'"),
        ([{"content": "x"}], "Message 0 has the role None"),
        ([{"role": 3, "content": "x"}], "Message 0 has the role 3"),
        ([{"role": "user", "content": b"x"}], "Message 0 holds b'x' of type bytes.* Decode it first"),
        ([{"role": "user", "content": {1, 2}}], "Message 0 holds {1, 2} of type set"),
        ([{"role": "user", "content": print}], "Message 0 holds .* of type builtin_function_or_method"),
        ([{"role": "wizard", "content": "x"}], "refuses this conversation: unknown role wizard"),
    ],
    ids=range(15),
)
def test_bad_conversations(chat: Any, message: str, tokenizer: Any) -> None:
    with pytest.raises(ChatError, match=message):
        tokenizer.apply_chat_template(chat, chat_template=LLAMA)


def test_data_that_holds_itself(tokenizer: Any) -> None:
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(ChatError, match="nested more than 100 levels"):
        tokenizer.apply_chat_template([{"role": "user", "content": loop}], chat_template=CHATML)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"chat_template": b"x"}, "chat_template must be a Jinja template or the name of one, not b'x'"),
        ({"chat_template": None}, "has no chat template. Set tokenizer.chat_template"),
        ({"documents": "x"}, "documents must be a list of dicts"),
        ({"documents": [1]}, "Document 0 must be a dict with 'title' and 'text', not 1"),
        ({"tools": "x"}, "tools must be a list of functions or of dicts, not 'x'"),
        ({"tools": [3]}, "Tool 0 must be a function with type hints and a docstring"),
        ({"continue_final_message": True, "add_generation_prompt": True}, "exclude each other"),
        ({"continue_final_message": True, "return_assistant_tokens_mask": True}, "exclude each other"),
        ({"return_assistant_tokens_mask": True, "tokenize": False}, "needs return_dict=True and tokenize=True"),
        ({"continue_final_message": "thoughts"}, "the last message has no 'thoughts' to go on with"),
        ({"continue_final_message": True, "chat_template": "x"}, "template never reads that"),
        ({"continue_final_message": True, "chat_template": "{# content #}x"}, "does not print the last message"),
        ({"variable": object()}, "A variable of the template holds <object"),
        ({"sanitize_control_tokens": True}, "has no sanitize_control_tokens.*chat_format"),
    ],
    ids=range(14),
)
def test_bad_options(options: dict[str, Any], message: str, tokenizer: Any) -> None:
    with pytest.raises(ChatError, match=message):
        tokenizer.apply_chat_template(CHATS["plain"], **{"chat_template": CHATML, **options})


@pytest.mark.parametrize("value", [5, [1], {"a": 1}, {1: "a"}], ids=range(4))
def test_bad_settings(value: Any, make_bytes: Any) -> None:
    with pytest.raises(ChatError, match="chat_template (must be a text|lists something else)"):
        make_bytes((), chat_template=value)


def test_the_function_takes_several_conversations() -> None:
    texts, marks = apply_chat_template([CHATS["plain"], CHATS["plain"]], CHATML)
    assert texts[0] == texts[1] and marks == [[], []]
