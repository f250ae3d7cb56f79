"""The pair of caches of a decoder with cross-attention, and the one place that accepts every form of cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from quintet.cache.base import Cache
from quintet.cache.dynamic import DynamicCache
from quintet.cache.layered import LayeredCache
from quintet.errors import InputError

__all__ = ["EncoderDecoderCache", "as_cache"]


class EncoderDecoderCache(Cache):
    """Keys and values of the tokens, and those of the encoder states, which are computed once.

    Args:
        self_attention_cache: Cache of the tokens.
        cross_attention_cache: Cache of the encoder states.
    """

    def __init__(self, self_attention_cache: Cache, cross_attention_cache: Cache) -> None:
        self.self_attention_cache = self_attention_cache
        self.record = self_attention_cache.record
        self.cross_attention_cache = cross_attention_cache
        self.is_updated: dict[int, bool] = {}
        if isinstance(cross_attention_cache, LayeredCache):
            filled = (layer.length > 0 for layer in cross_attention_cache.layers)
            self.is_updated = {index: True for index, full in enumerate(filled) if full}

    def update(
        self,
        key_states: torch.Tensor,
        value_states: torch.Tensor,
        layer_idx: int,
        cache_kwargs: dict[str, Any] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append to the tokens' cache; see Cache.update."""
        return self.self_attention_cache.update(key_states, value_states, layer_idx, cache_kwargs)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Number of tokens in the tokens' cache."""
        return self.self_attention_cache.get_seq_length(layer_idx)

    def past(self, layer_idx: int = 0) -> int | torch.Tensor:
        """Slot of the next token; see Cache.past."""
        return self.self_attention_cache.past(layer_idx)

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int | torch.Tensor]:
        """Keys that the tokens' cache will return; see Cache.get_mask_sizes."""
        return self.self_attention_cache.get_mask_sizes(query_length, layer_idx)

    def get_max_cache_shape(self, layer_idx: int | None = None) -> int:
        """The most tokens that the tokens' cache can hold, or -1."""
        return self.self_attention_cache.get_max_cache_shape(layer_idx)

    @property
    def is_compileable(self) -> bool:  # type: ignore[override]
        """Whether the tokens' cache has fixed shapes; the encoder's states are written once, before any decoding."""
        return self.self_attention_cache.is_compileable

    def crop(self, max_length: int) -> None:
        """Crop the tokens; the encoder states stay whole."""
        self.self_attention_cache.crop(max_length)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """See Cache.batch_select_indices."""
        self.self_attention_cache.batch_select_indices(indices)
        self.cross_attention_cache.batch_select_indices(indices)

    def keep_rows(self, indices: torch.Tensor) -> None:
        """See Cache.keep_rows."""
        self.self_attention_cache.keep_rows(indices)
        self.cross_attention_cache.keep_rows(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """See Cache.batch_repeat_interleave."""
        self.self_attention_cache.batch_repeat_interleave(repeats)
        self.cross_attention_cache.batch_repeat_interleave(repeats)

    def reset(self) -> None:
        """See Cache.reset."""
        self.self_attention_cache.reset()
        self.cross_attention_cache.reset()
        self.is_updated.clear()

    def to_legacy_cache(self) -> tuple[tuple[torch.Tensor, ...], ...]:
        """Return the tuple form: for each layer (keys, values) and, once they are computed, those of the encoder.

        Raises:
            InputError: a store without a tuple form.
        """
        tokens, encoder = self.self_attention_cache, self.cross_attention_cache
        if not isinstance(tokens, LayeredCache) or not isinstance(encoder, LayeredCache):
            raise InputError("only a pair of DynamicCache has a tuple form; keep the cache as it is.")
        own, other = tokens.to_legacy_cache(), encoder.to_legacy_cache()
        return tuple((*pair, *states) for pair, states in zip(own, other, strict=True)) if other else own

    @classmethod
    def from_legacy_cache(
        cls, past_key_values: Sequence[tuple[torch.Tensor, ...]] | None = None
    ) -> EncoderDecoderCache:
        """Make the pair from its tuple form, two or four tensors for each layer."""
        layers = list(past_key_values or ())
        encoder = [(layer[2], layer[3]) for layer in layers if len(layer) == 4]
        return cls(DynamicCache([(layer[0], layer[1]) for layer in layers]), DynamicCache(encoder))

    def __len__(self) -> int:
        return len(self.self_attention_cache) if isinstance(self.self_attention_cache, LayeredCache) else 0


def as_cache(past_key_values: Any) -> Cache | None:
    """Return a Cache for any accepted form of `past_key_values`: None, a Cache, or the tuple form.

    Raises:
        InputError: it is none of these.
    """
    if past_key_values is None or isinstance(past_key_values, Cache):
        return past_key_values
    if isinstance(past_key_values, (tuple, list)):
        pairs = all(isinstance(p, (tuple, list)) and len(p) in (2, 4) for p in past_key_values)
        if pairs and all(isinstance(t, torch.Tensor) and t.dim() == 4 for p in past_key_values for t in p):
            _check_layers(past_key_values)
            if any(len(p) == 4 for p in past_key_values):  # (keys, values, encoder keys, encoder values)
                return EncoderDecoderCache.from_legacy_cache(past_key_values)
            return DynamicCache(past_key_values)
    raise InputError(
        f"past_key_values is a {type(past_key_values).__name__}, but must be a Cache (DynamicCache, ...) or a tuple "
        "with one pair of (rows, heads, tokens, head size) tensors per layer."
    )


def _check_layers(layers: Sequence[Sequence[torch.Tensor]]) -> None:
    """Raise InputError when the tensors of a tuple form do not belong together."""
    for index, layer in enumerate(layers):
        if len(layer) != len(layers[0]):
            raise InputError(
                f"layer {index} of past_key_values has {len(layer)} tensors and layer 0 {len(layers[0])}. Give (keys, "
                "values) for each layer, or (keys, values, encoder keys, encoder values) for each."
            )
        for keys, values in zip(layer[::2], layer[1::2], strict=True):
            if keys.shape[:3] != values.shape[:3]:
                raise InputError(
                    f"layer {index} of past_key_values has keys of shape {tuple(keys.shape)} and values of shape "
                    f"{tuple(values.shape)}, but rows, heads and tokens must be the same."
                )
