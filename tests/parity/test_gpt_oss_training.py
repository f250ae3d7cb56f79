"""gpt-oss learns as the reference does: gradients, dropout, names and sizes of what is learnt, 16 bits."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from oss_runs import check_gradient_checkpointing, check_gradients

IDS = torch.tensor([[5, 17, 3, 88, 42, 9, 61], [70, 2, 33, 4, 90, 12, 8]])
NAMES = [
    "GptOssModel",
    "GptOssForCausalLM",
    "GptOssForSequenceClassification",
    "GptOssForTokenClassification",
]


def inputs(name: str) -> dict[str, Any]:
    return {
        "GptOssModel": {"input_ids": IDS},
        "GptOssForCausalLM": {"input_ids": IDS, "labels": IDS, "output_router_logits": True},
        "GptOssForSequenceClassification": {"input_ids": IDS, "labels": torch.tensor([0, 1])},
        "GptOssForTokenClassification": {"input_ids": IDS, "labels": IDS % 2},
    }[name]


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "tied": {"tie_word_embeddings": True},
    "no-bias": {"attention_bias": False, "num_key_value_heads": 1},
    "one-expert": {"num_local_experts": 1, "num_experts_per_tok": 1},
    "all-experts": {"num_local_experts": 3, "num_experts_per_tok": 3, "swiglu_limit": 0.05},
    "deep": {"num_hidden_layers": 4, "sliding_window": 2, "num_local_experts": 8},
}


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize(
    ("name", "option"), [*((name, "plain") for name in NAMES), *(("GptOssForCausalLM", o) for o in OPTIONS)]
)
def test_gradients_of_every_parameter(pair: Any, same: Any, backend: str, name: str, option: str) -> None:
    check_gradients(pair(name, backend=backend, **OPTIONS[option]), inputs(name), same)


@pytest.mark.parametrize("name", NAMES)
def test_gradient_checkpointing(pair: Any, same: Any, name: str) -> None:
    check_gradient_checkpointing(pair(name), inputs(name), same)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("fields", [{}, {"tie_word_embeddings": True, "attention_bias": False}])
def test_names_shapes_and_ties(transformers: Any, name: str, fields: dict[str, Any]) -> None:
    import quintet
    from quintet.models.gpt_oss import tiny

    config = tiny(**fields)
    ours = getattr(quintet, name)(config)
    theirs = getattr(transformers, name)(transformers.GptOssConfig.from_dict(config.to_dict()))
    assert {n: t.shape for n, t in ours.state_dict().items()} == {n: t.shape for n, t in theirs.state_dict().items()}
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert [n for n, _ in ours.named_parameters()] == [n for n, _ in theirs.named_parameters()]  # tied ones once
    assert ours.base_model_prefix == theirs.base_model_prefix
    assert ours.num_parameters() == theirs.num_parameters()
    theirs.load_state_dict(ours.state_dict())
    ours.load_state_dict(theirs.state_dict())


def test_initial_weights_are_spread_as_the_references(transformers: Any) -> None:
    import quintet

    fields = {"vocab_size": 300, "hidden_size": 128, "intermediate_size": 128, "num_hidden_layers": 2}
    fields |= {"num_attention_heads": 64, "num_key_value_heads": 4, "head_dim": 16, "initializer_range": 0.05}
    fields |= {"num_local_experts": 64, "num_experts_per_tok": 2}
    ours = quintet.GptOssForCausalLM(quintet.GptOssConfig(**fields))
    theirs = transformers.GptOssForCausalLM(transformers.GptOssConfig(**fields))
    for name, weight in theirs.named_parameters():
        got, few = ours.get_parameter(name), weight.numel() < 100  # sinks and the router's biases
        torch.testing.assert_close(
            got.std(correction=0), weight.std(correction=0), rtol=0.6 if few else 0.06, atol=1e-8, msg=name
        )
        assert abs(got.mean() - weight.mean()) < (0.03 if few else 0.01), name


def test_dropout(pair: Any, same: Any) -> None:
    """Of attention weights; off outside training, and drawn in the reference's order."""
    ours, theirs = pair("GptOssForCausalLM", attention_dropout=0.5)
    still = ours(IDS, labels=IDS).loss
    losses = []
    for model in (ours.train(), theirs.train()):
        torch.manual_seed(3)
        losses.append(model(IDS, labels=IDS).loss)
    same(*losses)
    assert not torch.allclose(losses[0], still)
    assert not torch.equal(ours(IDS).logits, ours(IDS).logits)
    ours.eval()
    assert torch.equal(ours(IDS).logits, ours(IDS).logits)
    ours, _ = pair("GptOssForCausalLM")
    assert torch.equal(ours.train()(IDS).logits, ours.eval()(IDS).logits)


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_sixteen_bit(pair: Any, same: Any, backend: str) -> None:
    """bfloat16 and float16 stay near float32, also with padding on either side, and nothing is NaN."""
    pairs = pair("GptOssForCausalLM", backend=backend, num_experts_per_tok=4)
    exact = pairs[0](IDS).logits
    for dtype, tolerance in ((torch.bfloat16, 0.08), (torch.float16, 0.01)):
        ours, theirs = (copy.deepcopy(model).to(dtype) for model in pairs)
        assert ours.dtype == dtype
        assert ours.model.rotary_emb.inv_freq.dtype == torch.float32
        same(ours(IDS).logits.float(), exact, tolerance=tolerance)
        same(ours(IDS).logits.float(), theirs(IDS).logits.float(), tolerance=tolerance)
        for mask in ([[0, 0, 1, 1, 1, 1, 1], [1] * 7], [[1, 1, 1, 1, 0, 0, 0], [0] * 7]):
            for extra in ({}, {"output_attentions": True, "output_router_logits": True}):
                out = ours(IDS, attention_mask=torch.tensor(mask), labels=IDS, **extra)
                assert out.logits.dtype == dtype
                assert out.logits.isfinite().all()
                assert out.loss.dtype == torch.float32
                assert out.loss.isfinite()
        out.loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in ours.parameters())


def test_sixteen_bit_with_a_choice_of_experts(pair: Any) -> None:
    """Where two experts are as good as each other, rounding may pick the other one: a few tokens, no more."""
    model, _ = pair("GptOssForCausalLM", num_local_experts=8)
    ids = torch.randint(97, (4, 40), generator=torch.Generator().manual_seed(1))
    exact = model(ids).logits
    for dtype, tolerance, share in ((torch.bfloat16, 0.1, 0.75), (torch.float16, 0.02, 0.95)):
        near = (copy.deepcopy(model).to(dtype)(ids).logits.float() - exact).abs().amax(-1) < tolerance  # (4, 40)
        assert near.float().mean() > share


def test_sinks_in_sixteen_bit(pair: Any, same: Any) -> None:
    """Large scores and large sinks: the softmax is computed in float32 and stays finite."""
    pairs = pair("GptOssModel", num_experts_per_tok=4)
    with torch.no_grad():
        for layer in pairs[0].layers:
            layer.self_attn.sinks.copy_(torch.tensor([-300.0, 300.0, 8.0, 0.0]))
            layer.self_attn.q_proj.weight.mul_(8)
    exact = pairs[0](IDS).last_hidden_state
    for dtype, tolerance in ((torch.bfloat16, 0.25), (torch.float16, 0.03)):
        got = copy.deepcopy(pairs[0]).to(dtype)(IDS).last_hidden_state.float()
        assert got.isfinite().all()
        same(got, exact, tolerance=tolerance)


def test_positions_far_out_in_sixteen_bit(pair: Any, same: Any) -> None:
    """Angles are float32: a position of a hundred thousand is still itself."""
    ours, theirs = pair("GptOssForCausalLM", num_experts_per_tok=4)
    far = (torch.arange(7) + 100_000)[None]
    exact = ours(IDS, position_ids=far).logits
    same(exact, theirs(IDS, position_ids=far).logits, tolerance=1e-4)
    same(ours(IDS).logits, exact, tolerance=0.02)  # only distances count
    same(ours.to(torch.bfloat16)(IDS, position_ids=far).logits.float(), exact, tolerance=0.1)
