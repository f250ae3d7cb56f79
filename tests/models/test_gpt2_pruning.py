"""Heads: silenced by a mask, and removed for good; the two agree, and what was removed stays removed."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from quintet.errors import ConfigError, InputError
from quintet.models.gpt2 import GPT2Config, GPT2ForTokenClassification, GPT2LMHeadModel, GPT2Model, tiny

IDS = torch.tensor([[5, 17, 3, 88, 42], [70, 2, 33, 4, 90]])


def silenced(model: Any, heads: dict[int, list[int]]) -> Any:
    """The model with the rows of the output layer that read those heads set to 0: what no head would give."""
    model = copy.deepcopy(model)
    for layer, numbers in heads.items():
        weight = model.base_model.h[layer].attn.c_proj.weight.data
        for head in numbers:
            weight[head * 8 : head * 8 + 8] = 0
    return model


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_a_head_mask_silences(backend: str) -> None:
    model = GPT2LMHeadModel(tiny(attn_implementation=backend)).eval()
    mask = torch.tensor([[1.0, 0, 1, 1], [0, 1, 1, 0]])
    wanted = silenced(model, {0: [1], 1: [0, 3]})(IDS)
    for extra in ({}, {"output_attentions": True}):
        torch.testing.assert_close(model(IDS, head_mask=mask, **extra).logits, wanted.logits)
    weights = model(IDS, head_mask=mask, output_attentions=True).attentions
    assert weights[0][:, 1].abs().max() == weights[1][:, 3].abs().max() == 0
    assert weights[0][:, 0].abs().max() > 0
    torch.testing.assert_close(
        model(IDS, head_mask=torch.tensor([0.0, 1, 1, 1])).logits, silenced(model, {0: [0], 1: [0]})(IDS).logits
    )
    half = model(IDS, head_mask=torch.full((2, 4), 0.5)).logits
    by_hand = copy.deepcopy(model)
    for block in by_hand.transformer.h:
        block.attn.c_proj.weight.data *= 0.5
    torch.testing.assert_close(half, by_hand(IDS).logits)


def test_gradients_reach_a_head_mask() -> None:
    """Its gradient says how much a head matters (Michel et al. 2019)."""
    mask = torch.ones(2, 4, requires_grad=True)
    GPT2LMHeadModel(tiny()).eval()(IDS, labels=IDS, head_mask=mask).loss.backward()
    assert mask.grad is not None
    assert (mask.grad != 0).all()


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_pruned_heads_are_gone(backend: str) -> None:
    model = GPT2LMHeadModel(tiny(attn_implementation=backend)).eval()
    wanted = silenced(model, {0: [1], 1: [0, 3]})(IDS).logits
    before = model.num_parameters()
    model.prune_heads({0: [1], 1: [0, 3]})
    torch.testing.assert_close(model(IDS).logits, wanted)
    assert before - model.num_parameters() == 3 * (4 * 32 * 8 + 3 * 8)  # q, k, v, their biases, the output's rows
    assert model.config.pruned_heads == {0: [1], 1: [0, 3]}
    # with a cache, whose layers then differ in heads
    past = model(IDS[:, :3]).past_key_values
    torch.testing.assert_close(model(IDS[:, 3:], past_key_values=past).logits, wanted[:, 3:])
    model(IDS, labels=IDS).loss.backward()
    assert all(p.grad is not None for p in model.parameters())


def test_pruning_twice_counts_heads_as_in_the_whole_model() -> None:
    model = GPT2Model(tiny()).eval()
    wanted = silenced(model, {0: [0, 1, 3]})(IDS).last_hidden_state
    model.prune_heads({0: [1]})
    model.prune_heads({0: [3, 1]})
    model.prune_heads({0: [0]})
    torch.testing.assert_close(model(IDS).last_hidden_state, wanted)
    assert model.config.pruned_heads == {0: [0, 1, 3]}


def test_pruned_heads_survive_saving(tmp_path: Any) -> None:
    model = GPT2LMHeadModel(tiny()).eval()
    model.prune_heads({1: [2, 0]})
    model.save_pretrained(tmp_path)
    again = GPT2LMHeadModel.from_pretrained(tmp_path)
    assert again.config.pruned_heads == {1: [0, 2]}
    assert torch.equal(again(IDS).logits, model(IDS).logits)
    again.prune_heads({1: [3]})
    again.save_pretrained(tmp_path / "more")
    assert GPT2LMHeadModel.from_pretrained(tmp_path / "more").config.pruned_heads == {1: [0, 2, 3]}
    head = GPT2ForTokenClassification.from_pretrained(tmp_path)
    assert head.transformer.h[1].attn.num_heads == 2


def test_a_new_model_is_made_without_the_heads_that_its_configuration_names() -> None:
    model = GPT2LMHeadModel(tiny(pruned_heads={0: [3], 1: [0, 1]}))
    assert [block.attn.num_heads for block in model.transformer.h] == [3, 2]
    assert model(IDS).logits.shape == (2, 5, 99)


def test_refused() -> None:
    model = GPT2LMHeadModel(tiny())
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    with pytest.raises(InputError, match=r"layer 2, heads \[0\]; there are layers 0 to 1 with heads 0 to 3"):
        model.prune_heads({0: [1], 2: [0]})
    with pytest.raises(InputError, match=r"layer 0, heads \[1, 4\]"):
        model.prune_heads({0: [1, 4]})
    with pytest.raises(InputError, match="layer 1 would have no head left"):
        model.prune_heads({0: [1], 1: [0, 1, 2, 3]})
    assert model.config.pruned_heads == {}
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    model.prune_heads({0: [0]})
    with pytest.raises(InputError, match="head_mask cannot be used with pruned heads"):
        model(IDS, head_mask=torch.ones(4))
    for heads, words in (
        ({2: [0]}, r"pruned_heads names \[0\] of layer 2, but there are 2 layers of 4 heads"),
        ({0: [4]}, r"pruned_heads names \[4\] of layer 0"),
        ({0: [0, 1, 2, 3]}, "one head of a layer must stay"),
        ([1], "pruned_heads is .1., but must be an object of lists of heads"),
        ({"first": [1]}, "must be an object of lists of heads by layer"),
        ({0: [-1]}, "must be an object of lists of heads by layer"),
    ):
        with pytest.raises(ConfigError, match=words):
            GPT2Config(n_layer=2, n_head=4, n_embd=32, pruned_heads=heads)  # type: ignore[arg-type]
