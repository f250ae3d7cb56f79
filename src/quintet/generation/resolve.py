"""From what the caller gave to what a run does: options in force, special tokens, lengths."""

from __future__ import annotations

import copy
import logging
import os
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from quintet.errors import GenerationError, InputError
from quintet.generation.config import GenerationConfig, several_greedy
from quintet.generation.given import Prompt
from quintet.generation.options import OPTIONS, works

__all__ = [
    "Lengths",
    "SpecialTokens",
    "resolve_config",
    "resolve_lengths",
    "resolve_special_tokens",
    "warn",
]

logger = logging.getLogger("quintet.generation")

_OWN_FOLDERS = tuple(str(folder) + os.sep for folder in (Path(__file__).parents[1], Path(torch.__file__).parent))


def warn(message: str) -> None:
    """Warn about a call, at the caller's line: the first one that is neither quintet's nor torch's."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_OWN_FOLDERS):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, UserWarning, stacklevel=level)


# --- options ----------------------------------------------------------------------------------------------------------


def resolve_config(
    of_model: GenerationConfig, given: GenerationConfig | None, options: dict[str, Any], *, has_draft: bool = False
) -> tuple[GenerationConfig, set[str]]:
    """Return the options in force and the names that the caller set.

    Keywords of the call come first (None among them: it switches off), then the config of the call, then the model's
    generation config, then the defaults.

    Raises:
        GenerationError: an option is out of range, contradicts another, or is not carried out yet.
    """
    if given is not None and not isinstance(given, GenerationConfig):
        raise GenerationError(
            f"generation_config is a {type(given).__name__}, but must be a GenerationConfig. Make one with "
            "GenerationConfig.from_dict(...), or pass the options as keywords."
        )
    config = GenerationConfig() if given is None else copy.deepcopy(given)
    explicit = set(options) | {name for name in OPTIONS if getattr(config, name) is not None}
    for name, option in OPTIONS.items():
        if name in options:
            value = options[name]
        else:
            value = getattr(config, name)
            value = getattr(of_model, name) if value is None else value
            value = option.default if value is None else value
        setattr(config, name, value)
    if config.cache_implementation == "hybrid" and "cache_implementation" not in explicit:
        config.cache_implementation = None  # older checkpoints say so, and mean what a cache does anyway
    for name in ("max_length", "num_return_sequences", "num_beams", "do_sample", "use_cache", "min_length"):
        if getattr(config, name) is None:  # None asks for nothing here
            setattr(config, name, OPTIONS[name].default)
    # Each for itself: how long the text may be depends on the prompt, and is resolved with it.
    config.validate_values()
    _refuse_unfinished(config, explicit, has_draft)
    if config.num_return_sequences > 1 and not config.do_sample and config.num_beams == 1:
        raise GenerationError(several_greedy(config.num_return_sequences))
    for name, reason in config.without_effect(has_draft=has_draft).items():
        if name in explicit:
            warn(reason)
    return config, explicit


def _refuse_unfinished(config: GenerationConfig, explicit: set[str], has_draft: bool) -> None:
    idle = config.without_effect(has_draft=has_draft)
    for name, option in OPTIONS.items():
        value = getattr(config, name)
        if option.works or option.never_bites or name in idle or option.is_neutral(value):
            continue
        origin = "the call" if name in explicit else "the model's generation config"
        if option.refusal:
            raise GenerationError(f"{name}={value!r} (from {origin}) is refused: {option.refusal}")
        off = f" Switch it off with generate({name}={option.default!r})."
        raise GenerationError(
            f"{name}={value!r} (from {origin}) is an option that generate() cannot carry out yet.{off} "
            f"Options that work: {', '.join(works())}."
        )


@dataclass(frozen=True)
class SpecialTokens:
    """Special tokens in force: end-of-sequence ids, padding id or None."""

    eos: tuple[int, ...] = ()
    pad: int | None = None


def resolve_special_tokens(
    config: GenerationConfig, *, rows: int, has_mask: bool, vocabulary: int | None
) -> SpecialTokens:
    """Return the special tokens; without a padding id the first end-of-sequence id is used, with a word about it.

    Raises:
        GenerationError: rows that finish early would be filled with an id outside the vocabulary.
    """
    given = config.eos_token_id
    eos = [] if given is None else [int(one) for one in (given if isinstance(given, (list, tuple)) else [given])]
    if any(one < 0 for one in eos):
        warn(
            f"eos_token_id is {given!r}; negative ids never occur, so that only the length limit ends the text. "
            "Use eos_token_id=None to say so.",
        )
        eos = [one for one in eos if one >= 0]
    pad = None if config.pad_token_id is None or config.pad_token_id < 0 else int(config.pad_token_id)
    if pad is None and eos:
        pad = eos[0]
        if rows > 1 and not has_mask:
            logger.warning(
                "neither attention_mask nor pad_token_id is given for a batch of %d rows: every token counts as text, "
                "and rows that finish early are filled with the end-of-sequence token %d. Pass the tokenizer's "
                "attention_mask, and pad_token_id, to be sure.",
                rows,
                pad,
            )
        else:
            logger.info("pad_token_id is not set; using the end-of-sequence token %d.", pad)
    if rows > 1 and vocabulary is not None and pad is not None and pad >= vocabulary > min(eos, default=pad):
        raise GenerationError(
            f"pad_token_id is {pad}, outside the vocabulary (0 to {vocabulary - 1}), and rows that finish early would "
            f"be filled with it. Pass pad_token_id, for example {min(eos)}."
        )
    return SpecialTokens(tuple(eos), pad)


# --- lengths ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Lengths:
    """Limits in tokens of the sequences that are returned, and the number of new tokens at most."""

    maximum: int
    minimum: int
    new: int


def resolve_lengths(
    config: GenerationConfig, explicit: set[str], prompt: Prompt, *, limit: int | None, default_length: bool
) -> Lengths:
    """Return the lengths in force.

    Args:
        config: Options in force.
        explicit: Names that the caller set.
        prompt: What is continued.
        limit: Positions that the model has, or None.
        default_length: Whether neither call nor model gave a max_length.

    Raises:
        InputError: the prompt alone is longer than the model allows.
        GenerationError: the wanted length does not fit, or is contradictory.
    """
    start = prompt.ids.shape[1]
    seen = prompt.positions
    if limit is not None and seen > limit:
        raise InputError(
            f"the prompt has {seen} tokens, and the model has {limit} positions (max_position_embeddings). Shorten "
            f"the prompt, for example to its last {limit} tokens."
        )
    # The last token is returned but never read, so the text may be one token longer than the positions.
    room = None if limit is None else limit - seen + 1
    if config.max_new_tokens is not None:
        if "max_length" in explicit and config.max_length is not None and "max_new_tokens" in explicit:
            warn(
                f"both max_new_tokens ({config.max_new_tokens}) and max_length ({config.max_length}) are set; "
                "max_new_tokens counts. Set one of them.",
            )
        new = int(config.max_new_tokens)
        asked = "max_new_tokens" in explicit
        what = f"max_new_tokens={new}"
    elif default_length:
        new, asked, what = int(config.max_length), False, f"the default of {config.max_length} new tokens"
    else:
        counted = _counted(prompt)
        new = int(config.max_length) - counted
        asked = "max_length" in explicit
        what = f"max_length={config.max_length}"
        if new <= 0:
            raise GenerationError(
                f"the prompt has {counted} tokens and max_length is {config.max_length}, prompt included: nothing can "
                "be generated. Set max_new_tokens, or raise max_length."
            )
    if room is not None and new > room:
        if asked:
            raise GenerationError(
                f"{what} after a prompt of {seen} tokens needs {seen + new - 1} positions, and the model has {limit} "
                f"(max_position_embeddings). Ask for at most {room} new tokens, or shorten the prompt."
            )
        new = max(room - 1, 1)  # as the reference: the default ends with the last position
    return Lengths(start + new, _minimum(config, explicit, prompt, new), new)


def _counted(prompt: Prompt) -> int:
    """Return the tokens of the prompt that count for max_length and min_length.

    Embeddings count beside the tokens that the result begins with; as many of both are taken for the same text.
    """
    start, embeds = prompt.ids.shape[1], prompt.past + prompt.unread
    return start if prompt.embeds is None or start == embeds else start + embeds


def _minimum(config: GenerationConfig, explicit: set[str], prompt: Prompt, new: int) -> int:
    start = prompt.ids.shape[1]
    if config.min_new_tokens is not None:
        least, name = int(config.min_new_tokens), "min_new_tokens"
    else:
        counted = _counted(prompt)
        least, name = max(int(config.min_length) - counted, 0), "min_length"
    if least > new:
        words = (
            f"{name}={getattr(config, name)} asks for at least {least} new tokens, and at most {new} can be generated. "
            f"Lower {name}, or raise max_new_tokens."
        )
        if name in explicit:
            raise GenerationError(words)
        warn(words)
    return start + least
