"""Packed experts in a model and in a checkpoint; which are packed is what the names of the tensors say."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import nn

from quintet.checkpoint.load import TensorSource
from quintet.checkpoint.rules import KeyRules, resolve
from quintet.errors import CheckpointError, ConfigError
from quintet.layers.experts import Experts
from quintet.quant.config import Mxfp4Config
from quintet.quant.mxfp4 import BLOCK, check_packed, check_scales, pack, unpack
from quintet.quant.packed_experts import WEIGHTS, PackedExperts
from quintet.quant.sources import ChangedSource, QuantizeReport, is_skipped
from quintet.swap import swap

__all__ = ["dequantize_experts", "fit_experts", "quantize_experts"]

PARTS = ("blocks", "scales")
logger = logging.getLogger("quintet.quant")


def quantize_experts(model: nn.Module, config: Mxfp4Config, report: QuantizeReport) -> None:
    """Pack the experts of a model, one after the other, in place.

    Args:
        model: Any module with `Experts` in it.
        config: Which to leave alone, and what weights are multiplied with.
        report: Gets the error of each weight, and the experts that were left alone.

    Raises:
        ConfigError: there is nothing to pack.
        InputError: a size is not a multiple of 32, naming the weight.
    """
    paths = {module: path for path, module in experts_of(model).items()}

    def twin(module: nn.Module) -> nn.Module | None:
        assert isinstance(module, Experts), "the table maps the type"
        path = paths[module]
        if is_skipped(path, config.modules_to_not_convert):
            report.kept.append(path)
            return None
        made, errors = PackedExperts.from_plain(module, path)
        made.activations = config.activations
        report.errors.update(errors)
        for weight in WEIGHTS:  # its memory is not needed any more
            delattr(module, weight)
        return made

    swap(model, dict.fromkeys({type(module) for module in paths}, twin))
    if not report.errors:
        raise ConfigError(
            f"{type(model).__name__} has no experts to pack as MXFP4{' but those to skip' if report.kept else ''}. "
            "The format is for mixture-of-experts models such as gpt-oss."
        )


def dequantize_experts(model: nn.Module, dtype: torch.dtype | None = None) -> list[str]:
    """Unpack the experts of a model in place, and return their paths."""

    def twin(module: nn.Module) -> nn.Module:
        assert isinstance(module, PackedExperts), "the table maps the type"
        return module.to_plain(dtype)

    return swap(model, {PackedExperts: twin}).replaced


def experts_of(model: nn.Module) -> dict[str, Experts]:
    """The modules of a model that can be packed, by path."""
    return {path: module for path, module in model.named_modules() if isinstance(module, Experts)}


@dataclass
class _Found:
    """What a checkpoint has for the weights of experts: by the model's name, the keys of the file."""

    plain: dict[str, str] = field(default_factory=dict)
    packed: dict[str, dict[str, str]] = field(default_factory=dict)


def fit_experts(
    model: nn.Module,
    source: TensorSource,
    *,
    asked: Mxfp4Config | None,
    declared: Mxfp4Config | None,
    activations: str = "auto",
    rules: KeyRules,
    prefix: str,
    dtype: torch.dtype,
    device: torch.device,
) -> tuple[TensorSource, bool]:
    """Give a model on the meta device the modules that a checkpoint has tensors for.

    Args:
        model: Changed in place.
        source: The checkpoint.
        asked: What the caller wants: to unpack a packed checkpoint, or to pack a plain one.
        declared: What the checkpoint's config.json says.
        activations: What weights are multiplied with, where neither says it.
        rules: How names map.
        prefix: Name of the base model inside a model with a head.
        dtype: Type that weights are unpacked to.
        device: Where that is done.

    Returns:
        The source to load from, and whether the model is packed now.

    Raises:
        CheckpointError: half packed, shapes that disagree, the scale 255, or a config.json that says packed of weights
            that are not.
        ConfigError: packing was asked for and there is nothing to pack.
    """
    wanted = asked or declared
    skip = [name for given in (asked, declared) if given is not None for name in given.modules_to_not_convert or ()]
    experts = experts_of(model)
    found = _find(source, [f"{path}.{weight}" for path in experts for weight in WEIGHTS], rules, prefix)
    if found.packed:
        _check(source, found, experts, skip)
        if wanted is not None and wanted.dequantize:
            return _Unpacking(source, list(found.packed.values()), dtype, device), False
        _swap_in(
            model,
            {path for path in experts if f"{path}.{WEIGHTS[0]}" in found.packed},
            wanted.activations if wanted else activations,
        )
        return source, True
    if wanted is None or wanted.dequantize:
        return source, False
    if asked is None:
        raise CheckpointError(
            "The configuration says that the weights are packed (quantization_config, mxfp4), and the checkpoint has "
            "no tensor named '..._blocks'. Remove quantization_config from config.json when they are plain."
        )
    chosen = {path for path in experts if not is_skipped(path, asked.modules_to_not_convert)}
    if not chosen:
        raise ConfigError(
            f"{type(model).__name__} has no experts to pack as MXFP4. Leave quantization_config out, or ask for it "
            "with a mixture-of-experts model such as gpt-oss."
        )
    _swap_in(model, chosen, asked.activations)
    plain = {name: key for name, key in found.plain.items() if name.rpartition(".")[0] in chosen}
    return _Packing(source, plain, device), True


def _find(source: TensorSource, names: list[str], rules: KeyRules, prefix: str) -> _Found:
    found, wanted = _Found(), set(names)
    for key in source:
        stem, _, part = key.rpartition("_")
        name = resolve(rules, prefix, stem, wanted) if part in PARTS else None
        if name is not None:
            found.packed.setdefault(name, {})[part] = key
        elif (name := resolve(rules, prefix, key, wanted)) is not None:
            found.plain[name] = key
    return found


def _check(source: TensorSource, found: _Found, experts: Iterable[str], skip: Iterable[str] | None) -> None:
    """Refuse a checkpoint that is not wholly and soundly packed; of the data only the scales are read."""
    for name, keys in found.packed.items():
        if len(keys) < len(PARTS):
            [(part, key)] = keys.items()
            other = PARTS[1 - PARTS.index(part)]
            raise CheckpointError(f"The checkpoint is half packed: it has '{key}' without its {other}. Get it again.")
        if name in found.plain:
            raise CheckpointError(
                f"The checkpoint has '{found.plain[name]}' both plain and packed ('{keys['blocks']}'), and nothing "
                "says which counts. Remove one of them."
            )
    wanted = {f"{path}.{weight}" for path in experts if not is_skipped(path, skip) for weight in WEIGHTS}
    # a layer that is named as plain and packed all the same is packed: the names of the tensors decide
    wanted |= {f"{name.rpartition('.')[0]}.{weight}" for name in found.packed for weight in WEIGHTS}
    rest = sorted(wanted - found.packed.keys())
    if rest:
        raise CheckpointError(
            f"The checkpoint is half packed: {len(found.packed)} weights of experts are in MXFP4 and {len(rest)} are "
            f"not: {', '.join(rest[:4])}{', ...' if len(rest) > 4 else ''}. Get it again; or name the modules that are "
            "plain in modules_to_not_convert."
        )
    for name, keys in found.packed.items():
        check_packed(source.shape(keys["blocks"]), source.shape(keys["scales"]), f"'{name}'")
        check_scales(source.get(keys["scales"]), keys["scales"])


def _swap_in(model: nn.Module, chosen: set[str], activations: str) -> None:
    paths = {module: path for path, module in experts_of(model).items() if path in chosen}

    def twin(module: nn.Module) -> nn.Module | None:
        assert isinstance(module, Experts), "the table maps the type"
        if module not in paths:
            return None
        with torch.device("meta"):
            made = PackedExperts.empty_like(module, paths[module])
        made.activations = activations
        return made

    swap(model, dict.fromkeys({type(module) for module in paths}, twin))


class _Unpacking(ChangedSource):
    """A packed checkpoint as a plain one: each weight is unpacked when it is asked for, straight to its place."""

    def __init__(
        self, inner: TensorSource, packed: list[dict[str, str]], dtype: torch.dtype, device: torch.device
    ) -> None:
        self._packed = {keys["blocks"].removesuffix("_blocks"): keys for keys in packed}
        super().__init__(inner, [key for keys in packed for key in keys.values()], self._packed)
        self._dtype, self._device = dtype, device

    def shape(self, key: str) -> tuple[int, ...]:
        if key not in self._packed:
            return super().shape(key)
        experts, outputs, groups = self._inner.shape(self._packed[key]["scales"])
        return experts, groups * BLOCK, outputs

    def dtype(self, key: str) -> torch.dtype:
        return self._dtype if key in self._packed else super().dtype(key)

    def get(self, key: str) -> torch.Tensor:
        if key not in self._packed:
            return super().get(key)
        keys = self._packed[key]
        blocks, scales = (self._inner.get(keys[part]).to(self._device) for part in PARTS)
        whole = unpack(blocks, scales, self._dtype)
        del blocks, scales
        for part in PARTS:
            self._inner.release(keys[part])
        return whole.transpose(1, 2)  # (E, out, in) -> (E, in, out)


class _Packing(ChangedSource):
    """A plain checkpoint as a packed one; what the rounding cost is logged."""

    def __init__(self, inner: TensorSource, plain: dict[str, str], device: torch.device) -> None:
        self._origin = {f"{key}_{part}": key for key in plain.values() for part in PARTS}
        self._held: dict[str, torch.Tensor] = {}
        self._device = device
        super().__init__(inner, plain.values(), self._origin)

    def shape(self, key: str) -> tuple[int, ...]:
        if key not in self._origin:
            return super().shape(key)
        experts, inputs, outputs = self._inner.shape(self._origin[key])
        scales = (experts, outputs, inputs // BLOCK)
        return (*scales, BLOCK // 2) if key.endswith("_blocks") else scales

    def dtype(self, key: str) -> torch.dtype:
        return torch.uint8 if key in self._origin else super().dtype(key)

    def get(self, key: str) -> torch.Tensor:
        if key not in self._origin:
            return super().get(key)
        if key not in self._held:
            origin = self._origin[key]
            stored = self._inner.get(origin).to(self._device).transpose(1, 2)  # (E, in, out) -> (E, out, in)
            packed = pack(stored, f"'{origin}'")
            self._held = {f"{origin}_blocks": packed.blocks, f"{origin}_scales": packed.scales}
            logger.info("packed '%s' as MXFP4, relative error %.4f", origin, packed.error)
            del stored
            self._inner.release(origin)
        return self._held.pop(key)
