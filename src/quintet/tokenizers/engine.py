"""The `tokenizers` library's object: made from files that nobody vouches for, and shared between threads.

The library keeps padding, truncation and a few other options as state of its object, and changing them while another
thread encodes fails ("Already borrowed") or gives that thread the wrong lengths. `EngineGuard` makes that safe.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from quintet.errors import QuintetError, TokenizerError
from quintet.hub import open_regular, read_json

__all__ = [
    "EncodeState",
    "EngineGuard",
    "bpe_engine",
    "byte_level_engine",
    "byte_values",
    "check_ids",
    "distinct_ids",
    "ids_are_dense",
    "is_byte_level",
    "load_tokenizer_json",
    "prefix_space",
    "set_prefix_space",
]

FILE_LIMIT = 256 * 1024 * 1024  # the largest published tokenizer.json is about 35 MB


class EncodeState(NamedTuple):
    """Everything that one encoding call needs from the engine's changeable state.

    Args:
        truncation: (max_length, stride, strategy, direction), or None.
        padding: (length or None, direction, pad id, pad token, pad type id, multiple), or None.
        split_special_tokens: Encode special tokens in the text as ordinary text.
        prefix_space: What the byte-level pre-tokenizer's `add_prefix_space` must be; None leaves it.
    """

    truncation: tuple[int, int, str, str] | None = None
    padding: tuple[int | None, str, int, str, int, int | None] | None = None
    split_special_tokens: bool = False
    prefix_space: bool | None = None

    def apply(self, engine: Tokenizer) -> bool | None:
        """Bring `engine` into this state; returns the pre-tokenizer's `add_prefix_space` to go back to, or None."""
        if self.truncation is None:
            if engine.truncation is not None:
                engine.no_truncation()
        else:
            max_length, stride, strategy, direction = self.truncation
            engine.enable_truncation(max_length, stride=stride, strategy=strategy, direction=direction)
        if self.padding is None:
            if engine.padding is not None:
                engine.no_padding()
        else:
            length, direction, pad_id, pad_token, pad_type_id, multiple = self.padding
            engine.enable_padding(
                length=length,
                direction=direction,
                pad_id=pad_id,
                pad_token=pad_token,
                pad_type_id=pad_type_id,
                pad_to_multiple_of=multiple,
            )
        if engine.encode_special_tokens != self.split_special_tokens:
            engine.encode_special_tokens = self.split_special_tokens
        if self.prefix_space is None:
            return None
        return set_prefix_space(engine, self.prefix_space)


class EngineGuard:
    """Lets calls that want the same `EncodeState` run side by side, and makes any other call wait for its turn."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._condition = threading.Condition(self._lock)
        self._state: EncodeState | None = None
        self._users = 0
        self._waiting = 0
        self._prefix_space: bool | None = None  # what the last user restores

    def enter(self, engine: Tokenizer, state: EncodeState) -> None:
        """Hold `engine` in `state` until `leave`, which must follow. Not a context manager: every call pays for one."""
        with self._lock:
            while self._users and self._state != state:
                self._wait()
            if not self._users:
                # Applied anew each time, not only when it differs from the last one: people may have changed
                # `backend_tokenizer` directly, and the comparison inside is cheap.
                self._state = None
                self._prefix_space = state.apply(engine)
                self._state = state
            self._users += 1

    def leave(self, engine: Tokenizer) -> None:
        """End what `enter` began."""
        with self._lock:
            self._users -= 1
            if not self._users:
                if self._prefix_space is not None:
                    set_prefix_space(engine, self._prefix_space)
                if self._waiting:
                    self._condition.notify_all()

    def _wait(self) -> None:
        self._waiting += 1
        try:
            self._condition.wait()
        finally:
            self._waiting -= 1

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Hold the engine alone, to add tokens or change its parts."""
        with self._lock:
            while self._users:
                self._wait()
            self._state = None
            yield

    def __reduce__(self) -> tuple[type[EngineGuard], tuple[()]]:
        return EngineGuard, ()  # locks can be neither copied nor pickled, and a copy has its own engine


# --- made from files --------------------------------------------------------------------------------------------------


def load_tokenizer_json(path: Path) -> Tokenizer:
    """Load a `tokenizer.json`.

    Raises:
        TokenizerError: It is not there, too large, not a regular file, or not what the `tokenizers` library reads.
    """
    data = _read_bytes(path, "tokenizer.json")
    try:
        engine = Tokenizer.from_buffer(data)  # bytes, not a string: no copy of many megabytes in between
    except BaseException as cause:
        if not _is_engine_fault(cause):
            raise
        _decode(data, path)
        words = str(cause).removeprefix("Cannot instantiate Tokenizer from buffer: ")[:300]
        raise TokenizerError(
            f"'{path}' is not a usable tokenizer.json: {words}. The file is damaged, or was written by a "
            "newer version of the 'tokenizers' package: get the file again or upgrade that package."
        ) from cause
    check_ids(engine, path)
    return engine


def bpe_engine(vocab_file: Path, merges_file: Path, **options: Any) -> Tokenizer:
    """Make a BPE, without anything before or after it, from a published pair of files.

    Args:
        vocab_file, merges_file: `vocab.json` and `merges.txt`.
        **options: Passed to the library's BPE: `unk_token`, `end_of_word_suffix`, ...

    Raises:
        TokenizerError: A file is missing, too large or damaged; a merge names a token that is not in the vocabulary;
            two tokens have one id.
    """
    for path, what in ((vocab_file, "vocab.json"), (merges_file, "merges.txt")):
        _check_file(path, what)
    try:
        # By paths: BPE.from_file does the same with one copy more, a tenth of the time.
        engine = Tokenizer(models.BPE(str(vocab_file), str(merges_file), **options))
    except BaseException as cause:
        if not _is_engine_fault(cause):
            raise
        raise TokenizerError(_explain_bpe_files(vocab_file, merges_file, cause)) from cause
    check_ids(engine, vocab_file)
    return engine


def byte_level_engine(
    vocab_file: Path, merges_file: Path, *, add_prefix_space: bool = False, trim_offsets: bool = False
) -> Tokenizer:
    """Make GPT-2's byte-level BPE from its published pair of files, `vocab.json` and `merges.txt`.

    Args:
        vocab_file, merges_file: The files.
        add_prefix_space: Put a space before a text that has none.
        trim_offsets: Leave the space before a word out of its token's offsets.

    Raises:
        TokenizerError: As `bpe_engine`.
    """
    engine = bpe_engine(vocab_file, merges_file)
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    engine.decoder = decoders.ByteLevel()
    engine.post_processor = processors.ByteLevel(trim_offsets=trim_offsets)
    return engine


def check_ids(engine: Tokenizer, path: Path) -> None:
    """Raise TokenizerError when `engine` has no tokens, two with the same id, or an id beyond all reason.

    Loading must be fast, so ids that end where they should are not looked at one by one; the first decoding does that.
    """
    size = engine.get_vocab_size(with_added_tokens=True)
    if size == 0:
        raise TokenizerError(f"'{path}' holds no tokens at all. The file is damaged; get it again.")
    if engine.id_to_token(size - 1) is not None and engine.id_to_token(size) is None:
        return
    ids = distinct_ids(engine, f"'{path}'")
    if max(ids) >= 2**31:
        raise TokenizerError(f"'{path}' uses the id {max(ids)}, but ids must be below {2**31}. The file is damaged.")


def distinct_ids(engine: Tokenizer, where: str) -> set[int]:
    """Return all ids; raise TokenizerError, with `where` in its words, when two tokens have the same."""
    vocabulary = engine.get_vocab(with_added_tokens=True)
    ids = set(vocabulary.values())
    if len(ids) != len(vocabulary):
        seen: dict[int, str] = {}
        for token, index in sorted(vocabulary.items()):
            if index in seen:
                raise TokenizerError(
                    f"{where} gives the id {index} to two tokens, {seen[index]!r} and {token!r}. "
                    "The file is damaged; get it again."
                )
            seen[index] = token
    return ids


def ids_are_dense(engine: Tokenizer) -> bool:
    """Whether the ids are exactly 0, 1, ..., size - 1, each of one token. Several times as fast as `get_vocab`."""
    size = engine.get_vocab_size(with_added_tokens=True)
    return None not in map(engine.id_to_token, range(size))


def _is_engine_fault(error: BaseException) -> bool:
    """Whether `error` comes from the Rust library; its panics derive from BaseException only."""
    return not isinstance(error, (QuintetError, MemoryError)) and (
        isinstance(error, Exception) or type(error).__name__ == "PanicException"
    )


def _check_file(path: Path, what: str) -> int:
    """Return the size of a regular file that is not too large."""
    import os

    if not path.exists():
        folder = path.parent
        there = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
        raise TokenizerError(
            f"There is no {what} at '{path}'. The folder holds: {', '.join(there[:12]) or 'nothing'}. "
            "A tokenizer needs tokenizer.json, or vocab.json and merges.txt."
        )
    descriptor = open_regular(path, TokenizerError)
    try:
        size = os.fstat(descriptor).st_size
    finally:
        os.close(descriptor)
    if size == 0:
        raise TokenizerError(f"'{path}' is empty. The file is damaged; get it again.")
    if size > FILE_LIMIT:
        raise TokenizerError(
            f"'{path}' has {size:,} bytes; a {what} of more than {FILE_LIMIT:,} is refused. Is it the right file?"
        )
    return size


def _read_bytes(path: Path, what: str) -> bytes:
    _check_file(path, what)
    return path.read_bytes()


def _decode(data: bytes, path: Path) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as cause:
        raise TokenizerError(
            f"'{path}' is not UTF-8 text (byte {cause.start}). The file is damaged; get it again."
        ) from cause


def _explain_bpe_files(vocab_file: Path, merges_file: Path, cause: BaseException) -> str:
    """Find in Python what the Rust library could not read, and say where."""
    vocabulary = read_json(vocab_file, limit=FILE_LIMIT, error=TokenizerError)
    for token, index in vocabulary.items():
        if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < 2**31:
            return (
                f"'{vocab_file}' gives the token {token!r} the id {index!r}, but ids are integers from 0 on. "
                "The file is damaged, or not a vocab.json; get it again."
            )
    lines = _decode(_read_bytes(merges_file, "merges.txt"), merges_file).split("\n")
    for number, line in enumerate(lines, start=1):
        if line.startswith("#version") or not line.strip():
            continue
        pair = line.rstrip("\r").split(" ")
        if len(pair) != 2:
            return f"'{merges_file}', line {number}: {line[:60]!r} is not two tokens with one space between them."
        for token in (*pair, "".join(pair)):
            if token not in vocabulary:
                return (
                    f"'{merges_file}', line {number} names the token {token!r}, which is not in '{vocab_file}'. "
                    "The two files do not belong together; get both from the same place."
                )
    return f"'{vocab_file}' and '{merges_file}' are not usable: {str(cause)[:300]}. Get them again."


# --- byte-level BPE ---------------------------------------------------------------------------------------------------


def prefix_space(engine: Tokenizer) -> bool | None:
    """Return `add_prefix_space` of the engine's ByteLevel pre-tokenizer; None where it has none."""
    found: Any = engine.pre_tokenizer
    if isinstance(found, pre_tokenizers.ByteLevel):
        return bool(found.add_prefix_space)
    if isinstance(found, pre_tokenizers.Sequence):
        steps = json.loads(found.__getstate__())["pretokenizers"]
        return next((bool(step["add_prefix_space"]) for step in steps if step["type"] == "ByteLevel"), None)
    return None


def set_prefix_space(engine: Tokenizer, value: bool) -> bool | None:
    """Set `add_prefix_space` of the engine's ByteLevel pre-tokenizer; returns what it was if that differs, else None.

    Raises:
        TokenizerError: True was asked for and there is no such pre-tokenizer.
    """
    before = prefix_space(engine)
    if before is None and value:
        raise TokenizerError(
            "add_prefix_space=True works only with a byte-level pre-tokenizer, which this tokenizer does not have. "
            "Put the space into the text."
        )
    if before is None or before == value:
        return None
    found: Any = engine.pre_tokenizer
    if isinstance(found, pre_tokenizers.ByteLevel):
        found.add_prefix_space = value
        return before
    # The steps of a Sequence cannot be changed in place with every release of the library: build it anew.
    state = json.loads(found.__getstate__())
    for step in state["pretokenizers"]:
        if step["type"] == "ByteLevel":
            step["add_prefix_space"] = value
    empty = json.loads(Tokenizer(models.BPE()).to_str())
    engine.pre_tokenizer = Tokenizer.from_str(json.dumps({**empty, "pre_tokenizer": state})).pre_tokenizer
    return before


def is_byte_level(engine: Tokenizer) -> bool:
    """Whether the tokens are bytes written as printable characters, so that decoding is joining bytes."""
    return isinstance(engine.decoder, decoders.ByteLevel)


@cache
def byte_values() -> dict[str, int]:
    """The byte that each of the 256 printable characters of a byte-level vocabulary stands for.

    Source: the GPT-2 release. Printable Latin-1 characters stand for themselves; the other bytes, in order, for the
    characters from U+0100 on.
    """
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(byte): byte for byte in plain}
    others = sorted(set(range(256)).difference(plain))
    table.update({chr(256 + number): byte for number, byte in enumerate(others)})
    return table
