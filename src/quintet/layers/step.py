"""What one forward pass tells its blocks: a small record, passed explicitly, so that nothing is ambient."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from quintet.cache import Cache
from quintet.layers.masks import MaskSpec

__all__ = ["Step", "run_blocks"]


@dataclass(frozen=True, eq=False)
class Step:
    """One forward pass as the blocks see it.

    Args:
        masks: For each layer, which token sees which.
        cache: Store that attention appends to; None for no cache.
        backend: Attention backend, a key of `layers.attention.BACKENDS`, or "native" in the place of "sdpa".
        output_attentions: Whether attention weights are wanted; they are then put into `attentions`.
        output_router_logits: Whether the scores of the experts are wanted; they are then put into `router_logits`.
        rope: cos and sin of the new tokens' positions, each (B or 1, T, R); None for learned positions.
        head_mask: (n_layer, H) factors of each head's output, or None.
        encoder_states: (B, S_enc, D) states for cross-attention, or None.
        encoder_mask: Which of them may be seen.
        attentions, cross_attentions: Filled by `attend`, one (B, H, T, K) tensor per layer.
        router_logits: Filled by blocks with experts, one (B * T, experts) tensor per layer.
    """

    masks: tuple[MaskSpec, ...]
    cache: Cache | None = None
    backend: str = "sdpa"
    output_attentions: bool = False
    output_router_logits: bool = False
    rope: tuple[torch.Tensor, torch.Tensor] | None = None
    head_mask: torch.Tensor | None = None
    encoder_states: torch.Tensor | None = None
    encoder_mask: MaskSpec | None = None
    attentions: list[torch.Tensor] = field(default_factory=list)
    cross_attentions: list[torch.Tensor] = field(default_factory=list)
    router_logits: list[torch.Tensor] = field(default_factory=list)


def run_blocks(
    blocks: Iterable[nn.Module], x: torch.Tensor, step: Step, *, collect: bool, checkpointing: bool
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Run `x = block(x, step)` over all blocks.

    Args:
        x: (B, T, D).
        collect: Whether the states are wanted: the input, and the output of every block.
        checkpointing: Keep only each block's input for the backward pass and compute the rest again.

    Returns:
        The last output and the states, an empty list when they are not wanted.
    """
    run = getattr(blocks, "run", None)  # of a twin of the list, which does a step as a whole when it can
    if run is not None and not collect and not checkpointing:
        done: torch.Tensor | None = run(x, step)
        if done is not None:
            return done, []
    told = getattr(blocks, "told", None)  # of the same twin
    step = step if told is None else told(step)
    states: list[torch.Tensor] = [x] if collect else []
    for block in blocks:
        result: Any = checkpoint(block, x, step, use_reentrant=False) if checkpointing else block(x, step)
        x = result
        if collect:
            states.append(x)
    return x, states
