"""Gradients are the same by every way through a model: backends, checkpointing, caches, padding, tuples."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from quintet.cache import DynamicCache


def gradients(model: Any, logits: torch.Tensor) -> dict[str, torch.Tensor]:
    """The gradient of every parameter for a loss in which every logit counts."""
    model.zero_grad()
    logits.logsumexp(-1).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def same(got: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert got.keys() == wanted.keys()
    for name, gradient in wanted.items():
        torch.testing.assert_close(got[name], gradient, rtol=1e-4, atol=1e-4)


@pytest.fixture
def mask(ids: torch.Tensor) -> torch.Tensor:
    mask = torch.ones_like(ids)
    mask[0, :4] = mask[2, :1] = 0
    return mask


@pytest.fixture
def wanted(make_one: Any, ids: torch.Tensor, mask: torch.Tensor) -> Any:
    """The gradients of the plainest way: attention by its definition, no cache; without and with padding."""
    model = make_one(backend="eager")
    real = mask.bool()
    return (
        gradients(model, model(ids, use_cache=False).logits),
        gradients(model, model(ids, attention_mask=mask, use_cache=False).logits[real]),
    )


def test_by_every_backend(make: Any, ids: torch.Tensor, mask: torch.Tensor, wanted: Any) -> None:
    model = make()
    same(gradients(model, model(ids, use_cache=False).logits), wanted[0])
    same(gradients(model, model(ids, attention_mask=mask, use_cache=False).logits[mask.bool()]), wanted[1])
    same(gradients(model, model(ids, output_attentions=True).logits), wanted[0])


def test_row_by_row(make: Any, ids: torch.Tensor, mask: torch.Tensor, wanted: Any) -> None:
    model = make()
    alone = [model(row[real][None]).logits[0] for row, real in zip(ids, mask.bool(), strict=True)]
    same(gradients(model, torch.cat(alone)), wanted[1])


@pytest.mark.parametrize("task", ["causal-lm", "sequence-classification"])
def test_with_checkpointing(make: Any, ids: torch.Tensor, mask: torch.Tensor, task: str) -> None:
    model = make(task, pad_token_id=97).train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.0
    plain = model(ids, attention_mask=mask)
    before = gradients(model, plain.logits)
    model.gradient_checkpointing_enable()
    assert model.is_gradient_checkpointing
    out = model(ids, attention_mask=mask)
    torch.testing.assert_close(out.logits, plain.logits)
    same(gradients(model, out.logits), before)
    model.gradient_checkpointing_disable()
    same(gradients(model, model(ids, attention_mask=mask).logits), before)


def test_checkpointing_draws_the_same_dropout_again(make: Any, ids: torch.Tensor) -> None:
    """The second computation of a block must drop what the first one did."""
    names = ("attention_dropout", "residual_dropout", "resid_pdrop", "attn_pdrop", "embd_pdrop", "hidden_dropout")
    model = make()
    fields = {name: 0.3 for name in names if hasattr(model.config, name)}
    assert fields
    model = make(**fields).train()
    found = []
    for checkpointing in (False, True):
        model.base_model.gradient_checkpointing = checkpointing
        torch.manual_seed(3)
        found.append(gradients(model, model(ids).logits))
    same(found[1], found[0])


@pytest.mark.parametrize("store", ["config", "all", "tuples"])
def test_through_a_cache(make: Any, ids: torch.Tensor, mask: torch.Tensor, wanted: Any, store: str) -> None:
    """One loss over texts that were given in parts: gradients flow back through keys and values."""
    model = make()
    for given, expected in ((None, wanted[0]), (mask, wanted[1])):
        past: Any = {"config": None, "all": DynamicCache(), "tuples": ()}[store]
        parts, end = [], 0
        for part in ids.split([4, 2, 3], dim=1):
            end += part.shape[1]
            attention_mask = None if given is None else given[:, :end]
            out = model(part, attention_mask=attention_mask, past_key_values=past, use_cache=True)
            past = out.past_key_values
            parts.append(out.logits)
        assert isinstance(past, tuple) == (store == "tuples")
        logits = torch.cat(parts, 1)
        same(gradients(model, logits if given is None else logits[given.bool()]), expected)


def test_of_an_optimized_model(make_one: Any, ids: torch.Tensor, wanted: Any) -> None:
    model = make_one()
    assert model.optimize().replaced
    same(gradients(model, model(ids, use_cache=False).logits), wanted[0])
