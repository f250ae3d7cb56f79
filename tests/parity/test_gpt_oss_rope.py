"""gpt-oss's rotary positions give what the reference's give: every type, inside and past the original length."""

from __future__ import annotations

from typing import Any

import pytest
import torch

LONG = torch.randint(2, 96, (2, 150), generator=torch.Generator().manual_seed(4))


def yarn(**keys: Any) -> dict[str, Any]:
    base = {"rope_type": "yarn", "rope_theta": 900.0, "factor": 4.0, "original_max_position_embeddings": 16}
    return {"rope_parameters": {**base, **keys}}


ROPES: dict[str, dict[str, Any]] = {
    "default": {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
    "default-old": {"rope_parameters": None, "rope_theta": 500.0, "rope_scaling": {"rope_type": "default"}},
    "linear": {"rope_parameters": None, "rope_theta": 700.0, "rope_scaling": {"type": "linear", "factor": 3.0}},
    "dynamic": {"rope_parameters": None, "rope_theta": 700.0, "rope_scaling": {"rope_type": "dynamic", "factor": 2.0}},
    "longrope": {
        "rope_parameters": {
            "rope_type": "longrope",
            "rope_theta": 800.0,
            "short_factor": [1.0, 1.1, 1.2, 1.3],
            "long_factor": [1.0, 2.0, 3.0, 5.0],
            "original_max_position_embeddings": 16,
        }
    },
    "llama3": {
        "rope_parameters": None,
        "rope_theta": 600.0,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
    },
    "published": {"rope_theta": 150000.0, "rope_scaling": None, "rope_parameters": None},
    "yarn": yarn(),
    "yarn-truncate": yarn(truncate=True),
    "yarn-whole": yarn(truncate=False),
    "yarn-betas": yarn(beta_fast=5.0, beta_slow=0.3, truncate=False),
    "yarn-attention": yarn(attention_factor=0.7),
    "yarn-mscale": yarn(mscale=0.8, mscale_all_dim=0.4),
    "yarn-one-mscale": yarn(mscale=0.8),
    "yarn-factor-1": yarn(factor=1.0),
    "yarn-old": {
        "rope_parameters": None,
        "rope_theta": 900.0,
        "rope_scaling": {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 8, "truncate": False},
    },
}


@pytest.mark.parametrize("length", [7, 16, 17, 64, 65, 150])
@pytest.mark.parametrize("kind", ROPES)
def test_rope(pair: Any, same: Any, kind: str, length: int) -> None:
    """Inside and past the original length, with both generations of names."""
    ours, theirs = pair("GptOssForCausalLM", max_position_embeddings=64, **ROPES[kind])
    same(ours(LONG[:, :length]), theirs(LONG[:, :length]))


def test_the_published_rope(pair: Any) -> None:
    ours, theirs = pair("GptOssModel", rope_parameters=None)
    wanted = {"rope_type": "yarn", "rope_theta": 150000.0, "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0}
    wanted |= {"truncate": False, "original_max_position_embeddings": 4096}
    assert ours.config.rope_parameters == wanted
    assert theirs.config.rope_parameters == wanted
    assert torch.equal(ours.rotary_emb.inv_freq, theirs.rotary_emb.inv_freq)
    assert ours.rotary_emb.attention_factor == theirs.rotary_emb.attention_scaling == pytest.approx(1.34657359)
