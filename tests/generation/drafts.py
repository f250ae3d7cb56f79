"""Tiny models of every family, and draft models that are right about half of the time."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import torch

from quintet.auto import family_of

PAD = 0


def made(model_type: str, **fields: Any) -> Any:
    """Make a tiny model whose distributions are uneven, the same at every call."""
    torch.manual_seed(0)
    family = family_of(model_type)
    model = family.classes["causal-lm"](family.tiny(**fields))
    return disturbed(model, 0.2, seed=2)


def disturbed(model: Any, amount: float, seed: int = 3) -> Any:
    """Return a copy with noise on its weights; a little noise makes a draft model that is often right."""
    model, generator = copy.deepcopy(model), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * amount)
    return model.eval()


def tokens(rows: int, length: int, vocabulary: int = 90, seed: int = 5) -> torch.Tensor:
    """Return (rows, length) prompt tokens, none of them special."""
    return torch.randint(3, vocabulary, (rows, length), generator=torch.Generator().manual_seed(seed))


def quietly(model: Any, *args: Any, **kwargs: Any) -> Any:
    """Generate without warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return model.generate(*args, **kwargs)
