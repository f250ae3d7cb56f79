"""GPT-2's ids on whole texts equal tiktoken's, and come back to the same text."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from quintet.tokenizers import GPT2TokenizerFast
from quintet.tokenizers.engine import byte_values

# The pattern of the GPT-2 release, in its possessive form: the same matches, and no slow back-tracking.
PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"


@pytest.fixture(scope="module")
def tiktoken_gpt2(gpt2_dir: Path) -> Any:
    tiktoken = pytest.importorskip("tiktoken")
    table = byte_values()
    vocabulary = json.loads((gpt2_dir / "vocab.json").read_text(encoding="utf-8"))
    special = {"<|endoftext|>": vocabulary.pop("<|endoftext|>")}
    ranks = {bytes(table[char] for char in token): index for token, index in vocabulary.items()}
    return tiktoken.Encoding("gpt2-offline", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens=special)


def shakespeare(data: Path) -> list[str]:
    return in_pieces((data / "tinyshakespeare.txt").read_text(encoding="utf-8"))


def storybook(data: Path) -> list[str]:
    texts = [(data / "storybook" / name).read_text(encoding="utf-8") for name in ("train.txt", "valid.txt")]
    return [piece for text in texts for piece in in_pieces(text)]


def reviews(data: Path) -> list[str]:
    with zipfile.ZipFile(data / "movie_reviews.zip") as archive:
        names = sorted(name for name in archive.namelist() if name.endswith(".txt") and "/cv" in name)
        return [archive.read(name).decode("utf-8", "replace") for name in names]


def in_pieces(text: str, size: int = 1 << 16) -> list[str]:
    """Cut a long text where no token is: before a line's end that follows a letter. A batch uses every core."""
    cuts = [0]
    while len(text) - cuts[-1] > size:
        place = re.compile(r"(?<=[a-z.])\n").search(text, cuts[-1] + size)
        cuts.append(place.start() if place else len(text))
    return [text[start:end] for start, end in zip(cuts, [*cuts[1:], len(text)], strict=True) if end > start]


@pytest.mark.parametrize("read", [shakespeare, storybook, reviews])
def test_ids_of_whole_corpora_equal_tiktoken(
    read: Callable[[Path], list[str]], data_dir: Path, fast: GPT2TokenizerFast, tiktoken_gpt2: Any
) -> None:
    texts = read(data_dir)
    expected = tiktoken_gpt2.encode_batch(texts, num_threads=2, allowed_special="all")
    got = fast(texts, verbose=False)["input_ids"]
    wrong = [number for number, (ours, theirs) in enumerate(zip(got, expected, strict=True)) if ours != theirs]
    assert not wrong, f"ids differ in texts {wrong[:10]}; the first begins {texts[wrong[0]][:80]!r}"
    decoded = fast.batch_decode(got)
    lost = [number for number, (text, back) in enumerate(zip(texts, decoded, strict=True)) if text != back]
    assert not lost, f"texts {lost[:10]} did not come back"


def test_a_long_text_in_one_piece_equals_tiktoken(data_dir: Path, fast: GPT2TokenizerFast, tiktoken_gpt2: Any) -> None:
    text = (data_dir / "storybook" / "valid.txt").read_text(encoding="utf-8")
    assert (fast(text, verbose=False)["input_ids"] == tiktoken_gpt2.encode(text, allowed_special="all")) is True


def test_special_tokens_in_a_text_equal_tiktoken(fast: GPT2TokenizerFast, tiktoken_gpt2: Any) -> None:
    text = "one<|endoftext|> two<|endoftext|><|endoftext|>\n<|endoftext"
    assert fast(text)["input_ids"] == tiktoken_gpt2.encode(text, allowed_special="all")
    assert fast(text, split_special_tokens=True)["input_ids"] == tiktoken_gpt2.encode_ordinary(text)
    assert fast(text)["input_ids"] == tiktoken_gpt2.encode(text, allowed_special="all"), "a call's option must not stay"
