"""Processors that keep something per row, and how it stays with its row.

Most loops tell what happens to the rows (`select`, `chosen`). Beside that the tokens themselves are compared at every
call, so that beams that change places and drafts that are taken back are followed without a word.

Letters: B rows, S tokens so far, N new ones among them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, Protocol, TypeVar

import torch

from quintet.errors import GenerationError
from quintet.generation.buffer import ColumnBuffer
from quintet.generation.processors import LogitsProcessor

__all__ = ["FollowedRow", "RowFollower"]


class FollowedRow(Protocol):
    """What is kept for one row: a function of its prompt and its new tokens."""

    def advance(self, token: int) -> None:
        """Take the next token."""

    def back(self, count: int) -> None:
        """Take back the last `count` tokens."""

    def copy(self: RowT) -> RowT:
        """Return another one, which goes on by itself."""


RowT = TypeVar("RowT", bound=FollowedRow)


class RowFollower(LogitsProcessor, Generic[RowT]):
    """Base of processors with a state per row.

    Args:
        rows: What is kept for each row, before the first new token.
        start: Tokens of the prompt in `input_ids`.
        copies: How many rows in a row belong to one prompt: only they can change places.
    """

    def __init__(self, rows: Sequence[RowT], start: int, copies: int = 1) -> None:
        self._rows: list[RowT] = list(rows)
        self._prompts = [row // copies for row in range(len(self._rows))]
        self._start = start
        self._seen: ColumnBuffer | None = None  # (B, N) the tokens that the rows have taken

    def follow(self, input_ids: torch.Tensor) -> list[RowT]:
        """Bring the rows to where the tokens are, and return them.

        Args:
            input_ids: (B, S).

        Raises:
            GenerationError: the number of rows has changed, and nobody said which are left.
        """
        new = input_ids[:, self._start :]  # (B, S) -> (B, N)
        if new.shape[0] != len(self._rows):
            raise GenerationError(
                f"{type(self).__name__} keeps something for each of {len(self._rows)} rows and got {new.shape[0]}. A "
                "loop that drops rows must call processors.select(rows), and a processor serves one call only."
            )
        seen = self._taken(new)
        known = seen.shape[1]
        if new.shape[1] == known + 1 and (known == 0 or torch.equal(new[:, :-1], seen)):
            self._take(new[:, -1])
        elif new.shape != seen.shape or not torch.equal(new, seen):
            self._align(seen.tolist(), new.tolist())
            self._seen = ColumnBuffer(new.clone(), 0)
        return self._rows

    def chosen(self, tokens: list[int]) -> None:
        """See LogitsProcessor."""
        if self._seen is not None and len(tokens) == len(self._rows):
            self._take(torch.tensor(tokens, device=self._seen.view.device))

    def select(self, rows: torch.Tensor) -> None:
        """See LogitsProcessor."""
        wanted = rows.tolist()
        if self._seen is not None:
            self._seen.select(rows.to(self._seen.view.device))
        self._rows = self._picked(wanted)
        self._prompts = [self._prompts[row] for row in wanted]

    def _taken(self, new: torch.Tensor) -> torch.Tensor:
        if self._seen is None:
            self._seen = ColumnBuffer(new[:, :0], 0)
        return self._seen.view

    def _take(self, column: torch.Tensor) -> None:
        """Take one token of every row, (B,)."""
        if self._seen is not None:
            self._seen.append(column)
        self._advance(column.tolist())

    def _advance(self, tokens: list[int]) -> None:
        for row, token in zip(self._rows, tokens, strict=True):
            row.advance(token)

    def _picked(self, sources: list[int]) -> list[RowT]:
        """The rows at `sources`; one that is wanted again is copied."""
        used: set[int] = set()
        picked = []
        for source in sources:
            picked.append(self._rows[source].copy() if source in used else self._rows[source])
            used.add(source)
        return picked

    def _align(self, before: list[list[int]], now: list[list[int]]) -> None:
        """Go on from the row of the same prompt that shares most tokens; take back what it has too many."""
        sources, shared = [], []
        for place, tokens in enumerate(now):
            best, most = place, _common(before[place], tokens)
            for other, known in enumerate(before):
                if most < len(tokens) and other != place and self._prompts[other] == self._prompts[place]:
                    found = _common(known, tokens)
                    best, most = (other, found) if found > most else (best, most)
            sources.append(best)
            shared.append(most)
        self._rows = self._picked(sources)
        for row, source, keep, tokens in zip(self._rows, sources, shared, now, strict=True):
            row.back(len(before[source]) - keep)
            for token in tokens[keep:]:
                row.advance(token)


def _common(one: list[int], other: list[int]) -> int:
    """How many tokens both begin with."""
    size = min(len(one), len(other))
    if one[:size] == other[:size]:
        return size
    return next(place for place in range(size) if one[place] != other[place])
