"""The cache of a call of `generate`: made by name, or given and then checked against what it is used for.

Letters: B rows of the prompt, P tokens in a given cache, T tokens that are still to be read.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from quintet.cache import (
    Cache,
    DynamicCache,
    EncoderDecoderCache,
    Int8Cache,
    OffloadedCache,
    QuantizedCache,
    StaticCache,
)
from quintet.cache.layered import LayeredCache
from quintet.cache.provenance import fingerprint, other_model, other_type
from quintet.cache.record import other_tokens
from quintet.errors import ConfigError, GenerationError, InputError
from quintet.generation.config import GenerationConfig
from quintet.generation.options import CACHES, is_static

__all__ = ["check_cache", "check_room", "check_text", "make_cache"]


def _static(config: Any, room: int, arguments: dict[str, Any], offloading: bool) -> Cache:
    room = max(room, arguments.pop("max_cache_len", 0))
    return StaticCache(config, max_cache_len=room, offloading=offloading, **arguments)


# What each name makes, given the model's configuration, the tokens that it must hold and the arguments in cache_config.
MAKERS: dict[str, Callable[[Any, int, dict[str, Any]], Cache]] = {
    "dynamic": lambda config, room, arguments: DynamicCache(config=config),
    "offloaded": lambda config, room, arguments: OffloadedCache(config=config, **arguments),
    "quantized": lambda config, room, arguments: QuantizedCache(config=config, **arguments),
    "int8": lambda config, room, arguments: Int8Cache(config=config),
    "static": lambda config, room, arguments: _static(config, room, arguments, False),
    "offloaded_static": lambda config, room, arguments: _static(config, room, arguments, True),
}


def make_cache(config: GenerationConfig, of_model: Any, room: int) -> Cache | None:
    """Return an empty cache as the options in force ask for; None leaves it to the model.

    Args:
        config: Options in force.
        of_model: The model's configuration.
        room: Tokens that a cache of fixed size must hold.

    Raises:
        GenerationError: an argument in `cache_config` is not known to that cache, or not allowed.
    """
    name = config.cache_implementation
    if name is None or config.use_cache is False:
        return None
    kind, allowed = CACHES[name]
    arguments = dict(config.cache_config or {})
    for key in arguments:
        if key not in allowed:
            takes = f"it takes {', '.join(allowed)}" if allowed else "it takes none"
            raise GenerationError(
                f"cache_config holds {key!r}, which is no argument of the cache {name!r}; {takes}. Remove it, or "
                "choose another cache_implementation."
            )
    if config.max_cache_len is not None and is_static(name):
        room = max(room, int(config.max_cache_len))
    try:
        return MAKERS[kind](of_model, room, arguments)
    except (InputError, ConfigError, TypeError) as error:
        raise GenerationError(f"cache_config={config.cache_config!r} for the cache {name!r}: {error}") from error


def check_cache(cache: Cache, model: Any, rows: int) -> None:
    """Check that a given cache can be of this model and of a batch of B rows.

    Raises:
        InputError: it has other rows, layers or numbers, or was made by another model.
    """
    tokens = cache.self_attention_cache if isinstance(cache, EncoderDecoderCache) else cache
    if not isinstance(tokens, LayeredCache) or tokens.get_seq_length() == 0:
        return
    layers = getattr(model.config, "num_hidden_layers", None)
    held = sum(layer.length > 0 for layer in tokens.layers)
    if layers is not None and held != layers:
        raise InputError(
            f"past_key_values holds keys of {held} layers, but {type(model).__name__} has {layers}. Give a cache that "
            "this model has filled."
        )
    sample = tokens.layers[0].sample
    if sample is not None and sample.shape[0] != rows:
        raise InputError(
            f"past_key_values holds {sample.shape[0]} rows and the prompt has {rows}. Give the cache of these rows; "
            "past_key_values.batch_select_indices(rows) picks rows of a cache."
        )
    what = other_type(tokens, model) or _of_another(tokens, model)
    if what is not None:
        raise InputError(
            f"past_key_values was made by another model: {what}. Use it with the model that it is of, or leave it out."
        )


def _of_another(cache: Cache, model: Any) -> str | None:
    """Say in what the model that filled a cache differs from this one; None when nothing is known against it."""
    record = cache.record
    if record is None:
        return None
    saved, before = record.fingerprint, record.model
    if saved is None and before is not None and before is not model:
        saved = fingerprint(before)
    what = None if saved is None else other_model(saved, model)
    if what is None:
        record.fingerprint = None
    return what


def check_text(cache: Cache, ids: torch.Tensor, mask: torch.Tensor | None) -> None:
    """Check that a cache was read from the beginning of a text (B, P + T), as far as it is known.

    Args:
        cache: The cache.
        ids: The text.
        mask: (B, P + T) with 0 for places that do not count, or None.

    Raises:
        InputError: it was read from other tokens.
    """
    read = cache.tokens
    what = None if read is None else other_tokens(read, ids, mask)
    if what is not None:
        raise InputError(
            f"past_key_values was read from another text than the prompt: {what}. Call past_key_values.crop(n) to keep "
            "the first n tokens, which are the same; or leave it out."
        )


def check_room(cache: Cache | None, needed: int) -> None:
    """Check that a given cache of fixed size can hold the tokens of prompt and answer.

    Raises:
        InputError: it cannot.
    """
    tokens = cache.self_attention_cache if isinstance(cache, EncoderDecoderCache) else cache
    if isinstance(tokens, StaticCache) and tokens.max_cache_len < needed:
        raise InputError(
            f"past_key_values is a StaticCache for {tokens.max_cache_len} tokens, and prompt and new tokens are "
            f"{needed}. Make it with max_cache_len={needed}, or ask for fewer tokens with max_new_tokens."
        )
