"""A step from tokens to scores in one call: the numbers of the modules, and not where somebody would miss something."""

from __future__ import annotations

import copy
import ctypes
import functools
import os
import pickle
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from operator import attrgetter
from typing import Any

import pytest
import torch
from tiny_blocks import FORMATS, TOLERANCE, batch, decode, decode_whole, model_of
from torch import nn

import quintet
from quintet import cache as caches
from quintet.auto import model_types
from quintet.fused import blocks
from quintet.fused.structs import StepCall
from quintet.fused.whole_step import WholeStep
from quintet.kernels.loader import library, status
from quintet.quant.config import IntegerConfig

pytestmark = pytest.mark.skipif(not status().native, reason=f"no native kernels: {status().reason}")

# Family, and the paths of its parts outside the blocks.
PARTS = {
    "gpt2": (
        "",
        "transformer",
        "transformer.wte",
        "transformer.wpe",
        "transformer.drop",
        "transformer.ln_f",
        "lm_head",
    ),
    "gpt_neox": (
        *("", "gpt_neox", "gpt_neox.embed_in", "gpt_neox.emb_dropout", "gpt_neox.rotary_emb"),
        *("gpt_neox.final_layer_norm", "embed_out"),
    ),
    "seed_oss": ("", "model", "model.embed_tokens", "model.rotary_emb", "model.norm", "lm_head"),
}
HALF = 4  # tokens of the prompt in tests that change something between two steps


def part(model: Any, path: str) -> Any:
    return attrgetter(path)(model) if path else model


def optimized(family: str, *given: Any, **options: Any) -> Any:
    model = model_of(family, *given, **options)
    model.optimize()
    return model


def begun(model: Any, ids: torch.Tensor, kind: str = "DynamicCache") -> Any:
    """A cache that the prompt and one native step have been read into."""
    with torch.no_grad():
        cache = model(ids[:, : HALF - 1], past_key_values=getattr(caches, kind)(config=model.config)).past_key_values
        assert model.native_step(ids[:, HALF - 1 : HALF], cache) is not None
    return cache


def step(model: Any, ids: torch.Tensor, cache: Any, **more: Any) -> Any:
    with torch.no_grad():
        return model.native_step(ids[:, HALF : HALF + 1], cache, **more)


def by_modules(model: Any, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(ids[:, : HALF + 1]).logits[:, -1]


# --- numbers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", model_types())
@pytest.mark.parametrize("form", sorted(FORMATS))
@pytest.mark.parametrize("dtype", sorted(TOLERANCE, key=str))
@pytest.mark.parametrize("kind", ["DynamicCache", "Int8Cache"])
def test_scores_are_those_of_the_modules(
    family: str, form: str, dtype: torch.dtype, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "ROWS_BY_INPUT", 8)
    plain, model = model_of(family, dtype, form), optimized(family, dtype, form)
    for rows in (1, 4):
        ids, mask = batch(rows, 11)
        stores = [getattr(caches, kind)(config=plain.config) for _ in range(3)]
        want = decode(plain, ids, mask, 5, cache=stores[0]).float()
        steps = decode_whole(model, ids, mask, 5, stores[1])
        got = torch.stack([one.scores for one in steps], 1).float()
        assert (got - want).abs().max() <= TOLERANCE[dtype] * want.abs().max()
        for one, other in zip(decode_whole(model, ids, mask, 5, stores[2], best=7), steps, strict=True):
            assert one.scores is None and torch.equal(one.states, other.states)
            values, tokens = other.scores.float().sort(dim=-1, descending=True, stable=True)
            assert torch.equal(one.best[0], values[:, :7]) and torch.equal(one.best[1], tokens[:, :7])
            with torch.no_grad():
                head = model.get_output_embeddings()
                assert torch.equal(head(one.states[:, None])[:, 0], other.scores), "the head itself goes on from states"


@pytest.mark.parametrize("width", [36, 68, 132])
def test_odd_sizes(width: int) -> None:
    options = {"n_embd": width, "n_head": 2, "vocab_size": 1031, "n_positions": 37}
    for dtype, tolerance in TOLERANCE.items():
        plain, model = model_of("gpt2", dtype, **options), optimized("gpt2", dtype, **options)
        ids = torch.randint(1, 1031, (1, 37), generator=torch.Generator().manual_seed(2))
        want = decode(plain, ids, None, 3).float()
        got = torch.stack([one.scores for one in decode_whole(model, ids, None, 3)], 1).float()
        assert (got - want).abs().max() <= tolerance * want.abs().max()


def test_a_row_does_not_depend_on_its_batch() -> None:
    for family in model_types():
        model = optimized(family, torch.bfloat16)
        ids, _ = batch(1, 8)
        cache = begun(model, ids)
        other = copy.deepcopy(cache)
        other.batch_repeat_interleave(5)
        assert torch.equal(step(model, ids.expand(5, 8), other).scores, step(model, ids, cache).scores.expand(5, -1))


def test_heads_with_a_bias_of_their_own_and_packed_ones() -> None:
    for form in (None, IntegerConfig(8, head_bits=8), IntegerConfig(4, head_bits=4)):
        plain, model = (model_of("gpt_neox", torch.bfloat16) for _ in range(2))
        for one in (plain, model):
            one.embed_out.bias = nn.Parameter(torch.linspace(-2, 2, one.config.vocab_size).to(torch.bfloat16))
            if form is not None:
                one.quantize(form)
        model.optimize()
        ids, mask = batch(3, 9)
        want = decode(plain, ids, mask, 5).float()
        got = torch.stack([one.scores for one in decode_whole(model, ids, mask, 5)], 1).float()
        assert (got - want).abs().max() <= 2e-2 * want.abs().max()


def test_tied_heads() -> None:
    model = optimized("gpt2")
    assert model.lm_head.weight is model.transformer.wte.weight
    ids, _ = batch(1, 9)
    cache = begun(model, ids)
    with torch.no_grad():
        model.transformer.wte.weight.mul_(1.5)
        model.transformer.wte.weight.data = model.transformer.wte.weight.data.clone()
    other = copy.deepcopy(cache)
    want = model(ids[:, HALF : HALF + 1], past_key_values=other).logits[:, -1]
    assert torch.allclose(step(model, ids, cache).scores, want, atol=2e-5)


def test_windows_slabs_that_move_and_grow_and_caches_in_turn() -> None:
    model = optimized("gpt_oss", sliding_window=5, max_position_embeddings=512)
    plain = model_of("gpt_oss", sliding_window=5, max_position_embeddings=512)
    texts = [batch(1, 150, seed)[0] for seed in (1, 2)]
    with torch.no_grad():
        stores = [model(ids[:, :3], use_cache=True).past_key_values for ids in texts]
        got: list[list[torch.Tensor]] = [[], []]
        for place in range(3, 150):
            for ids, store, scores in zip(texts, stores, got, strict=True):
                scores.append(model.native_step(ids[:, place : place + 1], store).scores)
    for ids, scores in zip(texts, got, strict=True):
        assert torch.allclose(torch.stack(scores, 1), decode(plain, ids, None, 3), atol=2e-5)


@pytest.mark.parametrize("kind", ["DynamicCache", "Int8Cache"])
def test_crop_reorder_rows_that_leave_and_reset(kind: str) -> None:
    model = optimized("seed_oss")
    ids, _ = batch(3, 9)
    native, modules = (getattr(caches, kind)(config=model.config) for _ in range(2))

    def both(rows: list[int], place: int) -> None:
        """Read the same token both ways."""
        given = ids[rows, place : place + 1]
        with torch.no_grad():
            got, want = model.native_step(given, native), plain(given, past_key_values=modules, use_cache=True)
        assert torch.allclose(got.scores, want.logits[:, -1], atol=1e-3 if kind == "Int8Cache" else 2e-5)

    plain = model_of("seed_oss")
    for _ in range(2):
        with torch.no_grad():
            model(ids[:, :3], past_key_values=native, use_cache=True)
            plain(ids[:, :3], past_key_values=modules, use_cache=True)
        both([0, 1, 2], 3)
        both([0, 1, 2], 4)
        for cache in (native, modules):
            cache.crop(4)
        both([0, 1, 2], 5)
        for cache in (native, modules):
            cache.reorder_cache(torch.tensor([2, 0, 1]))
        both([2, 0, 1], 6)
        for cache in (native, modules):
            cache.keep_rows(torch.tensor([0, 2]))
        both([2, 1], 7)
        for cache in (native, modules):
            cache.batch_repeat_interleave(2)
        both([2, 2, 1, 1], 8)
        for cache in (native, modules):
            cache.reset()


# --- generate ---------------------------------------------------------------------------------------------------------


@contextmanager
def taken(monkeypatch: pytest.MonkeyPatch, off: bool = False) -> Iterator[list[bool]]:
    """For each attempt whether it was a native step; with `off` none is."""
    done: list[bool] = []
    plain = WholeStep.run

    def run(self: WholeStep, *given: Any) -> Any:
        out = None if off else plain(self, *given)
        done.append(out is not None)
        return out

    with monkeypatch.context() as patch:
        patch.setattr(WholeStep, "run", run)
        yield done


CALLS: list[dict[str, Any]] = [
    {"do_sample": False},
    {"do_sample": False, "repetition_penalty": 1.3},
    {"do_sample": True, "top_k": 9},
    {"do_sample": True, "top_p": 0.8, "temperature": 1.2, "top_k": 0},
    {"num_beams": 3},
    {"do_sample": False, "cache_implementation": "int8"},
    {"do_sample": True, "num_return_sequences": 3, "top_k": 0},
]


@pytest.mark.parametrize("family", model_types())
@pytest.mark.parametrize("options", CALLS, ids=str)
def test_generate_writes_the_same(family: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "ROWS_BY_INPUT", 8)
    model = model_of(family)
    results = []
    for off in (False, True):
        for rows in (1, 2):
            ids, mask = batch(rows, 6)
            torch.manual_seed(4)
            with taken(monkeypatch, off) as done:
                out = model.generate(
                    ids, attention_mask=mask, max_new_tokens=9, eos_token_id=None, pad_token_id=0, **options
                )
            assert done == [not off] * 8
            results.append(out)
    assert torch.equal(results[0], results[2]) and torch.equal(results[1], results[3])


def test_generate_where_more_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("gpt2")
    ids, _ = batch(1, 5)
    shown = {"return_dict_in_generate": True}
    for more in ({"output_hidden_states": True}, {"output_attentions": True}, {"use_cache": False}):
        with taken(monkeypatch) as done:
            model.generate(ids, do_sample=False, max_new_tokens=4, pad_token_id=0, **shown, **more)
        assert not any(done), more
    with taken(monkeypatch) as done:
        out = model.generate(ids, do_sample=False, max_new_tokens=4, pad_token_id=0, output_logits=True, **shown)
    assert done == [True] * 3
    with torch.no_grad():
        want = model(out.sequences[:, :-1]).logits[:, 4:]
    assert torch.allclose(torch.stack(out.logits, 1), want, atol=2e-5)


def test_a_text_up_to_the_last_position_and_beyond(monkeypatch: pytest.MonkeyPatch) -> None:
    model = optimized("gpt2", n_positions=12)
    ids, _ = batch(1, 12)
    assert all(one is not None for one in decode_whole(model, ids, None, 4))
    with torch.no_grad():
        cache = model(ids, use_cache=True).past_key_values
        assert model.native_step(ids[:, :1], cache) is None
        with pytest.raises(quintet.InputError, match="more than the 12 positions"):
            model(ids[:, :1], past_key_values=cache)
    assert cache.get_seq_length() == 12


# --- what changes is noticed ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "path"), [(family, path) for family, paths in PARTS.items() for path in paths])
def test_hooks_and_other_forwards_in_the_middle(family: str, path: str) -> None:
    model = optimized(family)
    ids, _ = batch(1, 8)
    cache = begun(model, ids)
    module = part(model, path)
    hooks: tuple[Callable[..., Any], ...] = (
        lambda: module.register_forward_hook(lambda *_: None),
        lambda: module.register_forward_pre_hook(lambda *_: None),
    )
    for add in hooks:
        handle = add()
        assert step(model, ids, cache) is None
        handle.remove()
        assert step(model, ids, cache) is not None
        cache.crop(HALF)
    module.forward = functools.partial(type(module).forward, module)
    assert step(model, ids, cache) is None
    del module.forward
    module._compiled_call_impl = lambda *given, **named: type(module).forward(module, *given, **named)
    assert step(model, ids, cache) is None
    module._compiled_call_impl = None
    got = step(model, ids, cache)
    assert torch.allclose(got.scores, by_modules(model, ids), atol=2e-5)


@pytest.mark.parametrize(("family", "path"), [(family, path) for family, paths in PARTS.items() for path in paths])
def test_weights_and_modules_that_change_in_the_middle(family: str, path: str) -> None:
    model = optimized(family)
    ids, _ = batch(1, 8)
    cache = begun(model, ids)
    module = part(model, path)
    before = step(model, ids, cache).scores
    for parameter in [*module.parameters(recurse=False)]:
        cache.crop(HALF)
        parameter.data = parameter.data * 1.5 + 0.1  # somebody merges an adapter
        got = step(model, ids, cache).scores
        other = copy.deepcopy(cache)
        other.crop(HALF)
        with torch.no_grad():
            want = model(ids[:, HALF : HALF + 1], past_key_values=other).logits[:, -1]
        assert torch.allclose(got, want, atol=2e-5) and not torch.allclose(got, before, atol=1e-4)
        before = got
    if not path:
        return

    class Louder(type(module)):  # type: ignore[misc]
        def forward(self, *given: Any, **named: Any) -> Any:
            return super().forward(*given, **named)

    louder = copy.deepcopy(module)
    louder.__class__ = Louder
    owner, _, name = path.rpartition(".")
    setattr(part(model, owner), name, louder)
    cache.crop(HALF)
    got = step(model, ids, cache)
    assert (got is None) != path.endswith("rotary_emb"), "angles are made by the module, whichever it is"


def test_blocks_are_watched_too() -> None:
    model = optimized("gpt2")
    ids, _ = batch(1, 8)
    cache = begun(model, ids)
    handle = model.transformer.h[1].mlp.register_forward_hook(lambda *_: None)
    assert step(model, ids, cache) is None
    handle.remove()
    weight = model.transformer.h[0].mlp.c_fc.weight
    weight.data = weight.data * 3
    got = step(model, ids, cache).scores
    cache.crop(HALF)
    with torch.no_grad():
        assert torch.allclose(got, model(ids[:, HALF : HALF + 1], past_key_values=cache).logits[:, -1], atol=2e-5)


def test_hooks_that_a_streamer_adds(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("gpt2")
    ids, _ = batch(1, 5)
    seen: list[int] = []

    class Adds:
        count = 0

        def put(self, value: Any) -> None:
            self.count += 1
            if self.count == 5:
                model.transformer.register_forward_hook(lambda *_: seen.append(1))

        def end(self) -> None:
            pass

    with taken(monkeypatch) as done:
        model.generate(ids, do_sample=False, max_new_tokens=8, eos_token_id=None, pad_token_id=0, streamer=Adds())
    assert done == [True] * 3 + [False] * 4 and len(seen) == 4


def test_where_it_is_not_taken() -> None:
    model = optimized("gpt2")
    ids, _ = batch(1, 8)
    cache = begun(model, ids)

    def refused() -> bool:
        return step(model, ids, cache) is None

    assert model.native_step(ids[:, HALF : HALF + 1], cache) is None, "gradients are on"
    with torch.autocast("cpu", torch.bfloat16):
        assert refused()
    for field in ("output_attentions", "output_hidden_states"):
        setattr(model.config, field, True)
        assert refused()
        setattr(model.config, field, False)
    for module in (model, model.transformer, model.transformer.drop, model.transformer.h):
        module.training = True
        assert refused()
        module.training = False
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    assert refused()
    handle.remove()
    for wrong in (torch.tensor([[-1]]), torch.tensor([[99]]), torch.tensor([[5]], dtype=torch.int32)):
        with torch.no_grad():
            assert model.native_step(wrong, cache) is None
    with torch.no_grad():
        assert model.native_step(ids[:, :1].expand(9, 1), cache) is None
        assert model.native_step(ids[:, :1].expand(2, 1), cache) is None, "the cache has one row"
        assert model.native_step(ids[:, :1], caches.DynamicCache()) is None, "an empty cache"
        assert model.native_step(ids[:, :1], cache, best=100) is None, "more than there are tokens"
        assert model.native_step(ids[:, :1], caches.StaticCache(model.config, max_cache_len=16)) is None
    cache.layers[1].length -= 1
    assert refused()
    cache.layers[1].length += 1
    assert cache.get_seq_length() == HALF and not refused()
    cache.crop(HALF)
    assert step(model_of("gpt2"), ids, cache) is None, "without optimize()"


def test_subclasses_and_patched_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    model = optimized("gpt2")
    ids, _ = batch(1, 8)
    cache = begun(model, ids)
    for module in (model, model.transformer):
        kind = type(module)
        whole = kind.forward

        @functools.wraps(whole)
        def patched(self: Any, *given: Any, whole: Any = whole, **named: Any) -> Any:
            return whole(self, *given, **named)

        with monkeypatch.context() as patch:
            patch.setattr(kind, "forward", patched)
            assert step(model, ids, cache) is None
        other = type("Other", (kind,), {"forward": patched})
        module.__class__ = other
        assert step(model, ids, cache) is None
        module.__class__ = type("Same", (kind,), {})
        assert step(model, ids, cache) is not None
        cache.crop(HALF)
        module.__class__ = kind


def test_copies_are_told_anew_and_models_are_freed() -> None:
    model = optimized("seed_oss")
    ids, _ = batch(1, 8)
    cache = begun(model, ids)
    want = step(model, ids, cache).scores
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        other = begun(copied, ids)
        with torch.no_grad():
            copied.model.norm.weight.mul_(4)
        assert torch.allclose(step(copied, ids, other).scores, by_modules(copied, ids), atol=2e-5)
        cache.crop(HALF)
        assert torch.equal(step(model, ids, cache).scores, want)
    gone = weakref.ref(model)
    del model
    assert gone() is None, "nothing that a step remembers keeps a model alive"


def test_numbers_that_are_none_stay_so() -> None:
    model = optimized("gpt2")
    ids, _ = batch(1, 8)
    cache = begun(model, ids)
    with torch.no_grad():
        model.transformer.ln_f.bias[0] = float("nan")
    assert step(model, ids, cache).scores.isnan().all()


WITHOUT = """
import torch
from tiny_blocks import batch, model_of
from quintet.kernels.loader import library, status
assert not status().native
for family in ("gpt2", "gpt_neox", "gpt_oss"):
    model = model_of(family)
    ids, mask = batch(2, 6)
    out = model.generate(ids, attention_mask=mask, do_sample=False, max_new_tokens=9, eos_token_id=None, pad_token_id=0)
    print(*out.flatten().tolist())
"""


def test_the_same_text_without_native_kernels() -> None:
    env = {**os.environ, "QUINTET_NATIVE": "0", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    want = []
    for family in ("gpt2", "gpt_neox", "gpt_oss"):
        ids, mask = batch(2, 6)
        options = {"do_sample": False, "max_new_tokens": 9, "eos_token_id": None, "pad_token_id": 0}
        want.append(model_of(family).generate(ids, attention_mask=mask, **options).flatten().tolist())
    assert [[int(token) for token in line.split()] for line in done.stdout.splitlines()] == want


def test_the_library_refuses_rows_that_a_table_does_not_have() -> None:
    model = optimized("gpt2")
    ids, _ = batch(1, 8)
    cache = begun(model, ids)
    ends, plan = model._whole_step._ends, model.transformer.h.plan(torch.float32)
    states, scores = torch.empty(1, 32), torch.empty(1, 99)
    for token, place, head in ((98, 63, 32), (99, 5, 32), (-1, 5, 32), (5, 64, 32), (5, -1, 32), (5, 5, 31)):
        call = StepCall.from_buffer_copy(ends.call)
        call.texts = call.tokens = 1
        rows = (ctypes.c_int64 * 2)(token, place)
        call.ids, call.places = ctypes.addressof(rows), ctypes.addressof(rows) + 8
        call.out, call.scores, call.head.inputs = states.data_ptr(), scores.data_ptr(), head
        if (token, place, head) == (98, 63, 32):
            assert plan.do(call, [(0, None, 0, 0)] * 2, None, cache)
            continue
        with pytest.raises(RuntimeError, match="refused its arguments"):
            plan.do(call, [(0, None, 0, 0)] * 2, None, cache)


def test_any_address_may_be_asked_for() -> None:
    native = library()
    assert native is not None
    addresses = (ctypes.c_void_p * 5)(None, 1, 2**47 - 1, 2**64 - 1, id(native))
    assert native.quintet_ask_for(addresses, 5) == 0 and native.quintet_ask_for(None, 0) == 0


def test_a_head_that_is_watched_from_the_middle_on_is_asked_as_always(monkeypatch: pytest.MonkeyPatch) -> None:
    """The way past the scores of all tokens is left in the middle of a text, and taken again."""
    model = model_of("gpt2")
    ids, _ = batch(1, 5)
    options = {"do_sample": False, "max_new_tokens": 12, "eos_token_id": None, "pad_token_id": 0}
    want = model.generate(ids, **options)
    seen: list[int] = []
    handles: list[Any] = []

    class Watches:
        count = 0

        def put(self, value: Any) -> None:
            self.count += 1
            if self.count == 4:
                handles.append(model.lm_head.register_forward_hook(lambda *_: seen.append(1)))
            if self.count == 8:
                handles.pop().remove()

        def end(self) -> None:
            pass

    with taken(monkeypatch) as done:
        got = model.generate(ids, streamer=Watches(), **options)
    assert torch.equal(got, want) and len(seen) == 4
    assert done == [True] * 2 + [False] * 4 + [True] * 5
