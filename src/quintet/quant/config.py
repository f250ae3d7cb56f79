"""What a user or a config.json says about the format of the weights. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from quintet.errors import ConfigError

__all__ = ["Mxfp4Config", "parse_quantization"]

METHODS = ("mxfp4",)


class Mxfp4Config:
    """Asks for experts in MXFP4, the format that gpt-oss is published in.

    Args:
        modules_to_not_convert: Paths of modules that stay as they are; `*` stands for any text
            ("model.layers.*.mlp.router").
        dequantize: Unpack a packed checkpoint to the model's type while it is loaded.
        **kwargs: Other keys of a config.json's `quantization_config`; taken and without effect.

    Raises:
        ConfigError: An argument is of another type.
    """

    quant_method = "mxfp4"

    def __init__(
        self, modules_to_not_convert: list[str] | None = None, dequantize: bool = False, **kwargs: Any
    ) -> None:
        names = modules_to_not_convert
        if names is not None and not (isinstance(names, (list, tuple)) and all(isinstance(n, str) for n in names)):
            raise ConfigError(
                f"Mxfp4Config: modules_to_not_convert={names!r} must be a list of module paths, such as "
                "['lm_head', 'model.layers.*.mlp.router'], or None."
            )
        if not isinstance(dequantize, bool):
            raise ConfigError(f"Mxfp4Config: dequantize={dequantize!r} must be True or False.")
        self.modules_to_not_convert = None if names is None else list(names)
        self.dequantize = dequantize

    def to_dict(self) -> dict[str, Any]:
        """Return the `quantization_config` of a config.json."""
        return {"quant_method": self.quant_method, "modules_to_not_convert": self.modules_to_not_convert}

    def __repr__(self) -> str:
        return f"Mxfp4Config(modules_to_not_convert={self.modules_to_not_convert}, dequantize={self.dequantize})"


def parse_quantization(value: Any, owner: str) -> Mxfp4Config | None:
    """Return what a `quantization_config` asks for: None, a Mxfp4Config, or a mapping with its keys.

    Args:
        value: An argument, or that part of a config.json.
        owner: Named in errors.

    Raises:
        ConfigError: Another method, or a value that is not allowed.
    """
    if value is None or isinstance(value, Mxfp4Config):
        return value
    if isinstance(value, Mapping):
        # A mapping without a method is one from a call, where only one method exists.
        method = value.get("quant_method", METHODS[0] if {*value} <= {"dequantize", "modules_to_not_convert"} else None)
        fields = {str(key): item for key, item in value.items() if key != "quant_method"}
    else:  # the same class of another library
        method = getattr(value, "quant_method", type(value).__name__)
        fields = {key: getattr(value, key) for key in ("modules_to_not_convert", "dequantize") if hasattr(value, key)}
    method = getattr(method, "value", method)  # of an enumeration
    if method in METHODS:
        return Mxfp4Config(**fields)
    raise ConfigError(
        f"{owner} has a quantization_config of the method {str(method)!r}, and what is "
        f"read is plain weights and {', '.join(METHODS)}. Load a checkpoint in one of these."
    )
