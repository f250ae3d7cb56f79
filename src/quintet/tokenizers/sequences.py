"""The special tokens that stand around each text, and the room that they take."""

from __future__ import annotations

from collections.abc import Sequence

from quintet.errors import TokenizerError
from quintet.tokenizers import postprocess
from quintet.tokenizers.detokenize import Detokenizer

__all__ = ["Sequences"]


class Sequences(Detokenizer):
    """The part of a tokenizer that knows what a sequence of the model looks like."""

    _add_bos_token: bool
    _add_eos_token: bool
    _own_template: bool

    @property
    def add_bos_token(self) -> bool:
        """Whether texts begin with `bos_token`; may be set."""
        return self._add_bos_token

    @add_bos_token.setter
    def add_bos_token(self, value: bool) -> None:
        self._add_bos_token, self._own_template = bool(value), True
        self._special_tokens_changed()

    @property
    def add_eos_token(self) -> bool:
        """Whether texts end with `eos_token`; may be set."""
        return self._add_eos_token

    @add_eos_token.setter
    def add_eos_token(self, value: bool) -> None:
        self._add_eos_token, self._own_template = bool(value), True
        self._special_tokens_changed()

    def num_special_tokens_to_add(self, pair: bool = False) -> int:
        """Return how many special tokens a call puts around a text, or around a pair."""
        return int(self._tokenizer.num_special_tokens_to_add(pair))

    @property
    def max_len_single_sentence(self) -> int:
        """How many tokens of one text the model takes beside the special tokens."""
        return self.model_max_length - self.num_special_tokens_to_add(pair=False)

    @property
    def max_len_sentences_pair(self) -> int:
        """How many tokens of a pair of texts the model takes beside the special tokens."""
        return self.model_max_length - self.num_special_tokens_to_add(pair=True)

    def _special_tokens_changed(self) -> None:
        if self._own_template:
            bos = (self.bos_token, self.bos_token_id) if self._add_bos_token else None
            eos = (self.eos_token, self.eos_token_id) if self._add_eos_token else None
            with self._guard.changing():
                postprocess.set_template(self._tokenizer, bos=bos, eos=eos)

    def get_special_tokens_mask(
        self, token_ids_0: Sequence[int], token_ids_1: None = None, already_has_special_tokens: bool = False
    ) -> list[int]:
        """Return 1 for each id of a special token and 0 for the others.

        Raises:
            TokenizerError: The ids do not hold their special tokens yet; a call with return_special_tokens_mask=True
                is the way to mask those.
        """
        if not already_has_special_tokens or token_ids_1 is not None:
            raise TokenizerError(
                "get_special_tokens_mask works on finished sequences: pass already_has_special_tokens=True and one "
                "list of ids, or call the tokenizer with return_special_tokens_mask=True."
            )
        special = set(self.all_special_ids)
        return [int(index in special) for index in token_ids_0]
