"""Checks and shapes of what a model is given, done before any gather so that a mistake is an error and not a crash.

Looking at values is free on a CPU. On another device it would stall the queue, so ids are looked at only when a prompt
begins (`past == 0`), and a single decoding step never waits.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

from quintet.cache import Cache
from quintet.errors import InputError, suggest

__all__ = [
    "check_forward_kwargs",
    "check_ids",
    "expand_head_mask",
    "flat",
    "input_shape",
    "learned_positions",
    "past_length",
]


def check_forward_kwargs(owner: str, kwargs: Iterable[str], known: Iterable[str] = ()) -> None:
    """Raise TypeError for a keyword of `forward` that nothing reads."""
    allowed = {"num_items_in_batch", *known}
    for name in kwargs:
        if name not in allowed:
            options = [*allowed, "input_ids", "attention_mask", "position_ids", "past_key_values", "inputs_embeds"]
            raise TypeError(f"{owner}.forward() has no argument {name!r}.{suggest(name, options)}")


def input_shape(input_ids: torch.Tensor | None, inputs_embeds: torch.Tensor | None, width: int) -> torch.Size:
    """Return (..., T), the shape of the tokens, from exactly one of ids (..., T) and embeddings (..., T, width).

    Raises:
        InputError: both or none are given, a shape or type is wrong, or there is no token.
    """
    if (input_ids is None) == (inputs_embeds is None):
        both = "both" if input_ids is not None else "neither"
        raise InputError(f"give either input_ids or inputs_embeds; got {both}.")
    if input_ids is not None:
        if input_ids.dtype not in (torch.int64, torch.int32):
            raise InputError(f"input_ids are {input_ids.dtype}, but must be int64 or int32 token ids.")
        if input_ids.dim() < 2:
            raise InputError(
                f"input_ids have shape {tuple(input_ids.shape)}, but must be (batch, tokens). Add a dimension with "
                "input_ids[None]."
            )
        shape = input_ids.shape
    else:
        assert inputs_embeds is not None, "exactly one is given, as checked above"
        if inputs_embeds.dim() < 3 or inputs_embeds.shape[-1] != width:
            raise InputError(
                f"inputs_embeds have shape {tuple(inputs_embeds.shape)}, but must be (batch, tokens, {width})."
            )
        shape = inputs_embeds.shape[:-1]
    if 0 in shape:
        raise InputError(f"the input is empty: its shape is {tuple(shape)}. Give at least one row and one token.")
    return shape


def check_ids(ids: torch.Tensor, size: int, what: str, limit: str, past: int = 0) -> None:
    """Raise InputError when an id is no integer from 0 to `size` - 1; `limit` names the limit ("the vocabulary")."""
    if ids.dtype not in (torch.int64, torch.int32):
        raise InputError(f"{what} has type {ids.dtype}, but must be int64 or int32.")
    if torch.compiler.is_compiling() or ids.device.type == "meta":
        return
    if ids.device.type != "cpu" and (past > 0 or (ids.is_cuda and torch.cuda.is_current_stream_capturing())):
        return
    low, high = (int(x) for x in torch.aminmax(ids))
    if low < 0 or high >= size:
        raise InputError(f"{what}: {low if low < 0 else high} is outside {limit}; allowed are 0 to {size - 1}.")


def learned_positions(
    *,
    position_ids: torch.Tensor | None,
    padding: torch.Tensor | None,
    cache_position: torch.Tensor | None,
    rows: int,
    tokens: int,
    past: int,
    limit: int,
    device: torch.device,
) -> torch.Tensor:
    """Return the position of each new token, (1, T) or (B, T), for a table of `limit` learned positions.

    Given `position_ids` win. Else a row whose mask begins with 0 counts from its first real token, so that a
    left-padded row gives what it gives alone, and every other row counts from `past`.

    Args:
        padding: `MaskSpec.padding`, (B, S), True where a token is real; None when all are.
        rows, tokens, past: B, T and the number of tokens in the cache; S is past + T.

    Raises:
        InputError: a position is outside the table.
    """
    if position_ids is not None:
        positions = position_ids.reshape(-1, position_ids.shape[-1])
        if positions.shape[-1] != tokens or positions.shape[0] not in (1, rows):
            raise InputError(
                f"position_ids have shape {tuple(position_ids.shape)}, but must be ({rows}, {tokens}) or (1, {tokens})."
            )
        check_ids(positions, limit, "position_ids", "the table of n_positions")
        return positions
    start = torch.arange(past, past + tokens, device=device)
    if cache_position is not None:
        if tuple(cache_position.shape) != (tokens,):
            raise InputError(f"cache_position has shape {tuple(cache_position.shape)}, but must be ({tokens},).")
        if cache_position.device.type == "cpu" and not bool((cache_position == start.to("cpu")).all()):
            raise InputError(
                f"cache_position is {cache_position.tolist()}, but the cache holds {past} tokens, so the new ones "
                f"stand at {past} to {past + tokens - 1}. Leave cache_position out, or crop the cache."
            )
    if padding is None:
        if past + tokens > limit:
            raise InputError(
                f"{past + tokens} tokens ({past} cached, {tokens} new) are more than the {limit} positions "
                "(n_positions) of this model. Shorten the text."
            )
        return start[None]  # (1, T)
    first = padding.to(device, torch.int64).argmax(-1, keepdim=True)  # (B, 1): the first real token of each row
    positions = (start - first).clamp_min(0)  # (B, T); the padding before it stands at 0
    if past + tokens > limit:  # only then can a position be too large, and only then is it worth a look
        check_ids(positions, limit, "positions of the input", "the table of n_positions")
    return positions


def expand_head_mask(head_mask: torch.Tensor | None, layers: int, heads: int, pruned: bool) -> torch.Tensor | None:
    """Return (layers, heads) factors from a mask of shape (heads,) or (layers, heads).

    Raises:
        InputError: it has another shape, or heads were pruned so that factors no longer match them.
    """
    if head_mask is None:
        return None
    if pruned:
        raise InputError("head_mask cannot be used with pruned heads: the heads that are left have other numbers.")
    if tuple(head_mask.shape) not in ((heads,), (layers, heads)):
        raise InputError(
            f"head_mask has shape {tuple(head_mask.shape)}, but must be ({heads},) or ({layers}, {heads}) = "
            "(layers, heads), with 1 for a head to keep and 0 for one to silence."
        )
    return head_mask.expand(layers, heads)


def flat(mask: torch.Tensor | None) -> torch.Tensor | None:
    """Flatten a mask of (rows, choices, tokens) to (B, S); every other form passes through."""
    return mask.reshape(-1, mask.shape[-1]) if mask is not None and mask.dim() == 3 else mask


def past_length(cache: Cache | None, layers: int) -> int:
    """Return the number of tokens already in the cache.

    Raises:
        InputError: its layers hold different numbers, as one made by another model does.
    """
    if cache is None:
        return 0
    lengths = [cache.get_seq_length(layer) for layer in range(layers)]
    if min(lengths) != max(lengths):
        raise InputError(
            f"the {layers} layers of past_key_values hold {lengths} tokens, but must all hold the same number. Give "
            "the cache that this model returned."
        )
    return lengths[0]
