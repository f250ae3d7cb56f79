"""What options and arguments may hold: functions that return None for an allowed value, else the words for what is.

No torch here.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Mapping
from typing import Any

from quintet.errors import GenerationError

__all__ = [
    "Check",
    "anything",
    "bias_of_sequences",
    "decay_pair",
    "early_stopping",
    "flag",
    "id_list",
    "id_sequences",
    "integer",
    "is_id",
    "is_number",
    "number",
    "one_of",
    "require",
    "shown",
    "strings",
    "token_id",
    "token_ids",
    "usable_id",
    "usable_ids",
]

Check = Callable[[Any], "str | None"]
"""Returns None when a value is allowed, else the words that say what is."""

LONGEST = 200  # characters of a value in a message


def shown(value: Any) -> str:
    """Return a value as a message shows it: cut when it is long."""
    text = repr(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}... ({type(value).__name__})"


def require(name: str, value: Any, check: Check, advice: str = "") -> None:
    """Check an argument.

    Args:
        name: Name of the argument.
        value: What was given.
        check: Says whether it is allowed.
        advice: A sentence that says what to do, with a space before it.

    Raises:
        GenerationError: it is not allowed.
    """
    allowed = check(value)
    if allowed is not None:
        raise GenerationError(f"{name} is {shown(value)}, but must be {allowed}.{advice}")


# --- numbers ----------------------------------------------------------------------------------------------------------


def is_number(value: Any) -> bool:
    """Whether a value is a finite number; True and False are none."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)


def integer(low: int, high: int | None = None) -> Check:
    """Return the check of an integer with a least value, and perhaps a largest."""

    def check(value: Any) -> str | None:
        whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
        if whole and int(value) >= low and (high is None or int(value) <= high):
            return None
        return f"an integer of at least {low}" + ("" if high is None else f" and at most {high}")

    return check


def number(allowed: str, test: Callable[[Any], bool] = lambda value: True) -> Check:
    """Return the check of a finite number that passes `test`, with the words for it."""
    return lambda value: None if is_number(value) and test(value) else allowed


def flag(value: Any) -> str | None:
    """Check a switch."""
    return None if isinstance(value, bool) else "True or False"


def anything(value: Any) -> str | None:
    """Allow every value."""
    return None


def one_of(*names: str) -> Check:
    """Return the check of a few words."""
    words = " or ".join(repr(name) for name in names)
    return lambda value: None if isinstance(value, str) and value in names else words


def early_stopping(value: Any) -> str | None:
    """Check the option of that name."""
    return None if isinstance(value, bool) or value == "never" else 'True, False or "never"'


# --- tokens -----------------------------------------------------------------------------------------------------------


def is_id(value: Any) -> bool:
    """Whether a value is an integer that a tensor of ids can hold."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool) and -(2**63) <= int(value) < 2**63


def _is_usable(value: Any) -> bool:
    return is_id(value) and int(value) >= 0


def token_id(value: Any) -> str | None:
    """Check a token id; published files use -1 for "none"."""
    return None if is_id(value) else "a token id (an integer)"


def token_ids(value: Any) -> str | None:
    """Check one token id or several."""
    if is_id(value) or (isinstance(value, (list, tuple)) and value and all(is_id(one) for one in value)):
        return None
    return "a token id or a list of token ids"


def usable_id(value: Any) -> str | None:
    """Check the id of a token that is to be chosen."""
    return None if _is_usable(value) else "a token id (an integer of at least 0)"


def usable_ids(value: Any) -> str | None:
    """Check one id of a token that is to be chosen, or several."""
    if _is_usable(value) or (isinstance(value, (list, tuple)) and value and all(_is_usable(one) for one in value)):
        return None
    return "a token id or a list of token ids, integers of at least 0"


def id_list(value: Any) -> str | None:
    """Check a list of token ids, which may be empty."""
    if isinstance(value, (list, tuple)) and all(_is_usable(one) for one in value):
        return None
    return "a list of token ids, integers of at least 0"


def _is_sequence(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and len(value) > 0 and all(_is_usable(one) for one in value)


def id_sequences(value: Any) -> str | None:
    """Check a list of sequences of token ids."""
    if isinstance(value, (list, tuple)) and value and all(_is_sequence(one) for one in value):
        return None
    return "a list of lists of token ids, such as [[17], [5, 3]], none of them empty"


def bias_of_sequences(value: Any) -> str | None:
    """Check sequences of token ids with a number for each, in one of the two forms."""

    def is_bias(one: Any) -> bool:
        return isinstance(one, numbers.Real) and not isinstance(one, bool) and not math.isnan(one)

    if isinstance(value, Mapping):
        fits = all(isinstance(key, tuple) and _is_sequence(key) and is_bias(one) for key, one in value.items())
    else:
        fits = isinstance(value, (list, tuple)) and all(
            isinstance(pair, (list, tuple)) and len(pair) == 2 and _is_sequence(pair[0]) and is_bias(pair[1])
            for pair in value
        )
    if fits and len(value) > 0:
        return None
    return "a list of pairs of token ids and a number, such as [[[17, 4], -2.5]], or a dict such as {(17, 4): -2.5}"


def decay_pair(value: Any) -> str | None:
    """Check the start and the factor of a length penalty."""
    if isinstance(value, (list, tuple)) and len(value) == 2:
        start, factor = value
        if _is_usable(start) and is_number(factor) and factor > 0:
            return None
    return "a pair (start, factor) of an integer of at least 0 and a number above 0, such as (15, 1.05)"


def strings(value: Any) -> str | None:
    """Check one string or several."""
    values = [value] if isinstance(value, str) else value
    if isinstance(values, (list, tuple)) and values and all(isinstance(one, str) and one for one in values):
        return None
    return "a string or a list of strings, none of them empty"
