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


def far_from(counts: torch.Tensor, wanted: torch.Tensor) -> bool:
    """Whether counts are further from what is wanted than chance explains; rare outcomes are counted together."""
    expected = wanted * counts.sum()
    common = expected >= 5
    seen = torch.cat([counts[common], counts[~common].sum()[None]]).double()
    due = torch.cat([expected[common], expected[~common].sum()[None]]).double().clamp(min=1e-9)
    freedom = len(due) - 1
    # Above the 0.999 quantile of chi-square with that many degrees of freedom.
    return float(((seen - due) ** 2 / due).sum()) > freedom + 4.5 * (2 * freedom) ** 0.5 + 10
