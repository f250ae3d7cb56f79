"""The same files, loaded by the reference and by us: the same weights, the same report, in both directions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from quintet.models import gpt2 as ours

theirs = pytest.importorskip("transformers")

SIZES = {
    "vocab_size": 50,
    "n_positions": 16,
    "n_embd": 8,
    "n_layer": 2,
    "n_head": 2,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
CLASSES = ["GPT2Model", "GPT2LMHeadModel", "GPT2DoubleHeadsModel", "GPT2ForSequenceClassification"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One folder for each class, saved by the reference."""
    folders = {}
    for name in CLASSES:
        torch.manual_seed(0)
        folders[name] = tmp_path_factory.mktemp(name)
        getattr(theirs, name)(theirs.GPT2Config(**SIZES, pad_token_id=0)).save_pretrained(folders[name])
    return folders


def compare(folder: Path, name: str, **keywords: Any) -> None:
    want, their_report = getattr(theirs, name).from_pretrained(folder, output_loading_info=True, **keywords)
    got, our_report = getattr(ours, name).from_pretrained(folder, output_loading_info=True, **keywords)
    for entry in ("missing_keys", "unexpected_keys"):
        assert our_report[entry] == set(their_report[entry]), entry
    shapes = {(key, tuple(one), tuple(other)) for key, one, other in their_report["mismatched_keys"]}
    assert our_report["mismatched_keys"] == shapes
    fresh = our_report["missing_keys"] | {key for key, _, _ in shapes}
    state, other = got.state_dict(), want.state_dict()
    assert state.keys() == other.keys()
    for key, tensor in other.items():
        assert state[key].dtype == tensor.dtype, key
        assert key in fresh or torch.equal(state[key], tensor), key
    assert str(got.dtype) == str(want.dtype)


@pytest.mark.parametrize("into", CLASSES)
@pytest.mark.parametrize("name", CLASSES)
def test_every_class_from_every_class(saved: dict[str, Path], name: str, into: str) -> None:
    compare(saved[name], into)


@pytest.mark.parametrize("dtype", ["auto", torch.bfloat16, torch.float16])
def test_dtypes(saved: dict[str, Path], dtype: Any) -> None:
    compare(saved["GPT2LMHeadModel"], "GPT2LMHeadModel", dtype=dtype)


def changed(saved: dict[str, Path], tmp_path: Path, change: Any) -> Path:
    source = saved["GPT2LMHeadModel"]
    save_file(change(load_file(source / "model.safetensors")), tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "config.json").write_text((source / "config.json").read_text())
    return tmp_path


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t | {"lm_head.weight": torch.randn(50, 8)},
        lambda t: t | {"lm_head.weight": t["transformer.wte.weight"].clone()},
        lambda t: {"lm_head.weight" if key == "transformer.wte.weight" else key: value for key, value in t.items()},
        lambda t: {key.removeprefix("transformer."): value for key, value in t.items()},
        lambda t: t | {"transformer.h.0.attn.bias": torch.ones(1, 1, 16, 16), "other.weight": torch.ones(1)},
        lambda t: {key: value for key, value in t.items() if "ln_f" not in key},
        lambda t: {key: value.to(torch.bfloat16) for key, value in t.items()},
    ],
    ids=["head differs", "head equal", "only head", "no prefix", "buffers", "missing", "bf16 file, fp32 config"],
)
@pytest.mark.parametrize("name", ["GPT2Model", "GPT2LMHeadModel"])
def test_forms(saved: dict[str, Path], tmp_path: Path, change: Any, name: str) -> None:
    compare(changed(saved, tmp_path, change), name)


def test_mismatched_sizes(saved: dict[str, Path]) -> None:
    compare(saved["GPT2LMHeadModel"], "GPT2LMHeadModel", n_positions=32, ignore_mismatched_sizes=True)


@pytest.mark.parametrize("size", ["5GB", "4KB"])
def test_what_we_save_the_reference_loads(saved: dict[str, Path], tmp_path: Path, size: str) -> None:
    model = ours.GPT2LMHeadModel.from_pretrained(saved["GPT2LMHeadModel"])
    model.save_pretrained(tmp_path, max_shard_size=size)
    compare(tmp_path, "GPT2LMHeadModel")
    other = theirs.GPT2LMHeadModel.from_pretrained(saved["GPT2LMHeadModel"])
    other.save_pretrained(tmp_path / "theirs", max_shard_size=size)
    weights = [path.name for path in tmp_path.glob("model*")]
    assert sorted(weights) == sorted(path.name for path in (tmp_path / "theirs").glob("model*"))
