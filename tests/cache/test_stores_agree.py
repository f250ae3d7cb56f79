"""Every store against the plainest one, a concatenation and a window, through random chunks and changes."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quintet.cache import Cache, DynamicCache, Int8Cache, OffloadedCache, QuantizedCache, StaticCache
from quintet.errors import InputError

ROOM, HEADS, SIZE, LAYERS = 400, 2, 4, 3


def config(window: int) -> Any:
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    return SimpleNamespace(num_hidden_layers=LAYERS, layer_types=kinds, sliding_window=window)


# Each with whether its sliding layers drop keys.
STORES: dict[str, tuple[Callable[[int], Cache], bool]] = {
    "growing": (lambda window: DynamicCache(), False),
    "sliding": (lambda window: DynamicCache(config=config(window)), True),
    "offloaded": (lambda window: OffloadedCache(config=config(window)), True),
    "static": (lambda window: StaticCache(config(window), ROOM), True),
    "quantized": (lambda window: QuantizedCache(config=config(window), q_group_size=8, residual_length=5), True),
    "int8": (lambda window: Int8Cache(config=config(window)), True),
    "int8 growing": (lambda window: Int8Cache(), False),
}
# Those that return other numbers than they were given.
ROUNDED = ("quantized", "int8", "int8 growing")

ACTIONS = st.one_of(
    st.tuples(st.just("feed"), st.integers(1, 4)),
    st.tuples(st.just("feed"), st.integers(1, 90)),
    st.tuples(st.just("undo"), st.integers(0, 0)),
    st.tuples(st.just("crop"), st.integers(0, 100)),
    st.tuples(st.just("drop"), st.integers(1, 6)),
    st.tuples(st.just("reorder"), st.integers(0, 5)),
    st.tuples(st.just("repeat"), st.integers(2, 2)),
    st.tuples(st.just("select"), st.integers(0, 5)),
    st.tuples(st.just("reset"), st.integers(0, 0)),
)


class Plain:
    """Everything that was fed, in one tensor per layer."""

    def __init__(self, rows: int = 2) -> None:
        self.keys = [torch.zeros(rows, HEADS, 0, SIZE) for _ in range(LAYERS)]

    def change(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self.keys = [function(keys) for keys in self.keys]

    @property
    def shape(self) -> torch.Size:
        return self.keys[0].shape


def feed(cache: Cache, plain: Plain, tokens: int, window: int, close: float) -> None:
    """Append a chunk and look at what every new token may see of what comes back."""
    rows, past = plain.shape[0], plain.shape[2]
    for layer in range(LAYERS):
        new = torch.randn(rows, HEADS, tokens, SIZE)
        plain.keys[layer] = torch.cat([plain.keys[layer], new], 2)
        here = None if layer == 1 else window
        assert int(cache.past(layer)) == past
        count, offset = cache.get_mask_sizes(tokens, layer)
        offset = int(offset)
        keys, values = cache.update(new, -new, layer)
        assert keys.shape == values.shape == (rows, HEADS, count, SIZE)
        assert torch.equal(values, -keys) or close
        first = 0 if here is None else max(0, past - here + 1)  # what the first new token may see
        seen = keys[:, :, first - offset : past + tokens - offset]
        right = plain.keys[layer][:, :, first:]
        assert torch.equal(seen, right) if not close else (seen - right).abs().max() < close
        if offset < 0:  # places before the first token
            assert not keys[:, :, :-offset].any()


def crop(cache: Cache, plain: Plain, length: int, allowed: bool) -> None:
    """Crop to `length`; a store which refuses must stay as it is."""
    past = plain.shape[2]
    try:
        cache.crop(length)
    except InputError as error:
        assert allowed, error
        assert "cannot be cropped from" in str(error)
        assert [cache.get_seq_length(layer) for layer in range(LAYERS)] == [past] * LAYERS
        return
    plain.change(lambda keys: keys[:, :, :length])


@pytest.mark.parametrize("name", STORES)
@given(window=st.sampled_from([1, 2, 3, 7, 40]), actions=st.lists(ACTIONS, max_size=14), seed=st.integers(0, 99))
@settings(max_examples=100)
def test_a_store_is_a_concatenation(name: str, window: int, actions: list[tuple[str, int]], seed: int) -> None:
    torch.manual_seed(seed)
    make, drops = STORES[name]
    cache, plain, before = make(window), Plain(), 0
    close = 0.05 if name in ROUNDED else 0.0
    feed(cache, plain, 3, window, close)
    for action, number in actions:
        rows, past = plain.shape[0], plain.shape[2]
        if action == "feed" and past + number <= ROOM:
            feed(cache, plain, number, window, close)
            before = past
        elif action == "undo":
            crop(cache, plain, before, allowed=False)  # the last update can always be undone
        elif action == "crop":
            crop(cache, plain, past * number // 100, allowed=drops)
        elif action == "drop":
            crop(cache, plain, max(past - number, 0), allowed=drops)
        elif action == "repeat" and rows <= 4:
            cache.batch_repeat_interleave(number)
            plain.change(lambda keys: keys.repeat_interleave(2, 0))
        elif action in ("reorder", "select"):
            chosen = torch.randint(rows, (rows if action == "reorder" else 1 + number % rows,))
            (cache.reorder_cache if action == "reorder" else cache.batch_select_indices)(chosen)
            plain.change(lambda keys, chosen=chosen: keys[chosen])  # type: ignore[misc]
        elif action == "reset":
            cache.reset()
            plain, before = Plain(rows), 0  # a static cache keeps its memory
        before = min(before, plain.shape[2])
        assert cache.get_seq_length() == plain.shape[2]
    if action_room := min(5, ROOM - plain.shape[2]):
        feed(cache, plain, action_room, window, close)


@pytest.mark.parametrize("name", STORES)
@given(
    window=st.sampled_from([1, 2, 3, 7, 40]), chunks=st.lists(st.integers(1, 30), max_size=8), seed=st.integers(0, 99)
)
@settings(max_examples=60)
def test_only_the_newest_tokens_of_beams_move(name: str, window: int, chunks: list[int], seed: int) -> None:
    torch.manual_seed(seed)
    cache, plain = STORES[name][0](window), Plain()
    close = 0.05 if name in ROUNDED else 0.0
    feed(cache, plain, 5, window, close)
    cache.batch_repeat_interleave(3)
    plain.change(lambda keys: keys.repeat_interleave(3, 0))
    for tokens in chunks:
        feed(cache, plain, tokens, window, close)
        chosen = torch.cat([torch.randint(3, (3,)), torch.randint(3, 6, (3,))])  # of two prompts with three beams each
        same = (plain.keys[1] == plain.keys[1][chosen]).all(dim=3).all(dim=1).all(dim=0)  # (S,)
        newest = plain.shape[2] - int(same.long().cumprod(0).sum())
        cache.reorder_newest(chosen, newest)
        plain.change(lambda keys, chosen=chosen: keys[chosen])  # type: ignore[misc]
    feed(cache, plain, 3, window, close)


@given(window=st.integers(1, 9), chunks=st.lists(st.integers(1, 12), min_size=1, max_size=12))
@settings(max_examples=100)
def test_a_sliding_slab_shows_what_a_window_mask_shows(window: int, chunks: list[int]) -> None:
    """The visible keys of every query, by slot, from a growing slab with a mask and from slabs that drop keys."""
    growing, sliding, static = DynamicCache(), DynamicCache(config=config(window)), StaticCache(config(window), ROOM)
    past = 0
    for tokens in chunks:
        new = torch.arange(past, past + tokens, dtype=torch.float32)[None, None, :, None].expand(1, 1, -1, 2)
        shown = []
        for cache in (growing, sliding, static):
            count, offset = cache.get_mask_sizes(tokens, 0)
            keys, _ = cache.update(new, new, 0)
            slots = torch.arange(count) + offset  # (K,)
            query = torch.arange(past, past + tokens)[:, None]  # (T, 1)
            visible = (slots >= 0) & (slots <= query) & (query - slots < window)  # (T, K)
            shown.append([keys[0, 0, row, 0].tolist() for row in visible])
        assert shown[0] == shown[1] == shown[2]
        assert shown[0] == [list(range(max(0, at - window + 1), at + 1)) for at in range(past, past + tokens)]
        past += tokens
