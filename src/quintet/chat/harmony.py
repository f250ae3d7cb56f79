"""Harmony, the format of gpt-oss: conversations to tokens. `harmony_parser` is the way back.

A conversation begins with a system message (who the model is, dates, reasoning effort, built-in tools, channels) and a
developer message (the instructions that other formats call the system prompt, and functions as TypeScript types).

Source: the format's public description, github.com/openai/harmony, docs/format.md.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from quintet.chat.base import ChatFormat, check_ending, check_options
from quintet.chat.builtin import BUILTIN_TOOLS, builtin_namespace
from quintet.chat.harmony_parser import CHANNEL, CHANNELS, CONSTRAIN, MESSAGE, START, HarmonyParser
from quintet.chat.messages import Call, Turn, read_messages, short
from quintet.chat.pieces import Piece, Rendered
from quintet.chat.tools import function_tools
from quintet.chat.typescript import namespace, tools_section
from quintet.errors import ChatError, suggest

__all__ = ["EFFORTS", "Harmony", "HarmonyMessage", "developer_text", "message_pieces", "system_text"]

IDENTITY = "You are ChatGPT, a large language model trained by OpenAI."
CUTOFF = "2024-06"
EFFORTS = ("none", "low", "medium", "high")


@dataclass(frozen=True)
class HarmonyMessage:
    """One message as the format has it.

    Args:
        role: "system", "developer", "user", "assistant" or "tool".
        content: Its text.
        name: Of a tool, in place of the role ("functions.get_weather"); of others, behind it.
        channel: "analysis", "commentary" or "final".
        recipient: Whom it is sent to.
        content_type: "json", "code"; with `<|constrain|>` before it where the content must be of that type.
    """

    role: str
    content: str
    name: str | None = None
    channel: str | None = None
    recipient: str | None = None
    content_type: str | None = None


def message_pieces(message: HarmonyMessage, *, end: bool = True) -> list[Piece]:
    """Return the pieces of one message.

    Args:
        message: The message.
        end: Close it, with `<|call|>` when an assistant sends it to somebody, else with `<|end|>`.

    Raises:
        ChatError: A tool's message without the tool's name.
    """
    by_model = message.role == "assistant"
    if message.role == "tool" and not message.name:
        raise ChatError("A tool's message needs the name of the tool: give it 'name', or the 'tool_call_id' of a call.")
    pieces = [Piece(START, special=True)]
    if message.role == "tool":
        pieces.append(Piece(str(message.name)))
    else:
        pieces.append(Piece(message.role))
        if message.name:
            pieces.append(Piece(f":{message.name}"))
    # Everything behind the role is the model's own writing.
    if message.recipient and message.recipient != "all":
        pieces.append(Piece(f" to={message.recipient}", generated=by_model))
    if message.channel:
        pieces += [Piece(CHANNEL, True, by_model), Piece(message.channel, generated=by_model)]
    if message.content_type:
        constrained = message.content_type.startswith(CONSTRAIN)
        kind = message.content_type.removeprefix(CONSTRAIN)
        if constrained:
            pieces += [Piece(" ", generated=by_model), Piece(CONSTRAIN, True, by_model)]
        pieces.append(Piece(kind if constrained else f" {kind}", generated=by_model))
    pieces += [Piece(MESSAGE, True, by_model), Piece(message.content, generated=by_model)]
    if end:
        closing = "<|call|>" if by_model and message.recipient else "<|end|>"
        pieces.append(Piece(closing, special=True, generated=by_model))
    return pieces


def system_text(
    *,
    model_identity: str | None = IDENTITY,
    knowledge_cutoff: str | None = CUTOFF,
    current_date: str | None = None,
    reasoning_effort: str | None = "medium",
    builtin_tools: Iterable[str] = (),
    channels: Sequence[str] = CHANNELS,
    has_functions: bool = False,
) -> str:
    """Return the system message: what the model is, and what it may use.

    Args:
        model_identity, knowledge_cutoff, current_date: Lines at the top; None leaves one out.
        reasoning_effort: "low", "medium", "high"; None leaves the line out.
        builtin_tools: "browser", "python".
        channels: The channels it may write in.
        has_functions: The developer message offers functions.
    """
    top = [model_identity] if model_identity is not None else []
    if knowledge_cutoff is not None:
        top.append(f"Knowledge cutoff: {knowledge_cutoff}")
    if current_date is not None:
        top.append(f"Current date: {current_date}")
    sections = ["\n".join(top)] if top else []
    if reasoning_effort is not None:
        sections.append(f"Reasoning: {reasoning_effort}")
    # In the order of their names, whatever the order they are given in.
    names = sorted(set(builtin_tools))
    if names:
        sections.append(tools_section(map(builtin_namespace, names)))
    if channels:
        line = f"# Valid channels: {', '.join(channels)}. Channel must be included for every message."
        if has_functions:
            line += "\nCalls to these tools must go to the commentary channel: 'functions'."
        sections.append(line)
    return "\n\n".join(sections)


def developer_text(instructions: str | None, tools: Sequence[dict[str, Any]] = (), response_format: str = "") -> str:
    """Return the developer message.

    Args:
        instructions: What other formats call the system prompt; None leaves it out.
        tools: Functions, each with name, description and parameters.
        response_format: Text of the section "# Response Formats", for structured output.
    """
    sections = ["# Instructions", instructions] if instructions is not None else []
    if tools:
        sections.append(tools_section([namespace("functions", tools)]))
    if response_format:
        sections.append(f"# Response Formats\n\n{response_format}")
    return "\n\n".join(sections)


class Harmony(ChatFormat):
    """The format of gpt-oss."""

    name = "harmony"
    stop_tokens = ("<|return|>", "<|call|>")
    options = (
        *("reasoning_effort", "builtin_tools", "current_date", "knowledge_cutoff", "model_identity"),
        *("keep_reasoning", "response_format"),
    )

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

        Messages at the front with the role "system" or "developer" are the developer message. An assistant's message
        becomes one per channel: reasoning (analysis), words before calls (commentary), each call, the answer (final).
        Reasoning is left out of turns that ended with an answer, as the format says; where no prompt is added and the
        conversation ends with an answer (a training example), the last turn keeps its own.

        Args:
            messages, tools, add_generation_prompt, continue_final_message: As for every format.
            **options: `reasoning_effort`: "low", "medium" (the default), "high", or "none": the prompt then ends in an
                opened final channel, so that the model cannot reason. `builtin_tools`: of "browser", "python".
                `current_date`: a text, a date, None for no date; today by default. `knowledge_cutoff`,
                `model_identity`: other values for these lines, None for none. `keep_reasoning`: True keeps all
                reasoning. `response_format`: text of that section.

        Raises:
            ChatError: Messages, tools or options that cannot be used.
        """
        check_options("The harmony format", options, self.options)
        turns = read_messages(messages)
        functions = [_plain_call(each) for each in function_tools(tools)] if tools is not None else []
        prompts = check_ending(add_generation_prompt, continue_final_message, turns[-1].role)
        effort = _effort(options.get("reasoning_effort"))
        start = 0
        while start < len(turns) and turns[start].role in ("system", "developer") and not turns[start].channel:
            start += 1
        instructions = "\n\n".join(turn.content for turn in turns[:start]) if start else None
        system = system_text(
            model_identity=_line(options, "model_identity", IDENTITY),
            knowledge_cutoff=_line(options, "knowledge_cutoff", CUTOFF),
            current_date=_date(options.get("current_date", "today")),
            # The model knows no "none"; the least it knows fits best to an answer at once.
            reasoning_effort="low" if effort == "none" else effort,
            builtin_tools=_builtin(options.get("builtin_tools")),
            has_functions=bool(functions),
        )
        sequence = [HarmonyMessage("system", system)]
        response_format = _line(options, "response_format", "") or ""
        if instructions is not None or functions or response_format:
            text = developer_text(instructions, functions, response_format)
            sequence.append(HarmonyMessage("developer", text))
        sequence += [message for turn in turns[start:] for message in _messages_of(turn)]
        if options.get("keep_reasoning") is not True:
            sequence = _without_old_reasoning(sequence, keep_last=not prompts)
        return _finish(sequence, prompts, continue_final_message, effort)

    def parser(self, tokenizer: Any, prompt: Rendered | None = None, *, tools: Any = None) -> HarmonyParser:
        """Return a parser for the answer; see `ChatFormat.parser`."""
        del tools  # arguments are JSON as they are
        if prompt is not None and prompt.opened:
            return HarmonyParser(tokenizer, prompt.open_pieces)
        return HarmonyParser(tokenizer, role="assistant")


def _finish(sequence: list[HarmonyMessage], prompts: bool, goes_on: bool, effort: str) -> Rendered:
    """Put the messages together, with the end that was asked for."""
    pieces = [piece for message in sequence[:-1] for piece in message_pieces(message)]
    last = message_pieces(sequence[-1], end=not goes_on)
    if not prompts and not goes_on and sequence[-1].role == "assistant" and sequence[-1].channel == "final":
        # Nothing follows: this is where the model should stop.
        last[-1] = Piece("<|return|>", special=True, generated=True)
    opening: list[Piece] = []
    if prompts:
        opening = [Piece(START, special=True), Piece("assistant")]
        if effort == "none":
            opening += [Piece(CHANNEL, special=True), Piece("final"), Piece(MESSAGE, special=True)]
    return Rendered((*pieces, *last, *opening), len(last) if goes_on else len(opening))


def _messages_of(turn: Turn) -> list[HarmonyMessage]:
    """Split one message of the chat API into the messages of the format."""
    if turn.role == "tool":
        if turn.name is None:
            raise ChatError(
                "A tool's message needs the name of the tool: give it 'name', or the 'tool_call_id' of an earlier call."
            )
        name, channel = _full_name(turn.name), turn.channel or "commentary"
        return [HarmonyMessage("tool", turn.content, name, channel, turn.recipient or "assistant", turn.content_type)]
    if turn.role != "assistant":
        role = "developer" if turn.role == "system" and not turn.channel else turn.role
        text = developer_text(turn.content) if role == "developer" else turn.content
        return [HarmonyMessage(role, text, turn.name, turn.channel, turn.recipient, turn.content_type)]
    found = [HarmonyMessage("assistant", turn.reasoning, turn.name, "analysis")] if turn.reasoning else []
    if turn.channel or turn.recipient:
        found.append(
            HarmonyMessage("assistant", turn.content, turn.name, turn.channel, turn.recipient, turn.content_type)
        )
    elif turn.content or not (turn.calls or turn.reasoning):
        channel = "commentary" if turn.calls else "final"
        found.append(HarmonyMessage("assistant", turn.content, turn.name, channel, None, turn.content_type))
    return found + [_call(call, turn.name) for call in turn.calls]


def _call(call: Call, name: str | None) -> HarmonyMessage:
    recipient = _full_name(call.name)
    builtin = not recipient.startswith("functions.")
    # Built-in tools are called in the analysis channel, functions in commentary; python takes code and not JSON.
    kind = "code" if recipient == "python" else f"{CONSTRAIN}json"
    return HarmonyMessage("assistant", call.arguments, name, "analysis" if builtin else "commentary", recipient, kind)


def _full_name(name: str) -> str:
    """The name of a tool with its namespace."""
    first = name.partition(".")[0]
    return name if first in ("functions", *BUILTIN_TOOLS) else f"functions.{name}"


def _without_old_reasoning(sequence: list[HarmonyMessage], keep_last: bool) -> list[HarmonyMessage]:
    """Drop the analysis of every turn that ended in the final channel.

    A turn that is still calling tools keeps its own: the model needs its thoughts until it has answered.
    """
    finals = [place for place, each in enumerate(sequence) if each.role == "assistant" and each.channel == "final"]
    if keep_last and finals and finals[-1] == len(sequence) - 1:
        # Back to the message that the last answer answers.
        finals = [place for place, each in enumerate(sequence) if each.role in ("user", "developer", "system")]
    last = finals[-1] if finals else -1
    return [
        each
        for place, each in enumerate(sequence)
        if not (place < last and each.role == "assistant" and each.channel == "analysis" and not each.recipient)
    ]


def _plain_call(function: dict[str, Any]) -> dict[str, Any]:
    """A function without arguments is written `() => any`, not with an empty object."""
    parameters = function.get("parameters") or {}
    return function if parameters.get("properties") or len(parameters) > 2 else {**function, "parameters": None}


def _effort(value: Any) -> str:
    if value is None:
        return "medium"
    if value not in EFFORTS:
        hint = suggest(str(value), EFFORTS)
        raise ChatError(f"reasoning_effort is {value!r}, but must be one of {list(EFFORTS)}.{hint}")
    return str(value)


def _line(options: dict[str, Any], key: str, default: str) -> str | None:
    value = options.get(key, default)
    if value is not None and not isinstance(value, str):
        raise ChatError(f"{key} must be a text or None, not {short(value)}.")
    return value


def _date(value: Any) -> str | None:
    if value == "today":
        return datetime.date.today().isoformat()
    if isinstance(value, datetime.date):
        return value.strftime("%Y-%m-%d")
    if value is not None and not isinstance(value, str):
        raise ChatError(f"current_date must be a text, a date or None, not {short(value)}.")
    return value


def _builtin(value: Any) -> Iterable[str]:
    if value is None:
        return ()
    names = list(BUILTIN_TOOLS)
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise ChatError(f"builtin_tools must be a list of names out of {names}, not {short(value)}.")
    found = list(value)
    for name in found:
        if name not in names:
            raise ChatError(f"There is no built-in tool {name!r}; there are {names}.{suggest(str(name), names)}")
    return found
