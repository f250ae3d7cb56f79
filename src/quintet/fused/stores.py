"""The stores of a cache as native code reads them: filled in once, and again when they move; and those of a prompt.

Letters: B texts, T new tokens, G key/value heads, D numbers in a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from weakref import ref

import torch

from quintet.cache import DynamicCache, Int8Layer
from quintet.cache.dynamic_layers import DynamicLayer
from quintet.fused.structs import EIGHT_BITS
from quintet.kernels.linear import TYPES

__all__ = ["Mask", "PromptStores", "Stores"]

Mask = tuple[int, "int | None", int, int]
"""Window, 0 for none; padding: its pointer, None for none, and stride and length of its rows."""


class Stores:
    """Structures of blocks for the steps over one cache.

    Args:
        blocks: An array of `structs.Block`, which is copied.
        dtype: Type of the activations.
    """

    def __init__(self, blocks: Any, dtype: torch.dtype) -> None:
        self.blocks = type(blocks).from_buffer_copy(blocks)
        self._each = list(self.blocks)
        self._dtype = dtype
        self._rows = 0
        # of each layer, those that `_each` tells of; others may come and go, and are not kept from that
        self._slabs: list[tuple[ref[torch.Tensor], ref[torch.Tensor]] | None] = [None] * len(self._each)
        self._masks: Sequence[Mask] = ()

    def open(self, cache: DynamicCache, rows: int, new: int, masks: Sequence[Mask]) -> bool:
        """Make room for new tokens in all layers, and say where it is.

        Args:
            cache: The same one at every call.
            rows: B.
            new: T.
            masks: One for each layer.

        Returns:
            Whether native code can write to these layers; otherwise nothing has happened.
        """
        layers: Any = cache.layers
        if len(layers) != len(self._each):
            return False
        for layer, slabs, block in zip(layers, self._slabs, self._each, strict=True):
            known = slabs is not None and rows == self._rows and new == 1 and layer.has(slabs[0](), slabs[1]())
            if not known and not self._takes(layer, (rows, block.groups, block.head), new):
                return False
        self._rows = rows
        for index, (layer, block) in enumerate(zip(layers, self._each, strict=True)):
            keys, values, block.place, block.slot = layer.slots(new)
            slabs = self._slabs[index]
            if slabs is None or keys is not slabs[0]() or values is not slabs[1]():
                self._slabs[index] = ref(keys), ref(values)
                block.keys, block.values = keys.data_ptr(), values.data_ptr()
                block.key_strides[:], block.value_strides[:] = keys.stride()[:3], values.stride()[:3]
                block.stored = EIGHT_BITS if keys.dtype == torch.int8 else TYPES[self._dtype]
        if masks != self._masks:
            for block, mask in zip(self._each, masks, strict=True):
                block.window, block.padding, block.padding_stride, block.padding_length = mask
            self._masks = masks
        return True

    def _takes(self, layer: Any, shape: tuple[int, int, int], new: int) -> bool:
        return isinstance(layer, (DynamicLayer, Int8Layer)) and layer.takes(shape, new, self._dtype)


class PromptStores:
    """Structures of blocks for many tokens at once, of which layers may have no room, or keep only the newest.

    Where a layer has no room, tokens go to new tensors behind what the first of them may see, and `close` hands them
    to it.

    Args:
        blocks: An array of `structs.Block`, which is copied.
        dtype: Type of the activations.
    """

    def __init__(self, blocks: Any, dtype: torch.dtype) -> None:
        self.blocks = type(blocks).from_buffer_copy(blocks)
        self._dtype = dtype
        self._new: list[tuple[DynamicLayer, torch.Tensor, torch.Tensor]] = []

    def take(self, layers: Sequence[Any], rows: int) -> bool:
        """Whether `open` can make room in these layers for tokens of so many texts, once or several times."""
        return len(layers) == len(self.blocks) and all(map(self._fits, layers, self._shapes(rows)))

    def open(self, layers: Sequence[Any], rows: int, new: int, masks: Sequence[Mask]) -> None:
        """Make room for new tokens in all layers, and say where it is; arguments as of `Stores.open`, after `take`."""
        for layer, shape, block, mask in zip(layers, self._shapes(rows), self.blocks, masks, strict=True):
            if layer.takes(shape, new, self._dtype):
                keys, values, block.place, block.slot = layer.slots(new)
            else:
                keys, block.place = self._behind(layer.keys, shape, new)
                values, _ = self._behind(layer.values, shape, new)
                block.slot = layer.length - block.place
                self._new.append((layer, keys[:, :, block.place :], values[:, :, block.place :]))
            block.keys, block.values = keys.data_ptr(), values.data_ptr()
            block.key_strides[:], block.value_strides[:] = keys.stride()[:3], values.stride()[:3]
            block.stored = TYPES[self._dtype]
            block.window, block.padding, block.padding_stride, block.padding_length = mask

    def close(self) -> None:
        """Hand over what was written."""
        for layer, keys, values in self._new:
            layer.update(keys, values)
        self._new.clear()

    def _shapes(self, rows: int) -> list[tuple[int, int, int]]:
        return [(rows, block.groups, block.head) for block in self.blocks]

    def _fits(self, layer: Any, shape: tuple[int, int, int]) -> bool:
        """Whether tokens of that shape, (B, G, D), belong behind those of a layer."""
        if not isinstance(layer, DynamicLayer):
            return False
        held = [seen for seen in (layer.keys, layer.values) if seen is not None]
        return all(
            seen.dtype == self._dtype and seen.is_cpu and (*seen.shape[:2], seen.shape[3]) == shape for seen in held
        )

    def _behind(self, seen: torch.Tensor | None, shape: tuple[int, int, int], new: int) -> tuple[torch.Tensor, int]:
        """Return (B, G, kept + T, D) with what is seen in front, and how many these are."""
        kept = 0 if seen is None else seen.shape[2]
        made = torch.empty((*shape[:2], kept + new, shape[2]), dtype=self._dtype)
        if seen is not None:
            made[:, :, :kept] = seen
        return made, kept
