"""GPT-1's other heads give what the reference gives: scores and losses."""

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
    ours, theirs = pair("OpenAIGPTDoubleHeadsModel")
    labels = CHOICES.clone()
    labels[:, 1] = -100
    given = {"mc_token_ids": token_ids, "labels": labels, "mc_labels": torch.tensor([0, 1, 1])}
    got, wanted = ours(CHOICES, **given), theirs(CHOICES, **given)
    same(got, wanted)
    assert list(got) == ["loss", "mc_loss", "logits", "mc_logits"]
    assert type(got).__name__ == type(wanted).__name__ == "OpenAIGPTDoubleHeadsModelOutput"
    assert got.mc_logits.shape == (3, 2)
    assert got.logits.shape == (3, 2, 7, 99)
    assert ours.config.num_labels == theirs.config.num_labels == 1


def test_double_heads_take_every_input(pair: Any, same: Any) -> None:
    ours, theirs = pair("OpenAIGPTDoubleHeadsModel")
    given: dict[str, Any] = {"token_type_ids": CHOICES, "position_ids": torch.arange(7)[None]}
    same(ours(CHOICES, **given), theirs(CHOICES, **given))
    same(ours(CHOICES, **ALL), theirs(CHOICES, **ALL))
    same(ours(CHOICES, return_dict=False), theirs(CHOICES, return_dict=False))
    both = {"labels": CHOICES, "mc_labels": torch.tensor([0, 1, 1])}
    same(ours(CHOICES, return_dict=False, **both), theirs(CHOICES, return_dict=False, **both))
    same(ours(IDS), theirs(IDS))  # without choices
    # The reference takes a mask by rows only; ours has the shape of the ids.
    mask = torch.ones_like(CHOICES)
    mask[1, 0, 5:] = 0
    same(ours(CHOICES, attention_mask=mask), theirs(CHOICES, attention_mask=mask.view(6, 7)))


SUMMARIES = [
    {"summary_type": kind, "summary_use_proj": project, "summary_activation": act, "summary_proj_to_labels": to_labels}
    for kind, project, act, to_labels in itertools.product(
        ("last", "first", "mean", "cls_index"), (True, False), (None, "tanh"), (True, False)
    )
]


@pytest.mark.parametrize("fields", SUMMARIES, ids=lambda f: "-".join(str(v) for v in f.values()))
def test_summaries(transformers: Any, same: Any, fields: dict[str, Any]) -> None:
    from transformers.models.openai.modeling_openai import OpenAIGPTSequenceSummary

    from quintet.heads import SequenceSummary
    from quintet.models.openai_gpt import tiny

    config = tiny(num_labels=3, **fields)
    ours = SequenceSummary(config).eval()
    theirs = OpenAIGPTSequenceSummary(transformers.OpenAIGPTConfig.from_dict(config.to_dict())).eval()
    theirs.load_state_dict(ours.state_dict())
    states, index = torch.randn(3, 7, 32), torch.tensor([0, 6, 3])
    same(ours(states), theirs(states))
    same(ours(states, index), theirs(states, index))


@pytest.mark.parametrize("pad", [None, 7, 61])
def test_sequence_classification_finds_the_last_token(pair: Any, same: Any, pad: int | None) -> None:
    ours, theirs = pair("OpenAIGPTForSequenceClassification", num_labels=3, pad_token_id=pad)
    ids = IDS[:1] if pad is None else IDS
    got = ours(ids, **ALL)
    same(got, theirs(ids, **ALL))
    assert type(got).__name__ == "SequenceClassifierOutput"
    embeds = torch.randn(ids.shape[0], 7, 32)
    same(ours(inputs_embeds=embeds), theirs(inputs_embeds=embeds))


PROBLEMS = {
    "one number": (1, None, torch.tensor([0.5, -1.0, 2.0])),
    "one number in a column": (1, "regression", torch.tensor([[0.5], [-1.0], [2.0]])),
    "numbers": (4, "regression", torch.tensor([[0.5, 1, -1, 0], [1, 2, 3, 4], [-1, 0, 0, 0.1]])),
    "classes": (4, None, torch.tensor([0, 3, 1])),
    "classes said": (4, "single_label_classification", torch.tensor([2, -100, 1])),
    "many classes": (4, None, torch.tensor([[0.0, 1, 1, 0], [1, 0, 0, 0], [1, 1, 1, 1]])),
    "many classes said": (4, "multi_label_classification", torch.tensor([[0.0, 1, 1, 0], [1, 0, 0, 0], [1, 1, 1, 1]])),
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_problem_types(pair: Any, same: Any, name: str) -> None:
    labels_count, problem, labels = PROBLEMS[name]
    fields = {"num_labels": labels_count, "pad_token_id": 98, "problem_type": problem}
    ours, theirs = pair("OpenAIGPTForSequenceClassification", **fields)
    same(ours(IDS, labels=labels), theirs(IDS, labels=labels))
    assert ours.config.problem_type == theirs.config.problem_type  # found once, then kept
    same(ours(IDS, labels=labels, return_dict=False), theirs(IDS, labels=labels, return_dict=False))


def test_the_classification_head_passes_its_inputs_on(pair: Any, same: Any) -> None:
    ours, theirs = pair("OpenAIGPTForSequenceClassification", pad_token_id=98)
    mask = torch.ones_like(IDS)
    mask[1, 4:] = 0
    given = {"attention_mask": mask, "token_type_ids": IDS, "position_ids": torch.arange(7)[None] + 3}
    same(ours(IDS, **given), theirs(IDS, **given))
    same(ours(inputs_embeds=torch.ones(1, 4, 32)), theirs(inputs_embeds=torch.ones(1, 4, 32)))
