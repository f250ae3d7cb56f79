"""From single inputs to batches and back: what is padded, and how a result is cut out again.

Letters: B rows, T tokens of the longest row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

__all__ = ["Piece", "collate", "real_length"]

MASK = "attention_mask"


@dataclass
class Piece:
    """One row for the model.

    Args:
        columns: `input_ids`, and what else the tokenizer gives for each token.
        notes: What the pipeline must know about the row to read the model's answer.
    """

    columns: dict[str, list[int]]
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def ids(self) -> list[int]:
        """The token ids."""
        return self.columns["input_ids"]


def real_length(piece: Piece) -> int:
    """Return the number of tokens that are no padding of the tokenizer's."""
    mask = piece.columns.get(MASK)
    return len(piece.ids) if mask is None else sum(mask)


def collate(
    pieces: Sequence[Piece], *, pad_id: int, side: str, device: torch.device, fills: Mapping[str, int] | None = None
) -> dict[str, torch.Tensor]:
    """Make (B, T) tensors of rows of any lengths.

    Args:
        pieces: The rows.
        pad_id: Fills up `input_ids`.
        side: "left" or "right": where rows are filled up.
        device: Of the tensors.
        fills: What other columns are filled up with; 0 unless named.

    Returns:
        The columns that every row has, and `attention_mask` where a row is padded.
    """
    longest = max(len(piece.ids) for piece in pieces)
    names = [name for name in pieces[0].columns if name != MASK and all(name in piece.columns for piece in pieces)]
    tensors = {}
    for name in names:
        fill = pad_id if name == "input_ids" else (fills or {}).get(name, 0)
        rows = [_filled(piece.columns[name], longest, fill, side) for piece in pieces]
        tensors[name] = torch.tensor(rows, dtype=torch.long, device=device)  # (B, T)
    masks = [_filled(piece.columns.get(MASK, [1] * len(piece.ids)), longest, 0, side) for piece in pieces]
    if not all(all(row) for row in masks):
        tensors[MASK] = torch.tensor(masks, dtype=torch.long, device=device)  # (B, T)
    return tensors


def _filled(row: Sequence[int], length: int, fill: int, side: str) -> list[int]:
    gap = [fill] * (length - len(row))
    return [*gap, *row] if side == "left" else [*row, *gap]
