"""What a user or a config.json says about weights that other packages pack: bitsandbytes and torchao."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from quintet.errors import ConfigError

__all__ = ["BitsAndBytesConfig", "ForeignConfig", "TorchAoConfig"]

_STORAGE = ("float16", "float32", "int8", "uint8", "float64", "bfloat16")


class ForeignConfig:
    """Base of both: the methods that a `quantization_config` has."""

    quant_method: str

    @classmethod
    def from_dict(cls, config_dict: Mapping[str, Any], return_unused_kwargs: bool = False, **kwargs: Any) -> Any:
        """Make one of the `quantization_config` of a config.json; keywords that are fields override it.

        Returns:
            The configuration; with `return_unused_kwargs` also the keywords that are none.
        """
        made = cls(**{str(key): value for key, value in config_dict.items()})
        unused = made.update(**kwargs)
        return (made, unused) if return_unused_kwargs else made

    def to_dict(self) -> dict[str, Any]:
        """Return the `quantization_config` of a config.json."""
        return {"quant_method": self.quant_method, **copy.deepcopy(self.__dict__)}

    def to_diff_dict(self) -> dict[str, Any]:
        """Return what differs from the defaults."""
        return self.to_dict()

    def to_json_string(self, use_diff: bool = True) -> str:
        """Return JSON of what differs from the defaults, or of everything."""
        return json.dumps(self.to_diff_dict() if use_diff else self.to_dict(), indent=2, sort_keys=True) + "\n"

    def to_json_file(self, json_file_path: str | os.PathLike[str]) -> None:
        """Write everything to a file."""
        with open(json_file_path, "w", encoding="utf-8", newline="\n") as file:
            file.write(self.to_json_string(use_diff=False))

    def update(self, **kwargs: Any) -> dict[str, Any]:
        """Set fields, and return the keywords that are none."""
        for key, value in kwargs.items():
            if hasattr(self, key):
                setattr(self, key, value)
        return {key: value for key, value in kwargs.items() if not hasattr(self, key)}

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        yield from self.to_dict().items()

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.__dict__ == other.__dict__

    __hash__ = None  # type: ignore[assignment]  # its fields may be set

    def __repr__(self) -> str:
        return f"{type(self).__name__} {self.to_json_string(use_diff=False)}"


class BitsAndBytesConfig(ForeignConfig):
    """Asks for linear layers packed by bitsandbytes (the extra `bitsandbytes`): LLM.int8(), NF4 or FP4.

    Args:
        load_in_8bit: 8 bits, with columns of large inputs kept in 16.
        load_in_4bit: 4 bits.
        llm_int8_threshold: From what magnitude on an input counts as large.
        llm_int8_skip_modules: Paths of modules that stay as they are, with 4 bits too; `*` stands for any text.
        llm_int8_enable_fp32_cpu_offload: Taken and without effect: a model is on one device.
        llm_int8_has_fp16_weight: Keep the weight in 16 bits beside, for training it.
        bnb_4bit_compute_dtype: Type of the products, as torch.dtype or its name; None is float32.
        bnb_4bit_quant_type: "nf4" or "fp4".
        bnb_4bit_use_double_quant: Pack the scales too.
        bnb_4bit_quant_storage: Type of the tensors that hold the packed numbers; None is uint8.
        **kwargs: Other keys of a config.json's `quantization_config`; taken and without effect.

    Raises:
        ConfigError: A value that is not allowed.
    """

    quant_method = "bitsandbytes"

    def __init__(
        self,
        load_in_8bit: bool = False,
        load_in_4bit: bool = False,
        llm_int8_threshold: float = 6.0,
        llm_int8_skip_modules: list[str] | None = None,
        llm_int8_enable_fp32_cpu_offload: bool = False,
        llm_int8_has_fp16_weight: bool = False,
        bnb_4bit_compute_dtype: torch.dtype | str | None = None,
        bnb_4bit_quant_type: str = "fp4",
        bnb_4bit_use_double_quant: bool = False,
        bnb_4bit_quant_storage: torch.dtype | str | None = None,
        **kwargs: Any,
    ) -> None:
        self._load_in_8bit = _flag("load_in_8bit", load_in_8bit)
        self._load_in_4bit = _flag("load_in_4bit", load_in_4bit)
        self._check_bits()
        if isinstance(llm_int8_threshold, bool) or not isinstance(llm_int8_threshold, (int, float)):
            raise ConfigError(f"BitsAndBytesConfig: llm_int8_threshold={llm_int8_threshold!r} must be a number.")
        skip = llm_int8_skip_modules
        if skip is not None and not (isinstance(skip, list) and all(isinstance(name, str) for name in skip)):
            raise ConfigError(
                f"BitsAndBytesConfig: llm_int8_skip_modules={skip!r} must be a list of module paths, or None."
            )
        if bnb_4bit_quant_type not in ("fp4", "nf4"):
            raise ConfigError(
                f"BitsAndBytesConfig: bnb_4bit_quant_type={bnb_4bit_quant_type!r} must be 'nf4' or 'fp4'."
            )
        self.llm_int8_threshold = float(llm_int8_threshold)
        self.llm_int8_skip_modules = skip
        self.llm_int8_enable_fp32_cpu_offload = _flag(
            "llm_int8_enable_fp32_cpu_offload", llm_int8_enable_fp32_cpu_offload
        )
        self.llm_int8_has_fp16_weight = _flag("llm_int8_has_fp16_weight", llm_int8_has_fp16_weight)
        self.bnb_4bit_quant_type = bnb_4bit_quant_type
        self.bnb_4bit_use_double_quant = _flag("bnb_4bit_use_double_quant", bnb_4bit_use_double_quant)
        self.bnb_4bit_compute_dtype = _dtype("bnb_4bit_compute_dtype", bnb_4bit_compute_dtype, torch.float32)
        self.bnb_4bit_quant_storage = _dtype("bnb_4bit_quant_storage", bnb_4bit_quant_storage, torch.uint8, _STORAGE)

    def _check_bits(self) -> None:
        if self._load_in_4bit and self._load_in_8bit:
            raise ConfigError("BitsAndBytesConfig: load_in_4bit and load_in_8bit are both True. Choose one of them.")

    @property
    def load_in_4bit(self) -> bool:
        """Whether 4 bits are asked for."""
        return self._load_in_4bit

    @load_in_4bit.setter
    def load_in_4bit(self, value: bool) -> None:
        self._load_in_4bit = _flag("load_in_4bit", value)
        self._check_bits()

    @property
    def load_in_8bit(self) -> bool:
        """Whether 8 bits are asked for."""
        return self._load_in_8bit

    @load_in_8bit.setter
    def load_in_8bit(self, value: bool) -> None:
        self._load_in_8bit = _flag("load_in_8bit", value)
        self._check_bits()

    @property
    def modules_to_not_convert(self) -> list[str] | None:
        """Another name of `llm_int8_skip_modules`, that of the other configurations."""
        return self.llm_int8_skip_modules

    def is_quantizable(self) -> bool:
        """Whether anything is asked for."""
        return self.load_in_8bit or self.load_in_4bit

    def quantization_method(self) -> str | None:
        """Return "llm_int8", "fp4", "nf4" or None."""
        if self.load_in_8bit:
            return "llm_int8"
        return self.bnb_4bit_quant_type if self.load_in_4bit else None

    def to_dict(self) -> dict[str, Any]:
        """Return the `quantization_config` of a config.json, types by their names."""
        values = super().to_dict()
        for name in ("bnb_4bit_compute_dtype", "bnb_4bit_quant_storage"):
            values[name] = str(values[name]).removeprefix("torch.")
        return {**values, "load_in_4bit": self.load_in_4bit, "load_in_8bit": self.load_in_8bit}

    def to_diff_dict(self) -> dict[str, Any]:
        """Return what differs from the defaults."""
        plain = BitsAndBytesConfig().to_dict()
        return {key: value for key, value in self.to_dict().items() if value != plain[key]}


class TorchAoConfig(ForeignConfig):
    """Asks for linear layers packed by torchao (the extra `torchao`).

    Args:
        quant_type: One of torchao's own configurations, such as `Int8WeightOnlyConfig()`.
        modules_to_not_convert: Paths of modules that stay as they are; `*` stands for any text.
        include_input_output_embeddings: Refused when true: embeddings stay as they are.
        untie_embedding_weights: Taken and without effect, as embeddings are not packed.
        **kwargs: Other keys of a config.json's `quantization_config`; taken and without effect.

    Raises:
        ConfigError: torchao is not installed, or a value that is not allowed.
    """

    quant_method = "torchao"

    def __init__(
        self,
        quant_type: Any,
        modules_to_not_convert: list[str] | None = None,
        include_input_output_embeddings: bool = False,
        untie_embedding_weights: bool = False,
        **kwargs: Any,
    ) -> None:
        base = torchao().core.config.AOBaseConfig
        if not isinstance(quant_type, base):
            raise ConfigError(
                f"TorchAoConfig: quant_type is {quant_type!r}, but must be a configuration of torchao, such as "
                "torchao.quantization.Int8WeightOnlyConfig()."
            )
        skip = modules_to_not_convert
        if skip is not None and not (isinstance(skip, list) and all(isinstance(name, str) for name in skip)):
            raise ConfigError(
                f"TorchAoConfig: modules_to_not_convert={skip!r} must be a list of module paths, or None."
            )
        if include_input_output_embeddings:
            raise ConfigError(
                "TorchAoConfig: include_input_output_embeddings=True is not supported: embeddings stay as they are. "
                "Leave it out."
            )
        self.quant_type = quant_type
        self.modules_to_not_convert = skip
        self.include_input_output_embeddings = False
        self.untie_embedding_weights = untie_embedding_weights

    def get_apply_tensor_subclass(self) -> Any:
        """Return torchao's own configuration."""
        return self.quant_type

    def to_dict(self) -> dict[str, Any]:
        """Return the `quantization_config` of a config.json."""
        kind = torchao().core.config.config_to_dict(self.quant_type)
        return {**super().to_dict(), "quant_type": {"default": kind}}

    @classmethod
    def from_dict(cls, config_dict: Mapping[str, Any], return_unused_kwargs: bool = False, **kwargs: Any) -> Any:
        """See ForeignConfig."""
        kind = config_dict.get("quant_type")
        if not isinstance(kind, Mapping) or set(kind) != {"default"}:
            raise ConfigError(f"TorchAoConfig: quant_type is {kind!r}, but must be a mapping with the key 'default'.")
        made = torchao().core.config.config_from_dict(dict(kind["default"]))
        return super().from_dict({**config_dict, "quant_type": made}, return_unused_kwargs, **kwargs)


def torchao() -> Any:
    """Return the package.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import torchao as package
        import torchao.core.config
        import torchao.quantization
    except ImportError as error:
        raise ConfigError(
            "TorchAoConfig needs the package torchao: pip install 'quintet[torchao]'. Or use quintet's own formats, "
            'which need nothing: quantization="int8" or "int4".'
        ) from error
    return package


def bitsandbytes() -> Any:
    """Return the package.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import bitsandbytes as package
    except ImportError as error:
        raise ConfigError(
            "BitsAndBytesConfig needs the package bitsandbytes: pip install 'quintet[bitsandbytes]'. Or use quintet's "
            'own 4 bits, which need nothing: quantization="int4".'
        ) from error
    return package


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise ConfigError(f"BitsAndBytesConfig: {name}={value!r} must be True or False.")
    return value


def _dtype(name: str, value: Any, default: torch.dtype, allowed: tuple[str, ...] | None = None) -> torch.dtype:
    if value is None:
        return default
    word = value.removeprefix("torch.") if isinstance(value, str) else str(value).removeprefix("torch.")
    found = getattr(torch, word, None) if isinstance(value, str) else value
    if not isinstance(found, torch.dtype) or (allowed is not None and word not in allowed):
        words = ", ".join(allowed or ("float16", "bfloat16", "float32"))
        raise ConfigError(f"BitsAndBytesConfig: {name}={value!r} is not a type for this. Use one of {words}.")
    return found
