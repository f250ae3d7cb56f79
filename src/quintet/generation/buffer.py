"""A (rows, length) tensor that grows by columns without copying what it holds each time."""

from __future__ import annotations

import torch

__all__ = ["ColumnBuffer"]

# Room beyond the first columns, so that a huge length limit does not become a huge allocation.
MAX_ROOM = 4096


class ColumnBuffer:
    """Columns in a slab with room to spare; `view` is the part in use.

    Args:
        first: (B, S) columns to begin with; copied.
        room: Columns that are expected to be appended.
    """

    def __init__(self, first: torch.Tensor, room: int = 0) -> None:
        self.length = first.shape[1]
        # Made outside inference mode by the caller's choice of mode; `new_empty` keeps dtype and device.
        self._slab = first.new_empty((first.shape[0], self.length + min(max(room, 1), MAX_ROOM)))
        self._slab[:, : self.length] = first

    @property
    def view(self) -> torch.Tensor:
        """The columns in use, (B, length); a view that later appends do not change."""
        return self._slab[:, : self.length]

    @property
    def last(self) -> torch.Tensor:
        """The last column, (B, 1); a view."""
        return self._slab[:, self.length - 1 : self.length]

    def append(self, column: torch.Tensor | int) -> None:
        """Append one column: a (B,) tensor, or one value for every row."""
        if self.length == self._slab.shape[1]:
            bigger = self._slab.new_empty((self._slab.shape[0], 2 * self.length + 1))
            bigger[:, : self.length] = self._slab
            self._slab = bigger
        self._slab[:, self.length] = column
        self.length += 1

    def crop(self, length: int) -> None:
        """Keep the first `length` columns."""
        self.length = min(self.length, length)

    def select(self, rows: torch.Tensor) -> None:
        """Replace the rows by those at `rows` (any number of them)."""
        slab = self._slab.new_empty((rows.shape[0], self._slab.shape[1]))
        slab[:, : self.length] = self.view.index_select(0, rows)  # not the spare room, which may be most of it
        self._slab = slab

    def repeat(self, count: int) -> None:
        """Repeat every row `count` times, copies side by side."""
        self._slab = self._slab.repeat_interleave(count, dim=0)
