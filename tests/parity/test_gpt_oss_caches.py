"""gpt-oss with a cache gives what the reference gives, and stores what it stores."""

from __future__ import annotations

from typing import Any

import pytest
import torch

IDS = torch.tensor([[5, 17, 3, 88, 42, 9, 61], [70, 2, 33, 4, 90, 12, 8]])

LONG = torch.randint(2, 96, (2, 150), generator=torch.Generator().manual_seed(4))

FULL, SLIDING = "full_attention", "sliding_attention"


def same_caches(same: Any, got: Any, wanted: Any, layers: int) -> None:
    for layer in range(layers):
        same(got.layers[layer].keys, wanted.layers[layer].keys, where=f"keys {layer}")
        same(got.layers[layer].values, wanted.layers[layer].values, where=f"values {layer}")


def test_a_mask_for_each_kind_of_layer_with_a_cache(pair: Any, same: Any) -> None:
    """A sliding layer's mask may be over the keys that the layer keeps, as the reference makes them."""
    ours, theirs = pair("GptOssForCausalLM", sliding_window=3)
    mine, other = ours(IDS[:, :5]).past_key_values, theirs(IDS[:, :5], use_cache=True).past_key_values
    least = torch.finfo(torch.float32).min
    full = torch.tensor([0, 0, 0, 0, 0, 0, least, 0, 0, 0, 0, 0, 0, 0]).view(1, 1, 2, 7)
    band = torch.tensor([0, 0, 0, least, least, 0, 0, 0]).view(1, 1, 2, 4)  # the two kept ones, and two new
    added = {FULL: full, SLIDING: band}
    got, wanted = (
        model(IDS[:, 5:], attention_mask=added, past_key_values=past) for model, past in ((ours, mine), (theirs, other))
    )
    same(got.logits, wanted.logits)
    same(got.logits, ours(IDS).logits[:, 5:])


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize("window", [2, 3, 4, 6, 50])
@pytest.mark.parametrize("parts", [[1] * 7, [3, 4], [5, 1, 1], [2, 3, 2]], ids=str)
def test_caches_in_parts(pair: Any, same: Any, backend: str, window: int, parts: list[int]) -> None:
    """Sliding layers keep `window - 1` tokens, as the reference's do."""
    ours, theirs = pair("GptOssForCausalLM", backend=backend, num_hidden_layers=4, sliding_window=window)
    whole = ours(IDS).logits
    mine = other = None
    end = 0
    for part in IDS.split(parts, dim=1):
        start, end = end, end + part.shape[1]
        got = ours(part, past_key_values=mine, output_router_logits=True)
        wanted = theirs(part, past_key_values=other, use_cache=True, output_router_logits=True)
        same(got, wanted)
        same(got.logits, whole[:, start:end])
        mine, other = got.past_key_values, wanted.past_key_values
        assert mine.get_seq_length() == other.get_seq_length() == end
        same_caches(same, mine, other, 4)


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_a_window_of_one_with_a_cache(pair: Any, same: Any, backend: str) -> None:
    """Nothing is kept. The reference keeps everything there (its slice from -0), so only its whole text is right."""
    ours, theirs = pair("GptOssForCausalLM", backend=backend, num_hidden_layers=4, sliding_window=1)
    wanted, past = theirs(IDS, use_cache=False).logits, None
    for start, end in ((0, 3), (3, 4), (4, 5), (5, 7)):
        got = ours(IDS[:, start:end], past_key_values=past)
        same(got.logits, wanted[:, start:end])
        past = got.past_key_values
        assert past.layers[0].keys.shape[2] == 0
        assert past.layers[1].keys.shape[2] == end


ROPES: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 3.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "truncate": False},
}


@pytest.mark.parametrize("kind", ROPES)
def test_a_cache_past_the_window_and_the_original_length(pair: Any, same: Any, kind: str) -> None:
    ours, theirs = pair(
        "GptOssForCausalLM", backend="sdpa", sliding_window=9, rope_parameters={**ROPES[kind], "rope_theta": 700.0}
    )
    mine = other = None
    for part in LONG.split([60, 3, 1, 1, 1, 40, 44], dim=1):
        got = ours(part, past_key_values=mine)
        wanted = theirs(part, past_key_values=other, use_cache=True)
        same(got.logits, wanted.logits)
        mine, other = got.past_key_values, wanted.past_key_values
        same_caches(same, mine, other, 2)


def test_a_cache_that_keeps_everything_gives_the_same(pair: Any, same: Any) -> None:
    import quintet

    ours, _ = pair("GptOssForCausalLM", num_hidden_layers=4, sliding_window=3)
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 0]])
    whole = ours(IDS, attention_mask=mask).logits
    for cache in (quintet.DynamicCache(), quintet.DynamicCache(config=ours.config)):
        for start, end in ((0, 4), (4, 5), (5, 7)):
            got = ours(IDS[:, start:end], attention_mask=mask[:, :end], past_key_values=cache).logits
            keep = mask[:, start:end].bool()
            same(got[keep], whole[:, start:end][keep])
