"""Small tables of scores for property tests, and what became of them."""

from __future__ import annotations

import math
from typing import Any

import torch
from hypothesis import strategies as st

INF = math.inf


@st.composite
def scores_of_a_batch(draw: Any) -> torch.Tensor:
    """A few rows of scores: on a coarse grid, so that ties occur, and some ruled out."""
    rows, vocabulary = draw(st.integers(1, 3)), draw(st.integers(1, 12))
    value = st.one_of(st.integers(-12, 12).map(lambda n: n / 3), st.just(-INF))
    table = draw(st.lists(st.lists(value, min_size=vocabulary, max_size=vocabulary), min_size=rows, max_size=rows))
    for row in table:
        if all(one == -INF for one in row):
            row[draw(st.integers(0, vocabulary - 1))] = 0.5
    return torch.tensor(table)


def kept(before: torch.Tensor, after: torch.Tensor, row: int) -> set[int]:
    """Tokens of a row that were not ruled out; what is kept must be unchanged."""
    alive = {i for i in range(before.shape[1]) if after[row, i] != -INF}
    assert all(after[row, i] == before[row, i] for i in alive)
    return alive


def probabilities(row: torch.Tensor) -> list[float]:
    """The softmax of a row, in double precision."""
    values = [math.exp(one) for one in row.double().tolist()]
    return [one / sum(values) for one in values]


def entropy(shares: list[float]) -> float:
    """The entropy of a distribution, in nats."""
    return -sum(one * math.log(one) for one in shares if one > 0)
