"""Columns as they come, in a loop and in an event loop: what they hold, and what is left when a reader goes away."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import gc
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from quintet.cache import DynamicCache
from quintet.errors import GenerationError, InputError
from quintet.generation import BaseStreamer, Column, TextIteratorStreamer

PAD = 0
ONE = torch.tensor([[5, 6, 7]])
LONG: dict[str, Any] = {"max_new_tokens": 60, "eos_token_id": None, "pad_token_id": PAD}


@contextmanager
def forwards(model: Any, before: Any = None) -> Iterator[list[str]]:
    """Note the thread of every forward pass; call `before` in front of each."""
    seen: list[str] = []

    def note(module: Any, args: Any) -> None:
        seen.append(threading.current_thread().name)
        if before is not None:
            before(len(seen))

    handle = model.register_forward_pre_hook(note)
    try:
        yield seen
    finally:
        handle.remove()


# --- what columns hold ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"do_sample": True, "top_k": 5}, {"repetition_penalty": 2.0}], ids=str)
def test_log_probabilities_are_the_models(model: Any, prompt: torch.Tensor, options: dict[str, Any]) -> None:
    torch.manual_seed(1)
    columns = list(model.generate_iter(prompt, logprobs=3, output_logits=True, **LONG, **options))
    for column in columns:
        expected = column.logits.log_softmax(-1)
        torch.testing.assert_close(column.logprobs, expected.gather(-1, column.tokens[:, None])[:, 0])
        best = expected.topk(3)
        torch.testing.assert_close(column.top_logprobs, best.values)
        assert torch.equal(column.top_ids, best.indices)
    tokens = torch.cat([prompt, torch.stack([column.tokens for column in columns], dim=1)], dim=1)
    with torch.no_grad():
        logits = model(input_ids=tokens).logits.log_softmax(-1)
    whole = logits[:, 6:-1].gather(-1, tokens[:, 7:, None])[..., 0]  # (B, N)
    torch.testing.assert_close(torch.stack([one.logprobs for one in columns], dim=1), whole, atol=1e-4, rtol=1e-4)


def test_log_probabilities_that_are_not_asked_for(model: Any) -> None:
    for logprobs, has in ((None, False), (0, True)):
        column = next(model.generate_iter(ONE, logprobs=logprobs, **LONG))
        assert (column.logprobs is not None) is has
        assert column.top_ids is None and column.top_logprobs is None
    assert next(model.generate_iter(ONE, logprobs=999, **LONG)).top_ids.shape == (1, 300)
    with pytest.raises(GenerationError, match="logprobs is -1, but must be an integer of at least 0.*None leaves"):
        model.generate_iter(ONE, logprobs=-1)
    with pytest.raises(GenerationError, match="logprobs is True"):
        model.generate_iter(ONE, logprobs=True)
    with pytest.raises(GenerationError, match="'logprobs' is neither an option"):
        model.generate(ONE, logprobs=1)


def test_it_takes_the_arguments_of_generate(model: Any, prompt: torch.Tensor) -> None:
    options: dict[str, Any] = {
        "prefix_allowed_tokens_fn": lambda row, ids: [40 + row, 60 + len(ids) % 7],
        "synced_gpus": False,
        "assistant_model": None,
        "negative_prompt_ids": prompt.roll(1, 0),
        "guidance_scale": 1.5,
        "logits_processor": [lambda ids, scores: scores * 2],
        "stopping_criteria": [lambda ids, scores: ids.shape[1] > 20],
        "custom_generate": None,
        "generator": None,
        **LONG,
    }
    out = model.generate(prompt, **copy.copy(options))
    columns = list(model.generate_iter(prompt, **copy.copy(options)))
    assert torch.equal(torch.stack([one.tokens for one in columns], dim=1), out[:, 7:])
    with pytest.raises(GenerationError, match="custom_generate is refused"):
        model.generate_iter(prompt, custom_generate="x/y")


def test_beams_have_no_columns(model: Any) -> None:
    with pytest.raises(GenerationError, match="beams are chosen at the end, so there is no column"):
        model.generate_iter(ONE, num_beams=2)


# --- who goes away ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["break", "close", "exception", "garbage"])
@pytest.mark.parametrize("options", [{}, {"prompt_lookup_num_tokens": 3}], ids=str)
def test_leaving_early_leaves_model_and_cache_usable(model: Any, way: str, options: dict[str, Any]) -> None:
    prompt = torch.tensor([[5, 6, 7, 5, 6, 7, 5, 6]])
    expected, cache = model.generate(prompt, **LONG), DynamicCache()
    columns = model.generate_iter(prompt, past_key_values=cache, **LONG, **options)
    read = prompt[0].tolist()
    with contextlib.suppress(ZeroDivisionError):
        for column in columns:
            read += column.ids
            if len(read) == 18:
                if way == "exception":
                    raise ZeroDivisionError
                break
    if way == "close":
        columns.close()
    del columns
    gc.collect()
    assert torch.is_grad_enabled()
    assert read == expected[0, :18].tolist()
    assert cache.get_seq_length() == 17  # all columns but the last
    again = model.generate(torch.tensor([read]), past_key_values=cache, **LONG | {"max_new_tokens": 50})
    assert torch.equal(again, expected)


def test_columns_that_nobody_reads_cost_nothing(model: Any) -> None:
    with forwards(model) as seen:
        model.generate_iter(ONE, **LONG)
        assert seen == []


class Faulty(BaseStreamer):
    """Raises at the n-th call."""

    def __init__(self, after: int, error: type[BaseException] = ValueError, *, twice: bool = False) -> None:
        self.left, self.error, self.twice = after, error, twice
        self.failed: list[BaseException] = []

    def put(self, value: Any) -> None:
        self.left -= 1
        if self.left < 0:
            raise self.error("the streamer broke")

    def end(self) -> None:
        self.put(None)

    def fail(self, error: BaseException) -> None:
        self.failed.append(error)
        if self.twice:
            raise OSError("the pipe is closed")


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("after", [0, 1, 6, 61])
@pytest.mark.parametrize("twice", [False, True])
def test_a_streamer_that_raises(model: Any, after: int, error: type[BaseException], twice: bool) -> None:
    cache, streamer = DynamicCache(), Faulty(after, error, twice=twice)
    with pytest.raises(error, match="the streamer broke"):
        model.generate(ONE, past_key_values=cache, streamer=streamer, **LONG)
    assert len(streamer.failed) == 1 and isinstance(streamer.failed[0], error)
    assert torch.is_grad_enabled()
    expected = model.generate(ONE, **LONG)
    read = cache.get_seq_length()
    # The first put is the prompt, and a column is put before the model reads it; the last is never read.
    assert read == (0 if after == 0 else min(2 + after, 62))
    if read:
        begun = expected[:, : read + 1]
        again = model.generate(begun, past_key_values=cache, max_new_tokens=1, eos_token_id=None, pad_token_id=PAD)
        assert torch.equal(again, model.generate(begun, max_new_tokens=1, eos_token_id=None, pad_token_id=PAD))


# --- processors that return nonsense ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("result", "words"),
    [
        (lambda scores: None, r"processor nonsense returned None \(is a `return` missing\?\)"),
        (lambda scores: scores.tolist(), "processor nonsense returned a list"),
        (lambda scores: scores[0], r"returned scores of shape \(300,\) for \(2, 300\)"),
        (lambda scores: scores[:1], r"returned scores of shape \(1, 300\) for \(2, 300\)"),
        (lambda scores: scores.argmax(-1), r"returned scores of shape \(2,\) for"),
        (lambda scores: scores.long(), "returned scores of dtype torch.int64. It must return a floating-point score"),
        (lambda scores: scores > 0, "returned scores of dtype torch.bool"),
        (lambda scores: scores.to(torch.complex64), "returned scores of dtype torch.complex64"),
        (lambda scores: scores * torch.nan, "next-token scores of row 0 hold NaN"),
        (lambda scores: scores.fill_(-torch.inf), "next-token scores of row 0 are all -inf"),
    ],
    ids=["none", "list", "row", "rows", "ids", "integers", "bools", "complex", "nan", "nothing"],
)
@pytest.mark.parametrize("do_sample", [False, True])
def test_a_processor_that_returns_nonsense(model: Any, result: Any, words: str, do_sample: bool) -> None:
    def nonsense(input_ids: torch.Tensor, scores: torch.Tensor) -> Any:
        return result(scores)

    options = LONG | ({"do_sample": True, "top_k": 0} if do_sample else {})
    with pytest.raises(GenerationError, match=words):
        model.generate(ONE.repeat(2, 1), logits_processor=[nonsense, lambda ids, scores: scores + 0], **options)


def test_a_processor_that_returns_inf(model: Any) -> None:
    options = LONG | {"logits_processor": [lambda ids, scores: scores.fill_(torch.inf)]}
    with pytest.raises(GenerationError, match=r"next-token scores of row 0 hold \+inf"):
        model.generate(ONE, do_sample=True, top_k=0, **options)
    assert model.generate(ONE, **options)[0, 3:].tolist() == [0] * 60  # the first of the best


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_processor_of_another_precision(model: Any, dtype: torch.dtype) -> None:
    def convert(input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return scores.to(dtype)

    out = model.generate(ONE, logits_processor=[convert], do_sample=True, generator=torch.Generator(), **LONG)
    assert out.shape == (1, 63)


# --- Ctrl-C -----------------------------------------------------------------------------------------------------------

SCRIPT = """
    import os, signal, sys, threading, time
    import torch
    from quintet.cache import DynamicCache
    from quintet.models.gpt2 import GPT2Config, GPT2LMHeadModel

    signal.signal(signal.SIGINT, signal.default_int_handler)
    torch.manual_seed(0)
    sizes = dict(vocab_size=300, n_positions=4096, n_embd=32, n_layer=2, n_head=4, eos_token_id=None, bos_token_id=None)
    model = GPT2LMHeadModel(GPT2Config(**sizes)).eval()
    prompt = torch.tensor([[5, 6, 7]])
    options = dict(max_new_tokens=4000, pad_token_id=0)
    model.generate(prompt, max_new_tokens=2)
    cache = DynamicCache()
    threading.Timer(float(sys.argv[2]), lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    try:
        if sys.argv[1] == "generate":
            model.generate(prompt, past_key_values=cache, **options)
        elif sys.argv[1] == "iter":
            for column in model.generate_iter(prompt, past_key_values=cache, **options):
                pass
        else:
            import asyncio
            async def read():
                async for column in model.astream(prompt, past_key_values=cache, **options):
                    pass
            asyncio.run(read())
        print("not interrupted")
        sys.exit(1)
    except KeyboardInterrupt:
        pass
    lengths = {cache.get_seq_length(layer) for layer in range(2)}
    assert len(lengths) == 1, lengths
    assert torch.is_grad_enabled()
    read = lengths.pop()
    whole = model.generate(prompt, max_new_tokens=max(read, 3), pad_token_id=0)
    if read > 3:
        again = model.generate(whole[:, :read], past_key_values=cache, max_new_tokens=2, pad_token_id=0)
        assert torch.equal(again, whole[:, : read + 2]), (again, whole)
    print("usable")
"""


@pytest.mark.parametrize("way", ["generate", "iter", "astream"])
@pytest.mark.parametrize("seconds", ["0.03", "0.17"])
def test_ctrl_c_at_any_moment(way: str, seconds: str, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(SCRIPT), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(script), way, seconds],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert done.stdout.strip() == "usable", done.stdout + done.stderr


# --- event loops ------------------------------------------------------------------------------------------------------


def test_astream_gives_the_columns_of_generate_iter(model: Any, prompt: torch.Tensor) -> None:
    options = LONG | {"do_sample": True, "logprobs": 2, "output_scores": True}

    async def read() -> list[Column]:
        with forwards(model) as seen:
            columns = [column async for column in model.astream(prompt, generator=torch.Generator(), **options)]
        assert len(set(seen)) == 1 and seen[0].startswith("quintet-generate")
        assert torch.is_grad_enabled()
        return columns

    streamed = asyncio.run(read())
    for mine, other in zip(streamed, model.generate_iter(prompt, generator=torch.Generator(), **options), strict=True):
        assert mine.ids == other.ids and mine.finished == other.finished
        for name in ("tokens", "scores", "logprobs", "top_ids", "top_logprobs"):
            assert torch.equal(getattr(mine, name), getattr(other, name))
    assert not busy()


def threads() -> list[threading.Thread]:
    """The worker threads that there are."""
    return [thread for thread in threading.enumerate() if thread.name.startswith("quintet-generate")]


def busy() -> bool:
    """Whether a worker thread is still there after a moment."""
    deadline = time.monotonic() + 5
    while threads() and time.monotonic() < deadline:
        time.sleep(0.01)
    return bool(threads())


def test_astream_checks_its_options_at_once(model: Any) -> None:
    with pytest.raises(GenerationError, match="top_k is -3"):
        model.astream(ONE, top_k=-3)
    with pytest.raises(InputError, match="input_ids has shape"):
        model.astream(ONE[0])
    with pytest.raises(GenerationError, match="'streamer' is neither an option"):
        model.astream(ONE, streamer=3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.astream(ONE)  # never read: nothing runs, and nobody complains
        gc.collect()
    with pytest.warns(UserWarning, match="temperature=0.5 has no effect") as caught:
        model.astream(ONE, temperature=0.5)
    assert caught[0].filename == __file__


def test_the_event_loop_goes_on_while_the_model_runs(model: Any) -> None:
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0.001)

    async def read() -> None:
        other = asyncio.create_task(tick())
        with forwards(model, lambda count: time.sleep(0.02)):
            async for _ in model.astream(ONE, **LONG | {"max_new_tokens": 10}):
                pass
        other.cancel()

    asyncio.run(read())
    assert ticks > 30


def test_a_slow_reader_holds_the_model_up(model: Any) -> None:
    async def read() -> None:
        with forwards(model) as seen:
            stream = model.astream(ONE, **LONG)
            for number in range(1, 6):
                await anext(stream)
                await asyncio.sleep(0.05)
                assert len(seen) <= number + 1
            await stream.aclose()
            await asyncio.sleep(0.05)
            assert len(seen) <= 6

    asyncio.run(read())


@pytest.mark.parametrize("way", ["cancel", "aclose", "break", "exception", "cancel twice"])
def test_a_reader_that_goes_away_ends_the_run_within_a_step(model: Any, way: str) -> None:
    cache, text = DynamicCache(), ONE[0].tolist()

    async def read(stop: int) -> None:
        stream = model.astream(ONE, past_key_values=cache, **LONG)
        async for column in stream:
            text.extend(column.ids)
            if len(text) == stop and way == "aclose":
                await stream.aclose()
            if len(text) == stop and way == "break":
                break
            if len(text) == stop and way == "exception":
                raise ZeroDivisionError

    async def main() -> None:
        with forwards(model, lambda count: time.sleep(0.01)) as seen:
            task = asyncio.create_task(read(10))
            if way.startswith("cancel"):
                while len(text) < 10:
                    await asyncio.sleep(0.001)
                for _ in range(2 if "twice" in way else 1):
                    task.cancel()
                    await asyncio.sleep(0)
                with pytest.raises(asyncio.CancelledError):
                    await task
            elif way == "exception":
                with pytest.raises(ZeroDivisionError):
                    await task
            else:
                await task
            if way == "break":  # the event loop closes what nobody holds any more
                gc.collect()
                while threads():
                    await asyncio.sleep(0.001)
            elif way == "exception":  # its traceback holds the stream, which waits for its reader
                await asyncio.sleep(0.05)
            count = len(seen)
            assert count <= len(text) - 3 + 2
            await asyncio.sleep(0.05)
            assert len(seen) == count  # nothing runs any more

    asyncio.run(main())
    assert not busy()
    expected = model.generate(ONE, **LONG)
    read_so_far = cache.get_seq_length()
    assert text == expected[0, : len(text)].tolist()
    assert len(text) - 1 <= read_so_far <= len(text) + 1
    begun = expected[:, : read_so_far + 1]
    again = model.generate(begun, past_key_values=cache, **LONG | {"max_new_tokens": 63 - begun.shape[1]})
    assert torch.equal(again, expected)


def test_an_error_of_the_model_reaches_the_reader(model: Any) -> None:
    def explode(count: int) -> None:
        if count == 4:
            raise RuntimeError("a cosmic ray")

    async def read() -> int:
        seen = 0
        with forwards(model, explode), pytest.raises(RuntimeError, match="a cosmic ray"):
            async for _ in model.astream(ONE, **LONG):
                seen += 1
        return seen

    assert asyncio.run(read()) == 3
    assert not busy()


def test_two_streams_side_by_side(model: Any, prompt: torch.Tensor) -> None:
    async def read(row: int) -> list[int]:
        return [column.ids[0] async for column in model.astream(prompt[row : row + 1], **LONG)]

    async def both() -> list[list[int]]:
        return await asyncio.gather(read(0), read(1))

    found = asyncio.run(both())
    for row in range(2):
        assert found[row] == model.generate(prompt[row : row + 1], **LONG)[0, 7:].tolist()


def test_a_text_streamer_of_a_run_that_fails(model: Any, make_tokenizer: Any) -> None:
    streamer = TextIteratorStreamer(make_tokenizer(), timeout=20)

    def explode(count: int) -> None:
        if count == 4:
            raise RuntimeError("a cosmic ray")

    def run() -> None:
        with forwards(model, explode), contextlib.suppress(RuntimeError):
            model.generate(ONE, streamer=streamer, **LONG)

    thread = threading.Thread(target=run)
    thread.start()
    with pytest.raises(RuntimeError, match="a cosmic ray"):
        list(streamer)
    thread.join()
