"""The Auto classes: from what a config.json says to the right class, and never to code of a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import quintet
from quintet import auto
from quintet.auto import AutoConfig, AutoModel, AutoModelForCausalLM, family_of, model_types
from quintet.config import PreTrainedConfig
from quintet.errors import ConfigError
from quintet.modeling import PreTrainedModel
from quintet.models.gpt2 import GPT2Config, GPT2LMHeadModel, GPT2Model, tiny

CLASSES = {
    "AutoModel": "GPT2Model",
    "AutoModelForCausalLM": "GPT2LMHeadModel",
    "AutoModelWithLMHead": "GPT2LMHeadModel",
    "AutoModelForSequenceClassification": "GPT2ForSequenceClassification",
    "AutoModelForTokenClassification": "GPT2ForTokenClassification",
    "AutoModelForQuestionAnswering": "GPT2ForQuestionAnswering",
}


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is gone afterwards."""
    monkeypatch.setattr(auto, "_registered", {})
    for name in CLASSES:
        monkeypatch.setattr(getattr(auto, name), "_own", {})


def write(folder: Path, data: dict[str, Any]) -> Path:
    (folder / "config.json").write_text(json.dumps(data))
    return folder


@pytest.mark.parametrize("name", CLASSES)
def test_every_task(name: str, tmp_path: Path) -> None:
    auto_class, wanted = getattr(quintet, name), getattr(quintet, CLASSES[name])
    made = auto_class.from_config(tiny())
    assert type(made) is wanted
    made.save_pretrained(tmp_path)
    again = auto_class.from_pretrained(tmp_path)
    assert type(again) is wanted
    assert all(torch.equal(again.state_dict()[key], value) for key, value in made.state_dict().items())
    with pytest.raises(TypeError, match=r"use AutoModel\w*\.from_pretrained\(name\)"):
        auto_class()


def test_options_reach_the_model(tmp_path: Path) -> None:
    AutoModelForCausalLM.from_config(tiny()).save_pretrained(tmp_path)
    model, report = AutoModel.from_pretrained(
        tmp_path, attn_implementation="eager", dtype=torch.bfloat16, output_hidden_states=True, output_loading_info=True
    )
    assert model.config._attn_implementation == "eager"
    assert model.dtype == torch.bfloat16
    assert model.config.output_hidden_states is True
    assert not report["missing_keys"]
    given = AutoModel.from_pretrained(tmp_path, config=tiny(output_attentions=True))
    assert given.config.output_attentions is True
    with pytest.raises(ConfigError, match="n_layers"):
        AutoModel.from_pretrained(tmp_path, n_layers=3)


def test_configurations(tmp_path: Path) -> None:
    config = AutoConfig.for_model("gpt2", n_layer=3)
    assert isinstance(config, GPT2Config)
    assert config.n_layer == 3
    config.save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).to_diff_dict() == config.to_diff_dict() | {
        "_name_or_path": str(tmp_path)
    }
    loaded, unused = AutoConfig.from_pretrained(tmp_path, n_head=6, colour="red", return_unused_kwargs=True)
    assert loaded.n_head == 6
    assert unused == {"colour": "red"}
    with pytest.raises(ConfigError, match="GPT2Config has no field 'n_layers'. Did you mean 'n_layer'"):
        AutoConfig.for_model("gpt2", n_layers=3)
    with pytest.raises(TypeError, match="AutoConfig is not made"):
        AutoConfig()


@pytest.mark.parametrize(
    "value", ["gtp2", "llama", "../gpt2", "gpt2.FAMILY", "__init__", "os", "", 7, ["gpt2"], {"a": 1}]
)
def test_an_unknown_model_type(value: Any, tmp_path: Path) -> None:
    words = "unknown model_type .*; known are .*gpt2" + (".*Did you mean 'gpt2'" if value == "gtp2" else "")
    with pytest.raises(ConfigError, match=words):
        AutoConfig.from_pretrained(write(tmp_path, {"model_type": value}))
    with pytest.raises(ConfigError, match=words):
        family_of(value)


def test_a_file_without_model_type(tmp_path: Path) -> None:
    old = {"architectures": ["GPT2LMHeadModel"], "n_embd": 24, "n_head": 2}
    assert isinstance(AutoConfig.from_pretrained(write(tmp_path, old)), GPT2Config)
    for data in ({}, {"architectures": ["BertModel"]}, {"architectures": 7}, {"architectures": "GPT2Model"}):
        with pytest.raises(ConfigError, match="has no model_type; known are .*gpt2.* load with the family's own class"):
            AutoConfig.from_pretrained(write(tmp_path, data))


def test_remote_code_is_refused(tmp_path: Path) -> None:
    write(tmp_path, {"model_type": "gpt2"})
    for call in (AutoConfig.from_pretrained, AutoModel.from_pretrained, AutoModelForCausalLM.from_pretrained):
        with pytest.raises(ConfigError, match="quintet never runs code from a checkpoint"):
            call(tmp_path, trust_remote_code=True)


def test_every_family_file_is_found() -> None:
    assert "gpt2" in model_types()
    for kind in model_types():
        family = family_of(kind)
        assert family.model_type == family.config.model_type == kind
        assert {"base", "causal-lm"} <= set(family.classes)
        assert isinstance(family.tiny(), family.config)
        assert family.tiny(num_labels=3).num_labels == 3
        assert getattr(quintet.tokenizers, family.tokenizer)
        for cls in family.classes.values():
            assert issubclass(cls, PreTrainedModel)
            assert cls.config_class is family.config


def test_a_task_that_a_family_does_not_have(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AutoModel, "_task", "translation")
    with pytest.raises(
        ConfigError, match="AutoModel: the family 'gpt2' has no translation model, only base, causal-lm"
    ):
        AutoModel.from_config(tiny())


@pytest.mark.usefixtures("registry")
def test_classes_of_your_own(tmp_path: Path) -> None:
    class MyConfig(GPT2Config):
        model_type = "mine"

    class MyModel(GPT2LMHeadModel):
        config_class = MyConfig

    AutoConfig.register("mine", MyConfig)
    AutoModelForCausalLM.register(MyConfig, MyModel)
    assert "mine" in model_types()
    config = MyConfig(**{k: v for k, v in tiny().to_dict().items() if not k.startswith("_")})
    model = AutoModelForCausalLM.from_config(config)
    assert type(model) is MyModel
    model.save_pretrained(tmp_path)
    assert type(AutoModelForCausalLM.from_pretrained(tmp_path)) is MyModel
    assert type(AutoConfig.from_pretrained(tmp_path)) is MyConfig
    with pytest.raises(ConfigError, match="unknown model_type 'mine'"):  # registered for one task only
        AutoModel.from_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="model_type 'mine' is taken. Choose another, or pass exist_ok=True"):
        AutoConfig.register("mine", MyConfig)
    with pytest.raises(ConfigError, match="AutoModelForCausalLM has a model for MyConfig already"):
        AutoModelForCausalLM.register(MyConfig, MyModel)
    AutoConfig.register("mine", MyConfig, exist_ok=True)
    AutoModelForCausalLM.register(MyConfig, MyModel, exist_ok=True)
    with pytest.raises(ConfigError, match="MyConfig has model_type 'mine', not 'yours'"):
        AutoConfig.register("yours", MyConfig)
    with pytest.raises(ConfigError, match="'gpt2' is taken"):
        AutoConfig.register("gpt2", GPT2Config)


def test_a_configuration_without_a_family() -> None:
    with pytest.raises(ConfigError, match="unknown model_type ''"):
        AutoModel.from_config(PreTrainedConfig())


def test_base_and_head_share_their_weights_files(tmp_path: Path) -> None:
    model = GPT2Model(tiny()).eval()
    model.save_pretrained(tmp_path)
    head = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(head.transformer.wte.weight, model.wte.weight)
    assert head.lm_head.weight is head.transformer.wte.weight
