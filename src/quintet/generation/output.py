"""What `generate` returns with return_dict_in_generate=True."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from quintet.cache import Cache
from quintet.outputs import ModelOutput

__all__ = ["GenerateDecoderOnlyOutput"]

Tensors = tuple[torch.Tensor, ...]


@dataclass(eq=False)
class GenerateDecoderOnlyOutput(ModelOutput):
    """Sequences and what was asked for beside them; every tuple has one entry per new token.

    Args:
        sequences: (B, S) prompt and new tokens.
        scores: (B, V) processed scores that each token was chosen from.
        logits: (B, V) scores as the model gave them.
        attentions: For each layer (B, H, T, S).
        hidden_states: For the embeddings and each layer (B, T, E).
        past_key_values: The cache, to go on from.
    """

    sequences: torch.Tensor | None = None
    scores: Tensors | None = None
    logits: Tensors | None = None
    attentions: tuple[Tensors, ...] | None = None
    hidden_states: tuple[Tensors, ...] | None = None
    past_key_values: Cache | None = None
