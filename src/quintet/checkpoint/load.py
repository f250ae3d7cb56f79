"""Weights into a model: names first, then shapes, then the tensors, each of them once.

A model is built on the meta device and every tensor is assigned, not copied: a tensor that needs no conversion stays a
view of the mapped file. One that does is converted by itself and its pages are given back, so that a load never holds
more than the result and one tensor.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from quintet.checkpoint.files import WeightFiles, find_weights
from quintet.checkpoint.rules import KeyRules, LoadReport, is_dropped, resolve, stays_float32
from quintet.checkpoint.tensorfile import TensorFile
from quintet.checkpoint.torchbin import read_torch_file
from quintet.errors import CheckpointError
from quintet.pages import copy_in_large_pages

__all__ = ["TensorSource", "load_weights", "open_source", "source_dtype"]

NO_RULES = KeyRules()
Source = WeightFiles | Mapping[str, torch.Tensor] | str | os.PathLike[str]


class TensorSource:
    """Something that holds named tensors: mapped files, or a dictionary."""

    borrowed = False  # whether its tensors belong to the caller, and so must not be trained in place

    def __iter__(self) -> Iterator[str]:
        raise NotImplementedError

    def shape(self, key: str) -> tuple[int, ...]:
        raise NotImplementedError

    def dtype(self, key: str) -> torch.dtype:
        raise NotImplementedError

    def get(self, key: str) -> torch.Tensor:
        """Return a tensor; from a mapping nothing is read yet."""
        raise NotImplementedError

    def release(self, key: str) -> None:
        """Say that a tensor was copied and that nobody holds what `get` returned."""


class _Mapped(TensorSource):
    """The tensors of one or several mapped files, by name."""

    def __init__(self, files: WeightFiles, mapped: bool) -> None:
        self._home: dict[str, TensorFile] = {}
        for path in files:
            opened = TensorFile.open(path, mapped=mapped)
            for key in opened:
                listed = files.weight_map.get(key, path.name) if files.weight_map else path.name
                if listed != path.name:
                    continue
                if key in self._home:
                    raise CheckpointError(
                        f"Tensor '{key}' is in both '{self._home[key].path.name}' and '{path.name}' of "
                        f"'{files.folder}', and the index does not say which one counts. Get the checkpoint again."
                    )
                self._home[key] = opened
        for key, name in (files.weight_map or {}).items():
            if key not in self._home:
                raise CheckpointError(
                    f"The index of '{files.folder}' says that tensor '{key}' is in '{name}', and it is not there. "
                    "Index and files are not of the same save; get the checkpoint again."
                )

    def __iter__(self) -> Iterator[str]:
        return iter(self._home)

    def shape(self, key: str) -> tuple[int, ...]:
        return self._home[key].shape(key)

    def dtype(self, key: str) -> torch.dtype:
        return self._home[key].dtype(key)

    def get(self, key: str) -> torch.Tensor:
        return self._home[key].get(key)

    def release(self, key: str) -> None:
        self._home[key].release(key)


class _InMemory(TensorSource):
    """A state dict."""

    def __init__(self, tensors: Mapping[str, torch.Tensor], borrowed: bool) -> None:
        for key, tensor in tensors.items():
            if not isinstance(key, str) or not isinstance(tensor, torch.Tensor):
                raise CheckpointError(
                    f"A state dict maps names to tensors; entry {key!r} holds a {type(tensor).__name__}. "
                    "Pass model.state_dict(), or the part of the file that is one."
                )
        self._tensors = dict(tensors)
        self.borrowed = borrowed

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def shape(self, key: str) -> tuple[int, ...]:
        return tuple(self._tensors[key].shape)

    def dtype(self, key: str) -> torch.dtype:
        return self._tensors[key].dtype

    def get(self, key: str) -> torch.Tensor:
        return self._tensors[key].detach()


def open_source(source: Source, *, mapped: bool = True) -> TensorSource:
    """Open a folder, the files `find_weights` found, or a state dict; `mapped=False` reads files into memory."""
    if isinstance(source, (str, os.PathLike)):
        source = find_weights(source)
    if not isinstance(source, WeightFiles):
        return _InMemory(source, borrowed=True)
    if source.format == "torch":
        tensors: dict[str, torch.Tensor] = {}
        for path in source:
            tensors.update(read_torch_file(path))
        return _InMemory(tensors, borrowed=False)
    return _Mapped(source, mapped)


def source_dtype(source: TensorSource) -> torch.dtype | None:
    """Return the floating type that most bytes of a checkpoint have, or None when it holds no such tensor."""
    total: dict[torch.dtype, int] = {}
    for key in source:
        dtype = source.dtype(key)
        if dtype.is_floating_point and dtype.itemsize > 1:
            total[dtype] = total.get(dtype, 0) + max(1, _numel(source.shape(key))) * dtype.itemsize
    return max(total, key=lambda dtype: total[dtype]) if total else None


def _numel(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count


@dataclass
class _Slot:
    """A place in the model that a tensor goes to."""

    module: nn.Module
    name: str
    tensor: torch.Tensor

    def put(self, tensor: torch.Tensor) -> None:
        if isinstance(self.tensor, nn.Parameter):
            keeps_grad = self.tensor.requires_grad and (tensor.is_floating_point() or tensor.is_complex())
            tensor = type(self.tensor)(tensor, requires_grad=keeps_grad)  # some kinds refuse gradients
        self.place(tensor)

    def place(self, tensor: torch.Tensor) -> None:
        """Hold this very object, which another slot may hold too."""
        if isinstance(tensor, nn.Parameter):
            self.module._parameters[self.name] = tensor
        else:
            self.module._buffers[self.name] = tensor

    def current(self) -> torch.Tensor:
        held = self.module._parameters.get(self.name)
        found = held if held is not None else self.module._buffers.get(self.name)
        if found is None:
            raise CheckpointError(f"The model lost its tensor '{self.name}' during the load; this is a bug of quintet.")
        return found


def _slots(model: nn.Module) -> dict[str, _Slot]:
    """Everything a state dict of the model would hold, by name."""
    found: dict[str, _Slot] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        dot = f"{path}." if path else ""
        for name, parameter in module._parameters.items():
            if parameter is not None:
                found[dot + name] = _Slot(module, name, parameter)
        for name, buffer in module._buffers.items():
            if buffer is not None and name not in module._non_persistent_buffers_set:
                found[dot + name] = _Slot(module, name, buffer)
    return found


def load_weights(
    model: nn.Module,
    source: Source | TensorSource,
    *,
    rules: KeyRules = NO_RULES,
    prefix: str = "",
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    ignore_mismatched_sizes: bool = False,
    initialise: Callable[[], None] | None = None,
) -> LoadReport:
    """Assign the tensors of a checkpoint to a model, and initialise what the checkpoint does not have.

    Names that share one Parameter in the model count as tied: the checkpoint may give any of them, or all. A missing
    tensor that is not on the meta device keeps the value it has.

    Args:
        model: Any module; built on the meta device it costs no memory before the load.
        source: A folder, `find_weights(...)`, `open_source(...)` or a state dict.
        rules: How names map.
        prefix: Name of the base model inside a model with a head; checkpoints with and without it are taken.
        dtype: Convert floating tensors to this type; None keeps the types of the checkpoint.
        device: Where the tensors go.
        ignore_mismatched_sizes: Initialise a tensor of another shape in place of raising.
        initialise: Gives every parameter that is not on the meta device its initial value; called when some are
            missing. Tensors that were loaded are out of its reach.

    Returns:
        The report; it is for the caller to log it.

    Raises:
        CheckpointError: A shape or kind differs, or the checkpoint has nothing in common with the model.
    """
    opened = source if isinstance(source, TensorSource) else open_source(source)
    slots = _slots(model)
    plan, report = _plan(opened, slots, rules, prefix, ignore_mismatched_sizes)
    ties = _ties(slots)
    _untie_different(opened, plan, ties, report)
    device = torch.device(device)
    for name, key in plan.items():
        keep = torch.float32 if dtype is not None and stays_float32(rules, name) else dtype
        slots[name].put(_converted(opened, key, keep, device, getattr(slots[name].module, "lay_out", None)))
    _share(slots, plan, ties)
    mismatched = {name for name, _, _ in report.mismatched_keys}
    given = _with_ties(plan.keys(), ties)
    report.missing_keys = slots.keys() - given - _with_ties(mismatched, ties)
    _fill(slots, slots.keys() - given, ties, dtype, device, initialise)
    return report


def _with_ties(names: Collection[str], ties: list[list[str]]) -> set[str]:
    """Add to some names those that share their tensors."""
    return {*names, *(name for group in ties if any(other in names for other in group) for name in group)}


def _plan(
    source: TensorSource, slots: dict[str, _Slot], rules: KeyRules, prefix: str, ignore_mismatched_sizes: bool
) -> tuple[dict[str, str], LoadReport]:
    """Decide from names, shapes and types alone which tensor goes where; nothing is read."""
    plan: dict[str, str] = {}
    report = LoadReport()
    for key in source:
        name = resolve(rules, prefix, key, slots)
        if name is None:
            (report.dropped_keys if is_dropped(rules, key) else report.unexpected_keys).add(key)
        elif name in plan and plan[name] == name:
            report.unexpected_keys.add(key)  # given twice, with and without the prefix: the exact name counts
        else:
            if name in plan:
                report.unexpected_keys.add(plan[name])
            plan[name] = key
    if slots and not plan and report.unexpected_keys:
        raise CheckpointError(
            f"The checkpoint has no tensor of this model: it has {_some(report.unexpected_keys)}, and the model wants "
            f"{_some(slots)}. It belongs to another family or class."
        )
    for name, key in list(plan.items()):
        wanted, got = slots[name].tensor, source.dtype(key)
        if source.shape(key) != tuple(wanted.shape):
            report.mismatched_keys.add((name, source.shape(key), tuple(wanted.shape)))
            del plan[name]
        elif _kind(wanted.dtype) != _kind(got):
            raise CheckpointError(
                f"Tensor '{key}' is {got} in the checkpoint, and the model wants {wanted.dtype} for '{name}'. "
                "The checkpoint is damaged, or quantised in a way this model does not know."
            )
    if report.mismatched_keys and not ignore_mismatched_sizes:
        shown = sorted(report.mismatched_keys)
        words = "; ".join(f"'{name}' is {list(got)}, model {list(want)}" for name, got, want in shown[:6])
        raise CheckpointError(
            f"{len(shown)} {'tensor has' if len(shown) == 1 else 'tensors have'} another shape in the checkpoint than "
            f"in the model: {words}{'; ...' if len(shown) > 6 else ''}. Make the configuration fit (vocab_size, "
            "num_labels, ...), or pass ignore_mismatched_sizes=True to initialise them anew."
        )
    return plan, report


def _some(names: Iterable[str]) -> str:
    shown = sorted(names)
    return ", ".join(f"'{name}'" for name in shown[:3]) + (", ..." if len(shown) > 3 else "")


def _kind(dtype: torch.dtype) -> str:
    if dtype.is_complex:
        return "complex"
    if dtype.is_floating_point:
        return "float" if dtype.itemsize > 1 else "packed"
    return "integer"


def _ties(slots: dict[str, _Slot]) -> list[list[str]]:
    """Groups of names that share one tensor in the model."""
    groups: dict[int, list[str]] = {}
    for name, slot in slots.items():
        groups.setdefault(id(slot.tensor), []).append(name)
    return [names for names in groups.values() if len(names) > 1]


def _untie_different(source: TensorSource, plan: dict[str, str], ties: list[list[str]], report: LoadReport) -> None:
    """Take names out of a tie when the checkpoint gives them another value; plan each shared value only once."""
    for group in ties:
        first, *others = [name for name in group if name in plan] or [""]
        for name in others:
            if torch.equal(source.get(plan[first]), source.get(plan[name])):
                del plan[name]
            else:
                group.remove(name)
                report.untied_keys.add((first, name))


def _converted(
    source: TensorSource,
    key: str,
    dtype: torch.dtype | None,
    device: torch.device,
    lay_out: Callable[[torch.Tensor], torch.Tensor] | None,
) -> torch.Tensor:
    """Fetch a tensor in the wanted type, on its device, in the memory order that its module computes fastest with."""
    tensor = source.get(key)
    held = tensor.dtype
    target = dtype if dtype is not None and held.is_floating_point and held.itemsize > 1 else held
    if target != held and tensor.is_contiguous() and tensor.device.type == device.type == "cpu":
        moved = copy_in_large_pages(tensor, target)
    else:
        moved = tensor.to(device=device, dtype=target)
    if lay_out is not None:
        moved = lay_out(moved)
    if moved.device != tensor.device or moved.data_ptr() != tensor.data_ptr():
        del tensor
        source.release(key)
        return moved
    return moved.clone() if source.borrowed else moved


def _share(slots: dict[str, _Slot], plan: Mapping[str, str], ties: list[list[str]]) -> None:
    """Give every name of a tie the one tensor that was loaded for it."""
    for group in ties:
        loaded = next((name for name in group if name in plan), None)
        if loaded is None:
            continue
        shared = slots[loaded].current()
        for name in group:
            slots[name].place(shared)


def _fill(
    slots: dict[str, _Slot],
    missing: set[str],
    ties: list[list[str]],
    dtype: torch.dtype | None,
    device: torch.device,
    initialise: Callable[[], None] | None,
) -> None:
    """Give the missing tensors memory and their initial values, with everything that was loaded out of reach."""
    missing = {name for name in missing if slots[name].tensor.is_meta}
    if not missing:
        return
    loaded = {name: slot.current() for name, slot in slots.items() if name not in missing}
    for name in loaded:
        slots[name].put(slots[name].tensor.to("meta"))
    for name in missing:
        wanted = slots[name].tensor
        target = dtype if dtype is not None and wanted.is_floating_point() else wanted.dtype
        slots[name].put(torch.zeros(wanted.shape, dtype=target, device=device))
    for group in ties:
        if group[0] in missing:
            _share(slots, {group[0]: ""}, [group])
    if initialise is not None:
        initialise()
    for name, tensor in loaded.items():
        slots[name].place(tensor)
