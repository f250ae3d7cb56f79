"""Candidates: cheap guesses of the next tokens, which a model then checks all at once.

`PromptLookup` copies from the text so far; `DraftModel` lets a smaller model of the same tokens write ahead. Those for
other tokenizers are in `translation.py`; which of them a call gets is in `drafting.py`.

Letters: S tokens so far, V vocabulary of the model that checks, W vocabulary of the draft model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from quintet.cache import DynamicCache
from quintet.generation.buffer import ColumnBuffer
from quintet.generation.given import GenerativeModel, Prompt
from quintet.generation.processors import LogitsProcessorList
from quintet.generation.resolve import warn
from quintet.generation.sampling import greedy
from quintet.generation.sampling.draws import Draws
from quintet.generation.state import DecodeState

__all__ = ["Candidates", "Draft", "DraftModel", "DraftPlan", "DraftReader", "PromptLookup", "cut_at_end"]


@dataclass
class Draft:
    """Guessed tokens.

    Args:
        ids: The tokens.
        scores: For each of them the (1, V) scores that it was chosen from; empty where there are none.
    """

    ids: list[int] = field(default_factory=list)
    scores: list[torch.Tensor] = field(default_factory=list)


class Candidates(Protocol):
    """Where guesses come from."""

    def propose(self, ids: list[int], limit: int) -> Draft:
        """Guess what follows `ids`, at most `limit` tokens; `ids` only grows from call to call."""

    def settle(self, accepted: int, proposed: int) -> None:
        """Take note of how many of the last guesses were right."""


def cut_at_end(ids: list[int], eos: Sequence[int]) -> list[int]:
    """Return the tokens up to the first that ends the text, itself included."""
    for place, token in enumerate(ids):
        if token in eos:
            return ids[: place + 1]
    return ids


class PromptLookup:
    """Guesses that the text goes on as it did the last time that its last tokens stood together.

    An index of every group of tokens and what followed it is kept, so that a step costs the same however long the
    text is. A copy that went well goes on where it was, without a look at the index.

    Args:
        count: Tokens to guess.
        size: Longest group to look for; shorter ones are tried when it has not occurred.
        eos: Tokens that end the text.
    """

    def __init__(self, count: int, size: int, eos: Sequence[int] = ()) -> None:
        self._count, self._size, self._eos = count, size, frozenset(eos)
        self._places: dict[tuple[int, ...], int] = {}  # a group -> where in the text the token after it stands
        self._learned = 1  # tokens of the text that the index knows as followers
        self._copied: tuple[int, int] | None = None  # the last guess: from where, and where it was to stand

    def propose(self, ids: list[int], limit: int) -> Draft:
        """See Candidates."""
        self._learn(ids)
        begin = self._going_on(ids)
        if begin is None:
            begin = self._found(ids)
        if begin is None:
            self._copied = None
            return Draft()
        self._copied = begin, len(ids)
        copied: list[int] = []
        for place in range(begin, begin + min(self._count, limit)):  # it may run into what it has just copied
            copied.append(ids[place] if place < len(ids) else copied[place - len(ids)])
        return Draft(cut_at_end(copied, tuple(self._eos)))

    def settle(self, accepted: int, proposed: int) -> None:
        """See Candidates; `propose` sees for itself."""

    def _learn(self, ids: list[int]) -> None:
        for place in range(self._learned, len(ids)):
            for size in range(1, min(self._size, place) + 1):
                self._places[tuple(ids[place - size : place])] = place
        self._learned = max(self._learned, len(ids))

    def _going_on(self, ids: list[int]) -> int | None:
        """Return where the last copy goes on, or None when the text has left it."""
        if self._copied is None:
            return None
        begin, stood = self._copied
        since = len(ids) - stood
        same = all(ids[begin + place] == ids[stood + place] for place in range(since))
        return begin + since if same else None

    def _found(self, ids: list[int]) -> int | None:
        for size in range(min(self._size, len(ids)), 0, -1):
            begin = self._places.get(tuple(ids[-size:]))
            if begin is not None:
                return begin
        return None


class DraftReader:
    """A draft model's state, kept in step with a text that changes at its end: only what changed is read again.

    Args:
        model: The draft model.
        device: Where its scores are wanted.
        mask: (1, S) of the first S tokens with 0 for padding, or None.
        others: Further arguments of its `forward`.
    """

    def __init__(
        self,
        model: GenerativeModel,
        device: torch.device,
        mask: torch.Tensor | None = None,
        others: dict[str, Any] | None = None,
    ) -> None:
        self._model, self._device, self._mask = model, device, mask
        self._others = others or {}
        self._state: DecodeState | None = None
        self._ids: list[int] = []  # what the model has read
        self._size: int | None = getattr(model.config, "vocab_size", None)
        self._warned = False

    def room(self, length: int) -> int:
        """Return how many tokens the model can write after `length` of them; 0 or less when it cannot read them."""
        limit = self._model._position_limit()
        if limit is None:
            return length
        padding = 0 if self._mask is None else int((self._mask == 0).sum())
        room = limit - (length - padding) + 1
        if room < 1 and not self._warned:
            self._warned = True
            warn(
                f"the draft model has {limit} positions, and the text is longer: from here on it drafts nothing, and "
                "every token is decoded by itself. Use a draft model with as many positions as the model has."
            )
        return room

    def read(self, ids: list[int], stable: int = 0) -> torch.Tensor:
        """Return the (1, W) scores of what follows `ids`, the first `stable` of which are known to be as last time."""
        # The last token is read in any case: its scores are not kept.
        same, end = min(stable, len(self._ids), len(ids) - 1), min(len(self._ids), len(ids) - 1)
        while same < end and self._ids[same] == ids[same]:
            same += 1
        state = self._state
        if state is None or same == 0:
            state = self._begin(ids)
            scores = state.prefill()
            self._state, self._ids = state, list(ids)
        else:
            state.crop(same)
            del self._ids[same:]
            scores = state.advance_many(self._tensor(ids[same:]), keep=1)[:, 0]  # (1, 1, W) -> (1, W)
            self._ids += ids[same:]
        return scores.to(self._device)

    def step(self, token: int) -> torch.Tensor:
        """Read one more token and return the (1, W) scores of the next."""
        assert self._state is not None, "read() comes first"
        scores = self._state.advance(self._tensor([token])[0])
        self._ids.append(token)
        return scores.to(self._device)

    def _begin(self, ids: list[int]) -> DecodeState:
        tokens, mask = self._tensor(ids), None
        if self._mask is not None:
            new = self._mask.new_ones((1, len(ids) - self._mask.shape[1]))
            mask = torch.cat([self._mask, new], dim=1).to(tokens.device)
        # Without a configuration the cache keeps every key, so that it can be cropped to any length.
        return DecodeState(self._model, Prompt(tokens, tokens, mask=mask, cache=DynamicCache(), others=self._others))

    def _tensor(self, ids: list[int]) -> torch.Tensor:
        tokens = torch.tensor([ids], device=self._model.device)
        # Rows of a larger vocabulary that this model has no embedding for; the guess may be bad then, no more.
        return tokens if self._size is None else tokens.clamp(max=self._size - 1)


@dataclass
class DraftPlan:
    """How a draft model is to draft.

    Args:
        count: Tokens to guess; changes with a heuristic schedule.
        schedule: "constant"; "heuristic" and "heuristic_transient" guess two more when all were right, else one less.
        threshold: Stop after a token that the draft model gives less than this probability.
        eos: Tokens that end the text.
        vocabulary: V.
        processors: Applied to the scores of the draft.
        draws: Draws tokens; None takes the best.
        keep_scores: Put the scores into the drafts.
        owner: Generation config that a "heuristic" count is written to, for the next call.
    """

    count: int
    schedule: str = "constant"
    threshold: float = 0.0
    eos: tuple[int, ...] = ()
    vocabulary: int = 0
    processors: LogitsProcessorList = field(default_factory=LogitsProcessorList)
    draws: Draws | None = None
    keep_scores: bool = False
    owner: Any = None

    def settle(self, accepted: int, proposed: int) -> None:
        """Change the count by what became of the last guesses."""
        if self.schedule == "constant" or proposed == 0:
            return
        self.count = self.count + 2 if accepted == proposed else max(1, self.count - 1)
        if self.schedule == "heuristic" and self.owner is not None:
            self.owner.num_assistant_tokens = self.count


class DraftModel:
    """Guesses by a model of the same tokens.

    Args:
        reader: The draft model.
        plan: How it is to draft.
    """

    def __init__(self, reader: DraftReader, plan: DraftPlan) -> None:
        self._reader, self._plan = reader, plan
        self._stable = 0  # own tokens of the text that was last read, which stay
        self._followed = 0  # tokens of the text in `_text`, which stay
        self._text: ColumnBuffer | None = None  # text and guesses, for processors

    def propose(self, ids: list[int], limit: int) -> Draft:
        """See Candidates."""
        own, stable = self._own_ids(ids)
        count = min(self._plan.count, limit, self._reader.room(len(own)))
        if count < 1 or not own:
            return Draft()
        scores = self._reader.read(own, stable)
        self._stable = len(own)
        self._follow(ids, scores.device)
        return self._write(scores, count)

    def settle(self, accepted: int, proposed: int) -> None:
        """See Candidates."""
        self._plan.settle(accepted, proposed)

    def _own_ids(self, ids: list[int]) -> tuple[list[int], int]:
        """Return the text in the draft model's tokens, and how many of them are as at the last call."""
        return ids, self._stable

    def _own_id(self, token: int) -> int:
        """Return a guessed token as the draft model reads it."""
        return token

    def _scores(self, scores: torch.Tensor) -> torch.Tensor:
        """Return (1, W) scores as (1, V): rows that one of the models lacks are no tokens."""
        missing = self._plan.vocabulary - scores.shape[-1]
        if missing <= 0:
            return scores[:, : self._plan.vocabulary]
        return torch.nn.functional.pad(scores, (0, missing), value=-math.inf)

    def _write(self, scores: torch.Tensor, count: int) -> Draft:
        plan, draft = self._plan, Draft()
        while True:
            scores = self._scores(scores)
            if self._text is not None:
                scores = plan.processors(self._text.view, scores)
            chosen = greedy(scores) if plan.draws is None else plan.draws(scores)
            token = int(chosen)
            if token < 0:  # nothing to choose from; the model that checks will say what it thinks of that
                return draft
            draft.ids.append(token)
            if plan.keep_scores:
                draft.scores.append(scores)
            if len(draft.ids) == count or token in plan.eos or self._unsure(scores, token):
                return draft
            if self._text is not None:
                self._text.append(token)
            scores = self._reader.step(self._own_id(token))

    def _unsure(self, scores: torch.Tensor, token: int) -> bool:
        return self._plan.threshold > 0 and float(scores.softmax(dim=-1)[0, token]) < self._plan.threshold

    def _follow(self, ids: list[int], device: torch.device) -> None:
        """Let the text that processors see be `ids`."""
        if not self._plan.processors:
            return
        if self._text is None:
            self._text = ColumnBuffer(torch.tensor([ids], device=device), 2 * self._plan.count)
        else:
            self._text.crop(self._followed)
            for token in ids[self._followed :]:
                self._text.append(token)
        self._followed = len(ids)
