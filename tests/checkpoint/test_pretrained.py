"""`from_pretrained`, `save_pretrained` and `push_to_hub` of real models, and agreement with the reference."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from quintet.errors import CheckpointError, ConfigError, HubError
from quintet.models.gpt2 import (
    GPT2Config,
    GPT2DoubleHeadsModel,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    GPT2Model,
)

TIED = {"lm_head.weight": "transformer.wte.weight"}


def tiny(**changes: Any) -> GPT2Config:
    sizes = {
        "vocab_size": 50,
        "n_positions": 16,
        "n_embd": 8,
        "n_layer": 2,
        "n_head": 2,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    return GPT2Config(**{**sizes, **changes})


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language model as saved by us; tests must not write into it."""
    folder = tmp_path_factory.mktemp("original")
    torch.manual_seed(1)
    GPT2LMHeadModel(tiny()).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(original, tmp_path / "model"))


def rewrite(folder: Path, change: Any) -> dict[str, torch.Tensor]:
    """Pass the tensors of a checkpoint through a function."""
    tensors: dict[str, torch.Tensor] = change(load_file(folder / "model.safetensors"))
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return tensors


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        out: torch.Tensor = model(torch.arange(12).view(2, 6)).logits
    return out


# --- the plain case ---------------------------------------------------------------------------------------------------


def test_round_trip(original: Path) -> None:
    assert sorted(os.listdir(original)) == ["config.json", "generation_config.json", "model.safetensors"]
    assert "lm_head.weight" not in load_file(original / "model.safetensors")
    config = json.loads((original / "config.json").read_text())
    assert config["architectures"] == ["GPT2LMHeadModel"] and config["dtype"] == "float32"
    model, report = GPT2LMHeadModel.from_pretrained(original, output_loading_info=True)
    assert not any(report.values())
    assert not model.training and model.name_or_path == str(original) == model.config._name_or_path
    assert model.lm_head.weight is model.transformer.wte.weight
    again = GPT2LMHeadModel.from_pretrained(str(original))
    assert torch.equal(logits(model), logits(again))
    assert all(not tensor.is_meta for tensor in [*model.parameters(), *model.buffers()])
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_the_config_that_is_passed_is_not_changed(original: Path) -> None:
    config = GPT2Config.from_pretrained(original)
    before = config.to_dict()
    model = GPT2LMHeadModel.from_pretrained(original, config=config, dtype="bfloat16", attn_implementation="eager")
    assert config.to_dict() == before and model.config is not config
    assert model.config._attn_implementation == "eager" and model.config.dtype == "bfloat16"


def test_saving_does_not_change_the_model(original: Path, tmp_path: Path) -> None:
    model = GPT2Model.from_pretrained(original)
    before = model.config.to_dict()
    model.save_pretrained(tmp_path)
    assert model.config.to_dict() == before
    assert sorted(os.listdir(tmp_path)) == ["config.json", "model.safetensors"]  # a base model generates nothing


def test_bundled_and_relative_names(original: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(original.parent)
    assert GPT2LMHeadModel.from_pretrained(original.name).name_or_path == original.name


def test_subfolder(original: Path, tmp_path: Path) -> None:
    shutil.copytree(original, tmp_path / "repo" / "part")
    model = GPT2LMHeadModel.from_pretrained(tmp_path / "repo", subfolder="part")
    assert torch.equal(logits(model), logits(GPT2LMHeadModel.from_pretrained(original)))
    with pytest.raises(HubError, match="no subfolder 'x'"):
        GPT2LMHeadModel.from_pretrained(tmp_path / "repo", subfolder="x")


def test_config_from_elsewhere(folder: Path, tmp_path: Path) -> None:
    (folder / "config.json").rename(tmp_path / "other.json")
    with pytest.raises(HubError, match="no file 'config.json'"):
        GPT2LMHeadModel.from_pretrained(folder)
    model = GPT2LMHeadModel.from_pretrained(folder, config=tmp_path / "other.json")
    assert model.config.n_embd == 8 and model.config._name_or_path == str(folder)


def test_missing_folder_and_weights(folder: Path) -> None:
    with pytest.raises(HubError, match="There is no folder '/no/where'"):
        GPT2LMHeadModel.from_pretrained("/no/where")
    (folder / "model.safetensors").unlink()
    with pytest.raises(HubError, match="neither 'model.safetensors' nor"):
        GPT2LMHeadModel.from_pretrained(folder)


def test_state_dict_without_files(original: Path) -> None:
    tensors = load_file(original / "model.safetensors")
    model = GPT2LMHeadModel.from_pretrained(None, config=tiny(), state_dict=tensors)
    assert torch.equal(logits(model), logits(GPT2LMHeadModel.from_pretrained(original)))
    with torch.no_grad():
        model.transformer.wte.weight.zero_()
    assert tensors["transformer.wte.weight"].any()
    with pytest.raises(ConfigError, match=r"from_pretrained\(None\) needs config=... and state_dict=..."):
        GPT2LMHeadModel.from_pretrained(None)
    with pytest.raises(ConfigError, match="needs config=... too"):
        GPT2LMHeadModel.from_pretrained(None, state_dict=tensors)


def test_state_dict_with_a_name_takes_the_config_from_there(original: Path) -> None:
    zeros = {key: torch.zeros_like(value) for key, value in load_file(original / "model.safetensors").items()}
    model = GPT2LMHeadModel.from_pretrained(original, state_dict=zeros)
    assert model.config.n_embd == 8 and not logits(model).any()


# --- the forms of published checkpoints -------------------------------------------------------------------------------


def without_prefix(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key.removeprefix("transformer."): value for key, value in tensors.items()}


def with_buffers(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    extra = {}
    for layer in range(2):
        extra[f"transformer.h.{layer}.attn.bias"] = torch.ones(16, 16).tril().view(1, 1, 16, 16)
        extra[f"transformer.h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    return tensors | extra


def with_head(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return tensors | {"lm_head.weight": tensors["transformer.wte.weight"].clone()}


def only_head(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {"lm_head.weight" if key == "transformer.wte.weight" else key: value for key, value in tensors.items()}


FORMS: dict[str, Any] = {
    "as saved": lambda tensors: tensors,
    "without prefix (openai-community/gpt2)": without_prefix,
    "with buffers": with_buffers,
    "with buffers, without prefix": lambda tensors: without_prefix(with_buffers(tensors)),
    "with lm_head": with_head,
    "with lm_head, without prefix": lambda tensors: without_prefix(with_head(tensors)),
    "lm_head in the place of wte": only_head,
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", [GPT2LMHeadModel, GPT2DoubleHeadsModel, GPT2Model])
def test_forms(folder: Path, original: Path, form: str, kind: Any) -> None:
    want = GPT2LMHeadModel.from_pretrained(original).state_dict()
    rewrite(folder, FORMS[form])
    model, report = kind.from_pretrained(folder, output_loading_info=True)
    if kind is GPT2Model and form == "lm_head in the place of wte":
        assert report["missing_keys"] == {"wte.weight"} and report["unexpected_keys"] == {"lm_head.weight"}
        return
    assert report["mismatched_keys"] == report["untied_keys"] == set()
    assert report["missing_keys"] == (set() if kind is not GPT2DoubleHeadsModel else {
        "multiple_choice_head.summary.weight", "multiple_choice_head.summary.bias"
    })  # fmt: skip
    assert report["unexpected_keys"] == ({"lm_head.weight"} if kind is GPT2Model and "with lm_head" in form else set())
    assert len(report["dropped_keys"]) == (4 if "buffers" in form else 0)
    for key, value in model.state_dict().items():
        key = f"transformer.{key}" if kind is GPT2Model else key
        assert "multiple_choice" in key or torch.equal(value, want[key]), key


def test_base_checkpoint_into_a_head_and_back(original: Path, tmp_path: Path) -> None:
    base = GPT2Model.from_pretrained(original)
    base.save_pretrained(tmp_path)
    assert "wte.weight" in load_file(tmp_path / "model.safetensors")
    model, report = GPT2LMHeadModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    assert torch.equal(logits(model), logits(GPT2LMHeadModel.from_pretrained(original)))


def test_different_head_although_tied(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As the reference does: both values are kept, untied, and a warning says so."""
    tensors = rewrite(folder, lambda t: t | {"lm_head.weight": torch.randn(50, 8)})
    with caplog.at_level(logging.WARNING, "quintet.checkpoint"):
        model, report = GPT2LMHeadModel.from_pretrained(folder, output_loading_info=True)
    assert report["untied_keys"] == {("transformer.wte.weight", "lm_head.weight")}
    assert "tied by the configuration, but different in the checkpoint" in caplog.text
    model.tie_weights()
    assert torch.equal(model.lm_head.weight, tensors["lm_head.weight"])
    model.save_pretrained(tmp_path / "again")
    saved = load_file(tmp_path / "again" / "model.safetensors")
    assert torch.equal(saved["lm_head.weight"], tensors["lm_head.weight"])
    assert GPT2LMHeadModel._tied_weights_keys == TIED  # the class is as it was


def test_not_tied(folder: Path, tmp_path: Path) -> None:
    rewrite(folder, lambda t: t | {"lm_head.weight": t["transformer.wte.weight"].clone()})
    model, report = GPT2LMHeadModel.from_pretrained(folder, tie_word_embeddings=False, output_loading_info=True)
    assert not any(report.values()) and model.lm_head.weight is not model.transformer.wte.weight
    model.save_pretrained(tmp_path / "again")
    assert "lm_head.weight" in load_file(tmp_path / "again" / "model.safetensors")


def test_missing_head_is_initialised_with_a_warning(original: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "quintet.checkpoint"):
        model, report = GPT2ForSequenceClassification.from_pretrained(original, num_labels=3, output_loading_info=True)
    assert report["missing_keys"] == {"score.weight"}
    assert len(caplog.records) == 1
    words = f"Loading GPT2ForSequenceClassification from '{original}':\n  not in the checkpoint, so newly initialised"
    assert words in caplog.text and "    score.weight" in caplog.text
    assert model.score.weight.shape == (3, 8) and 0.001 < model.score.weight.std() < 0.1


def test_missing_tensors_get_the_model_s_own_rule(folder: Path) -> None:
    """The residual projection has a smaller deviation, which only the rule of its parent module knows."""
    rewrite(folder, lambda t: {key: value for key, value in t.items() if "h.1." not in key})
    model, report = GPT2LMHeadModel.from_pretrained(folder, initializer_range=10.0, output_loading_info=True)
    assert len(report["missing_keys"]) == 12
    block = model.transformer.h[1]
    assert block.ln_1.weight.tolist() == [1.0] * 8 and not block.attn.c_attn.bias.any()
    assert 7 < block.attn.c_attn.weight.std() < 13
    assert 3 < block.attn.c_proj.weight.std() < 7
    assert model.transformer.h[0].attn.c_attn.weight.std() < 1


def test_mismatched_sizes(folder: Path) -> None:
    words = r"'transformer.wpe.weight' is \[16, 8\], model \[32, 8\]"
    with pytest.raises(CheckpointError, match=words):
        GPT2LMHeadModel.from_pretrained(folder, n_positions=32)
    model, report = GPT2LMHeadModel.from_pretrained(
        folder, n_positions=32, ignore_mismatched_sizes=True, output_loading_info=True
    )
    assert report["mismatched_keys"] == {("transformer.wpe.weight", (16, 8), (32, 8))}
    assert model.transformer.wpe.weight.shape == (32, 8) and model.transformer.wpe.weight.std() > 0.001


def test_another_family_is_refused(folder: Path) -> None:
    rewrite(folder, lambda t: {f"gpt_neox.{key}": value for key, value in t.items()})
    with pytest.raises(CheckpointError, match="no tensor of this model"):
        GPT2LMHeadModel.from_pretrained(folder)
    model = GPT2LMHeadModel.from_pretrained(folder, key_mapping={r"^gpt_neox\.": ""})
    assert logits(model).isfinite().all()


@pytest.mark.parametrize(
    ("method", "words"),
    [
        (
            "awq",
            "quantization_config of the method 'awq', and what is read is plain weights, mxfp4,",
        ),
        ("mxfp4", "says that the weights are packed .* no tensor named '..._blocks'"),
    ],
)
def test_a_quantised_checkpoint_that_is_not_read(folder: Path, method: str, words: str) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": method}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises((ConfigError, CheckpointError), match=words):
        GPT2LMHeadModel.from_pretrained(folder)


# --- types and devices ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        ("bfloat16", torch.bfloat16),
        ("bf16", torch.bfloat16),
        ("torch.float16", torch.float16),
        ("fp32", torch.float32),
        (torch.float64, torch.float64),
        ("auto", torch.float32),
        (None, torch.float32),
    ],
)
@pytest.mark.parametrize("name", ["dtype", "torch_dtype"])
def test_dtype(original: Path, name: str, value: Any, dtype: torch.dtype) -> None:
    model = GPT2LMHeadModel.from_pretrained(original, **{name: value})
    assert {parameter.dtype for parameter in model.parameters()} == {dtype} and model.dtype == dtype
    assert model.config.dtype == str(dtype).removeprefix("torch.")
    assert torch.equal(
        model.lm_head.weight, load_file(original / "model.safetensors")[TIED["lm_head.weight"]].to(dtype)
    )


@pytest.mark.parametrize("value", ["float8", "int8", torch.int64, "fp3", 16, torch.float8_e4m3fn, torch.complex64])
def test_bad_dtype(original: Path, value: Any) -> None:
    with pytest.raises(ConfigError, match="is not a type that weights can have: 'auto'"):
        GPT2LMHeadModel.from_pretrained(original, dtype=value)


def test_dtype_near_miss(original: Path) -> None:
    with pytest.raises(ConfigError, match="Did you mean 'bfloat16'"):
        GPT2LMHeadModel.from_pretrained(original, dtype="bfloat61")


def test_auto_is_what_the_config_says_else_what_the_file_has(folder: Path) -> None:
    rewrite(folder, lambda t: {key: value.to(torch.bfloat16) for key, value in t.items()})
    assert GPT2LMHeadModel.from_pretrained(folder).dtype == torch.float32  # its config.json still says float32
    config = json.loads((folder / "config.json").read_text())
    del config["dtype"]
    (folder / "config.json").write_text(json.dumps(config))
    assert GPT2LMHeadModel.from_pretrained(folder).dtype == torch.bfloat16
    assert GPT2LMHeadModel.from_pretrained(folder, dtype="fp32").dtype == torch.float32


@pytest.mark.parametrize("value", ["cpu", "auto", None, torch.device("cpu"), {"": "cpu"}, {"": torch.device("cpu")}])
def test_device_map(original: Path, value: Any) -> None:
    if value == "auto" and torch.cuda.is_available():
        pytest.skip("auto is a GPU here")
    assert GPT2LMHeadModel.from_pretrained(original, device_map=value).device == torch.device("cpu")


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("balanced", "is not a device. Use 'cpu'"),
        ("disk", "is not a device"),
        ("", "is not a device"),
        (3.5, "is not a device"),
        ({"transformer": "cpu", "lm_head": "cuda"}, "spreads a model over several devices"),
        ({}, "spreads a model over several devices \\(or none\\)"),
        ("meta", "holds no weights"),
        ("cuda:99", "CUDA devices that torch"),
        (99, "CUDA devices that torch"),
    ],
)
def test_bad_device_map(original: Path, value: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        GPT2LMHeadModel.from_pretrained(original, device_map=value)


@pytest.mark.gpu
@pytest.mark.parametrize("value", ["cuda", "cuda:0", 0, "auto", {"": 0}])
def test_device_map_cuda(original: Path, value: Any) -> None:
    model = GPT2LMHeadModel.from_pretrained(original, device_map=value)
    assert {parameter.device for parameter in model.parameters()} == {torch.device("cuda:0")}
    assert model.lm_head.weight is model.transformer.wte.weight
    want = logits(GPT2LMHeadModel.from_pretrained(original))
    with torch.no_grad():
        got = model(torch.arange(12, device="cuda").view(2, 6)).logits.cpu()
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-4)


# --- keywords ---------------------------------------------------------------------------------------------------------


def test_config_fields_pass_through(original: Path) -> None:
    model = GPT2LMHeadModel.from_pretrained(original, output_attentions=True, resid_pdrop=0.3)
    assert model.config.output_attentions is True and model.config.resid_pdrop == 0.3


@pytest.mark.parametrize(
    ("keywords", "words"),
    [
        ({"output_atentions": True}, "no keyword 'output_atentions' .* Did you mean 'output_attentions'"),
        ({"devicemap": "cpu"}, "Did you mean 'device_map'"),
        ({"n_layers": 3}, "Did you mean 'n_layer'"),
        ({"mmap": False}, "no keyword 'mmap' .* pass disable_mmap=True, which reads files into memory"),
        ({"trust_remote_code": True}, "trust_remote_code=...\\) is not supported: code from a checkpoint is never run"),
        ({"gguf_file": "x"}, "GGUF files are not read"),
        ({"quantization_config": {"a": 1}}, "what is read is plain weights, mxfp4,"),
        ({"quantization_config": {"quant_method": "mxfp4"}}, "has no experts to pack as MXFP4"),
        ({"dequantize": "yes"}, "dequantize='yes' must be True or False"),
        ({"dequantize": False, "quantization_config": {"dequantize": True}}, "contradict each other"),
        ({"from_tf": True}, "TensorFlow checkpoints are not read"),
        ({"tp_plan": "auto"}, "put on one device"),
        ({"n_embd": -8}, "n_embd"),
    ],
)
def test_keywords_that_are_refused(original: Path, keywords: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        GPT2LMHeadModel.from_pretrained(original, **keywords)


def test_with_a_config_fields_are_not_keywords(original: Path) -> None:
    with pytest.raises(ConfigError, match="no keyword 'n_layer'"):
        GPT2LMHeadModel.from_pretrained(original, config=tiny(), n_layer=3)


def test_keywords_without_effect(original: Path) -> None:
    GPT2LMHeadModel.from_pretrained(
        original, low_cpu_mem_usage=True, weights_only=True, trust_remote_code=False, from_tf=False, gguf_file=None
    )
    model = GPT2LMHeadModel.from_pretrained(original, disable_mmap=True)
    assert torch.equal(logits(model), logits(GPT2LMHeadModel.from_pretrained(original)))


def test_generation_config(folder: Path) -> None:
    (folder / "generation_config.json").write_text('{"max_new_tokens": 7, "temperature": 0.5, "do_sample": true}')
    model = GPT2LMHeadModel.from_pretrained(folder)
    assert (model.generation_config.max_new_tokens, model.generation_config.temperature) == (7, 0.5)
    model.save_pretrained(folder)
    assert json.loads((folder / "generation_config.json").read_text())["max_new_tokens"] == 7
    given = type(model.generation_config)(max_new_tokens=3)
    assert GPT2LMHeadModel.from_pretrained(folder, generation_config=given).generation_config is given


# --- pickles ----------------------------------------------------------------------------------------------------------


def test_pickle_only_when_asked_for(folder: Path, tmp_path: Path, original: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="use_safetensors=False"):
        GPT2LMHeadModel.from_pretrained(folder)
    model = GPT2LMHeadModel.from_pretrained(folder, use_safetensors=False)
    model.save_pretrained(tmp_path / "converted")
    assert (tmp_path / "converted" / "model.safetensors").read_bytes() == (original / "model.safetensors").read_bytes()


# --- saving -----------------------------------------------------------------------------------------------------------


def test_shards_and_variant(original: Path, tmp_path: Path) -> None:
    model = GPT2LMHeadModel.from_pretrained(original)
    model.save_pretrained(tmp_path, max_shard_size="4KB", variant="v1")
    assert "model.safetensors.index.v1.json" in os.listdir(tmp_path)
    again = GPT2LMHeadModel.from_pretrained(tmp_path, variant="v1")
    assert torch.equal(logits(model), logits(again)) and again.lm_head.weight is again.transformer.wte.weight


def test_into_the_folder_it_was_loaded_from(folder: Path) -> None:
    """The mapping must go on showing the old file while the new one takes its place, shard by shard too."""
    model = GPT2LMHeadModel.from_pretrained(folder)
    before = logits(model)
    with torch.no_grad():
        model.transformer.h[0].mlp.c_fc.bias.add_(1.0)
    changed = logits(model)
    for size in ("5GB", 3000, 3000, "5GB"):
        model.save_pretrained(folder, max_shard_size=size)
        assert torch.equal(logits(model), changed)
        fresh = GPT2LMHeadModel.from_pretrained(folder)
        assert torch.equal(logits(fresh), changed) and not torch.equal(changed, before)
    assert sorted(os.listdir(folder)) == ["config.json", "generation_config.json", "model.safetensors"]


def test_training_does_not_touch_the_file(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    model = GPT2LMHeadModel.from_pretrained(folder).train()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    ids = torch.arange(12).view(2, 6)
    loss = model(ids, labels=ids).loss
    loss.backward()
    optimiser.step()
    assert model(ids, labels=ids).loss < loss
    assert (folder / "model.safetensors").read_bytes() == content


def test_other_process_writes_nothing(original: Path, tmp_path: Path) -> None:
    GPT2LMHeadModel.from_pretrained(original).save_pretrained(tmp_path / "x", is_main_process=False)
    assert not (tmp_path / "x").exists()


def test_state_dict_to_save(original: Path, tmp_path: Path) -> None:
    model = GPT2LMHeadModel.from_pretrained(original)
    doubled = {key: value * 2 for key, value in model.state_dict().items() if key != "lm_head.weight"}
    model.save_pretrained(tmp_path, state_dict=doubled)
    assert torch.equal(load_file(tmp_path / "model.safetensors")["transformer.wte.weight"], model.lm_head.weight * 2)


def test_ties_survive_a_conversion(original: Path, tmp_path: Path) -> None:
    model = GPT2LMHeadModel.from_pretrained(original)
    model.save_pretrained(tmp_path, state_dict={key: value.half() for key, value in model.state_dict().items()})
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")


def test_saving_is_refused(original: Path, tmp_path: Path) -> None:
    model = GPT2LMHeadModel.from_pretrained(original)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(CheckpointError, match="is a file"):
        model.save_pretrained(tmp_path / "file")
    with pytest.raises(CheckpointError, match="safe_serialization=False would write a pickle"):
        model.save_pretrained(tmp_path / "x", safe_serialization=False)
    with pytest.raises(ConfigError, match="no keyword 'max_shard_sise'. Did you mean 'max_shard_size'"):
        model.save_pretrained(tmp_path / "x", max_shard_sise=3)
    with pytest.raises(CheckpointError, match="Entry 'a' of the state dict holds a int"):
        model.save_pretrained(tmp_path / "x", state_dict={"a": 1})
    assert not (tmp_path / "x").exists()
    model.save_pretrained(tmp_path / "x", save_function=torch.save)  # as loops written for accelerate do


# --- upload -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    """A stand-in for `huggingface_hub.HfApi` that notes what it is asked."""
    import huggingface_hub

    log: list[tuple[str, Any]] = []

    class Api:
        def __init__(self, token: Any = None, library_name: str = "") -> None:
            log.append(("token", token))

        def create_repo(self, repo_id: str, **options: Any) -> SimpleNamespace:
            log.append(("create", (repo_id, options["private"])))
            return SimpleNamespace(repo_id=f"me/{repo_id}")

        def upload_folder(self, **options: Any) -> SimpleNamespace:
            loaded = GPT2LMHeadModel.from_pretrained(options["folder_path"])
            log.append(("upload", (options["repo_id"], options["commit_message"], logits(loaded))))
            return SimpleNamespace(commit_url="https://hub/commit/1")

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    return log


def test_push_to_hub(original: Path, api: list[tuple[str, Any]]) -> None:
    model = GPT2LMHeadModel.from_pretrained(original)
    assert model.push_to_hub("mine", private=True, token="t") == "https://hub/commit/1"
    assert api[:2] == [("token", "t"), ("create", ("mine", True))]
    name, message, sent = api[2][1]
    assert (name, message) == ("me/mine", "Upload GPT2LMHeadModel") and torch.equal(sent, logits(model))


def test_save_with_push(original: Path, tmp_path: Path, api: list[tuple[str, Any]]) -> None:
    model = GPT2LMHeadModel.from_pretrained(original)
    model.save_pretrained(tmp_path / "named", push_to_hub=True, token="t", commit_message="first")
    assert api[1] == ("create", ("named", None)) and api[2][1][1] == "first"
    model.save_pretrained(tmp_path / "named", push_to_hub=True, repo_id="other")
    assert api[4] == ("create", ("other", None))


def test_push_offline(original: Path, api: list[tuple[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(HubError, match="cannot be uploaded"):
        GPT2LMHeadModel.from_pretrained(original).push_to_hub("mine")
    assert api == []


# --- cost -------------------------------------------------------------------------------------------------------------


def test_the_first_load_imports_nothing_heavy(original: Path) -> None:
    """Initialising on the meta device would import torch._dynamo, which takes seconds."""
    code = """
import sys
from quintet.models.gpt2 import GPT2ForSequenceClassification as Model
Model.from_pretrained(sys.argv[1])
heavy = ("torch._dynamo", "torch._inductor", "huggingface_hub", "safetensors", "transformers")
print([name for name in heavy if name in sys.modules])
"""
    run = subprocess.run([sys.executable, "-c", code, str(original)], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
