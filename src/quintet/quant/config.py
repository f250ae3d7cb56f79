"""What a user or a config.json says about the format of the weights. No torch."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from quintet.errors import ConfigError

__all__ = ["CHOICES", "IntegerConfig", "Mxfp4Config", "Quantization", "parse_quantization", "parse_short", "said_of"]

# Short names of `from_pretrained(quantization=...)`; two are joined by a plus.
SHORT = ("mxfp4", "int8", "int4")
GROUP_SIZE = 32
# What packed layers multiply their weights with.
CHOICES = ("auto", "bf16", "int8")


class Mxfp4Config:
    """Asks for experts in MXFP4, the format that gpt-oss is published in.

    Args:
        modules_to_not_convert: Paths of modules that stay as they are; `*` stands for any text
            ("model.layers.*.mlp.router").
        dequantize: Unpack a packed checkpoint to the model's type while it is loaded.
        activations: As of `IntegerConfig`.
        **kwargs: Other keys of a config.json's `quantization_config`; taken and without effect.

    Raises:
        ConfigError: An argument is of another type.
    """

    quant_method = "mxfp4"

    def __init__(
        self,
        modules_to_not_convert: list[str] | None = None,
        dequantize: bool = False,
        activations: str = "auto",
        **kwargs: Any,
    ) -> None:
        if not isinstance(dequantize, bool):
            raise ConfigError(f"Mxfp4Config: dequantize={dequantize!r} must be True or False.")
        self.modules_to_not_convert = _paths("Mxfp4Config", modules_to_not_convert)
        self.dequantize = dequantize
        self.activations = _choice("Mxfp4Config", activations)

    def to_dict(self) -> dict[str, Any]:
        """Return the `quantization_config` of a config.json."""
        values = {"quant_method": self.quant_method, "modules_to_not_convert": self.modules_to_not_convert}
        return values | said_of(activations=self.activations)

    def __repr__(self) -> str:
        return f"Mxfp4Config(modules_to_not_convert={self.modules_to_not_convert}, dequantize={self.dequantize})"


class IntegerConfig:
    """Asks for linear layers in whole numbers of 8 or 4 bits with scales.

    Embeddings, norms, routers and heads of classes stay as they are; so does the output head unless `head_bits` says
    otherwise. The form on disk is that of `compressed-tensors`, which vLLM reads too.

    Args:
        bits: 8 or 4.
        group_size: Inputs that share a scale; None means one scale per output for 8 bits, and 32 for 4.
        symmetric: Without zero points, which only 4 bits can have.
        head_bits: 8 or 4 packs the output head too; it is then no longer tied to the embedding.
        modules_to_not_convert: Paths of modules that stay as they are; `*` stands for any text.
        dequantize: Unpack a packed checkpoint to the model's type while it is loaded.
        activations: What weights are multiplied with. "bf16": they stay as they are. "int8": those of more than 8
            rows, a prompt or a batch, are rounded to 8 bits in groups of 32. "auto": that is done where it is faster,
            but never in float32.

    Raises:
        ConfigError: An argument is not one of these.
    """

    quant_method = "compressed-tensors"

    def __init__(
        self,
        bits: int = 8,
        group_size: int | None = None,
        symmetric: bool = True,
        head_bits: int | None = None,
        modules_to_not_convert: list[str] | None = None,
        dequantize: bool = False,
        activations: str = "auto",
    ) -> None:
        for name, value, allowed in (("bits", bits, (8, 4)), ("head_bits", head_bits, (8, 4, None))):
            if isinstance(value, bool) or value not in allowed:
                words = " or ".join(str(one) for one in allowed)
                raise ConfigError(f"IntegerConfig: {name} is {value!r}, but must be {words}.")
        if group_size is not None and (isinstance(group_size, bool) or not isinstance(group_size, int)):
            raise ConfigError(
                f"IntegerConfig: group_size is {group_size!r}, but must be an integer such as 32, or None."
            )
        if group_size is not None and (group_size < 32 or group_size % 32):
            raise ConfigError(f"IntegerConfig: group_size is {group_size}, but must be a multiple of 32 such as 128.")
        for flag, value in (("symmetric", symmetric), ("dequantize", dequantize)):
            if not isinstance(value, bool):
                raise ConfigError(f"IntegerConfig: {flag}={value!r} must be True or False.")
        if bits == 8 and not symmetric:
            raise ConfigError("IntegerConfig: symmetric=False is for 4 bits; 8 bits have no zero points. Leave it out.")
        self.bits = bits
        self.group_size = GROUP_SIZE if group_size is None and bits == 4 else group_size
        self.symmetric = symmetric
        self.head_bits = head_bits
        self.modules_to_not_convert = _paths("IntegerConfig", modules_to_not_convert)
        self.dequantize = dequantize
        self.activations = _choice("IntegerConfig", activations)

    def to_dict(self, ignore: list[str] | None = None, head: str = "lm_head") -> dict[str, Any]:
        """Return the `quantization_config` of a config.json.

        Args:
            ignore: Linear modules of the model that are not packed.
            head: Name of the output head.
        """
        groups = {"group_0": self._scheme(self.bits, ["Linear"])}
        if self.head_bits is not None and self.head_bits != self.bits:
            groups["group_1"] = self._scheme(self.head_bits, [f"re:.*{head}$"])
        formats = {group["format"] for group in groups.values()}
        return {
            "quant_method": self.quant_method,
            "quantization_status": "compressed",
            "format": formats.pop() if len(formats) == 1 else "mixed-precision",
            "ignore": list(self.modules_to_not_convert or ()) if ignore is None else ignore,
            "config_groups": groups,
            "kv_cache_scheme": None,
            "global_compression_ratio": None,
            **said_of(activations=self.activations),
        }

    def _scheme(self, bits: int, targets: list[str]) -> dict[str, Any]:
        group = self.group_size if bits == self.bits else (GROUP_SIZE if bits == 4 else None)
        weights = {
            "num_bits": bits,
            "type": "int",
            "symmetric": self.symmetric or bits == 8,
            "strategy": "channel" if group is None else "group",
            "group_size": group,
            "dynamic": False,
        }
        # Readers that compute in whole numbers throughout find here how to round what comes in.
        rounded = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}
        return {
            "targets": targets,
            "format": "int-quantized" if bits == 8 else "pack-quantized",
            "weights": weights,
            "input_activations": rounded if bits == 8 else None,
            "output_activations": None,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], owner: str) -> IntegerConfig:
        """Read the `quantization_config` of a config.json, ours or another writer's.

        Raises:
            ConfigError: a format that is not read here.
        """
        groups = [group for group in (values.get("config_groups") or {}).values() if isinstance(group, Mapping)]
        found = []
        for group in groups:
            weights = group.get("weights") or {}
            if weights.get("num_bits") not in (4, 8) or weights.get("type", "int") != "int":
                raise ConfigError(
                    f"{owner} has weights of {weights.get('num_bits')} bits of type {weights.get('type')!r} "
                    "(compressed-tensors), and what is read is integers of 8 or 4 bits. Load another checkpoint."
                )
            found.append((weights["num_bits"], weights.get("group_size"), bool(weights.get("symmetric", True)), group))
        if not found:
            raise ConfigError(f"{owner} has a quantization_config without config_groups. Get the checkpoint again.")
        bits, group_size, symmetric, _ = found[0]
        head = next((other[0] for other in found[1:] if other[0] != bits), None)
        size = group_size if isinstance(group_size, int) and group_size > 0 else None
        activations = values.get("activations", "auto")
        ignored = _paths(owner, values.get("ignore") or None)
        return cls(bits, size, symmetric or bits == 8, head, ignored, activations=activations)

    def __repr__(self) -> str:
        fields = ", ".join(f"{name}={value!r}" for name, value in self.__dict__.items())
        return f"IntegerConfig({fields})"


@dataclass(frozen=True)
class Quantization:
    """What is asked of a checkpoint or said by it: the formats of experts and of linear layers, None for plain.

    `foreign` is in place of both: a BitsAndBytesConfig or TorchAoConfig. `expert_activations` is what the config.json
    of packed linear layers says of experts beside them.
    """

    experts: Mxfp4Config | None = None
    linears: IntegerConfig | None = None
    foreign: Any = None
    expert_activations: str = "auto"


def said_of(**activations: str) -> dict[str, Any]:
    """Return the keys of a config.json for choices of activations; without a key a reader takes "auto"."""
    return {name: choice for name, choice in activations.items() if choice != "auto"}


def _paths(owner: str, names: Any) -> list[str] | None:
    if names is not None and not (isinstance(names, (list, tuple)) and all(isinstance(n, str) for n in names)):
        raise ConfigError(
            f"{owner}: modules_to_not_convert={names!r} must be a list of module paths, such as "
            "['lm_head', 'model.layers.*.mlp.router'], or None."
        )
    return None if names is None else list(names)


def parse_short(value: str, owner: str) -> Quantization:
    """Return what "int8", "int4", "mxfp4" or two of them joined by a plus ask for.

    Raises:
        ConfigError: Another name, or two formats for the same weights.
    """
    experts, linears = None, None
    for name in value.split("+"):
        if name not in SHORT:
            raise ConfigError(
                f"{owner}: quantization={value!r} is not known. Use one of {', '.join(SHORT)}, 'mxfp4+int8' or "
                "'mxfp4+int4' (experts and the rest), or quantization_config=IntegerConfig(...)."
            )
        if name == "mxfp4" and experts is None:
            experts = Mxfp4Config()
        elif name != "mxfp4" and linears is None:
            linears = IntegerConfig(bits=int(name.removeprefix("int")))
        else:
            raise ConfigError(f"{owner}: quantization={value!r} names two formats for the same weights. Choose one.")
    return Quantization(experts, linears)


def parse_quantization(value: Any, owner: str) -> Quantization:
    """Return what a `quantization_config` asks for: None, one of the classes here, a short name, or a mapping.

    Args:
        value: An argument, or that part of a config.json.
        owner: Named in errors.

    Raises:
        ConfigError: Another method, or a value that is not allowed.
    """
    if value is None:
        return Quantization()
    if isinstance(value, Quantization):
        return value
    if isinstance(value, Mxfp4Config):
        return Quantization(experts=value)
    if isinstance(value, IntegerConfig):
        return Quantization(linears=value)
    if isinstance(value, str):
        return parse_short(value, owner)
    if isinstance(value, Mapping):
        fields = {str(key): item for key, item in value.items() if key != "quant_method"}
        method = value.get("quant_method")
        if method is None and {*value} <= {"dequantize", "modules_to_not_convert"}:
            method = Mxfp4Config.quant_method
        elif method is None and "bits" in value:
            unknown = {*value} - {*inspect.signature(IntegerConfig).parameters}
            if unknown:
                raise ConfigError(f"{owner}: IntegerConfig has no field {sorted(unknown)[0]!r}. Remove or correct it.")
            return Quantization(linears=IntegerConfig(**fields))
    else:  # the same class of another library
        method = getattr(value, "quant_method", type(value).__name__)
        fields = {key: getattr(value, key) for key in ("modules_to_not_convert", "dequantize") if hasattr(value, key)}
    method = getattr(method, "value", method)  # of an enumeration
    if method in ("bitsandbytes", "torchao"):
        return Quantization(foreign=_foreign(str(method), value))
    if method == Mxfp4Config.quant_method:
        return Quantization(experts=Mxfp4Config(**fields))
    if method == IntegerConfig.quant_method and isinstance(value, Mapping):
        beside = _choice(owner, value.get("expert_activations", "auto"))
        return Quantization(linears=IntegerConfig.from_dict(value, owner), expert_activations=beside)
    raise ConfigError(
        f"{owner} has a quantization_config of the method {str(method)!r}, and what is "
        f"read is plain weights, mxfp4, compressed-tensors (integers of 8 or 4 bits) and bitsandbytes. Load a "
        "checkpoint in one of these."
    )


def _foreign(method: str, value: Any) -> Any:
    """Return the configuration of another package: as it is, or made of a mapping or of the same class elsewhere."""
    from quintet.quant.foreign_config import BitsAndBytesConfig, ForeignConfig, TorchAoConfig

    if isinstance(value, ForeignConfig):
        return value
    kind = BitsAndBytesConfig if method == BitsAndBytesConfig.quant_method else TorchAoConfig
    return kind.from_dict(value if isinstance(value, Mapping) else value.to_dict())


def _choice(owner: str, activations: str) -> str:
    if activations not in CHOICES:
        words = ", ".join(repr(one) for one in CHOICES)
        raise ConfigError(f"{owner}: activations is {activations!r}, but must be one of {words}.")
    return activations
