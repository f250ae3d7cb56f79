"""Checks and shapes of what a model is given, done before any gather so that a mistake is an error and not a crash.

Looking at values is free on a CPU. On another device it would stall the queue, so ids are looked at only when a prompt
begins (`past == 0`), and a single decoding step never waits.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

import torch
from torch import nn

from quintet.cache import Cache
from quintet.config import PreTrainedConfig
from quintet.errors import InputError, suggest

__all__ = [
    "check_forward_kwargs",
    "check_ids",
    "embed_rows",
    "embed_tokens",
    "embed_types",
    "expand_head_mask",
    "flat",
    "input_shape",
    "learned_positions",
    "past_length",
    "rotary_positions",
    "token_positions",
    "Wanted",
    "wanted",
]

logger = logging.getLogger("quintet")

VOCABULARY = "the vocabulary (vocab_size)"


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


def embed_tokens(
    embedding: nn.Module, input_ids: torch.Tensor | None, inputs_embeds: torch.Tensor | None, cache: Cache | None
) -> torch.Tensor:
    """Return (B, T, D): the embeddings given, or those of the ids.

    Raises:
        InputError: both or none are given, a shape or type is wrong, or an id is outside the vocabulary.
    """
    table = cast(nn.Embedding, embedding)
    shape = input_shape(input_ids, inputs_embeds, table.embedding_dim)
    if len(shape) != 2:
        raise InputError(f"the input has shape {tuple(shape)}, but must be (batch, tokens).")
    if inputs_embeds is not None:
        return inputs_embeds
    assert input_ids is not None, "input_shape checked that one of them is given"
    past = 0 if cache is None else cache.past()
    check_ids(input_ids, table.num_embeddings, "input_ids", VOCABULARY, past)
    x: torch.Tensor = embedding(input_ids)
    return x


def embed_rows(
    embedding: nn.Module,
    input_ids: torch.Tensor | None,
    inputs_embeds: torch.Tensor | None,
    past: int | torch.Tensor,
) -> torch.Tensor:
    """Return the embeddings of tokens (..., T), flattened to (B, T, D); `input_shape` has checked both arguments.

    Raises:
        InputError: an id is outside the vocabulary.
    """
    if inputs_embeds is None:
        assert input_ids is not None, "input_shape checked that one of them is given"
        check_ids(input_ids, cast(nn.Embedding, embedding).num_embeddings, "input_ids", VOCABULARY, past)
        inputs_embeds = cast(torch.Tensor, embedding(input_ids))
    return inputs_embeds.reshape(-1, *inputs_embeds.shape[-2:])  # (..., T, D) -> (B, T, D)


def embed_types(
    embedding: nn.Module, token_type_ids: torch.Tensor | None, shape: torch.Size, past: int | torch.Tensor
) -> torch.Tensor | None:
    """Return what token types add, (B, T, D) or (1, T, D), from the table of the tokens; None without types.

    Args:
        embedding: The table.
        token_type_ids: As the tokens, flattened, or one row for all.
        shape: (..., T) of the tokens.
        past: Tokens in the cache.

    Raises:
        InputError: the shape does not fit, or an id is outside the vocabulary.
    """
    if token_type_ids is None:
        return None
    tokens = shape[-1]
    if tuple(token_type_ids.shape) not in (tuple(shape), (shape.numel() // tokens, tokens), (1, tokens)):
        raise InputError(
            f"token_type_ids have shape {tuple(token_type_ids.shape)}, but must be {tuple(shape)}, as the tokens have."
        )
    check_ids(token_type_ids, cast(nn.Embedding, embedding).num_embeddings, "token_type_ids", VOCABULARY, past)
    return cast(torch.Tensor, embedding(token_type_ids.reshape(-1, tokens)))


def check_ids(ids: torch.Tensor, size: int, what: str, limit: str, past: int | torch.Tensor = 0) -> None:
    """Raise InputError when an id is no integer from 0 to `size` - 1; `limit` names the limit ("the vocabulary")."""
    if ids.dtype not in (torch.int64, torch.int32):
        raise InputError(f"{what} has type {ids.dtype}, but must be int64 or int32.")
    if torch.compiler.is_compiling() or ids.device.type == "meta":
        return
    capturing = ids.is_cuda and torch.cuda.is_current_stream_capturing()
    if ids.device.type != "cpu" and (isinstance(past, torch.Tensor) or past > 0 or capturing):
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
    past: int | torch.Tensor,
    limit: int,
    device: torch.device,
) -> torch.Tensor:
    """Return the position of each new token, (1, T) or (B, T), for a table of `limit` learned positions.

    Arguments and counting as in `token_positions`.

    Raises:
        InputError: a position is outside the table.
    """
    positions = token_positions(position_ids, padding, cache_position, rows, tokens, past, device)
    if position_ids is not None:
        check_ids(positions, limit, "position_ids", "the table of n_positions")
    elif isinstance(past, int) and past + tokens > limit:
        if padding is None:
            raise InputError(
                f"{past + tokens} tokens ({past} cached, {tokens} new) are more than the {limit} positions "
                "(n_positions) of this model. Shorten the text."
            )
        check_ids(positions, limit, "positions of the input", "the table of n_positions")
    return positions


def rotary_positions(
    *,
    position_ids: torch.Tensor | None,
    padding: torch.Tensor | None,
    cache_position: torch.Tensor | None,
    rows: int,
    tokens: int,
    past: int | torch.Tensor,
    limit: int,
    device: torch.device,
) -> torch.Tensor:
    """Return the position of each new token, (1, T) or (B, T), for rotary positions, which have no end.

    Arguments and counting as in `token_positions`. Past `limit`, the length the model was made for, a warning says so
    once.
    """
    positions = token_positions(position_ids, padding, cache_position, rows, tokens, past, device)
    if isinstance(past, int) and past + tokens > limit and not torch.compiler.is_compiling():
        _warn_once(
            f"the text is longer than the {limit} tokens (max_position_embeddings) that this model was made for; what "
            "it writes from there on may be poor. Shorten the text, or set rope_scaling in the configuration (its "
            "types: linear, dynamic, ntk, yarn, longrope, llama3)."
        )
    return positions


@lru_cache
def _warn_once(words: str) -> None:
    logger.warning(words)


def token_positions(
    position_ids: torch.Tensor | None,
    padding: torch.Tensor | None,
    cache_position: torch.Tensor | None,
    rows: int,
    tokens: int,
    past: int | torch.Tensor,
    device: torch.device,
) -> torch.Tensor:
    """Return the position of each new token, (1, T) or (B, T).

    Given `position_ids` win. Else a row whose mask begins with 0 counts from its first real token, so that a
    left-padded row gives what it gives alone, and every other row counts from `past`.

    Args:
        position_ids: (1, T) or (B, T) of the caller.
        padding: `MaskSpec.padding`, (B, S), True where a token is real; None when all are.
        cache_position: (T,) slots of the new tokens, of the caller: the next free ones.
        rows, tokens, past: B, T and the number of tokens in the cache (a 0-d tensor for a store of fixed shape).

    Raises:
        InputError: a shape does not fit, or `cache_position` names other slots.
    """
    if position_ids is not None:
        positions = position_ids.reshape(-1, position_ids.shape[-1])
        if positions.shape[-1] != tokens or positions.shape[0] not in (1, rows):
            raise InputError(
                f"position_ids have shape {tuple(position_ids.shape)}, but must be ({rows}, {tokens}) or (1, {tokens})."
            )
        return positions.to(device)
    start = torch.arange(tokens, device=device) + past
    if cache_position is not None:
        _check_cache_position(cache_position, start, tokens, past)
    if padding is None:
        return start[None]  # (1, T)
    first = padding.to(device, torch.int64).argmax(-1, keepdim=True)  # (B, 1): the first real token of each row
    return (start - first).clamp_min(0)  # (B, T); the padding before it stands at 0


def _check_cache_position(
    cache_position: torch.Tensor, start: torch.Tensor, tokens: int, past: int | torch.Tensor
) -> None:
    if tuple(cache_position.shape) != (tokens,):
        raise InputError(f"cache_position has shape {tuple(cache_position.shape)}, but must be ({tokens},).")
    if torch.compiler.is_compiling() or cache_position.device.type != "cpu" or start.device.type != "cpu":
        return
    if not bool((cache_position == start).all()):
        raise InputError(
            f"cache_position is {cache_position.tolist()}, but the cache holds {int(past)} tokens, so the new ones "
            f"stand at {int(past)} to {int(past) + tokens - 1}. Leave cache_position out, or crop the cache."
        )


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


def flat(mask: Any) -> Any:
    """Flatten a mask of (rows, choices, tokens) to (B, S); every other form passes through."""
    return mask.reshape(-1, mask.shape[-1]) if isinstance(mask, torch.Tensor) and mask.dim() == 3 else mask


def past_length(cache: Cache | None, layers: int) -> int | torch.Tensor:
    """Return the number of tokens already in the cache; a 0-d tensor for a store of fixed shape.

    Raises:
        InputError: its layers hold different numbers, as one made by another model does.
    """
    if cache is None:
        return 0
    past = cache.past()
    if isinstance(past, torch.Tensor):
        return past
    lengths = [cache.get_seq_length(layer) for layer in range(layers)]
    if min(lengths) != max(lengths):
        raise InputError(
            f"the {layers} layers of past_key_values hold {lengths} tokens, but must all hold the same number. Give "
            "the cache that this model returned."
        )
    return past


@dataclass(frozen=True)
class Wanted:
    """What a caller of `forward` asks for; None in the call takes the configuration's value."""

    attentions: bool
    hidden_states: bool
    return_dict: bool
    router_logits: bool = False


def wanted(config: PreTrainedConfig, **given: bool | None) -> Wanted:
    """Resolve `output_attentions`, `output_hidden_states`, `return_dict` and `output_router_logits`."""

    def one(name: str, default: bool) -> bool:
        value = given.get(name)
        return default if value is None else value

    return Wanted(
        attentions=one("output_attentions", config.output_attentions),
        hidden_states=one("output_hidden_states", config.output_hidden_states),
        return_dict=one("return_dict", config.use_return_dict),
        # not getattr: for a field that is not there it looks for the nearest name, in every forward pass
        router_logits=one("output_router_logits", config.__dict__.get("output_router_logits", False)),
    )
