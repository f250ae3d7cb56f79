"""Chat templates as files: `chat_template.jinja`, and those of other names in a folder beside it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from quintet.errors import CheckpointError, TokenizerError
from quintet.hub import open_regular, safe_join

__all__ = ["read_templates", "stale_templates", "template_texts"]

TEMPLATE_FILE = "chat_template.jinja"
TEMPLATE_FOLDER = "additional_chat_templates"
TEMPLATE_LIMIT = 1024 * 1024
# More than anybody has; a folder of a million files is not to be read.
MOST_TEMPLATES = 100


def read_templates(folder: Path) -> str | dict[str, str] | None:
    """Return the templates of a folder: the text of the only one, or several by name; None without files.

    `chat_template.jinja` is called "default", any other what its file is called without `.jinja`.

    Raises:
        TokenizerError: A file is too large, not UTF-8, or leads out of the folder; or there are too many.
    """
    found: dict[str, str] = {}
    if (folder / TEMPLATE_FILE).is_file():
        found["default"] = _read(folder / TEMPLATE_FILE)
    names = _names(folder / TEMPLATE_FOLDER)
    if len(names) > MOST_TEMPLATES:
        raise TokenizerError(
            f"'{folder / TEMPLATE_FOLDER}' holds {len(names)} chat templates, more than the {MOST_TEMPLATES} that are "
            "read. Remove those that are not needed."
        )
    for name in names:
        found[name.removesuffix(".jinja")] = _read(_inside(folder / TEMPLATE_FOLDER, name))
    return found["default"] if list(found) == ["default"] else found or None


def template_texts(templates: str | Mapping[str, str] | None, folder: Path) -> dict[str, str]:
    """Return the files of `folder` that are to hold the templates: their names in it, and their texts.

    Raises:
        TokenizerError: A template has a name that cannot be a file's.
    """
    if templates is None:
        return {}
    if isinstance(templates, str):
        return {TEMPLATE_FILE: templates}
    found = {}
    for name, text in templates.items():
        if name != "default":
            _inside(folder / TEMPLATE_FOLDER, f"{name}.jinja")
        found[TEMPLATE_FILE if name == "default" else f"{TEMPLATE_FOLDER}/{name}.jinja"] = text
    return found


def stale_templates(folder: Path, prefix: str, written: Mapping[str, str]) -> list[str]:
    """Return the files in a folder that hold templates and are not `written`: they would come back with the others."""
    there = [TEMPLATE_FILE] if (folder / f"{prefix}{TEMPLATE_FILE}").is_file() else []
    there += [f"{TEMPLATE_FOLDER}/{name}" for name in _names(folder / f"{prefix}{TEMPLATE_FOLDER}")]
    return [prefix + name for name in there if name not in written]


def _names(folder: Path) -> list[str]:
    if not folder.is_dir():
        return []
    return sorted(entry.name for entry in folder.iterdir() if entry.name.endswith(".jinja") and entry.is_file())


def _inside(folder: Path, name: str) -> Path:
    try:
        return safe_join(folder, name)
    except CheckpointError as cause:
        raise TokenizerError(f"A chat template cannot be called {name.removesuffix('.jinja')!r}: {cause}") from cause


def _read(path: Path) -> str:
    with os.fdopen(open_regular(path, TokenizerError), "rb") as file:
        data = file.read(TEMPLATE_LIMIT + 1)
    if len(data) > TEMPLATE_LIMIT:
        raise TokenizerError(f"'{path}' is larger than {TEMPLATE_LIMIT:,} bytes, which no chat template is.")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as cause:
        raise TokenizerError(f"'{path}' is not UTF-8 text (byte {cause.start}). Get the file again.") from cause
