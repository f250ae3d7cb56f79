"""Padding of encodings that exist already: what `tokenizer.pad` and data collators do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from quintet.errors import TokenizerError
from quintet.tokenizers.encoding import to_python
from quintet.tokenizers.options import LengthOptions, PaddingStrategy

__all__ = ["as_columns", "pad_columns", "tensor_kind"]


def as_columns(encoded: Any, main: str) -> dict[str, Any]:
    """Return one encoding, or a list of encodings, as a dict of values; rows of a list become lists.

    Raises:
        TokenizerError: No encodings, encodings with different keys, or the key `main` is missing.
    """
    if isinstance(encoded, Mapping):
        columns = dict(encoded)
    elif isinstance(encoded, Sequence) and encoded and all(isinstance(row, Mapping) for row in encoded):
        keys = list(encoded[0])
        for number, row in enumerate(encoded):
            if set(row) != set(keys):
                raise TokenizerError(
                    f"Encoding number {number} has the keys {sorted(row)}, but the first one has {sorted(keys)}. "
                    "Give encodings with the same keys."
                )
        columns = {key: [row[key] for row in encoded] for key in keys}
    else:
        raise TokenizerError(
            f"pad() takes an encoding or a list of encodings, not {_shown(encoded)}. Give what the tokenizer returned."
        )
    if main not in columns:
        raise TokenizerError(f"pad() needs {main!r} among the keys, but they are {list(columns)}.")
    return columns


def tensor_kind(value: Any) -> str | None:
    """Return "pt" or "np" when `value`, or the first thing in it, is a tensor of that kind."""
    while isinstance(value, (list, tuple)) and value:
        value = value[0]
    return {"torch": "pt", "numpy": "np"}.get(type(value).__module__.split(".")[0]) if hasattr(value, "shape") else None


def pad_columns(
    columns: Mapping[str, Any],
    options: LengthOptions,
    *,
    main: str,
    pad_values: Mapping[str, int],
    with_mask: bool,
) -> dict[str, Any]:
    """Pad the rows of an encoding to one length.

    Args:
        columns: Values by key; one row, or a list of rows.
        options: Strategy, length, multiple and side.
        main: The key that says how long a row is.
        pad_values: What each key is padded with; other keys are left as they are.
        with_mask: Add an `attention_mask` where there is none.

    Raises:
        TokenizerError: Keys with different numbers of rows.
    """
    values = {key: to_python(value) for key, value in columns.items()}
    rows = values[main]
    single = not (rows and isinstance(rows[0], (list, tuple)))
    if single:
        values = {key: [value] for key, value in values.items()}
        rows = values[main]
    for key, value in values.items():
        if not isinstance(value, (list, tuple)) or len(value) != len(rows):
            raise TokenizerError(
                f"pad(): {main!r} has {len(rows)} rows, but {key!r} does not. Give every key one entry per row."
            )
    if with_mask and "attention_mask" not in values:
        values["attention_mask"] = [[1] * len(row) for row in rows]
    if options.padding is not PaddingStrategy.DO_NOT_PAD:
        target = _target(options, max(len(row) for row in rows))
        gaps = [target - len(row) for row in rows]
        for key in pad_values.keys() & values.keys():
            fill = pad_values[key]
            if key == "attention_mask" and not with_mask:
                continue
            values[key] = [
                _fill(row, gap, fill, options.padding_side) for row, gap in zip(values[key], gaps, strict=True)
            ]
    return {key: value[0] for key, value in values.items()} if single else values


def _target(options: LengthOptions, longest: int) -> int:
    length = longest
    if options.padding is PaddingStrategy.MAX_LENGTH and options.max_length is not None:
        length = options.max_length
    multiple = options.pad_to_multiple_of
    return -(-length // multiple) * multiple if multiple else length


def _fill(row: Sequence[Any], gap: int, fill: int, side: str) -> list[Any]:
    extra = [fill] * gap  # empty when the row is longer already: padding never cuts
    return [*row, *extra] if side == "right" else [*extra, *row]


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"a {type(value).__name__}"
