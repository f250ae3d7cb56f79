"""What every conversion does: layouts found, space and output checked, all files at once or none."""

from __future__ import annotations

import shutil
import sys
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from quintet.convert import HUB, LAYOUTS, Entry, Layout, layout_of
from quintet.convert.run import convert, detect_layout
from quintet.errors import CheckpointError, UsageError


@pytest.fixture
def add(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Adds a layout that is found by a file of its name and written as the test says."""

    def make(name: str, **fields: Any) -> None:
        layout = Layout(name, detect=lambda folder: (folder / name).is_file(), **{"size": lambda folder: 100, **fields})
        monkeypatch.setitem(sys.modules, f"layout_{name}", SimpleNamespace(LAYOUT=layout))  # type: ignore[arg-type]
        monkeypatch.setitem(LAYOUTS, name, Entry(f"layout_{name}", "for tests"))

    return make


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "clay").write_text("x")
    return folder


def files(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in sorted(folder.iterdir())}


def tablet(source: Path, folder: Path, progress: Any) -> None:
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_text("new")
    progress(1, 1)


def test_every_layout_is_what_the_table_says() -> None:
    for name, entry in LAYOUTS.items():
        layout = layout_of(name)
        assert layout.name == name
        assert layout.to_hub is not None or layout.from_hub is not None
        assert entry.module.startswith("quintet.convert.")


def test_into_a_new_folder(add: Any, source: Path, tmp_path: Path) -> None:
    add("clay", to_hub=tablet)
    done = convert(source, tmp_path / "deep" / "out")
    assert (done.source_layout, done.target_layout, done.size) == ("clay", "hub", 5)
    assert done.files == [tmp_path / "deep" / "out" / name for name in ("config.json", "model.safetensors")]
    assert files(tmp_path / "deep" / "out") == {"config.json": "{}", "model.safetensors": "new"}
    assert [entry.name for entry in (tmp_path / "deep").iterdir()] == ["out"]
    assert (tmp_path / "deep" / "out").stat().st_mode & 0o077 == (tmp_path / "deep").stat().st_mode & 0o077
    assert files(source) == {"clay": "x"}


def test_back_from_the_hub_layout(add: Any, source: Path, tmp_path: Path) -> None:
    def write(source: Path, folder: Path, progress: Any) -> None:
        (folder / "clay").write_text("back")

    add("clay", to_hub=tablet, from_hub=write)
    convert(source, tmp_path / "hub")
    done = convert(tmp_path / "hub", tmp_path / "again", target_layout="clay")
    assert done[:2] == ("hub", "clay")
    assert files(tmp_path / "again") == {"clay": "back"}


def test_an_output_that_holds_files(add: Any, source: Path, tmp_path: Path) -> None:
    add("clay", to_hub=tablet)
    out = tmp_path / "out"
    out.mkdir()
    convert(source, out)  # an empty folder is fine
    old = {"model.safetensors": "old", "notes.txt": "mine", "model.fp16.safetensors": "other"}
    stale = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json"]
    for name, text in {**old, **dict.fromkeys(stale, "old")}.items():
        (out / name).write_text(text)
    before = files(out)
    with pytest.raises(CheckpointError, match="holds files already. Give another folder, or --force"):
        convert(source, out)
    assert files(out) == before
    convert(source, out, force=True)
    # Shards of the former save would be read with the new file, or in its place; what is not ours stays.
    assert files(out) == {**old, "config.json": "{}", "model.safetensors": "new"}


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device"), CheckpointError("bad")])
@pytest.mark.parametrize("there", [False, True], ids=["new", "forced"])
def test_nothing_is_left_of_one_that_is_broken_off(
    add: Any, source: Path, tmp_path: Path, error: BaseException, there: bool
) -> None:
    def broken(source: Path, folder: Path, progress: Any) -> None:
        tablet(source, folder, progress)
        raise error

    add("clay", to_hub=broken)
    out = tmp_path / "out"
    if there:
        out.mkdir()
        (out / "model.safetensors").write_text("old")
    with pytest.raises(type(error)):
        convert(source, out, force=True)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == (["out", "source"] if there else ["source"])
    if there:
        assert files(out) == {"model.safetensors": "old"}
    add("clay", to_hub=tablet)  # and the next one goes through
    convert(source, out, force=True)
    assert files(out)["model.safetensors"] == "new"


def test_an_interruption_while_files_are_moved(
    add: Any, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is kept until the set of files is whole; before the first of them has its name, nothing has changed."""
    import os

    add("clay", to_hub=tablet)
    real, calls = os.replace, []

    def replace(one: Any, other: Any) -> None:
        calls.append(other)
        if len(calls) == stop:
            raise KeyboardInterrupt
        real(one, other)

    monkeypatch.setattr(os, "replace", replace)
    stop = 2  # two files into the folder, then two renames
    with pytest.raises(KeyboardInterrupt):
        convert(source, tmp_path / "out")
    assert [entry.name for entry in tmp_path.iterdir()] == ["source"]
    calls.clear()
    stop = 3
    with pytest.raises(KeyboardInterrupt):
        convert(source, tmp_path / "out")
    assert files(tmp_path / "out") == {"config.json": "{}", "model.safetensors": "new"}
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["out", "source"]


def test_too_little_space(add: Any, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(source: Path, folder: Path, progress: Any) -> None:
        raise AssertionError("begun all the same")

    add("clay", to_hub=never, size=lambda folder: 3_000_000_000)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, 3_000_000_001))
    with pytest.raises(CheckpointError, match=r"takes about 3.00 GB, and '.*' has 3.00 GB free. Free some"):
        convert(source, tmp_path / "deep" / "out")
    assert not (tmp_path / "deep").exists()


def test_refused(add: Any, source: Path, tmp_path: Path) -> None:
    add("clay", to_hub=tablet)
    (tmp_path / "file").write_text("")
    hub = tmp_path / "hub"
    hub.mkdir()
    (hub / "config.json").write_text("{}")
    for given, words in (
        ((tmp_path / "nowhere", tmp_path / "out"), "nowhere' is not a folder. Give the folder that holds"),
        ((tmp_path / "file", tmp_path / "out"), "file' is not a folder"),
        ((source, tmp_path / "file"), "file' is a file, and a folder is needed"),
        ((source, source), "is the source too. Give another folder"),
        ((tmp_path, tmp_path / "out"), "holds none of the known layouts: hub, gpt1-original.*Check the path"),
    ):
        with pytest.raises(CheckpointError, match=words):
            convert(*given, force=True)
    for given, options, words in (
        (hub, {}, "is in the layout 'hub' already, so there is nothing to convert. Say what it is to become with --to"),
        (source, {"target_layout": "clay"}, "is in the layout 'clay' already"),
        (hub, {"target_layout": "clay"}, "cannot be converted from 'hub' to 'clay'. From 'hub' there is"),
        (
            source,
            {"target_layout": "gpt1-original"},
            "no way from 'clay' straight to 'gpt1-original'. Convert to 'hub'",
        ),
        (source, {"source_layout": "caly"}, "unknown layout 'caly'; known are hub, .* Did you mean 'clay'"),
        (source, {"target_layout": "hbu"}, "unknown layout 'hbu'; .* Did you mean 'hub'"),
    ):
        with pytest.raises(UsageError, match=words):
            convert(given, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_may_be_two_layouts(add: Any, source: Path, tmp_path: Path) -> None:
    add("clay", to_hub=tablet)
    add("wax", to_hub=tablet)
    (source / "config.json").write_text("{}")  # another layout may have one too: it does not count then
    assert detect_layout(source) == "clay"
    (source / "wax").write_text("")
    with pytest.raises(CheckpointError, match="may be any of clay, wax. Say which one with --from"):
        convert(source, tmp_path / "out")
    assert convert(source, tmp_path / "out", source_layout="wax").source_layout == "wax"
    (source / "wax").unlink()
    (source / "clay").unlink()
    assert detect_layout(source) == HUB
