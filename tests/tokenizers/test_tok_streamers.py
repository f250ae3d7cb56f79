"""The three streamers give the text of GPT-1 and GPT-NeoX as `decode` does, in pieces that end at a character."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from quintet.generation import AsyncTextIteratorStreamer, TextIteratorStreamer, TextStreamer
from quintet.tokenizers import GPTNeoXTokenizerFast, OpenAIGPTTokenizerFast

TEXT = "The na\u00efve fox: \u6771\u4eac\u90fd \U0001f98a\U0001f468\u200d\U0001f469!\nIt isn't  here."


@pytest.fixture(scope="module", params=["gpt1", "neox"])
def tokenizer(request: pytest.FixtureRequest, data_dir: Path) -> Any:
    if request.param == "gpt1":
        return OpenAIGPTTokenizerFast.from_pretrained(data_dir / "tokenizers" / "openai-gpt")
    return GPTNeoXTokenizerFast.from_pretrained(data_dir / "tokenizers" / "gpt-neox-20b")


def feed(streamer: Any, ids: list[int]) -> None:
    streamer.put(torch.tensor([ids[:3]]))
    for index in ids[3:]:
        streamer.put(torch.tensor([index]))
    streamer.end()


class Pieces(TextStreamer):
    """Keeps what it is given."""

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self.__dict__.setdefault("pieces", []).append(text)


def test_text_streamer(tokenizer: Any) -> None:
    ids = tokenizer(TEXT)["input_ids"]
    whole = tokenizer.decode(ids)
    streamer = Pieces(tokenizer)
    feed(streamer, ids)
    assert "".join(streamer.pieces) == whole
    assert len([piece for piece in streamer.pieces if piece]) > 8, "as soon as it is certain"
    assert "\ufffd" not in whole
    assert not any("\ufffd" in piece for piece in streamer.pieces)
    rest = Pieces(tokenizer, skip_prompt=True, skip_special_tokens=True)
    feed(rest, ids)
    text = "".join(rest.pieces)
    assert text.strip() and tokenizer.decode(ids, skip_special_tokens=True).endswith(text)


def test_iterators(tokenizer: Any) -> None:
    ids = tokenizer(TEXT)["input_ids"]
    streamer = TextIteratorStreamer(tokenizer, timeout=10)
    feed(streamer, ids)
    assert "".join(streamer) == tokenizer.decode(ids)

    async def read() -> str:
        stream = AsyncTextIteratorStreamer(tokenizer, timeout=10)
        feed(stream, ids)
        return "".join([piece async for piece in stream])

    assert asyncio.run(read()) == tokenizer.decode(ids)


def test_linear_time(tokenizer: Any) -> None:
    ids = tokenizer(TEXT * 40)["input_ids"]

    def seconds(times: int) -> float:
        stream, start = tokenizer.stream_decoder(), time.process_time()
        for index in ids * times:
            stream.put(index)
        stream.end()
        return time.process_time() - start

    seconds(1)
    short, long = min(seconds(2) for _ in range(3)), min(seconds(16) for _ in range(2))
    assert long < 8 * short * 3, f"{short:.3f} s for 2 parts, {long:.3f} s for 16"
