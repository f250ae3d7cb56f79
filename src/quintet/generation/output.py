"""What `generate` returns with return_dict_in_generate=True."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from quintet.cache import Cache
from quintet.outputs import ModelOutput

__all__ = ["GenerateBeamDecoderOnlyOutput", "GenerateDecoderOnlyOutput"]

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


@dataclass(eq=False)
class GenerateBeamDecoderOnlyOutput(ModelOutput):
    """What beam search found; every tuple has one entry per step, whose rows are the beams of that step, R in all.

    Args:
        sequences: (B, S) prompt and new tokens, the best of each prompt first.
        sequences_scores: (B,) sum of the scores of a text's tokens over (their number) ** length_penalty.
        scores: (R, V) processed log-probabilities that the tokens were chosen from.
        logits: (R, V) scores as the model gave them.
        beam_indices: (B, new) for each new token the row, of R, that it was chosen from; -1 behind the end.
        attentions: For each layer (R, H, T, S).
        hidden_states: For the embeddings and each layer (R, T, E).
        past_key_values: The cache of the beams as they were at the end.
    """

    sequences: torch.Tensor | None = None
    sequences_scores: torch.Tensor | None = None
    scores: Tensors | None = None
    logits: Tensors | None = None
    beam_indices: torch.Tensor | None = None
    attentions: tuple[Tensors, ...] | None = None
    hidden_states: tuple[Tensors, ...] | None = None
    past_key_values: Cache | None = None
