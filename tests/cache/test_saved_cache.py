"""Caches in files: every kind comes back as it was, and no file that is broken or hostile comes back at all."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from quintet.cache import (
    Cache,
    DynamicCache,
    EncoderDecoderCache,
    Int8Cache,
    OffloadedCache,
    QuantizedCache,
    StaticCache,
)
from quintet.errors import CheckpointError, HubError, InputError

KINDS = ["sliding_attention", "full_attention", "sliding_attention"]


def config(**changes: Any) -> Any:
    base = {"num_hidden_layers": 3, "layer_types": KINDS, "sliding_window": 4}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "hidden_size": 64}
    return SimpleNamespace(**{**base, **heads, **changes})


STORES: dict[str, Callable[[], Cache]] = {
    "growing": DynamicCache,
    "sliding": lambda: DynamicCache(config=config()),
    "offloaded": lambda: OffloadedCache(config=config()),
    "static": lambda: StaticCache(config(), 40),
    "quantized": lambda: QuantizedCache(config=config(), q_group_size=4, residual_length=3),
    "per channel": lambda: QuantizedCache(q_group_size=4, residual_length=3, axis_key=0, axis_value=-1),
    "int8": lambda: Int8Cache(config=config()),
    "int8 growing": Int8Cache,
}


def feed(*caches: Cache, tokens: int, seed: int = 0) -> None:
    """Give every cache the same tokens, and see that all return the same visible keys."""
    torch.manual_seed(seed)
    for layer in range(3):
        keys, values = torch.randn(2, 2, tokens, 8), torch.randn(2, 2, tokens, 8)
        results = [cache.update(keys, values, layer) for cache in caches]
        for result in results[1:]:
            for one, other in zip(result, results[0], strict=True):
                assert one.shape == other.shape
                visible = min(one.shape[2], tokens + 3 if layer != 1 else one.shape[2])
                assert torch.equal(one[:, :, -visible:], other[:, :, -visible:])


@pytest.mark.parametrize("name", STORES)
@pytest.mark.parametrize("tokens", [0, 2, 14])
def test_round_trip(name: str, tokens: int, tmp_path: Path) -> None:
    cache = STORES[name]()
    if tokens:
        feed(cache, tokens=tokens)
        feed(cache, tokens=1)
    cache.save(tmp_path / "cache.safetensors")
    again = type(cache).load(tmp_path / "cache.safetensors")
    assert type(again) is type(cache)
    assert again.get_seq_length() == cache.get_seq_length() == (tokens + 1 if tokens else 0)
    assert again.get_max_cache_shape() == cache.get_max_cache_shape()
    for seed in range(3):
        feed(cache, again, tokens=2, seed=seed)
    again.crop(-2)
    cache.crop(-2)
    feed(cache, again, tokens=3)
    assert os.listdir(tmp_path) == ["cache.safetensors"]


def test_a_cropped_quantized_cache(tmp_path: Path) -> None:
    cache = STORES["quantized"]()
    feed(cache, tokens=3)
    cache.crop(0)
    feed(cache, tokens=6)
    feed(cache, tokens=3)
    cache.layers[1].crop(4)  # type: ignore[attr-defined]  # to the end of a block: nothing is recent
    cache.save(tmp_path / "cache")
    again = Cache.load(tmp_path / "cache")
    assert again.get_seq_length(1) == 4
    assert torch.equal(again[1][0], cache[1][0])  # type: ignore[index]


def test_a_pair(tmp_path: Path) -> None:
    pair = EncoderDecoderCache(DynamicCache(config=config()), DynamicCache())
    feed(pair, tokens=5)
    feed(pair.cross_attention_cache, tokens=7)
    pair.save(tmp_path / "pair")
    again = Cache.load(tmp_path / "pair", config=config())
    assert isinstance(again, EncoderDecoderCache)
    assert again.is_updated == {0: True, 1: True, 2: True}
    assert (again.get_seq_length(), again.cross_attention_cache.get_seq_length()) == (5, 7)
    feed(pair, again, tokens=2)


def test_types_and_places(tmp_path: Path) -> None:
    cache = DynamicCache()
    x = torch.randn(1, 2, 3, 8).bfloat16()
    cache.update(x.transpose(0, 1), x.transpose(0, 1), 0)
    cache.save(tmp_path / "cache")
    again = DynamicCache.load(tmp_path / "cache")
    assert torch.equal(again[0][0], x.transpose(0, 1))
    assert DynamicCache.load(tmp_path / "cache", device="meta")[0][0].device.type == "meta"
    cache.save(tmp_path / "cache")  # over itself, while the other one is in use
    assert torch.equal(again[0][0], x.transpose(0, 1))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    cache = DynamicCache(config=config())
    feed(cache, tokens=9)
    cache.save(tmp_path / "cache.safetensors")
    return tmp_path / "cache.safetensors"


def rewrite(path: Path, about: Any = None, tensors: Any = None, metadata: Any = None) -> None:
    """Write a file again with changes to what it says and holds."""
    with safe_open(path, framework="pt") as file:
        old = dict(file.metadata())
    told = json.loads(old["cache"])
    held = load_file(path)
    for change, target in ((about, told), (tensors, held)):
        if change is not None:
            change(target)
    save_file(held, path, {**old, "cache": json.dumps(told), **(metadata or {})})


def test_a_rewritten_file_is_good(saved: Path) -> None:
    """So that the tests below fail for what they change, and for nothing else."""
    rewrite(saved)
    assert Cache.load(saved, config=config()).get_seq_length() == 9


BROKEN: dict[str, tuple[dict[str, Any], str]] = {
    "no cache": ({"metadata": {"format": "pt"}}, "is not a saved cache: its metadata says format 'pt'"),
    "no json": ({"metadata": {"cache": "{"}}, "is not JSON"),
    "twice": ({"metadata": {"cache": '{"kind": "dynamic", "kind": "static"}'}}, "gives the key 'kind' twice"),
    "a list": ({"metadata": {"cache": "[]"}}, "holds a JSON list"),
    "kind": ({"about": lambda a: a.update(kind="os.system")}, "is of the kind 'os.system'"),
    "kind of list": ({"about": lambda a: a.update(kind=["dynamic"])}, r"is of the kind \['dynamic'\]"),
    "nested": ({"about": lambda a: a.update(kind="encoder_decoder")}, "does not describe its self_attention_cache"),
    "lengths": ({"about": lambda a: a.update(lengths=None)}, "its lengths are no list"),
    "many layers": ({"about": lambda a: a.update(lengths=[0] * 20_000, windows=None)}, "no list of at most 10000"),
    "length": ({"about": lambda a: a.update(lengths=[9, 8, 9])}, "'1.keys' has 9 tokens, and 8 are needed"),
    "huge length": ({"about": lambda a: a.update(lengths=[9, 10**30, 9])}, "a length is 1000000000000000000000"),
    "negative": ({"about": lambda a: a.update(lengths=[9, -1, 9])}, "a length is -1"),
    "text": ({"about": lambda a: a.update(lengths=[9, "9", 9])}, "a length is '9'"),
    "fewer": ({"about": lambda a: a.update(lengths=[9, 9])}, "gives 2 lengths for 3 layers"),
    "window": ({"about": lambda a: a.update(windows=[0, None, 4])}, "a window is 0"),
    "windows": ({"about": lambda a: a.update(windows=[4, None, 5])}, r"layers of different windows \(\[4, 5\]\)"),
    "windows of text": ({"about": lambda a: a.update(windows="444")}, "its windows are no list"),
    "gone": ({"tensors": lambda t: t.pop("2.values")}, "the tensor '2.values' is missing"),
    "more": ({"tensors": lambda t: t.update({"9.keys": torch.ones(1)})}, r"tensors of no layer \(9.keys\)"),
    "flat": ({"tensors": lambda t: t.update({"0.keys": torch.ones(6)})}, r"'0.keys' has shape \(6,\), not \(rows"),
    "empty": ({"tensors": lambda t: t.update({"0.keys": torch.ones(2, 0, 3, 8)})}, r"shape \(2, 0, 3, 8\)"),
    "rows": ({"tensors": lambda t: t.update({"1.keys": torch.ones(3, 2, 9, 8)})}, "has 3 rows, and 2 are needed"),
    "heads": ({"tensors": lambda t: t.update({"1.values": torch.ones(2, 1, 9, 8)})}, "has 1 heads, and 2 are needed"),
    "integers": ({"tensors": lambda t: t.update({"1.keys": torch.ones(2, 2, 9, 8).int()})}, "has type torch.int32"),
    "static": ({"about": lambda a: a.update(kind="static")}, "max_cache_len is None"),
    "full": ({"about": lambda a: a.update(kind="static", max_cache_len=5)}, "9 tokens were given to a StaticCache"),
    "huge": ({"about": lambda a: a.update(kind="static", max_cache_len=2**50)}, "a whole number from 1 to 16777216"),
    "settings": ({"about": lambda a: a.update(kind="quantized")}, "q_group_size is None"),
    "axis": (
        {"about": lambda a: a.update(kind="quantized", q_group_size=4, residual_length=3, axis_key=7, axis_value=0)},
        "axis_key is 7",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_contents_that_are_refused(saved: Path, name: str) -> None:
    changes, words = BROKEN[name]
    rewrite(saved, **changes)
    with pytest.raises(CheckpointError, match=words):
        Cache.load(saved)


QUANTIZED: dict[str, tuple[Callable[[dict[str, torch.Tensor]], Any], str]] = {
    "types": (
        lambda t: t.update({"1.codes.keys": t["1.codes.keys"].float()}),
        "has type torch.float32, and torch.uint8",
    ),
    "blocks": (lambda t: t.update({"1.key_scales.keys": torch.ones(2, 2, 9, 8)}), "has 9 tokens, and 2 are needed"),
    "size": (lambda t: t.update({"1.value_scales.keys": torch.ones(2, 2, 8, 8)}), "has 8 numbers in a head, and 1"),
    "recent": (lambda t: t.update({"1.recent.keys": torch.ones(2, 2, 6, 8)}), "'1.recent.values' has 5 tokens"),
    "none": (lambda t: t.pop("1.codes.values"), "'1.codes.values' is missing"),
    "much": (
        lambda t: t.update({"1.recent.keys": torch.ones(2, 2, 13, 8), "1.recent.values": torch.ones(2, 2, 13, 8)}),
        "'1.recent.keys' has 13 tokens of 13",
    ),
}


@pytest.mark.parametrize("name", QUANTIZED)
def test_codes_that_are_refused(tmp_path: Path, name: str) -> None:
    cache = QuantizedCache(config=config(), q_group_size=4, residual_length=3)
    feed(cache, tokens=13)
    cache.save(tmp_path / "cache")
    change, words = QUANTIZED[name]
    rewrite(tmp_path / "cache", tensors=change)
    with pytest.raises(CheckpointError, match=words):
        Cache.load(tmp_path / "cache")


@pytest.mark.parametrize("size", [0, 4, 8, 200, -1], ids=str)
def test_cut_off(saved: Path, size: int) -> None:
    data = saved.read_bytes()
    saved.write_bytes(data[:size])
    with pytest.raises(CheckpointError, match="is no sound safetensors file"):
        Cache.load(saved)


@pytest.mark.parametrize(
    "data",
    [b"\xff" * 64, (2**62).to_bytes(8, "little") + b"{}", b"\x80\x04\x95" + b"x" * 90, b"\x02" + b"\0" * 7 + b"{}"],
    ids=["noise", "huge header", "pickle", "nothing"],
)
def test_other_bytes(saved: Path, data: bytes) -> None:
    saved.write_bytes(data)
    with pytest.raises(CheckpointError, match="is no sound safetensors file|is not a saved cache"):
        Cache.load(saved)


def test_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(HubError, match=r"There is no file 'nothing'"):
        Cache.load(tmp_path / "nothing")
    with pytest.raises(CheckpointError, match="is not a regular file"):
        Cache.load(tmp_path)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(CheckpointError, match="is not a regular file"):
            Cache.load(tmp_path / "pipe")


def test_another_kind(saved: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"holds a DynamicCache, and a StaticCache was asked for. Load it with Dyn"
    ):
        StaticCache.load(saved)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_hidden_layers": 2, "layer_types": KINDS[:2]}, "it has 3 layers and the model 2"),
        ({"sliding_window": 8}, r"its windows are \[4, None, 4\] and the model's \[8, None, 8\]"),
        ({"num_key_value_heads": 4}, "it has 2 key/value heads and the model 4"),
        ({"head_dim": 16}, "it has 8 numbers in a head and the model 16"),
        ({"head_dim": None}, "it has 8 numbers in a head and the model 16"),
    ],
    ids=["layers", "window", "heads", "size", "width"],
)
def test_another_model(saved: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(CheckpointError, match=f"was made by another model: {words}"):
        Cache.load(saved, config=config(**changes))


def test_what_cannot_be_saved(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a Cache has no file form"):
        Cache().save(tmp_path / "other")
    with pytest.raises(CheckpointError, match="cannot be saved as .* Give a file in a folder"):
        DynamicCache().save(tmp_path / "no folder" / "cache")
    with pytest.raises(CheckpointError, match="cannot be saved as"):
        DynamicCache().save(tmp_path)
    assert Cache.load(saved).get_seq_length() == 9


def test_a_failed_save_leaves_the_old_file(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any) -> None:
        Path(args[1]).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("quintet.cache.storing.save_file", full)
    with pytest.raises(CheckpointError, match="No space left"):
        DynamicCache().save(saved)
    assert os.listdir(saved.parent) == [saved.name]
    assert Cache.load(saved).get_seq_length() == 9
