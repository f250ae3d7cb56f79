"""Where a model thinks, read from its tokens, and what it is made to write when its thinking budget ends.

Two formats have thoughts: Seed-OSS writes them between `<seed:think>` and `</seed:think>`, with notes about the budget
in between; gpt-oss writes them into messages of the "analysis" channel. A format turns a row of tokens into a
`State`, one token at a time; a state is a function of the tokens and the budget alone.

Source of the notes: the model card of ByteDance-Seed/Seed-OSS-36B-Instruct (Apache 2.0); of the channels:
github.com/openai/harmony, docs/format.md.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

from quintet.chat.harmony_parser import CHANNEL, CHANNELS, CONSTRAIN, ENDS, MESSAGE, START
from quintet.chat.pieces import token_id
from quintet.chat.seed_oss import reflection_interval
from quintet.chat.seed_parser import BOS, END_REFLECT, END_THINK, EOS, REFLECT, THINK
from quintet.errors import GenerationError

__all__ = ["HarmonyThinking", "Rules", "SeedThinking", "State", "ThinkingFormat", "thinking_format"]

# A header of a harmony message has a handful of tokens; with an answer to be held to a form it gets no more than this.
LONGEST_HEADER = 64


class State(NamedTuple):
    """Where a row is.

    Args:
        place: For Seed-OSS "start", "thinking", "note" or "answer"; for harmony "outside", "header", "analysis",
            "final", "other", or "plain" where the prompt has no messages.
        used: Tokens of thinking so far.
        last: The last token.
        noted: How many tokens were used when the last note about the budget began.
        header: The tokens of the header so far.
        called: The open message is sent to somebody: a call of a tool.
        pending: Tokens that come next, whatever the model's scores say.
    """

    place: str
    used: int = 0
    last: int = -1
    noted: int = 0
    header: tuple[int, ...] = ()
    called: bool = False
    pending: tuple[int, ...] = ()


class Rules(NamedTuple):
    """What may come next in an answer that is held to a form.

    Args:
        form: What the form allows.
        text: Any token of text.
        ids: These tokens too.
    """

    form: bool = False
    text: bool = False
    ids: tuple[int, ...] = ()


class ThinkingFormat(ABC):
    """The marks of a format, as ids of one tokenizer.

    Args:
        tokenizer: The tokenizer of the model.
        names: The marks that the format needs.
    """

    name: str
    names: tuple[str, ...]

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.calls: tuple[int, ...] = ()  # tokens that end a call of a tool, and no answer
        self.marks: dict[str, int] = {}
        for name in self.names:
            index = token_id(tokenizer, name)
            if index is None:
                raise GenerationError(f"the tokenizer has no token {name!r}, which thinking in {self.name} needs.")
            self.marks[name] = index

    def ids(self, text: str) -> tuple[int, ...]:
        """Return the tokens of a text that holds no marks."""
        return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def begin(self, prompt: Sequence[int], budget: int | None = None) -> State:
        """Return the state behind a prompt.

        Args:
            prompt: The tokens of the prompt, without padding.
            budget: How many tokens the model may think; None for as many as it likes.
        """
        state = self._begin(list(prompt))
        return state if budget is None else state._replace(pending=self._due(state, budget))

    def step(self, state: State, token: int, budget: int | None = None) -> State:
        """Return the state after one more token."""
        rest = state.pending[1:] if state.pending[:1] == (token,) else ()
        moved = self._move(state, token)._replace(last=token, pending=rest)
        return moved if rest or budget is None else moved._replace(pending=self._due(moved, budget))

    @abstractmethod
    def rules(self, state: State) -> Rules:
        """Return what may come next in an answer that is held to a form."""

    @abstractmethod
    def _begin(self, prompt: list[int]) -> State:
        """Return the state behind a prompt, nothing pending."""

    @abstractmethod
    def _move(self, state: State, token: int) -> State:
        """Return where a token leads."""

    @abstractmethod
    def _due(self, state: State, budget: int) -> tuple[int, ...]:
        """Return what has to come next because of the budget."""

    def _replay(self, state: State, tokens: Sequence[int]) -> State:
        for token in tokens:
            state = self._move(state, token)._replace(last=token)
        return state


def _after_last(tokens: list[int], mark: int) -> list[int] | None:
    """The tokens behind the last mark; None where there is none."""
    for place in range(len(tokens) - 1, -1, -1):
        if tokens[place] == mark:
            return tokens[place + 1 :]
    return None


class SeedThinking(ThinkingFormat):
    """Thinking of Seed-OSS."""

    name = "Seed-OSS' format"
    names = (BOS, EOS, THINK, END_THINK)

    def __init__(self, tokenizer: Any) -> None:
        super().__init__(tokenizer)
        self._think, self._end = self.marks[THINK], self.marks[END_THINK]
        self._prompt = list(self.ids("assistant\n"))
        self._line = self.ids("\n")
        self._lines = {index for text in ("\n", "\n\n") if len(found := self.ids(text)) == 1 for index in found}
        notes = [token_id(tokenizer, name) for name in (REFLECT, END_REFLECT)]
        self._notes = (-1, -1) if None in notes else (int(notes[0] or 0), int(notes[1] or 0))
        for name, index in zip((REFLECT, END_REFLECT), self._notes, strict=True):
            if index >= 0:
                self.marks[name] = index
        self._last_words = self.ids("I have exhausted my token budget, and now I will start answering the question.")
        no_words = self.ids("The current thinking budget is 0, so I will directly start answering the question.")
        self._zero = (*no_words, self._notes[1], *self._line, self._end)

    def rules(self, state: State) -> Rules:
        """See ThinkingFormat."""
        if state.place == "start":
            return Rules(form=True, ids=(self._think,))
        if state.place == "answer":
            # The answer begins on a new line or right behind the mark.
            return Rules(form=True, ids=tuple(self._lines) if state.last == self._end else ())
        marks = self._notes[:1] if state.place == "thinking" else self._notes[1:]
        return Rules(text=True, ids=(self._end, *(one for one in marks if one >= 0)))

    def _begin(self, prompt: list[int]) -> State:
        turn = _after_last(prompt, self.marks[BOS])
        if turn is None:  # no conversation; thoughts may come all the same
            return self._replay(State("answer"), prompt)
        head = len(self._prompt)
        rest = turn[head:] if turn[:head] == self._prompt else turn
        return self._replay(State("start"), rest)

    def _move(self, state: State, token: int) -> State:
        if token == self._think and state.place not in ("thinking", "note"):
            return state._replace(place="thinking")
        if token == self._end:
            return state._replace(place="answer")
        if state.place == "thinking":
            if token == self._notes[0]:
                return state._replace(place="note", used=state.used + 1, noted=state.used)
            return state._replace(used=state.used + 1)
        if state.place == "note":
            over = token == self._notes[1]
            return state._replace(place="thinking" if over else "note", used=state.used + 1)
        return state._replace(place="answer")

    def _due(self, state: State, budget: int) -> tuple[int, ...]:
        left = budget - state.used
        begin, over = self._notes
        if budget == 0 and state.place == "start":
            return (self._think, begin, *self._zero) if begin >= 0 else (self._think, self._end)
        if budget == 0 and begin >= 0 and (state.place, state.used) == ("thinking", 0):
            return (begin, *self._zero)
        if budget == 0 and (state.place, state.used, state.last) == ("note", 1, begin):
            return self._zero
        closing = (*self._fresh_line(state), begin, *self._last_words, over, *self._line)
        longest = len(self._last_words) + 2 + 2 * len(self._line)
        notes = begin >= 0 and budget >= 4 * longest  # no notes in a budget that they would fill
        if state.place == "note":
            return self._finish_note(state, budget, longest if notes else None)
        if state.place != "thinking":
            return ()
        if left <= 0:
            return (self._end,)
        if not notes:
            return ()
        if len(closing) <= left <= longest:
            return (*closing, self._end)
        interval = reflection_interval(budget)
        note = (*self._fresh_line(state), begin, *self._note(state.used, budget), over, *self._line)
        # The model looks at its budget at every interval, at the end of a thought; what it forgets comes a bit later.
        late = state.used // interval > state.noted // interval and state.used % interval >= interval // 8
        return note if late and left > len(note) + longest else ()

    def _finish_note(self, state: State, budget: int, longest: int | None) -> tuple[int, ...]:
        """Fill in the note that the model has just begun; end one that would go on beyond the budget."""
        over, left = self._notes[1], budget - state.used
        if longest is not None and state.last == self._notes[0]:
            note = (*self._note(state.noted, budget), over)
            if left > len(note) + longest:
                return note
            last = (*self._last_words, over, *self._line)
            if len(last) <= left:
                return (*last, self._end)
        elif left > 1:
            return ()
        return (over, self._end) if left > 0 else (self._end,)

    def _note(self, used: int, budget: int) -> tuple[int, ...]:
        return self.ids(f"I have used {used} tokens, and there are {budget - used} tokens remaining for use.")

    def _fresh_line(self, state: State) -> tuple[int, ...]:
        """A line end, unless the row is at the beginning of a line."""
        text = self.tokenizer.decode([state.last]) if state.last >= 0 else ""
        return () if text.endswith("\n") else self._line


class HarmonyThinking(ThinkingFormat):
    """Thinking of gpt-oss: messages of the assistant in the analysis channel that are sent to nobody."""

    name = "gpt-oss' format"
    names = (START, CHANNEL, MESSAGE, *ENDS)

    def __init__(self, tokenizer: Any) -> None:
        super().__init__(tokenizer)
        self._start, self._channel, self._message = (self.marks[name] for name in (START, CHANNEL, MESSAGE))
        self._over = {self.marks[name] for name in ENDS}
        self._close, self._call = self.marks["<|end|>"], self.marks["<|call|>"]
        self.calls = (self._call,)
        constrain = token_id(tokenizer, CONSTRAIN)
        if constrain is not None:
            self.marks[CONSTRAIN] = constrain
        self._role = self.ids("assistant")
        self._names = {name: self.ids(name) for name in CHANNELS}
        self._to_final = (self._channel, *self._names["final"], self._message)

    def rules(self, state: State) -> Rules:
        """See ThinkingFormat."""
        if state.place in ("final", "plain"):
            return Rules(form=True)
        if state.place == "outside":
            return Rules(ids=(self._start,))
        if state.place == "header":
            return self._header_rules(state.header)
        return Rules(text=True, ids=(self._call if state.called else self._close,))

    def _header_rules(self, header: tuple[int, ...]) -> Rules:
        if self._channel not in header:
            wanted = (*self._role, self._channel)
            at = len(header) if header == wanted[: len(header)] else len(self._role)
            return Rules(ids=(wanted[at],))
        name = header[header.index(self._channel) + 1 :]
        following = {known[len(name)] for known in self._names.values() if known[: len(name)] == name != known}
        if following:
            return Rules(ids=tuple(sorted(following)))
        if name == self._names["final"] or len(header) >= LONGEST_HEADER:
            return Rules(ids=(self._message,))
        constrain = self.marks.get(CONSTRAIN)
        return Rules(text=True, ids=(self._message, *(() if constrain is None else (constrain,))))

    def _begin(self, prompt: list[int]) -> State:
        turn = _after_last(prompt, self._start)
        return State("plain") if turn is None else self._replay(State("header"), turn)

    def _move(self, state: State, token: int) -> State:
        place = state.place
        if token == self._start or (token == self._channel and place == "outside"):
            return state._replace(place="header", header=() if token == self._start else (token,))
        if place == "header" and token == self._message:
            return self._opened(state)
        if token in self._over:
            return state._replace(place="plain" if place == "plain" else "outside", header=())
        if place == "header":
            return state._replace(header=(*state.header, token)) if len(state.header) < 512 else state
        return state._replace(used=state.used + 1) if place == "analysis" else state

    def _opened(self, state: State) -> State:
        """Read the header of a message whose content begins."""
        role, _, rest = str(self.tokenizer.decode(list(state.header))).partition(CHANNEL)
        words = rest.partition(CONSTRAIN)[0].split()
        channel = words[0] if words else ""
        called = " to=" in f"{role} {rest}" and "to=all" not in f"{role} {rest}"
        known = channel in ("analysis", "final") and not called and role.strip() in ("assistant", "")
        return state._replace(place=channel if known else "other", called=called, header=())

    def _due(self, state: State, budget: int) -> tuple[int, ...]:
        if state.place == "analysis" and state.used >= budget:
            return (self._close, self._start, *self._role, *self._to_final)
        if budget == 0 and state.place == "header":  # an answer at once: no other channel is opened
            header, wanted = state.header, (*self._role, *self._to_final)
            if header and len(header) <= len(self._role) + 1 and header == wanted[: len(header)]:
                return wanted[len(header) :]
        return ()


def thinking_format(tokenizer: Any) -> ThinkingFormat | None:
    """Return the format whose marks a tokenizer has as tokens; None for a model that does not think."""
    for kind in (SeedThinking, HarmonyThinking):
        if all(token_id(tokenizer, name) is not None for name in kind.names):
            return kind(tokenizer)
    return None
