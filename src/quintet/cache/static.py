"""The cache of fixed shapes, for compiled decode steps.

Letters: B rows, H key/value heads, M room for tokens, T new tokens, W window, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from quintet.cache.layered import CacheLayer, LayeredCache, layer_windows
from quintet.cache.offloaded import Transport, offloaded, prefetch_next
from quintet.cache.static_layers import StaticLayer, StaticSlidingWindowLayer, checked_count
from quintet.errors import ConfigError, InputError

__all__ = ["StaticCache"]


class StaticCache(LayeredCache):
    """A cache for `torch.compile`: memory for `max_cache_len` tokens of each layer, made at the first update.

    A compiled decode step with it is one program for every length. On a GPU `get_seq_length` and `crop` wait for the
    device; `past` does not.

    Args:
        config: Configuration of the model: its number of layers, `layer_types` and `sliding_window`.
        max_cache_len: Most tokens that it can hold.
        max_batch_size: Most rows that the first update may bring; None for any number.
        device: Where the memory will be; None takes the device of the first keys.
        dtype: Data type of the memory; None takes that of the first keys.
        offloading: Keep the layers that are not in use in the CPU's memory (such a cache cannot be compiled).
        offload_only_non_sliding: With `offloading`, leave the layers with a window where they are: they are small.
        batch_size: Older name of `max_batch_size`.

    Raises:
        ConfigError: the configuration's layers cannot be read.
        InputError: a number below 1, or two different batch sizes.
    """

    def __init__(
        self,
        config: Any,
        max_cache_len: int,
        max_batch_size: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        offloading: bool = False,
        offload_only_non_sliding: bool = True,
        *,
        batch_size: int | None = None,
    ) -> None:
        super().__init__()
        windows = layer_windows(config)
        if windows is None:
            raise ConfigError(
                f"a StaticCache needs to know the layers of the model, and {type(config).__name__} has no "
                "num_hidden_layers. Give model.config."
            )
        if None not in (max_batch_size, batch_size) and max_batch_size != batch_size:
            raise InputError(f"max_batch_size={max_batch_size} and batch_size={batch_size} differ. Give one of them.")
        rows = batch_size if max_batch_size is None else max_batch_size
        self.max_batch_size = None if rows is None else checked_count("max_batch_size", rows)
        self.max_cache_len = checked_count("max_cache_len", max_cache_len)
        self._device = None if device is None else torch.device(device)
        self._dtype = dtype
        self._windows = windows
        self._transport = Transport() if offloading else None
        self._only_full = offload_only_non_sliding
        self.layers = [self._make(window) for window in windows]

    def _make(self, window: int | None) -> CacheLayer:
        room = self.max_cache_len
        layer = StaticLayer(room) if window is None else StaticSlidingWindowLayer(room, window)
        return offloaded(layer, self._transport, self._only_full)

    @property
    def is_compileable(self) -> bool:  # type: ignore[override]
        """Whether a compiled decode step may be given this cache."""
        return all(layer.is_compileable for layer in self.layers)

    def update(
        self,
        key_states: torch.Tensor,
        value_states: torch.Tensor,
        layer_idx: int,
        cache_kwargs: dict[str, Any] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See Cache.update; returns (B, H, M, D), or (B, H, W + T, D) for a layer with a window."""
        layer = self._at(layer_idx)
        if not layer.is_initialized:  # type: ignore[attr-defined]
            rows, heads, _, size = key_states.shape
            if self.max_batch_size is not None and rows > self.max_batch_size:
                raise InputError(
                    f"the StaticCache was made for at most {self.max_batch_size} rows (max_batch_size) and got {rows}. "
                    f"Make it with max_batch_size={rows} or without."
                )
            device, dtype = self._device or key_states.device, self._dtype or key_states.dtype
            layer.allocate((rows, heads, size, value_states.shape[3]), dtype, device)  # type: ignore[attr-defined]
        everything = layer.update(key_states, value_states)
        if self._transport is not None:
            prefetch_next(self.layers, layer_idx)
        return everything

    def get_max_cache_shape(self, layer_idx: int | None = None) -> int:
        """Return the most keys of a layer, or the most tokens of the cache."""
        return self.max_cache_len if layer_idx is None else super().get_max_cache_shape(layer_idx)

    def early_initialization(
        self,
        batch_size: int,
        num_heads: int | Sequence[int],
        head_dim: int | Sequence[int],
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> None:
        """Make the memory of every layer now, before a step is compiled or exported.

        Args:
            batch_size: Rows.
            num_heads: Key/value heads, one number or one for each layer.
            head_dim: Head size, one number or one for each layer.
            dtype: Data type of the keys and values.
            device: Where they are.

        Raises:
            InputError: a list of another length than there are layers.
        """
        numbers = []
        for name, given in (("num_heads", num_heads), ("head_dim", head_dim)):
            each = [given] * len(self.layers) if isinstance(given, int) else list(given)
            if len(each) != len(self.layers):
                raise InputError(f"{name} gives {len(each)} numbers for {len(self.layers)} layers. Give one for each.")
            numbers.append(each)
        for layer, heads, size in zip(self.layers, *numbers, strict=True):
            layer.early_initialization(batch_size, heads, size, dtype, device)
