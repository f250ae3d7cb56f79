"""The pair of caches of a decoder with cross-attention, and the forms in which `past_key_values` may come."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from quintet.cache import Cache, DynamicCache, EncoderDecoderCache, StaticCache, as_cache
from quintet.errors import InputError


def states(tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(2, 3, tokens, 4), torch.randn(2, 3, tokens, 4)


@pytest.fixture
def cache() -> EncoderDecoderCache:
    both = EncoderDecoderCache(DynamicCache(), DynamicCache())
    for layer in range(2):
        both.update(*states(4), layer)
        both.cross_attention_cache.update(*states(6), layer)
        both.is_updated[layer] = True
    return both


def test_tokens_and_encoder_states_are_apart(cache: EncoderDecoderCache) -> None:
    assert cache.get_seq_length() == 4
    assert cache.cross_attention_cache.get_seq_length() == 6
    cache.crop(2)
    assert cache.get_seq_length() == 2
    assert cache.cross_attention_cache.get_seq_length() == 6
    assert len(cache) == 2


def test_rows_of_both_are_chosen(cache: EncoderDecoderCache) -> None:
    tokens, encoder = (store[0][0].clone() for store in (cache.self_attention_cache, cache.cross_attention_cache))
    cache.reorder_cache(torch.tensor([1, 0]))
    assert torch.equal(cache.self_attention_cache[0][0], tokens.flip(0))
    assert torch.equal(cache.cross_attention_cache[0][0], encoder.flip(0))
    cache.batch_repeat_interleave(3)
    cache.batch_select_indices(torch.tensor([0]))
    assert cache.self_attention_cache[0][0].shape[0] == cache.cross_attention_cache[0][0].shape[0] == 1


def test_filled_encoder_states_are_known(cache: EncoderDecoderCache) -> None:
    again = EncoderDecoderCache(cache.self_attention_cache, cache.cross_attention_cache)
    assert again.is_updated == {0: True, 1: True}
    again.reset()
    assert again.is_updated == {}
    assert again.get_seq_length() == again.cross_attention_cache.get_seq_length() == 0


def test_the_tuple_form(cache: EncoderDecoderCache) -> None:
    legacy = cache.to_legacy_cache()
    assert [[t.shape[2] for t in layer] for layer in legacy] == [[4, 4, 6, 6]] * 2
    back = EncoderDecoderCache.from_legacy_cache(legacy)
    assert torch.equal(back.cross_attention_cache[1][1], cache.cross_attention_cache[1][1])
    assert back.is_updated == {0: True, 1: True}
    young = EncoderDecoderCache(cache.self_attention_cache, DynamicCache())
    assert [len(layer) for layer in young.to_legacy_cache()] == [2, 2]
    assert EncoderDecoderCache.from_legacy_cache(young.to_legacy_cache()).is_updated == {}
    with pytest.raises(InputError, match="only a pair of DynamicCache has a tuple form"):
        EncoderDecoderCache(Cache(), DynamicCache()).to_legacy_cache()


def test_every_form_that_is_taken(cache: EncoderDecoderCache) -> None:
    assert as_cache(None) is None
    assert as_cache(cache) is cache
    assert isinstance(as_cache(()), DynamicCache)
    two = as_cache(cache.self_attention_cache.to_legacy_cache())
    assert isinstance(two, DynamicCache)
    assert two.get_seq_length() == 4
    assert isinstance(as_cache([list(layer) for layer in two]), DynamicCache)
    four = as_cache(cache.to_legacy_cache())
    assert isinstance(four, EncoderDecoderCache)
    assert four.cross_attention_cache.get_seq_length() == 6


def test_the_pair_answers_for_its_tokens(cache: EncoderDecoderCache) -> None:
    assert cache.get_mask_sizes(2, 0) == (6, 0)
    assert cache.past() == 4
    assert cache.get_max_cache_shape() == -1
    assert not cache.is_compileable
    config = SimpleNamespace(num_hidden_layers=2, layer_types=None, sliding_window=None)
    fixed = EncoderDecoderCache(StaticCache(config, 8), cache.cross_attention_cache)
    assert fixed.is_compileable
    assert fixed.get_mask_sizes(2, 0) == (8, 0)
    assert fixed.get_max_cache_shape() == fixed.get_max_cache_shape(1) == 8
    assert fixed.past().shape == ()  # type: ignore[union-attr]
    for layer in range(2):
        fixed.update(*states(3), layer)
    assert [[t.shape[2] for t in layer] for layer in fixed.to_legacy_cache()] == [[3, 3, 6, 6]] * 2
    assert len(fixed) == 2


def test_tuples_that_do_not_belong_together(cache: EncoderDecoderCache) -> None:
    four, two = cache.to_legacy_cache(), cache.self_attention_cache.to_legacy_cache()  # type: ignore[attr-defined]
    with pytest.raises(InputError, match="layer 1 of past_key_values has 2 tensors and layer 0 4"):
        as_cache((four[0], two[1]))
    with pytest.raises(InputError, match=r"layer 0 .* keys of shape \(2, 3, 4, 4\) and values of shape \(2, 3, 5, 4\)"):
        as_cache(((states(4)[0], states(5)[1]),))


@pytest.mark.parametrize(
    "value", [3, "x", (None, None), ((torch.ones(2),),), [(torch.ones(1, 1), torch.ones(1, 1))], {"a": 1}], ids=repr
)
def test_every_other_form_is_refused(value: object) -> None:
    with pytest.raises(InputError, match=r"must be a Cache \(DynamicCache, \.\.\.\) or a tuple"):
        as_cache(value)
