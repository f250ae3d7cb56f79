"""`quintet train` as a user meets it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from quintet.cli.main import main


def test_file_and_flags(config_file: Path, options: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(config_file), "--max-steps", "4", "--json"]) == 0
    out, err = capsys.readouterr()
    summary = json.loads(out)
    assert summary["step"] == 4 and Path(summary["best_model"]).is_dir()
    assert err == ""  # nobody watches, so there is no bar


def test_flags_alone(book: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", "--train-files", str(book["train"]), "--tokenizer", str(book["tokenizer"]), "--output-dir"]
    words += [str(tmp_path / "run"), "--model", "n_embd=32", "n_layer=1", "n_head=2", "n_positions=32"]
    words += ["--block-size", "16", "--max-steps", "3", "--warmup-steps", "1", "--no-bf16"]
    assert main(words) == 0
    assert "best model:" in capsys.readouterr().out
    assert (tmp_path / "run" / "best" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ([], 1, "output_dir is not given"),
        (["--max-stepz", "3"], 2, "Did you mean '--max-steps'"),
        (["--max-steps", "many"], 2, "invalid int value"),
        (["nothing.json"], 1, "nothing.json is not there"),
        (["--output-dir", "x", "--tokenizer", "t", "--train-files", "no.txt", "--model", "n_embd=8"], 1, "no.txt"),
        (["--model", "n_embd"], 2, "KEY=VALUE"),
    ],
)
def test_mistakes(words: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *words]) == code
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1
