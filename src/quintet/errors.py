"""Exception types, and the words they use.

Every error says what is wrong, the value got, what is allowed and what to do next. Each type also derives from the
built-in exception that people already catch (ValueError, OSError), so that `except ValueError` goes on working.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "ChatError",
    "CheckpointError",
    "ConfigError",
    "GenerationError",
    "HubError",
    "InputError",
    "QuintetError",
    "TokenizerError",
    "TrainingError",
    "UsageError",
    "nearest",
    "suggest",
]


class QuintetError(Exception):
    """Base of every error that quintet raises on purpose."""


class ConfigError(QuintetError, ValueError):
    """A configuration (config.json, generation_config.json, keyword) is not usable."""


class CheckpointError(QuintetError, ValueError):
    """A weight file is corrupt, truncated, unsafe, or does not fit the model."""


class HubError(QuintetError, OSError):
    """A model folder or file was found neither locally nor on the hub."""


class TokenizerError(QuintetError, ValueError):
    """Text, ids or vocabulary files that a tokenizer cannot use."""


class ChatError(QuintetError, ValueError):
    """Messages, tools or a chat template that cannot be used."""


class InputError(QuintetError, ValueError):
    """Tensors, ids or lengths that a model cannot take."""


class GenerationError(QuintetError, ValueError):
    """Options of `generate` that are unknown, contradictory or out of range."""


class TrainingError(QuintetError, ValueError):
    """Training options or data that cannot be used."""


class UsageError(QuintetError):
    """A wrong command line; the shell exits with code 2."""


def nearest(name: str, options: Iterable[str]) -> str | None:
    """Return the option that looks most like `name`, or None when nothing is near."""
    matches = difflib.get_close_matches(name, list(options), n=1, cutoff=0.6)
    return matches[0] if matches else None


def suggest(name: str, options: Iterable[str]) -> str:
    """Return `" Did you mean 'x'?"` for the nearest option, or an empty string."""
    near = nearest(name, options)
    return f" Did you mean '{near}'?" if near else ""
