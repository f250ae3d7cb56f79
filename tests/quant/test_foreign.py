"""bitsandbytes and torchao: their configurations beside the reference's, packing, files, what is refused."""

from __future__ import annotations

import builtins
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tiny_packable import logits, model_of
from torch import nn

import quintet
from quintet import BitsAndBytesConfig, TorchAoConfig
from quintet.auto import model_types
from quintet.checkpoint import TensorFile, save_weights
from quintet.errors import CheckpointError, ConfigError
from quintet.layers.conv1d import Conv1D
from quintet.quant.config import parse_quantization
from quintet.quant.foreign import foreign_of

pytest.importorskip("bitsandbytes")

FORMATS: dict[str, dict[str, Any]] = {
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "nf4-double": {
        **{"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
        **{"bnb_4bit_compute_dtype": "bfloat16"},
    },
    "fp4": {"load_in_4bit": True, "bnb_4bit_compute_dtype": torch.float32},
    "int8": {"load_in_8bit": True},
}


# --- configurations ---


@pytest.mark.parametrize("name", ["default", *FORMATS])
def test_a_configuration_says_what_the_references_says(name: str, tmp_path: Path) -> None:
    options = FORMATS.get(name, {})
    ours, theirs = BitsAndBytesConfig(**options), transformers.BitsAndBytesConfig(**options)
    want = {key: getattr(value, "value", value) for key, value in theirs.to_dict().items()}
    assert ours.to_dict() == want
    assert ours.to_diff_dict() == {key: getattr(v, "value", v) for key, v in theirs.to_diff_dict().items()}
    assert json.loads(ours.to_json_string()) == json.loads(theirs.to_json_string())
    assert (ours.is_quantizable(), ours.quantization_method()) == (
        theirs.is_quantizable(),
        theirs.quantization_method(),
    )
    assert ours.bnb_4bit_compute_dtype == theirs.bnb_4bit_compute_dtype
    ours.to_json_file(tmp_path / "ours.json")
    assert json.loads((tmp_path / "ours.json").read_text()) == want
    assert BitsAndBytesConfig.from_dict(want) == ours
    assert parse_quantization(theirs, "The call").foreign == ours
    assert parse_quantization(want, "The configuration").foreign == ours
    assert repr(ours).startswith("BitsAndBytesConfig {") and dict(ours) == want


def test_fields_are_set_and_overridden() -> None:
    made, rest = BitsAndBytesConfig.from_dict({"load_in_4bit": True}, True, bnb_4bit_quant_type="nf4", other=1)
    assert made.quantization_method() == "nf4" and rest == {"other": 1}
    assert made.update(llm_int8_threshold=3.0, more=2) == {"more": 2} and made.llm_int8_threshold == 3.0
    made.load_in_4bit = False
    made.load_in_8bit = True
    with pytest.raises(ConfigError, match="load_in_4bit and load_in_8bit are both True"):
        made.load_in_4bit = True


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"load_in_4bit": True, "load_in_8bit": True}, "are both True. Choose one"),
        ({"load_in_4bit": 1}, "load_in_4bit=1 must be True or False"),
        ({"bnb_4bit_quant_type": "nf3"}, "bnb_4bit_quant_type='nf3' must be 'nf4' or 'fp4'"),
        ({"bnb_4bit_compute_dtype": "floot16"}, "'floot16' is not a type for this. Use one of float16, bfloat16"),
        ({"bnb_4bit_compute_dtype": 16}, "bnb_4bit_compute_dtype=16 is not a type"),
        ({"bnb_4bit_quant_storage": "int64"}, "Use one of float16, float32, int8"),
        ({"llm_int8_threshold": "6"}, "llm_int8_threshold='6' must be a number"),
        ({"llm_int8_skip_modules": "lm_head"}, "must be a list of module paths"),
    ],
)
def test_values_that_are_refused(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        BitsAndBytesConfig(**options)


# --- models ---


@pytest.mark.parametrize("family", sorted(model_types()))
@pytest.mark.parametrize("name", FORMATS)
def test_packing_loading_and_unpacking(family: str, name: str, tmp_path: Path) -> None:
    plain = model_of(family)
    plain.save_pretrained(tmp_path / "plain")
    kind, config = type(plain), BitsAndBytesConfig(**FORMATS[name])
    packed = kind.from_pretrained(tmp_path / "plain", quantization_config=config)
    chosen = foreign_of(packed)
    assert chosen and all(".0." in path or ".1." in path for path in chosen)  # of the blocks, not the head
    assert packed.config.quantization_config == config.to_dict()
    far = (logits(packed) - logits(plain)).norm() / logits(plain).norm()
    assert 0 < far < (0.1 if name == "int8" else 0.5)

    packed.save_pretrained(tmp_path / "packed")  # after it has computed, which must not change what is saved
    loaded = kind.from_pretrained(tmp_path / "packed")
    assert foreign_of(loaded).keys() == chosen.keys() and torch.equal(logits(loaded), logits(packed))
    for key, tensor in packed.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], tensor), key

    whole = kind.from_pretrained(tmp_path / "packed", dequantize=True)
    assert not foreign_of(whole) and not hasattr(whole.config, "quantization_config")
    assert [type(module) for module in whole.modules()] == [type(module) for module in plain.modules()]
    assert (logits(whole) - logits(packed)).norm() < 0.03 * logits(packed).norm()
    assert set(packed.dequantize()) == set(chosen)
    assert torch.equal(logits(packed), logits(whole))


def test_a_report_and_modules_to_skip() -> None:
    model = model_of("gpt2")
    report = model.quantize(BitsAndBytesConfig(load_in_4bit=True, llm_int8_skip_modules=["*.h.0", "*.attn"]))
    assert set(report.errors) == set(foreign_of(model)) == {"transformer.h.1.mlp.c_fc", "transformer.h.1.mlp.c_proj"}
    assert 0.02 < report.error < 0.2


def test_the_example_of_the_page(capsys: pytest.CaptureFixture[str]) -> None:
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype="float16",
        bnb_4bit_use_double_quant=True,
    )
    model = quintet.AutoModelForCausalLM.from_pretrained("storyteller", quantization_config=config, device_map="auto")
    tokenizer = quintet.AutoTokenizer.from_pretrained("storyteller")
    inputs = tokenizer("Once upon a time, there was a magical forest", return_tensors="pt").to(model.device)
    outputs = model.generate(**inputs, max_new_tokens=10, do_sample=False)
    assert tokenizer.decode(outputs[0], skip_special_tokens=True).startswith("Once upon a time, there was a magical")
    assert outputs.shape[1] == inputs["input_ids"].shape[1] + 10


@pytest.mark.parametrize("name", ["nf4", "int8"])
def test_gradients_reach_the_inputs(name: str) -> None:
    model = model_of("seed_oss")
    model.quantize(BitsAndBytesConfig(**FORMATS[name]))
    embeds = torch.randn(1, 5, model.config.hidden_size, requires_grad=True)
    model(inputs_embeds=embeds).logits.sum().backward()
    assert embeds.grad is not None and embeds.grad.abs().sum() > 0


def test_what_is_refused(tmp_path: Path) -> None:
    model = model_of("gpt2")
    with pytest.raises(ConfigError, match="asks for nothing. Pass load_in_4bit=True or load_in_8bit=True"):
        model.quantize(BitsAndBytesConfig())
    with pytest.raises(ConfigError, match="no linear layer to pack but those to skip"):
        model.quantize(BitsAndBytesConfig(load_in_4bit=True, llm_int8_skip_modules=["*"]))
    with pytest.raises(ConfigError, match="in the configuration of the other package"):
        model.quantize(BitsAndBytesConfig(load_in_4bit=True), modules_to_not_convert=["lm_head"])
    model.quantize(BitsAndBytesConfig(**FORMATS["nf4"]))
    model.save_pretrained(tmp_path)
    load = quintet.GPT2LMHeadModel.from_pretrained
    for asked in ({"quantization": "int4"}, {"quantization_config": BitsAndBytesConfig(load_in_8bit=True)}):
        with pytest.raises(ConfigError, match="packed by bitsandbytes, and another format is asked for"):
            load(tmp_path, **asked)

    file = TensorFile.open(tmp_path / "model.safetensors")
    state = {name: file.get(name).clone() for name in file}
    save_weights({key: t for key, t in state.items() if "h.1.mlp.c_fc.weight.quant_state" not in key}, tmp_path)
    with pytest.raises(CheckpointError, match=r"half packed: of 'transformer.h.1.mlp.c_fc' it has"):
        load(tmp_path)
    save_weights({key: t for key, t in state.items() if not key.endswith("absmax")}, tmp_path)
    with pytest.raises(CheckpointError, match="The packed tensors of '.*' do not belong together"):
        load(tmp_path)
    save_weights(model_of("gpt2").state_dict(), tmp_path)
    with pytest.raises(CheckpointError, match="has no such tensor. Remove quantization_config"):
        load(tmp_path)


@pytest.mark.parametrize(("package", "config"), [("bitsandbytes", "BitsAndBytesConfig"), ("torchao", "TorchAoConfig")])
def test_without_the_package_the_error_says_what_to_do(package: str, config: str, monkeypatch: Any) -> None:
    found = builtins.__import__

    def missing(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.partition(".")[0] == package:
            raise ImportError(f"No module named '{name}'")
        return found(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    words = rf"{config} needs the package {package}: pip install 'quintet\[{package}\]'. Or use quintet's own"
    with pytest.raises(ConfigError, match=words):
        if package == "torchao":
            TorchAoConfig(object())
        else:
            model_of("gpt2").quantize(BitsAndBytesConfig(load_in_4bit=True))


TORCHAO = """
import sys, torch, quintet
from torchao.quantization import Int8WeightOnlyConfig
from quintet.errors import CheckpointError, ConfigError
from quintet.layers.conv1d import Conv1D

plain = quintet.GPT2LMHeadModel.from_pretrained(sys.argv[1])
config = quintet.TorchAoConfig(Int8WeightOnlyConfig(), modules_to_not_convert=["*.attn"])
model = quintet.GPT2LMHeadModel.from_pretrained(sys.argv[1], quantization_config=config)
ids = torch.arange(10)[None]
with torch.no_grad():
    want, found = plain(ids).logits, model(ids).logits
assert 0 < (want - found).norm() < 0.05 * want.norm()
assert model.generate(ids, max_new_tokens=3, do_sample=False).shape == (1, 13)
said = model.config.quantization_config
assert said["quant_method"] == "torchao" and quintet.TorchAoConfig.from_dict(said).to_dict() == said
def refused(kind, words, call):
    try:
        call()
    except kind as error:
        assert words in str(error), error
    else:
        raise AssertionError(words)
refused(CheckpointError, "packed by torchao cannot be saved", lambda: model.save_pretrained(sys.argv[2]))
refused(ConfigError, "must be a configuration of torchao", lambda: quintet.TorchAoConfig("int4_weight_only"))
refused(ConfigError, "embeddings stay as they are",
        lambda: quintet.TorchAoConfig(Int8WeightOnlyConfig(), include_input_output_embeddings=True))
refused(ConfigError, "must be a list", lambda: quintet.TorchAoConfig(Int8WeightOnlyConfig(), "lm_head"))
refused(ConfigError, "with the key 'default'", lambda: quintet.TorchAoConfig.from_dict({"quant_type": "x"}))
assert len(model.dequantize()) == 4
assert isinstance(model.transformer.h[0].mlp.c_fc, Conv1D)
with torch.no_grad():
    assert torch.allclose(model(ids).logits, found, atol=1e-4)
model.save_pretrained(sys.argv[2])
print("fine")
"""


def test_torchao(tiny_gpt2: Path, tmp_path: Path) -> None:
    pytest.importorskip("torchao")
    # in a process of its own: importing it changes torch
    words = [sys.executable, "-c", TORCHAO, str(tiny_gpt2), str(tmp_path / "out")]
    done = subprocess.run(
        words, capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.stdout.endswith("fine\n"), done.stderr


def test_conv1d_is_what_it_was() -> None:
    model = model_of("gpt2")
    model.quantize(BitsAndBytesConfig(load_in_4bit=True))
    model.dequantize(torch.bfloat16)
    layer = model.transformer.h[0].mlp.c_fc
    assert isinstance(layer, Conv1D) and layer.weight.dtype == layer.bias.dtype == torch.bfloat16
    assert isinstance(layer.weight, nn.Parameter) and layer.weight.requires_grad
