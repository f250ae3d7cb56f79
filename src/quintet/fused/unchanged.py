"""Whether all that a native step was prepared for is still there: hundreds of modules and tensors, at every step.

A step reads all weights, so that nothing of these is in a cache behind it, and what they are asked would be waited for
line by line: five times as long as it takes to look. Native code asks for all lines at once.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from quintet.kernels.loader import library

__all__ = ["Unchanged"]

_data_ptr: Callable[[Any], int] = torch.Tensor.data_ptr
LINE = 64  # bytes of a line of a cache
TENSOR_LINES = 4  # those of what torch keeps of a tensor


class Unchanged:
    """Remembers modules, where tensors lie, and that nobody listens."""

    def __init__(self) -> None:
        # where they are held, under which name, and what was there; side by side, so that no loop of Python's compares
        self._modules: tuple[list[Any], ...] = ([], [], [])
        self._tensors: tuple[list[Any], ...] = ([], [], [])
        self._hooks: list[dict[int, Any]] = []
        self._lines: Any = None

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
        self._ask()
        holders, names, modules = self._modules
        if list(map(dict.get, holders, names)) != modules or any(self._hooks):
            return False
        holders, names, pointers = self._tensors
        try:
            return list(map(_data_ptr, map(dict.get, holders, names))) == pointers
        except TypeError:  # one of them was taken away
            return False

    def _ask(self) -> None:
        """Ask for the memory that `holds` reads. Where Python and torch keep other things there, nothing is lost."""
        native = library()
        if native is None:
            return
        if self._lines is None:
            found = [id(one) for one in (*self._hooks, *self._modules[0], *self._tensors[0])]
            for held, name in zip(*self._tensors[:2], strict=True):
                found += [id(held.get(name)), *_lines_of(held.get(name))]
            lines = sorted({address // LINE * LINE for address in found})
            self._lines = (ctypes.c_void_p * len(lines))(*lines)
        native.quintet_ask_for(self._lines, len(self._lines))


def _lines_of(tensor: torch.Tensor | None) -> list[int]:
    """Where torch keeps what it knows of a tensor, so far as it tells."""
    first = getattr(tensor, "_cdata", None)
    if first is None or tensor is None:
        return []
    return [*range(first, first + TENSOR_LINES * LINE, LINE), tensor.untyped_storage()._cdata]


def _append(lists: tuple[list[Any], ...], *values: Any) -> None:
    for one, value in zip(lists, values, strict=True):
        one.append(value)
