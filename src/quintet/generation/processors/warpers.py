"""Processors of sampling: temperature, and filters that leave the likelier tokens; see `sampling/warp.py`."""

from __future__ import annotations

import math
from typing import Any

import torch

from quintet.generation import checks, sampling
from quintet.generation.processors.base import LogitsProcessor

__all__ = [
    "EpsilonLogitsWarper",
    "EtaLogitsWarper",
    "MinPLogitsWarper",
    "TemperatureLogitsWarper",
    "TopHLogitsWarper",
    "TopKLogitsWarper",
    "TopPLogitsWarper",
    "TypicalLogitsWarper",
]

_UNIT = checks.number("a number from 0 to 1", lambda value: 0 <= value <= 1)
_SHARE = checks.number("a number above 0 and at most 1", lambda value: 0 < value <= 1)
_INSIDE = checks.number("a number above 0 and below 1", lambda value: 0 < value < 1)


def _filling(value: Any) -> str | None:
    return None if checks.is_number(value) or value in (math.inf, -math.inf) else "a number"


class TemperatureLogitsWarper(LogitsProcessor):
    """Divides the scores by a temperature above 0; see `sampling.temperature`."""

    def __init__(self, temperature: float) -> None:
        above = checks.number("a number above 0", lambda value: value > 0)
        advice = " For the most likely token at every step use do_sample=False."
        checks.require("temperature", temperature, above, advice)
        self.temperature = float(temperature)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """See LogitsProcessor."""
        return sampling.temperature(scores, self.temperature)


class _Filter(LogitsProcessor):
    """A filter: what the ruled out scores become, and how many tokens stay in any case."""

    def __init__(self, filter_value: float, min_tokens_to_keep: int = 1) -> None:
        checks.require("filter_value", filter_value, _filling)
        checks.require("min_tokens_to_keep", min_tokens_to_keep, checks.integer(1))
        self.filter_value = float(filter_value)
        self.min_tokens_to_keep = int(min_tokens_to_keep)


class TopKLogitsWarper(_Filter):
    """Keeps the `top_k` best scores; see `sampling.top_k`.

    Args:
        top_k: At least 1.
        filter_value: What the other scores become.
        min_tokens_to_keep: Lower limit of `top_k`.
    """

    def __init__(self, top_k: int, filter_value: float = -math.inf, min_tokens_to_keep: int = 1) -> None:
        checks.require("top_k", top_k, checks.integer(1))
        super().__init__(filter_value, min_tokens_to_keep)
        self.top_k = max(int(top_k), self.min_tokens_to_keep)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """See LogitsProcessor."""
        return sampling.top_k(scores, self.top_k, fill=self.filter_value)


class TopPLogitsWarper(_Filter):
    """Keeps the smallest set of tokens with probability `top_p` together; see `sampling.top_p`.

    Args:
        top_p: From 0 to 1.
        filter_value: What the other scores become.
        min_tokens_to_keep: Number of tokens that stay in any case.
    """

    def __init__(self, top_p: float, filter_value: float = -math.inf, min_tokens_to_keep: int = 1) -> None:
        checks.require("top_p", top_p, _UNIT)
        super().__init__(filter_value, min_tokens_to_keep)
        self.top_p = float(top_p)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """See LogitsProcessor."""
        return sampling.top_p(scores, self.top_p, fill=self.filter_value, keep=self.min_tokens_to_keep)


class MinPLogitsWarper(_Filter):
    """Keeps the tokens at least `min_p` times as likely as the best; see `sampling.min_p`.

    Args:
        min_p: From 0 to 1.
        filter_value: What the other scores become.
        min_tokens_to_keep: Number of tokens that stay in any case.
    """

    def __init__(self, min_p: float, filter_value: float = -math.inf, min_tokens_to_keep: int = 1) -> None:
        checks.require("min_p", min_p, _UNIT)
        super().__init__(filter_value, min_tokens_to_keep)
        self.min_p = float(min_p)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """See LogitsProcessor."""
        return sampling.min_p(scores, self.min_p, fill=self.filter_value, keep=self.min_tokens_to_keep)


class TopHLogitsWarper(_Filter):
    """Keeps the tokens that make up a share `top_h` of the entropy; see `sampling.top_h`.

    Args:
        top_h: Above 0 and at most 1.
        filter_value: What the other scores become.
    """

    def __init__(self, top_h: float, filter_value: float = -math.inf) -> None:
        checks.require("top_h", top_h, _SHARE)
        super().__init__(filter_value)
        self.top_h = float(top_h)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """See LogitsProcessor."""
        return sampling.top_h(scores, self.top_h, fill=self.filter_value)


class TypicalLogitsWarper(_Filter):
    """Keeps the tokens that surprise as much as is to be expected; see `sampling.typical`.

    Args:
        mass: Above 0 and below 1.
        filter_value: What the other scores become.
        min_tokens_to_keep: Number of tokens that stay in any case.
    """

    def __init__(self, mass: float = 0.9, filter_value: float = -math.inf, min_tokens_to_keep: int = 1) -> None:
        checks.require("mass", mass, _INSIDE)
        super().__init__(filter_value, min_tokens_to_keep)
        self.mass = float(mass)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """See LogitsProcessor."""
        return sampling.typical(scores, self.mass, fill=self.filter_value, keep=self.min_tokens_to_keep)


class EpsilonLogitsWarper(_Filter):
    """Keeps the tokens of at least probability `epsilon`; see `sampling.epsilon`.

    Args:
        epsilon: Above 0 and below 1.
        filter_value: What the other scores become.
        min_tokens_to_keep: Number of tokens that stay in any case.
    """

    def __init__(self, epsilon: float, filter_value: float = -math.inf, min_tokens_to_keep: int = 1) -> None:
        checks.require("epsilon", epsilon, _INSIDE)
        super().__init__(filter_value, min_tokens_to_keep)
        self.epsilon = float(epsilon)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """See LogitsProcessor."""
        return sampling.epsilon(scores, self.epsilon, fill=self.filter_value, keep=self.min_tokens_to_keep)


class EtaLogitsWarper(_Filter):
    """Keeps the tokens of at least a probability that falls with the entropy; see `sampling.eta`.

    Args:
        epsilon: Above 0 and below 1; 3e-4 to 4e-3 are usual.
        filter_value: What the other scores become.
        min_tokens_to_keep: Number of tokens that stay in any case.
        device: Accepted and not needed.
    """

    def __init__(
        self, epsilon: float, filter_value: float = -math.inf, min_tokens_to_keep: int = 1, device: Any = "cpu"
    ) -> None:
        checks.require("epsilon", epsilon, _INSIDE)
        super().__init__(filter_value, min_tokens_to_keep)
        self.epsilon = float(epsilon)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """See LogitsProcessor."""
        return sampling.eta(scores, self.epsilon, fill=self.filter_value, keep=self.min_tokens_to_keep)
