"""Every family, every backend: each test of this folder runs over all of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from quintet.auto import family_of, model_types
from quintet.family import Family
from quintet.layers.attention import BACKENDS


@pytest.fixture(params=model_types())
def family(request: pytest.FixtureRequest) -> Family:
    """The record of a family."""
    return family_of(request.param)


@pytest.fixture(params=sorted(BACKENDS))
def make(request: pytest.FixtureRequest, family: Family) -> Callable[..., Any]:
    """Makes a small model of the family for a task, in evaluation mode, with weights that are far from symmetric."""

    def build(task: str = "causal-lm", **fields: Any) -> Any:
        model = family.classes[task](family.tiny(attn_implementation=request.param, **fields))
        generator = torch.Generator().manual_seed(2)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.15)
        return model.eval()

    return build


@pytest.fixture
def ids() -> torch.Tensor:
    """Three rows of nine tokens."""
    return torch.randint(90, (3, 9), generator=torch.Generator().manual_seed(5))


def close(got: torch.Tensor, wanted: torch.Tensor) -> None:
    """Equal up to the order in which float32 numbers are added."""
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=2e-5)


@pytest.fixture(name="close", scope="session")
def close_fixture() -> Callable[[torch.Tensor, torch.Tensor], None]:
    """See close."""
    return close
