"""GPT-NeoX's tokenizer: byte-level BPE as GPT-2's, with tokens for runs of spaces."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from tokenizers import AddedToken, Tokenizer, normalizers

from quintet.errors import TokenizerError
from quintet.tokenizers.engine import byte_level_engine, load_tokenizer_json
from quintet.tokenizers.fast import PreTrainedTokenizerFast
from quintet.tokenizers.postprocess import set_trim_offsets

__all__ = ["GPTNeoXTokenizerFast"]

Token = str | AddedToken


class GPTNeoXTokenizerFast(PreTrainedTokenizerFast):
    """GPT-NeoX-20B's tokenizer, and that of the Pythia models.

    A space belongs to the word after it, so a word at the start of a text is another token than the same word later.
    Runs of 2 to 24 spaces are one token each. Texts are brought into Unicode's NFC form first.

    Args:
        vocab_file, merges_file: `vocab.json` and `merges.txt`.
        tokenizer_file: `tokenizer.json`, as it is published; wins over the other two.
        unk_token: What a token that is not in the vocabulary is converted to.
        bos_token, eos_token: Beginning and end of a text.
        add_prefix_space: Put a space before a text that has none, so that its first word is like any other word.
            `is_split_into_words=True` needs it.
        **kwargs: As for `PreTrainedTokenizerFast`; `pad_token`: the published vocabulary has `<|padding|>` for it;
            `trim_offsets`: whether offsets leave out the space before a word (as a tokenizer.json says, else True);
            `add_bos_token=True` puts `bos_token` before every text.

    Raises:
        TokenizerError: Files are missing or damaged.
    """

    vocab_files_names: ClassVar[dict[str, str]] = {
        "vocab_file": "vocab.json",
        "merges_file": "merges.txt",
        "tokenizer_file": "tokenizer.json",
    }
    _kept_as_null: ClassVar[tuple[str, ...]] = ("unk_token", "bos_token", "eos_token")

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
        kwargs.pop("errors", None)  # the library always replaces
        engine = _engine(type(self).__name__, vocab_file, merges_file, tokenizer_file)
        if kwargs.get("trim_offsets") is not None:
            set_trim_offsets(engine, bool(kwargs["trim_offsets"]))
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
    engine = byte_level_engine(Path(vocab_file), Path(merges_file), trim_offsets=True)
    engine.normalizer = normalizers.NFC()
    return engine
