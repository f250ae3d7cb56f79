"""Layers whose keys live in the CPU's memory, and come to the device only while they are in use.

The next layer's keys travel on a side stream while this layer computes; what a step adds travels back the same way. Of
a growing layer only the new tokens go back.

Letters: B rows, H key/value heads, S tokens stored, T new tokens, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch

from quintet.cache.dynamic_layers import DynamicLayer
from quintet.cache.layered import CacheLayer
from quintet.cache.static_layers import StaticLayer
from quintet.errors import InputError

__all__ = ["OffloadedLayer", "Transport", "worth_moving"]

Pair = tuple[torch.Tensor, torch.Tensor]


def worth_moving(device: torch.device) -> bool:
    """Whether keys on this device take memory that the CPU does not have to lend anyway."""
    return device.type not in ("cpu", "meta")


class Transport:
    """The side stream of a cache, made when a CUDA device first needs it; other devices copy in turn."""

    def __init__(self) -> None:
        self._stream: torch.cuda.Stream | None = None

    def stream(self, device: torch.device) -> torch.cuda.Stream | None:
        """Return the side stream of a CUDA device, else None."""
        if device.type == "cuda" and self._stream is None:
            self._stream = torch.cuda.Stream(device)
        return self._stream if device.type == "cuda" else None

    def to_device(self, pair: Pair, used: int, device: torch.device) -> Pair:
        """Begin to copy the first `used` tokens of host slabs into new slabs of the same shape on a device."""
        stream = self.stream(device)
        with nullcontext() if stream is None else torch.cuda.stream(stream):
            keys, values = (torch.empty_like(tensor, device=device) for tensor in pair)
            for new, old in zip((keys, values), pair, strict=True):
                new[:, :, :used].copy_(old[:, :, :used], non_blocking=True)
        if stream is not None:
            for tensor in (keys, values):
                tensor.record_stream(torch.cuda.current_stream(device))
        return keys, values

    def to_host(self, pair: Pair, host: Pair, begin: int, end: int) -> None:
        """Begin to copy the tokens `begin` to `end` back, once what the current stream has queued is done."""
        device = pair[0].device
        stream = self.stream(device)
        if stream is not None:
            stream.wait_stream(torch.cuda.current_stream(device))
        with nullcontext() if stream is None else torch.cuda.stream(stream):
            for new, old in zip(pair, host, strict=True):
                old[:, :, begin:end].copy_(new[:, :, begin:end], non_blocking=stream is not None)
                if stream is not None:
                    new.record_stream(stream)

    def arrive(self, device: torch.device) -> None:
        """Let the current stream wait for what the side stream has been given."""
        stream = self.stream(device)
        if stream is not None:
            torch.cuda.current_stream(device).wait_stream(stream)

    def finish(self) -> None:
        """Wait for the side stream: afterwards the CPU may read what it has brought."""
        if self._stream is not None:
            self._stream.synchronize()


class OffloadedLayer(CacheLayer):
    """Another layer whose slabs are in pinned CPU memory between updates.

    Args:
        inner: The layer that stores.
        transport: Moves its slabs.
    """

    def __init__(self, inner: DynamicLayer | StaticLayer, transport: Transport) -> None:
        self.inner, self.window = inner, inner.window
        self._transport = transport
        self._device: torch.device | None = None  # where the keys are used, once it is known to be worth moving them
        self._host: Pair | None = None
        self._coming: Pair | None = None  # slabs on the device, on their way

    @property
    def length(self) -> int:
        """See CacheLayer.length."""
        return self.inner.length

    @property
    def keys(self) -> torch.Tensor | None:
        """See CacheLayer.keys; in the CPU's memory."""
        self._transport.finish()
        return self.inner.keys

    @property
    def values(self) -> torch.Tensor | None:
        """See CacheLayer.values; in the CPU's memory."""
        self._transport.finish()
        return self.inner.values

    @property
    def most_undone(self) -> int | None:
        """See CacheLayer.most_undone."""
        return self.inner.most_undone

    @property
    def sample(self) -> torch.Tensor | None:
        """See CacheLayer.sample; its device is that where the keys are used."""
        sample = self.inner.sample
        return sample if sample is None or self._device is None else sample[:, :, :0].to(self._device)

    @property
    def is_initialized(self) -> bool:
        """Whether there are slabs."""
        return self.inner._keys is not None

    def allocate(self, sizes: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device) -> None:
        """See StaticLayer.allocate."""
        if isinstance(self.inner, StaticLayer):
            self.inner.allocate(sizes, dtype, device)

    def early_initialization(
        self, batch_size: int, num_heads: int, head_dim: int, dtype: torch.dtype, device: torch.device | str
    ) -> None:
        """See StaticLayer.early_initialization."""
        self.allocate((batch_size, num_heads, head_dim, head_dim), dtype, torch.device(device))

    def whole(self) -> Pair | None:
        """See CacheLayer.whole."""
        self._transport.finish()
        return self.inner.whole()

    def past(self) -> int | torch.Tensor:
        """See CacheLayer.past."""
        return self.inner.past()

    def get_mask_sizes(self, query_length: int) -> tuple[int, int | torch.Tensor]:
        """See CacheLayer.get_mask_sizes."""
        return self.inner.get_mask_sizes(query_length)

    def get_max_cache_shape(self) -> int:
        """See CacheLayer.get_max_cache_shape."""
        return self.inner.get_max_cache_shape()

    def prefetch(self) -> None:
        """Begin to bring the slabs to the device, if they are not there or on their way."""
        pair = self._stored()
        if self._device is None or pair is None or self._coming is not None or self._is_there(pair):
            return
        self._coming = self._transport.to_device(pair, self._used(), self._device)

    def _is_there(self, pair: Pair) -> bool:
        """Whether the slabs are on the device as they are: new memory, or what a crop has restored."""
        return pair[0].device == self._device and (self._host is None or pair[0] is not self._host[0])

    def _stored(self) -> Pair | None:
        inner = self.inner
        return None if inner._keys is None or inner._values is None else (inner._keys, inner._values)

    def _used(self) -> int:
        """Places of the slabs that hold something."""
        if type(self.inner) is DynamicLayer:
            return self.inner.length
        slab = self.inner._keys
        return 0 if slab is None else slab.shape[2]

    def update(self, keys: torch.Tensor, values: torch.Tensor) -> Pair:
        """Append (B, H, T, D) tensors with the slabs on the device; see Cache.update.

        Raises:
            InputError: they do not fit what is stored, or are to be differentiated.
        """
        if not worth_moving(keys.device):
            return self.inner.update(keys, values)
        if torch.is_grad_enabled() and (keys.requires_grad or values.requires_grad):
            raise InputError(
                "an offloaded cache moves what it stores, so no gradient can flow through it. Decode under "
                "torch.no_grad() or torch.inference_mode(), or use offloading=False."
            )
        self._device = keys.device
        before = self.inner.length if type(self.inner) is DynamicLayer else 0
        self.prefetch()
        if self._coming is not None:
            self._transport.arrive(keys.device)
            self.inner._keys, self.inner._values = self._coming
            self._coming = None
        try:
            return self.inner.update(keys, values)
        finally:
            self._park(before)

    def _park(self, before: int) -> None:
        """Send back what has changed since there were `before` tokens, and let go of the slabs on the device."""
        pair = self._stored()
        if pair is None:
            return
        host, begin = self._host, before
        if host is None or any(old.shape != new.shape for old, new in zip(host, pair, strict=True)):
            pinned = self._device is not None and self._device.type == "cuda"
            with torch.inference_mode(False):  # else it could not be written to outside of inference mode
                host = tuple(  # type: ignore[assignment]
                    torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=pinned) for tensor in pair
                )
            begin = 0
        assert host is not None, "made above"
        self._transport.to_host(pair, host, begin, self._used())
        self._host = host
        self.inner._keys, self.inner._values = host
        if isinstance(self.inner, DynamicLayer):
            self.inner._own = True

    def check_crop(self, max_length: int) -> None:
        """See CacheLayer.check_crop."""
        self.inner.check_crop(max_length)

    def crop(self, max_length: int) -> None:
        """See Cache.crop."""
        self._still()
        self.inner.crop(max_length)
        self._settle()

    def map_rows(self, rows: torch.Tensor | int) -> None:
        """See CacheLayer.map_rows; on the CPU."""
        self._still()
        self.inner.map_rows(rows.cpu() if isinstance(rows, torch.Tensor) else rows)
        self._settle()

    def restore(self, keys: torch.Tensor, values: torch.Tensor, length: int) -> None:
        """Take what another store of this kind held: its `keys`, `values` and `length`."""
        self.inner.restore(keys, values, length)
        self._settle()

    def reset(self) -> None:
        """Forget every token."""
        self._still()
        self.inner.reset()
        self._settle()

    def _still(self) -> None:
        """Finish what is on its way before the CPU changes the slabs."""
        self._transport.finish()
        self._coming = None

    def _settle(self) -> None:
        """After a change on the CPU: keep the slabs in memory that can be copied from without waiting."""
        pair = self._stored()
        if pair is None:
            self._host = None
        elif self._device is not None and (self._host is None or pair[0] is not self._host[0]):
            self._host = None
            self._park(0)


def prefetch_next(layers: Sequence[CacheLayer], layer_idx: int) -> None:
    """Bring the offloaded layer that is used after `layer_idx`; after the last comes the first, of the next step."""
    for step in range(1, len(layers)):
        layer = layers[(layer_idx + step) % len(layers)]
        if isinstance(layer, OffloadedLayer):
            layer.prefetch()
            return


def offloaded(layer: Any, transport: Transport | None, only_full: bool) -> Any:
    """Wrap a layer if there is a transport and the layer is one to be moved."""
    return layer if transport is None or (only_full and layer.is_sliding) else OffloadedLayer(layer, transport)
