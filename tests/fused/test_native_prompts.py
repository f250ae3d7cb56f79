"""Prompts through the modules of models with native attention: equal to the plain models, in every family."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from quintet.auto import family_of, model_types
from quintet.kernels import attention
from quintet.kernels.loader import status
from quintet.layers.attention import native

pytestmark = pytest.mark.skipif(not status().native, reason=f"no native kernels: {status().reason}")


def model_of(family: str, dtype: torch.dtype = torch.float32, **overrides: Any) -> Any:
    torch.manual_seed(0)
    record = family_of(family)
    overrides = {"n_positions" if family in ("gpt2", "openai-gpt") else "max_position_embeddings": 256, **overrides}
    return record.classes["causal-lm"](record.tiny(**overrides)).eval().to(dtype)


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """New tokens of each call of the native kernel."""
    calls: list[int] = []

    def spied(q: torch.Tensor, *others: Any) -> torch.Tensor | None:
        out = attention.native_attention(q, *others)
        if out is not None:
            calls.append(q.shape[2])
        return out

    monkeypatch.setattr(native, "native_attention", spied)
    monkeypatch.setattr(native, "pays", lambda q, k: True)  # at every level of instructions
    yield calls


def batch(rows: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens, and a mask with rows that are padded on the left by different lengths."""
    mask = torch.ones(rows, length, dtype=torch.long)
    for row in range(1, rows):
        mask[row, : 11 * row] = 0
    return torch.randint(1, 90, (rows, length), generator=torch.Generator().manual_seed(1)), mask


@pytest.mark.parametrize("family", model_types())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_logits_of_prompts(family: str, dtype: torch.dtype, taken: list[int]) -> None:
    overrides = {"sliding_window": 9} if family == "gpt_oss" else {}
    plain, model = model_of(family, dtype, **overrides), model_of(family, dtype, **overrides)
    model.optimize()
    ids, mask = batch(3, 70)
    with torch.no_grad():
        want = plain(ids, attention_mask=mask).logits.float()
        assert not taken
        states = model(ids, attention_mask=mask, output_hidden_states=True)  # which modules give
        got = states.logits.float()
        assert taken == [70] * model.config.num_hidden_layers
    real = mask.bool()
    bound = (2e-5 if dtype == torch.float32 else 4e-2) * float(want[real].abs().max())
    assert float((got - want)[real].abs().max()) <= bound
    assert len(states.hidden_states) == model.config.num_hidden_layers + 1


@pytest.mark.parametrize("family", model_types())
def test_prompts_through_generate(family: str, taken: list[int]) -> None:
    """With left padding, at once and in chunks; the plain model is one that is never optimized."""
    plain, model = model_of(family), model_of(family)
    plain.optimize = lambda: None
    ids, mask = batch(3, 60)
    options = {"attention_mask": mask, "do_sample": False, "max_new_tokens": 12, "min_new_tokens": 12}
    want = plain.generate(ids, **options)
    assert not taken
    assert torch.equal(model.generate(ids, **options), want) and 60 in taken
    assert torch.equal(model.generate(ids, prefill_chunk_size=25, **options), want) and 25 in taken


def test_gradients_other_backends_and_training_do_as_before(taken: list[int]) -> None:
    model = model_of("gpt_oss")
    model.optimize()
    ids, _ = batch(1, 40)
    model(ids, labels=ids).loss.backward()
    assert not taken and all(p.grad is not None for p in model.parameters())
    with torch.no_grad():
        weights = model(ids, output_attentions=True).attentions
        assert weights is not None and not taken
        model.set_attn_implementation("eager")
        want = model(ids).logits
        assert not taken
        model.set_attn_implementation("sdpa")
        assert torch.allclose(model(ids).logits, want, atol=1e-5) and taken


def test_where_it_pays() -> None:
    k = torch.empty(1, 2, 600, 64)
    assert attention.pays(torch.empty(1, 2, 4, 64), k)
    assert not attention.pays(torch.empty(1, 2, 5, 64), k)
    fast = status().level in attention.MANY_LEVELS
    assert attention.pays(torch.empty(1, 2, 24, 64), k) is fast
    assert attention.pays(torch.empty(1, 16, 5, 64), k) is fast
