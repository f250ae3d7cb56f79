"""Experts whose weights stay packed as MXFP4: each is unpacked where it is used, and forgotten again.

Letters as in `layers.experts`; weights are stored by output, (E, out, in), in blocks of 32 along the inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from quintet.errors import InputError
from quintet.kernels.inference import must_be_plain
from quintet.kernels.integers import activations_for
from quintet.kernels.loader import packed_rows
from quintet.kernels.mxfp4 import native_mxfp4_experts
from quintet.layers.experts import Experts, RoutedExperts, clamped_swiglu
from quintet.quant.mxfp4 import BLOCK, check_width, pack, unpack, unpack_into, wide_dtype

__all__ = ["PackedExperts", "PackedParameter", "count", "packed_linear"]

# Weights that are unpacked at a time: 1 MiB in bfloat16, which are still in a cache when they are multiplied.
TILE = 2**19
WEIGHTS = ("gate_up_proj", "down_proj")


class PackedParameter(nn.Parameter):
    """A parameter of packed numbers or of their scales, without gradients."""

    def __new__(cls, data: torch.Tensor, requires_grad: bool = False) -> PackedParameter:
        """Make one.

        Raises:
            InputError: gradients are asked for.
        """
        if requires_grad:
            _refuse_gradients()
        made: PackedParameter = super().__new__(cls, data.detach(), False)
        return made

    @property
    def requires_grad(self) -> bool:
        """Always false."""
        return False

    @requires_grad.setter
    def requires_grad(self, value: bool) -> None:
        if value:
            _refuse_gradients()

    def requires_grad_(self, requires_grad: bool = True) -> PackedParameter:
        """Take False, and refuse True.

        Raises:
            InputError: gradients are asked for.
        """
        self.requires_grad = requires_grad
        return self


def count(parameter: nn.Parameter) -> int:
    """Return how many numbers of the model a parameter holds: of packed ones those packed, and none in a scale."""
    if not isinstance(parameter, PackedParameter):
        return parameter.numel()
    if parameter.dtype == torch.int8:
        return parameter.numel()
    if parameter.dtype == torch.int32:
        return 8 * parameter.numel()
    return 2 * parameter.numel() if parameter.dim() == 4 else 0  # MXFP4: two in each byte of the elements


def _refuse_gradients() -> None:
    raise InputError(
        "requires_grad=True on packed weights, which have no gradients: a few bits cannot move by small steps. "
        "Train adapters (LoRA) on top, whose gradients flow through packed weights; or load the model with "
        "from_pretrained(..., dequantize=True) and train all of it."
    )


class _PackedLinear(torch.autograd.Function):
    """`x @ W.T` with W packed; the backward pass unpacks W once more in place of keeping it."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, blocks: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
        """Multiply (n, in) by the unpacked (out, in)."""
        ctx.save_for_backward(blocks, scales)
        return torch.cat([x @ tile.t() for tile in _tiles(blocks, scales, x.dtype)], dim=-1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        """Return the gradient of x."""
        blocks, scales = ctx.saved_tensors
        total, begin = gradient.new_zeros(len(gradient), scales.shape[1] * BLOCK), 0  # (n, in)
        for tile in _tiles(blocks, scales, gradient.dtype):
            total = total.addmm_(gradient[:, begin : begin + len(tile)], tile)
            begin += len(tile)
        return total, None, None


def _tiles(blocks: torch.Tensor, scales: torch.Tensor, dtype: torch.dtype) -> Iterator[torch.Tensor]:
    """Yield the rows of an unpacked weight, some at a time; each takes the place of the one before."""
    outputs, groups = scales.shape
    step = min(outputs, max(1, TILE // (groups * BLOCK)))
    tile = torch.empty(step, groups * BLOCK, dtype=wide_dtype(dtype), device=blocks.device)
    index = torch.empty(tile.numel() // 2, dtype=torch.int32, device=blocks.device)
    for begin in range(0, outputs, step):
        part = slice(begin, begin + step)
        rows = tile[: min(step, outputs - begin)]
        yield unpack_into(rows, blocks[part], scales[part], index).to(dtype)  # (r, in)


def packed_linear(x: torch.Tensor, blocks: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Return `x @ W.T` for a packed W.

    Args:
        x: (n, in).
        blocks: (out, in / 32, 16) uint8.
        scales: (out, in / 32) uint8.

    Returns:
        (n, out); its gradient flows to x.
    """
    out: torch.Tensor = _PackedLinear.apply(x, blocks, scales)
    return out


class PackedExperts(RoutedExperts):
    """The twin of `Experts` that computes with packed weights as they are published, memory-mapped or not.

    Tokens on a CPU without gradients go through the native kernel, where it is built. Otherwise an expert is unpacked
    when a token uses it, a tile at a time. Biases are plain parameters.

    Args:
        num_experts: E.
        hidden_size: D, a multiple of 32.
        intermediate_size: F, a multiple of 32.
        alpha: See `clamped_swiglu`.
        limit: See `clamped_swiglu`.
        activations: As of `PackedLinear`.
        name: Path of the module, for errors.

    Raises:
        InputError: a size is not a multiple of 32.
    """

    def __init__(
        self,
        num_experts: int,
        hidden_size: int,
        intermediate_size: int,
        *,
        alpha: float = 1.702,
        limit: float = 7.0,
        activations: str = "auto",
        name: str = "experts",
    ) -> None:
        super().__init__()
        check_width(hidden_size, f"{name}.gate_up_proj")
        check_width(intermediate_size, f"{name}.down_proj")
        self.num_experts = num_experts
        self.hidden_size = hidden_size
        self.intermediate_size = intermediate_size
        self.alpha = alpha
        self.limit = limit
        self.activations = activations
        outer, inner = hidden_size // BLOCK, intermediate_size // BLOCK
        self.gate_up_proj_blocks = _bytes(num_experts, 2 * intermediate_size, outer, BLOCK // 2)
        self.gate_up_proj_scales = _bytes(num_experts, 2 * intermediate_size, outer)
        self.gate_up_proj_bias = nn.Parameter(torch.zeros(num_experts, 2 * intermediate_size))
        self.down_proj_blocks = _bytes(num_experts, hidden_size, inner, BLOCK // 2)
        self.down_proj_scales = _bytes(num_experts, hidden_size, inner)
        self.down_proj_bias = nn.Parameter(torch.zeros(num_experts, hidden_size))

    @classmethod
    def empty_like(cls, module: Experts, name: str = "experts") -> PackedExperts:
        """Make the twin of a plain module without its weights, which a load puts in; under `meta` it costs nothing."""
        return cls(
            module.num_experts,
            module.hidden_size,
            module.intermediate_size,
            alpha=module.alpha,
            limit=module.limit,
            name=name,
        ).train(module.training)

    @classmethod
    def from_plain(cls, module: Experts, name: str = "experts") -> tuple[PackedExperts, dict[str, float]]:
        """Pack a plain module.

        Returns:
            The twin, and the error of each of its weights by name, see `mxfp4.Packed`.
        """
        with torch.device("meta"):
            twin = cls.empty_like(module, name)
        errors = {}
        for weight in WEIGHTS:
            stored = getattr(module, weight).detach().transpose(1, 2)  # (E, in, out) -> (E, out, in)
            blocks, scales, errors[f"{name}.{weight}"] = pack(stored, f"{name}.{weight}")
            setattr(twin, f"{weight}_blocks", PackedParameter(blocks))
            setattr(twin, f"{weight}_scales", PackedParameter(scales))
            setattr(twin, f"{weight}_bias", getattr(module, f"{weight}_bias"))
        return twin, errors

    def to_plain(self, dtype: torch.dtype | None = None) -> Experts:
        """Return the plain module that this one is the twin of, unpacked into `dtype` (None: that of the biases)."""
        dtype = dtype or self.down_proj_bias.dtype
        with torch.device("meta"):
            plain = Experts(
                self.num_experts, self.hidden_size, self.intermediate_size, alpha=self.alpha, limit=self.limit
            ).train(self.training)
        for weight in WEIGHTS:
            stored = unpack(getattr(self, f"{weight}_blocks"), getattr(self, f"{weight}_scales"), dtype)
            setattr(plain, weight, nn.Parameter(stored.transpose(1, 2)))  # (E, out, in) -> (E, in, out)
            bias = getattr(self, f"{weight}_bias")
            setattr(plain, f"{weight}_bias", nn.Parameter(bias.detach().to(dtype), bias.requires_grad))
        return plain

    def stacks(self) -> tuple[torch.Tensor, ...]:
        """Return packed weights and biases, inner ones first."""
        return (
            *(self.gate_up_proj_blocks, self.gate_up_proj_scales, self.gate_up_proj_bias),
            *(self.down_proj_blocks, self.down_proj_scales, self.down_proj_bias),
        )

    def forward(self, x: torch.Tensor, indices: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Return the weighted sum of what each token's experts say: (N, D), see `RoutedExperts.forward`."""
        if not must_be_plain() and x.shape[0] <= packed_rows():
            activations = activations_for(self.activations, x.shape[0], x.dtype)
            out = native_mxfp4_experts(x, indices, weights, self.stacks(), self.alpha, self.limit, activations)
            if out is not None:
                return out
        return super().forward(x, indices, weights)

    def compute(self, x: torch.Tensor, *parts: torch.Tensor) -> torch.Tensor:
        """Return what one expert says to (n, D) tokens."""
        gate_up_blocks, gate_up_scales, gate_up_bias, down_blocks, down_scales, down_bias = parts
        both = packed_linear(x, gate_up_blocks, gate_up_scales) + gate_up_bias  # (n, 2F)
        inner = clamped_swiglu(both, self.alpha, self.limit)  # (n, F)
        return packed_linear(inner, down_blocks, down_scales) + down_bias

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> PackedExperts:
        """Move as any module does; packed bytes stay what they are."""
        super()._apply(fn, recurse)
        for name, parameter in self._parameters.items():
            if parameter is not None and parameter.dtype == torch.uint8 and not isinstance(parameter, PackedParameter):
                self._parameters[name] = PackedParameter(parameter.data)
        return self


def _bytes(*shape: int) -> PackedParameter:
    return PackedParameter(torch.zeros(shape, dtype=torch.uint8))
