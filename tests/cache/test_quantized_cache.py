"""Old tokens in 8 bits: how far they may be off, what is rounded and when, and the memory that is left."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quintet.cache import DynamicSlidingLayer, QuantizedCache, QuantizedLayer, quantization_error
from quintet.errors import ConfigError, InputError


def uneven(tokens: int, rows: int = 1) -> torch.Tensor:
    """Keys whose channels differ in mean and size, as those of trained models do."""
    size, mean = torch.randn(1, 2, 1, 16).exp(), 3 * torch.randn(1, 2, 1, 16)
    return torch.randn(rows, 2, tokens, 16) * size + mean


@given(
    scale=st.floats(1e-6, 1e6),
    shift=st.floats(-1e3, 1e3),
    chunks=st.lists(st.integers(1, 40), min_size=3, max_size=6),
    axes=st.tuples(st.sampled_from([-1, 0]), st.sampled_from([-1, 0])),
)
@settings(max_examples=40)
def test_the_bound(scale: float, shift: float, chunks: list[int], axes: tuple[int, int]) -> None:
    """Half a step: (greatest - least) / 510 of the channel and block, or of the token; and float32's own rounding."""
    torch.manual_seed(0)
    cache = QuantizedCache(q_group_size=8, residual_length=4, axis_key=axes[0], axis_value=axes[1])
    total = sum(chunks)
    exact = [torch.randn(1, 2, total, 6) * scale + shift for _ in range(2)]
    at = 0
    for count in chunks:
        cache.update(exact[0][:, :, at : at + count], exact[1][:, :, at : at + count], 0)
        at += count
    layer = cache.layers[0]
    assert isinstance(layer, QuantizedLayer)
    old = layer.codes.length
    assert old == max(0, (total - 4) // 8 * 8)
    for axis, stored, x in zip(axes, cache[0], exact, strict=True):
        blocks = x[:, :, :old].unflatten(2, (-1, 8))  # (1, 2, old / 8, 8, 6)
        spread = (
            blocks.amax(3, keepdim=True) - blocks.amin(3, keepdim=True)
            if axis == -1
            else blocks.amax(4, keepdim=True) - blocks.amin(4, keepdim=True)
        )
        off = (stored[:, :, :old].unflatten(2, (-1, 8)) - blocks).abs()
        assert (off <= spread / 510 * 1.001 + 4e-7 * x.abs().max()).all()
        assert torch.equal(stored[:, :, old:], x[:, :, old:])


def test_the_error_is_measured() -> None:
    keys, values = uneven(500), torch.randn(1, 2, 500, 16)
    found = QuantizedCache().quantization_error(keys, values)
    assert 0 < found.keys <= found.keys_bound * 1.001
    assert 0 < found.values <= found.values_bound * 1.001
    assert 0.001 < found.keys_relative < 0.006
    assert 0.001 < found.values_relative < 0.006
    # what a cache really gives back is as far off
    cache = QuantizedCache(residual_length=1, q_group_size=64)
    cache.update(keys, values, 0)
    assert (cache[0][0] - keys).abs().max().item() == pytest.approx(found.keys, rel=1e-4)
    same = quantization_error(torch.full((1, 1, 64, 2), 3.0), torch.zeros(1, 1, 64, 2))
    assert same == (0, 0, 0, 0, 0, 0)
    with pytest.raises(InputError, match=r"keys hold fewer than 64 tokens \(q_group_size\)"):
        quantization_error(keys[:, :, :63], values)


def test_why_keys_get_a_step_per_channel() -> None:
    keys, values = uneven(512), torch.randn(1, 2, 512, 16)
    channel, token = (quantization_error(keys, values, axis_key=axis, axis_value=axis) for axis in (-1, 0))
    assert channel.keys_relative < 0.7 * token.keys_relative
    assert token.values_relative < 1.1 * channel.values_relative
    # affine codes against symmetric ones
    blocks = keys.unflatten(2, (-1, 64))
    step = blocks.abs().amax(3, keepdim=True) / 127
    symmetric = ((blocks / step).round() * step - blocks).norm() / blocks.norm()
    assert channel.keys_relative < 0.9 * symmetric


@pytest.mark.parametrize(("dtype", "part"), [(torch.float32, 0.32), (torch.bfloat16, 0.64)], ids=str)
def test_memory(dtype: torch.dtype, part: float) -> None:
    cache = QuantizedCache()
    x = torch.randn(1, 8, 4096, 64, dtype=dtype)
    keys, values = cache.update(x, x, 0)
    assert keys.data_ptr() == values.data_ptr() == x.data_ptr()
    layer = cache.layers[0]
    assert isinstance(layer, QuantizedLayer)
    assert layer.nbytes < part * 2 * x.numel() * x.element_size()
    held = sum(
        tensor.untyped_storage().nbytes()
        for one in layer.parts.values()
        for tensor in (one.keys, one.values)
        if tensor is not None
    )
    assert held < 1.01 * layer.nbytes  # nothing keeps the exact keys alive
    keys, _ = cache.update(x[:, :, :1], x[:, :, :1], 0)
    assert keys.dtype == dtype
    assert keys.shape == (1, 8, 4097, 64)


def test_new_tokens_come_back_as_they_went_in_and_recent_ones_stay() -> None:
    cache, x = QuantizedCache(q_group_size=4, residual_length=6), uneven(40)
    for at in range(40):
        keys, _ = cache.update(x[:, :, at : at + 1], x[:, :, at : at + 1], 0)
        assert torch.equal(keys[:, :, -6:], x[:, :, max(0, at - 5) : at + 1])
        assert keys.shape[2] == at + 1
    assert not torch.equal(keys, x)


def test_a_crop_into_a_block_makes_it_exact_once_more() -> None:
    cache, x = QuantizedCache(q_group_size=8, residual_length=2), uneven(64)
    cache.update(x, x, 0)
    before = cache[0][0].clone()
    layer = cache.layers[0]
    assert isinstance(layer, QuantizedLayer)
    cache.crop(29)
    assert (layer.codes.length, layer.recent.length, cache.get_seq_length()) == (24, 5, 29)
    assert torch.equal(cache[0][0], before[:, :, :29])
    keys, _ = cache.update(x[:, :, 29:], x[:, :, 29:], 0)
    assert torch.equal(keys[:, :, 29:], x[:, :, 29:])
    cache.crop(16)
    assert (layer.codes.length, layer.recent.length) == (16, 0)
    assert cache.update(x[:, :, 16:20], x[:, :, 16:20], 0)[0].shape[2] == 20
    cache.crop(0)
    assert cache.update(x[:, :, :3], x[:, :, :3], 0)[0].shape[2] == 3
    cache.reset()
    assert len(cache) == 0


def test_windows_stay_exact() -> None:
    kinds = ["sliding_attention", "full_attention"]
    cache = QuantizedCache(config=SimpleNamespace(num_hidden_layers=2, layer_types=kinds, sliding_window=3))
    assert [type(layer) for layer in cache.layers] == [DynamicSlidingLayer, QuantizedLayer]
    assert not cache.is_compileable
    cache.reset()
    assert len(cache) == 2
    with pytest.raises(ConfigError, match="sliding_window is 0"):
        QuantizedCache(config=SimpleNamespace(num_hidden_layers=2, layer_types=kinds, sliding_window=0))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"backend": "quanto"}, "is 'quanto', but the only one is 'int8'.* Write QuantizedCache"),
        ({"backend": "HQQ"}, "is 'HQQ', but the only one is 'int8'"),
        ({"nbits": 4}, "nbits is 4, but the 'int8' backend stores 8 bits"),
        ({"axis_key": 1}, r"axis_key is 1, but must be -1 \(a step per channel\) or 0"),
        ({"axis_value": 2}, "axis_value is 2"),
        ({"q_group_size": 0}, "q_group_size is 0, but must be a whole number from 1"),
        ({"residual_length": -1}, "residual_length is -1"),
    ],
    ids=["quanto", "hqq", "bits", "key axis", "value axis", "block", "residual"],
)
def test_bad_arguments(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        QuantizedCache(**arguments)


def test_what_cannot_be_stored() -> None:
    x = torch.ones(1, 1, 1, 2)
    with pytest.raises(InputError, match="rounds what it stores, so no gradient can flow"):
        QuantizedCache().update(x.clone().requires_grad_(), x, 0)
    with pytest.raises(InputError, match="keys are torch.int64 .* must be floating-point"):
        QuantizedCache().update(x.long(), x.long(), 0)
    cache = QuantizedCache()
    cache.update(x, x, 0)
    with pytest.raises(InputError, match="batch_select_indices"):
        cache.update(torch.ones(2, 1, 1, 2), torch.ones(2, 1, 1, 2), 0)
