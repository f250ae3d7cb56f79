"""The two tools that gpt-oss knows from its training, in the words it was trained with.

The texts are data of the format, to be given to the letter: they are those of github.com/openai/harmony,
docs/format.md, "Built-in tools".
"""

from __future__ import annotations

from typing import Any

from quintet.chat.typescript import namespace

__all__ = ["BUILTIN_TOOLS", "builtin_namespace"]

_NUMBER = {"type": "number", "default": -1}
_BROWSER = (
    "Tool for browsing.\n"
    "The `cursor` appears in brackets before each browsing display: `[{cursor}]`.\n"
    "Cite information from the tool using the following format:\n"
    "`【{cursor}†L{line_start}(-L{line_end})?】`, for example: `【6†L9-L11】` or `【8†L3】`.\n"
    "Do not quote more than 10 words directly from the tool output.\n"
    "sources=web (default: web)"
)
_SEARCH: dict[str, Any] = {
    "name": "search",
    "description": "Searches for information related to `query` and displays `topn` results.",
    "parameters": {
        "type": "object",
        "properties": {
            "query": {"type": "string"},
            "topn": {"type": "number", "default": 10},
            "source": {"type": "string"},
        },
        "required": ["query"],
    },
}
_OPEN: dict[str, Any] = {
    "name": "open",
    "description": (
        "Opens the link `id` from the page indicated by `cursor` starting at line number `loc`, showing `num_lines` "
        "lines.\n"
        "Valid link ids are displayed with the formatting: `【{id}†.*】`.\n"
        "If `cursor` is not provided, the most recent page is implied.\n"
        "If `id` is a string, it is treated as a fully qualified URL associated with `source`.\n"
        "If `loc` is not provided, the viewport will be positioned at the beginning of the document or centered on the "
        "most relevant passage, if available.\n"
        "Use this function without `id` to scroll to a new location of an opened page."
    ),
    "parameters": {
        "type": "object",
        "properties": {
            "id": {"type": ["number", "string"], "default": -1},
            "cursor": _NUMBER,
            "loc": _NUMBER,
            "num_lines": _NUMBER,
            "view_source": {"type": "boolean", "default": False},
            "source": {"type": "string"},
        },
    },
}
_FIND: dict[str, Any] = {
    "name": "find",
    "description": "Finds exact matches of `pattern` in the current page, or the page given by `cursor`.",
    "parameters": {
        "type": "object",
        "properties": {"pattern": {"type": "string"}, "cursor": _NUMBER},
        "required": ["pattern"],
    },
}
_PYTHON = (
    "Use this tool to execute Python code in your chain of thought. The code will not be shown to the user. This tool "
    "should be used for internal reasoning, but not for code that is intended to be visible to the user (e.g. when "
    "creating plots, tables, or files).\n\n"
    "When you send a message containing Python code to python, it will be executed in a stateful Jupyter notebook "
    "environment. python will respond with the output of the execution or time out after 120.0 seconds. The drive at "
    "'/mnt/data' can be used to save and persist user files. Internet access for this session is UNKNOWN. Depends on "
    "the cluster."
)
# name -> (description, functions); the functions of a namespace are called "browser.search", python just "python".
BUILTIN_TOOLS: dict[str, tuple[str, tuple[dict[str, Any], ...]]] = {
    "browser": (_BROWSER, (_SEARCH, _OPEN, _FIND)),
    "python": (_PYTHON, ()),
}


def builtin_namespace(name: str) -> str:
    """Return the section of the system message that offers a built-in tool; `name` is a key of `BUILTIN_TOOLS`."""
    description, tools = BUILTIN_TOOLS[name]
    return namespace(name, tools, description)
