"""A tokenizer as llguidance needs it: the bytes of every token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary, ref

import numpy as np

from quintet.errors import GenerationError
from quintet.generation.stop_strings import TokenBytes

__all__ = ["Vocabulary", "vocabulary_of"]

WORD_END = "</w>"
# A text of JSON in which a tokenizer that changes texts would be noticed.
PROBE = '{"a1": [-2.5e3, "b c\\n"], "d": null}'


class Vocabulary:
    """The tokens of a tokenizer.

    Args:
        tokenizer: Any tokenizer with `get_vocab`, `convert_ids_to_tokens` and a call that gives `input_ids`.

    Raises:
        GenerationError: its tokens do not spell the texts that they are decoded to.
    """

    def __init__(self, tokenizer: Any) -> None:
        known = {*tokenizer.get_vocab().values()}
        self.size = max(known) + 1
        added = getattr(tokenizer, "added_tokens_decoder", None) or {}
        self.special = {int(index) for index, token in added.items() if getattr(token, "special", False)}
        self.special |= {int(index) for index in getattr(tokenizer, "all_special_ids", None) or ()}
        names = tokenizer.convert_ids_to_tokens(list(range(self.size)))
        spelled = TokenBytes(tokenizer)

        # GPT-1 writes letters, and marks the ends of words, which stand for the spaces behind them.
        words = any(isinstance(name, str) and name.endswith(WORD_END) for name in names)

        def spell(index: int, name: Any) -> bytes:
            if index not in known or index in self.special:
                return b""
            return str(name).replace(WORD_END, " ").encode() if words else spelled[index]

        self.bytes = [spell(index, name) for index, name in enumerate(names)]
        self.text = np.array([bool(one) for one in self.bytes])
        """Which tokens are text, (V,)."""
        self._names = {index: str(tokenizer.convert_ids_to_tokens(index)) for index in self.special if index in known}
        self._tokenizer = ref(tokenizer)  # the table below must not keep it alive
        self.compiled: Any = None  # what the engine makes of it, when it is first needed
        ids = tokenizer(PROBE, add_special_tokens=False)["input_ids"]
        text = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        if self.spell(ids).rstrip() != text.encode().rstrip():
            raise GenerationError(
                f"the tokens of {type(tokenizer).__name__} spell {self.spell(ids)!r} one by one and {text!r} together, "
                "so that no answer could be held to a form. Use a model with a byte-level vocabulary, as GPT-2, "
                "GPT-NeoX, Seed-OSS and gpt-oss have."
            )

    def spell(self, ids: Sequence[int]) -> bytes:
        """Return the bytes of some tokens; special ones have none."""
        return b"".join(self.bytes[index] if index < self.size else b"" for index in ids)

    # What llguidance asks for.

    @property
    def tokens(self) -> list[bytes]:
        """The bytes of each token; a special one is its name behind a byte that no text has."""
        return [
            b"\xff" + self._names[index].encode() if index in self._names else one
            for index, one in enumerate(self.bytes)
        ]

    @property
    def special_token_ids(self) -> list[int]:
        """Ids of the special tokens."""
        return sorted(self._names)

    def __call__(self, text: str | bytes) -> list[int]:
        """Return the tokens of a text, which spell just that text."""
        decoded = text.decode("utf-8", "replace") if isinstance(text, bytes) else text
        tokenizer = self._tokenizer()
        ids: list[int] = [] if tokenizer is None else tokenizer(decoded, add_special_tokens=False)["input_ids"]
        return ids if self.spell(ids) == decoded.encode() else self._letters(decoded.encode())

    def _letters(self, text: bytes) -> list[int]:
        """The longest token that fits, again and again."""
        by_bytes = {one: index for index, one in enumerate(self.bytes) if one}
        longest = max(map(len, by_bytes), default=1)
        ids: list[int] = []
        place = 0
        while place < len(text):
            fits = (by_bytes.get(text[place : place + size]) for size in range(longest, 0, -1))
            found = next((one for one in fits if one is not None), None)
            if found is None:
                return ids
            ids.append(found)
            place += len(self.bytes[found])
        return ids


_KNOWN: WeakKeyDictionary[Any, tuple[int, Vocabulary]] = WeakKeyDictionary()


def vocabulary_of(tokenizer: Any) -> Vocabulary:
    """Return the vocabulary of a tokenizer, which is read once: a large one takes a second."""
    size = len(tokenizer) if hasattr(tokenizer, "__len__") else len(tokenizer.get_vocab())
    try:
        known = _KNOWN.get(tokenizer)
    except TypeError:  # a tokenizer that cannot be looked up
        return Vocabulary(tokenizer)
    if known is None or known[0] != size:
        known = (size, Vocabulary(tokenizer))
        _KNOWN[tokenizer] = known
    return known[1]
