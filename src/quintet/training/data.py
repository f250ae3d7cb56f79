"""Token streams and the batches cut from them.

A batch is a function of (seed, step) alone, so resuming needs no state and no replay. No torch here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from quintet.errors import TrainingError

__all__ = ["TokenStream", "read_texts", "tokenize_texts"]


def read_texts(files: Sequence[str]) -> list[str]:
    """Read UTF-8 text files.

    Raises:
        TrainingError: a file is missing, empty or not UTF-8.
    """
    texts = []
    for name in files:
        path = Path(name)
        if not path.is_file():
            raise TrainingError(f"the text file {name} is not there. Check the path.")
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise TrainingError(f"{name} is not UTF-8 text ({error}). Convert it first.") from None
        if not text.strip():
            raise TrainingError(f"{name} is empty.")
        texts.append(text)
    return texts


def tokenize_texts(tokenizer: Any, texts: Sequence[str]) -> np.ndarray:
    """Return one int32 array (N,) with the end-of-text token after each text."""
    end = tokenizer.eos_token_id
    parts = []
    for text in texts:
        # By paragraph and in parallel; the pre-tokeniser never joins across a newline and the next word, so the
        # pieces' ids are those of the whole, and memory stays small.
        ids = tokenizer(text, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
        parts.append(np.asarray(ids if end is None else [*ids, end], dtype=np.int32))
    return np.concatenate(parts)


class TokenStream:
    """A long text as tokens, cut into blocks.

    Args:
        tokens: (N,) token ids.
        block_size: T, tokens in one block.
        seed: Of the order of the blocks.

    Raises:
        TrainingError: there are not two blocks' worth of tokens.
    """

    def __init__(self, tokens: np.ndarray, block_size: int, seed: int) -> None:
        # One block is kept back for the random offset, so that every pass has the same number of blocks.
        self.blocks = len(tokens) // block_size - 1
        if self.blocks < 1:
            raise TrainingError(
                f"the training text has {len(tokens)} tokens, but at least {2 * block_size} are needed for blocks of "
                f"{block_size}. Give more text or a smaller block_size."
            )
        self.tokens = tokens
        self.block_size = block_size
        self.seed = seed
        self._epoch = -1
        self._starts = np.empty(0, dtype=np.int64)

    def batch(self, index: int, rows: int) -> np.ndarray:
        """Return batch `index`, int64 (rows, T); batches follow each other through shuffled passes over the text."""
        picked = [self._start(number) for number in range(index * rows, (index + 1) * rows)]
        return np.stack([self.tokens[s : s + self.block_size] for s in picked]).astype(np.int64)

    def _start(self, number: int) -> int:
        epoch, place = divmod(number, self.blocks)
        if epoch != self._epoch:
            # Each pass cuts the text at another offset, so that no token always stands at the start of a block.
            random = np.random.default_rng((self.seed, epoch))
            offset = int(random.integers(self.block_size))
            self._starts = offset + random.permutation(self.blocks) * self.block_size
            self._epoch = epoch
        return int(self._starts[place])


def windows(tokens: np.ndarray, block_size: int, rows: int) -> Iterator[np.ndarray]:
    """Yield the text once in order, (rows, T) blocks that overlap by one token so that each token is predicted once.

    What does not fill a block comes last, alone and shorter.
    """
    stride = block_size - 1
    starts = range(0, max(len(tokens) - 1, 0), stride)
    full = [s for s in starts if s + block_size <= len(tokens)]
    for i in range(0, len(full), rows):
        yield np.stack([tokens[s : s + block_size] for s in full[i : i + rows]]).astype(np.int64)
    tail = full[-1] + stride if full else 0
    if len(tokens) - tail > 1:
        yield tokens[None, tail:].astype(np.int64)
