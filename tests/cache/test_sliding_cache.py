"""Layers with a window in a growing cache: memory, moves, gradients, what a crop may ask for, and the configuration."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from quintet.cache import Cache, DynamicCache, DynamicLayer, DynamicSlidingLayer, DynamicSlidingWindowLayer, as_cache
from quintet.errors import ConfigError, InputError


def tokens(begin: int, end: int) -> torch.Tensor:
    """(1, 2, T, 4) in which every number is that of its token."""
    return torch.arange(begin, end, dtype=torch.float32)[None, None, :, None].expand(1, 2, -1, 4).clone()


def config(**changes: Any) -> Any:
    kinds = ["sliding_attention", "full_attention"]
    return SimpleNamespace(**{"num_hidden_layers": 2, "layer_types": kinds, "sliding_window": 4, **changes})


def fed(window: int, *chunks: int) -> DynamicSlidingLayer:
    layer = DynamicSlidingLayer(window)
    for count in chunks:
        layer.update(tokens(layer.length, layer.length + count), tokens(layer.length, layer.length + count))
    return layer


@pytest.mark.parametrize("first", [1, 5, 64, 1000])
def test_memory_is_bounded_and_moves_are_rare(first: int) -> None:
    window = 32
    layer, places = fed(window, first, 1), set()
    for _ in range(3000):
        at = layer.length
        keys, values = layer.update(tokens(at, at + 1), tokens(at, at + 1))
        assert keys.untyped_storage().nbytes() <= 2 * window * 2 * 4 * 4
        assert values.untyped_storage().nbytes() <= 2 * window * 2 * 4 * 4
        places.add((keys.data_ptr(), at))
    assert len({place for place, _ in places}) <= 2 * window
    assert layer.length == first + 3001
    assert layer.get_mask_sizes(1) == (window, first + 3001 - window + 1)


def test_a_long_prompt_does_not_stay() -> None:
    layer = fed(8, 1000)
    assert layer.keys is not None
    assert layer.keys.untyped_storage().nbytes() == 16 * 2 * 4 * 4
    assert layer.keys[0, 0, :, 0].tolist() == list(range(993, 1000))


def test_a_large_window_grows_as_it_needs() -> None:
    layer = fed(100_000, 5, 1)
    assert layer.keys is not None
    assert layer.keys.untyped_storage().nbytes() == (6 + 128) * 2 * 4 * 4


def test_the_first_tensors_are_never_written_to() -> None:
    keys = tokens(0, 6)
    layer = DynamicSlidingLayer(4)
    assert layer.update(keys, keys)[0] is keys
    layer.crop(4)
    layer.update(tokens(50, 52), tokens(50, 52))
    assert torch.equal(keys, tokens(0, 6))


def test_how_far_a_crop_may_go() -> None:
    layer = fed(4, 3, 1, 1, 20)
    with pytest.raises(InputError, match=r"from 25 to 22 tokens: a layer with a window of 4 .*go back to 23, or to 0"):
        layer.crop(22)
    with pytest.raises(InputError, match=r"use a DynamicCache\(\) made without a config"):
        layer.crop(-4)
    layer.crop(30)
    assert layer.length == 25
    layer.crop(23)  # within what is kept for it
    layer.crop(5)  # and the whole last update
    assert layer.length == 5
    keys, _ = layer.update(tokens(5, 6), tokens(5, 6))
    assert keys[0, 0, :, 0].tolist() == [2, 3, 4, 5]
    layer.crop(0)
    assert layer.update(tokens(0, 1), tokens(0, 1))[0].shape[2] == 1


def test_either_every_layer_is_cropped_or_none() -> None:
    cache = DynamicCache(config=config(layer_types=["full_attention", "sliding_attention"]))
    for end in (30, 31):
        for layer in range(2):
            at = cache.get_seq_length(layer)
            cache.update(tokens(at, end), tokens(at, end), layer)
    with pytest.raises(InputError, match="cannot be cropped from 31 to 9"):
        cache.crop(9)
    assert [cache.get_seq_length(layer) for layer in range(2)] == [31, 31]


def test_an_interrupted_step_is_undone() -> None:
    """Some layers have stored the token and some have not."""
    cache = DynamicCache(config=config())
    for layer in range(2):
        cache.update(tokens(0, 9), tokens(0, 9), layer)
    cache.update(tokens(9, 12), tokens(9, 12), 0)
    cache.crop(9)
    assert [cache.get_seq_length(layer) for layer in range(2)] == [9, 9]


def test_gradients_flow_through_a_window() -> None:
    parts = [torch.randn(1, 2, count, 4, requires_grad=True) for count in (3, 1, 2, 40, 1)]
    layer, total = DynamicSlidingLayer(4), torch.zeros(())
    for part in parts:
        keys, values = layer.update(part, part * 2)
        total = total + (keys * values).sum()
    total.backward()
    everything = torch.cat(parts, 2).detach()
    uses = torch.zeros(47)
    for begin, end in ((0, 3), (3, 4), (4, 6), (6, 46), (46, 47)):
        uses[max(0, begin - 3) : end] += 1
    gradient = torch.cat([part.grad for part in parts if part.grad is not None], 2)
    assert torch.allclose(gradient, 4 * everything * uses[None, None, :, None])


@pytest.mark.parametrize("first", [torch.inference_mode, torch.no_grad], ids=["inference first", "no_grad first"])
def test_inference_mode(first: Any) -> None:
    layer = DynamicSlidingLayer(4)
    other = torch.no_grad if first is torch.inference_mode else torch.inference_mode
    for mode in (first, other, first, other):
        with mode():
            for count in (2, 1, 1, 30):
                at = layer.length
                keys, _ = layer.update(tokens(at, at + count), tokens(at, at + count))
                assert keys[0, 0, :, 0].tolist() == list(range(max(0, at - 3), at + count))


def test_the_tuple_form_ends_when_keys_are_dropped() -> None:
    cache = DynamicCache(config=config())
    assert cache.to_legacy_cache() == ()
    for layer in range(2):
        cache.update(tokens(0, 3), tokens(0, 3), layer)
    legacy = cache.to_legacy_cache()
    assert [[t.shape[2] for t in pair] for pair in legacy] == [[3, 3], [3, 3]]
    again = as_cache(legacy)
    assert again is not None
    assert again.get_seq_length() == 3
    for layer in range(2):
        cache.update(tokens(3, 40), tokens(3, 40), layer)
    with pytest.raises(InputError, match="layer 0 has a window of 4 tokens and has dropped keys of the 40 .* no tuple"):
        cache.to_legacy_cache()
    assert [keys.shape[2] for keys, _ in cache] == [3, 40]


def test_the_configuration_says_which_layers_slide() -> None:
    cache = DynamicCache(config=config())
    assert [type(layer) for layer in cache.layers] == [DynamicSlidingLayer, DynamicLayer]
    assert cache.is_sliding == [True, False]
    assert [cache.get_max_cache_shape(layer) for layer in (0, 1, None, 9)] == [4, -1, -1, -1]
    assert DynamicSlidingWindowLayer is DynamicSlidingLayer
    assert DynamicCache(config=config(layer_types=None)).is_sliding == [True, True]
    assert DynamicCache(config=config(sliding_window=None)).is_sliding == [False, False]
    assert DynamicCache(config=config(layer_types=None, sliding_window=None)).is_sliding == [False, False]
    lazy = DynamicCache(config=SimpleNamespace())
    assert lazy.layers == []
    lazy.update(tokens(0, 1), tokens(0, 1), 3)
    assert len(lazy) == 4
    assert lazy.get_mask_sizes(2, 9) == (2, 0)
    assert not cache.is_compileable
    with pytest.raises(InputError, match="layer 2 was given to a cache of 2 layers"):
        cache.update(tokens(0, 1), tokens(0, 1), 2)
    cache.reset()
    assert len(cache) == 2


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sliding_window": 0}, "sliding_window is 0, but must be a whole number from 1"),
        ({"sliding_window": True}, "sliding_window is True"),
        ({"layer_types": ["full_attention"]}, "names 1 layers, but num_hidden_layers is 2"),
        ({"layer_types": ["full_attention", "sliding_atention"]}, "Did you mean 'sliding_attention'"),
        ({"layer_types": ["full_attention", 3]}, "holds 3; a cache knows"),
    ],
    ids=["zero", "bool", "count", "typo", "number"],
)
def test_configurations_that_cannot_be_read(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        DynamicCache(config=config(**changes))


@pytest.mark.parametrize("window", [0, -1, True, 2.0, None], ids=repr)
def test_windows_that_are_none(window: Any) -> None:
    with pytest.raises(InputError, match="sliding_window is .*, but must be a whole number from 1"):
        DynamicSlidingLayer(window)


def test_what_does_not_fit_is_refused() -> None:
    layer = fed(4, 9)
    with pytest.raises(InputError, match="batch_select_indices"):
        layer.update(torch.ones(2, 2, 1, 4), torch.ones(2, 2, 1, 4))
    with pytest.raises(InputError, match="torch.float32 on cpu and got torch.float16"):
        layer.update(tokens(0, 1), tokens(0, 1).half())
    assert layer.length == 9


def test_the_contract_counts_for_stores_that_say_nothing_else() -> None:
    class Seven(Cache):
        def get_seq_length(self, layer_idx: int = 0) -> int:
            return 7

    store = Seven()
    assert (store.past(), store.get_mask_sizes(2, 0), store.get_max_cache_shape()) == (7, (9, 0), -1)
    assert not store.is_compileable
