"""Where chat templates run: Jinja without a way out, and without a way to run, grow or print forever.

A template comes with a checkpoint, so it is somebody else's program. What keeps it in:

- Only plain data goes in (text, numbers, lists, dicts), and of each type only a few listed attributes can be read: none
  that leads to a class, a function's globals or a module is reachable, by whatever filter or syntax.
- Jinja's own immutable sandbox is beneath. `attr`, `lipsum`, `cycler`, `joiner` and other things that no chat template
  needs, and that have been ways out (CVE-2016-10745, CVE-2019-10906, CVE-2024-56326, CVE-2025-27516), are not there.
- `limits` stands before every operator, call, filter, container and turn of a loop.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import lru_cache, wraps
from typing import Any

import jinja2
import jinja2.ext
from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from quintet.chat import limits
from quintet.errors import ChatError

__all__ = ["compile_template", "render_template"]

# The first Jinja without a known way out of its sandbox.
OLDEST = (3, 1, 6)
_FILTERS = limits.words(
    "abs batch capitalize center count d default dictsort e escape first float forceescape groupby indent int items "
    "join last length list lower map max min reject rejectattr replace reverse round safe select selectattr slice sort "
    "string title trim truncate unique upper urlencode wordcount"
)
_TIME_FORMAT = re.compile(r"(?:[^%]|%[-_0^#]?[A-Za-z%])*", re.DOTALL)


class _Refused(jinja2.TemplateError):
    """The template itself does not like the conversation."""


class _Compiler(CodeGenerator):
    """Puts a check around everything that makes a container, and around `~`."""

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        self._wrapped("concatenated", lambda: self._items(node.nodes, frame))

    def visit_List(self, node: nodes.List, frame: Frame) -> None:
        self._wrapped("weighed", lambda: CodeGenerator.visit_List(self, node, frame))

    def visit_Tuple(self, node: nodes.Tuple, frame: Frame) -> None:
        if node.ctx != "load":
            super().visit_Tuple(node, frame)
        else:
            self._wrapped("weighed", lambda: CodeGenerator.visit_Tuple(self, node, frame))

    def visit_Dict(self, node: nodes.Dict, frame: Frame) -> None:
        self._wrapped("weighed", lambda: CodeGenerator.visit_Dict(self, node, frame))

    def _wrapped(self, function: str, write: Callable[[], None]) -> None:
        self.write(f"environment.{function}(")
        write()
        self.write(")")

    def _items(self, items: list[nodes.Expr], frame: Frame) -> None:
        self.write("(")
        for item in items:
            self.visit(item, frame)
            self.write(", ")
        self.write(")")


class _Generation(jinja2.ext.Extension):
    """`{% generation %}` ... `{% endgeneration %}`: what the assistant wrote; its place in the output is kept."""

    tags = {"generation"}

    def parse(self, parser: Any) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_mark"), [], [], body).set_lineno(line)

    def _mark(self, caller: Callable[[], str]) -> str:
        text = caller()
        current = limits.current_budget()
        if current is not None:
            current.marks.append((current.written, current.written + len(text)))
        return text


class _Namespace(Namespace):
    """Jinja's namespace, without names that begin with "_"."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # `self` is a name that a template may use
        values = dict(*args[1:], **kwargs)
        for name in values:
            _check_name(name)
        Namespace.__init__(args[0], values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: Any) -> None:
    if not isinstance(name, str) or name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a namespace cannot hold the name {name!r}")


class _Environment(ImmutableSandboxedEnvironment):
    """Jinja with every check in place."""

    code_generator_class = _Compiler
    intercepted_binops = frozenset({"*", "**", "+", "%"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            # Nothing is computed while compiling.
            optimized=False,
            extensions=[_Generation, jinja2.ext.loopcontrols],
            finalize=_printed,
        )
        self.concat = self.concatenated  # type: ignore[method-assign]
        self.filters = {name: _guarded(name, self.filters[name]) for name in _FILTERS}
        self.filters["tojson"] = _guarded("tojson", _tojson)
        self.filters["format"] = _guarded("format", _format)
        self.filters["sum"] = _guarded("sum", _sum)
        self.globals = {
            "range": _range,
            "dict": _dict,
            "namespace": _Namespace,
            "raise_exception": _raise_exception,
            "strftime_now": _strftime_now,
        }

    def _generate(self, source: nodes.Template, *args: Any, **kwargs: Any) -> str:
        for loop in source.find_all(nodes.For):
            call = nodes.Call(nodes.EnvironmentAttribute("turn"), [], [], None, None)
            loop.body.insert(0, nodes.ExprStmt(call).set_lineno(loop.lineno))
        return super()._generate(source, *args, **kwargs)

    def turn(self) -> None:
        """A turn of a loop."""
        limits.tick()

    def weighed(self, value: Any) -> Any:
        """A list, tuple or dict that a template makes."""
        limits.weigh(value)
        return value

    def concatenated(self, values: Any) -> str:
        """The text of `a ~ b`, and of the inside of macros and blocks."""
        values = list(values)
        limits.weigh(values)
        texts = [str(value) for value in values]
        limits.check_length(sum(map(len, texts)))
        return "".join(texts)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        return limits.allowed(obj, attr) and super().is_safe_attribute(obj, attr, value)

    def getattr(self, obj: Any, attribute: str) -> Any:
        """`obj.attribute`; a name with two underscores in front is refused even where there is none."""
        if attribute.startswith("__"):
            return self.unsafe_undefined(obj, attribute)
        return super().getattr(obj, attribute)

    def unsafe_undefined(self, obj: Any, attribute: str) -> Any:
        """What an attribute that may not be read is: an error where it is private, else undefined."""
        if attribute.startswith("_"):
            raise jinja2.exceptions.SecurityError(f"access to {attribute!r} of {type(obj).__name__!r}")
        return self.undefined(obj=obj, name=attribute)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """Jinja's safe `str.format`, with its result bounded; `format_map` is not there."""
        wrapped = super().wrap_str_format(value)
        if wrapped is None or value.__name__ != "format":
            return None
        safe = wrapped

        def checked(*args: Any, **kwargs: Any) -> str:
            limits.check_format(value.__self__, args, kwargs)
            return str(safe(*args, **kwargs))

        return checked

    def call(__self: _Environment, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        limits.check_call(__obj, args, kwargs)
        result = super().call(__context, __obj, *args, **kwargs)
        if isinstance(result, (str, list, tuple, dict)):
            limits.weigh(result)
        return result

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        limits.check_operation(operator, left, right)
        result = super().call_binop(context, operator, left, right)
        limits.weigh(result)
        return result


def _printed(value: Any) -> Any:
    """What `{{ }}` prints."""
    if isinstance(value, (list, tuple, dict)):
        limits.weigh(value)
    return value


def _guarded(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter whose arguments and result are checked."""
    passed = 1 if hasattr(function, "jinja_pass_arg") else 0

    @wraps(function)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        given = list(args)
        if name in ("join", "sum") and len(given) > passed:
            # A generator has no size before it is run.
            given[passed] = _listed(given[passed])
        limits.check_filter(name, tuple(given[passed:]), kwargs)
        result = function(*given, **kwargs)
        if isinstance(result, (str, list, tuple, dict)):
            limits.weigh(result)
        return result

    return guarded


def _listed(values: Any) -> Any:
    if isinstance(values, (str, list, tuple, Mapping)):
        return values
    found = []
    for value in values:
        found.append(value)
        limits.check_items(len(found))
    return found


def _format(text: Any, *args: Any, **kwargs: Any) -> str:
    """The filter for `%`."""
    values = kwargs or args
    limits.check_operation("%", str(text), values)
    return str(text) % values


def _sum(values: Any, attribute: str | None = None, start: Any = 0) -> Any:
    """The sum of numbers; to add lists like this takes forever."""
    numbers = [value.get(attribute) for value in values] if attribute is not None else list(values)
    if not all(isinstance(number, (int, float)) for number in [*numbers, start]):
        raise ChatError("The chat template sums up values that are no numbers.")
    return sum(numbers, start)


def _range(*args: int) -> range:
    numbers = range(*args)
    # len() fails on the largest ones, so count from the ends.
    if numbers and abs((numbers[-1] - numbers[0]) // numbers.step) >= limits.current_limits().items:
        limits.check_items(limits.current_limits().items + 1)
    return numbers


def _dict(*args: Any, **kwargs: Any) -> dict[Any, Any]:
    return dict(*args, **kwargs)


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """JSON as it is, without the escapes for web pages that Jinja's own filter makes."""
    texts = [indent, *(separators or ())]
    if any(len(text) > 16 if isinstance(text, str) else (text or 0) > 16 for text in texts):
        raise ChatError("The chat template writes JSON with an indent or separators of more than 16 characters.")
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _strftime_now(form: str) -> str:
    """The present time."""
    if not isinstance(form, str) or len(form) > 200 or not _TIME_FORMAT.fullmatch(form):
        raise ChatError(f"The chat template asks for the time as {str(form)[:60]!r}, which is not a plain format.")
    return datetime.now().strftime(form)


def _raise_exception(message: Any) -> None:
    raise _Refused(str(message)[:1000])


@lru_cache(maxsize=1)
def _environment() -> _Environment:
    version = tuple(int(part) for part in re.findall(r"\d+", jinja2.__version__)[:3])
    if version < OLDEST:
        raise ChatError(
            f"Chat templates need jinja2 {'.'.join(map(str, OLDEST))} or newer, because templates can leave the "
            f"sandbox of older ones; here is {jinja2.__version__}. Run: pip install -U jinja2"
        )
    return _Environment()


@lru_cache(maxsize=32)
def compile_template(source: str) -> jinja2.Template:
    """Return a template, ready to run; the same one for the same text."""
    environment, most = _environment(), limits.current_limits().tokens
    for number, _ in enumerate(environment.lex(source)):
        if number >= most:
            raise ChatError(f"The chat template has more than {most:,} words and signs, the most that are allowed.")
    return environment.from_string(source)


def render_template(source: str, values: Mapping[str, Any], bounds: limits.Limits) -> tuple[str, list[tuple[int, int]]]:
    """Render a template.

    Args:
        source: Its text.
        values: Its variables: plain data.
        bounds: What it may use.

    Returns:
        The text, and the places (start, end) of its `{% generation %}` blocks.

    Raises:
        ChatError: The template is no Jinja, refuses the conversation, fails, tries to leave the sandbox, or uses more
            than it may.
    """
    if len(source) > bounds.template:
        raise ChatError(
            f"The chat template has {len(source):,} characters, more than the {bounds.template:,} that are allowed."
        )
    with limits.budget(bounds) as current:
        for value in values.values():
            current.measure(value)
        try:
            pieces = []
            for piece in compile_template(source).generate(dict(values)):
                pieces.append(piece)
                current.written += len(piece)
                limits.check_length(current.written, "an output")
                limits.tick()
            return "".join(pieces), current.marks
        except ChatError:
            raise
        except _Refused as cause:
            raise ChatError(f"The chat template refuses this conversation: {cause}") from cause
        except jinja2.exceptions.SecurityError as cause:
            raise ChatError(f"The chat template tries to do what no template may, and was stopped: {cause}") from cause
        except jinja2.TemplateSyntaxError as cause:
            raise ChatError(f"The chat template is not valid Jinja (line {cause.lineno}): {cause.message}") from cause
        except (RecursionError, MemoryError) as cause:
            raise ChatError(
                "The chat template is nested too deeply, or calls itself forever, and was stopped."
            ) from cause
        except Exception as cause:  # whatever a template does wrong is the template's error
            raise ChatError(f"The chat template fails: {type(cause).__name__}: {cause}") from cause
