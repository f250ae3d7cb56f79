"""The cache of fixed shapes: compiled once for every length, and the same numbers as the growing one."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from quintet.cache import Cache, DynamicCache, StaticCache, StaticLayer, StaticSlidingWindowLayer
from quintet.cache.static_layers import SLACK
from quintet.errors import ConfigError, InputError

KINDS = ["sliding_attention", "full_attention"]
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def config(**changes: Any) -> Any:
    return SimpleNamespace(**{"num_hidden_layers": 2, "layer_types": KINDS, "sliding_window": 3, **changes})


def attend(cache: Cache, q: torch.Tensor, window: int | None, layer: int) -> torch.Tensor:
    """Softmax attention of (B, H, T, D) queries, which are their own keys and values, with the mask by slots."""
    past = cache.past(layer)
    count, offset = cache.get_mask_sizes(q.shape[2], layer)
    keys, values = cache.update(q, q + 1, layer)
    slots = torch.arange(count, device=q.device) + offset  # (K,)
    places = (torch.arange(q.shape[2], device=q.device) + past)[:, None]  # (T, 1)
    visible = (slots >= 0) & (slots <= places)
    if window is not None:
        visible = visible & (places - slots < window)
    scores = torch.matmul(q, keys.transpose(-1, -2)).masked_fill(~visible, -torch.inf)
    return torch.matmul(torch.softmax(scores, -1), values)


def step(cache: Cache, q: torch.Tensor) -> torch.Tensor:
    return attend(cache, attend(cache, q, 3, 0), None, 1)


@pytest.fixture
def one_program() -> Iterator[None]:
    """A second compilation of the same function is an error."""
    torch._dynamo.reset()
    with torch._dynamo.config.patch(error_on_recompile=True):
        yield
    torch._dynamo.reset()


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode], ids=["no_grad", "inference_mode"])
def test_a_compiled_step_is_one_program_for_every_length(one_program: None, backend: str, mode: Any) -> None:
    compiled = torch.compile(step, fullgraph=True, backend=backend)
    static, growing = StaticCache(config(), 24), DynamicCache(config=config())
    with mode():
        for tokens in (5, *[1] * 19):
            q = torch.randn(2, 2, tokens, 4)
            ours = (step if tokens > 1 else compiled)(static, q)
            assert torch.allclose(ours, step(growing, q), atol=1e-6)
    assert static.get_seq_length() == static.get_seq_length(1) == 24


def test_early_memory_lets_the_first_step_be_compiled(one_program: None) -> None:
    compiled = torch.compile(step, fullgraph=True, backend="eager")
    static, growing = StaticCache(config(), 24), DynamicCache()
    static.early_initialization(2, 2, 4, torch.float32, "cpu")
    with torch.no_grad():
        for _ in range(6):
            q = torch.randn(2, 2, 1, 4)
            assert torch.allclose(compiled(static, q), step(growing, q), atol=1e-6)


@pytest.mark.slow
def test_inductor_writes_in_place(one_program: None) -> None:
    compiled = torch.compile(step, fullgraph=True)
    static, growing = StaticCache(config(), 24), DynamicCache()
    with torch.no_grad():
        for tokens in (5, *[1] * 10):
            q = torch.randn(2, 2, tokens, 4)
            ours = (step if tokens > 1 else compiled)(static, q)
            assert torch.allclose(ours, step(growing, q), atol=1e-5)


@pytest.mark.gpu
@needs_gpu
def test_a_gpu_step_is_one_graph_and_never_waits(one_program: None) -> None:
    compiled = torch.compile(step, fullgraph=True, mode="reduce-overhead")
    static, growing = StaticCache(config(), 24), DynamicCache()
    with torch.no_grad():
        for count in (5, *[1] * 10):
            q = torch.randn(2, 2, count, 4, device="cuda")
            ours = (step if count > 1 else compiled)(static, q)
            assert torch.allclose(ours, step(growing, q), atol=1e-4)
        q = torch.randn(2, 2, 1, 4, device="cuda")
        torch.cuda.set_sync_debug_mode("error")
        try:
            step(static, q)
        finally:
            torch.cuda.set_sync_debug_mode("default")


def test_memory_is_made_once_and_stays() -> None:
    cache = StaticCache(config(), 8)
    assert not cache.layers[1].is_initialized  # type: ignore[attr-defined]
    x = torch.ones(2, 3, 2, 4)
    places = set()
    for _ in range(4):
        keys, values = cache.update(x, x, 1)
        assert keys.shape == values.shape == (2, 3, 8, 4)
        places.add(keys.data_ptr())
        cache.reorder_cache(torch.tensor([1, 0]))
    cache.crop(3)
    assert not keys[:, :, 3:].any()  # what is dropped cannot leave an infinity behind
    places.add(cache.update(x, x, 1)[0].data_ptr())
    cache.reset()
    assert not keys.any()
    places.add(cache.update(x, x, 1)[0].data_ptr())
    assert len(places) == 1
    cache.batch_repeat_interleave(2)
    assert cache[1][0].shape == (4, 3, 2, 4)


def test_past_is_a_number_of_its_own() -> None:
    cache = StaticCache(config(), 8)
    assert torch.equal(cache.past(), torch.tensor(0))
    cache.update(torch.ones(1, 1, 2, 4), torch.ones(1, 1, 2, 4), 0)
    past = cache.past()
    cache.update(torch.ones(1, 1, 2, 4), torch.ones(1, 1, 2, 4), 0)
    assert (int(past), int(cache.past()), int(cache.past(1))) == (2, 4, 0)
    assert isinstance(past, torch.Tensor)
    assert past.dtype == torch.int64
    assert past.dim() == 0


def test_what_it_says_of_itself() -> None:
    cache = StaticCache(config(), 8)
    assert [type(layer) for layer in cache.layers] == [StaticSlidingWindowLayer, StaticLayer]
    assert [cache.get_max_cache_shape(layer) for layer in (None, 0, 1)] == [8, 3, 8]
    assert cache.is_compileable
    assert cache.is_sliding == [True, False]
    assert cache.get_mask_sizes(2, 1) == (8, 0)
    count, offset = cache.get_mask_sizes(2, 0)
    assert (count, int(offset)) == (5, -3)
    # no more places than tokens, whatever the window
    assert StaticCache(config(sliding_window=100), 8).get_mask_sizes(2, 0)[0] == 10


def test_room() -> None:
    cache = StaticCache(config(), 6)
    x = torch.ones(1, 1, 4, 2)
    for layer in range(2):
        cache.update(x, x, layer)
    with pytest.raises(InputError, match=r"4 tokens .* holds 4 of at most 6 .*max_cache_len=8 or more"):
        cache.update(x, x, 1)
    assert cache.get_seq_length(1) == 4
    cache.crop(-2)
    assert cache.get_seq_length(1) == 2
    cache.update(x, x, 1)
    with torch.device("meta"):  # a device whose values nobody can look at
        other = StaticCache(config(), 6)
        ghost = torch.ones(1, 1, 4, 2)
    other.update(ghost, ghost, 1)
    with pytest.raises(InputError, match="holds 4 of at most 6"):
        other.update(ghost, ghost, 1)


def test_how_far_a_window_can_go_back() -> None:
    cache = StaticCache(config(), 400)
    x = torch.randn(1, 1, 300, 2)
    for chunk in (x[:, :, :100], x[:, :, 100:290], x[:, :, 290:]):
        for layer in range(2):
            cache.update(chunk, chunk, layer)
    with pytest.raises(InputError, match=r"cropped from 300 to 200 tokens: a layer with a window of 3"):
        cache.crop(200)
    assert [cache.get_seq_length(layer) for layer in range(2)] == [300, 300]
    cache.crop(300 - SLACK)
    assert torch.equal(cache[0][0], x[:, :, 300 - SLACK - 2 : 300 - SLACK])
    with pytest.raises(InputError, match="has dropped keys"):
        cache.crop(-5)


def test_rows_and_types_that_were_promised() -> None:
    x = torch.ones(2, 1, 1, 2)
    with pytest.raises(InputError, match=r"at most 1 rows \(max_batch_size\) and got 2"):
        StaticCache(config(), 4, max_batch_size=1).update(x, x, 0)
    StaticCache(config(), 4, batch_size=2).update(x, x, 0)
    with pytest.raises(InputError, match="torch.float16 on cpu and got torch.float32"):
        StaticCache(config(), 4, dtype=torch.float16).update(x, x, 0)
    with pytest.raises(InputError, match="on meta and got torch.float32 on cpu"):
        StaticCache(config(), 4, device="meta").update(x, x, 0)
    with pytest.raises(InputError, match=r"rows, heads, head size\) = \(2, 1, 2\) and got \(3, 1, 2\)"):
        cache = StaticCache(config(), 4)
        cache.update(x, x, 0)
        cache.update(torch.ones(3, 1, 1, 2), torch.ones(3, 1, 1, 2), 0)


def test_no_gradients() -> None:
    x = torch.ones(1, 1, 1, 2, requires_grad=True)
    with pytest.raises(InputError, match="writes over its memory, so no gradient can flow .* torch.no_grad"):
        StaticCache(config(), 4).update(x, x, 0)


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad], ids=["inference first", "no_grad first"])
def test_inference_mode(mode: Any) -> None:
    cache, x = StaticCache(config(), 12), torch.ones(1, 1, 2, 2)
    for one in (mode, torch.no_grad, torch.inference_mode, torch.no_grad):
        with one():
            for layer in range(2):
                cache.update(x, x, layer)
        cache.reorder_cache(torch.tensor([0]))
    cache.crop(7)
    assert cache.get_seq_length() == 7


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"max_cache_len": 0}, InputError, "max_cache_len is 0, but must be a whole number from 1"),
        ({"max_cache_len": 2.5}, InputError, "max_cache_len is 2.5"),
        ({"max_batch_size": 0}, InputError, "max_batch_size is 0"),
        ({"max_batch_size": 1, "batch_size": 2}, InputError, "max_batch_size=1 and batch_size=2 differ"),
        ({"config": SimpleNamespace()}, ConfigError, "SimpleNamespace has no num_hidden_layers. Give model.config"),
        ({"config": config(sliding_window=0)}, ConfigError, "sliding_window is 0"),
    ],
    ids=["no room", "a fraction", "no rows", "two sizes", "no layers", "no window"],
)
def test_bad_arguments(arguments: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        StaticCache(**{"config": config(), "max_cache_len": 4, **arguments})


def test_early_memory_with_numbers_per_layer() -> None:
    cache = StaticCache(config(), 4)
    with pytest.raises(InputError, match="num_heads gives 3 numbers for 2 layers"):
        cache.early_initialization(1, [1, 2, 3], 4, torch.float32, "cpu")
    cache.early_initialization(1, [1, 2], [4, 8], torch.bfloat16, "cpu")
    x = torch.ones(1, 2, 1, 8, dtype=torch.bfloat16)
    assert cache.update(x, x, 1)[0].shape == (1, 2, 4, 8)
