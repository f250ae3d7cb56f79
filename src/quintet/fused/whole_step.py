"""A decoding step from tokens to scores in one native call: embedding, blocks, last norm, output head.

Only where the forward passes of a model and of its base are those that are marked (`heads.ends_with_head`,
`heads.steps_by`), so that nothing they do is left out, and where nobody watches any of their modules: that is asked at
every step, as are tensors and modules (`Unchanged`). Otherwise the model does the step, with `FusedBlocks` if it can.

Letters: B texts, S tokens so far, E width, V vocabulary.
"""

from __future__ import annotations

import ctypes
from operator import attrgetter
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.modules import module as modules

from quintet.cache import DynamicCache, Int8Cache
from quintet.family import StepMap
from quintet.fused.blocks import FusedBlocks, Plan, padding_mask
from quintet.fused.reader import Reader, Unfit
from quintet.fused.structs import STORED_BY_INPUT, StepCall
from quintet.kernels.head import MOST_WANTED
from quintet.kernels.inference import must_be_plain
from quintet.kernels.linear import TYPES
from quintet.kernels.loader import FEW_ROWS
from quintet.layers.begin import windows_of
from quintet.layers.inputs import rotary_positions
from quintet.layers.masks import padding_of

__all__ = ["Stepped", "WholeStep"]

CPU = torch.device("cpu")


class Stepped(NamedTuple):
    """What a step gives.

    Args:
        states: (B, E) what the output head reads.
        scores: (B, V) of the model's type; None when the best were asked for.
        best: The best scores in float32 and their tokens, (B, k) each, as `kernels.head_topk` gives them; or None.
    """

    states: torch.Tensor
    scores: torch.Tensor | None
    best: tuple[torch.Tensor, torch.Tensor] | None


class _Ends:
    """What native code is told of a model besides its blocks, and what has to stay as it is for that.

    Args:
        model: With an output head.
        base: Its base model.
        shape: What the base model does.

    Raises:
        Unfit: a module or a tensor is of another kind.
    """

    def __init__(self, model: Any, base: Any, shape: StepMap) -> None:
        parts = [name for name in (shape.tokens, shape.positions, shape.rotary, shape.dropout, shape.norm) if name]
        found: dict[str, nn.Module] = {name: attrgetter(name)(base) for name in parts}
        head, self.blocks = model.get_output_embeddings(), attrgetter(shape.blocks)(base)
        self.base, self.config = base, base.config
        self.rotary: Any = found.get(shape.rotary)
        dropout = found.get(shape.dropout)
        self.drop = [one for one in (base, self.blocks, dropout) if one is not None]
        """What would drop numbers in training."""
        dtype: torch.dtype = found[shape.tokens].weight.dtype  # type: ignore[assignment]
        if type(self.blocks) is not FusedBlocks or dtype not in TYPES or type(dropout) not in (nn.Dropout, type(None)):
            raise Unfit
        reader = Reader(dtype)
        self.dtype, self._unchanged = dtype, reader.unchanged
        self._unchanged.add_modules(model, self.blocks)
        # not the model's own, which holds this
        self._dicts = [one.__dict__ for one in (base, self.blocks, *found.values(), head)]
        tokens = reader.table(found[shape.tokens])
        places = reader.table(found[shape.positions]) if shape.positions else None
        self.limit: int = self.config.max_position_embeddings
        self.call = call = StepCall(TYPES[dtype])
        call.vocabulary, call.width = tokens.shape
        call.id_table = tokens.data_ptr()
        if places is not None:
            call.positions, call.place_table = len(places), places.data_ptr()
            if places.shape[1] != call.width or len(places) < self.limit:
                raise Unfit
        call.ends, call.scored = int(bool(shape.norm)), 1
        if shape.norm:
            reader.norm(call.last, found[shape.norm])
            if found[shape.norm].weight.shape != (call.width,):
                raise Unfit
        reader.linear(call.head, head)
        if call.head.kind == STORED_BY_INPUT or call.head.inputs != call.width:
            raise Unfit

    def hold(self) -> bool:
        """Whether all is as it was, and nothing stands in a module's way."""
        return not any(map(_replaced, self._dicts)) and self._unchanged.holds()


class WholeStep:
    """Steps of one model, which holds it: native code is told of the model at the first one."""

    def __init__(self) -> None:
        self._ends: _Ends | None = None
        self._forwards: tuple[Any, ...] = ()

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy of a model is told of anew: pointers belong to this process and to these tensors."""
        return WholeStep, ()

    def run(
        self, model: Any, ids: torch.Tensor, cache: Any, mask: torch.Tensor | None, best: int | None
    ) -> Stepped | None:
        """Read a token of each row, or return None where the model has to.

        Args:
            model: The one that holds this.
            ids: (B, 1) int64.
            cache: Keys and values of the tokens before.
            mask: (B, S) with 0 for padding, the new token included; None for none.
            best: How many of the best scores to return; None for all scores.
        """
        rows = ids.shape[0]
        if type(cache) not in (DynamicCache, Int8Cache) or not 0 < rows <= FEW_ROWS or must_be_plain():
            return None
        if best is not None and best > MOST_WANTED:
            return None
        ends = self._ready(model)
        if ends is None or ids.dtype != torch.int64 or not ids.is_cpu or (best or 0) > ends.call.head.outputs:
            return None
        plan: Plan | None = ends.blocks.plan(ends.dtype)
        tokens, past = [token for (token,) in ids.tolist()], cache.get_seq_length()
        if plan is None or min(tokens) < 0 or max(tokens) >= ends.call.vocabulary:
            return None  # the model says what is wrong with a token
        if any([layer.length != past for layer in cache.layers]):  # noqa: C419  a list is faster
            return None
        return _do(ends, plan, tokens, past, cache, None if mask is None else padding_of(mask), best)

    def _ready(self, model: Any) -> _Ends | None:
        """What native code is told of the model as it is now; None where it cannot do a step of it."""
        hooks = modules._global_forward_hooks or modules._global_forward_pre_hooks
        if model.training or _replaced(model.__dict__) or hooks:
            return None
        ends = self._ends
        if ends is None or self._forwards != _forwards(model, ends.base) or not ends.hold():
            self._ends = ends = _ends_of(model)
            self._forwards = _forwards(model, model.base_model)
        if ends is None or any(one.training for one in ends.drop):
            return None
        config = ends.config
        if config.output_attentions or config.output_hidden_states or config.__dict__.get("output_router_logits"):
            return None
        return ends


def _forwards(model: nn.Module, base: nn.Module) -> tuple[Any, ...]:
    kind, inner = type(model), type(base)
    return kind, inner, kind.forward, inner.forward


def _replaced(own: dict[str, Any]) -> bool:
    """Whether something stands in the place of a module's `forward`; by what the module holds itself."""
    return "forward" in own or own.get("_compiled_call_impl") is not None


def _ends_of(model: Any) -> _Ends | None:
    base = model.base_model
    whole, inner = type(model).forward, type(base).forward
    marked, shape = getattr(inner, "steps_by", (None, None))
    if getattr(whole, "ends_with_head", None) is not whole or marked is not inner or shape is None:
        return None
    try:
        ends = _Ends(model, base, shape)
    except (Unfit, AttributeError):
        return None
    return ends if ends.hold() else None


def _do(
    ends: _Ends, plan: Plan, tokens: list[int], past: int, cache: Any, padding: torch.Tensor | None, best: int | None
) -> Stepped | None:
    rows = len(tokens)
    call = StepCall.from_buffer_copy(ends.call)
    call.texts, call.tokens = rows, 1
    ids = (ctypes.c_int64 * rows)(*tokens)
    call.ids = ctypes.addressof(ids)
    windows: list[int | None] = [None] * len(ends.blocks)
    rope = None
    if ends.rotary is not None:
        positions = rotary_positions(
            position_ids=None,
            padding=padding,
            cache_position=None,
            rows=rows,
            tokens=1,
            past=past,
            limit=ends.limit,
            device=CPU,
        )
        cosines, sines = ends.rotary(positions)
        rope, windows = (cosines.to(ends.dtype), sines.to(ends.dtype)), windows_of(ends.config)
    else:
        if past >= ends.limit:
            return None  # the model says so, or finds that padding leaves room
        firsts = [0] * rows if padding is None else padding.to(torch.uint8).argmax(-1).tolist()
        places = (ctypes.c_int64 * rows)(*(max(past - first, 0) for first in firsts))
        call.places = ctypes.addressof(places)
    states = torch.empty((rows, call.width), dtype=ends.dtype)
    call.out = states.data_ptr()
    scores, found = None, None
    if best is None:
        scores = torch.empty((rows, call.head.outputs), dtype=ends.dtype)
        call.scores = scores.data_ptr()
    else:
        found = torch.empty((rows, best)), torch.empty((rows, best), dtype=torch.int64)
        call.wanted, call.best, call.best_ids = best, found[0].data_ptr(), found[1].data_ptr()
    masks = {window: padding_mask(padding, rows, window) for window in set(windows)}
    return Stepped(states, scores, found) if plan.do(call, [masks[window] for window in windows], rope, cache) else None
