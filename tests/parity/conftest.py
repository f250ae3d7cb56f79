"""A model of ours and the reference's with the same weights, and how close their results must be."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))  # for oss_runs


@pytest.fixture(scope="session")
def transformers() -> ModuleType:
    """The reference."""
    module = pytest.importorskip(
        "transformers",
        reason="parity is measured against transformers, which is not installed: pip install -e '.[dev]'",
    )
    module.logging.set_verbosity_error()
    return module


# Parameters that newer releases of the reference call otherwise in memory; its files have the published names.
RENAMED = {"embed_out.": "lm_head."}


def their_state(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Our state dict with the names that the reference's model has in memory, in the same order."""
    state = {}
    for name, tensor in model.state_dict().items():
        old = next((prefix for prefix in RENAMED if name.startswith(prefix)), "")
        state[RENAMED.get(old, "") + name.removeprefix(old)] = tensor
    return state


def scatter(model: torch.nn.Module) -> None:
    """Give every parameter a value of its own: with biases of 0 and norms of 1 many a mistake would not show."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            values = torch.randn(parameter.shape, generator=generator) * 0.15
            parameter.copy_(values + 1 if parameter.dim() == 1 and name.endswith("weight") else values)


@pytest.fixture
def pair(transformers: ModuleType) -> Callable[..., tuple[Any, Any]]:
    """Makes `(ours, theirs)` of a class name, in evaluation mode, with one configuration and one state dict."""

    def make(name: str, *, backend: str = "eager", their_backend: str = "eager", **fields: Any) -> tuple[Any, Any]:
        import quintet
        from quintet.auto import family_of

        our_class = getattr(quintet, name)
        config = family_of(our_class.config_class.model_type).tiny(attn_implementation=backend, **fields)
        their_config = getattr(transformers, type(config).__name__).from_dict(config.to_dict())
        their_config._attn_implementation = their_backend
        ours, theirs = our_class(config), getattr(transformers, name)(their_config)
        scatter(ours)
        theirs.load_state_dict(their_state(ours))  # strict: the names and shapes are the same
        return ours.eval(), theirs.eval()

    return make


@pytest.fixture(scope="session", name="their_state")
def their_state_fixture() -> Callable[[torch.nn.Module], dict[str, torch.Tensor]]:
    """See their_state."""
    return their_state


@pytest.fixture(scope="session")
def same() -> Callable[..., None]:
    """Asserts that two results have the same fields, shapes and values, to 1e-5."""

    def empty(value: Any) -> bool:
        return isinstance(value, tuple) and not value

    def check(got: Any, wanted: Any, tolerance: float = 1e-5, where: str = "result") -> None:
        if isinstance(wanted, torch.Tensor):
            torch.testing.assert_close(
                got, wanted, rtol=tolerance, atol=tolerance, msg=lambda words: f"{where}: {words}"
            )
        elif isinstance(wanted, Mapping):
            # Stores are compared by the tests of the cache; an empty tuple is how the reference says "none" at times.
            names = [name for name in wanted if name != "past_key_values" and not empty(wanted[name])]
            assert [name for name in got if name != "past_key_values"] == names, where
            for name in names:
                check(got[name], wanted[name], tolerance, f"{where}.{name}")
        elif isinstance(wanted, Sequence):
            wanted = [value for value in wanted if not empty(value)]
            assert len(got) == len(wanted), where
            for index, value in enumerate(wanted):
                check(got[index], value, tolerance, f"{where}[{index}]")
        else:
            assert type(got).__name__ == type(wanted).__name__, where

    return check
