"""A decoding step through all blocks in one call: equal to the modules in every family, format, batch and cache."""

from __future__ import annotations

import copy
import ctypes
import pickle
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from tiny_blocks import FORMATS, TOLERANCE, batch, check_level, decode, model_of, reads
from torch import nn

import quintet
from quintet.auto import model_types
from quintet.cache import DynamicCache, StaticCache
from quintet.fused import blocks, structs
from quintet.kernels.loader import LEVELS, library, status

pytestmark = pytest.mark.skipif(not status().native, reason=f"no native kernels: {status().reason}")


@pytest.mark.parametrize("family", model_types())
@pytest.mark.parametrize("form", sorted(FORMATS))
@pytest.mark.parametrize("dtype", sorted(TOLERANCE, key=str))
def test_a_step_is_what_the_modules_compute(
    family: str, form: str, dtype: torch.dtype, steps: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "ROWS_BY_INPUT", 8)
    plain, model = model_of(family, dtype, form), model_of(family, dtype, form)
    model.optimize()
    for rows, each in ((1, 1), (3, 1), (2, 3)):
        ids, mask = batch(rows, 12)
        want = decode(plain, ids, mask, 5, each)
        assert not steps, "the plain model has no such list"
        got = decode(model, ids, mask, 5, each)
        assert steps[0] == reads(dtype, 5 * rows) and all(steps[1:]) and len(steps) > 1
        assert (got.float() - want.float()).abs().max() <= TOLERANCE[dtype] * want.float().abs().max()
        steps.clear()


@pytest.mark.parametrize("family", model_types())
@pytest.mark.parametrize("dtype", sorted(TOLERANCE, key=str))
def test_a_row_does_not_depend_on_its_batch(family: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "ROWS_BY_INPUT", 8)
    model = model_of(family, dtype)
    model.optimize()
    ids, _ = batch(5, 6)
    caches = []
    with torch.no_grad():
        for rows in (5, 1):  # from the same keys and values: the products of a prompt may depend on its batch
            cache = model(ids[2:3], use_cache=True).past_key_values
            cache.batch_repeat_interleave(rows)
            caches.append(cache)
        new = ids[:, :1].clone()
        new[3] = 7
        model(new, past_key_values=caches[0], use_cache=True)
        model(new[3:4], past_key_values=caches[1], use_cache=True)
    for layer in range(model.config.num_hidden_layers):
        for many, single in zip(caches[0][layer], caches[1][layer], strict=True):
            assert torch.equal(many[3:4], single)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_change_no_bit(threads: int) -> None:
    model = model_of("gpt_oss", torch.bfloat16)
    model.optimize()
    ids, mask = batch(2, 12)
    want = decode(model, ids, mask, 5)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        assert torch.equal(decode(model, ids, mask, 5), want)
    finally:
        torch.set_num_threads(before)


def test_threads_of_python_are_not_in_each_others_way() -> None:
    model = model_of("seed_oss", max_position_embeddings=512)
    model.optimize()
    texts = [batch(1, 60, seed)[0] for seed in range(4)]
    want = [decode(model, ids, None, 5) for ids in texts]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            for got, one in zip(pool.map(lambda ids: decode(model, ids, None, 5), texts), want, strict=True):
                assert torch.equal(got, one)


@pytest.mark.parametrize("window", [3, 8])
def test_windows_and_slabs_that_move_and_grow(window: int, steps: list[bool]) -> None:
    model = model_of("gpt_oss", sliding_window=window, max_position_embeddings=512)
    ids, mask = batch(2, 170)
    want = decode(model, ids, mask, 5)
    steps.clear()
    model.optimize()
    got = decode(model, ids, mask, 5)
    assert all(steps[1:])
    assert torch.allclose(got, want, atol=2e-5)


def test_crop_reorder_and_rows_that_leave(steps: list[bool]) -> None:
    model = model_of("seed_oss")
    model.optimize()
    ids, _ = batch(3, 9)
    with torch.no_grad():
        cache = model(ids[:, :5], use_cache=True).past_key_values
        model(ids[:, 5:7], past_key_values=cache, use_cache=True)
        cache.crop(6)
        cache.reorder_cache(torch.tensor([2, 0]))
        got = model(ids[[2, 0], 6:], past_key_values=cache, use_cache=True).logits
        want = model(ids[[2, 0]]).logits[:, 6:]
    assert torch.allclose(got, want, atol=2e-5) and steps == [False, True, True, False]


def test_three_hundred_greedy_tokens_of_the_storyteller(steps: list[bool]) -> None:
    model = quintet.AutoModelForCausalLM.from_pretrained("storyteller", dtype="float32")
    tokenizer = quintet.AutoTokenizer.from_pretrained("storyteller")
    ids = tokenizer("Once upon a time", return_tensors="pt")["input_ids"]
    options = {"do_sample": False, "min_new_tokens": 300, "max_new_tokens": 300, "repetition_penalty": 1.2}
    fused = model.generate(ids, **options)
    assert sum(steps) > 250
    steps.clear()
    plain = quintet.AutoModelForCausalLM.from_pretrained("storyteller", dtype="float32")
    plain.optimize = lambda: None
    assert torch.equal(plain.generate(ids, **options), fused) and not steps


# --- what changes is noticed ------------------------------------------------------------------------------------------


def ready(family: str = "seed_oss", **options: Any) -> tuple[Any, torch.Tensor]:
    """A model that has made its plan, and tokens."""
    model = model_of(family, **options)
    model.optimize()
    ids, _ = batch(1, 8)
    decode(model, ids, None, 5)
    return model, ids


def same_as_modules(model: Any, ids: torch.Tensor) -> bool:
    with torch.no_grad():
        return torch.allclose(decode(model, ids, None, 5), model(ids).logits[:, 5:], atol=2e-5)


def test_weights_that_move_are_found(steps: list[bool]) -> None:
    model, ids = ready()
    before = decode(model, ids, None, 5)
    for parameter in model.parameters():
        parameter.data = parameter.data * 1.5  # somebody merges an adapter
    assert same_as_modules(model, ids) and not torch.allclose(decode(model, ids, None, 5), before)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.mul_(3)  # in place: the same memory
    assert same_as_modules(model, ids)
    assert any(steps)


def test_modules_that_are_exchanged_and_hooks_are_seen(steps: list[bool]) -> None:
    model, ids = ready()
    seen: list[int] = []
    handle = model.model.layers[1].mlp.register_forward_hook(lambda *_: seen.append(1))
    steps.clear()
    assert same_as_modules(model, ids) and seen and not any(steps)
    handle.remove()
    steps.clear()
    assert same_as_modules(model, ids) and any(steps)

    class Louder(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x) * 2

    mlp = model.model.layers[0].mlp
    mlp.down_proj = Louder(mlp.down_proj)
    steps.clear()
    assert same_as_modules(model, ids) and not any(steps)


def test_what_a_step_asks_for_goes_through_the_modules(steps: list[bool]) -> None:
    model, ids = ready("gpt2", dtype=torch.bfloat16)
    with torch.no_grad():
        cache = model(ids[:, :5], use_cache=True).past_key_values
    legacy = cache.to_legacy_cache()
    calls: list[dict[str, Any]] = [
        {"output_hidden_states": True},
        {"output_attentions": True},
        {"head_mask": torch.ones(2, 4)},
        {"attention_mask": torch.ones(1, 1, 1, 6, dtype=torch.bool)},
        {"use_cache": False, "past_key_values": None},
    ]
    for extra in calls:
        steps.clear()
        with torch.no_grad():
            model(
                ids[:, 5:6], **{"past_key_values": DynamicCache.from_legacy_cache(legacy), "use_cache": True, **extra}
            )
        assert not any(steps), extra
    steps.clear()
    model(ids[:, 5:6], past_key_values=DynamicCache.from_legacy_cache(legacy))  # gradients
    with torch.no_grad():
        model.train()
        model(ids[:, 5:6], past_key_values=DynamicCache.from_legacy_cache(legacy))
        model.eval()
        with torch.autocast("cpu", torch.bfloat16):
            model(ids[:, 5:6], past_key_values=DynamicCache.from_legacy_cache(legacy))
        static = StaticCache(model.config, max_cache_len=16)
        model(ids[:, :5], past_key_values=static)
        model(ids[:, 5:6], past_key_values=static)
        model(ids[:, :1].expand(9, 1), past_key_values=DynamicCache(), use_cache=True)
    assert not any(steps)


def test_copies_have_plans_of_their_own(steps: list[bool]) -> None:
    model, ids = ready()
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        with torch.no_grad():
            copied.model.layers[0].mlp.up_proj.weight.mul_(4)
        steps.clear()
        assert same_as_modules(copied, ids) and any(steps)
        assert not torch.allclose(decode(copied, ids, None, 5), decode(model, ids, None, 5))
    assert same_as_modules(model.to(torch.float64), ids)
    assert set(model.state_dict()) == set(model_of("seed_oss").state_dict())


def test_numbers_that_are_none_stay_so() -> None:
    model, ids = ready("gpt_neox")
    with torch.no_grad():
        model.gpt_neox.layers[0].mlp.dense_h_to_4h.bias[0] = float("nan")
        assert decode(model, ids, None, 5).isnan().all()


def test_the_structures_are_those_of_the_library() -> None:
    native = library()
    assert native is not None
    native.quintet_block_bytes.restype = native.quintet_step_bytes.restype = ctypes.c_int64
    assert native.quintet_block_bytes() == ctypes.sizeof(structs.Block)
    assert native.quintet_step_bytes() == ctypes.sizeof(structs.StepCall)


@pytest.mark.parametrize("level", LEVELS)
def test_every_level(level: str) -> None:
    check_level(level, forms=("plain", "int4"))
