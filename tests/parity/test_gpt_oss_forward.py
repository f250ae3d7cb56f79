"""gpt-oss's base and language model give what the reference gives: every option, every input."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch

IDS = torch.tensor([[5, 17, 3, 88, 42, 9, 61], [70, 2, 33, 4, 90, 12, 8]])
LONG = torch.randint(2, 96, (2, 150), generator=torch.Generator().manual_seed(4))
ALL = {"output_hidden_states": True, "output_attentions": True, "output_router_logits": True}
FULL, SLIDING = "full_attention", "sliding_attention"


@pytest.fixture
def couple(pair: Any) -> Callable[..., tuple[Any, Any]]:
    """As `pair`; the reference's experts one after the other, as its grouped kernel takes multiples of 4 only."""

    def make(name: str, **fields: Any) -> tuple[Any, Any]:
        ours, theirs = pair(name, **fields)
        theirs.set_experts_implementation("eager")
        return ours, theirs

    return make


@pytest.fixture
def alike(same: Any) -> Callable[[Any, Any], None]:
    """As `same`; the reference's base model adds the router's scores before the states, out of the fields' order."""

    def check(got: Any, wanted: Any) -> None:
        wanted = {name: wanted[name] for name in sorted(wanted, key=list(type(got).__dataclass_fields__).index)}
        same(got, wanted)

    return check


OPTIONS: list[dict[str, Any]] = [
    {},
    {"num_key_value_heads": 1},
    {"num_key_value_heads": 4},
    {"num_key_value_heads": None},
    {"head_dim": 20},
    {"head_dim": None, "hidden_size": 40},
    {"num_attention_heads": 6, "num_key_value_heads": 3, "hidden_size": 31},
    {"attention_bias": False},
    {"tie_word_embeddings": True},
    {"rms_norm_eps": 0.5},
    {"pad_token_id": None},
    {"num_hidden_layers": 5},
    {"num_hidden_layers": 1},
    {"layer_types": [FULL, FULL]},
    {"layer_types": [SLIDING, SLIDING]},
    {"layer_types": [FULL, SLIDING]},
    {"num_hidden_layers": 4, "layer_types": [SLIDING, FULL, FULL, SLIDING]},
    *({"sliding_window": size} for size in (1, 2, 3, 7, 8, 100)),
    {"num_local_experts": 1, "num_experts_per_tok": 1},
    {"num_local_experts": 2, "num_experts_per_tok": 1},
    {"num_local_experts": 5, "num_experts_per_tok": 3},
    {"num_local_experts": 8, "num_experts_per_tok": 8},
    {"swiglu_alpha": 0.5},
    {"swiglu_limit": 0.02},
    {"swiglu_alpha": 3.0, "swiglu_limit": 0.5},
    {"intermediate_size": 7},
    {"router_aux_loss_coef": 0.0},
    {"router_aux_loss_coef": 3.0, "output_router_logits": True},
]


def label(fields: dict[str, Any]) -> str:
    return "-".join(f"{k}={v}" for k, v in fields.items()) or "plain"


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize("name", ["GptOssModel", "GptOssForCausalLM"])
@pytest.mark.parametrize("fields", OPTIONS, ids=label)
def test_options(couple: Any, alike: Any, backend: str, name: str, fields: dict[str, Any]) -> None:
    ours, theirs = couple(name, backend=backend, **fields)
    labels = {"labels": IDS} if name == "GptOssForCausalLM" else {}
    alike(ours(IDS, **labels, **ALL), theirs(IDS, **labels, **ALL))
    alike(ours(IDS), theirs(IDS))
    alike(ours(IDS[:1, :1], **ALL), theirs(IDS[:1, :1], **ALL))


@pytest.mark.parametrize("window", [1, 2, 3, 7])
def test_the_window_counts_the_query_itself(pair: Any, window: int) -> None:
    """By hand: query i has weights at the places i - window + 1 to i, and none elsewhere."""
    ours, _ = pair("GptOssModel", sliding_window=window)
    sliding, full = ours(IDS, output_attentions=True).attentions
    distance = torch.arange(7)[:, None] - torch.arange(7)[None]
    assert torch.equal(sliding > 0, ((distance >= 0) & (distance < window)).expand_as(sliding))
    assert torch.equal(full > 0, (distance >= 0).expand_as(full))


def test_without_a_window_sliding_layers_see_all(pair: Any, same: Any) -> None:
    """The reference fails on None; for us it means what a window as long as the text means."""
    from quintet.models.gpt_oss import GptOssForCausalLM, tiny

    far, theirs = pair("GptOssForCausalLM", sliding_window=200)
    wanted = theirs(LONG).logits
    for kinds in ([SLIDING, FULL], [FULL, FULL], None):
        ours = GptOssForCausalLM(tiny(sliding_window=None, layer_types=kinds)).eval()
        ours.load_state_dict(far.state_dict())
        same(ours(LONG).logits, wanted)
        past = ours(LONG[:, :140]).past_key_values
        same(ours(LONG[:, 140:], past_key_values=past).logits, wanted[:, 140:])


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize("values", [[-60.0] * 4, [40.0] * 4, [-3.0, 0.0, 5.0, 300.0], [-1e4, 1e4, 0.0, -0.5]], ids=str)
def test_sinks(pair: Any, same: Any, backend: str, values: list[float]) -> None:
    ours, theirs = pair("GptOssForCausalLM", backend=backend)
    with torch.no_grad():
        for layer in ours.model.layers:
            layer.self_attn.sinks.copy_(torch.tensor(values))
    theirs.load_state_dict(ours.state_dict())
    got = ours(IDS, **ALL)
    same(got, theirs(IDS, **ALL))
    same(ours(IDS).logits, theirs(IDS).logits)
    for weights in got.attentions:
        sums = weights.sum(-1)  # (B, H, T): what the sink leaves
        assert (sums <= 1 + 1e-6).all()
        assert ((sums > 0.999).all(-1) == (torch.tensor(values) < -50)).all()
        assert ((sums < 1e-3).all(-1) == (torch.tensor(values) > 30)).all()


@torch.no_grad()
def test_sinks_by_hand(pair: Any) -> None:
    """Each weight is e^score over the sum of all and e^sink."""
    ours, _ = pair("GptOssModel", num_hidden_layers=1, layer_types=[FULL], num_key_value_heads=4, num_attention_heads=4)
    attention = ours.layers[0].self_attn
    got = ours(IDS, output_attentions=True).attentions[0]
    attention.sinks.data.fill_(-1e9)
    plain = ours(IDS, output_attentions=True).attentions[0]  # a softmax without sinks
    attention.sinks.data.copy_(torch.tensor([0.5, -1.0, 2.0, 0.0]))
    x = ours.layers[0].input_layernorm(ours.embed_tokens(IDS))
    assert not torch.allclose(got, plain, atol=1e-4)
    from quintet.layers.rope import apply_rope

    tables = ours.rotary_emb(torch.arange(7)[None])
    q, k = (
        apply_rope(layer(x).unflatten(-1, (4, 8)).transpose(1, 2), *tables)
        for layer in (attention.q_proj, attention.k_proj)
    )
    weights = ours(IDS, output_attentions=True).attentions[0]
    for row, head, place in ((0, 0, 0), (0, 1, 3), (1, 2, 6), (1, 3, 5)):
        scores = [float(q[row, head, place] @ k[row, head, key]) * 8**-0.5 for key in range(place + 1)]
        shares = torch.tensor([*scores, float(attention.sinks[head])]).softmax(0)[:-1]
        torch.testing.assert_close(weights[row, head, place, : place + 1], shares, rtol=1e-4, atol=1e-5)


def yarn(**keys: Any) -> dict[str, Any]:
    base = {"rope_type": "yarn", "rope_theta": 900.0, "factor": 4.0, "original_max_position_embeddings": 16}
    return {"rope_parameters": {**base, **keys}}


def drawn(seed: int) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """A class, a configuration and inputs, all at random."""
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    groups, experts, layers = rng.choice([1, 2, 3]), rng.randint(1, 8), rng.randint(1, 4)
    kinds = ["Model", "ForCausalLM", "ForSequenceClassification", "ForTokenClassification"]
    name = f"GptOss{kinds[seed % len(kinds)]}"
    vocabulary = rng.randint(20, 150)
    fields: dict[str, Any] = {
        "vocab_size": vocabulary,
        "hidden_size": rng.choice([8, 24, 33]),
        "intermediate_size": rng.choice([5, 16, 64]),
        "num_hidden_layers": layers,
        "layer_types": [rng.choice([FULL, SLIDING]) for _ in range(layers)],
        "sliding_window": rng.choice([1, 2, 5, 16, 64]),
        "num_key_value_heads": groups,
        "num_attention_heads": groups * rng.choice([1, 2, 4]),
        "head_dim": rng.choice([4, 8, 14]),
        "num_local_experts": experts,
        "num_experts_per_tok": rng.randint(1, experts),
        "swiglu_alpha": rng.choice([1.702, 1.0]),
        "swiglu_limit": rng.choice([7.0, 0.3, 0.01]),
        "max_position_embeddings": rng.choice([32, 64]),
        "rms_norm_eps": rng.choice([1e-5, 1e-3]),
        "tie_word_embeddings": rng.random() < 0.5,
        "attention_bias": rng.random() < 0.5,
        "router_aux_loss_coef": rng.choice([0.001, 0.9]),
        "num_labels": rng.randint(1, 5),
        "pad_token_id": 0,
        **yarn(factor=rng.choice([1.0, 2.5, 32.0]), truncate=rng.random() < 0.5),
    }
    rows, tokens = rng.randint(1, 3), rng.randint(2, 40)
    given: dict[str, Any] = {"input_ids": torch.randint(1, vocabulary, (rows, tokens), generator=generator)}
    mask = torch.ones(rows, tokens, dtype=torch.long)
    if rng.random() < 0.6 and fields["sliding_window"] > 1:  # holes of one token, so that every window has a real one
        holes = torch.rand(rows, tokens, generator=generator) > 0.6
        mask[:, 1:] = (~(holes[:, 1:] & ~holes[:, :-1])).long()
    given["attention_mask"] = mask
    if rng.random() < 0.4:
        given["position_ids"] = torch.randint(60, (rows, tokens), generator=generator)
    if name == "GptOssForCausalLM":
        given["labels"] = torch.where(mask.bool(), given["input_ids"], -100)
        given["labels"][:, 1] = 3  # one at least counts
    elif name == "GptOssForSequenceClassification":
        one = fields["num_labels"] == 1
        given["labels"] = (
            torch.rand(rows, generator=generator)
            if one
            else torch.randint(fields["num_labels"], (rows,), generator=generator)
        )
    elif name == "GptOssForTokenClassification":
        given["labels"] = torch.randint(fields["num_labels"], (rows, tokens), generator=generator)
    return name, fields, given


@pytest.mark.parametrize("seed", range(32))
def test_random_configurations(couple: Any, alike: Any, seed: int) -> None:
    name, fields, given = drawn(seed)
    for backend in ("eager", "sdpa"):
        ours, theirs = couple(name, backend=backend, **fields)
        alike(ours(**given, **ALL), theirs(**given, **ALL))


def masks() -> dict[str, torch.Tensor]:
    right = torch.tensor([[1] * 7, [1] * 5 + [0] * 2])
    hole = torch.tensor([[1, 1, 0, 1, 1, 1, 1], [1, 0, 1, 1, 0, 1, 1]])
    seen = torch.ones(7, 7).tril().bool() & hole.bool()[:, None, None, :]  # (B, 1, T, S)
    added = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)
    biased = added + torch.linspace(-1, 1, 7)[None, None, None]
    everything = {"right": right, "hole": hole, "ones": torch.ones(2, 7), "added": added}
    return {**everything, "one-row": added[:1], "heads": added.expand(2, 4, 7, 7), "biased": biased}


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize("name", masks())
def test_attention_masks(pair: Any, same: Any, backend: str, name: str) -> None:
    """A 4-D mask stands alone in both: it replaces the windows too."""
    ours, theirs = pair("GptOssForCausalLM", backend=backend)
    mask = masks()[name]
    options = ALL if mask.dim() == 2 else {**ALL, "output_router_logits": False}  # their loss takes two dimensions
    same(ours(IDS, attention_mask=mask, **options), theirs(IDS, attention_mask=mask, **options))


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize("window", [1, 2, 3])
def test_real_tokens_beside_windows_full_of_padding(pair: Any, same: Any, backend: str, window: int) -> None:
    """A padded query whose whole window is padding is nobody's result; what real tokens get does not depend on it."""
    ours, theirs = pair("GptOssForCausalLM", backend=backend, num_hidden_layers=4, sliding_window=window)
    for rows in ([[1, 1, 0, 0, 0, 0, 1], [1, 0, 0, 0, 1, 1, 0]], [[1, 1, 0, 0, 0, 0, 0], [1, 1, 1, 1, 0, 0, 0]]):
        mask = torch.tensor(rows)
        got, wanted = ours(IDS, attention_mask=mask, **ALL), theirs(IDS, attention_mask=mask, **ALL)
        same(got.logits[mask.bool()], wanted.logits[mask.bool()])
        same(got.aux_loss, wanted.aux_loss)
        for one, other in zip(got.hidden_states, wanted.hidden_states, strict=True):
            same(one[mask.bool()], other[mask.bool()])
        assert got.logits.isfinite().all()


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_a_mask_for_each_kind_of_layer(pair: Any, same: Any, backend: str) -> None:
    ours, theirs = pair("GptOssForCausalLM", backend=backend, num_hidden_layers=4)
    full = torch.ones(7, 7).tril().bool() & masks()["hole"].bool()[:, None, None, :]
    band = full & torch.ones(7, 7).triu(-1).bool()
    added = {
        kind: torch.zeros(rule.shape).masked_fill(~rule, torch.finfo(torch.float32).min)
        for kind, rule in ((FULL, full), (SLIDING, band | torch.eye(7).bool()))
    }
    same(ours(IDS, attention_mask=added).logits, theirs(IDS, attention_mask=added).logits)
    same(
        ours(IDS, attention_mask={kind: mask == 0 for kind, mask in added.items()}).logits,
        ours(IDS, attention_mask=added).logits,
    )
    assert not torch.allclose(ours(IDS, attention_mask=added).logits, ours(IDS).logits, atol=1e-3)
    # of two dimensions, or none: each kind's own rule
    wanted = ours(IDS, attention_mask=masks()["hole"]).logits
    same(ours(IDS, attention_mask=dict.fromkeys((FULL, SLIDING), masks()["hole"])).logits, wanted)
    same(ours(IDS, attention_mask=dict.fromkeys((FULL, SLIDING, "other"))).logits, ours(IDS).logits)
    out = ours(IDS, attention_mask=dict.fromkeys((FULL, SLIDING)), output_router_logits=True, labels=IDS)
    same(out.aux_loss, ours(IDS, output_router_logits=True).aux_loss)


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_left_padding(pair: Any, same: Any, backend: str) -> None:
    """With the reference's positions: its scores. Rotary positions make the row what it is alone."""
    ours, theirs = pair("GptOssForCausalLM", backend=backend, num_hidden_layers=4)
    mask = torch.tensor([[0, 0, 0, 1, 1, 1, 1], [1] * 7])
    for positions in (torch.arange(7)[None], torch.tensor([[0, 0, 0, 0, 1, 2, 3], [0, 1, 2, 3, 4, 5, 6]])):
        got = ours(IDS, attention_mask=mask, position_ids=positions).logits
        wanted = theirs(IDS, attention_mask=mask, position_ids=positions).logits
        same(got[mask.bool()], wanted[mask.bool()])
        same(got[0, 3:], theirs(IDS[:1, 3:]).logits[0])
    same(ours(IDS, attention_mask=mask).logits[0, 3:], theirs(IDS[:1, 3:]).logits[0])


def test_positions_and_embeddings(pair: Any, same: Any) -> None:
    ours, theirs = pair("GptOssForCausalLM")
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
    ours, theirs = pair("GptOssForCausalLM")
    for keep in (0, 1, 3, 7, torch.tensor([0, 4]), torch.tensor([6])):
        same(ours(IDS, logits_to_keep=keep), theirs(IDS, logits_to_keep=keep))
    labels = IDS.clone()
    labels[0, :3] = labels[1, 5] = -100
    for given in ({}, {"num_items_in_batch": 5}, {"output_router_logits": True}):
        same(ours(IDS, labels=labels, **given), theirs(IDS, labels=labels, **given))


def test_return_dict_and_defaults(pair: Any, same: Any, alike: Any) -> None:
    ours, theirs = pair("GptOssForCausalLM")
    for given in ({}, ALL, {"use_cache": False}, {"labels": IDS, **ALL}):
        got = ours(IDS, return_dict=False, **given)
        assert type(got) is tuple
        wanted = [value for key, value in theirs(IDS, **given).items() if key != "past_key_values"]
        same([one for one in got if not hasattr(one, "update")], wanted)
    assert [len(ours.model(IDS, return_dict=False, **given)) for given in ({}, ALL)] == [2, 5]
    ours, theirs = pair("GptOssModel", output_hidden_states=True, output_attentions=True, output_router_logits=True)
    assert list(ours(IDS, use_cache=False)) == ["last_hidden_state", "hidden_states", "attentions", "router_logits"]
    alike(ours(IDS), theirs(IDS))
    assert list(ours(IDS, output_router_logits=False, use_cache=False)) == [
        *("last_hidden_state", "hidden_states", "attentions")
    ]
    assert [tuple(one.shape) for one in ours(IDS).router_logits] == [(14, 4)] * 2


def test_head_masks_by_hand(pair: Any, same: Any) -> None:
    """The reference takes none: a head of factor 0 is a head whose columns of the output layer are 0."""
    for backend in ("eager", "sdpa"):
        ours, theirs = pair("GptOssForCausalLM", backend=backend)
        mask = torch.tensor([[1.0, 0.0, 1.0, 0.5], [0.0, 1.0, 1.0, 1.0]])
        with torch.no_grad():
            for layer, factors in zip(theirs.model.layers, mask, strict=True):
                layer.self_attn.o_proj.weight.mul_(factors.repeat_interleave(8))
        same(ours(IDS, head_mask=mask).logits, theirs(IDS).logits)
        assert ours(IDS, head_mask=mask, output_attentions=True).attentions[0][:, 1].eq(0).all()
        same(ours(IDS, head_mask=torch.ones(4)).logits, ours(IDS).logits)
