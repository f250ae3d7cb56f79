"""GPT-2's published tokenizer, ours and the reference's, and a small one of our own."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from quintet.tokenizers import GPT2Tokenizer, GPT2TokenizerFast, PreTrainedTokenizerFast, train_bpe

TEXT = (
    "The quick brown fox jumps over the lazy dog; the dog doesn't mind. "
    "\u00c9t\u00e9, na\u00efve caf\u00e9s, \u6771\u4eac\u90fd.\n"
    "It's  a\tlong   way home, they've said: 1,234.56 miles! \U0001f98a\n\n"
)


@pytest.fixture(scope="session")
def gpt2_dir(data_dir: Path) -> Path:
    """The folder of GPT-2's published vocab.json and merges.txt."""
    return data_dir / "tokenizers" / "gpt2"


@pytest.fixture(scope="session")
def fast(gpt2_dir: Path) -> GPT2TokenizerFast:
    """Ours. Tests must not change it: use `make_fast` for that."""
    return GPT2TokenizerFast(str(gpt2_dir / "vocab.json"), str(gpt2_dir / "merges.txt"))


@pytest.fixture(scope="session")
def padded(gpt2_dir: Path) -> GPT2TokenizerFast:
    """Ours with a pad token. Tests must not change it."""
    return GPT2TokenizerFast.from_pretrained(gpt2_dir, pad_token="<|endoftext|>")


@pytest.fixture(scope="session")
def slow(gpt2_dir: Path) -> GPT2Tokenizer:
    """Ours under the slow name. Tests must not change it."""
    return GPT2Tokenizer(str(gpt2_dir / "vocab.json"), str(gpt2_dir / "merges.txt"))


@pytest.fixture(scope="session")
def reference(gpt2_dir: Path) -> Any:
    """The reference's GPT-2 tokenizer, with a pad token."""
    transformers = pytest.importorskip("transformers")
    return transformers.GPT2TokenizerFast.from_pretrained(gpt2_dir, pad_token="<|endoftext|>")


@pytest.fixture(scope="session")
def small_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small byte-level BPE of our own. Tests must not write into it."""
    folder = tmp_path_factory.mktemp("small-bpe")
    text = folder.with_suffix(".txt")
    text.write_text(TEXT * 8, encoding="utf-8")
    train_bpe([text], vocab_size=400, output=folder, model_max_length=64)
    return folder


@pytest.fixture
def make_small(small_dir: Path) -> Callable[..., GPT2TokenizerFast]:
    """Makes a new small tokenizer that a test may change."""
    return lambda **kwargs: GPT2TokenizerFast.from_pretrained(small_dir, **kwargs)


@pytest.fixture
def small(make_small: Callable[..., GPT2TokenizerFast]) -> GPT2TokenizerFast:
    """A new small tokenizer that the test may change."""
    return make_small()


@pytest.fixture(scope="session")
def general(small_dir: Path) -> PreTrainedTokenizerFast:
    """The small tokenizer under the general class. Tests must not change it."""
    return PreTrainedTokenizerFast.from_pretrained(small_dir)


@pytest.fixture(scope="session")
def corpora(data_dir: Path) -> Callable[[bool], list[str]]:
    """All texts of the data folder in pieces, or a few from each file."""

    def read(everything: bool) -> list[str]:
        found = []
        for name in ("tinyshakespeare.txt", "storybook/train.txt", "storybook/valid.txt"):
            text = (data_dir / name).read_text(encoding="utf-8")
            size = 1 << 16
            found += (
                [text[start : start + size] for start in range(0, len(text), size)] if everything else [text[:20_000]]
            )
        lines = (data_dir / "lambada_test.jsonl").read_text(encoding="utf-8").splitlines()
        found += [json.loads(line)["text"] for line in (lines if everything else lines[::100])]
        with zipfile.ZipFile(data_dir / "movie_reviews.zip") as archive:
            names = sorted(name for name in archive.namelist() if name.endswith(".txt"))
            found += [archive.read(name).decode("utf-8", "replace") for name in (names if everything else names[::100])]
        return found

    return read
