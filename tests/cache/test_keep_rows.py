"""`keep_rows` leaves what `batch_select_indices` leaves, without touching the rows that stay where they are."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch

from quintet.cache import (
    Cache,
    DynamicCache,
    EncoderDecoderCache,
    Int8Cache,
    OffloadedCache,
    QuantizedCache,
    StaticCache,
)
from quintet.models.gpt_oss import GptOssConfig

CONFIG = GptOssConfig(
    num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2, head_dim=8, sliding_window=6, hidden_size=16
)

STORES: dict[str, Callable[[], Cache]] = {
    "dynamic": DynamicCache,
    "windows": lambda: DynamicCache(config=CONFIG),
    "offloaded": OffloadedCache,
    "quantized": lambda: QuantizedCache(config=CONFIG, residual_length=4),
    "int8": lambda: Int8Cache(config=CONFIG),
    "static": lambda: StaticCache(CONFIG, max_cache_len=64),
    "encoder-decoder": lambda: EncoderDecoderCache(DynamicCache(), DynamicCache()),
}


def tokens(count: int, rows: int = 6, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, 2, count, 8, generator=torch.Generator().manual_seed(seed))


def everything(cache: Cache, rows: int) -> list[torch.Tensor]:
    """Write one more token and return what attention sees."""
    return [part for layer in range(2) for part in cache.update(tokens(1, rows, 8), tokens(1, rows, 9), layer)]


@pytest.mark.parametrize("steps", [[3], [3, 1, 1], [3, 1, 30], [3, 1, 30, 1], [20, 1]], ids=str)
@pytest.mark.parametrize("store", STORES)
def test_the_rows_that_are_kept(store: str, steps: list[int]) -> None:
    cache = STORES[store]()
    for number, count in enumerate(steps):
        for layer in range(2):
            cache.update(tokens(count, seed=number), tokens(count, seed=number + 50), layer)
    if isinstance(cache, EncoderDecoderCache):
        cache.cross_attention_cache.update(tokens(4), tokens(4), 0)
    for rows in ([0, 5, 2, 4], [0, 1], [0, 1], [1]):  # moved, kept as they are, the same again, one alone
        index = torch.tensor(rows)
        other = copy.deepcopy(cache)
        other.batch_select_indices(index)
        cache.keep_rows(index)
        assert cache.get_seq_length() == other.get_seq_length()
        for mine, selected in zip(
            everything(copy.deepcopy(cache), len(rows)), everything(other, len(rows)), strict=True
        ):
            torch.testing.assert_close(mine, selected, rtol=0, atol=0)
        if isinstance(cache, EncoderDecoderCache) and len(rows) == 4:
            assert torch.equal(cache.cross_attention_cache[0][0], tokens(4)[index])


def test_the_memory_stays_in_its_place() -> None:
    cache = DynamicCache()
    for count in (3, 1):
        cache.update(tokens(count), tokens(count), 0)
    before = cache[0][0].data_ptr()
    cache.keep_rows(torch.tensor([0, 5, 2]))
    assert cache[0][0].data_ptr() == before
    assert cache[0][0].shape == (3, 2, 4, 8)


def test_the_first_tensors_are_the_callers() -> None:
    cache, keys = DynamicCache(), tokens(3)
    cache.update(keys, keys, 0)
    cache.keep_rows(torch.tensor([5, 1]))
    assert torch.equal(keys, tokens(3))
