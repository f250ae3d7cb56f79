"""From a checkpoint's `model_type` to its classes: AutoConfig and every AutoModel*.

A family is found by its file: `models/<model_type>.py` with a `FAMILY` record. Families of your own are made known with
`register_family`, single classes with the `register` of each Auto class. Nothing is fetched and no code from a
checkpoint is ever run.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
from functools import lru_cache
from typing import Any, ClassVar

import quintet.models
from quintet.config import HUB_KEYS, PreTrainedConfig
from quintet.errors import ConfigError, suggest
from quintet.family import Family

__all__ = [
    "AutoConfig",
    "AutoModel",
    "AutoModelForCausalLM",
    "AutoModelForQuestionAnswering",
    "AutoModelForSequenceClassification",
    "AutoModelForTokenClassification",
    "AutoModelWithLMHead",
    "family_of",
    "model_types",
    "register_family",
]

# What users registered, on top of what the package has: whole families, and configuration classes alone.
_families: dict[str, Family] = {}
_registered: dict[str, type[PreTrainedConfig]] = {}


@lru_cache
def _files() -> dict[str, str]:
    """Map model_type to module name: "openai-gpt" lives in openai_gpt.py."""
    names = [module.name for module in pkgutil.iter_modules(quintet.models.__path__)]
    return {name.replace("_", "-") if name == "openai_gpt" else name: name for name in names}


def model_types() -> list[str]:
    """The model types that can be loaded."""
    return sorted({*_files(), *_families, *_registered})


def register_family(family: Family, exist_ok: bool = False) -> None:
    """Make a family of your own known to AutoConfig and every AutoModel; see docs/adding_a_model.md.

    Args:
        family: Its record. Registering the same record again changes nothing.
        exist_ok: Replace what has its `model_type` now.

    Raises:
        ConfigError: no record, one whose parts do not belong together, or a `model_type` that is taken.
    """
    if not isinstance(family, Family):
        raise ConfigError(f"register_family needs a quintet.family.Family and got {family!r:.100}. Make one.")
    name = family.model_type
    if not name or family.config.model_type != name:
        raise ConfigError(
            f"the family {name!r} has {family.config.__name__}, whose model_type is {family.config.model_type!r}. Give "
            "both the same, one that is not empty."
        )
    if "base" not in family.classes:
        raise ConfigError(f"the family {name!r} has no class for the task 'base', only {[*family.classes]}. Add it.")
    for model_class in family.classes.values():
        _check_belongs(model_class, family.config)
    if name in model_types() and _families.get(name) is not family and not exist_ok:
        raise ConfigError(f"model_type {name!r} is taken. Choose another, or pass exist_ok=True.")
    _families[name] = family
    _registered.pop(name, None)


def _check_belongs(model_class: Any, config_class: Any) -> None:
    if getattr(model_class, "config_class", None) is not config_class:
        name = getattr(model_class, "__name__", repr(model_class))
        raise ConfigError(
            f"{name} is no model of {config_class.__name__}: its config_class is "
            f"{getattr(model_class, 'config_class', None)!r}. Derive it from PreTrainedModel and set config_class."
        )


def _has_family(model_type: str) -> bool:
    return model_type in _files() or model_type in _families


def family_of(model_type: str) -> Family:
    """Return the record of a family.

    Raises:
        ConfigError: there is no such family; the message lists them.
    """
    # The name comes from a file: it is looked up in a table, never put into an import.
    if isinstance(model_type, str) and model_type in _families:
        return _families[model_type]
    if not isinstance(model_type, str) or model_type not in _files():
        hint = suggest(model_type, model_types()) if isinstance(model_type, str) else ""
        raise ConfigError(f"unknown model_type {model_type!r}; known are {', '.join(model_types())}.{hint}")
    family: Family = importlib.import_module(f"quintet.models.{_files()[model_type]}").FAMILY
    return family


def _config_class(model_type: str) -> type[PreTrainedConfig]:
    if isinstance(model_type, str) and model_type in _registered:  # it may come from a file, and be anything
        return _registered[model_type]
    config_class: type[PreTrainedConfig] = family_of(model_type).config
    return config_class


class AutoConfig:
    """Loads the configuration class that a config.json asks for."""

    def __init__(self) -> None:
        raise TypeError("AutoConfig is not made; use AutoConfig.from_pretrained(name).")

    @classmethod
    def for_model(cls, model_type: str, **kwargs: Any) -> PreTrainedConfig:
        """Make the configuration of a family from its fields; an unknown field is refused."""
        config_class = _config_class(model_type)
        config: PreTrainedConfig = config_class.from_dict({}, **kwargs)
        return config

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any) -> Any:
        """Load config.json; arguments as in PreTrainedConfig.from_pretrained.

        Raises:
            ConfigError: no `model_type`, or one that is unknown.
        """
        _refuse_remote_code(kwargs)
        data, kwargs = PreTrainedConfig.get_config_dict(pretrained_model_name_or_path, **kwargs)
        model_type = data.get("model_type")
        if model_type is None:
            model_type = _guess(data, str(pretrained_model_name_or_path))
        return _config_class(model_type).from_dict(data, **kwargs)

    @classmethod
    def register(cls, model_type: str, config: type[PreTrainedConfig], exist_ok: bool = False) -> None:
        """Let AutoConfig load a configuration class of your own.

        Raises:
            ConfigError: it is no configuration class, has another `model_type`, or the name is taken and `exist_ok` is
                false.
        """
        if not (isinstance(config, type) and issubclass(config, PreTrainedConfig)):
            raise ConfigError(f"{config!r} is not a configuration class: derive it from PreTrainedConfig.")
        if config.model_type != model_type:
            raise ConfigError(
                f"{config.__name__} has model_type {config.model_type!r}, not {model_type!r}. Use its own."
            )
        if model_type in model_types() and not exist_ok:
            raise ConfigError(f"model_type {model_type!r} is taken. Choose another, or pass exist_ok=True.")
        _registered[model_type] = config


def _guess(data: dict[str, Any], where: str) -> str:
    """Name the family of a config.json from before `model_type` existed, by its architectures."""
    architectures = data.get("architectures")
    for architecture in architectures if isinstance(architectures, list) else ():
        name = str(architecture).removeprefix("TF")  # the classes for TensorFlow read the same files
        for model_type in sorted({*_files(), *_families}):
            if name in {model_class.__name__ for model_class in family_of(model_type).classes.values()}:
                return model_type
    raise ConfigError(
        f"the config.json of {where} has no model_type; known are {', '.join(model_types())}. Add the right one, or "
        "load with the family's own class."
    )


def _refuse_remote_code(kwargs: dict[str, Any]) -> None:
    if kwargs.pop("trust_remote_code", False):
        raise ConfigError("trust_remote_code=True: quintet never runs code from a checkpoint. Leave it out.")


class _AutoModel:
    """Base of the AutoModel classes: the same two constructors for one task."""

    _task: ClassVar[str] = ""
    _own: ClassVar[dict[type[PreTrainedConfig], type[Any]]] = {}

    def __init_subclass__(cls) -> None:
        cls._own = {}

    def __init__(self) -> None:
        name = type(self).__name__
        raise TypeError(f"{name} is not made; use {name}.from_pretrained(name) or {name}.from_config(config).")

    @classmethod
    def _class_for(cls, config: PreTrainedConfig) -> type[Any]:
        if type(config) in cls._own:
            return cls._own[type(config)]
        alone = _registered.get(config.model_type) is type(config)
        if alone and not (_has_family(config.model_type) and isinstance(config, family_of(config.model_type).config)):
            name = type(config).__name__
            raise ConfigError(
                f"{cls.__name__} has no model for {name}. Call {cls.__name__}.register({name}, <your class>), or "
                "register_family with the whole family."
            )
        classes = family_of(config.model_type).classes
        if cls._task not in classes:
            raise ConfigError(
                f"{cls.__name__}: the family {config.model_type!r} has no {cls._task} model, only {', '.join(classes)}."
            )
        return classes[cls._task]

    @classmethod
    def from_config(cls, config: PreTrainedConfig, **kwargs: Any) -> Any:
        """Make a model with new weights; `attn_implementation` and `dtype` as in from_pretrained."""
        _refuse_remote_code(kwargs)
        return cls._class_for(config)._from_config(config, **kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str], *args: Any, **kwargs: Any) -> Any:
        """Load a checkpoint with the class of its family; arguments as in PreTrainedModel.from_pretrained."""
        _refuse_remote_code(kwargs)
        config = kwargs.get("config")
        if not isinstance(config, PreTrainedConfig):
            hub = {key: kwargs[key] for key in HUB_KEYS if key in kwargs}
            config = AutoConfig.from_pretrained(config or pretrained_model_name_or_path, **hub)
        return cls._class_for(config).from_pretrained(pretrained_model_name_or_path, *args, **kwargs)

    @classmethod
    def register(cls, config_class: type[PreTrainedConfig], model_class: type[Any], exist_ok: bool = False) -> None:
        """Let this class load a model class of your own.

        Raises:
            ConfigError: the model's `config_class` is another one, or the configuration has a model already and
                `exist_ok` is false.
        """
        _check_belongs(model_class, config_class)
        if config_class in cls._own and not exist_ok:
            raise ConfigError(f"{cls.__name__} has a model for {config_class.__name__} already. Pass exist_ok=True.")
        cls._own[config_class] = model_class


class AutoModel(_AutoModel):
    """The model without a head."""

    _task = "base"


class AutoModelForCausalLM(_AutoModel):
    """The model with next-token scores."""

    _task = "causal-lm"


AutoModelWithLMHead = AutoModelForCausalLM  # the name before 2020, which old pages print


class AutoModelForSequenceClassification(_AutoModel):
    """The model with scores for a whole text."""

    _task = "sequence-classification"


class AutoModelForTokenClassification(_AutoModel):
    """The model with scores for each token."""

    _task = "token-classification"


class AutoModelForQuestionAnswering(_AutoModel):
    """The model with scores for the start and end of an answer."""

    _task = "question-answering"
