"""gpt-oss's configuration: the reference's defaults and files, both generations of names, and clear errors."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from quintet.errors import ConfigError, InputError

IDS = torch.tensor([[5, 17, 3, 88, 42, 9, 61]])
FULL, SLIDING = "full_attention", "sliding_attention"
# As the published 20B configuration says it.
PUBLISHED: dict[str, Any] = {
    "architectures": ["GptOssForCausalLM"],
    "attention_bias": True,
    "attention_dropout": 0.0,
    "eos_token_id": 200002,
    "experts_per_token": 4,
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 2880,
    "initial_context_length": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 2880,
    "layer_types": [SLIDING, FULL] * 12,
    "max_position_embeddings": 131072,
    "model_type": "gpt_oss",
    "num_attention_heads": 64,
    "num_experts_per_tok": 4,
    "num_hidden_layers": 24,
    "num_key_value_heads": 8,
    "num_local_experts": 32,
    "output_router_logits": False,
    "pad_token_id": 199999,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "factor": 32.0,
        "original_max_position_embeddings": 4096,
        "rope_type": "yarn",
        "truncate": False,
    },
    "rope_theta": 150000,
    "router_aux_loss_coef": 0.9,
    "sliding_window": 128,
    "swiglu_limit": 7.0,
    "tie_word_embeddings": False,
    "use_cache": True,
    "vocab_size": 201088,
}


def test_defaults(transformers: Any) -> None:
    from quintet import GptOssConfig

    ours, theirs = GptOssConfig().to_dict(), transformers.GptOssConfig().to_dict()
    for name, value in theirs.items():
        if name in ours and name not in ("transformers_version", "architectures", "router_aux_loss_coef"):
            assert ours[name] == value, name
    assert GptOssConfig().rope_parameters == transformers.GptOssConfig().rope_parameters
    assert GptOssConfig(num_key_value_heads=None).num_key_value_heads == 64
    assert GptOssConfig(num_attention_heads=16, num_key_value_heads=4, head_dim=None).head_dim == 180
    assert GptOssConfig(num_hidden_layers=3).layer_types == [SLIDING, FULL, SLIDING]
    assert GptOssConfig().num_experts == 128


def test_the_published_file(transformers: Any, tmp_path: Path) -> None:
    from quintet import GptOssConfig

    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED))
    ours, theirs = GptOssConfig.from_pretrained(tmp_path), transformers.GptOssConfig.from_pretrained(tmp_path)
    for name in PUBLISHED:
        if name not in ("rope_scaling", "rope_theta", "experts_per_token"):
            assert getattr(ours, name) == getattr(theirs, name) == PUBLISHED[name], name
    assert ours.rope_parameters == theirs.rope_parameters
    assert ours.swiglu_alpha == theirs.swiglu_alpha == 1.702
    # its second name of the same number does not come in the way of the first
    assert GptOssConfig.from_pretrained(tmp_path, num_experts_per_tok=2).num_experts_per_tok == 2
    alone = {key: value for key, value in PUBLISHED.items() if key != "num_experts_per_tok"}
    assert GptOssConfig.from_dict({**alone, "experts_per_token": 3}).num_experts_per_tok == 3
    with pytest.raises(ConfigError, match="num_experts_per_tok is 4 and experts_per_token, another name of it, is 3"):
        GptOssConfig.from_dict({**PUBLISHED, "experts_per_token": 3})


SCALINGS: list[dict[str, Any]] = [
    {"rope_type": "default"},
    {"rope_type": "linear", "factor": 2.0},
    {"rope_type": "dynamic", "factor": 2.0},
    {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 100, "truncate": False},
    {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 100, "mscale": 0.5, "mscale_all_dim": 0.7},
]


@pytest.mark.parametrize("scaling", SCALINGS, ids=str)
@pytest.mark.parametrize("generation", ["old", "new"])
def test_files_go_both_ways(transformers: Any, tmp_path: Path, scaling: dict[str, Any], generation: str) -> None:
    """The default type is written too: left out, every reader would put the family's YaRN in its place."""
    from quintet import GptOssConfig

    fields: dict[str, Any] = {"hidden_size": 48, "num_attention_heads": 6, "num_key_value_heads": 3, "num_labels": 3}
    fields |= {"head_dim": 10, "eos_token_id": [1, 2], "bos_token_id": None, "mine": {"a": [1]}}
    fields |= {"num_hidden_layers": 3, "layer_types": [FULL, FULL, SLIDING], "sliding_window": 7, "swiglu_alpha": 1.5}
    fields |= {"num_local_experts": 6, "num_experts_per_tok": 3, "router_aux_loss_coef": 0.1}
    if generation == "old":
        rope: dict[str, Any] = {"rope_theta": 77.0, "rope_scaling": scaling}
    else:
        rope = {"rope_parameters": {"rope_theta": 77.0, **scaling}}
    ours = GptOssConfig(**fields, **rope, dtype="bfloat16")
    assert ours.rope_parameters == {"rope_theta": 77.0, **scaling}
    ours.save_pretrained(tmp_path / "ours")
    assert "rope_parameters" not in json.loads((tmp_path / "ours" / "config.json").read_text())
    assert GptOssConfig.from_pretrained(tmp_path / "ours").rope_parameters == ours.rope_parameters
    theirs = transformers.GptOssConfig.from_pretrained(tmp_path / "ours")
    found = {key: value for key, value in theirs.rope_parameters.items() if key != "type"}
    assert found == ours.rope_parameters
    for name, value in fields.items():
        assert getattr(theirs, name) == value, name
    theirs.save_pretrained(tmp_path / "theirs")  # the newer names
    again = GptOssConfig.from_pretrained(tmp_path / "theirs")
    assert again.rope_parameters == ours.rope_parameters
    for name, value in fields.items():
        assert getattr(again, name) == value, name


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_key_value_heads": 3}, r"num_attention_heads is 64 and num_key_value_heads is 3, .* multiple"),
        ({"layer_types": [FULL]}, r"layer_types has 1 entries for 36 layers \(num_hidden_layers\)"),
        ({"layer_types": [FULL, "slidin_attention"]}, r"holds 'slidin_attention', .*Did you mean 'sliding_attention'"),
        ({"layer_types": [FULL, 3]}, r"layer_types holds 3, but only sliding_attention and full_attention are known"),
        ({"layer_types": "full_attention"}, r"layer_types is 'full_attention', but must be a list of names, or None"),
        ({"num_experts_per_tok": 129}, r"num_experts_per_tok is 129, but there are only 128 experts"),
        ({"num_experts_per_tok": 0}, r"num_experts_per_tok is 0"),
        ({"num_local_experts": 0}, r"num_local_experts is 0"),
        ({"sliding_window": 0}, r"sliding_window is 0"),
        ({"sliding_window": -5}, r"sliding_window is -5"),
        ({"sliding_window": 4.5}, r"sliding_window is 4.5"),
        ({"pad_token_id": 201088}, r"pad_token_id is 201088, but must be one id below vocab_size \(201088\)"),
        ({"hidden_act": "siluu"}, r"hidden_act is 'siluu'.*silu"),
        ({"swiglu_limit": "7"}, r"swiglu_limit is '7'"),
        ({"router_aux_loss_coef": None}, r"router_aux_loss_coef is None"),
        ({"head_dim": 7}, r"rotary size is 7 .* must be even"),
        ({"rope_scaling": {"rope_type": "yarm", "factor": 2.0}}, r"rope_type 'yarm', but must have one of .*yarn"),
        ({"rope_scaling": {"rope_type": "yarn"}}, r"no key 'factor'"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "betafast": 3}}, r"'betafast' \(3\), which is unknown"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "truncate": 1}}, r"truncate of rope_scaling is 1"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "beta_fast": 0.5}}, r"beta_fast must be the larger"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 0.5}}, r"factor of rope_scaling is 0.5"),
    ],
    ids=str,
)
def test_bad_configurations(fields: dict[str, Any], message: str) -> None:
    from quintet import GptOssConfig

    with pytest.raises(ConfigError, match=message):
        GptOssConfig(**fields)
    with pytest.raises(ConfigError, match=message):
        GptOssConfig.from_dict(fields)
    with pytest.raises(ConfigError, match=r"no field 'sliding_windw'\..*sliding_window"):
        GptOssConfig.from_dict({}, sliding_windw=3)


def model(**fields: Any) -> Any:
    from quintet.models.gpt_oss import GptOssForCausalLM, tiny

    return GptOssForCausalLM(tiny(**fields)).eval()


@pytest.mark.parametrize("name", ["gelu", "relu", "tanh"])
def test_another_activation_is_refused_when_a_model_is_made(name: str) -> None:
    """The configuration can be read, as by the reference, which computes its clamped silu whatever the field says."""
    with pytest.raises(ConfigError, match=rf"hidden_act is '{name}', but the experts .* Set it to 'silu'"):
        model(hidden_act=name)
    assert model(hidden_act="swish")(IDS).logits.isfinite().all()  # another name of silu


def test_bad_input() -> None:
    made = model()
    for given, message in (
        ({"input_ids": IDS + 40}, r"input_ids: 128 is outside the vocabulary \(vocab_size\); allowed are 0 to 98"),
        ({"input_ids": IDS[0]}, r"must be \(batch, tokens\)"),
        ({}, r"either input_ids or inputs_embeds; got neither"),
        ({"inputs_embeds": torch.ones(1, 7, 31)}, r"must be \(batch, tokens, 32\)"),
        ({"input_ids": IDS, "attention_mask": torch.ones(1, 6)}, r"shape \(1, 6\), but must be \(1, 7\)"),
        ({"input_ids": IDS, "attention_mask": [[1] * 7]}, r"attention_mask is a list, but must be a tensor of shape"),
        ({"input_ids": IDS, "attention_mask": torch.ones(1, 1, 7, 6)}, r"must broadcast to \(1, heads, 7, 7\)"),
        ({"input_ids": IDS, "attention_mask": {FULL: None}}, r"and 'sliding_attention' is missing"),
        (
            {"input_ids": IDS, "attention_mask": {FULL: None, SLIDING: torch.ones(1, 6)}},
            r"shape \(1, 6\), but must be \(1, 7\)",
        ),
        ({"input_ids": IDS, "head_mask": torch.ones(3)}, r"head_mask has shape \(3,\), but must be \(4,\)"),
        ({"input_ids": IDS, "labels": IDS + 40}, r"labels holds 128; allowed are 0 to 98"),
        ({"input_ids": IDS, "cache_position": torch.arange(1, 8)}, r"cache_position"),
    ):
        with pytest.raises(InputError, match=message):
            made(**given)


def test_a_whole_mask_with_a_cache_that_forgets() -> None:
    made = model(sliding_window=3)
    past = made(IDS).past_key_values
    with pytest.raises(InputError, match=r"over 8 tokens cannot be used with a cache that keeps only the last tokens"):
        made(IDS[:, :1], attention_mask=torch.ones(1, 1, 1, 8), past_key_values=past)


def test_unknown_keywords_are_named() -> None:
    for name, hint in (("atention_mask", "attention_mask"), ("output_router_logit", "output_router_logits")):
        with pytest.raises(TypeError, match=rf"no argument '{name}'.*Did you mean '{hint}'"):
            model()(IDS, **{name: True})


def test_the_cache_of_another_model() -> None:
    for fields in ({"num_key_value_heads": 4}, {"head_dim": 16}):
        with pytest.raises(InputError, match="keys"):
            model(**fields)(IDS[:, :1], past_key_values=model()(IDS).past_key_values)
    with pytest.raises(InputError, match="keys"):
        model()(IDS[:, :1].repeat(2, 1), past_key_values=model()(IDS).past_key_values)


def test_a_text_past_the_limit_warns_once(caplog: pytest.LogCaptureFixture) -> None:
    from quintet.layers import inputs

    inputs._warn_once.cache_clear()
    made = model(max_position_embeddings=22)
    with caplog.at_level(logging.WARNING, logger="quintet"):
        past = made(IDS.repeat(1, 3)).past_key_values
        past = made(IDS[:, :1], past_key_values=past).past_key_values
        assert not caplog.records
        for _ in range(3):
            past = made(IDS[:, :1], past_key_values=past).past_key_values
    assert len(caplog.records) == 1
    assert "longer than the 22 tokens (max_position_embeddings)" in caplog.text


def test_types_that_no_kernel_has(tmp_path: Path) -> None:
    from quintet import GptOssForCausalLM

    model().save_pretrained(tmp_path)
    for dtype in (torch.float8_e5m2, torch.uint8, "mxfp4"):
        with pytest.raises(ConfigError, match=r"is not a type that weights can have: 'auto' .*'bfloat16'"):
            GptOssForCausalLM.from_pretrained(tmp_path, dtype=dtype)
