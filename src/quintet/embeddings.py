"""The half of `PreTrainedModel` that knows the embeddings: reading, replacing, resizing.

Letters: V rows (tokens), E width.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import nn

from quintet.config import PreTrainedConfig
from quintet.errors import InputError

__all__ = ["Embeddings"]

logger = logging.getLogger("quintet")


class Embeddings(nn.Module):
    """Input and output embeddings of a model."""

    config: PreTrainedConfig

    def get_input_embeddings(self) -> nn.Module:
        """Return the token embedding."""
        return self._base().get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the token embedding."""
        self._base().set_input_embeddings(value)

    def _base(self) -> Any:
        base: Any = self.base_model
        if base is self:
            raise InputError(f"{type(self).__name__} is a base model and must define its own embedding accessors.")
        return base

    def get_output_embeddings(self) -> nn.Module | None:
        """Return the language-model head, or None for a model without one."""
        return getattr(self, "lm_head", None)

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Replace the language-model head."""
        if self.get_output_embeddings() is None:
            raise InputError(f"{type(self).__name__} has no language-model head to replace.")
        self.lm_head = new_embeddings

    def resize_token_embeddings(
        self,
        new_num_tokens: int | None = None,
        pad_to_multiple_of: int | None = None,
        mean_resizing: bool = True,
        allow_shrink: bool = False,
    ) -> nn.Module:
        """Give the embeddings another number of rows, keep those that stay, and tie again.

        Args:
            new_num_tokens: V wanted, usually `len(tokenizer)`; None keeps V (or only rounds it up).
            pad_to_multiple_of: Round V up to a multiple of this.
            mean_resizing: Draw new rows from a normal distribution with the mean and covariance of the old ones, so
                that they change the model's scores least (Hewitt 2021, "Initializing New Word Embeddings for Pretrained
                Language Models"); else from the model's initial distribution.
            allow_shrink: Without it fewer rows than there are is refused: published vocabularies are often padded, and
                `resize_token_embeddings(len(tokenizer))` would throw rows away unseen.

        Returns:
            The token embedding.

        Raises:
            InputError: a size that is not possible, or a shrink that was not asked for; nothing has changed then.
        """
        old = self.get_input_embeddings()
        assert isinstance(old, nn.Embedding), "token embeddings are nn.Embedding"
        size = old.num_embeddings if new_num_tokens is None else new_num_tokens
        multiple = 1 if pad_to_multiple_of is None else pad_to_multiple_of
        for name, value in {"new_num_tokens": size, "pad_to_multiple_of": multiple}.items():
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise InputError(f"{name} is {value!r}, but must be an integer of at least 1.")
        size = -(-size // multiple) * multiple
        if size == old.num_embeddings:
            return old
        if size < old.num_embeddings and not allow_shrink:
            raise InputError(
                f"resize_token_embeddings({size}) would throw away {old.num_embeddings - size} of {old.num_embeddings} "
                "rows. A padded vocabulary may stay larger than the tokenizer's; pass allow_shrink=True to cut it."
            )
        head = self.get_output_embeddings()
        tied = head is not None and head.weight is old.weight
        std = float(getattr(self.config, "initializer_range", 0.02))
        weight = _resized(old.weight, size, mean_resizing, std)
        padding = old.padding_idx if old.padding_idx is not None and old.padding_idx < size else None
        embedding = nn.Embedding(size, old.embedding_dim, padding_idx=padding, device="meta")
        embedding.weight = nn.Parameter(weight, requires_grad=old.weight.requires_grad)
        self.set_input_embeddings(embedding)
        if isinstance(head, nn.Linear):
            new_weight = weight if tied else _resized(head.weight, size, mean_resizing, std)
            head.weight = embedding.weight if tied else nn.Parameter(new_weight, head.weight.requires_grad)
            if head.bias is not None:
                bias = head.bias.new_zeros(size)
                kept = min(size, head.out_features)
                bias[:kept] = head.bias.detach()[:kept]
                head.bias = nn.Parameter(bias, head.bias.requires_grad)
            head.out_features = size
        self.config.vocab_size = size
        return embedding


@torch.no_grad()
def _resized(weight: torch.Tensor, size: int, mean_resizing: bool, std: float) -> torch.Tensor:
    """Return (size, E) with the old rows of (V, E) first."""
    kept = min(size, weight.shape[0])
    new = weight.new_empty((size, weight.shape[1]))
    new[:kept] = weight[:kept]
    if size > kept and new.device.type != "meta":
        rows = torch.empty(size - kept, weight.shape[1], dtype=torch.float32, device=weight.device)
        rows.normal_(std=std)
        if mean_resizing:
            rows = _like(weight, size - kept)
        new[kept:] = rows.to(weight.dtype)
    return new


def _like(weight: torch.Tensor, rows: int) -> torch.Tensor:
    """Draw (rows, E) from the normal distribution of the rows of (V, E), its covariance shrunk by 1e-9 as in the source
    (the new rows then stand next to the mean, and a softmax over the vocabulary hardly moves)."""
    old = weight.detach().float()
    mean = old.mean(0)  # (E,)
    centred = old - mean
    # By eigenvectors, since a Cholesky factor does not exist when there are fewer rows than dimensions:
    # covariance = vectors diag(values) vectors^T
    values, vectors = torch.linalg.eigh(centred.T @ centred / old.shape[0])
    z = torch.randn(rows, old.shape[1], device=old.device)
    return mean + (1e-9**0.5) * (z * values.clamp_min(0).sqrt()) @ vectors.T  # (rows, E)
