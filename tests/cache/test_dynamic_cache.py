"""The growing slab: what it returns, when it copies, and that it writes to no tensor but its own."""

from __future__ import annotations

import pytest
import torch

from quintet.cache import Cache, DynamicCache, DynamicLayer
from quintet.cache.dynamic_layers import MIN_GROWTH
from quintet.errors import InputError


def pair(tokens: int, rows: int = 2, start: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values (rows, 3, tokens, 4) in which every number says which token it belongs to."""
    place = torch.arange(start, start + tokens, dtype=torch.float32)[None, None, :, None]
    row = torch.arange(rows, dtype=torch.float32)[:, None, None, None] * 1000
    keys = (row + place).expand(rows, 3, tokens, 4).clone()
    return keys, -keys


def filled(tokens: int, rows: int = 2, layers: int = 2) -> DynamicCache:
    cache = DynamicCache()
    for layer in range(layers):
        cache.update(*pair(tokens, rows), layer)
    return cache


def test_update_returns_everything_so_far() -> None:
    cache, end = DynamicCache(), 0
    for tokens in (3, 1, 1, 5, 1):
        for layer in range(2):
            keys, values = cache.update(*pair(tokens, start=end), layer)
            assert keys.shape == values.shape == (2, 3, end + tokens, 4)
            assert torch.equal(keys, pair(end + tokens)[0])
            assert torch.equal(values, pair(end + tokens)[1])
        end += tokens
        assert cache.get_seq_length() == cache.get_seq_length(1) == end
    assert cache.get_seq_length(7) == 0
    assert cache.get_max_cache_shape() == -1
    assert len(cache) == 2


def test_a_token_is_written_in_place() -> None:
    cache = filled(5, layers=1)
    moves, last = 0, None
    for end in range(5, 2000):
        keys, values = cache.update(*pair(1, start=end), 0)
        where = (keys.data_ptr(), values.data_ptr())
        moves += where != last
        last = where
    assert moves < 15  # 1995 tokens: the slabs moved only when they grew
    assert torch.equal(cache[0][0], pair(2000)[0])


def test_room_grows_with_what_is_held() -> None:
    layer = DynamicLayer()
    layer.update(*pair(10))
    keys, _ = layer.update(*pair(1, start=10))
    assert keys.untyped_storage().nbytes() == 2 * 3 * (11 + MIN_GROWTH) * 4 * 4
    layer.update(*pair(1000, start=11))
    assert layer.keys is not None
    assert layer.keys.untyped_storage().nbytes() == 2 * 3 * (1011 + 505) * 4 * 4


def test_the_first_tensors_are_kept_as_they_came_and_never_written_to() -> None:
    keys, values = pair(6)
    cache = DynamicCache([(keys, values)])
    assert cache[0][0].data_ptr() == keys.data_ptr()
    cache.crop(3)
    cache.update(*pair(2, start=50), 0)
    assert torch.equal(keys, pair(6)[0])
    assert torch.equal(values, pair(6)[1])
    assert cache[0][0][0, 0, :, 0].tolist() == [0, 1, 2, 50, 51]


def test_crop() -> None:
    cache = filled(6)
    cache.crop(10)
    assert cache.get_seq_length() == 6
    cache.crop(-2)
    assert cache.get_seq_length() == cache.get_seq_length(1) == 4
    assert torch.equal(cache[1][0], pair(4)[0])
    cache.crop(1)
    keys, _ = cache.update(*pair(1, start=9), 0)
    assert keys[0, 0, :, 0].tolist() == [0, 9]
    cache.crop(-5)
    assert cache.get_seq_length() == 0


def test_rows() -> None:
    cache = filled(4, rows=3)
    cache.reorder_cache(torch.tensor([2, 0, 0]))
    assert cache[0][0][:, 0, 0, 0].tolist() == [2000, 0, 0]
    assert cache[1][1][:, 0, 3, 0].tolist() == [-2003, -3, -3]
    cache.batch_select_indices(torch.tensor([0, 1]))
    assert cache[0][0][:, 0, 0, 0].tolist() == [2000, 0]
    cache.batch_repeat_interleave(2)
    assert cache[0][0][:, 0, 0, 0].tolist() == [2000, 2000, 0, 0]
    assert cache.get_seq_length() == 4
    keys, _ = cache.update(*pair(1, rows=4, start=4), 0)
    assert keys.shape == (4, 3, 5, 4)


def test_choosing_rows_keeps_the_room() -> None:
    """A beam search chooses rows at every token; it must not grow the slab at every token as well."""
    cache = filled(4, layers=1)
    cache.update(*pair(1, start=4), 0)
    room = cache[0][0].untyped_storage().nbytes()
    for end in range(5, 60):
        cache.reorder_cache(torch.tensor([1, 0]))
        before = cache[0][0].data_ptr()
        keys, _ = cache.update(*pair(1, start=end), 0)
        assert keys.data_ptr() == before
        assert keys.untyped_storage().nbytes() == room


def test_the_tuple_form() -> None:
    cache = filled(4)
    legacy = cache.to_legacy_cache()
    assert isinstance(legacy, tuple)
    assert [len(layer) for layer in legacy] == [2, 2]
    back = DynamicCache.from_legacy_cache(legacy)
    assert back.get_seq_length() == 4
    assert torch.equal(back[1][0], cache[1][0])
    assert len(DynamicCache.from_legacy_cache(None)) == len(DynamicCache()) == 0
    assert DynamicCache().to_legacy_cache() == ()
    for keys, values in cache:
        assert keys.shape == values.shape == (2, 3, 4, 4)
    assert [k.shape[2] for k in cache.key_cache] == [v.shape[2] for v in cache.value_cache] == [4, 4]
    assert cache.layers[0].keys is not None


def test_layers_that_nothing_was_stored_in() -> None:
    cache = DynamicCache()
    cache.update(*pair(2), 2)
    assert [cache.get_seq_length(i) for i in range(4)] == [0, 0, 2, 0]
    with pytest.raises(IndexError, match="layer 1 of the cache is empty"):
        cache[1]
    cache.reorder_cache(torch.tensor([1, 0]))
    cache.crop(1)
    assert cache.layers[0].keys is cache.layers[0].values is None
    cache.reset()
    assert len(cache) == 0


def test_gradients() -> None:
    """Concatenated then, so that an earlier step's tensors are still what they were when they are differentiated."""
    first, second, third = (torch.randn(2, 3, n, 4, requires_grad=True) for n in (3, 1, 2))
    cache = DynamicCache()
    total = torch.zeros(())
    for part in (first, second, third):
        keys, values = cache.update(part, part * 2, 0)
        total = total + (keys * values).sum()
    total.backward()
    assert torch.allclose(first.grad, 3 * 4 * first.detach())
    assert torch.allclose(third.grad, 4 * third.detach())
    # values alone may need gradients
    cache = filled(3, layers=1)
    _, values = cache.update(pair(1)[0], second * 1, 0)
    _, after = cache.update(pair(1)[0], second * 1, 0)
    (values.sum() + after.sum()).backward()
    with torch.no_grad():  # and a step without them writes in place again
        cache.update(*pair(1), 0)
        where = cache[0][0].data_ptr()
        cache.update(*pair(1), 0)
        assert cache[0][0].data_ptr() == where


@pytest.mark.parametrize("first", [True, False], ids=["inference first", "inference later"])
def test_inference_mode(first: bool) -> None:
    cache = DynamicCache()
    modes = [torch.inference_mode, torch.no_grad] if first else [torch.no_grad, torch.inference_mode]
    end = 0
    for mode in [*modes, *modes]:
        with mode():
            for tokens in (2, 1):
                cache.update(*pair(tokens, start=end), 0)
                end += tokens
    assert torch.equal(cache[0][0], pair(12)[0])
    keys, _ = cache.update(torch.ones(2, 3, 1, 4, requires_grad=True) * 1, torch.ones(2, 3, 1, 4), 0)
    keys.sum().backward()


def test_what_does_not_fit_is_refused_and_nothing_is_stored() -> None:
    cache = filled(3, layers=1)
    for keys, words in (
        (torch.ones(5, 3, 1, 4), r"holds keys of \(rows, heads, head size\) = \(2, 3, 4\) and got \(5, 3, 4\)"),
        (torch.ones(2, 1, 1, 4), "batch_select_indices"),
        (torch.ones(2, 3, 1, 8), r"got \(2, 3, 8\)"),
        (torch.ones(2, 3, 1, 4, dtype=torch.float16), "torch.float32 on cpu and got torch.float16"),
    ):
        with pytest.raises(InputError, match=words):
            cache.update(keys, keys, 0)
    with pytest.raises(InputError, match=r"holds values of .* got \(2, 3, 9\)"):
        cache.update(torch.ones(2, 3, 1, 4), torch.ones(2, 3, 1, 9), 0)
    assert cache.get_seq_length() == 3


def test_the_contract_names_what_a_store_must_define() -> None:
    store = Cache()
    for call in (
        lambda: store.update(*pair(1), 0),
        store.get_seq_length,
        lambda: store.crop(1),
        lambda: store.reorder_cache(torch.tensor([0])),
        lambda: store.batch_repeat_interleave(1),
        store.reset,
    ):
        with pytest.raises(NotImplementedError, match="Cache must define"):
            call()
