"""Modules as native code is told of them: where their tensors lie, and what has to stay for that to hold."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from quintet.fused.cpu_linear import CpuConv1D, CpuLinear
from quintet.fused.cpu_norm import CpuRMSNorm
from quintet.fused.structs import STORED_BY_INPUT, Linear, Norm
from quintet.fused.unchanged import Unchanged
from quintet.kernels.integers import ACTIVATIONS, activations_for, native_layout
from quintet.kernels.linear import TYPES, matmul_pays
from quintet.layers.conv1d import Conv1D
from quintet.layers.experts import TopKRouter
from quintet.layers.norm import RMSNorm
from quintet.quant.packed_linear import Int4Linear, Int8Linear

__all__ = ["Reader", "Unfit", "type_of"]


class Unfit(Exception):
    """Modules are not of the kind that native code knows."""


def type_of(tensor: torch.Tensor) -> int:
    """Return the number of a tensor's type.

    Raises:
        Unfit: native code does not know it.
    """
    try:
        return TYPES[tensor.dtype]
    except KeyError:
        raise Unfit from None


class Reader:
    """Fills structures from modules.

    Every method raises Unfit for a module or a tensor of another kind.

    Args:
        dtype: Type of the activations.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.unchanged = Unchanged()
        self.by_input = False
        """Whether a weight is stored (in, out)."""
        self.many_pay = matmul_pays(dtype, 2)
        """Whether many rows are fast too."""
        self.packed: list[tuple[Any, Any]] = []
        """Structures that say what many rows are multiplied as, and the modules that know."""

    def tensor(self, module: nn.Module, name: str, dtype: torch.dtype | None, *, kind: str = "_parameters") -> Any:
        """Return a tensor of a module, None where it has none, and remember where it is."""
        held: dict[str, Any] = getattr(module, kind)
        tensor = held.get(name)
        if tensor is None:
            return None
        self.unchanged.add_tensor(held, name)
        if tensor.device.type != "cpu" or (dtype is not None and tensor.dtype != dtype):
            raise Unfit
        return tensor

    def table(self, module: nn.Module) -> torch.Tensor:
        """Return the table of an embedding that is looked up and nothing else, (rows, E)."""
        if type(module) is not nn.Embedding or module.max_norm is not None:
            raise Unfit
        weight: torch.Tensor = self.tensor(module, "weight", self.dtype)
        if not weight.is_contiguous():
            raise Unfit
        return weight

    def norm(self, struct: Norm, module: nn.Module) -> None:
        """Fill in a norm."""
        if type(module) is nn.LayerNorm:
            struct.kind, struct.eps = 0, module.eps
        elif type(module) in (RMSNorm, CpuRMSNorm):
            struct.kind, struct.eps = 1, module.eps
        else:
            raise Unfit
        weight, bias = self.tensor(module, "weight", None), self.tensor(module, "bias", None)
        if weight is None or (bias is not None and bias.dtype != weight.dtype):
            raise Unfit
        struct.type, struct.weight = type_of(weight), weight.data_ptr()
        struct.bias = None if bias is None else bias.data_ptr()

    def linear(self, struct: Linear, module: nn.Module) -> None:
        """Fill in a linear layer."""
        kind = type(module)
        if kind in (nn.Linear, CpuLinear, Conv1D, CpuConv1D, TopKRouter):
            weight = self.tensor(module, "weight", self.dtype)
            weight = weight.t() if isinstance(module, Conv1D) else weight
            struct.outputs, struct.inputs = weight.shape
            struct.kind, (struct.stride, step) = TYPES[self.dtype], weight.stride()
            if step != 1:
                if self.dtype != torch.float32 or struct.stride != 1:
                    raise Unfit
                struct.kind, struct.stride = STORED_BY_INPUT, step
                self.by_input = True
            self.many_pay = self.many_pay and matmul_pays(self.dtype, struct.inputs)
        elif kind is Int8Linear:
            weight = self.tensor(module, "weight", torch.int8)
            self._packed(struct, module, weight, None)
        elif kind is Int4Linear:
            weight = self.tensor(module, "weight_packed", torch.int32)
            self._packed(struct, module, weight, self.tensor(module, "weight_zero_point", None, kind="_buffers"))
        else:
            raise Unfit
        struct.weight = weight.data_ptr()
        bias = self.tensor(module, "bias", self.dtype)
        if bias is not None and not bias.is_contiguous():
            raise Unfit
        struct.bias = None if bias is None else bias.data_ptr()

    def _packed(self, struct: Linear, module: Any, weight: torch.Tensor, zeros: torch.Tensor | None) -> None:
        scale = self.tensor(module, "weight_scale", None)
        layout = native_layout(module.bits, module.in_features, weight, scale, zeros)
        if layout is None or len(weight) != module.out_features:
            raise Unfit
        struct.kind, struct.inputs, struct.outputs = module.bits, module.in_features, module.out_features
        struct.scale_type, struct.group, struct.scales, struct.zeros = layout
        self.packed.append((struct, module))

    def choose_activations(self, rows: int) -> None:
        """Tell packed weights what so many rows are multiplied as: modules may be told otherwise at any time."""
        for struct, module in self.packed:
            struct.activations = ACTIVATIONS.index(activations_for(module.activations, rows, self.dtype))
