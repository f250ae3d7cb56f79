"""What a backend cannot do it refuses, naming those that can; where eager steps in; what attention may allocate."""

from __future__ import annotations

import sys
import warnings
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from quintet.errors import ConfigError
from quintet.layers.attention import (
    BACKENDS,
    attend,
    check_backend,
    cross_attend,
    flash,
    limits,
    usable_backends,
)
from quintet.layers.masks import MaskSpec
from quintet.layers.step import Step


def call(backend: str, mask: MaskSpec | None = None, dropout: float = 0.0, sinks: bool = False, **kind: Any) -> None:
    q, k, v = (torch.randn(1, 4, 5, 8, **kind) for _ in range(3))
    mask = mask or MaskSpec(5, 5)
    given = torch.zeros(4, requires_grad=kind.get("requires_grad", False)) if sinks else None
    BACKENDS[backend](q, k, v, mask, scale=1.0, dropout=dropout, upcast=False, sinks=given)


def test_every_name_is_known() -> None:
    assert list(BACKENDS) == ["eager", "sdpa", "flex_attention", "flash_attention_2", "flash_attention_3"]
    assert {"eager", "sdpa", "flex_attention"} <= set(usable_backends()) <= set(BACKENDS)
    assert all(check_backend(name) == name for name in usable_backends())
    assert all(set(able) < set(BACKENDS) and "sdpa" in able for able in limits.ABLE.values())


def test_an_unknown_name() -> None:
    with pytest.raises(ConfigError, match=r"unknown attn_implementation 'spda'; there are eager, sdpa, .*'sdpa'"):
        check_backend("spda")


@pytest.mark.parametrize(
    ("name", "module", "package"),
    [("flash_attention_2", "flash_attn", "flash-attn"), ("flash_attention_3", "flash_attn_interface", "flash-attn-3")],
)
def test_a_package_that_is_missing(name: str, module: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flash, "_installed", lambda module: False)
    words = rf"{name!r} cannot run here: the package {package} \(module {module}\) is not installed. Here can eager, s"
    with pytest.raises(ConfigError, match=words):
        check_backend(name)
    assert name not in usable_backends()


def test_a_gpu_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flash, "_installed", lambda module: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"'flash_attention_2' cannot run here: torch sees no GPU"):
        check_backend("flash_attention_2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert check_backend("flash_attention_3") == "flash_attention_3"


def test_flex_attention_refuses() -> None:
    with pytest.raises(ConfigError, match=r"'flex_attention' cannot do attention dropout \(got 0.1\); eager, sdpa, fl"):
        call("flex_attention", dropout=0.1)
    words = r"'flex_attention' cannot do gradients on this device \(got cpu; .*no_grad\(\)\); eager, sdpa can"
    for sinks in (False, True):
        with pytest.raises(ConfigError, match=words):
            call("flex_attention", sinks=sinks, requires_grad=True)
    with torch.no_grad():
        call("flex_attention", sinks=True, requires_grad=True)


@pytest.mark.parametrize("name", ["flash_attention_2", "flash_attention_3"])
def test_flash_attention_refuses(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=rf"'{name}' cannot do tensors outside a GPU \(got cpu\); eager, sdpa, flex"):
        call(name)
    monkeypatch.setattr(flash, "_on_gpu", lambda q: True)
    with pytest.raises(ConfigError, match=r"cannot do other dtypes than float16 and bfloat16 \(got torch.float32\)"):
        call(name)
    half: dict[str, Any] = {"dtype": torch.bfloat16}
    for given in (torch.ones(1, 1, 5, 5).bool(), torch.zeros(1, 1, 5, 5)):
        with pytest.raises(ConfigError, match=r"cannot do a 4-D attention_mask; eager, sdpa, flex_attention can"):
            call(name, MaskSpec(5, 5, given=given), **half)
    with pytest.raises(ConfigError, match=r"cannot do a cache of fixed shape; eager, sdpa, flex_attention can"):
        call(name, MaskSpec(5, 5, past=torch.tensor(0)), **half)
    with pytest.raises(ConfigError, match=r"cannot do gradients through attention sinks; eager, sdpa can"):
        call(name, sinks=True, requires_grad=True, **half)
    holes = torch.tensor([[True, False, True, True, True]])
    with pytest.raises(ConfigError, match=r"cannot do padding between the tokens of sliding layers; eager, sdpa, flex"):
        call(name, MaskSpec(5, 5, window=2, padding=holes), **half)


def test_flash_attention_3_refuses_dropout() -> None:
    with pytest.raises(ConfigError, match=r"'flash_attention_3' cannot do attention dropout \(got 0.5\).*_attention_2"):
        call("flash_attention_3", dropout=0.5)


# -- where eager steps in ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["sdpa", "flex_attention", "flash_attention_2"])
def test_weights_come_from_eager_with_one_warning(backend: str) -> None:
    module = sys.modules["quintet.layers.attention.attend"]
    module._warn_that_eager_steps_in.cache_clear()
    q, k, v = torch.randn(2, 8, 6, 16), torch.randn(2, 2, 6, 16), torch.randn(2, 2, 6, 16)
    results = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for name in ("eager", backend, backend):
            step = Step(masks=(MaskSpec(6, 6),), backend=name, output_attentions=True)
            results.append((attend(q, k, v, step, 0, scale=0.25, sinks=torch.ones(8)), step.attentions[0]))
    assert [str(w.message)[:22] for w in caught] == ["output_attentions=True"]
    for out, weights in results[1:]:
        assert torch.equal(out, results[0][0]) and torch.equal(weights, results[0][1])
    assert weights.shape == (2, 8, 6, 6) and (weights.sum(-1) < 1).all()


def test_float32_scores_come_from_eager() -> None:
    q, k, v = (torch.randn(1, 4, 6, 8).bfloat16() for _ in range(3))
    got = [
        attend(q, k, v, Step(masks=(MaskSpec(6, 6),), backend=name), 0, scale=0.3, upcast=True)
        for name in ("eager", "sdpa", "flex_attention")
    ]
    assert torch.equal(got[0], got[1]) and torch.equal(got[0], got[2])


@pytest.mark.parametrize("backend", ["eager", "sdpa", "flex_attention"])
def test_cross_attention(backend: str) -> None:
    q, k, v = torch.randn(2, 4, 3, 8), torch.randn(2, 4, 7, 8), torch.randn(2, 4, 7, 8)
    got = cross_attend(q, k, v, Step(masks=(), backend=backend), scale=0.5)
    wanted = (torch.softmax(q @ k.transpose(-1, -2) * 0.5, -1) @ v).transpose(1, 2).flatten(2)
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)


# -- memory ------------------------------------------------------------------------------------------------------------


def allocated(backend: str, q: torch.Tensor, k: torch.Tensor, mask: MaskSpec, sinks: torch.Tensor | None) -> int:
    """Bytes that a call allocates, all together: never less than the peak."""
    options: dict[str, Any] = {"scale": 1.0, "dropout": 0.0, "upcast": False, "sinks": sinks}
    with torch.no_grad():
        BACKENDS[backend](q, k, k, mask, **options)  # masks are made
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
            BACKENDS[backend](q, k, k, mask, **options)
    return sum(max(0, event.self_cpu_memory_usage) for event in record.key_averages())


@pytest.mark.parametrize("sinks", [False, True], ids=["plain", "sinks"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("tokens", [1, 4, 64])
def test_sdpa_repeats_no_keys(tokens: int, dtype: torch.dtype, sinks: bool) -> None:
    """32 heads read the keys of 2: repeated they would be 16 times as large."""
    q, k = torch.randn(1, 32, tokens, 64).to(dtype), torch.randn(1, 2, 1024, 64).to(dtype)
    for padding in (None, torch.arange(1024)[None] > 3):
        mask = MaskSpec(tokens, 1024, past=1024 - tokens, padding=padding)
        got = allocated("sdpa", q, k, mask, torch.zeros(32) if sinks else None)
        # the output and what the kernel keeps for each of its threads; a folded mask; keys and values in the order of
        # tiles, on a CPU that has them
        assert 0 < got < 4 * q.nbytes + 5 * k.nbytes // 2 + 4 * 32 * min(tokens, 16) * 1024 < 16 * k.nbytes


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_eager_repeats_no_keys(dtype: torch.dtype) -> None:
    q, k = torch.randn(1, 32, 1, 64).to(dtype), torch.randn(1, 2, 1024, 64).to(dtype)
    scores = 4 * 32 * 1024
    assert 0 < allocated("eager", q, k, MaskSpec(1, 1024, past=1023), None) < 8 * scores < 2 * 16 * k.nbytes


def test_a_long_prompt_through_a_window_makes_no_mask_of_its_length() -> None:
    tokens, window = 2048, 16
    q, k = torch.randn(1, 2, tokens, 8), torch.randn(1, 1, tokens, 8)
    mask = MaskSpec(tokens, tokens, window=window)
    with torch.no_grad(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        BACKENDS["sdpa"](q, k, k, mask, scale=1.0, dropout=0.0, upcast=False, sinks=None)
    assert sum(max(0, event.self_cpu_memory_usage) for event in record.key_averages()) < tokens * tokens  # bool: 1 byte


def test_layers_of_a_kind_share_one_mask() -> None:
    mask = MaskSpec(20, 20, window=4)
    q = torch.randn(1, 2, 20, 8)
    for _ in range(3):
        for backend in ("eager", "sdpa", "flex_attention"):
            BACKENDS[backend](q, q, q, mask, scale=1.0, dropout=0.0, upcast=False, sinks=None)
    assert len(mask._made) == 3  # bool, numbers, flex_attention's own
