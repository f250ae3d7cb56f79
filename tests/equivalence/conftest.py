"""Every family, every backend: each test of this folder runs over all of them.

A family of your own takes part when its file is loaded first and registers itself:
`pytest tests/equivalence -p my_family -k my_model_type`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from quintet.auto import family_of, model_types
from quintet.family import Family
from quintet.layers.attention import usable_backends
from quintet.layers.begin import windows_of

# What the logits of float32 models that compute the same in another order may differ by.
TOLERANCE = {"rtol": 1e-5, "atol": 2e-5}


# Those that every test runs with. flex_attention has no gradients on a CPU and is slow there, so it is held against
# these where the backends are compared; those of the flash-attn package take no float32.
EVERYDAY = ["eager", "sdpa"]


@pytest.fixture(scope="session")
def backends() -> list[str]:
    """Every backend that can run float32 here."""
    return [name for name in usable_backends() if not name.startswith("flash")]


@pytest.fixture(params=model_types())
def family(request: pytest.FixtureRequest) -> Family:
    """The record of a family."""
    return family_of(request.param)


def built(family: Family, backend: str, task: str, **fields: Any) -> Any:
    """Make a small model in evaluation mode, with weights that are far from symmetric, and the same at every call."""
    torch.manual_seed(0)
    model = family.classes[task](family.tiny(attn_implementation=backend, **fields))
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.15)
    return model.eval()


@pytest.fixture(params=EVERYDAY)
def make(request: pytest.FixtureRequest, family: Family) -> Callable[..., Any]:
    """Makes a model of the family for a task: `make("causal-lm", **fields)`, once for every everyday backend."""

    def build(task: str = "causal-lm", **fields: Any) -> Any:
        return built(family, request.param, task, **fields)

    return build


@pytest.fixture
def make_one(family: Family) -> Callable[..., Any]:
    """The same with the default backend, for what does not depend on it."""

    def build(task: str = "causal-lm", backend: str = "sdpa", **fields: Any) -> Any:
        return built(family, backend, task, **fields)

    return build


@pytest.fixture
def kinds(family: Family) -> list[tuple[dict[str, Any], int | None]]:
    """For each kind of layer that the family has: the fields that make all layers of that kind, and its window."""
    config = family.tiny()
    windows = windows_of(config)
    if len(set(windows)) == 1:
        return [({}, windows[0])]
    window_of = dict(zip(config.layer_types, windows, strict=True))
    return [({"layer_types": [kind] * len(windows)}, window) for kind, window in window_of.items()]


@pytest.fixture
def all_experts(family: Family) -> dict[str, int]:
    """Fields with which every token uses every expert.

    A choice between nearly equal experts may fall the other way when numbers are rounded, and then everything differs.
    """
    experts = getattr(family.tiny(), "num_local_experts", None)
    return {} if experts is None else {"num_experts_per_tok": experts}


@pytest.fixture
def ids() -> torch.Tensor:
    """Three rows of nine tokens."""
    return torch.randint(90, (3, 9), generator=torch.Generator().manual_seed(5))


def close(got: torch.Tensor, wanted: torch.Tensor, **bounds: float) -> None:
    """Equal up to the order in which float32 numbers are added."""
    torch.testing.assert_close(got, wanted, **{**TOLERANCE, **bounds})


@pytest.fixture(name="close", scope="session")
def close_fixture() -> Callable[..., None]:
    """See close."""
    return close


def fed(model: Any, ids: torch.Tensor, cut: list[int], mask: torch.Tensor | None = None, past: Any = None) -> Any:
    """The logits of `ids`, given to the model in parts, and the cache."""
    logits, end = [], 0
    for part in ids.split(cut, dim=1):
        end += part.shape[1]
        given = None if mask is None else mask[:, :end]
        out = model(part, attention_mask=given, past_key_values=past, use_cache=True)
        past = out.past_key_values
        logits.append(out.logits)
    assert past.get_seq_length() == end
    return torch.cat(logits, dim=1), past


@pytest.fixture(name="fed", scope="session")
def fed_fixture() -> Callable[..., Any]:
    """See fed."""
    return fed
