"""Packed linear layers in a model and in a checkpoint: which there are, packing and unpacking them, reading them.

As with experts, the names of the tensors say which modules are packed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from quintet.checkpoint.load import TensorSource
from quintet.checkpoint.rules import KeyRules, resolve
from quintet.errors import CheckpointError, ConfigError
from quintet.layers.conv1d import Conv1D
from quintet.quant.calibration import PartStore, calibrate
from quintet.quant.config import GROUP_SIZE, IntegerConfig
from quintet.quant.packed_linear import LINEARS, PackedLinear, check_sizes
from quintet.quant.sources import ChangedSource, QuantizeReport, is_skipped
from quintet.quant.stored import PackedTensors, find_packed
from quintet.swap import swap

__all__ = ["dequantize_linears", "fit_linears", "linears_of", "packed_linears_of", "quantize_linears"]

logger = logging.getLogger("quintet.quant")
Progress = Callable[[str], Any]


def linears_of(model: nn.Module, head: str | None = None) -> dict[str, nn.Module]:
    """The plain linear layers that can be packed, by path: those of the blocks, and the output head when it is named.

    Args:
        model: A model; the heads of classes stand outside its base model, and are not among them.
        head: Path of the output head, or None.
    """
    base = getattr(model, "base_model", model)
    prefix = "" if base is model else f"{model.base_model_prefix}."
    found: dict[str, nn.Module] = {
        prefix + path: module
        for path, module in base.named_modules()
        if isinstance(module, (nn.Linear, Conv1D)) and not isinstance(module, PackedLinear)
    }
    if head is not None:
        found[head] = model.get_submodule(head)
    return found


def packed_linears_of(model: nn.Module) -> dict[str, PackedLinear]:
    """The packed linear layers of a model, by path."""
    return {path: module for path, module in model.named_modules() if isinstance(module, PackedLinear)}


def config_of_packed(model: nn.Module) -> IntegerConfig | None:
    """How the linear layers of a model are packed, as the layers say; None where none is."""
    packed = packed_linears_of(model)
    if not packed:
        return None
    head = packed.pop(head_of(model) or "", None)
    one = next(iter(packed.values()), head)
    assert one is not None, "there is a packed layer"
    return IntegerConfig(
        bits=one.bits,
        group_size=one.group,
        symmetric=one.symmetric,
        head_bits=None if head is None else head.bits,
        activations=one.activations,
    )


def head_of(model: nn.Module) -> str | None:
    """Path of the output head, None where there is none."""
    head = getattr(model, "get_output_embeddings", lambda: None)()
    return next((path for path, module in model.named_modules() if module is head), None) if head is not None else None


def _chosen(model: nn.Module, config: IntegerConfig) -> dict[str, dict[str, Any]]:
    """For each module to pack its bits, and what its twin is made with."""
    head = head_of(model) if config.head_bits is not None else None
    if config.head_bits is not None and head is None:
        raise ConfigError(
            f"{type(model).__name__} has no output head, so head_bits={config.head_bits} has no use. Leave it out."
        )
    chosen = {}
    for path in linears_of(model, head):
        if is_skipped(path, config.modules_to_not_convert):
            continue
        bits = config.head_bits if path == head and config.head_bits is not None else config.bits
        own = bits == config.bits
        group = config.group_size if own else (GROUP_SIZE if bits == 4 else None)
        symmetric = config.symmetric if own else True
        chosen[path] = {"bits": bits, "group": group, "symmetric": symmetric, "activations": config.activations}
    if not chosen:
        raise ConfigError(
            f"{type(model).__name__} has no linear layer to pack but those to skip. Correct modules_to_not_convert."
        )
    return chosen


def _format(config: IntegerConfig) -> str:
    return f"bits={config.bits}, group_size={config.group_size}, symmetric={config.symmetric}"


def quantize_linears(
    model: nn.Module,
    config: IntegerConfig,
    report: QuantizeReport,
    progress: Progress | None = None,
    *,
    rows: Sequence[torch.Tensor] | None = None,
    store: PartStore | None = None,
) -> None:
    """Pack the linear layers of a model, one after the other, in place.

    Args:
        model: Changed.
        config: Which, and how.
        report: Gets the error of each.
        progress: Called with the path of each module that is done.
        rows: Token ids to calibrate with, each (T,); None rounds each number for itself.
        store: Keeps the packed blocks of a calibration.

    Raises:
        ConfigError: there is nothing to pack, or what is packed already is so in another format.
        InputError: sizes that do not fit the format, naming the weight; nothing was changed.
    """
    present = config_of_packed(model)
    if present is not None and _format(present) != _format(config):
        raise ConfigError(
            f"{type(model).__name__} has linear layers packed with {_format(present)}, and {_format(config)} is asked "
            "for the others; a checkpoint can say one format. Ask for the same, or call dequantize() first."
        )
    chosen = _chosen(model, config)
    modules = {path: model.get_submodule(path) for path in chosen}
    for path, module in modules.items():
        check_sizes(path, chosen[path]["bits"], _inputs(module), chosen[path]["group"])

    def place(path: str, twin: PackedLinear, error: float) -> None:
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, twin)
        report.errors[path] = error
        if not _is_tied(model, path):
            modules[path].weight = None  # type: ignore[assignment]  # its memory is not needed any more
        if progress is not None:
            progress(path)

    if rows is not None:
        calibrate(model, chosen, rows, place, store)
    else:
        for path, module in modules.items():
            options = dict(chosen[path])
            place(path, *LINEARS[options.pop("bits")].from_plain(module, name=path, **options))
    _untie_packed_head(model)


def dequantize_linears(model: nn.Module, dtype: torch.dtype | None = None) -> list[str]:
    """Unpack the linear layers of a model in place, and return their paths."""

    def twin(module: nn.Module) -> nn.Module:
        assert isinstance(module, PackedLinear), "the table maps the type"
        return module.to_plain(dtype)

    return swap(model, dict.fromkeys(LINEARS.values(), twin)).replaced


def _inputs(module: nn.Module) -> int:
    weight: Any = module.weight
    return int(weight.shape[0] if isinstance(module, Conv1D) else weight.shape[1])


def _is_tied(model: nn.Module, path: str) -> bool:
    config = getattr(model, "config", None)
    tied = getattr(model, "_tied_weights_keys", None) or {}
    return bool(getattr(config, "tie_word_embeddings", False)) and f"{path}.weight" in tied


def _untie_packed_head(model: nn.Module) -> None:
    """A packed head has numbers of its own, so that the embedding must not be put in its place again."""
    if any(_is_tied(model, path) for path in packed_linears_of(model)):
        model.config.tie_word_embeddings = False  # type: ignore[union-attr]


def fit_linears(
    model: nn.Module,
    source: TensorSource,
    *,
    asked: IntegerConfig | None,
    declared: IntegerConfig | None,
    rules: KeyRules,
    prefix: str,
    dtype: torch.dtype,
    device: torch.device,
) -> tuple[TensorSource, bool]:
    """Give a model on the meta device the linear layers that a checkpoint has tensors for.

    Args:
        model: Changed in place.
        source: The checkpoint.
        asked: What the caller wants: to unpack a packed checkpoint, or to pack a plain one.
        declared: What the checkpoint's config.json says.
        rules, prefix: How names map.
        dtype: Type that weights are unpacked to.
        device: Where packing and unpacking is done.

    Returns:
        The source to load from, and whether linear layers are packed now.

    Raises:
        CheckpointError: tensors that do not belong together, or a config.json that says packed of weights that are not.
        ConfigError: packing was asked for and there is nothing to pack, or what is packed is of another format.
        InputError: sizes that do not fit the format.
    """
    head = head_of(model)
    modules = linears_of(model, head)
    found = find_packed(source, modules, rules, prefix)
    wanted = asked or declared
    if found:
        if wanted is not None and wanted.dequantize:
            return _Unpacking(source, found, modules, dtype, device), False
        if asked is not None:
            _check_same(asked, found, head)
        activations = wanted.activations if wanted is not None else "auto"
        _swap_in(model, {path: {**one.options(), "activations": activations} for path, one in found.items()})
        _untie_packed_head(model)
        return source, True
    if wanted is None or wanted.dequantize:
        return source, False
    if asked is None:
        raise CheckpointError(
            "The configuration says that the weights are packed (quantization_config, compressed-tensors), and the "
            "checkpoint has no tensor named '...weight_scale' of this model. Remove quantization_config from "
            "config.json when they are plain."
        )
    chosen = _chosen(model, asked)
    keys = {}
    names = {f"{path}.weight": path for path in chosen}
    for key in source:
        name = resolve(rules, prefix, key, names)
        if name is not None:
            keys[names[name]] = key
    tied = getattr(model, "_tied_weights_keys", None) or {}
    for path in chosen:
        if path not in keys and _is_tied(model, path):  # the file has the embedding alone
            keys[path] = next(
                (key for key in source if resolve(rules, prefix, key, {tied[f"{path}.weight"]}) is not None), ""
            )
    chosen = {path: options for path, options in chosen.items() if keys.get(path)}
    for path, options in chosen.items():
        check_sizes(path, options["bits"], _inputs(modules[path]), options["group"])
    shared = {path for path in chosen if _is_tied(model, path)}
    transposed = {path for path in chosen if isinstance(modules[path], Conv1D)}
    _swap_in(model, chosen)
    twins = {path: model.get_submodule(path) for path in chosen}
    _untie_packed_head(model)
    return _Packing(source, keys, twins, shared, transposed, device), True  # type: ignore[arg-type]


def _check_same(asked: IntegerConfig, found: dict[str, PackedTensors], head: str | None) -> None:
    for path, one in found.items():
        bits = asked.head_bits if path == head else asked.bits
        if bits is not None and one.bits != bits:
            raise ConfigError(
                f"The checkpoint holds '{path}' in {one.bits} bits, and {bits} are asked for. Leave quantization out "
                "to load it as it is, or pack the original checkpoint."
            )


def _swap_in(model: nn.Module, chosen: dict[str, dict[str, Any]]) -> None:
    paths = {model.get_submodule(path): path for path in chosen}

    def twin(module: nn.Module) -> nn.Module | None:
        path = paths.get(module)
        if path is None:
            return None
        options = dict(chosen[path])
        with torch.device("meta"):
            return LINEARS[options.pop("bits")].empty_like(module, name=path, **options)

    swap(model, dict.fromkeys({type(module) for module in paths}, twin))


class _Unpacking(ChangedSource):
    """A packed checkpoint as a plain one: each weight is unpacked when it is asked for."""

    def __init__(
        self,
        inner: TensorSource,
        found: dict[str, PackedTensors],
        modules: dict[str, nn.Module],
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        stem = {path: one.keys["weight_scale"].removesuffix("_scale") for path, one in found.items()}
        self._path = {key: path for path, key in stem.items()}
        self._found, self._modules, self._dtype, self._device = found, modules, dtype, device
        super().__init__(inner, [key for one in found.values() for key in one.keys.values()], self._path)

    def shape(self, key: str) -> tuple[int, ...]:
        if key not in self._path:
            return super().shape(key)
        weight: Any = self._modules[self._path[key]].weight
        return tuple(weight.shape)

    def dtype(self, key: str) -> torch.dtype:
        return self._dtype if key in self._path else super().dtype(key)

    def get(self, key: str) -> torch.Tensor:
        if key not in self._path:
            return super().get(key)
        path = self._path[key]
        one, module = self._found[path], self._modules[path]
        options = one.options()
        with torch.device("meta"):
            twin = LINEARS[options.pop("bits")].empty_like(module, name=path, **options)
        for part, name in one.keys.items():
            twin._set(part, self._inner.get(name).to(self._device))
        weight = twin.unpack(self._dtype)
        del twin
        for name in one.keys.values():
            self._inner.release(name)
        return weight.t() if isinstance(module, Conv1D) else weight


class _Packing(ChangedSource):
    """A plain checkpoint as a packed one; what the rounding cost is logged."""

    def __init__(
        self,
        inner: TensorSource,
        keys: dict[str, str],
        twins: dict[str, PackedLinear],
        shared: set[str],
        transposed: set[str],
        device: torch.device,
    ) -> None:
        self._made_from: dict[str, tuple[str, str]] = {}
        self._keys, self._twins, self._shared, self._transposed = keys, twins, shared, transposed
        self._held: dict[str, dict[str, torch.Tensor]] = {}
        self._device = device
        hidden = []
        for path, twin in twins.items():
            stem = path if path in shared else keys[path].rpartition(".")[0]
            if path not in shared:
                hidden.append(keys[path])
            for part in twin.parts:
                if getattr(twin, part, None) is not None:
                    self._made_from[f"{stem}.{part}"] = (path, part)
        super().__init__(inner, hidden, self._made_from)

    def shape(self, key: str) -> tuple[int, ...]:
        if key not in self._made_from:
            return super().shape(key)
        path, part = self._made_from[key]
        return tuple(getattr(self._twins[path], part).shape)

    def dtype(self, key: str) -> torch.dtype:
        if key not in self._made_from:
            return super().dtype(key)
        path, part = self._made_from[key]
        found: torch.dtype = getattr(self._twins[path], part).dtype
        return found

    def get(self, key: str) -> torch.Tensor:
        if key not in self._made_from:
            return super().get(key)
        path, part = self._made_from[key]
        if path not in self._held:
            origin, twin = self._keys[path], self._twins[path]
            stored = self._inner.get(origin).to(self._device)
            self._held[path] = twin.pack(stored.t() if path in self._transposed else stored, f"'{origin}'")
            logger.info("packed '%s' in %d bits", origin, twin.bits)
            del stored
            if path not in self._shared:
                self._inner.release(origin)
        made = self._held[path].pop(part)
        if not self._held[path]:
            del self._held[path]
        return made
