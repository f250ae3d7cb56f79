"""Which family talks how."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from quintet.chat.base import ChatFormat
from quintet.chat.harmony import Harmony
from quintet.chat.pieces import token_id
from quintet.chat.seed_oss import SeedOss
from quintet.chat.transcript import TemplateFormat, Transcript
from quintet.errors import ChatError, suggest

__all__ = ["FORMATS", "chat_format", "format_of_model"]

logger = logging.getLogger("quintet.chat")

# By the model type of a family, and by the format's own name.
FORMATS: dict[str, Callable[[], ChatFormat]] = {"gpt_oss": Harmony, "seed_oss": SeedOss}
# Families that were never taught to talk.
PLAIN = ("openai-gpt", "gpt2", "gpt_neox")
# The tokens that give a vocabulary away.
_MARKS = (
    (("<|start|>", "<|channel|>", "<|message|>"), "gpt_oss"),
    (("<seed:bos>", "<seed:think>"), "seed_oss"),
)


def chat_format(source: Any, tokenizer: Any = None) -> ChatFormat:
    """Return the chat format of a family, or of a tokenizer.

    Args:
        source: A model type ("gpt_oss") or the name of a format ("harmony", "transcript"); a family, a configuration
            or a model class with a `model_type`; or a tokenizer, whose special tokens tell.
        tokenizer: With a family that has no format: its tokenizer, whose chat template is used where there is one.

    Returns:
        The format. A family without one gets its tokenizer's template, else a plain transcript, and a line in the log
        (logger "quintet.chat") that says so; `format.native` is False then.

    Raises:
        ChatError: An unknown family.
    """
    if hasattr(source, "convert_tokens_to_ids"):
        tokenizer = source
        known = (name for marks, name in _MARKS if all(token_id(source, mark) is not None for mark in marks))
        found = next(known, None)
        return FORMATS[found]() if found else _general(tokenizer)
    name = source if isinstance(source, str) else getattr(source, "model_type", None)
    if not isinstance(name, str):
        raise ChatError(
            f"chat_format needs a model type such as 'gpt_oss', something with a model_type, or a tokenizer, not "
            f"{type(source).__name__}."
        )
    if name in FORMATS:
        return FORMATS[name]()
    if name == Harmony.name:
        return Harmony()
    if name not in (*PLAIN, Transcript.name):
        options = sorted([*FORMATS, *PLAIN, Harmony.name, Transcript.name])
        raise ChatError(f"There is no family or chat format {name!r}; there are {options}.{suggest(name, options)}")
    return _general(tokenizer if name in PLAIN else None)


def format_of_model(model_type: str | None, tokenizer: Any) -> ChatFormat:
    """Return the chat format of a loaded model: that of its family, or what the tokens of its tokenizer tell.

    A family of somebody's own is known by its tokens, or is none that talks; see `chat_format`.
    """
    return chat_format(model_type if model_type in FORMATS else tokenizer)


def _general(tokenizer: Any) -> ChatFormat:
    """The format of a model of whose family nothing is known."""
    if tokenizer is not None and tokenizer.chat_template is not None:
        return TemplateFormat(tokenizer)
    logger.warning(
        "This model has no chat format of its own: conversations are written as a plain transcript "
        "('User: ...', 'Assistant: ...'). Do not expect it to answer like a chat model."
    )
    return Transcript(tokenizer.eos_token if tokenizer is not None else None)
