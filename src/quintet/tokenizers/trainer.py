"""Training of a byte-level BPE tokenizer, as GPT-2's is, on text files.

The result is what a published checkpoint carries: `tokenizer.json` and `tokenizer_config.json`. The same input always
gives the same files, byte for byte: pairs of equal count are merged in the order of their ids.
"""

from __future__ import annotations

import codecs
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from quintet.errors import TokenizerError
from quintet.hub import StagedFiles

__all__ = ["MAX_VOCAB_SIZE", "read_pieces", "save_bpe", "train_bpe", "train_bpe_from_iterator"]

ALPHABET_SIZE = 256
MAX_VOCAB_SIZE = 1_000_000
CHUNK_BYTES = 1 << 20
LONGEST_PIECE = 1 << 23  # characters; text without any white space is cut here
DEFAULT_SPECIAL_TOKENS = ("<|endoftext|>",)

# A cut before white space that follows a visible character never changes GPT-2's pre-tokens: white space either starts
# a pre-token or is one. (A cut anywhere else, at the ends of lines for example, would: "\n\n\n" is one thing.)
# The four listed characters are white space to everybody; Python's \s knows some more than the library's.
_SAFE_CUT = re.compile(r"(?<=\S)(?=[ \t\n\r])")


def train_bpe(
    files: Sequence[str | os.PathLike[str]],
    *,
    vocab_size: int,
    special_tokens: Sequence[str] = DEFAULT_SPECIAL_TOKENS,
    min_frequency: int = 2,
    model_max_length: int | None = None,
    show_progress: bool = False,
    output: str | os.PathLike[str] | None = None,
) -> Tokenizer:
    """Train a byte-level BPE on UTF-8 text files.

    Args:
        files: Text files, read as streams; a byte-order mark is dropped, line ends are kept as they are.
        vocab_size: Tokens in all: 256 bytes, merges, special tokens. A small text can give fewer.
        special_tokens: Added behind the merges, in this order (GPT-2 has `<|endoftext|>` last). Where they occur in the
            files they are boundaries and are not learnt.
        min_frequency: A pair that occurs less often is not merged.
        model_max_length: Written to tokenizer_config.json.
        show_progress: Draw progress bars on standard error.
        output: Folder to save to with `save_bpe`, made if it is not there.

    Returns:
        The trained `tokenizers.Tokenizer`.

    Raises:
        TokenizerError: A file is missing, empty or not UTF-8; the sizes make no sense.
    """
    paths = [Path(file) for file in files]
    if not paths:
        raise TokenizerError("train_bpe got no files; give at least one UTF-8 text file.")
    _check_sizes(vocab_size, special_tokens, min_frequency)
    for path in paths:
        _check_file(path)
    pieces = (piece for path in paths for piece in read_pieces(path))
    tokenizer = train_bpe_from_iterator(
        pieces,
        vocab_size=vocab_size,
        special_tokens=special_tokens,
        min_frequency=min_frequency,
        show_progress=show_progress,
    )
    if output is not None:
        save_bpe(tokenizer, output, special_tokens=special_tokens, model_max_length=model_max_length)
    return tokenizer


def train_bpe_from_iterator(
    texts: Iterable[str],
    *,
    vocab_size: int,
    special_tokens: Sequence[str] = DEFAULT_SPECIAL_TOKENS,
    min_frequency: int = 2,
    show_progress: bool = False,
    add_prefix_space: bool = False,
) -> Tokenizer:
    """Train a byte-level BPE on texts from memory; the arguments are those of `train_bpe`.

    Raises:
        TokenizerError: The sizes make no sense, a text is no string, or there is no text at all.
    """
    _check_sizes(vocab_size, special_tokens, min_frequency)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(special_tokens),
        min_frequency=min_frequency,
        special_tokens=[],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=show_progress,
    )
    counter = _Counted(_without_special(texts, special_tokens))
    tokenizer.train_from_iterator(counter, trainer=trainer)
    if counter.characters == 0:
        raise TokenizerError("There is no text to train a tokenizer on: every text is empty. Give some text.")
    return _with_special(tokenizer, special_tokens)


def save_bpe(
    tokenizer: Tokenizer,
    folder: str | os.PathLike[str],
    *,
    special_tokens: Sequence[str] = DEFAULT_SPECIAL_TOKENS,
    model_max_length: int | None = None,
) -> list[Path]:
    """Save a trained BPE as `tokenizer.json` and `tokenizer_config.json`; returns the two paths.

    The first special token becomes the beginning, end and unknown token, as `<|endoftext|>` is for GPT-2.
    """
    target = Path(folder)
    if target.exists() and not target.is_dir():
        raise TokenizerError(f"Cannot save a tokenizer to '{target}': it is a file. Give a folder.")
    target.mkdir(parents=True, exist_ok=True)
    config: dict[str, Any] = {"add_prefix_space": False, "clean_up_tokenization_spaces": False}
    if special_tokens:
        config.update(dict.fromkeys(("bos_token", "eos_token", "unk_token"), special_tokens[0]))
    if model_max_length is not None:
        config["model_max_length"] = model_max_length
    config["tokenizer_class"] = "GPT2Tokenizer" if special_tokens else "PreTrainedTokenizerFast"
    with StagedFiles(target) as staged:
        staged.write_text("tokenizer.json", tokenizer.to_str(pretty=True) + "\n")
        staged.write_text("tokenizer_config.json", json.dumps(dict(sorted(config.items())), indent=2) + "\n")
        staged.commit()
    return [target / "tokenizer.json", target / "tokenizer_config.json"]


def read_pieces(path: str | os.PathLike[str], chunk_bytes: int = CHUNK_BYTES) -> Iterator[str]:
    """Yield a UTF-8 file in pieces whose ends do not change GPT-2's pre-tokens.

    Raises:
        TokenizerError: The file cannot be read, or holds bytes that are not UTF-8 (it says where).
    """
    decoder = codecs.getincrementaldecoder("utf-8")("strict")
    text, consumed = "", 0
    try:
        with open(path, "rb") as stream:
            while True:
                block = stream.read(chunk_bytes)
                pending = len(decoder.getstate()[0])
                try:
                    text += decoder.decode(block, final=not block)
                except UnicodeDecodeError as error:
                    where = consumed - pending + error.start
                    byte = error.object[error.start]
                    raise TokenizerError(
                        f"'{path}' is not UTF-8 text: byte 0x{byte:02x} at position {where} ({error.reason}). "
                        "Convert the file to UTF-8 first (for example with iconv) or leave it out."
                    ) from None
                if consumed == 0:
                    text = text.removeprefix("\ufeff")
                consumed += len(block)
                if not block:
                    break
                cut = _last_cut(text)
                if cut:
                    yield text[:cut]
                    text = text[cut:]
    except OSError as error:
        raise TokenizerError(f"Cannot read '{path}': {error.strerror or error}. Give readable text files.") from None
    if text:
        yield text


def _last_cut(text: str) -> int:
    """The last safe cut in `text`, looked for from the end; 0 when there is none and the text is not too long."""
    end = len(text)
    step = 4096
    while end > 1:
        start = max(0, end - step)
        # One character of overlap on the left, so that the look-behind sees it.
        cuts = [match.start() for match in _SAFE_CUT.finditer(text, start, end)]
        if cuts and cuts[-1] > 0:
            return cuts[-1]
        end = start + 1 if start > 0 else 0
        step *= 2
    return len(text) if len(text) >= LONGEST_PIECE else 0


def _without_special(texts: Iterable[str], special_tokens: Sequence[str]) -> Iterator[str]:
    """Split texts at special tokens and drop those: they are never learnt as ordinary text."""
    pattern = re.compile("|".join(re.escape(token) for token in sorted(special_tokens, key=len, reverse=True)))
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise TokenizerError(f"Training text number {number} is of type {type(text).__name__}; give strings.")
        yield from (part for part in pattern.split(text) if part) if special_tokens else (text,)


def _with_special(tokenizer: Tokenizer, special_tokens: Sequence[str]) -> Tokenizer:
    """Append special tokens to the vocabulary itself, as GPT-2's has them, so that `vocab_size` counts them."""
    state = json.loads(tokenizer.to_str())
    vocabulary = state["model"]["vocab"]
    for token in special_tokens:
        vocabulary.setdefault(token, len(vocabulary))
    tokenizer = Tokenizer.from_str(json.dumps(state))
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special_tokens])
    return tokenizer


class _Counted:
    """Passes texts on and counts their characters."""

    def __init__(self, texts: Iterator[str]) -> None:
        self.texts = texts
        self.characters = 0

    def __iter__(self) -> Iterator[str]:
        for text in self.texts:
            self.characters += len(text)
            yield text


def _check_file(path: Path) -> None:
    if not path.exists():
        raise TokenizerError(f"There is no file '{path}' to train on. Check the path; wild cards are the shell's job.")
    if path.is_dir():
        raise TokenizerError(f"'{path}' is a folder. Name the text files in it one by one, for example {path}/*.txt.")
    if path.is_file() and path.stat().st_size == 0:
        raise TokenizerError(f"'{path}' is empty: nothing can be learnt from it. Leave it out or give another file.")


def _check_sizes(vocab_size: int, special_tokens: Sequence[str], min_frequency: int) -> None:
    for name, value in (("vocab_size", vocab_size), ("min_frequency", min_frequency)):
        if isinstance(value, bool) or not isinstance(value, int):
            raise TokenizerError(f"{name} must be an integer, not {value!r}.")
    if isinstance(special_tokens, str):
        raise TokenizerError(f"special_tokens must be a list of strings, not the string {special_tokens!r}.")
    for token in special_tokens:
        if not isinstance(token, str) or not token or re.search(r"\s", token):
            raise TokenizerError(f"A special token is a string without white space, not {token!r}.")
    if len(set(special_tokens)) != len(special_tokens):
        raise TokenizerError(f"special_tokens must differ from each other: {list(special_tokens)!r}.")
    least = ALPHABET_SIZE + len(special_tokens)
    if not least <= vocab_size <= MAX_VOCAB_SIZE:
        raise TokenizerError(
            f"vocab_size is {vocab_size}, but must be between {least} ({ALPHABET_SIZE} bytes and {len(special_tokens)} "
            f"special tokens) and {MAX_VOCAB_SIZE}. 4096 to 50257 are usual."
        )
    if min_frequency < 1:
        raise TokenizerError(f"min_frequency is {min_frequency}, but must be 1 or more; 2 is usual.")
