"""What one forward pass tells its blocks: a small record, passed explicitly, so that nothing is ambient."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from quintet.cache import Cache
from quintet.layers.masks import MaskSpec

__all__ = ["Step"]


@dataclass(frozen=True, eq=False)
class Step:
    """One forward pass as the blocks see it.

    Args:
        mask: Which token sees which.
        cache: Store that attention appends to; None for no cache.
        backend: Attention backend, a key of `layers.attention.BACKENDS`.
        output_attentions: Whether attention weights are wanted; they are then put into `attentions`.
        head_mask: (n_layer, H) factors of each head's output, or None.
        encoder_states: (B, S_enc, D) states for cross-attention, or None.
        encoder_mask: Which of them may be seen.
        attentions, cross_attentions: Filled by `attend`, one (B, H, T, S) tensor per layer.
    """

    mask: MaskSpec
    cache: Cache | None = None
    backend: str = "sdpa"
    output_attentions: bool = False
    head_mask: torch.Tensor | None = None
    encoder_states: torch.Tensor | None = None
    encoder_mask: MaskSpec | None = None
    attentions: list[torch.Tensor] = field(default_factory=list)
    cross_attentions: list[torch.Tensor] = field(default_factory=list)
