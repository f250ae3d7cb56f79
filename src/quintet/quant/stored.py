"""Packed weights as a checkpoint has them: which tensors belong together, and what their shapes say."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from quintet.checkpoint.load import TensorSource
from quintet.checkpoint.rules import KeyRules, resolve
from quintet.errors import CheckpointError
from quintet.kernels.packing import WORD
from quintet.layers.conv1d import Conv1D
from quintet.quant.rounding import check_scales

__all__ = ["PackedTensors", "find_packed"]


class PackedTensors:
    """The tensors of one packed weight in a checkpoint: by part, the key; and what their shapes say."""

    def __init__(self, source: TensorSource, keys: dict[str, str], module: nn.Module) -> None:
        self.keys = keys
        self.bits = 4 if "weight_packed" in keys else 8
        scale = source.shape(keys["weight_scale"])
        outputs = scale[0]
        words = source.shape(keys["weight_packed" if self.bits == 4 else "weight"])
        self.inputs = words[1] * WORD if self.bits == 4 else words[1]
        groups = scale[1] if len(scale) == 2 else 0
        plain: Any = module.weight
        want = tuple(plain.shape[::-1] if isinstance(module, Conv1D) else plain.shape)
        if (words[0], self.inputs) != want or outputs != want[0] or groups < 1 or self.inputs % groups:
            raise CheckpointError(
                f"'{keys['weight_scale']}' of shape {list(scale)} and its numbers of shape {list(words)} do not fit a "
                f"weight of {list(want)} in {self.bits} bits. Configuration and weights do not belong together, or "
                "the file is damaged; get it again."
            )
        check_scales(source.get(keys["weight_scale"]), keys["weight_scale"])
        self.group = None if groups == 1 and self.bits == 8 else self.inputs // groups

    def options(self) -> dict[str, Any]:
        """What the twin is made with."""
        return {"bits": self.bits, "group": self.group, "symmetric": "weight_zero_point" not in self.keys}


def find_packed(
    source: TensorSource, modules: dict[str, nn.Module], rules: KeyRules, prefix: str
) -> dict[str, PackedTensors]:
    """Return by module the packed weights that a checkpoint has.

    Args:
        source: The checkpoint.
        modules: The plain modules that may be packed, by path.
        rules: How its names become the model's.
        prefix: What the model's names begin with.

    Raises:
        CheckpointError: tensors are missing, do not fit the modules, or have scales that are no numbers.
    """
    stems = {f"{path}.weight": path for path in modules}
    keys: dict[str, dict[str, str]] = {}
    for key in source:
        stem, dot, part = key.rpartition(".")
        if part in ("weight_scale", "weight_packed", "weight_zero_point", "weight_shape") or (
            part == "weight" and source.dtype(key) == torch.int8
        ):
            name = resolve(rules, prefix, f"{stem}{dot}weight", stems)
            if name is not None:
                keys.setdefault(stems[name], {})[part] = key
    found = {}
    for path, parts in keys.items():
        if "weight_scale" not in parts or not {"weight", "weight_packed"} & parts.keys():
            have = ", ".join(f"'{key}'" for key in parts.values())
            raise CheckpointError(f"The checkpoint is half packed: it has {have} without the rest. Get it again.")
        found[path] = PackedTensors(source, parts, modules[path])
    return found
