"""A language whose probabilities are known: three words, and a table of which follows which."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

# p(next | last), rows: last word. Greedy: a -> b, b -> c, c -> c.
TABLE = torch.tensor([[0.25, 0.5, 0.25], [0.125, 0.375, 0.5], [0.2, 0.2, 0.6]], dtype=torch.float64)
WORDS = {"a": 0, "b": 1, "c": 2}


class TableModel:
    """Predicts the next word from the last one by TABLE."""

    device = torch.device("cpu")

    def __init__(self, limit: int | None = None) -> None:
        self.limit = limit
        self.training = True
        self.base_model = self
        self.given: list[torch.Tensor] = []

    def train(self, mode: bool) -> None:
        self.training = mode

    def eval(self) -> None:
        self.train(False)

    def _position_limit(self) -> int | None:
        return self.limit

    def get_input_embeddings(self) -> torch.nn.Embedding:
        return torch.nn.Embedding(3, 1)

    def get_output_embeddings(self) -> None:
        return None

    def __call__(self, input_ids: torch.Tensor, **kwargs: Any) -> SimpleNamespace:
        assert not self.training and not torch.is_grad_enabled()
        assert self.limit is None or input_ids.shape[1] <= self.limit
        self.given.append(input_ids)
        return SimpleNamespace(logits=TABLE.log()[input_ids])


class TableTokenizer:
    """A token for each word; blanks belong to the word after them. `a` begins a text."""

    bos_token_id: int | None = 0
    eos_token_id: int | None = None

    def __call__(self, text: str, **kwargs: Any) -> dict[str, list[int]]:
        return {"input_ids": [WORDS[word] for word in text.split()]}


@pytest.fixture
def table_model() -> Callable[..., TableModel]:
    """Makes one."""
    return TableModel


@pytest.fixture
def table_tokenizer() -> TableTokenizer:
    """See TableTokenizer."""
    return TableTokenizer()


@pytest.fixture
def logp() -> Callable[..., float]:
    """log p of ids, each from the one before; the first is given."""

    def total(*ids: int) -> float:
        return sum(math.log(TABLE[last, following]) for last, following in zip(ids, ids[1:], strict=False))

    return total
