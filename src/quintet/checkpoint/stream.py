"""The tensors of a checkpoint as a model would hold them, made one by one: for writing another checkpoint of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from quintet.checkpoint.load import TensorSource, _converted, _plan, _slots, _ties, _untie_different
from quintet.checkpoint.rules import KeyRules, stays_float32
from quintet.errors import CheckpointError

__all__ = ["PlannedTensor", "plan_weights"]


@dataclass(frozen=True)
class PlannedTensor:
    """A tensor that can be made.

    Args:
        name: Its name in the model.
        shape: Its sizes.
        dtype: Its type.
        make: Makes it.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    make: Callable[[], torch.Tensor]

    @property
    def nbytes(self) -> int:
        """Its size in bytes."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


def plan_weights(
    model: nn.Module, source: TensorSource, *, rules: KeyRules, prefix: str, dtype: torch.dtype
) -> list[PlannedTensor]:
    """Say what `load_weights` would put into a model and `save_pretrained` would write of it; nothing is read yet.

    Args:
        model: On the meta device.
        source: The checkpoint.
        rules: How names map.
        prefix: Name of the base model inside a model with a head.
        dtype: What floating tensors are converted to.

    Returns:
        The tensors in the order of the model, those that are tied once.

    Raises:
        CheckpointError: The checkpoint does not fit, or lacks tensors.
    """
    slots = _slots(model)
    plan, report = _plan(source, slots, rules, prefix, False)
    ties = _ties(slots)
    _untie_different(source, plan, ties, report)
    given = {*plan, *(name for group in ties if any(other in plan for other in group) for name in group)}
    missing = sorted(slots.keys() - given)
    if missing:
        raise CheckpointError(
            f"The checkpoint lacks {len(missing)} tensors of {type(model).__name__}: {', '.join(missing[:4])}"
            f"{', ...' if len(missing) > 4 else ''}. Get it again."
        )
    device = torch.device("cpu")

    def planned(name: str) -> PlannedTensor:
        key = plan[name]
        held = source.dtype(key)
        wanted = torch.float32 if stays_float32(rules, name) else dtype
        converts = held.is_floating_point and held.itemsize > 1

        def make() -> torch.Tensor:
            return _converted(source, key, wanted, device, None)

        return PlannedTensor(name, source.shape(key), wanted if converts else held, make)

    return [planned(name) for name in slots if name in plan]
