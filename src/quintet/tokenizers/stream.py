"""Decoding token by token: text as soon as it is certain, in linear time."""

from __future__ import annotations

import codecs
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from quintet.errors import TokenizerError
from quintet.tokenizers.decoding import clean_up

if TYPE_CHECKING:
    from quintet.tokenizers.detokenize import Detokenizer

__all__ = ["StreamDecoder", "check_error_mode", "gap_after"]

REPLACEMENT = "\ufffd"
# No character of any encoding takes more tokens than it has bytes; what is still unfinished after that is broken.
LONGEST_CHARACTER = 8
# Cleaning up never reaches over the start of a space that follows a letter or digit: text before it is final.
_FINAL = re.compile(r"\w(?= )")


class StreamDecoder:
    """Feed ids with `put`, finish with `end`; all the pieces joined are what `decode` gives for all the ids.

    The bytes of a character that is split over several tokens are held back until it is whole, so that no replacement
    character appears in the middle. Get one from `tokenizer.stream_decoder(...)`.

    Args:
        tokenizer: The tokenizer.
        skip_special_tokens: Leave special tokens out.
        clean_up_tokenization_spaces: As in `decode`; text is then held back word by word.
        errors: What to do about bytes that are not UTF-8; None: as the tokenizer does.
    """

    def __init__(
        self,
        tokenizer: Detokenizer,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
        errors: str | None = None,
    ) -> None:
        self._decoding = tokenizer._decoding
        self._skip = self._decoding.special_ids if skip_special_tokens else set()
        self._errors = tokenizer.errors if errors is None else errors
        self._clean = tokenizer._cleans_up(clean_up_tokenization_spaces)
        self._bytes = codecs.getincrementaldecoder("utf-8")(self._errors)
        self._ids: list[int] = []  # only without byte level: ids that are needed to decode the next one
        self._context = 0  # how many characters of their text have been given out
        self._held = ""  # only with clean-up: text whose spaces may still go

    def put(self, token_id: int) -> str:
        """Take one id and return the text that has become certain, often an empty string.

        Raises:
            TokenizerError: The id is not in the vocabulary.
        """
        index = int(token_id)
        self._decoding.check([index])
        if index in self._skip:
            return ""
        if self._decoding.byte_level:
            return self._pass_on(self._bytes.decode(self._decoding.token_bytes(index)))
        return self._pass_on(self._put_by_context(index))

    def end(self) -> str:
        """Return what was held back; the decoder is then as new."""
        if self._decoding.byte_level:
            text = self._bytes.decode(b"", final=True)
            self._bytes.reset()
        else:
            text = self._text(self._ids)[self._context :]
            self._ids, self._context = [], 0
        text = self._held + text
        self._held = ""
        return clean_up(text) if self._clean else text

    def _put_by_context(self, index: int) -> str:
        """Decode the last few ids anew and return what the newest one added.

        A decoder that joins words or strips spaces needs the ids before; two pieces of text back are enough for it.
        """
        self._ids.append(index)
        text = self._text(self._ids)
        if text.endswith(REPLACEMENT) and len(self._ids) < LONGEST_CHARACTER:
            return ""
        if len(text) <= self._context:
            return ""
        piece = text[self._context :]
        last = self._ids[-1:]
        self._ids, self._context = last, len(self._text(last))
        return piece

    def _text(self, ids: list[int]) -> str:
        return self._decoding.text(ids, skip_special_tokens=False, errors=self._errors)

    def _pass_on(self, text: str) -> str:
        if not self._clean:
            return text
        searched = max(0, len(self._held) - 1)
        self._held += text
        ends = [match.end() for match in _FINAL.finditer(self._held, searched)]
        if not ends:
            return ""
        final, self._held = self._held[: ends[-1]], self._held[ends[-1] :]
        return clean_up(final)


def gap_after(tokenizer: Any, ids: Sequence[int]) -> str:
    """Return the space between a text and what goes on behind it, which the decoded pieces lack in some vocabularies.

    Where tokens end words and hold no space themselves (GPT-1), decoding joins words with spaces, but neither of two
    texts that are decoded apart has the space between them.

    Args:
        tokenizer: Any tokenizer with `decode`.
        ids: Ids of the text in front; the last one tells.
    """
    once, twice = (tokenizer.decode([*ids[-1:]] * times, clean_up_tokenization_spaces=False) for times in (1, 2))
    return " " if once and twice == f"{once} {once}" else ""


def check_error_mode(errors: str) -> str:
    """Return `errors` when Python knows it as a way to treat bytes that are not UTF-8.

    Raises:
        TokenizerError: It does not.
    """
    try:
        codecs.lookup_error(errors)
    except (LookupError, TypeError):
        raise TokenizerError(
            f"errors is {errors!r}, but must be a way to treat broken bytes: 'replace', 'ignore' or 'strict'."
        ) from None
    return errors
