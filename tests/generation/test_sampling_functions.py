"""The sampling functions against their definitions, written out token by token."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from score_tables import kept, probabilities, scores_of_a_batch

from quintet.generation import sampling
from quintet.generation.sampling import warp

INF = math.inf


@settings(max_examples=60)
@given(scores_of_a_batch(), st.floats(0.05, 20))
def test_temperature_divides(scores: torch.Tensor, value: float) -> None:
    assert torch.equal(sampling.temperature(scores, value), scores / value)
    per_row = torch.full((scores.shape[0],), value)
    torch.testing.assert_close(sampling.temperature(scores, per_row), scores / value)


@settings(max_examples=60)
@given(scores_of_a_batch(), st.integers(0, 14))
def test_top_k_keeps_the_k_best_and_ties(scores: torch.Tensor, k: int) -> None:
    after = sampling.top_k(scores, k)
    for row in range(scores.shape[0]):
        values = scores[row].tolist()
        rank = {i: sum(other > one for other in values) for i, one in enumerate(values)}
        expected = {i for i, one in enumerate(values) if one > -INF and (k == 0 or rank[i] < k)}
        assert kept(scores, after, row) == expected
    assert torch.equal(sampling.top_k(scores, torch.full((scores.shape[0],), k)), after)
    assert torch.equal(sampling.top_k(after, k), after)  # a second time changes nothing


@settings(max_examples=60)
@given(scores_of_a_batch(), st.floats(0.01, 1.0), st.integers(1, 3))
def test_top_p_keeps_the_smallest_sufficient_set(scores: torch.Tensor, p: float, keep: int) -> None:
    after = sampling.top_p(scores, p, keep=keep)
    for row in range(scores.shape[0]):
        share = probabilities(scores[row])
        alive = kept(scores, after, row)
        total = sum(share[i] for i in alive)
        assert total >= p - 1e-5
        dead = [share[i] for i in range(len(share)) if i not in alive]
        assert all(share[i] >= max(dead, default=0) - 1e-12 for i in alive)
        least = min(share[i] for i in alive)
        if len(alive) > keep and least > 0:
            assert total - least < p + 1e-5  # one fewer would not do
    assert torch.equal(sampling.top_p(scores, torch.full((scores.shape[0],), p), keep=keep), after)


@settings(max_examples=60)
@given(scores_of_a_batch(), st.floats(0.0, 1.0))
def test_min_p_compares_with_the_most_likely(scores: torch.Tensor, p: float) -> None:
    after = sampling.min_p(scores, p)
    for row in range(scores.shape[0]):
        share = probabilities(scores[row])
        alive = kept(scores, after, row)
        for token, one in enumerate(share):
            if one > 0 and abs(one - p * max(share)) > 1e-6:
                assert (token in alive) == (one > p * max(share))
        assert share.index(max(share)) in alive or max(share) in [share[i] for i in alive]
    assert torch.equal(sampling.min_p(scores, torch.full((scores.shape[0],), p)), after)


@settings(max_examples=60)
@given(scores_of_a_batch(), st.floats(0.1, 5), st.lists(st.integers(0, 14), max_size=6), st.integers(0, 4), st.data())
def test_repetition_penalty_once_per_token(
    scores: torch.Tensor, penalty: float, tokens: list[int], ignore: int, data: st.DataObject
) -> None:
    rows = scores.shape[0]
    ids = torch.tensor([tokens] * rows, dtype=torch.long).reshape(rows, len(tokens))
    own = torch.tensor([data.draw(st.integers(0, 4)) for _ in range(rows)])
    for ignored, each in ((None, [0] * rows), (ignore, [ignore] * rows), (own, own.tolist())):
        after = sampling.repetition_penalty(scores, ids, penalty, ignore=ignored)
        assert after.shape == scores.shape
        for row in range(rows):
            seen = set(tokens[each[row] :])
            for token, one in enumerate(scores[row].tolist()):
                expected = one if token not in seen else one * penalty if one < 0 else one / penalty
                assert after[row, token].item() == pytest.approx(expected, rel=1e-5)
    per_row = torch.full((rows,), penalty)
    torch.testing.assert_close(
        sampling.repetition_penalty(scores, ids, per_row), sampling.repetition_penalty(scores, ids, penalty)
    )


@settings(max_examples=60)
@given(scores_of_a_batch())
def test_greedy_is_the_first_best(scores: torch.Tensor) -> None:
    assert torch.equal(sampling.greedy(scores), scores.argmax(dim=-1))


def test_settings_per_row_are_those_of_each_row_alone() -> None:
    scores = torch.randn(4, 50)
    k, p, t = torch.tensor([0, 3, 60, 1]), torch.tensor([1.0, 0.5, 0.9, 0.2]), torch.tensor([1.0, 0.5, 2.0, 0.9])
    both = {
        "top_k": (sampling.top_k(scores, k), [sampling.top_k(scores[i : i + 1], int(k[i])) for i in range(4)]),
        "top_p": (sampling.top_p(scores, p), [sampling.top_p(scores[i : i + 1], float(p[i])) for i in range(4)]),
        "min_p": (sampling.min_p(scores, p), [sampling.min_p(scores[i : i + 1], float(p[i])) for i in range(4)]),
        "temperature": (
            sampling.temperature(scores, t),
            [sampling.temperature(scores[i : i + 1], float(t[i])) for i in range(4)],
        ),
    }
    for together, alone in both.values():
        torch.testing.assert_close(together, torch.cat(alone))


@pytest.mark.parametrize("fill", [-INF, -1e4])
def test_top_p_leaves_ruled_out_columns_out_of_the_sort_without_a_trace(
    fill: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = torch.randn(3, 5000) * 3
    scores[1, 7] = scores[1, 9] = scores[1].max()
    scores = sampling.top_k(scores, 60)
    for p in (0.01, 0.5, 0.9, 0.999, 1.0):
        assert warp._live_columns(scores) is not None
        quick = sampling.top_p(scores, p, fill=fill)
        with monkeypatch.context() as patch:
            patch.setattr(warp, "SMALL_VOCABULARY", 10**9)
            assert torch.equal(quick, sampling.top_p(scores, p, fill=fill))


def test_sample_draws_what_multinomial_draws() -> None:
    for seed in range(40):
        scores = torch.randn(5, 64) * 4
        scores[:, seed % 64] = -INF
        torch.manual_seed(seed)
        expected = torch.multinomial(scores.softmax(-1), 1).squeeze(1)
        torch.manual_seed(seed)
        assert torch.equal(sampling.sample(scores), expected)
        assert torch.equal(sampling.sample(scores, torch.Generator().manual_seed(seed)), expected)


def test_sample_follows_the_distribution() -> None:
    scores = torch.tensor([[0.0, 1.0, 2.0, -1.0, -INF]])
    draws = sampling.sample(scores.expand(20_000, -1), torch.Generator().manual_seed(1))
    counts = torch.bincount(draws, minlength=5).double()
    expected = scores[0].double().softmax(0) * 20_000
    assert counts[4] == 0
    chi_square = ((counts - expected)[:4] ** 2 / expected[:4]).sum()
    assert chi_square < 16.3  # 0.1 % level with three degrees of freedom


@pytest.mark.parametrize(
    "row", [[math.nan, 1.0], [-INF, -INF], [math.nan, math.nan]], ids=["one NaN", "all ruled out", "all NaN"]
)
def test_rows_without_a_usable_score_are_marked(row: list[float]) -> None:
    scores = torch.tensor([[0.0, 1.0], row])
    for tokens in (sampling.greedy(scores), sampling.sample(scores)):
        assert tokens[0] in (0, 1)
        assert tokens[1] == -1


def test_sample_marks_infinite_scores() -> None:
    assert sampling.sample(torch.tensor([[INF, 0.0]])).tolist() == [-1]


def test_nothing_is_changed_in_place() -> None:
    scores = torch.randn(2, 20)
    before = scores.clone()
    ids = torch.tensor([[1, 2], [3, 3]])
    sampling.top_k(scores, 3)
    sampling.top_p(scores, 0.5)
    sampling.min_p(scores, 0.5)
    sampling.temperature(scores, 0.5)
    sampling.repetition_penalty(scores, ids, 1.5)
    sampling.sample(scores)
    sampling.greedy(scores)
    assert torch.equal(scores, before)
