"""GPT-2 learns as the reference does: gradients, losses in training mode, names and sizes of what is learnt."""

from __future__ import annotations

from typing import Any

import pytest
import torch

IDS = torch.tensor([[5, 17, 3, 88, 42, 9, 61], [70, 2, 33, 4, 90, 12, 8]])
NAMES = [
    "GPT2Model",
    "GPT2LMHeadModel",
    "GPT2DoubleHeadsModel",
    "GPT2ForSequenceClassification",
    "GPT2ForTokenClassification",
    "GPT2ForQuestionAnswering",
]


def inputs(name: str) -> dict[str, Any]:
    choices = torch.stack([IDS, IDS.flip(1)], dim=1)
    return {
        "GPT2Model": {"input_ids": IDS},
        "GPT2LMHeadModel": {"input_ids": IDS, "labels": IDS},
        "GPT2DoubleHeadsModel": {"input_ids": choices, "labels": choices, "mc_labels": torch.tensor([0, 1])},
        "GPT2ForSequenceClassification": {"input_ids": IDS, "labels": torch.tensor([0, 1])},
        "GPT2ForTokenClassification": {"input_ids": IDS, "labels": IDS % 2},
        "GPT2ForQuestionAnswering": {
            "input_ids": IDS,
            "start_positions": torch.tensor([1, 2]),
            "end_positions": torch.tensor([3, 6]),
        },
    }[name]


def loss_of(out: Any) -> torch.Tensor:
    parts = [out[name] for name in ("loss", "mc_loss") if name in out]
    return torch.stack(parts).sum() if parts else (out.last_hidden_state**2).mean()


OPTIONS = {
    "plain": {},
    "cross": {"add_cross_attention": True},
    "upcast": {"reorder_and_upcast_attn": True, "scale_attn_by_inverse_layer_idx": True},
    "untied": {"tie_word_embeddings": False},
}


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize(
    ("name", "option"), [*((name, "plain") for name in NAMES), *(("GPT2LMHeadModel", o) for o in OPTIONS)]
)
def test_gradients_of_every_parameter(pair: Any, same: Any, backend: str, name: str, option: str) -> None:
    ours, theirs = pair(name, backend=backend, pad_token_id=98, **OPTIONS[option])
    given = inputs(name)
    if option == "cross":
        given["encoder_hidden_states"] = torch.randn(2, 5, 32)
    mask = torch.ones_like(given["input_ids"])
    mask[..., -1, 5:] = 0
    for model in (ours, theirs):
        loss_of(model(**given, attention_mask=mask)).backward()
    wanted = {n: p.grad for n, p in theirs.named_parameters()}
    got = {n: p.grad for n, p in ours.named_parameters()}
    assert sorted(got) == sorted(wanted)
    for parameter, gradient in got.items():
        assert gradient is not None, parameter
        same(gradient, wanted[parameter], tolerance=1e-4, where=parameter)


def test_gradients_with_num_items_in_batch(pair: Any, same: Any) -> None:
    ours, theirs = pair("GPT2LMHeadModel")
    for model in (ours, theirs):
        for row in IDS.split(1):  # accumulated
            model(row, labels=row, num_items_in_batch=12).loss.backward()
    same(ours.transformer.wte.weight.grad, theirs.transformer.wte.weight.grad, tolerance=1e-4)
    accumulated = ours.transformer.wte.weight.grad.clone()
    ours.zero_grad()
    ours(IDS, labels=IDS).loss.backward()  # the same twelve labels at once
    same(ours.transformer.wte.weight.grad, accumulated, tolerance=1e-4)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("cross", [False, True])
def test_names_shapes_and_ties(transformers: Any, name: str, cross: bool) -> None:
    import quintet
    from quintet.models.gpt2 import tiny

    config = tiny(add_cross_attention=cross)
    ours = getattr(quintet, name)(config)
    theirs = getattr(transformers, name)(transformers.GPT2Config.from_dict(config.to_dict()))
    assert {n: t.shape for n, t in ours.state_dict().items()} == {n: t.shape for n, t in theirs.state_dict().items()}
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert [n for n, _ in ours.named_parameters()] == [n for n, _ in theirs.named_parameters()]  # tied ones once
    assert ours.num_parameters() == theirs.num_parameters()
    assert ours.num_parameters(exclude_embeddings=True) == theirs.num_parameters(exclude_embeddings=True)
    theirs.load_state_dict(ours.state_dict())
    ours.load_state_dict(theirs.state_dict())


def test_initial_weights_are_spread_as_the_references(transformers: Any) -> None:
    import quintet

    fields = {"vocab_size": 300, "n_positions": 64, "n_embd": 128, "n_layer": 3, "n_head": 4, "initializer_range": 0.05}
    ours = quintet.GPT2DoubleHeadsModel(quintet.GPT2Config(**fields, add_cross_attention=True))
    theirs = transformers.GPT2DoubleHeadsModel(transformers.GPT2Config(**fields, add_cross_attention=True))
    for name, weight in theirs.named_parameters():
        got = ours.get_parameter(name)
        if name == "multiple_choice_head.summary.weight":  # one row: too few numbers to measure
            continue
        torch.testing.assert_close(got.std(correction=0), weight.std(correction=0), rtol=0.06, atol=1e-8, msg=name)
        assert abs(got.mean() - weight.mean()) < 0.01, name
    std = {
        part: ours.get_parameter(f"transformer.h.1.{part}.weight").std().item()
        for part in ("attn.c_attn", "mlp.c_proj")
    }
    assert std["attn.c_attn"] == pytest.approx(0.05, rel=0.05)
    assert std["mlp.c_proj"] == pytest.approx(0.05 / 6**0.5, rel=0.05)  # two additions to the residual in each block


def test_dropout_is_active_in_training_mode_only(pair: Any) -> None:
    none = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    for backend in ("eager", "sdpa"):
        for name in none:
            ours, theirs = pair("GPT2Model", backend=backend, their_backend=backend, **{**none, name: 0.5})
            for model in (ours, theirs):
                model.train()
                first, second = (model(IDS).last_hidden_state for _ in range(2))
                assert not torch.equal(first, second), (backend, name)
            ours.eval()
            assert torch.equal(ours(IDS).last_hidden_state, ours(IDS).last_hidden_state)
        ours, _ = pair("GPT2Model", backend=backend, **none)
        ours.train()
        assert torch.equal(ours(IDS).last_hidden_state, ours(IDS).last_hidden_state)


def test_dropout_in_training_equals_the_references_with_the_same_seed(pair: Any, same: Any) -> None:
    """The order in which random numbers are drawn is the same, so seeded training runs can be compared."""
    ours, theirs = pair("GPT2LMHeadModel")
    got = []
    for model in (ours.train(), theirs.train()):
        torch.manual_seed(3)
        got.append(model(IDS, labels=IDS).loss)
    same(*got)


def test_sixteen_bit(pair: Any, same: Any) -> None:
    """bfloat16 and float16 stay near float32, also with padding on either side, and nothing is NaN."""
    for backend in ("eager", "sdpa"):
        ours, theirs = pair("GPT2LMHeadModel", backend=backend, their_backend=backend)
        exact = ours(IDS).logits
        for dtype, tolerance in ((torch.bfloat16, 0.1), (torch.float16, 0.02)):
            ours.to(dtype)
            theirs.to(dtype)
            assert ours.dtype == dtype
            same(ours(IDS).logits.float(), exact, tolerance=tolerance)
            same(ours(IDS).logits.float(), theirs(IDS).logits.float(), tolerance=tolerance)
            for mask in ([[0, 0, 1, 1, 1, 1, 1], [1] * 7], [[1, 1, 1, 1, 0, 0, 0], [0] * 7]):
                for extra in ({}, {"output_attentions": True}):
                    out = ours(IDS, attention_mask=torch.tensor(mask), labels=IDS, **extra)
                    assert out.logits.isfinite().all()
                    assert out.loss.dtype == torch.float32  # the loss is always computed in it
                    assert out.loss.isfinite()


def test_autocast(pair: Any, same: Any) -> None:
    ours, theirs = pair("GPT2LMHeadModel", reorder_and_upcast_attn=True)
    with torch.autocast("cpu", torch.bfloat16):
        got, wanted = ours(IDS, labels=IDS), theirs(IDS, labels=IDS)
        same(got.loss, wanted.loss, tolerance=2e-2)
        got.loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in ours.parameters())
