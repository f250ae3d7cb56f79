"""Token streams: every block once in a pass, the same for a seed, and texts that cannot be used."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quintet.errors import TrainingError
from quintet.tokenizers import AutoTokenizer
from quintet.training.data import TokenStream, read_texts, tokenize_texts, windows


@given(length=st.integers(8, 400), block=st.integers(2, 30), rows=st.integers(1, 5), seed=st.integers(0, 3))
def test_a_pass_shows_each_block_once(length: int, block: int, rows: int, seed: int) -> None:
    if length // block < 2:
        with pytest.raises(TrainingError, match="Give more text or a smaller block_size"):
            TokenStream(np.arange(length, dtype=np.int32), block, seed)
        return
    stream = TokenStream(np.arange(length, dtype=np.int32), block, seed)
    count = -(-2 * stream.blocks // rows)
    seen = np.concatenate([stream.batch(index, rows) for index in range(count)])
    assert seen.dtype == np.int64
    assert (np.diff(seen, axis=1) == 1).all()  # consecutive tokens
    for epoch in range(2):
        starts = seen[epoch * stream.blocks : (epoch + 1) * stream.blocks, 0]
        assert len(set(starts)) == stream.blocks
        assert len({int(s) % block for s in starts}) == 1  # one offset, no overlap
        assert starts.max() + block <= length


@given(seed=st.integers(0, 5), index=st.integers(0, 50))
def test_a_batch_depends_on_seed_and_index_alone(seed: int, index: int) -> None:
    tokens = np.arange(300, dtype=np.int32)
    walked, jumped = TokenStream(tokens, 16, seed), TokenStream(tokens, 16, seed)
    for i in range(index):
        walked.batch(i, 3)
    assert (walked.batch(index, 3) == jumped.batch(index, 3)).all()


@given(length=st.integers(0, 200), block=st.integers(2, 40), rows=st.integers(1, 4))
def test_windows_predict_each_token_once(length: int, block: int, rows: int) -> None:
    predicted = [int(t) for part in windows(np.arange(length), block, rows) for row in part for t in row[1:]]
    assert sorted(predicted) == list(range(1, length))


def test_texts_end_with_the_end_token(book: dict[str, Path]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(book["tokenizer"])
    texts = read_texts([str(book["train"]), str(book["valid"])])
    tokens = tokenize_texts(tokenizer, texts)
    ends = np.flatnonzero(tokens == tokenizer.eos_token_id)
    assert len(ends) == 2 and ends[-1] == len(tokens) - 1
    assert tokenizer.decode(tokens[: ends[0]].tolist()) == texts[0]


def test_texts_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="none.txt is not there"):
        read_texts([str(tmp_path / "none.txt")])
    (tmp_path / "empty.txt").write_text(" \n")
    with pytest.raises(TrainingError, match="is empty"):
        read_texts([str(tmp_path / "empty.txt")])
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    with pytest.raises(TrainingError, match="not UTF-8"):
        read_texts([str(tmp_path / "latin.txt")])
