"""Reading what is evaluated: JSON lines with texts, and plain texts. No torch here."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterator
from typing import IO, Any

from quintet.errors import InputError

__all__ = ["read_records", "read_text"]

# So that /dev/zero, an endless pipe and a wrong file do not fill the memory.
MAX_LINE_BYTES = 16 * 2**20
MAX_TEXT_BYTES = 256 * 2**20


def read_records(file: str | os.PathLike[str], limit: int | None = None) -> list[str]:
    """Return the texts of a JSON-lines file: the field "text" of the object in each line. Empty lines are passed over.

    Args:
        file: Path.
        limit: Read this many texts at most.

    Raises:
        InputError: the file is not there or empty, or a line is not UTF-8, not an object, or has no text; the message
            names the line.
    """
    with _open(file) as stream:
        texts = list(itertools.islice(_texts(str(file), stream), limit))
    if not texts:
        raise InputError(f"'{file}' is empty. Each line must be a JSON object with the field \"text\".")
    return texts


def read_text(file: str | os.PathLike[str], limit: int | None = None) -> str:
    """Return a UTF-8 text as it is, without the byte-order mark that some editors put at its beginning.

    Args:
        file: Path.
        limit: Read this many lines at most.

    Raises:
        InputError: the file is not there, larger than 256 MiB, empty or not UTF-8.
    """
    with _open(file) as stream:
        data = stream.read(MAX_TEXT_BYTES + 1) if limit is None else b"".join(itertools.islice(stream, limit))
    if len(data) > MAX_TEXT_BYTES:
        raise InputError(f"'{file}' is larger than {MAX_TEXT_BYTES >> 20} MiB. Split it, or take its first lines only.")
    text = _decoded(data, f"'{file}'")
    if not text.strip():
        raise InputError(f"'{file}' holds no text. Give a file with at least a word.")
    return text


def _open(file: str | os.PathLike[str]) -> IO[bytes]:
    if os.path.isdir(file):
        raise InputError(f"'{file}' is a folder. Give the file in it.")
    try:
        return open(file, "rb")
    except FileNotFoundError:
        raise InputError(f"there is no file '{file}'. Check the path.") from None
    except ValueError:  # a path with a NUL character
        raise InputError(f"{str(file)!r} is not a path. Give the file's name.") from None


def _texts(name: str, stream: IO[bytes]) -> Iterator[str]:
    for number in itertools.count(1):
        data = stream.readline(MAX_LINE_BYTES + 1)
        if not data:
            return
        where = f"'{name}', line {number}"
        if len(data) > MAX_LINE_BYTES:
            raise InputError(f"{where} is longer than {MAX_LINE_BYTES >> 20} MiB. Give one record in each line.")
        line = _decoded(data, where)
        if line.strip():
            yield _text(line, where)


def _text(line: str, where: str) -> str:
    try:
        record: Any = json.loads(line)
    except (ValueError, RecursionError):
        raise InputError(f'{where} is not JSON: {line.strip()[:40]!r}. Give {{"text": "..."}} in each line.') from None
    if not isinstance(record, dict):
        raise InputError(f'{where} is a JSON {type(record).__name__}, not an object. Give {{"text": "..."}}.')
    if "text" not in record:
        found = ", ".join(repr(name) for name in [*record][:5]) or "nothing"
        raise InputError(f"{where} has no field 'text'; it has {found}. Name the passage 'text'.")
    text = record["text"]
    if not isinstance(text, str) or not text.strip():
        raise InputError(f"{where}: 'text' is {str(text)[:40]!r}, but must be a text of at least one word.")
    return text


def _decoded(data: bytes, where: str) -> str:
    try:
        return data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{where} is not UTF-8 text: byte {error.start} is 0x{data[error.start]:02x}. Convert it to UTF-8."
        ) from None
