"""Seed-OSS learns as the reference does: gradients, dropout, names and sizes of what is learnt, 16 bits."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from oss_runs import check_gradient_checkpointing, check_gradients

IDS = torch.tensor([[5, 17, 3, 88, 42, 9, 61], [70, 2, 33, 4, 90, 12, 8]])
NAMES = [
    "SeedOssModel",
    "SeedOssForCausalLM",
    "SeedOssForSequenceClassification",
    "SeedOssForTokenClassification",
    "SeedOssForQuestionAnswering",
]


def inputs(name: str) -> dict[str, Any]:
    return {
        "SeedOssModel": {"input_ids": IDS},
        "SeedOssForCausalLM": {"input_ids": IDS, "labels": IDS},
        "SeedOssForSequenceClassification": {"input_ids": IDS, "labels": torch.tensor([0, 1])},
        "SeedOssForTokenClassification": {"input_ids": IDS, "labels": IDS % 2},
        "SeedOssForQuestionAnswering": {
            "input_ids": IDS,
            "start_positions": torch.tensor([1, 2]),
            "end_positions": torch.tensor([3, 6]),
        },
    }[name]


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "tied": {"tie_word_embeddings": True},
    "biases": {"attention_out_bias": True, "mlp_bias": True, "num_key_value_heads": 1},
    "yarn": {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4}},
}


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize(
    ("name", "option"), [*((name, "plain") for name in NAMES), *(("SeedOssForCausalLM", o) for o in OPTIONS if o)]
)
def test_gradients_of_every_parameter(pair: Any, same: Any, backend: str, name: str, option: str) -> None:
    check_gradients(pair(name, backend=backend, **OPTIONS[option]), inputs(name), same)


@pytest.mark.parametrize("name", NAMES)
def test_gradient_checkpointing(pair: Any, same: Any, name: str) -> None:
    check_gradient_checkpointing(pair(name), inputs(name), same)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("fields", [{}, {"tie_word_embeddings": True, "mlp_bias": True, "attention_out_bias": True}])
def test_names_shapes_and_ties(transformers: Any, name: str, fields: dict[str, Any]) -> None:
    import quintet
    from quintet.models.seed_oss import tiny

    config = tiny(**fields)
    ours = getattr(quintet, name)(config)
    theirs = getattr(transformers, name)(transformers.SeedOssConfig.from_dict(config.to_dict()))
    assert {n: t.shape for n, t in ours.state_dict().items()} == {n: t.shape for n, t in theirs.state_dict().items()}
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert [n for n, _ in ours.named_parameters()] == [n for n, _ in theirs.named_parameters()]  # tied ones once
    assert ours.base_model_prefix == theirs.base_model_prefix
    assert ours.num_parameters() == theirs.num_parameters()
    theirs.load_state_dict(ours.state_dict())
    ours.load_state_dict(theirs.state_dict())


def test_initial_weights_are_spread_as_the_references(transformers: Any) -> None:
    import quintet

    fields = {"vocab_size": 300, "hidden_size": 128, "intermediate_size": 160, "num_hidden_layers": 2}
    fields |= {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 16, "initializer_range": 0.05}
    fields |= {"mlp_bias": True}
    ours = quintet.SeedOssForCausalLM(quintet.SeedOssConfig(**fields))
    theirs = transformers.SeedOssForCausalLM(transformers.SeedOssConfig(**fields))
    for name, weight in theirs.named_parameters():
        got = ours.get_parameter(name)
        torch.testing.assert_close(got.std(correction=0), weight.std(correction=0), rtol=0.06, atol=1e-8, msg=name)
        assert abs(got.mean() - weight.mean()) < 0.01, name
    assert ours.model.embed_tokens.weight[1].eq(0).all()  # the padding token


def test_dropout(pair: Any, same: Any) -> None:
    """Attention weights and the two residuals; off outside training, and drawn in the reference's order."""
    rates = {"attention_dropout": 0.0, "residual_dropout": 0.0}
    for name in rates:
        ours, theirs = pair("SeedOssForCausalLM", **{**rates, name: 0.5})
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
    ours, _ = pair("SeedOssForCausalLM", **rates)
    assert torch.equal(ours.train()(IDS).logits, ours.eval()(IDS).logits)


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_sixteen_bit(pair: Any, same: Any, backend: str) -> None:
    """bfloat16 and float16 stay near float32, also with padding on either side, and nothing is NaN."""
    pairs = pair("SeedOssForCausalLM", backend=backend, their_backend=backend)
    exact = pairs[0](IDS).logits
    for dtype, tolerance in ((torch.bfloat16, 0.06), (torch.float16, 0.008)):
        ours, theirs = (copy.deepcopy(model).to(dtype) for model in pairs)
        assert ours.dtype == dtype
        assert ours.model.rotary_emb.inv_freq.dtype == torch.float32
        same(ours(IDS).logits.float(), exact, tolerance=tolerance)
        same(ours(IDS).logits.float(), theirs(IDS).logits.float(), tolerance=tolerance)
        for mask in ([[0, 0, 1, 1, 1, 1, 1], [1] * 7], [[1, 1, 1, 1, 0, 0, 0], [0] * 7]):
            for extra in ({}, {"output_attentions": True}):
                out = ours(IDS, attention_mask=torch.tensor(mask), labels=IDS, **extra)
                assert out.logits.dtype == dtype
                assert out.logits.isfinite().all()
                assert out.loss.dtype == torch.float32
                assert out.loss.isfinite()
        out.loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in ours.parameters())


def test_positions_far_out_in_sixteen_bit(pair: Any, same: Any) -> None:
    """Angles are float32: a position of a hundred thousand is still itself."""
    ours, theirs = pair("SeedOssForCausalLM")
    far = (torch.arange(7) + 100_000)[None]
    exact = ours(IDS, position_ids=far).logits
    same(exact, theirs(IDS, position_ids=far).logits, tolerance=1e-4)
    same(ours(IDS).logits, exact, tolerance=0.02)  # only distances count
    same(ours.to(torch.bfloat16)(IDS, position_ids=far).logits.float(), exact, tolerance=0.1)
