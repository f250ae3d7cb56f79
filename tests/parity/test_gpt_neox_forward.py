"""GPT-NeoX's base and language model give what the reference gives: every option, input and output."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

IDS = torch.tensor([[5, 17, 3, 88, 42, 9, 61], [70, 2, 33, 4, 90, 12, 8]])
LONG_IDS = torch.randint(99, (2, 30), generator=torch.Generator().manual_seed(4))
ALL = {"output_hidden_states": True}
# The reference gives attentions with the eager backend only.
ATTENTIONS = {"output_attentions": True, **ALL}

OPTIONS: list[dict[str, Any]] = [
    {},
    {"use_parallel_residual": False},
    {"attention_bias": False},
    {"attention_bias": False, "use_parallel_residual": False, "num_hidden_layers": 3},
    {"tie_word_embeddings": True},
    {"rotary_pct": 1.0},
    {"rotary_pct": 0.25},
    {"rotary_pct": 0.375},  # 3 of 8 features: two pairs
    {"rotary_pct": 0.4, "hidden_size": 60, "num_attention_heads": 3},
    {"rotary_emb_base": 500},
    {"rotary_emb_base": 1e6, "rotary_pct": 1.0},
    {"layer_norm_eps": 0.5},
    {"intermediate_size": 20},
    {"num_attention_heads": 1},
    {"hidden_size": 24, "num_attention_heads": 6, "num_hidden_layers": 1},
    {"rope_theta": 500, "partial_rotary_factor": 1.0},
    {"rope_parameters": {"rope_type": "linear", "factor": 3.0, "rope_theta": 500.0, "partial_rotary_factor": 0.5}},
    *({"hidden_act": name} for name in ("relu", "silu", "gelu", "tanh", "gelu_new", "swish", "sigmoid")),
    *({"hidden_act": name} for name in ("gelu_fast", "gelu_pytorch_tanh")),
]


def words(fields: dict[str, Any]) -> str:
    return "-".join(f"{k}={v}" for k, v in fields.items()) or "plain"


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize("fields", OPTIONS, ids=words)
def test_options(pair: Any, same: Any, backend: str, fields: dict[str, Any]) -> None:
    ours, theirs = pair("GPTNeoXForCausalLM", backend=backend, **fields)
    same(ours(IDS, labels=IDS, **ATTENTIONS), theirs(IDS, labels=IDS, **ATTENTIONS))


def rope(rng: random.Random, size: int) -> dict[str, Any] | None:
    """Random parameters of a random type, for that rotary size."""
    kind = rng.choice(["default", "linear", "dynamic", "yarn", "longrope", "llama3"])
    if kind == "default":
        return None
    out: dict[str, Any] = {"rope_type": kind, "factor": rng.choice([1.0, 2.0, 8.0])}
    if kind in ("yarn", "longrope", "llama3"):
        out["original_max_position_embeddings"] = rng.choice([4, 8, 16])
    if kind == "yarn":
        out |= rng.choice([{}, {"truncate": False, "beta_fast": 4.0, "beta_slow": 0.25}, {"attention_factor": 1.3}])
    if kind == "longrope":
        out |= {name: [rng.uniform(1, 4) for _ in range(size // 2)] for name in ("short_factor", "long_factor")}
    if kind == "llama3":
        out |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    return out


def draw(seed: int) -> dict[str, Any]:
    """A random configuration."""
    rng = random.Random(seed)
    heads, head_dim, pct = rng.choice([1, 2, 3, 4]), rng.choice([4, 8, 10, 16]), rng.choice([0.5, 1.0])
    size = int(head_dim * pct)
    return {
        "hidden_size": heads * head_dim,
        "num_attention_heads": heads,
        "num_hidden_layers": rng.choice([1, 2, 3]),
        "intermediate_size": rng.choice([8, 33, 64]),
        "vocab_size": rng.choice([99, 128]),
        "hidden_act": rng.choice(["gelu", "gelu_new", "gelu_fast", "relu", "silu", "tanh"]),
        "rotary_pct": pct if size % 2 == 0 and size > 2 else 1.0,
        "rotary_emb_base": rng.choice([100, 10000, 5e5]),
        "rope_scaling": rope(rng, size if size % 2 == 0 and size > 2 else head_dim),
        "max_position_embeddings": rng.choice([8, 16, 64]),
        "layer_norm_eps": rng.choice([1e-5, 1e-3]),
        "use_parallel_residual": rng.random() < 0.5,
        "attention_bias": rng.random() < 0.7,
        "tie_word_embeddings": rng.random() < 0.3,
    }


@pytest.mark.parametrize("seed", range(25))
def test_random_configurations(pair: Any, same: Any, seed: int) -> None:
    backend = ("eager", "sdpa")[seed % 2]
    fields = draw(seed)
    ours, theirs = pair("GPTNeoXForCausalLM", backend=backend, **fields)
    mask = torch.ones_like(LONG_IDS)
    mask[1, 20:] = 0
    same(ours(IDS, labels=IDS, **ATTENTIONS), theirs(IDS, labels=IDS, **ATTENTIONS))
    got, wanted = (model(LONG_IDS, attention_mask=mask, **ATTENTIONS) for model in (ours, theirs))
    same(got, wanted)  # past the maximum position of most of them


ROPE: dict[str, dict[str, Any]] = {
    "linear": {"type": "linear", "factor": 4.0},
    "dynamic": {"type": "dynamic", "factor": 4.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8},
    "yarn, not truncated": {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 8,
        "truncate": False,
        "beta_fast": 2.0,
        "beta_slow": 0.1,
        "mscale": 0.8,
        "mscale_all_dim": 0.5,
    },
    "longrope": {
        "rope_type": "longrope",
        "short_factor": [1.0, 1.1, 1.2, 1.3],
        "long_factor": [1.5, 2.0, 4.0, 8.0],
        "original_max_position_embeddings": 8,
    },
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8,
    },
}


@pytest.mark.parametrize("parts", [[30], [5, 3, 10, 1, 1, 10]], ids=["whole", "in parts"])
@pytest.mark.parametrize("kind", ROPE)
def test_rope_inside_and_past_the_original_length(pair: Any, same: Any, kind: str, parts: list[int]) -> None:
    ours, theirs = pair("GPTNeoXForCausalLM", rope_scaling=ROPE[kind], rotary_pct=1.0, max_position_embeddings=16)
    past = their_past = None
    for part in LONG_IDS.split(parts, dim=1):
        got = ours(part, past_key_values=past, **ATTENTIONS)
        wanted = theirs(part, past_key_values=their_past, **ATTENTIONS)
        same(got, wanted)
        past, their_past = got.past_key_values, wanted.past_key_values


@pytest.mark.parametrize("name", ["GPTNeoXModel", "GPTNeoXForCausalLM"])
def test_the_fused_backends_agree_too(pair: Any, same: Any, name: str) -> None:
    ours, theirs = pair(name, backend="sdpa", their_backend="sdpa")
    same(ours(IDS, **ALL), theirs(IDS, **ALL))


def masks() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(8)
    right = torch.tensor([[1] * 7, [1] * 4 + [0] * 3])
    hole = torch.tensor([[1, 1, 0, 1, 1, 1, 1], [1, 0, 1, 1, 0, 1, 1]])
    causal = torch.ones(7, 7).tril().bool()
    window = (causal & ~torch.ones(7, 7).tril(-3).bool())[None, None]
    additive = torch.zeros(2, 1, 7, 7).masked_fill(~window, torch.finfo(torch.float32).min)
    heads = torch.randn(2, 4, 7, 7, generator=generator)
    return {"right": right, "hole": hole, "additive": additive, "by head": heads, "float": right.float()}


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize("name", masks())
def test_attention_masks(pair: Any, same: Any, backend: str, name: str) -> None:
    ours, theirs = pair("GPTNeoXForCausalLM", backend=backend)
    mask = masks()[name]
    same(ours(IDS, attention_mask=mask, **ATTENTIONS), theirs(IDS, attention_mask=mask, **ATTENTIONS))


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize("given", [False, True], ids=["default positions", "given positions"])
def test_a_left_padded_batch(pair: Any, same: Any, backend: str, given: bool) -> None:
    """Ours counts from the first real token and the reference from the padding: distances, and so scores, agree."""
    ours, theirs = pair("GPTNeoXForCausalLM", backend=backend)
    mask = torch.tensor([[0, 0, 0, 1, 1, 1, 1], [1] * 7])
    positions = torch.tensor([[0, 0, 0, 0, 1, 2, 3], [0, 1, 2, 3, 4, 5, 6]]) if given else None
    got = ours(IDS, attention_mask=mask, position_ids=positions).logits
    wanted = theirs(IDS, attention_mask=mask, position_ids=positions).logits
    same(got[mask.bool()], wanted[mask.bool()])
    alone = theirs(IDS[:1, 3:]).logits
    same(got[:1, 3:], alone)


def test_positions_and_embeddings(pair: Any, same: Any) -> None:
    ours, theirs = pair("GPTNeoXForCausalLM")
    embeds = torch.randn(2, 7, 32)
    for given in (
        {"input_ids": IDS, "position_ids": torch.tensor([[9, 8, 7, 6, 5, 4, 3]])},
        {"input_ids": IDS, "position_ids": torch.tensor([[3, 3, 1, 0, 5, 200, 3], [0, 1, 2, 3, 4, 5, 6]])},
        {"inputs_embeds": embeds},
        {"inputs_embeds": embeds, "position_ids": torch.arange(7)[None] + 20},
    ):
        same(ours(**given, **ATTENTIONS), theirs(**given, **ATTENTIONS))


def test_head_mask_silences_heads(pair: Any, same: Any) -> None:
    """The reference of today has no head mask; a silenced head is one whose columns of `dense` are zero."""
    ours, theirs = pair("GPTNeoXForCausalLM")
    factors = torch.tensor([[1.0, 0.0, 1.0, 0.5], [0.0, 1.0, 1.0, 1.0]])
    with torch.no_grad():
        for layer, row in zip(theirs.gpt_neox.layers, factors, strict=True):
            layer.attention.dense.weight.mul_(row.repeat_interleave(8)[None])
    same(ours(IDS, head_mask=factors).logits, theirs(IDS).logits)
    one = torch.tensor([1.0, 0.0, 1.0, 1.0])
    same(ours(IDS, head_mask=one).logits, ours(IDS, head_mask=one.expand(2, 4)).logits)


def test_logits_to_keep(pair: Any, same: Any) -> None:
    ours, theirs = pair("GPTNeoXForCausalLM")
    for keep in (0, 1, 3, 7, torch.tensor([0, 4]), torch.tensor([6])):
        same(ours(IDS, logits_to_keep=keep), theirs(IDS, logits_to_keep=keep))


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize("parts", [[1] * 7, [3, 4], [5, 1, 1], [2, 3, 2]], ids=str)
def test_with_a_cache(pair: Any, same: Any, backend: str, parts: list[int]) -> None:
    ours, theirs = pair("GPTNeoXForCausalLM", backend=backend)
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


def test_with_tuples_as_a_cache(pair: Any, same: Any) -> None:
    """The form that the model page documents: in and out."""
    ours, theirs = pair("GPTNeoXForCausalLM")
    first = ours(IDS[:, :4])
    legacy = first.past_key_values.to_legacy_cache()
    second = ours(IDS[:, 4:], past_key_values=legacy)
    assert type(second.past_key_values) is tuple and len(second.past_key_values) == 2
    assert second.past_key_values[0][0].shape == (2, 4, 7, 8)
    same(second.logits, theirs(IDS).logits[:, 4:])


def test_labels(pair: Any, same: Any) -> None:
    ours, theirs = pair("GPTNeoXForCausalLM")
    labels = IDS.clone()
    labels[0, :3] = labels[1, 5] = -100
    for given in ({}, {"num_items_in_batch": 5}, {"num_items_in_batch": torch.tensor(11)}):
        got, wanted = ours(IDS, labels=labels, **given), theirs(IDS, labels=labels, **given)
        same(got, wanted)
        assert got.loss.dim() == 0


def test_return_dict(pair: Any, same: Any) -> None:
    ours, theirs = pair("GPTNeoXForCausalLM")
    for given in ({"use_cache": False}, {"use_cache": False, "labels": IDS, **ATTENTIONS}):
        got = ours(IDS, return_dict=False, **given)
        assert type(got) is tuple
        same(got, theirs(IDS, return_dict=False, **given))
    ours.config.return_dict = False
    assert type(ours(IDS)) is tuple
    assert ours(IDS, return_dict=True).logits.shape == (2, 7, 99)


def test_defaults_come_from_the_configuration(pair: Any) -> None:
    ours, _ = pair("GPTNeoXModel", output_hidden_states=True, output_attentions=True, use_cache=False)
    assert list(ours(IDS)) == ["last_hidden_state", "hidden_states", "attentions"]
    given = ours(IDS, output_hidden_states=False, output_attentions=False, use_cache=True)
    assert list(given) == ["last_hidden_state", "past_key_values"]


GENERATION: dict[str, dict[str, Any]] = {
    "plain": {},
    "sequential residual": {"use_parallel_residual": False, "attention_bias": False},
    "past the maximum": {"max_position_embeddings": 16},
    "dynamic": {"max_position_embeddings": 16, "rope_scaling": ROPE["dynamic"]},
    "yarn": {"max_position_embeddings": 16, "rope_scaling": ROPE["yarn"], "rotary_pct": 1.0},
    "tied": {"tie_word_embeddings": True},
}


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize("name", GENERATION)
def test_generated_tokens(pair: Any, name: str, backend: str) -> None:
    ours, theirs = pair("GPTNeoXForCausalLM", backend=backend, eos_token_id=None, **GENERATION[name])
    given = {"max_new_tokens": 24, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(ours.generate(IDS, **given), theirs.generate(IDS, **given))
    assert ours.generate(IDS, **given).shape == (2, 31)
    if name != "dynamic":  # there the reference takes the longest row's length for every row
        mask = torch.tensor([[0, 0, 0, 1, 1, 1, 1], [1] * 7])
        got = ours.generate(IDS, attention_mask=mask, **given)
        assert torch.equal(got, theirs.generate(IDS, attention_mask=mask, **given))
