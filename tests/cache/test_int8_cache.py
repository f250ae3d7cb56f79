"""Int8Cache: what it stores, what it takes, what it costs a model, and its errors."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import quintet
from quintet.cache import Cache, DynamicCache, Int8Cache
from quintet.cache.int8 import decode_int8, encode_int8, head_size
from quintet.errors import CheckpointError, InputError


def tokens(count: int, rows: int = 2, size: int = 64, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, 3, count, size, generator=torch.Generator().manual_seed(seed))


@given(size=st.integers(1, 140), seed=st.integers(0, 99), power=st.integers(-20, 20))
@settings(max_examples=80, deadline=None)
def test_no_number_is_off_by_more_than_half_a_scale(size: int, seed: int, power: int) -> None:
    x = tokens(3, size=size, seed=seed) * 2.0**power
    stored = encode_int8(x)
    assert stored.dtype == torch.int8 and stored.shape[-1] == size + 2 * math.ceil(size / 32)
    assert head_size(stored.shape[-1]) == size
    back = decode_int8(stored, size, torch.float32)
    for begin in range(0, size, 32):
        part, found = x[..., begin : begin + 32], back[..., begin : begin + 32]
        scale = part.abs().amax(-1, keepdim=True) / 127
        # a scale is rounded to 8 bits: by one part in 256 at most
        assert ((part - found).abs() <= scale * (0.5 + 0.01)).all()
    assert torch.equal(encode_int8(back)[..., :size], stored[..., :size]), "what was rounded stays as it is"


def test_widths_that_no_head_has() -> None:
    widths = {size + 2 * math.ceil(size / 32) for size in range(1, 200)}
    for width in range(1, 200):
        assert (head_size(width) > 0) == (width in widths)


def test_numbers_that_are_none_and_zero() -> None:
    x = torch.zeros(1, 1, 4, 64)
    x[0, 0, 1, 3], x[0, 0, 2, 40], x[0, 0, 3, 5] = float("nan"), float("inf"), 1e-42
    back = decode_int8(encode_int8(x), 64, torch.float32)
    assert not back[0, 0, 0].any()
    assert back[0, 0, 1, :32].isnan().all() and not back[0, 0, 1, 32:].any()
    assert back[0, 0, 2, 32:].isnan().all() and not back[0, 0, 2, :32].any()
    assert back[0, 0, 3].abs().max() <= 1e-41


@pytest.mark.parametrize(("dtype", "share"), [(torch.bfloat16, 0.53125), (torch.float32, 0.265625)])
def test_memory(dtype: torch.dtype, share: float) -> None:
    cache, exact = Int8Cache(), DynamicCache()
    for one in (cache, exact):
        for count in (200, *[1] * 60):  # so that both have grown
            one.update(tokens(count).to(dtype), tokens(count).to(dtype), 0)
    held: Any = cache.layers[0]
    slabs = [held.store._keys, held.store._values], [exact.layers[0]._keys, exact.layers[0]._values]
    bytes_held = [sum(slab.untyped_storage().nbytes() for slab in side) for side in slabs]
    assert bytes_held[0] == share * bytes_held[1]
    assert held.nbytes == share * 2 * exact.layers[0].keys.numel() * dtype.itemsize


def test_a_token_does_not_depend_on_how_the_text_was_cut() -> None:
    x = tokens(70, size=80)
    whole, parts = Int8Cache(), Int8Cache()
    all_keys, all_values = whole.update(x, -x, 0)
    for part in x.split([1, 30, 2, 1, 36], dim=2):
        keys, values = parts.update(part, -part, 0)
    assert torch.equal(keys, all_keys) and torch.equal(values, all_values)
    assert torch.equal(values, -keys) and not torch.equal(keys, x)
    alone = Int8Cache()
    assert torch.equal(alone.update(x[1:], -x[1:], 0)[0], all_keys[1:])


def test_layers_and_their_windows() -> None:
    kinds = ["sliding_attention", "full_attention"]
    cache = Int8Cache(config=SimpleNamespace(num_hidden_layers=2, layer_types=kinds, sliding_window=5))
    assert cache.is_sliding == [True, False]
    for count in (9, 1, 1):
        for layer in range(2):
            cache.update(tokens(count), tokens(count), layer)
    assert cache[0][0].shape[2] == 4 and cache[1][0].shape[2] == 11
    assert cache.layers[0].store._keys.shape[2] <= 10, "a window's memory is bounded"
    with pytest.raises(InputError, match="cannot be cropped from 11 to 3 tokens"):
        cache.crop(3)


def test_the_tuple_form_and_pairs_to_begin_with() -> None:
    x = tokens(4)
    cache = Int8Cache([(x, -x)])
    keys, values = cache.to_legacy_cache()[0]
    assert torch.equal(values, -keys) and torch.allclose(keys, x, atol=0.03)
    assert torch.equal(cache.key_cache[0], keys)
    assert isinstance(Int8Cache.from_legacy_cache(((x, x),)), Int8Cache)


def test_what_it_refuses() -> None:
    x = tokens(3)
    with pytest.raises(InputError, match="no gradient can flow"):
        Int8Cache().update(x.clone().requires_grad_(), x, 0)
    with pytest.raises(InputError, match="must be floating-point numbers"):
        Int8Cache().update(x.long(), x.long(), 0)
    cache = Int8Cache()
    cache.update(x, x, 0)
    with pytest.raises(InputError, match=r"\(2, 3, 64\) and got \(1, 3, 64\)"):
        cache.update(x[:1], x[:1], 0)
    with pytest.raises(InputError, match="holds keys in torch.float32"):
        cache.update(x.half(), x.half(), 0)
    with pytest.raises(InputError, match=r"holds values of .* \(2, 3, 64\) and got \(2, 3, 32\)"):
        cache.update(x, x[..., :32], 0)
    assert cache.get_seq_length() == 3
    cache.reset()
    cache.update(x[:1].half(), x[:1].half(), 0)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"dtype": "int4"}, "its numbers are of the type 'int4'"),
        ({"lengths": [5]}, "has 4 tokens, and 5 are needed"),
    ],
)
def test_files_that_were_changed(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    import json

    from safetensors import safe_open
    from safetensors.torch import save_file

    cache = Int8Cache([(tokens(4).bfloat16(), tokens(4).bfloat16())])
    cache.save(tmp_path / "cache")
    again = Cache.load(tmp_path / "cache")
    assert type(again) is Int8Cache and again.layers[0].sample.dtype == torch.bfloat16
    with safe_open(tmp_path / "cache", "pt") as file:
        metadata, held = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    metadata["cache"] = json.dumps({**json.loads(metadata["cache"]), **change})
    save_file(held, tmp_path / "changed", metadata)
    with pytest.raises(CheckpointError, match=said):
        Cache.load(tmp_path / "changed")


def test_a_file_with_heads_that_there_are_not(tmp_path: Path) -> None:
    from safetensors import safe_open
    from safetensors.torch import save_file

    Int8Cache([(tokens(4), tokens(4))]).save(tmp_path / "cache")
    with safe_open(tmp_path / "cache", "pt") as file:
        metadata, held = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    held["0.values"] = held["0.values"][..., :36].contiguous()
    save_file(held, tmp_path / "changed", metadata)
    with pytest.raises(CheckpointError, match="has 36 bytes in a head"):
        Cache.load(tmp_path / "changed")


# --- with a model -----------------------------------------------------------------------------------------------------


def storyteller(dtype: str) -> Any:
    return quintet.AutoModelForCausalLM.from_pretrained("storyteller", dtype=dtype).eval()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_storytellers_perplexity(dtype: str, data_dir: Path) -> None:
    model = storyteller(dtype)
    text = (data_dir / "storybook" / "valid.txt").read_text(encoding="utf-8")[:30_000]
    ids = quintet.AutoTokenizer.from_pretrained("storyteller")(text, verbose=False)["input_ids"]
    ids = torch.tensor(ids[: 8 * 512]).view(8, 512)
    mean = {}
    with torch.no_grad():
        for kind in (DynamicCache, Int8Cache):
            logits = model(ids, past_key_values=kind(config=model.config), use_cache=True).logits.float()
            chosen = logits.log_softmax(-1)[:, :-1].gather(-1, ids[:, 1:, None])
            mean[kind] = -chosen.double().mean()
    assert mean[Int8Cache] != mean[DynamicCache], "the cache was used"
    assert abs(float((mean[Int8Cache] - mean[DynamicCache]).exp()) - 1) < 1e-3


def test_generate_makes_one_by_name() -> None:
    model = storyteller("float32")
    ids = torch.tensor([[5, 6, 7, 8]])
    options = {"max_new_tokens": 12, "do_sample": False, "return_dict_in_generate": True}
    out = model.generate(ids, cache_implementation="int8", **options)
    assert type(out.past_key_values) is Int8Cache
    beams = model.generate(ids, cache_implementation="int8", num_beams=3, max_new_tokens=12, do_sample=False)
    assert beams.shape == out.sequences.shape
    with pytest.raises(quintet.GenerationError, match="'int8'; it takes none"):
        model.generate(ids, cache_implementation="int8", cache_config={"nbits": 4}, max_new_tokens=2)
