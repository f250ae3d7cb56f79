"""A step through all blocks of a model in one call of native code: up to 8 tokens, or a prompt in bfloat16.

What lies between the products of a small model costs as much as the products: norms, rotations, attention, activations
and the dispatch of each. For a prompt it is a third of the time: arrays that are written to be read once. `FusedBlocks`
is the twin of a model's list of blocks. For every step it makes sure that the plan it made still says what the modules
are (weights that moved, modules that were exchanged, hooks), makes room in the cache, and lets native code
(`csrc/cpu/blocks.cpp`) do the rest. A step that asks for more goes through the modules.

A family says how its blocks are built with a `family.BlockMap`. Letters as in `csrc/cpu/blocks.h`.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from quintet.cache import DynamicCache, Int8Cache
from quintet.cache.dynamic_layers import DynamicLayer
from quintet.family import BlockMap
from quintet.fused.cpu_linear import twin
from quintet.fused.notice import must_be_plain_and_say
from quintet.fused.reader import Reader, Unfit, type_of
from quintet.fused.stores import Mask, PromptStores, Stores
from quintet.fused.structs import LAYOUTS, ORDERS, Block, StepCall
from quintet.kernels.linear import TYPES
from quintet.kernels.loader import FEW_ROWS, check, library
from quintet.layers.activations import ACTIVATIONS
from quintet.layers.attention.native import with_native
from quintet.layers.experts import TopKRouter
from quintet.layers.masks import MaskSpec
from quintet.layers.step import Step
from quintet.quant.packed_experts import PackedExperts
from quintet.swap import SwapReport, swap

__all__ = ["FusedBlocks", "Plan", "fuse_blocks", "is_list_of", "padding_mask"]

# Cosines and sines of tokens, each (B or 1, T, R).
Angles = tuple[torch.Tensor, torch.Tensor]
_CODES = {"relu": 0, "silu": 1, "swish": 1, "gelu": 2, "gelu_new": 3, "gelu_fast": 3, "gelu_pytorch_tanh": 3}
# Tokens of a prompt that are read at a time: what lies between the blocks takes memory.
PROMPT_ROWS = 1024
# Up to how many rows native code reads float32 weights faster that are stored (in, out).
ROWS_BY_INPUT = 2
CODE_OF: dict[Any, int] = {ACTIVATIONS[name]: code for name, code in _CODES.items()}


class Plan:
    """What native code is told of a list of blocks in one type of numbers, and what has to stay as it is for it.

    Args:
        blocks: The blocks.
        shape: How a family's blocks are built.
        dtype: Type of the activations.
    """

    def __init__(self, blocks: nn.ModuleList, shape: BlockMap, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self._reader = Reader(dtype)
        self._structs = (Block * len(blocks))()
        self._stores: WeakKeyDictionary[DynamicCache, Stores] = WeakKeyDictionary()
        self.fits = True
        """Whether native code knows the blocks."""
        try:
            for struct, block in zip(self._structs, blocks, strict=True):
                self._fill(struct, block, shape)
        except (Unfit, AttributeError):
            self.fits = False
        self._reader.unchanged.add_modules(blocks)

    def holds(self) -> bool:
        """Whether modules and tensors are those that the plan was made of, and nobody listens."""
        return self._reader.unchanged.holds()

    def _fill(self, struct: Block, block: nn.Module, shape: BlockMap) -> None:
        read = self._reader
        attention: Any = attrgetter(shape.attention)(block)
        parallel = shape.parallel is None or bool(getattr(block, shape.parallel))
        struct.order = ORDERS[shape.order if parallel else "pre"]
        struct.layout = LAYOUTS[shape.layout]
        read.norm(struct.norm1, attrgetter(shape.norms[0])(block))
        read.norm(struct.norm2, attrgetter(shape.norms[1])(block))
        for name, path in zip("qkv", shape.projections, strict=False):
            read.linear(getattr(struct, name), attrgetter(path)(block))
        read.linear(struct.out, attrgetter(shape.out)(block))
        head = int(attention.head_dim)
        queries = struct.q.outputs if shape.layout == "separate" else struct.q.outputs // 3
        keys = struct.k.outputs if shape.layout == "separate" else queries
        struct.heads, struct.groups, struct.head = queries // head, keys // head, head
        if queries % head or keys % head or struct.out.inputs != queries or not keys or queries % keys:
            raise Unfit
        struct.scale = float(getattr(attention, "scale", head**-0.5))
        sinks = read.tensor(attention, "sinks", None)
        if sinks is not None:
            struct.sinks, struct.sinks_type = sinks.data_ptr(), type_of(sinks)
        if shape.experts:
            self._experts(struct, block, shape)
        else:
            read.linear(struct.up, attrgetter(shape.up)(block))
            read.linear(struct.down, attrgetter(shape.down)(block))
            struct.gated = int(bool(shape.gate))
            if shape.gate:
                read.linear(struct.gate, attrgetter(shape.gate)(block))
            try:
                struct.activation = CODE_OF[attrgetter(shape.activation)(block)]
            except (KeyError, TypeError):
                raise Unfit from None

    def _experts(self, struct: Block, block: nn.Module, shape: BlockMap) -> None:
        experts, router = attrgetter(shape.experts)(block), attrgetter(shape.router)(block)
        if type(experts) is not PackedExperts or type(router) is not TopKRouter:
            raise Unfit
        self._reader.linear(struct.router, router)
        struct.experts, struct.chosen, struct.inner = experts.num_experts, router.top_k, experts.intermediate_size
        struct.alpha, struct.limit = experts.alpha, experts.limit
        self._reader.packed.append((struct, experts))
        for side in ("gate_up", "down"):
            for part, dtype in (("blocks", torch.uint8), ("scales", torch.uint8), ("bias", self.dtype)):
                tensor = self._reader.tensor(experts, f"{side}_proj_{part}", dtype)
                if tensor is None or not tensor.is_contiguous():
                    raise Unfit
                setattr(struct, f"{side}_{part}", tensor.data_ptr())

    @property
    def most(self) -> int | None:
        """Up to how many rows native code is the faster way; None for any number."""
        return ROWS_BY_INPUT if self._reader.by_input else None if self._reader.many_pay else FEW_ROWS

    def _too_many(self, rows: int) -> bool:
        most = self.most
        return most is not None and rows > most

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
        masks = [_mask_of(mask, texts, tokens) for mask in step.masks]
        call = StepCall(TYPES[self.dtype], 0, texts, tokens, width)
        x, out = x.contiguous(), torch.empty_like(x, memory_format=torch.contiguous_format)
        call.x, call.out = x.data_ptr(), out.data_ptr()
        return out if self.do(call, masks, step.rope, cache) else None

    def do(
        self,
        call: StepCall,
        masks: Sequence[Mask | None],
        rope: tuple[torch.Tensor, torch.Tensor] | None,
        cache: DynamicCache,
    ) -> bool:
        """Do a step, or return False where the cache, the masks or the angles are of another kind.

        Args:
            call: What goes in and comes out; the tensors that it tells of are held by the caller.
            masks: One for each block, None for one that native code does not know.
            rope: cos and sin of the new tokens, each (B or 1, T, R), or None.
            cache: Keys and values so far, and then of the new tokens too.
        """
        native = library()
        if native is None or None in masks or self._too_many(call.texts * call.tokens):
            return False
        angles = None if rope is None else (rope[0].contiguous(), rope[1].contiguous())
        if not self._knows(call.width, call.tokens, angles):
            return False
        _tell(call, angles)
        stores = self._stores.get(cache)
        if stores is None:  # of its own for each cache, as other threads may be in the middle of a step of theirs
            stores = self._stores[cache] = Stores(self._structs, self.dtype)
        if not stores.open(cache, call.texts, call.tokens, masks):  # type: ignore[arg-type]
            return False
        call.threads = torch.get_num_threads()
        check(native.quintet_blocks(stores.blocks, len(stores.blocks), ctypes.byref(call)))
        return True

    def _knows(self, width: int, tokens: int, angles: Angles | None) -> bool:
        """Whether the blocks take states of that width, and these angles for so many tokens."""
        if width != self._structs[0].q.inputs:
            return False  # the modules say so
        if angles is None:
            return True
        cosines = angles[0]
        return cosines.shape[1] == tokens and cosines.shape[2] <= self._structs[0].head and cosines.dtype in TYPES

    def read(self, x: torch.Tensor, step: Step) -> torch.Tensor | None:
        """Read many tokens, or return None where the cache, the masks or the weights are of another kind.

        Args:
            x: (B, T, E).
            step: This forward pass.

        Returns:
            (B, T, E).
        """
        native, (texts, tokens, width) = library(), x.shape
        masks = [_mask_of(mask, texts, tokens) for mask in step.masks]
        if native is None or None in masks or self._too_many(texts * tokens):
            return None
        cache: Any = step.cache
        layers = [DynamicLayer() for _ in masks] if cache is None else cache.layers
        self._reader.choose_activations(texts * tokens)
        stores = PromptStores(self._structs, self.dtype)
        angles = None if step.rope is None else (step.rope[0].contiguous(), step.rope[1].contiguous())
        if not stores.take(layers, texts) or not self._knows(width, tokens, angles):
            return None
        out = torch.empty(x.shape, dtype=x.dtype)
        at_once = max(1, PROMPT_ROWS // texts)
        for begin in range(0, tokens, at_once):
            part = x[:, begin : begin + at_once].contiguous()
            made = out if part.shape == out.shape else torch.empty_like(part)
            call = StepCall(TYPES[self.dtype], 0, texts, part.shape[1], width, part.data_ptr(), made.data_ptr())
            turns = None if angles is None else (_cut(angles[0], begin, at_once), _cut(angles[1], begin, at_once))
            _tell(call, turns)
            call.threads = torch.get_num_threads()
            stores.open(layers, texts, part.shape[1], masks)  # type: ignore[arg-type]
            check(native.quintet_blocks(stores.blocks, len(stores.blocks), ctypes.byref(call)))
            stores.close()
            if made is not out:
                out[:, begin : begin + at_once] = made
        return out


def _tell(call: StepCall, angles: Angles | None) -> None:
    """Say where the angles are; the caller holds them."""
    if angles is None:
        return
    cosines, sines = angles
    call.rope_texts, _, call.rope_size = cosines.shape
    call.rope_type = TYPES[cosines.dtype]
    call.cosines, call.sines = cosines.data_ptr(), sines.data_ptr()


def _cut(angles: torch.Tensor, begin: int, count: int) -> torch.Tensor:
    return angles[:, begin : begin + count].contiguous()


def _mask_of(mask: MaskSpec, texts: int, tokens: int) -> Mask | None:
    """Window and padding as native code reads them; None for rules that it does not know."""

    def make() -> Mask | None:
        if mask.given is not None or not mask.causal or mask.queries != tokens or not isinstance(mask.past, int):
            return None
        return padding_mask(mask.padding, texts, mask.window)

    return mask.once(("native", texts, tokens), make)


def padding_mask(padding: torch.Tensor | None, texts: int, window: int | None) -> Mask | None:
    """Return a causal rule as native code reads it, or None for a tensor that it does not.

    Args:
        padding: (B, S) True for real tokens, or None; it is held by the caller.
        texts: B.
        window: Keys that a query sees, None for all.
    """
    if padding is None:
        return window or 0, None, 0, 0
    if padding.shape[0] != texts or padding.dtype != torch.bool or padding.device.type != "cpu":
        return None
    if padding.stride(1) != 1:
        return None
    return window or 0, padding.data_ptr(), padding.stride(0), padding.shape[1]


class FusedBlocks(nn.ModuleList):
    """A list of blocks that can do a step in one call; otherwise what it was."""

    block_map: BlockMap
    _plan: Plan | None = None
    told = staticmethod(with_native)  # what the modules are told of a step

    def __getstate__(self) -> dict[str, Any]:
        """Without the plan, whose pointers belong to this process and to these tensors."""
        return {name: value for name, value in self.__dict__.items() if name != "_plan"}

    def run(self, x: torch.Tensor, step: Step) -> torch.Tensor | None:
        """Return what the blocks make of x, (B, T, E), or None when the modules have to do it."""
        cache = step.cache
        if x.dim() != 3 or self.training:
            return None
        few = x.shape[0] * x.shape[1] <= FEW_ROWS
        if type(cache) not in ((DynamicCache, Int8Cache) if few else (DynamicCache, type(None))):
            return None
        if must_be_plain_and_say():
            return None
        if step.output_attentions or step.output_router_logits or step.head_mask is not None:
            return None
        if step.encoder_states is not None or x.dtype not in TYPES or x.device.type != "cpu":
            return None
        plan = self.plan(x.dtype)
        if plan is None:
            return None
        return plan.run(x, step, cache) if few else plan.read(x, step)  # type: ignore[arg-type]

    def most_tokens(self, dtype: torch.dtype) -> int | None:
        """Return how many tokens native code takes in one call, with activations of that type; None for any number."""
        plan = self.plan(dtype) if dtype in TYPES else None
        return 0 if plan is None else plan.most

    def plan(self, dtype: torch.dtype) -> Plan | None:
        """Return what native code is told of the blocks as they are now; None when it does not know them."""
        plan = self._plan
        if plan is None or plan.dtype != dtype or not plan.holds():
            self._plan = None
            if library() is None or any(hook for module in self.modules() for hook in _hooks_of(module)):
                return None
            plan = Plan(self, self.block_map, dtype)
            if not plan.holds():
                return None
            self._plan = plan
        return plan if plan.fits else None


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
