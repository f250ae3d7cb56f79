"""The format of Seed-OSS: conversations to tokens. `seed_parser` is the way back.

It gives what the published chat template gives. The instructions in it are data of the format, which the model was
trained with, and stand here to the letter.

Source: the chat template of ByteDance-Seed/Seed-OSS-36B-Instruct (Apache 2.0).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from quintet.chat.base import ChatFormat, check_ending, check_options
from quintet.chat.messages import Call, Turn, read_messages, short
from quintet.chat.pieces import Piece, Rendered, joined
from quintet.chat.seed_parser import (
    BOS,
    END_THINK,
    END_TOOL,
    EOS,
    REFLECT,
    SEED_TOKENS,
    THINK,
    TOOL,
    SeedParser,
)
from quintet.chat.tools import function_tools, tool_schemas
from quintet.errors import ChatError

__all__ = ["SeedOss", "reflection_interval"]

_TAG = re.compile("|".join(map(re.escape, SEED_TOKENS)))
_DEFAULT_SYSTEM = (
    "You are Doubao, a helpful AI assistant. You may call one or more functions to assist with the user query."
)
_TOOL_LIST = (
    "\nTool List:\nYou are authorized to use the following tools (described in JSON Schema format). Before performing "
    "any task, you must decide how to call them based on the descriptions and parameters of these tools.\n"
)
# "Call tools in the following format:"
_TOOL_FORMAT = (
    "\n\u5de5\u5177\u8c03\u7528\u8bf7\u9075\u5faa\u5982\u4e0b\u683c\u5f0f:\n"
    "<seed:tool_call>\n<function=example_function_name>\n<parameter=example_parameter_1>value_1</parameter>\n"
    "<parameter=example_parameter_2>This is the value for the second parameter\nthat can span\nmultiple lines"
    "</parameter>\n</function>\n</seed:tool_call>\n"
)
_REQUIRED, _OPTIONAL = "[\u5fc5\u586b]", "[\u9009\u586b]"
_NO_THINKING = (
    "\nYou are an intelligent assistant that can answer questions in one step without the need for reasoning and "
    "thinking, that is, your thinking budget is 0. Next, please skip the thinking process and directly start answering "
    "the user's questions.\n"
)
_BUDGET = (
    "\nYou are an intelligent assistant with reflective ability. In the process of thinking and reasoning, you need to "
    "strictly follow the thinking budget, which is {0}. That is, you need to complete your thinking within {0} tokens "
    "and start answering the user's questions. You will reflect on your thinking process every {1} tokens, stating how "
    "many tokens have been used and how many are left.\n"
)
# Up to which budget the model reflects how often.
_INTERVALS = ((0, 0), (512, 128), (1024, 256), (2048, 512), (4096, 512), (8192, 1024), (16384, 1024))
_PYTHON_TYPES = {"string": "str", "number": "int", "integer": "int", "boolean": "bool", "array": "list"}


def reflection_interval(thinking_budget: int) -> int:
    """Return after how many tokens of thinking the model is told to look at its budget."""
    return next((interval for most, interval in _INTERVALS if thinking_budget <= most), _INTERVALS[-1][1])


class SeedOss(ChatFormat):
    """The format of Seed-OSS."""

    name = "seed_oss"
    stop_tokens = (EOS,)
    options = ("thinking_budget", "reasoning_effort", "json_tools")

    def render(
        self,
        messages: Any,
        *,
        tools: Any = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        **options: Any,
    ) -> Rendered:
        """Render a conversation; see `ChatFormat.render`.

        Args:
            messages, tools, add_generation_prompt, continue_final_message: As for every format. "developer" is
                written as "system".
            **options: `thinking_budget`: how many tokens the model may think; -1 or None for as many as it likes, 0 for
                none (the prompt then opens the thoughts with a note, and the model closes both). The model was trained
                on multiples of 512. The text only asks for it; to enforce it is the sampler's part.
                `reasoning_effort`: "none" is a budget of 0; "low", "medium" and "high" are 512, 2048 and -1, where no
                budget is given. `json_tools`: describe tools as JSON schemas rather than as Python functions.

        Raises:
            ChatError: Messages, tools or options that cannot be used.
        """
        check_options("The Seed-OSS format", options, self.options)
        turns = read_messages(messages)
        prompts = check_ending(add_generation_prompt, continue_final_message, turns[-1].role)
        budget = _budget(options)
        schemas = tool_schemas(tools) if tools is not None else []
        functions = function_tools(tools) if schemas else []
        pieces: list[Piece] = []
        system = turns[0].content if turns[0].role in ("system", "developer") else None
        if system is not None or functions:
            described = _json_tools(schemas) if options.get("json_tools") else "".join(map(_python, functions))
            pieces += [Piece(BOS, True), Piece("system\n" + (_DEFAULT_SYSTEM if system is None else system))]
            if functions:
                pieces += [Piece(described), *_tagged(_TOOL_FORMAT)]
            pieces.append(Piece(EOS, True))
        if budget >= 0:
            note = _BUDGET.format(budget, reflection_interval(budget)) if budget else _NO_THINKING
            pieces += [Piece(BOS, True), Piece("system" + note), Piece(EOS, True)]
        rest = turns[1:] if system is not None else turns
        last: list[Piece] = []
        for turn in rest:
            last = _turn_pieces(turn)
            pieces += last
        if continue_final_message:
            del pieces[-1]
            return Rendered(joined(pieces), len(joined(last[:-1])))
        opening: list[Piece] = []
        if prompts:
            opening = [Piece(BOS, True), Piece("assistant\n")]
            if budget == 0:
                opening += [Piece(THINK, True), Piece(REFLECT, True)]
        return Rendered(joined(pieces) + tuple(opening), len(opening))

    def parser(self, tokenizer: Any, prompt: Rendered | None = None, *, tools: Any = None) -> SeedParser:
        """Return a parser for the answer; see `ChatFormat.parser`."""
        functions = {each["name"]: each for each in function_tools(tools)} if tools is not None else {}
        return SeedParser(tokenizer, prompt.open_pieces if prompt is not None else (), functions)


def _turn_pieces(turn: Turn) -> list[Piece]:
    if turn.role != "assistant":
        role = "system" if turn.role == "developer" else turn.role
        return [Piece(BOS, True), Piece(f"{role}\n{turn.content}"), Piece(EOS, True)]
    pieces = [Piece(BOS, True), Piece("assistant\n")]
    reasoning, content = turn.reasoning.strip(), turn.content.strip()
    own: list[Piece] = []
    if reasoning:
        own += [Piece(THINK, True), Piece(reasoning), Piece(END_THINK, True)]
    if content:
        own.append(Piece("\n" + content if own else content))
    for number, call in enumerate(turn.calls):
        # A blank line after words, one line end after anything else, nothing at the start of the message.
        gap = "\n\n" if content and not number else "\n" if own else ""
        own += [Piece(gap), Piece(TOOL, True), Piece(_call_text(call)), Piece(END_TOOL, True)]
    own.append(Piece(EOS, True))
    return pieces + [Piece(piece.text, piece.special, True) for piece in own if piece.text]


def _call_text(call: Call) -> str:
    arguments = (
        f"<parameter={key}>{value if isinstance(value, str) else value}</parameter>\n"
        for key, value in call.values().items()
    )
    return f"\n<function={call.name}>\n{''.join(arguments)}</function>\n"


def _python(tool: Mapping[str, Any]) -> str:
    """Describe a tool as the head of a Python function."""
    parameters = tool.get("parameters") or {}
    properties = parameters.get("properties") or {}
    required = parameters.get("required") or ()
    head = ",".join(f"{key}: {_python_type(value)}" for key, value in properties.items())
    lines = [
        f'\n\nFunction:\ndef {tool["name"]}({head}):\n    """\n    {str(tool.get("description") or "").strip()}\n\n'
    ]
    if properties:
        lines.append("    Args:")
        for key, value in properties.items():
            need = _REQUIRED if key in required else _OPTIONAL
            lines.append(f"\n    - {key} ({_python_type(value)}) {need}: {_description(value)}")
        lines.append("\n")
    returned = (tool.get("returns") or {}).get("properties") if isinstance(tool.get("returns"), Mapping) else None
    if isinstance(returned, Mapping) and returned:
        lines.append("\n    Returns:")
        lines += [f"\n    - {key} ({_python_type(value)}): {_description(value)}" for key, value in returned.items()]
        lines.append("\n")
    else:
        lines.append("\n")
    lines.append('    """')
    return "".join(lines)


def _python_type(schema: Any) -> str:
    kind = schema.get("type") if isinstance(schema, Mapping) else None
    return _PYTHON_TYPES.get(kind, "Any") if isinstance(kind, str) else "Any"


def _description(schema: Any) -> str:
    return str(schema.get("description") or "") if isinstance(schema, Mapping) else ""


def _json_tools(schemas: Sequence[Mapping[str, Any]]) -> str:
    return _TOOL_LIST + json.dumps(schemas, ensure_ascii=False)


def _tagged(text: str) -> list[Piece]:
    """Split a text of the format itself into its tags, which are tokens, and the rest."""
    pieces, place = [], 0
    for found in _TAG.finditer(text):
        pieces += [Piece(text[place : found.start()]), Piece(found.group(), True)]
        place = found.end()
    return [*pieces, Piece(text[place:])]


def _budget(options: Mapping[str, Any]) -> int:
    """Return the thinking budget; -1 for none."""
    efforts = {None: -1, "none": 0, "low": 512, "medium": 2048, "high": -1}
    effort, budget = options.get("reasoning_effort"), options.get("thinking_budget")
    if effort is not None and (not isinstance(effort, str) or effort not in efforts):
        raise ChatError(f"reasoning_effort is {short(effort)}, but must be one of {[key for key in efforts if key]}.")
    if budget is None:
        return efforts[effort]
    if isinstance(budget, bool) or not isinstance(budget, int) or budget < -1:
        raise ChatError(
            f"thinking_budget is {short(budget)}, but must be a number of tokens, 0 for none or -1 for any."
        )
    return budget
