"""The contract of every cache: what models, loops and users may call.

Letters: B rows, H key/value heads, S tokens stored, T new tokens, D head size.
"""

from __future__ import annotations

from typing import Any

import torch

__all__ = ["Cache"]


class Cache:
    """Keys and values of every layer, grown by each forward pass."""

    def update(
        self,
        key_states: torch.Tensor,
        value_states: torch.Tensor,
        layer_idx: int,
        cache_kwargs: dict[str, Any] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append (B, H, T, D) keys and values to a layer; return all of them, (B, H, S + T, D)."""
        raise NotImplementedError(f"{type(self).__name__} must define update().")

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return the number of tokens that a layer holds."""
        raise NotImplementedError(f"{type(self).__name__} must define get_seq_length().")

    def past(self, layer_idx: int = 0) -> int | torch.Tensor:
        """Return the slot of the next token: an int, or a 0-d tensor for a store of fixed shape."""
        return self.get_seq_length(layer_idx)

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int | torch.Tensor]:
        """Return how many keys the next update with `query_length` tokens will return, and the slot of the first."""
        return self.get_seq_length(layer_idx) + query_length, 0

    def get_max_cache_shape(self) -> int:
        """Return the most tokens the store can hold, or -1 for no limit."""
        return -1

    def crop(self, max_length: int) -> None:
        """Keep the first `max_length` tokens; a negative number drops that many from the end."""
        raise NotImplementedError(f"{type(self).__name__} must define crop().")

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Replace the rows by those at `beam_idx` (B,), as beam search does."""
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep the rows at `indices` (any number of them, repeats allowed)."""
        raise NotImplementedError(f"{type(self).__name__} must define batch_select_indices().")

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every row `repeats` times, copies side by side."""
        raise NotImplementedError(f"{type(self).__name__} must define batch_repeat_interleave().")

    def reset(self) -> None:
        """Forget every token."""
        raise NotImplementedError(f"{type(self).__name__} must define reset().")
