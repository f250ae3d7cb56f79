"""Activation functions by the names that published configurations use."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional as F

from quintet.errors import ConfigError, suggest

__all__ = ["ACTIVATIONS", "get_activation"]

Activation = Callable[[torch.Tensor], torch.Tensor]


def _tanh_gelu(x: torch.Tensor) -> torch.Tensor:  # not a partial: a copy of a model has the same function
    return F.gelu(x, approximate="tanh")


# "gelu" is the exact form x * Phi(x); the others marked tanh are its approximation
# 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) of Hendrycks and Gimpel (arXiv 1606.08415).
ACTIVATIONS: dict[str, Activation] = {
    "relu": F.relu,
    "selu": F.selu,
    "silu": F.silu,
    "swish": F.silu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "gelu": F.gelu,
    "gelu_new": _tanh_gelu,
    "gelu_fast": _tanh_gelu,
    "gelu_pytorch_tanh": _tanh_gelu,
}


def get_activation(name: str) -> Activation:
    """Return the activation of that name.

    Raises:
        ConfigError: there is none; the message lists them and suggests the nearest.
    """
    try:
        return ACTIVATIONS[name]
    except (KeyError, TypeError):
        hint = suggest(name, ACTIVATIONS) if isinstance(name, str) else ""
        raise ConfigError(f"unknown activation {name!r}; known are {', '.join(ACTIVATIONS)}.{hint}") from None
