"""A cache that grows: one slab per layer with room to spare; a token is written in place, never concatenated.

Letters: B rows, H key/value heads, S tokens stored, T new tokens, D head size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from quintet.cache.base import Cache
from quintet.errors import InputError

__all__ = ["DynamicCache", "DynamicLayer"]

# A slab grows by half of what it holds, and by at least this many tokens: copies stay linear in the tokens written.
MIN_GROWTH = 128


class DynamicLayer:
    """Keys and values of one layer in two slabs of shape (B, H, capacity, D), of which `length` tokens are used."""

    def __init__(self) -> None:
        self.length = 0
        self._keys: torch.Tensor | None = None
        self._values: torch.Tensor | None = None
        self._own = False  # whether the slabs were made here, so that nobody else's tensor is written to

    @property
    def keys(self) -> torch.Tensor | None:
        """The keys in use, (B, H, S, D), a view; None before the first update."""
        return None if self._keys is None else self._keys[:, :, : self.length]

    @property
    def values(self) -> torch.Tensor | None:
        """The values in use, (B, H, S, D), a view; None before the first update."""
        return None if self._values is None else self._values[:, :, : self.length]

    def update(self, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Append (B, H, T, D) tensors and return everything, (B, H, S + T, D).

        Raises:
            InputError: rows, heads, head size, data type or device differ from what is stored.
        """
        if self._keys is None or self._values is None:
            # The first tensors are kept as they came: training pays no copy, and gradients flow through them.
            self._keys, self._values, self.length = keys, values, keys.shape[2]
            return keys, values
        self._check(keys, values)
        held = (keys, values, self._keys, self._values)
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in held):
            # A write in place would break the graph; concatenation is the price of gradients through a cache.
            self._keys = torch.cat([self._keys[:, :, : self.length], keys], dim=2)  # (B, H, S + T, D)
            self._values = torch.cat([self._values[:, :, : self.length], values], dim=2)
            self.length, self._own = self._keys.shape[2], False
            return self._keys, self._values
        start, end = self.length, self.length + keys.shape[2]
        # Tensors made in inference mode cannot be written to outside it (a question that a compiler cannot trace).
        inside = torch.compiler.is_compiling() or torch.is_inference_mode_enabled()
        locked = not inside and self._keys.is_inference()
        if end > self._keys.shape[2] or locked or not self._own:
            capacity = end + max(MIN_GROWTH, end // 2)
            self._keys = _grown(self._keys, self.length, capacity)
            self._values = _grown(self._values, self.length, capacity)
            self._own = True
        self._keys[:, :, start:end] = keys
        self._values[:, :, start:end] = values
        self.length = end
        return self._keys[:, :, :end], self._values[:, :, :end]

    def _check(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        for name, stored, new in (("keys", self._keys, keys), ("values", self._values, values)):
            if stored is None:
                continue
            if new.shape[:2] != stored.shape[:2] or new.shape[3] != stored.shape[3]:
                raise InputError(
                    f"the cache holds {name} of (rows, heads, head size) = {(*stored.shape[:2], stored.shape[3])} and "
                    f"got {(*new.shape[:2], new.shape[3])}. Use the cache with the batch it was made for, or select "
                    "its rows with batch_select_indices()."
                )
            if new.dtype != stored.dtype or new.device != stored.device:
                raise InputError(
                    f"the cache holds {name} in {stored.dtype} on {stored.device} and got {new.dtype} on {new.device}. "
                    "Use it with the model, and in the autocast mode, it was made with."
                )

    def map_rows(self, rows: torch.Tensor | int) -> None:
        """Select rows by an index tensor, or repeat each row an int number of times."""
        if self._keys is None or self._values is None:
            return
        # The whole slabs, room included: a beam search selects at every token, and would grow them at every token.
        keys, values = self._keys, self._values
        if isinstance(rows, int):
            self._keys, self._values = keys.repeat_interleave(rows, dim=0), values.repeat_interleave(rows, dim=0)
        else:
            rows = rows.to(keys.device)
            self._keys, self._values = keys.index_select(0, rows), values.index_select(0, rows)
        self._own = True

    def crop(self, max_length: int) -> None:
        """Keep the first `max_length` tokens, or drop `-max_length` from the end.

        The next update writes over what was dropped, also where a view of it is still held.
        """
        wanted = max_length if max_length >= 0 else max(self.length + max_length, 0)
        self.length = min(self.length, wanted)


def _grown(slab: torch.Tensor, length: int, capacity: int) -> torch.Tensor:
    rows, heads, _, size = slab.shape
    bigger = slab.new_empty((rows, heads, capacity, size))
    bigger[:, :, :length] = slab[:, :, :length]
    return bigger


class DynamicCache(Cache):
    """The default cache: layers appear as they are used and grow as they need.

    Args:
        ddp_cache_data: Pairs (keys, values) to begin with, one per layer, each (B, H, S, D).
        config: Accepted for the reference's signature; a plain family needs nothing from it.
    """

    def __init__(
        self, ddp_cache_data: Sequence[tuple[torch.Tensor, torch.Tensor]] | None = None, config: Any = None
    ) -> None:
        self.layers: list[DynamicLayer] = []
        for keys, values in ddp_cache_data or ():
            self.update(keys, values, len(self.layers))

    def update(
        self,
        key_states: torch.Tensor,
        value_states: torch.Tensor,
        layer_idx: int,
        cache_kwargs: dict[str, Any] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See Cache.update; returns views of the slab."""
        while len(self.layers) <= layer_idx:
            self.layers.append(DynamicLayer())
        return self.layers[layer_idx].update(key_states, value_states)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """See Cache.get_seq_length."""
        return self.layers[layer_idx].length if layer_idx < len(self.layers) else 0

    def crop(self, max_length: int) -> None:
        """See Cache.crop."""
        for layer in self.layers:
            layer.crop(max_length)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """See Cache.batch_select_indices."""
        for layer in self.layers:
            layer.map_rows(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """See Cache.batch_repeat_interleave."""
        for layer in self.layers:
            layer.map_rows(repeats)

    def reset(self) -> None:
        """See Cache.reset."""
        self.layers.clear()

    @property
    def key_cache(self) -> list[torch.Tensor]:
        """Keys by layer, as the older interface had them."""
        return [keys for keys, _ in self]

    @property
    def value_cache(self) -> list[torch.Tensor]:
        """Values by layer, as the older interface had them."""
        return [values for _, values in self]

    def __len__(self) -> int:
        return len(self.layers)

    def __getitem__(self, layer_idx: int) -> tuple[torch.Tensor, torch.Tensor]:
        layer = self.layers[layer_idx]
        if layer.keys is None or layer.values is None:
            raise IndexError(f"layer {layer_idx} of the cache is empty.")
        return layer.keys, layer.values

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        return (self[index] for index in range(len(self.layers)))

    def to_legacy_cache(self) -> tuple[tuple[torch.Tensor, torch.Tensor], ...]:
        """Return the tuple form: for each layer a pair (keys, values), each (B, H, S, D)."""
        return tuple(self)

    @classmethod
    def from_legacy_cache(
        cls, past_key_values: Sequence[tuple[torch.Tensor, torch.Tensor]] | None = None
    ) -> DynamicCache:
        """Make a cache from the tuple form."""
        return cls(past_key_values)
