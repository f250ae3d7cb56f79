"""What every chat format offers: `render` a conversation into pieces, and a `parser` for what the model answers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any

from quintet.chat.pieces import Rendered
from quintet.chat.stream import ChatParser
from quintet.errors import ChatError, suggest

__all__ = ["ChatFormat", "check_ending", "check_options"]


class ChatFormat(ABC):
    """How a family of models talks.

    `name` says which format it is, `native` whether the model was trained on it (a plain transcript is made up),
    `stop_tokens` which tokens end an answer, `stop_strings` which texts do, `options` which keywords its `render` takes
    beside the common ones.
    """

    name: str
    native = True
    stop_tokens: tuple[str, ...] = ()
    stop_strings: tuple[str, ...] = ()
    options: tuple[str, ...] = ()

    @abstractmethod
    def render(
        self,
        messages: Any,
        *,
        tools: Any = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        **options: Any,
    ) -> Rendered:
        """Render a conversation.

        Args:
            messages: See `quintet.chat.read_messages`.
            tools: See `quintet.chat.tool_schemas`.
            add_generation_prompt: End with the beginning of an assistant's message.
            continue_final_message: Leave the last message open; the model goes on writing it.
            **options: Those of the format; see `options`.

        Raises:
            ChatError: Messages, tools or options that cannot be used.
        """

    @abstractmethod
    def parser(self, tokenizer: Any, prompt: Rendered | None = None, *, tools: Any = None) -> ChatParser:
        """Return a parser for the answer.

        Args:
            tokenizer: The tokenizer of the model.
            prompt: What `render` returned; the parser goes on where it ends. None: after a plain generation prompt.
            tools: The tools that were offered; formats that do not write JSON take the types of arguments from them.
        """

    def stop_ids(self, tokenizer: Any) -> list[int]:
        """Return the ids of the tokens that end an answer: give them to `generate` as `eos_token_id`."""
        from quintet.chat.pieces import token_id

        found = [token_id(tokenizer, token) for token in self.stop_tokens]
        return [index for index in found if index is not None]


def check_options(what: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Raise ChatError for an option that a format does not have."""
    known = sorted(known)
    for name in given:
        if name not in known:
            raise ChatError(f"{what} has no option {name!r}; it has {known}.{suggest(name, known)}")


def check_ending(add_generation_prompt: bool, continue_final_message: bool, last_role: str) -> bool:
    """Return whether a generation prompt is to be added; ChatError when the two ways of ending contradict."""
    if continue_final_message and last_role != "assistant":
        raise ChatError(
            f"continue_final_message=True goes on writing the last message, but that is of the role {last_role!r}. "
            "End the conversation with an assistant's message, or use add_generation_prompt=True."
        )
    return add_generation_prompt and not continue_final_message
