"""The chat template half of the call API: conversations in, text or ids out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from quintet.chat.template import apply_chat_template, assistant_masks, choose_template
from quintet.errors import ChatError
from quintet.tokenizers.encoding import BatchEncoding, to_python

__all__ = ["ChatTemplates", "named_templates"]


class ChatTemplates:
    """The part of a tokenizer that applies its chat template."""

    chat_template: str | dict[str, str] | None

    def get_chat_template(self, chat_template: str | None = None, tools: Any = None) -> str:
        """Return the text of the chat template that `apply_chat_template` would use.

        Args:
            chat_template: A template, or the name of one of several.
            tools: The tools that would be passed; of several templates "tool_use" is then taken.

        Raises:
            ChatError: There is none, or several and none called "default".
        """
        return choose_template(self.chat_template, chat_template, tools is not None)

    def apply_chat_template(
        self,
        conversation: Any,
        tools: Any = None,
        documents: Any = None,
        chat_template: str | None = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool | str = False,
        tokenize: bool = True,
        padding: Any = False,
        truncation: Any = False,
        max_length: int | None = None,
        return_tensors: Any = None,
        return_dict: bool = True,
        return_assistant_tokens_mask: bool = False,
        tokenizer_kwargs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Write a conversation with the tokenizer's chat template, and encode it.

        Args:
            conversation: A list of messages (dicts with `role`, `content` and what the template reads besides), or a
                list of such lists.
            tools: Functions with type hints and Google-style docstrings, or dicts in the chat API's form.
            documents: Dicts with "title" and "text", for templates that read them.
            chat_template: Another template, or the name of one of several. It is a program: pass your own, never one
                that came with a request.
            add_generation_prompt: End with the beginning of an assistant's message.
            continue_final_message: Leave the last message open, so that the model goes on with it; a text names the
                part to continue, such as "reasoning_content".
            tokenize: False returns text.
            padding, truncation, max_length, return_tensors: As in a call.
            return_dict: True returns a BatchEncoding, as releases 5 of the reference do; False only the ids, as its
                releases 4 did by default.
            return_assistant_tokens_mask: Add `assistant_masks`, 1 where the assistant wrote the token; the template
                must mark that with {% generation %} blocks.
            tokenizer_kwargs: Further options of the call that encodes.
            **kwargs: Further variables of the template; they win over special tokens such as `bos_token`.

        Returns:
            A BatchEncoding (lists of ids, or of lists for a batch; tensors always have a batch axis); with
            `return_dict=False` its `input_ids`; with `tokenize=False` a text, or a list of texts.

        Raises:
            ChatError: Messages, tools or options that cannot be used; a template that fails, takes too long or tries to
                leave its sandbox.
        """
        if return_assistant_tokens_mask and not (return_dict and tokenize):
            raise ChatError("return_assistant_tokens_mask=True needs return_dict=True and tokenize=True.")
        if return_assistant_tokens_mask and continue_final_message:
            raise ChatError("return_assistant_tokens_mask and continue_final_message exclude each other.")
        if kwargs.pop("sanitize_control_tokens", False):
            raise ChatError(
                "apply_chat_template has no sanitize_control_tokens: the template decides what is a token. Use "
                "quintet.chat.chat_format(tokenizer), whose formats never read a marker in a message as a token."
            )
        template = self.get_chat_template(chat_template, tools)
        is_batch = _is_batch(conversation)
        texts, marks = apply_chat_template(
            conversation if is_batch else [conversation],
            template,
            tools=tools,
            documents=documents,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            want_marks=return_assistant_tokens_mask,
            variables={**self.special_tokens_map, **kwargs},  # type: ignore[attr-defined]
        )
        if not tokenize:
            return texts if is_batch else texts[0]
        encoding: BatchEncoding = self(  # type: ignore[operator]
            texts if is_batch else texts[0],
            padding=padding,
            truncation=truncation,
            max_length=max_length,
            add_special_tokens=False,
            return_tensors=return_tensors,
            **(tokenizer_kwargs or {}),
        )
        if return_assistant_tokens_mask:
            ids = to_python(encoding["input_ids"])
            rows = ids if is_batch or return_tensors else [ids]
            masks = assistant_masks(encoding, marks, rows)
            encoding["assistant_masks"] = masks if is_batch or return_tensors else masks[0]
            if return_tensors:
                encoding.convert_to_tensors(return_tensors)
        return encoding if return_dict else encoding["input_ids"]


def _is_batch(conversation: Any) -> bool:
    """Whether it is a list of conversations."""
    if isinstance(conversation, (str, bytes, Mapping)) or not isinstance(conversation, Sequence) or not conversation:
        return False
    first = conversation[0]
    return isinstance(first, (list, tuple)) or hasattr(first, "messages")


def named_templates(value: Any) -> str | dict[str, str] | None:
    """Return a `chat_template` setting as a text, or as a dict where a file lists several by name.

    Raises:
        ChatError: It is neither.
    """
    if isinstance(value, (list, tuple)):
        try:
            value = {each["name"]: each["template"] for each in value}
        except (TypeError, KeyError) as cause:
            raise ChatError('chat_template lists something else than {"name": ..., "template": ...}.') from cause
    if value is None or isinstance(value, str):
        return value
    if not isinstance(value, Mapping) or not all(isinstance(each, str) for pair in value.items() for each in pair):
        raise ChatError(f"chat_template must be a text, or texts by name, not {type(value).__name__}.")
    return dict(value)
