"""Tools for a model: JSON schemas, made from Python functions or given and checked."""

from __future__ import annotations

import enum
import inspect
import json
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, Union

from quintet.chat.messages import short
from quintet.errors import ChatError, suggest

__all__ = ["Tool", "check_schema", "function_schema", "function_tools", "tool_schemas"]

Tool = Callable[..., Any] | Mapping[str, Any]

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_TYPES = ("string", "number", "integer", "boolean", "array", "object", "null")
_DEEPEST = 64
_SIMPLE = {int: "integer", float: "number", str: "string", bool: "boolean", type(None): "null"}
_CONTAINERS: dict[Any, str] = {list: "array", tuple: "array", dict: "object"}
_SECTION = re.compile(r"^\s*(Args|Arguments|Parameters|Returns|Raises|Yields|Examples?|Notes?):\s*$")
_CHOICES = re.compile(r"\(choices:\s*(.*?)\)\s*$", re.IGNORECASE)


def tool_schemas(tools: Any) -> list[dict[str, Any]]:
    """Return each tool as `{"type": "function", "function": {...}}`: functions are described, dicts checked.

    Args:
        tools: A list of Python functions (with type hints, and a Google-style docstring that describes each
            argument), or of dicts in the chat API's form. A dict of another `type` is passed on as it is.

    Raises:
        ChatError: Neither; a function that cannot be described; a schema that is none.
    """
    if isinstance(tools, (str, bytes, Mapping)) or not isinstance(tools, Iterable):
        raise ChatError(f"tools must be a list of functions or of dicts, not {short(tools)}.")
    return [_one(tool, f"Tool {number}") for number, tool in enumerate(tools)]


def function_tools(tools: Any) -> list[dict[str, Any]]:
    """Return name, description and parameters of each tool; every one must be a function.

    Raises:
        ChatError: As `tool_schemas`; a tool that is no function; two of one name.
    """
    found = []
    for number, tool in enumerate(tool_schemas(tools)):
        function = tool.get("function", tool if "name" in tool else None)
        if not isinstance(function, dict):
            raise ChatError(f"Tool {number} is of type {tool.get('type')!r}; this chat format knows functions only.")
        found.append(function)
    names = [function["name"] for function in found]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ChatError(f"Two tools have the name {twice!r}; a model could not tell them apart.")
    return found


def _one(tool: Any, where: str) -> dict[str, Any]:
    if inspect.isfunction(tool) or inspect.ismethod(tool):
        return function_schema(tool)
    if not isinstance(tool, Mapping):
        raise ChatError(
            f"{where} must be a function with type hints and a docstring, or a dict with its JSON schema, not "
            f"{short(tool)}."
        )
    try:
        copied: dict[str, Any] = json.loads(json.dumps(tool))
    except (TypeError, ValueError, RecursionError) as cause:
        raise ChatError(f"{where} is not JSON: {cause}.") from cause
    function = copied.get("function", copied)
    if copied.get("type", "function") != "function" and "function" not in copied:
        if not isinstance(copied["type"], str):
            raise ChatError(f"{where}: type must be 'function', not {copied['type']!r}.")
        return copied
    if not isinstance(function, dict):
        raise ChatError(f"{where}: 'function' must be a dict with name, description and parameters, not {function!r}.")
    name = function.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ChatError(
            f"{where}: the name is {name!r}, but must be 1 to 128 letters, digits, '_', '-' and '.'. A tool looks like "
            "{'type': 'function', 'function': {'name': ..., 'description': ..., 'parameters': {...}}}."
        )
    if not isinstance(function.get("description", ""), (str, type(None))):
        raise ChatError(f"{where} ({name}): the description must be a text, not {function['description']!r}.")
    if function.get("parameters") is not None:
        check_schema(function["parameters"], f"{where} ({name}): parameters", top=True)
    return copied


def check_schema(schema: Any, where: str, *, top: bool = False, depth: int = 0) -> None:
    """Check that `schema` is a JSON schema, as far as a chat format reads it.

    Raises:
        ChatError: It is not; the message names the place and what is allowed there.
    """
    if isinstance(schema, bool) and not top:
        return  # "anything" and "nothing"
    if not isinstance(schema, Mapping):
        raise ChatError(f"{where} must be a JSON schema (a dict), not {short(schema)}.")
    if depth > _DEEPEST:
        raise ChatError(f"{where} is nested more than {_DEEPEST} levels deep.")
    kind = schema.get("type")
    if top and kind not in (None, "object"):
        raise ChatError(f"{where}: a tool's parameters must be of the type 'object', not {kind!r}.")
    for each in kind if isinstance(kind, list) else [kind]:
        if each is not None and each not in _TYPES:
            raise ChatError(f"{where}: {each!r} is no JSON type; one of {list(_TYPES)}.{suggest(str(each), _TYPES)}")
    properties = schema.get("properties", {})
    if not isinstance(properties, Mapping):
        raise ChatError(f"{where}: properties must be a dict of schemas, not {short(properties)}.")
    required = schema.get("required", [])
    if not isinstance(required, list) or not all(isinstance(each, str) for each in required):
        raise ChatError(f"{where}: required must be a list of names, not {short(required)}.")
    if "enum" in schema and (not isinstance(schema["enum"], list) or not schema["enum"]):
        raise ChatError(f"{where}: enum must be a list of values, not {short(schema['enum'])}.")
    for key, value in properties.items():
        check_schema(value, f"{where}.{key}", depth=depth + 1)
    if "items" in schema and not isinstance(schema["items"], list):
        check_schema(schema["items"], f"{where}, items", depth=depth + 1)
    for key in ("oneOf", "anyOf", "allOf"):
        if key in schema and not isinstance(schema[key], list):
            raise ChatError(f"{where}: {key} must be a list of schemas, not {short(schema[key])}.")
        for number, value in enumerate(schema.get(key, ())):
            check_schema(value, f"{where}, {key} {number}", depth=depth + 1)


def function_schema(function: Callable[..., Any]) -> dict[str, Any]:
    """Describe a Python function as a tool.

    Args:
        function: Every argument needs a type hint and a line under "Args:" of the docstring (Google style), which may
            end with `(choices: ["a", "b"])`. `self` and `cls` are left out.

    Returns:
        `{"type": "function", "function": {"name", "description", "parameters", "return"}}`; `return` only where the
        function says what it returns.

    Raises:
        ChatError: No docstring, an argument without hint or description, or a hint that no JSON schema can express.
    """
    name = getattr(function, "__name__", "operation")
    text = inspect.getdoc(function)
    if not text:
        raise ChatError(f"The tool {name} has no docstring; a model could not know what it does. Write one.")
    description, described, returned = _docstring(text)
    try:
        hints = typing.get_type_hints(function)
    except (NameError, TypeError) as cause:
        raise ChatError(f"The type hints of the tool {name} cannot be read: {cause}.") from cause
    properties: dict[str, Any] = {}
    required = []
    for position, (key, parameter) in enumerate(inspect.signature(function).parameters.items()):
        if position == 0 and key in ("self", "cls") and key not in hints:
            continue
        if key not in hints:
            raise ChatError(f"The argument {key!r} of the tool {name} has no type hint. Add one: {key}: str.")
        if key not in described:
            raise ChatError(f"The argument {key!r} of the tool {name} is not described under 'Args:' of its docstring.")
        properties[key] = _described(_hint(hints[key], f"{name}({key})"), described[key], f"{name}({key})")
        if parameter.default is inspect.Parameter.empty:
            required.append(key)
    parameters: dict[str, Any] = {"type": "object", "properties": properties}
    if required:
        parameters["required"] = required
    schema: dict[str, Any] = {"name": name, "description": description, "parameters": parameters}
    if "return" in hints:
        try:
            schema["return"] = _hint(hints["return"], name)
        except ChatError:
            pass  # the model never writes what a tool returns
        else:
            if returned is not None:
                schema["return"]["description"] = returned
    return {"type": "function", "function": schema}


def _described(schema: dict[str, Any], text: str, where: str) -> dict[str, Any]:
    choices = _CHOICES.search(text)
    if choices:
        try:
            values = json.loads(choices.group(1))
        except ValueError as cause:
            raise ChatError(f"{where}: the choices {choices.group(1)!r} are not a JSON list: {cause}.") from cause
        schema["enum"] = [value.strip() if isinstance(value, str) else value for value in values]
        text = text[: choices.start()].strip()
    schema["description"] = text
    return schema


def _hint(hint: Any, where: str) -> dict[str, Any]:
    """Return the schema of a type hint."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is None:
        if hint is Any:
            return {}
        if hint in _SIMPLE or hint in _CONTAINERS:
            return {"type": _SIMPLE.get(hint) or _CONTAINERS[hint]}
        if isinstance(hint, type) and issubclass(hint, enum.Enum) and len(hint):
            return _options([member.value for member in hint], where)
    elif origin is Union or origin is types.UnionType:
        return _union(args, where)
    elif origin is Literal:
        return _options(list(args), where)
    elif origin is list:
        return {"type": "array", "items": _hint(args[0], where)}
    elif origin is tuple and len(args) > 1 and ... not in args:
        return {"type": "array", "prefixItems": [_hint(each, where) for each in args]}
    elif origin is dict:
        return {"type": "object", "additionalProperties": _hint(args[1], where)}
    raise ChatError(
        f"{where}: the type hint {hint!r} has no JSON schema. Use int, float, str, bool, None, Any, list, dict, tuple, "
        "Literal, an Enum or a union of them, or give the tool as a dict with its JSON schema."
    )


def _union(hints: tuple[Any, ...], where: str) -> dict[str, Any]:
    schemas = [_hint(each, where) for each in hints if each is not type(None)]
    if len(schemas) == 1:
        schema = schemas[0]
    elif all(each.keys() == {"type"} and isinstance(each["type"], str) for each in schemas):
        names = sorted({each["type"] for each in schemas})
        schema = {"type": names[0] if len(names) == 1 else names}
    else:
        schema = {"anyOf": schemas}
    if type(None) in hints:
        schema["nullable"] = True
    return schema


def _options(values: list[Any], where: str) -> dict[str, Any]:
    if any(type(value) not in _SIMPLE for value in values):
        raise ChatError(f"{where}: the options {values} must be numbers, texts, booleans or None.")
    kinds = list(dict.fromkeys(_SIMPLE[type(value)] for value in values))
    return {"type": kinds[0] if len(kinds) == 1 else kinds, "enum": values}


def _docstring(text: str) -> tuple[str, dict[str, str], str | None]:
    """Return description, arguments and return value of a Google-style docstring."""
    sections: dict[str, list[str]] = {"": []}
    current = ""
    for line in text.strip().splitlines():
        header = _SECTION.match(line)
        if header:
            current = {"Arguments": "Args", "Parameters": "Args"}.get(header.group(1), header.group(1))
            sections.setdefault(current, [])
        else:
            sections[current].append(line)
    described: dict[str, str] = {}
    depth = key = None
    for line in filter(str.strip, sections.get("Args", [])):
        inset = len(line) - len(line.lstrip())
        found = re.match(r"\s*\*{0,2}(\w+)\s*(?:\([^)]*\))?:\s*(.*)", line)
        if found and (depth is None or inset <= depth):
            depth, key = inset, found.group(1)
            described[key] = found.group(2).strip()
        elif key is not None:
            described[key] = f"{described[key]} {line.strip()}".strip()
    returned = "\n".join(sections["Returns"]).strip() if "Returns" in sections else None
    return "\n".join(sections[""]).strip(), described, returned
