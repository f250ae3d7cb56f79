"""Configurations: defaults, aliases, JSON both ways, and that a file can only ever give one or a ConfigError."""

from __future__ import annotations

import copy
import json
import math
import pickle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quintet.auto import AutoConfig
from quintet.config import PreTrainedConfig, PretrainedConfig
from quintet.errors import ConfigError, HubError
from quintet.models.gpt2 import GPT2Config, GPT2LMHeadModel, tiny

FIELDS = [
    *GPT2Config.rules,
    *("bos_token_id", "eos_token_id", "pad_token_id", "dtype", "torch_dtype", "architectures", "pruned_heads"),
    *("num_labels", "id2label", "label2id", "problem_type", "return_dict", "output_attentions", "is_decoder"),
    *("hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings"),
    *("n_ctx", "task_specific_params", "attn_implementation", "rules", "self", "cls", "kwargs", "validate", "to_dict"),
    *("_name_or_path", "_attn_implementation", "__class__", "__dict__", "auto_map", "trust_remote_code", "model_type"),
    *("use_return_dict", "name_or_path", "transformers_version", "attribute_map", "update", "return_unused_kwargs"),
]
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([0, 1, 12, 32, 10**400, -1])
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["gelu", "float16", "mean", "regression", "0", "1"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
OBJECTS = st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=10), VALUES, max_size=6)


@given(OBJECTS)
@settings(max_examples=150)
def test_any_object_gives_a_configuration_or_a_config_error(data: dict[str, Any]) -> None:
    try:
        config = GPT2Config.from_dict(data)
    except ConfigError as error:
        assert len(str(error)) > 20
        return
    assert "__class__" not in config.__dict__
    assert type(config) is GPT2Config
    text = config.to_json_string()
    again = GPT2Config.from_dict(json.loads(text))
    assert again.to_json_string() == text
    assert repr(again) == repr(config)
    for key, value in data.items():  # what is unknown is kept as it was
        if key not in FIELDS and not key.startswith("_") and value == value and not hasattr(GPT2Config, key):
            assert config.__dict__[GPT2Config.attribute_map.get(key, key)] == value or "NaN" in text


GOOD: dict[str, Any] = {
    "vocab_size": st.integers(1, 2**20),
    "n_positions": st.integers(1, 2**15),
    "n_layer": st.integers(1, 100),
    "n_inner": st.none() | st.integers(1, 2**15),
    "activation_function": st.sampled_from(["gelu", "relu", "gelu_new", "silu"]),
    "resid_pdrop": st.floats(0, 1) | st.sampled_from([0, 1]),
    "layer_norm_epsilon": st.floats(0, 1),
    "summary_type": st.sampled_from(["last", "first", "mean", "cls_index"]),
    "summary_activation": st.none() | st.text(max_size=5),
    "scale_attn_weights": st.booleans(),
    "bos_token_id": st.none() | st.integers(-1, 50000),
    "eos_token_id": st.none() | st.integers(-1, 50000) | st.lists(st.integers(0, 9), min_size=1, max_size=3),
    "pad_token_id": st.none() | st.integers(0, 50000),
    "num_labels": st.integers(0, 20),
    "problem_type": st.sampled_from([None, "regression", "single_label_classification"]),
    "dtype": st.sampled_from([None, "float16", "torch.bfloat16"]),
    "tie_word_embeddings": st.booleans(),
    "return_dict": st.booleans(),
    "a_field_of_tomorrow": VALUES.filter(lambda v: "nan" not in repr(v)),
}


@given(st.fixed_dictionaries({}, optional=GOOD))
@settings(max_examples=50)
def test_every_good_configuration_survives_json(fields: dict[str, Any]) -> None:
    config = GPT2Config(**fields)
    again = GPT2Config.from_dict(json.loads(config.to_json_string()))
    assert again == config
    assert again.to_dict() == config.to_dict()
    for name, value in fields.items():
        if name not in ("dtype", "num_labels"):
            assert getattr(again, name) == value, name
    assert GPT2Config.from_dict(json.loads(config.to_json_string(use_diff=False))) == config


BAD: list[tuple[dict[str, Any], str]] = [
    ({"vocab_size": 0}, "GPT2Config: vocab_size is 0, but must be an integer from 1 to"),
    ({"vocab_size": -5}, "vocab_size is -5, but must be an integer from 1"),
    ({"vocab_size": "50257"}, "vocab_size is '50257', but must be an integer"),
    ({"vocab_size": 50257.0}, "vocab_size is 50257.0, but must be an integer"),
    ({"vocab_size": True}, "vocab_size is True, but must be an integer"),
    ({"vocab_size": None}, "vocab_size is None, but must be an integer"),
    ({"vocab_size": 2**40}, "vocab_size is 1099511627776, but must be an integer from 1 to 16777216"),
    ({"n_positions": 0}, "n_positions is 0"),
    ({"n_positions": 10**30}, "n_positions is 1000"),
    ({"n_embd": 0}, "n_embd is 0"),
    ({"n_embd": 10**9}, "n_embd is 1000000000, but must be an integer from 1 to 65536"),
    ({"n_embd": 100, "n_head": 7}, "n_embd is 100 and n_head is 7, but n_embd must be a multiple of n_head"),
    ({"hidden_size": 100}, "n_embd is 100 and n_head is 12"),
    ({"n_layer": 0}, "n_layer is 0"),
    ({"num_hidden_layers": -1}, "n_layer is -1"),
    ({"n_layer": 10**6}, "n_layer is 1000000"),
    ({"n_head": 0}, "n_head is 0"),
    ({"n_head": [12]}, r"n_head is \[12\]"),
    ({"n_inner": 0}, "n_inner is 0, but must be an integer from 1 to 1048576 or None"),
    (
        {"activation_function": "gelu_nwe"},
        "activation_function is 'gelu_nwe', but must be one of relu, .*Did you mean 'gelu_new'",
    ),
    ({"activation_function": None}, "activation_function is None"),
    ({"activation_function": ["gelu"]}, "activation_function is"),
    ({"resid_pdrop": 1.5}, "resid_pdrop is 1.5, but must be a number from 0 to 1"),
    ({"resid_pdrop": -0.1}, "resid_pdrop is -0.1"),
    ({"embd_pdrop": math.nan}, "embd_pdrop is nan"),
    ({"attn_pdrop": math.inf}, "attn_pdrop is inf"),
    ({"attn_pdrop": "0.1"}, "attn_pdrop is '0.1'"),
    ({"attn_pdrop": 10**400}, r"attn_pdrop is 1000*\.\.\., but must be a number"),
    ({"layer_norm_epsilon": -1e-5}, "layer_norm_epsilon is -1e-05"),
    ({"initializer_range": -1}, "initializer_range is -1"),
    ({"summary_type": "attn"}, "summary_type is 'attn', but must be one of last, first, mean, cls_index"),
    ({"summary_use_proj": 1}, "summary_use_proj is 1, but must be true or false"),
    ({"summary_activation": 3}, "summary_activation is 3, but must be a string or None"),
    ({"summary_first_dropout": 2}, "summary_first_dropout is 2"),
    ({"classifier_dropout": "x"}, "classifier_dropout is 'x'"),
    ({"scale_attn_weights": "yes"}, "scale_attn_weights is 'yes'"),
    ({"use_cache": None}, "use_cache is None"),
    ({"tie_word_embeddings": 0}, "tie_word_embeddings is 0"),
    ({"bos_token_id": "50256"}, "bos_token_id is '50256', but must be an integer or a list of integers or None"),
    ({"eos_token_id": []}, r"eos_token_id is \[\]"),
    ({"eos_token_id": [1, None]}, r"eos_token_id is \[1, None\]"),
    ({"pad_token_id": 1.5}, "pad_token_id is 1.5"),
    ({"num_labels": -1}, "num_labels is -1, but must be an integer from 0"),
    ({"num_labels": "3"}, "num_labels is '3'"),
    ({"num_labels": 10**9}, "num_labels is 1000000000"),
    ({"id2label": ["a", "b"]}, r"id2label is \['a', 'b'\], but must be an object with class numbers"),
    ({"id2label": {"first": "a"}}, "id2label is .*, but must be an object with class numbers as keys"),
    ({"id2label": {"0": ["a"]}}, "id2label is"),
    ({"label2id": [1]}, r"label2id is \[1\], but must be an object or None"),
    ({"problem_type": "regresion"}, "problem_type is 'regresion', .*Did you mean 'regression'"),
    ({"dtype": "float31"}, "dtype is 'float31', but must be one of float32, .*Did you mean 'float32'"),
    ({"torch_dtype": 7}, "dtype is '7'"),
    ({"architectures": "GPT2Model"}, "architectures is 'GPT2Model', but must be a list of strings or None"),
    ({"architectures": [1]}, r"architectures is \[1\]"),
    ({"return_dict": None}, "return_dict is None"),
    ({"attn_implementation": ["sdpa"]}, "attn_implementation is .*, but must be a string"),
    ({"validate": 1}, "the key 'validate' is the name of a method and cannot be a field. Rename it"),
    ({"to_dict": {}}, "the key 'to_dict' is the name of a method"),
    ({"self": 1}, "the key 'self' cannot be a field"),
]


@pytest.mark.parametrize(
    ("fields", "words"), BAD, ids=[next(iter(f.items()))[0] + "=" + repr(next(iter(f.values())))[:20] for f, _ in BAD]
)
def test_bad_values(fields: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=words) as error:
        GPT2Config.from_dict(fields)
    assert isinstance(error.value, ValueError)
    assert len(str(error.value)) < 600
    if "inf" not in words and "nan" not in words:
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2", **fields}))
        with pytest.raises(ConfigError, match=words):
            AutoConfig.from_pretrained(tmp_path)


FILES = {
    "not JSON": (b"{'a': 1}", "is not JSON"),
    "empty": (b"", "is not JSON.*It is empty"),
    "a list": (b"[1, 2]", "holds a JSON list, and an object"),
    "a number": (b"3", "holds a JSON int"),
    "cut off": (b'{"vocab_size": 1', "is not JSON"),
    "not UTF-8": (b'{"a": "\xff"}', "is not UTF-8 text"),
    "a key twice": (b'{"n_layer": 2, "n_layer": 3}', "gives the key 'n_layer' twice"),
    "too deep": (b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
}


@pytest.mark.parametrize("name", FILES)
def test_bad_files(name: str, tmp_path: Path) -> None:
    data, words = FILES[name]
    (tmp_path / "config.json").write_bytes(data)
    for load in (GPT2Config.from_pretrained, AutoConfig.from_pretrained):
        with pytest.raises(ConfigError, match=words):
            load(tmp_path)
    with pytest.raises(ConfigError, match=words):
        GPT2Config.from_json_file(tmp_path / "config.json")


def test_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(HubError, match=r"config\.json"):
        GPT2Config.from_pretrained(tmp_path)
    with pytest.raises(HubError):
        GPT2Config.from_pretrained(tmp_path / "nothing")


def test_private_keys_and_keys_that_name_code_are_inert(tmp_path: Path) -> None:
    hostile = {
        "model_type": "gpt2",
        "auto_map": {"AutoConfig": "evil.Config"},
        "trust_remote_code": True,
        "custom_pipelines": {"x": {"impl": "evil.py"}},
        "_attn_implementation": "evil/kernels",
        "_attn_implementation_internal": "evil",
        "_name_or_path": "elsewhere",
        "_commit_hash": "f00",
        "__class__": "evil",
        "__dict__": {"n_layer": 3},
        "rules": {},
        "attribute_map": {"n_layer": "n_head"},
        "keys_to_ignore_at_inference": ["logits"],
    }
    (tmp_path / "config.json").write_text(json.dumps({**hostile, "n_layer": 0}))
    with pytest.raises(ConfigError, match="n_layer is 0"):  # no key can switch the checks off
        AutoConfig.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**hostile, "n_layer": 2, "n_embd": 24}))
    config = AutoConfig.from_pretrained(tmp_path)
    assert type(config) is GPT2Config
    assert (config.n_layer, config.num_hidden_layers, config.hidden_size) == (2, 2, 24)
    assert config._attn_implementation == "sdpa"
    assert config.name_or_path == str(tmp_path)
    written = config.to_json_string() + config.to_json_string(use_diff=False)
    for word in ("evil", "auto_map", "trust_remote_code", "elsewhere", "f00", "__"):
        assert word not in written
    with pytest.raises(ConfigError, match="never runs code from a checkpoint"):
        AutoConfig.from_pretrained(tmp_path, trust_remote_code=True)
    assert AutoConfig.from_pretrained(tmp_path, trust_remote_code=False).n_layer == 2


def test_old_published_files() -> None:
    """The config.json of the 124M model as it was published in 2019, and one with keys of a version to come."""
    published = {
        "activation_function": "gelu_new",
        "architectures": ["GPT2LMHeadModel"],
        "attn_pdrop": 0.1,
        "bos_token_id": 50256,
        "embd_pdrop": 0.1,
        "eos_token_id": 50256,
        "initializer_range": 0.02,
        "layer_norm_epsilon": 1e-05,
        "model_type": "gpt2",
        "n_ctx": 1024,
        "n_embd": 768,
        "n_head": 12,
        "n_layer": 12,
        "n_positions": 1024,
        "resid_pdrop": 0.1,
        "summary_activation": None,
        "summary_first_dropout": 0.1,
        "summary_proj_to_labels": True,
        "summary_type": "cls_index",
        "summary_use_proj": True,
        "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
        "vocab_size": 50257,
    }
    config = GPT2Config.from_dict(published)
    assert config.n_ctx == 1024
    assert config.task_specific_params == published["task_specific_params"]
    plain = GPT2Config()
    for name in plain.__dict__:
        if name != "architectures":
            assert getattr(config, name) == getattr(plain, name), name
    written = json.loads(config.to_json_string())
    assert written == {**written, **published}
    ancient = {"n_embd": 48, "n_head": 4, "n_special": 0, "predict_special_tokens": True, "output_past": True}
    assert GPT2Config.from_dict(ancient).output_past is True


def test_unknown_keys_are_kept_and_written_back(tmp_path: Path) -> None:
    extra = {"a_field_of_tomorrow": {"deep": [1, {"x": None}]}, "emoji 🙂": "ja", "": 0}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2", **extra}))
    config = GPT2Config.from_pretrained(tmp_path)
    assert config.a_field_of_tomorrow == extra["a_field_of_tomorrow"]
    config.save_pretrained(tmp_path / "again")
    written = json.loads((tmp_path / "again" / "config.json").read_text())
    assert written == {**written, **extra}


def test_a_default_of_the_family_can_be_none() -> None:
    """None is the base's default and not GPT-2's: it must be written all the same."""
    config = GPT2Config(bos_token_id=None, eos_token_id=None)
    again = GPT2Config.from_dict(json.loads(config.to_json_string()))
    assert again.bos_token_id is again.eos_token_id is None


def test_aliases() -> None:
    config = GPT2Config(hidden_size=64, num_attention_heads=4)
    assert config.n_embd == config.hidden_size == 64
    assert config.n_head == 4
    config.num_hidden_layers = 3
    assert config.n_layer == 3
    config.max_position_embeddings = 7
    assert config.n_positions == 7
    assert "hidden_size" not in config.to_dict()
    with pytest.raises(AttributeError, match="GPT2Config has no field 'hiden_size'. Did you mean 'hidden_size'"):
        config.hiden_size  # noqa: B018
    assert not hasattr(config, "rope_theta")
    assert PretrainedConfig is PreTrainedConfig


def test_labels() -> None:
    config = GPT2Config()
    assert config.num_labels == 2
    assert config.id2label == {0: "LABEL_0", 1: "LABEL_1"}
    assert config.label2id == {"LABEL_0": 0, "LABEL_1": 1}
    named = GPT2Config(id2label={"0": "no", "1": "perhaps", "2": "yes"})
    assert named.num_labels == 3
    assert named.label2id == {"no": 0, "perhaps": 1, "yes": 2}
    named.num_labels = 3
    assert named.id2label[1] == "perhaps"
    named.num_labels = 1
    assert named.id2label == {0: "LABEL_0"}
    assert GPT2Config(num_labels=0).id2label == {}
    given = GPT2Config(id2label={0: "a", 1: "b"}, label2id={"A": 0, "b": 1})
    assert given.label2id == {"A": 0, "b": 1}
    data = json.loads(named.to_json_string())
    assert GPT2Config.from_dict(data, num_labels=4).id2label[3] == "LABEL_3"


def test_types() -> None:
    import torch

    assert GPT2Config(dtype=torch.float16).dtype == "float16"
    assert GPT2Config(torch_dtype="bfloat16").dtype == "bfloat16"
    assert GPT2Config.from_dict({"torch_dtype": "float16"}).dtype == "float16"
    assert GPT2Config.from_dict({"torch_dtype": "float16", "dtype": "float32"}).torch_dtype == "float32"
    config = GPT2Config()
    config.torch_dtype = torch.bfloat16
    assert config.dtype == "bfloat16"
    assert "torch_dtype" not in json.loads(config.to_json_string())


def test_overriding_and_what_is_left_over() -> None:
    config, unused = GPT2Config.from_dict({"n_layer": 3}, n_head=6, flavour="sour", return_unused_kwargs=True)
    assert (config.n_layer, config.n_head) == (3, 6)
    assert unused == {"flavour": "sour"}
    with pytest.raises(ConfigError, match="GPT2Config has no field 'n_layers'. Did you mean 'n_layer'"):
        GPT2Config.from_dict({}, n_layers=3)
    assert GPT2Config.from_dict({"mine": 1}, mine=2).mine == 2
    assert GPT2Config.from_dict({"n_embd": 768}, hidden_size=24, num_attention_heads=3).n_embd == 24


def test_update_is_whole_or_not_at_all() -> None:
    config = GPT2Config()
    config.update({"n_layer": 4, "hidden_size": 24, "new": 1})
    assert (config.n_layer, config.n_embd, config.new) == (4, 24, 1)
    before = config.to_dict()
    with pytest.raises(ConfigError, match="n_head is 'x'"):
        config.update({"n_layer": 5, "n_head": "x"})
    assert config.to_dict() == before


def test_saving(tmp_path: Path) -> None:
    config = tiny(num_labels=3)
    config.save_pretrained(tmp_path / "new" / "folder")
    again = GPT2Config.from_pretrained(tmp_path / "new" / "folder")
    assert again.to_dict() == {**config.to_dict(), "_name_or_path": str(tmp_path / "new" / "folder")}
    assert GPT2Config.from_pretrained(tmp_path / "new" / "folder" / "config.json").n_layer == 2
    assert "_name_or_path" not in (tmp_path / "new" / "folder" / "config.json").read_text()
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match="file is a file; save_pretrained needs a folder"):
        config.save_pretrained(tmp_path / "file")
    with pytest.raises(ConfigError, match="upload the whole model with model.push_to_hub"):
        config.save_pretrained(tmp_path, push_to_hub=True)
    with pytest.raises(ConfigError, match="save_pretrained: unknown option 'colour'"):
        config.save_pretrained(tmp_path, colour="red")


def test_another_familys_file(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(ConfigError, match="holds a 'llama' configuration, and GPT2Config reads 'gpt2'"):
        GPT2Config.from_pretrained(tmp_path)


def test_it_is_a_value() -> None:
    config = tiny()
    assert copy.deepcopy(config) == config == pickle.loads(pickle.dumps(config))
    assert config != tiny(n_layer=1)
    assert config != 3
    with pytest.raises(TypeError, match="unhashable"):
        hash(config)
    assert repr(config).startswith('GPT2Config {\n  "activation_function"')
    assert config.use_return_dict is True


def test_a_configuration_of_your_own() -> None:
    class Small(PreTrainedConfig):
        model_type = "small"
        attribute_map = {"hidden_size": "width"}

        def __init__(self, width: int = 8, **kwargs: Any) -> None:
            self.width = width
            super().__init__(**kwargs)

    config = Small(width=4, pad_token_id=3)
    assert config.hidden_size == 4
    assert Small.from_dict(json.loads(config.to_json_string())) == config
    assert json.loads(config.to_json_string())["model_type"] == "small"


def test_a_models_configuration_is_checked_again() -> None:
    config = tiny()
    config.activation_function = "rleu"
    with pytest.raises(ConfigError, match="Did you mean 'relu'"):
        GPT2LMHeadModel(config)
