"""How a forward pass begins and ends, once for every family: its cache, its masks, its positions, its step.

Letters: B rows, T new tokens, S all tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from quintet.cache import Cache, DynamicCache, EncoderDecoderCache, as_cache
from quintet.cache.layered import layer_windows
from quintet.config import PreTrainedConfig
from quintet.errors import InputError
from quintet.layers.attention import check_backend
from quintet.layers.inputs import Wanted, expand_head_mask, flat, learned_positions, past_length, rotary_positions
from quintet.layers.masks import make_masks
from quintet.layers.step import Step

__all__ = ["OpenCache", "begin_learned", "begin_rotary", "open_cache", "windows_of"]

Past = Cache | tuple[tuple[torch.Tensor, ...], ...]


@dataclass(frozen=True)
class OpenCache:
    """The cache of one forward pass.

    Args:
        cache: The store, None for none.
        keep: Whether the caller gets it back.
        legacy: Whether the caller gave tuples, and so gets tuples.
    """

    cache: Cache | None
    keep: bool
    legacy: bool

    def returned(self) -> Any:
        """What goes into `past_key_values` of the output, in the form it came in."""
        if not self.keep:
            return None
        if self.legacy and isinstance(self.cache, (DynamicCache, EncoderDecoderCache)):
            return self.cache.to_legacy_cache()
        return self.cache


def open_cache(
    config: PreTrainedConfig, past_key_values: Past | None, use_cache: bool | None, checkpointing: bool
) -> OpenCache:
    """Take the caller's cache, or make one when one is wanted.

    Args:
        config: Its `use_cache` counts when the argument is None; its layer kinds say how a new cache grows.
        past_key_values: A Cache, or the tuple form.
        use_cache: Whether the caller wants one back.
        checkpointing: Whether blocks are computed again in the backward pass, and so would append twice.

    Raises:
        InputError: a cache is given while training with gradient checkpointing.
    """
    cache = as_cache(past_key_values)
    if checkpointing and cache is not None:
        raise InputError("past_key_values cannot be used while training with gradient checkpointing. Leave it out.")
    keep = bool(getattr(config, "use_cache", False) if use_cache is None else use_cache) and not checkpointing
    if cache is None and keep:
        cache = DynamicCache(config=config)
    return OpenCache(cache, keep, isinstance(past_key_values, tuple))


def windows_of(config: PreTrainedConfig) -> list[int | None]:
    """For each layer how many tokens a query sees, None for all; caches made with `config` read the same fields."""
    return layer_windows(config) or [None] * config.num_hidden_layers


def begin_learned(
    config: Any,
    shape: torch.Size,
    device: torch.device,
    opened: OpenCache,
    want: Wanted,
    *,
    attention_mask: torch.Tensor | None,
    position_ids: torch.Tensor | None,
    cache_position: torch.Tensor | None = None,
    head_mask: torch.Tensor | None = None,
    encoder: Mapping[str, Any] | None = None,
) -> tuple[Step, torch.Tensor, int | torch.Tensor]:
    """Make the step of a family with a table of `n_positions` learned positions, and the position of each new token.

    Args:
        config: Of a family with the names `n_layer`, `n_head` and `n_positions`.
        shape: (..., T) of the tokens.
        device: Where positions are looked up.
        opened: From `open_cache`.
        want: From `layers.inputs.wanted`.
        attention_mask, position_ids, cache_position: As in `begin_rotary`.
        head_mask: (H,) or (n_layer, H) factors, see `layers.inputs.expand_head_mask`.
        encoder: Fields of `Step` for cross-attention.

    Returns:
        The step, positions (1, T) or (B, T), and the number of tokens in the cache.

    Raises:
        InputError: a mask, positions or a cache that do not fit.
        ConfigError: an unknown attention backend.
    """
    tokens, rows = shape[-1], shape.numel() // shape[-1]
    past = past_length(opened.cache, config.n_layer)
    masks = make_masks(
        flat(attention_mask), rows=rows, queries=tokens, cache=opened.cache, windows=[None] * config.n_layer
    )
    positions = learned_positions(
        position_ids=position_ids,
        padding=masks[0].padding,
        cache_position=cache_position,
        rows=rows,
        tokens=tokens,
        past=past,
        limit=config.n_positions,
        device=device,
    )
    step = Step(
        masks=masks,
        cache=opened.cache,
        backend=check_backend(config._attn_implementation),
        output_attentions=want.attentions,
        head_mask=expand_head_mask(head_mask, config.n_layer, config.n_head, bool(config.pruned_heads)),
        **(encoder or {}),
    )
    return step, positions, past


def begin_rotary(
    config: PreTrainedConfig,
    x: torch.Tensor,
    rotary: nn.Module,
    opened: OpenCache,
    want: Wanted,
    *,
    attention_mask: torch.Tensor | Mapping[str, torch.Tensor | None] | None,
    position_ids: torch.Tensor | None,
    cache_position: torch.Tensor | None,
    head_mask: torch.Tensor | None = None,
) -> Step:
    """Make the step of a family with rotary positions.

    Args:
        x: (B, T, D) embedded tokens.
        rotary: A `layers.rope.RotaryEmbedding`.
        opened: From `open_cache`.
        want: From `layers.inputs.wanted`.
        attention_mask: (B, S) with 0 for padding, 4-D, or one for each kind of layer, see `layers.masks.make_masks`.
        position_ids: (1, T) or (B, T); None counts from the first real token of each row.
        cache_position: (T,) slots of the new tokens; only the next free ones are possible.
        head_mask: (n_layer, H) factors, see `layers.inputs.expand_head_mask`.

    Raises:
        InputError: a mask, positions or a cache that do not fit.
        ConfigError: an unknown attention backend.
    """
    rows, tokens = x.shape[0], x.shape[1]
    past = past_length(opened.cache, config.num_hidden_layers)
    masks = make_masks(
        flat(attention_mask),
        rows=rows,
        queries=tokens,
        cache=opened.cache,
        windows=windows_of(config),
        kinds=config.__dict__.get("layer_types") or (),
    )
    positions = rotary_positions(
        position_ids=position_ids,
        padding=masks[0].padding,
        cache_position=cache_position,
        rows=rows,
        tokens=tokens,
        past=past,
        limit=config.max_position_embeddings,
        device=x.device,
    )
    cos, sin = rotary(positions)  # each (B or 1, T, R)
    return Step(
        masks=masks,
        cache=opened.cache,
        backend=check_backend(config._attn_implementation),
        output_attentions=want.attentions,
        output_router_logits=want.router_logits,
        rope=(cos.to(x.dtype), sin.to(x.dtype)),  # once here, and not in every layer
        head_mask=head_mask,
    )
