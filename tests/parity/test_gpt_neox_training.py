"""GPT-NeoX learns as the reference does: gradients, losses in training mode, names and sizes of what is learnt."""

from __future__ import annotations

from typing import Any

import pytest
import torch

IDS = torch.tensor([[5, 17, 3, 88, 42, 9, 61], [70, 2, 33, 4, 90, 12, 8]])
INPUTS: dict[str, dict[str, Any]] = {
    "GPTNeoXModel": {},
    "GPTNeoXForCausalLM": {"labels": IDS},
    "GPTNeoXForSequenceClassification": {"labels": torch.tensor([0, 1])},
    "GPTNeoXForTokenClassification": {"labels": IDS % 2},
    "GPTNeoXForQuestionAnswering": {
        "start_positions": torch.tensor([1, 2]),
        "end_positions": torch.tensor([3, 6]),
    },
}
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "sequential": {"use_parallel_residual": False, "attention_bias": False, "num_hidden_layers": 3},
    "tied": {"tie_word_embeddings": True},
    "rope": {"rope_scaling": {"type": "dynamic", "factor": 2.0}, "max_position_embeddings": 4, "rotary_pct": 1.0},
    "tanh": {"hidden_act": "gelu_new"},
}


def loss_of(out: Any) -> torch.Tensor:
    return out.loss if "loss" in out else (out.last_hidden_state**2).mean()


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize(
    ("name", "option"), [*((name, "plain") for name in INPUTS), *(("GPTNeoXForCausalLM", o) for o in OPTIONS)]
)
def test_gradients_of_every_parameter(
    pair: Any, same: Any, their_state: Any, backend: str, name: str, option: str
) -> None:
    ours, theirs = pair(name, backend=backend, pad_token_id=98, **OPTIONS[option])
    mask = torch.ones_like(IDS)
    mask[-1, 5:] = 0
    for model in (ours, theirs):
        loss_of(model(IDS, attention_mask=mask, **INPUTS[name])).backward()
    wanted = {n: p.grad for n, p in theirs.named_parameters()}
    got = {n.replace("embed_out.", "lm_head."): p.grad for n, p in ours.named_parameters()}
    assert list(got) == list(wanted)
    for parameter, gradient in got.items():
        assert gradient is not None, parameter
        same(gradient, wanted[parameter], tolerance=1e-4, where=parameter)


@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize("option", ["plain", "sequential", "tied"])
def test_names_shapes_and_ties(transformers: Any, their_state: Any, name: str, option: str) -> None:
    import quintet
    from quintet.models.gpt_neox import tiny

    config = tiny(**OPTIONS[option])
    ours = getattr(quintet, name)(config)
    theirs = getattr(transformers, name)(transformers.GPTNeoXConfig.from_dict(config.to_dict()))
    state = their_state(ours)
    assert {n: t.shape for n, t in state.items()} == {n: t.shape for n, t in theirs.state_dict().items()}
    assert list(state) == list(theirs.state_dict())
    assert len([*ours.named_parameters()]) == len([*theirs.named_parameters()])  # tied ones once
    assert ours.num_parameters() == theirs.num_parameters()
    assert ours.num_parameters(exclude_embeddings=True) == theirs.num_parameters(exclude_embeddings=True)


def test_initial_weights_are_spread_as_the_references(transformers: Any) -> None:
    import quintet

    fields = {"vocab_size": 300, "hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    fields |= {"intermediate_size": 256, "initializer_range": 0.05}
    ours = quintet.GPTNeoXForCausalLM(quintet.GPTNeoXConfig(**fields))
    theirs = transformers.GPTNeoXForCausalLM(transformers.GPTNeoXConfig(**fields))
    for name, weight in theirs.named_parameters():
        got = ours.get_parameter(name.replace("lm_head", "embed_out"))
        torch.testing.assert_close(got.std(correction=0), weight.std(correction=0), rtol=0.06, atol=1e-8, msg=name)
        assert abs(got.mean() - weight.mean()) < 0.01, name


def test_dropout_is_active_in_training_mode_only(pair: Any) -> None:
    none = {"hidden_dropout": 0.0, "attention_dropout": 0.0}
    for backend in ("eager", "sdpa"):
        for name in none:
            ours, theirs = pair("GPTNeoXModel", backend=backend, their_backend=backend, **{**none, name: 0.5})
            for model in (ours, theirs):
                model.train()
                first, second = (model(IDS).last_hidden_state for _ in range(2))
                assert not torch.equal(first, second), (backend, name)
            ours.eval()
            assert torch.equal(ours(IDS).last_hidden_state, ours(IDS).last_hidden_state)
        ours, _ = pair("GPTNeoXModel", backend=backend, **none)
        ours.train()
        assert torch.equal(ours(IDS).last_hidden_state, ours(IDS).last_hidden_state)


@pytest.mark.parametrize("parallel", [True, False])
def test_dropout_in_training_equals_the_references_with_the_same_seed(pair: Any, same: Any, parallel: bool) -> None:
    """The order in which random numbers are drawn is the same, so seeded training runs can be compared."""
    fields = {"hidden_dropout": 0.2, "attention_dropout": 0.1, "use_parallel_residual": parallel}
    ours, theirs = pair("GPTNeoXForCausalLM", **fields)
    got = []
    for model in (ours.train(), theirs.train()):
        torch.manual_seed(3)
        got.append(model(IDS, labels=IDS).loss)
    same(*got)


def test_gradient_checkpointing_changes_nothing(pair: Any, same: Any) -> None:
    ours, _ = pair("GPTNeoXForCausalLM")
    ours.train()
    ours(IDS, labels=IDS).loss.backward()
    wanted = {name: parameter.grad.clone() for name, parameter in ours.named_parameters()}
    ours.zero_grad()
    ours.gradient_checkpointing_enable()
    ours(IDS, labels=IDS).loss.backward()
    for name, parameter in ours.named_parameters():
        same(parameter.grad, wanted[name], where=name)


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize("parallel", [True, False])
def test_sixteen_bit(pair: Any, same: Any, backend: str, parallel: bool) -> None:
    """bfloat16 and float16 stay near float32, also with padding on either side, and nothing is NaN."""
    ours, theirs = pair("GPTNeoXForCausalLM", backend=backend, their_backend=backend, use_parallel_residual=parallel)
    exact = ours(IDS).logits
    for dtype, tolerance in ((torch.bfloat16, 0.12), (torch.float16, 0.02)):
        ours.to(dtype)
        theirs.to(dtype)
        assert ours.dtype == dtype
        assert ours.gpt_neox.rotary_emb.inv_freq.dtype == torch.float32
        same(ours(IDS).logits.float(), exact, tolerance=tolerance)
        same(ours(IDS).logits.float(), theirs(IDS).logits.float(), tolerance=tolerance)
        for mask in ([[0, 0, 1, 1, 1, 1, 1], [1] * 7], [[1, 1, 1, 1, 0, 0, 0], [0] * 7]):
            for extra in ({}, {"output_attentions": True}):
                out = ours(IDS, attention_mask=torch.tensor(mask), labels=IDS, **extra)
                assert out.logits.isfinite().all()
                assert out.loss.dtype == torch.float32  # the loss is always computed in it
                assert out.loss.isfinite()


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_large_scores_in_half_precision_are_no_nan(pair: Any, same: Any, backend: str) -> None:
    """Products of queries and keys above 65504, which the scale then makes small: fine in float32 scores."""
    ours, _ = pair("GPTNeoXForCausalLM", backend=backend, hidden_size=128, num_attention_heads=1, attention_bias=True)
    with torch.no_grad():
        for layer in ours.gpt_neox.layers:
            layer.attention.query_key_value.bias[:256] += 40.0  # 128 * 40 * 40 = 204800
    exact = ours(IDS).logits
    ours.half()
    for extra in ({}, {"output_attentions": True}, {"attention_mask": torch.tensor([[0, 1, 1, 1, 1, 1, 1], [1] * 7])}):
        logits = ours(IDS, **extra).logits
        assert logits.isfinite().all()
        if "attention_mask" not in extra:
            assert (logits.float() - exact).abs().mean() < 0.1 * exact.abs().mean()


def test_autocast(pair: Any, same: Any) -> None:
    ours, theirs = pair("GPTNeoXForCausalLM")
    with torch.autocast("cpu", torch.bfloat16):
        got, wanted = ours(IDS, labels=IDS), theirs(IDS, labels=IDS)
        same(got.loss, wanted.loss, tolerance=2e-2)
        got.loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in ours.parameters())
