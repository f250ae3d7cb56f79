"""Rotary positions against the reference: every type, inside and past the original length."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
import torch
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.gpt_neox.configuration_gpt_neox import GPTNeoXConfig as ReferenceConfig
from transformers.models.gpt_neox.modeling_gpt_neox import GPTNeoXRotaryEmbedding, apply_rotary_pos_emb

from quintet.layers.rope import RotaryEmbedding, apply_rope, attention_factor
from quintet.rope import standardise

LIMIT = 64


def draw(rope_type: str, seed: int) -> tuple[dict[str, Any], int]:
    """Random parameters of that type, in the reference's words, and a head size."""
    rng = random.Random(f"{rope_type} {seed}")
    head_dim = rng.choice([8, 16, 32, 64])
    share = rng.choice([1.0, 0.5, 0.25])
    size = int(head_dim * share)
    if rope_type in ("dynamic", "ntk") and size < 4:
        share, size = 1.0, head_dim
    out: dict[str, Any] = {"rope_type": rope_type, "rope_theta": rng.choice([100.0, 10000, 150000.0, 1e7])}
    if share != 1.0:
        out["partial_rotary_factor"] = share
    if rope_type in ("linear", "dynamic", "ntk", "yarn", "llama3"):
        out["factor"] = rng.choice([1.0, 1.5, 4.0, 32.0])
    if rope_type in ("yarn", "longrope", "llama3"):
        out["original_max_position_embeddings"] = rng.choice([16, 24, LIMIT])
    if rope_type == "yarn":
        out |= rng.choice([{}, {"truncate": False}, {"truncate": True}])
        out |= rng.choice([{}, {"beta_fast": 8.0, "beta_slow": 0.5}, {"beta_fast": 64, "beta_slow": 2}])
        out |= rng.choice([{}, {"mscale": 0.7, "mscale_all_dim": 1.3}, {"mscale": 1.0}, {"attention_factor": 1.25}])
        if rng.random() < 0.2:
            out["factor"] = None
    if rope_type == "longrope":
        out["short_factor"] = [round(rng.uniform(1.0, 3.0), 3) for _ in range(size // 2)]
        out["long_factor"] = [round(rng.uniform(2.0, 40.0), 3) for _ in range(size // 2)]
        out |= rng.choice([{}, {"factor": 8.0}, {"attention_factor": 1.1}])
    if rope_type == "llama3":
        out |= rng.choice(
            [{"low_freq_factor": 1.0, "high_freq_factor": 4.0}, {"low_freq_factor": 1, "high_freq_factor": 2}]
        )
    return out, head_dim


def ours(parameters: dict[str, Any], head_dim: int) -> RotaryEmbedding:
    found = standardise("X", parameters=parameters, head_dim=head_dim, max_position_embeddings=LIMIT)
    return RotaryEmbedding(found, head_dim=head_dim, max_position_embeddings=LIMIT)


def reference(parameters: dict[str, Any], head_dim: int) -> GPTNeoXRotaryEmbedding:
    config = ReferenceConfig(
        hidden_size=2 * head_dim,
        num_attention_heads=2,
        max_position_embeddings=LIMIT,
        rope_parameters={"partial_rotary_factor": 1.0, **parameters},
    )
    return GPTNeoXRotaryEmbedding(config)


def tables(length: int, rows: int = 1) -> torch.Tensor:
    return torch.arange(length).expand(rows, length)


@pytest.mark.parametrize("length", [5, LIMIT, LIMIT + 1, 150])
@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("rope_type", ["default", "linear", "dynamic", "yarn", "longrope", "llama3"])
def test_equals_reference(rope_type: str, seed: int, length: int) -> None:
    parameters, head_dim = draw(rope_type, seed)
    positions = tables(length)
    cos, sin = ours(parameters, head_dim)(positions)
    wanted = reference(parameters, head_dim)(torch.zeros(1), positions)
    assert cos.dtype == sin.dtype == torch.float32
    torch.testing.assert_close(cos, wanted[0], rtol=0, atol=2e-6)
    torch.testing.assert_close(sin, wanted[1], rtol=0, atol=2e-6)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("rope_type", ["linear", "yarn", "longrope", "llama3"])
def test_frequencies_are_the_reference_s_bit_for_bit(rope_type: str, seed: int) -> None:
    parameters, head_dim = draw(rope_type, seed)
    rope = ours(parameters, head_dim)
    wanted, factor = ROPE_INIT_FUNCTIONS[rope_type](reference(parameters, head_dim).config, torch.device("cpu"))
    torch.testing.assert_close(rope.inv_freq, wanted, rtol=1e-6, atol=0)
    assert rope.attention_factor == pytest.approx(factor, rel=1e-12)


@pytest.mark.parametrize("seed", range(6))
def test_ntk_is_its_formula(seed: int) -> None:
    parameters, head_dim = draw("ntk", seed)
    rope = ours(parameters, head_dim)
    size = int(head_dim * parameters.get("partial_rotary_factor", 1.0))
    theta = parameters["rope_theta"] * parameters["factor"] ** (size / (size - 2))
    wanted = [theta ** (-2 * i / size) for i in range(size // 2)]
    assert rope.inv_freq.tolist() == pytest.approx(wanted, rel=1e-5)
    # the defining property: the lowest frequency is that of linear scaling, the highest is untouched
    linear = ours({**parameters, "rope_type": "linear"}, head_dim).inv_freq
    assert rope.inv_freq[-1].item() == pytest.approx(linear[-1].item(), rel=1e-5)
    assert rope.inv_freq[0].item() == 1.0


def test_ntk_is_dynamic_at_one_length() -> None:
    # dynamic with factor f at length L stretches by f L / limit - (f - 1), here 2 * 2 - 1
    dynamic = ours({"rope_type": "dynamic", "factor": 2.0}, 16)
    ntk = ours({"rope_type": "ntk-aware", "factor": 3.0}, 16)
    positions = tables(2 * LIMIT)
    for got, wanted in zip(dynamic(positions), ntk(positions), strict=True):
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-4)


@pytest.mark.parametrize("rope_type", ["dynamic", "longrope"])
def test_each_row_has_its_own_length(rope_type: str) -> None:
    extra = {"short_factor": [1.0] * 4, "long_factor": [3.0] * 4, "original_max_position_embeddings": LIMIT}
    parameters = {"rope_type": rope_type, "factor": 4.0, **(extra if rope_type == "longrope" else {})}
    rope = ours(parameters, 8)
    short, long = torch.arange(20), torch.arange(90, 110)
    both = rope(torch.stack([short, long]))
    for row, positions in enumerate((short, long)):
        alone = rope(positions[None])
        fresh = reference(parameters, 8)(torch.zeros(1), positions[None])
        for got, one, wanted in zip(both, alone, fresh, strict=True):
            torch.testing.assert_close(got[row], one[0], rtol=0, atol=0)
            torch.testing.assert_close(one, wanted, rtol=0, atol=2e-6)
    # and the default would differ, so that the comparison above shows something
    assert not torch.allclose(both[0][1], ours({"rope_type": "default"}, 8)(long[None])[0][0], atol=1e-2)


@pytest.mark.parametrize("rope_type", ["dynamic", "longrope"])
def test_no_call_changes_another(rope_type: str) -> None:
    parameters, head_dim = draw(rope_type, 1)
    rope = ours(parameters, head_dim)
    before = rope(tables(10))
    rope(tables(300))
    for got, wanted in zip(rope(tables(10)), before, strict=True):
        assert torch.equal(got, wanted)


@pytest.mark.parametrize("share", [1.0, 0.5, 0.25, 0.375])
def test_rotation_equals_reference(share: float) -> None:
    torch.manual_seed(0)
    parameters = {"rope_type": "default", "partial_rotary_factor": share}
    q, k = torch.randn(2, 3, 7, 24), torch.randn(2, 3, 7, 24)
    positions = torch.stack([torch.arange(7), torch.arange(3, 10)])
    cos, sin = ours(parameters, 24)(positions)
    wanted = apply_rotary_pos_emb(q, k, *reference(parameters, 24)(q, positions))
    assert cos.shape == (2, 7, 2 * math.ceil(int(24 * share) / 2))  # 0.375 of 24 is 9: five pairs
    for x, want in zip((q, k), wanted, strict=True):
        torch.testing.assert_close(apply_rope(x, cos, sin), want, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_rotation_keeps_the_dtype_and_rounds_as_the_reference(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    q = torch.randn(1, 2, 9, 8, dtype=dtype)
    positions = tables(9)
    cos, sin = ours({"rope_type": "default"}, 8)(positions)
    got = apply_rope(q, cos, sin)
    assert got.dtype == dtype
    assert torch.equal(got, apply_rotary_pos_emb(q, q, *reference({"rope_type": "default"}, 8)(q, positions))[0])


def test_scores_depend_on_distances_only() -> None:
    torch.manual_seed(0)
    q, k = torch.randn(1, 1, 1, 16, dtype=torch.float64), torch.randn(1, 1, 1, 16, dtype=torch.float64)
    rope = ours({"rope_type": "default"}, 16)

    def score(query: int, key: int) -> float:
        turned = [apply_rope(x, *rope(torch.tensor([[place]]))) for x, place in ((q, query), (k, key))]
        return float((turned[0] * turned[1]).sum())

    assert score(9, 4) == pytest.approx(score(25, 20), abs=1e-5)
    assert abs(score(9, 4) - score(9, 5)) > 1e-3


def test_buffers_stay_float32_and_are_not_saved() -> None:
    parameters, head_dim = draw("longrope", 0)
    rope = ours(parameters, head_dim)
    before = {name: buffer.clone() for name, buffer in rope.named_buffers()}
    assert sorted(before) == ["inv_freq", "long_inv_freq"]
    for change in (rope.half, rope.double, lambda: rope.to(torch.bfloat16)):
        change()
        for name, buffer in rope.named_buffers():
            assert torch.equal(buffer, before[name]) and buffer.dtype == torch.float32
    assert not rope.state_dict()


@pytest.mark.parametrize("rope_type", ["default", "dynamic", "longrope"])
def test_buffers_are_built_again_after_meta(rope_type: str) -> None:
    parameters, head_dim = draw(rope_type, 2)
    with torch.device("meta"):
        rope = ours(parameters, head_dim)
    assert all(buffer.is_meta for buffer in rope.buffers())
    rope.rebuild_buffers(torch.device("cpu"))
    plain = ours(parameters, head_dim)
    assert dict(plain.named_buffers()).keys() == dict(rope.named_buffers()).keys()
    for got, wanted in zip(rope(tables(100)), plain(tables(100)), strict=True):
        assert torch.equal(got, wanted)


def test_attention_factors() -> None:
    yarn = {"rope_type": "yarn", "factor": 32.0}
    assert attention_factor(yarn, LIMIT) == pytest.approx(0.1 * math.log(32) + 1)
    assert attention_factor({**yarn, "factor": 1.0}, LIMIT) == 1.0
    assert attention_factor({**yarn, "factor": None, "original_max_position_embeddings": 16}, LIMIT) == pytest.approx(
        0.1 * math.log(4) + 1
    )
    assert attention_factor({**yarn, "attention_factor": 2}, LIMIT) == 2.0
    assert attention_factor({"rope_type": "llama3", "factor": 8.0}, LIMIT) == 1.0


def test_printing_names_the_type() -> None:
    assert "type=yarn, size=16, theta=10000.0" in repr(ours({"rope_type": "yarn", "factor": 2.0}, 16))
