"""GPT-2's other heads give what the reference gives: scores and losses."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

IDS = torch.tensor([[5, 17, 3, 88, 42, 9, 61], [70, 2, 33, 4, 90, 12, 8], [1, 2, 3, 4, 5, 6, 7]])
CHOICES = torch.stack([IDS, IDS.flip(1)], dim=1)  # (3, 2, 7)
ALL = {"output_hidden_states": True, "output_attentions": True}


@pytest.mark.parametrize("token_ids", [None, torch.tensor([[6, 2], [0, 3], [5, 5]])], ids=["last", "given"])
def test_double_heads(pair: Any, same: Any, token_ids: torch.Tensor | None) -> None:
    ours, theirs = pair("GPT2DoubleHeadsModel")
    labels = CHOICES.clone()
    labels[:, 1] = -100
    given = {"mc_token_ids": token_ids, "labels": labels, "mc_labels": torch.tensor([0, 1, 1])}
    got, wanted = ours(CHOICES, **given), theirs(CHOICES, **given)
    same(got, wanted)
    assert list(got) == ["loss", "mc_loss", "logits", "mc_logits", "past_key_values"]
    assert got.mc_logits.shape == (3, 2)
    assert got.logits.shape == (3, 2, 7, 99)
    assert ours.config.num_labels == theirs.config.num_labels == 1


def test_double_heads_take_every_input(pair: Any, same: Any) -> None:
    ours, theirs = pair("GPT2DoubleHeadsModel")
    given = {
        "attention_mask": torch.ones_like(CHOICES),
        "token_type_ids": CHOICES,
        "position_ids": torch.arange(7)[None],
    }
    given["attention_mask"][1, 0, 5:] = 0
    same(ours(CHOICES, **given), theirs(CHOICES, **given))
    got, wanted = ours(CHOICES, **ALL), theirs(CHOICES, **ALL)
    same(got, wanted)
    same(ours(CHOICES, use_cache=False, return_dict=False), theirs(CHOICES, use_cache=False, return_dict=False))
    same(ours(IDS), theirs(IDS))  # without choices


SUMMARIES = [
    {"summary_type": kind, "summary_use_proj": project, "summary_activation": act, "summary_proj_to_labels": to_labels}
    for kind, project, act, to_labels in itertools.product(
        ("last", "first", "mean", "cls_index"), (True, False), (None, "tanh"), (True, False)
    )
]


@pytest.mark.parametrize("fields", SUMMARIES, ids=lambda f: "-".join(str(v) for v in f.values()))
def test_summaries(transformers: Any, same: Any, fields: dict[str, Any]) -> None:
    from transformers.models.gpt2.modeling_gpt2 import GPT2SequenceSummary

    from quintet.heads import SequenceSummary
    from quintet.models.gpt2 import tiny

    config = tiny(num_labels=3, summary_first_dropout=0.3, summary_last_dropout=0.2, **fields)
    ours = SequenceSummary(config).eval()
    theirs = GPT2SequenceSummary(transformers.GPT2Config.from_dict(config.to_dict())).eval()
    theirs.load_state_dict(ours.state_dict())
    states, index = torch.randn(3, 7, 32), torch.tensor([0, 6, 3])
    same(ours(states), theirs(states))
    same(ours(states, index), theirs(states, index))
    # The reference reads the choices of (B, C, T, D) as tokens; ours are the summaries of each choice.
    each = torch.stack([ours(row, index[:1].expand(2)) for row in states[:, None].expand(3, 2, 7, 32)])
    same(ours(states[:, None].expand(3, 2, 7, 32), index[:1].expand(3, 2)), each)


def test_the_dropouts_of_the_summary_are_active() -> None:
    from quintet.heads import SequenceSummary
    from quintet.models.gpt2 import tiny

    states = torch.randn(3, 7, 32)
    for name in ("summary_first_dropout", "summary_last_dropout"):
        rates = {"summary_first_dropout": 0.0, "summary_last_dropout": 0.0, name: 0.5}
        summary = SequenceSummary(tiny(num_labels=9, **rates)).train()
        assert not torch.equal(summary(states), summary(states)), name
        summary.eval()
        assert torch.equal(summary(states), summary(states)), name


@pytest.mark.parametrize("pad", [None, 7, 61])
def test_sequence_classification_finds_the_last_token(pair: Any, same: Any, pad: int | None) -> None:
    ours, theirs = pair("GPT2ForSequenceClassification", num_labels=3, pad_token_id=pad)
    ids = IDS[:1] if pad is None else IDS
    same(ours(ids, **ALL), theirs(ids, **ALL))
    embeds = torch.randn(ids.shape[0], 7, 32)
    same(ours(inputs_embeds=embeds), theirs(inputs_embeds=embeds))


PROBLEMS = {
    "one number": (1, None, torch.tensor([0.5, -1.0, 2.0])),
    "one number in a column": (1, "regression", torch.tensor([[0.5], [-1.0], [2.0]])),
    "numbers": (4, "regression", torch.randn(3, 4)),
    "classes": (4, None, torch.tensor([0, 3, 1])),
    "classes said": (4, "single_label_classification", torch.tensor([2, -100, 1])),
    "many classes": (4, None, torch.tensor([[0.0, 1, 1, 0], [1, 0, 0, 0], [1, 1, 1, 1]])),
    "many classes said": (4, "multi_label_classification", torch.tensor([[0.0, 1, 1, 0], [1, 0, 0, 0], [1, 1, 1, 1]])),
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_problem_types(pair: Any, same: Any, name: str) -> None:
    labels_count, problem, labels = PROBLEMS[name]
    ours, theirs = pair("GPT2ForSequenceClassification", num_labels=labels_count, pad_token_id=98, problem_type=problem)
    same(ours(IDS, labels=labels), theirs(IDS, labels=labels))
    assert ours.config.problem_type == theirs.config.problem_type  # found once, then kept


def test_token_classification(pair: Any, same: Any) -> None:
    ours, theirs = pair("GPT2ForTokenClassification", num_labels=5)
    labels = IDS % 5
    labels[0, 2] = -100
    same(ours(IDS, labels=labels, **ALL), theirs(IDS, labels=labels, **ALL))
    same(ours(IDS), theirs(IDS))


def test_the_dropout_of_token_classification(pair: Any) -> None:
    for fields, rate in (
        ({}, 0.1),
        ({"hidden_dropout": 0.3}, 0.3),
        ({"hidden_dropout": 0.3, "classifier_dropout": 0.0}, 0.0),
    ):
        ours, theirs = pair("GPT2ForTokenClassification", **fields)
        assert ours.dropout.p == theirs.dropout.p == rate


@pytest.mark.parametrize("column", [False, True])
def test_question_answering(pair: Any, same: Any, column: bool) -> None:
    ours, theirs = pair("GPT2ForQuestionAnswering")
    starts, ends = torch.tensor([0, 3, 99]), torch.tensor([2, 6, -1])  # past the end is ignored, before it counts as 0
    if column:
        starts, ends = starts[:, None], ends[:, None]
    given = {"start_positions": starts, "end_positions": ends}
    same(ours(IDS, **given, **ALL), theirs(IDS, **given, **ALL))
    same(ours(IDS), theirs(IDS))


@pytest.mark.parametrize(
    "name", ["GPT2ForSequenceClassification", "GPT2ForTokenClassification", "GPT2ForQuestionAnswering"]
)
def test_heads_pass_their_inputs_on(pair: Any, same: Any, name: str) -> None:
    ours, theirs = pair(name, pad_token_id=98)
    mask = torch.ones_like(IDS)
    mask[1, 4:] = 0
    given = {"attention_mask": mask, "token_type_ids": IDS, "position_ids": torch.arange(7)[None] + 3}
    same(ours(IDS, **given), theirs(IDS, **given))
    same(ours(inputs_embeds=torch.ones(1, 4, 32)), theirs(inputs_embeds=torch.ones(1, 4, 32)))
