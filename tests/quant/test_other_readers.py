"""Packed checkpoints in the hands of compressed-tensors, with the reference's models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from quintet.auto import family_of
from quintet.checkpoint import TensorFile
from quintet.quant.config import IntegerConfig
from quintet.quant.linears import packed_linears_of

IDS = torch.arange(12)[None]
CONFIGS = {
    "int8": IntegerConfig(8),
    "int8 in groups": IntegerConfig(8, group_size=32),
    "int8, rounded": IntegerConfig(8, activations="int8"),
    "int4": IntegerConfig(4),
    "int4, head int8": IntegerConfig(4, head_bits=8),
    "int4, head int4": IntegerConfig(4, head_bits=4),
}


def packed(family: str, config: IntegerConfig, folder: Path) -> Any:
    record = family_of(family)
    model = record.classes["causal-lm"](record.tiny(hidden_size=64, intermediate_size=128)).eval()
    model.quantize(config)
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("family", ["seed_oss", "gpt_neox"])
def test_the_reference_computes_the_same(family: str, name: str, tmp_path: Path) -> None:
    pytest.importorskip("compressed_tensors")
    ours = packed(family, CONFIGS[name], tmp_path)
    theirs: Any = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        want, found = ours(IDS).logits, theirs(IDS).logits
    # with 8 bits they round what comes in as well, as the file says
    far = float((want - found).norm() / want.norm())
    assert 1e-4 < far < 0.02 if "int8" in name else far < 1e-5


@pytest.mark.parametrize("group", [32, 64])
def test_zero_points_are_read(group: int, tmp_path: Path) -> None:
    compressors = pytest.importorskip("compressed_tensors.compressors")
    quantization = pytest.importorskip("compressed_tensors.quantization")
    config = IntegerConfig(4, group_size=group, symmetric=False, modules_to_not_convert=["*.o_proj"])
    model = packed("seed_oss", config, tmp_path)
    said = model.config.quantization_config["config_groups"]["group_0"]
    weights = {key: value for key, value in said["weights"].items() if value is not None}
    scheme = quantization.QuantizationScheme(targets=["Linear"], weights=quantization.QuantizationArgs(**weights))
    reader = compressors.BaseCompressor.get_value_from_registry("pack-quantized")
    file = TensorFile.open(tmp_path / "model.safetensors")
    layers = packed_linears_of(model)
    assert len(layers) == 12
    for path, layer in layers.items():
        state = {key.rpartition(".")[2]: file.get(key) for key in file if key.startswith(f"{path}.weight")}
        assert "weight_zero_point" in state
        torch.testing.assert_close(reader.decompress(state, scheme)["weight"], layer.unpack(torch.float32))
