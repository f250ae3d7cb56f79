"""GPT-NeoX's other heads give what the reference gives: scores and losses."""

from __future__ import annotations

from typing import Any

import pytest
import torch

IDS = torch.tensor([[5, 17, 3, 88, 42, 9, 61], [70, 2, 33, 4, 90, 12, 8], [1, 2, 3, 4, 5, 6, 7]])
ALL = {"output_hidden_states": True, "output_attentions": True}


@pytest.mark.parametrize("pad", [None, 7, 61])
def test_sequence_classification_finds_the_last_token(pair: Any, same: Any, pad: int | None) -> None:
    ours, theirs = pair("GPTNeoXForSequenceClassification", num_labels=3, pad_token_id=pad)
    ids = IDS[:1] if pad is None else IDS
    same(ours(ids, **ALL), theirs(ids, **ALL))
    embeds = torch.randn(ids.shape[0], 7, 32)
    same(ours(inputs_embeds=embeds), theirs(inputs_embeds=embeds))


PROBLEMS = {
    "one number": (1, None, torch.tensor([0.5, -1.0, 2.0])),
    "one number in a column": (1, "regression", torch.tensor([[0.5], [-1.0], [2.0]])),
    "numbers": (4, "regression", torch.randn(3, 4, generator=torch.Generator().manual_seed(0))),
    "classes": (4, None, torch.tensor([0, 3, 1])),
    "classes said": (4, "single_label_classification", torch.tensor([2, -100, 1])),
    "many classes": (4, None, torch.tensor([[0.0, 1, 1, 0], [1, 0, 0, 0], [1, 1, 1, 1]])),
    "many classes said": (4, "multi_label_classification", torch.tensor([[0.0, 1, 1, 0], [1, 0, 0, 0], [1, 1, 1, 1]])),
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_problem_types(pair: Any, same: Any, name: str) -> None:
    count, problem, labels = PROBLEMS[name]
    ours, theirs = pair("GPTNeoXForSequenceClassification", num_labels=count, pad_token_id=98, problem_type=problem)
    same(ours(IDS, labels=labels), theirs(IDS, labels=labels))
    assert ours.config.problem_type == theirs.config.problem_type  # found once, then kept


def test_token_classification(pair: Any, same: Any) -> None:
    ours, theirs = pair("GPTNeoXForTokenClassification", num_labels=5)
    labels = IDS % 5
    labels[0, 2] = -100
    same(ours(IDS, labels=labels, **ALL), theirs(IDS, labels=labels, **ALL))
    same(ours(IDS), theirs(IDS))


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.4])
def test_the_dropout_of_token_classification(pair: Any, rate: float) -> None:
    ours, theirs = pair("GPTNeoXForTokenClassification", classifier_dropout=rate)
    assert ours.dropout.p == theirs.dropout.p == rate


@pytest.mark.parametrize("column", [False, True])
def test_question_answering(pair: Any, same: Any, column: bool) -> None:
    ours, theirs = pair("GPTNeoXForQuestionAnswering")
    starts, ends = torch.tensor([0, 3, 99]), torch.tensor([2, 6, -1])  # past the end is ignored, before it counts as 0
    if column:
        starts, ends = starts[:, None], ends[:, None]
    given = {"start_positions": starts, "end_positions": ends}
    same(ours(IDS, **given, **ALL), theirs(IDS, **given, **ALL))
    same(ours(IDS), theirs(IDS))


HEADS = ["GPTNeoXForSequenceClassification", "GPTNeoXForTokenClassification", "GPTNeoXForQuestionAnswering"]


@pytest.mark.parametrize("name", HEADS)
def test_heads_pass_their_inputs_on(pair: Any, same: Any, name: str) -> None:
    ours, theirs = pair(name, pad_token_id=98)
    mask = torch.ones_like(IDS)
    mask[1, 4:] = 0
    given = {"attention_mask": mask, "position_ids": torch.arange(7)[None] + 3}
    same(ours(IDS, **given), theirs(IDS, **given))
    same(ours(inputs_embeds=torch.ones(1, 4, 32)), theirs(inputs_embeds=torch.ones(1, 4, 32)))
    silent = ours(IDS, head_mask=torch.zeros(4))
    assert not torch.allclose(silent[0], ours(IDS)[0], atol=1e-3)


@pytest.mark.parametrize("name", HEADS[1:])
def test_token_types_change_nothing(pair: Any, same: Any, name: str) -> None:
    """The model page has the argument where the family has no token types."""
    ours, _ = pair(name)
    for key, value in ours(IDS, token_type_ids=torch.ones_like(IDS)).items():
        if key != "past_key_values":
            same(value, ours(IDS)[key])
