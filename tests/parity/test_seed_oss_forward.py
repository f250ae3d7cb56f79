"""Seed-OSS's base and language model give what the reference gives: every option, every input."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

IDS = torch.tensor([[5, 17, 3, 88, 42, 9, 61], [70, 2, 33, 4, 90, 12, 8]])
LONG = torch.randint(2, 99, (2, 150), generator=torch.Generator().manual_seed(4))
ALL = {"output_hidden_states": True, "output_attentions": True}

OPTIONS: list[dict[str, Any]] = [
    {},
    {"num_key_value_heads": 1},
    {"num_key_value_heads": 4},
    {"num_key_value_heads": None},
    {"head_dim": 20},
    {"head_dim": 2},
    {"head_dim": None, "hidden_size": 40},
    {"num_attention_heads": 6, "num_key_value_heads": 3, "hidden_size": 31},
    {"num_attention_heads": 1, "num_key_value_heads": 1, "num_hidden_layers": 1},
    {"num_hidden_layers": 5},
    {"attention_bias": False},
    {"attention_out_bias": True},
    {"mlp_bias": True},
    {"attention_bias": False, "attention_out_bias": True, "mlp_bias": True},
    {"tie_word_embeddings": True},
    {"rms_norm_eps": 0.5},
    {"rms_norm_eps": 0.0},
    {"initializer_range": 0.5, "pretraining_tp": 4},
    {"pad_token_id": None},
    {"rope_theta": 123.0},
    *({"hidden_act": name} for name in ("gelu", "gelu_new", "relu", "silu", "swish", "tanh", "sigmoid")),
]


def label(fields: dict[str, Any]) -> str:
    return "-".join(f"{k}={v}" for k, v in fields.items()) or "plain"


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize("name", ["SeedOssModel", "SeedOssForCausalLM"])
@pytest.mark.parametrize("fields", OPTIONS, ids=label)
def test_options(pair: Any, same: Any, backend: str, name: str, fields: dict[str, Any]) -> None:
    ours, theirs = pair(name, backend=backend, **fields)
    labels = {"labels": IDS} if name == "SeedOssForCausalLM" else {}
    same(ours(IDS, **labels, **ALL), theirs(IDS, **labels, **ALL))
    same(ours(IDS), theirs(IDS))


ROPES: dict[str, dict[str, Any]] = {
    "default": {"rope_theta": 500.0},
    "linear": {"rope_scaling": {"type": "linear", "factor": 3.0}},
    "dynamic": {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
    "yarn": {
        "rope_theta": 700.0,
        "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
    },
    "yarn-all": {
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 900.0,
            "factor": 4.0,
            "original_max_position_embeddings": 16,
            "beta_fast": 8.0,
            "beta_slow": 0.5,
            "mscale": 0.7,
            "mscale_all_dim": 0.3,
            "truncate": False,
        }
    },
    "longrope": {
        "rope_scaling": {
            "rope_type": "longrope",
            "short_factor": [1.0, 1.1, 1.2, 1.3],
            "long_factor": [1.0, 2.0, 3.0, 5.0],
            "original_max_position_embeddings": 16,
        }
    },
    "llama3": {
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 600.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        }
    },
}


@pytest.mark.parametrize("length", [7, 64, 65, 150])
@pytest.mark.parametrize("kind", ROPES)
def test_rope(pair: Any, same: Any, kind: str, length: int) -> None:
    """Inside and past the original length, with both generations of names."""
    ours, theirs = pair("SeedOssForCausalLM", **ROPES[kind])
    wanted = theirs(LONG[:, :length])
    same(ours(LONG[:, :length]), wanted)
    plain, _ = pair("SeedOssForCausalLM")
    assert not torch.allclose(plain(LONG[:, :length]).logits, wanted.logits, atol=1e-3) or kind == "dynamic"


def test_ntk_is_a_larger_theta(pair: Any, same: Any) -> None:
    """The reference has no such type: it is the default one with theta * factor^(D / (D - 2))."""
    from quintet.models.seed_oss import SeedOssForCausalLM, tiny

    plain, theirs = pair("SeedOssForCausalLM", rope_theta=10000.0 * 4.0 ** (8 / 6))
    ours = SeedOssForCausalLM(tiny(rope_scaling={"rope_type": "ntk", "factor": 4.0})).eval()
    ours.load_state_dict(plain.state_dict())
    same(ours(LONG).logits, theirs(LONG).logits)


def drawn(seed: int) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """A class, a configuration and inputs, all at random."""
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    groups, vocabulary = rng.choice([1, 2, 3]), rng.randint(20, 150)
    kinds = ["Model", "ForCausalLM", "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering"]
    name = f"SeedOss{kinds[seed % len(kinds)]}"
    fields = {
        "vocab_size": vocabulary,
        "hidden_size": rng.choice([8, 24, 33]),
        "intermediate_size": rng.choice([5, 16, 64]),
        "num_hidden_layers": rng.randint(1, 4),
        "num_key_value_heads": groups,
        "num_attention_heads": groups * rng.choice([1, 2, 4]),
        "head_dim": rng.choice([4, 8, 14]),
        "hidden_act": rng.choice(["silu", "gelu", "relu"]),
        "max_position_embeddings": rng.choice([8, 32, 64]),
        "rms_norm_eps": rng.choice([1e-6, 1e-3]),
        "tie_word_embeddings": rng.random() < 0.5,
        "attention_bias": rng.random() < 0.5,
        "attention_out_bias": rng.random() < 0.5,
        "mlp_bias": rng.random() < 0.5,
        "rope_theta": rng.choice([50.0, 10000.0, 1e7]),
        "num_labels": rng.randint(1, 5),
        "pad_token_id": 0,
    }
    kind = rng.choice(["default", "linear", "dynamic", "yarn"])
    if kind == "yarn":
        fields["rope_scaling"] = {"rope_type": "yarn", "factor": 2.5, "original_max_position_embeddings": 16}
    elif kind != "default":
        fields["rope_scaling"] = {"rope_type": kind, "factor": 2.5}
    rows, tokens = rng.randint(1, 3), rng.randint(2, 40)
    given: dict[str, Any] = {"input_ids": torch.randint(1, vocabulary, (rows, tokens), generator=generator)}
    mask = torch.ones(rows, tokens, dtype=torch.long)
    if rng.random() < 0.6:  # right padding, and holes
        mask[:, 1:] = (torch.rand(rows, tokens - 1, generator=generator) > 0.3).long()
    given["attention_mask"] = mask
    if rng.random() < 0.4 and kind != "dynamic":
        given["position_ids"] = torch.randint(60, (rows, tokens), generator=generator)
    if name == "SeedOssForCausalLM":
        given["labels"] = torch.where(mask.bool(), given["input_ids"], -100)
        given["labels"][:, 1] = 3  # one at least counts
    elif name == "SeedOssForSequenceClassification":
        one = fields["num_labels"] == 1
        given["labels"] = (
            torch.rand(rows, generator=generator)
            if one
            else torch.randint(int(fields["num_labels"]), (rows,), generator=generator)
        )
    elif name == "SeedOssForTokenClassification":
        given["labels"] = torch.randint(int(fields["num_labels"]), (rows, tokens), generator=generator)
    elif name == "SeedOssForQuestionAnswering":
        given["start_positions"], given["end_positions"] = torch.randint(tokens + 2, (2, rows), generator=generator)
    return name, fields, given


@pytest.mark.parametrize("seed", range(30))
def test_random_configurations(pair: Any, same: Any, seed: int) -> None:
    name, fields, given = drawn(seed)
    for backend in ("eager", "sdpa"):
        ours, theirs = pair(name, backend=backend, **fields)
        same(ours(**given, **ALL), theirs(**given, **ALL))


def masks() -> dict[str, torch.Tensor]:
    right = torch.tensor([[1] * 7, [1] * 4 + [0] * 3])
    hole = torch.tensor([[1, 1, 0, 1, 1, 1, 1], [1, 0, 1, 1, 0, 1, 1]])
    seen = torch.ones(7, 7).tril().bool() & hole.bool()[:, None, None, :]  # (B, 1, T, S)
    added = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)
    band = torch.ones(7, 7).tril().triu(-2).bool().expand(2, 4, 7, 7)
    banded = torch.zeros(band.shape).masked_fill(~band, torch.finfo(torch.float32).min)
    biased = added + torch.linspace(-1, 1, 7)[None, None, None]
    everything = {"right": right, "hole": hole, "ones": torch.ones(2, 7), "added": added}
    return {**everything, "one-row": added[:1], "banded": banded, "biased": biased}


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize("name", masks())
def test_attention_masks(pair: Any, same: Any, backend: str, name: str) -> None:
    ours, theirs = pair("SeedOssForCausalLM", backend=backend)
    mask = masks()[name]
    same(ours(IDS, attention_mask=mask, **ALL), theirs(IDS, attention_mask=mask, **ALL))


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_left_padding(pair: Any, same: Any, backend: str) -> None:
    """With the reference's positions: its scores. Rotary positions make the row what it is alone."""
    ours, theirs = pair("SeedOssForCausalLM", backend=backend)
    mask = torch.tensor([[0, 0, 0, 1, 1, 1, 1], [1] * 7])
    for positions in (torch.arange(7)[None], torch.tensor([[0, 0, 0, 0, 1, 2, 3], [0, 1, 2, 3, 4, 5, 6]])):
        got = ours(IDS, attention_mask=mask, position_ids=positions).logits
        wanted = theirs(IDS, attention_mask=mask, position_ids=positions).logits
        same(got[mask.bool()], wanted[mask.bool()])
        same(got[0, 3:], theirs(IDS[:1, 3:]).logits[0])
    same(ours(IDS, attention_mask=mask).logits[0, 3:], theirs(IDS[:1, 3:]).logits[0])


def test_positions_and_embeddings(pair: Any, same: Any) -> None:
    ours, theirs = pair("SeedOssForCausalLM")
    embeds = torch.randn(2, 7, 32)
    for given in (
        {"input_ids": IDS, "position_ids": torch.tensor([[9, 8, 7, 6, 5, 4, 3]])},
        {"input_ids": IDS, "position_ids": torch.tensor([[3, 3, 1, 0, 5, 63, 3], [0, 1, 2, 3, 4, 5, 900]])},
        {"inputs_embeds": embeds},
        {"inputs_embeds": embeds, "position_ids": torch.arange(7)[None] + 20},
        {"inputs_embeds": embeds, "attention_mask": masks()["hole"]},
    ):
        same(ours(**given, **ALL), theirs(**given, **ALL))


def test_logits_to_keep_and_labels(pair: Any, same: Any) -> None:
    ours, theirs = pair("SeedOssForCausalLM")
    for keep in (0, 1, 3, 7, torch.tensor([0, 4]), torch.tensor([6])):
        same(ours(IDS, logits_to_keep=keep), theirs(IDS, logits_to_keep=keep))
    labels = IDS.clone()
    labels[0, :3] = labels[1, 5] = -100
    for given in ({}, {"num_items_in_batch": 5}, {"num_items_in_batch": torch.tensor(11)}):
        same(ours(IDS, labels=labels, **given), theirs(IDS, labels=labels, **given))


def same_caches(same: Any, got: Any, wanted: Any, layers: int = 2) -> None:
    for layer in range(layers):
        same(got.layers[layer].keys, wanted.layers[layer].keys, where=f"keys {layer}")
        same(got.layers[layer].values, wanted.layers[layer].values, where=f"values {layer}")


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize("parts", [[1] * 7, [3, 4], [5, 1, 1], [2, 3, 2]], ids=str)
def test_caches_in_parts(pair: Any, same: Any, backend: str, parts: list[int]) -> None:
    ours, theirs = pair("SeedOssForCausalLM", backend=backend, num_hidden_layers=3)
    whole, mask = ours(IDS, attention_mask=masks()["hole"]).logits, masks()["hole"]
    mine = other = None
    end = 0
    for part in IDS.split(parts, dim=1):
        start, end = end, end + part.shape[1]
        got = ours(part, attention_mask=mask[:, :end], past_key_values=mine, **ALL)
        wanted = theirs(part, attention_mask=mask[:, :end], past_key_values=other, use_cache=True, **ALL)
        same(got, wanted)
        same(got.logits, whole[:, start:end])
        mine, other = got.past_key_values, wanted.past_key_values
        assert mine.get_seq_length() == other.get_seq_length() == end
        same_caches(same, mine, other, layers=3)


@pytest.mark.parametrize("kind", ["linear", "yarn-all", "llama3"])
def test_a_cache_past_the_original_length(pair: Any, same: Any, kind: str) -> None:
    ours, theirs = pair("SeedOssForCausalLM", backend="sdpa", **ROPES[kind])
    mine = other = None
    for part in LONG.split([60, 3, 1, 1, 1, 40, 44], dim=1):
        got = ours(part, past_key_values=mine)
        wanted = theirs(part, past_key_values=other, use_cache=True)
        same(got.logits, wanted.logits)
        mine, other = got.past_key_values, wanted.past_key_values
    same_caches(same, mine, other)


def test_return_dict_and_defaults(pair: Any, same: Any) -> None:
    for name in ("SeedOssModel", "SeedOssForCausalLM"):
        ours, theirs = pair(name)
        for given in ({}, ALL, {"use_cache": False}):
            got = ours(IDS, return_dict=False, **given)
            assert type(got) is tuple
            same([one for one in got if not hasattr(one, "update")], list(as_tuple(theirs(IDS, **given))))
        ours.config.return_dict = False
        assert type(ours(IDS)) is tuple
    ours, theirs = pair("SeedOssModel", output_hidden_states=True, output_attentions=True, use_cache=False)
    assert list(ours(IDS)) == ["last_hidden_state", "hidden_states", "attentions"]
    same(ours(IDS), theirs(IDS))
    assert list(ours(IDS, output_hidden_states=False, output_attentions=False)) == ["last_hidden_state"]


def as_tuple(out: Any) -> tuple[Any, ...]:
    return tuple(value for name, value in out.items() if name != "past_key_values")


def test_hidden_states_end_with_the_normed_one(pair: Any) -> None:
    ours, _ = pair("SeedOssModel")
    out = ours(IDS, **ALL)
    assert len(out.hidden_states) == 3
    assert torch.equal(out.hidden_states[-1], out.last_hidden_state)
    assert torch.equal(out.hidden_states[0], ours.embed_tokens(IDS))
    assert [tuple(one.shape) for one in out.attentions] == [(2, 4, 7, 7)] * 2


def test_head_masks_by_hand(pair: Any, same: Any) -> None:
    """The reference takes none: a head of factor 0 is a head whose columns of the output layer are 0."""
    for backend in ("eager", "sdpa"):
        ours, theirs = pair("SeedOssForCausalLM", backend=backend)
        mask = torch.tensor([[1.0, 0.0, 1.0, 0.5], [0.0, 1.0, 1.0, 1.0]])
        with torch.no_grad():
            for layer, factors in zip(theirs.model.layers, mask, strict=True):
                layer.self_attn.o_proj.weight.mul_(factors.repeat_interleave(8))
        same(ours(IDS, head_mask=mask).logits, theirs(IDS).logits)
        got = ours(IDS, head_mask=mask, output_attentions=True).attentions
        assert got[0][:, 1].eq(0).all()
        same(ours(IDS, head_mask=torch.ones(4)).logits, ours(IDS).logits)
