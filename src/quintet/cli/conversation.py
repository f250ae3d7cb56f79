"""A conversation with a model: its messages, its answers as events, its cache kept from turn to turn.

No torch at import; `Conversation` takes a loaded model.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import FrameType, TracebackType
from typing import Any

from quintet.chat import ChatEvent, ChatFormat, Rendered, collect, read_messages
from quintet.errors import ChatError, InputError

__all__ = ["Answer", "Conversation", "Halt", "Show"]

# Gets an event, and how many tokens of reasoning there have been.
Show = Callable[[ChatEvent, int], object]

# Models that were taught to talk end by themselves; a transcript seldom does.
NEW_TOKENS, NEW_TOKENS_TRANSCRIPT = 4096, 256


@dataclass
class Answer:
    """What came of one turn.

    Args:
        message: The assistant's message, or None where nothing was written.
        tokens, reasoning_tokens: How many were written, and how many of them were reasoning.
        seconds: From the question to the end.
        first: Seconds to the first token; None without one.
        finish_reason: "stop", "length", "context" (the context is full), "tool_call" or "interrupted".
    """

    message: dict[str, Any] | None
    tokens: int
    reasoning_tokens: int
    seconds: float
    first: float | None
    finish_reason: str

    @property
    def speed(self) -> float:
        """Tokens a second, the reading of the prompt included."""
        return round(self.tokens / max(self.seconds, 1e-9), 1)


class Halt:
    """Ctrl-C while an answer is written: breaks off the model's work, or asks to stop after the token at hand.

    Nothing but the model's work is ever broken off, so that no token is lost between its making and its showing.

    Args:
        catch: Whether to catch Ctrl-C; otherwise it ends the program as it does elsewhere.
    """

    def __init__(self, catch: bool = True) -> None:
        self.asked = False
        self._catch, self._working = catch, False
        self._before: Any = None

    def __enter__(self) -> Halt:
        self.asked = False
        if self._catch:
            self._before = signal.signal(signal.SIGINT, self._on_signal)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._catch:
            signal.signal(signal.SIGINT, self._before)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        first, self.asked = not self.asked, True
        if first and self._working:
            raise KeyboardInterrupt

    def next_of(self, columns: Iterator[Any]) -> Any:
        """Return the next of `columns`, None at their end or when Ctrl-C came before or meanwhile."""
        if self.asked:
            return None
        try:
            self._working = True
            return next(columns, None)
        except KeyboardInterrupt:
            if not self.asked:  # not ours: the program is to end
                raise
            return None
        finally:
            self._working = False


@dataclass
class Conversation:
    """Messages, and the model that answers them.

    Args:
        model: A causal language model, loaded.
        tokenizer: Its tokenizer.
        form: Its chat format.
        options: Keywords of `generate_iter` for the choice of tokens.
        seed: Where the choice begins.
        new_tokens: Tokens of an answer at most; None for a default of the format.
        system, effort, tools: What `render` is given beside the messages.
    """

    model: Any
    tokenizer: Any
    form: ChatFormat
    options: dict[str, Any]
    seed: int
    new_tokens: int | None = None
    system: str | None = None
    effort: str | None = None
    tools: list[Any] | None = None
    messages: list[dict[str, Any]] = field(default_factory=list)
    _held: list[int] = field(default_factory=list)  # tokens that the cache holds
    _cache: Any = None
    _generator: Any = None
    _known: Any = None  # the processor of a padded vocabulary

    @property
    def limit(self) -> int | None:
        """Tokens that the model holds in all, or None where nothing is known of a limit."""
        limit = self.model._position_limit() or getattr(self.model.config, "max_position_embeddings", None)
        return int(limit) if limit else None

    @property
    def cached(self) -> int:
        """Tokens that need not be read again."""
        return len(self._held)

    def count(self) -> int:
        """Tokens of the conversation as it stands; 0 for none."""
        everything = self._everything()
        return len(self._render(everything, prompt=False).ids(self.tokenizer)) if everything else 0

    def check(self) -> None:
        """Raise ChatError for a system text, an effort or tools that the format cannot write."""
        self._render([*self._everything(), {"role": "user", "content": ""}])

    def reset(self) -> None:
        """Forget the messages; system text and effort stay."""
        self.messages.clear()
        if self._cache is not None:
            self._cache.reset()
            self._held = []

    def replace(self, messages: list[dict[str, Any]], system: str | None) -> None:
        """Take another conversation.

        Raises:
            ChatError: Messages that this model's format cannot write; nothing is changed then.
        """
        turns = read_messages(messages) if messages else []
        if any(turn.role in ("system", "developer") for turn in turns):
            raise ChatError("a system message stands in the middle of the conversation. Put it first.")
        before = self.messages, self.system
        self.messages, self.system = messages, system
        try:
            self.count()
        except Exception:
            self.messages, self.system = before
            raise

    def ask(self, message: dict[str, Any], show: Show, halt: Halt) -> Answer:
        """Add a message and answer it; one that cannot be answered is taken back.

        Raises:
            ChatError, InputError: It cannot be written in the format, or does not fit into the context.
        """
        self.messages.append(message)
        try:
            return self.answer(show, halt)
        except Exception:
            del self.messages[-1]
            raise

    def take_back(self) -> bool:
        """Remove the last answer, so that its question can be asked again; False where there is no question."""
        count = len(self.messages)
        while count and self.messages[count - 1]["role"] == "assistant":
            count -= 1
        del self.messages[count:]
        return bool(count)

    def answer(self, show: Show, halt: Halt) -> Answer:
        """Answer the last message, handing every event to `show` as it comes; keep what was written.

        Raises:
            ChatError, InputError: As `ask`.
        """
        began = time.perf_counter()
        rendered = self._render(self._everything())
        ids = rendered.ids(self.tokenizer)
        room = self._room(ids)
        parser = self.form.parser(self.tokenizer, rendered, tools=self.tools)
        events: list[ChatEvent] = []
        new: list[int] = []
        thought, thinking, over, first = 0, False, False, None
        columns = self._columns(ids, room)
        try:
            while not over and (column := halt.next_of(columns)) is not None:
                if first is None:
                    first = time.perf_counter() - began
                new.append(column.ids[0])
                found = parser.feed(new[-1])
                before, thinking = thinking, _thinks(found, thinking)
                thought += before and thinking  # not the tokens that begin and end it
                # A transcript ends with the name of the next speaker, which is no token of its own.
                over = self.form.name == "transcript" and any(event.kind == "end" for event in found)
                for event in found:
                    events.append(event)
                    show(event, thought)
        finally:
            columns.close()
            self._held = [*ids, *new][: self._cache.get_seq_length()]
        for event in parser.end():
            events.append(event)
            show(event, thought)
        message = _kept(events)
        if message is not None:
            self.messages.append(message)
        seconds = time.perf_counter() - began
        reason = self._reason(new, over, room, halt.asked, message, len(ids))
        return Answer(message, len(new), thought, seconds, first, reason)

    def _everything(self) -> list[dict[str, Any]]:
        first = [{"role": "system", "content": self.system}] if self.system is not None else []
        return [*first, *self.messages]

    def _render(self, messages: list[dict[str, Any]], prompt: bool = True) -> Rendered:
        options: dict[str, Any] = {} if self.effort is None else {"reasoning_effort": self.effort}
        return self.form.render(messages, tools=self.tools, add_generation_prompt=prompt, **options)

    def _room(self, ids: list[int]) -> int:
        """How many tokens may be written."""
        wanted = self.new_tokens or (NEW_TOKENS_TRANSCRIPT if self.form.name == "transcript" else NEW_TOKENS)
        limit = self.limit
        if limit is None:
            return wanted
        if len(ids) + 1 > limit:
            frame = [*self._everything()[: self.system is not None], {"role": "user", "content": ""}]
            fits = limit - 1 - len(self._render(frame).ids(self.tokenizer))
            what = f"a message of at most {fits} tokens fits then" if fits > 0 else "but shorten /system first"
            raise InputError(
                f"the conversation has {len(ids)} tokens with this message, but the model holds {limit} in all. "
                f"/reset begins a new conversation; {what}. The message was not kept."
            )
        return min(wanted, limit - len(ids))

    def _columns(self, ids: list[int], room: int) -> Any:
        """Start the model on `ids`, of which the cache keeps what it has read before. Imports torch."""
        import torch

        from quintet.cache import DynamicCache
        from quintet.generation.known_tokens import known_tokens

        if self._cache is None:
            # Without the configuration every layer keeps every key, so that any turn can be taken back.
            self._cache = DynamicCache()
            self._generator = torch.Generator(device=self.model.device).manual_seed(self.seed)
            self._known = known_tokens(self.model, self.tokenizer)  # reads the whole vocabulary: not at every turn
        common = next((at for at, (a, b) in enumerate(zip(self._held, ids, strict=False)) if a != b), None)
        common = min(len(self._held), len(ids)) if common is None else common
        try:
            self._cache.crop(common)
        except InputError:  # a cache that forgets cannot go back: read all of it again
            self._cache.reset()
        self._held = ids[: self._cache.get_seq_length()]
        options = dict(self.options)
        stops = _ids(self.model.generation_config.eos_token_id) | set(self.form.stop_ids(self.tokenizer))
        if stops:
            options["eos_token_id"] = sorted(stops)
        if self._known is not None:
            options["logits_processor"] = [self._known]
        prompt = torch.tensor([ids], device=self.model.device)  # (1, T)
        return self.model.generate_iter(
            prompt,
            attention_mask=torch.ones_like(prompt),
            past_key_values=self._cache,
            generator=self._generator,
            max_new_tokens=room,
            **options,
        )

    def _reason(
        self, new: list[int], over: bool, room: int, halted: bool, message: dict[str, Any] | None, prompt: int
    ) -> str:
        stops = _ids(self.model.generation_config.eos_token_id) | set(self.form.stop_ids(self.tokenizer))
        if over or (new and new[-1] in stops):
            return "tool_call" if message and message.get("tool_calls") else "stop"
        if halted:
            return "interrupted"
        if len(new) < room:  # ended without a token that says so
            return "stop"
        return "context" if prompt + len(new) == self.limit else "length"


def _ids(given: Any) -> set[int]:
    """The ids in an `eos_token_id`, which is an id, a list or None."""
    return set(given) if isinstance(given, (list, tuple)) else set() if given is None else {given}


def _thinks(events: list[ChatEvent], before: bool) -> bool:
    """Whether the model is reasoning after these events."""
    for event in events:
        if event.kind in ("start", "text", "tool_call"):
            before = event.part in ("reasoning", "budget")
        elif event.kind == "end":
            before = False
    return before


def _kept(events: list[ChatEvent]) -> dict[str, Any] | None:
    """The assistant's message, without tool calls that were cut off; None where nothing is left."""
    message = collect(events)
    ends = {event.message: event.reason for event in events if event.kind == "end" and event.tool is not None}
    numbers = sorted({event.message for event in events if event.kind != "special" and event.tool is not None})
    calls = message.pop("tool_calls", [])
    calls = [call for number, call in zip(numbers, calls, strict=True) if ends.get(number, "cut") != "cut"]
    if calls:
        message["tool_calls"] = calls
    return message if calls or message["content"] or message.get("reasoning_content") else None
