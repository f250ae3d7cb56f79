"""A model made ready to compute without gradients: `generate`, scoring and the pipelines all begin with it."""

from __future__ import annotations

from typing import Any

__all__ = ["use_twins"]


def use_twins(model: Any) -> None:
    """Call `model.optimize()`, which swaps modules for faster twins; a model in training, or without it, stays plain.

    A second call costs a walk over the modules, and finds those that were exchanged since.
    """
    optimize = getattr(model, "optimize", None)
    if optimize is not None and not model.training:
        optimize()
