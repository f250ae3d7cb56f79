"""Ids to text: checked ids, the bytes of each token, and the cases that the engine's own decoder gets wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tokenizers import Tokenizer

from quintet.errors import TokenizerError
from quintet.tokenizers.encoding import to_python
from quintet.tokenizers.engine import byte_values, distinct_ids, ids_are_dense, is_byte_level

__all__ = ["Decoding", "clean_up", "read_ids"]

INTEGERS = {int}
# In the order in which they are applied. Made for word-level tokenizers; on a byte-level one it loses spaces.
_CLEAN_UP = (
    (" .", "."),
    (" ?", "?"),
    (" !", "!"),
    (" ,", ","),
    (" ' ", "'"),
    (" n't", "n't"),
    (" 'm", "'m"),
    (" 's", "'s"),
    (" 've", "'ve"),
    (" 're", "'re"),
)


def clean_up(text: str) -> str:
    """Remove the spaces that English writes no space for: before punctuation and shortened words."""
    for wrong, right in _CLEAN_UP:
        text = text.replace(wrong, right)
    return text


def read_ids(value: Any) -> Any:
    """Return ids as a list, or a list of lists, from any of the forms they come in: int, list, tensor, encoding."""
    if type(value) is int:
        return [value]
    if type(value) is list and value and type(value[0]) is int:
        return value
    if isinstance(value, Mapping):
        if "input_ids" not in value:
            raise TokenizerError(f"Decoding a dict needs the key 'input_ids'; its keys are {list(value)}.")
        value = value["input_ids"]
    value = to_python(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return [value]
    if isinstance(value, (list, tuple)):
        return value
    raise TokenizerError(f"Token ids must be an integer, a list of integers or a tensor, not {type(value).__name__}.")


class Decoding:
    """What decoding needs to know about an engine's vocabulary; made anew when tokens are added."""

    def __init__(self, engine: Tokenizer) -> None:
        self.engine = engine
        self.byte_level = is_byte_level(engine)
        self.size = int(engine.get_vocab_size(with_added_tokens=True))
        added = engine.get_added_tokens_decoder()
        self.added = {index: str(token) for index, token in added.items()}
        self.special_ids = {index for index, token in added.items() if token.special}
        # The engine reads an added token as byte-level characters too, so that one such as "é" comes out damaged.
        unusual = [token for token in self.added.values() if not token.isascii()]
        self.engine_is_right = not any(byte_values().keys() >= set(token) for token in unusual)
        self._dense: bool | None = None
        self._known: set[int] | None = None
        self._bytes: dict[int, bytes] = {}

    def check(self, ids: Sequence[Any]) -> None:
        """Raise TokenizerError, with the id and the vocabulary's size, when something in `ids` is no token's id."""
        if len(ids) == 1:
            if type(ids[0]) is int and 0 <= ids[0] < self.size and self._is_dense():
                return
        elif not ids or (
            set(map(type, ids)) == INTEGERS and min(ids) >= 0 and max(ids) < self.size and self._is_dense()
        ):
            return
        known = self._all_ids()
        for position, index in enumerate(ids):
            if isinstance(index, bool) or not isinstance(index, int):
                raise TokenizerError(
                    f"Token ids must be integers; number {position} is {index!r} of type {type(index).__name__}."
                )
            if index not in known:
                hint = " Ids below 0 mark labels to ignore: take them out first." if index < 0 else ""
                raise TokenizerError(
                    f"There is no token with the id {index} (number {position} of {len(ids)}): the vocabulary has "
                    f"{self.size} tokens, with ids from {min(known)} to {max(known)}.{hint} "
                    "Does this tokenizer belong to the model?"
                )

    def text(self, ids: Sequence[int], *, skip_special_tokens: bool, errors: str) -> str:
        """Decode `ids`, which are checked already."""
        if self.byte_level and (errors != "replace" or not self.engine_is_right):
            kept = (index for index in ids if not (skip_special_tokens and index in self.special_ids))
            return b"".join(map(self.token_bytes, kept)).decode("utf-8", errors)
        return str(self.engine.decode(ids, skip_special_tokens=skip_special_tokens))

    def token_bytes(self, index: int) -> bytes:
        """Return the bytes that a token of a byte-level vocabulary stands for."""
        found = self._bytes.get(index)
        if found is None:
            token = self.added.get(index)
            if token is not None:
                found = token.encode("utf-8")
            else:
                token = str(self.engine.id_to_token(index))
                table = byte_values()
                if all(char in table for char in token):
                    found = bytes(table[char] for char in token)
                else:
                    found = token.encode("utf-8")
            self._bytes[index] = found
        return found

    def _is_dense(self) -> bool:
        dense = self._dense
        if dense is None:
            dense = self._dense = ids_are_dense(self.engine)
        return dense

    def _all_ids(self) -> set[int]:
        if self._known is None:
            self._known = distinct_ids(self.engine, "The vocabulary")
        return self._known
