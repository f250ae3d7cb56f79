"""What a cache was read from: the tokens of its places and the model that read them, so that a mix-up can be told.

Letters: B rows, T new tokens, N places whose tokens are noted.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch

from quintet.errors import InputError

__all__ = ["UNKNOWN", "TokenRecord", "all_read", "as_tokens", "other_tokens"]

# Stands for a place whose token is not known (it was read from an embedding, or past the record) or does not count
# (padding).
UNKNOWN = -1
# Single tokens are kept as they come, and joined when there are this many: a step costs no copy of the whole text.
MAX_PARTS = 256


class TokenRecord:
    """Tokens of the first places of a cache, as far as somebody noted them, and whose keys they are.

    `generate` notes what it reads; a forward pass of the model alone does not, so a record may be shorter than its
    cache.
    """

    def __init__(self) -> None:
        self._parts: list[torch.Tensor] = []
        self._length = 0
        self._model: weakref.ref[Any] | None = None
        # What a file says of the model that read the tokens; None when the cache is of no file.
        self.fingerprint: dict[str, str] | None = None

    @property
    def model(self) -> Any:
        """The model that read the tokens last, while it lives; else None."""
        return None if self._model is None else self._model()

    @model.setter
    def model(self, model: Any) -> None:
        self._model = weakref.ref(model)

    @property
    def length(self) -> int:
        """N."""
        return self._length

    @property
    def tokens(self) -> torch.Tensor | None:
        """(B, N) token ids, UNKNOWN where none is known; None when nothing was noted."""
        if len(self._parts) > 1:
            self._parts = [torch.cat(self._parts, dim=1)]
        return self._parts[0] if self._parts else None

    def note(self, ids: torch.Tensor, start: int) -> None:
        """Note that the (B, T) tokens `ids` were read into the places from `start` on."""
        if self._parts and self._parts[0].shape[0] != ids.shape[0]:
            self.reset()
        if self._length > start:
            self.crop(start)
        elif self._length < start:
            self._parts.append(ids.new_full((ids.shape[0], start - self._length), UNKNOWN))
        self._parts.append(ids.clone())  # the caller's tensor is the caller's
        self._length = start + ids.shape[1]
        if len(self._parts) >= MAX_PARTS:
            self._parts = [torch.cat(self._parts, dim=1)]

    def crop(self, length: int) -> None:
        """Keep the tokens of the first `length` places."""
        tokens = self.tokens
        if tokens is not None and tokens.shape[1] > length:
            self._parts, self._length = [tokens[:, :length]] if length else [], length

    def map_rows(self, rows: torch.Tensor | int) -> None:
        """Select rows by an index tensor, or repeat each row an int number of times."""
        tokens = self.tokens
        if tokens is not None:
            chosen = (
                tokens.repeat_interleave(rows, dim=0)
                if isinstance(rows, int)
                else tokens.index_select(0, rows.to(tokens.device))
            )
            self._parts = [chosen]

    def reset(self) -> None:
        """Forget every token; the model stays."""
        self._parts, self._length = [], 0

    def __getstate__(self) -> dict[str, Any]:  # a weak reference can neither be pickled nor sent elsewhere
        return {**self.__dict__, "_model": None}

    def __deepcopy__(self, memo: dict[int, Any]) -> TokenRecord:
        new = TokenRecord()
        new._parts, new._length = list(self._parts), self._length  # nobody writes to the tensors
        new._model, new.fingerprint = self._model, self.fingerprint
        return new


def as_tokens(tokens: Any) -> torch.Tensor:
    """Return token ids as an int64 tensor (B, S); one row may be given as a list or a tensor (S,).

    Raises:
        InputError: they are no whole numbers in rows of one length.
    """
    try:
        ids = torch.as_tensor(tokens)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        ids = torch.zeros(())
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool or ids.dim() not in (1, 2):
        raise InputError(
            f"tokens are {type(tokens).__name__} {tokens!r:.60}, but must be token ids: a tensor of shape (rows, "
            "tokens), or a list for one row."
        )
    return ids.to(torch.int64).reshape(-1, ids.shape[-1])


def other_tokens(read: torch.Tensor, given: torch.Tensor, counts: torch.Tensor | None = None) -> str | None:
    """Say where a text is not what a cache was read from; None when it is, as far as it is known.

    Args:
        read: (B, N) tokens of the cache, UNKNOWN where none is known or does not count.
        given: (B, S) tokens of the text; the first of N and S are compared.
        counts: (B, S) 0 for places of the text that do not count; None when all do.
    """
    if read.shape[0] != given.shape[0]:
        return f"it has {read.shape[0]} rows and the text {given.shape[0]}"
    both = min(read.shape[1], given.shape[1])
    read, given = read[:, :both].to(given.device), given[:, :both]
    differs = (read != given) & (read != UNKNOWN)
    if counts is not None:
        differs &= counts[:, :both] != 0
    if not bool(differs.any()):
        return None
    place = int(differs.any(dim=0).int().argmax())
    row = int(differs[:, place].int().argmax())
    return f"at place {place} of row {row} it has read token {int(read[row, place])}, not {int(given[row, place])}"


def all_read(tokens: torch.Tensor, length: int, rows: int | None) -> torch.Tensor:
    """Return the `length` tokens that a cache of `rows` holds, from a text that may have one more, which is not read.

    Raises:
        InputError: they are not as many.
    """
    if rows is not None and tokens.shape[0] != rows:
        raise InputError(f"tokens have {tokens.shape[0]} rows, but the cache holds {rows}. Give those of every row.")
    if tokens.shape[1] not in (length, length + 1):
        raise InputError(
            f"tokens are {tokens.shape[1]}, but the cache holds {length}. Give those that it was read from, in order."
        )
    return tokens[:, :length]
