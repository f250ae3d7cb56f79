"""`apply_chat_template`: conversations through a tokenizer's own Jinja template.

The template is the checkpoint's, or one that the programmer passes; it runs in `sandbox`. A server must never take one
from a request, nor let a request set the variables of one.
"""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any

from quintet.chat.limits import Limits
from quintet.chat.messages import short
from quintet.chat.tools import tool_schemas
from quintet.errors import ChatError, suggest

__all__ = ["Limits", "apply_chat_template", "assistant_masks", "choose_template", "plain_data"]

logger = logging.getLogger("quintet.chat")

# Names of a message's reasoning: templates read one of them, people pass another.
_REASONING = ("reasoning_content", "thinking", "reasoning")
_GENERATION = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")
# Put behind the text that is to be continued, to find its end in the output. The space shows whether the template
# keeps the white space at the end of a message.
_TAG = "\ue000CONTINUE\ue001 "
_DEEPEST = 100


def choose_template(templates: Any, asked: str | None = None, has_tools: bool = False) -> str:
    """Return the text of the template to use.

    Args:
        templates: A tokenizer's `chat_template`: a text, a dict of several by name, or None.
        asked: A template, or the name of one of several.
        has_tools: Tools are given: of several templates "tool_use" is taken, if there.

    Raises:
        ChatError: There is none, or several and none called "default".
    """
    if asked is not None and not isinstance(asked, str):
        raise ChatError(f"chat_template must be a Jinja template or the name of one, not {short(asked)}.")
    if isinstance(templates, Mapping):
        if asked is not None:
            if asked not in templates and re.fullmatch(r"\w{1,40}", asked):
                names = sorted(templates)
                raise ChatError(f"There is no chat template {asked!r}; there are {names}.{suggest(asked, names)}")
            return str(templates.get(asked, asked))
        if has_tools and "tool_use" in templates:
            return str(templates["tool_use"])
        if "default" in templates:
            return str(templates["default"])
        raise ChatError(
            f"This tokenizer has several chat templates and none is called 'default'. Pass chat_template= one of "
            f"{sorted(templates)}."
        )
    if asked is not None:
        return asked
    if templates is None:
        raise ChatError(
            "This tokenizer has no chat template. Set tokenizer.chat_template, pass chat_template=, or use "
            "quintet.chat.chat_format(tokenizer), which also knows families without a template."
        )
    return str(templates)


def apply_chat_template(
    conversations: Sequence[Any],
    template: str,
    *,
    tools: Any = None,
    documents: Any = None,
    add_generation_prompt: bool = False,
    continue_final_message: bool | str = False,
    want_marks: bool = False,
    variables: Mapping[str, Any] | None = None,
    limits: Limits | None = None,
) -> tuple[list[str], list[list[tuple[int, int]]]]:
    """Render conversations with a template.

    Args:
        conversations: Lists of messages.
        template: The text of a Jinja template.
        tools, documents: What the template may describe: functions or schemas; dicts with "title" and "text".
        add_generation_prompt: The template ends with the beginning of an assistant's message.
        continue_final_message: Cut the output behind the last message's content, or the key of what to continue.
        want_marks: The places of the assistant's text are wanted; warns when the template does not mark them.
        variables: Further variables.
        limits: What a rendering may use.

    Returns:
        The texts, and for each the places (start, end) of what `{% generation %}` marks.

    Raises:
        ChatError: Messages, tools, documents or a template that cannot be used.
    """
    from quintet.chat.sandbox import render_template

    if continue_final_message and add_generation_prompt:
        raise ChatError(
            "continue_final_message and add_generation_prompt exclude each other: one goes on with the last message, "
            "the other begins a new one. Use one of them."
        )
    if want_marks and not _GENERATION.search(template):
        logger.warning("The chat template has no {% generation %} block, so the assistant mask is all 0.")
    schemas = None if tools is None else tool_schemas(tools)
    values = {
        **plain_data(dict(variables or {}), "A variable of the template"),
        "tools": plain_data(schemas, "tools"),
        "documents": _documents(documents),
        "add_generation_prompt": bool(add_generation_prompt),
    }
    texts, marks = [], []
    for conversation in conversations:
        messages = _messages(conversation)
        ending = _tag_last(messages, continue_final_message, template) if continue_final_message else None
        text, found = render_template(template, {**values, "messages": messages}, limits or Limits())
        texts.append(text if ending is None else _cut(text, ending))
        marks.append(found)
    return texts, marks


def _messages(conversation: Any) -> list[dict[str, Any]]:
    """Check a conversation and copy it as plain data.

    Any role is let through here, because only the template knows which ones it has.
    """
    conversation = getattr(conversation, "messages", conversation)
    if isinstance(conversation, (str, bytes, Mapping)) or not isinstance(conversation, Sequence):
        raise ChatError(
            f"A conversation must be a list of messages such as {{'role': 'user', 'content': 'Hello'}}, not "
            f"{short(conversation)} of type {type(conversation).__name__}."
        )
    if not conversation:
        raise ChatError("The conversation is empty. Give at least one message: [{'role': 'user', 'content': 'Hello'}].")
    messages = []
    for number, message in enumerate(conversation):
        data = plain_data(message, f"Message {number}")
        if not isinstance(data, dict):
            raise ChatError(f"Message {number} must be a dict with 'role' and 'content', not {short(message)}.")
        # Templates fail on None, or print it, where they would handle a missing key.
        data = {key: value for key, value in data.items() if value is not None}
        if not isinstance(data.get("role"), str):
            raise ChatError(
                f"Message {number} has the role {data.get('role')!r}, but it must be a text such as 'user'."
            )
        reasoning = next((data[key] for key in _REASONING if key in data), None)
        if reasoning is not None:
            data = {"thinking": reasoning, **data, "reasoning_content": reasoning}
        messages.append(data)
    return messages


def _documents(documents: Any) -> Any:
    if documents is None:
        return None
    if isinstance(documents, (str, bytes, Mapping)) or not isinstance(documents, Sequence):
        raise ChatError(f"documents must be a list of dicts with 'title' and 'text', not {short(documents)}.")
    for number, document in enumerate(documents):
        if not isinstance(document, Mapping):
            raise ChatError(f"Document {number} must be a dict with 'title' and 'text', not {short(document)}.")
    return plain_data(list(documents), "documents")


def plain_data(value: Any, where: str, depth: int = 0) -> Any:
    """Return a copy of `value` made of texts, numbers, booleans, None, lists and dicts: nothing else goes in.

    Raises:
        ChatError: Something else is in it, or it is nested too deeply.
    """
    if depth > _DEEPEST:
        raise ChatError(f"{where} is nested more than {_DEEPEST} levels deep.")
    if value is None or isinstance(value, bool):
        return value
    # A subclass, such as an Enum, may have attributes that a template should not reach.
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int.__int__(value)
    if isinstance(value, float):
        return float.__float__(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {each.name: getattr(value, each.name) for each in dataclasses.fields(value)}
    elif callable(getattr(value, "model_dump", None)) and not isinstance(value, type):
        value = value.model_dump()
    if isinstance(value, Mapping):
        return {plain_data(key, where, depth + 1): plain_data(each, where, depth + 1) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain_data(each, where, depth + 1) for each in value]
    hint = " Decode it first: value.decode('utf-8')." if isinstance(value, (bytes, bytearray)) else ""
    raise ChatError(
        f"{where} holds {short(value)} of type {type(value).__name__}; a chat template takes texts, numbers, lists and "
        f"dicts only.{hint}"
    )


def _tag_last(messages: list[dict[str, Any]], key: bool | str, template: str) -> str:
    """Put the tag behind the last message's text and return that text."""
    name = key if isinstance(key, str) else "content"
    last = messages[-1]
    if last.get(name) is None:
        raise ChatError(f"continue_final_message is set, but the last message has no {name!r} to go on with.")
    names = [each for each in _REASONING if last.get(each) == last[name]] if name in _REASONING else [name]
    if not any(each in template for each in names):
        raise ChatError(f"continue_final_message is {name!r}, but the chat template never reads that of a message.")
    if isinstance(last[name], list):
        part = next((each for each in reversed(last[name]) if isinstance(each, dict) and "text" in each), None)
        if part is None:
            raise ChatError("continue_final_message is set, but the last message has no text to go on with.")
        text = part["text"]
        part["text"] = f"{text}{_TAG}"
    else:
        text = last[name]
        for each in names:
            last[each] = f"{text}{_TAG}"
    return str(text)


def _cut(rendered: str, text: str) -> str:
    """Cut the output at the tag."""
    place = rendered.rfind(_TAG.strip())
    if place < 0 or text.strip() not in rendered:
        raise ChatError(
            "continue_final_message is set, but the chat template does not print the last message, or not all of it: "
            "it cannot be continued."
        )
    kept = rendered[:place]
    return kept if rendered.startswith(_TAG, place) else kept.rstrip()


def assistant_masks(encoding: Any, marks: Sequence[Sequence[tuple[int, int]]], rows: Sequence[Sequence[int]]) -> Any:
    """Return for each row of ids a list with 1 where the assistant wrote the token.

    Args:
        encoding: What the tokenizer returned, with `char_to_token`.
        marks: For each text the places (start, end) of what the assistant wrote.
        rows: The ids (rows, tokens).
    """
    masks = []
    for number, row in enumerate(rows):
        mask = [0] * len(row)
        for start, end in marks[number]:
            first = encoding.char_to_token(number, start) if end > start else None
            if first is None:
                continue  # an empty block, or one that truncation cut off
            last = encoding.char_to_token(number, end - 1)
            stop = len(row) if last is None else last + 1
            mask[first:stop] = [1] * (stop - first)
        masks.append(mask)
    return masks
