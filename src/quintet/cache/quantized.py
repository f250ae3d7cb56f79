"""A cache that keeps old keys and values in 8 bits: about half the memory of bfloat16, a quarter of float32.

Letters: B rows, H key/value heads, S tokens stored, T new tokens, G tokens in a block, D head size.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from quintet.cache.dynamic_layers import DynamicLayer, DynamicSlidingLayer
from quintet.cache.layered import CacheLayer, LayeredCache, layer_windows
from quintet.cache.static_layers import checked_count
from quintet.errors import InputError

__all__ = ["QuantizationError", "QuantizedCache", "QuantizedLayer", "quantization_error"]

PER_CHANNEL, PER_TOKEN = -1, 0
LEVELS = 255  # steps between the least and the greatest of 256 codes


class QuantizationError(NamedTuple):
    """How far numbers are from what they become in 8 bits.

    Args:
        keys, values: The largest difference.
        keys_relative, values_relative: Root of the mean squared difference, divided by that of the numbers.
        keys_bound, values_bound: Half of the widest step; no difference in float32 is larger, rounding aside.
    """

    keys: float
    values: float
    keys_relative: float
    values_relative: float
    keys_bound: float
    values_bound: float


def _quantize(x: torch.Tensor, axis: int, block: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return codes (B, H, S, D) uint8, and step and least value in float32, of (B, H, S, D) numbers.

    Affine: x is about `least + code * step`. Per channel there is a step for each head, channel and block of `block`
    tokens, (B, H, S / block, D), and S must be whole blocks; per token one for each head and token, (B, H, S, 1).
    """
    exact = x.float()
    if axis == PER_CHANNEL:
        exact = exact.unflatten(2, (-1, block))  # (B, H, S / G, G, D)
        least, most = exact.amin(3, keepdim=True), exact.amax(3, keepdim=True)  # (B, H, S / G, 1, D)
    else:
        least, most = exact.amin(3, keepdim=True), exact.amax(3, keepdim=True)  # (B, H, S, 1)
    step = (most - least) / LEVELS
    divisor = torch.where(step > 0, step, torch.ones_like(step))  # numbers that are all the same: every code is 0
    codes = ((exact - least) / divisor).round().clamp(0, LEVELS).to(torch.uint8)
    if axis == PER_CHANNEL:
        return codes.flatten(2, 3), step.squeeze(3), least.squeeze(3)  # (B, H, S, D), 2 x (B, H, S / G, D)
    return codes, step, least


def _dequantize(
    codes: torch.Tensor, step: torch.Tensor, least: torch.Tensor, axis: int, block: int, out: torch.Tensor
) -> None:
    """Write the numbers that (B, H, S, D) codes stand for into `out`, of the same shape."""
    if axis == PER_CHANNEL:
        codes, step, least = codes.unflatten(2, (-1, block)), step.unsqueeze(3), least.unsqueeze(3)
        out.copy_(torch.addcmul(least, codes, step).flatten(2, 3))  # (B, H, S / G, G, D) -> (B, H, S, D)
    else:
        out.copy_(torch.addcmul(least, codes, step))


class QuantizedLayer(CacheLayer):
    """Keys and values of one layer: the newest as they are, older ones in blocks of 8-bit codes.

    Args:
        block: G, tokens that are quantised together.
        residual_length: Tokens that are always kept as they are.
        axis_key, axis_value: -1 for a step per channel and block, 0 for a step per token.
    """

    def __init__(self, block: int = 64, residual_length: int = 128, axis_key: int = -1, axis_value: int = 0) -> None:
        self.block, self.residual_length = block, residual_length
        self.axis_key, self.axis_value = axis_key, axis_value
        # Each grows in place: codes of keys and values; (step, least) of the keys and of the values; what is exact.
        self.codes, self.key_scales, self.value_scales = DynamicLayer(), DynamicLayer(), DynamicLayer()
        self.recent = DynamicLayer()

    @property
    def parts(self) -> dict[str, DynamicLayer]:
        """The stores that this layer is made of, by name."""
        return {name: getattr(self, name) for name in ("codes", "key_scales", "value_scales", "recent")}

    @property
    def length(self) -> int:
        """S, the tokens seen."""
        return self.codes.length + self.recent.length

    @property
    def keys(self) -> torch.Tensor | None:
        """All keys, (B, H, S, D), made when asked for; None before the first update."""
        return None if self.recent.keys is None else self._joined(True)

    @property
    def values(self) -> torch.Tensor | None:
        """All values, (B, H, S, D), made when asked for; None before the first update."""
        return None if self.recent.keys is None else self._joined(False)

    @property
    def sample(self) -> torch.Tensor | None:
        """See CacheLayer.sample; without making the keys."""
        return self.recent.keys

    @property
    def nbytes(self) -> int:
        """Bytes in use, room to spare not counted."""
        tensors = [tensor for part in self.parts.values() for tensor in (part.keys, part.values) if tensor is not None]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def _scales(self, axis: int, scales: DynamicLayer, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return step and least value of the first `length` tokens, which are whole blocks."""
        assert scales.keys is not None and scales.values is not None, "codes are never without their scales"
        count = length // self.block if axis == PER_CHANNEL else length
        return scales.keys[:, :, :count], scales.values[:, :, :count]

    def _joined(self, keys: bool) -> torch.Tensor:
        """Return all keys, or all values, in one tensor."""
        recent = self.recent.keys if keys else self.recent.values
        codes = self.codes.keys if keys else self.codes.values
        axis, scales = (self.axis_key, self.key_scales) if keys else (self.axis_value, self.value_scales)
        assert recent is not None, "asked for only when something is stored"
        old = self.codes.length
        if codes is None or old == 0:
            return recent
        rows, heads, new, size = recent.shape
        joined = recent.new_empty((rows, heads, old + new, size))
        _dequantize(codes, *self._scales(axis, scales, old), axis, self.block, joined[:, :, :old])
        joined[:, :, old:] = recent
        return joined

    def update(self, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Append (B, H, T, D) tensors; return everything, (B, H, S + T, D), the new tokens as they came.

        Raises:
            InputError: they do not fit what is stored, are no floating-point numbers, or are to be differentiated.
        """
        if not (keys.is_floating_point() and values.is_floating_point()):
            raise InputError(f"keys are {keys.dtype} and values {values.dtype}, but must be floating-point numbers.")
        if torch.is_grad_enabled() and (keys.requires_grad or values.requires_grad):
            raise InputError(
                "a QuantizedCache rounds what it stores, so no gradient can flow through it. Decode under "
                "torch.no_grad() or torch.inference_mode(), or train with a DynamicCache or none."
            )
        self.recent.update(keys, values)
        joined = self._joined(True), self._joined(False)
        whole = (self.recent.length - self.residual_length) // self.block * self.block
        if whole > 0:
            self._quantize_oldest(whole)
        return joined

    def _quantize_oldest(self, count: int) -> None:
        """Turn the `count` oldest exact tokens, whole blocks, into codes."""
        keys, values = self.recent.keys, self.recent.values
        assert keys is not None and values is not None, "there are more than residual_length of them"
        key_codes, *key_scales = _quantize(keys[:, :, :count], self.axis_key, self.block)
        value_codes, *value_scales = _quantize(values[:, :, :count], self.axis_value, self.block)
        self.codes.update(key_codes, value_codes)
        self.key_scales.update(*key_scales)
        self.value_scales.update(*value_scales)
        self.recent.reset()
        # Copies: a view would keep the memory of what was just quantised.
        self.recent.update(keys[:, :, count:].clone(), values[:, :, count:].clone())

    def crop(self, max_length: int) -> None:
        """See Cache.crop; a block that is cut is made exact again from its codes."""
        wanted = self.wanted(max_length)
        if wanted >= self.codes.length:
            self.recent.crop(wanted - self.codes.length)
            return
        whole = wanted // self.block * self.block
        keys, values = (self._joined(which)[:, :, whole:wanted].clone() for which in (True, False))
        self.codes.crop(whole)
        self.key_scales.crop(whole // self.block if self.axis_key == PER_CHANNEL else whole)
        self.value_scales.crop(whole // self.block if self.axis_value == PER_CHANNEL else whole)
        self.recent.reset()
        self.recent.update(keys, values)

    def map_rows(self, rows: torch.Tensor | int) -> None:
        """See CacheLayer.map_rows."""
        for part in self.parts.values():
            part.map_rows(rows)

    def keep_rows(self, rows: torch.Tensor) -> None:
        """See CacheLayer.keep_rows."""
        for part in self.parts.values():
            part.keep_rows(rows)

    def reset(self) -> None:
        """Forget every token and give the memory back."""
        for part in self.parts.values():
            part.reset()


def quantization_error(
    keys: torch.Tensor, values: torch.Tensor, *, axis_key: int = -1, axis_value: int = 0, q_group_size: int = 64
) -> QuantizationError:
    """Measure what 8 bits do to keys and values, each (B, H, S, D), as a `QuantizedCache` would store them.

    Args:
        keys, values: What a layer would be given; when S is not a multiple of `q_group_size` the rest is left out.
        axis_key, axis_value, q_group_size: See QuantizedCache.

    Raises:
        InputError: there is not one whole block.
    """
    found = []
    for name, x, axis in (("keys", keys, axis_key), ("values", values, axis_value)):
        x = x[:, :, : x.shape[2] // q_group_size * q_group_size].float()
        if not x.numel():
            raise InputError(f"{name} hold fewer than {q_group_size} tokens (q_group_size), so nothing is quantised.")
        codes, step, least = _quantize(x, axis, q_group_size)
        back = torch.empty_like(x)
        _dequantize(codes, step, least, axis, q_group_size, back)
        off = back - x
        relative = float(off.norm() / x.norm().clamp_min(torch.finfo(x.dtype).tiny))
        found.append((float(off.abs().max()), relative, float(step.max()) / 2))
    (key, key_relative, key_bound), (value, value_relative, value_bound) = found
    return QuantizationError(key, value, key_relative, value_relative, key_bound, value_bound)


class QuantizedCache(LayeredCache):
    """A growing cache whose old tokens are stored in 8 bits: affine codes, the newest `residual_length` kept exact.

    Keys get a step and a least value for each head and channel of a block of tokens, as their channels differ in mean
    and size; values get them for each head and token (Liu et al., KIVI, arXiv 2402.02750). Chosen by measured error,
    root mean square relative to the numbers: on normal keys whose channels differ so, 0.43 % per channel, 0.83 % per
    token, 0.54 % per channel with symmetric codes; on normal values 0.52 % either way, 0.59 % with symmetric codes.
    A number is at most half a step from what it was: (greatest - least) / 510 of its channel and block, or token.

    An update returns all keys and values in the model's type, made for that layer alone. What it is given it returns
    unchanged; a token is rounded once it has left the newest `residual_length` and its block is full. Layers with a
    window stay as they are: they are small.

    Args:
        backend: "int8", the only one; those of the reference (quanto, HQQ) are separate packages.
        config: Configuration of the model, for its windows; None lets layers appear as they are used.
        nbits: 8.
        axis_key: -1 for a step per channel and block, 0 for a step per token.
        axis_value: The same for values.
        q_group_size: Tokens in a block.
        residual_length: Tokens that are always kept as they are.

    Raises:
        ConfigError: the configuration's layers cannot be read.
        InputError: another backend, number of bits or axis, or a number below 1.
    """

    def __init__(
        self,
        backend: str = "int8",
        config: Any = None,
        nbits: int = 8,
        axis_key: int = -1,
        axis_value: int = 0,
        q_group_size: int = 64,
        residual_length: int = 128,
    ) -> None:
        super().__init__()
        if backend != "int8":
            raise InputError(
                f"the backend of a QuantizedCache is {backend!r}, but the only one is 'int8', which needs no other "
                "package. Write QuantizedCache(config=config)."
            )
        if nbits != 8:
            raise InputError(f"nbits is {nbits!r}, but the 'int8' backend stores 8 bits. Leave nbits out.")
        for name, axis in (("axis_key", axis_key), ("axis_value", axis_value)):
            if axis not in (PER_CHANNEL, PER_TOKEN):
                raise InputError(f"{name} is {axis!r}, but must be -1 (a step per channel) or 0 (a step per token).")
        self.backend, self.nbits = backend, nbits
        self.axis_key, self.axis_value = axis_key, axis_value
        self.q_group_size = checked_count("q_group_size", q_group_size)
        self.residual_length = checked_count("residual_length", residual_length)
        self._windows = None if config is None else layer_windows(config)
        self.layers = [self._make(window) for window in self._windows or ()]

    def _make(self, window: int | None) -> CacheLayer:
        if window is not None:
            return DynamicSlidingLayer(window)
        return QuantizedLayer(self.q_group_size, self.residual_length, self.axis_key, self.axis_value)

    def _at(self, layer_idx: int) -> CacheLayer:
        while self._windows is None and len(self.layers) <= layer_idx:
            self.layers.append(self._make(None))
        return super()._at(layer_idx)

    def reset(self) -> None:
        """See Cache.reset."""
        super().reset()
        if self._windows is None:
            self.layers.clear()

    def quantization_error(self, keys: torch.Tensor, values: torch.Tensor) -> QuantizationError:
        """Measure what this cache's codes would do to (B, H, S, D) keys and values."""
        return quantization_error(
            keys, values, axis_key=self.axis_key, axis_value=self.axis_value, q_group_size=self.q_group_size
        )
