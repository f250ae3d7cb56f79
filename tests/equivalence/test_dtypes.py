"""The same numbers in every data type, up to its rounding; never NaN."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

# Greatest difference of a logit from float64's, in units of the logits' standard deviation, for models of two blocks
# with weights that the type holds exactly: what is left is the rounding of the arithmetic. The worst that was measured
# is 2.1e-6, 0.051 and 0.0063, some 7 to 18 steps of the type; other machines add in another order.
BOUNDS = {torch.float32: 1e-5, torch.bfloat16: 0.15, torch.float16: 0.02}
HALVES = [torch.bfloat16, torch.float16]


def named(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@pytest.fixture
def mask(ids: torch.Tensor) -> torch.Tensor:
    """A row padded on the left, one on the right, one with nothing but padding."""
    mask = torch.ones_like(ids)
    mask[0, :4] = mask[1, 7:] = mask[2] = 0
    return mask


def worst(got: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((got.double() - wanted).abs().max() / wanted.std())


@pytest.mark.parametrize("dtype", BOUNDS, ids=named)
def test_against_double(
    make: Any, all_experts: Any, ids: torch.Tensor, mask: torch.Tensor, fed: Any, dtype: torch.dtype
) -> None:
    model = make(**all_experts).to(dtype)
    double = copy.deepcopy(model).double()
    real = mask.bool()
    with torch.no_grad():
        wanted, padded = double(ids).logits, double(ids, attention_mask=mask).logits[real]
        assert wanted.dtype == torch.float64
        for got, right in (
            (model(ids).logits, wanted),
            (fed(model, ids, [5, 1, 3])[0], wanted),
            (model(ids, output_attentions=True).logits, wanted),
            (model(ids, attention_mask=mask).logits[real], padded),
            (fed(model, ids, [5, 1, 3], mask)[0][real], padded),
        ):
            assert got.dtype == dtype
            assert worst(got, right) < BOUNDS[dtype]


@pytest.mark.parametrize("dtype", [torch.float64, *BOUNDS], ids=named)
def test_nothing_is_nan(make: Any, ids: torch.Tensor, mask: torch.Tensor, fed: Any, dtype: torch.dtype) -> None:
    """Rows and queries that see nothing have no result, but a number; so have their gradients."""
    model = make().to(dtype)
    blind = torch.ones(9, 9).tril().bool() & mask.bool()[:, None, None, :]
    additive = torch.zeros(blind.shape).masked_fill(~blind, -torch.inf)
    least = additive.clamp_min(torch.finfo(torch.float32).min)
    for given in (mask, blind, additive, additive.to(dtype), least):
        out = model(ids, attention_mask=given, output_attentions=True, output_hidden_states=True)
        for tensor in (out.logits, *out.attentions, *out.hidden_states, model(ids, attention_mask=given).logits):
            assert tensor.isfinite().all()
        model.zero_grad()
        model(ids, attention_mask=given, labels=ids).loss.backward()
        assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    with torch.no_grad():
        for past in (None, ()):
            assert fed(model, ids, [3, 1, 4, 1], mask, past)[0].isfinite().all() if past is None else True
            out = model(ids[:, :5], attention_mask=mask[:, :5], past_key_values=past, use_cache=True)
            out = model(ids[:, 5:], attention_mask=mask, past_key_values=out.past_key_values)
            assert out.logits.isfinite().all()


@pytest.mark.parametrize("dtype", HALVES, ids=named)
def test_large_activations_stay_finite(make: Any, ids: torch.Tensor, dtype: torch.dtype) -> None:
    """Scores beyond the largest number of float16 (65504) are summed where they fit."""
    model = make().to(dtype)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if any(part in name for part in ("q_proj", "k_proj", "c_attn", "query_key_value")):
                parameter.mul_(12.0)
        assert model(ids).logits.isfinite().all()
        assert model(ids, output_attentions=True).logits.isfinite().all()


@pytest.mark.parametrize("dtype", BOUNDS, ids=named)
def test_an_optimized_model(
    make: Any, all_experts: Any, ids: torch.Tensor, mask: torch.Tensor, fed: Any, dtype: torch.dtype
) -> None:
    """Twins give what plain modules give: a prompt, single tokens, padded rows, with and without gradients."""
    plain = make(**all_experts).to(dtype)
    double = copy.deepcopy(plain).double()
    fast = copy.deepcopy(plain)
    report = fast.optimize()
    assert report.replaced
    assert not report.kept
    assert {name: p.shape for name, p in fast.named_parameters()} == {n: p.shape for n, p in plain.named_parameters()}
    assert all(torch.equal(a, b) for a, b in zip(fast.state_dict().values(), plain.state_dict().values(), strict=True))
    real = mask.bool()
    for around in (torch.no_grad, torch.inference_mode, torch.enable_grad):
        with around():
            wanted, padded = double(ids).logits, double(ids, attention_mask=mask).logits[real]
            for cut in ([9], [5, 1, 2, 1]):
                assert worst(fed(fast, ids, cut)[0], wanted) < BOUNDS[dtype]
                assert worst(fed(fast, ids, cut, mask)[0][real], padded) < BOUNDS[dtype]
            one = fed(fast, ids[:1], [6, 1, 1, 1])[0]  # a single row takes other ways than several
            assert worst(one, wanted[:1]) < BOUNDS[dtype]


def test_an_optimized_model_with_chosen_experts(make: Any, ids: torch.Tensor, fed: Any, close: Any) -> None:
    plain = make()
    fast = copy.deepcopy(plain)
    fast.optimize()
    with torch.no_grad():
        for rows in (ids, ids[:1]):
            close(fed(fast, rows, [5, 1, 3])[0], plain(rows).logits)


@pytest.mark.parametrize("dtype", HALVES, ids=named)
def test_generated_tokens_do_not_depend_on_the_way(make_one: Any, ids: torch.Tensor, dtype: torch.dtype) -> None:
    """In half precision too a row of a batch writes what it writes alone, wherever the choice is not a tie."""
    model = make_one().to(dtype)
    together = model.generate(ids, max_new_tokens=5, do_sample=False, eos_token_id=None, pad_token_id=97)
    assert together.shape == (3, 14)
    with torch.no_grad():
        for row in together:
            logits = model(row[None, :-1]).logits[0, 8:].double()  # of the five new tokens
            chosen = logits.gather(1, row[9:, None])[:, 0]
            assert ((logits.amax(1) - chosen) <= 0.3 * logits.std()).all()
