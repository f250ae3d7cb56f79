"""A small book, a tokenizer for it and the options of a run of seconds."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

WORDS = [
    "the",
    "a",
    "cat",
    "dog",
    "house",
    "old",
    "woman",
    "forest",
    "lantern",
    "said",
    "went",
    "into",
    "came",
    "out",
    "and",
    "but",
    "night",
    "day",
    "little",
    "king",
]


def story(seed: int, sentences: int) -> str:
    """Nonsense with the letters and spaces of English, the same for a seed."""
    rng = random.Random(seed)
    lines = (" ".join(rng.choices(WORDS, k=rng.randint(4, 9))).capitalize() + "." for _ in range(sentences))
    return " ".join(lines) + "\n"


@pytest.fixture(scope="session")
def book(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Files: train and valid texts, tokenizer folder."""
    from quintet.tokenizers.trainer import train_bpe

    folder = tmp_path_factory.mktemp("book")
    train, valid = folder / "train.txt", folder / "valid.txt"
    train.write_text(story(1, 400), encoding="utf-8")
    valid.write_text(story(2, 60), encoding="utf-8")
    train_bpe([train], vocab_size=300, output=folder / "tokenizer")
    return {"train": train, "valid": valid, "tokenizer": folder / "tokenizer", "folder": folder}


@pytest.fixture
def options(book: dict[str, Path], tmp_path: Path) -> dict[str, Any]:
    """Options of a run of 12 steps with dropout, so that its random numbers count."""
    return {
        "output_dir": str(tmp_path / "run"),
        "train_files": [str(book["train"])],
        "validation_files": [str(book["valid"])],
        "tokenizer": str(book["tokenizer"]),
        "model": {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 32},
        "block_size": 16,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "max_steps": 12,
        "warmup_steps": 3,
        "learning_rate": 3e-3,
        "logging_steps": 1,
        "eval_steps": 4,
        "save_steps": 4,
        "num_threads": 1,
    }


@pytest.fixture
def config_file(options: dict[str, Any], tmp_path: Path) -> Path:
    """The options as a JSON file."""
    file = tmp_path / "run.json"
    file.write_text(json.dumps(options), encoding="utf-8")
    return file
