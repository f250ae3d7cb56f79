"""Files that are written: their form, and that a failed save leaves the old checkpoint and nothing else."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file

from quintet.checkpoint import find_weights, open_source, parse_size, save_weights
from quintet.checkpoint.tensorfile import DTYPES, TensorFile
from quintet.errors import CheckpointError

KILO = {f"w{n}": torch.full((256,), float(n)) for n in range(6)}  # six tensors of 1024 bytes


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def loaded(folder: Path) -> dict[str, torch.Tensor]:
    source = open_source(folder)
    return {key: source.get(key).clone() for key in source}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


# --- form -------------------------------------------------------------------------------------------------------------


def test_single_file(tmp_path: Path) -> None:
    assert save_weights(KILO, tmp_path / "new" / "folder") == [tmp_path / "new" / "folder" / "model.safetensors"]
    path = tmp_path / "new" / "folder" / "model.safetensors"
    assert same(load_file(path), KILO) and same(loaded(path.parent), KILO)
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_data_begins_on_a_cache_line(tmp_path: Path) -> None:
    for name in ("w", "a_longer_name", "x" * 77):
        save_weights({name: torch.zeros(3)}, tmp_path)
        assert TensorFile.open(tmp_path / "model.safetensors").header.data_start % 64 == 0


def test_shards_and_index(tmp_path: Path) -> None:
    written = save_weights(KILO, tmp_path, max_shard_size=2048)
    shards = [f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)]
    assert names(tmp_path) == [*shards, "model.safetensors.index.json"] == [path.name for path in written]
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"] == {"total_size": 6 * 1024}
    assert index["weight_map"] == {f"w{n}": shards[n // 2] for n in range(6)}
    assert same(load_file(tmp_path / shards[1]), {"w2": KILO["w2"], "w3": KILO["w3"]})
    assert same(loaded(tmp_path), KILO)


def test_a_tensor_above_the_limit_gets_its_own_shard(tmp_path: Path) -> None:
    tensors = {"a": torch.zeros(10), "big": torch.zeros(1000), "b": torch.zeros(10), "c": torch.zeros(10)}
    save_weights(tensors, tmp_path, max_shard_size=100)
    weight_map = find_weights(tmp_path).weight_map or {}
    assert weight_map["a"] == weight_map["b"] and len(set(weight_map.values())) == 3


def test_shards_are_those_of_huggingface_hub(tmp_path: Path) -> None:
    from huggingface_hub import split_torch_state_dict_into_shards

    tensors = {f"t{n}": torch.zeros(size) for n, size in enumerate([5, 300, 20, 20, 256, 1, 1, 255, 600, 3])}
    save_weights(tensors, tmp_path, max_shard_size="1KB")
    plan = split_torch_state_dict_into_shards(
        tensors, max_shard_size="1KB", filename_pattern="model{suffix}.safetensors"
    )
    assert find_weights(tmp_path).weight_map == plan.tensor_to_filename


@pytest.mark.parametrize(
    ("size", "count"),
    [(5, 5), ("5", 5), ("5B", 5), ("5GB", 5 * 10**9), ("2 kb", 2000), ("1.5MB", 1_500_000), ("1GiB", 2**30)],
)
def test_sizes(size: int | str, count: int) -> None:
    assert parse_size(size) == count


@pytest.mark.parametrize("size", [0, -1, "0GB", "GB", "5 XB", "", "1e9", "-5GB", 1.5, True, None, "5IB", "9" * 40])
def test_bad_sizes(tmp_path: Path, size: Any) -> None:
    with pytest.raises(CheckpointError, match="is not a size: a number of bytes above 0"):
        save_weights(KILO, tmp_path / "x", max_shard_size=size)
    assert not (tmp_path / "x").exists()


def test_kinds_of_tensors(tmp_path: Path) -> None:
    base = torch.arange(24.0).view(4, 6)
    tensors = {
        "transposed": base.t(),
        "slice": base[1:3, ::2],
        "expanded": torch.ones(1).expand(5),
        "scalar": torch.tensor(3.5),
        "empty": torch.zeros(0, 7),
        "conj": torch.tensor([1 + 2j]).conj(),
        "negative": torch.tensor([1 + 2j]).conj().imag,
        "parameter": torch.nn.Parameter(torch.ones(3)),
        "bf16": torch.ones(3, dtype=torch.bfloat16),
        "bools": torch.tensor([True, False, True]),
        "shared1": base.view(-1)[:10],
        "shared2": base.view(-1)[5:15],
    }
    save_weights(tensors, tmp_path)
    library = load_file(tmp_path / "model.safetensors")
    for name, tensor in tensors.items():
        assert library[name].dtype == tensor.dtype and torch.equal(library[name], tensor.detach()), name
    assert same(loaded(tmp_path), library)
    assert find_weights(tmp_path).paths[0].stat().st_mode & 0o044 == 0o044 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@pytest.mark.parametrize("name", DTYPES)
def test_every_dtype(tmp_path: Path, name: str) -> None:
    raw = torch.tensor([0, 1, 1, 0, 0, 0, 1, 1] * 2, dtype=torch.uint8)
    save_weights({"a": raw.view(DTYPES[name]), "odd": raw[:3]}, tmp_path)
    got = loaded(tmp_path)["a"]
    assert got.dtype == DTYPES[name] and torch.equal(got.view(torch.uint8), raw)


def test_ties_are_written_once(tmp_path: Path) -> None:
    weight, copy, other = torch.ones(4), torch.ones(4), torch.zeros(4)
    save_weights({"a": weight, "b": weight, "c": weight}, tmp_path, tied={"b": "a"})
    assert set(loaded(tmp_path)) == {"a", "c"}  # only what the model says is tied: another reader needs the rest
    save_weights({"a": weight, "b": copy}, tmp_path, tied={"b": "a"})
    assert set(loaded(tmp_path)) == {"a"}  # a conversion of the state dict makes copies
    save_weights({"a": weight, "b": other}, tmp_path, tied={"b": "a"})
    assert set(loaded(tmp_path)) == {"a", "b"}
    save_weights({"b": weight}, tmp_path, tied={"b": "a"})
    assert set(loaded(tmp_path)) == {"b"}


def test_variant(tmp_path: Path) -> None:
    save_weights(KILO, tmp_path)
    save_weights(KILO, tmp_path, variant="fp16", max_shard_size=3 * 1024)
    assert names(tmp_path) == [
        "model.fp16-00001-of-00002.safetensors",
        "model.fp16-00002-of-00002.safetensors",
        "model.safetensors",
        "model.safetensors.index.fp16.json",
    ]
    assert same(loaded(tmp_path), KILO)
    assert len(find_weights(tmp_path, variant="fp16")) == 2
    save_weights(KILO, tmp_path, variant="fp16")
    assert names(tmp_path) == ["model.fp16.safetensors", "model.safetensors"]


@pytest.mark.parametrize(("before", "after"), [(10**6, 2048), (2048, 10**6), (2048, 1024), (1024, 2048), (2048, 2048)])
def test_the_files_of_the_former_save_go(tmp_path: Path, before: int, after: int) -> None:
    (tmp_path / "notes.safetensors").write_text("mine")
    save_weights({key: tensor + 1 for key, tensor in KILO.items()}, tmp_path, max_shard_size=before)
    written = save_weights(KILO, tmp_path, max_shard_size=after)
    assert names(tmp_path) == sorted(["notes.safetensors", *(path.name for path in written)])
    assert same(loaded(tmp_path), KILO)


def test_texts_become_real_with_the_weights(tmp_path: Path) -> None:
    written = save_weights(KILO, tmp_path, texts={"config.json": "{}\n"})
    assert [path.name for path in written] == ["model.safetensors", "config.json"]
    assert (tmp_path / "config.json").read_text() == "{}\n"


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"]), max_size=6).filter(lambda name: name != "__metadata__"),
        st.tuples(st.sampled_from(["float32", "bfloat16", "uint8", "int64"]), st.lists(st.integers(0, 5), max_size=3)),
        min_size=1,
        max_size=6,
    ),
    st.integers(1, 300),
)
def test_round_trip(tmp_path: Path, kinds: dict[str, tuple[str, list[int]]], limit: int) -> None:
    tensors = {
        name: (torch.randn(shape) * 9).to(getattr(torch, dtype)) for name, (dtype, shape) in kinds.items()
    }  # fmt: skip
    save_weights(tensors, tmp_path, max_shard_size=limit)
    assert same(loaded(tmp_path), tensors)
    merged: dict[str, torch.Tensor] = {}
    for path in find_weights(tmp_path):
        merged |= load_file(path)
    assert same(merged, tensors)


# --- what cannot be saved ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        (torch.zeros(2, device="meta"), "on meta\\) cannot be saved"),
        (torch.zeros(2).to_sparse(), "torch.sparse_coo"),
        (torch.zeros(2, dtype=torch.complex128), "torch.complex128"),
        ("text", "holds a str, not a tensor"),
    ],
    ids=["meta", "sparse", "complex128", "text"],
)
def test_unsaveable(tmp_path: Path, tensor: Any, words: str) -> None:
    with pytest.raises(CheckpointError, match=words):
        save_weights({"a": tensor}, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_reserved_name(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="may not be named '__metadata__'"):
        save_weights({"__metadata__": torch.zeros(1)}, tmp_path)


def test_a_file_in_the_place_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(CheckpointError, match="is a file \\(or below one\\), and a folder is needed"):
            save_weights(KILO, folder)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_folder_in_the_place_of_a_file(tmp_path: Path) -> None:
    save_weights(KILO, tmp_path)
    (tmp_path / "config.json").mkdir()
    with pytest.raises(CheckpointError, match="failed: 'config.json' is a folder there"):
        save_weights({"x": torch.zeros(1)}, tmp_path, texts={"config.json": "{}"})
    assert same(loaded(tmp_path), KILO) and names(tmp_path) == ["config.json", "model.safetensors"]


# --- failures ---------------------------------------------------------------------------------------------------------


class Failure:
    """Lets a function work a number of times and then raises."""

    def __init__(self, function: Any, times: int, error: BaseException) -> None:
        self.function, self.times, self.error = function, times, error

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.times -= 1
        if self.times < 0:
            raise self.error
        return self.function(*args, **kwargs)


@pytest.mark.parametrize("times", [0, 1, 4, 7])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("function", ["write", "fsync"])
def test_full_disk_and_ctrl_c_leave_the_old_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str, error: BaseException, times: int
) -> None:
    """Old and new are both in three shards of the same names, so nothing but care keeps them apart."""
    save_weights(KILO, tmp_path, max_shard_size=2048, texts={"config.json": "old"})
    before = names(tmp_path)
    if function == "fsync" and times > 4:
        return  # five files are flushed before the first rename; the folder comes after the last
    monkeypatch.setattr(os, function, Failure(getattr(os, function), times, error))
    new = {key: tensor + 1 for key, tensor in KILO.items()}
    words = (
        None
        if isinstance(error, KeyboardInterrupt)
        else "No space left .* needs 6,144 bytes; nothing there was changed"
    )
    with pytest.raises((CheckpointError, KeyboardInterrupt), match=words):
        save_weights(new, tmp_path, max_shard_size=2048, texts={"config.json": "new"})
    monkeypatch.undo()
    assert names(tmp_path) == before
    assert same(loaded(tmp_path), KILO) and (tmp_path / "config.json").read_text() == "old"


def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, bytes(data[:100])))
    save_weights(KILO, tmp_path)
    monkeypatch.undo()
    assert same(load_file(tmp_path / "model.safetensors"), KILO)


def test_nothing_is_renamed_before_everything_is_flushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []
    for name in ("fsync", "replace", "unlink"):
        function = getattr(os, name)

        def logged(*args: Any, _name: str = name, _function: Any = function, **kwargs: Any) -> Any:
            log.append(_name)
            return _function(*args, **kwargs)

        monkeypatch.setattr(os, name, logged)
    save_weights(KILO, tmp_path, max_shard_size=2048, texts={"config.json": "{}"})
    assert log == ["fsync"] * 5 + ["replace"] * 5 + ["fsync"]


def test_power_cut_between_renames_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards of the same names cannot be exchanged at once: a half-exchanged set must be refused, never mixed."""
    save_weights(KILO, tmp_path, max_shard_size=2048)
    monkeypatch.setattr(os, "replace", Failure(os.replace, 1, OSError(errno.EIO, "power cut")))
    with pytest.raises(CheckpointError, match="power cut"):
        save_weights({key: tensor + 1 for key, tensor in KILO.items()}, tmp_path, max_shard_size=2048)
    monkeypatch.undo()
    with pytest.raises(OSError, match="neither 'model.safetensors' nor 'model.safetensors.index.json'"):
        find_weights(tmp_path)
    save_weights(KILO, tmp_path, max_shard_size=2048)
    assert same(loaded(tmp_path), KILO)


def test_a_file_size_limit_of_the_system(tmp_path: Path) -> None:
    """A real refusal by the kernel (RLIMIT_FSIZE), in a child process because a limit cannot be raised again."""
    import resource

    folder, report = tmp_path / "model", tmp_path / "report"
    save_weights({"a": torch.zeros(10)}, folder)
    child = os.fork()
    if child == 0:
        try:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
            save_weights({"a": torch.ones(100_000)}, folder)
        except BaseException as error:
            report.write_text(f"{type(error).__name__} {error}")
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert report.read_text().startswith("CheckpointError Saving to") and "File too large" in report.read_text()
    assert names(folder) == ["model.safetensors"]
    assert same(loaded(folder), {"a": torch.zeros(10)})


@pytest.mark.slow
def test_a_real_full_disk(tmp_path: Path) -> None:
    """A tmpfs of 1 MB in a mount namespace of its own, where the machine lets a test make one."""
    code = """
import os, sys, torch
from quintet.checkpoint import open_source, save_weights
folder = sys.argv[1] + "/model"
save_weights({"a": torch.zeros(10_000)}, folder)
try:
    save_weights({"a": torch.ones(400_000)}, folder)
except ValueError as error:
    print(error)
print(sorted(os.listdir(folder)), open_source(folder).get("a").sum().item())
"""
    script = f'mount -t tmpfs -o size=1m tmpfs "{tmp_path}" && exec "{sys.executable}" -c "$CODE" "{tmp_path}"'
    run = subprocess.run(
        ["unshare", "--mount", "--map-root-user", "sh", "-c", script],
        env={**os.environ, "CODE": code},
        capture_output=True,
        text=True,
    )
    if "No space left" not in run.stdout and run.returncode and "Traceback" not in run.stderr:
        pytest.skip(f"no mount namespace here: {run.stderr.strip()[:80]}")
    assert "No space left on device. It needs 1,600,000 bytes" in run.stdout
    assert "['model.safetensors'] 0.0" in run.stdout
