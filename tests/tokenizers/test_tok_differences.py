"""What docs/differences.md says about texts is true: of us, and of the reference that it speaks of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from quintet.errors import TokenizerError
from quintet.tokenizers import GPT2TokenizerFast, GPTNeoXTokenizerFast


@pytest.fixture(scope="module")
def transformers() -> Any:
    return pytest.importorskip("transformers")


def test_offsets_of_neox(data_dir: Path, transformers: Any) -> None:
    folder = data_dir / "tokenizers" / "gpt-neox-20b"
    found = {
        "here": GPTNeoXTokenizerFast.from_pretrained(folder),
        "as theirs": GPTNeoXTokenizerFast.from_pretrained(folder, trim_offsets=False),
        "theirs": transformers.GPTNeoXTokenizerFast.from_pretrained(folder),
        "the file": transformers.PreTrainedTokenizerFast.from_pretrained(folder),
    }
    offsets = {name: kind("a dog", return_offsets_mapping=True)["offset_mapping"][1] for name, kind in found.items()}
    assert offsets == {"here": (2, 5), "as theirs": (1, 5), "theirs": (1, 5), "the file": (2, 5)}


def test_the_pad_token_of_neox(data_dir: Path, gpt2_dir: Path, transformers: Any) -> None:
    folder = data_dir / "tokenizers" / "gpt-neox-20b"
    assert GPTNeoXTokenizerFast.from_pretrained(folder).pad_token is None
    assert transformers.GPTNeoXTokenizerFast.from_pretrained(folder).pad_token == "<|padding|>"
    assert len(GPTNeoXTokenizerFast.from_pretrained(gpt2_dir)) == 50257
    assert len(transformers.GPTNeoXTokenizerFast.from_pretrained(gpt2_dir)) == 50258
    ours = GPTNeoXTokenizerFast.from_pretrained(folder, pad_token="<|padding|>")
    assert (ours.pad_token_id, len(ours)) == (1, 50277)


def test_an_empty_second_text(gpt2_dir: Path, transformers: Any) -> None:
    ours = GPT2TokenizerFast.from_pretrained(gpt2_dir, add_bos_token=True)
    theirs = transformers.GPT2TokenizerFast.from_pretrained(gpt2_dir, add_bos_token=True)
    assert ours("a", "")["input_ids"] == ours(["a"], [""])["input_ids"][0] == [50256, 64, 50256]
    assert (theirs("a", "")["input_ids"], theirs(["a"], [""])["input_ids"]) == ([50256, 64], [[50256, 64, 50256]])


def test_impossible_calls(gpt2_dir: Path, transformers: Any) -> None:
    ours = GPT2TokenizerFast.from_pretrained(gpt2_dir, add_bos_token=True)
    theirs = transformers.GPT2TokenizerFast.from_pretrained(gpt2_dir, add_bos_token=True)
    assert len(theirs("a b", "c d", max_length=1)["input_ids"]) > 1
    with pytest.raises(TokenizerError, match="max_length=1 leaves room for -1 tokens of text beside 2 special tokens"):
        ours("a b", "c d", max_length=1)
    assert theirs(["a", "a b"], return_tensors="np")["input_ids"].dtype == object
    with pytest.raises(TokenizerError, match="its rows have different lengths, from 2 to 3. Use padding=True"):
        ours(["a", "a b"], return_tensors="np")
