"""The call API of every tokenizer: text in, BatchEncoding out, and back."""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from typing import Any, ClassVar

from tokenizers import Tokenizer

from quintet.errors import TokenizerError
from quintet.tokenizers import batch, decoding
from quintet.tokenizers.detokenize import IGNORED
from quintet.tokenizers.encoding import BatchEncoding
from quintet.tokenizers.engine import EncodeState, EngineGuard
from quintet.tokenizers.options import (
    VERY_LARGE_INTEGER,
    LengthOptions,
    PaddingStrategy,
    TensorType,
    TruncationStrategy,
    check_known,
    check_side,
    length_options,
)
from quintet.tokenizers.padding import as_columns, pad_columns, tensor_kind
from quintet.tokenizers.saving import clean_init
from quintet.tokenizers.sequences import Sequences
from quintet.tokenizers.templates import ChatTemplates, named_templates

__all__ = ["PreTrainedTokenizerBase"]

logger = logging.getLogger("quintet.tokenizers")

Text = str | Sequence[str] | Sequence[Sequence[str]]
Padding = bool | str | PaddingStrategy
Truncation = bool | str | TruncationStrategy | None
Tensors = str | TensorType | None


class PreTrainedTokenizerBase(ChatTemplates, Sequences):
    """What every tokenizer can do; `PreTrainedTokenizerFast` and `PreTrainedTokenizer` derive from it.

    Args:
        tokenizer_object: The `tokenizers.Tokenizer` that does the work.
        model_max_length: Longest sequence of the model; where padding or truncation needs a length and gets none.
        padding_side, truncation_side: "right" or "left".
        model_input_names: Keys of the result that are there unless asked otherwise.
        clean_up_tokenization_spaces: See `decode`.
        split_special_tokens: Encode special tokens in a text as ordinary text, unless a call says otherwise.
        chat_template: A Jinja template, or several by name; see `apply_chat_template`.
        extra_special_tokens: Special tokens without a name of their own, or a dict of names and tokens.
        **kwargs: `bos_token`, `eos_token`, `unk_token`, `sep_token`, `pad_token`, `cls_token`, `mask_token`,
            `add_bos_token`, `add_eos_token`, `added_tokens_decoder`; anything else is kept and saved again.

    Raises:
        TokenizerError: A value that cannot be used.
    """

    vocab_files_names: ClassVar[dict[str, str]] = {"tokenizer_file": "tokenizer.json"}
    is_fast = True
    pad_token_type_id = 0
    padding_side = "right"
    truncation_side = "right"

    def __init__(self, *, tokenizer_object: Tokenizer, **kwargs: Any) -> None:
        self._tokenizer = tokenizer_object
        self._guard = EngineGuard()
        self._decoding = decoding.Decoding(tokenizer_object)
        self._warned_too_long = False
        self._own_template = False  # whether add_bos_token or add_eos_token was asked for
        baked_padding = tokenizer_object.padding
        tokenizer_object.no_padding()
        tokenizer_object.no_truncation()
        init = clean_init(kwargs)
        self.init_kwargs = copy.deepcopy(init)
        self.name_or_path = str(init.pop("name_or_path", ""))
        if baked_padding and init.get("pad_token") is None:
            init["pad_token"] = baked_padding["pad_token"]
        self._init_special_tokens(init)
        limit = init.pop("model_max_length", init.pop("max_len", None))
        self.model_max_length = VERY_LARGE_INTEGER if limit is None else batch.whole_number("model_max_length", limit)
        self.padding_side = check_side("padding_side", init.pop("padding_side", self.padding_side))
        self.truncation_side = check_side("truncation_side", init.pop("truncation_side", self.truncation_side))
        self.model_input_names = batch.input_names(init.pop("model_input_names", None))
        self.clean_up_tokenization_spaces = bool(init.pop("clean_up_tokenization_spaces", False))
        self.split_special_tokens = bool(init.pop("split_special_tokens", False))
        self.chat_template = named_templates(init.pop("chat_template", None))
        self._add_bos_token = bool(init.get("add_bos_token", False))
        self._add_eos_token = bool(init.get("add_eos_token", False))
        self._own_template = "add_bos_token" in init or "add_eos_token" in init
        self._special_tokens_changed()

    # --- the engine ---------------------------------------------------------------------------------------------------

    @property
    def backend_tokenizer(self) -> Tokenizer:
        """The `tokenizers.Tokenizer` inside."""
        return self._tokenizer

    @property
    def vocab_size(self) -> int:
        """Size of the vocabulary without added tokens."""
        return int(self._tokenizer.get_vocab_size(with_added_tokens=False))

    def __len__(self) -> int:
        return int(self._tokenizer.get_vocab_size(with_added_tokens=True))

    def __bool__(self) -> bool:
        return True

    def get_vocab(self) -> dict[str, int]:
        """Return every token, added ones too, with its id."""
        return dict(self._tokenizer.get_vocab(with_added_tokens=True))

    @property
    def vocab(self) -> dict[str, int]:
        """The same as `get_vocab()`."""
        return self.get_vocab()

    def _vocabulary_changed(self) -> None:
        self._decoding = decoding.Decoding(self._tokenizer)

    # --- text to ids --------------------------------------------------------------------------------------------------

    def __call__(
        self,
        text: Text | None = None,
        text_pair: Text | None = None,
        text_target: Text | None = None,
        text_pair_target: Text | None = None,
        add_special_tokens: bool = True,
        padding: Padding = False,
        truncation: Truncation = None,
        max_length: int | None = None,
        stride: int = 0,
        is_split_into_words: bool = False,
        pad_to_multiple_of: int | None = None,
        padding_side: str | None = None,
        return_tensors: Tensors = None,
        return_token_type_ids: bool | None = None,
        return_attention_mask: bool | None = None,
        return_overflowing_tokens: bool = False,
        return_special_tokens_mask: bool = False,
        return_offsets_mapping: bool = False,
        return_length: bool = False,
        verbose: bool = True,
        **kwargs: Any,
    ) -> BatchEncoding:
        """Turn texts into ids.

        Args:
            text: A string, a list of strings (a batch), a list of pairs; with `is_split_into_words` a list of words,
                or a list of lists of words.
            text_pair: The second text of each pair, of the same form.
            text_target, text_pair_target: Texts whose ids become `labels`.
            add_special_tokens: Put the tokenizer's special tokens around each text.
            padding: False; True or "longest"; "max_length".
            truncation: False; True or "longest_first"; "only_first"; "only_second".
            max_length: Length for truncation and padding; given alone it truncates.
            stride: Tokens that neighbouring pieces share, with `return_overflowing_tokens`.
            is_split_into_words: The texts are words already.
            pad_to_multiple_of: Round padded lengths up to a multiple of this.
            padding_side: "left" or "right", for this call.
            return_tensors: "pt" for torch, "np" for numpy; always with a batch axis.
            return_token_type_ids, return_attention_mask: None: as `model_input_names` says.
            return_overflowing_tokens: Return what truncation cut off as further rows (`overflow_to_sample_mapping`).
            return_special_tokens_mask, return_offsets_mapping, return_length: Further keys of the result.
            verbose: Warn about contradictory or missing lengths.
            **kwargs: `split_special_tokens`, `add_prefix_space` (both for this call only).

        Returns:
            A BatchEncoding; one text gives flat lists, a batch gives lists of lists (batch, tokens).

        Raises:
            TokenizerError: Input that is no text (None, bytes, numbers, lone surrogates), options that are unknown or
                contradict each other, padding without a pad token.
        """
        if kwargs:
            kwargs = {**(kwargs.pop("tokenizer_kwargs", None) or {}), **kwargs}
            check_known("A tokenizer call", kwargs, ("split_special_tokens", "add_prefix_space", *IGNORED))
        if text is None and text_target is None:
            raise TokenizerError("A tokenizer call needs text; got None. Give a string or a list of strings.")
        options = length_options(
            model_max_length=self.model_max_length,
            default_side=self.padding_side,
            padding=padding,
            truncation=truncation,
            max_length=max_length,
            stride=stride,
            pad_to_multiple_of=pad_to_multiple_of,
            padding_side=padding_side,
            verbose=verbose,
        )
        wanted = batch.Wanted(
            token_type_ids=self._wants("token_type_ids", return_token_type_ids),
            attention_mask=self._wants("attention_mask", return_attention_mask),
            overflowing_tokens=return_overflowing_tokens,
            special_tokens_mask=return_special_tokens_mask,
            offset_mapping=return_offsets_mapping,
            length=return_length,
        )

        def encode(first: Text, second: Text | None) -> BatchEncoding:
            inputs = self._prepared(batch.read_inputs(first, second, is_split_into_words), wanted, **kwargs)
            added = self.num_special_tokens_to_add(second is not None) if add_special_tokens else 0
            state = self._encode_state(options, is_split_into_words, added, **kwargs)
            engine = self._tokenizer
            self._guard.enter(engine, state)
            try:
                rows = batch.encode_rows(engine, inputs, add_special_tokens)
            finally:
                self._guard.leave(engine)
            if options.max_length is None and verbose:
                self._warn_if_too_long(rows)
            return batch.collect(rows, wanted, inputs.is_batch, return_tensors, padded=state.padding is not None)

        if text is None or text_target is None:
            return encode(text, text_pair) if text is not None else encode(text_target or "", text_pair_target)
        result = encode(text, text_pair)
        result["labels"] = encode(text_target, text_pair_target)["input_ids"]
        return result

    def encode(
        self,
        text: Text,
        text_pair: Text | None = None,
        add_special_tokens: bool = True,
        padding: Padding = False,
        truncation: Truncation = None,
        max_length: int | None = None,
        stride: int = 0,
        padding_side: str | None = None,
        return_tensors: Tensors = None,
        **kwargs: Any,
    ) -> Any:
        """Return only the ids of what `__call__` returns; the options are the same."""
        return self(
            text,
            text_pair,
            add_special_tokens=add_special_tokens,
            padding=padding,
            truncation=truncation,
            max_length=max_length,
            stride=stride,
            padding_side=padding_side,
            return_tensors=return_tensors,
            **kwargs,
        )["input_ids"]

    def encode_plus(self, text: Text, text_pair: Text | None = None, **kwargs: Any) -> BatchEncoding:
        """Older name of calling the tokenizer with one text."""
        return self(text, text_pair, **kwargs)

    def batch_encode_plus(self, batch_text_or_text_pairs: Sequence[Any], **kwargs: Any) -> BatchEncoding:
        """Older name of calling the tokenizer with a list of texts, or of pairs."""
        return self(batch_text_or_text_pairs, **kwargs)

    def tokenize(
        self, text: Text, pair: Text | None = None, add_special_tokens: bool = False, **kwargs: Any
    ) -> list[str]:
        """Return the tokens of one text, as they are in the vocabulary."""
        return self(text, pair, add_special_tokens=add_special_tokens, **kwargs).tokens()

    def _prepared(self, inputs: batch.Inputs, wanted: batch.Wanted, **kwargs: Any) -> batch.Inputs:
        """Change texts before the engine sees them, for steps that the engine does not have."""
        return inputs

    def _wants(self, key: str, asked: bool | None) -> bool:
        return key in self.model_input_names if asked is None else asked

    def _encode_state(
        self,
        options: LengthOptions,
        is_split_into_words: bool,
        special_tokens: int,
        split_special_tokens: bool | None = None,
        add_prefix_space: bool | None = None,
        **_: Any,
    ) -> EncodeState:
        """Translate one call's options into the engine's state."""
        truncation = padding = None
        if options.truncation is not TruncationStrategy.DO_NOT_TRUNCATE and options.max_length is not None:
            room = options.max_length - special_tokens
            # The engine keeps room for its special tokens even in a call that adds none.
            least = min(room, options.max_length - self.num_special_tokens_to_add())
            if room < 0 or (options.stride and options.stride >= least):
                raise TokenizerError(
                    f"max_length={options.max_length} leaves room for {room} tokens of text beside {special_tokens} "
                    f"special tokens, and stride={options.stride} must be smaller than that. Use a larger max_length."
                )
            truncation = (options.max_length, options.stride, options.truncation.value, self.truncation_side)
        if options.padding is not PaddingStrategy.DO_NOT_PAD:
            length = options.max_length if options.padding is PaddingStrategy.MAX_LENGTH else None
            pad_token, pad_id = self._need_pad_token()
            multiple = options.pad_to_multiple_of
            padding = (length, options.padding_side, pad_id, pad_token, self.pad_token_type_id, multiple)
        split = self.split_special_tokens if split_special_tokens is None else split_special_tokens
        return EncodeState(truncation, padding, split, self._prefix_space(is_split_into_words, add_prefix_space))

    def _prefix_space(self, is_split_into_words: bool, asked: bool | None) -> bool | None:
        """What `add_prefix_space` must be for this call; None leaves the tokenizer's own setting."""
        del is_split_into_words
        return asked

    def _need_pad_token(self) -> tuple[str, int]:
        token, index = self.pad_token, self.pad_token_id
        if token is None:
            raise TokenizerError(
                "Padding needs a pad token and this tokenizer has none. Set one: tokenizer.pad_token = "
                "tokenizer.eos_token, or tokenizer.add_special_tokens({'pad_token': '<|pad|>'}) and resize the "
                "model's embeddings."
            )
        if index is None:
            raise TokenizerError(
                f"The pad token {token!r} is not in the vocabulary, so it has no id. Add it: "
                f"tokenizer.add_special_tokens({{'pad_token': {token!r}}}), and resize the model's embeddings."
            )
        return token, index

    def _warn_if_too_long(self, rows: Sequence[Any]) -> None:
        longest = 0 if self._warned_too_long else max(map(len, rows), default=0)
        if longest > self.model_max_length:
            self._warned_too_long = True
            logger.warning(
                "A text has %d tokens, more than the %d that this model takes; use truncation=True to cut it.",
                longest,
                self.model_max_length,
            )

    def pad(
        self,
        encoded_inputs: Any,
        padding: Padding = True,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        padding_side: str | None = None,
        return_attention_mask: bool | None = None,
        return_tensors: Tensors = None,
        verbose: bool = True,
    ) -> BatchEncoding:
        """Pad encodings that exist already to one length, as a data collator does.

        Args:
            encoded_inputs: A BatchEncoding or dict, of one row or many, or a list of them. Tensors are taken too, and
                come back as tensors.
            padding, max_length, pad_to_multiple_of, padding_side, return_attention_mask, return_tensors: As in a call.

        Raises:
            TokenizerError: No `input_ids`, keys that do not fit together, or no pad token.
        """
        options = length_options(
            model_max_length=self.model_max_length,
            default_side=self.padding_side,
            padding=padding,
            truncation=False,
            max_length=max_length,
            pad_to_multiple_of=pad_to_multiple_of,
            padding_side=padding_side,
            verbose=False,
        )
        main = self.model_input_names[0]
        columns = as_columns(encoded_inputs, main)
        pads = options.padding is not PaddingStrategy.DO_NOT_PAD
        pad_id = self._need_pad_token()[1] if pads else 0
        fill = {main: pad_id, "attention_mask": 0, "token_type_ids": self.pad_token_type_id, "special_tokens_mask": 1}
        with_mask = self._wants("attention_mask", return_attention_mask)
        kind = return_tensors or tensor_kind(columns[main])
        padded = pad_columns(columns, options, main=main, pad_values=fill, with_mask=with_mask)
        return BatchEncoding(padded, tensor_type=kind)

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(name_or_path={self.name_or_path!r}, vocab_size={self.vocab_size}, "
            f"model_max_length={self.model_max_length}, padding_side={self.padding_side!r}, "
            f"truncation_side={self.truncation_side!r}, special_tokens={self.special_tokens_map})"
        )
