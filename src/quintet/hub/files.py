"""Reading files that nobody vouches for, and writing files so that nothing is ever half there."""

from __future__ import annotations

import errno
import json
import os
import secrets
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from quintet.errors import CheckpointError, ConfigError, HubError, QuintetError

__all__ = [
    "StagedFiles",
    "open_regular",
    "parse_json_object",
    "read_json",
    "safe_join",
    "write_json_atomic",
    "write_text_atomic",
]

JSON_LIMIT = 64 * 1024 * 1024
_WINDOWS_DEVICES = {"CON", "PRN", "AUX", "NUL"} | {f"{kind}{n}" for kind in ("COM", "LPT") for n in range(1, 10)}


# --- reading ----------------------------------------------------------------------------------------------------------


def safe_join(folder: str | os.PathLike[str], name: object) -> Path:
    """Return `folder/name` for a file name that came out of an index or configuration, and so is not trusted.

    The name must be one plain base name, and what it points at, symbolic links followed, a regular file inside the
    folder. In a snapshot of the Hugging Face cache, links into the `blobs` of the same model are its normal form.

    Raises:
        CheckpointError: The name could reach anything else. A file that does not exist is not an error here.
    """
    folder = Path(folder)
    fault = _name_fault(name)
    if fault or not isinstance(name, str):
        raise CheckpointError(
            f"The file name {name!r}, given by a file in '{folder}', is refused: {fault}. A plain file name inside "
            "that folder is allowed, nothing else. The checkpoint is damaged or hostile; get it again."
        )
    path = folder / name
    real = Path(os.path.realpath(path))
    roots = [Path(os.path.realpath(folder))]
    for parent in roots[0].parents:
        if parent.name == "snapshots" and parent.parent.name.startswith("models--"):
            roots.append(parent.parent / "blobs")
            break
    if not any(root in real.parents for root in roots):
        raise CheckpointError(
            f"The file '{name}' in '{folder}' is a link that leads out of the folder (to '{real}'), which is refused. "
            "Replace the link by the file itself."
        )
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return path
    except OSError as error:
        raise CheckpointError(f"The file '{path}' cannot be looked at: {error.strerror or error}.") from error
    if not stat.S_ISREG(mode):
        raise CheckpointError(f"'{path}' is not a regular file (a folder, device, socket or pipe), which is refused.")
    return path


def _name_fault(name: object) -> str:
    if not isinstance(name, str):
        return f"it is of type {type(name).__name__}, not a string"
    if not name or name in (".", ".."):
        return "it is empty or a folder"
    if any(ord(char) < 32 for char in name):
        return "it holds a control character or NUL"
    if "/" in name or "\\" in name or os.path.isabs(name):
        return "it holds a folder separator"
    if ":" in name or name.split(".")[0].upper() in _WINDOWS_DEVICES:
        return "it names a drive, a stream or a device"
    if len(os.fsencode(name.encode("utf-8", "replace").decode())) > 255:
        return "it is longer than 255 bytes"
    if any(0xD800 <= ord(char) < 0xE000 for char in name):
        return "it is not valid Unicode"
    return ""


def open_regular(path: str | os.PathLike[str], error: type[QuintetError] = CheckpointError) -> int:
    """Open a regular file for reading and return its descriptor; a pipe or device is refused without blocking.

    Raises:
        HubError: There is no such file.
        QuintetError: (of the type `error`) It cannot be opened or is not a regular file.
    """
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
    try:
        descriptor = os.open(path, flags)
    except FileNotFoundError as cause:
        raise HubError(_missing_file_words(Path(path))) from cause
    except (OSError, ValueError) as cause:
        raise error(f"The file '{path}' cannot be opened: {cause}.") from cause
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise error(f"'{path}' is not a regular file (a folder, device, socket or pipe), which is refused.")
    return descriptor


def _missing_file_words(path: Path) -> str:
    if not path.parent.is_dir():
        return f"There is no folder '{path.parent}', so no file '{path.name}' either. Check the path."
    there = sorted(entry.name for entry in path.parent.iterdir())
    shown = ", ".join(there[:12]) + (f", ... ({len(there)} files)" if len(there) > 12 else "")
    return f"There is no file '{path.name}' in '{path.parent}'. The folder holds: {shown or 'nothing'}."


def read_json(
    path: str | os.PathLike[str], *, limit: int = JSON_LIMIT, error: type[QuintetError] = ConfigError
) -> dict[str, Any]:
    """Read a JSON object from a file of at most `limit` bytes.

    Raises:
        HubError: There is no such file.
        QuintetError: (of the type `error`) Too large, not UTF-8, not JSON, not an object, or a key given twice.
    """
    path = Path(path)
    with os.fdopen(open_regular(path, error), "rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise error(f"'{path}' is larger than {limit:,} bytes, which no file of its kind is. It is damaged or hostile.")
    return parse_json_object(data, f"'{path}'", error)


def parse_json_object(data: bytes, what: str, error: type[QuintetError]) -> dict[str, Any]:
    """Parse UTF-8 JSON that must be an object without duplicate keys; `what` names it in the errors."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            seen: set[str] = set()
            twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
            raise error(f"{what} gives the key {twice!r} twice, so it is not clear which one is meant. Remove one.")
        return found

    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=unique)
    except QuintetError:
        raise
    except UnicodeDecodeError as cause:
        raise error(f"{what} is not UTF-8 text (byte {cause.start}). The file is damaged; get it again.") from cause
    except RecursionError as cause:
        raise error(f"{what} is nested too deeply to be what it should be. The file is damaged or hostile.") from cause
    except ValueError as cause:
        hint = " It is empty." if not data.strip() else ""
        raise error(f"{what} is not JSON: {str(cause)[:200]}.{hint} Repair the file or get it again.") from cause
    if not isinstance(value, dict):
        raise error(f"{what} holds a JSON {type(value).__name__}, and an object ({{...}}) is needed.")
    return value


# --- writing ----------------------------------------------------------------------------------------------------------


class StagedFiles:
    """Files written beside their final names, and all renamed together once every one of them is complete.

    Use as a context manager: `path(name)` gives the temporary path to write, `commit()` makes them real. When the
    block ends without `commit()`, by an error or Ctrl-C or a full disk, the temporary files go away and whatever was
    in the folder stays as it was.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self._pending: dict[str, Path] = {}

    def __enter__(self) -> StagedFiles:
        return self

    def __exit__(self, *exc: object) -> None:
        for temporary in self._pending.values():
            temporary.unlink(missing_ok=True)
        self._pending.clear()

    def path(self, name: str) -> Path:
        """Register `name` and return the temporary path, in the folder it will be in, to write its contents to."""
        final = self.folder / name
        temporary = final.with_name(f".{final.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
        self._pending[name] = temporary
        return temporary

    def write_text(self, name: str, text: str) -> None:
        """Stage a UTF-8 text file."""
        with open(self.path(name), "x", encoding="utf-8", newline="\n") as file:
            file.write(text)

    def commit(self, *, first: Iterable[str] = (), remove: Iterable[str] = ()) -> None:
        """Make the staged files real: flush them to the disk, delete `first`, rename in order, delete `remove`."""
        for name, temporary in self._pending.items():
            if (self.folder / name).is_dir():
                raise IsADirectoryError(errno.EISDIR, f"'{name}' is a folder there, and a file is to be written")
            _sync(temporary)
        interrupt: BaseException | None = None
        steps = [("", name) for name in first] + [("rename", name) for name in self._pending]
        steps += [("", name) for name in remove]
        # Renaming takes microseconds; a Ctrl-C in the middle is kept until the set of files is whole again.
        while steps:
            try:
                self._step(*steps[0])
                steps.pop(0)
            except KeyboardInterrupt as caught:
                interrupt = caught
        self._pending.clear()
        _sync(self.folder)
        if interrupt is not None:
            raise interrupt

    def _step(self, action: str, name: str) -> None:
        if action != "rename":
            (self.folder / name).unlink(missing_ok=True)
        elif self._pending[name].exists():  # gone when an interrupt came between the rename and the next line
            os.replace(self._pending[name], self.folder / name)


def _sync(path: Path) -> None:
    """Flush a file or a folder to the disk; a folder which cannot be flushed (Windows, some shares) is let be."""
    is_folder = path.is_dir()
    try:
        descriptor = os.open(path, os.O_RDONLY if is_folder else os.O_RDWR)
    except PermissionError:
        if is_folder:
            return
        raise
    try:
        os.fsync(descriptor)
    except OSError:
        if not is_folder:
            raise
    finally:
        os.close(descriptor)


def write_text_atomic(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file so that a reader, a crash or a full disk sees the old contents or the new, never a part."""
    path = Path(path)
    with StagedFiles(path.parent) as staged:
        staged.write_text(path.name, text)
        staged.commit()


def write_json_atomic(path: str | os.PathLike[str], obj: Any) -> None:
    """Write `obj` as indented JSON with a final newline, atomically."""
    write_text_atomic(path, json.dumps(obj, indent=2, ensure_ascii=False) + "\n")
