"""Packing linear layers by what a text lets flow through them: block after block, each fed by those packed before it.

The states between the blocks are held, and of one block at a time the products of its inputs; so the memory needed
beside the model is tokens x width, and (inputs)^2 for each different input of a block.

Letters: B rows, T tokens, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol

import torch
from torch import nn

from quintet.errors import ConfigError, InputError
from quintet.layers.conv1d import Conv1D
from quintet.quant.compensation import round_compensating
from quintet.quant.packed_linear import LINEARS, PackedLinear

__all__ = ["Parts", "PartStore", "calibrate", "calibration_rows"]

Parts = dict[str, torch.Tensor]
# For each batch what a block is given: (B, T, D), and the step.
States = list[tuple[torch.Tensor, Any]]
Place = Callable[[str, PackedLinear, float], None]
# Tokens of a row, of a batch, and in all that are taken of a text unless the caller cuts it.
ROW, BATCH, TOKENS = 512, 4096, 1 << 15


class PartStore(Protocol):
    """Keeps the packed tensors of blocks, so that a run that was interrupted need not make them again."""

    def load(self, number: int) -> Mapping[str, Parts] | None:
        """Return what was kept of a block, by the paths of its layers; None for nothing."""

    def save(self, number: int, parts: Mapping[str, Parts]) -> None:
        """Keep the packed tensors of a block."""


def calibration_rows(calibration: Any, tokenizer: Any, limit: int | None) -> list[torch.Tensor]:
    """Return the rows of token ids that a calibration stands for.

    Args:
        calibration: A text, a tensor (T,) or (B, T) of ids, or a list of texts, of tensors or of lists of ids.
        tokenizer: For texts.
        limit: Positions of the model; None for no limit.

    Returns:
        Tensors (T,), 32,768 tokens in all at most, in rows of at most 512.

    Raises:
        ConfigError: Texts without a tokenizer.
        InputError: Nothing to calibrate with.
    """
    one = isinstance(calibration, str) or (isinstance(calibration, torch.Tensor) and calibration.dim() == 1)
    if not one and not isinstance(calibration, (torch.Tensor, list, tuple)):
        raise InputError(
            f"calibration is a {type(calibration).__name__}, but must be a text, token ids in a tensor, or a list of "
            "these."
        )
    if isinstance(calibration, (list, tuple)) and calibration and isinstance(calibration[0], int):
        one = True
    width = min(ROW, limit or ROW)
    rows: list[torch.Tensor] = []
    total = 0
    for item in [calibration] if one else calibration:
        ids = _ids(item, tokenizer)
        for row in ids.split(width):
            row = row[: TOKENS - total]
            # A rest of a row says little, and rows of one length go into one batch.
            if len(row) and (len(row) == width or len(ids) < width):
                rows.append(row)
                total += len(row)
    if total < 2:
        raise InputError(f"calibration has {total} tokens. Give a text like those that the model will meet.")
    return rows


def _ids(item: Any, tokenizer: Any) -> torch.Tensor:
    if isinstance(item, str):
        if tokenizer is None:
            raise ConfigError("calibration holds texts, and no tokenizer is given. Pass tokenizer=..., or token ids.")
        item = tokenizer(item, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
    ids = torch.as_tensor(item)
    if ids.dim() != 1 or (ids.numel() and (ids.is_floating_point() or ids.dtype == torch.bool)):
        raise InputError(
            f"calibration holds {ids.dtype} of shape {list(ids.shape)}, but each text must be (tokens,) whole numbers."
        )
    return ids.long()


@torch.no_grad()
def calibrate(
    model: Any,
    chosen: Mapping[str, Mapping[str, Any]],
    rows: Sequence[torch.Tensor],
    place: Place,
    store: PartStore | None = None,
) -> None:
    """Pack linear layers of a model in place.

    Args:
        model: A model of ours.
        chosen: By path what each twin is made with: `bits`, `group`, `symmetric`, `activations`.
        rows: Token ids, each (T,).
        place: Is given the path of each layer, its twin and the relative error of the weight, and puts the twin there.
        store: Where packed blocks are kept.

    Raises:
        InputError: A weight or what flows into it is not finite.
    """
    stem, blocks = _blocks(model)
    batches = [batch.to(model.device) for batch in _batches(rows)]
    training = model.training
    model.eval()
    try:
        states = _first_states(model.base_model, blocks[0], batches)
        for number, block in enumerate(blocks):
            own = {path: options for path, options in chosen.items() if path.startswith(f"{stem}.{number}.")}
            _pack(model, own, partial(_through, block, states), place, _Kept(store, number))
            states = _through(block, states)
        rest = {path: options for path, options in chosen.items() if not path.startswith(f"{stem}.")}

        def feed_all() -> None:
            for batch in batches:
                with _stop_before(model.get_submodule([*rest][-1])):
                    model(batch, use_cache=False)

        _pack(model, rest, feed_all, place, _Kept(store, len(blocks)))
    finally:
        model.train(training)


def _through(block: nn.Module, states: States) -> States:
    return [(block(x, step), step) for x, step in states]


class _Kept:
    """What is kept of one block."""

    def __init__(self, store: PartStore | None, number: int) -> None:
        self._store, self._number = store, number

    def load(self) -> Mapping[str, Parts] | None:
        return None if self._store is None else self._store.load(self._number)

    def save(self, parts: Mapping[str, Parts]) -> None:
        if self._store is not None:
            self._store.save(self._number, parts)


def _pack(
    model: nn.Module,
    chosen: Mapping[str, Mapping[str, Any]],
    feed: Callable[[], Any],
    place: Place,
    keep: _Kept,
) -> None:
    """Pack some layers, by what `feed` lets flow through them or from what was kept."""
    if not chosen:
        return
    modules = {path: model.get_submodule(path) for path in chosen}
    kept = keep.load()
    products = {} if kept is not None else _products(modules, feed)
    made: dict[str, Parts] = {}
    for path, module in modules.items():
        options = dict(chosen[path])
        bits = options.pop("bits")
        if kept is not None:
            made[path] = dict(kept[path])
        else:
            weight: Any = module.weight
            stored = (weight.t() if isinstance(module, Conv1D) else weight).contiguous()  # (out, in)
            made[path] = round_compensating(
                stored, products[path], bits, options["group"], options["symmetric"], name=path
            )
            del stored
        place(path, *LINEARS[bits].from_plain(module, packed=made[path], name=path, **options))
    if kept is None:
        keep.save(made)


def _products(modules: Mapping[str, nn.Module], feed: Callable[[], Any]) -> dict[str, torch.Tensor]:
    """Return X^T X, (in, in), of the inputs X of modules; those with the same input share it."""
    found: dict[str, torch.Tensor] = {}
    last: list[Any] = [None, ""]  # an input, and the first module that it went to

    def hook(path: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def add(module: nn.Module, given: tuple[Any, ...]) -> None:
            (x,) = given
            if x is last[0]:
                found[path] = found[last[1]]
                return
            last[:] = [x, path]
            flat = x.reshape(-1, x.shape[-1]).float()  # (B, T, in) -> (B * T, in)
            if path not in found:
                found[path] = flat.new_zeros(flat.shape[1], flat.shape[1])
            found[path].addmm_(flat.t(), flat)

        return add

    handles = [module.register_forward_pre_hook(hook(path)) for path, module in modules.items()]
    try:
        feed()
    finally:
        for handle in handles:
            handle.remove()
    return found


def _blocks(model: Any) -> tuple[str, nn.ModuleList]:
    """The blocks of a model, and their path."""
    base, count = model.base_model, model.config.num_hidden_layers
    prefix = "" if base is model else f"{model.base_model_prefix}."
    for path, module in base.named_children():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return prefix + path, module
    raise ConfigError(
        f"{type(model).__name__} has no list of {count} blocks, which calibration needs. Pack it without calibration."
    )


def _batches(rows: Sequence[torch.Tensor]) -> Iterator[torch.Tensor]:
    """Yield (B, T) tensors of rows of one length."""
    for length in dict.fromkeys(len(row) for row in rows):
        same = torch.stack([row for row in rows if len(row) == length])
        yield from same.split(max(1, BATCH // length))


class _Stop(Exception):
    """Ends a forward pass at a module."""


@contextmanager
def _stop_before(module: nn.Module, seen: Callable[..., None] = lambda *args: None) -> Iterator[None]:
    """Show what a module is given, and end the forward pass of this block of code there."""

    def stop(module: nn.Module, given: tuple[Any, ...]) -> None:
        seen(*given)
        raise _Stop

    handle = module.register_forward_pre_hook(stop)
    try:
        yield
    except _Stop:
        pass
    finally:
        handle.remove()


def _first_states(base: Any, first: nn.Module, batches: Iterable[torch.Tensor]) -> States:
    """Return what the first block is given for each batch: the states (B, T, D), and the step."""
    states: States = []
    for batch in batches:
        with _stop_before(first, lambda x, step: states.append((x, step))):
            base(batch, use_cache=False, output_hidden_states=True)  # with the states, so that blocks run one by one
    return states
