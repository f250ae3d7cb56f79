"""Layers that grow: one slab per layer with room to spare; a token is written in place, never concatenated.

Letters: B rows, H key/value heads, S tokens stored, T new tokens, D head size.
"""

from __future__ import annotations

import torch

from quintet.cache.layered import CacheLayer, check_fits
from quintet.errors import InputError

__all__ = ["DynamicLayer", "DynamicSlidingLayer", "DynamicSlidingWindowLayer", "mapped"]

# A slab grows by half of what it holds, and by at least this many tokens: copies stay linear in the tokens written.
MIN_GROWTH = 128


class DynamicLayer(CacheLayer):
    """Keys and values of one layer in two slabs of shape (B, H, capacity, D), of which `length` tokens are used."""

    length = 0

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
        check_fits("keys", keys, self._keys)
        check_fits("values", values, self._values)
        if _differentiated(keys, values, self._keys, self._values):
            # A write in place would break the graph; concatenation is the price of gradients through a cache.
            self._keys = torch.cat([self._keys[:, :, : self.length], keys], dim=2)  # (B, H, S + T, D)
            self._values = torch.cat([self._values[:, :, : self.length], values], dim=2)
            self.length, self._own = self._keys.shape[2], False
            return self._keys, self._values
        own_keys, own_values, start, _ = self.slots(keys.shape[2])
        end = self.length
        own_keys[:, :, start:end] = keys
        own_values[:, :, start:end] = values
        return own_keys[:, :, :end], own_values[:, :, :end]

    def takes(self, shape: tuple[int, int, int], new: int, dtype: torch.dtype) -> bool:
        """Whether `slots(new)` can give places for tokens of that shape, (B, H, D), and that type, on a CPU."""
        for slab in (self._keys, self._values):
            if slab is None or slab.device.type != "cpu" or slab.dtype != dtype or slab.stride(3) != 1:
                return False
            rows, heads, _, size = slab.shape
            if (rows, heads, size) != shape:
                return False
        return True

    def has(self, keys: torch.Tensor | None, values: torch.Tensor | None) -> bool:
        """Whether these are the slabs, as `slots` returned them."""
        return keys is not None and self._keys is keys and self._values is values

    def slots(self, new: int) -> tuple[torch.Tensor, torch.Tensor, int, int]:
        """Make room for `new` tokens, which the caller writes and which count as stored from now on; after `takes`.

        Returns:
            The slabs (B, H, capacity, D), the place of the first new token in them, and the token that stands at place
            0, counted from the first of all.
        """
        assert self._keys is not None and self._values is not None, "takes() was asked"
        start, end = self.length, self.length + new
        if end > self._keys.shape[2] or not self._own or _locked(self._keys):
            capacity = end + max(MIN_GROWTH, end // 2)
            self._keys = _moved(self._keys, 0, start, capacity)
            self._values = _moved(self._values, 0, start, capacity)
            self._own = True
        self.length = end
        return self._keys, self._values, start, 0

    def map_rows(self, rows: torch.Tensor | int) -> None:
        """Select rows by an index tensor, or repeat each row an int number of times."""
        if self._keys is None or self._values is None:
            return
        # The whole slabs, room included: a beam search selects at every token, and would grow them at every token.
        self._keys, self._values, self._own = mapped(self._keys, rows), mapped(self._values, rows), True

    def map_newest(self, rows: torch.Tensor, newest: int) -> None:
        """See CacheLayer.map_newest; in place."""
        if self._keys is None or self._values is None:
            return
        end = self._stored
        first = max(end - newest, 0)
        if not self._own or _locked(self._keys) or _differentiated(self._keys, self._values):
            self.map_rows(rows)
        elif first < end:
            for slab in (self._keys, self._values):
                part = slab[:, :, first:end]
                part.copy_(mapped(part, rows))

    def keep_rows(self, rows: torch.Tensor) -> None:
        """See Cache.keep_rows; in place, so that only the rows that move are copied."""
        if self._keys is None or self._values is None:
            return
        if not self._own or _locked(self._keys) or _differentiated(self._keys, self._values):
            return self.map_rows(rows)
        count = rows.shape[0]
        places = torch.arange(count, device=rows.device)
        moved = rows != places
        source, target = rows[moved].to(self._keys.device), places[moved].to(self._keys.device)
        if source.numel():
            for slab in (self._keys, self._values):
                used = slab[:, :, : self._stored]
                used.index_copy_(0, target, used.index_select(0, source))
        self._keys, self._values = self._keys[:count], self._values[:count]

    @property
    def _stored(self) -> int:
        """Places of the slabs up to the newest token."""
        return self.length

    def crop(self, max_length: int) -> None:
        """Keep the first `max_length` tokens, or drop `-max_length` from the end.

        The next update writes over what was dropped, also where a view of it is still held.
        """
        self.length = self.wanted(max_length)

    def restore(self, keys: torch.Tensor, values: torch.Tensor, length: int) -> None:
        """Take what another store of this kind held: its `keys`, `values` and `length`."""
        self.reset()
        self._keys, self._values, self.length = keys, values, length

    def reset(self) -> None:
        """Forget every token and give the memory back."""
        self.length, self._keys, self._values, self._own = 0, None, None, False


class DynamicSlidingLayer(DynamicLayer):
    """Keys and values of a layer with a window, in two slabs of at most twice the window.

    Tokens stand in order. A full slab moves its newest `window - 1` tokens to its front, so that a token costs one
    write and, spread over the tokens, about one move. What was returned earlier may be written over by a move.

    Args:
        sliding_window: Keys that a query may see, its own included; at least 1.
    """

    def __init__(self, sliding_window: int) -> None:
        super().__init__()
        if isinstance(sliding_window, bool) or not isinstance(sliding_window, int) or sliding_window < 1:
            raise InputError(f"sliding_window is {sliding_window!r}, but must be a whole number from 1.")
        self.window: int = sliding_window
        self._end = 0  # the slabs hold the tokens `length - _end` to `length` at their front
        # The layer as it was before an update too long for the slabs, to undo it.
        self._before: tuple[torch.Tensor, torch.Tensor, int, int, bool] | None = None

    @property
    def keys(self) -> torch.Tensor | None:
        """The newest `window - 1` keys, or as many as there are, a view; None before the first update."""
        return None if self._keys is None else self._keys[:, :, self._first : self._end]

    @property
    def values(self) -> torch.Tensor | None:
        """The values that go with `keys`."""
        return None if self._values is None else self._values[:, :, self._first : self._end]

    @property
    def _first(self) -> int:
        """Where in the slab the keys begin that the next token may see."""
        return self._end - min(self.length, self.window - 1)

    def whole(self) -> tuple[torch.Tensor, torch.Tensor] | None:
        """See CacheLayer.whole."""
        if self._keys is None or self._values is None or self._end != self.length:
            return None
        return self._keys[:, :, : self._end], self._values[:, :, : self._end]

    def update(self, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Append (B, H, T, D) tensors; return what they may see, (B, H, min(S, window - 1) + T, D).

        Raises:
            InputError: rows, heads, head size, data type or device differ from what is stored.
        """
        new = keys.shape[2]
        if self._keys is None or self._values is None:
            if new <= 2 * self.window or _differentiated(keys, values):
                self._keys, self._values, self._end = keys, values, new
            else:
                self._keep_newest(keys, values)
            self.length = new
            return keys, values
        check_fits("keys", keys, self._keys)
        check_fits("values", values, self._values)
        first, old = self._first, self._end - self._first
        differentiated = _differentiated(keys, values, self._keys, self._values)
        if differentiated or old + new > 2 * self.window:
            all_keys = torch.cat([self._keys[:, :, first : self._end], keys], dim=2)  # (B, H, old + T, D)
            all_values = torch.cat([self._values[:, :, first : self._end], values], dim=2)
            before = (self._keys, self._values, self._end, self.length, self._own)
            if differentiated:
                self._keys, self._values, self._end, self._own = all_keys, all_values, old + new, False
            else:
                self._keep_newest(all_keys, all_values)
            self._before = None if differentiated else before
            self.length += new
            return all_keys, all_values
        own_keys, own_values, begin, _ = self.slots(new)
        end = self._end
        own_keys[:, :, begin:end] = keys
        own_values[:, :, begin:end] = values
        return own_keys[:, :, begin - old : end], own_values[:, :, begin - old : end]

    def takes(self, shape: tuple[int, int, int], new: int, dtype: torch.dtype) -> bool:
        """See DynamicLayer.takes."""
        return super().takes(shape, new, dtype) and self._end - self._first + new <= 2 * self.window

    def slots(self, new: int) -> tuple[torch.Tensor, torch.Tensor, int, int]:
        """See DynamicLayer.slots."""
        first, old = self._first, self._end - self._first
        self._make_room(first, old, new)
        assert self._keys is not None and self._values is not None, "takes() was asked"
        start, slot = self._end, self.length - self._end
        self._end, self.length, self._before = self._end + new, self.length + new, None
        return self._keys, self._values, start, slot

    def _keep_newest(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Copy the newest tokens into slabs of twice the window: the window's, and half as many so that crop works."""
        end, kept = keys.shape[2], self.window - 1 + (self.window + 1) // 2
        self._keys = _moved(keys, end - kept, end, 2 * self.window)
        self._values = _moved(values, end - kept, end, 2 * self.window)
        self._end, self._own = kept, True

    def _make_room(self, first: int, old: int, new: int) -> None:
        """See that `new` tokens can be written at `_end`; only the `old` newest tokens need to stay."""
        assert self._keys is not None and self._values is not None, "update() keeps the first tensors itself"
        room, limit = self._keys.shape[2], 2 * self.window
        writable = self._own and not _locked(self._keys)
        if writable and self._end + new <= room:
            return
        if writable and room >= limit:
            # A copy in between, as the two places may overlap.
            self._keys[:, :, :old] = self._keys[:, :, first : self._end].clone()
            self._values[:, :, :old] = self._values[:, :, first : self._end].clone()
        else:
            capacity = min(limit, old + new + max(MIN_GROWTH, (old + new) // 2))
            self._keys = _moved(self._keys, first, self._end, capacity)
            self._values = _moved(self._values, first, self._end, capacity)
            self._own = True
        self._end = old

    def map_rows(self, rows: torch.Tensor | int) -> None:
        """Select rows by an index tensor, or repeat each row an int number of times."""
        super().map_rows(rows)
        if self._before is not None:
            keys, values, *rest = self._before
            self._before = (mapped(keys, rows), mapped(values, rows), rest[0], rest[1], True)

    def map_newest(self, rows: torch.Tensor, newest: int) -> None:
        """See CacheLayer.map_newest."""
        if self._before is None:
            super().map_newest(rows, newest)
        else:  # what an undo would bring back has to move too
            self.map_rows(rows)

    def keep_rows(self, rows: torch.Tensor) -> None:
        """See Cache.keep_rows."""
        if self._before is None:
            super().keep_rows(rows)
        else:  # what an undo would bring back has to move too
            self.map_rows(rows)

    @property
    def _stored(self) -> int:
        return self._end

    def _holds(self, wanted: int, end: int, length: int) -> bool:
        """Whether slabs with the tokens `length - end` to `length` have all that a window at `wanted` needs."""
        return wanted <= length and wanted - min(wanted, self.window - 1) >= length - end

    def check_crop(self, max_length: int) -> None:
        """Raise InputError when the keys of a window that ends at `max_length` are no longer held."""
        wanted = self.wanted(max_length)
        if wanted in (0, self.length) or self._holds(wanted, self._end, self.length):
            return
        if self._before is None or not self._holds(wanted, *self._before[2:4]):
            oldest = self.length - self._end + (self.window - 1 if self.length > self._end else 0)
            raise InputError(
                f"the cache cannot be cropped from {self.length} to {wanted} tokens: a layer with a window of "
                f"{self.window} has dropped keys that are needed there; it can go back to {oldest}, or to 0. To crop "
                "anywhere, use a DynamicCache() made without a config, which keeps every key."
            )

    def crop(self, max_length: int) -> None:
        """Keep the first `max_length` tokens, or drop `-max_length` from the end; see Cache.crop.

        Raises:
            InputError: the keys of the window that ends there are no longer held.
        """
        self.check_crop(max_length)
        wanted = self.wanted(max_length)
        if wanted == self.length:
            return
        if wanted == 0:
            self._end, self.length, self._before = 0, 0, None
            return
        if not self._holds(wanted, self._end, self.length) and self._before is not None:
            self._keys, self._values, self._end, self.length, self._own = self._before
            self._before = None
        self._end -= self.length - wanted
        self.length = wanted

    def restore(self, keys: torch.Tensor, values: torch.Tensor, length: int) -> None:
        """Take what another store of this kind held: its `keys`, `values` and `length`."""
        super().restore(keys, values, length)
        self._end = keys.shape[2]

    def reset(self) -> None:
        """Forget every token and give the memory back."""
        super().reset()
        self._end, self._before = 0, None


DynamicSlidingWindowLayer = DynamicSlidingLayer


def _differentiated(*tensors: torch.Tensor) -> bool:
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def _locked(slab: torch.Tensor) -> bool:
    """Whether a tensor made in inference mode would have to be written to outside of it, which is not possible."""
    # A question that a compiler cannot trace.
    inside = torch.compiler.is_compiling() or torch.is_inference_mode_enabled()
    return not inside and slab.is_inference()


def _moved(slab: torch.Tensor, first: int, end: int, capacity: int) -> torch.Tensor:
    """Return a slab of `capacity` tokens that begins with the tokens `first` to `end` of `slab`."""
    rows, heads, _, size = slab.shape
    other = slab.new_empty((rows, heads, capacity, size))
    other[:, :, : end - first] = slab[:, :, first:end]
    return other


def mapped(tensor: torch.Tensor, rows: torch.Tensor | int) -> torch.Tensor:
    """Return the rows at an index tensor, or each row repeated an int number of times; always a copy."""
    if isinstance(rows, int):
        return tensor.repeat_interleave(rows, dim=0)
    return tensor.index_select(0, rows.to(tensor.device))
