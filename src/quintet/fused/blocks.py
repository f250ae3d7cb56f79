"""A decoding step of up to 8 tokens through all blocks of a model, in one call of native code.

What lies between the products of a small model costs as much as the products: norms, rotations, attention, activations
and the dispatch of each. `FusedBlocks` is the twin of a model's list of blocks. For every step it makes sure that the
plan it made still says what the modules are (weights that moved, modules that were exchanged, hooks), makes room in the
cache, and lets native code (`csrc/cpu/blocks.cpp`) do the rest. A step that asks for more goes through the modules.

A family says how its blocks are built with a `family.BlockMap`. Letters as in `csrc/cpu/blocks.h`.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from operator import attrgetter
from typing import Any

import torch
from torch import nn

from quintet.cache import DynamicCache, Int8Cache, Int8Layer
from quintet.cache.dynamic_layers import DynamicLayer
from quintet.family import BlockMap
from quintet.fused.cpu_linear import CpuConv1D, CpuLinear, twin
from quintet.fused.cpu_norm import CpuRMSNorm
from quintet.fused.notice import must_be_plain_and_say
from quintet.fused.unchanged import Unchanged
from quintet.kernels.integers import native_layout
from quintet.kernels.linear import TYPES
from quintet.kernels.loader import FEW_ROWS, check, library
from quintet.layers.activations import ACTIVATIONS
from quintet.layers.attention.native import with_native
from quintet.layers.conv1d import Conv1D
from quintet.layers.experts import TopKRouter
from quintet.layers.masks import MaskSpec
from quintet.layers.norm import RMSNorm
from quintet.layers.step import Step
from quintet.quant.packed_experts import PackedExperts
from quintet.quant.packed_linear import Int4Linear, Int8Linear
from quintet.swap import SwapReport, swap

__all__ = ["FusedBlocks", "fuse_blocks", "is_list_of"]

_int, _long, _pointer = ctypes.c_int32, ctypes.c_int64, ctypes.c_void_p
ORDERS = {"pre": 0, "post": 1, "parallel": 2}
LAYOUTS = {"separate": 0, "in turn": 1, "by head": 2}
_CODES = {"relu": 0, "silu": 1, "swish": 1, "gelu": 2, "gelu_new": 3, "gelu_fast": 3, "gelu_pytorch_tanh": 3}
# Kind of a float32 weight that is stored (in, out), and up to how many rows native code reads such weights faster.
STORED_BY_INPUT = 3
ROWS_BY_INPUT = 2
EIGHT_BITS = 3  # type of what an Int8Layer holds
CODE_OF: dict[Any, int] = {ACTIVATIONS[name]: code for name, code in _CODES.items()}


class _Linear(ctypes.Structure):
    _fields_ = [
        *(("kind", _int), ("scale_type", _int)),
        *((name, _long) for name in ("inputs", "outputs", "stride", "group")),
        *((name, _pointer) for name in ("weight", "scales", "zeros", "bias")),
    ]


class _Norm(ctypes.Structure):
    _fields_ = [("kind", _int), ("type", _int), ("weight", _pointer), ("bias", _pointer), ("eps", ctypes.c_double)]


class _Block(ctypes.Structure):
    _fields_ = [
        *((name, _int) for name in ("order", "layout", "activation", "gated")),
        *((name, _long) for name in ("heads", "groups", "head", "window")),
        ("scale", ctypes.c_double),
        *((name, _Norm) for name in ("norm1", "norm2")),
        *((name, _Linear) for name in ("q", "k", "v", "out", "gate", "up", "down")),
        *(("sinks", _pointer), ("sinks_type", _int), ("experts", _int), ("chosen", _int)),
        *(("alpha", ctypes.c_float), ("limit", ctypes.c_float), ("inner", _long), ("router", _Linear)),
        *((name, _pointer) for name in ("gate_up_blocks", "gate_up_scales", "gate_up_bias")),
        *((name, _pointer) for name in ("down_blocks", "down_scales", "down_bias")),
        *(("keys", _pointer), ("values", _pointer), ("key_strides", _long * 3), ("value_strides", _long * 3)),
        *(("place", _long), ("padding", _pointer), ("padding_stride", _long), ("padding_length", _long)),
        *(("slot", _long), ("stored", _long)),
    ]


class _Step(ctypes.Structure):
    _fields_ = [
        *(("type", _int), ("rope_type", _int)),
        *((name, _long) for name in ("texts", "tokens", "width")),
        *((name, _pointer) for name in ("x", "out", "cosines", "sines")),
        *((name, _long) for name in ("rope_size", "rope_texts", "threads")),
    ]


class _Unfit(Exception):
    """The blocks are not of the kind that native code knows."""


class _Plan:
    """What native code is told of a list of blocks in one type of numbers, and what has to stay as it is for it.

    Args:
        blocks: The blocks.
        shape: How a family's blocks are built.
        dtype: Type of the activations.

    Raises:
        _Unfit: a module or a tensor is of another kind.
    """

    def __init__(self, blocks: nn.ModuleList, shape: BlockMap, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self._unchanged = Unchanged()
        self._by_input = False
        self.structs = (_Block * len(blocks))()
        for struct, block in zip(self.structs, blocks, strict=True):
            self._fill(struct, block, shape)
        self._unchanged.add_modules(blocks)

    def holds(self) -> bool:
        """Whether modules and tensors are those that the plan was made of, and nobody listens."""
        return self._unchanged.holds()

    def _tensor(self, module: nn.Module, name: str, dtype: torch.dtype | None, *, kind: str = "_parameters") -> Any:
        """Return a tensor of a module, and remember where it is."""
        held: dict[str, Any] = getattr(module, kind)
        tensor = held.get(name)
        if tensor is None:
            return None
        if tensor.device.type != "cpu" or (dtype is not None and tensor.dtype != dtype):
            raise _Unfit
        self._unchanged.add_tensor(held, name)
        return tensor

    def _fill(self, struct: _Block, block: nn.Module, shape: BlockMap) -> None:
        attention: Any = attrgetter(shape.attention)(block)
        parallel = shape.parallel is None or bool(getattr(block, shape.parallel))
        struct.order = ORDERS[shape.order if parallel else "pre"]
        struct.layout = LAYOUTS[shape.layout]
        self._norm(struct.norm1, attrgetter(shape.norms[0])(block))
        self._norm(struct.norm2, attrgetter(shape.norms[1])(block))
        for name, path in zip("qkv", shape.projections, strict=False):
            self._linear(getattr(struct, name), attrgetter(path)(block))
        self._linear(struct.out, attrgetter(shape.out)(block))
        head = int(attention.head_dim)
        queries = struct.q.outputs if shape.layout == "separate" else struct.q.outputs // 3
        keys = struct.k.outputs if shape.layout == "separate" else queries
        struct.heads, struct.groups, struct.head = queries // head, keys // head, head
        if queries % head or keys % head or struct.out.inputs != queries or not keys or queries % keys:
            raise _Unfit
        struct.scale = float(getattr(attention, "scale", head**-0.5))
        sinks = self._tensor(attention, "sinks", None)
        if sinks is not None:
            struct.sinks, struct.sinks_type = sinks.data_ptr(), _type(sinks)
        if shape.experts:
            self._experts(struct, block, shape)
        else:
            self._linear(struct.up, attrgetter(shape.up)(block))
            self._linear(struct.down, attrgetter(shape.down)(block))
            struct.gated = int(bool(shape.gate))
            if shape.gate:
                self._linear(struct.gate, attrgetter(shape.gate)(block))
            try:
                struct.activation = CODE_OF[attrgetter(shape.activation)(block)]
            except (KeyError, TypeError):
                raise _Unfit from None

    def _norm(self, struct: _Norm, module: nn.Module) -> None:
        if type(module) is nn.LayerNorm:
            struct.kind, struct.eps = 0, module.eps
        elif type(module) in (RMSNorm, CpuRMSNorm):
            struct.kind, struct.eps = 1, module.eps
        else:
            raise _Unfit
        weight, bias = self._tensor(module, "weight", None), self._tensor(module, "bias", None)
        if weight is None or (bias is not None and bias.dtype != weight.dtype):
            raise _Unfit
        struct.type, struct.weight = _type(weight), weight.data_ptr()
        struct.bias = None if bias is None else bias.data_ptr()

    def _linear(self, struct: _Linear, module: nn.Module) -> None:
        kind = type(module)
        if kind in (nn.Linear, CpuLinear, Conv1D, CpuConv1D, TopKRouter):
            weight = self._tensor(module, "weight", self.dtype)
            weight = weight.t() if isinstance(module, Conv1D) else weight
            struct.outputs, struct.inputs = weight.shape
            struct.kind, (struct.stride, step) = TYPES[self.dtype], weight.stride()
            if step != 1:
                if self.dtype != torch.float32 or struct.stride != 1:
                    raise _Unfit
                struct.kind, struct.stride = STORED_BY_INPUT, step
                self._by_input = True
        elif kind is Int8Linear:
            weight = self._tensor(module, "weight", torch.int8)
            self._packed(struct, module, weight, None)
        elif kind is Int4Linear:
            weight = self._tensor(module, "weight_packed", torch.int32)
            self._packed(struct, module, weight, self._tensor(module, "weight_zero_point", None, kind="_buffers"))
        else:
            raise _Unfit
        struct.weight = weight.data_ptr()
        bias = self._tensor(module, "bias", self.dtype)
        struct.bias = None if bias is None else bias.contiguous().data_ptr()
        if bias is not None and not bias.is_contiguous():
            raise _Unfit

    def _packed(self, struct: _Linear, module: Any, weight: torch.Tensor, zeros: torch.Tensor | None) -> None:
        scale = self._tensor(module, "weight_scale", None)
        layout = native_layout(module.bits, module.in_features, weight, scale, zeros)
        if layout is None or len(weight) != module.out_features:
            raise _Unfit
        struct.kind, struct.inputs, struct.outputs = module.bits, module.in_features, module.out_features
        struct.scale_type, struct.group, struct.scales, struct.zeros = layout

    def _experts(self, struct: _Block, block: nn.Module, shape: BlockMap) -> None:
        experts, router = attrgetter(shape.experts)(block), attrgetter(shape.router)(block)
        if type(experts) is not PackedExperts or type(router) is not TopKRouter:
            raise _Unfit
        self._linear(struct.router, router)
        struct.experts, struct.chosen, struct.inner = experts.num_experts, router.top_k, experts.intermediate_size
        struct.alpha, struct.limit = experts.alpha, experts.limit
        for side in ("gate_up", "down"):
            for part, dtype in (("blocks", torch.uint8), ("scales", torch.uint8), ("bias", self.dtype)):
                tensor = self._tensor(experts, f"{side}_proj_{part}", dtype)
                if tensor is None or not tensor.is_contiguous():
                    raise _Unfit
                setattr(struct, f"{side}_{part}", tensor.data_ptr())

    def run(self, x: torch.Tensor, step: Step, cache: DynamicCache) -> torch.Tensor | None:
        """Do a step, or return None where the cache or the masks are of another kind.

        Args:
            x: (B, T, E).
            step: This forward pass.
            cache: Its cache.

        Returns:
            (B, T, E).
        """
        texts, tokens, width = x.shape
        if self._by_input and texts * tokens > ROWS_BY_INPUT:
            return None  # the modules are as fast
        stores = _stores(cache, self.structs, x)
        if stores is None:
            return None
        masks = [_mask_of(mask, texts, tokens) for mask in step.masks]
        if None in masks:
            return None
        call = _Step(TYPES[x.dtype], 0, texts, tokens, width)
        if step.rope is not None:
            cosines, sines = (part.contiguous() for part in step.rope)
            if cosines.shape[1] != tokens or cosines.shape[2] > self.structs[0].head or cosines.dtype not in TYPES:
                return None
            call.rope_type, call.rope_size, call.rope_texts = _type(cosines), cosines.shape[2], cosines.shape[0]
            call.cosines, call.sines = cosines.data_ptr(), sines.data_ptr()
        native = library()
        if native is None:
            return None
        # a copy, as other threads may be in the middle of a step of theirs
        structs = type(self.structs).from_buffer_copy(self.structs)
        for struct, layer, mask in zip(structs, stores, masks, strict=True):
            keys, values, struct.place, struct.slot = layer.slots(tokens)
            struct.keys, struct.values = keys.data_ptr(), values.data_ptr()
            struct.key_strides[:], struct.value_strides[:] = keys.stride()[:3], values.stride()[:3]
            struct.stored = EIGHT_BITS if keys.dtype == torch.int8 else call.type
            struct.window, struct.padding, struct.padding_stride, struct.padding_length = mask  # type: ignore[misc]
        x, out = x.contiguous(), torch.empty_like(x, memory_format=torch.contiguous_format)
        call.x, call.out, call.threads = x.data_ptr(), out.data_ptr(), torch.get_num_threads()
        check(native.quintet_blocks(structs, len(structs), ctypes.byref(call)))
        return out


def _type(tensor: torch.Tensor) -> int:
    try:
        return TYPES[tensor.dtype]
    except KeyError:
        raise _Unfit from None


def _stores(cache: DynamicCache, structs: Any, x: torch.Tensor) -> list[DynamicLayer | Int8Layer] | None:
    """The layers of a cache when all of them can be written to in place."""
    layers = cache.layers
    if len(layers) != len(structs):
        return None
    found = []
    for layer, struct in zip(layers, structs, strict=True):
        shape = (x.shape[0], struct.groups, struct.head)
        if not isinstance(layer, (DynamicLayer, Int8Layer)) or not layer.takes(shape, x.shape[1], x.dtype):
            return None
        found.append(layer)
    return found


Mask = tuple[int, "int | None", int, int]


def _mask_of(mask: MaskSpec, texts: int, tokens: int) -> Mask | None:
    """Window and padding as native code reads them; None for rules that it does not know."""

    def make() -> Mask | None:
        if mask.given is not None or not mask.causal or mask.queries != tokens or not isinstance(mask.past, int):
            return None
        padding = mask.padding
        if padding is None:
            return mask.window or 0, None, 0, 0
        if padding.shape[0] != texts or padding.dtype != torch.bool or padding.device.type != "cpu":
            return None
        if padding.stride(1) != 1:
            return None
        return mask.window or 0, padding.data_ptr(), padding.stride(0), padding.shape[1]

    return mask.once(("native", texts, tokens), make)


class FusedBlocks(nn.ModuleList):
    """A list of blocks that can do a decoding step in one call; otherwise what it was."""

    block_map: BlockMap
    _plan: _Plan | None = None
    told = staticmethod(with_native)  # what the modules are told of a step

    def __getstate__(self) -> dict[str, Any]:
        """Without the plan, whose pointers belong to this process and to these tensors."""
        return {name: value for name, value in self.__dict__.items() if name != "_plan"}

    def run(self, x: torch.Tensor, step: Step) -> torch.Tensor | None:
        """Return what the blocks make of x, (B, T, E), or None when the modules have to do it."""
        cache = step.cache
        if not isinstance(cache, DynamicCache) or type(cache) not in (DynamicCache, Int8Cache) or self.training:
            return None
        small = x.dim() == 3 and x.shape[0] * x.shape[1] <= FEW_ROWS
        if not small or must_be_plain_and_say():
            return None
        if step.output_attentions or step.output_router_logits or step.head_mask is not None:
            return None
        if step.encoder_states is not None or x.dtype not in TYPES or x.device.type != "cpu":
            return None
        plan = self._planned(x.dtype)
        return None if plan is None else plan.run(x, step, cache)

    def fits(self, dtype: torch.dtype) -> bool:
        """Whether native code knows the blocks, with activations of that type."""
        return dtype in TYPES and self._planned(dtype) is not None

    def _planned(self, dtype: torch.dtype) -> _Plan | None:
        plan = self._plan
        if plan is not None and plan.dtype == dtype and plan.holds():
            return plan
        self._plan = None
        if library() is None or any(hook for module in self.modules() for hook in _hooks_of(module)):
            return None
        try:
            plan = _Plan(self, self.block_map, dtype)
        except (_Unfit, AttributeError):
            return None
        if plan.holds():
            self._plan = plan
        return self._plan


def _hooks_of(module: nn.Module) -> tuple[dict[int, Callable[..., Any]], dict[int, Callable[..., Any]]]:
    return module._forward_hooks, module._forward_pre_hooks


def is_list_of(module: nn.Module, kinds: tuple[str, ...]) -> bool:
    """Whether a module is a list of blocks, whose classes have these names."""
    children = list(module.children())
    return type(module) is nn.ModuleList and bool(children) and all(type(one).__name__ in kinds for one in children)


def fuse_blocks(model: nn.Module, block_map: BlockMap | None, kinds: tuple[str, ...]) -> SwapReport:
    """Swap lists of blocks for their twins.

    Args:
        model: Changed in place.
        block_map: How its blocks are built; None leaves it alone.
        kinds: Names of the classes of its blocks.
    """
    if block_map is None or library() is None:
        return SwapReport()

    def fused(module: nn.Module) -> nn.Module | None:
        if not is_list_of(module, kinds):
            return None
        made = twin(FusedBlocks, module)
        made.block_map = block_map  # type: ignore[assignment]
        return made

    return swap(model, {nn.ModuleList: fused})
