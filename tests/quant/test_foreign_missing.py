"""Without bitsandbytes and torchao: what is said, and that nothing was read before."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import quintet
from quintet import BitsAndBytesConfig, GPT2LMHeadModel
from quintet.checkpoint import pretrained, save_weights
from quintet.errors import ConfigError

WORDS = (
    r"BitsAndBytesConfig needs the package bitsandbytes: pip install 'quintet\[bitsandbytes\]'. "
    'Or use quintet\'s own 4 bits, which need nothing: quantization="int4"'
)


@pytest.fixture
def missing(monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("bitsandbytes", "torchao"):
        for name in [package, *(one for one in sys.modules if one.startswith(f"{package}."))]:
            monkeypatch.setitem(sys.modules, name, None)  # importing it fails


@pytest.mark.usefixtures("missing")
def test_the_example_of_the_page_names_the_extra_and_our_own_4_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("weights were opened")

    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype="float16",
        bnb_4bit_use_double_quant=True,
    )
    with monkeypatch.context() as patch:
        patch.setattr(pretrained, "open_source", read)
        with pytest.raises(ConfigError, match=WORDS):
            quintet.AutoModelForCausalLM.from_pretrained("storyteller", quantization_config=config, device_map="auto")
    model = quintet.AutoModelForCausalLM.from_pretrained("storyteller", quantization="int4", device_map="auto")
    assert model.config.quantization_config["quant_method"] == "compressed-tensors"


@pytest.mark.usefixtures("missing")
def test_files_of_bitsandbytes_and_models_in_memory(tiny_gpt2: Path, tmp_path: Path) -> None:
    model = GPT2LMHeadModel.from_pretrained(tiny_gpt2)
    config = {**model.config.to_dict(), "quantization_config": BitsAndBytesConfig(load_in_4bit=True).to_dict()}
    state = dict(model.state_dict())
    name = "transformer.h.0.mlp.c_fc.weight"
    state |= {name: torch.zeros(2048, 1, dtype=torch.uint8), f"{name}.absmax": torch.ones(64)}
    state[f"{name}.quant_state.bitsandbytes__fp4"] = torch.zeros(8, dtype=torch.uint8)
    save_weights(state, tmp_path, texts={"config.json": json.dumps(config)})
    with pytest.raises(ConfigError, match=WORDS):
        GPT2LMHeadModel.from_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=WORDS):
        model.quantize(BitsAndBytesConfig(load_in_8bit=True))


@pytest.mark.usefixtures("missing")
def test_torchao() -> None:
    with pytest.raises(ConfigError, match=r"TorchAoConfig needs the package torchao: pip install 'quintet\[torchao\]'"):
        quintet.TorchAoConfig(object())
