"""GPT-1's configurations mean what they mean to the reference, and its files are read as it reads them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from quintet.models.openai_gpt import OpenAIGPTConfig


def test_defaults(transformers: Any) -> None:
    ours, theirs = OpenAIGPTConfig().to_dict(), transformers.OpenAIGPTConfig().to_dict()
    for name, value in theirs.items():
        if name in ours and name not in ("transformers_version", "architectures"):
            assert ours[name] == value, name
    assert OpenAIGPTConfig().use_cache is True  # as the page says, though it is not in the signature


def test_files_go_both_ways(transformers: Any, tmp_path: Path) -> None:
    fields = {"n_embd": 48, "n_head": 4, "n_layer": 3, "summary_type": "mean", "num_labels": 3, "pad_token_id": 5}
    fields |= {"afn": "swish", "eos_token_id": [1, 2], "layer_norm_epsilon": 0.1, "mine": {"a": [1]}}
    OpenAIGPTConfig(**fields, dtype="bfloat16").save_pretrained(tmp_path / "ours")
    theirs = transformers.OpenAIGPTConfig.from_pretrained(tmp_path / "ours")
    for name, value in fields.items():
        assert getattr(theirs, name) == value, name
    assert str(theirs.dtype) == "torch.bfloat16"
    theirs.save_pretrained(tmp_path / "theirs")
    again = OpenAIGPTConfig.from_pretrained(tmp_path / "theirs")
    for name, value in fields.items():
        assert getattr(again, name) == value, name
    assert again.dtype == "bfloat16"
    assert json.loads((tmp_path / "theirs" / "config.json").read_text())["model_type"] == "openai-gpt"


def test_the_common_names_lead_to_the_familys_own() -> None:
    config = OpenAIGPTConfig(max_position_embeddings=20, hidden_size=24, num_attention_heads=3, num_hidden_layers=2)
    assert (config.n_positions, config.n_embd, config.n_head, config.n_layer) == (20, 24, 3, 2)
    assert (config.max_position_embeddings, config.hidden_size) == (20, 24)


def test_a_published_config_json_is_read(tmp_path: Path) -> None:
    """The keys of the published model, those that no release reads any more included."""
    published = {
        "afn": "gelu", "architectures": ["OpenAIGPTLMHeadModel"], "attn_pdrop": 0.1, "embd_pdrop": 0.1,
        "initializer_range": 0.02, "layer_norm_epsilon": 1e-05, "model_type": "openai-gpt", "n_ctx": 512, "n_embd": 768,
        "n_head": 12, "n_layer": 12, "n_positions": 512, "n_special": 0, "predict_special_tokens": True,
        "resid_pdrop": 0.1, "summary_activation": None, "summary_first_dropout": 0.1, "summary_proj_to_labels": True,
        "summary_type": "cls_index", "summary_use_proj": True, "vocab_size": 40478,
        "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(published))
    config = OpenAIGPTConfig.from_pretrained(tmp_path)
    assert {name: getattr(config, name) for name in published} == published
    again = json.loads(config.to_json_string())
    assert {name: again[name] for name in published} == published
