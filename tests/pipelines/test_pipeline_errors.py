"""What pipelines refuse, and how they say so."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import quintet
from quintet.errors import ConfigError, GenerationError, HubError, InputError, TokenizerError
from quintet.pipelines import (
    TASKS,
    TextGenerationPipeline,
    pipeline,
)

Ours = Callable[..., Any]
Alike = Callable[..., None]
Checkpoint = Callable[..., Path]


@pytest.mark.parametrize(
    ("keywords", "error", "words"),
    [
        ({"task": "text-genration"}, ConfigError, "unknown task 'text-genration'. Did you mean 'text-generation'"),
        ({"task": "fill-mask"}, ConfigError, "The tasks are text-generation, "),
        ({"task": 3}, ConfigError, "unknown task 3"),
        ({}, ConfigError, "needs a task or a model"),
        ({"task": "ner"}, ConfigError, "there is no default model for token-classification"),
        ({"task": "text-generation", "tokenizer": "storyteller"}, ConfigError, "a tokenizer is given and no model"),
        ({"task": "text-classification", "model": "storyteller"}, ConfigError, "no weights for score.weight"),
        ({"task": "text-generation", "model": "/nowhere"}, HubError, "/nowhere"),
        ({"task": "text-generation", "device": "gpu"}, ConfigError, "device is 'gpu'"),
        ({"task": "text-generation", "device": "cpu", "device_map": "cpu"}, ConfigError, "device and device_map"),
        ({"task": "text-generation", "dtype": "int7"}, ConfigError, "int7"),
        (
            {"task": "text-generation", "dtype": "float32", "model_kwargs": {"dtype": "float16"}},
            ConfigError,
            "dtype is given twice",
        ),
        ({"task": "text-generation", "batch_size": 0}, ConfigError, "batch_size is 0"),
        ({"task": "text-generation", "image_processor": "x"}, ConfigError, "image_processor is for images"),
        ({"task": "text-generation", "trust_remote_code": True}, ConfigError, "never runs code from a checkpoint"),
    ],
    ids=str,
)
def test_pipelines_that_are_refused(keywords: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        pipeline(**keywords)


def test_models_without_the_right_head(checkpoint: Checkpoint, vocabulary: Path) -> None:
    model = quintet.AutoModel.from_pretrained(checkpoint("gpt2", "causal-lm"))
    for task in ("text-generation", "text-classification", "question-answering"):
        with pytest.raises(ConfigError, match=rf"GPT2Model cannot do {task}: it has no .* head. Use GPT2"):
            pipeline(task, model, tokenizer=str(vocabulary))
    with pytest.raises(ConfigError, match="the family 'openai-gpt' has no token-classification model"):
        pipeline("ner", checkpoint("openai-gpt", "causal-lm"))
    with pytest.raises(ConfigError, match="OpenAIGPTLMHeadModel cannot do ner|cannot do token-classification"):
        other = quintet.AutoModelForCausalLM.from_pretrained(checkpoint("openai-gpt", "causal-lm"))
        pipeline("ner", other, tokenizer=str(vocabulary))


def test_a_vocabulary_of_the_wrong_size(checkpoint: Checkpoint, caplog: pytest.LogCaptureFixture) -> None:
    model = quintet.AutoModelForCausalLM.from_pretrained(checkpoint("gpt2", "causal-lm"))
    pipe = pipeline("text-generation", model, tokenizer="storyteller", max_new_tokens=3)
    assert "The tokenizer has 4096 tokens, but the model only 331: a text with one of the others" in caplog.text
    with pytest.raises(InputError, match="outside the vocabulary"):
        pipe("Once upon a time")
    assert pipe("a")


def test_no_tokenizer(checkpoint: Checkpoint, tmp_path: Path) -> None:
    model = quintet.AutoModelForCausalLM.from_pretrained(checkpoint("gpt2", "causal-lm"))
    model.save_pretrained(tmp_path)
    with pytest.raises(TokenizerError, match="no tokenizer found for .*Pass tokenizer="):
        pipeline("text-generation", tmp_path)
    made = quintet.GPT2LMHeadModel(quintet.GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=50))
    with pytest.raises(TokenizerError, match="was made in memory"):
        pipeline("text-generation", made)
    with pytest.raises(ConfigError, match="TextGenerationPipeline has no tokenizer"):
        TextGenerationPipeline(model=made)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ([], "empty list"),
        (None, "None"),
        (b"bytes", "bytes"),
        ([None], "item 0 .*None|item 0 .*an item is"),
        ([b"bytes"], "item 0 .*bytes"),
        (3, "of type int"),
    ],
    ids=str,
)
def test_inputs_that_are_refused(ours: Ours, task: str, bad: Any, words: str) -> None:
    options = {"candidate_labels": ["a"]} if task == "zero-shot-classification" else {}
    if task == "question-answering" and isinstance(bad, list) and len(bad) == 1:
        bad = bad * 2  # a list of one is one question
    with pytest.raises(InputError, match=words):
        ours(task)(bad, **options)


@pytest.mark.parametrize("task", ["text-classification", "feature-extraction", "text-generation"])
def test_contexts_longer_than_the_model(ours: Ours, task: str) -> None:
    pipe = ours(task)
    with pytest.raises(
        InputError, match="the text has .* tokens, and the model has 128 positions. Shorten it, or pass"
    ):
        pipe("The old woman " * 100)
    options: dict[str, Any] = {"truncation": True}
    if task == "text-generation":
        options = {"handle_long_generation": "hole", "max_new_tokens": 20}
    assert pipe("The old woman " * 100, **options)


def test_a_text_that_is_cut_is_told(ours: Ours, caplog: pytest.LogCaptureFixture) -> None:
    pipe = ours("ner")
    text = "The old woman " * 100
    assert pipe(text, ignore_labels=[])[-1]["end"] < len(text)
    assert "longer than the 128 tokens that fit" in caplog.text
    caplog.clear()
    found = pipe(text, ignore_labels=[], stride=10, aggregation_strategy="simple")
    assert found[-1]["end"] >= len(text) - 1 and not caplog.text


@pytest.mark.parametrize(
    ("task", "options", "error", "words"),
    [
        ("text-generation", {"max_new_tokns": 3}, GenerationError, "Did you mean 'max_new_tokens'"),
        ("text-generation", {"handle_long_generation": "cut"}, ConfigError, "must be 'hole' or None"),
        ("text-generation", {"return_full_text": True, "return_tensors": True}, ConfigError, "both given"),
        ("text-generation", {"return_full_text": True, "return_text": True}, ConfigError, "both given"),
        ("text-generation", {"return_type": 7}, ConfigError, "return_type is 7"),
        ("text-generation", {"max_new_tokens": 128, "handle_long_generation": "hole"}, InputError, "finds no room"),
        ("text-classification", {"top_k": 0}, ConfigError, "top_k is 0"),
        ("text-classification", {"function_to_apply": "sofmax"}, ConfigError, "Did you mean 'softmax'"),
        ("text-classification", {"truncaton": True}, TokenizerError, "Did you mean 'truncation'"),
        ("text-classification", {"return_tensors": "pt"}, TokenizerError, "set by the pipeline"),
        ("ner", {"aggregation_strategy": "frist"}, ConfigError, "Did you mean 'first'"),
        ("ner", {"stride": 128}, ConfigError, "must be less than the tokens that fit"),
        ("ner", {"stride": 5, "aggregation_strategy": "none"}, ConfigError, "must not be 'none'"),
        ("ner", {"ignore_labels": "O"}, ConfigError, "must be a list"),
        ("ner", {"strides": 5}, ConfigError, "Did you mean 'stride'"),
        ("ner", {"is_split_into_words": True}, InputError, "takes a list of words"),
        ("feature-extraction", {"truncate": True}, ConfigError, "Did you mean 'truncation'"),
        ("feature-extraction", {"truncation": True, "tokenize_kwargs": {"truncation": True}}, ConfigError, "twice"),
        ("zero-shot-classification", {}, InputError, "there are no candidate_labels"),
        ("zero-shot-classification", {"candidate_labels": ""}, InputError, "there are no candidate_labels"),
        ("zero-shot-classification", {"candidate_labels": [3]}, ConfigError, "must be a list of texts"),
        (
            "zero-shot-classification",
            {"candidate_labels": ["a"], "hypothesis_template": "It is so."},
            ConfigError,
            "must hold {} where the label",
        ),
        (
            "zero-shot-classification",
            {"candidate_labels": ["a"], "hypothesis_template": "{x} {"},
            ConfigError,
            "cannot be filled in",
        ),
    ],
    ids=str,
)
def test_options_that_are_refused(
    ours: Ours, task: str, options: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        ours(task)("The cat", **options)


def test_items_of_a_wrong_form(ours: Ours) -> None:
    with pytest.raises(InputError, match=r"item 0 .*for a pair a dict"):
        ours("text-classification")([["a", "b"]])
    with pytest.raises(InputError, match="must have 'text'"):
        ours("text-classification")({"txt": "a"})
    with pytest.raises(InputError, match="must be a text, or a chat"):
        ours("text-generation")({"text": "a"})
    with pytest.raises(InputError, match="Words need is_split_into_words=True"):
        ours("ner")([["a", "b"]])
    with pytest.raises(InputError, match="must have 'sequence'"):
        ours("zero-shot-classification")({"txt": "a"}, candidate_labels="a")
    with pytest.raises(InputError, match="2 entries for 1 texts"):
        ours("ner")(["a"], offset_mapping=[[(0, 1)], [(0, 1)]])
