"""Tokenizers from folders and into folders, in the layout of published checkpoints."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from tokenizers import AddedToken

from quintet.errors import TokenizerError
from quintet.hub import StagedFiles, read_json, resolve_folder
from quintet.tokenizers.options import LARGE_INTEGER, check_known
from quintet.tokenizers.special import SpecialTokens
from quintet.tokenizers.template_files import read_templates, stale_templates, template_texts

__all__ = ["Saving", "clean_init", "read_tokenizer_config"]

CONFIG_FILE = "tokenizer_config.json"
# Keys that would name code, and keys that describe the file and not the tokenizer: never kept, never written.
_DROPPED = ("auto_map", "trust_remote_code", "custom_pipelines", "tokenizer_class", "backend", "files_loaded")
_DROPPED_FILES = ("tokenizer_file", "vocab_file", "merges_file", "special_tokens_map_file", "is_local")

SavingT = TypeVar("SavingT", bound="Saving")


def clean_init(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a constructor's keywords, or a tokenizer_config.json, without private and remote-code keys."""
    return {
        key: _read_token(value) if key.endswith("_token") else value
        for key, value in values.items()
        if not key.startswith("_") and key not in (*_DROPPED, *_DROPPED_FILES)
    }


def read_tokenizer_config(folder: Path) -> dict[str, Any]:
    """Return tokenizer_config.json as it is; an empty dict when there is none.

    Raises:
        TokenizerError: It is not a JSON object.
    """
    path = folder / CONFIG_FILE
    return read_json(path, error=TokenizerError) if path.exists() else {}


class Saving(SpecialTokens):
    """The part of a tokenizer that reads and writes its files."""

    vocab_files_names: ClassVar[dict[str, str]] = {}
    init_kwargs: dict[str, Any]
    name_or_path: str
    model_max_length: int
    padding_side: str
    truncation_side: str
    clean_up_tokenization_spaces: bool
    split_special_tokens: bool
    chat_template: str | dict[str, str] | None

    # --- reading ------------------------------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(
        cls: type[SavingT],
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        cache_dir: str | os.PathLike[str] | None = None,
        force_download: bool = False,
        local_files_only: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        subfolder: str = "",
        trust_remote_code: bool = False,
        **kwargs: Any,
    ) -> SavingT:
        """Load a tokenizer from a folder, or by name: from the local cache first, then from the hub.

        `tokenizer.json` is the truth where there is one; otherwise the class's own files are read (`vocab.json` and
        `merges.txt`). Keywords win over tokenizer_config.json.

        Args:
            pretrained_model_name_or_path: A folder, the bundled `storyteller`, or a name on the hub.
            cache_dir, force_download, local_files_only, token, revision, subfolder: Where to look.
            trust_remote_code: Without effect: quintet never runs code from a checkpoint.
            **kwargs: Passed to the constructor.

        Raises:
            HubError: Nothing was found under that name.
            TokenizerError: The folder has no tokenizer files, or they are damaged.
        """
        del trust_remote_code
        folder = resolve_folder(
            pretrained_model_name_or_path,
            cache_dir=cache_dir,
            force_download=force_download,
            local_files_only=local_files_only,
            token=token,
            revision=revision,
            subfolder=subfolder,
            files=tuple(cls.vocab_files_names.values()),
        )
        init = clean_init(read_tokenizer_config(folder))
        init.update(_legacy_special_tokens(folder, init))
        templates = read_templates(folder)
        if templates is not None:
            init["chat_template"] = templates
        init.update(kwargs)
        tokenizer = cls(**cls._find_files(folder), **cls._adapt_init(folder, init))
        tokenizer.name_or_path = str(pretrained_model_name_or_path)
        return tokenizer

    @classmethod
    def _find_files(cls, folder: Path) -> dict[str, str | None]:
        """Return the path of each of the class's files, None for those that are not there or not needed."""
        paths = {key: folder / name for key, name in cls.vocab_files_names.items()}
        whole = paths.pop("tokenizer_file", None)
        if whole is not None and whole.exists():
            return {"tokenizer_file": str(whole), **dict.fromkeys(paths)}
        if paths and all(path.exists() for path in paths.values()):
            extra = {} if whole is None else {"tokenizer_file": None}
            return {**{key: str(path) for key, path in paths.items()}, **extra}
        names = " and ".join(path.name for path in paths.values())
        there = sorted(entry.name for entry in folder.iterdir())
        raise TokenizerError(
            f"'{folder}' holds no files of a {cls.__name__}: it needs tokenizer.json{' or ' + names if names else ''}. "
            f"The folder holds: {', '.join(there[:12]) or 'nothing'}. Get them from where the model is from."
        )

    @classmethod
    def _adapt_init(cls, folder: Path, init: dict[str, Any]) -> dict[str, Any]:
        """Change the constructor's keywords to what the files say; classes with more files override it."""
        del folder
        return init

    def _init_special_tokens(self, init: dict[str, Any]) -> None:
        """Take the special tokens out of `init`, and add to the vocabulary what it does not have."""
        self._special_tokens_map = dict.fromkeys(self.SPECIAL_TOKENS_ATTRIBUTES)
        extra = init.pop("extra_special_tokens", init.pop("additional_special_tokens", None)) or []
        named = dict(extra) if isinstance(extra, Mapping) else {}
        self.extra_special_tokens = [] if isinstance(extra, Mapping) else _each_token(extra)
        for key in [key for key in init if key.endswith("_token") and not isinstance(init[key], bool)]:
            value = init.pop(key)
            if key in self.SPECIAL_TOKENS_ATTRIBUTES:
                self._set_special(key, value)
            elif isinstance(value, (str, AddedToken)):
                named[key] = value
        if named:
            # Names that only this tokenizer has, such as image_token: attributes like the usual ones.
            self.SPECIAL_TOKENS_ATTRIBUTES = (*self.SPECIAL_TOKENS_ATTRIBUTES, *named)  # type: ignore[misc]
            for key, value in named.items():
                self._set_special(key, _read_token(value))
        declared = init.pop("added_tokens_decoder", None) or {}
        self._add_missing_tokens(_declared_tokens(declared))

    def __getattr__(self, name: str) -> Any:
        special = self.__dict__.get("_special_tokens_map", {})
        if name in special:
            return None if special[name] is None else str(special[name])
        if name.endswith("_id") and name[:-3] in special:
            token = special[name[:-3]]
            return None if token is None else self._tokenizer.token_to_id(str(token))
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")

    # --- writing ------------------------------------------------------------------------------------------------------

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        legacy_format: bool | None = None,
        filename_prefix: str | None = None,
        **kwargs: Any,
    ) -> tuple[str, ...]:
        """Save the tokenizer so that `from_pretrained` gives it back: every file, or on an error none.

        Args:
            save_directory: A folder, made if it is not there.
            legacy_format: True: also write the files from before tokenizer.json (`vocab.json`, `merges.txt`).
            filename_prefix: Put before each file's name, with a "-".
            **kwargs: `save_jinja_files=False` keeps the chat templates inside tokenizer_config.json; else they are
                files, and such files of another tokenizer in the folder are removed.

        Returns:
            The paths written.

        Raises:
            TokenizerError: `save_directory` is a file, or a chat template has a name that no file can have.
        """
        check_known("save_pretrained", kwargs, ("save_jinja_files",))
        folder = _make_folder(save_directory)
        prefix = f"{filename_prefix}-" if filename_prefix else ""
        config = self._config_to_save()
        texts = {"tokenizer.json": self._engine_json()}
        templates = {}
        if kwargs.get("save_jinja_files", True):
            templates = template_texts(self.chat_template, folder)
            config.pop("chat_template", None)
        texts.update(templates)
        if legacy_format:
            texts.update(self._vocabulary_files())
        texts[CONFIG_FILE] = json.dumps(config, indent=2, ensure_ascii=False, sort_keys=True) + "\n"
        return _write(folder, prefix, texts, stale_templates(folder, prefix, templates))

    def save_vocabulary(
        self, save_directory: str | os.PathLike[str], filename_prefix: str | None = None
    ) -> tuple[str, ...]:
        """Write only the vocabulary files (for byte-level BPE `vocab.json` and `merges.txt`); returns their paths.

        Added tokens and special-token settings are not in them: `save_pretrained` saves everything.
        """
        prefix = f"{filename_prefix}-" if filename_prefix else ""
        return _write(_make_folder(save_directory), prefix, self._vocabulary_files())

    def _vocabulary_files(self) -> dict[str, str]:
        """Return the texts of `vocab.json` and `merges.txt`."""
        model = json.loads(self._engine_json())["model"]
        if model.get("type", "BPE") != "BPE" or "merges" not in model:
            raise TokenizerError(
                f"vocab.json and merges.txt describe a BPE, and this tokenizer is a {model.get('type')}. "
                "Use save_pretrained, which writes tokenizer.json."
            )
        vocabulary = dict(sorted(model["vocab"].items(), key=lambda entry: entry[1]))
        pairs = (pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"])
        return {
            "vocab.json": json.dumps(vocabulary, ensure_ascii=False),
            "merges.txt": "".join(f"{line}\n" for line in ("#version: 0.2", *pairs)),
        }

    def _engine_json(self) -> str:
        """The engine as tokenizer.json, without the padding and truncation that the last call happened to use."""
        with self._guard.changing():
            self._tokenizer.no_padding()
            self._tokenizer.no_truncation()
            return str(self._tokenizer.to_str(pretty=True)) + "\n"

    def _config_to_save(self) -> dict[str, Any]:
        config = {
            key: value
            for key, value in self.init_kwargs.items()
            if key not in ("name_or_path", "added_tokens_decoder", "additional_special_tokens", "max_len")
            and not isinstance(value, AddedToken)
        }
        for name in ("padding_side", "truncation_side", "split_special_tokens"):
            if name in config or getattr(self, name) not in ("right", False):
                config[name] = getattr(self, name)
        for name in ("add_bos_token", "add_eos_token", "add_prefix_space", "errors"):
            if name in config:
                config[name] = getattr(self, name)
        config["clean_up_tokenization_spaces"] = self.clean_up_tokenization_spaces
        # Inside this file, several templates are the list that published files have.
        several = self.chat_template if isinstance(self.chat_template, Mapping) else None
        config["chat_template"] = (
            self.chat_template if several is None else [{"name": k, "template": v} for k, v in several.items()]
        )
        config["extra_special_tokens"] = self.extra_special_tokens or None
        config["model_max_length"] = self.model_max_length if self.model_max_length <= LARGE_INTEGER else None
        config.update(dict.fromkeys(self.SPECIAL_TOKENS_ATTRIBUTES))
        config.update(self.special_tokens_map)
        name = type(self).__name__
        config = {key: value for key, value in config.items() if value is not None or key in self._kept_as_null}
        # Published files carry the name without "Fast"; every reader makes the fast class of it where it has one.
        config["tokenizer_class"] = name if name.startswith("PreTrained") else name.removesuffix("Fast")
        try:
            json.dumps(config)
        except (TypeError, ValueError) as cause:
            raise TokenizerError(f"A setting of this tokenizer cannot be written as JSON: {cause}.") from cause
        return config

    # Special tokens whose constructor default is a token: None must be written, or loading would bring them back.
    _kept_as_null: ClassVar[tuple[str, ...]] = ()


def _write(folder: Path, prefix: str, texts: Mapping[str, str], remove: Iterable[str] = ()) -> tuple[str, ...]:
    if any(char in prefix for char in "/\\\0"):
        raise TokenizerError(f"filename_prefix {prefix[:-1]!r} holds a folder separator; give a plain name.")
    with StagedFiles(folder) as staged:
        for name, text in texts.items():
            (folder / (prefix + name)).parent.mkdir(exist_ok=True)
            staged.write_text(prefix + name, text)
        staged.commit(remove=remove)
    return tuple(str(folder / (prefix + name)) for name in texts)


def _make_folder(path: str | os.PathLike[str]) -> Path:
    folder = Path(path)
    if folder.exists() and not folder.is_dir():
        raise TokenizerError(f"Cannot save a tokenizer to '{folder}': it is a file. Give a folder.")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _read_token(value: Any) -> Any:
    """An AddedToken from the dict that tokenizer_config.json holds for one; anything else as it is."""
    if not isinstance(value, Mapping) or "content" not in value:
        return value
    names = ("single_word", "lstrip", "rstrip", "normalized", "special")
    flags = {key: bool(value[key]) for key in names if key in value}
    if not isinstance(value["content"], str):
        raise TokenizerError(f"An added token's content must be a string, not {value['content']!r}.")
    return AddedToken(value["content"], **flags)


def _each_token(values: Any) -> Any:
    return [_read_token(value) for value in values] if isinstance(values, (list, tuple)) else values


def _declared_tokens(declared: Any) -> dict[int, AddedToken]:
    """Read `added_tokens_decoder` of a tokenizer_config.json: {"50256": {"content": ...}}."""
    if not isinstance(declared, Mapping):
        raise TokenizerError(f"added_tokens_decoder must map ids to tokens, but is of type {type(declared).__name__}.")
    tokens: dict[int, AddedToken] = {}
    for key, value in declared.items():
        token = _read_token(value)
        if not isinstance(token, AddedToken) or not (isinstance(key, int) or (isinstance(key, str) and key.isdigit())):
            raise TokenizerError(f"added_tokens_decoder: {key!r}: {value!r} is not an id and an added token.")
        tokens[int(key)] = token
    return tokens


def _legacy_special_tokens(folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """What older releases wrote to special_tokens_map.json and added_tokens.json, where the config does not say it."""
    found: dict[str, Any] = {}
    named, added = folder / "special_tokens_map.json", folder / "added_tokens.json"
    if named.exists():
        found.update(clean_init(read_json(named, error=TokenizerError)))
    if added.exists() and not (folder / "tokenizer.json").exists():
        tokens = read_json(added, error=TokenizerError)
        found["added_tokens_decoder"] = {str(index): {"content": token} for token, index in tokens.items()}
    return {key: value for key, value in found.items() if key not in config}
