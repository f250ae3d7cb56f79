"""Data sets that give a pipeline one column, or two, of another data set."""

from __future__ import annotations

from typing import Any

from torch.utils.data import Dataset

__all__ = ["KeyDataset", "KeyPairDataset"]


class KeyDataset(Dataset[Any]):
    """One column of a data set of dicts.

    Args:
        dataset: Gives a dict for each number from 0 on, and has a length.
        key: The column.
    """

    def __init__(self, dataset: Any, key: str) -> None:
        self.dataset = dataset
        self.key = key

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        return self.dataset[index][self.key]


class KeyPairDataset(Dataset[Any]):
    """Two columns of a data set of dicts, as `{"text", "text_pair"}`.

    Args:
        dataset: Gives a dict for each number from 0 on, and has a length.
        key1: Column of the texts.
        key2: Column of the second texts.
    """

    def __init__(self, dataset: Any, key1: str, key2: str) -> None:
        self.dataset = dataset
        self.key1 = key1
        self.key2 = key2

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self.dataset[index]
        return {"text": row[self.key1], "text_pair": row[self.key2]}
