"""The Auto classes: from what a config.json says to the right class, and never to code of a checkpoint."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import quintet
from quintet import auto
from quintet.auto import AutoConfig, AutoModel, AutoModelForCausalLM, family_of, model_types
from quintet.config import PreTrainedConfig
from quintet.errors import ConfigError
from quintet.family import Family
from quintet.modeling import PreTrainedModel
from quintet.models.gpt2 import GPT2Config, GPT2LMHeadModel, GPT2Model, tiny
from quintet.tokenizers import AutoTokenizer, GPT2TokenizerFast

# The config.json of published checkpoints, and the class, size and a few values that they stand for.
PUBLISHED: dict[str, tuple[dict[str, Any], str, int, dict[str, Any]]] = {
    "openai-gpt": (
        {
            **{"afn": "gelu", "architectures": ["OpenAIGPTLMHeadModel"], "attn_pdrop": 0.1, "embd_pdrop": 0.1},
            **{"initializer_range": 0.02, "layer_norm_epsilon": 1e-05, "model_type": "openai-gpt", "n_ctx": 512},
            **{"n_embd": 768, "n_head": 12, "n_layer": 12, "n_positions": 512, "n_special": 0},
            **{"predict_special_tokens": True, "resid_pdrop": 0.1, "summary_activation": None},
            **{"summary_first_dropout": 0.1, "summary_proj_to_labels": True, "summary_type": "cls_index"},
            **{"summary_use_proj": True, "vocab_size": 40478},
            "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
        },
        "OpenAIGPTLMHeadModel",
        116_534_784,
        {"hidden_size": 768, "n_ctx": 512},
    ),
    "gpt2": (
        {
            **{"activation_function": "gelu_new", "architectures": ["GPT2LMHeadModel"], "attn_pdrop": 0.1},
            **{"bos_token_id": 50256, "embd_pdrop": 0.1, "eos_token_id": 50256, "initializer_range": 0.02},
            **{"layer_norm_epsilon": 1e-05, "model_type": "gpt2", "n_ctx": 1024, "n_embd": 768, "n_head": 12},
            **{"n_layer": 12, "n_positions": 1024, "resid_pdrop": 0.1, "summary_activation": None},
            **{"summary_first_dropout": 0.1, "summary_proj_to_labels": True, "summary_type": "cls_index"},
            **{"summary_use_proj": True, "vocab_size": 50257},
        },
        "GPT2LMHeadModel",
        124_439_808,
        {"num_hidden_layers": 12},
    ),
    "pythia-410m": (
        {
            **{"architectures": ["GPTNeoXForCausalLM"], "bos_token_id": 0, "eos_token_id": 0, "hidden_act": "gelu"},
            **{"hidden_size": 1024, "initializer_range": 0.02, "intermediate_size": 4096, "layer_norm_eps": 1e-05},
            **{"max_position_embeddings": 2048, "model_type": "gpt_neox", "num_attention_heads": 16},
            **{"num_hidden_layers": 24, "rotary_emb_base": 10000, "rotary_pct": 0.25, "tie_word_embeddings": False},
            **{"torch_dtype": "float16", "transformers_version": "4.24.0", "use_cache": True},
            **{"use_parallel_residual": True, "vocab_size": 50304},
        },
        "GPTNeoXForCausalLM",
        405_334_016,
        {"rotary_pct": 0.25, "rope_theta": 10000, "dtype": "float16", "tie_word_embeddings": False},
    ),
    "Seed-OSS-36B-Instruct": (
        {
            **{"architectures": ["SeedOssForCausalLM"], "attention_bias": True, "attention_dropout": 0.1},
            **{"attention_out_bias": False, "bos_token_id": 0, "eos_token_id": 2, "head_dim": 128},
            **{"hidden_act": "silu", "hidden_size": 5120, "initializer_range": 0.02, "intermediate_size": 27648},
            **{"max_position_embeddings": 524288, "mlp_bias": False, "model_type": "seed_oss", "pad_token_id": 1},
            **{"num_attention_heads": 80, "num_hidden_layers": 64, "num_key_value_heads": 8, "pretraining_tp": 1},
            **{"residual_dropout": 0.1, "rms_norm_eps": 1e-06, "rope_scaling": {"rope_type": "default"}},
            **{"rope_theta": 10000000.0, "tie_word_embeddings": False, "torch_dtype": "bfloat16"},
            **{"transformers_version": "4.55.0", "use_cache": True, "vocab_size": 155136},
        },
        "SeedOssForCausalLM",
        36_151_104_512,
        {"rope_theta": 1e7, "rope_scaling": None, "attention_bias": True, "attention_out_bias": False},
    ),
    "gpt-oss-20b": (
        {
            **{"architectures": ["GptOssForCausalLM"], "attention_bias": True, "attention_dropout": 0.0},
            **{"eos_token_id": 200002, "experts_per_token": 4, "head_dim": 64, "hidden_act": "silu"},
            **{"hidden_size": 2880, "initial_context_length": 4096, "initializer_range": 0.02},
            **{"intermediate_size": 2880, "layer_types": ["sliding_attention", "full_attention"] * 12},
            **{"max_position_embeddings": 131072, "model_type": "gpt_oss", "num_attention_heads": 64},
            **{"num_experts_per_tok": 4, "num_hidden_layers": 24, "num_key_value_heads": 8, "num_local_experts": 32},
            **{"output_router_logits": False, "pad_token_id": 199999, "rms_norm_eps": 1e-05, "rope_theta": 150000},
            "quantization_config": {
                "modules_to_not_convert": [
                    *("model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head")
                ],
                "quant_method": "mxfp4",
            },
            "rope_scaling": {
                **{"beta_fast": 32.0, "beta_slow": 1.0, "factor": 32.0, "original_max_position_embeddings": 4096},
                **{"rope_type": "yarn", "truncate": False},
            },
            **{"router_aux_loss_coef": 0.9, "sliding_window": 128, "swiglu_limit": 7.0, "tie_word_embeddings": False},
            **{"transformers_version": "4.55.0.dev0", "use_cache": True, "vocab_size": 201088},
        },
        "GptOssForCausalLM",
        20_914_757_184,
        {"sliding_window": 128, "num_experts": 32, "rope_theta": 150000},
    ),
}

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
    monkeypatch.setattr(auto, "_families", {})
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


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("generation", ["as published", "without model_type"])
def test_published_configurations(name: str, generation: str, tmp_path: Path) -> None:
    data, class_name, size, values = PUBLISHED[name]
    if generation == "without model_type":
        data = {key: value for key, value in data.items() if key != "model_type"}
    config = AutoConfig.from_pretrained(write(tmp_path, data))
    for key, value in values.items():
        assert getattr(config, key) == value, key
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert type(model) is getattr(quintet, class_name)
    assert model.num_parameters() == size
    config.save_pretrained(tmp_path / "again")
    again = AutoConfig.from_pretrained(tmp_path / "again")
    assert again.to_json_string() == config.to_json_string()
    assert json.loads(again.to_json_string())["model_type"] == config.model_type


@pytest.mark.parametrize("kind", ["gpt2", "gpt_neox", "gpt_oss", "openai-gpt", "seed_oss"])
def test_every_task_of_every_family(kind: str, tmp_path: Path) -> None:
    family = family_of(kind)
    for auto_class in (getattr(auto, name) for name in CLASSES):
        if auto_class._task not in family.classes:
            with pytest.raises(ConfigError, match=f"the family '{kind}' has no {auto_class._task} model, only base"):
                auto_class.from_config(family.tiny())
            continue
        made = auto_class.from_config(family.tiny(), dtype=torch.bfloat16)
        assert type(made) is family.classes[auto_class._task]
        assert made.dtype == torch.bfloat16
        made.save_pretrained(tmp_path)
        assert type(auto_class.from_pretrained(tmp_path)) is type(made)


@pytest.mark.parametrize("kind", ["gpt2", "gpt_neox", "gpt_oss", "openai-gpt", "seed_oss"])
def test_the_tokenizer_of_every_family(kind: str, tiny_gpt2: Path, tmp_path: Path) -> None:
    """A folder that names no tokenizer class gets the one of its family."""
    if kind == "openai-gpt":  # the one that is no BPE of bytes
        vocabulary = ["<unk>", "a", "c", "t</w>", "a</w>", "at</w>", "cat</w>"]
        (tmp_path / "vocab.json").write_text(json.dumps({token: index for index, token in enumerate(vocabulary)}))
        (tmp_path / "merges.txt").write_text("#version: 0.2\na t</w>\nc at</w>\n")
        wanted = [4, 6]
    else:
        shutil.copy(tiny_gpt2 / "tokenizer.json", tmp_path)
        wanted = AutoTokenizer.from_pretrained(tiny_gpt2)("a cat").input_ids
    write(tmp_path, {"model_type": kind})
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert type(tokenizer).__name__ == family_of(kind).tokenizer
    assert tokenizer("a cat").input_ids == wanted
    tokenizer.save_pretrained(tmp_path / "saved")
    assert type(AutoTokenizer.from_pretrained(tmp_path / "saved")) is type(tokenizer)


def test_a_file_without_model_type(tmp_path: Path) -> None:
    old = {"architectures": ["GPT2LMHeadModel"], "n_embd": 24, "n_head": 2}
    assert isinstance(AutoConfig.from_pretrained(write(tmp_path, old)), GPT2Config)
    old["architectures"] = ["SomethingElse", "TFGPT2DoubleHeadsModel"]
    assert isinstance(AutoConfig.from_pretrained(write(tmp_path, old)), GPT2Config)
    for data in (
        *({}, {"architectures": ["BertModel"]}, {"architectures": 7}, {"architectures": "GPT2Model"}),
        {"architectures": ["GPTNeoXJapaneseForCausalLM"]},  # another family, although one name is part of the other
        {"architectures": [{"GPT2Model": 1}, None]},
    ):
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
    with pytest.raises(ConfigError, match=r"AutoModel has no model for MyConfig. Call AutoModel.register\(MyConfig, "):
        AutoModel.from_pretrained(tmp_path)  # registered for one task only
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
    with pytest.raises(ConfigError, match="'mine' is not a configuration class: derive it from PreTrainedConfig"):
        AutoConfig.register("mine", "mine")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="GPT2Model is no model of MyConfig: its config_class is .*GPT2Config"):
        AutoModel.register(MyConfig, GPT2Model)
    with pytest.raises(ConfigError, match="7 is no model of MyConfig: its config_class is None"):
        AutoModel.register(MyConfig, 7)  # type: ignore[arg-type]


@pytest.mark.usefixtures("registry")
def test_a_family_of_your_own(tmp_path: Path) -> None:
    class MyConfig(GPT2Config):
        model_type = "mine"

    class MyModel(GPT2Model):
        config_class = MyConfig

    class MyLMHeadModel(GPT2LMHeadModel):
        config_class = MyConfig

    def my_tiny(**fields: Any) -> MyConfig:
        return MyConfig(**{"vocab_size": 99, "n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, **fields})

    classes = {"base": MyModel, "causal-lm": MyLMHeadModel}
    mine = Family("mine", MyConfig, classes, "GPT2TokenizerFast", my_tiny)
    for _ in range(2):  # a second time changes nothing
        quintet.register_family(mine)
    assert "mine" in model_types()
    assert family_of("mine") is mine
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model("mine", n_embd=32, n_head=4, n_layer=2, vocab_size=99)
    ).eval()
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(again) is MyLMHeadModel
    ids = torch.arange(5)[None]
    assert torch.equal(again.generate(ids, max_new_tokens=3), model.generate(ids, max_new_tokens=3))
    assert type(AutoModel.from_pretrained(tmp_path)) is MyModel
    data = json.loads((tmp_path / "config.json").read_text())
    del data["model_type"]
    assert type(AutoConfig.from_pretrained(write(tmp_path, data))) is MyConfig  # by its architectures
    with pytest.raises(ConfigError, match="the family 'mine' has no question-answering model, only base, causal-lm"):
        quintet.AutoModelForQuestionAnswering.from_pretrained(tmp_path)
    other = Family("mine", MyConfig, classes, "GPT2TokenizerFast", my_tiny)
    with pytest.raises(ConfigError, match="model_type 'mine' is taken. Choose another, or pass exist_ok=True"):
        quintet.register_family(other)
    quintet.register_family(other, exist_ok=True)
    assert family_of("mine") is other
    taken = Family("gpt2", GPT2Config, {"base": GPT2Model}, "GPT2TokenizerFast", tiny)
    for wrong, words in (
        (MyConfig, "register_family needs a quintet.family.Family and got <class .*MyConfig"),
        (Family("yours", MyConfig, classes, "", my_tiny), "'yours' has MyConfig, whose model_type is 'mine'"),
        (Family("mine", MyConfig, {"causal-lm": MyLMHeadModel}, "", my_tiny), "no class for the task 'base', only"),
        (Family("mine", MyConfig, {"base": GPT2Model}, "", my_tiny), "GPT2Model is no model of MyConfig"),
        (taken, "model_type 'gpt2' is taken"),
    ):
        with pytest.raises(ConfigError, match=words):
            quintet.register_family(wrong)  # type: ignore[arg-type]


@pytest.mark.usefixtures("registry")
def test_a_tokenizer_of_your_own(tiny_gpt2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from quintet.tokenizers import auto as tokenizers

    class MyConfig(GPT2Config):
        model_type = "mine"

    class MyTokenizer(GPT2TokenizerFast):
        pass

    monkeypatch.setattr(tokenizers, "_registered", {})
    AutoTokenizer.register(MyConfig, fast_tokenizer_class=MyTokenizer)
    shutil.copy(tiny_gpt2 / "tokenizer.json", tmp_path)
    write(tmp_path, {"model_type": "mine"})
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert type(tokenizer) is MyTokenizer
    tokenizer.save_pretrained(tmp_path / "saved")
    assert type(AutoTokenizer.from_pretrained(tmp_path / "saved")) is MyTokenizer
    assert tokenizer("a cat").input_ids == AutoTokenizer.from_pretrained(tiny_gpt2)("a cat").input_ids


def test_a_configuration_without_a_family() -> None:
    with pytest.raises(ConfigError, match="unknown model_type ''"):
        AutoModel.from_config(PreTrainedConfig())


def test_base_and_head_share_their_weights_files(tmp_path: Path) -> None:
    model = GPT2Model(tiny()).eval()
    model.save_pretrained(tmp_path)
    head = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(head.transformer.wte.weight, model.wte.weight)
    assert head.lm_head.weight is head.transformer.wte.weight
