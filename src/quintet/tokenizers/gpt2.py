"""GPT-2's tokenizers: byte-level BPE, 50,257 tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from tokenizers import AddedToken, Tokenizer

from quintet.errors import TokenizerError
from quintet.tokenizers.engine import byte_level_engine, load_tokenizer_json
from quintet.tokenizers.fast import PreTrainedTokenizer, PreTrainedTokenizerFast
from quintet.tokenizers.stream import check_error_mode

__all__ = ["GPT2Tokenizer", "GPT2TokenizerFast"]

Token = str | AddedToken
FILES = {"vocab_file": "vocab.json", "merges_file": "merges.txt", "tokenizer_file": "tokenizer.json"}


class GPT2Tokenizer(PreTrainedTokenizer):
    """GPT-2's tokenizer, with the arguments of the pure Python class (the engine is the fast one).

    A space belongs to the word after it, so a word at the start of a text is another token than the same word later:
    `tokenizer("Hello world")` gives [15496, 995], and " Hello world" gives [18435, 995].

    Args:
        vocab_file: `vocab.json`.
        merges_file: `merges.txt`.
        errors: What to do about bytes that are not UTF-8 when decoding; see `bytes.decode`.
        unk_token: What a token that is not in the vocabulary is converted to.
        bos_token, eos_token: Beginning and end of a text.
        pad_token: For padding; GPT-2 has none of its own.
        add_prefix_space: Put a space before a text that has none, so that its first word is like any other word. May
            also be passed in a call. With `is_split_into_words=True` every word gets one.
        add_bos_token: Put `bos_token` before every text.
        **kwargs: As for `PreTrainedTokenizer`; `tokenizer_file` (a tokenizer.json) wins over the other two files.

    Raises:
        TokenizerError: Files are missing or damaged.
    """

    vocab_files_names: ClassVar[dict[str, str]] = FILES
    _kept_as_null: ClassVar[tuple[str, ...]] = ("unk_token", "bos_token", "eos_token")

    def __init__(
        self,
        vocab_file: str | None,
        merges_file: str | None,
        errors: str = "replace",
        unk_token: Token | None = "<|endoftext|>",
        bos_token: Token | None = "<|endoftext|>",
        eos_token: Token | None = "<|endoftext|>",
        pad_token: Token | None = None,
        add_prefix_space: bool = False,
        add_bos_token: bool = False,
        **kwargs: Any,
    ) -> None:
        self.errors = check_error_mode(errors)
        engine = _engine(type(self).__name__, vocab_file, merges_file, kwargs.pop("tokenizer_file", None))
        if add_bos_token:
            kwargs["add_bos_token"] = True
        if errors != "replace":
            kwargs["errors"] = errors
        kwargs.update(unk_token=unk_token, bos_token=bos_token, eos_token=eos_token, pad_token=pad_token)
        self._finish(engine, {"add_prefix_space": add_prefix_space, **kwargs})

    def _prefix_space(self, is_split_into_words: bool, asked: bool | None) -> bool | None:
        return True if is_split_into_words else asked


class GPT2TokenizerFast(PreTrainedTokenizerFast):
    """GPT-2's tokenizer.

    Args:
        vocab_file, merges_file: `vocab.json` and `merges.txt`.
        tokenizer_file: `tokenizer.json`; wins over the other two.
        unk_token: What a token that is not in the vocabulary is converted to.
        bos_token, eos_token: Beginning and end of a text.
        add_prefix_space: Put a space before a text that has none, so that its first word is like any other word.
            `is_split_into_words=True` needs it.
        **kwargs: As for `PreTrainedTokenizerFast`; `add_bos_token=True` puts `bos_token` before every text.

    Raises:
        TokenizerError: Files are missing or damaged.
    """

    vocab_files_names: ClassVar[dict[str, str]] = FILES
    _kept_as_null: ClassVar[tuple[str, ...]] = ("unk_token", "bos_token", "eos_token")
    slow_tokenizer_class = GPT2Tokenizer

    def __init__(
        self,
        vocab_file: str | None = None,
        merges_file: str | None = None,
        tokenizer_file: str | None = None,
        unk_token: Token | None = "<|endoftext|>",
        bos_token: Token | None = "<|endoftext|>",
        eos_token: Token | None = "<|endoftext|>",
        add_prefix_space: bool = False,
        **kwargs: Any,
    ) -> None:
        kwargs.pop("errors", None)  # in the file of a GPT2Tokenizer; the library always replaces
        engine = _engine(type(self).__name__, vocab_file, merges_file, tokenizer_file)
        kwargs.update(unk_token=unk_token, bos_token=bos_token, eos_token=eos_token)
        self._finish(engine, {"add_prefix_space": add_prefix_space, **kwargs})

    def _prefix_space(self, is_split_into_words: bool, asked: bool | None) -> bool | None:
        if is_split_into_words and not (self.add_prefix_space if asked is None else asked):
            raise TokenizerError(
                f"is_split_into_words=True needs add_prefix_space=True when the {type(self).__name__} is made, for "
                "example with from_pretrained(..., add_prefix_space=True): without it the words would be run together."
            )
        return asked


def _engine(owner: str, vocab_file: str | None, merges_file: str | None, tokenizer_file: str | None) -> Tokenizer:
    if tokenizer_file is not None:
        return load_tokenizer_json(Path(tokenizer_file))
    if vocab_file is None or merges_file is None:
        raise TokenizerError(
            f"{owner} needs vocab_file and merges_file, or tokenizer_file; got vocab_file={vocab_file!r}, "
            f"merges_file={merges_file!r}. To load a folder, use {owner}.from_pretrained(folder)."
        )
    return byte_level_engine(Path(vocab_file), Path(merges_file))
