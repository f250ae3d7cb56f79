"""From a name or a path to a folder on this machine, offline first.

A folder that exists always wins. A name is then looked up in the local Hugging Face cache, whose layout is read here
directly (`models--owner--name/refs/<revision>` holds a commit, `snapshots/<commit>/` the files), so that a cached
model starts without importing `huggingface_hub`. Only when nothing is found, and nobody asked to stay offline, is
`huggingface_hub` imported and the network used.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from quintet.errors import HubError, QuintetError
from quintet.hub.files import read_json, safe_join

__all__ = ["cache_folder", "is_offline", "resolve_folder"]

BUNDLED = {"storyteller": Path(__file__).parent.parent / "storyteller"}

# Every download also brings the small files beside the weights, so that a cached model is whole: a folder with a
# configuration but without its tokenizer would otherwise look complete when the network is gone.
_SMALL_FILES = ("*.json", "*.txt", "*.jinja")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,95}(/[A-Za-z0-9_][A-Za-z0-9_.-]{0,95})?")
_COMMIT = re.compile(r"[0-9a-f]{40}")


# --- names and folders ------------------------------------------------------------------------------------------------


def is_offline(local_files_only: bool | None = None) -> bool:
    """Whether the network must not be used: asked for by the caller, `HF_HUB_OFFLINE` or `TRANSFORMERS_OFFLINE`."""
    if local_files_only:
        return True
    setting = os.environ.get("HF_HUB_OFFLINE") or os.environ.get("TRANSFORMERS_OFFLINE") or ""
    return setting.strip().upper() in {"1", "ON", "YES", "TRUE"}


def cache_folder(cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """Return the Hugging Face cache: `cache_dir`, else `HF_HUB_CACHE`, `HUGGINGFACE_HUB_CACHE`, `HF_HOME`/hub, ..."""
    if cache_dir is not None:
        return Path(cache_dir).expanduser()
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if os.environ.get(variable):
            return Path(os.path.expandvars(os.environ[variable])).expanduser()
    if os.environ.get("HF_HOME"):
        return Path(os.path.expandvars(os.environ["HF_HOME"])).expanduser() / "hub"
    base = Path(os.path.expandvars(os.environ.get("XDG_CACHE_HOME") or "~/.cache")).expanduser()
    return base / "huggingface" / "hub"


def resolve_folder(
    name_or_path: str | os.PathLike[str],
    *,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool | None = None,
    token: str | bool | None = None,
    files: Sequence[str] | None = None,
    subfolder: str = "",
    force_download: bool = False,
) -> Path:
    """Return the local folder of a model given by name or path, downloading it only when it is nowhere here.

    Args:
        name_or_path: A folder (which always wins), the bundled model `storyteller`, or a hub name such as `gpt2` or
            `openai/gpt-oss-20b`.
        revision: Branch, tag or commit; `main` when left out. Ignored for a folder.
        cache_dir: Hugging Face cache to use in place of the default one.
        local_files_only: Never use the network (so does `HF_HUB_OFFLINE=1`).
        token: Passed to `huggingface_hub`: a token, True for the stored one, False for none.
        files: Names or patterns, any one of which makes a cached snapshot good enough: alternatives such as
            `("model.safetensors", "model.safetensors.index.json")`. An index counts only with all its shards.
            None: any cached snapshot will do.
        subfolder: Folder inside the model's folder which holds the files.
        force_download: Download even when the files are in the cache.

    Returns:
        The folder, `subfolder` included. Whether a given file is in it is for the caller to see.

    Raises:
        HubError: The name is not usable or the model is neither here nor on the hub.
    """
    text = _check_text("model name or path", os.fspath(name_or_path))
    subfolder = _check_relative("subfolder", subfolder) if subfolder else ""
    # os.path answers False where pathlib raises: names too long for the file system, "~" of nobody
    local = Path(os.path.expanduser(text))
    if os.path.isdir(local):
        return _with_subfolder(local, subfolder)
    if os.path.isfile(local):
        raise HubError(f"'{text}' is a file, and a model is a folder. Give the folder that holds it: '{local.parent}'.")
    if text in BUNDLED:
        return _bundled(text, subfolder)
    if not _NAME.fullmatch(text) or ".." in text or "--" in text:
        raise HubError(
            f"There is no folder '{text}', and that is not a name on the hub either. A hub name looks like 'gpt2' or "
            "'owner/name' (letters, digits, '-', '_', '.'). Check the path or the spelling."
        )
    revision = _check_relative("revision", revision) if revision is not None else "main"
    cache = cache_folder(cache_dir)
    snapshot = _cached_snapshot(cache, text, revision)
    if snapshot is not None and not force_download and _has_files(snapshot / subfolder, files):
        return snapshot / subfolder
    if is_offline(local_files_only):
        raise HubError(_not_found_words(text, revision, cache, snapshot, files, local_files_only))
    folder = _download(text, revision, cache, token, files, subfolder, force_download)
    return _with_subfolder(folder, subfolder)


def _check_text(what: str, text: object) -> str:
    if not isinstance(text, str):
        raise HubError(f"The {what} must be a string or a path, got {type(text).__name__}.")
    if not text.strip():
        raise HubError(f"The {what} is empty. Give a folder, or a name such as 'gpt2' or 'owner/name'.")
    if any(ord(char) < 32 for char in text):
        raise HubError(f"The {what} {text!r} holds a control character (NUL, newline, ...). Remove it.")
    return text


def _check_relative(what: str, text: object) -> str:
    """Refuse a subfolder or revision that could leave the folder it is looked up in."""
    text = _check_text(what, text)
    parts = text.split("/")
    if "\\" in text or ":" in text or any(part in ("", ".", "..") for part in parts):
        raise HubError(f"The {what} '{text}' is not usable: it must be relative, without '..', '\\' or ':'.")
    return text


def _with_subfolder(folder: Path, subfolder: str) -> Path:
    if subfolder and not (folder / subfolder).is_dir():
        there = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
        raise HubError(f"'{folder}' has no subfolder '{subfolder}'. Its subfolders: {', '.join(there) or 'none'}.")
    return folder / subfolder


def _bundled(name: str, subfolder: str) -> Path:
    folder = BUNDLED[name]
    if not folder.is_dir():
        raise HubError(f"The bundled model '{name}' is missing from this installation ('{folder}'). Reinstall quintet.")
    return _with_subfolder(folder, subfolder)


# --- the local cache --------------------------------------------------------------------------------------------------


def _cached_snapshot(cache: Path, name: str, revision: str) -> Path | None:
    """Return the snapshot folder of a revision in the Hugging Face cache, or None."""
    repo = cache / ("models--" + name.replace("/", "--"))
    commit = revision
    if not _COMMIT.fullmatch(revision):
        try:
            commit = (repo / "refs" / revision).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError):
            return None
        if not re.fullmatch(r"[0-9A-Za-z_]+", commit):
            return None
    folder = repo / "snapshots" / commit
    return folder if folder.is_dir() else None


def _has_files(folder: Path, patterns: Sequence[str] | None) -> bool:
    if not folder.is_dir():
        return False
    names = [entry.name for entry in folder.iterdir() if entry.exists()]
    if patterns is None:
        return bool(names)
    found = [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]
    whole = [name for name in found if not name.endswith(".index.json") or _missing_shards(folder, name) == []]
    return bool(whole)


def _missing_shards(folder: Path, index: str) -> list[str] | None:
    """Names in a shard index that are not in the folder; None when the index cannot be read (its loader says why)."""
    try:
        weight_map = read_json(folder / index).get("weight_map")
        if not isinstance(weight_map, dict):
            return []
        return sorted({str(name) for name in weight_map.values() if not safe_join(folder, name).exists()})
    except QuintetError:
        return []


def _not_found_words(
    name: str,
    revision: str,
    cache: Path,
    snapshot: Path | None,
    files: Sequence[str] | None,
    local_files_only: bool | None,
) -> str:
    why = "local_files_only=True" if local_files_only else "HF_HUB_OFFLINE is set"
    lines = [f"Model '{name}' is not on this machine, and the network may not be used ({why}). Looked at:"]
    lines.append(f"  folder   {Path(name).absolute()}: does not exist")
    if snapshot is None:
        lines.append(f"  cache    {cache}: nothing for revision '{revision}'")
    else:
        lines.append(f"  cache    {snapshot}: has none of {', '.join(files or ())} (or not all shards of an index)")
    lines.append("Give the folder of the model, set HF_HOME or cache_dir to a cache that has it, or allow the network")
    lines.append(f"once: unset HF_HUB_OFFLINE, or run `hf download {name}` on a connected machine and copy the cache.")
    return "\n".join(lines)


# --- the network ------------------------------------------------------------------------------------------------------


def _download(
    name: str,
    revision: str,
    cache: Path,
    token: str | bool | None,
    files: Sequence[str] | None,
    subfolder: str,
    force: bool,
) -> Path:
    """Download the small files and those in `files`, then the shards that a downloaded index names."""
    prefix = f"{subfolder}/" if subfolder else ""
    wanted = [prefix + pattern for pattern in (*_SMALL_FILES, *(files or ("*.safetensors",)))]
    folder = _snapshot_download(name, revision, cache, token, wanted, prefix, force)
    indexes = [file for file in (files or ()) if file.endswith(".index.json") and (folder / prefix / file).is_file()]
    shards: list[str] = []
    for index in indexes:
        shards += _missing_shards(folder / prefix, index) or []
    if shards:
        wanted = [prefix + shard for shard in shards]
        folder = _snapshot_download(name, revision, cache, token, wanted, prefix, force)
    if (folder / prefix / "chat_template.jinja").is_file():  # there may be others, in a folder
        templates = f"{prefix}additional_chat_templates/"
        folder = _snapshot_download(name, revision, cache, token, [f"{templates}*.jinja"], templates, force)
    return folder


def _snapshot_download(
    name: str, revision: str, cache: Path, token: str | bool | None, wanted: list[str], prefix: str, force: bool
) -> Path:
    try:
        import huggingface_hub
    except ImportError as error:
        raise HubError(
            f"'{name}' is not a folder here, and downloading it needs the package huggingface_hub. "
            "Install it (`pip install huggingface_hub`), or give a folder."
        ) from error
    try:
        path = huggingface_hub.snapshot_download(
            name,
            revision=revision,
            cache_dir=str(cache),
            token=token,
            allow_patterns=wanted,
            ignore_patterns=None if prefix else ["*/*"],
            force_download=force,
            library_name="quintet",
        )
    except KeyboardInterrupt:
        raise
    except Exception as error:  # the hub client raises its own types, its HTTP library's, OSError and ValueError
        raise HubError(_download_words(name, revision, cache, error)) from error
    return Path(path)


def _download_words(name: str, revision: str, cache: Path, error: BaseException) -> str:
    kinds = {kind.__name__ for kind in type(error).__mro__}
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    looked = f"Looked in the folder '{Path(name).absolute()}' and the cache '{cache}', then asked the hub."
    if "GatedRepoError" in kinds:
        return f"Model '{name}' is gated: accept its terms on its page, then pass token=... or set HF_TOKEN. {looked}"
    if "RevisionNotFoundError" in kinds:
        return f"Model '{name}' has no revision '{revision}'. Check the branch, tag or commit. {looked}"
    if "RepositoryNotFoundError" in kinds:
        return (
            f"There is no model '{name}' that you may read. {looked} Check the spelling; "
            f"a private model needs token=... or HF_TOKEN. ({reason})"
        )
    return (
        f"Model '{name}' (revision '{revision}') could not be downloaded: {type(error).__name__}: {reason}. {looked} "
        "Without a network, give the folder of the model, or set HF_HOME to a cache that has it and HF_HUB_OFFLINE=1."
    )
