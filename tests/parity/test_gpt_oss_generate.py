"""gpt-oss writes what the reference writes, past the original length too; and checkpoints go both ways."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from oss_runs import PROMPT, STRATEGIES, YARN, sharpen, written


@pytest.mark.parametrize("options", STRATEGIES, ids=str)
@pytest.mark.parametrize("window", [4, 64])
def test_tokens(pair: Any, window: int, options: dict[str, Any]) -> None:
    """300 tokens, past the window, the original 32 and the extended 128 positions."""
    ours, theirs = sharpen(*pair("GptOssForCausalLM", backend="sdpa", sliding_window=window, **YARN))
    got = written(ours, PROMPT, **options)
    assert got.shape == (2 * options.get("num_return_sequences", 1), 307)
    assert torch.equal(got, written(theirs, PROMPT, **options))
    assert len(got[0].unique()) > 10  # it does not write one word for ever


def test_tokens_without_a_cache(pair: Any) -> None:
    ours, theirs = sharpen(*pair("GptOssForCausalLM"))
    got = written(ours, PROMPT, max_new_tokens=60, use_cache=False)
    assert torch.equal(got, written(theirs, PROMPT, max_new_tokens=60))


def test_left_padded_prompts(pair: Any) -> None:
    ours, theirs = sharpen(*pair("GptOssForCausalLM"))
    mask = torch.tensor([[0, 0, 0, 1, 1, 1, 1], [1] * 7])
    options = {"attention_mask": mask, "max_new_tokens": 60}
    got = written(ours, PROMPT, **options)
    assert torch.equal(got, written(theirs, PROMPT, **options))
    assert torch.equal(got[0, 7:], written(ours, PROMPT[:1, 3:], max_new_tokens=60)[0, 4:])


def test_windows_in_left_padded_batches(pair: Any) -> None:
    """A row's window holds its own tokens: padding inside it is hidden, and leaves it as the text goes on."""
    ours, theirs = sharpen(*pair("GptOssForCausalLM", sliding_window=6, num_hidden_layers=4))
    mask = torch.tensor([[0, 0, 0, 0, 0, 0, 1], [0, 1, 1, 1, 1, 1, 1]])
    got = written(ours, PROMPT, attention_mask=mask, max_new_tokens=40)
    assert torch.equal(got, written(theirs, PROMPT, attention_mask=mask, max_new_tokens=40))
    for row, first in enumerate((6, 1)):
        alone = written(ours, PROMPT[row : row + 1, first:], max_new_tokens=40)
        assert torch.equal(got[row, 7:], alone[0, 7 - first :])


def test_every_cache_writes_the_same(pair: Any) -> None:
    import quintet

    ours, _ = sharpen(*pair("GptOssForCausalLM", **YARN))
    wanted = written(ours, PROMPT, max_new_tokens=80)
    for cache in (quintet.DynamicCache(), quintet.DynamicCache(config=ours.config)):
        assert torch.equal(written(ours, PROMPT, max_new_tokens=80, past_key_values=cache), wanted)
    fixed = quintet.StaticCache(config=ours.config, max_cache_len=90)
    assert torch.equal(written(ours, PROMPT, max_new_tokens=80, past_key_values=fixed), wanted)
    sliding = cache.layers[0].keys
    assert sliding is not None
    assert sliding.shape[2] == 3  # of a window of 4


def test_ends(pair: Any) -> None:
    ours, theirs = sharpen(*pair("GptOssForCausalLM"))
    ends = written(theirs, PROMPT)[:, 15:18].flatten().tolist()
    for options in ({"eos_token_id": ends[0]}, {"eos_token_id": ends}, {"eos_token_id": ends, "min_new_tokens": 12}):
        got = written(ours, PROMPT, **options)
        assert torch.equal(got, written(theirs, PROMPT, **options))
        assert got.shape[1] < 307


NAMES = [
    "GptOssModel",
    "GptOssForCausalLM",
    "GptOssForSequenceClassification",
    "GptOssForTokenClassification",
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("tied", [False, True])
def test_checkpoints_go_both_ways(
    pair: Any, same: Any, transformers: Any, tmp_path: Path, name: str, tied: bool
) -> None:
    import quintet

    ours, theirs = pair(name, tie_word_embeddings=tied, num_hidden_layers=3, **YARN)
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

    ours, _ = pair("GptOssForCausalLM")
    ours.save_pretrained(tmp_path)
    wanted = ours.model(PROMPT).last_hidden_state
    for name in NAMES:
        model = getattr(quintet, name).from_pretrained(tmp_path)
        same(model.base_model(PROMPT).last_hidden_state, wanted)
