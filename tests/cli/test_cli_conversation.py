"""A conversation keeps its cache from turn to turn, and stays usable when Ctrl-C breaks off an answer."""

from __future__ import annotations

import inspect
import signal
from pathlib import Path
from typing import Any

import pytest

from quintet.chat import ChatEvent
from quintet.chat.transcript import Transcript
from quintet.cli.conversation import Answer, Conversation, Halt
from quintet.errors import ChatError, GenerationError, InputError

GREEDY = {"do_sample": False}


def silent(event: ChatEvent, thought: int) -> None:
    """Shows nothing."""


@pytest.fixture
def talk(tiny_gpt2: Path):
    """Makes a conversation with the tiny GPT-2; `fed` lists how many tokens each forward pass read."""
    from quintet.models.gpt2 import GPT2LMHeadModel
    from quintet.tokenizers.auto import AutoTokenizer

    def make(options: dict[str, Any] | None = None, **fields: Any) -> Conversation:
        model = GPT2LMHeadModel.from_pretrained(tiny_gpt2).eval()
        fed: list[int] = []
        forward = model.forward

        def counted(input_ids: Any = None, **kwargs: Any) -> Any:
            fed.append(input_ids.shape[1])
            return forward(input_ids, **kwargs)

        counted.__signature__ = inspect.signature(forward)  # type: ignore[attr-defined]
        model.forward = counted
        tokenizer = AutoTokenizer.from_pretrained(tiny_gpt2)
        made = Conversation(model, tokenizer, Transcript(), dict(options or GREEDY), 1, new_tokens=6, **fields)
        made.fed = fed  # type: ignore[attr-defined]
        return made

    return make


def ask(talk: Conversation, text: str, show: Any = silent) -> Answer:
    with Halt() as halt:
        return talk.ask({"role": "user", "content": text}, show, halt)


def test_what_the_cache_holds_is_not_read_again_and_changes_nothing(talk: Any) -> None:
    one = talk()
    first = ask(one, "Hello")
    assert first.tokens == 6 and first.finish_reason == "length" and first.first is not None
    read, held = len(one.fed), one.cached
    second = ask(one, "And then?")
    assert one.fed[read] < 30 < held + one.fed[read], "only the new part of the prompt"
    fresh = talk(messages=one.messages[:2])
    assert ask(fresh, "And then?").message == second.message
    assert fresh.fed[0] > one.fed[read]


def test_rows_of_a_padded_vocabulary_are_never_written_and_looked_up_once(
    talk: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, plain = talk(), talk()
    tokens = len(one.tokenizer)
    one.model.resize_token_embeddings(tokens + 8)
    one.model.get_input_embeddings().weight.data[tokens:] = 50.0  # tied: these rows score far above all others
    one.model.transformer.ln_f.bias.data.fill_(1.0)
    plain.model.transformer.ln_f.bias.data.fill_(1.0)
    calls: list[int] = []
    get_vocab = type(one.tokenizer).get_vocab
    monkeypatch.setattr(type(one.tokenizer), "get_vocab", lambda self: calls.append(1) or get_vocab(self))
    for text in ("Hello", "And?", "Then?"):
        assert ask(one, text).message == ask(plain, text).message
    assert max(one._held) < tokens and len(calls) == 2, "once for each of the two conversations"


def test_taking_back_and_resetting(talk: Any) -> None:
    one = talk()
    first = ask(one, "Hello").message
    assert one.take_back() and one.messages == [{"role": "user", "content": "Hello"}]
    read = len(one.fed)
    with Halt() as halt:
        again = one.answer(silent, halt)
    assert again.message == first and one.fed[read] == 1, "the scores behind the prompt are computed again"
    one.reset()
    assert one.cached == one.count() == 0 and not one.take_back()
    assert ask(one, "Hello").message == first


@pytest.mark.parametrize("in_model", [True, False])
def test_ctrl_c_stops_and_what_was_written_stays(talk: Any, in_model: bool) -> None:
    one = talk()
    shown: list[str] = []

    def show(event: ChatEvent, thought: int) -> None:
        shown.append(event.text)
        if len(shown) == 3 and not in_model:
            signal.raise_signal(signal.SIGINT)

    if in_model:
        block = one.model.transformer.h[1]
        block.register_forward_pre_hook(lambda *_: signal.raise_signal(signal.SIGINT) if len(shown) == 3 else None)
    answer = ask(one, "Hello", show)
    assert answer.finish_reason == "interrupted" and 0 < answer.tokens < 6
    assert answer.message == {"role": "assistant", "content": "".join(shown)}
    assert one.messages[-1] == answer.message
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    shown += ["", ""]
    fresh = talk(messages=[dict(message) for message in one.messages])
    assert ask(one, "Go on").message == ask(fresh, "Go on").message, "the cache is as it should be"


def test_ctrl_c_before_the_first_token_keeps_the_question(talk: Any) -> None:
    one = talk()
    hook = one.model.transformer.h[1].register_forward_pre_hook(lambda *_: signal.raise_signal(signal.SIGINT))
    answer = ask(one, "Hello")
    assert (answer.message, answer.tokens, answer.first, answer.finish_reason) == (None, 0, None, "interrupted")
    assert one.messages == [{"role": "user", "content": "Hello"}]
    hook.remove()
    with Halt() as halt:
        assert one.answer(silent, halt).message == ask(talk(), "Hello").message


def test_ctrl_c_that_nobody_catches_ends_the_program(talk: Any) -> None:
    one = talk()
    one.model.transformer.h[1].register_forward_pre_hook(lambda *_: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt), Halt(catch=False) as halt:
        one.ask({"role": "user", "content": "Hello"}, silent, halt)


def test_the_context_is_full(talk: Any) -> None:
    one = talk(system="Be kind.")
    with pytest.raises(InputError, match=r"has \d+ tokens with this message, but the model holds 128 in all") as caught:
        ask(one, "word " * 200)
    assert one.messages == [], "the message was not kept"
    fits = int(str(caught.value).partition("at most ")[2].split()[0])
    text = "x" * fits
    assert len(one.tokenizer(text)["input_ids"]) == fits
    assert ask(one, text).finish_reason == "context"
    with pytest.raises(InputError, match="/reset begins a new conversation"):
        ask(one, "more")
    one.reset()
    assert ask(one, "Hello").tokens == 6
    with pytest.raises(InputError, match="but shorten /system first"):
        ask(talk(system="word " * 200), "Hello")


def test_what_cannot_be_answered_leaves_all_as_it_was(talk: Any) -> None:
    one = talk({"temperature": 1.0, "do_sample": True})
    ask(one, "Hello")
    messages, one.options = list(one.messages), {"temprature": 1.0}
    with pytest.raises(GenerationError, match="temperature"):
        ask(one, "And?")
    assert one.messages == messages and one.cached <= one._cache.get_seq_length()
    with pytest.raises(ChatError, match="Put it first"):
        one.replace([{"role": "user", "content": "x"}, {"role": "system", "content": "y"}], None)
    with pytest.raises(ChatError, match="tool calls cannot be written"):
        one.replace([{"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f"}}]}], "s")
    assert one.messages == messages and one.system is None
    with pytest.raises(ChatError, match="was not trained to call tools"):
        talk(tools=[{"name": "f"}]).check()


def test_a_seed_gives_the_same_conversation(talk: Any) -> None:
    options = {"do_sample": True, "temperature": 1.0}
    one, two = talk(options), talk(options)
    for text in ("Hello", "And?"):
        assert ask(one, text).message == ask(two, text).message


def test_a_cache_that_cannot_go_back_reads_all_of_it_again(talk: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from quintet.cache import DynamicCache

    one, other = talk(), talk()
    ask(one, "Hello")
    ask(other, "Hello")

    def crop(self: Any, length: int) -> None:
        raise InputError("the window has passed")

    monkeypatch.setattr(DynamicCache, "crop", crop)
    read = len(one.fed)
    answer = ask(one, "And?").message
    monkeypatch.undo()
    assert ask(other, "And?").message == answer and one.fed[read] > 20
