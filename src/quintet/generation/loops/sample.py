"""The loop of one token per row and step: sampling, and greedy decoding as its argmax case."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from quintet.generation.buffer import ColumnBuffer
from quintet.generation.call import Call
from quintet.generation.loops.column import Column
from quintet.generation.loops.scores import check_usable, processed
from quintet.generation.processors import LogitsProcessorList
from quintet.generation.run import ColumnRun
from quintet.generation.sampling import greedy, sample
from quintet.generation.state import DecodeState
from quintet.generation.stopping import StopRules

__all__ = ["SampleOptions", "sample_loop", "start"]


@dataclass(frozen=True)
class SampleOptions:
    """What the loop is to do.

    Args:
        do_sample: Draw tokens; otherwise take the best.
        generator: Source of randomness; None for the global one.
        pad_token_id: Token of rows that are finished; None lets them run on.
        num_return_sequences: Continuations of each prompt.
        keep_scores: Put the processed scores into the columns.
        keep_logits: Put the model's scores into the columns.
        own_ids: Give processors and criteria a copy of the tokens that is contiguous, as code from outside expects.
    """

    do_sample: bool = False
    generator: torch.Generator | None = None
    pad_token_id: int | None = None
    num_return_sequences: int = 1
    keep_scores: bool = False
    keep_logits: bool = False
    own_ids: bool = False


def start(call: Call) -> ColumnRun:
    """Return the loop of a call."""
    state, sequences, rules = call.begin(), call.sequences(), call.rules()
    options = SampleOptions(
        do_sample=call.config.do_sample,
        generator=call.arguments.generator,
        pad_token_id=call.special.pad if rules.pads_rows else None,
        num_return_sequences=call.copies,
        keep_scores=call.keep_scores,
        keep_logits=call.keep_logits,
        own_ids=call.own_code,
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
        GenerationError: a row has no usable score, or a processor returned another shape.
    """

    def ids() -> torch.Tensor:
        return sequences.view.contiguous() if options.own_ids else sequences.view

    kept: list[torch.Tensor] = []
    logits = _prefill(state, options)
    while True:
        scores = logits
        if processors:
            scores = processed(processors, ids(), logits)
        tokens = sample(scores, options.generator) if options.do_sample else greedy(scores)
        if rules.any_done and options.pad_token_id is not None:
            done = torch.tensor(rules.done, device=tokens.device)
            tokens = torch.where(done, options.pad_token_id, tokens)
        host = tokens.tolist()  # the step's one wait for the device
        check_usable(scores, host)
        sequences.append(tokens)
        if options.keep_scores:
            kept.append(scores)
        finished = rules.update(host, ids, lambda: tuple(kept) or None)
        yield Column(
            tokens,
            host,
            list(rules.done),
            scores if options.keep_scores else None,
            logits if options.keep_logits else None,
            state.collected,
        )
        if finished:
            return
        processors.chosen(host)
        logits = state.advance(tokens)


def _prefill(state: DecodeState, options: SampleOptions) -> torch.Tensor:
    """Read the prompt, once for all its continuations where that is the same thing."""
    count = options.num_return_sequences
    if state.shares_prefill:
        logits = state.prefill()
        state.expand(count)
        return logits.repeat_interleave(count, dim=0) if count > 1 else logits
    state.expand(count)
    return state.prefill()
