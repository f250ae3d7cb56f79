"""gpt-oss's experts: who is asked, the clamp, and the load-balancing loss, against the reference and by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

IDS = torch.tensor([[5, 17, 3, 88, 42, 9, 61], [70, 2, 33, 4, 90, 12, 8]])
MASKS = {
    "none": None,
    "ones": [[1] * 7, [1] * 7],
    "right": [[1] * 7, [1] * 3 + [0] * 4],
    "left": [[0, 0, 1, 1, 1, 1, 1], [1] * 7],
    "hole": [[1, 0, 1, 1, 0, 1, 1], [1, 1, 1, 0, 1, 1, 1]],
}


def loss_by_hand(layers: Any, experts: int, top_k: int, real: list[bool]) -> float:
    """E * sum_e f_e P_e with plain loops over layers, tokens and experts."""
    uses, shares, tokens = [0.0] * experts, [0.0] * experts, 0
    for logits in layers:
        for token, scores in enumerate(logits.tolist()):
            if not real[token]:
                continue
            tokens += 1
            largest = max(scores)
            weights = [math.exp(score - largest) for score in scores]
            for expert in sorted(range(experts), key=lambda e: -scores[e])[:top_k]:
                uses[expert] += 1
            for expert in range(experts):
                shares[expert] += weights[expert] / sum(weights)
    return experts * sum(uses[e] / tokens * shares[e] / tokens for e in range(experts))


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize(("experts", "top_k"), [(1, 1), (4, 1), (4, 2), (5, 3), (8, 8)])
def test_the_balancing_loss(pair: Any, same: Any, mask: str, experts: int, top_k: int) -> None:
    fields = {"num_local_experts": experts, "num_experts_per_tok": top_k, "num_hidden_layers": 3}
    ours, theirs = pair("GptOssForCausalLM", **fields, router_aux_loss_coef=0.37)
    given: dict[str, Any] = {"output_router_logits": True, "labels": IDS, "position_ids": torch.arange(7)[None]}
    real = [True] * 14
    if MASKS[mask] is not None:
        given["attention_mask"] = torch.tensor(MASKS[mask])
        real = given["attention_mask"].flatten().bool().tolist()
    got, wanted = ours(IDS, **given), theirs(IDS, **given)
    same(got.aux_loss, wanted.aux_loss)
    assert got.aux_loss.item() == pytest.approx(loss_by_hand(got.router_logits, experts, top_k, real), rel=1e-5)
    without = ours(IDS, **{**given, "output_router_logits": False})
    assert got.loss.item() == pytest.approx(without.loss.item() + 0.37 * got.aux_loss.item(), rel=1e-5)
    if mask != "left":  # there the padded queries see what nobody shall see
        same(got.loss, wanted.loss)
    assert without.get("aux_loss") is None
    assert without.get("router_logits") is None


def test_the_balancing_loss_with_a_cache(pair: Any, same: Any) -> None:
    """The mask counts the cached tokens too; only the new ones are routed, so only theirs count."""
    ours, theirs = pair("GptOssForCausalLM")
    mask = torch.tensor(MASKS["hole"])
    past = ours(IDS[:, :4], attention_mask=mask[:, :4]).past_key_values
    got = ours(IDS[:, 4:], attention_mask=mask, past_key_values=past, output_router_logits=True)
    real = mask[:, 4:].flatten().bool().tolist()
    assert got.aux_loss.item() == pytest.approx(loss_by_hand(got.router_logits, 4, 2, real), rel=1e-5)
    other = theirs(IDS[:, :4], use_cache=True).past_key_values
    past = ours(IDS[:, :4]).past_key_values
    given = {"output_router_logits": True, "labels": IDS[:, 4:]}
    same(ours(IDS[:, 4:], past_key_values=past, **given), theirs(IDS[:, 4:], past_key_values=other, **given))


def test_labels_change_nothing_in_the_balancing_loss(pair: Any, same: Any) -> None:
    ours, theirs = pair("GptOssForCausalLM", output_router_logits=True)
    labels = IDS.clone()
    labels[:, :5] = -100
    for given in ({}, {"labels": labels}, {"labels": labels, "num_items_in_batch": 3}):
        same(ours(IDS, **given), theirs(IDS, **given))
    same(ours(IDS).aux_loss, ours(IDS, labels=labels).aux_loss)


def test_the_four_dimensional_mask_counts_every_token(pair: Any) -> None:
    ours, _ = pair("GptOssForCausalLM")
    causal = torch.ones(1, 1, 7, 7).tril().bool()
    got = ours(IDS, attention_mask=causal, output_router_logits=True)
    assert got.aux_loss.item() == pytest.approx(loss_by_hand(got.router_logits, 4, 2, [True] * 14), rel=1e-5)


@pytest.mark.parametrize("alpha", [1.702, 0.3])
@pytest.mark.parametrize("limit", [7.0, 0.5, 0.001])
def test_the_experts_by_hand(pair: Any, same: Any, alpha: float, limit: float) -> None:
    """Values of a hundred, so that the clamp acts on both, and only from above on the gate."""
    ours, theirs = pair("GptOssModel", swiglu_alpha=alpha, swiglu_limit=limit)
    with torch.no_grad():
        for layer in ours.layers:
            layer.mlp.experts.gate_up_proj.mul_(100)
            layer.mlp.experts.gate_up_proj_bias.mul_(30)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 3, 32)
    mlp, other = ours.layers[0].mlp, theirs.layers[0].mlp
    router, experts = mlp.router, mlp.experts
    tokens, wanted = x.flatten(0, 1), torch.zeros(6, 32)
    clamped = 0
    for row, token in enumerate(tokens):
        scores = router.weight @ token + router.bias
        chosen = sorted(range(4), key=lambda e: -scores[e].item())[:2]
        shares = torch.stack([scores[e] for e in chosen]).softmax(0)
        for share, expert in zip(shares, chosen, strict=True):
            inner = token @ experts.gate_up_proj[expert] + experts.gate_up_proj_bias[expert]
            gate, up = inner[0::2], inner[1::2]
            clamped += int((up.abs() > limit).sum()) + int((gate > limit).sum())
            gate, up = torch.minimum(gate, torch.tensor(limit)), up.clamp(-limit, limit)
            said = ((up + 1) * gate / (1 + torch.exp(-alpha * gate))) @ experts.down_proj[expert]
            wanted[row] += share * (said + experts.down_proj_bias[expert])
    assert clamped > 20
    from quintet.layers.step import Step

    got = mlp(x, Step(masks=()))
    same(got, wanted.view(2, 3, 32), tolerance=1e-4)
    same(got, other(x)[0])
    same(ours(IDS), theirs(IDS), tolerance=1e-4)


def test_all_tokens_to_one_expert(pair: Any, same: Any) -> None:
    """A router's bias decides alone; the others are never computed, and their gradients are none or 0 in both."""
    ours, theirs = pair("GptOssForCausalLM", num_experts_per_tok=1)
    with torch.no_grad():
        for layer in ours.model.layers:
            layer.mlp.router.bias.copy_(torch.tensor([0.0, 0.0, 50.0, 0.0]))
    theirs.load_state_dict(ours.state_dict())
    for model in (ours, theirs):
        model(IDS, labels=IDS, output_router_logits=True).loss.backward()
    same(ours(IDS), theirs(IDS))
    for name, weight in ours.named_parameters():
        same(weight.grad, theirs.get_parameter(name).grad, tolerance=1e-4, where=name)
    gradient = ours.model.layers[0].mlp.experts.down_proj.grad
    assert gradient[[0, 1, 3]].eq(0).all()
    assert gradient[2].ne(0).any()


@pytest.mark.parametrize("experts", range(1, 9))
def test_every_number_of_experts(pair: Any, same: Any, experts: int) -> None:
    """From one of a token to all of them, with ties in the router's scores broken alike."""
    for top_k in range(1, experts + 1):
        fields = {"num_local_experts": experts, "num_experts_per_tok": top_k, "num_hidden_layers": 1}
        ours, theirs = pair("GptOssForCausalLM", **fields)
        given = {"labels": IDS, "output_router_logits": True}
        same(ours(IDS, **given), theirs(IDS, **given))
        with torch.no_grad():
            for model in (ours, theirs):
                model.model.layers[0].mlp.router.weight.zero_()  # every token has the same scores
        same(ours(IDS, **given), theirs(IDS, **given))


def test_batches_are_routed_token_by_token(pair: Any, same: Any) -> None:
    ours, _ = pair("GptOssForCausalLM", num_local_experts=8, num_experts_per_tok=3)
    together = ours(IDS, output_router_logits=True)
    for row in range(2):
        alone = ours(IDS[row : row + 1], output_router_logits=True)
        same(together.logits[row], alone.logits[0])
        for one, other in zip(together.router_logits, alone.router_logits, strict=True):
            same(one.view(2, 7, 8)[row], other)
