"""One tokenizer call: the forms that texts come in, the engine's answer, and the keys made of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from tokenizers import Encoding, Tokenizer

from quintet.errors import TokenizerError
from quintet.tokenizers.encoding import BatchEncoding
from quintet.tokenizers.options import TensorType

__all__ = [
    "Inputs",
    "Wanted",
    "check_unicode",
    "collect",
    "encode_rows",
    "input_names",
    "map_texts",
    "read_inputs",
    "whole_number",
]


class Inputs(NamedTuple):
    """Texts in the form that the engine takes: a list of texts, of pairs, or of lists of words."""

    items: list[Any]
    is_batch: bool
    pretokenized: bool


class Wanted(NamedTuple):
    """The keys that a call asked for, beside `input_ids`."""

    token_type_ids: bool = False
    attention_mask: bool = True
    overflowing_tokens: bool = False
    special_tokens_mask: bool = False
    offset_mapping: bool = False
    length: bool = False


def read_inputs(text: Any, pair: Any, is_split_into_words: bool) -> Inputs:
    """Find out whether `text` is one text or a batch, and join it with the second texts.

    Raises:
        TokenizerError: It is neither; an empty batch; a different number of second texts.
    """
    if not isinstance(text, (str, list, tuple)):
        raise TokenizerError(f"text is {_kind(text)}; give a string or a list of strings.{_advice(text)}")
    if is_split_into_words:
        if isinstance(text, str):
            raise TokenizerError(
                f"is_split_into_words=True takes a list of words, not the string {text[:40]!r}. Split it first."
            )
        is_batch = bool(text) and isinstance(text[0], (list, tuple))
    else:
        is_batch = not isinstance(text, str)
        if not text and is_batch:
            raise TokenizerError("text is an empty list; give at least one text.")
    if pair is None:
        items = list(text) if is_batch else [text]
    elif is_batch:
        if not isinstance(pair, (list, tuple)) or len(pair) != len(text):
            got = f"{len(pair)} texts" if isinstance(pair, (list, tuple)) else _kind(pair)
            raise TokenizerError(f"text_pair is {got}, but text is a batch of {len(text)}; give one second text each.")
        items = list(zip(text, pair, strict=True))
    else:
        items = [(text, pair)]
    return Inputs(items, is_batch, is_split_into_words)


def map_texts(items: Any, change: Callable[[str], str]) -> Any:
    """Return `items` with every string in it, at any depth, changed; what is no text stays for the engine to refuse."""
    if isinstance(items, str):
        return change(items)
    if isinstance(items, (list, tuple)):
        return type(items)(map_texts(item, change) for item in items)
    return items


def check_unicode(inputs: Inputs) -> None:
    """Raise TokenizerError when a text holds a lone surrogate; the message says where."""
    if _has_surrogate(inputs.items):
        raise TokenizerError(_explain(inputs, ValueError("it is not Unicode text")))


def encode_rows(engine: Tokenizer, inputs: Inputs, add_special_tokens: bool) -> list[Encoding]:
    """Run the engine, which splits a batch over the processor's cores; one text stays in this thread.

    Raises:
        TokenizerError: Something in the batch is no text, or truncation is impossible as asked.
    """
    check_unicode(inputs)
    items = inputs.items
    try:
        if len(items) == 1 and type(items[0]) is str and not inputs.pretokenized:
            return [engine.encode(items[0], add_special_tokens=add_special_tokens)]
        return list(
            engine.encode_batch(items, is_pretokenized=inputs.pretokenized, add_special_tokens=add_special_tokens)
        )
    except BaseException as cause:  # a panic of the Rust library is no Exception
        if isinstance(cause, (KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError)):
            raise
        raise TokenizerError(_explain(inputs, cause)) from cause


def collect(
    rows: Sequence[Encoding], wanted: Wanted, is_batch: bool, return_tensors: str | TensorType | None, padded: bool
) -> BatchEncoding:
    """Make the result of a call from the engine's rows and, if wanted, the rows that overflowed from each.

    `padded` says whether there may be padding in the rows: without it every mask is known.
    """
    pieces, origin = list(rows), list[int]()
    if wanted.overflowing_tokens:
        pieces.clear()
        for number, row in enumerate(rows):
            parts = [row, *row.overflowing]
            pieces += parts
            origin += [number] * len(parts)
    data: dict[str, Any] = {"input_ids": [piece.ids for piece in pieces]}
    if wanted.token_type_ids:
        data["token_type_ids"] = [piece.type_ids for piece in pieces]
    if wanted.attention_mask:
        data["attention_mask"] = [piece.attention_mask if padded else [1] * len(piece) for piece in pieces]
    if wanted.special_tokens_mask:
        data["special_tokens_mask"] = [piece.special_tokens_mask for piece in pieces]
    if wanted.offset_mapping:
        data["offset_mapping"] = [piece.offsets for piece in pieces]
    if wanted.length:
        data["length"] = [len(piece) for piece in pieces]
    if wanted.overflowing_tokens:
        data["overflow_to_sample_mapping"] = origin
    elif not is_batch and return_tensors is None:
        data = {key: value if key == "length" else value[0] for key, value in data.items()}
    return BatchEncoding(data, pieces, tensor_type=return_tensors)


def whole_number(name: str, value: Any) -> int:
    """Return a positive integer; published files also write one as 1e30.

    Raises:
        TokenizerError: It is anything else.
    """
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise TokenizerError(f"{name} is {value!r}, but must be an integer of at least 1.")
    return value


def input_names(value: Any) -> list[str]:
    """Return the keys that a call gives unless asked otherwise; the first is that of the ids.

    Raises:
        TokenizerError: `value` is no list of strings.
    """
    if value is None:
        return ["input_ids", "attention_mask"]
    if not isinstance(value, (list, tuple)) or not value or not all(isinstance(name, str) for name in value):
        raise TokenizerError(f"model_input_names must be a list of names such as 'input_ids', not {value!r}.")
    return list(value)


# --- what went wrong --------------------------------------------------------------------------------------------------


def _has_surrogate(items: Iterable[Any]) -> bool:
    """Whether a text has a lone surrogate, which older releases of the `tokenizers` library silently replace."""
    for item in items:
        if isinstance(item, str):
            if not item.isascii():
                try:
                    item.encode("utf-8")
                except UnicodeEncodeError:
                    return True
        elif isinstance(item, (list, tuple)) and _has_surrogate(item):
            return True
    return False


def _explain(inputs: Inputs, cause: BaseException) -> str:
    """Find the first thing in the input that the engine cannot take; else pass on what the engine says."""
    for number, item in enumerate(inputs.items):
        where = f"text number {number}" if inputs.is_batch else "text"
        problem = _problem(item, where, inputs.pretokenized)
        if problem:
            return problem
    words = str(cause)
    if "Truncation error" in words or "stride" in words:
        return (
            f"Truncation as asked is impossible: {words}. Use a larger max_length, a smaller stride, or "
            "truncation='longest_first'."
        )
    return f"The tokenizer failed on this input: {words[:300]}"


def _problem(item: Any, where: str, pretokenized: bool) -> str:
    """Say what is wrong with one text, pair of texts or list of words; an empty string when nothing is."""
    if isinstance(item, str):
        for index, char in enumerate(item):
            if 0xD800 <= ord(char) < 0xE000:
                return (
                    f"{where} holds the lone surrogate {char!r} at position {index}, which is no character and has no "
                    "UTF-8 form. Clean the text first: text.encode('utf-8', 'replace').decode('utf-8')."
                )
        return ""
    if isinstance(item, (list, tuple)):
        if not pretokenized and len(item) != 2:
            return f"{where} is a {type(item).__name__} of {len(item)}; give strings, or pairs of strings." + (
                " Words need is_split_into_words=True." if item and isinstance(item[0], str) else ""
            )
        return next((words for part in item if (words := _problem(part, f"{where}, a part of it", pretokenized))), "")
    return f"{where} is {_kind(item)}; give strings.{_advice(item)}"


def _kind(value: Any) -> str:
    return "None" if value is None else f"of type {type(value).__name__}"


def _advice(value: Any) -> str:
    if isinstance(value, (bytes, bytearray)):
        return " Decode bytes first: text.decode('utf-8')."
    if isinstance(value, Mapping):
        return " A dict needs one of its values taken out."
    if hasattr(value, "tolist") or (isinstance(value, Iterable) and not isinstance(value, str)):
        return " Make a list of it first: list(text)."
    return ""
