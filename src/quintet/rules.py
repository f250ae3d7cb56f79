"""What one field of a configuration may hold: small values that check, and say what is allowed."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import Any

from quintet.errors import ConfigError, suggest

__all__ = ["Choice", "Flag", "Heads", "Integer", "Names", "Number", "Rule", "Text", "TokenIds", "int_keys"]

# Larger than any size or id there is.
MAX_SIZE = 2**31 - 1


@dataclass(frozen=True)
class Rule:
    """What one field may hold; `optional` lets it be None."""

    optional: bool = field(default=False, kw_only=True)

    def problem(self, value: Any) -> str | None:
        """Return what is allowed when `value` is not, else None."""
        raise NotImplementedError  # pragma: no cover - every rule below answers

    def check(self, owner: str, name: str, value: Any) -> None:
        """Raise ConfigError when `value` is not allowed for field `name` of `owner`."""
        if value is None and self.optional:
            return
        allowed = self.problem(value)
        if allowed:
            none = " or None" if self.optional else ""
            got = repr(value) if len(repr(value)) <= 200 else f"{repr(value)[:200]}..."
            raise ConfigError(
                f"{owner}: {name} is {got}, but must be {allowed}{none}. Correct it in config.json or the call."
            )


@dataclass(frozen=True)
class Integer(Rule):
    """An int (never a bool) from `minimum` to `maximum`."""

    minimum: int = 1
    maximum: int = MAX_SIZE

    def problem(self, value: Any) -> str | None:
        """See Rule."""
        if isinstance(value, int) and not isinstance(value, bool) and self.minimum <= value <= self.maximum:
            return None
        return f"an integer from {self.minimum} to {self.maximum}"


@dataclass(frozen=True)
class Number(Rule):
    """A finite number from `minimum` to `maximum`."""

    minimum: float = 0.0
    maximum: float = sys.float_info.max

    def problem(self, value: Any) -> str | None:
        """See Rule."""
        # Comparisons alone: math.isfinite() fails for an int that no float can hold. NaN is never in a range.
        if isinstance(value, (int, float)) and not isinstance(value, bool) and self.minimum <= value <= self.maximum:
            return None
        return f"a number from {self.minimum:g} to {self.maximum:g}"


@dataclass(frozen=True)
class Flag(Rule):
    """True or False."""

    def problem(self, value: Any) -> str | None:
        """See Rule."""
        return None if isinstance(value, bool) else "true or false"


@dataclass(frozen=True)
class Choice(Rule):
    """One of a list of strings; the error suggests the nearest."""

    options: tuple[str, ...] = ()

    def problem(self, value: Any) -> str | None:
        """See Rule."""
        if isinstance(value, str) and value in self.options:
            return None
        hint = suggest(value, self.options) if isinstance(value, str) else ""
        return f"one of {', '.join(self.options)}{hint}"


@dataclass(frozen=True)
class Text(Rule):
    """Any string."""

    def problem(self, value: Any) -> str | None:
        """See Rule."""
        return None if isinstance(value, str) else "a string"


@dataclass(frozen=True)
class Names(Rule):
    """A list of strings."""

    def problem(self, value: Any) -> str | None:
        """See Rule."""
        return None if isinstance(value, list) and all(isinstance(v, str) for v in value) else "a list of strings"


@dataclass(frozen=True)
class Heads(Rule):
    """Attention heads by layer, `{0: [1, 3]}`."""

    def problem(self, value: Any) -> str | None:
        """See Rule."""
        layers = value.items() if isinstance(value, dict) else [(None, None)]
        head = Integer(minimum=0)
        if all(not head.problem(k) and isinstance(v, list) and not any(map(head.problem, v)) for k, v in layers):
            return None
        return "an object of lists of heads by layer, such as {0: [1, 3]}"


@dataclass(frozen=True)
class TokenIds(Rule):
    """A token id, or a list of them."""

    optional: bool = field(default=True, kw_only=True)

    def problem(self, value: Any) -> str | None:
        """See Rule."""
        values = value if isinstance(value, list) and value else [value]
        # Negative ids are kept: published configs use -1 for "none", and a vocabulary check happens where ids are used.
        if all(isinstance(v, int) and not isinstance(v, bool) and -MAX_SIZE <= v <= MAX_SIZE for v in values):
            return None
        return "an integer or a list of integers"


def int_keys(value: Any) -> Any:
    """Turn JSON's string keys into ints; what is no object, or has other keys, is for the rule to refuse."""
    if not isinstance(value, dict):
        return value
    return {
        int(key) if isinstance(key, str) and key.isdecimal() and len(key) < 10 else key: item
        for key, item in value.items()
    }
