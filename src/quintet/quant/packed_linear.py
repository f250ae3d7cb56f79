"""Linear layers whose weight stays packed as whole numbers of 8 or 4 bits with scales; layouts of `kernels.packing`.

Few rows are multiplied by the native kernels; otherwise a tile of the weight is unpacked where it is used, and
forgotten again. Gradients flow to the inputs and to the bias, not to the weight.

Letters: N rows, G groups of an output.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from quintet.errors import InputError
from quintet.kernels.head import native_head_topk
from quintet.kernels.inference import must_be_plain
from quintet.kernels.integers import activations_for, native_int4_linear, native_int8_linear
from quintet.kernels.packing import (
    WORD,
    dequantize_int4,
    dequantize_int8,
)
from quintet.layers.conv1d import Conv1D
from quintet.quant.config import CHOICES
from quintet.quant.packed_experts import TILE, PackedParameter
from quintet.quant.rounding import round_weight

__all__ = ["Int4Linear", "Int8Linear", "PackedLinear"]

Tiles = Callable[[torch.dtype], Iterator[torch.Tensor]]


class _TiledLinear(torch.autograd.Function):
    """`x @ W.T` with W made a few rows at a time; the backward pass makes them once more in place of keeping them."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, tiles: Tiles) -> torch.Tensor:
        """Multiply (N, in) by (out, in)."""
        ctx.tiles, ctx.inputs = tiles, x.shape[-1]
        return torch.cat([x @ tile.t() for tile in tiles(x.dtype)], dim=-1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        """Return the gradient of x."""
        total, begin = gradient.new_zeros(len(gradient), ctx.inputs), 0  # (N, in)
        for tile in ctx.tiles(gradient.dtype):
            total = total.addmm_(gradient[:, begin : begin + len(tile)], tile)
            begin += len(tile)
        return total, None


class PackedLinear(nn.Linear):
    """Base of the packed linear layers; it is a `nn.Linear` so that adapters (LoRA) find it.

    Args:
        in_features: Inputs.
        out_features: Outputs.
        bias: Whether there is one, a plain parameter.
        group: Inputs that share a scale; None for one scale per output.
        transposed: The plain module is a `Conv1D`.
        activations: "bf16" multiplies them as they are; "int8" rounds those of many rows to 8 bits; "auto" does so
            where it is faster, but never in float32. With gradients, and without native kernels, they stay as they are.
        dtype: Of scales and bias.

    Raises:
        InputError: the group does not divide the inputs, or another kind of activations.
    """

    bits: ClassVar[int]
    parts: ClassVar[tuple[str, ...]]
    """Names of the tensors that take the place of `weight`; those that a layer need not have are last."""
    group: int | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        group: int | None = None,
        symmetric: bool = True,
        transposed: bool = False,
        activations: str = "auto",
        dtype: torch.dtype | None = None,
        name: str = "weight",
    ) -> None:
        nn.Module.__init__(self)
        check_sizes(name, self.bits, in_features, group)
        if activations not in CHOICES:
            raise InputError(f"{name}: activations={activations!r} is not one of {', '.join(CHOICES)}.")
        self.in_features, self.out_features = in_features, out_features
        self.group, self.symmetric, self.transposed, self.activations = group, symmetric, transposed, activations
        groups = 1 if group is None else in_features // group
        self._make(groups, dtype)
        self.bias = nn.Parameter(torch.zeros(out_features, dtype=dtype)) if bias else None  # type: ignore[assignment]

    def _make(self, groups: int, dtype: torch.dtype | None) -> None:
        raise NotImplementedError

    @classmethod
    def empty_like(cls, module: nn.Module, **options: Any) -> PackedLinear:
        """Make the twin of a plain module without its weight, which a load puts in; under `meta` it costs nothing.

        Args:
            module: A `nn.Linear` or `Conv1D`.
            **options: `group`, `symmetric`, `activations`, `name`.
        """
        weight: Any = module.weight
        transposed = isinstance(module, Conv1D)
        inputs, outputs = weight.shape if transposed else weight.shape[::-1]
        made = cls(
            inputs,
            outputs,
            getattr(module, "bias", None) is not None,
            transposed=transposed,
            dtype=weight.dtype,
            **options,
        )
        return made.train(module.training)

    @classmethod
    def from_plain(
        cls, module: nn.Module, *, packed: dict[str, torch.Tensor] | None = None, **options: Any
    ) -> tuple[PackedLinear, float]:
        """Pack a plain module.

        Args:
            module: A `nn.Linear` or `Conv1D`.
            packed: The tensors of the result, where they are made already.
            **options: As `empty_like`.

        Returns:
            The twin, which shares the bias, and the error: root of the squared differences as a share of the root of
            the squares.
        """
        with torch.device("meta"):
            twin = cls.empty_like(module, **options)
        weight: Any = module.weight
        stored = weight.detach().t() if twin.transposed else weight.detach()  # (out, in)
        if packed is None:
            packed = twin.pack(stored, options.get("name", "weight"))
        for name, tensor in packed.items():
            twin._set(name, tensor)
        if twin.bias is not None:
            twin.bias = module.bias  # type: ignore[assignment]
        wide = stored.float()
        error = (twin.unpack(torch.float32) - wide).norm() / wide.norm().clamp_min(torch.finfo(torch.float32).tiny)
        return twin, float(error)

    def _set(self, name: str, tensor: torch.Tensor) -> None:
        if name in self._buffers:
            self._buffers[name] = tensor
        else:
            setattr(self, name, PackedParameter(tensor))

    def to_plain(self, dtype: torch.dtype | None = None) -> nn.Module:
        """Return the plain module that this one is the twin of, unpacked into `dtype` (None: that of the scales)."""
        dtype = dtype or self.dtype
        kind: Any = Conv1D if self.transposed else nn.Linear
        sizes = (self.out_features, self.in_features) if self.transposed else (self.in_features, self.out_features)
        with torch.device("meta"):
            plain: Any = kind(*sizes) if self.transposed else kind(*sizes, bias=self.bias is not None)
        weight = self.unpack(dtype)
        plain.weight = nn.Parameter(weight.t() if self.transposed else weight)
        if self.bias is not None:
            plain.bias = nn.Parameter(self.bias.detach().to(dtype), self.bias.requires_grad)
        result: nn.Module = plain.train(self.training)
        return result

    @property
    def dtype(self) -> torch.dtype:
        """Type of the scales, which is the model's."""
        scale: torch.Tensor = self.weight_scale  # type: ignore[assignment]
        return scale.dtype

    def pack(self, weight: torch.Tensor, name: str = "weight") -> dict[str, torch.Tensor]:
        """Return the tensors, by name, of an (out, in) weight; errors call it `name`."""
        return round_weight(weight.contiguous(), self.bits, self.group, self.symmetric, name=name)

    def unpack(self, dtype: torch.dtype, begin: int = 0, end: int | None = None) -> torch.Tensor:
        """Return rows `begin` to `end` of the (out, in) weight; with zero points both are multiples of 8."""
        raise NotImplementedError

    def _native(self, x: torch.Tensor, activations: str) -> torch.Tensor | None:
        raise NotImplementedError

    def _tiles(self, dtype: torch.dtype) -> Iterator[torch.Tensor]:
        step = max(WORD, TILE // self.in_features // WORD * WORD)
        for begin in range(0, self.out_features, step):
            yield self.unpack(dtype, begin, min(begin + step, self.out_features))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (..., in_features) to (..., out_features)."""
        if not must_be_plain():
            activations = activations_for(self.activations, x.numel() // self.in_features, x.dtype)
            out = self._native(x, activations)
            if out is not None:
                return out
        flat = x.reshape(-1, self.in_features)  # (..., in) -> (N, in)
        result: torch.Tensor
        if torch.compiler.is_compiling():
            result = flat @ self.unpack(x.dtype).t()
        else:
            result = _TiledLinear.apply(flat, self._tiles)
        if self.bias is not None:
            result = result + self.bias
        return result.view(*x.shape[:-1], self.out_features)

    def best_outputs(self, x: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor] | None:
        """See CpuLinear.best_outputs."""
        if must_be_plain():
            return None
        weight, scale, *rest = (getattr(self, name, None) for name in self.parts if name != "weight_shape")
        rounds = activations_for(self.activations, x.numel() // self.in_features, x.dtype) == "int8"
        if rounds or not isinstance(weight, torch.Tensor):
            return None
        found = native_head_topk(x, weight, k, scale, rest[0] if rest else None, self.bias, log_sum=False)
        return None if found is None else found[:2]

    def extra_repr(self) -> str:
        """Sizes and format, for print(model)."""
        groups = "a scale per output" if self.group is None else f"groups of {self.group}"
        return f"in_features={self.in_features}, out_features={self.out_features}, {self.bits} bits, {groups}"


class Int8Linear(PackedLinear):
    """`weight` (out, in) int8 and `weight_scale` (out, G)."""

    bits = 8
    parts = ("weight", "weight_scale")

    def _make(self, groups: int, dtype: torch.dtype | None) -> None:
        self.weight = PackedParameter(torch.zeros(self.out_features, self.in_features, dtype=torch.int8))
        self.weight_scale = PackedParameter(torch.ones(self.out_features, groups, dtype=dtype))

    def unpack(self, dtype: torch.dtype, begin: int = 0, end: int | None = None) -> torch.Tensor:
        """See PackedLinear."""
        part = slice(begin, end)
        return dequantize_int8(self.weight[part], self.weight_scale[part], dtype)

    def _native(self, x: torch.Tensor, activations: str) -> torch.Tensor | None:
        return native_int8_linear(x, self.weight, self.weight_scale, self.bias, activations)


class Int4Linear(PackedLinear):
    """`weight_packed` (out, in / 8) int32, `weight_scale` (out, G), `weight_zero_point` (out / 8, G) unless symmetric.

    `weight_shape` (2,) says out and in, as other readers of the format want it.
    """

    bits = 4
    parts = ("weight_packed", "weight_scale", "weight_shape", "weight_zero_point")

    def _make(self, groups: int, dtype: torch.dtype | None) -> None:
        outputs, inputs = self.out_features, self.in_features
        self.weight_packed = PackedParameter(torch.zeros(outputs, inputs // WORD, dtype=torch.int32))
        self.weight_scale = PackedParameter(torch.ones(outputs, groups, dtype=dtype))
        zeros = None if self.symmetric else torch.zeros(-(-outputs // WORD), groups, dtype=torch.int32)
        self.register_buffer("weight_zero_point", zeros)
        self.register_buffer("weight_shape", torch.tensor([outputs, inputs]))

    def rebuild_buffers(self, device: torch.device) -> None:
        """Make `weight_shape` again, where a checkpoint has none."""
        self.weight_shape = torch.tensor([self.out_features, self.in_features], device=device)

    def unpack(self, dtype: torch.dtype, begin: int = 0, end: int | None = None) -> torch.Tensor:
        """See PackedLinear."""
        part: Any = slice(begin, end)
        zeros: Any = self.weight_zero_point
        if zeros is not None:
            zeros = zeros[begin // WORD : None if end is None else -(-end // WORD)]
        return dequantize_int4(self.weight_packed[part], self.weight_scale[part], zeros, dtype)

    @property
    def weight(self) -> torch.Tensor:  # type: ignore[override]
        """`weight_packed`: adapters ask the weight of a linear layer for its device. Numbers are in `unpack(dtype)`."""
        return self.weight_packed

    def _native(self, x: torch.Tensor, activations: str) -> torch.Tensor | None:
        zeros: Any = self.weight_zero_point
        return native_int4_linear(x, self.weight_packed, self.weight_scale, zeros, self.bias, activations)


LINEARS: dict[int, type[PackedLinear]] = {8: Int8Linear, 4: Int4Linear}


def check_sizes(name: str, bits: int, inputs: int, group: int | None) -> None:
    """Check that a weight can be packed.

    Raises:
        InputError: the group does not divide the inputs, or the inputs do not fill words, naming the weight.
    """
    if group is not None and (group < 1 or inputs % group):
        raise InputError(
            f"{name} has {inputs} inputs, which groups of {group} do not divide. Choose another group_size, or name "
            "the module in modules_to_not_convert."
        )
    if bits == 4 and inputs % WORD:
        raise InputError(
            f"{name} has {inputs} inputs, and 4 bits need a multiple of {WORD}. Name the module in "
            "modules_to_not_convert, or use 8 bits."
        )
