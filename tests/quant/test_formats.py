"""Which formats a model and a file are in."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from quintet.models.gpt_oss import GptOssForCausalLM, tiny
from quintet.quant.config import IntegerConfig
from quintet.quant.formats import packed_formats, stored_formats


def test_formats_of_a_model() -> None:
    model = GptOssForCausalLM(tiny())
    assert packed_formats(model) == []
    model.quantize("mxfp4")
    assert packed_formats(model) == ["mxfp4"]
    model.quantize(IntegerConfig(4, head_bits=8))
    assert packed_formats(model) == ["mxfp4", "int8", "int4"]
    model.dequantize()
    assert packed_formats(model) == []


def test_formats_of_bitsandbytes() -> None:
    pytest.importorskip("bitsandbytes")
    from quintet import BitsAndBytesConfig

    for config, name in (
        (BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4"), "nf4"),
        (BitsAndBytesConfig(load_in_4bit=True), "fp4"),
        (BitsAndBytesConfig(load_in_8bit=True), "llm_int8"),
    ):
        model = GptOssForCausalLM(tiny())
        model.quantize(config)
        assert packed_formats(model) == [name]
        tensors = [(key, "U8" if t.dtype == torch.uint8 else "F32", t.nbytes) for key, t in model.state_dict().items()]
        assert name in stored_formats(tensors)


def test_formats_of_files() -> None:
    tensors = [
        ("a.weight", "BF16", 1),
        ("a.bias", "F32", 2),
        ("b.weight", "I8", 4),
        ("b.weight_scale", "BF16", 8),
        ("c.weight_packed", "I32", 16),
        ("c.weight_scale", "BF16", 32),
        ("c.weight_zero_point", "I32", 64),
        ("c.weight_shape", "I64", 128),
        ("experts.up_blocks", "U8", 256),
        ("experts.up_scales", "U8", 512),
        ("d.weight", "U8", 1024),
        ("d.weight.absmax", "F32", 2048),
        ("d.weight.quant_state.bitsandbytes__nf4", "U8", 4096),
        ("d.bias", "BF16", 8192),
        ("e.weight", "I8", 16384),
        ("e.SCB", "F32", 32768),
        ("f.weight", "F8_E4M3", 65536),
    ]
    assert stored_formats(tensors) == {
        "bf16": 1 + 8192,
        "f8_e4m3": 65536,
        "fp32": 2,
        "int4": 16 + 32 + 64 + 128,
        "int8": 4 + 8,
        "llm_int8": 16384 + 32768,
        "mxfp4": 256 + 512,
        "nf4": 1024 + 2048 + 4096,
    }


def test_plain_modules_have_none() -> None:
    assert packed_formats(nn.Linear(2, 2)) == []
