"""GPT-2's base and language model give what the reference gives: every option, input and output."""

from __future__ import annotations

from typing import Any

import pytest
import torch

IDS = torch.tensor([[5, 17, 3, 88, 42, 9, 61], [70, 2, 33, 4, 90, 12, 8]])
ALL = {"output_hidden_states": True}
# The reference's last item: it gives attentions with the eager backend only.
ATTENTIONS = {"output_attentions": True, **ALL}

OPTIONS: list[dict[str, Any]] = [
    {},
    {"scale_attn_weights": False},
    {"scale_attn_by_inverse_layer_idx": True, "n_layer": 3},
    {"scale_attn_weights": False, "scale_attn_by_inverse_layer_idx": True},
    {"reorder_and_upcast_attn": True},
    {"reorder_and_upcast_attn": True, "scale_attn_by_inverse_layer_idx": True, "n_layer": 3},
    {"n_inner": 20},
    {"layer_norm_epsilon": 0.5},
    {"n_head": 1},
    {"n_embd": 24, "n_head": 6, "n_layer": 1},
    *({"activation_function": name} for name in ("relu", "silu", "gelu", "tanh", "gelu_new", "swish", "sigmoid")),
    *({"activation_function": name} for name in ("gelu_fast", "gelu_pytorch_tanh")),
]


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize(
    "fields", OPTIONS, ids=lambda fields: "-".join(f"{k}={v}" for k, v in fields.items()) or "plain"
)
def test_options(pair: Any, same: Any, backend: str, fields: dict[str, Any]) -> None:
    ours, theirs = pair("GPT2LMHeadModel", backend=backend, **fields)
    same(ours(IDS, labels=IDS, **ATTENTIONS), theirs(IDS, labels=IDS, **ATTENTIONS))


@pytest.mark.parametrize("name", ["GPT2Model", "GPT2LMHeadModel"])
def test_the_fused_backends_agree_too(pair: Any, same: Any, name: str) -> None:
    ours, theirs = pair(name, backend="sdpa", their_backend="sdpa")
    same(ours(IDS, **ALL), theirs(IDS, **ALL))


def masks() -> dict[str, torch.Tensor]:
    right = torch.tensor([[1] * 7, [1] * 4 + [0] * 3])
    hole = torch.tensor([[1, 1, 0, 1, 1, 1, 1], [1, 0, 1, 1, 0, 1, 1]])
    causal = torch.ones(7, 7).tril().bool()
    window = (causal & ~torch.ones(7, 7).tril(-3).bool())[None, None]
    additive = torch.zeros(2, 1, 7, 7).masked_fill(~window, torch.finfo(torch.float32).min)
    heads = torch.randn(2, 4, 7, 7)
    return {"right": right, "hole": hole, "additive": additive, "by head": heads, "float": right.float()}


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize("name", masks())
def test_attention_masks(pair: Any, same: Any, backend: str, name: str) -> None:
    ours, theirs = pair("GPT2LMHeadModel", backend=backend)
    mask = masks()[name]
    same(ours(IDS, attention_mask=mask, **ATTENTIONS), theirs(IDS, attention_mask=mask, **ATTENTIONS))


def test_a_bool_4d_mask(pair: Any, same: Any) -> None:
    # The reference takes one with its fused backend only.
    ours, theirs = pair("GPT2LMHeadModel", backend="sdpa", their_backend="sdpa")
    mask = torch.ones(7, 7).tril().bool().expand(2, 1, 7, 7).clone()
    mask[1, :, :, 2] = False
    mask[1, :, 2, 1] = True
    same(ours(IDS, attention_mask=mask), theirs(IDS, attention_mask=mask))
    ours.config._attn_implementation = "eager"
    same(ours(IDS, attention_mask=mask), theirs(IDS, attention_mask=mask))


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_a_left_padded_batch_with_the_references_positions(pair: Any, same: Any, backend: str) -> None:
    """Only the positions differ for such a batch: given the same ones, real tokens get the same scores."""
    ours, theirs = pair("GPT2LMHeadModel", backend=backend)
    mask = torch.tensor([[0, 0, 0, 1, 1, 1, 1], [1] * 7])
    for positions in (torch.arange(7)[None], torch.tensor([[0, 0, 0, 0, 1, 2, 3], [0, 1, 2, 3, 4, 5, 6]])):
        got = ours(IDS, attention_mask=mask, position_ids=positions).logits
        wanted = theirs(IDS, attention_mask=mask, position_ids=positions).logits
        same(got[mask.bool()], wanted[mask.bool()])


def test_token_types_positions_and_embeddings(pair: Any, same: Any) -> None:
    ours, theirs = pair("GPT2LMHeadModel")
    types = torch.tensor([[1, 1, 1, 2, 2, 2, 2], [2, 2, 1, 1, 1, 1, 1]])
    embeds = torch.randn(2, 7, 32)
    for given in (
        {"input_ids": IDS, "token_type_ids": types},
        {"input_ids": IDS, "token_type_ids": types[:1]},
        {"input_ids": IDS, "position_ids": torch.tensor([[9, 8, 7, 6, 5, 4, 3]])},
        {"input_ids": IDS, "position_ids": torch.tensor([[3, 3, 1, 0, 5, 63, 3], [0, 1, 2, 3, 4, 5, 6]])},
        {"inputs_embeds": embeds},
        {"inputs_embeds": embeds, "token_type_ids": types, "position_ids": torch.arange(7)[None] + 20},
    ):
        same(ours(**given, **ATTENTIONS), theirs(**given, **ATTENTIONS))


def test_logits_to_keep(pair: Any, same: Any) -> None:
    ours, theirs = pair("GPT2LMHeadModel")
    for keep in (0, 1, 3, 7, torch.tensor([0, 4]), torch.tensor([6])):
        same(ours(IDS, logits_to_keep=keep), theirs(IDS, logits_to_keep=keep))


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_cross_attention(pair: Any, same: Any, backend: str) -> None:
    ours, theirs = pair("GPT2LMHeadModel", backend=backend, add_cross_attention=True, n_layer=3)
    states = torch.randn(2, 5, 32)
    mask = torch.tensor([[1, 1, 1, 0, 0], [0, 1, 1, 1, 1]])
    for given in (
        {},
        {"encoder_attention_mask": mask},
        {"encoder_attention_mask": mask, "attention_mask": masks()["right"]},
    ):
        got = ours(IDS, encoder_hidden_states=states, labels=IDS, **given, **ATTENTIONS)
        wanted = theirs(IDS, encoder_hidden_states=states, labels=IDS, **given, **ATTENTIONS)
        same(got, wanted)
        assert len(got.cross_attentions) == 3
    same(ours(IDS), theirs(IDS))  # without encoder states the layers are passed over
    ours.config.reorder_and_upcast_attn = theirs.config.reorder_and_upcast_attn = True
    same(ours(IDS, encoder_hidden_states=states), theirs(IDS, encoder_hidden_states=states))


def test_cross_attention_with_a_cache(pair: Any, same: Any) -> None:
    ours, theirs = pair("GPT2LMHeadModel", add_cross_attention=True)
    states, past, their_past = torch.randn(2, 5, 32), None, None
    for part in IDS.split([4, 1, 2], dim=1):
        got = ours(part, encoder_hidden_states=states, past_key_values=past, **ATTENTIONS)
        wanted = theirs(part, encoder_hidden_states=states, past_key_values=their_past, **ATTENTIONS)
        same(got, wanted)
        past, their_past = got.past_key_values, wanted.past_key_values
    assert past.cross_attention_cache.get_seq_length() == 5
    assert past.get_seq_length() == 7


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize("parts", [[1] * 7, [3, 4], [5, 1, 1], [2, 3, 2]], ids=str)
def test_with_a_cache(pair: Any, same: Any, backend: str, parts: list[int]) -> None:
    ours, theirs = pair("GPT2LMHeadModel", backend=backend)
    past = their_past = None
    mask, end = masks()["hole"], 0
    for part in IDS.split(parts, dim=1):
        end += part.shape[1]
        got = ours(part, attention_mask=mask[:, :end], past_key_values=past, **ATTENTIONS)
        wanted = theirs(part, attention_mask=mask[:, :end], past_key_values=their_past, **ATTENTIONS)
        same(got, wanted)
        past, their_past = got.past_key_values, wanted.past_key_values
        for layer in range(2):
            same(past.layers[layer].keys, their_past.layers[layer].keys)
            same(past.layers[layer].values, their_past.layers[layer].values)


def test_labels(pair: Any, same: Any) -> None:
    ours, theirs = pair("GPT2LMHeadModel")
    labels = IDS.clone()
    labels[0, :3] = labels[1, 5] = -100
    for given in ({}, {"num_items_in_batch": 5}, {"num_items_in_batch": torch.tensor(11)}):
        got, wanted = ours(IDS, labels=labels, **given), theirs(IDS, labels=labels, **given)
        same(got, wanted)
        assert got.loss.dim() == 0


def test_return_dict(pair: Any, same: Any) -> None:
    ours, theirs = pair("GPT2LMHeadModel")
    for given in ({"use_cache": False}, {"use_cache": False, "labels": IDS, **ATTENTIONS}):
        got = ours(IDS, return_dict=False, **given)
        assert type(got) is tuple
        same(got, theirs(IDS, return_dict=False, **given))
    ours.config.return_dict = False
    assert type(ours(IDS)) is tuple
    assert ours(IDS, return_dict=True).logits.shape == (2, 7, 99)


def test_defaults_come_from_the_configuration(pair: Any) -> None:
    ours, _ = pair("GPT2Model", output_hidden_states=True, output_attentions=True, use_cache=False)
    assert list(ours(IDS)) == ["last_hidden_state", "hidden_states", "attentions"]
    given = ours(IDS, output_hidden_states=False, output_attentions=False, use_cache=True)
    assert list(given) == ["last_hidden_state", "past_key_values"]
