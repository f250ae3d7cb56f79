"""The loop of assisted generation: guess several tokens, read them in one step, keep those that decoding would give.

Leviathan et al. 2023 (arXiv 2211.17192). A guess is checked one token after the other, as plain decoding would choose
them: processors, criteria and random numbers see what they would see there. So the tokens are those of plain decoding,
greedy or by lookup, and with a draft model that samples they have the same distribution.

Letters: N tokens that are read in one step, V vocabulary, H heads, K keys.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from quintet.generation.buffer import ColumnBuffer
from quintet.generation.call import Call
from quintet.generation.candidates import Candidates, Draft
from quintet.generation.drafting import check_candidates, make_candidates
from quintet.generation.loops.column import Column, add_log_probabilities
from quintet.generation.loops.scores import check_usable, processed
from quintet.generation.processors import LogitsProcessorList
from quintet.generation.run import ColumnRun
from quintet.generation.sampling import greedy
from quintet.generation.sampling.draws import Draws
from quintet.generation.sampling.speculative import mixture, speculate
from quintet.generation.state import DecodeState
from quintet.generation.stopping import StopRules

__all__ = ["AssistedOptions", "assisted_loop", "start"]


@dataclass(frozen=True)
class AssistedOptions:
    """What the loop is to do.

    Args:
        maximum: Tokens at most, prompt included.
        draws: Draws tokens; None takes the best.
        weight: Weight of the model's probabilities in those that a draft is checked against; None for 1.
        keep_scores: Put the processed scores into the columns.
        keep_logits: Put the model's scores into the columns.
        own_ids: Give processors and criteria a copy of the tokens that is contiguous, as code from outside expects.
        logprobs: Put log-probabilities into the columns: of the chosen tokens and so many of the best.
    """

    maximum: int
    draws: Draws | None = None
    weight: float | None = None
    keep_scores: bool = False
    keep_logits: bool = False
    own_ids: bool = False
    logprobs: int | None = None


def start(call: Call) -> ColumnRun:
    """Return the loop of a call.

    Raises:
        GenerationError: what the call asks for does not go together, or the draft model cannot draft.
    """
    check_candidates(call)
    draws = Draws(call.arguments.generator, 1) if call.config.do_sample else None
    state, sequences = call.begin(), call.sequences()
    options = AssistedOptions(
        maximum=call.lengths.maximum,
        draws=draws,
        weight=call.config.assistant_ensemble_weight,
        keep_scores=call.keep_scores,
        keep_logits=call.keep_logits,
        own_ids=call.own_code,
        logprobs=call.arguments.logprobs,
    )
    # Made when the loop begins: the weights are brought into their fastest order before.
    make = partial(make_candidates, call, draws)
    loop = assisted_loop(state, sequences, call.processors, call.rules(), options, make)
    return ColumnRun(call, state, sequences, loop)


def assisted_loop(
    state: DecodeState,
    sequences: ColumnBuffer,
    processors: LogitsProcessorList,
    rules: StopRules,
    options: AssistedOptions,
    make: Callable[[], Candidates],
) -> Iterator[Column]:
    """Decode one row until it is finished, one column after the other.

    Args:
        state: The model and its prompt.
        sequences: The prompt's tokens, (1, S); grows by each column before it is yielded.
        processors: Applied to the scores in order.
        rules: When the row is finished.
        options: See AssistedOptions.
        make: Makes what guesses come from.

    Raises:
        GenerationError: there is no usable score, or a processor returned another shape.
    """
    candidates = make()
    check = _Check(state, sequences, processors, rules, options)
    text: list[int] = sequences.view[0].tolist()
    logits, draft = state.prefill()[:, None], Draft()  # (1, 1, V)
    valid = state.length
    try:
        while True:
            before = valid
            for column in check.columns(logits, draft):
                text += column.ids
                yield column
                valid += 1
            valid -= 1  # the last column's token has not been read
            state.crop(valid)
            candidates.settle(valid - before, len(draft.ids))
            if rules.done[0]:
                return
            limit = options.maximum - len(text) - 1  # the step gives one token more than it is given guesses
            if state.most_undone is not None:
                limit = min(limit, state.most_undone)
            draft = candidates.propose(text, limit) if limit > 0 else Draft()
            logits = state.advance_many(torch.tensor([[text[-1], *draft.ids]], device=logits.device))
            valid += 1
    finally:
        state.crop(valid)  # whoever leaves early finds the cache as plain decoding leaves it


class _Check:
    """Compares guesses with what plain decoding gives."""

    def __init__(
        self,
        state: DecodeState,
        sequences: ColumnBuffer,
        processors: LogitsProcessorList,
        rules: StopRules,
        options: AssistedOptions,
    ) -> None:
        self._state, self._sequences, self._processors = state, sequences, processors
        self._rules, self._options = rules, options
        self._kept: list[torch.Tensor] = []

    def columns(self, logits: torch.Tensor, draft: Draft) -> Iterator[Column]:
        """Give the columns that follow from (1, N, V) scores: the guesses that are right, and one token more."""
        options, count = self._options, logits.shape[1]
        shown = options.own_ids and (options.keep_logits or options.logprobs is not None)
        plain = not self._processors and options.draws is None and options.weight is None
        best = greedy(logits[0]) if plain else None  # (N,): all of them in one wait for the device
        known = [] if best is None else best.tolist()
        for place in range(count):
            scores = raw = logits[:, place]
            if best is None:
                if self._processors:
                    scores = processed(self._processors, self._ids(), raw, shown)
                token = self._choose(scores, draft, place)
                chosen = token.tolist()
            else:
                token, chosen = best[place : place + 1], known[place : place + 1]
            check_usable(scores, chosen)
            yield self._column(token, chosen, scores, raw, (place, count))
            if self._rules.done[0]:
                return
            self._processors.chosen(chosen)
            if place == len(draft.ids) or chosen[0] != draft.ids[place]:
                return

    def _ids(self) -> torch.Tensor:
        view = self._sequences.view
        return view.contiguous() if self._options.own_ids else view

    def _choose(self, scores: torch.Tensor, draft: Draft, place: int) -> torch.Tensor:
        """Return the token, (1,), that plain decoding chooses from (1, V) scores, or one that is distributed so."""
        draws, weight = self._options.draws, self._options.weight
        if place >= len(draft.scores):
            return greedy(scores) if draws is None else draws(scores)
        if draws is not None:
            return speculate(scores, draft.scores[place], draft.ids[place], draws, weight)
        return greedy(scores if weight is None else mixture(scores, draft.scores[place], weight))

    def _column(
        self, token: torch.Tensor, chosen: list[int], scores: torch.Tensor, raw: torch.Tensor, where: tuple[int, int]
    ) -> Column:
        options = self._options
        self._sequences.append(token)
        if options.keep_scores:
            self._kept.append(scores)
        self._rules.update(chosen, self._ids, lambda: tuple(self._kept) or None)
        column = Column(token, chosen, list(self._rules.done), collected=_of_one_token(self._state, *where))
        if options.keep_scores:
            column.scores = scores
        if options.keep_logits:
            column.logits = raw
        if options.logprobs is not None:
            add_log_probabilities(column, raw, options.logprobs, None, None)
        return column


def _of_one_token(state: DecodeState, place: int, count: int) -> dict[str, Any]:
    """Return what plain decoding collects at one of `count` tokens that were read together."""
    if count == 1:
        return state.collected
    found: dict[str, Any] = {}
    before = state.length - count
    for name, tensors in state.collected.items():
        if tensors is None:
            found[name] = None
        elif name == "attentions":
            found[name] = tuple(_row(one, place, count, before, _window(state, i)) for i, one in enumerate(tensors))
        else:
            found[name] = tuple(one[:, place : place + 1] for one in tensors)  # (1, N, E) -> (1, 1, E)
    return found


def _window(state: DecodeState, layer: int) -> int:
    return -1 if state.cache is None else state.cache.get_max_cache_shape(layer)


def _row(attention: torch.Tensor, place: int, count: int, before: int, window: int) -> torch.Tensor:
    """Return (1, H, 1, K') of (1, H, N, K): without the tokens after it, and those that its window does not show."""
    end = attention.shape[-1] - (count - 1 - place)
    seen = before + place if window < 0 else min(before + place, window - 1)
    return attention[:, :, place : place + 1, end - 1 - seen : end]
