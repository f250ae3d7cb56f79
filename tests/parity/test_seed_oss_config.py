"""Seed-OSS's configuration: the reference's defaults and files, both generations of names, and clear errors."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from quintet.errors import ConfigError, InputError

IDS = torch.tensor([[5, 17, 3, 88, 42, 9, 61]])


def test_defaults(transformers: Any) -> None:
    from quintet import SeedOssConfig

    ours, theirs = SeedOssConfig().to_dict(), transformers.SeedOssConfig().to_dict()
    for name, value in theirs.items():
        if name in ours and name not in ("transformers_version", "architectures"):
            assert ours[name] == value, name
    assert SeedOssConfig().rope_parameters == {"rope_type": "default", "rope_theta": 10000.0}
    assert SeedOssConfig(num_key_value_heads=None).num_key_value_heads == 80
    assert SeedOssConfig(num_attention_heads=16, head_dim=None).head_dim == 256


SCALINGS: list[dict[str, Any] | None] = [
    None,
    {"rope_type": "linear", "factor": 2.0},
    {"rope_type": "dynamic", "factor": 2.0},
    {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 100, "truncate": False},
    {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 100,
    },
]


@pytest.mark.parametrize("scaling", SCALINGS, ids=str)
@pytest.mark.parametrize("generation", ["old", "new"])
def test_files_go_both_ways(transformers: Any, tmp_path: Path, scaling: Any, generation: str) -> None:
    from quintet import SeedOssConfig

    fields: dict[str, Any] = {"hidden_size": 48, "num_attention_heads": 6, "num_key_value_heads": 3, "num_labels": 3}
    fields |= {"head_dim": 10, "mlp_bias": True, "eos_token_id": [1, 2], "bos_token_id": None, "mine": {"a": [1]}}
    if generation == "old":
        rope: dict[str, Any] = {"rope_theta": 77.0, "rope_scaling": scaling}
    else:
        rope = {"rope_parameters": {"rope_theta": 77.0, **(scaling or {"rope_type": "default"})}}
    ours = SeedOssConfig(**fields, **rope, dtype="bfloat16")
    assert ours.rope_parameters == {"rope_theta": 77.0, **(scaling or {"rope_type": "default"})}
    assert (ours.rope_theta, ours.rope_scaling) == (77.0, scaling)
    ours.save_pretrained(tmp_path / "ours")
    written = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert "rope_parameters" not in written
    theirs = transformers.SeedOssConfig.from_pretrained(tmp_path / "ours")
    found = {key: value for key, value in theirs.rope_parameters.items() if key != "type"}
    assert found == ours.rope_parameters
    for name, value in fields.items():
        assert getattr(theirs, name) == value, name
    theirs.save_pretrained(tmp_path / "theirs")  # the newer names
    again = SeedOssConfig.from_pretrained(tmp_path / "theirs")
    assert again.rope_parameters == ours.rope_parameters
    for name, value in fields.items():
        assert getattr(again, name) == value, name


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_key_value_heads": 3}, r"num_attention_heads is 80 and num_key_value_heads is 3, .* multiple"),
        ({"num_key_value_heads": 0}, r"num_key_value_heads is 0"),
        ({"pad_token_id": 155136}, r"pad_token_id is 155136, but must be one id below vocab_size \(155136\)"),
        ({"hidden_act": "siluu"}, r"hidden_act is 'siluu'.*silu"),
        ({"hidden_size": -4}, r"hidden_size is -4"),
        ({"vocab_size": 2**40}, r"vocab_size is 1099511627776"),
        ({"head_dim": 7}, r"rotary size is 7 .* must be even"),
        ({"attention_bias": "yes"}, r"attention_bias is 'yes'"),
        ({"residual_dropout": 1.5}, r"residual_dropout is 1.5"),
        ({"rms_norm_eps": -1.0}, r"rms_norm_eps is -1.0"),
        ({"rope_theta": 0.5}, r"rope_theta is 0.5, but must be a number above 1"),
        ({"rope_scaling": {"rope_type": "yarm", "factor": 2.0}}, r"rope_type 'yarm', but must have one of .*yarn"),
        ({"rope_scaling": {"rope_type": "linear"}}, r"no key 'factor'"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 0.5}}, r"factor of rope_scaling is 0.5"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0, "beta_fast": 3}}, r"'beta_fast' \(3\), .* yarn"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "betafast": 3}}, r"'betafast' \(3\), which is unknown"),
        ({"rope_scaling": 4}, r"rope_scaling is 4, but must be an object or None"),
        ({"rope_parameters": {"rope_theta": 5.0}, "rope_theta": 6.0}, r"rope_theta is 6.0 in .* and 5.0"),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, r"rotates whole heads"),
    ],
    ids=str,
)
def test_bad_configurations(fields: dict[str, Any], message: str) -> None:
    from quintet import SeedOssConfig

    with pytest.raises(ConfigError, match=message):
        SeedOssConfig(**fields)
    with pytest.raises(ConfigError, match=message):
        SeedOssConfig.from_dict(fields)


def test_bad_names_in_files() -> None:
    from quintet import SeedOssConfig

    with pytest.raises(ConfigError, match=r"no field 'mlp_biass'\..*mlp_bias"):
        SeedOssConfig.from_dict({}, mlp_biass=True)


def model(**fields: Any) -> Any:
    from quintet.models.seed_oss import SeedOssForCausalLM, tiny

    return SeedOssForCausalLM(tiny(**fields)).eval()


def test_bad_input() -> None:
    made = model()
    for given, message in (
        ({"input_ids": IDS + 40}, r"input_ids: 128 is outside the vocabulary \(vocab_size\); allowed are 0 to 98"),
        ({"input_ids": IDS - 9}, r"input_ids: -6 is outside"),
        ({"input_ids": IDS[0]}, r"must be \(batch, tokens\)"),
        ({"input_ids": IDS.float()}, r"input_ids are torch.float32"),
        ({"input_ids": IDS[:, :0]}, r"the input is empty"),
        ({}, r"either input_ids or inputs_embeds; got neither"),
        ({"input_ids": IDS, "inputs_embeds": torch.ones(1, 7, 32)}, r"got both"),
        ({"inputs_embeds": torch.ones(1, 7, 31)}, r"must be \(batch, tokens, 32\)"),
        ({"input_ids": IDS, "attention_mask": torch.ones(1, 6)}, r"shape \(1, 6\), but must be \(1, 7\)"),
        ({"input_ids": IDS, "attention_mask": [[1] * 7]}, r"attention_mask is a list, but must be a tensor of shape"),
        ({"input_ids": IDS, "attention_mask": torch.ones(1, 1, 7, 6)}, r"must broadcast to \(1, heads, 7, 7\)"),
        ({"input_ids": IDS, "position_ids": torch.arange(6)[None]}, r"position_ids have shape \(1, 6\)"),
        ({"input_ids": IDS, "head_mask": torch.ones(3)}, r"head_mask has shape \(3,\), but must be \(4,\)"),
        ({"input_ids": IDS, "labels": IDS + 40}, r"labels holds 128; allowed are 0 to 98"),
        ({"input_ids": IDS, "labels": IDS, "logits_to_keep": 2}, r"do not cut the logits"),
        ({"input_ids": IDS, "logits_to_keep": -2}, r"logits_to_keep is -2"),
        ({"input_ids": IDS, "cache_position": torch.arange(1, 8)}, r"cache_position"),
        ({"input_ids": IDS, "attention_mask": {"full_attention": torch.ones(1, 7)}}, r"are all of one kind"),
    ):
        with pytest.raises(InputError, match=message):
            made(**given)


def test_unknown_keywords_are_named() -> None:
    for name, hint in (("atention_mask", "attention_mask"), ("output_attention", "output_attentions")):
        with pytest.raises(TypeError, match=rf"no argument '{name}'.*Did you mean '{hint}'"):
            model()(IDS, **{name: True})
    with pytest.raises(TypeError, match="token_type_ids"):
        model()(IDS, token_type_ids=IDS)


def test_the_cache_of_another_model() -> None:
    past = model(num_hidden_layers=3)(IDS).past_key_values
    past.update(torch.ones(1, 2, 2, 8), torch.ones(1, 2, 2, 8), 1)
    with pytest.raises(InputError, match=r"the 2 layers of past_key_values hold \[7, 9\] tokens"):
        model()(IDS[:, :1], past_key_values=past)
    for fields, message in (({"num_key_value_heads": 4}, "keys"), ({"head_dim": 16}, "keys")):
        with pytest.raises(InputError, match=message):
            model(**fields)(IDS[:, :1], past_key_values=model()(IDS).past_key_values)
    with pytest.raises(InputError, match="keys"):
        model()(IDS[:, :1].repeat(2, 1), past_key_values=model()(IDS).past_key_values)


def test_a_text_past_the_limit_warns_once(caplog: pytest.LogCaptureFixture) -> None:
    from quintet.layers import inputs

    inputs._warn_once.cache_clear()
    made = model(max_position_embeddings=21)
    with caplog.at_level(logging.WARNING, logger="quintet"):
        made(IDS.repeat(1, 3))
        assert not caplog.records
        for _ in range(3):
            made(IDS.repeat(1, 4))
    assert [record.message for record in caplog.records] == [
        "the text is longer than the 21 tokens (max_position_embeddings) that this model was made for; what it writes "
        "from there on may be poor. Shorten the text, or set rope_scaling in the configuration (its types: linear, "
        "dynamic, ntk, yarn, longrope, llama3)."
    ]


def test_types_that_no_kernel_has(tmp_path: Path) -> None:
    from quintet import SeedOssForCausalLM

    model().save_pretrained(tmp_path)
    for dtype in (torch.float8_e4m3fn, torch.int8, "int4", "float8"):
        with pytest.raises(ConfigError, match=r"is not a type that weights can have: 'auto' .*'bfloat16'"):
            SeedOssForCausalLM.from_pretrained(tmp_path, dtype=dtype)
    with pytest.raises(ConfigError, match="attn_implementation 'flash'"):
        SeedOssForCausalLM.from_pretrained(tmp_path, attn_implementation="flash")(IDS)
