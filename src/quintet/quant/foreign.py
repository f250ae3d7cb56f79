"""Linear layers that bitsandbytes or torchao pack and compute: made of plain ones, read from files, unpacked again.

Their modules are their own; here is only which layers get them, and the form on disk, which is that of bitsandbytes:
`weight` and, with 4 bits, `weight.absmax`, `weight.quant_map`, `weight.quant_state.bitsandbytes__nf4` and so on, with 8
bits `SCB` and `weight_format`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from quintet.checkpoint.load import TensorSource
from quintet.checkpoint.rules import KeyRules, resolve
from quintet.errors import CheckpointError, ConfigError
from quintet.layers.conv1d import Conv1D
from quintet.quant.foreign_config import BitsAndBytesConfig, TorchAoConfig, bitsandbytes, torchao
from quintet.quant.linears import linears_of
from quintet.quant.sources import ChangedSource, QuantizeReport, is_skipped

__all__ = ["check_installed", "dequantize_foreign", "fit_foreign", "foreign_of", "pack_foreign"]

Finish = Callable[[nn.Module], None]


def foreign_of(model: nn.Module) -> dict[str, nn.Module]:
    """The layers of a model that another package packed, by path."""
    return {path: module for path, module in model.named_modules() if _method(module)}


def _method(module: nn.Module) -> str | None:
    """Which package packed a layer; nothing is imported that is not loaded already."""
    kind = type(module)
    if kind.__module__.partition(".")[0] == "bitsandbytes" and isinstance(module, nn.Linear):
        return "bitsandbytes"
    return "torchao" if isinstance(module, TorchAoLinear) else None


class TorchAoLinear(nn.Linear):
    """A linear layer whose weight is a tensor of torchao's; a type of its own, so that no twin takes its memory."""


def check_installed(config: BitsAndBytesConfig | TorchAoConfig) -> None:
    """Check that the package that packs is there.

    Raises:
        ConfigError: It is not installed.
    """
    if isinstance(config, BitsAndBytesConfig):
        bitsandbytes()
    else:
        torchao()


def pack_foreign(model: nn.Module, config: BitsAndBytesConfig | TorchAoConfig, report: QuantizeReport) -> None:
    """Pack the linear layers of a model, one after the other, in place.

    Args:
        model: Changed.
        config: Which, and how.
        report: Gets the error of each.

    Raises:
        ConfigError: The package is not installed, there is nothing to pack, or neither 4 nor 8 bits are asked for.
    """
    if isinstance(config, BitsAndBytesConfig) and not config.is_quantizable():
        raise ConfigError("BitsAndBytesConfig asks for nothing. Pass load_in_4bit=True or load_in_8bit=True.")
    chosen = {p: m for p, m in linears_of(model).items() if not is_skipped(p, config.modules_to_not_convert)}
    if not chosen:
        raise ConfigError(
            f"{type(model).__name__} has no linear layer to pack but those to skip. Correct the modules to skip."
        )
    for path, module in chosen.items():
        plain: Any = _as_linear(module)
        made: Any
        before = plain.weight.detach()
        if isinstance(config, BitsAndBytesConfig):
            made = _empty(plain, config)
            made.weight = _bnb_weight(made, before.contiguous(), config)
            made.to(before.device)  # this is when they pack
        else:
            holder = nn.Sequential(_as_linear(module, TorchAoLinear))
            torchao().quantization.quantize_(holder, config.quant_type)
            made = holder[0]
        made.transposed = isinstance(module, Conv1D)  # what it is unpacked to again
        module.weight = None  # type: ignore[assignment]  # its memory is not needed any more
        _put(model, path, made.train(module.training))
        wide = before.float()
        report.errors[path] = float((_unpacked(made).float() - wide).norm() / wide.norm().clamp_min(1e-30))


def _as_linear(module: nn.Module, kind: type[nn.Linear] = nn.Linear) -> nn.Linear:
    """A layer as a linear one of a kind that shares its bias."""
    weight: Any = module.weight
    stored = weight.detach().t() if isinstance(module, Conv1D) else weight.detach()  # (out, in)
    with torch.device("meta"):
        made = kind(stored.shape[1], stored.shape[0], bias=module.bias is not None)
    made.weight = nn.Parameter(stored, requires_grad=False)
    made.bias = module.bias  # type: ignore[assignment]
    return made


def _empty(plain: nn.Linear, config: BitsAndBytesConfig) -> nn.Linear:
    """The layer of bitsandbytes that takes the place of a plain one, without its weight."""
    layers = bitsandbytes().nn
    with torch.device("meta"):
        if config.load_in_8bit:
            made = layers.Linear8bitLt(
                *(plain.in_features, plain.out_features, plain.bias is not None),
                has_fp16_weights=config.llm_int8_has_fp16_weight,
                threshold=config.llm_int8_threshold,
            )
        else:
            made = layers.Linear4bit(
                *(plain.in_features, plain.out_features, plain.bias is not None),
                compute_dtype=config.bnb_4bit_compute_dtype,
                compress_statistics=config.bnb_4bit_use_double_quant,
                quant_type=config.bnb_4bit_quant_type,
                quant_storage=config.bnb_4bit_quant_storage,
            )
            # Its layout for these CPUs loses the scales when it is taken back, as saving does, and fails at some sizes.
            made.support_avx512bf16_for_cpu = False
    made.bias = plain.bias
    result: nn.Linear = made
    return result


def _bnb_weight(made: Any, weight: torch.Tensor, config: BitsAndBytesConfig) -> torch.Tensor:
    """A weight that is packed when it is moved to its device."""
    layers = bitsandbytes().nn
    packed: torch.Tensor
    if config.load_in_8bit:
        trained = config.llm_int8_has_fp16_weight
        packed = layers.Int8Params(weight, requires_grad=trained, has_fp16_weights=trained)
    else:
        packed = layers.Params4bit(
            weight,
            requires_grad=False,
            compress_statistics=config.bnb_4bit_use_double_quant,
            quant_type=config.bnb_4bit_quant_type,
            quant_storage=config.bnb_4bit_quant_storage,
            module=made,
        )
    return packed


def _put(model: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, module)


def _unpacked(module: Any) -> torch.Tensor:
    """The numbers, (out, in), that a layer stands for."""
    weight = module.weight
    if _method(module) == "torchao":
        whole: torch.Tensor = weight.dequantize()
        return whole
    functional = bitsandbytes().functional
    if getattr(weight, "quant_state", None) is not None:
        whole = functional.dequantize_4bit(weight.data, weight.quant_state)
        return whole
    if weight.dtype != torch.int8:  # kept in 16 bits for training
        whole = weight.detach()
        return whole
    scale = weight.SCB if weight.SCB is not None else module.state.SCB
    whole = weight.data.float() * (scale.float() / 127)[:, None]
    return whole


def dequantize_foreign(model: nn.Module, dtype: torch.dtype | None = None) -> list[str]:
    """Unpack the layers that another package packed, in place, and return their paths.

    Their type is `dtype`, else that of the rest of the model.
    """
    packed = foreign_of(model)
    rest = next((p.dtype for path, p in model.named_parameters() if path.rpartition(".")[0] not in packed), None)
    for path, module in packed.items():
        weight = _unpacked(module).to(dtype or rest or torch.get_default_dtype())
        outputs, inputs = weight.shape
        transposed = getattr(module, "transposed", False)
        with torch.device("meta"):
            made: Any = Conv1D(outputs, inputs) if transposed else nn.Linear(inputs, outputs, bias=False)
        made.weight = nn.Parameter(weight.t() if transposed else weight)
        bias: Any = module.bias
        made.bias = None if bias is None else nn.Parameter(bias.detach().to(weight.dtype), bias.requires_grad)
        _put(model, path, made.train(module.training))
    return [*packed]


def fit_foreign(
    model: nn.Module,
    source: TensorSource,
    config: BitsAndBytesConfig | TorchAoConfig,
    *,
    rules: KeyRules,
    prefix: str,
    device: torch.device,
) -> tuple[TensorSource, Finish]:
    """Give a model on the meta device the layers that a checkpoint of bitsandbytes has tensors for.

    Args:
        model: Changed in place.
        source: The checkpoint.
        config: What its config.json says.
        rules, prefix: How names map.
        device: Where the weights go.

    Returns:
        The source to load everything else from, and what puts the packed weights in when that is done.

    Raises:
        ConfigError: The package is not installed, or the checkpoint is torchao's.
        CheckpointError: Tensors that do not belong together.
    """
    if isinstance(config, TorchAoConfig):
        raise ConfigError("Checkpoints saved by torchao are not read. Pack the original checkpoint while loading it.")
    modules = linears_of(model)
    names = {f"{path}.weight": path for path in modules}
    found: dict[str, dict[str, str]] = {}
    for key in source:
        stem, _, part = key.rpartition(".weight") if ".weight" in key else (key.removesuffix(".SCB"), "", "SCB")
        name = resolve(rules, prefix, f"{stem}.weight", names)
        if name is not None and not (part == "SCB" and not key.endswith(".SCB")):
            found.setdefault(names[name], {})[part] = key
    packed = {path: parts for path, parts in found.items() if parts.keys() - {""}}
    if not packed:
        raise CheckpointError(
            "The configuration says that the weights are packed (quantization_config, bitsandbytes), and the "
            "checkpoint has no such tensor. Remove quantization_config from config.json when they are plain."
        )
    for path, parts in packed.items():
        if "" not in parts or not any(part == "SCB" or part.startswith(".quant_state") for part in parts):
            raise CheckpointError(
                f"The checkpoint is half packed: of '{path}' it has {', '.join(sorted(parts.values()))}. Get it again."
            )
        module: Any = _empty(_as_linear(modules[path]), config)
        module.transposed = isinstance(modules[path], Conv1D)
        module._parameters["weight"] = None
        _put(model, path, module)

    def finish(model: nn.Module) -> None:
        for path, parts in packed.items():
            _read(
                model.get_submodule(path), path, {part: source.get(key).clone() for part, key in parts.items()}, device
            )

    return ChangedSource(source, [key for parts in packed.values() for key in parts.values()], ()), finish


def _read(module: Any, path: str, parts: dict[str, torch.Tensor], device: torch.device) -> None:
    layers = bitsandbytes().nn
    weight = parts.pop("")
    try:
        if "SCB" in parts:
            scale = parts["SCB"].to(device)
            module.weight = layers.Int8Params(weight.to(device), requires_grad=False, CB=weight.to(device), SCB=scale)
        else:
            stats = {part.removeprefix("."): tensor for part, tensor in parts.items()}
            module.weight = layers.Params4bit.from_prequantized(
                weight, stats, requires_grad=False, device=device, module=module
            )
    except (KeyError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"The packed tensors of '{path}' do not belong together: {error}. Get it again."
        ) from error
