"""Whether all that a native step was prepared for is still there: hundreds of modules and tensors, at every step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

__all__ = ["Unchanged"]

_data_ptr: Callable[[Any], int] = torch.Tensor.data_ptr


class Unchanged:
    """Remembers modules, where tensors lie, and that nobody listens."""

    def __init__(self) -> None:
        # where they are held, under which name, and what was there; side by side, so that no loop of Python's compares
        self._modules: tuple[list[Any], ...] = ([], [], [])
        self._tensors: tuple[list[Any], ...] = ([], [], [])
        self._hooks: list[dict[int, Any]] = []

    def add_modules(self, root: nn.Module, without: nn.Module | None = None) -> None:
        """Remember a module and all below it but what is in `without`, and that nothing of it has a hook."""
        skipped = set() if without is None else set(without.modules())
        for parent in root.modules():
            if parent in skipped:
                continue
            self._hooks += [parent._forward_hooks, parent._forward_pre_hooks]
            for name, child in parent.named_children():
                _append(self._modules, parent._modules, name, child)

    def add_tensor(self, held: dict[str, Any], name: str) -> None:
        """Remember the tensor of that name in a module's `_parameters` or `_buffers`."""
        _append(self._tensors, held, name, held[name].data_ptr())

    def holds(self) -> bool:
        """Whether all is as it was."""
        holders, names, modules = self._modules
        if list(map(dict.get, holders, names)) != modules or any(self._hooks):
            return False
        holders, names, pointers = self._tensors
        try:
            return list(map(_data_ptr, map(dict.get, holders, names))) == pointers
        except TypeError:  # one of them was taken away
            return False


def _append(lists: tuple[list[Any], ...], *values: Any) -> None:
    for one, value in zip(lists, values, strict=True):
        one.append(value)
