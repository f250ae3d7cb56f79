"""AutoTokenizer: the right class for a folder or a name."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Any

from quintet.errors import TokenizerError
from quintet.hub import read_json, resolve_folder
from quintet.tokenizers.base import PreTrainedTokenizerBase
from quintet.tokenizers.saving import read_tokenizer_config

__all__ = ["AutoTokenizer"]

# Where each published class lives. A family adds its line here and in MODEL_TYPES.
CLASSES: dict[str, str] = {
    "GPT2Tokenizer": "quintet.tokenizers.gpt2",
    "GPT2TokenizerFast": "quintet.tokenizers.gpt2",
    "GPTNeoXTokenizerFast": "quintet.tokenizers.gpt_neox",
    "OpenAIGPTTokenizer": "quintet.tokenizers.openai_gpt",
    "OpenAIGPTTokenizerFast": "quintet.tokenizers.openai_gpt",
    "PreTrainedTokenizer": "quintet.tokenizers.fast",
    "PreTrainedTokenizerFast": "quintet.tokenizers.fast",
}
# The class of a family, for folders whose files do not name one.
MODEL_TYPES: dict[str, str] = {
    "gpt2": "GPT2Tokenizer",
    "gpt_neox": "GPTNeoXTokenizer",
    "gpt_oss": "PreTrainedTokenizer",
    "openai-gpt": "OpenAIGPTTokenizer",
    "seed_oss": "PreTrainedTokenizer",
}
GENERAL = "PreTrainedTokenizerFast"

# model_type or class name -> (class, fast class), from `AutoTokenizer.register`.
_registered: dict[str, tuple[type[PreTrainedTokenizerBase] | None, type[PreTrainedTokenizerBase] | None]] = {}


class AutoTokenizer:
    """Loads a tokenizer with the class that its files name. It is never instantiated itself."""

    def __init__(self) -> None:
        raise TokenizerError("AutoTokenizer is not made directly; use AutoTokenizer.from_pretrained(name_or_folder).")

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        use_fast: bool = True,
        tokenizer_type: str | None = None,
        config: Any = None,
        cache_dir: str | os.PathLike[str] | None = None,
        force_download: bool = False,
        local_files_only: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        subfolder: str = "",
        trust_remote_code: bool = False,
        **kwargs: Any,
    ) -> PreTrainedTokenizerBase:
        """Load the tokenizer of a folder, of the bundled `storyteller`, or of a name on the hub.

        The class is the `tokenizer_class` of tokenizer_config.json, else of config.json, else that of config.json's
        `model_type`; for a class that quintet does not have, tokenizer.json is loaded as PreTrainedTokenizerFast.

        Args:
            pretrained_model_name_or_path: A folder or name.
            use_fast: Prefer the class whose name ends in "Fast".
            tokenizer_type: A model type ("gpt2") that decides in place of the files.
            config: A configuration, in place of the folder's config.json.
            cache_dir, force_download, local_files_only, token, revision, subfolder: Where to look.
            trust_remote_code: Without effect: quintet never runs code from a checkpoint.
            **kwargs: Passed to the tokenizer.

        Raises:
            HubError: Nothing was found under that name.
            TokenizerError: The folder has no tokenizer that quintet can load.
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
            files=("tokenizer.json", "vocab.json"),
        )
        found = _choose(folder, tokenizer_type, config, use_fast)
        tokenizer = found.from_pretrained(folder, **kwargs)
        tokenizer.name_or_path = str(pretrained_model_name_or_path)
        return tokenizer

    @staticmethod
    def register(
        config_class: Any,
        slow_tokenizer_class: type[PreTrainedTokenizerBase] | None = None,
        fast_tokenizer_class: type[PreTrainedTokenizerBase] | None = None,
        exist_ok: bool = False,
        tokenizer_class: type[PreTrainedTokenizerBase] | None = None,
    ) -> None:
        """Make `from_pretrained` use your own classes for a model type.

        Args:
            config_class: A configuration class, or its `model_type`.
            slow_tokenizer_class, fast_tokenizer_class: The classes; one is enough.
            exist_ok: Replace an earlier registration.
            tokenizer_class: The same as `slow_tokenizer_class`, under its newer name.

        Raises:
            TokenizerError: No class, not a tokenizer class, or the type is taken.
        """
        slow = slow_tokenizer_class or tokenizer_class
        model_type = config_class if isinstance(config_class, str) else getattr(config_class, "model_type", "")
        if not model_type:
            raise TokenizerError(f"register needs a configuration class with a model_type, not {config_class!r}.")
        classes = [found for found in (slow, fast_tokenizer_class) if found is not None]
        if not classes:
            raise TokenizerError("register needs slow_tokenizer_class or fast_tokenizer_class.")
        for found in classes:
            if not (isinstance(found, type) and issubclass(found, PreTrainedTokenizerBase)):
                raise TokenizerError(f"{found!r} is not a tokenizer class: derive it from PreTrainedTokenizerFast.")
        if not exist_ok and (model_type in _registered or model_type in MODEL_TYPES):
            raise TokenizerError(f"{model_type!r} has a tokenizer already. Pass exist_ok=True to replace it.")
        for name in (model_type, *(found.__name__ for found in classes)):
            _registered[name] = (slow, fast_tokenizer_class)


def _choose(folder: Path, tokenizer_type: str | None, config: Any, use_fast: bool) -> type[PreTrainedTokenizerBase]:
    """Return the class for a folder."""
    name, model_type = None, tokenizer_type
    if tokenizer_type is None:
        name = read_tokenizer_config(folder).get("tokenizer_class")
        settings = _config_values(folder, config)
        name = name or settings.get("tokenizer_class")
        model_type = settings.get("model_type")
    for key in (name, model_type):
        found = _lookup(key, use_fast) if isinstance(key, str) else None
        if found is not None:
            return found
    if tokenizer_type is not None:
        options = sorted({*MODEL_TYPES, *(key for key in _registered if not key.endswith(("Tokenizer", "Fast")))})
        raise TokenizerError(f"tokenizer_type is {tokenizer_type!r}, but must be one of {options}.")
    if (folder / "tokenizer.json").exists():
        return _load(GENERAL)
    there = sorted(entry.name for entry in folder.iterdir())
    named = f"the tokenizer class {name!r}" if name else f"the model type {model_type!r}"
    raise TokenizerError(
        f"No tokenizer for '{folder}': quintet does not have {named}, and there is no tokenizer.json, which would do "
        f"for any class. The folder holds: {', '.join(there[:12]) or 'nothing'}."
    )


def _config_values(folder: Path, config: Any) -> dict[str, Any]:
    if config is not None:
        keys = ("tokenizer_class", "model_type")
        return {key: getattr(config, key, None) for key in keys}
    path = folder / "config.json"
    return read_json(path, error=TokenizerError) if path.exists() else {}


def _lookup(key: str, use_fast: bool) -> type[PreTrainedTokenizerBase] | None:
    """Return the class for a class name or model type, or None."""
    if key in _registered:
        slow, fast = _registered[key]
        return (fast or slow) if use_fast else (slow or fast)
    plain = MODEL_TYPES.get(key, key).removesuffix("Fast")
    order = (f"{plain}Fast", plain) if use_fast else (plain, f"{plain}Fast")
    return next((_load(name) for name in order if name in CLASSES), None)


def _load(name: str) -> type[PreTrainedTokenizerBase]:
    found: type[PreTrainedTokenizerBase] = getattr(importlib.import_module(CLASSES[name]), name)
    return found
