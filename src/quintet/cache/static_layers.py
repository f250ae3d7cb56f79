"""Layers of fixed shapes: memory for all tokens is made once, so that one compiled program serves every decode step.

The length is a tensor on the device. No Python branch looks at it in `update`, so a compiled step neither waits for it
nor is compiled again as it grows.

Letters: B rows, H key/value heads, M room for tokens, S tokens seen, T new tokens, W window, D head size.
"""

from __future__ import annotations

from contextlib import nullcontext

import torch

from quintet.cache.dynamic_layers import mapped
from quintet.cache.layered import CacheLayer, check_fits
from quintet.errors import InputError

__all__ = ["StaticLayer", "StaticSlidingWindowLayer", "checked_count"]

# Tokens behind the window that a sliding layer keeps, so that rejected drafts can be cropped.
SLACK = 64


def checked_count(name: str, value: object) -> int:
    """Return `value` if it is a whole number from 1, else raise InputError."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"{name} is {value!r}, but must be a whole number from 1.")
    return value


class StaticLayer(CacheLayer):
    """Keys and values of one layer in memory of shape (B, H, M, D), written in place; unused places are zeros.

    Args:
        max_cache_len: M.
    """

    is_compileable = True

    def __init__(self, max_cache_len: int) -> None:
        self.max_cache_len = checked_count("max_cache_len", max_cache_len)
        self._keys: torch.Tensor | None = None
        self._values: torch.Tensor | None = None
        self._seen = torch.zeros((), dtype=torch.int64)  # S; moves to the keys' device with the first of them
        # Tokens written by calls that were not compiled: never more than S, and known without waiting for a device.
        self._at_least = 0

    @property
    def _room(self) -> int:
        """Places in the memory."""
        return self.max_cache_len

    @property
    def length(self) -> int:
        """S, the tokens seen; on a GPU this waits for the device."""
        return int(self._seen)

    @property
    def is_initialized(self) -> bool:
        """Whether the memory is made."""
        return self._keys is not None

    @property
    def keys(self) -> torch.Tensor | None:
        """The keys in use, (B, H, S, D), a view; None before the first update."""
        return None if self._keys is None else self._keys[:, :, : self.length]

    @property
    def values(self) -> torch.Tensor | None:
        """The values in use, (B, H, S, D), a view; None before the first update."""
        return None if self._values is None else self._values[:, :, : self.length]

    def past(self) -> torch.Tensor:
        """Return S as a 0-d int64 tensor of its own, which later updates leave as it is."""
        return self._seen.clone()

    def get_mask_sizes(self, query_length: int) -> tuple[int, int | torch.Tensor]:
        """Return (M, 0); see Cache.get_mask_sizes."""
        return self.max_cache_len, 0

    def get_max_cache_shape(self) -> int:
        """Return M."""
        return self.max_cache_len

    def early_initialization(
        self, batch_size: int, num_heads: int, head_dim: int, dtype: torch.dtype, device: torch.device | str
    ) -> None:
        """Make the memory; what an update does otherwise. Nothing happens when there is some."""
        self.allocate((batch_size, num_heads, head_dim, head_dim), dtype, torch.device(device))

    def allocate(self, sizes: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device) -> None:
        """Make the memory from (rows, heads, size of a key, size of a value), unless there is some."""
        if self._keys is not None:
            return
        rows, heads, key_size, value_size = sizes
        # Tensors made in inference mode could not be written to outside of it.
        plain = nullcontext() if torch.compiler.is_compiling() else torch.inference_mode(False)
        with plain:
            self._keys = torch.zeros((rows, heads, self._room, key_size), dtype=dtype, device=device)
            self._values = torch.zeros((rows, heads, self._room, value_size), dtype=dtype, device=device)
            if self._seen.device != self._keys.device:
                self._seen = torch.zeros((), dtype=torch.int64, device=device)
        if device.type == "cuda" and not torch.compiler.is_compiling():
            for tensor in (self._keys, self._values, self._seen):
                torch._dynamo.mark_static_address(tensor)  # a CUDA graph may write to it where it is

    def _prepare(self, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Check what an update was given, make the memory when there is none, and return it."""
        if self._keys is None or self._values is None:
            self.allocate((*keys.shape[:2], keys.shape[3], values.shape[3]), keys.dtype, keys.device)
        assert self._keys is not None and self._values is not None, "made above"
        check_fits("keys", keys, self._keys)
        check_fits("values", values, self._values)
        if torch.is_grad_enabled() and (keys.requires_grad or values.requires_grad):
            raise InputError(
                "a StaticCache writes over its memory, so no gradient can flow through it. Decode under "
                "torch.no_grad() or torch.inference_mode(), or train with a DynamicCache or none."
            )
        if not torch.compiler.is_compiling():
            self._check_room(keys.shape[2])
            self._at_least += keys.shape[2]
        return self._keys, self._values

    def _check_room(self, new: int) -> None:
        # On a CPU looking is free; elsewhere only what is known here is compared, and the device refuses the rest.
        past = self.length if self._seen.device.type == "cpu" else self._at_least
        if past + new > self.max_cache_len:
            raise InputError(
                f"{new} tokens were given to a StaticCache that holds {past} of at most {self.max_cache_len} "
                f"(max_cache_len). Make it with max_cache_len={past + new} or more, or use a DynamicCache."
            )

    def update(self, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Write (B, H, T, D) tensors behind the others; return the whole memory, (B, H, M, D).

        Raises:
            InputError: they do not fit, there is no room for them (seen on a CPU, outside compiled code), or they are
                to be differentiated.
        """
        all_keys, all_values = self._prepare(keys, values)
        places = torch.arange(keys.shape[2], device=keys.device) + self._seen  # (T,)
        all_keys.index_copy_(2, places, keys)
        all_values.index_copy_(2, places, values)
        self._seen.add_(keys.shape[2])
        return all_keys, all_values

    def _set_length(self, length: int) -> None:
        self._seen.fill_(length)
        self._at_least = min(self._at_least, length)

    def crop(self, max_length: int) -> None:
        """See Cache.crop; what is dropped is zeroed."""
        wanted = self.wanted(max_length)
        if wanted == self.length or self._keys is None or self._values is None:
            return
        self._keys[:, :, wanted:].zero_()
        self._values[:, :, wanted:].zero_()
        self._set_length(wanted)

    def map_rows(self, rows: torch.Tensor | int) -> None:
        """See CacheLayer.map_rows; the memory stays in its place while the number of rows stays."""
        if self._keys is not None and self._values is not None:
            self._keys, self._values = _replaced(self._keys, rows), _replaced(self._values, rows)

    def restore(self, keys: torch.Tensor, values: torch.Tensor, length: int) -> None:
        """Take what another store of this kind held: its `keys`, `values` and `length`."""
        self.reset()
        self.update(keys, values)
        self._set_length(length)
        self._at_least = length

    def reset(self) -> None:
        """Forget every token; the memory stays."""
        if self._keys is not None and self._values is not None:
            self._keys.zero_()
            self._values.zero_()
        self._set_length(0)


class StaticSlidingWindowLayer(StaticLayer):
    """A layer with a window: the memory holds the newest tokens, right-aligned, and every update shifts it.

    Args:
        max_cache_len: M; no more than this is kept even when the window is larger.
        sliding_window: W, keys that a query may see, its own included.
    """

    def __init__(self, max_cache_len: int, sliding_window: int) -> None:
        super().__init__(max_cache_len)
        self.window: int = checked_count("sliding_window", sliding_window)
        self._oldest = 0  # no key of a slot before this one is held: a crop moved what is older out of reach
        # The memory before an update longer than SLACK, the tokens since, and `_oldest` then; to undo that update.
        self._before: tuple[torch.Tensor, torch.Tensor, int, int] | None = None

    @property
    def _shown(self) -> int:
        """Stored keys that an update returns."""
        return min(self.window, self.max_cache_len)

    @property
    def _room(self) -> int:
        return min(self.window + SLACK, self.max_cache_len)

    @property
    def keys(self) -> torch.Tensor | None:
        """The newest `window - 1` keys, or as many as there are, a view; None before the first update."""
        return None if self._keys is None else self._keys[:, :, self._room - self._visible :]

    @property
    def values(self) -> torch.Tensor | None:
        """The values that go with `keys`."""
        return None if self._values is None else self._values[:, :, self._room - self._visible :]

    @property
    def most_undone(self) -> int | None:
        """See CacheLayer.most_undone."""
        return min(self.window, SLACK)

    @property
    def _visible(self) -> int:
        return min(self.length, self.window - 1, self._room)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int | torch.Tensor]:
        """Return (W + T, S - W); see Cache.get_mask_sizes. Slots below 0 are zeros."""
        return self._shown + query_length, self._seen - self._shown

    def get_max_cache_shape(self) -> int:
        """Return W, or M when that is smaller."""
        return self._shown

    def _check_room(self, new: int) -> None:
        """There is always room: a layer that sees everything says when the cache is full."""

    def update(self, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Shift (B, H, T, D) tensors in; return what they may see, (B, H, W + T, D), right-aligned.

        Raises:
            InputError: they do not fit, or are to be differentiated.
        """
        old_keys, old_values = self._prepare(keys, values)
        new = keys.shape[2]
        self._before = None if new <= SLACK else (old_keys.clone(), old_values.clone(), new, self._oldest)
        all_keys = torch.cat([old_keys, keys], dim=2)  # (B, H, room + T, D)
        all_values = torch.cat([old_values, values], dim=2)
        old_keys.copy_(all_keys[:, :, new:])
        old_values.copy_(all_values[:, :, new:])
        self._seen.add_(new)
        return all_keys[:, :, self._room - self._shown :], all_values[:, :, self._room - self._shown :]

    def _holds(self, wanted: int, length: int, oldest: int) -> bool:
        """Whether memory that ends at `length` has all that a window at `wanted` needs."""
        return wanted <= length and wanted - min(wanted, self.window - 1) >= max(oldest, length - self._room)

    def check_crop(self, max_length: int) -> None:
        """Raise InputError when the keys of a window that ends at `max_length` are no longer held."""
        length, wanted = self.length, self.wanted(max_length)
        if wanted in (0, length) or self._holds(wanted, length, self._oldest):
            return
        if self._before is None or not self._holds(wanted, length - self._before[2], self._before[3]):
            raise InputError(
                f"the cache cannot be cropped from {length} to {wanted} tokens: a layer with a window of "
                f"{self.window} has dropped keys that are needed there. To crop anywhere, use a DynamicCache() "
                "made without a config, which keeps every key."
            )

    def crop(self, max_length: int) -> None:
        """See Cache.crop.

        Raises:
            InputError: the keys of the window that ends there are no longer held.
        """
        self.check_crop(max_length)
        length, wanted = self.length, self.wanted(max_length)
        if wanted == length or self._keys is None or self._values is None:
            return
        if wanted == 0:
            self.reset()
            return
        if self._before is not None:
            old_keys, old_values, tokens, oldest = self._before
            if self._holds(wanted, length, self._oldest):
                self._before = (old_keys, old_values, tokens - (length - wanted), oldest)
            else:
                self._keys.copy_(old_keys)
                self._values.copy_(old_values)
                length, self._oldest, self._before = length - tokens, oldest, None
        self._oldest = max(self._oldest, length - self._room)
        kept = self._room - (length - wanted)
        for memory in (self._keys, self._values):
            tail = memory[:, :, :kept].clone()  # the two places overlap
            memory.zero_()
            memory[:, :, self._room - kept :] = tail
        self._set_length(wanted)

    def map_rows(self, rows: torch.Tensor | int) -> None:
        """See CacheLayer.map_rows."""
        super().map_rows(rows)
        if self._before is not None:
            keys, values, *rest = self._before
            self._before = (mapped(keys, rows), mapped(values, rows), rest[0], rest[1])

    def restore(self, keys: torch.Tensor, values: torch.Tensor, length: int) -> None:
        """Take what another store of this kind held: its `keys`, `values` and `length`."""
        super().restore(keys, values, length)
        self._oldest, self._before = length - keys.shape[2], None

    def reset(self) -> None:
        """Forget every token; the memory stays."""
        super().reset()
        self._oldest, self._before = 0, None


def _replaced(memory: torch.Tensor, rows: torch.Tensor | int) -> torch.Tensor:
    """Return the chosen rows in the same memory, or in new memory when their number changes."""
    chosen = mapped(memory, rows)
    return memory.copy_(chosen) if chosen.shape == memory.shape else chosen
