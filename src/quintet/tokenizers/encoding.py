"""BatchEncoding: what a tokenizer returns, a dict of lists or tensors that also knows where each token came from."""

from __future__ import annotations

from collections import UserDict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from tokenizers import Encoding

from quintet.errors import TokenizerError
from quintet.tokenizers.options import TensorType, choice

if TYPE_CHECKING:
    import torch

__all__ = ["BatchEncoding", "CharSpan", "TokenSpan", "to_python"]


class CharSpan(NamedTuple):
    """Characters [start, end) of the original text."""

    start: int
    end: int


class TokenSpan(NamedTuple):
    """Tokens [start, end) of an encoding."""

    start: int
    end: int


class BatchEncoding(UserDict[str, Any]):
    """The result of calling a tokenizer: `input_ids`, `attention_mask`, ... by key or as attributes.

    An integer key gives the `tokenizers.Encoding` of that row; a slice without encodings gives that part of each value.

    Args:
        data: The values.
        encoding: The library's encodings, one per row; without them the methods about words and characters raise.
        tensor_type: "pt" or "np": convert the values.
        prepend_batch_axis: Add a first axis of length 1 when converting.
        n_sequences: 1 for single texts, 2 for pairs.

    Raises:
        TokenizerError: The values do not form a rectangle and `tensor_type` asks for a tensor.
    """

    def __init__(
        self,
        data: dict[str, Any] | None = None,
        encoding: Encoding | Sequence[Encoding] | None = None,
        tensor_type: str | TensorType | None = None,
        prepend_batch_axis: bool = False,
        n_sequences: int | None = None,
    ) -> None:
        self.data = {} if data is None else dict(data)  # not by super().__init__, which takes keys one by one
        rows = [encoding] if isinstance(encoding, Encoding) else encoding
        self._encodings: list[Encoding] | None = None if rows is None else list(rows)
        if n_sequences is None and self._encodings:
            n_sequences = self._encodings[0].n_sequences
        self._n_sequences = n_sequences
        if tensor_type is not None:
            self.convert_to_tensors(tensor_type, prepend_batch_axis)

    # --- a dict -------------------------------------------------------------------------------------------------------

    def __getitem__(self, item: Any) -> Any:
        if isinstance(item, str):
            return self.data[item]
        if self._encodings is not None:
            return self._encodings[item]
        if isinstance(item, slice):
            return {key: value[item] for key, value in self.data.items()}
        raise KeyError(f"{item!r}: keys are strings; a row's encoding by number is only there right after a tokenizer.")

    def __getattr__(self, name: str) -> Any:
        # `data` is missing while an object is being unpickled or copied: without this check that would recurse.
        if not name.startswith("__") and name != "data" and name in self.data:
            return self.data[name]
        raise AttributeError(f"{type(self).__name__} has no attribute or key {name!r}; keys are {self._key_names()}")

    def _key_names(self) -> list[str]:
        return list(self.__dict__.get("data", ()))

    def __getstate__(self) -> dict[str, Any]:
        return {"data": self.data, "encodings": self._encodings, "n_sequences": self._n_sequences}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.data = state["data"]
        self._encodings = state["encodings"]
        self._n_sequences = state.get("n_sequences")

    # --- where tokens come from ---------------------------------------------------------------------------------------

    @property
    def n_sequences(self) -> int | None:
        """Texts per row: 1, 2 for pairs, None where it is not known."""
        return self._n_sequences

    @property
    def is_fast(self) -> bool:
        """Whether the encodings are there, which the methods about words and characters need."""
        return self._encodings is not None

    @property
    def encodings(self) -> list[Encoding] | None:
        """The library's encodings, one per row."""
        return self._encodings

    def _row(self, index: int, method: str) -> Encoding:
        if not self._encodings:
            raise TokenizerError(
                f"{method}() needs the encodings of a tokenizer call, which this BatchEncoding does not carry. "
                "Call it on what the tokenizer returned, not on padded or rebuilt values."
            )
        try:
            return self._encodings[index]
        except IndexError:
            raise TokenizerError(
                f"{method}(): there is no row {index}; the batch has {len(self._encodings)}."
            ) from None

    def tokens(self, batch_index: int = 0) -> list[str]:
        """Return the tokens of a row as they are in the vocabulary."""
        return list(self._row(batch_index, "tokens").tokens)

    def sequence_ids(self, batch_index: int = 0) -> list[int | None]:
        """Return, per token of a row, 0 or 1 for the text it is from; None for special tokens and padding."""
        return list(self._row(batch_index, "sequence_ids").sequence_ids)

    def word_ids(self, batch_index: int = 0) -> list[int | None]:
        """Return, per token of a row, the number of its word; None for special tokens and padding."""
        return list(self._row(batch_index, "word_ids").word_ids)

    def token_to_sequence(self, batch_or_token_index: int, token_index: int | None = None) -> int | None:
        """Return the text (0 or 1) of a token; call with (token) for row 0, or (row, token)."""
        row, token = self._token(batch_or_token_index, token_index, "token_to_sequence")
        return row.token_to_sequence(token)

    def token_to_word(self, batch_or_token_index: int, token_index: int | None = None) -> int | None:
        """Return the word of a token; call with (token) for row 0, or (row, token)."""
        row, token = self._token(batch_or_token_index, token_index, "token_to_word")
        return row.token_to_word(token)

    def token_to_chars(self, batch_or_token_index: int, token_index: int | None = None) -> CharSpan | None:
        """Return the characters of a token in its text; None for special tokens and padding."""
        row, token = self._token(batch_or_token_index, token_index, "token_to_chars")
        span = row.token_to_chars(token)
        return None if span is None else CharSpan(*span)

    def char_to_token(
        self, batch_or_char_index: int, char_index: int | None = None, sequence_index: int = 0
    ) -> int | None:
        """Return the token that a character is in; call with (character) for row 0, or (row, character)."""
        row, index = (0, batch_or_char_index) if char_index is None else (batch_or_char_index, char_index)
        return self._row(row, "char_to_token").char_to_token(index, sequence_index)

    def char_to_word(
        self, batch_or_char_index: int, char_index: int | None = None, sequence_index: int = 0
    ) -> int | None:
        """Return the word that a character is in; call with (character) for row 0, or (row, character)."""
        row, index = (0, batch_or_char_index) if char_index is None else (batch_or_char_index, char_index)
        return self._row(row, "char_to_word").char_to_word(index, sequence_index)

    def word_to_tokens(
        self, batch_or_word_index: int, word_index: int | None = None, sequence_index: int = 0
    ) -> TokenSpan | None:
        """Return the tokens of a word; call with (word) for row 0, or (row, word)."""
        row, index = (0, batch_or_word_index) if word_index is None else (batch_or_word_index, word_index)
        span = self._row(row, "word_to_tokens").word_to_tokens(index, sequence_index)
        return None if span is None else TokenSpan(*span)

    def word_to_chars(
        self, batch_or_word_index: int, word_index: int | None = None, sequence_index: int = 0
    ) -> CharSpan | None:
        """Return the characters of a word; call with (word) for row 0, or (row, word)."""
        row, index = (0, batch_or_word_index) if word_index is None else (batch_or_word_index, word_index)
        span = self._row(row, "word_to_chars").word_to_chars(index, sequence_index)
        return None if span is None else CharSpan(*span)

    def _token(self, first: int, second: int | None, method: str) -> tuple[Encoding, int]:
        row, token = (0, first) if second is None else (first, second)
        encoding = self._row(row, method)
        if not -len(encoding) <= token < len(encoding):
            raise TokenizerError(f"{method}(): there is no token {token}; row {row} has {len(encoding)}.")
        return encoding, token % len(encoding)

    # --- tensors ------------------------------------------------------------------------------------------------------

    def convert_to_tensors(
        self, tensor_type: str | TensorType | None = None, prepend_batch_axis: bool = False
    ) -> BatchEncoding:
        """Turn the values into tensors, in place: "pt" for torch, "np" for numpy, None for nothing.

        Raises:
            TokenizerError: The rows have different lengths, or a value is not made of numbers.
        """
        if tensor_type is None:
            return self
        kind = choice("return_tensors", tensor_type, TensorType)
        for key, value in self.data.items():
            rows = [value] if prepend_batch_axis else value
            if _is_tensor(rows, kind):
                continue
            try:
                self.data[key] = _as_tensor(rows, kind)
            except (TypeError, ValueError, RuntimeError, OverflowError) as cause:
                raise TokenizerError(_explain_ragged(key, rows)) from cause
        return self

    def to(self, device: str | int | torch.device, *, non_blocking: bool = False) -> BatchEncoding:
        """Move every torch tensor to `device`, in place, and return self.

        Raises:
            TokenizerError: `device` is a dtype or anything else that is no device.
        """
        if not (isinstance(device, (str, int)) or type(device).__name__ == "device") or isinstance(device, bool):
            raise TokenizerError(
                f"BatchEncoding.to() moves ids to a device, and {device!r} is none (ids stay integers). "
                "Give a device such as 'cpu' or 'cuda:0'."
            )
        for key, value in self.data.items():
            if callable(getattr(value, "to", None)):
                self.data[key] = value.to(device=device, non_blocking=non_blocking)
        return self


def to_python(value: Any) -> Any:
    """Return tensors and arrays as Python numbers and lists, also inside lists; anything else as it is."""
    if hasattr(value, "tolist"):
        return value.tolist()
    # By the set of types, which is much faster than a look at each item: lists of ids are long.
    if isinstance(value, (list, tuple)) and any(hasattr(kind, "tolist") for kind in set(map(type, value))):
        return [to_python(item) for item in value]
    return value


def _is_tensor(value: Any, kind: TensorType) -> bool:
    module = type(value).__module__.split(".")[0]
    return module == ("torch" if kind is TensorType.PYTORCH else "numpy") and hasattr(value, "shape")


def _as_tensor(value: Any, kind: TensorType) -> Any:
    import numpy

    # Through numpy in both cases: from a list of lists of ints it is several times as fast as torch.tensor.
    array = numpy.asarray(to_python(value))
    if array.size == 0 and array.dtype.kind == "f":
        array = array.astype(numpy.int64)
    if array.dtype.kind not in "iufb":
        raise ValueError("not numbers")
    if kind is TensorType.NUMPY:
        return array
    import torch

    return torch.from_numpy(array)


def _explain_ragged(key: str, value: Any) -> str:
    try:
        lengths = sorted({len(row) for row in value})
    except TypeError:
        lengths = []
    if len(lengths) > 1:
        return (
            f"Cannot make a tensor of {key!r}: its rows have different lengths, from {lengths[0]} to {lengths[-1]}. "
            "Use padding=True (and truncation=True with max_length to cut long ones)."
        )
    return (
        f"Cannot make a tensor of {key!r}: it is not made of numbers. "
        "Leave return_tensors out, or take this key out of the values first."
    )
