"""The filters and penalties against their definitions, row by row and draw by draw."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from score_tables import INF, entropy, kept, probabilities, scores_of_a_batch

from quintet.generation import (
    EpsilonLogitsWarper,
    InfNanRemoveLogitsProcessor,
    LogitNormalization,
    MinPLogitsWarper,
    NoRepeatNGramLogitsProcessor,
    PrefixConstrainedLogitsProcessor,
    SuppressTokensLogitsProcessor,
    TopKLogitsWarper,
    sampling,
)

CLOSE = 1e-5  # nearer to a limit than that, rounding decides


@settings(max_examples=60)
@given(scores_of_a_batch(), st.floats(0.01, 1.0))
def test_top_h_keeps_a_share_of_the_entropy(scores: torch.Tensor, h: float) -> None:
    after = sampling.top_h(scores, h)
    for row in range(scores.shape[0]):
        shares = probabilities(scores[row])
        alive = kept(scores, after, row)
        assert max(shares) - max(shares[one] for one in alive) < 1e-9
        limit, terms = h * entropy(shares), {i: entropy([shares[i]]) for i in range(len(shares))}
        dead = [i for i, one in enumerate(shares) if i not in alive and one > 0]
        assert all(shares[i] >= max((shares[j] for j in dead), default=0) - 1e-9 for i in alive)
        if len(alive) > 1:
            assert sum(terms[i] for i in alive) <= limit + CLOSE
        if dead:  # one more would be too much
            assert sum(terms[i] for i in alive) + terms[max(dead, key=lambda i: shares[i])] > limit - CLOSE
    assert torch.equal(sampling.top_h(scores, torch.full((scores.shape[0],), h)), after)


@settings(max_examples=60)
@given(scores_of_a_batch(), st.floats(0.01, 0.99))
def test_typical_takes_the_least_surprising_surprises_first(scores: torch.Tensor, mass: float) -> None:
    after = sampling.typical(scores, mass)
    for row in range(scores.shape[0]):
        shares = probabilities(scores[row])
        expected = entropy(shares)
        distance = [abs(-math.log(one) - expected) if one > 0 else INF for one in shares]
        alive = {i for i in kept(scores, after, row) if shares[i] > 0}
        far = max(distance[i] for i in alive)
        assert all(distance[i] >= far - CLOSE for i in range(len(shares)) if i not in alive)
        assert sum(shares[i] for i in alive) >= mass - CLOSE
        nearer = sum(shares[i] for i in alive if distance[i] < far - CLOSE)
        assert nearer < mass + CLOSE  # without the farthest, and those as far, it would not do
    assert torch.equal(sampling.typical(scores, torch.full((scores.shape[0],), mass)), after)


@settings(max_examples=60)
@given(scores_of_a_batch(), st.floats(0.001, 0.999), st.integers(1, 3))
def test_epsilon_and_eta_rule_out_what_is_unlikely(scores: torch.Tensor, cutoff: float, keep: int) -> None:
    for filters, limit_of in (
        (sampling.epsilon, lambda shares: cutoff),
        (sampling.eta, lambda shares: min(cutoff, math.sqrt(cutoff) * math.exp(-entropy(shares)))),
    ):
        after = filters(scores, cutoff, keep=keep)
        for row in range(scores.shape[0]):
            shares = probabilities(scores[row])
            limit, alive = limit_of(shares), kept(scores, after, row)
            best = sorted(shares, reverse=True)[min(keep, len(shares)) - 1]
            for token, one in enumerate(shares):
                if one > 0 and abs(one - limit) > CLOSE:
                    assert (token in alive) == (one > limit or one >= best - 1e-12)
        assert torch.equal(filters(scores, torch.full((scores.shape[0],), cutoff), keep=keep), after)


@settings(max_examples=60)
@given(scores_of_a_batch(), st.lists(st.integers(0, 5), max_size=9), st.integers(1, 4))
def test_groups_of_tokens_are_not_repeated(scores: torch.Tensor, tokens: list[int], size: int) -> None:
    rows = scores.shape[0]
    ids = torch.tensor([tokens] * rows, dtype=torch.long).reshape(rows, len(tokens))
    groups = {tuple(tokens[i : i + size]) for i in range(len(tokens) - size + 1)}
    begun = tuple(tokens[len(tokens) + 1 - size :])
    after = sampling.no_repeat_ngram(scores, ids, size)
    for token in range(scores.shape[1]):
        repeats = len(tokens) >= size - 1 and (*begun, token) in groups
        expected = torch.full((rows,), -INF) if repeats else scores[:, token]
        assert torch.equal(after[:, token], expected)
    assert torch.equal(sampling.no_repeat_ngram(scores, ids, size, ids), after)


@settings(max_examples=40)
@given(scores_of_a_batch(), st.floats(0.1, 5), st.integers(-2, 9))
def test_the_end_comes_nearer(scores: torch.Tensor, factor: float, steps: int) -> None:
    after = sampling.decay_length(scores, torch.tensor([0]), factor, steps)
    assert torch.equal(after[:, 1:], scores[:, 1:])
    for before, one in zip(scores[:, 0].tolist(), after[:, 0].tolist(), strict=True):
        expected = before if before == -INF else before + abs(before) * (factor ** max(steps, 0) - 1)
        assert one == pytest.approx(expected, rel=1e-5, abs=1e-6)
    rows = scores.shape[0]
    per_row = sampling.decay_length(scores, torch.tensor([0]), torch.full((rows,), factor), torch.full((rows,), steps))
    torch.testing.assert_close(per_row, after)


@settings(max_examples=40)
@given(scores_of_a_batch(), st.floats(-2, 3))
def test_guidance_mixes_log_probabilities(scores: torch.Tensor, scale: float) -> None:
    finite = scores.clamp(min=-20)
    other = finite.flip(1)
    after = sampling.guide(finite, other, scale)
    for row in range(finite.shape[0]):
        wanted, unwanted = probabilities(finite[row]), probabilities(other[row])
        for token, one in enumerate(after[row].tolist()):
            a, b = math.log(wanted[token]), math.log(unwanted[token])
            assert one == pytest.approx(b + scale * (a - b), rel=1e-4, abs=1e-4)
    torch.testing.assert_close(sampling.guide(finite, other, torch.full((finite.shape[0],), scale)), after)


# --- rows with settings of their own ----------------------------------------------------------------------------------

PER_ROW: dict[str, tuple[Callable[..., torch.Tensor], list[float]]] = {
    "temperature": (sampling.temperature, [0.3, 1.0, 1.7, 4.0]),
    "top_k": (sampling.top_k, [0, 1, 7, 500]),
    "top_p": (sampling.top_p, [0.1, 0.5, 0.95, 1.0]),
    "min_p": (sampling.min_p, [0.0, 0.01, 0.3, 1.0]),
    "top_h": (sampling.top_h, [0.01, 0.3, 0.8, 1.0]),
    "typical": (sampling.typical, [0.01, 0.3, 0.8, 0.999]),
    "epsilon": (sampling.epsilon, [0.0, 0.001, 0.05, 1.0]),
    "eta": (sampling.eta, [0.0, 0.001, 0.05, 1.0]),
}


@pytest.mark.parametrize("name", PER_ROW)
def test_a_setting_for_each_row_is_that_of_the_row_alone(name: str) -> None:
    function, values = PER_ROW[name]
    scores = torch.randn(4, 200, generator=torch.Generator().manual_seed(1)) * 3
    dtype = torch.long if name == "top_k" else torch.float32
    together = function(scores, torch.tensor(values, dtype=dtype))
    alone = [function(scores[row : row + 1], value) for row, value in enumerate(values)]
    assert torch.equal(together, torch.cat(alone))
    order = torch.tensor([2, 0, 3, 1])
    assert torch.equal(function(scores[order], torch.tensor(values, dtype=dtype)[order]), together[order])


def test_penalties_for_each_row_are_those_of_the_row_alone() -> None:
    generator = torch.Generator().manual_seed(1)
    scores, ids = torch.randn(3, 30, generator=generator), torch.randint(0, 30, (3, 9), generator=generator)
    values = torch.tensor([1.0, 0.4, 2.5])
    together = sampling.repetition_penalty(scores, ids, values)
    alone = [sampling.repetition_penalty(scores[i : i + 1], ids[i : i + 1], float(values[i])) for i in range(3)]
    assert torch.equal(together, torch.cat(alone))


@pytest.mark.parametrize(
    "processor",
    [
        TopKLogitsWarper(4),
        MinPLogitsWarper(0.2),
        EpsilonLogitsWarper(0.05),
        NoRepeatNGramLogitsProcessor(2),
        SuppressTokensLogitsProcessor([1, 4]),
        PrefixConstrainedLogitsProcessor(lambda batch, tokens: [2, 5, 7], 1),
        InfNanRemoveLogitsProcessor(),
        LogitNormalization(),
    ],
    ids=lambda one: type(one).__name__,
)
def test_a_second_time_changes_nothing(processor: Any) -> None:
    generator = torch.Generator().manual_seed(3)
    scores, ids = torch.randn(5, 20, generator=generator) * 3, torch.randint(0, 4, (5, 30), generator=generator)
    once = processor(ids, scores)
    assert not torch.equal(once, scores) or isinstance(processor, InfNanRemoveLogitsProcessor)
    torch.testing.assert_close(processor(ids, once), once, rtol=0, atol=1e-6)


# --- distributions ----------------------------------------------------------------------------------------------------


def only(shares: list[float], alive: set[int]) -> list[float]:
    total = sum(shares[i] for i in alive)
    return [one / total if i in alive else 0.0 for i, one in enumerate(shares)]


def order_by(shares: list[float], key: Callable[[int], float]) -> list[int]:
    return sorted(range(len(shares)), key=key)


def nucleus(shares: list[float], p: float) -> list[float]:
    alive: set[int] = set()
    for token in order_by(shares, lambda i: -shares[i]):
        alive.add(token)
        if sum(shares[i] for i in alive) >= p:
            break
    return only(shares, alive)


def typical(shares: list[float], mass: float) -> list[float]:
    middle = entropy(shares)
    alive: set[int] = set()
    for token in order_by(shares, lambda i: abs(-math.log(shares[i]) - middle)):
        alive.add(token)
        if sum(shares[i] for i in alive) >= mass:
            break
    return only(shares, alive)


def top_h(shares: list[float], h: float) -> list[float]:
    best = only(shares, set(order_by(shares, lambda i: -shares[i])[:100]))
    alive: set[int] = set()
    for token in order_by(best, lambda i: -best[i]):
        if alive and sum(entropy([best[i]]) for i in (*alive, token)) > h * entropy(best):
            break
        alive.add(token)
    return only(shares, alive)


def above(shares: list[float], limit: float) -> list[float]:
    return only(shares, {i for i, one in enumerate(shares) if one >= limit} or {shares.index(max(shares))})


EXPECTED: dict[str, tuple[dict[str, Any], Callable[[list[float]], list[float]]]] = {
    "plain": ({}, lambda shares: shares),
    "top_k": ({"top_k": 7}, lambda shares: only(shares, set(order_by(shares, lambda i: -shares[i])[:7]))),
    "top_p": ({"top_p": 0.8}, lambda shares: nucleus(shares, 0.8)),
    "min_p": ({"min_p": 0.15}, lambda shares: above(shares, 0.15 * max(shares))),
    "top_h": ({"top_h": 0.6}, lambda shares: top_h(shares, 0.6)),
    "typical_p": ({"typical_p": 0.6}, lambda shares: typical(shares, 0.6)),
    "epsilon": ({"epsilon_cutoff": 0.004}, lambda shares: above(shares, 0.004)),
    "eta": (
        {"eta_cutoff": 0.3},
        lambda shares: above(shares, min(0.3, math.sqrt(0.3) * math.exp(-entropy(shares)))),
    ),
    "chain": (
        {"top_k": 20, "top_p": 0.9, "typical_p": 0.8},
        lambda shares: typical_of_alive(nucleus(only(shares, set(order_by(shares, lambda i: -shares[i])[:20])), 0.9)),
    ),
}


def typical_of_alive(shares: list[float]) -> list[float]:
    alive = [i for i, one in enumerate(shares) if one > 0]
    inner = typical([shares[i] for i in alive], 0.8)
    result = [0.0] * len(shares)
    for place, token in enumerate(alive):
        result[token] = inner[place]
    return result


@pytest.mark.parametrize("name", EXPECTED)
def test_draws_follow_the_distribution(model: Any, name: str) -> None:
    """Chi-square at the 0.1 % level, with a fixed seed: 4,000 first tokens after one prompt."""
    options, shape = EXPECTED[name]
    ids = torch.tensor([[5, 9, 44, 17]])
    with torch.no_grad():
        logits = model(ids).logits[0, -1] / 8.0
    out = model.generate(
        ids, do_sample=True, temperature=8.0, num_return_sequences=4000, max_new_tokens=1, eos_token_id=None,
        generator=torch.Generator().manual_seed(7), **({"top_k": 0} | options),
    )  # fmt: skip
    expected = torch.tensor(shape(probabilities(logits))).double() * 4000
    counts = torch.bincount(out[:, -1], minlength=expected.shape[0]).double()
    assert counts[expected == 0].sum() == 0
    big = expected >= 5
    expected = torch.cat([expected[big], expected[~big].sum()[None]])
    counts = torch.cat([counts[big], counts[~big].sum()[None]])
    inside = expected > 0
    chi_square = float(((counts - expected)[inside] ** 2 / expected[inside]).sum())
    freedom = int(inside.sum()) - 1
    # Wilson and Hilferty's approximation of the 99.9 % point.
    limit = freedom * (1 - 2 / (9 * freedom) + 3.09 * math.sqrt(2 / (9 * freedom))) ** 3
    assert freedom >= 2 and chi_square < limit
