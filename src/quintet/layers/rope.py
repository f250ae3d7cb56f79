"""Rotary positions (RoPE): the frequencies of every type, and the rotation.

Su et al. 2021, "RoFormer" (arXiv 2104.09864): a pair of features with index i turns by position * theta^(-2i/R). The
pairs are (i, i + R/2), as in all published checkpoints of these families. The other types change the frequencies so
that a model can read more tokens than it was trained on:

linear    positions divided by a factor (Chen et al. 2023, arXiv 2306.15595)
ntk       theta times factor^(R/(R-2)): high frequencies stay, low ones stretch (bloc97 2023; YaRN paper, section 3.1)
dynamic   as ntk, with a factor that grows with the length (emozilla 2023; YaRN paper, section 3.3)
yarn      linear for low frequencies, nothing for high ones, a ramp between (Peng et al. 2023, arXiv 2309.00071)
longrope  a divisor for each pair, one list for short and one for long texts (Ding et al. 2024, arXiv 2402.13753)
llama3    linear for low frequencies, nothing for high ones, smooth between (Llama 3 herd, arXiv 2407.21783)

Letters: B rows, T new tokens, H heads, D head size, R rotated features of a head, N = R/2 pairs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from quintet.rope import rotary_size

__all__ = ["RotaryEmbedding", "apply_rope", "attention_factor"]

Tensor = torch.Tensor


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the first R features of each head; the others stay.

    Args:
        x: (B, H, T, D) queries or keys, or (B, ..., H, T, D) several of them at once.
        cos, sin: (B or 1, T, R) from RotaryEmbedding.

    Returns:
        x's shape and dtype.
    """
    rows, tokens, size = cos.shape
    shape = (rows, *(1,) * (x.dim() - 3), tokens, size)
    cos, sin = cos.to(x.dtype).view(shape), sin.to(x.dtype).view(shape)  # (B or 1, 1, T, R)
    turned = x[..., :size]
    first, second = turned.chunk(2, dim=-1)  # each (B, H, T, N)
    rotated = turned * cos + torch.cat((-second, first), dim=-1) * sin
    return rotated if size == x.shape[-1] else torch.cat((rotated, x[..., size:]), dim=-1)


class RotaryEmbedding(nn.Module):
    """Cosines and sines of token positions.

    Nothing is learned and nothing is saved: `inv_freq` (N,) is computed from the parameters, in float32 whatever the
    model's dtype is, because a 16-bit frequency times a position of some thousands is no angle any more.

    Args:
        parameters: The canonical dict of `quintet.rope`, checked.
        head_dim: D.
        max_position_embeddings: Longest sequence in tokens.
    """

    inv_freq: Tensor
    long_inv_freq: Tensor

    def __init__(self, parameters: Mapping[str, Any], *, head_dim: int, max_position_embeddings: int) -> None:
        super().__init__()
        self.parameters_ = dict(parameters)
        self.rope_type: str = parameters["rope_type"]
        self.size = rotary_size(parameters, head_dim)
        self.max_position_embeddings = max_position_embeddings
        self.original = parameters.get("original_max_position_embeddings") or max_position_embeddings
        self.attention_factor = attention_factor(parameters, max_position_embeddings)
        self.rebuild_buffers(torch.get_default_device())

    def rebuild_buffers(self, device: torch.device) -> None:
        """Compute the frequencies again; the loader calls it after making the model without memory."""
        # On the CPU for every device: powers differ in the last bit, and an angle multiplies that by the position.
        with torch.device("cpu"):
            tables = {
                "inv_freq": FREQUENCIES[self.rope_type](self.parameters_, self.size, self.max_position_embeddings)
            }
            if self.rope_type == "longrope":
                tables["long_inv_freq"] = _longrope(self.parameters_, self.size, "long_factor")
        for name, table in tables.items():
            self.register_buffer(name, table.to(device), persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> RotaryEmbedding:
        super()._apply(fn, recurse)
        if self.inv_freq.dtype != torch.float32:  # model.half() and the like move, but never round
            self.rebuild_buffers(self.inv_freq.device)
        return self

    @torch.no_grad()
    def forward(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Return cos and sin of the angles, each (B or 1, T, R) in float32, both halves of R equal.

        `dynamic` and `longrope` depend on the length, which is the last position of a row plus one: of that row alone,
        so that a batch gives what its rows give, and of this call alone, so that no call changes another.

        Args:
            positions: (B or 1, T) integers.
        """
        angles = positions[..., None].float() * self._frequencies(positions)  # (B or 1, T, N)
        angles = torch.cat((angles, angles), dim=-1)  # (B or 1, T, R)
        return angles.cos() * self.attention_factor, angles.sin() * self.attention_factor

    def _frequencies(self, positions: Tensor) -> Tensor:
        """Return (N,) or (B or 1, 1, N), by what the lengths ask for."""
        if self.rope_type not in ("dynamic", "longrope"):
            return self.inv_freq
        lengths = positions.amax(dim=-1, keepdim=True)[..., None] + 1  # (B or 1, 1, 1)
        if self.rope_type == "longrope":
            return torch.where(lengths > self.original, self.long_inv_freq, self.inv_freq)
        limit, factor = self.max_position_embeddings, self.parameters_["factor"]
        stretch = (factor * lengths.clamp(min=limit) / limit) - (factor - 1)  # 1 up to the limit
        theta = self.parameters_["rope_theta"] * stretch ** (self.size / (self.size - 2))
        return torch.where(lengths > limit, 1.0 / theta ** _exponents(self.size, positions.device), self.inv_freq)

    def extra_repr(self) -> str:
        """Return the type and size, for printing the model."""
        return f"type={self.rope_type}, size={2 * self.inv_freq.numel()}, theta={self.parameters_['rope_theta']}"


def _exponents(size: int, device: torch.device | None = None) -> Tensor:
    return torch.arange(0, size, 2, dtype=torch.float32, device=device) / size  # (N,)


def _default(parameters: Mapping[str, Any], size: int, limit: int) -> Tensor:
    """theta^(-2i/R); `dynamic` begins with it."""
    return 1.0 / parameters["rope_theta"] ** _exponents(size)


def _linear(parameters: Mapping[str, Any], size: int, limit: int) -> Tensor:
    """A divided position is a divided frequency."""
    return _default(parameters, size, limit) / parameters["factor"]


def _ntk(parameters: Mapping[str, Any], size: int, limit: int) -> Tensor:
    """The lowest frequency becomes exactly that of `linear`, the highest stays 1."""
    theta = parameters["rope_theta"] * parameters["factor"] ** (size / (size - 2))
    return 1.0 / theta ** _exponents(size)


def _ratio(parameters: Mapping[str, Any], limit: int) -> float:
    """Return `factor`, or the ratio of the new length to the old."""
    factor = parameters.get("factor")
    return limit / (parameters.get("original_max_position_embeddings") or limit) if factor is None else factor


def _yarn(parameters: Mapping[str, Any], size: int, limit: int) -> Tensor:
    """Pairs that turn often enough within the original length stay, pairs that do not complete a turn are divided."""
    theta, original = parameters["rope_theta"], parameters.get("original_max_position_embeddings") or limit

    def pair_with(turns: float) -> float:
        """Solve original * theta^(-2i/R) = 2 pi * turns for i."""
        return size * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = pair_with(parameters.get("beta_fast", 32)), pair_with(parameters.get("beta_slow", 1))
    if parameters.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, size - 1)
    if low == high:
        high += 0.001  # a step instead of a ramp
    ramp = ((torch.arange(size // 2, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
    keep = 1 - ramp
    powers = theta ** _exponents(size)
    return 1.0 / (_ratio(parameters, limit) * powers) * (1 - keep) + 1.0 / powers * keep


def _longrope(parameters: Mapping[str, Any], size: int, which: str) -> Tensor:
    """Each pair has its own divisor, found by search."""
    divisors = torch.tensor(parameters[which], dtype=torch.float32)
    return 1.0 / (divisors * parameters["rope_theta"] ** _exponents(size))


def _longrope_short(parameters: Mapping[str, Any], size: int, limit: int) -> Tensor:
    return _longrope(parameters, size, "short_factor")


def _llama3(parameters: Mapping[str, Any], size: int, limit: int) -> Tensor:
    """Wavelengths below original/high stay, those above original/low are divided, between them a mix."""
    plain = _default(parameters, size, limit)
    factor, low, high = (parameters[key] for key in ("factor", "low_freq_factor", "high_freq_factor"))
    original = parameters["original_max_position_embeddings"]
    lengths = 2 * math.pi / plain
    share = (original / lengths - low) / (high - low)
    mixed = (1 - share) * plain / factor + share * plain
    out = torch.where(lengths > original / low, plain / factor, plain)
    return torch.where((lengths >= original / high) & (lengths <= original / low), mixed, out)


FREQUENCIES: dict[str, Callable[[Mapping[str, Any], int, int], Tensor]] = {
    "default": _default,
    "linear": _linear,
    "dynamic": _default,
    "ntk": _ntk,
    "yarn": _yarn,
    "longrope": _longrope_short,
    "llama3": _llama3,
}


def attention_factor(parameters: Mapping[str, Any], max_position_embeddings: int) -> float:
    """Return what cos and sin are multiplied with: 1, or the temperature of YaRN (section 3.4) and LongRoPE.

    Args:
        parameters: The canonical dict; its own `attention_factor` wins.
        max_position_embeddings: Longest sequence, for a factor that is not given.
    """
    rope_type, given = parameters["rope_type"], parameters.get("attention_factor")
    if given is not None:
        return float(given)
    if rope_type not in ("yarn", "longrope"):
        return 1.0
    factor = _ratio(parameters, max_position_embeddings)
    if factor <= 1:
        return 1.0
    if rope_type == "longrope":
        return math.sqrt(1 + math.log(factor) / math.log(parameters["original_max_position_embeddings"]))
    scale, scale_all = parameters.get("mscale"), parameters.get("mscale_all_dim")
    if scale and scale_all:
        return (0.1 * scale * math.log(factor) + 1) / (0.1 * scale_all * math.log(factor) + 1)
    return 0.1 * math.log(factor) + 1
