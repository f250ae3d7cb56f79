"""Checking what a model is asked to continue: tokens, embeddings, masks, a cache from an earlier turn.

Letters: B rows, T tokens given, P tokens in a given cache.
"""

from __future__ import annotations

import inspect
import logging
from typing import Any

import torch

from quintet.cache import Cache, as_cache
from quintet.errors import GenerationError, InputError, suggest
from quintet.generation.caches import check_cache, check_text
from quintet.generation.given import PER_TOKEN, GenerativeModel, Prompt
from quintet.generation.options import OPTIONS
from quintet.generation.resolve import SpecialTokens, warn

__all__ = ["check_model_kwargs", "pick_inputs", "prepare_prompt"]

logger = logging.getLogger("quintet.generation")

# Arguments of `forward` that generation sets itself.
OWN = ("input_ids", "use_cache", "return_dict", "output_attentions", "output_hidden_states", "logits_to_keep")
# Arguments of `forward` that have no meaning while generating; the losses are for training.
FOR_TRAINING = ("labels", "mc_labels", "mc_token_ids", "num_items_in_batch", "cache_position")


def check_model_kwargs(model: GenerativeModel, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return the keywords that belong to the model's `forward`, without those that are None.

    Raises:
        GenerationError: a keyword is neither an option of generate() nor an argument of the model.
    """
    accepted = [
        name
        for name, one in inspect.signature(model.forward).parameters.items()
        if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)
    ]
    usable = [name for name in accepted if name not in OWN and name not in FOR_TRAINING]
    kept = {}
    for name, value in kwargs.items():
        if name in FOR_TRAINING and name in accepted:
            if value is not None:
                warn(f"{name} has no effect in generate().")
        elif name not in usable:
            near = suggest(name, [*OPTIONS, *usable])
            raise GenerationError(
                f"{name!r} is neither an option of generate() nor an argument of {type(model).__name__}.{near} "
                f"The model takes: {', '.join(usable)}."
            )
        elif value is not None:
            kept[name] = value
    return kept


def pick_inputs(
    model: GenerativeModel, inputs: Any, model_kwargs: dict[str, Any], bos_token_id: int | None, input_ids: Any
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return the (B, T) tokens and the (B, T, E) embeddings (or None) to begin with.

    Raises:
        InputError: no prompt, two prompts, or one of a wrong type or shape.
    """
    if inputs is not None and input_ids is not None:
        raise InputError("inputs and input_ids are both given, and mean the same. Pass one of them.")
    ids = _checked_ids(input_ids if inputs is None else inputs)
    embeds = model_kwargs.pop("inputs_embeds", None)
    if embeds is not None:
        if not isinstance(embeds, torch.Tensor) or embeds.dim() != 3 or embeds.shape[1] == 0:
            shape = tuple(embeds.shape) if isinstance(embeds, torch.Tensor) else type(embeds).__name__
            raise InputError(f"inputs_embeds is {shape}, but must be a tensor of shape (rows, tokens, hidden size).")
        if ids is None:
            ids = torch.zeros((embeds.shape[0], 0), dtype=torch.long)
        if ids.shape[0] != embeds.shape[0]:
            raise InputError(
                f"input_ids has {ids.shape[0]} rows and inputs_embeds {embeds.shape[0]}. Give equal batches."
            )
        embeds = embeds.to(model.device)
    elif ids is None:
        if bos_token_id is None:
            raise InputError(
                "there is no prompt: pass input_ids (a tensor of shape (rows, tokens)), or set bos_token_id to begin "
                "with that token."
            )
        rows = next((one.shape[0] for one in model_kwargs.values() if isinstance(one, torch.Tensor)), 1)
        ids = torch.full((rows, 1), int(bos_token_id))
    elif ids.shape[1] == 0 or ids.shape[0] == 0:
        raise InputError(
            f"the prompt is empty (input_ids has shape {tuple(ids.shape)}). Give at least one token, such as the "
            "tokenizer's bos_token_id."
        )
    return ids.to(device=model.device, dtype=torch.long), embeds


def _checked_ids(ids: Any) -> torch.Tensor | None:
    if ids is None:
        return None
    if not isinstance(ids, torch.Tensor):
        hint = "torch.tensor([ids])"
        if hasattr(ids, "keys"):
            hint = "generate(**inputs), with the two stars"
        elif isinstance(ids, str):
            hint = 'tokenizer(text, return_tensors="pt")'
        raise InputError(
            f"input_ids is a {type(ids).__name__}, but must be a tensor of shape (rows, tokens). Use {hint}."
        )
    if ids.dim() != 2:
        hint = " Use input_ids[None] for one row." if ids.dim() == 1 else ""
        raise InputError(f"input_ids has shape {tuple(ids.shape)}, but must be (rows, tokens).{hint}")
    if ids.dtype.is_floating_point or ids.dtype.is_complex or ids.dtype == torch.bool:
        raise InputError(
            f"input_ids is of dtype {ids.dtype}, but must hold integers. For embeddings use inputs_embeds."
        )
    return ids


def prepare_prompt(
    model: GenerativeModel,
    ids: torch.Tensor,
    embeds: torch.Tensor | None,
    model_kwargs: dict[str, Any],
    special: SpecialTokens,
) -> Prompt:
    """Return the checked prompt: which part of it the model has not read yet, its mask and its positions.

    Raises:
        InputError: shapes that do not fit, or padding on the right.
    """
    kwargs = dict(model_kwargs)
    cache = as_cache(kwargs.pop("past_key_values", None))
    given = kwargs.pop("attention_mask", None)
    feed: torch.Tensor = ids if embeds is None else embeds
    mask = _checked_mask(given, feed) if given is not None else _mask_from_padding(ids, embeds, special)
    if cache is not None:
        check_cache(cache, model, feed.shape[0])
    feed, past = _unread(cache, feed, mask, mask_given=given is not None)
    if mask is not None:
        mask = _without_nothing(mask, (feed.shape[0], past + feed.shape[1]), inferred=given is None)
    elif embeds is None:
        _warn_about_padding(ids, special)
    per_token = {name: _per_token(name, kwargs.pop(name), feed) for name in PER_TOKEN if name in kwargs}
    if mask is not None and "position_ids" not in per_token and _has_holes(mask):
        # `forward` counts from the first real token; places masked out further on are skipped here, as the
        # reference's generate() does.
        per_token["position_ids"] = (mask.cumsum(-1) - 1).masked_fill(mask == 0, 0)[:, past:]
    if embeds is None:
        return Prompt(ids, feed, None, mask, cache, past, per_token, _on_device(kwargs, model.device))
    return Prompt(ids, None, feed, mask, cache, past, per_token, _on_device(kwargs, model.device))


def _on_device(kwargs: dict[str, Any], device: torch.device) -> dict[str, Any]:
    return {name: one.to(device) if isinstance(one, torch.Tensor) else one for name, one in kwargs.items()}


def _checked_mask(mask: Any, feed: torch.Tensor) -> torch.Tensor:
    if not isinstance(mask, torch.Tensor) or mask.dim() != 2 or mask.shape[0] != feed.shape[0]:
        got = f"has shape {tuple(mask.shape)}" if isinstance(mask, torch.Tensor) else f"is a {type(mask).__name__}"
        raise InputError(
            f"attention_mask {got}, but must be a tensor of shape (rows, tokens) = {tuple(feed.shape[:2])} with 1 for "
            "real tokens and 0 for padding."
        )
    mask = mask.to(device=feed.device, dtype=torch.long)
    if bool(((mask != 0) & (mask != 1)).any()):
        raise InputError("attention_mask holds values other than 0 and 1. Use 1 for real tokens and 0 for padding.")
    return mask


def _mask_from_padding(ids: torch.Tensor, embeds: torch.Tensor | None, special: SpecialTokens) -> torch.Tensor | None:
    """Mask out padding tokens; a padding token that also ends sequences says nothing, as in the reference."""
    if embeds is not None or special.pad is None or special.pad in special.eos:
        return None
    return (ids != special.pad).long()


def _unread(
    cache: Cache | None, feed: torch.Tensor, mask: torch.Tensor | None, *, mask_given: bool
) -> tuple[torch.Tensor, int]:
    """Return the part of the prompt (tokens or embeddings) that the cache does not hold, and how much it holds."""
    past = 0 if cache is None else cache.get_seq_length()
    tokens = feed.shape[1]
    if cache is None or past == 0 or (mask_given and mask is not None and mask.shape[1] == past + tokens):
        return feed, past
    if tokens < past:
        raise InputError(
            f"past_key_values holds {past} tokens and the prompt has {tokens}. Pass the whole sequence, the cached "
            f"tokens included; or only the new tokens, with an attention_mask of shape (rows, {past + tokens})."
        )
    if feed.dim() == 2:
        check_text(cache, feed, mask if mask is not None and mask.shape == feed.shape else None)
    if tokens == past:  # the scores after the last token are not in the cache: read that token again
        past -= 1
        cache.crop(past)
    return feed[:, past:], past


def _without_nothing(mask: torch.Tensor, shape: tuple[int, int], *, inferred: bool) -> torch.Tensor | None:
    """Check a mask, and return None for one that masks nothing: the model is faster without."""
    if tuple(mask.shape) != shape:
        raise InputError(
            f"attention_mask has shape {tuple(mask.shape)}, but must be {shape}: one value for each token, those in "
            "past_key_values included."
        )
    if bool((mask == 1).all()):
        return None
    whose = "the padding tokens of input_ids say" if inferred else "attention_mask says"
    empty = (mask == 0).all(dim=1)
    if bool(empty.any()):
        row = int(empty.nonzero()[0])
        raise InputError(f"{whose} that row {row} has no token at all. Give every row at least one token.")
    right = mask[:, -1] == 0
    if bool(right.any()):
        row = int(right.nonzero()[0])
        raise InputError(
            f"{whose} that row {row} ends with padding, so that the new text would follow the padding and not the "
            "prompt. Pad on the left: tokenizer.padding_side = 'left'."
        )
    return mask


def _warn_about_padding(ids: torch.Tensor, special: SpecialTokens) -> None:
    if ids.shape[0] > 1 and special.pad is not None and bool((ids[:, -1] == special.pad).any()):
        logger.warning(
            "a row of input_ids ends with the padding token %d, and without attention_mask it counts as text. If the "
            "batch is padded, pad on the left (tokenizer.padding_side = 'left') and pass attention_mask.",
            special.pad,
        )


def _has_holes(mask: torch.Tensor) -> bool:
    """Whether a real token is followed by a masked place somewhere."""
    return bool((mask[:, :-1] > mask[:, 1:]).any())


def _per_token(name: str, value: Any, feed: torch.Tensor) -> torch.Tensor:
    rows, tokens = feed.shape[:2]
    fits = isinstance(value, torch.Tensor) and value.dim() == 2 and value.shape[0] in (1, rows)
    if not fits or value.shape[1] < tokens:
        got = f"has shape {tuple(value.shape)}" if isinstance(value, torch.Tensor) else f"is a {type(value).__name__}"
        raise InputError(f"{name} {got}, but must be a tensor of shape {(rows, tokens)}, one value for each token.")
    return value[:, -tokens:].to(feed.device).expand(rows, tokens)
