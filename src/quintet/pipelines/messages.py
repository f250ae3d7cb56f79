"""Chats as inputs of a pipeline: what is one, and how an answer is put into it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from quintet.chat import ChatFormat, Rendered, chat_format, collect
from quintet.errors import ConfigError, InputError

__all__ = [
    "Asked",
    "answered",
    "ask",
    "chat_or_stream",
    "continues",
    "is_chat",
    "is_message",
    "named_format",
    "templated",
]


def is_message(value: Any) -> bool:
    """Whether `value` is one message of a chat."""
    return isinstance(value, Mapping) and "role" in value and "content" in value


def is_chat(value: Any) -> bool:
    """Whether `value` is a list of messages."""
    return isinstance(value, (list, tuple)) and bool(value) and all(map(is_message, value))


def continues(chat: Any, asked: bool | None) -> bool:
    """Whether a chat's last message is to be continued: as asked, else when it is the assistant's."""
    return chat[-1]["role"] == "assistant" if asked is None else bool(asked)


def answered(chat: Any, answer: Mapping[str, Any], asked: bool | None) -> list[Any]:
    """The chat with the answer: in its last message, or as a message of its own."""
    if not continues(chat, asked):
        return [*chat, dict(answer)]
    last = chat[-1]
    more = {key: value for key, value in answer.items() if key not in ("role", "content")}
    return [*chat[:-1], {"role": last["role"], "content": last["content"] + answer["content"], **more}]


@dataclass(frozen=True)
class Asked:
    """A chat as a format wrote it: the same format reads the answer.

    Args:
        form: The format.
        prompt: What it made of the chat.
        tools: The tools that were offered.
        stop_ids: Ids that end an answer.
    """

    form: ChatFormat
    prompt: Rendered
    tools: Any
    stop_ids: tuple[int, ...]

    def answer(self, tokenizer: Any, ids: Sequence[int]) -> dict[str, Any]:
        """Return the message in the tokens that the model wrote: content, reasoning and tool calls apart."""
        parser = self.form.parser(tokenizer, self.prompt, tools=self.tools)
        events = [event for index in ids for event in parser.feed(index)]
        return collect([*events, *parser.end()])


def ask(
    form: ChatFormat, tokenizer: Any, chat: Any, goes_on: bool, tools: Any, documents: Any, options: Mapping[str, Any]
) -> Asked:
    """Write a chat in a format.

    Args:
        form: The format.
        tokenizer: The tokenizer of the model.
        chat: A list of messages.
        goes_on: The model is to go on with the last message.
        tools: The tools that are offered.
        documents: For templates only.
        options: Keywords of the format's `render`.

    Raises:
        InputError: `documents` are given.
        ChatError: The format cannot write this chat, or has no such option.
    """
    if documents is not None:
        raise InputError(
            f"documents are for chat templates that read them, and this chat is written in the format {form.name!r}. "
            "Put them into a message."
        )
    options = {"add_generation_prompt": not goes_on, "continue_final_message": goes_on, **options}
    return Asked(form, form.render(list(chat), tools=tools, **options), tools, tuple(form.stop_ids(tokenizer)))


def named_format(given: Any, tokenizer: Any) -> ChatFormat | None:
    """Return the chat format that somebody asked for; None for None.

    Raises:
        ChatError: There is none of that name.
        ConfigError: It is neither a name nor a format.
    """
    if given is None or isinstance(given, ChatFormat):
        return given
    if not isinstance(given, str):
        raise ConfigError(
            f"chat_format is of type {type(given).__name__}, but must be the name of a chat format such as "
            "'transcript', or a ChatFormat."
        )
    return chat_format(given, tokenizer)


def templated(
    tokenizer: Any, chat: Any, goes_on: bool, tools: Any, documents: Any, encoding: Mapping[str, Any]
) -> Mapping[str, Any]:
    """Write a chat with the tokenizer's own template, and encode it.

    Args:
        tokenizer: The tokenizer.
        chat: A list of messages.
        goes_on: The model is to go on with the last message.
        tools, documents: What the template may describe.
        encoding: Options of the tokenizer, and variables of the template.
    """
    options = dict(encoding)
    if "padding_side" in options:
        options["tokenizer_kwargs"] = {"padding_side": options.pop("padding_side")}
    encoded: Mapping[str, Any] = tokenizer.apply_chat_template(
        list(chat),
        tools=tools,
        documents=documents,
        add_generation_prompt=not goes_on,
        continue_final_message=goes_on,
        tokenize=True,
        return_dict=True,
        **options,
    )
    return encoded


def chat_or_stream(stream: Any) -> Any:
    """Read a generator's first item: messages are one chat; anything else stays a stream."""
    for first in stream:
        if is_message(first):
            return [first, *stream]

        def again(first: Any = first) -> Any:
            yield first
            yield from stream

        return again()
    return iter(())
