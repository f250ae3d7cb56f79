"""Chats of models whose tokenizer has no template: the format of the family writes them and reads the answers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from quintet import AutoTokenizer, LogitsProcessorList, TextStreamer
from quintet.chat import chat_format
from quintet.errors import ChatError, ConfigError, GenerationError, InputError
from quintet.pipelines import pipeline

Alike = Callable[..., None]
CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is 2 + 2?"}]
THINKING = "<|channel|>analysis<|message|>Let me see.<|end|>"
FINAL = "<|start|>assistant<|channel|>final<|message|>It is 4.<|return|>"
CALL = '<|start|>assistant<|channel|>commentary to=functions.add <|constrain|>json<|message|>{"a": 2}<|call|>'


def add(a: int) -> int:
    """Add two to a number.

    Args:
        a: The number.
    """
    return a + 2


class Says:
    """A logits processor that makes a model write a text, and remembers what it was asked."""

    def __init__(self, tokenizer: Any, *texts: str) -> None:
        self.answers = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
        self.prompts: list[list[int]] = []
        self.step = 0

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if not self.step:
            self.prompts = input_ids.tolist()
        forced = torch.full_like(scores, -torch.inf)
        for row, answer in enumerate(self.answers):
            forced[row, answer[min(self.step, len(answer) - 1)]] = 0.0
        self.step += 1
        return forced


def say(pipe: Any, chat: Any, *texts: str, **options: Any) -> tuple[Any, Says]:
    """Call a pipeline whose model answers with these texts, one for each row."""
    says = Says(pipe.tokenizer, *texts)
    return pipe(chat, **{"logits_processor": LogitsProcessorList([says]), "max_new_tokens": 80, **options}), says


def test_harmony_of_gpt_oss(talking_gpt_oss: Path) -> None:
    pipe = pipeline("text-generation", talking_gpt_oss, do_sample=False)
    ((record,), says) = say(pipe, CHAT, THINKING + FINAL, max_new_tokens=300)
    answer = {"role": "assistant", "content": "It is 4.", "reasoning_content": "Let me see."}
    assert record["generated_text"] == [*CHAT, answer]
    form = chat_format("gpt_oss")
    assert says.prompts == [form.render(CHAT).ids(pipe.tokenizer)]
    assert say(pipe, CHAT, THINKING + FINAL, return_full_text=False, max_new_tokens=300)[0] == [
        {"generated_text": "It is 4."}
    ]
    again = [*record["generated_text"], {"role": "user", "content": "And 3 + 3?"}]
    ((record,), says) = say(pipe, again, FINAL.removeprefix("<|start|>assistant"))
    assert record["generated_text"][-1]["content"] == "It is 4."
    assert says.prompts == [form.render(again).ids(pipe.tokenizer)]


def test_tool_calls_end_the_answer(talking_gpt_oss: Path) -> None:
    pipe = pipeline("text-generation", talking_gpt_oss, do_sample=False)
    ((record,), says) = say(pipe, CHAT, THINKING + CALL + FINAL, tools=[add], max_new_tokens=300)
    (call,) = record["generated_text"][-1]["tool_calls"]
    assert call["function"] == {"name": "add", "arguments": '{"a": 2}'}
    assert record["generated_text"][-1]["content"] == "", "generation ended with the call"
    assert says.prompts == [chat_format("gpt_oss").render(CHAT, tools=[add]).ids(pipe.tokenizer)]


def test_options_of_the_format(talking_gpt_oss: Path) -> None:
    pipe = pipeline("text-generation", talking_gpt_oss, do_sample=False)
    (_, says) = say(pipe, CHAT, FINAL, tokenizer_encode_kwargs={"reasoning_effort": "high"})
    assert "Reasoning: high" in pipe.tokenizer.decode(says.prompts[0])
    with pytest.raises(ChatError, match="has no option 'effort'; it has .*'reasoning_effort'"):
        pipe(CHAT, tokenizer_encode_kwargs={"effort": "high"})
    with pytest.raises(InputError, match="written in the format 'harmony'. Put them into a message"):
        pipe(CHAT, documents=[{"title": "a", "text": "b"}])


def test_thinking_of_seed_oss_and_a_message_to_go_on_with(talking_seed_oss: Path) -> None:
    pipe = pipeline("text-generation", talking_seed_oss, do_sample=False)
    ((record,), _) = say(pipe, CHAT, "<seed:think>Hm.</seed:think>\nFour.<seed:eos>")
    assert record["generated_text"][-1]["reasoning_content"] == "Hm."
    assert record["generated_text"][-1]["content"].strip() == "Four."
    begun = [*CHAT, {"role": "assistant", "content": "It is"}]
    ((record,), says) = say(pipe, begun, " four.<seed:eos>")
    assert record["generated_text"] == [*CHAT, {"role": "assistant", "content": "It is four."}]
    assert pipe.tokenizer.decode(says.prompts[0]).endswith("It is")


def test_a_family_that_was_never_taught_says_so_once(tiny_gpt2: Path, caplog: pytest.LogCaptureFixture) -> None:
    pipe = pipeline("text-generation", tiny_gpt2, do_sample=False)
    assert not caplog.text, "nobody has come with a chat"
    ((record,), says) = say(pipe, CHAT, " It is 4.\nUser: And 3 + 3?\nAssistant: It is 6.")
    assert record["generated_text"][-1] == {"role": "assistant", "content": "It is 4."}
    assert says.step < 20, "the next speaker ends the answer"
    assert pipe.tokenizer.decode(says.prompts[0]) == "Be brief.\nUser: What is 2 + 2?\nAssistant:"
    say(pipe, CHAT, " Yes.<|endoftext|>")
    assert caplog.text.count("no chat format of its own") == 1


def test_chats_and_texts_in_a_batch_give_what_they_give_alone(tiny_gpt2: Path, alike: Alike) -> None:
    pipe = pipeline("text-generation", tiny_gpt2, do_sample=False, max_new_tokens=12, pad_token_id=0)
    items = [CHAT, "The cat", CHAT[1:], [*CHAT, {"role": "assistant", "content": "It is"}]]
    alike(pipe(items, batch_size=4), [pipe(item) for item in items])
    both, _ = say(pipe, [CHAT, CHAT[1:]], " One.\nUser: x", " Two and more.\nAssistant: y", batch_size=2)
    assert [one[0]["generated_text"][-1]["content"] for one in both] == ["One.", "Two and more."]


def test_own_stop_texts_and_streaming(tiny_gpt2: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pipe = pipeline("text-generation", tiny_gpt2, do_sample=False)
    ((record,), _) = say(pipe, CHAT, " It is 4. Or 5.", stop_sequence="4.")
    assert record["generated_text"][-1]["content"] == "It is 4."
    streamer = TextStreamer(pipe.tokenizer, skip_prompt=True)
    say(pipe, CHAT, " Yes.<|endoftext|>", streamer=streamer)
    assert capsys.readouterr().out.startswith(" Yes.")


def test_a_format_in_place_of_the_template(talking_gpt_oss: Path, tiny_gpt2: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(talking_gpt_oss)
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    pipe = pipeline("text-generation", talking_gpt_oss, tokenizer=tokenizer, do_sample=False)
    ((record,), says) = say(pipe, CHAT, THINKING + FINAL, max_new_tokens=300)
    assert record["generated_text"][-1]["content"] == "analysisLet me see.assistantfinalIt is 4.", "as the reference's"
    assert tokenizer.decode(says.prompts[0]) == "Be brief.What is 2 + 2?"
    for form in ("harmony", "gpt_oss", chat_format("gpt_oss")):
        ((record,), says) = say(pipe, CHAT, THINKING + FINAL, chat_format=form, max_new_tokens=300)
        assert record["generated_text"][-1]["reasoning_content"] == "Let me see."
    always = pipeline("text-generation", tiny_gpt2, chat_format="transcript", do_sample=False, max_new_tokens=3)
    assert always(CHAT)[0]["generated_text"][:2] == CHAT
    with pytest.raises(ChatError, match="no family or chat format 'harmoni'.*Did you mean 'harmony'"):
        pipe(CHAT, chat_format="harmoni")
    with pytest.raises(ConfigError, match="chat_format is of type int, but must be the name of a chat format"):
        pipe(CHAT, chat_format=3)


@pytest.mark.parametrize(
    ("chat", "words"),
    [
        ([{"role": "wizard", "content": "x"}], "wizard"),
        ([{"role": "user", "content": None}], "content"),
        ([{"role": "user", "content": b"x"}], "bytes"),
    ],
)
def test_messages_that_are_refused(tiny_gpt2: Path, chat: Any, words: str) -> None:
    with pytest.raises(ChatError, match=words):
        pipeline("text-generation", tiny_gpt2)(chat)


def test_a_tokenizer_without_the_tokens_of_the_format(talking_gpt_oss: Path, make_bytes: Any) -> None:
    pipe = pipeline("text-generation", talking_gpt_oss, tokenizer=make_bytes(("<e>",), eos_token="<e>"))
    with pytest.raises(ChatError, match=r"has no token '<\|start\|>', which the chat format needs"):
        pipe(CHAT)


def test_a_chat_longer_than_the_model(tiny_gpt2: Path) -> None:
    with pytest.raises((GenerationError, InputError), match="128"):
        pipeline("text-generation", tiny_gpt2)([{"role": "user", "content": "cat " * 200}])
