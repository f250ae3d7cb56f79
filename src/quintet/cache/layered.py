"""What most caches share: a list of layers, each of which stores one layer of the model in its own way.

Letters: B rows, H key/value heads, S tokens seen, T new tokens, K keys that attention sees, D head size.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from quintet.cache.base import Cache
from quintet.cache.record import TokenRecord
from quintet.errors import ConfigError, InputError, suggest

__all__ = ["CacheLayer", "LayeredCache", "check_fits", "layer_windows"]

KINDS = ("full_attention", "sliding_attention")


class CacheLayer:
    """The contract of the store of one layer."""

    # Keys that a query may see, its own included; None for all.
    window: int | None = None
    is_compileable: bool = False

    @property
    def is_sliding(self) -> bool:
        """Whether only the newest keys are kept."""
        return self.window is not None

    @property
    def length(self) -> int:
        """S, the tokens seen."""
        raise NotImplementedError(f"{type(self).__name__} must define length.")

    @property
    def keys(self) -> torch.Tensor | None:
        """The keys that the next token may see, (B, H, S or fewer, D); None before the first update."""
        raise NotImplementedError(f"{type(self).__name__} must define keys.")

    @property
    def values(self) -> torch.Tensor | None:
        """The values that go with `keys`."""
        raise NotImplementedError(f"{type(self).__name__} must define values.")

    def update(self, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See Cache.update."""
        raise NotImplementedError(f"{type(self).__name__} must define update().")

    def get_seq_length(self) -> int:
        """See Cache.get_seq_length."""
        return self.length

    def past(self) -> int | torch.Tensor:
        """See Cache.past."""
        return self.length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int | torch.Tensor]:
        """See Cache.get_mask_sizes."""
        visible = self.length if self.window is None else min(self.length, self.window - 1)
        return visible + query_length, self.length - visible

    def get_max_cache_shape(self) -> int:
        """See Cache.get_max_cache_shape."""
        return -1 if self.window is None else self.window

    def whole(self) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Return keys and values of every token from the first, or None when a window has dropped some."""
        if self.keys is None or self.values is None or self.keys.shape[2] != self.length:
            return None
        return self.keys, self.values

    def wanted(self, max_length: int) -> int:
        """Return the length that `crop(max_length)` asks for."""
        return min(self.length, max_length if max_length >= 0 else max(self.length + max_length, 0))

    @property
    def most_undone(self) -> int | None:
        """Tokens of the last update that `crop` can take back, whichever they are; None for any number."""
        return self.window

    @property
    def sample(self) -> torch.Tensor | None:
        """A tensor (B, H, any, D) of the rows, heads, type and device that are stored; None before the first update."""
        return self.keys

    def check_crop(self, max_length: int) -> None:
        """Raise InputError when `crop(max_length)` is not possible."""

    def crop(self, max_length: int) -> None:
        """See Cache.crop."""
        raise NotImplementedError(f"{type(self).__name__} must define crop().")

    def map_rows(self, rows: torch.Tensor | int) -> None:
        """Select rows by an index tensor, or repeat each row an int number of times."""
        raise NotImplementedError(f"{type(self).__name__} must define map_rows().")

    def keep_rows(self, rows: torch.Tensor) -> None:
        """See Cache.keep_rows."""
        self.map_rows(rows)

    def map_newest(self, rows: torch.Tensor, newest: int) -> None:
        """Select as many rows as there are, which differ from those they replace in the `newest` tokens at most."""
        self.map_rows(rows)

    def reset(self) -> None:
        """Forget every token."""
        raise NotImplementedError(f"{type(self).__name__} must define reset().")


def check_fits(name: str, new: torch.Tensor, stored: torch.Tensor) -> None:
    """Raise InputError when (B, H, T, D) cannot be appended to (B, H, S, D): other rows, heads, size, type or device.

    `name` says whether these are "keys" or "values".
    """
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


def layer_windows(config: Any) -> list[int | None] | None:
    """Return the window of each layer of a configuration, None for a layer that sees everything.

    Reads `layer_types` and `sliding_window`; without `layer_types` a `sliding_window` holds for every layer, and
    without a `sliding_window` every layer sees everything. A configuration that does not say how many layers there are
    gives None.

    Raises:
        ConfigError: an unknown kind of layer, another number of them than there are layers, a window below 1.
    """
    # Not getattr: for a field that is not there our configurations look for the nearest name, which takes long and
    # cannot be compiled.
    kinds, window = config.__dict__.get("layer_types"), config.__dict__.get("sliding_window")
    count = getattr(config, "num_hidden_layers", None)
    if window is not None and (isinstance(window, bool) or not isinstance(window, int) or window < 1):
        raise ConfigError(f"sliding_window is {window!r}, but must be a whole number from 1, or None for no window.")
    if kinds is None:
        return None if count is None else [window] * count
    if count is not None and len(kinds) != count:
        raise ConfigError(f"layer_types names {len(kinds)} layers, but num_hidden_layers is {count}. Name each layer.")
    for kind in kinds:
        if kind not in KINDS:
            raise ConfigError(
                f"layer_types holds {kind!r}; a cache knows {' and '.join(KINDS)}.{suggest(str(kind), KINDS)}"
            )
    return [window if kind == KINDS[1] else None for kind in kinds]


class LayeredCache(Cache):
    """A cache made of layers: every question goes to the layer, every change to all of them."""

    record: TokenRecord

    def __init__(self) -> None:
        self.layers: list[CacheLayer] = []
        self.record = TokenRecord()

    def _at(self, layer_idx: int) -> CacheLayer:
        """Return the store of a layer that is about to be written to."""
        if not 0 <= layer_idx < len(self.layers):
            raise InputError(
                f"layer {layer_idx} was given to a cache of {len(self.layers)} layers. Make the cache with the "
                "configuration of the model that uses it."
            )
        return self.layers[layer_idx]

    def update(
        self,
        key_states: torch.Tensor,
        value_states: torch.Tensor,
        layer_idx: int,
        cache_kwargs: dict[str, Any] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See Cache.update."""
        return self._at(layer_idx).update(key_states, value_states)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """See Cache.get_seq_length."""
        return self.layers[layer_idx].length if layer_idx < len(self.layers) else 0

    def past(self, layer_idx: int = 0) -> int | torch.Tensor:
        """See Cache.past."""
        return self.layers[layer_idx].past() if layer_idx < len(self.layers) else 0

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int | torch.Tensor]:
        """See Cache.get_mask_sizes."""
        if layer_idx >= len(self.layers):
            return query_length, 0
        return self.layers[layer_idx].get_mask_sizes(query_length)

    def get_max_cache_shape(self, layer_idx: int | None = None) -> int:
        """See Cache.get_max_cache_shape."""
        asked = self.layers if layer_idx is None else self.layers[layer_idx : layer_idx + 1]
        shapes = [layer.get_max_cache_shape() for layer in asked]
        return -1 if -1 in shapes else max(shapes, default=-1)

    @property
    def is_sliding(self) -> list[bool]:
        """For each layer, whether it keeps only the newest keys."""
        return [layer.is_sliding for layer in self.layers]

    def crop(self, max_length: int) -> None:
        """See Cache.crop; either every layer is cropped or none."""
        for layer in self.layers:
            layer.check_crop(max_length)
        for layer in self.layers:
            layer.crop(max_length)
        self.record.crop(self.get_seq_length())

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """See Cache.batch_select_indices."""
        for layer in self.layers:
            layer.map_rows(indices)
        self.record.map_rows(indices)

    def reorder_newest(self, beam_idx: torch.Tensor, newest: int) -> None:
        """See Cache.reorder_newest."""
        for layer in self.layers:
            layer.map_newest(beam_idx, newest)
        self.record.map_rows(beam_idx)

    def keep_rows(self, indices: torch.Tensor) -> None:
        """See Cache.keep_rows."""
        for layer in self.layers:
            layer.keep_rows(indices)
        self.record.map_rows(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """See Cache.batch_repeat_interleave."""
        for layer in self.layers:
            layer.map_rows(repeats)
        self.record.map_rows(repeats)

    def reset(self) -> None:
        """See Cache.reset."""
        for layer in self.layers:
            layer.reset()
        self.record.reset()

    def __len__(self) -> int:
        return len(self.layers)

    def __getitem__(self, layer_idx: int) -> tuple[torch.Tensor, torch.Tensor]:
        layer = self.layers[layer_idx]
        keys, values = layer.keys, layer.values
        if keys is None or values is None:
            raise IndexError(f"layer {layer_idx} of the cache is empty.")
        return keys, values

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        return (self[index] for index in range(len(self.layers)))

    def to_legacy_cache(self) -> tuple[tuple[torch.Tensor, torch.Tensor], ...]:
        """Return the tuple form: for each layer a pair (keys, values), each (B, H, S, D); () when nothing is stored.

        Raises:
            InputError: a layer with a window has dropped keys, which a tuple could not say.
        """
        if all(layer.keys is None for layer in self.layers):
            return ()
        pairs = []
        for index, layer in enumerate(self.layers):
            pair = layer.whole()
            if pair is None and layer.keys is not None:
                raise InputError(
                    f"layer {index} has a window of {layer.window} tokens and has dropped keys of the {layer.length} "
                    "it has seen, so it has no tuple form. Keep the cache as it is, or use a DynamicCache() made "
                    "without a config, which keeps every key."
                )
            pairs.append(self[index] if pair is None else pair)
        return tuple(pairs)
