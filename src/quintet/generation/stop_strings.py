"""Finding stop strings in tokens: which bytes a token stands for, and whether the last token completes a string.

Works from the tokens, not from decoded text: decoding the tail of a text may differ from the tail of the decoded text
(spaces after prefixes, characters whose bytes are split over tokens). Each token is looked up once, when it first
occurs, so nothing is computed for the rest of the vocabulary.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from quintet.errors import GenerationError

__all__ = ["StopStringMatcher", "TokenBytes"]

ANCHOR = "abcdef"


@lru_cache(maxsize=1)
def _byte_alphabet() -> dict[str, int]:
    """Return the byte of each character in which byte-level vocabularies are written (Radford et al. 2019).

    Printable Latin-1 characters stand for themselves; the other bytes, in order, for the characters from U+0100 on.
    """
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    other = [byte for byte in range(256) if byte not in plain]
    return {**{chr(byte): byte for byte in plain}, **{chr(0x100 + rank): byte for rank, byte in enumerate(other)}}


def _decoder_kinds(tokenizer: Any) -> set[str]:
    """Names of the decoders of a tokenizer that sits on the `tokenizers` library; empty for any other."""
    decoder = getattr(getattr(tokenizer, "backend_tokenizer", None), "decoder", None)
    if decoder is None:
        return set()
    kinds = {type(decoder).__name__}
    try:
        state = decoder.__getstate__()
        pending = [json.loads(state)]
    except (AttributeError, TypeError, ValueError):
        return kinds
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            if isinstance(value.get("type"), str):
                kinds.add(value["type"])
            pending.extend(value.values())
        elif isinstance(value, list):
            pending.extend(value)
    return kinds


class TokenBytes:
    """The bytes that each token id adds to a text.

    Args:
        tokenizer: Anything with `convert_ids_to_tokens`, `convert_tokens_to_string` and a call that gives `input_ids`.
    """

    def __init__(self, tokenizer: Any) -> None:
        for needed in ("convert_ids_to_tokens", "convert_tokens_to_string"):
            if not hasattr(tokenizer, needed):
                raise GenerationError(
                    f"stop strings need a tokenizer with {needed}(), and {type(tokenizer).__name__} has none. Pass the "
                    "model's tokenizer as tokenizer=..."
                )
        self._tokenizer = tokenizer
        kinds = _decoder_kinds(tokenizer)
        self._fallback = "ByteFallback" in kinds
        self._byte_level = "ByteLevel" in kinds and not self._fallback
        self._known: dict[int, bytes] = {}
        self._anchor: list[str] | None = None

    def __getitem__(self, token: int) -> bytes:
        found = self._known.get(token)
        if found is None:
            found = self._known[token] = self._look_up(token)
        return found

    def _look_up(self, token: int) -> bytes:
        try:
            text = self._tokenizer.convert_ids_to_tokens(token)
        except (IndexError, KeyError, OverflowError, ValueError):
            text = None
        if not isinstance(text, str):
            return b""  # an id outside the tokenizer's vocabulary stands for nothing
        if self._byte_level:
            alphabet = _byte_alphabet()
            if all(char in alphabet for char in text):
                return bytes(alphabet[char] for char in text)
        if self._fallback and len(text) == 6 and text.startswith("<0x") and text.endswith(">"):
            try:
                return bytes([int(text[3:5], 16)])
            except ValueError:
                pass  # a token that only looks like a byte
        return self._spelled(text)

    def _spelled(self, text: str) -> bytes:
        """Spell a token after a fixed text: alone, it could lose the space or the marks it begins with."""
        if self._anchor is None:
            ids = self._tokenizer(ANCHOR, add_special_tokens=False)["input_ids"]
            self._anchor = [self._tokenizer.convert_ids_to_tokens(one) for one in ids]
        joined = str(self._tokenizer.convert_tokens_to_string([*self._anchor, text]))
        at = joined.find(ANCHOR)
        return (joined[at + len(ANCHOR) :] if at >= 0 else text).encode("utf-8")


class StopStringMatcher:
    """Tells whether a row of tokens ends with a token that completes a stop string.

    Args:
        tokenizer: See TokenBytes.
        stop_strings: None of them empty.

    Raises:
        GenerationError: no strings, an empty one, or one that is no string.
    """

    def __init__(self, tokenizer: Any, stop_strings: Sequence[str]) -> None:
        if not stop_strings or not all(isinstance(one, str) and one for one in stop_strings):
            raise GenerationError(
                f"stop_strings is {list(stop_strings)!r}, but must be a string or a list of strings, none empty."
            )
        self._bytes = TokenBytes(tokenizer)
        self._stops = [one.encode("utf-8") for one in stop_strings]
        self.reach = max(len(one) for one in self._stops)

    def ends_with_stop(self, tokens: Sequence[int]) -> bool:
        """Whether an occurrence of a stop string has its end in the last token.

        Args:
            tokens: At least the last `reach` tokens of the row, or all there are.
        """
        last = self._bytes[tokens[-1]] if tokens else b""
        if not last:
            return False
        parts, size = [last], 0
        for token in reversed(tokens[:-1]):
            if size >= self.reach - 1:
                break
            part = self._bytes[token]
            parts.append(part)
            size += len(part)
        text = b"".join(reversed(parts))
        # A match that ends in the last token begins at most its own length - 1 before that token.
        return any(text.find(stop, max(0, size - len(stop) + 1)) >= 0 for stop in self._stops)
