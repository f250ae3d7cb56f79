"""The loop of one token per row and step: sampling, and greedy decoding as its argmax case.

Letters: B rows of the result, A rows that are still decoded, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch

from quintet.generation.buffer import ColumnBuffer
from quintet.generation.call import Call
from quintet.generation.loops.active import ActiveRows
from quintet.generation.loops.column import Column, add_log_probabilities
from quintet.generation.loops.scores import check_usable, processed
from quintet.generation.loops.shortcut import Next, Shortcut
from quintet.generation.processors import LogitsProcessorList
from quintet.generation.run import ColumnRun
from quintet.generation.sampling import Draws, greedy
from quintet.generation.state import DecodeState
from quintet.generation.stopping import StopRules

__all__ = ["SampleOptions", "sample_loop", "start"]


@dataclass(frozen=True)
class SampleOptions:
    """What the loop is to do.

    Args:
        draws: Draws the tokens; None takes the best.
        pad_token_id: Token of rows that are finished; None lets them run on.
        num_return_sequences: Continuations of each prompt.
        keep_scores: Put the processed scores into the columns.
        keep_logits: Put the model's scores into the columns.
        own_ids: Give processors and criteria a copy of the tokens that is contiguous, as code from outside expects.
        drop_finished: Take finished rows out of the model's batch.
        logprobs: Put log-probabilities into the columns: of the chosen tokens and so many of the best.
    """

    draws: Draws | None = None
    pad_token_id: int | None = None
    num_return_sequences: int = 1
    keep_scores: bool = False
    keep_logits: bool = False
    own_ids: bool = False
    drop_finished: bool = False
    logprobs: int | None = None


def start(call: Call) -> ColumnRun:
    """Return the loop of a call."""
    state, sequences, rules = call.begin(), call.sequences(), call.rules()
    rows = call.rows * call.copies
    pad = call.special.pad if rules.pads_rows else None
    options = SampleOptions(
        draws=Draws(call.arguments.generator, rows, call.copies) if call.config.do_sample else None,
        pad_token_id=pad,
        num_return_sequences=call.copies,
        keep_scores=call.keep_scores,
        keep_logits=call.keep_logits,
        own_ids=call.own_code,
        drop_finished=rows > 1 and pad is not None and not call.needs_all_rows,
        logprobs=call.arguments.logprobs,
    )
    return ColumnRun(call, state, sequences, sample_loop(state, sequences, call.processors, rules, options))


def sample_loop(
    state: DecodeState,
    sequences: ColumnBuffer,
    processors: LogitsProcessorList,
    rules: StopRules,
    options: SampleOptions,
) -> Iterator[Column]:
    """Decode until every row is finished, one column of tokens at a time.

    Args:
        state: The model and its prompt.
        sequences: The prompt's tokens, one row for each continuation; grows by each column before it is yielded.
        processors: Applied to the scores in order.
        rules: When rows are finished.
        options: See SampleOptions.

    Raises:
        GenerationError: a row has no usable score, or a processor returned something else than scores.
    """

    def ids() -> torch.Tensor:
        return sequences.view.contiguous() if options.own_ids else sequences.view

    pad, choose = options.pad_token_id, _chooser(options)
    shown = options.own_ids and (options.keep_logits or options.logprobs is not None)
    rows = ActiveRows(len(rules.done))
    kept: list[torch.Tensor] = []
    found = Next(state.prefill_copies(options.num_return_sequences), processors)
    short = _shortcut(state, processors, options)
    while True:
        logits = scores = found.scores
        if found.processors:
            scores = processed(found.processors, rows.pick(ids()), logits, shown)  # (A, V)
        tokens = choose(scores, rows.index) if found.tokens is None else found.tokens  # (A,)
        done = None  # (B,) rows that were finished before, unless the model has dropped them
        if rules.any_done and pad is not None and rows.index is None:
            done = torch.tensor(rules.done, device=tokens.device)
            tokens = tokens.masked_fill(done, pad)
        host = tokens.tolist()  # the step's one wait for the device
        check_usable(scores, host, rows.row)
        column = Column(tokens, host, [], collected=state.collected)
        if options.logprobs is not None:
            add_log_probabilities(column, logits, options.logprobs, done, pad)
        if rows.index is not None:
            column = _every_row(column, rows, pad)
        if options.keep_scores:
            kept.append(scores)
            column.scores = scores
        if options.keep_logits:
            column.logits = logits
        sequences.append(column.tokens)
        finished = rules.update(column.ids, ids, lambda: tuple(kept) or None)
        column.finished = list(rules.done)
        yield column
        if finished:
            return
        if options.drop_finished and rules.any_done:
            left = rows.drop(rules.done, tokens.device)
            if left is not None:
                state.keep(left)
                processors.select(left)
                tokens, host = tokens.index_select(0, left), [host[place] for place in left.tolist()]
        processors.chosen(host)
        found = Next(state.advance(tokens), processors) if short is None else short.advance(tokens)


def _shortcut(state: DecodeState, processors: LogitsProcessorList, options: SampleOptions) -> Shortcut | None:
    """Return the way past the scores of all tokens, when nobody asked for them and there is one."""
    if options.keep_scores or options.keep_logits or options.logprobs is not None:
        return None
    return Shortcut.of(state, processors, options.draws is None)


def _chooser(options: SampleOptions) -> Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor]:
    """Return what chooses the tokens, (A,), from scores, (A, V), and the rows that these belong to."""
    return options.draws or (lambda scores, rows: greedy(scores))


def _every_row(column: Column, rows: ActiveRows, pad: int | None) -> Column:
    """Return a column of the model's rows as one of all rows."""
    fill = 0 if pad is None else pad
    return replace(
        column,
        tokens=rows.spread(column.tokens, fill),
        ids=rows.spread_list(column.ids, fill),
        logprobs=None if column.logprobs is None else rows.spread(column.logprobs),
        top_ids=None if column.top_ids is None else rows.spread(column.top_ids, fill),
        top_logprobs=None if column.top_logprobs is None else rows.spread(column.top_logprobs, -math.inf),
    )
