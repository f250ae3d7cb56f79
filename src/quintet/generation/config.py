"""GenerationConfig: the options of `generate` as a record that reads and writes generation_config.json.

Which options there are, what they may hold and which of them work is in `options.py`. No torch here.
"""

from __future__ import annotations

import copy
import json
import logging
import os
from pathlib import Path
from typing import Any

from quintet.errors import ConfigError, GenerationError, suggest
from quintet.generation.options import BEAMS, CACHED, DRAFT, NAMED, OPTIONS, RECORD, SAMPLING, STATIC, is_static, works
from quintet.generation.watermark_config import as_watermarking_config
from quintet.hub import read_json, resolve_folder, safe_join, write_text_atomic

__all__ = ["GENERATION_CONFIG_NAME", "GenerationConfig"]

logger = logging.getLogger("quintet.generation")

GENERATION_CONFIG_NAME = "generation_config.json"
METADATA = ("_from_model_config", "transformers_version")
# Arguments of generate() that people write into the config by mistake.
CALL_ARGUMENTS = (
    "logits_processor",
    "stopping_criteria",
    "prefix_allowed_tokens_fn",
    "synced_gpus",
    "assistant_model",
    "streamer",
    "tokenizer",
    "generator",
    "negative_prompt_ids",
    "negative_prompt_attention_mask",
)
OUTPUT_FLAGS = ("output_attentions", "output_hidden_states", "output_scores", "output_logits")
HUB_KEYS = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token")


class GenerationConfig:
    """Options of `generate`; those left at None take the model's value, then the default of `options.OPTIONS`.

    Every field of the reference's GenerationConfig is known and survives a round trip through JSON, those too which
    `generate` cannot carry out yet: using such a value raises an error there.

    Args:
        **kwargs: Any option by name.

    Raises:
        GenerationError: An unknown name (the nearest one is suggested) or a value out of range.
    """

    def __init__(self, **kwargs: Any) -> None:
        set_attribute = object.__setattr__
        set_attribute(self, "_extra", ())
        for name in OPTIONS:
            set_attribute(self, name, None)
        self._from_model_config: bool | None = kwargs.pop("_from_model_config", None)
        self.transformers_version: str | None = kwargs.pop("transformers_version", None)
        kwargs.pop("_commit_hash", None)  # written by old releases of the reference
        for name, value in kwargs.items():
            setattr(self, name, value)
        self.validate()
        self._as_loaded: dict[str, Any] | None = None

    def __setattr__(self, name: str, value: Any) -> None:
        if not name.startswith("_") and name not in self.__dict__ and name not in METADATA:
            if name in CALL_ARGUMENTS:
                raise GenerationError(f"{name} is not a field of GenerationConfig. Pass it to generate() itself.")
            raise GenerationError(
                f"{name!r} is not an option of generate().{suggest(name, OPTIONS)} "
                f"Options that work: {', '.join(works())}."
            )
        object.__setattr__(self, name, as_watermarking_config(value) if name == "watermarking_config" else value)

    def __getattr__(self, name: str) -> Any:  # only for names that are not there; also tells type checkers of the rest
        raise AttributeError(f"GenerationConfig has no option {name!r}.{suggest(name, self.__dict__)}")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, GenerationConfig) and self._content() == other._content()

    def __hash__(self) -> int:
        return hash(self.to_json_string(ignore_metadata=True))

    def __repr__(self) -> str:
        return f"GenerationConfig {self.to_json_string(ignore_metadata=True)}"

    def __deepcopy__(self, memo: dict[int, Any]) -> GenerationConfig:
        new = object.__new__(type(self))
        new.__dict__.update({key: copy.deepcopy(value, memo) for key, value in self.__dict__.items()})
        return new

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    def _content(self) -> dict[str, Any]:
        return {key: value for key, value in self.to_dict().items() if key not in METADATA}

    # --- checking -----------------------------------------------------------------------------------------------------

    def validate(self, strict: bool = False) -> None:
        """Check every option, and combinations that can never work.

        Args:
            strict: Raise also for options that have no effect beside the others, such as `top_k` without `do_sample`.

        Raises:
            GenerationError: naming the option, its value and what is allowed.
        """
        self.validate_values()
        beams = self.num_beams or 1
        rows = self.num_return_sequences or 1
        if rows > 1 and beams == 1 and self.do_sample is False:
            raise GenerationError(several_greedy(rows))
        if beams > 1 and rows > beams:
            raise GenerationError(
                f"num_return_sequences is {rows}, but must be at most num_beams ({beams}). Raise num_beams or lower it."
            )
        for low, high in (("min_length", "max_length"), ("min_new_tokens", "max_new_tokens")):
            least, most = getattr(self, low), getattr(self, high)
            if least is not None and most is not None and least > most:
                raise GenerationError(
                    f"{low} is {least} and {high} is {most}: the least cannot be more than the most. "
                    f"Lower {low} or raise {high}."
                )
        if strict:
            idle = self.without_effect(has_draft=True)  # those for drafts count when the model itself is one
            if idle:
                raise GenerationError("These options contradict each other. " + " ".join(idle.values()))

    def validate_values(self) -> None:
        """Check every option for itself.

        Raises:
            GenerationError: naming the option, its value and what is allowed.
        """
        for name, option in OPTIONS.items():
            option.validate(getattr(self, name))

    def without_effect(self, *, has_draft: bool = False) -> dict[str, str]:
        """Return the set options that change nothing beside the others, each with a sentence that says why.

        Args:
            has_draft: Whether the call has an `assistant_model`.
        """
        on = {
            SAMPLING: self.do_sample is True,
            BEAMS: (self.num_beams or 1) > 1,
            DRAFT: has_draft or self.is_assistant is True or self.assistant_early_exit is not None,
            RECORD: self.return_dict_in_generate is True,
            CACHED: self.use_cache is not False,
            NAMED: self.cache_implementation is not None,
            STATIC: is_static(self.cache_implementation),
            "prompt_lookup_num_tokens": self.prompt_lookup_num_tokens is not None,
        }
        wanted = {
            SAMPLING: "do_sample=True",
            BEAMS: "num_beams above 1",
            DRAFT: "an assistant_model",
            RECORD: "return_dict_in_generate=True",
            CACHED: "use_cache=True",
            NAMED: "a cache_implementation that takes arguments",
            STATIC: "cache_implementation='static'",
            "prompt_lookup_num_tokens": "prompt_lookup_num_tokens",
        }
        found = {}
        for name, option in OPTIONS.items():
            value = getattr(self, name)
            if name == "top_k" and self.penalty_alpha:
                continue  # contrastive search chooses among the best ones
            if option.needs and not on[option.needs] and not option.is_neutral(value):
                found[name] = f"{name}={value!r} has no effect without {wanted[option.needs]}: set that, or unset it."
        return found

    # --- JSON ---------------------------------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """Return every option, keys of a file that are no option, and metadata."""
        out = {name: copy.deepcopy(getattr(self, name)) for name in (*OPTIONS, *self._extra)}
        for name in METADATA:
            if getattr(self, name) is not None:
                out[name] = getattr(self, name)
        return out

    def to_diff_dict(self) -> dict[str, Any]:
        """Return what is set."""
        return {name: value for name, value in self.to_dict().items() if value is not None or name in self._extra}

    def to_json_string(
        self, use_diff: bool = True, ignore_metadata: bool = False, keys_to_pop: list[str] | None = None
    ) -> str:
        """Return sorted, indented JSON text ending with a newline.

        Args:
            use_diff: Only what is set.
            ignore_metadata: Leave out `_from_model_config` and `transformers_version`.
            keys_to_pop: Further keys to leave out.

        Raises:
            GenerationError: an option holds something that JSON cannot.
        """
        data = self.to_diff_dict() if use_diff else self.to_dict()
        for name in (*(METADATA if ignore_metadata else ()), *(keys_to_pop or ())):
            data.pop(name, None)
        if isinstance(data.get("sequence_bias"), dict):  # JSON has no keys of several numbers
            data["sequence_bias"] = [[list(ids), bias] for ids, bias in data["sequence_bias"].items()]
        try:
            return json.dumps(_plain(data), indent=2, sort_keys=True, allow_nan=False) + "\n"
        except (TypeError, ValueError) as error:
            raise GenerationError(
                f"the generation config cannot be written as JSON: {error}. Use numbers, strings, lists and dicts."
            ) from error

    def to_json_file(self, json_file_path: str | os.PathLike[str], use_diff: bool = True) -> None:
        """Write the JSON text to a file, whole or not at all."""
        write_text_atomic(Path(json_file_path), self.to_json_string(use_diff))

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        config_file_name: str | os.PathLike[str] | None = None,
        push_to_hub: bool = False,
        **kwargs: Any,
    ) -> None:
        """Write generation_config.json into a folder, which is made when it is not there.

        A config that was changed since it was loaded must make sense: options without effect are refused, so that no
        misleading file is published.

        Raises:
            GenerationError: an option is out of range or has no effect; the path is a file; `push_to_hub` is asked of
                the generation config alone.
        """
        if push_to_hub:
            raise GenerationError("push_to_hub: upload the whole model with model.push_to_hub(repo_id) instead.")
        if kwargs:
            raise GenerationError(f"save_pretrained: unknown option {next(iter(kwargs))!r}.")
        folder = Path(save_directory)
        if folder.exists() and not folder.is_dir():
            raise GenerationError(f"{folder} is a file; save_pretrained needs a folder. Give another path.")
        self.validate(strict=self._as_loaded != self._content())
        folder.mkdir(parents=True, exist_ok=True)
        self.to_json_file(folder / (config_file_name or GENERATION_CONFIG_NAME))

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name: str | os.PathLike[str],
        config_file_name: str | os.PathLike[str] | None = None,
        *,
        return_unused_kwargs: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Read generation_config.json of a folder or name; without one, take what config.json says.

        Args:
            pretrained_model_name: A folder, a name on the hub, or `storyteller`.
            config_file_name: Another file of that folder.
            return_unused_kwargs: Return the pair (config, keywords that are no options).
            **kwargs: Options, which override the file's, and the keywords of `hub.resolve_folder`.

        Raises:
            HubError: the folder or the file is not there.
            ConfigError: the file is not a JSON object.
            GenerationError: an option is unknown or out of range.
        """
        where = {key: kwargs.pop(key) for key in HUB_KEYS if key in kwargs}
        kwargs.pop("proxies", None)
        name = str(config_file_name or GENERATION_CONFIG_NAME)
        folder = resolve_folder(pretrained_model_name, files=(name, "config.json"), **where)
        file = safe_join(folder, name)
        if not file.is_file() and config_file_name is None and safe_join(folder, "config.json").is_file():
            config = cls.from_model_config(read_json(safe_join(folder, "config.json")))
            unused = config.update(**kwargs)
        else:
            config, unused = cls.from_dict(read_json(file), return_unused_kwargs=True, **kwargs)
            if not kwargs:
                config._as_loaded = config._content()
        if return_unused_kwargs:
            return config, unused
        _refuse_unknown(unused)
        return config

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], return_unused_kwargs: bool = False, **kwargs: Any) -> Any:
        """Make a config from the contents of a file; keys that are no option are kept and written back.

        Args:
            config_dict: Contents of a generation_config.json.
            return_unused_kwargs: Return the pair (config, keywords that are no options).
            **kwargs: Options, which override.

        Raises:
            ConfigError: `config_dict` is no dict.
            GenerationError: an option is out of range, or a keyword is unknown.
        """
        if not isinstance(config_dict, dict):
            raise ConfigError(f"a generation config must be a dict, and got a {type(config_dict).__name__}.")
        known = {name: value for name, value in config_dict.items() if name in OPTIONS or name in METADATA}
        used = {name: kwargs.pop(name) for name in list(kwargs) if name in OPTIONS}
        config = cls(**{**known, **used})
        for name, value in config_dict.items():
            if name not in known and not name.startswith("_") and name not in CALL_ARGUMENTS:
                near = suggest(name, OPTIONS)
                if near:
                    logger.warning("the generation config has the key %r, which is no option.%s", name, near)
                if not hasattr(cls, name):
                    object.__setattr__(config, name, value)
                    object.__setattr__(config, "_extra", (*config._extra, name))
        if return_unused_kwargs:
            return config, kwargs
        _refuse_unknown(kwargs)
        return config

    @classmethod
    def from_model_config(cls, model_config: Any) -> GenerationConfig:
        """Take the options that a model's configuration holds: its special tokens, and more in old files.

        Args:
            model_config: A PreTrainedConfig, or the contents of a config.json.
        """
        values = dict(model_config if isinstance(model_config, dict) else model_config.to_dict())
        for part in ("decoder", "generator", "text_config"):
            if isinstance(values.get(part), dict):
                values = {**values[part], **{key: value for key, value in values.items() if value is not None}}
                break
        known = {name: values[name] for name in OPTIONS if values.get(name) is not None}
        config = cls(**known, _from_model_config=True)
        if any(getattr(config, flag) for flag in OUTPUT_FLAGS) and not config.return_dict_in_generate:
            config.return_dict_in_generate = True
        config._as_loaded = config._content()
        return config

    def update(self, defaults_only: bool = False, **kwargs: Any) -> dict[str, Any]:
        """Set options, check them, and return the keywords that are no options.

        Args:
            defaults_only: Set only what is None.
            **kwargs: Options by name.

        Raises:
            GenerationError: an option is out of range; the config is then as it was.
        """
        before = dict(self.__dict__)
        unused = {}
        for name, value in kwargs.items():
            if name in OPTIONS or name in self._extra:
                if not defaults_only or getattr(self, name) is None:
                    setattr(self, name, value)
            else:
                unused[name] = value
        try:
            self.validate()
        except GenerationError:
            self.__dict__.clear()
            self.__dict__.update(before)
            raise
        return unused


def several_greedy(rows: int) -> str:
    """Return the words for several sequences of one prompt without sampling, which would all be the same."""
    return (
        f"num_return_sequences is {rows} without sampling, and greedy decoding gives the same sequence every time. "
        "Set do_sample=True, or num_return_sequences=1."
    )


def _refuse_unknown(names: dict[str, Any]) -> None:
    for name in names:
        raise GenerationError(f"{name!r} is not an option of generate().{suggest(name, OPTIONS)}")


def _plain(value: Any) -> Any:
    """Return `value` as JSON types: tuple keys and objects with `to_dict` occur in published options."""
    if isinstance(value, dict):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    if hasattr(value, "to_dict"):
        return _plain(value.to_dict())
    if hasattr(value, "tolist"):
        return value.tolist()  # numbers of numpy and torch
    return value
