"""The native step over a cache of 8 bits: in place, and with the numbers of the modules over the same cache."""

from __future__ import annotations

import pytest
import torch
from tiny_blocks import TOLERANCE, batch, check_level, decode, model_of

from quintet.auto import model_types
from quintet.cache import Int8Cache
from quintet.cache.int8 import encode_int8
from quintet.errors import InputError
from quintet.fused import blocks
from quintet.kernels.loader import LEVELS, status

pytestmark = pytest.mark.skipif(not status().native, reason=f"no native kernels: {status().reason}")


@pytest.mark.parametrize("family", model_types())
@pytest.mark.parametrize("dtype", sorted(TOLERANCE, key=str))
def test_a_step_is_what_the_modules_compute(
    family: str, dtype: torch.dtype, steps: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "ROWS_BY_INPUT", 8)
    plain, model = model_of(family, dtype), model_of(family, dtype)
    model.optimize()
    for rows, each in ((1, 1), (3, 1), (2, 3)):
        ids, mask = batch(rows, 12)
        native, modules = Int8Cache(config=model.config), Int8Cache(config=plain.config)
        want = decode(plain, ids, mask, 5, each, cache=modules)
        got = decode(model, ids, mask, 5, each, cache=native)
        assert not steps[0] and all(steps[1:]) and len(steps) > 1, "the prompt is for the modules, steps are not"
        assert (got.float() - want.float()).abs().max() <= TOLERANCE[dtype] * want.float().abs().max()
        if dtype == torch.float32:
            # a code or two on the edge between two numbers may fall to the other side
            for one, other in zip(native.layers, modules.layers, strict=True):
                assert (one.store.keys != other.store.keys).float().mean() < 1e-3
        steps.clear()


def test_the_bytes_are_those_of_the_plain_way(steps: list[bool]) -> None:
    """The keys of the first layer, which nothing rounded comes before."""
    plain, model = model_of("gpt2", n_embd=112, n_head=2), model_of("gpt2", n_embd=112, n_head=2)  # heads of 56
    model.optimize()
    ids, _ = batch(1, 9)
    native, modules = Int8Cache(config=model.config), Int8Cache(config=plain.config)
    decode(model, ids, None, 5, cache=native)
    decode(plain, ids, None, 5, cache=modules)
    assert all(steps[1:])
    for side in ("keys", "values"):
        one, other = getattr(native.layers[0].store, side), getattr(modules.layers[0].store, side)
        assert one.shape[3] == 60 and (one != other).float().mean() < 5e-3
        numbers = getattr(native.layers[0], side)
        assert torch.equal(encode_int8(numbers)[..., :56], one[..., :56])


@pytest.mark.parametrize("config", [True, False])
@pytest.mark.parametrize("window", [3, 8])
def test_windows_and_slabs_that_move_and_grow(window: int, config: bool, steps: list[bool]) -> None:
    model = model_of("gpt_oss", sliding_window=window, max_position_embeddings=512)
    ids, mask = batch(2, 170)
    told = model.config if config else None
    want = decode(model, ids, mask, 5, cache=Int8Cache(config=told))
    steps.clear()
    model.optimize()
    cache = Int8Cache(config=told)
    got = decode(model, ids, mask, 5, cache=cache)
    assert all(steps[1:])
    assert (got - want).abs().max() < 1e-3 * want.abs().max()
    assert cache.layers[0].store._keys.dtype == torch.int8


@pytest.mark.parametrize("dtype", sorted(TOLERANCE, key=str))
def test_a_row_does_not_depend_on_its_batch(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "ROWS_BY_INPUT", 8)
    model = model_of("gpt_oss", dtype)
    model.optimize()
    ids, _ = batch(5, 6)
    caches = []
    with torch.no_grad():
        for rows in (5, 1):
            cache = Int8Cache(config=model.config)
            model(ids[2:3], past_key_values=cache, use_cache=True)
            cache.batch_repeat_interleave(rows)
            caches.append(cache)
        new = ids[:, :1].clone()
        new[3] = 7
        many = model(new, past_key_values=caches[0], use_cache=True).logits
        single = model(new[3:4], past_key_values=caches[1], use_cache=True).logits
    assert torch.equal(many[3:4], single)
    for one, other in zip(caches[0].layers, caches[1].layers, strict=True):
        assert torch.equal(one.store.keys[3:4], other.store.keys)


def test_crop_reorder_and_other_models_caches(steps: list[bool]) -> None:
    model = model_of("seed_oss")
    model.optimize()
    ids, _ = batch(3, 9)
    with torch.no_grad():
        cache = Int8Cache(config=model.config)
        model(ids[:, :5], past_key_values=cache)
        model(ids[:, 5:7], past_key_values=cache)
        cache.crop(6)
        cache.reorder_cache(torch.tensor([2, 0]))
        got = model(ids[[2, 0], 6:], past_key_values=cache).logits
        want = model(ids[[2, 0]], past_key_values=Int8Cache(config=model.config)).logits[:, 6:]
        assert torch.allclose(got, want, atol=1e-4) and steps == [False, True, True, False]
        steps.clear()
        other = model_of("seed_oss", torch.bfloat16)
        other.optimize()
        with pytest.raises(InputError, match="holds keys in torch.float32"):
            other(ids[[2, 0], :1], past_key_values=cache)
        wider = model_of("seed_oss", head_dim=2 * model.config.head_dim)
        wider.optimize()
        with pytest.raises(InputError, match="the cache holds keys of"):
            wider(ids[[2, 0], :1], past_key_values=cache)
        assert not any(steps)


@pytest.mark.parametrize("level", LEVELS)
def test_every_level(level: str) -> None:
    check_level(level, cache="Int8Cache")
