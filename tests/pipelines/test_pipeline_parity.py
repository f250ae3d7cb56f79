"""Our pipelines and the reference's on the same weights: the same records, scores to 1e-5."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import quintet
from quintet.auto import family_of
from quintet.pipelines import TASKS

from .conftest import TEXTS

Pair = Callable[..., tuple[Any, Any]]
Alike = Callable[..., None]
LONG = " ".join(TEXTS) * 4
# Every option is tried on a model with position embeddings and on one with RoPE; `kind` is every family.
TWO = pytest.mark.parametrize("two", ["gpt2", "gpt_neox"])


def both(pair: tuple[Any, Any], *inputs: Any, **options: Any) -> tuple[Any, Any]:
    """What ours gives and what the reference gives."""
    ours, theirs = pair
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ours(*inputs, **options), theirs(*inputs, **options)


@pytest.mark.parametrize(
    "options",
    [
        {"max_new_tokens": 8},
        {"max_new_tokens": 8, "return_full_text": False},
        {"max_new_tokens": 8, "return_tensors": True},
        {"max_length": 60},
        {"max_new_tokens": 6, "prefix": "The house. "},
        {"max_length": 50, "prefix": "The house. "},
        {"max_new_tokens": 6, "add_special_tokens": True, "skip_special_tokens": False},
        {"max_new_tokens": 120, "handle_long_generation": "hole"},
        {"min_new_tokens": 4, "max_new_tokens": 9, "repetition_penalty": 1.3},
    ],
    ids=str,
)
@TWO
def test_text_generation(pair: Pair, alike: Alike, two: str, options: dict[str, Any]) -> None:
    pipes = pair("text-generation", two)
    alike(*both(pipes, TEXTS[3], do_sample=False, **options))
    alike(*both(pipes, TEXTS[:2], do_sample=False, **options))


@pytest.mark.parametrize(
    "options",
    [
        {"do_sample": True, "temperature": 0.8, "top_k": 20, "num_return_sequences": 3},
        {"do_sample": True, "top_p": 0.9, "repetition_penalty": 1.2},
        {"do_sample": False, "num_beams": 3, "num_return_sequences": 2},
        {"do_sample": False, "no_repeat_ngram_size": 2, "bad_words_ids": [[1]], "return_full_text": False},
    ],
    ids=str,
)
@TWO
def test_options_of_generate(pair: Pair, alike: Alike, two: str, options: dict[str, Any]) -> None:
    made = []
    for pipe in pair("text-generation", two):
        torch.manual_seed(3)
        made.append([pipe(text, max_new_tokens=7, **options) for text in TEXTS[:3]])
    alike(*made)


def test_text_generation_of_every_family(pair: Pair, alike: Alike, kind: str) -> None:
    alike(*both(pair("text-generation", kind), TEXTS, do_sample=False, max_new_tokens=6, return_tensors=True))


def test_stop_sequence(transformers: ModuleType, alike: Alike) -> None:
    folder = str(Path(quintet.__file__).parent / "storyteller")
    options = {"model": folder, "device": "cpu", "do_sample": False, "max_new_tokens": 20, "return_full_text": False}
    pipes = quintet.pipeline("text-generation", **options), transformers.pipeline("text-generation", **options)
    text = pipes[0]("Once upon a time")[0]["generated_text"]
    for stop in (text[8:11], ["never at all", text[8:11]]):
        got, wanted = both(pipes, "Once upon a time", stop_sequence=stop)
        alike(got, wanted)
        assert 0 < len(got[0]["generated_text"]) < len(text)


@TWO
def test_chats(pair: Pair, alike: Alike, two: str) -> None:
    pipes = pair("text-generation", two, do_sample=False, max_new_tokens=5)
    for pipe in pipes:
        pipe.tokenizer.chat_template = (
            "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}{{ eos_token }}{% endfor %}"
            "{% if add_generation_prompt %}assistant: {% endif %}"
        )
    chat = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Who lives there?"}]
    begun = [*chat, {"role": "assistant", "content": "She does"}]
    for given in (chat, begun, [chat, begun]):
        alike(*both(pipes, given))
        alike(*both(pipes, given, return_full_text=False))
    alike(*both(pipes, begun, continue_final_message=False))
    alike(*both(pipes, chat, continue_final_message=True))


def test_options_of_the_pipeline_and_of_a_call(pair: Pair, alike: Alike) -> None:
    pipes = pair("text-generation", do_sample=False, max_new_tokens=5, return_full_text=False)
    alike(*both(pipes, TEXTS[0]))
    alike(*both(pipes, TEXTS[0], max_new_tokens=7, return_full_text=True))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"top_k": 1},
        {"top_k": 2},
        {"top_k": None},
        {"function_to_apply": "sigmoid"},
        {"function_to_apply": "none", "top_k": None},
        {"truncation": True, "max_length": 5},
    ],
    ids=str,
)
@pytest.mark.parametrize("of_pipeline", [False, True])
@TWO
def test_text_classification(pair: Pair, alike: Alike, two: str, options: dict[str, Any], of_pipeline: bool) -> None:
    pipes = pair("text-classification", two, **(options if of_pipeline else {}))
    call = {} if of_pipeline else options
    alike(*both(pipes, TEXTS[1], **call))
    alike(*both(pipes, TEXTS, **call))
    alike(*both(pipes, {"text": TEXTS[0], "text_pair": TEXTS[1]}, **call))


@pytest.mark.parametrize("problem", ["regression", "single_label_classification", "multi_label_classification"])
@pytest.mark.parametrize("labels", [1, 3])
@TWO
def test_function_by_problem_type(pair: Pair, alike: Alike, two: str, problem: str, labels: int) -> None:
    if labels == 1 and problem == "single_label_classification":
        pytest.skip("the reference refuses this configuration")
    names = {number: f"L{number}" for number in range(labels)}
    pipes = pair("text-classification", two, fields={"problem_type": problem, "id2label": names})
    alike(*both(pipes, TEXTS, top_k=None))


@pytest.mark.parametrize("strategy", ["none", "simple", "first", "average", "max"])
@TWO
def test_token_classification(pair: Pair, alike: Alike, two: str, strategy: str) -> None:
    pipes = pair("token-classification", two, aggregation_strategy=strategy)
    alike(*both(pipes, TEXTS[1]))
    alike(*both(pipes, TEXTS))
    alike(*both(pipes, TEXTS[1], ignore_labels=[]))
    alike(*both(pipes, TEXTS[1], ignore_labels=["PER", "B-PER"]))
    if strategy != "none":
        got, wanted = both(pipes, LONG, stride=20)
        alike(got, wanted)
        assert got[-1]["end"] > 300, "the text was not read to its end"
    got, wanted = both(pipes, LONG)
    alike(got, wanted)


@TWO
def test_words_and_offsets(pair: Pair, alike: Alike, two: str) -> None:
    pipes = pair("token-classification", two, aggregation_strategy="simple", ignore_labels=[])
    words = ["The", "cat", "said", "nothing"]
    alike(*both(pipes, words, is_split_into_words=True))
    alike(*both(pipes, [words, ["She"]], is_split_into_words=True, delimiter="--"))


@TWO
def test_feature_extraction(pair: Pair, alike: Alike, two: str) -> None:
    pipes = pair("feature-extraction", two)
    alike(*both(pipes, TEXTS[1]))
    alike(*both(pipes, TEXTS))
    alike(*both(pipes, TEXTS[1], return_tensors=True))
    alike(*both(pipes, LONG, truncation=True))
    alike(*both(pipes, TEXTS[1], tokenize_kwargs={"max_length": 3, "truncation": True}))


@pytest.mark.parametrize("options", [{}, {"multi_label": True}, {"hypothesis_template": "It is about {}"}], ids=str)
def test_zero_shot_classification(pair: Pair, alike: Alike, kind: str, options: dict[str, Any]) -> None:
    pipes = pair("zero-shot-classification", kind)
    alike(*both(pipes, TEXTS[1], candidate_labels=["a cat", "a house", "a day"], **options))
    alike(*both(pipes, TEXTS, candidate_labels="a cat, a house", **options))
    alike(*both(pipes, TEXTS[0], candidate_labels=["cat"], **options))
    alike(*both(pipes, TEXTS[0], ["cat", "dog"], **options))


@pytest.mark.parametrize("task", ["text-classification", "token-classification", "feature-extraction"])
def test_every_family(pair: Pair, alike: Alike, kind: str, task: str) -> None:
    if TASKS[task].head not in family_of(kind).classes:
        pytest.skip(f"{kind} has no {task}")
    alike(*both(pair(task, kind), TEXTS))


def test_all_ids_of_a_padded_vocabulary_are_known(checkpoint: Callable[..., Path], pair: Pair) -> None:
    ours, _ = pair("text-generation", fields={"vocab_size": 4000}, do_sample=True, max_new_tokens=60, temperature=5.0)
    known = {*ours.tokenizer.get_vocab().values()}
    for record in ours([TEXTS[0]] * 4, batch_size=4, return_tensors=True, top_k=0):
        assert {*record[0]["generated_token_ids"]} <= known
