"""The default cache, which grows as it needs; and the one whose keys stay in the CPU's memory.

Letters: B rows, H key/value heads, S tokens stored, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from quintet.cache.dynamic_layers import DynamicLayer, DynamicSlidingLayer
from quintet.cache.layered import CacheLayer, LayeredCache, layer_windows
from quintet.cache.offloaded import Transport, offloaded, prefetch_next

__all__ = ["DynamicCache", "OffloadedCache"]


class DynamicCache(LayeredCache):
    """The default cache: layers grow as they need; with a configuration, layers with a window keep only that.

    Without a configuration every layer appears as it is used and keeps every key (the mask hides what a window does not
    show). Both give the same numbers.

    Args:
        ddp_cache_data: Pairs (keys, values) to begin with, one per layer, each (B, H, S, D).
        config: Configuration of the model, for its `layer_types` and `sliding_window`.
        offloading: Keep the layers that are not in use in the CPU's memory; see `OffloadedCache`.
        offload_only_non_sliding: With `offloading`, leave the layers with a window where they are: they are small.

    Raises:
        ConfigError: the configuration's layers cannot be read.
    """

    def __init__(
        self,
        ddp_cache_data: Sequence[tuple[torch.Tensor, torch.Tensor]] | None = None,
        config: Any = None,
        offloading: bool = False,
        offload_only_non_sliding: bool = False,
    ) -> None:
        super().__init__()
        self._transport = Transport() if offloading else None
        self._only_full = offload_only_non_sliding
        self._windows = None if config is None else layer_windows(config)
        self.layers = [self._make(window) for window in self._windows or ()]
        for index, (keys, values) in enumerate(ddp_cache_data or ()):
            self.update(keys, values, index)

    def _make(self, window: int | None) -> CacheLayer:
        layer = DynamicLayer() if window is None else DynamicSlidingLayer(window)
        return offloaded(layer, self._transport, self._only_full)

    def _at(self, layer_idx: int) -> CacheLayer:
        while self._windows is None and len(self.layers) <= layer_idx:
            self.layers.append(self._make(None))
        return super()._at(layer_idx)

    def update(
        self,
        key_states: torch.Tensor,
        value_states: torch.Tensor,
        layer_idx: int,
        cache_kwargs: dict[str, Any] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See Cache.update; returns views of the slab."""
        everything = super().update(key_states, value_states, layer_idx, cache_kwargs)
        if self._transport is not None:
            prefetch_next(self.layers, layer_idx)
        return everything

    def reset(self) -> None:
        """See Cache.reset."""
        super().reset()
        if self._windows is None:
            self.layers.clear()

    @property
    def key_cache(self) -> list[torch.Tensor]:
        """Keys by layer, as the older interface had them."""
        return [keys for keys, _ in self]

    @property
    def value_cache(self) -> list[torch.Tensor]:
        """Values by layer, as the older interface had them."""
        return [values for _, values in self]

    @classmethod
    def from_legacy_cache(
        cls, past_key_values: Sequence[tuple[torch.Tensor, torch.Tensor]] | None = None
    ) -> DynamicCache:
        """Make a cache from the tuple form."""
        return cls(past_key_values)


class OffloadedCache(DynamicCache):
    """A DynamicCache whose keys stay in the CPU's memory: the GPU holds those of the layer in use and of the next.

    The next layer's keys travel to the GPU while this one computes. On a CPU there is nothing to move, and it is a
    DynamicCache like any other: the same program runs on both.

    Args:
        ddp_cache_data, config, offload_only_non_sliding: See DynamicCache.
    """

    def __init__(
        self,
        ddp_cache_data: Sequence[tuple[torch.Tensor, torch.Tensor]] | None = None,
        config: Any = None,
        offload_only_non_sliding: bool = False,
    ) -> None:
        super().__init__(ddp_cache_data, config, True, offload_only_non_sliding)
