"""What packing experts and linear layers share: the report, and a checkpoint with some tensors made of others."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

import torch

from quintet.checkpoint.load import TensorSource

__all__ = ["ChangedSource", "QuantizeReport", "is_skipped"]


@dataclass
class QuantizeReport:
    """What packing did.

    Attributes:
        errors: By weight, the root of the squared differences as a share of the root of the squares.
        kept: Modules that were left as they are, because the caller named them.
    """

    errors: dict[str, float] = field(default_factory=dict)
    kept: list[str] = field(default_factory=list)

    @property
    def error(self) -> float:
        """The largest of the errors, 0 when nothing was packed."""
        return max(self.errors.values(), default=0.0)

    def describe(self) -> str:
        """Return one line."""
        worst = max(self.errors, key=lambda name: self.errors[name], default="")
        return f"packed {len(self.errors)} weights; largest relative error {self.error:.4f} ({worst})"


def is_skipped(path: str, patterns: Iterable[str] | None) -> bool:
    """Whether a module, or one that it is in, is named by a pattern."""
    return any(fnmatchcase(path, pattern) or fnmatchcase(path, f"{pattern}.*") for pattern in patterns or ())


class ChangedSource(TensorSource):
    """A source in which some tensors are made from others; what is not made is handed on."""

    def __init__(self, inner: TensorSource, hidden: Iterable[str], made: Iterable[str]) -> None:
        hidden = set(hidden)
        self._inner = inner
        self._names = [key for key in inner if key not in hidden]
        self._made = list(made)
        self.borrowed = inner.borrowed

    def __iter__(self) -> Iterator[str]:
        yield from self._names
        yield from self._made

    def shape(self, key: str) -> tuple[int, ...]:
        return self._inner.shape(key)

    def dtype(self, key: str) -> torch.dtype:
        return self._inner.dtype(key)

    def get(self, key: str) -> torch.Tensor:
        return self._inner.get(key)

    def release(self, key: str) -> None:
        if key not in self._made:
            self._inner.release(key)
