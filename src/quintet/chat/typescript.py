"""Tools in the way gpt-oss was taught them: a namespace of TypeScript functions, from JSON schemas.

The layout, to the last space, is that of github.com/openai/harmony (docs/format.md, and the output of its renderer):
a model reads best what it has learnt on.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

__all__ = ["namespace", "tools_section", "typescript"]


def tools_section(namespaces: Iterable[str]) -> str:
    """Return the "# Tools" section of a system or developer message."""
    return "\n\n".join(["# Tools", *namespaces])


def namespace(name: str, tools: Iterable[Mapping[str, Any]], description: str | None = None) -> str:
    """Return one namespace of tools.

    Args:
        name: "functions", "browser".
        tools: Dicts with `name`, `description` and `parameters` (a JSON schema of an object, or None); without any,
            the description stands alone.
        description: Of the namespace.
    """
    found = list(tools)
    lines = [f"## {name}\n"]
    lines += [f"// {line}" if found else line for line in _lines(description or "")]
    if not found:
        return "\n".join(lines)
    lines.append(f"namespace {name} {{\n")
    for tool in found:
        lines += [f"// {line}" for line in _lines(str(tool.get("description") or ""))]
        schema = tool.get("parameters")
        taken = "" if schema is None else f"_: {typescript(schema)}"
        lines.append(f"type {tool['name']} = ({taken}) => any;\n")
    lines.append(f"}} // namespace {name}")
    return "\n".join(lines)


def typescript(schema: Any, indent: str = "") -> str:
    """Return a JSON schema as a TypeScript type; what cannot be said in one is `any`."""
    if not isinstance(schema, Mapping):
        return "any"
    variants = schema.get("oneOf")
    if isinstance(variants, list):
        lines = (_variant(each, indent, each.get("description"), top=True) for each in _mappings(variants))
        return "".join(f"\n{indent} | {line}" for line in lines)
    kind = schema.get("type")
    if isinstance(kind, list):
        names = ["number" if each == "integer" else each for each in kind if isinstance(each, str)]
        return " | ".join(names) if names else "any"
    if kind == "object":
        return _object(schema, indent)
    if kind == "string":
        options = [f'"{each}"' for each in schema.get("enum") or () if isinstance(each, str)]
        return " | ".join(options) or "string"
    if kind == "array":
        return f"{typescript(schema['items'], indent)}[]" if "items" in schema else "Array<any>"
    return {"number": "number", "integer": "number", "boolean": "boolean"}.get(str(kind), "any")


def _object(schema: Mapping[str, Any], indent: str) -> str:
    description = schema.get("description")
    lines = [f"{indent}// {description}\n"] if isinstance(description, str) else []
    lines.append("{\n")
    properties = schema.get("properties")
    required = schema.get("required") or ()
    for key, value in properties.items() if isinstance(properties, Mapping) else ():
        name = key if key in required else f"{key}?"
        lines.append(_property(name, value if isinstance(value, Mapping) else {}, indent))
    lines.append(f"{indent}}}")
    return "".join(lines)


def _property(name: str, schema: Mapping[str, Any], indent: str) -> str:
    lines = []
    title, description, examples = schema.get("title"), schema.get("description"), schema.get("examples")
    variants = schema.get("oneOf")
    if isinstance(title, str):
        lines.append(f"{indent}// {title}\n{indent}//\n")
    if "oneOf" not in schema and isinstance(description, str):
        lines.append(f"{indent}// {description}\n")
    if isinstance(examples, list) and examples:
        lines.append(f"{indent}// Examples:\n")
        lines += [f'{indent}// - "{each}"\n' for each in examples if isinstance(each, str)]
    if isinstance(variants, list):
        return "".join(lines) + _choice(name, schema, list(_mappings(variants)), indent)
    lines.append(f"{indent}{name}: {_nullable(schema, typescript(schema, indent + '    '))},")
    if "oneOf" not in schema and "default" in schema:
        lines.append(f" // {_default(schema)}")
    return "".join(lines) + "\n"


def _choice(name: str, schema: Mapping[str, Any], variants: list[Mapping[str, Any]], indent: str) -> str:
    """A property that is one of several types, each on a line of its own."""
    lines = []
    description = schema.get("description") if isinstance(schema.get("description"), str) else None
    above = description is not None and not (variants and variants[0].get("description") == description)
    if above:
        lines.append(f"{indent}// {description}\n")
    if "default" in schema:
        lines.append(f"{indent}// {_default(schema)}\n")
    lines.append(f"{indent}{name}:\n")
    for number, variant in enumerate(variants):
        comment = variant.get("description")
        if (number == 0 and above) or comment == description:
            comment = None
        lines.append(f"{indent} | {_variant(variant, indent, comment)}\n")
    return "".join(lines) + f"{indent},\n"


def _variant(schema: Mapping[str, Any], indent: str, comment: Any, top: bool = False) -> str:
    text = _nullable(schema, typescript(schema, f"{indent}   "))
    comments = [comment] if isinstance(comment, str) else []
    if "default" in schema:
        comments.append(_default(schema, top))
    return f"{text} // {' '.join(comments)}" if comments else text


def _nullable(schema: Mapping[str, Any], text: str) -> str:
    return f"{text} | null" if schema.get("nullable") is True and "null" not in text else text


def _default(schema: Mapping[str, Any], top: bool = False) -> str:
    """The comment that names a default: a text in quotation marks, unless it is one of the listed options."""
    value = schema["default"]
    if isinstance(value, str) and not schema.get("enum"):
        return f'default: "{value}"'
    if isinstance(value, str) and not top:
        return f"default: {value}"
    return f"default: {json.dumps(value, ensure_ascii=False, separators=(',', ':'))}"


def _mappings(values: Iterable[Any]) -> Iterable[Mapping[str, Any]]:
    return (value if isinstance(value, Mapping) else {} for value in values)


def _lines(text: str) -> list[str]:
    """Lines that end in a line feed, with a carriage return before it or not; no other character ends one.

    A carriage return at the end of the text has no line feed behind it, and is a character of the last line.
    """
    *lines, last = text.split("\n")
    return [*(line.removesuffix("\r") for line in lines), *([last] if last else [])]
