"""What a chat template may use: time, text, items, attributes; checked before it is used.

`sandbox` puts these checks in the way of everything that a template does. A single operation is then bounded by the
limits, and between two of them stands the clock. Containers are measured as trees: one that holds another twice, and so
on, is small in memory and endless when it is printed or compared.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from quintet.errors import ChatError

__all__ = [
    "Budget",
    "Limits",
    "allowed",
    "budget",
    "check_call",
    "check_filter",
    "check_format",
    "check_items",
    "check_length",
    "check_operation",
    "current_budget",
    "current_limits",
    "tick",
    "weigh",
    "words",
]


@dataclass(frozen=True)
class Limits:
    """What one rendering may use.

    Args:
        seconds: Time, compiling included.
        template: Characters of the template.
        tokens: Words and signs of its code: what bounds the time of compiling, which no clock can stop.
        text: Characters of any text that a template makes, and of its input and output.
        items: Entries of any list or dict that it makes, those inside them included, and of `range`.
        digits: Digits of a number, bits of a power.
    """

    seconds: float = 5.0
    template: int = 256 * 1024
    tokens: int = 30_000
    text: int = 16 * 1024 * 1024
    items: int = 200_000
    digits: int = 1000


@dataclass
class Budget:
    """What is left of the limits in a rendering."""

    limits: Limits
    deadline: float
    marks: list[tuple[int, int]] = field(default_factory=list)  # of {% generation %} blocks: places in the output
    written: int = 0  # characters of the output so far
    # Items and characters of the input's containers, by id: measured once, and not at each use.
    known: dict[int, tuple[int, int]] = field(default_factory=dict)

    def measure(self, value: Any) -> None:
        """Measure a part of the input, and what it is made of, once."""
        if isinstance(value, (list, tuple)):
            for each in value:
                if isinstance(each, (Mapping, list, tuple)):
                    self.known[id(each)] = weigh(each, "The conversation has")
        if isinstance(value, (Mapping, list, tuple)):
            self.known[id(value)] = weigh(value, "The conversation has")


_budget: ContextVar[Budget | None] = ContextVar("budget", default=None)
_NO_LIMITS = Limits()
_DEEPEST = 200


@contextmanager
def budget(limits: Limits) -> Iterator[Budget]:
    """Start the clock; templates are compiled and rendered inside."""
    current = Budget(limits, time.monotonic() + limits.seconds)
    token = _budget.set(current)
    try:
        yield current
    finally:
        _budget.reset(token)


def current_budget() -> Budget | None:
    """Return the budget of the rendering that runs, None outside of one."""
    return _budget.get()


def current_limits() -> Limits:
    """Return the limits that hold now."""
    current = _budget.get()
    return current.limits if current is not None else _NO_LIMITS


def tick() -> None:
    """Look at the clock.

    Raises:
        ChatError: The time is over.
    """
    current = _budget.get()
    if current is not None and time.monotonic() > current.deadline:
        raise ChatError(
            f"The chat template did not end within {current.limits.seconds:g} seconds and was stopped. It may loop "
            "forever; use the template of another release, or give a longer limit."
        )


def check_length(size: int, what: str = "a text") -> None:
    """Refuse a text of so many characters.

    Raises:
        ChatError: It is longer than the limit.
    """
    if size > current_limits().text:
        raise ChatError(
            f"The chat template makes {what} of more than {current_limits().text:,} characters and was stopped."
        )


def check_items(count: int) -> None:
    """Refuse a list of so many items.

    Raises:
        ChatError: It is longer than the limit.
    """
    if count > current_limits().items:
        raise ChatError(
            f"The chat template makes a list of more than {current_limits().items:,} items and was stopped."
        )


def weigh(value: Any, what: str = "The chat template makes") -> tuple[int, int]:
    """Measure a value as if it were printed: shared parts count each time.

    Returns:
        Its items and its characters.

    Raises:
        ChatError: It is too large, too deep, or contains itself.
    """
    current = _budget.get()
    limits, known = current_limits(), current.known if current is not None else {}
    items = text = 0
    stack = [(value, 0)]
    while stack:
        each, depth = stack.pop()
        if isinstance(each, str):
            text += len(each)
        elif id(each) in known:
            items, text = items + known[id(each)][0], text + known[id(each)][1]
        elif isinstance(each, Mapping):
            items += len(each)
            stack += [(inner, depth + 1) for pair in each.items() for inner in pair]
        elif isinstance(each, (list, tuple)):
            items += len(each)
            stack += [(inner, depth + 1) for inner in each]
        if items > limits.items or text > limits.text or depth > _DEEPEST:
            most = f"{limits.items:,} items, {limits.text:,} characters or {_DEEPEST} levels"
            raise ChatError(f"{what} data of more than {most}, and was stopped.")
        if items % 256 == 0:
            tick()
    return items, text


# --- what templates may do --------------------------------------------------------------------------------------------


def words(text: str) -> frozenset[str]:
    """Return the words of a text."""
    return frozenset(text.split())


_STRING = words(
    "capitalize casefold center count endswith expandtabs find format index isalnum isalpha isascii isdecimal isdigit "
    "isidentifier islower isnumeric isprintable isspace istitle isupper join ljust lower lstrip partition removeprefix "
    "removesuffix replace rfind rindex rjust rpartition rsplit rstrip split splitlines startswith strip swapcase title "
    "upper zfill"
)
_SEQUENCE = words("count index")
_MAPPING = words("get items keys values")
_MACRO = words("name arguments catch_kwargs catch_varargs caller")
_LOOP = words("changed cycle depth depth0 first index index0 last length nextitem previtem revindex revindex0")
# Fields of a format such as "{name!r:>10}": plain names and places only. No pattern here takes more than linear time.
_FIELD = re.compile(r"\{\{|\}\}|\{\w*(?:![rsa])?(?::([^{}]{0,20}))?\}|[^{}]+")
_LONG = re.compile(r"\d{4}")  # a width to fill memory with
# The same for "%(name)10d"; "*" takes a width from the values.
_PERCENT = re.compile(r"%(?:\([^)]{0,99}\))?[^%a-zA-Z]*(?:\d{4}|\*)|%\([^)]{100}")


def allowed(owner: Any, name: str) -> bool:
    """Whether a template may read this attribute."""
    from jinja2.runtime import LoopContext, Macro
    from jinja2.utils import Namespace

    if name.startswith("_"):
        return False
    if isinstance(owner, str):
        return name in _STRING
    if isinstance(owner, Mapping):
        return name in _MAPPING
    if isinstance(owner, (list, tuple)):
        return name in _SEQUENCE
    if isinstance(owner, LoopContext):
        return name in _LOOP
    if isinstance(owner, Macro):
        return name in _MACRO
    # A namespace has no methods; its names are looked up as what the template has put there.
    return isinstance(owner, Namespace)


def check_call(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Check a call before it is made: what could it make of these arguments?"""
    tick()
    for value in (*args, *kwargs.values()):
        weigh(value)
        _check_number(value)
    text = getattr(function, "__self__", None)
    if not isinstance(text, str):
        return
    for value in (*args, *kwargs.values()):
        if isinstance(value, int) and abs(value) > current_limits().items:
            raise ChatError(f"The chat template calls a text's method with {short_number(value)} and was stopped.")
    name = function.__name__
    if name == "replace" and len(args) >= 2 and isinstance(args[0], str) and isinstance(args[1], str):
        check_length(len(text) + (text.count(args[0]) + 1) * len(args[1]))
    elif name == "join" and args:
        check_length(len(text) * len(args[0]) if hasattr(args[0], "__len__") else 0)
    elif name in ("split", "rsplit", "splitlines"):
        check_items(len(text) // 20)
    elif name == "expandtabs":
        check_length(len(text) + text.count("\t") * int(args[0] if args else 8))


def check_format(text: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Refuse formats that read attributes or make long texts."""
    tick()
    fields = list(_FIELD.finditer(text)) if len(text) < 10_000 else []
    if sum(len(field.group()) for field in fields) != len(text) or any(_LONG.search(f[1] or "") for f in fields):
        raise ChatError(
            f"The chat template formats with {text[:60]!r}; only plain places such as {{}} or {{name:>8}} are allowed."
        )
    check_length(len(text) + text.count("{") * weigh([*args, *kwargs.values()])[1])


def _check_bits(bits: int, verb: str = "makes") -> None:
    """Refuse a number of so many bits."""
    if bits > 4 * current_limits().digits:
        raise ChatError(
            f"The chat template {verb} a number of more than {current_limits().digits} digits and was stopped."
        )


def _check_number(value: Any) -> None:
    if isinstance(value, int):
        _check_bits(value.bit_length())


def short_number(value: int) -> str:
    """Return a number for a message, however long it is."""
    return str(value) if value.bit_length() < 64 else f"a number of {value.bit_length()} bits"


def check_operation(operator: str, left: Any, right: Any) -> None:
    """Check `*`, `**`, `+` and `%` before they are made."""
    tick()
    weigh(left)
    weigh(right)
    numbers = isinstance(left, int) and isinstance(right, int)
    if operator == "*":
        for one, other in ((left, right), (right, left)):
            if isinstance(one, (str, list, tuple)) and isinstance(other, int):
                (check_length if isinstance(one, str) else check_items)(len(one) * max(0, other))
        if numbers:
            _check_bits(left.bit_length() + right.bit_length())
    elif operator == "**" and numbers:
        _check_bits(left.bit_length() * abs(right))
    elif operator == "+" and isinstance(left, str) and isinstance(right, str):
        check_length(len(left) + len(right))
    elif operator == "%" and isinstance(left, str):
        if _PERCENT.search(left):
            raise ChatError(f"The chat template formats with {left[:60]!r}; widths and '*' like this are not allowed.")
        check_length(len(left) + left.count("%") * weigh(right)[1])


def check_filter(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Check a filter's arguments; the first is what is filtered."""
    tick()
    for value in (*args, *kwargs.values()):
        weigh(value)
        _check_number(value)
    for value in (*args[1:], *kwargs.values()):
        if isinstance(value, int) and abs(value) > 10_000:
            raise ChatError(f"The chat template gives the filter {name!r} {short_number(value)} and was stopped.")
    if name == "join" and args and hasattr(args[0], "__len__"):
        between = args[1] if len(args) > 1 else kwargs.get("d", "")
        check_length(len(str(between)) * len(args[0]) + weigh(args[0])[1])
    text = args[0] if args and isinstance(args[0], str) else None
    if text is None:
        return
    if name == "int":
        _check_bits(4 * len(text), "reads")
    if name in ("list", "sort", "unique", "reverse", "batch", "slice", "map", "select", "reject", "groupby", "sum"):
        check_items(len(text))
    if name == "replace":
        old, new = (*args[1:3], *(kwargs[key] for key in ("old", "new") if key in kwargs), "", "")[:2]
        check_length(len(text) + (text.count(str(old)) + 1) * len(str(new)))
    if name == "indent":
        width = args[1] if len(args) > 1 else kwargs.get("width", 4)
        check_length(len(text) + (text.count("\n") + 1) * (len(width) if isinstance(width, str) else int(width)))
