"""Formats for models without a chat format of their own: a plain transcript, or the tokenizer's template."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from quintet.chat.base import ChatFormat, check_ending, check_options
from quintet.chat.events import ChatEvent
from quintet.chat.messages import Turn, read_messages
from quintet.chat.pieces import Piece, Rendered, joined
from quintet.chat.stream import ChatParser, overlap
from quintet.errors import ChatError

__all__ = ["PlainParser", "TemplateFormat", "Transcript"]

_NAMES = {"system": "", "developer": "", "user": "User:", "assistant": "Assistant:"}
# Where the next speaker would begin, the answer ends.
_NEXT_SPEAKER = ("\nUser:", "\nAssistant:")


class PlainParser(ChatParser):
    """Every text is the answer; a special token that ends it is no text.

    Args:
        tokenizer: The tokenizer of the model.
        ends: Special tokens that end the answer.
        stops: Texts that end it: the name of the next speaker. What a model writes after them is "special" text.
        strip: Leave out white space before the first word.
    """

    def __init__(self, tokenizer: Any, ends: Sequence[str] = (), stops: Sequence[str] = (), strip: bool = True) -> None:
        self._ends, self._stops, self._strip = tuple(ends), tuple(stops), strip
        super().__init__(tokenizer, ends)

    def _reset(self) -> None:
        self._number = -1
        self._open = self._over = False
        self._held = ""  # text that may be the beginning of a stop; before the first word, white space

    def _emit(self, kind: str, *, text: str = "", raw: str | None = None, reason: str | None = None) -> None:
        raw = text if raw is None else raw
        self._events.append(ChatEvent(kind, self._number, channel="final", text=text, raw=raw, reason=reason))

    def _text(self, text: str) -> None:
        if self._over:
            self._emit("special", text=text)
            return
        text, self._held = self._held + text, ""
        if not self._open:
            rest = text.lstrip() if self._strip else text
            if not rest:
                self._held = text
                return
            self._number, self._open = self._number + 1, True
            self._emit("start", raw=text[: len(text) - len(rest)])
            text = rest
        found = [place for stop in self._stops if (place := text.find(stop)) >= 0]
        if found:
            place = min(found)
            if place:
                self._emit("text", text=text[:place])
            self._close("end")
            self._over = True
            self._emit("special", text=text[place:])
            return
        kept = max((overlap(text, stop) for stop in self._stops), default=0)
        text, self._held = text[: len(text) - kept], text[len(text) - kept :]
        if text:
            self._emit("text", text=text)

    def _special(self, name: str) -> None:
        self._flush()
        if name in self._ends and self._open:
            self._close("return", raw=name)
        else:
            self._emit("special", text=name)

    def _flush(self) -> None:
        text, self._held = self._held, ""
        if text:
            self._emit("text" if self._open else "special", text=text if self._open else "", raw=text)

    def _close(self, reason: str, raw: str = "") -> None:
        self._open = False
        self._emit("end", raw=raw, reason=reason)

    def _finish(self) -> None:
        self._flush()
        if self._open:
            self._close("cut")


class Transcript(ChatFormat):
    r"""A conversation as a script: "User: ...\nAssistant: ...".

    For models that were never trained to talk. It says so, once, in the log: their answers go on as any text does.

    Args:
        end: The token that ends an answer, the tokenizer's `eos_token`.
    """

    name = "transcript"
    native = False
    stop_strings = _NEXT_SPEAKER

    def __init__(self, end: str | None = None) -> None:
        self.stop_tokens = (end,) if end else ()

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

        Raises:
            ChatError: Messages that cannot be used; tools or other options, which such a model knows nothing of.
        """
        check_options("The plain transcript format", options, self.options)
        if tools:
            raise ChatError(
                "This model has no chat format and was not trained to call tools. Leave tools out, or use a model of "
                "a family with a chat format (gpt_oss, seed_oss)."
            )
        turns = read_messages(messages)
        prompts = check_ending(add_generation_prompt, continue_final_message, turns[-1].role)
        pieces: list[Piece] = []
        for number, turn in enumerate(turns):
            last = continue_final_message and number == len(turns) - 1
            # No space behind the colon: the word that follows has one in front of it, as in any text.
            name = _NAMES.get(turn.role, "Tool:")
            text = f" {_text_of(turn)}" if name else _text_of(turn)
            pieces += [Piece(name), Piece(text, generated=turn.role == "assistant")]
            pieces += [] if last else [Piece("\n")]
        return Rendered(joined([*pieces, *([Piece("Assistant:")] if prompts else [])]))

    def parser(self, tokenizer: Any, prompt: Rendered | None = None, *, tools: Any = None) -> PlainParser:
        """Return a parser for the answer; see `ChatFormat.parser`."""
        del tools
        goes_on = prompt is not None and not prompt.text.endswith("Assistant:")
        return PlainParser(tokenizer, self.stop_tokens, self.stop_strings, strip=not goes_on)


class TemplateFormat(ChatFormat):
    """The chat template of a tokenizer whose family has no format of its own here (a fine-tuned model).

    The template decides what it makes of tools and options; the answer is plain text.

    Args:
        tokenizer: A tokenizer with a `chat_template`.
    """

    name = "template"

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.stop_tokens = (tokenizer.eos_token,) if tokenizer.eos_token else ()

    def render(
        self,
        messages: Any,
        *,
        tools: Any = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        **options: Any,
    ) -> Rendered:
        """Render a conversation with the template; see `ChatFormat.render`.

        Raises:
            ChatError: Messages or tools that cannot be used, options (a template's variables are not for callers), or
                a template that fails.
        """
        check_options("A tokenizer's chat template", options, ())
        turns = read_messages(messages)
        text = self._tokenizer.apply_chat_template(
            messages,
            tools=tools,
            add_generation_prompt=check_ending(add_generation_prompt, continue_final_message, turns[-1].role),
            continue_final_message=continue_final_message,
            tokenize=False,
        )
        # A template's text is encoded as a whole, as everybody does: its markers are tokens wherever they stand.
        tokens = self._tokenizer.convert_ids_to_tokens
        ids = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        special = set(self._tokenizer.all_special_ids)
        return Rendered(_pieces_of(text, [tokens(index) for index in ids if index in special]))

    def parser(self, tokenizer: Any, prompt: Rendered | None = None, *, tools: Any = None) -> PlainParser:
        """Return a parser for the answer; see `ChatFormat.parser`."""
        del prompt, tools
        return PlainParser(tokenizer, self.stop_tokens, strip=False)


def _pieces_of(text: str, special: Sequence[str]) -> tuple[Piece, ...]:
    """Cut a rendered text at its special tokens, which stand in it in this order."""
    pieces, place = [], 0
    for token in special:
        found = text.find(token, place)
        if found < 0:
            continue  # a token that is spelt otherwise in the text
        pieces += [Piece(text[place:found]), Piece(token, special=True)]
        place = found + len(token)
    return tuple(piece for piece in [*pieces, Piece(text[place:])] if piece.text)


def _text_of(turn: Turn) -> str:
    if turn.calls:
        raise ChatError("A conversation with tool calls cannot be written as a plain transcript. Leave the calls out.")
    return turn.content.strip()
