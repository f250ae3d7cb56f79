"""Configurations mean what they mean to the reference, and its files are read as it reads them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

LABELS: list[dict[str, Any]] = [
    {},
    {"num_labels": 5},
    {"num_labels": 1},
    {"id2label": {0: "no", 1: "yes", 2: "perhaps"}},
    {"id2label": {"0": "no", "1": "yes"}},
    {"id2label": {0: "no", 1: "yes"}, "label2id": {"no": 0, "yes": 1}},
    {"num_labels": 2, "id2label": {0: "no", 1: "yes"}},
]


@pytest.mark.parametrize("fields", LABELS, ids=str)
def test_labels(transformers: Any, fields: dict[str, Any]) -> None:
    from quintet import GPT2Config

    ours, theirs = GPT2Config(**fields), transformers.GPT2Config(**fields)
    assert ours.num_labels == theirs.num_labels
    assert ours.id2label == theirs.id2label
    if "id2label" not in fields or "label2id" in fields:  # the reference leaves label2id as it was
        assert ours.label2id == theirs.label2id
    ours.num_labels = theirs.num_labels = 4
    assert (ours.id2label, ours.label2id) == (theirs.id2label, theirs.label2id)


def test_defaults(transformers: Any) -> None:
    from quintet import GPT2Config

    ours, theirs = GPT2Config().to_dict(), transformers.GPT2Config().to_dict()
    for name, value in theirs.items():
        if name in ours and name not in ("transformers_version", "architectures"):
            assert ours[name] == value, name


def test_files_go_both_ways(transformers: Any, tmp_path: Path) -> None:
    from quintet import GPT2Config

    fields = {"n_embd": 48, "n_head": 4, "n_layer": 3, "summary_type": "mean", "num_labels": 3, "pad_token_id": 5}
    fields |= {
        "bos_token_id": None,
        "eos_token_id": [1, 2],
        "scale_attn_by_inverse_layer_idx": True,
        "mine": {"a": [1]},
    }
    GPT2Config(**fields, dtype="bfloat16").save_pretrained(tmp_path / "ours")
    theirs = transformers.GPT2Config.from_pretrained(tmp_path / "ours")
    for name, value in fields.items():
        assert getattr(theirs, name) == value, name
    assert str(theirs.dtype) == "torch.bfloat16"
    theirs.save_pretrained(tmp_path / "theirs")
    again = GPT2Config.from_pretrained(tmp_path / "theirs")
    for name, value in fields.items():
        assert getattr(again, name) == value, name
    assert again.dtype == "bfloat16"
    assert json.loads((tmp_path / "theirs" / "config.json").read_text())["model_type"] == "gpt2"
