"""The half of the call API that leads from ids back to text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from quintet.tokenizers import decoding
from quintet.tokenizers.options import check_known
from quintet.tokenizers.saving import Saving
from quintet.tokenizers.stream import StreamDecoder

__all__ = ["IGNORED", "Detokenizer"]

# Taken for compatibility and without effect: they belong to other tokenizers or to the printing of warnings.
IGNORED = ("verbose", "spaces_between_special_tokens", "use_source_tokenizer")


class Detokenizer(Saving):
    """The part of a tokenizer that turns ids into tokens and text."""

    errors = "replace"
    clean_up_tokenization_spaces: bool
    _decoding: decoding.Decoding

    def convert_tokens_to_ids(self, tokens: str | Sequence[str]) -> Any:
        """Return the id of a token, or a list of ids; a token that is not in the vocabulary gets `unk_token_id`."""
        if isinstance(tokens, str):
            index = self._tokenizer.token_to_id(tokens)
            return self.unk_token_id if index is None else index
        unknown = self.unk_token_id
        found = map(self._tokenizer.token_to_id, tokens)
        return [unknown if index is None else index for index in found]

    def convert_ids_to_tokens(self, ids: Any, skip_special_tokens: bool = False) -> Any:
        """Return the token of an id, or the list of tokens of a list of ids.

        Raises:
            TokenizerError: An id is not in the vocabulary.
        """
        found = decoding.read_ids(ids)
        self._decoding.check(found)
        skipped = set(self.all_special_ids) if skip_special_tokens else set()
        tokens = [self._tokenizer.id_to_token(index) for index in found if index not in skipped]
        return tokens[0] if isinstance(ids, int) and tokens else tokens

    def convert_tokens_to_string(self, tokens: Sequence[str]) -> str:
        """Join tokens to the text that they stand for."""
        if self._tokenizer.decoder is None:
            return " ".join(tokens)
        return str(self._tokenizer.decoder.decode(list(tokens)))

    def decode(
        self,
        token_ids: Any,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Turn ids into text; a list of lists gives a list of texts.

        Args:
            token_ids: An id, ids, or lists of ids; a tensor or BatchEncoding of them.
            skip_special_tokens: Leave special tokens out.
            clean_up_tokenization_spaces: Remove the spaces before punctuation that word-level tokenizers leave. On a
                byte-level one this damages text, so there only an explicit True does it, not a setting in a file.

        Raises:
            TokenizerError: An id is not in the vocabulary; the message names it and the vocabulary's size.
        """
        if kwargs:
            check_known("decode", kwargs, IGNORED)
        ids = decoding.read_ids(token_ids)
        clean = self._cleans_up(clean_up_tokenization_spaces)
        if ids and isinstance(ids[0], (list, tuple)):
            return [self._text_of(row, skip_special_tokens, clean) for row in ids]
        return self._text_of(ids, skip_special_tokens, clean)

    def _text_of(self, ids: Sequence[Any], skip_special_tokens: bool, clean: bool) -> str:
        self._decoding.check(ids)
        text = self._decoding.text(ids, skip_special_tokens=skip_special_tokens, errors=self.errors)
        return decoding.clean_up(text) if clean else text

    def batch_decode(
        self,
        sequences: Any,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
        **kwargs: Any,
    ) -> list[str]:
        """Turn lists of ids into a list of texts; the options are those of `decode`."""
        texts = self.decode(sequences, skip_special_tokens, clean_up_tokenization_spaces, **kwargs)
        return [texts] if isinstance(texts, str) else texts

    def stream_decoder(self, skip_special_tokens: bool = False, **decode_kwargs: Any) -> StreamDecoder:
        """Return a decoder that takes one id at a time and gives text as soon as it is certain."""
        check_known("stream_decoder", decode_kwargs, ("clean_up_tokenization_spaces", "errors", *IGNORED))
        kept = {key: value for key, value in decode_kwargs.items() if key not in IGNORED}
        return StreamDecoder(self, skip_special_tokens, **kept)

    def token_bytes(self, token_id: int) -> bytes | None:
        """Return the bytes that a token stands for; None where the vocabulary is not byte-level.

        Raises:
            TokenizerError: The id is not in the vocabulary.
        """
        self._decoding.check([token_id])
        return self._decoding.token_bytes(token_id) if self._decoding.byte_level else None

    def clean_up_tokenization(self, text: str) -> str:
        """Remove the spaces before punctuation and in shortened words."""
        return decoding.clean_up(text)

    def _cleans_up(self, asked: bool | None) -> bool:
        return self.clean_up_tokenization_spaces and not self._decoding.byte_level if asked is None else asked
