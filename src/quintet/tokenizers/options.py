"""What the call options of a tokenizer mean: padding, truncation and lengths, checked before anything is encoded."""

from __future__ import annotations

import enum
import warnings
from collections.abc import Iterable
from typing import Any, NamedTuple, TypeVar

from quintet.errors import TokenizerError, suggest

__all__ = [
    "LARGE_INTEGER",
    "VERY_LARGE_INTEGER",
    "LengthOptions",
    "PaddingStrategy",
    "TensorType",
    "TruncationStrategy",
    "check_known",
    "check_side",
    "length_options",
]

VERY_LARGE_INTEGER = int(1e30)  # a model_max_length that stands for "no limit", as published files write it
LARGE_INTEGER = int(1e20)
MAX_LENGTH = 2**31 - 1


class PaddingStrategy(str, enum.Enum):
    """Values of `padding`."""

    LONGEST = "longest"
    MAX_LENGTH = "max_length"
    DO_NOT_PAD = "do_not_pad"


class TruncationStrategy(str, enum.Enum):
    """Values of `truncation`."""

    ONLY_FIRST = "only_first"
    ONLY_SECOND = "only_second"
    LONGEST_FIRST = "longest_first"
    DO_NOT_TRUNCATE = "do_not_truncate"


class TensorType(str, enum.Enum):
    """Values of `return_tensors`."""

    PYTORCH = "pt"
    NUMPY = "np"


ChoiceT = TypeVar("ChoiceT", bound=enum.Enum)


class LengthOptions(NamedTuple):
    """Padding and truncation as one call asked for them, with every default filled in."""

    padding: PaddingStrategy
    truncation: TruncationStrategy
    max_length: int | None
    stride: int = 0
    pad_to_multiple_of: int | None = None
    padding_side: str = "right"


def choice(name: str, value: object, kind: type[ChoiceT]) -> ChoiceT:
    """Return the member of `kind` that `value` names.

    Raises:
        TokenizerError: There is none; the message lists them and suggests the nearest.
    """
    try:
        return kind(value)
    except ValueError:
        options = [member.value for member in kind]
        hint = suggest(value, options) if isinstance(value, str) else ""
        raise TokenizerError(f"{name} is {value!r}, but must be True, False or one of {options}.{hint}") from None


def check_side(name: str, value: object) -> str:
    """Return `value` when it is "left" or "right".

    Raises:
        TokenizerError: It is anything else.
    """
    if value not in ("left", "right"):
        raise TokenizerError(f"{name} is {value!r}, but must be 'left' or 'right'.")
    return str(value)


def check_known(where: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Raise TokenizerError, with the nearest name, for the first keyword in `given` that is not in `known`."""
    options = list(known)
    for name in given:
        if name not in options:
            raise TokenizerError(f"{where} has no option {name!r}.{suggest(name, options)}")


def _length(name: str, value: Any, minimum: int) -> int:
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TokenizerError(f"{name} is {value!r}, but must be an integer of at least {minimum}.")
    number = int(value.__index__())
    if not minimum <= number <= MAX_LENGTH:
        raise TokenizerError(f"{name} is {number}, but must be an integer from {minimum} to {MAX_LENGTH}.")
    return number


def length_options(
    *,
    model_max_length: int,
    default_side: str,
    padding: bool | str | PaddingStrategy = False,
    truncation: bool | str | TruncationStrategy | None = None,
    max_length: int | None = None,
    stride: int = 0,
    pad_to_multiple_of: int | None = None,
    padding_side: str | None = None,
    verbose: bool = True,
) -> LengthOptions:
    """Check one call's length options and fill in the defaults that people know.

    `max_length` alone means truncation; without `max_length` the model's own maximum is taken, and where the model has
    none, padding and truncation to it do nothing.

    Raises:
        TokenizerError: An option is unknown, of the wrong type, or two contradict each other.
    """
    side = check_side("padding_side", default_side if padding_side is None else padding_side)
    plain = padding is False and (truncation is None or truncation is False) and max_length is None
    if plain and pad_to_multiple_of is None and type(stride) is int and stride == 0:
        return LengthOptions(PaddingStrategy.DO_NOT_PAD, TruncationStrategy.DO_NOT_TRUNCATE, None, padding_side=side)
    if max_length is not None:
        max_length = _length("max_length", max_length, 0)
    stride = _length("stride", 0 if stride is None else stride, 0)
    if pad_to_multiple_of is not None:
        pad_to_multiple_of = _length("pad_to_multiple_of", pad_to_multiple_of, 1)
    if max_length is not None and padding is False and truncation is None:
        truncation = TruncationStrategy.LONGEST_FIRST
    pad = _padding_strategy(padding)
    cut = _truncation_strategy(truncation)
    if verbose and padding is True and max_length is not None and cut is TruncationStrategy.DO_NOT_TRUNCATE:
        warnings.warn(
            "max_length has no effect with padding=True and no truncation; "
            "use padding='max_length' to pad to it, or truncation=True to cut to it.",
            stacklevel=4,
        )
    if max_length is None and (pad is PaddingStrategy.MAX_LENGTH or cut is not TruncationStrategy.DO_NOT_TRUNCATE):
        if model_max_length <= LARGE_INTEGER:
            max_length = model_max_length
        else:
            cut = TruncationStrategy.DO_NOT_TRUNCATE
            pad = PaddingStrategy.DO_NOT_PAD if pad is PaddingStrategy.MAX_LENGTH else pad
    both = cut is not TruncationStrategy.DO_NOT_TRUNCATE and pad is not PaddingStrategy.DO_NOT_PAD
    if both and pad_to_multiple_of and max_length is not None and max_length % pad_to_multiple_of:
        raise TokenizerError(
            f"Truncation to {max_length} tokens and pad_to_multiple_of={pad_to_multiple_of} contradict each other: "
            f"{max_length} is not a multiple of {pad_to_multiple_of}. Choose a max_length that is."
        )
    return LengthOptions(pad, cut, max_length, stride, pad_to_multiple_of, side)


def _padding_strategy(padding: bool | str | PaddingStrategy) -> PaddingStrategy:
    if padding is False or padding is None:
        return PaddingStrategy.DO_NOT_PAD
    return PaddingStrategy.LONGEST if padding is True else choice("padding", padding, PaddingStrategy)


def _truncation_strategy(truncation: bool | str | TruncationStrategy | None) -> TruncationStrategy:
    if truncation is False or truncation is None:
        return TruncationStrategy.DO_NOT_TRUNCATE
    if truncation is True:
        return TruncationStrategy.LONGEST_FIRST
    return choice("truncation", truncation, TruncationStrategy)
