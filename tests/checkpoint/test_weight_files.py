"""Which files hold the weights, and index files that nobody vouches for."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from quintet.checkpoint import find_weights, open_source, read_index
from quintet.errors import CheckpointError, HubError

INDEX = "model.safetensors.index.json"


def shard(folder: Path, name: str, **tensors: torch.Tensor) -> None:
    save_file(tensors, folder / name)


def index(folder: Path, weight_map: Any, name: str = INDEX) -> Path:
    path = folder / name
    path.write_text(json.dumps({"metadata": {"total_size": 0}, "weight_map": weight_map}))
    return path


@pytest.fixture
def two(tmp_path: Path) -> Path:
    shard(tmp_path, "model-1.safetensors", a=torch.zeros(2))
    shard(tmp_path, "model-2.safetensors", b=torch.ones(2))
    index(tmp_path, {"a": "model-1.safetensors", "b": "model-2.safetensors"})
    return tmp_path


def test_single_file_before_index(two: Path) -> None:
    assert [path.name for path in find_weights(two)] == ["model-1.safetensors", "model-2.safetensors"]
    shard(two, "model.safetensors", a=torch.zeros(2))
    files = find_weights(two)
    assert [path.name for path in files] == ["model.safetensors"] and files.weight_map is None and len(files) == 1


def test_variant(two: Path) -> None:
    shard(two, "model.fp16.safetensors", a=torch.zeros(2))
    assert find_weights(two, variant="fp16").paths[0].name == "model.fp16.safetensors"
    index(two, {"a": "model-1.safetensors"}, "model.safetensors.index.bf16.json")
    assert find_weights(two, variant="bf16").paths[0].name == "model-1.safetensors"
    with pytest.raises(HubError, match="neither 'model.int8.safetensors' nor 'model.safetensors.index.int8.json'"):
        find_weights(two, variant="int8")


@pytest.mark.parametrize("variant", ["", "../x", "a/b", "a.b", 3, "x\0"])
def test_bad_variant(tmp_path: Path, variant: Any) -> None:
    with pytest.raises(CheckpointError, match="letters, digits, '-' and '_' are allowed"):
        find_weights(tmp_path, variant=variant)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(HubError, match="There is no folder"):
        find_weights(tmp_path / "no")
    with pytest.raises(HubError, match="neither 'model.safetensors' nor .* It holds: nothing"):
        find_weights(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(HubError, match="It holds: config.json"):
        find_weights(tmp_path)


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model-00001-of-00002.bin"]
)
def test_a_pickle_is_refused_unless_asked_for(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("x")
    for choice in (None, True):
        with pytest.raises(CheckpointError, match="only as a pickle .* use_safetensors=False .* save_pretrained"):
            find_weights(tmp_path, use_safetensors=choice)


def test_a_pickle_that_is_asked_for_is_found(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_text("x")
    files = find_weights(tmp_path, use_safetensors=False)
    assert (files.format, files.paths[0].name) == ("torch", "pytorch_model.bin")


# --- the index --------------------------------------------------------------------------------------------------------

BAD = ["../x", "/etc/passwd", "/dev/zero", "sub/x", "a\\b", "..\\x", "x\0", "", ".", "..", "C:x", "nul"]


@pytest.mark.parametrize("name", BAD, ids=repr)
def test_names_that_leave_the_folder(two: Path, name: str) -> None:
    path = index(two, {"a": "model-1.safetensors", "b": name})
    for call in (lambda: read_index(path), lambda: find_weights(two)):
        with pytest.raises(CheckpointError, match="is refused: "):
            call()


def test_links_out_of_the_folder_and_devices(two: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    outside = tmp_path_factory.mktemp("outside") / "model-3.safetensors"
    save_file({"c": torch.zeros(1)}, outside)
    os.symlink(outside, two / "model-3.safetensors")
    os.symlink("/dev/zero", two / "model-4.safetensors")
    os.mkfifo(two / "model-5.safetensors")
    for number, words in ((3, "leads out of the folder"), (4, "leads out of the folder"), (5, "not a regular file")):
        index(two, {"c": f"model-{number}.safetensors"})
        with pytest.raises(CheckpointError, match=words):
            find_weights(two)


def test_a_link_to_a_shard_in_the_same_folder_is_fine(two: Path) -> None:
    os.symlink("model-1.safetensors", two / "alias.safetensors")
    index(two, {"a": "alias.safetensors", "b": "model-2.safetensors"})
    assert set(open_source(two)) == {"a", "b"}


def test_shards_of_a_cache_snapshot(tmp_path: Path) -> None:
    """The form that huggingface_hub gives every download: links into the blobs of the same model."""
    repo = tmp_path / "models--o--n"
    (repo / "blobs").mkdir(parents=True)
    snapshot = repo / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    save_file({"a": torch.ones(3)}, repo / "blobs" / "abc")
    (snapshot / "model-1.safetensors").symlink_to("../../blobs/abc")
    index(snapshot, {"a": "model-1.safetensors"})
    assert open_source(snapshot).get("a").tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "is not JSON.* It is empty"),
        ("[]", "holds a JSON list"),
        ("{}", "needs a 'weight_map' object .* has NoneType"),
        ('{"weight_map": []}', "has list"),
        ('{"weight_map": {}}', "has an empty one"),
        ('{"weight_map": {"a": 3}}', "gives 3 as the file of tensor 'a'"),
        ('{"weight_map": {"a": null}}', "gives None as the file"),
        ('{"weight_map": {"a": ["x"]}}', r"gives \['x'\] as the file"),
        ('{"weight_map": {"a": "x", "a": "y"}}', "gives the key 'a' twice"),
    ],
)
def test_bad_index(tmp_path: Path, content: str, words: str) -> None:
    (tmp_path / INDEX).write_text(content)
    with pytest.raises(CheckpointError, match=words):
        find_weights(tmp_path)


def test_missing_shards_are_named(two: Path) -> None:
    index(two, {str(n): f"model-{n}.safetensors" for n in range(1, 10)})
    with pytest.raises(
        CheckpointError, match="names 7 of 9 files that are not there: model-3.safetensors, .* get them"
    ):
        find_weights(two)


def test_tensor_that_is_not_in_its_shard(two: Path) -> None:
    index(two, {"a": "model-1.safetensors", "b": "model-1.safetensors"})
    with pytest.raises(CheckpointError, match="tensor 'b' is in 'model-1.safetensors', and it is not there"):
        open_source(two)


def test_tensor_in_two_shards(two: Path) -> None:
    shard(two, "model-2.safetensors", a=torch.ones(2), b=torch.ones(2))
    assert open_source(two).get("a").tolist() == [0, 0]  # the index says which one counts
    index(two, {"b": "model-2.safetensors", "x": "model-3.safetensors"})
    shard(two, "model-3.safetensors", a=torch.zeros(2), x=torch.zeros(2))
    with pytest.raises(CheckpointError, match="'a' is in both 'model-2.safetensors' and 'model-3.safetensors'"):
        open_source(two)


def test_tensor_that_the_index_forgot_is_used(two: Path) -> None:
    shard(two, "model-2.safetensors", b=torch.ones(2), c=torch.ones(1))
    assert set(open_source(two)) == {"a", "b", "c"}


def test_a_damaged_shard_is_named(two: Path) -> None:
    path = two / "model-2.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="model-2.safetensors.* is truncated"):
        open_source(two)


names = st.sampled_from(["model-1.safetensors", "model-2.safetensors", *BAD]) | st.text(max_size=8) | st.integers()


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.sampled_from("abcd"), names, max_size=4) | names)
def test_random_index_files_never_crash(two: Path, weight_map: Any) -> None:
    index(two, weight_map)
    try:
        found = set(open_source(two))
    except CheckpointError:
        return
    assert found <= {"a", "b"} and found >= set(weight_map)


# --- pickles ----------------------------------------------------------------------------------------------------------


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, ("touch /tmp/quintet-was-here",))


def test_torch_file(tmp_path: Path) -> None:
    tensors = {"a": torch.arange(3.0), "b": torch.ones(2, dtype=torch.bfloat16)}
    for zipped in (True, False):
        torch.save(tensors, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
        source = open_source(find_weights(tmp_path, use_safetensors=False))
        assert all(torch.equal(source.get(key), tensors[key]) for key in tensors)


def test_torch_file_in_shards(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1)}, tmp_path / "pytorch_model-1.bin")
    torch.save({"b": torch.ones(1)}, tmp_path / "pytorch_model-2.bin")
    index(tmp_path, {"a": "pytorch_model-1.bin", "b": "pytorch_model-2.bin"}, "pytorch_model.bin.index.json")
    assert set(open_source(find_weights(tmp_path, use_safetensors=False))) == {"a", "b"}


@pytest.mark.parametrize("version", ["2.9.1", "2.6.0+cu124", "1.13.1", "unknown"])
def test_old_torch_does_not_read_pickles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    torch.save({"a": torch.zeros(1)}, tmp_path / "pytorch_model.bin")
    monkeypatch.setattr(torch, "__version__", version)
    with pytest.raises(CheckpointError, match="needs torch >= 2.10.*CVE-2025-32434.*CVE-2026-24747"):
        open_source(find_weights(tmp_path, use_safetensors=False))


def test_code_in_a_pickle_does_not_run(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1), "evil": Evil()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="cannot be read as weights"):
        open_source(find_weights(tmp_path, use_safetensors=False))
    assert not Path("/tmp/quintet-was-here").exists()


@pytest.mark.parametrize("content", [b"", b"not a pickle", b"PK\x03\x04 truncated"])
def test_damaged_torch_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(content)
    with pytest.raises(CheckpointError, match="cannot be read as weights: .*damaged"):
        open_source(find_weights(tmp_path, use_safetensors=False))


@pytest.mark.parametrize("content", [[torch.zeros(1)], {"a": 1}, {1: torch.zeros(1)}, {"model": {"a": torch.zeros(1)}}])
def test_torch_file_that_is_no_state_dict(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="not a plain state dict"):
        open_source(find_weights(tmp_path, use_safetensors=False))
