"""A cache as a safetensors file: what a conversation has read, to go on with it later.

The file holds the tensors of each layer and, as JSON in its metadata, what they are: the kind of cache, the windows and
the lengths; beside them, where they are known, the tokens that were read and the fingerprint of the model that read
them. Nothing in it is believed before it was checked against the tensors; nothing is unpickled.

Letters: B rows, H key/value heads, S tokens seen, K tokens held, D head size.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from quintet.cache.base import Cache
from quintet.cache.dynamic import DynamicCache, OffloadedCache
from quintet.cache.encoder_decoder import EncoderDecoderCache
from quintet.cache.int8 import Int8Cache, Int8Layer, head_size
from quintet.cache.layered import CacheLayer, LayeredCache, layer_windows
from quintet.cache.provenance import check_use, fingerprint
from quintet.cache.quantized import PER_CHANNEL, QuantizedCache, QuantizedLayer
from quintet.cache.record import all_read, as_tokens
from quintet.cache.static import StaticCache
from quintet.cache.static_layers import StaticSlidingWindowLayer
from quintet.errors import CheckpointError, ConfigError, InputError
from quintet.hub import StagedFiles, open_regular, parse_json_object

__all__ = ["load_cache", "save_cache"]

FORMAT = "quintet cache 1"
TOKENS = "tokens"  # the name of their tensor
FINGERPRINT = ("model_type", "config", "weights")
MAX_LAYERS = 10_000
MAX_TOKENS = 2**40
MAX_ROOM = 2**24  # of a StaticCache, whose memory is made when it is read
SIDES = ("self_attention_cache", "cross_attention_cache")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}
SETTINGS = ("q_group_size", "residual_length", "axis_key", "axis_value")

AnyCache = TypeVar("AnyCache", bound=Cache)
Tensors = dict[str, torch.Tensor]


def save_cache(cache: Cache, path: str | os.PathLike[str], *, model: Any = None, tokens: Any = None) -> None:
    """Write a cache to a file, atomically: a reader sees what was there before, or all of it. See `Cache.save`."""
    tensors: Tensors = {}
    about = _describe(cache, "", tensors)
    record = cache.record
    rows = next((tensor.shape[0] for tensor in tensors.values()), None)
    read = cache.tokens if tokens is None else all_read(as_tokens(tokens), cache.get_seq_length(), rows)
    if read is not None:
        tensors[TOKENS] = read.detach().cpu().clone(memory_format=torch.contiguous_format)
    model = record.model if model is None and record is not None else model
    whose = fingerprint(model) if model is not None else None if record is None else record.fingerprint
    path = Path(path)
    metadata = {"format": FORMAT, "cache": json.dumps(about)}
    if whose is not None:
        metadata["model"] = json.dumps(whose)
    try:
        with StagedFiles(path.parent) as staged:
            save_file(tensors, staged.path(path.name), metadata)
            staged.commit()
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"The cache cannot be saved as '{path}': {error}. Give a file in a folder.") from error


def _describe(cache: Cache, prefix: str, tensors: Tensors) -> dict[str, Any]:
    """Return what a cache is, and add its tensors under names that begin with `prefix`."""
    if isinstance(cache, EncoderDecoderCache):
        sides = {side: _describe(getattr(cache, side), f"{prefix}{side}.", tensors) for side in SIDES}
        return {"kind": "encoder_decoder", **sides}
    if isinstance(cache, StaticCache):
        about: dict[str, Any] = {"kind": "static", "max_cache_len": cache.max_cache_len}
    elif isinstance(cache, QuantizedCache):
        about = {"kind": "quantized", **{name: getattr(cache, name) for name in SETTINGS}}
    elif isinstance(cache, Int8Cache):
        dtype = next((layer.dtype for layer in cache.layers if isinstance(layer, Int8Layer) and layer.dtype), None)
        about = {"kind": "int8", "dtype": None if dtype is None else str(dtype).removeprefix("torch.")}
    elif isinstance(cache, DynamicCache):
        about = {"kind": "offloaded" if isinstance(cache, OffloadedCache) else "dynamic"}
    else:
        raise InputError(f"a {type(cache).__name__} has no file form; there is one for the caches of quintet.cache.")
    about["windows"], about["lengths"] = cache._windows, []
    for index, layer in enumerate(cache.layers):
        about["lengths"].append(layer.length)
        for name, tensor in _stored(layer):
            tensors[f"{prefix}{index}.{name}"] = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
    return about


def _stored(layer: CacheLayer) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of a layer by name; none of an empty one."""
    parts = layer.parts if isinstance(layer, QuantizedLayer) else {"": getattr(layer, "store", layer)}
    for part, store in parts.items():
        for name in ("keys", "values"):
            tensor = getattr(store, name)
            # A part that a crop has emptied is left out; what is recent says the type, empty or not.
            if tensor is not None and layer.length and (part in ("", "recent") or tensor.shape[2]):
                yield f"{part}.{name}".removeprefix("."), tensor


def load_cache(
    wanted: type[AnyCache],
    path: str | os.PathLike[str],
    *,
    config: Any = None,
    device: torch.device | str | None = None,
    model: Any = None,
    tokens: Any = None,
) -> AnyCache:
    """Read a cache back; `wanted` is the kind that it must be, the rest as in `Cache.load`.

    Raises:
        HubError: There is no such file.
        CheckpointError: It is damaged, hostile, of another kind, or made by another model or from other tokens.
    """
    path = Path(path)
    if config is None:
        config = getattr(model, "config", None)
    if device is None:
        device = getattr(model, "device", "cpu")
    os.close(open_regular(path))  # a pipe or a folder is refused before anybody waits for it
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (SafetensorError, OSError, ValueError, RuntimeError, KeyError, AttributeError) as error:
        raise CheckpointError(f"'{path}' is no sound safetensors file: {error}. Save the cache again.") from error
    reader = _Reader(path, tensors, config, torch.device(device))
    cache = reader.read(metadata, wanted)
    check_use(path, cache, model, None if tokens is None else as_tokens(tokens))
    return cache


class _Reader:
    """The contents of a file, on the way to becoming a cache."""

    def __init__(self, path: Path, tensors: Tensors, config: Any, device: torch.device) -> None:
        self.path, self.tensors, self.config, self.device = path, tensors, config, device
        self.rows: int | None = None
        self.dtype = torch.float32  # of the numbers of a cache of 8 bits

    def bad(self, what: str) -> CheckpointError:
        """Make the error for something that a saved cache never has."""
        return CheckpointError(f"'{self.path}' is damaged or was not made by Cache.save: {what}.")

    def read(self, metadata: dict[str, str], wanted: type[AnyCache]) -> AnyCache:
        """Check everything and make the cache."""
        if metadata.get("format") != FORMAT or "cache" not in metadata:
            raise CheckpointError(
                f"'{self.path}' is not a saved cache: its metadata says format {metadata.get('format')!r}, and "
                f"{FORMAT!r} is needed. Give a file that Cache.save has written."
            )
        about = parse_json_object(metadata["cache"].encode("utf-8", "replace"), f"'{self.path}'", CheckpointError)
        try:
            cache = self._cache(about, "")
            self._note(cache, metadata)
        except (ConfigError, InputError) as error:
            raise self.bad(str(error).rstrip(".")) from error
        if self.tensors:
            raise self.bad(f"it holds tensors of no layer ({', '.join(sorted(self.tensors)[:4])})")
        if not isinstance(cache, wanted):
            raise CheckpointError(
                f"'{self.path}' holds a {type(cache).__name__}, and a {wanted.__name__} was asked for. "
                f"Load it with {type(cache).__name__}.load() or Cache.load()."
            )
        return cache

    def _note(self, cache: Cache, metadata: dict[str, str]) -> None:
        """Take over which tokens were read and by which model, where the file says it."""
        tokens = self.tensors.pop(TOKENS, None)
        if tokens is not None:
            length = cache.get_seq_length()
            if tokens.dtype != torch.int64 or tokens.dim() != 2 or tokens.shape[1] > length:
                raise self.bad(f"its tokens are {tokens.dtype} of shape {tuple(tokens.shape)} for {length} places")
            if self.rows is not None and tokens.shape[0] != self.rows:
                raise self.bad(f"its tokens have {tokens.shape[0]} rows, and {self.rows} are needed")
            if cache.record is not None and tokens.shape[1]:
                cache.record.note(tokens.to(self.device), 0)
        if "model" not in metadata:
            return
        about = parse_json_object(metadata["model"].encode("utf-8", "replace"), f"'{self.path}'", CheckpointError)
        if sorted(about) != sorted(FINGERPRINT) or not all(isinstance(one, str) for one in about.values()):
            raise self.bad(f"it describes its model by {sorted(about)}, and {sorted(FINGERPRINT)} are needed")
        if cache.record is not None:
            cache.record.fingerprint = about

    def _cache(self, about: dict[str, Any], prefix: str) -> Cache:
        kind = about.get("kind")
        if kind == "encoder_decoder" and not prefix:
            for side in SIDES:
                if not isinstance(about.get(side), dict):
                    raise self.bad(f"it does not describe its {side}")
            return EncoderDecoderCache(*(self._cache(about[side], f"{side}.") for side in SIDES))
        windows, lengths = self._windows(about), self._lengths(about)
        if windows is not None and len(windows) != len(lengths):
            raise self.bad(f"it gives {len(lengths)} lengths for {len(windows)} layers")
        cache = self._empty(kind, about, windows, len(lengths))
        if prefix != f"{SIDES[1]}.":  # encoder states have no window, and as many heads as the encoder likes
            self._check_model(windows, len(lengths))
        for index, length in enumerate(lengths):
            if length:
                self._fill(cache._at(index), f"{prefix}{index}.", length)
        return cache

    def _integer(self, name: str, value: object, low: int, high: int) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise self.bad(f"{name} is {value!r}, but must be a whole number from {low} to {high}")
        return value

    def _dtype(self, name: object) -> torch.dtype:
        if name not in DTYPES:
            raise self.bad(f"its numbers are of the type {name!r}, and one of {', '.join(DTYPES)} is needed")
        return DTYPES[str(name)]

    def _windows(self, about: dict[str, Any]) -> list[int | None] | None:
        windows = about.get("windows")
        if windows is None:
            return None
        if not isinstance(windows, list) or len(windows) > MAX_LAYERS:
            raise self.bad(f"its windows are no list of at most {MAX_LAYERS} entries")
        return [None if one is None else self._integer("a window", one, 1, MAX_TOKENS) for one in windows]

    def _lengths(self, about: dict[str, Any]) -> list[int]:
        lengths = about.get("lengths")
        if not isinstance(lengths, list) or len(lengths) > MAX_LAYERS:
            raise self.bad(f"its lengths are no list of at most {MAX_LAYERS} entries")
        return [self._integer("a length", one, 0, MAX_TOKENS) for one in lengths]

    def _empty(self, kind: object, about: dict[str, Any], windows: list[int | None] | None, count: int) -> LayeredCache:
        """Make the cache without its tokens."""
        known = {one for one in windows or () if one is not None}
        if len(known) > 1:
            raise self.bad(f"it has layers of different windows ({sorted(known)})")
        config = None
        if windows is not None:
            kinds = ["full_attention" if one is None else "sliding_attention" for one in windows]
            config = SimpleNamespace(
                num_hidden_layers=len(windows), layer_types=kinds, sliding_window=max(known, default=None)
            )
        if kind == "dynamic":
            return DynamicCache(config=config)
        if kind == "int8":
            if count and about.get("dtype") is not None:
                self.dtype = self._dtype(about["dtype"])
            return Int8Cache(config=config)
        if kind == "offloaded":
            return OffloadedCache(config=config)
        if kind == "static" and config is not None:
            return StaticCache(config, self._integer("max_cache_len", about.get("max_cache_len"), 1, MAX_ROOM))
        if kind == "quantized":
            settings: dict[str, Any] = {name: self._integer(name, about.get(name), -1, MAX_TOKENS) for name in SETTINGS}
            return QuantizedCache(config=config, **settings)
        raise self.bad(f"it is of the kind {kind!r}")

    def _check_model(self, windows: list[int | None] | None, count: int) -> None:
        """Raise CheckpointError when the model has other layers; heads and sizes are looked at as they are read."""
        if self.config is None:
            return
        expected = layer_windows(self.config)
        if expected is None:
            return
        if count and len(expected) != count:
            raise self._other(f"it has {count} layers and the model {len(expected)}")
        if windows is not None and windows != expected:
            raise self._other(f"its windows are {windows} and the model's {expected}")

    def _other(self, what: str) -> CheckpointError:
        return CheckpointError(f"'{self.path}' was made by another model: {what}. Load it with the model it is of.")

    def _take(
        self,
        name: str,
        *,
        tokens: int | None = None,
        heads: int | None = None,
        size: int | None = None,
        dtype: torch.dtype | None = None,
    ) -> torch.Tensor:
        """Return a tensor of the file, once it was found to be (rows, heads, tokens, size) of the right type."""
        tensor = self.tensors.pop(name, None)
        if tensor is None:
            raise self.bad(f"the tensor '{name}' is missing")
        if tensor.dim() != 4 or 0 in (*tensor.shape[:2], tensor.shape[3]):
            raise self.bad(f"'{name}' has shape {tuple(tensor.shape)}, not (rows, heads, tokens, head size)")
        if tensor.dtype != dtype if dtype is not None else not tensor.is_floating_point():
            raise self.bad(f"'{name}' has type {tensor.dtype}, and {dtype or 'a floating-point type'} is needed")
        self.rows = tensor.shape[0] if self.rows is None else self.rows
        for what, got, need in zip(
            ("rows", "heads", "tokens", "numbers in a head"),
            tensor.shape,
            (self.rows, heads, tokens, size),
            strict=True,
        ):
            if need is not None and got != need:
                raise self.bad(f"'{name}' has {got} {what}, and {need} are needed")
        return tensor.to(self.device, copy=True)  # a copy, as the file may be changed while the cache is in use

    def _fill(self, layer: CacheLayer, prefix: str, length: int) -> None:
        """Give a layer its tensors."""
        if isinstance(layer, QuantizedLayer):
            self._fill_quantized(layer, prefix, length)
            return
        held = length if layer.window is None else min(length, layer.window - 1)
        if isinstance(layer, Int8Layer):
            self._fill_int8(layer, prefix, length, held)
            return
        if isinstance(layer, StaticSlidingWindowLayer):
            held = min(held, layer.max_cache_len)
        keys = self._take(f"{prefix}keys", tokens=held)
        values = self._take(f"{prefix}values", tokens=held, heads=keys.shape[1])
        self._check_heads(prefix, keys)
        try:
            layer.restore(keys, values, length)  # type: ignore[attr-defined]
        except (RuntimeError, MemoryError) as error:
            raise self.bad(f"it asks for more memory than there is ({str(error).splitlines()[0]})") from error

    def _fill_int8(self, layer: Int8Layer, prefix: str, length: int, held: int) -> None:
        keys = self._take(f"{prefix}keys", tokens=held, dtype=torch.int8)
        values = self._take(f"{prefix}values", tokens=held, heads=keys.shape[1], dtype=torch.int8)
        for name, stored in (("keys", keys), ("values", values)):
            if not head_size(stored.shape[3]):
                raise self.bad(
                    f"'{prefix}{name}' has {stored.shape[3]} bytes in a head, which no number of codes takes"
                )
        layer.restore(keys, values, length, self.dtype)
        assert layer.sample is not None, "it was just given"
        self._check_heads(prefix, layer.sample)

    def _fill_quantized(self, layer: QuantizedLayer, prefix: str, length: int) -> None:
        keys = self._take(f"{prefix}recent.keys")
        values = self._take(f"{prefix}recent.values", tokens=keys.shape[2], heads=keys.shape[1])
        self._check_heads(prefix, keys)
        old = length - keys.shape[2]
        if old < 0 or old % layer.block or keys.shape[2] >= layer.residual_length + layer.block:
            raise self.bad(f"'{prefix}recent.keys' has {keys.shape[2]} tokens of {length}")
        layer.recent.restore(keys, values, keys.shape[2])
        if not old:
            return
        heads = keys.shape[1]
        codes = [
            self._take(f"{prefix}codes.{name}", tokens=old, heads=heads, size=exact.shape[3], dtype=torch.uint8)
            for name, exact in (("keys", keys), ("values", values))
        ]
        layer.codes.restore(codes[0], codes[1], old)
        for part, axis, exact in (
            ("key_scales", layer.axis_key, keys),
            ("value_scales", layer.axis_value, values),
        ):
            count, size = (old // layer.block, exact.shape[3]) if axis == PER_CHANNEL else (old, 1)
            step, least = (
                self._take(f"{prefix}{part}.{name}", tokens=count, heads=heads, size=size, dtype=torch.float32)
                for name in ("keys", "values")
            )
            layer.parts[part].restore(step, least, count)

    def _check_heads(self, prefix: str, keys: torch.Tensor) -> None:
        """Raise CheckpointError when the model has other heads."""
        if self.config is None or prefix.startswith(SIDES[1]):
            return
        heads = getattr(self.config, "num_attention_heads", None)
        width = getattr(self.config, "hidden_size", None)
        size = getattr(self.config, "head_dim", None) or (width // heads if width and heads else None)
        heads = getattr(self.config, "num_key_value_heads", None) or heads
        for what, got, need in (("key/value heads", keys.shape[1], heads), ("numbers in a head", keys.shape[3], size)):
            if need is not None and got != need:
                raise self._other(f"it has {got} {what} and the model {need}")
