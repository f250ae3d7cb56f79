"""Streamers: complete characters at once, the whole text in the end, and no consumer left waiting."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from queue import Empty
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from quintet.errors import GenerationError
from quintet.generation import AsyncTextIteratorStreamer, BaseStreamer, TextIteratorStreamer, TextStreamer

TEXT = "The stop sign: naïve 漢字 😀!\nNobody  stopped."


class Pieces(TextStreamer):
    """Keeps what it is given."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.pieces: list[str] = []
        self.ends = 0

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self.pieces.append(text)
        self.ends += stream_end


class OwnDecoder:
    """A tokenizer with a streaming decoder of its own."""

    def stream_decoder(self, **kwargs: Any) -> OwnDecoder:
        self.kwargs = kwargs
        return self

    def put(self, token: int) -> str:
        return f"<{token}>"

    def end(self) -> str:
        return "."


def feed(streamer: BaseStreamer, ids: list[int], prompt: int = 2) -> None:
    streamer.put(torch.tensor([ids[:prompt]]))
    for token in ids[prompt:]:
        streamer.put(torch.tensor([token]))
    streamer.end()


def test_every_character_as_soon_as_it_is_complete(make_tokenizer: Callable[[], Any]) -> None:
    tokenizer = make_tokenizer()
    streamer = Pieces(tokenizer)
    ids = tokenizer.encode(TEXT)
    feed(streamer, ids)
    assert "".join(streamer.pieces) == TEXT
    assert streamer.ends == 1
    assert not any("\ufffd" in piece for piece in streamer.pieces)
    shown = ""
    again = Pieces(tokenizer)
    for end, token in enumerate(ids, 1):  # whatever is complete has been shown
        again.put(torch.tensor([token]))
        shown = "".join(again.pieces)
        assert shown == tokenizer.decode(ids[:end]).rstrip("\ufffd")
    assert shown == TEXT


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(0, 299), min_size=1, max_size=30), st.booleans())
@example([0] * 7 + [129, 97], True)  # special tokens that are left out, then the two bytes of a character
@example([129] + [0] * 9 + [97], True)  # and between those bytes
@example([97] * 7 + [129, 97], False)  # bytes that begin no character, then a character
def test_the_pieces_are_the_decoding(make_tokenizer: Callable[[], Any], ids: list[int], skip: bool) -> None:
    tokenizer = make_tokenizer()
    streamer = Pieces(tokenizer, skip_special_tokens=skip)
    feed(streamer, ids, prompt=1)
    assert "".join(streamer.pieces) == tokenizer.decode(ids, skip_special_tokens=skip)


def test_a_long_text_takes_linear_time(make_tokenizer: Callable[[], Any]) -> None:
    tokenizer = make_tokenizer()
    sizes: list[int] = []

    class Counting:
        def decode(self, ids: list[int], **kwargs: Any) -> str:
            sizes.append(len(ids))
            return str(tokenizer.decode(ids, **kwargs))

    streamer = Pieces(Counting())
    feed(streamer, tokenizer.encode(TEXT) * 30)
    assert max(sizes) <= 16
    assert "".join(streamer.pieces) == TEXT * 30


def test_the_prompt_can_be_left_out_of_every_text(make_tokenizer: Callable[[], Any]) -> None:
    tokenizer = make_tokenizer()
    streamer = Pieces(tokenizer, skip_prompt=True)
    ids = tokenizer.encode("stop it")
    for _ in range(2):
        feed(streamer, ids, prompt=3)
    assert "".join(streamer.pieces) == tokenizer.decode(ids[3:]) * 2


def test_the_tokenizers_own_decoder_is_preferred() -> None:
    tokenizer = OwnDecoder()
    streamer = Pieces(tokenizer, skip_special_tokens=True)
    assert tokenizer.kwargs == {"skip_special_tokens": True}
    feed(streamer, [4, 5, 6])
    assert streamer.pieces == ["<4><5>", "<6>", "."]


def test_it_prints(make_tokenizer: Callable[[], Any], capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = make_tokenizer()
    feed(TextStreamer(tokenizer), tokenizer.encode(TEXT))
    assert capsys.readouterr().out == TEXT + "\n"


def test_generate_streams_what_it_returns(model: Any, make_tokenizer: Callable[[], Any]) -> None:
    tokenizer = make_tokenizer()
    streamer = Pieces(tokenizer)
    ids = torch.tensor([tokenizer.encode("The stop")])
    out = model.generate(ids, streamer=streamer, max_new_tokens=40, do_sample=True)
    assert "".join(streamer.pieces) == tokenizer.decode(out[0])
    assert streamer.ends == 1


def test_other_streamers_get_every_row(model: Any, prompt: torch.Tensor) -> None:
    class Raw(BaseStreamer):
        def __init__(self) -> None:
            self.got: list[torch.Tensor] = []
            self.ended = False

        def put(self, value: torch.Tensor) -> None:
            self.got.append(value)

        def end(self) -> None:
            self.ended = True

    streamer = Raw()
    out = model.generate(prompt, streamer=streamer, max_new_tokens=9, num_return_sequences=2, do_sample=True)
    assert streamer.ended
    assert torch.equal(torch.cat([streamer.got[0], *[one[:, None] for one in streamer.got[1:]]], dim=1), out)


@pytest.mark.parametrize("options", [{}, {"num_return_sequences": 2, "do_sample": True}], ids=str)
def test_a_text_streamer_takes_one_row(model: Any, prompt: torch.Tensor, options: dict[str, Any]) -> None:
    rows = prompt if not options else prompt[:1]
    with pytest.raises(GenerationError, match="Pieces shows one sequence, and got [23] rows.*generate_iter"):
        model.generate(rows, streamer=Pieces(OwnDecoder()), max_new_tokens=3, **options)


def test_an_iterator_in_another_thread(model: Any, make_tokenizer: Callable[[], Any]) -> None:
    tokenizer = make_tokenizer()
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, timeout=60)
    ids = torch.tensor([tokenizer.encode("The stop")])
    kwargs = {"inputs": ids, "streamer": streamer, "max_new_tokens": 30}
    thread = threading.Thread(target=model.generate, kwargs=kwargs)
    thread.start()
    text = "".join(streamer)
    thread.join()
    assert text == tokenizer.decode(model.generate(ids, max_new_tokens=30)[0, ids.shape[1] :])


def test_an_iterator_raises_what_generate_raised(model: Any) -> None:
    streamer = TextIteratorStreamer(OwnDecoder(), timeout=60)

    def broken(input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("broken processor")

    def run() -> None:
        with pytest.raises(RuntimeError):
            model.generate(torch.tensor([[5]]), streamer=streamer, logits_processor=[broken])

    thread = threading.Thread(target=run)
    thread.start()
    assert next(streamer) == "<5>"
    with pytest.raises(RuntimeError, match="broken processor"):
        next(streamer)
    thread.join()
    with pytest.raises(GenerationError, match="top_k"):  # wrong options reach it as well
        model.generate(torch.tensor([[5]]), streamer=streamer, top_k=-1)
    with pytest.raises(GenerationError, match="top_k"):
        next(streamer)


def test_an_iterator_does_not_wait_for_ever() -> None:
    with pytest.raises(Empty):
        next(TextIteratorStreamer(OwnDecoder(), timeout=0.01))


def test_an_asynchronous_iterator(model: Any, make_tokenizer: Callable[[], Any]) -> None:
    tokenizer = make_tokenizer()
    ids = torch.tensor([tokenizer.encode("The stop")])

    async def read(**options: Any) -> str:
        streamer = AsyncTextIteratorStreamer(tokenizer, skip_prompt=True, timeout=60)
        loop = asyncio.get_running_loop()
        work = loop.run_in_executor(None, lambda: model.generate(ids, streamer=streamer, **options))
        try:
            return "".join([piece async for piece in streamer])
        finally:
            await asyncio.gather(work, return_exceptions=True)

    expected = tokenizer.decode(model.generate(ids, max_new_tokens=20)[0, ids.shape[1] :])
    assert asyncio.run(read(max_new_tokens=20)) == expected
    with pytest.raises(GenerationError, match="max_new_tokens"):
        asyncio.run(read(max_new_tokens=0))


def test_an_asynchronous_iterator_does_not_wait_for_ever() -> None:
    async def read() -> str:
        return await AsyncTextIteratorStreamer(OwnDecoder(), timeout=0.01).__anext__()

    with pytest.raises(TimeoutError, match="no text came for 0.01 seconds"):
        asyncio.run(read())


def test_an_asynchronous_iterator_needs_its_loop() -> None:
    with pytest.raises(GenerationError, match="must be made inside a running event loop"):
        AsyncTextIteratorStreamer(OwnDecoder())


def test_the_base_class_says_what_to_define() -> None:
    with pytest.raises(NotImplementedError, match=r"must define put\(value\)"):
        BaseStreamer().put(3)
    with pytest.raises(NotImplementedError, match=r"must define end\(\)"):
        BaseStreamer().end()
    assert BaseStreamer().fail(RuntimeError()) is None
