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
    """Raise InputError when an id is not from 0 to `size` - 1; `limit` names the limit ("the vocabulary size")."""
    if torch.compiler.is_compiling() or ids.device.type == "meta":
        return
    if ids.device.type != "cpu" and (past > 0 or (ids.is_cuda and torch.cuda.is_current_stream_capturing())):
        return
    low, high = (int(x) for x in torch.aminmax(ids))
    if low < 0 or high >= size:
        raise InputError(
            f"{what} holds {low if low < 0 else high}, which is outside {limit}: allowed are 0 to {size - 1}."
        )


def learned_positions(
    *,
    position_ids: torch.Tensor | None,
    attention_mask: torch.Tensor | None,
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

    Raises:
        InputError: a position is outside the table.
    """
    padded = attention_mask is not None and attention_mask.dim() == 2
    if position_ids is not None:
        positions = position_ids.reshape(-1, position_ids.shape[-1])
        if positions.shape[-1] != tokens or positions.shape[0] not in (1, rows):
            raise InputError(
                f"position_ids have shape {tuple(position_ids.shape)}, but must be ({rows}, {tokens}) or (1, {tokens})."
            )
        check_ids(positions, limit, "position_ids", "the n_positions of the model")
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
    if not padded:
        if past + tokens > limit:
            raise InputError(
                f"{past + tokens} tokens ({past} cached, {tokens} new) are more than the {limit} positions "
                "(n_positions) of this model. Shorten the text."
            )
        return start[None]  # (1, T)
    assert attention_mask is not None, "padded says so"
    real = (attention_mask > 0).to(torch.int64)  # (B, S)
    counted = (real.cumsum(-1) - 1).clamp_min(0)[:, -tokens:]  # (B, T): how many real tokens stand before
    positions = torch.where(real[:, :1] == 0, counted, start[None])  # (B, T)
    if past + tokens > limit:  # only then can a position be too large, and only then is it worth a look
        check_ids(positions, limit, "the input", "the n_positions of the model")
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


def flat(tensor: torch.Tensor | None) -> torch.Tensor | None:
    """Flatten the leading dimensions of (..., T) to (B, T); a 4-D mask and None pass through."""
    if tensor is None or tensor.dim() in (2, 4):
        return tensor
    return tensor.reshape(-1, tensor.shape[-1])


def past_length(cache: Cache | None) -> int:
    """Tokens already in the cache."""
    return 0 if cache is None else cache.get_seq_length()
