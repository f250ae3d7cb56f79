"""The attention backends by name, and whether one can run here."""

from __future__ import annotations

from typing import Protocol

import torch

from quintet.errors import ConfigError, suggest
from quintet.layers.attention.eager import Output, eager
from quintet.layers.attention.flash import MODULES, flash_attention_2, flash_attention_3, missing
from quintet.layers.attention.flex import flex
from quintet.layers.attention.sdpa import sdpa
from quintet.layers.masks import MaskSpec

__all__ = ["BACKENDS", "Backend", "check_backend", "usable_backends"]


class Backend(Protocol):
    """One way to attend from (B, H, T, D) over (B, G, K, D) keys and values.

    `mask` is the rule, `scale` the factor of the scores, `dropout` the probability with which a weight is dropped,
    `upcast` asks for float32 scores (only eager is called with it), `sinks` (H,) are the scores of a key without a
    value. Returns the output (B, H, T, D), and the weights (B, H, T, K) or None.
    """

    def __call__(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        mask: MaskSpec,
        *,
        scale: float,
        dropout: float,
        upcast: bool,
        sinks: torch.Tensor | None,
    ) -> Output:
        """Run it."""
        ...


BACKENDS: dict[str, Backend] = {
    "eager": eager,
    "sdpa": sdpa,
    "flex_attention": flex,
    "flash_attention_2": flash_attention_2,
    "flash_attention_3": flash_attention_3,
}


def check_backend(name: str) -> str:
    """Return `name` if it is a backend that can run on this machine.

    Raises:
        ConfigError: it is not; the message says what is missing, and which can.
    """
    if name not in BACKENDS:
        hint = suggest(str(name), BACKENDS)
        raise ConfigError(f"unknown attn_implementation {name!r}; there are {', '.join(BACKENDS)}.{hint}")
    lack = missing(name) if name in MODULES else None
    if lack is not None:
        raise ConfigError(
            f"attn_implementation {name!r} cannot run here: {lack}. Here can {', '.join(usable_backends())}."
        )
    return name


def usable_backends() -> list[str]:
    """Names of the backends that can run on this machine, in the order of the table."""
    return [name for name in BACKENDS if name not in MODULES or missing(name) is None]
