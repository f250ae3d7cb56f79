"""The contract of every cache: what models, loops and users may call.

Letters: B rows, H key/value heads, S tokens seen, T new tokens, K keys that attention sees, D head size. A *slot* is
the number of a token in its sequence, padding included, from 0.
"""

from __future__ import annotations

import os
from typing import Any, TypeVar

import torch

from quintet.cache.record import TokenRecord

__all__ = ["Cache"]

AnyCache = TypeVar("AnyCache", bound="Cache")


class Cache:
    """Keys and values of every layer, grown by each forward pass."""

    # Whether a compiled decode step may be given this cache: fixed shapes, the length on the device.
    is_compileable: bool = False
    # What it was read from; None for a store that does not keep account.
    record: TokenRecord | None = None

    def update(
        self,
        key_states: torch.Tensor,
        value_states: torch.Tensor,
        layer_idx: int,
        cache_kwargs: dict[str, Any] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append (B, H, T, D) keys and values to a layer; return what attention may see, (B, H, K, D).

        `get_mask_sizes`, asked before, says how many these are and where they stand.
        """
        raise NotImplementedError(f"{type(self).__name__} must define update().")

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return the number of tokens that a layer has seen, those that a window has dropped included."""
        raise NotImplementedError(f"{type(self).__name__} must define get_seq_length().")

    def past(self, layer_idx: int = 0) -> int | torch.Tensor:
        """Return the slot of the next token: an int, or a 0-d int64 tensor where a compiled step must not know it."""
        return self.get_seq_length(layer_idx)

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int | torch.Tensor]:
        """Return (K, offset): how many keys the next update with `query_length` tokens returns, and the first's slot.

        The slot may be negative: such keys are empty places before the first token, and must be hidden.
        """
        return self.get_seq_length(layer_idx) + query_length, 0

    def get_max_cache_shape(self, layer_idx: int | None = None) -> int:
        """Return the most keys that a layer can hold (a sliding layer: its window), or -1 for no limit.

        None asks for the layer that can hold most.
        """
        return -1

    def crop(self, max_length: int) -> None:
        """Keep the first `max_length` tokens; a negative number drops that many from the end.

        Raises:
            InputError: a sliding layer no longer holds the keys that its window would need then. To undo the last
                update always works.
        """
        raise NotImplementedError(f"{type(self).__name__} must define crop().")

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Replace the rows by those at `beam_idx` (B,), as beam search does."""
        self.batch_select_indices(beam_idx)

    def reorder_newest(self, beam_idx: torch.Tensor, newest: int) -> None:
        """Replace the rows by those at `beam_idx` (B,), when old and new ones differ in the `newest` tokens at most.

        Beams of one prompt do: only what differs has to move.
        """
        self.reorder_cache(beam_idx)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep the rows at `indices` (any number of them, repeats allowed)."""
        raise NotImplementedError(f"{type(self).__name__} must define batch_select_indices().")

    def keep_rows(self, indices: torch.Tensor) -> None:
        """Keep the rows at `indices` when each of them stays in its place or moves into that of a row that goes.

        As `batch_select_indices`; a store may work in its own memory, and keep it.
        """
        self.batch_select_indices(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every row `repeats` times, copies side by side."""
        raise NotImplementedError(f"{type(self).__name__} must define batch_repeat_interleave().")

    def reset(self) -> None:
        """Forget every token."""
        raise NotImplementedError(f"{type(self).__name__} must define reset().")

    @property
    def tokens(self) -> torch.Tensor | None:
        """(B, N) tokens that the first places were read from, -1 for padding and unknown ones; None for none known.

        `generate` notes them. They stay right through crop, reorder and reset.
        """
        return None if self.record is None else self.record.tokens

    def save(self, path: str | os.PathLike[str], *, model: Any = None, tokens: Any = None) -> None:
        """Write the cache to a safetensors file, atomically, with what it was read from.

        Args:
            path: The file.
            model: The model that made the cache; None for the one that `generate` noted, if it did.
            tokens: (B, S) what it was read from; None for what `generate` noted.

        Raises:
            InputError: a store that has no file form; tokens that are not as many as the cache holds.
            CheckpointError: the file cannot be written.
        """
        from quintet.cache.storing import save_cache

        save_cache(self, path, model=model, tokens=tokens)

    @classmethod
    def load(
        cls: type[AnyCache],
        path: str | os.PathLike[str],
        *,
        config: Any = None,
        device: torch.device | str | None = None,
        model: Any = None,
        tokens: Any = None,
    ) -> AnyCache:
        """Read a cache that `save` has written; `Cache.load` takes every kind.

        Args:
            path: The file.
            config: Configuration of the model that will use it, to be told at once when the cache is of another.
            device: Where the keys and values go; None for that of the model, without one the CPU.
            model: The model that will use it: its layers, its weights and its data type are compared with what the file
                says. Without it `generate` does this at its first use.
            tokens: The text that it is for, (B, S) or a list of ids, which must begin with what the cache has read.
                Without it `generate` compares its prompt.

        Raises:
            HubError: there is no such file.
            CheckpointError: it is damaged, hostile, of another kind of cache, of another model or of other tokens, or
                it does not say of which.
        """
        from quintet.cache.storing import load_cache

        return load_cache(cls, path, config=config, device=device, model=model, tokens=tokens)
