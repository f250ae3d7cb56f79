"""Contrastive search: of the likeliest next tokens take the one that is least like what was said before.

Su et al. 2022 (arXiv 2202.06417), equation 5: of the k most likely tokens v, the one with the largest

    (1 - alpha) * p(v) - alpha * max_j cos(h_v, h_j)

where h_v is the last layer's state of v read after the text, and h_j are those of the tokens so far.

Letters: B rows, S tokens so far, k candidates of each row, E hidden size, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from quintet.errors import GenerationError
from quintet.generation.buffer import ColumnBuffer
from quintet.generation.call import Call
from quintet.generation.loops.column import Column, add_log_probabilities
from quintet.generation.loops.scores import check_usable, processed
from quintet.generation.processors import LogitsProcessorList
from quintet.generation.run import ColumnRun
from quintet.generation.state import DecodeState
from quintet.generation.stopping import StopRules

__all__ = ["ContrastiveOptions", "choose", "contrastive_loop", "start"]

STATES = "hidden_states"


@dataclass(frozen=True)
class ContrastiveOptions:
    """What the loop is to do.

    Args:
        alpha: Weight of the difference from the text, from 0 to 1.
        candidates: k.
        mask: (B, S) with 0 for padding in the prompt, or None.
        pad_token_id: Token of rows that are finished; None lets them run on.
        keep_scores: Put the processed scores into the columns.
        keep_logits: Put the model's scores into the columns.
        own_ids: Give processors and criteria a copy of the tokens that is contiguous, as code from outside expects.
        logprobs: Put log-probabilities into the columns: of the chosen tokens and so many of the best.
    """

    alpha: float
    candidates: int
    mask: torch.Tensor | None = None
    pad_token_id: int | None = None
    keep_scores: bool = False
    keep_logits: bool = False
    own_ids: bool = False
    logprobs: int | None = None


def start(call: Call) -> ColumnRun:
    """Return the loop of a call.

    Raises:
        GenerationError: what the call asks for does not go together with contrastive search.
    """
    _check(call)
    collect = call.collect if STATES in call.collect else (*call.collect, STATES)
    state, sequences, rules = replace(call, collect=collect).begin(), call.sequences(), call.rules()
    options = ContrastiveOptions(
        alpha=float(call.config.penalty_alpha),
        candidates=min(int(call.config.top_k), int(call.model.config.vocab_size)),
        mask=call.prompt.mask,
        pad_token_id=call.special.pad if rules.pads_rows else None,
        keep_scores=call.keep_scores,
        keep_logits=call.keep_logits,
        own_ids=call.own_code,
        logprobs=call.arguments.logprobs,
    )
    return ColumnRun(call, state, sequences, contrastive_loop(state, sequences, call.processors, rules, options))


def _check(call: Call) -> None:
    config, prompt = call.config, call.prompt
    what = f"penalty_alpha={config.penalty_alpha} (contrastive search)"
    if config.do_sample:
        raise GenerationError(f"{what} and do_sample=True contradict: it draws nothing. Set one of them.")
    if config.num_beams > 1:
        raise GenerationError(f"{what} and num_beams={config.num_beams} contradict. Set one of them.")
    if not config.top_k:
        raise GenerationError(
            f"{what} chooses among the top_k most likely tokens, and top_k is {config.top_k}. Set it, for example "
            "top_k=4."
        )
    if prompt.past > 0:
        raise GenerationError(
            f"{what} compares with the states of all tokens, and past_key_values holds none of them for its "
            f"{prompt.past} tokens. Pass the whole prompt without a cache."
        )
    if config.prefill_chunk_size is not None and config.prefill_chunk_size < prompt.unread:
        raise GenerationError(
            f"{what} needs the states of the whole prompt, and prefill_chunk_size={config.prefill_chunk_size} reads it "
            "in parts. Leave that out."
        )
    limit = call.model._position_limit()
    if limit is not None and prompt.positions + call.lengths.new > limit:
        raise GenerationError(
            f"{what} reads every token before it takes it: {call.lengths.new} new tokens after a prompt of "
            f"{prompt.positions} need {prompt.positions + call.lengths.new} positions, and the model has {limit}. Ask "
            "for fewer new tokens, or shorten the prompt."
        )


def choose(probabilities: torch.Tensor, states: torch.Tensor, text: torch.Tensor, alpha: float) -> torch.Tensor:
    """Return which candidate each row takes, (B,).

    Args:
        probabilities: (B, k); those of 0 are ruled out.
        states: (B, k, E) of the candidates, each of length 1.
        text: (B, S, E) of the tokens so far, each of length 1, or of length 0 for padding.
        alpha: Weight of the difference from the text.
    """
    likeness = torch.einsum("bke,bse->bks", states, text)  # (B, k, S)
    padding = (text == 0).all(dim=-1)  # (B, S)
    likeness = likeness.masked_fill(padding[:, None], -math.inf).amax(dim=-1)  # (B, k)
    value = (1 - alpha) * probabilities - alpha * likeness
    return value.masked_fill(probabilities == 0, -math.inf).argmax(dim=-1)


def contrastive_loop(
    state: DecodeState,
    sequences: ColumnBuffer,
    processors: LogitsProcessorList,
    rules: StopRules,
    options: ContrastiveOptions,
) -> Iterator[Column]:
    """Decode until every row is finished, one column of tokens at a time.

    Args:
        state: The model and its prompt; collects the hidden states.
        sequences: The prompt's tokens; grows by each column before it is yielded.
        processors: Applied to the scores in order.
        rules: When rows are finished.
        options: See ContrastiveOptions.

    Raises:
        GenerationError: a row has no usable score, or a processor returned something else than scores.
    """

    def ids() -> torch.Tensor:
        return sequences.view.contiguous() if options.own_ids else sequences.view

    rows, k = sequences.view.shape[0], options.candidates
    raw = options.own_ids and (options.keep_logits or options.logprobs is not None)
    logits, shown = state.prefill(), state.collected
    text = _directions(shown[STATES][-1])  # (B, S, E)
    if options.mask is not None:
        text = text * options.mask[:, :, None]
    state.collected, valid = {}, state.length
    first = torch.arange(0, rows * k, k, device=logits.device)  # (B,): each row's first copy
    state.expand(k)
    kept: list[torch.Tensor] = []
    try:
        while True:
            scores = processed(processors, ids(), logits, raw) if processors else logits  # (B, V)
            probabilities, tokens = scores.softmax(dim=-1).topk(k, dim=-1)  # (B, k)
            following = state.advance(tokens.reshape(-1))  # (B, k) -> (B * k,); (B * k, V)
            states = _directions(state.collected[STATES][-1][:, -1]).unflatten(0, (rows, k))  # (B, k, E)
            place = choose(probabilities, states, text, options.alpha)  # (B,)
            taken = tokens.gather(1, place[:, None])[:, 0].masked_fill(~(probabilities[:, 0] > 0), -1)  # NaN too
            column = _column(taken, scores, logits, shown, rules, options)
            sequences.append(column.tokens)
            if options.keep_scores:
                kept.append(scores)
            finished = rules.update(column.ids, ids, lambda: tuple(kept) or None)
            column.finished = list(rules.done)
            yield column
            if finished:
                return
            processors.chosen(column.ids)
            picked = first + place  # (B,) of the B * k
            logits, shown = following.index_select(0, picked), _rows(state.collected, picked)
            text = torch.cat([text, states.gather(1, place[:, None, None].expand(-1, 1, states.shape[-1]))], dim=1)
            state.reorder(picked.repeat_interleave(k), newest=1)  # all copies go on from the one that was taken
            valid += 1
    finally:
        state.keep(first)
        state.crop(valid)  # as plain decoding leaves it: the last column's token has not been read


def _directions(states: torch.Tensor) -> torch.Tensor:
    """Return states scaled to length 1, in float32."""
    return torch.nn.functional.normalize(states.float(), dim=-1)


def _column(
    taken: torch.Tensor,
    scores: torch.Tensor,
    logits: torch.Tensor,
    shown: dict[str, Any],
    rules: StopRules,
    options: ContrastiveOptions,
) -> Column:
    done = None
    if rules.any_done and options.pad_token_id is not None:
        done = torch.tensor(rules.done, device=taken.device)
        taken = taken.masked_fill(done, options.pad_token_id)
    chosen = taken.tolist()
    check_usable(scores, chosen)
    column = Column(taken, chosen, [], collected=shown)
    if options.keep_scores:
        column.scores = scores
    if options.keep_logits:
        column.logits = logits
    if options.logprobs is not None:
        add_log_probabilities(column, logits, options.logprobs, done, options.pad_token_id)
    return column


def _rows(collected: dict[str, Any], rows: torch.Tensor) -> dict[str, Any]:
    return {
        name: None if tensors is None else tuple(one.index_select(0, rows) for one in tensors)
        for name, tensors in collected.items()
    }
