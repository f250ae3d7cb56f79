"""Replace modules of a model by twins that compute the same: by exact type, with a report."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import nn

__all__ = ["SwapReport", "Twin", "swap"]

# Makes the twin of a module, or returns None when this one must stay.
Twin = Callable[[nn.Module], nn.Module | None]


@dataclass
class SwapReport:
    """What a swap did: paths that were replaced, and paths whose twin declined."""

    replaced: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)


def swap(model: nn.Module, twins: Mapping[type[nn.Module], Twin]) -> SwapReport:
    """Replace every submodule whose exact type is in `twins`.

    Subclasses are not touched: they compute something else. A module that stands in two places gets one twin.

    Args:
        model: Changed in place; parameters stay the same objects.
        twins: For each type the function that makes its twin.
    """
    report = SwapReport()
    made: dict[nn.Module, nn.Module | None] = {}
    for parent_path, parent in list(model.named_modules()):
        for name, child in list(parent.named_children()):
            if type(child) not in twins:
                continue
            if child not in made:
                made[child] = twins[type(child)](child)
            path = f"{parent_path}.{name}" if parent_path else name
            twin = made[child]
            if twin is None:
                report.kept.append(path)
            else:
                setattr(parent, name, twin)
                report.replaced.append(path)
    return report
