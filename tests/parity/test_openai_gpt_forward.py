"""GPT-1's base and language model give what the reference gives: every option, input and output."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

IDS = torch.tensor([[5, 17, 3, 88, 42, 9, 61], [70, 2, 33, 4, 90, 12, 8]])
ALL = {"output_hidden_states": True, "output_attentions": True}

OPTIONS: list[dict[str, Any]] = [
    {},
    {"layer_norm_epsilon": 0.5},
    {"n_head": 1},
    {"n_embd": 24, "n_head": 6, "n_layer": 1},
    {"n_layer": 5},
    {"tie_word_embeddings": False},
    *({"afn": name} for name in ("gelu", "relu", "silu", "swish")),
]


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize("name", ["OpenAIGPTModel", "OpenAIGPTLMHeadModel"])
@pytest.mark.parametrize(
    "fields", OPTIONS, ids=lambda fields: "-".join(f"{k}={v}" for k, v in fields.items()) or "plain"
)
def test_options(pair: Any, same: Any, backend: str, name: str, fields: dict[str, Any]) -> None:
    ours, theirs = pair(name, backend=backend, **fields)
    labels = {"labels": IDS} if name == "OpenAIGPTLMHeadModel" else {}
    same(ours(IDS, **labels, **ALL), theirs(IDS, **labels, **ALL))
    same(ours(IDS), theirs(IDS))


def test_gelu_is_the_tanh_form_under_both_names(pair: Any) -> None:
    ours, theirs = pair("OpenAIGPTModel", afn="gelu")
    x = torch.linspace(-4, 4, 101)
    by_hand = 0.5 * x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)))
    torch.testing.assert_close(ours.h[0].mlp.act(x), by_hand)
    torch.testing.assert_close(theirs.h[0].mlp.act(x), by_hand)
    from quintet.models.openai_gpt import OpenAIGPTModel, tiny

    torch.testing.assert_close(OpenAIGPTModel(tiny(afn="gelu_new")).h[0].mlp.act(x), by_hand)


def drawn(seed: int) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """A class, a configuration and inputs, all at random."""
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    heads, vocabulary, positions = rng.choice([1, 2, 3, 4, 6]), rng.randint(20, 150), rng.randint(9, 40)
    fields = {
        "vocab_size": vocabulary,
        "n_positions": positions,
        "n_head": heads,
        "n_embd": heads * rng.choice([2, 5, 8]),
        "n_layer": rng.randint(1, 4),
        "afn": rng.choice(["gelu", "relu", "silu", "swish"]),
        "layer_norm_epsilon": rng.choice([1e-5, 1e-3, 0.3]),
        "summary_use_proj": rng.random() < 0.7,
        "summary_proj_to_labels": rng.random() < 0.5,
        "summary_activation": rng.choice([None, "tanh"]),
        "tie_word_embeddings": rng.random() < 0.7,
        "num_labels": rng.randint(1, 5),
        "pad_token_id": 0,
    }
    kinds = ["Model", "LMHeadModel", "DoubleHeadsModel", "ForSequenceClassification"]
    name = f"OpenAIGPT{kinds[seed % len(kinds)]}"
    rows, tokens = rng.randint(1, 3), rng.randint(2, positions)
    shape = (rows, rng.randint(1, 3), tokens) if name == "OpenAIGPTDoubleHeadsModel" else (rows, tokens)
    given: dict[str, Any] = {"input_ids": torch.randint(1, vocabulary, shape, generator=generator)}
    mask = torch.ones(shape, dtype=torch.long)
    if rng.random() < 0.6:  # right padding, and holes behind the second token, which is a label
        mask[..., 2:] = (torch.rand(shape, generator=generator)[..., 2:] > 0.3).long()
    if len(shape) == 2:
        given["attention_mask"] = mask
    if rng.random() < 0.5:
        given["token_type_ids"] = torch.randint(vocabulary, shape, generator=generator)
    if rng.random() < 0.5:
        given["position_ids"] = torch.randint(positions, (1, tokens), generator=generator)
    if name == "OpenAIGPTLMHeadModel":
        given["labels"] = torch.where(mask.bool(), given["input_ids"], -100)
    elif name == "OpenAIGPTDoubleHeadsModel":
        given["labels"] = given["input_ids"]
        if fields["summary_proj_to_labels"] and fields["summary_use_proj"]:
            given["mc_labels"] = torch.randint(shape[1], (rows,), generator=generator)
        given["mc_token_ids"] = torch.randint(tokens, shape[:2], generator=generator)
    elif name == "OpenAIGPTForSequenceClassification":
        given["labels"] = (
            torch.rand(rows, generator=generator)
            if fields["num_labels"] == 1
            else torch.randint(fields["num_labels"], (rows,), generator=generator)
        )
    return name, fields, given


@pytest.mark.parametrize("seed", range(24))
def test_random_configurations(pair: Any, same: Any, seed: int) -> None:
    name, fields, given = drawn(seed)
    for backend in ("eager", "sdpa"):
        ours, theirs = pair(name, backend=backend, **fields)
        same(ours(**given, **ALL), theirs(**given, **ALL))


def masks() -> dict[str, torch.Tensor]:
    right = torch.tensor([[1] * 7, [1] * 4 + [0] * 3])
    hole = torch.tensor([[1, 1, 0, 1, 1, 1, 1], [1, 0, 1, 1, 0, 1, 1]])
    return {"right": right, "hole": hole, "float": right.float(), "ones": torch.ones(2, 7)}


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize("name", masks())
def test_attention_masks(pair: Any, same: Any, backend: str, name: str) -> None:
    ours, theirs = pair("OpenAIGPTLMHeadModel", backend=backend)
    mask = masks()[name]
    same(ours(IDS, attention_mask=mask, **ALL), theirs(IDS, attention_mask=mask, **ALL))


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_masks_of_four_dimensions(pair: Any, same: Any, backend: str) -> None:
    """The reference takes none for GPT-1; what they mean is what the mask by tokens means."""
    ours, theirs = pair("OpenAIGPTLMHeadModel", backend=backend)
    seen = torch.ones(7, 7).tril().bool() & masks()["hole"].bool()[:, None, None, :]  # (B, 1, T, S)
    added = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)
    wanted = theirs(IDS, attention_mask=masks()["hole"]).logits
    for mask in (seen, seen.long(), added, added.expand(2, 4, 7, 7)):
        same(ours(IDS, attention_mask=mask).logits, wanted)


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_a_left_padded_batch_with_the_references_positions(pair: Any, same: Any, backend: str) -> None:
    """Only the positions differ for such a batch: given the same ones, real tokens get the same scores."""
    ours, theirs = pair("OpenAIGPTLMHeadModel", backend=backend)
    mask = torch.tensor([[0, 0, 0, 1, 1, 1, 1], [1] * 7])
    for positions in (torch.arange(7)[None], torch.tensor([[0, 0, 0, 0, 1, 2, 3], [0, 1, 2, 3, 4, 5, 6]])):
        got = ours(IDS, attention_mask=mask, position_ids=positions).logits
        wanted = theirs(IDS, attention_mask=mask, position_ids=positions).logits
        same(got[mask.bool()], wanted[mask.bool()])
    counted = ours(IDS, attention_mask=mask).logits  # by itself it counts from the first real token
    same(counted[0, 3:], theirs(IDS[:1, 3:]).logits[0])


def test_token_types_positions_and_embeddings(pair: Any, same: Any) -> None:
    ours, theirs = pair("OpenAIGPTLMHeadModel")
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
        same(ours(**given, **ALL), theirs(**given, **ALL))


def test_logits_to_keep(pair: Any, same: Any) -> None:
    ours, theirs = pair("OpenAIGPTLMHeadModel")
    for keep in (0, 1, 3, 7, torch.tensor([0, 4]), torch.tensor([6])):
        same(ours(IDS, logits_to_keep=keep), theirs(IDS, logits_to_keep=keep))


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize("parts", [[1] * 7, [3, 4], [5, 1, 1], [2, 3, 2]], ids=str)
def test_with_a_cache_that_the_reference_does_not_have(pair: Any, same: Any, backend: str, parts: list[int]) -> None:
    ours, theirs = pair("OpenAIGPTLMHeadModel", backend=backend)
    wanted, mask, end, past = theirs(IDS, attention_mask=masks()["hole"], **ALL), masks()["hole"], 0, None
    for part in IDS.split(parts, dim=1):
        start, end = end, end + part.shape[1]
        got = ours(part, attention_mask=mask[:, :end], past_key_values=past, use_cache=True, **ALL)
        same(got.logits, wanted.logits[:, start:end])
        for layer in range(3):
            same(got.hidden_states[layer], wanted.hidden_states[layer][:, start:end])
        for layer in range(2):
            same(got.attentions[layer], wanted.attentions[layer][:, :, start:end, :end])
        past = got.past_key_values
    assert past.get_seq_length() == 7


def test_labels(pair: Any, same: Any) -> None:
    ours, theirs = pair("OpenAIGPTLMHeadModel")
    labels = IDS.clone()
    labels[0, :3] = labels[1, 5] = -100
    for given in ({}, {"num_items_in_batch": 5}, {"num_items_in_batch": torch.tensor(11)}):
        got, wanted = ours(IDS, labels=labels, **given), theirs(IDS, labels=labels, **given)
        same(got, wanted)
        assert got.loss.dim() == 0


def test_return_dict(pair: Any, same: Any) -> None:
    for name in ("OpenAIGPTModel", "OpenAIGPTLMHeadModel"):
        ours, theirs = pair(name)
        for given in ({}, ALL):
            got = ours(IDS, return_dict=False, **given)
            assert type(got) is tuple
            same(got, theirs(IDS, return_dict=False, **given))
        ours.config.return_dict = theirs.config.return_dict = False
        same(ours(IDS), theirs(IDS))
        assert type(ours(IDS)) is tuple


def test_defaults_come_from_the_configuration(pair: Any, same: Any) -> None:
    ours, theirs = pair("OpenAIGPTModel", output_hidden_states=True, output_attentions=True)
    assert list(ours(IDS)) == ["last_hidden_state", "hidden_states", "attentions"]
    same(ours(IDS), theirs(IDS))
    given = ours(IDS, output_hidden_states=False, output_attentions=False)
    assert list(given) == ["last_hidden_state"]


def test_choices_in_the_base_model(pair: Any, same: Any) -> None:
    """(B, C, T): the last hidden state has the shape of the input, the others that of the rows."""
    ours, theirs = pair("OpenAIGPTModel")
    choices = torch.stack([IDS, IDS.flip(1)], dim=1)
    same(ours(choices, **ALL), theirs(choices, **ALL))
