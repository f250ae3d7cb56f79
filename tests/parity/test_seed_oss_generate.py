"""Seed-OSS writes what the reference writes, past the original length too; and checkpoints go both ways."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from oss_runs import PROMPT, STRATEGIES, YARN, sharpen, written


@pytest.mark.parametrize("options", STRATEGIES, ids=str)
@pytest.mark.parametrize("rope", [{}, YARN], ids=["default", "yarn"])
def test_tokens(pair: Any, rope: dict[str, Any], options: dict[str, Any]) -> None:
    """300 tokens, past the original 32 and the extended 128 positions."""
    ours, theirs = sharpen(*pair("SeedOssForCausalLM", backend="sdpa", their_backend="sdpa", **rope))
    got = written(ours, PROMPT, **options)
    assert got.shape == (2 * options.get("num_return_sequences", 1), 307)
    assert torch.equal(got, written(theirs, PROMPT, **options))
    assert len(got[0].unique()) > 10  # it does not write one word for ever


def test_tokens_without_a_cache(pair: Any) -> None:
    ours, theirs = sharpen(*pair("SeedOssForCausalLM"))
    got = written(ours, PROMPT, max_new_tokens=60, use_cache=False)
    assert torch.equal(got, written(theirs, PROMPT, max_new_tokens=60))


def test_left_padded_prompts(pair: Any) -> None:
    ours, theirs = sharpen(*pair("SeedOssForCausalLM"))
    mask = torch.tensor([[0, 0, 0, 1, 1, 1, 1], [1] * 7])
    options = {"attention_mask": mask, "max_new_tokens": 60}
    got = written(ours, PROMPT, **options)
    assert torch.equal(got, written(theirs, PROMPT, **options))
    assert torch.equal(got[0, 7:], written(ours, PROMPT[:1, 3:], max_new_tokens=60)[0, 4:])


def test_ends(pair: Any) -> None:
    ours, theirs = sharpen(*pair("SeedOssForCausalLM"))
    ends = written(theirs, PROMPT)[:, 15:18].flatten().tolist()
    for options in ({"eos_token_id": ends[0]}, {"eos_token_id": ends}, {"eos_token_id": ends, "min_new_tokens": 12}):
        got = written(ours, PROMPT, **options)
        assert torch.equal(got, written(theirs, PROMPT, **options))
        assert got.shape[1] < 307


NAMES = [
    "SeedOssModel",
    "SeedOssForCausalLM",
    "SeedOssForSequenceClassification",
    "SeedOssForTokenClassification",
    "SeedOssForQuestionAnswering",
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("tied", [False, True])
def test_checkpoints_go_both_ways(
    pair: Any, same: Any, transformers: Any, tmp_path: Path, name: str, tied: bool
) -> None:
    import quintet

    ours, theirs = pair(name, tie_word_embeddings=tied, mlp_bias=True, **YARN)
    wanted = ours(PROMPT)
    ours.save_pretrained(tmp_path / "ours")
    read, info = getattr(transformers, name).from_pretrained(
        tmp_path / "ours", attn_implementation="eager", output_loading_info=True
    )
    assert not any(info.values())
    same(read.eval()(PROMPT), wanted)
    theirs.save_pretrained(tmp_path / "theirs")
    back, info = getattr(quintet, name).from_pretrained(tmp_path / "theirs", output_loading_info=True)
    assert not any(info.values())
    same(back(PROMPT), wanted)
    sixteen = getattr(quintet, name).from_pretrained(tmp_path / "ours", dtype="bfloat16")
    assert {p.dtype for p in sixteen.parameters()} == {torch.bfloat16}


def test_a_base_model_becomes_each_head_and_back(pair: Any, same: Any, tmp_path: Path) -> None:
    import quintet

    ours, _ = pair("SeedOssForCausalLM")
    ours.save_pretrained(tmp_path)
    wanted = ours.model(PROMPT).last_hidden_state
    for name in NAMES:
        model = getattr(quintet, name).from_pretrained(tmp_path)
        same(model.base_model(PROMPT).last_hidden_state, wanted)
