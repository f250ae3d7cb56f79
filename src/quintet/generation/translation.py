"""Draft models of another tokenizer: guesses cross over as text, or as the tokens that both vocabularies have.

As text (`TextDraft`): the new text is encoded again for the draft model, and what it writes is encoded again for the
model that checks; a few tokens before the new ones are encoded along, so that words are cut as in the middle of a text.
As tokens (`SharedDraft`): the draft model chooses among the tokens that both know, so that the scores of a guess are
known in both vocabularies, which sampling needs (Timor et al. 2025, arXiv 2502.05202, section 4).

Letters: V vocabulary of the model that checks, W vocabulary of the draft model.
"""

from __future__ import annotations

import math
import weakref
from typing import Any

import torch

from quintet.generation.candidates import Draft, DraftModel, DraftPlan, DraftReader, cut_at_end
from quintet.generation.sampling import greedy

__all__ = ["SharedDraft", "TextDraft", "Translator", "continuation", "rejoined", "shared_tokens"]


def rejoined(old: list[int], window: list[int], reach: int) -> tuple[list[int], int] | None:
    """Replace the end of a token sequence by another encoding of its last words and what follows them.

    The two are laid over each other where most tokens in a row agree.

    Args:
        old: Tokens so far.
        window: Tokens of the text's end, as it is now.
        reach: Tokens at the end of `old` to look at.

    Returns:
        The tokens, and how many of them are as in `old`; None when no token agrees.
    """
    first = max(len(old) - reach, 0)
    best, length = (0, 0), 0
    before: dict[int, int] = {}  # place in the window -> tokens in a row that agree up to there
    for place in range(first, len(old)):
        agree = {j: before.get(j - 1, 0) + 1 for j, token in enumerate(window) if token == old[place]}
        for j, run in agree.items():
            if run >= length:  # of equal runs the last one: the new text comes at the end
                best, length = (place + 1, j + 1), run
        before = agree
    if length == 0:
        return None
    return old[: best[0]] + window[best[1] :], best[0]


def continuation(ids: list[int], window: list[int]) -> list[int] | None:
    """Return what follows the end of `ids` in `window`, an encoding of its last words and more; None when unclear.

    It is unclear when the last token does not occur in the window: it was cut differently there.
    """
    best, found = 0, None
    for end in range(1, len(window) + 1):
        run = 0
        while run < min(end, len(ids)) and ids[-1 - run] == window[end - 1 - run]:
            run += 1
        if run > best:  # of equal runs the first one: nothing of what follows is lost
            best, found = run, end
    return None if found is None else window[found:]


class Translator:
    """Turns tokens of one tokenizer into those of another, by way of the text.

    Args:
        own: Tokenizer of the tokens.
        other: Tokenizer of the result.
    """

    def __init__(self, own: Any, other: Any) -> None:
        self._own, self._other = own, other

    def __call__(self, ids: list[int], *, begins: bool = False) -> list[int]:
        """Return the other tokenizer's tokens; `begins` adds those that it begins a text with."""
        # Spaces stay as they are: cleaned up, the text would not be the one that is continued.
        text = self._own.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return list(self._other(text, add_special_tokens=begins)["input_ids"])


class TextDraft:
    """Guesses by a model of another tokenizer, for greedy decoding.

    Args:
        reader: The draft model.
        plan: How it is to draft; its tokens that end a text are the draft model's.
        to_draft, to_target: Translators there and back.
        target_lookbehind: Tokens before the new ones that are encoded along for the draft model.
        draft_lookbehind: The same on the way back.
        eos: Tokens that end the text, of the model that checks.
    """

    def __init__(
        self,
        reader: DraftReader,
        plan: DraftPlan,
        to_draft: Translator,
        to_target: Translator,
        *,
        target_lookbehind: int = 10,
        draft_lookbehind: int = 10,
        eos: tuple[int, ...] = (),
    ) -> None:
        self._reader, self._plan = reader, plan
        self._to_draft, self._to_target = to_draft, to_target
        self._target_lookbehind, self._draft_lookbehind, self._eos = target_lookbehind, draft_lookbehind, eos
        self._known = 0  # tokens of the text that `_own` stands for
        self._own: list[int] = []  # the text in the draft model's tokens, with its last guess

    def propose(self, ids: list[int], limit: int) -> Draft:
        """See Candidates."""
        own, stable = self._translated(ids)
        count = min(self._plan.count, self._reader.room(len(own)))
        self._own, self._known = own, len(ids)
        if count < 1 or not own or limit < 1:
            return Draft()
        guess = self._write(self._reader.read(own, stable), count)
        self._own = own + guess
        return Draft(cut_at_end(self._back(ids, own, guess)[:limit], self._eos))

    def settle(self, accepted: int, proposed: int) -> None:
        """See Candidates."""
        self._plan.settle(accepted, proposed)

    def _translated(self, ids: list[int]) -> tuple[list[int], int]:
        """Return the text in the draft model's tokens, and how many of them are as before."""
        behind = self._known - self._target_lookbehind
        if self._own and behind > 0:
            window = self._to_draft(ids[behind:])
            # Besides the window, the wrong part of the last guess may stand at the end.
            joined = rejoined(self._own, window, len(window) + self._plan.count + 2)
            if joined is not None:
                return joined
        return self._to_draft(ids, begins=True), 0

    def _write(self, scores: torch.Tensor, count: int) -> list[int]:
        guess: list[int] = []
        while True:
            token = int(greedy(scores))
            if token < 0 or token in self._plan.eos:
                return guess
            guess.append(token)
            if len(guess) == count:
                return guess
            if self._plan.threshold > 0 and float(scores.softmax(dim=-1)[0, token]) < self._plan.threshold:
                return guess
            scores = self._reader.step(token)

    def _back(self, ids: list[int], own: list[int], guess: list[int]) -> list[int]:
        """Return a guess in the tokens of the model that checks."""
        if not guess:
            return []
        if self._draft_lookbehind > 0:
            window = self._to_target(own[-self._draft_lookbehind :] + guess)
            follows = continuation(ids, window)
            if follows is not None:
                return follows
        return self._to_target(guess)


def shared_tokens(target: Any, draft: Any) -> dict[int, int]:
    """Return the tokens that two tokenizers share: id in `target` -> id in `draft`, one to one.

    A token is the same when it is spelled the same; where the two write the space before a word differently (as the
    letter G with a dot, or as a low line), that is taken into account.
    """
    known = _SHARED.setdefault(target, weakref.WeakKeyDictionary())
    sizes = len(target.get_vocab()), len(draft.get_vocab())
    found = known.get(draft)
    if found is None or found[0] != sizes:  # a token may have been added since
        known[draft] = found = (sizes, _spelled_the_same(target, draft))
    return found[1]


_SHARED: weakref.WeakKeyDictionary[Any, weakref.WeakKeyDictionary[Any, tuple[tuple[int, int], dict[int, int]]]] = (
    weakref.WeakKeyDictionary()
)


def _spelled_the_same(target: Any, draft: Any) -> dict[int, int]:
    vocabulary: dict[str, int] = target.get_vocab()
    own, other = _space(draft), _space(target)
    shared: dict[int, int] = {}
    for token, index in draft.get_vocab().items():
        if own and other and own != other and token.startswith(own):
            token = other + token[len(own) :]
        place = vocabulary.get(token)
        if place is not None:
            shared.setdefault(place, index)
    return shared


def _space(tokenizer: Any) -> str:
    """Return the sign that a tokenizer writes for the space before a word, or ""."""
    ids = list(tokenizer(" a", add_special_tokens=False)["input_ids"])
    token = str(tokenizer.convert_ids_to_tokens(ids)[0]) if ids else ""
    return token[:1] if token[:1] not in ("a", "") else ""


class SharedDraft(DraftModel):
    """Guesses by a model of another tokenizer, among the tokens that both have; for sampling.

    Args:
        reader: The draft model.
        plan: How it is to draft.
        shared: From `shared_tokens`; not empty.
        to_draft: Translator for tokens that the draft model does not have.
    """

    def __init__(self, reader: DraftReader, plan: DraftPlan, shared: dict[int, int], to_draft: Translator) -> None:
        super().__init__(reader, plan)
        self._shared, self._to_draft = shared, to_draft
        self._own: list[int] = []  # the text in the draft model's tokens
        self._known = 0  # tokens of the text that these stand for
        self._targets = torch.tensor(list(shared.keys()))
        self._sources = torch.tensor(list(shared.values()))

    def _own_ids(self, ids: list[int]) -> tuple[list[int], int]:
        if not self._own:
            self._own = self._to_draft(ids, begins=True)
        else:
            for token in ids[self._known :]:
                own = self._shared.get(token)
                self._own += self._to_draft([token]) if own is None else [own]
        self._known = len(ids)
        return self._own, self._stable

    def _own_id(self, token: int) -> int:
        return self._shared[token]

    def _scores(self, scores: torch.Tensor) -> torch.Tensor:
        if self._targets.device != scores.device:
            self._targets, self._sources = self._targets.to(scores.device), self._sources.to(scores.device)
        mapped = scores.new_full((1, self._plan.vocabulary), -math.inf)  # (1, V)
        return mapped.index_copy_(1, self._targets, scores[:, self._sources])
