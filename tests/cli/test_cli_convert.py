"""`quintet convert`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quintet.cli.main import main


@pytest.fixture
def original(tmp_path: Path) -> Path:
    """A GPT-1 in the layout of its first release, all numbers alike."""
    block = [[1, 24, 72], [72], [1, 24, 24], [24], [24], [24], [1, 24, 96], [96], [1, 96, 24], [24], [24], [24]]
    shapes = [[8, 24], [10, 24], *block]
    folder = tmp_path / "original"
    folder.mkdir()
    (folder / "params_shapes.json").write_text(json.dumps(shapes))
    row = np.full(sum(int(np.prod(shape)) for shape in shapes), 0.5, np.float32)
    for number, piece in enumerate(np.array_split(row, 10)):
        np.save(folder / f"params_{number}.npy", piece)
    return folder


def test_it_converts(original: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", str(original), str(tmp_path / "out")]) == 0
    captured = capsys.readouterr()
    first, *names = captured.out.splitlines()
    assert first.startswith(f"gpt1-original -> hub: {tmp_path / 'out'}, 0.0 MB")
    assert names == ["  config.json", "  generation_config.json", "  model.safetensors"]
    assert captured.err == ""  # nobody watches: no bar
    assert main(["info", str(tmp_path / "out")]) == 0
    assert "openai-gpt" in capsys.readouterr().out


def test_json(original: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(["convert", str(original), str(out), "--from", "gpt1-original", "--to", "hub", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["files"] == ["config.json", "generation_config.json", "model.safetensors"]
    assert record["bytes"] == sum(file.stat().st_size for file in out.iterdir())
    assert (record["from"], record["to"], record["output"]) == ("gpt1-original", "hub", str(out))


def test_a_bar_on_a_terminal(original: Path, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert main(["convert", str(original), str(tmp_path / "out")]) == 0
    err = capsys.readouterr().err
    assert "100%" in err and "B/s" in err


def test_force(original: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(["convert", str(original), str(out)]) == 0
    assert main(["convert", str(original), str(out)]) == 1
    assert "holds files already. Give another folder, or --force" in capsys.readouterr().err
    assert main(["convert", str(original), str(out), "--force"]) == 0


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["{in}"], 2, "the following arguments are required: OUTPUT. See 'quintet convert --help'."),
        (["{in}", "{out}", "--from", "gpt1-orignal"], 2, "Did you mean 'gpt1-original'?"),
        (["{in}", "{out}", "--to", "gpt1-original"], 2, "in the layout 'gpt1-original' already"),
        (["{in}", "{out}", "--forse"], 2, "Did you mean '--force'?"),
        (["{out}", "{in}"], 1, "out' is not a folder. Give the folder that holds the checkpoint's files."),
        (["{folder}", "{out}"], 1, "holds none of the known layouts: hub, gpt1-original"),
    ],
    ids=str,
)
def test_errors_are_one_line(
    original: Path, tmp_path: Path, words: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {"{in}": str(original), "{out}": str(tmp_path / "out"), "{folder}": str(tmp_path)}
    assert main(["convert", *(places.get(word, word) for word in words)]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert message in captured.err
    assert not (tmp_path / "out").exists()


def test_ctrl_c_leaves_nothing(original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from quintet.cli import convert as command

    def interrupted(self: Any, done: int, total: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(command.ByteBar, "__call__", interrupted)
    assert main(["convert", str(original), str(tmp_path / "out")]) == 130
    assert [entry.name for entry in tmp_path.iterdir()] == ["original"]
