"""The other heads of gpt-oss and Seed-OSS give what the reference gives: scores and losses."""

from __future__ import annotations

from typing import Any

import pytest
import torch

IDS = torch.tensor([[5, 17, 3, 88, 42, 9, 61], [70, 2, 33, 4, 90, 12, 8], [11, 2, 3, 4, 5, 6, 7]])
PADDING = {"GptOss": 97, "SeedOss": 1}
ALL = {"output_hidden_states": True, "output_attentions": True}

PROBLEMS: dict[str, tuple[dict[str, Any], torch.Tensor]] = {
    "regression": ({"num_labels": 1}, torch.tensor([0.3, -2.0, 1.0])),
    "regressions": ({"num_labels": 2, "problem_type": "regression"}, torch.randn(3, 2)),
    "single": ({"num_labels": 4}, torch.tensor([0, 3, 1])),
    "single-ignored": ({"num_labels": 4}, torch.tensor([0, -100, 1])),
    "multi": ({"num_labels": 3}, torch.tensor([[0.0, 1, 1], [1, 0, 0], [0, 0, 0]])),
}


def padded(family: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens with padding on either side, and their mask."""
    token = PADDING[family]
    ids = torch.tensor([[5, 17, 3, 88, token, token, token], [70, 2, 33, 4, 90, 12, 8], [token, token, 3, 4, 5, 6, 7]])
    return ids, (ids != token).long()


@pytest.mark.parametrize("family", PADDING)
@pytest.mark.parametrize("problem", PROBLEMS)
def test_sequence_classification(pair: Any, same: Any, family: str, problem: str) -> None:
    fields, labels = PROBLEMS[problem]
    ours, theirs = pair(f"{family}ForSequenceClassification", **fields)
    same(ours(IDS, labels=labels, **ALL), theirs(IDS, labels=labels, **ALL))
    ids, mask = padded(family)
    given = {"labels": labels, "attention_mask": mask, "position_ids": torch.arange(7)[None]}
    same(ours(ids, **given), theirs(ids, **given))
    assert ours.config.problem_type == theirs.config.problem_type
    got = ours(IDS, return_dict=False, use_cache=False)
    assert len(got) == 1
    same(got[0], theirs(IDS).logits)


@pytest.mark.parametrize("family", PADDING)
def test_sequence_classification_without_ids_or_padding(pair: Any, same: Any, family: str) -> None:
    ours, theirs = pair(f"{family}ForSequenceClassification")
    embeds = torch.randn(3, 7, 32)
    same(ours(inputs_embeds=embeds), theirs(inputs_embeds=embeds))
    ours, theirs = pair(f"{family}ForSequenceClassification", pad_token_id=None)
    same(ours(IDS[:1]), theirs(IDS[:1]))
    with pytest.raises(ValueError, match=r"3 rows needs to know its padding token, and config.pad_token_id is None"):
        ours(IDS)


@pytest.mark.parametrize("family", PADDING)
@pytest.mark.parametrize("fields", [{}, {"num_labels": 5}, {"classifier_dropout": 0.3}], ids=str)
def test_token_classification(pair: Any, same: Any, family: str, fields: dict[str, Any]) -> None:
    ours, theirs = pair(f"{family}ForTokenClassification", **fields)
    labels = IDS % 2
    labels[0, 2:4] = -100
    same(ours(IDS, labels=labels, **ALL), theirs(IDS, labels=labels, **ALL))
    same(ours(IDS), theirs(IDS))
    assert ours.dropout.p == theirs.dropout.p


def test_question_answering(pair: Any, same: Any) -> None:
    ours, theirs = pair("SeedOssForQuestionAnswering")
    places = {"start_positions": torch.tensor([1, 0, 6]), "end_positions": torch.tensor([4, 5, 99])}
    for given in ({}, places, {name: place[:, None] for name, place in places.items()}, {**places, **ALL}):
        same(ours(IDS, **given), theirs(IDS, **given))
    ids, mask = padded("SeedOss")
    positions = torch.arange(7)[None]
    given = {"attention_mask": mask, "position_ids": positions, **places}
    got, wanted = ours(ids, **given), theirs(ids, **given)
    same(got.start_logits[mask.bool()], wanted.start_logits[mask.bool()])
    same(ours(inputs_embeds=torch.ones(1, 3, 32)), theirs(inputs_embeds=torch.ones(1, 3, 32)))


def test_router_logits_are_kept_from_the_heads(pair: Any, same: Any) -> None:
    """Both take the option and return no scores: the heads' records have no field for them."""
    for name in ("GptOssForSequenceClassification", "GptOssForTokenClassification"):
        ours, theirs = pair(name)
        got = ours(IDS, output_router_logits=True)
        same(got, theirs(IDS, output_router_logits=True))
        assert "router_logits" not in got


@pytest.mark.parametrize("family", PADDING)
def test_classification_continues_a_cache(pair: Any, same: Any, family: str) -> None:
    """The scores of the last part of a text are those of the whole text."""
    ours, theirs = pair(f"{family}ForSequenceClassification")
    first = ours(IDS[:, :4], use_cache=True)
    same(ours(IDS[:, 4:], past_key_values=first.past_key_values).logits, theirs(IDS).logits)
