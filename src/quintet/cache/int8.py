"""A cache of 8 bits that is written in place: every token is rounded as it comes, and native code attends over it.

What a token is stored as depends on nothing but its keys and values: a text read whole or in parts, one token at a time
or in a batch gives the same numbers.

Letters: B rows, H key/value heads, S tokens stored, T new tokens, K keys that attention sees, D head size, G groups of
32 numbers of a head, W = D + 2 G bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional as F

from quintet.cache.dynamic import DynamicCache
from quintet.cache.dynamic_layers import DynamicLayer, DynamicSlidingLayer
from quintet.cache.layered import CacheLayer, check_fits
from quintet.errors import InputError

__all__ = ["Int8Cache", "Int8Layer", "decode_int8", "encode_int8", "head_size"]

GROUP = 32  # numbers of a head that share a scale
MOST = 127  # codes go from -127 to 127


def encode_int8(x: torch.Tensor) -> torch.Tensor:
    """Return heads in 8 bits: a number is its code times the scale of its group, the largest one's 127th.

    Args:
        x: (..., D).

    Returns:
        (..., W) int8: D codes, and behind them G scales in bfloat16, two bytes each. A group that holds a number that
        is not finite comes back as NaN.
    """
    size = x.shape[-1]
    groups = F.pad(x.float(), (0, -size % GROUP)).unflatten(-1, (-1, GROUP))  # (..., G, 32)
    scale = (groups.abs().amax(dim=-1) / MOST).to(torch.bfloat16)  # (..., G)
    wide = scale.float().unsqueeze(-1)
    codes = torch.where(wide > 0, groups / wide, 0).round().clamp(-MOST, MOST).nan_to_num(0).to(torch.int8)
    codes = codes.flatten(-2)[..., :size]  # (..., G, 32) -> (..., D)
    return torch.cat([codes, scale.contiguous().view(torch.int8)], dim=-1)


def decode_int8(stored: torch.Tensor, size: int, dtype: torch.dtype) -> torch.Tensor:
    """Return the (..., D) numbers, D being `size`, that (..., W) bytes of `encode_int8` stand for."""
    scale = stored[..., size:].contiguous().view(torch.bfloat16).float()  # (..., G)
    whole = size // GROUP * GROUP
    codes = stored[..., :whole].unflatten(-1, (-1, GROUP)) if whole else None  # (..., G, 32)
    parts = [] if codes is None else [(codes * scale[..., : whole // GROUP, None]).flatten(-2)]
    if whole < size:
        parts.append(stored[..., whole:size] * scale[..., -1:])
    numbers = parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)
    return numbers.to(dtype)


def head_size(width: int) -> int:
    """Return D of heads of W bytes; 0 when there is none of that width."""
    full, rest = divmod(width, GROUP + 2)
    return full * GROUP + rest - 2 if rest > 2 else full * GROUP if rest == 0 else 0


class Int8Layer(CacheLayer):
    """Keys and values of one layer in 8 bits.

    Args:
        window: Keys that a query may see, its own included; None for all.
    """

    def __init__(self, window: int | None = None) -> None:
        self.window = window
        # (B, H, S, W) int8; it grows, crops and moves as every other store.
        self.store = DynamicLayer() if window is None else DynamicSlidingLayer(window)
        self._sizes = (0, 0)  # D of keys and of values
        self._dtype: torch.dtype | None = None

    @property
    def length(self) -> int:
        """S, the tokens seen."""
        return self.store.length

    @property
    def dtype(self) -> torch.dtype | None:
        """Type of the numbers that an update is given and returns; None before the first."""
        return self._dtype

    @property
    def keys(self) -> torch.Tensor | None:
        """The keys that the next token may see, (B, H, S or fewer, D), made when asked for; None before an update."""
        return self._numbers(self.store.keys, 0)

    @property
    def values(self) -> torch.Tensor | None:
        """The values that go with `keys`."""
        return self._numbers(self.store.values, 1)

    def _numbers(self, stored: torch.Tensor | None, side: int) -> torch.Tensor | None:
        if stored is None or self._dtype is None:
            return None
        return decode_int8(stored, self._sizes[side], self._dtype)

    @property
    def sample(self) -> torch.Tensor | None:
        """See CacheLayer.sample; without making the keys."""
        return self._sample(0)

    def _sample(self, side: int) -> torch.Tensor | None:
        stored = self.store.keys
        if stored is None or self._dtype is None:
            return None
        return stored.new_empty((*stored.shape[:2], 0, self._sizes[side]), dtype=self._dtype)

    @property
    def nbytes(self) -> int:
        """Bytes in use, room to spare not counted."""
        held = [tensor for tensor in (self.store.keys, self.store.values) if tensor is not None]
        return sum(tensor.numel() for tensor in held)

    def update(self, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Append (B, H, T, D) tensors; return what they may see, (B, H, K, D), the new tokens rounded as the others.

        Raises:
            InputError: they do not fit what is stored, are no floating-point numbers, or are to be differentiated.
        """
        if not (keys.is_floating_point() and values.is_floating_point()):
            raise InputError(f"keys are {keys.dtype} and values {values.dtype}, but must be floating-point numbers.")
        if torch.is_grad_enabled() and (keys.requires_grad or values.requires_grad):
            raise InputError(
                "an Int8Cache rounds what it stores, so no gradient can flow through it. Decode under torch.no_grad() "
                "or torch.inference_mode(), or train with a DynamicCache or none."
            )
        for name, new, stored in (("keys", keys, self._sample(0)), ("values", values, self._sample(1))):
            if stored is not None:
                check_fits(name, new, stored)
        self._dtype, self._sizes = keys.dtype, (keys.shape[3], values.shape[3])
        seen = self.store.update(encode_int8(keys), encode_int8(values))
        return decode_int8(seen[0], keys.shape[3], keys.dtype), decode_int8(seen[1], values.shape[3], values.dtype)

    def takes(self, shape: tuple[int, int, int], new: int, dtype: torch.dtype) -> bool:
        """See DynamicLayer.takes; the caller writes what `encode_int8` would."""
        rows, heads, size = shape
        if self._dtype != dtype or self._sizes != (size, size):
            return False
        return self.store.takes((rows, heads, size + 2 * (-(-size // GROUP))), new, torch.int8)

    def has(self, keys: torch.Tensor | None, values: torch.Tensor | None) -> bool:
        """See DynamicLayer.has."""
        return self.store.has(keys, values)

    def slots(self, new: int) -> tuple[torch.Tensor, torch.Tensor, int, int]:
        """See DynamicLayer.slots; slabs of (B, H, capacity, W) bytes."""
        return self.store.slots(new)

    def check_crop(self, max_length: int) -> None:
        """See CacheLayer.check_crop."""
        self.store.check_crop(max_length)

    def crop(self, max_length: int) -> None:
        """See Cache.crop."""
        self.store.crop(max_length)

    def map_rows(self, rows: torch.Tensor | int) -> None:
        """See CacheLayer.map_rows."""
        self.store.map_rows(rows)

    def map_newest(self, rows: torch.Tensor, newest: int) -> None:
        """See CacheLayer.map_newest."""
        self.store.map_newest(rows, newest)

    def keep_rows(self, rows: torch.Tensor) -> None:
        """See CacheLayer.keep_rows."""
        self.store.keep_rows(rows)

    def restore(self, keys: torch.Tensor, values: torch.Tensor, length: int, dtype: torch.dtype) -> None:
        """Take what the store of another layer of this kind held, (B, H, S, W) each, and its `length` and `dtype`."""
        self.store.restore(keys, values, length)
        self._dtype, self._sizes = dtype, (head_size(keys.shape[3]), head_size(values.shape[3]))

    def reset(self) -> None:
        """Forget every token and give the memory back."""
        self.store.reset()
        self._dtype, self._sizes = None, (0, 0)


class Int8Cache(DynamicCache):
    """A growing cache of 8 bits: 53 % of the memory of bfloat16, and steps in one native call, which reads it in place.

    A number is a whole one from -127 to 127 times the scale (bfloat16) of its group: 32 numbers of a token's head, the
    largest of which decides. No number is off by more than half a scale. Keys and values are rounded when they are
    stored, those of the newest tokens too, which see themselves as later ones see them; layers with a window are stored
    the same way.

    A `QuantizedCache` has half the error (root mean square 0.5 % here, on normal numbers) and keeps the newest tokens
    exact, but makes all keys of a layer anew for every token, through the modules.

    Args:
        ddp_cache_data: Pairs (keys, values) to begin with, one per layer, each (B, H, S, D).
        config: Configuration of the model, for its windows; None lets layers appear as they are used.

    Raises:
        ConfigError: the configuration's layers cannot be read.
    """

    def __init__(
        self, ddp_cache_data: Sequence[tuple[torch.Tensor, torch.Tensor]] | None = None, config: Any = None
    ) -> None:
        super().__init__(ddp_cache_data, config)

    def _make(self, window: int | None) -> CacheLayer:
        return Int8Layer(window)
