"""GPT-1 learns as the reference does: gradients, losses in training mode, names and sizes of what is learnt."""

from __future__ import annotations

from typing import Any

import pytest
import torch

IDS = torch.tensor([[5, 17, 3, 88, 42, 9, 61], [70, 2, 33, 4, 90, 12, 8]])
NAMES = [
    "OpenAIGPTModel",
    "OpenAIGPTLMHeadModel",
    "OpenAIGPTDoubleHeadsModel",
    "OpenAIGPTForSequenceClassification",
]


def inputs(name: str) -> dict[str, Any]:
    choices = torch.stack([IDS, IDS.flip(1)], dim=1)
    mask = torch.ones_like(IDS)
    mask[-1, 5:] = 0
    return {
        "OpenAIGPTModel": {"input_ids": IDS, "attention_mask": mask},
        "OpenAIGPTLMHeadModel": {"input_ids": IDS, "labels": IDS, "attention_mask": mask},
        "OpenAIGPTDoubleHeadsModel": {"input_ids": choices, "labels": choices, "mc_labels": torch.tensor([0, 1])},
        "OpenAIGPTForSequenceClassification": {
            "input_ids": IDS,
            "labels": torch.tensor([0, 1]),
            "attention_mask": mask,
        },
    }[name]


def loss_of(out: Any) -> torch.Tensor:
    parts = [out[name] for name in ("loss", "mc_loss") if name in out]
    return torch.stack(parts).sum() if parts else (out.last_hidden_state**3).mean()


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("fields", [{}, {"tie_word_embeddings": False, "afn": "silu"}], ids=["plain", "untied"])
def test_gradients_of_every_parameter(pair: Any, same: Any, backend: str, name: str, fields: dict[str, Any]) -> None:
    ours, theirs = pair(name, backend=backend, pad_token_id=98, **fields)
    for model in (ours, theirs):
        loss_of(model(**inputs(name))).backward()
    wanted = {n: p.grad for n, p in theirs.named_parameters()}
    got = {n: p.grad for n, p in ours.named_parameters()}
    assert list(got) == list(wanted)
    for parameter, gradient in got.items():
        assert gradient is not None, parameter
        same(gradient, wanted[parameter], tolerance=1e-4, where=parameter)


def test_gradients_with_num_items_in_batch(pair: Any, same: Any) -> None:
    ours, theirs = pair("OpenAIGPTLMHeadModel")
    for model in (ours, theirs):
        for row in IDS.split(1):  # accumulated
            model(row, labels=row, num_items_in_batch=12).loss.backward()
    got, wanted = (model.transformer.tokens_embed.weight.grad for model in (ours, theirs))
    same(got, wanted, tolerance=1e-4)
    accumulated = got.clone()
    ours.zero_grad()
    ours(IDS, labels=IDS).loss.backward()  # the same twelve labels at once
    same(ours.transformer.tokens_embed.weight.grad, accumulated, tolerance=1e-4)


def test_gradient_checkpointing_gives_the_same_gradients(pair: Any, same: Any) -> None:
    """The reference has none for GPT-1; what is computed is the same."""
    ours, theirs = pair("OpenAIGPTLMHeadModel", resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    ours.train().gradient_checkpointing_enable()
    ours(IDS, labels=IDS).loss.backward()
    theirs(IDS, labels=IDS).loss.backward()
    wanted = {n: p.grad for n, p in theirs.named_parameters()}
    for name, parameter in ours.named_parameters():
        same(parameter.grad, wanted[name], tolerance=1e-4, where=name)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("tied", [True, False])
def test_names_shapes_and_ties(transformers: Any, name: str, tied: bool) -> None:
    import quintet
    from quintet.models.openai_gpt import tiny

    config = tiny(tie_word_embeddings=tied)
    ours = getattr(quintet, name)(config)
    theirs = getattr(transformers, name)(transformers.OpenAIGPTConfig.from_dict(config.to_dict()))
    assert [(n, t.shape) for n, t in ours.state_dict().items()] == [
        (n, t.shape) for n, t in theirs.state_dict().items()
    ]
    assert [n for n, _ in ours.named_parameters()] == [n for n, _ in theirs.named_parameters()]  # tied ones once
    assert ours.num_parameters() == theirs.num_parameters()
    assert ours.num_parameters(exclude_embeddings=True) == theirs.num_parameters(exclude_embeddings=True)
    theirs.load_state_dict(ours.state_dict())
    ours.load_state_dict(theirs.state_dict())


def test_initial_weights_are_spread_as_the_references(transformers: Any) -> None:
    import quintet

    fields = {"vocab_size": 300, "n_positions": 64, "n_embd": 128, "n_layer": 3, "n_head": 4}
    ours = quintet.OpenAIGPTDoubleHeadsModel(quintet.OpenAIGPTConfig(**fields))
    theirs = transformers.OpenAIGPTDoubleHeadsModel(transformers.OpenAIGPTConfig(**fields))
    for name, weight in theirs.named_parameters():
        got = ours.get_parameter(name)
        if name == "multiple_choice_head.summary.weight":  # one row: too few numbers to measure
            continue
        torch.testing.assert_close(got.std(correction=0), weight.std(correction=0), rtol=0.06, atol=1e-8, msg=name)
        assert abs(got.mean() - weight.mean()) < 0.01, name
    # As the page says of initializer_range; in 5.23 it does not reach the kernels, which stay at the default.
    wide = quintet.OpenAIGPTModel(quintet.OpenAIGPTConfig(**fields, initializer_range=0.05))
    for name in ("h.1.mlp.c_proj.weight", "h.0.attn.c_attn.weight", "tokens_embed.weight"):
        assert wide.get_parameter(name).std().item() == pytest.approx(0.05, rel=0.05), name


def test_dropout_in_training_equals_the_references_with_the_same_seed(pair: Any, same: Any) -> None:
    """The order in which random numbers are drawn is the same, so seeded training runs can be compared."""
    none = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    for fields in ({}, *({**none, name: 0.5} for name in none)):
        ours, theirs = pair("OpenAIGPTLMHeadModel", **fields)
        exact, got = ours(IDS, labels=IDS).loss, []
        for model in (ours.train(), theirs.train()):
            torch.manual_seed(3)
            got.append(model(IDS, labels=IDS).loss)
        same(*got)
        assert got[0] != exact  # dropout was on
    ours, _ = pair("OpenAIGPTLMHeadModel", **none)
    assert torch.equal(ours.train()(IDS).logits, ours.eval()(IDS).logits)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.1), (torch.float16, 0.02)], ids=str)
@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_sixteen_bit(pair: Any, same: Any, backend: str, dtype: torch.dtype, tolerance: float) -> None:
    """bfloat16 and float16 stay near float32, also with padding on either side, and nothing is NaN."""
    ours, theirs = pair("OpenAIGPTLMHeadModel", backend=backend)
    exact = ours(IDS).logits
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
            out.loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in ours.parameters())


def test_autocast(pair: Any, same: Any) -> None:
    ours, theirs = pair("OpenAIGPTLMHeadModel")
    with torch.autocast("cpu", torch.bfloat16):
        got, wanted = ours(IDS, labels=IDS), theirs(IDS, labels=IDS)
        same(got.loss, wanted.loss, tolerance=2e-2)
        got.loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in ours.parameters())
