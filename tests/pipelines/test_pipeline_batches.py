"""Batches of any mix of lengths give what single inputs give; streams stay streams; a bad item is named."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

import quintet
from quintet.auto import family_of
from quintet.errors import GenerationError, InputError
from quintet.pipelines import TASKS, KeyDataset, KeyPairDataset

from .conftest import TEXT, TEXTS

Ours = Callable[..., Any]
Alike = Callable[..., None]

CALLS: dict[str, dict[str, Any]] = {
    "text-generation": {"do_sample": False, "max_new_tokens": 6, "return_tensors": True},
    "text-classification": {"top_k": None},
    "token-classification": {"aggregation_strategy": "simple", "ignore_labels": [], "stride": 5},
    "question-answering": {"top_k": 3, "max_seq_len": 40},
    "feature-extraction": {},
    "zero-shot-classification": {"candidate_labels": ["a cat", "a large and very old house", "x"]},
}


def inputs_of(task: str) -> list[Any]:
    """Items of very different lengths."""
    texts = [*TEXTS, TEXT[:300]] if task in ("token-classification", "question-answering") else TEXTS
    if task == "question-answering":
        return [{"question": "Who lives there?", "context": text} for text in texts]
    return list(texts)


@pytest.mark.parametrize("task", TASKS)
def test_batches_give_what_single_inputs_give(ours: Ours, alike: Alike, kind: str, task: str) -> None:
    if TASKS[task].head not in family_of(kind).classes:
        pytest.skip(f"{kind} has no {task}")
    pipe = ours(task, kind)
    items = inputs_of(task)
    alone = [pipe([item, item], **CALLS[task])[0] for item in items]  # of a list: records without a list around them
    for size in (2, 3, 100):
        alike(pipe(items, batch_size=size, **CALLS[task]), alone)
    alike(pipe(items[::-1], batch_size=4, **CALLS[task]), alone[::-1])


@pytest.mark.parametrize(
    "options",
    [
        {"max_length": 50},
        {"min_length": 30, "max_length": 55},
        {"max_length": 50, "prefix": "The house. "},
        {},  # 256 new tokens, or as many as fit
        {"max_new_tokens": 5, "repetition_penalty": 1.5},
        {"max_new_tokens": 9, "num_beams": 3, "num_return_sequences": 2},
        {"max_new_tokens": 9, "num_beams": 3, "length_penalty": 2.0, "early_stopping": True},
        {"max_new_tokens": 6, "no_repeat_ngram_size": 2},
        {"max_new_tokens": 5, "padding": "max_length", "tokenizer_encode_kwargs": {"max_length": 60}},
    ],
    ids=str,
)
def test_lengths_that_count_the_prompt(ours: Ours, alike: Alike, options: dict[str, Any]) -> None:
    pipe = ours("text-generation", do_sample=False, return_tensors=True)
    texts = [*TEXTS[:3], ""]
    alone = [pipe(text, **options) for text in texts]
    alike(pipe(texts, batch_size=4, **options), alone)


def test_ends_of_rows_in_a_batch(alike: Alike) -> None:
    pipe = quintet.pipeline("text-generation", model="storyteller", do_sample=False, max_new_tokens=30, device="cpu")
    prompts = ["Once upon a time", "The King of the birds said", "He", 'The cat said: "I']
    for stop in (".", [" the", ","]):
        options: dict[str, Any] = {"stop_sequence": stop}
        alone = [pipe(prompt, **options) for prompt in prompts]
        lengths = {len(pipe(prompt, return_tensors=True, **options)[0]["generated_token_ids"]) for prompt in prompts}
        assert len(lengths) > 1, "the texts should end at different places"
        alike(pipe(prompts, batch_size=4, **options), alone)
        tensors = [pipe(prompt, return_tensors=True, **options) for prompt in prompts]
        alike(pipe(prompts, batch_size=3, return_tensors=True, **options), tensors)
    first = [pipe(prompt, return_tensors=True)[0]["generated_token_ids"] for prompt in prompts]
    ends = first[0][8]  # a token that makes one text end early
    tensors = [pipe(prompt, return_tensors=True, eos_token_id=ends) for prompt in prompts]
    assert len({len(one[0]["generated_token_ids"]) for one in tensors}) > 1
    alike(pipe(prompts, batch_size=4, return_tensors=True, eos_token_id=ends), tensors)


def test_what_works_for_one_row_only_runs_for_one_at_a_time(alike: Alike) -> None:
    pipe = quintet.pipeline("text-generation", model="storyteller", do_sample=False, max_new_tokens=14, device="cpu")
    prompts = ["Once upon a time", "The King of the birds said", "He"]
    chats = [[{"role": "user", "content": text}] for text in prompts]
    config = {"prompt_lookup_num_tokens": 3, "do_sample": False, "max_new_tokens": 9}
    beams: dict[str, Any] = {"num_beams": 2, "num_return_sequences": 2}
    for inputs, options in (
        (prompts, {**beams, "stop_sequence": ","}),
        (prompts, {"prompt_lookup_num_tokens": 3}),
        (prompts, {"generation_config": quintet.GenerationConfig(**config)}),
        (chats, beams),
    ):
        alike(pipe(inputs, batch_size=3, **options), [pipe(one, **options) for one in inputs])


def test_the_side_of_the_tokenizer_does_not_matter(ours: Ours, alike: Alike) -> None:
    for task in ("text-generation", "text-classification", "feature-extraction"):
        left, right = ours(task), ours(task)
        left.tokenizer.padding_side = "left"
        assert right.tokenizer.padding_side == "right"
        alike(left(TEXTS, batch_size=5, **CALLS[task]), right(TEXTS, batch_size=5, **CALLS[task]))
        assert left.tokenizer.padding_side == "left", "the caller's tokenizer was changed"


def test_without_a_padding_token(ours: Ours, alike: Alike, caplog: pytest.LogCaptureFixture) -> None:
    for task in ("text-generation", "text-classification", "feature-extraction", "zero-shot-classification"):
        pipe = ours(task)
        usual = pipe(TEXTS, **CALLS[task])
        pipe.tokenizer.pad_token = None
        pipe.model.config.pad_token_id = None
        if task == "text-generation":
            pipe.model.generation_config.pad_token_id = None
        alike(pipe(TEXTS, batch_size=3, **CALLS[task]), usual)
        assert pipe.tokenizer.pad_token is None, "the caller's tokenizer was changed"
    assert "texts are read one at a time" in caplog.text


def test_texts_that_end_with_the_padding_token(ours: Ours, alike: Alike) -> None:
    pipe = ours("text-classification")
    texts = ["The cat<|pad|><|pad|>", TEXTS[1], "<|pad|>"]
    alike(pipe(texts, batch_size=3), [pipe([text])[0] for text in texts])


def test_scores_of_each_row(ours: Ours, alike: Alike) -> None:
    pipe = ours("text-generation", do_sample=False, max_new_tokens=4, return_dict_in_generate=True)
    alone = [pipe(text, output_scores=True, output_logits=True) for text in TEXTS]
    assert [*alone[0][0]] == ["generated_text", "scores", "logits"]
    assert torch.tensor(alone[0][0]["scores"]).shape == (4, len(pipe.tokenizer))
    alike(pipe(TEXTS, batch_size=5, output_scores=True, output_logits=True), alone)


def test_several_continuations(ours: Ours) -> None:
    pipe = ours("text-generation", max_new_tokens=5, num_return_sequences=3, do_sample=True)
    made = pipe(TEXTS, batch_size=2)
    assert [len(one) for one in made] == [3] * len(TEXTS)
    for text, records in zip(TEXTS, made, strict=True):
        assert all(record["generated_text"].startswith(text) for record in records)


# --- streams ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS)
def test_a_generator_gives_a_generator(ours: Ours, alike: Alike, task: str) -> None:
    pipe = ours(task, batch_size=2)
    items = inputs_of(task)
    stream = pipe((item for item in items), **CALLS[task])
    assert isinstance(stream, types.GeneratorType)
    alike(list(stream), pipe(items, **CALLS[task]))
    assert list(pipe((item for item in ()), **CALLS[task])) == []


def test_a_stream_is_read_only_as_far_as_needed(ours: Ours) -> None:
    read: list[int] = []

    def endless() -> Iterator[str]:
        number = 0
        while True:
            read.append(number)
            yield "The cat " * (number % 5 + 1)
            number += 1

    stream = ours("text-classification")(endless(), batch_size=3)
    assert next(stream)["label"]
    assert len(read) == 3
    for _ in range(3):
        next(stream)
    assert len(read) == 6


def test_data_sets(ours: Ours, alike: Alike) -> None:
    pipe = ours("text-classification")
    rows = [{"text": text, "other": "She", "label": 1} for text in TEXTS]
    results = pipe(KeyDataset(rows, "text"), batch_size=2)
    assert len(results) == len(TEXTS)
    alike(list(results), pipe(TEXTS))
    pairs = [{"text": text, "text_pair": "She"} for text in TEXTS]
    alike(list(pipe(KeyPairDataset(rows, "text", "other"))), pipe(pairs))
    alike(pipe(tuple(TEXTS)), pipe(TEXTS))

    class Columns(torch.utils.data.Dataset):  # without __iter__, and without an IndexError at its end
        def __len__(self) -> int:
            return 3

        def __getitem__(self, index: int) -> str:
            return TEXTS[index % len(TEXTS)]

    alike(list(pipe(Columns())), pipe(TEXTS[:3]))
    from quintet.pipelines.pt_utils import KeyDataset as same

    assert same is KeyDataset


def test_the_progress_bar(ours: Ours, capsys: pytest.CaptureFixture[str]) -> None:
    pipe = ours("text-classification")
    list(pipe(text for text in TEXTS))
    pipe(TEXTS)
    assert capsys.readouterr().err == ""
    assert len(list(pipe(KeyDataset([{"text": text} for text in TEXTS], "text"), progress=True))) == len(TEXTS)
    shown = capsys.readouterr().err
    assert "text-classification" in shown and "5/5" in shown
    list(pipe((text for text in TEXTS), progress=True))
    assert "5item" in capsys.readouterr().err
    pipe(TEXTS, progress=True)
    assert "5/5" in capsys.readouterr().err


@pytest.mark.parametrize("size", [1, 2, 10])
@pytest.mark.parametrize("bad", [None, b"bytes", 3, "", "The cat " * 200])
def test_a_bad_item_in_the_middle_is_named(ours: Ours, alike: Alike, size: int, bad: Any) -> None:
    pipe = ours("text-classification")
    good = pipe(TEXTS[:3])
    items = [*TEXTS[:3], bad, TEXTS[4]]
    with pytest.raises(InputError, match=r"^item 3 \(counted from 0\): "):
        pipe(items, batch_size=size)
    stream, got = pipe((item for item in items), batch_size=size), []
    with pytest.raises(InputError, match=r"^item 3 \(counted from 0\): "):
        for one in stream:
            got.append(one)
    alike(got, good)  # what came before it is there


def test_an_item_that_the_model_cannot_do_is_named(ours: Ours) -> None:
    pipe = ours("text-generation", do_sample=False)
    long = TEXT[:220]
    with pytest.raises(GenerationError, match=r"^item 1 .*max_new_tokens=100"):
        pipe([TEXTS[0], long, TEXTS[0]], batch_size=3, max_new_tokens=100)
    with pytest.raises(GenerationError, match=r"^item 2 .*max_length is 12"):
        pipe([TEXTS[0], TEXTS[2], long], batch_size=3, max_length=12)
    with pytest.raises(GenerationError, match=r"^max_new_tokens=100"):
        pipe(long, max_new_tokens=100)


def test_an_error_of_the_callers_own_stream_is_passed_on(ours: Ours) -> None:
    def broken() -> Iterator[str]:
        yield "The cat"
        raise OSError("the disk is gone")

    stream = ours("text-classification")(broken())
    next(stream)
    with pytest.raises(OSError, match="^the disk is gone$"):
        next(stream)
