"""The next tokens straight from the output head, where nobody wants to see the scores of all of them.

Greedy decoding takes the head's best; sampling whose processors begin with `top_k`, or `temperature` and `top_k`, takes
a few more than k and goes on with a row in which all others are ruled out, as they would be. The scores are those of
the plain way to the bit, and so are the tokens: the noise of sampling is drawn for the whole row, as always.

Letters: A rows, E width, V vocabulary, k of `top_k`.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch

from quintet.generation.processors import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper
from quintet.generation.sampling import temperature
from quintet.generation.state import DecodeState

__all__ = ["Next", "Shortcut"]

# Looked for beyond k: logits of 16 bits are often equal, and `top_k` keeps all that equal the last.
SPARE = 64


class Next(NamedTuple):
    """What is known of the next tokens.

    Args:
        scores: (A, V); when the tokens are known, theirs alone, (A, 1).
        processors: Those that have not seen the scores yet.
        tokens: (A,) the tokens, when they are known.
    """

    scores: torch.Tensor
    processors: LogitsProcessorList
    tokens: torch.Tensor | None = None


class Shortcut:
    """Reads tokens and chooses what comes next at the head.

    Args:
        state: The model in the middle of its sequences.
        processors: All processors.
        done: How many of them the shortcut does itself.
        heat: Temperature, or None.
        k: Of `top_k`; None for the best token alone.
    """

    def __init__(
        self,
        state: DecodeState,
        processors: LogitsProcessorList,
        done: int = 0,
        heat: float | None = None,
        k: int | None = None,
    ) -> None:
        self._state, self._processors, self._heat, self._k = state, processors, heat, k
        self._left = LogitsProcessorList(processors[done:])

    @classmethod
    def of(cls, state: DecodeState, processors: LogitsProcessorList, greedy: bool) -> Shortcut | None:
        """Return the shortcut of a model and its processors, or None where there is none.

        Args:
            state: The model.
            processors: All of them.
            greedy: Take the best token; otherwise tokens are drawn.
        """
        if state.open_head is None or (greedy and processors):
            return None
        if greedy:
            return cls(state, processors)
        before, heat = 0, None
        if processors and type(processors[0]) is TemperatureLogitsWarper:
            before, heat = 1, processors[0].temperature
        last: Any = processors[before] if len(processors) > before else None
        if type(last) is not TopKLogitsWarper or last.filter_value != -math.inf:
            return None
        return cls(state, processors, before + 1, heat, last.top_k)

    def advance(self, tokens: torch.Tensor) -> Next:
        """Read one more token of each row, (A,), and return what is known of the next."""
        ahead = self._state.advance_best(tokens, 1 if self._k is None else self._k + SPARE)
        if ahead.states is None:
            assert ahead.scores is not None, "one of them is known"
            return Next(ahead.scores, self._processors)
        if ahead.best is not None:
            best, places = ahead.best
            usable = all(math.isfinite(row[0]) for row in best.tolist())
            if usable and self._k is None:
                return Next(best, self._left, places[:, 0])
            scores = self._row(best, places) if usable else None
            if scores is not None:
                return Next(scores, self._left)
        return Next(self._state.head_scores(ahead.states), self._processors)

    def _row(self, best: torch.Tensor, places: torch.Tensor) -> torch.Tensor | None:
        """Return (A, V) scores with all but the k best of each row ruled out; None where more may equal the last."""
        assert self._k is not None, "the best token alone needs no row"
        vocabulary = self._state.vocabulary
        scores = best if self._heat is None else temperature(best, self._heat)
        least = scores[:, self._k - 1 : self._k]  # (A, 1)
        if not bool((scores[:, -1:] < least).all()):
            return None
        row = scores.new_full((scores.shape[0], vocabulary), -math.inf)
        return row.scatter_(1, places, scores.masked_fill(scores < least, -math.inf))
