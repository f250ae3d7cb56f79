"""The configuration base class: defaults, aliases, checks and JSON.

A family's configuration has an explicit `__init__` with the names and defaults of its model page, a table `rules` that
says what each field may hold, and an `attribute_map` for the names that other families use for the same thing. Unknown
keys of a published config.json are kept and written back; private keys and remote-code keys are dropped unread.
No torch here: reading a configuration must cost nothing.
"""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from quintet.errors import ConfigError, suggest
from quintet.hub import read_json, resolve_folder, write_text_atomic
from quintet.rules import Choice, Flag, Heads, Integer, Names, Rule, Text, TokenIds, int_keys

__all__ = ["PreTrainedConfig", "PretrainedConfig", "check_heads", "check_shapes"]

CONFIG_NAME = "config.json"
# Keys that would name code: never kept, never written back.
REMOTE_CODE_KEYS = ("auto_map", "trust_remote_code", "custom_pipelines")
# Keywords of from_pretrained that say where to look.
HUB_KEYS = ("cache_dir", "force_download", "revision", "local_files_only", "token", "subfolder")
DTYPES = ("float32", "float16", "bfloat16", "float64")
PROBLEM_TYPES = ("regression", "single_label_classification", "multi_label_classification")
TRANSFORMERS_VERSION = "4.56.2"

ConfigT = TypeVar("ConfigT", bound="PreTrainedConfig")


COMMON_RULES: dict[str, Rule] = {
    "output_hidden_states": Flag(),
    "output_attentions": Flag(),
    "return_dict": Flag(),
    "tie_word_embeddings": Flag(),
    "is_encoder_decoder": Flag(),
    "is_decoder": Flag(),
    "add_cross_attention": Flag(),
    "architectures": Names(optional=True),
    "pruned_heads": Heads(),
    "problem_type": Choice(optional=True, options=PROBLEM_TYPES),
    "dtype": Choice(optional=True, options=DTYPES),
    "bos_token_id": TokenIds(),
    "eos_token_id": TokenIds(),
    "pad_token_id": TokenIds(),
}


class PreTrainedConfig:
    """Base of every family's configuration.

    Args:
        num_labels: Outputs of the classification heads; `id2label` and `label2id` follow it, or it follows them.
        output_attentions, output_hidden_states, return_dict: Defaults of the same arguments of `forward`.
        dtype: Data type of the stored weights, as a string ("float16"); `torch_dtype` is the older name. A torch dtype
            is taken and stored as its name.
        **kwargs: Any other key of a config.json; kept as an attribute and written back.

    Raises:
        ConfigError: A known field has a value that is not allowed.
    """

    model_type: ClassVar[str] = ""
    attribute_map: ClassVar[dict[str, str]] = {}
    rules: ClassVar[dict[str, Rule]] = {}
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values"]

    _name_or_path: str
    _attn_implementation: str

    def __init__(
        self,
        *,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
        return_dict: bool = True,
        tie_word_embeddings: bool = True,
        is_encoder_decoder: bool = False,
        is_decoder: bool = False,
        add_cross_attention: bool = False,
        num_labels: int | None = None,
        id2label: dict[Any, str] | None = None,
        label2id: dict[str, int] | None = None,
        problem_type: str | None = None,
        dtype: Any = None,
        torch_dtype: Any = None,
        architectures: list[str] | None = None,
        bos_token_id: int | None = None,
        eos_token_id: int | list[int] | None = None,
        pad_token_id: int | None = None,
        pruned_heads: dict[Any, list[int]] | None = None,
        attn_implementation: str | None = None,
        **kwargs: Any,
    ) -> None:
        self.output_hidden_states = output_hidden_states
        self.output_attentions = output_attentions
        self.return_dict = return_dict
        self.tie_word_embeddings = tie_word_embeddings
        self.is_encoder_decoder = is_encoder_decoder
        self.is_decoder = is_decoder
        self.add_cross_attention = add_cross_attention
        self.problem_type = problem_type
        self.dtype = dtype if dtype is not None else torch_dtype
        self.architectures = architectures
        self.bos_token_id = bos_token_id
        self.eos_token_id = eos_token_id
        self.pad_token_id = pad_token_id
        self.pruned_heads: Any = int_keys(pruned_heads or {})
        self._set_labels(num_labels, id2label, label2id)
        self._name_or_path = str(kwargs.pop("_name_or_path", kwargs.pop("name_or_path", "")) or "")
        self._attn_implementation = attn_implementation or "sdpa"
        Text().check(type(self).__name__, "attn_implementation", self._attn_implementation)
        kwargs.pop("model_type", None)
        for key, value in kwargs.items():
            # A private key could reach machinery that a file must not steer (CVE-2026-4372), so it is dropped unread.
            if key.startswith("_") or key in REMOTE_CODE_KEYS or key == "transformers_version":
                continue
            known = getattr(type(self), key, None)
            if isinstance(known, property) and known.fset is None:  # derived from other fields
                continue
            if callable(known):
                raise ConfigError(
                    f"{type(self).__name__}: the key {key!r} is the name of a method and cannot be a field. Rename it."
                )
            setattr(self, key, value)
        self.validate()

    def _set_labels(
        self, num_labels: int | None, id2label: dict[Any, str] | None, label2id: dict[str, int] | None
    ) -> None:
        owner = type(self).__name__
        if id2label is not None:
            names = int_keys(id2label)
            if not isinstance(names, dict) or not all(type(k) is int and isinstance(v, str) for k, v in names.items()):
                raise ConfigError(
                    f"{owner}: id2label is {id2label!r}, but must be an object with class numbers as keys and names "
                    'as values, such as {"0": "no", "1": "yes"}, or None.'
                )
            self.id2label = names
            self.label2id = {name: index for index, name in names.items()}
        else:
            self.num_labels = 2 if num_labels is None else num_labels
        if label2id:
            if not isinstance(label2id, dict):
                raise ConfigError(f"{owner}: label2id is {label2id!r}, but must be an object or None.")
            self.label2id = dict(label2id)

    @property
    def num_labels(self) -> int:
        """Number of outputs of the classification heads."""
        return len(self.id2label)

    @num_labels.setter
    def num_labels(self, value: int) -> None:
        Integer(minimum=0, maximum=1_000_000).check(type(self).__name__, "num_labels", value)
        if getattr(self, "id2label", None) is None or len(self.id2label) != value:
            self.id2label = {index: f"LABEL_{index}" for index in range(value)}
            self.label2id = {name: index for index, name in self.id2label.items()}

    @property
    def name_or_path(self) -> str:
        """The name or folder this configuration was loaded from, or an empty string."""
        return self._name_or_path

    @property
    def use_return_dict(self) -> bool:
        """Whether `forward` returns a ModelOutput when not told."""
        return bool(self.return_dict)

    @property
    def torch_dtype(self) -> str | None:
        """The older name of `dtype`."""
        return self.dtype

    @torch_dtype.setter
    def torch_dtype(self, value: Any) -> None:
        self.dtype = value

    def __setattr__(self, key: str, value: Any) -> None:
        key = type(self).attribute_map.get(key, key)
        if key == "dtype" and value is not None:
            value = str(value).removeprefix("torch.")
        object.__setattr__(self, key, value)

    def __getattr__(self, key: str) -> Any:
        # Called only when the attribute is not there: an alias, or a mistake.
        target = type(self).attribute_map.get(key)
        if target is None or key.startswith("__"):
            raise AttributeError(
                f"{type(self).__name__} has no field {key!r}."
                f"{suggest(key, [*self.__dict__, *type(self).attribute_map])}"
            )
        return getattr(self, target)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PreTrainedConfig) and self.to_dict() == other.to_dict()

    __hash__ = None  # type: ignore[assignment]  # a mutable value

    def __repr__(self) -> str:
        return f"{type(self).__name__} {self.to_json_string()}"

    def validate(self) -> None:
        """Check every known field.

        Raises:
            ConfigError: naming the field, its value and what is allowed.
        """
        # The class's rules: a file may hold a key of that name.
        for name, rule in {**COMMON_RULES, **type(self).rules}.items():
            rule.check(type(self).__name__, name, getattr(self, name, None))

    def to_dict(self) -> dict[str, Any]:
        """Return every field as JSON types, `model_type` included."""
        out = {key: copy.deepcopy(value) for key, value in self.__dict__.items() if not key.startswith("_")}
        out["model_type"] = self.model_type
        out["transformers_version"] = TRANSFORMERS_VERSION
        if self._name_or_path:
            out["_name_or_path"] = self._name_or_path
        return out

    def to_diff_dict(self) -> dict[str, Any]:
        """Return the fields that the family defines or changes, and those that differ from the base defaults."""
        base, family = PreTrainedConfig().to_dict(), type(self)().to_dict()
        always = {*type(self).rules, "model_type", "transformers_version"}
        return {
            key: value
            for key, value in self.to_dict().items()
            if key in always or key not in base or base[key] != value or family.get(key) != value
        }

    def to_json_string(self, use_diff: bool = True) -> str:
        """Return sorted, indented JSON text ending with a newline."""
        data = self.to_diff_dict() if use_diff else self.to_dict()
        data.pop("_name_or_path", None)
        return json.dumps(data, indent=2, sort_keys=True) + "\n"

    def to_json_file(self, json_file_path: str | os.PathLike[str], use_diff: bool = True) -> None:
        """Write the JSON text to a file, whole or not at all."""
        write_text_atomic(Path(json_file_path), self.to_json_string(use_diff))

    def update(self, config_dict: dict[str, Any]) -> None:
        """Set fields from a dict, and check them.

        Raises:
            ConfigError: a value is not allowed; the configuration is then as it was.
        """
        before = copy.deepcopy(self.__dict__)
        try:
            for key, value in config_dict.items():
                setattr(self, key, value)
            self.validate()
        except ConfigError:
            self.__dict__.clear()
            self.__dict__.update(before)
            raise

    def save_pretrained(self, save_directory: str | os.PathLike[str], push_to_hub: bool = False, **kwargs: Any) -> None:
        """Write config.json into a folder, which is made when it is not there.

        Raises:
            ConfigError: the path is a file, or `push_to_hub` is asked of the configuration alone.
        """
        if push_to_hub:
            raise ConfigError("push_to_hub: upload the whole model with model.push_to_hub(repo_id) instead.")
        if kwargs:
            raise ConfigError(f"save_pretrained: unknown option {next(iter(kwargs))!r}.")
        folder = Path(save_directory)
        if folder.exists() and not folder.is_dir():
            raise ConfigError(f"{folder} is a file; save_pretrained needs a folder. Give another path.")
        folder.mkdir(parents=True, exist_ok=True)
        self.to_json_file(folder / CONFIG_NAME)

    @classmethod
    def get_config_dict(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Read config.json of a folder or name; return it and the keywords that are not about finding it."""
        where = {key: kwargs.pop(key) for key in HUB_KEYS if key in kwargs}
        path = Path(pretrained_model_name_or_path)
        if path.is_file():
            file = path
        else:
            file = resolve_folder(pretrained_model_name_or_path, files=(CONFIG_NAME,), **where) / CONFIG_NAME
        data = read_json(file)
        data["_name_or_path"] = str(pretrained_model_name_or_path)
        return data, kwargs

    @classmethod
    def from_pretrained(
        cls: type[ConfigT], pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any
    ) -> Any:
        """Load config.json from a folder, a file or a hub name.

        Args:
            pretrained_model_name_or_path: Folder, config.json itself, or a name on the hub.
            **kwargs: `cache_dir`, `revision`, `local_files_only`, `token`, `subfolder` for the search;
                `return_unused_kwargs=True` to get `(config, unused)`; all others override fields.

        Raises:
            HubError: nothing found. ConfigError: not JSON, or a value that is not allowed.
        """
        data, kwargs = cls.get_config_dict(pretrained_model_name_or_path, **kwargs)
        found = data.get("model_type")
        if cls.model_type and found is not None and found != cls.model_type:
            raise ConfigError(
                f"{pretrained_model_name_or_path} holds a {found!r} configuration, and {cls.__name__} reads "
                f"{cls.model_type!r}. Use AutoConfig.from_pretrained, or the class of that family."
            )
        return cls.from_dict(data, **kwargs)

    @classmethod
    def from_json_file(cls: type[ConfigT], json_file: str | os.PathLike[str]) -> ConfigT:
        """Load a configuration from one JSON file."""
        return cls.from_dict(read_json(Path(json_file)))

    @classmethod
    def from_dict(cls: type[ConfigT], config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Make a configuration from a dict; keywords that name fields override, the others are unused."""
        return_unused = kwargs.pop("return_unused_kwargs", False)
        if "self" in config_dict:  # the one name that no keyword can have
            raise ConfigError(f"{cls.__name__}: the key 'self' cannot be a field. Remove it from config.json.")
        for old, new in {"torch_dtype": "dtype"}.items():
            if old in config_dict and config_dict.get(new) is None:
                config_dict = {**config_dict, new: config_dict[old]}
        config_dict = {key: value for key, value in config_dict.items() if key != "torch_dtype"}
        known = {*cls().__dict__, *cls.attribute_map, "num_labels", "torch_dtype", "attn_implementation", *config_dict}
        overrides = {key: value for key, value in kwargs.items() if key in known and not key.startswith("_")}
        unused = {key: value for key, value in kwargs.items() if key not in overrides}
        if "num_labels" in overrides:  # it replaces the file's label names unless they have the same number
            names = overrides.get("id2label", config_dict.get("id2label"))
            if names is not None and len(names) != overrides["num_labels"]:
                config_dict = {k: v for k, v in config_dict.items() if k not in ("id2label", "label2id")}
        config = cls(**{**config_dict, **overrides})
        if return_unused:
            return config, unused
        if unused:
            name = next(iter(unused))
            raise ConfigError(f"{cls.__name__} has no field {name!r}.{suggest(name, known)} Remove it or correct it.")
        return config


PretrainedConfig = PreTrainedConfig


def check_heads(config: Any) -> None:
    """Check the heads of a decoder of the first generations, with the names `n_embd`, `n_head` and `n_layer`.

    Raises:
        ConfigError: the width is no multiple of the number of heads, or `pruned_heads` names heads that are not there.
    """
    owner, heads, layers = type(config).__name__, config.n_head, config.n_layer
    if config.n_embd % heads:
        raise ConfigError(
            f"{owner}: n_embd is {config.n_embd} and n_head is {heads}, but n_embd must be a multiple of n_head. "
            "Change one of them."
        )
    for layer, pruned in config.pruned_heads.items():
        if layer >= layers or any(head >= heads for head in pruned) or len({*pruned}) == heads:
            raise ConfigError(
                f"{owner}: pruned_heads names {pruned} of layer {layer}, but there are {layers} layers of {heads} "
                "heads, counted from 0, and one head of a layer must stay. Correct it."
            )


def check_shapes(config: Any) -> None:
    """Check what the sizes of a decoder with grouped key/value heads must be to each other.

    Raises:
        ConfigError: query heads are no multiple of the key/value heads, or the padding token is not in the vocabulary.
    """
    owner, heads, groups = type(config).__name__, config.num_attention_heads, config.num_key_value_heads
    if heads % groups:
        raise ConfigError(
            f"{owner}: num_attention_heads is {heads} and num_key_value_heads is {groups}, but the first must be a "
            "multiple of the second. Change one of them."
        )
    pad = config.pad_token_id
    if pad is not None and (isinstance(pad, list) or not -1 <= pad < config.vocab_size):
        raise ConfigError(
            f"{owner}: pad_token_id is {pad}, but must be one id below vocab_size ({config.vocab_size}), or None."
        )
