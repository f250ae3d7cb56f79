"""The processor classes: the reference's arguments and results, clear errors."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from quintet.errors import GenerationError
from quintet.generation import (
    KnownTokensLogitsProcessor,
    LogitsProcessor,
    LogitsProcessorList,
    LogitsWarper,
    MinLengthLogitsProcessor,
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from quintet.generation.known_tokens import known_tokens

CASES: list[tuple[type, dict[str, Any]]] = [
    (TemperatureLogitsWarper, {"temperature": 0.3}),
    (TopKLogitsWarper, {"top_k": 3}),
    (TopKLogitsWarper, {"top_k": 2, "min_tokens_to_keep": 5, "filter_value": -50.0}),
    (TopKLogitsWarper, {"top_k": 999}),
    (TopPLogitsWarper, {"top_p": 0.4}),
    (TopPLogitsWarper, {"top_p": 0.0, "min_tokens_to_keep": 3}),
    (TopPLogitsWarper, {"top_p": 0.9, "filter_value": -7.5}),
    (MinPLogitsWarper, {"min_p": 0.1}),
    (MinPLogitsWarper, {"min_p": 1.0, "min_tokens_to_keep": 4, "filter_value": 0.0}),
    (RepetitionPenaltyLogitsProcessor, {"penalty": 1.7}),
    (RepetitionPenaltyLogitsProcessor, {"penalty": 0.4, "prompt_ignore_length": 4}),
    (RepetitionPenaltyLogitsProcessor, {"penalty": 1.3, "prompt_ignore_length": torch.tensor([0, 2, 6])}),
    (MinLengthLogitsProcessor, {"min_length": 7, "eos_token_id": 3}),
    (MinLengthLogitsProcessor, {"min_length": 6, "eos_token_id": [3, 4]}),
    (MinLengthLogitsProcessor, {"min_length": 9, "eos_token_id": torch.tensor([1, 700])}),
    (MinNewTokensLengthLogitsProcessor, {"prompt_length_to_skip": 4, "min_new_tokens": 3, "eos_token_id": [0, 5]}),
    (MinNewTokensLengthLogitsProcessor, {"prompt_length_to_skip": 4, "min_new_tokens": 2, "eos_token_id": 5}),
]


@pytest.mark.parametrize(("kind", "arguments"), CASES, ids=lambda one: getattr(one, "__name__", str(one)))
def test_as_the_reference(kind: type, arguments: dict[str, Any]) -> None:
    transformers = pytest.importorskip("transformers")
    input_ids = torch.randint(0, 40, (3, 6))
    scores = torch.randn(3, 40) * 3
    before = scores.clone()
    expected = getattr(transformers, kind.__name__)(**arguments)(input_ids, scores.clone())
    assert torch.equal(kind(**arguments)(input_ids, scores), expected)
    assert torch.equal(scores, before)


def test_a_list_applies_each_in_turn() -> None:
    chain = LogitsProcessorList([TemperatureLogitsWarper(2.0)])
    chain.append(lambda input_ids, scores: scores + 1)
    assert torch.equal(chain(torch.zeros(1, 2), torch.tensor([[4.0]])), torch.tensor([[3.0]]))


def test_processors_with_further_arguments() -> None:
    class Shift(LogitsProcessor):
        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, shift: float) -> torch.Tensor:  # type: ignore[override]
            return scores + shift

    chain = LogitsProcessorList([Shift(), TemperatureLogitsWarper(2.0)])
    assert chain(torch.zeros(1, 2), torch.tensor([[4.0]]), shift=2.0).item() == 3.0
    with pytest.raises(GenerationError, match=r"Shift also needs the argument\(s\) shift"):
        chain(torch.zeros(1, 2), torch.tensor([[4.0]]))


def test_the_base_class_says_what_to_define() -> None:
    with pytest.raises(NotImplementedError, match=r"must define __call__\(input_ids, scores\)"):
        LogitsProcessor()(torch.zeros(1, 1), torch.zeros(1, 1))
    assert LogitsWarper is LogitsProcessor


@pytest.mark.parametrize(
    ("kind", "arguments", "words"),
    [
        (TemperatureLogitsWarper, (0.0,), r"temperature is 0.0, but must be a number above 0.*do_sample=False"),
        (TemperatureLogitsWarper, ("1",), "temperature is '1'"),
        (TemperatureLogitsWarper, (math.nan,), "temperature is nan"),
        (TopKLogitsWarper, (0,), "top_k is 0, but must be an integer of at least 1"),
        (TopKLogitsWarper, (2.5,), "top_k is 2.5"),
        (TopKLogitsWarper, (2, -1.0, 0), "min_tokens_to_keep is 0"),
        (TopPLogitsWarper, (1.2,), "top_p is 1.2, but must be a number from 0 to 1"),
        (MinPLogitsWarper, (-0.1,), "min_p is -0.1, but must be a number from 0 to 1"),
        (RepetitionPenaltyLogitsProcessor, (0,), "penalty is 0, but must be a number above 0"),
        (RepetitionPenaltyLogitsProcessor, (1.1, -1), "prompt_ignore_length is -1"),
        (RepetitionPenaltyLogitsProcessor, (1.1, torch.zeros(2, 2)), r"prompt_ignore_length has shape \(2, 2\)"),
        (MinLengthLogitsProcessor, (-1, 0), "min_length is -1, but must be an integer of at least 0"),
        (MinNewTokensLengthLogitsProcessor, (3, 1.5, 0), "min_new_tokens is 1.5"),
    ],
)
def test_wrong_arguments(kind: type, arguments: tuple[Any, ...], words: str) -> None:
    with pytest.raises(GenerationError, match=words):
        kind(*arguments)


def test_ignored_lengths_of_another_batch() -> None:
    processor = RepetitionPenaltyLogitsProcessor(1.2, torch.tensor([1, 2]))
    with pytest.raises(GenerationError, match="has 2 rows and the batch 3"):
        processor(torch.zeros(3, 4, dtype=torch.long), torch.zeros(3, 9))


def test_known_tokens_alone_are_left() -> None:
    scores = torch.arange(8.0).repeat(2, 1)
    only = KnownTokensLogitsProcessor([0, 2, 5, 5, 11])
    got = only(torch.zeros(2, 1, dtype=torch.long), scores)
    assert got.argmax(-1).tolist() == [5, 5]
    assert torch.isinf(got).sum(-1).tolist() == [5, 5]
    assert got[:, [0, 2, 5]].equal(scores[:, [0, 2, 5]])
    assert only(torch.zeros(1, 1, dtype=torch.long), torch.zeros(1, 12)).isfinite().sum() == 4
    for ids in ([], [-1, 3], [1.5]):
        with pytest.raises(GenerationError, match="token ids from 0 on"):
            KnownTokensLogitsProcessor(ids)


def test_a_model_is_kept_to_the_tokens_of_its_tokenizer_where_it_has_more_rows() -> None:
    class Tokenizer:
        def get_vocab(self) -> dict[str, int]:
            return {"a": 0, "b": 1, "d": 3}

    class Model:
        def __init__(self, rows: int) -> None:
            self.rows = torch.nn.Embedding(rows, 2)

        def get_input_embeddings(self) -> torch.nn.Embedding:
            return self.rows

    assert known_tokens(Model(3), Tokenizer()) is None
    found = known_tokens(Model(6), Tokenizer())
    assert found is not None and found.ids.tolist() == [0, 1, 3]
