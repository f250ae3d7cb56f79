"""Training options: files, flags, and every mistake named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from quintet.errors import ConfigError, TrainingError
from quintet.training.arguments import TrainingArguments


def test_flags_override_the_file(config_file: Path) -> None:
    args = TrainingArguments.from_sources(str(config_file), {"max_steps": 7, "seed": 3})
    assert (args.max_steps, args.seed, args.block_size) == (7, 3, 16)


def test_round_trip(options: dict[str, Any], tmp_path: Path) -> None:
    args = TrainingArguments(**options)
    file = tmp_path / "again.json"
    file.write_text(json.dumps(args.to_dict()))
    assert TrainingArguments.from_sources(str(file), {}) == args


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"output_dir": ""}, "output_dir is not given"),
        ({"tokenizer": ""}, "tokenizer is not given"),
        ({"train_files": []}, "nothing to learn from"),
        ({"train_files": "book.txt"}, "train_files is 'book.txt', but must be a list"),
        ({"init_from": "storyteller"}, "got both"),
        ({"model": {}}, "got neither"),
        ({"max_steps": 0}, "max_steps is 0, but must be at least 1"),
        ({"max_steps": 2.5}, "max_steps is 2.5, but must be a int"),
        ({"max_steps": True}, "max_steps is True"),
        ({"learning_rate": -1}, "learning_rate is -1.0"),
        ({"learning_rate": float("nan")}, "learning_rate is nan"),
        ({"adam_beta2": 2}, "adam_beta2 is 2.0, but must be from 0 to 1"),
        ({"lr_scheduler_type": "cosinus"}, "Did you mean 'cosine'"),
        ({"save_dtype": "int8"}, "save_dtype is 'int8'"),
        ({"warmup_steps": 99}, "more than max_steps"),
        ({"block_size": 1}, "block_size is 1"),
    ],
)
def test_mistakes(options: dict[str, Any], change: dict[str, Any], words: str) -> None:
    with pytest.raises(TrainingError, match=words):
        TrainingArguments(**{**options, **change})


def test_unknown_key_in_the_file(tmp_path: Path) -> None:
    file = tmp_path / "run.json"
    file.write_text('{"learning_rat": 0.1}')
    with pytest.raises(TrainingError, match="no training option 'learning_rat'. Did you mean 'learning_rate'"):
        TrainingArguments.from_sources(str(file), {})


def test_missing_and_broken_files(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="is not there"):
        TrainingArguments.from_sources(str(tmp_path / "none.json"), {})
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(ConfigError, match="JSON"):
        TrainingArguments.from_sources(str(tmp_path / "bad.json"), {})
