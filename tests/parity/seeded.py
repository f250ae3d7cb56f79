"""What a model writes from the same state of the global generator."""

from __future__ import annotations

import warnings
from typing import Any

import torch

__all__ = ["seeded"]


def seeded(model: Any, *args: Any, **options: Any) -> torch.Tensor:
    """The tokens of `model.generate`, ours or the reference's, which warns."""
    torch.manual_seed(11)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        out: torch.Tensor = model.generate(*args, **options)
    return out
