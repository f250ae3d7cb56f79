"""Keys that live in the CPU's memory: the same numbers, whatever is done between two updates."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from quintet.cache import Cache, DynamicCache, OffloadedCache, StaticCache, offloaded
from quintet.errors import InputError

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
CONFIG = SimpleNamespace(
    num_hidden_layers=3, layer_types=["sliding_attention", "full_attention", "full_attention"], sliding_window=4
)


@pytest.fixture
def moving(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Treat the CPU as a device of its own, so that slabs really are copied; returns the copies, in order."""
    copies: list[str] = []
    to_device, to_host = offloaded.Transport.to_device, offloaded.Transport.to_host

    def there(self: offloaded.Transport, pair: offloaded.Pair, used: int, device: torch.device) -> offloaded.Pair:
        copies.append(f"to device {used}")
        return to_device(self, pair, used, device)

    def back(self: offloaded.Transport, pair: offloaded.Pair, host: offloaded.Pair, begin: int, end: int) -> None:
        copies.append(f"to host {begin}-{end}")
        to_host(self, pair, host, begin, end)

    monkeypatch.setattr(offloaded, "worth_moving", lambda device: True)
    monkeypatch.setattr(offloaded.Transport, "to_device", there)
    monkeypatch.setattr(offloaded.Transport, "to_host", back)
    return copies


def run(cache: Cache, device: str = "cpu") -> list[torch.Tensor]:
    """Chunks, crops and changes of rows; returns everything the cache returned."""
    torch.manual_seed(1)
    found: list[torch.Tensor] = []

    def feed(tokens: int, rows: int) -> None:
        for layer in range(3):
            x = torch.randn(rows, 2, tokens, 4).to(device)
            found.extend(tensor.cpu().clone() for tensor in cache.update(x, -x, layer))

    for tokens in (3, 1, 1, 12, 1):
        feed(tokens, 2)
    cache.crop(-1)
    feed(2, 2)
    cache.reorder_cache(torch.tensor([1, 0], device=device))
    feed(1, 2)
    cache.batch_repeat_interleave(2)
    feed(1, 4)
    cache.batch_select_indices(torch.tensor([0, 2, 3], device=device))
    cache.crop(cache.get_seq_length() - 1)
    feed(1, 3)
    for keys, values in cache:  # type: ignore[attr-defined]
        found += [keys.cpu(), values.cpu()]
    return found


def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> None:
    assert len(one) == len(other)
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("config", [None, CONFIG], ids=["lazy", "windows"])
@pytest.mark.parametrize("inference", [False, True], ids=["no_grad", "inference"])
def test_the_same_numbers(moving: list[str], config: object, inference: bool) -> None:
    with torch.inference_mode() if inference else torch.no_grad():
        same(run(OffloadedCache(config=config)), run(DynamicCache(config=config)))
    assert moving


@pytest.mark.parametrize("only_full", [False, True])
def test_windows_may_stay(moving: list[str], only_full: bool) -> None:
    cache = DynamicCache(config=CONFIG, offloading=True, offload_only_non_sliding=only_full)
    same(run(cache), run(DynamicCache(config=CONFIG)))
    assert [isinstance(layer, offloaded.OffloadedLayer) for layer in cache.layers] == [not only_full, True, True]
    assert cache.is_sliding == [True, False, False]


def test_a_static_cache_too(moving: list[str]) -> None:
    cache = StaticCache(CONFIG, 32, offloading=True, offload_only_non_sliding=False)
    same(run(cache), run(StaticCache(CONFIG, 32)))
    assert not cache.is_compileable
    assert cache.get_max_cache_shape() == 32
    early = StaticCache(CONFIG, 32, offloading=True)
    early.early_initialization(2, 2, 4, torch.float32, "cpu")
    same(run(early), run(StaticCache(CONFIG, 32)))


def test_only_new_tokens_go_back_and_the_next_layer_comes_early(moving: list[str]) -> None:
    cache = OffloadedCache()
    for layer in range(2):
        cache.update(torch.ones(1, 1, 5, 2), torch.ones(1, 1, 5, 2), layer)
    cache.update(torch.ones(1, 1, 1, 2), torch.ones(1, 1, 1, 2), 0)  # grows: everything goes back once
    cache.update(torch.ones(1, 1, 1, 2), torch.ones(1, 1, 1, 2), 1)
    moving.clear()
    for layer in range(2):
        cache.update(torch.ones(1, 1, 1, 2), torch.ones(1, 1, 1, 2), layer)
    assert moving == ["to host 6-7", "to device 6", "to host 6-7", "to device 7"]


def test_what_was_brought_early_is_dropped_when_it_changes(moving: list[str]) -> None:
    cache = OffloadedCache()
    x = torch.arange(2.0)[:, None, None, None].expand(2, 1, 3, 2)
    for layer in range(2):
        cache.update(x, x, layer)  # after the last layer the first is on its way again
    cache.reorder_cache(torch.tensor([1, 1]))
    keys, _ = cache.update(x, x, 0)
    assert keys[:, 0, :, 0].tolist() == [[1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 1]]


def test_it_resets_and_has_a_tuple_form(moving: list[str]) -> None:
    cache = OffloadedCache(config=CONFIG)
    for layer in range(3):
        cache.update(torch.ones(1, 1, 3, 2), torch.ones(1, 1, 3, 2), layer)
    assert [[t.shape[2] for t in pair] for pair in cache.to_legacy_cache()] == [[3, 3]] * 3
    cache.reset()
    assert cache.get_seq_length() == 0
    assert cache.to_legacy_cache() == ()
    again = OffloadedCache([(torch.ones(1, 1, 3, 2), torch.ones(1, 1, 3, 2))])
    assert again.get_seq_length() == 3
    assert again.get_mask_sizes(2, 0) == (5, 0)


def test_no_gradients(moving: list[str]) -> None:
    x = torch.ones(1, 1, 3, 2, requires_grad=True)
    with pytest.raises(InputError, match="an offloaded cache moves what it stores, so no gradient"):
        OffloadedCache().update(x, x, 0)


def test_on_a_cpu_there_is_nothing_to_move() -> None:
    """Gradients flow there as in any DynamicCache, and no tensor is copied."""
    x = torch.ones(1, 1, 3, 2, requires_grad=True)
    cache = OffloadedCache()
    keys, _ = cache.update(x, x, 0)
    assert keys is x
    keys, _ = cache.update(x, x, 0)
    keys.sum().backward()
    assert x.grad is not None
    same(run(OffloadedCache()), run(DynamicCache()))


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("config", [None, CONFIG], ids=["lazy", "windows"])
def test_the_same_numbers_on_a_gpu(config: object) -> None:
    with torch.no_grad():
        cache = OffloadedCache(config=config)
        same(run(cache, "cuda"), run(DynamicCache(config=config)))
    assert all(keys.device.type == "cpu" for keys, _ in cache)


@pytest.mark.gpu
@needs_gpu
def test_the_gpu_holds_two_layers_at_most() -> None:
    size, layers = 8 * 1024 * 1024, 16
    x = torch.zeros(1, 8, size // 4 // 8 // 64, 64, device="cuda")  # 8 MiB of keys
    one = torch.zeros(1, 8, 1, 64, device="cuda")
    cache = OffloadedCache()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    with torch.no_grad():
        for tokens in (x, one, one):
            for layer in range(layers):
                cache.update(tokens, tokens, layer)
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() - before < 4 * 2 * size
