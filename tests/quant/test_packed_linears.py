"""Linear layers in 8 and 4 bits: every family, loading while packing, saving, gradients, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_packable import logits, model_of
from torch import nn

import quintet
from quintet.auto import model_types
from quintet.errors import CheckpointError, ConfigError, InputError
from quintet.layers.conv1d import Conv1D
from quintet.quant.config import IntegerConfig, parse_quantization
from quintet.quant.linears import linears_of, packed_linears_of
from quintet.quant.packed_linear import Int4Linear, Int8Linear

FORMATS = {
    "int8": IntegerConfig(8),
    "int8-groups": IntegerConfig(8, group_size=32),
    "int4": IntegerConfig(4),
    "int4-zeros": IntegerConfig(4, symmetric=False),
    "int4-head8": IntegerConfig(4, head_bits=8),
    "int8-head4": IntegerConfig(8, head_bits=4),
}


def unpacked(model: Any) -> dict[str, torch.Tensor]:
    """The weights that packed layers stand for, as plain modules have them."""
    return {
        f"{path}.weight": module.unpack(torch.float32).t() if module.transposed else module.unpack(torch.float32)
        for path, module in packed_linears_of(model).items()
    }


@pytest.mark.parametrize("family", sorted(model_types()))
@pytest.mark.parametrize("name", sorted(FORMATS))
def test_a_packed_model_is_its_dequantised_model(family: str, name: str, tmp_path: Path) -> None:
    plain = model_of(family)
    plain.save_pretrained(tmp_path / "plain")
    kind = type(plain)
    packed = kind.from_pretrained(tmp_path / "plain", quantization_config=FORMATS[name])
    chosen = packed_linears_of(packed)
    head = next(path for path, module in plain.named_modules() if module is plain.get_output_embeddings())
    assert set(chosen) == set(linears_of(plain, head if FORMATS[name].head_bits else None))
    assert (head in chosen) == (FORMATS[name].head_bits is not None)

    weights = plain.state_dict()
    tied = plain.config.tie_word_embeddings
    rounded = kind(plain.config).eval()
    if tied and head in chosen:
        rounded.config.tie_word_embeddings = False
        rounded.get_output_embeddings().weight = nn.Parameter(weights[f"{head}.weight"].clone())
    rounded.load_state_dict({**weights, **unpacked(packed)}, strict=not (tied and head in chosen))
    assert torch.allclose(logits(packed), logits(rounded), atol=2e-5)
    far = (logits(packed) - logits(plain)).norm() / logits(plain).norm()
    assert 0 < far < (0.05 if name[:4] == "int8" and "head4" not in name else 0.4)

    # packing in memory, packing while loading, and what was saved are the same, bit for bit
    again = kind.from_pretrained(tmp_path / "plain")
    report = again.quantize(FORMATS[name])
    assert set(report.errors) == set(chosen) and 0 < report.error < 0.2
    assert torch.equal(logits(again), logits(packed))
    packed.save_pretrained(tmp_path / "packed")
    loaded, info = kind.from_pretrained(tmp_path / "packed", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert torch.equal(logits(loaded), logits(packed))
    for key, tensor in packed.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], tensor), key

    # and back to plain layers
    whole = kind.from_pretrained(tmp_path / "packed", dequantize=True)
    assert not packed_linears_of(whole) and not hasattr(whole.config, "quantization_config")
    assert torch.allclose(logits(whole), logits(rounded), atol=2e-5)
    assert set(packed.dequantize()) == set(chosen)
    assert torch.allclose(logits(packed), logits(rounded), atol=2e-5)
    assert packed.num_parameters() == whole.num_parameters()


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_parameters_are_counted_as_numbers(name: str) -> None:
    model = model_of("seed_oss")
    before = model.num_parameters()
    model.quantize(FORMATS[name])
    assert model.num_parameters() == before


def test_what_a_file_says_is_what_other_readers_want(tmp_path: Path) -> None:
    model = model_of("seed_oss")
    model.quantize(IntegerConfig(4, group_size=32, head_bits=8))
    model.save_pretrained(tmp_path)
    said = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    assert said["quant_method"] == "compressed-tensors" and said["format"] == "mixed-precision"
    first, second = said["config_groups"]["group_0"], said["config_groups"]["group_1"]
    assert first["targets"] == ["Linear"] and first["format"] == "pack-quantized"
    assert first["weights"]["num_bits"] == 4 and first["weights"]["group_size"] == 32
    assert first["weights"]["strategy"] == "group" and first["weights"]["symmetric"] is True
    assert second["targets"] == ["re:.*lm_head$"] and second["weights"]["strategy"] == "channel"
    tensors = quintet.SeedOssForCausalLM.from_pretrained(tmp_path).state_dict()
    q = "model.layers.0.self_attn.q_proj"
    outputs, inputs = model_of("seed_oss").get_submodule(q).weight.shape
    assert tensors[f"{q}.weight_packed"].dtype == torch.int32
    assert tensors[f"{q}.weight_packed"].shape == (outputs, inputs // 8)
    assert tensors[f"{q}.weight_scale"].shape == (outputs, inputs // 32)
    assert tensors[f"{q}.weight_shape"].tolist() == [outputs, inputs]
    assert tensors["lm_head.weight"].dtype == torch.int8


def test_layers_that_are_left_out_are_named(tmp_path: Path) -> None:
    model = model_of("seed_oss")
    model.quantize(IntegerConfig(8, modules_to_not_convert=["*.mlp.down_proj"]))
    assert model.config.quantization_config["ignore"] == [
        *(f"model.layers.{layer}.mlp.down_proj" for layer in range(model.config.num_hidden_layers)),
        "lm_head",
    ]
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(quintet.SeedOssForCausalLM.from_pretrained(tmp_path)), logits(model))


def test_experts_and_the_rest(tmp_path: Path) -> None:
    model = model_of("gpt_oss")
    model.save_pretrained(tmp_path / "plain")
    both = quintet.GptOssForCausalLM.from_pretrained(tmp_path / "plain", quantization="mxfp4+int8")
    model.quantize("mxfp4")
    model.save_pretrained(tmp_path / "published")
    added = quintet.GptOssForCausalLM.from_pretrained(tmp_path / "published", quantization="int8")
    assert torch.equal(logits(both), logits(added))
    added.save_pretrained(tmp_path / "both")
    loaded = quintet.GptOssForCausalLM.from_pretrained(tmp_path / "both")
    assert torch.equal(logits(loaded), logits(added))
    assert packed_linears_of(loaded).keys() == packed_linears_of(added).keys()
    whole = quintet.GptOssForCausalLM.from_pretrained(tmp_path / "both", dequantize=True)
    assert torch.allclose(logits(whole), logits(added), atol=1e-4)


def test_one_part_after_the_other_says_what_both_are() -> None:
    model, together = model_of("gpt_oss"), model_of("gpt_oss")
    settings = IntegerConfig(4, symmetric=False, head_bits=8, activations="bf16")
    model.quantize(settings)
    model.quantize("mxfp4")
    together.quantize("mxfp4")
    together.quantize(settings)
    assert model.config.quantization_config == together.config.quantization_config
    groups = model.config.quantization_config["config_groups"]
    assert [(group["weights"]["num_bits"], group["weights"]["symmetric"]) for group in groups.values()] == [
        (4, False),
        (8, True),
    ]


def test_another_format_for_the_rest_is_refused() -> None:
    model = model_of("gpt_oss")
    model.quantize(IntegerConfig(4, modules_to_not_convert=["*.o_proj"]))
    with pytest.raises(ConfigError, match="packed with bits=4, group_size=32.*bits=8, group_size=None.*dequantize"):
        model.quantize("int8")
    model.quantize("int4")
    assert model.config.quantization_config["ignore"] == [
        path for path in model.config.quantization_config["ignore"] if "o_proj" not in path
    ]


@pytest.mark.parametrize("plain", ["linear", "no-bias", "conv1d"])
@pytest.mark.parametrize("kind", [Int8Linear, Int4Linear])
def test_gradients_reach_the_inputs(plain: str, kind: Any) -> None:
    torch.manual_seed(0)
    module: Any = Conv1D(40, 64) if plain == "conv1d" else nn.Linear(64, 40, bias=plain == "linear")
    nn.init.normal_(module.weight)
    packed, _ = kind.from_plain(module, group=32)
    whole = packed.to_plain()
    x = torch.randn(3, 5, 64, dtype=torch.float32, requires_grad=True)
    y = x.detach().clone().requires_grad_()
    out, want = packed(x), whole(y)
    assert torch.allclose(out, want, atol=1e-5)
    (out * out).sum().backward()
    (want * want).sum().backward()
    assert torch.allclose(x.grad, y.grad, rtol=1e-4, atol=1e-3)  # type: ignore[arg-type]
    if packed.bias is not None:
        assert torch.allclose(packed.bias.grad, whole.bias.grad, rtol=1e-4, atol=1e-3)
    with pytest.raises(InputError, match="requires_grad=True on packed weights"):
        packed.requires_grad_(True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", [Int8Linear, Int4Linear])
@pytest.mark.parametrize("rows", [1, 2, 8, 9, 33])
def test_few_rows_and_many_are_the_same(dtype: torch.dtype, kind: Any, rows: int) -> None:
    torch.manual_seed(1)
    packed, _ = kind.from_plain(nn.Linear(96, 56).to(dtype), group=32)
    x = torch.randn(rows, 96).to(dtype)
    want = x.double() @ packed.unpack(torch.float64).t() + packed.bias.double()
    with torch.no_grad():
        fast = packed(x)
    slow = packed(x)
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    assert torch.allclose(fast.double(), want, rtol=tolerance, atol=tolerance)
    assert torch.allclose(slow.double(), want, rtol=tolerance, atol=tolerance)


def test_what_is_asked_for_is_checked() -> None:
    for bad, words in (
        ({"bits": 3}, "bits is 3, but must be 8 or 4"),
        ({"bits": True}, "bits is True"),
        ({"head_bits": 16}, "head_bits is 16, but must be 8 or 4 or None"),
        ({"group_size": 48}, "group_size is 48, but must be a multiple of 32"),
        ({"group_size": "big"}, "group_size is 'big', but must be an integer"),
        ({"symmetric": False}, "symmetric=False is for 4 bits"),
        ({"activations": "int4"}, "activations is 'int4', but must be one of 'auto', 'bf16', 'int8'"),
        ({"dequantize": 1}, "dequantize=1 must be True or False"),
        ({"modules_to_not_convert": "lm_head"}, "must be a list of module paths"),
    ):
        with pytest.raises(ConfigError, match=words):
            IntegerConfig(**bad)  # type: ignore[arg-type]
    for short, words in (
        ("int3", "quantization='int3' is not known. Use one of mxfp4, int8, int4"),
        ("int8+int4", "names two formats for the same weights"),
        ("", "quantization='' is not known"),
    ):
        with pytest.raises(ConfigError, match=words):
            parse_quantization(short, "The call")
    said = {"quant_method": "compressed-tensors", "config_groups": {"a": {"weights": {"num_bits": 4, "type": "float"}}}}
    with pytest.raises(ConfigError, match="4 bits of type 'float'"):
        parse_quantization(said, "The configuration")
    with pytest.raises(ConfigError, match="without config_groups"):
        parse_quantization({"quant_method": "compressed-tensors"}, "The configuration")


def test_contradictions_of_a_call(tmp_path: Path) -> None:
    model_of("seed_oss").save_pretrained(tmp_path)
    load = quintet.SeedOssForCausalLM.from_pretrained
    with pytest.raises(ConfigError, match="either quantization or quantization_config"):
        load(tmp_path, quantization="int8", quantization_config=IntegerConfig(8))
    with pytest.raises(ConfigError, match="quantization is a int, but must be a name"):
        load(tmp_path, quantization=8)
    with pytest.raises(ConfigError, match="contradict each other"):
        load(tmp_path, quantization="int8", dequantize=True)
    with pytest.raises(ConfigError, match="no linear layer to pack but those to skip"):
        load(tmp_path, quantization_config=IntegerConfig(8, modules_to_not_convert=["*"]))
    with pytest.raises(ConfigError, match="SeedOssModel has no output head, so head_bits=8"):
        quintet.SeedOssModel.from_pretrained(tmp_path, quantization_config=IntegerConfig(8, head_bits=8))


def test_sizes_that_do_not_fit_are_named_and_nothing_is_changed() -> None:
    model = model_of("seed_oss", intermediate_size=72)
    before = logits(model)
    with pytest.raises(InputError, match=r"down_proj has 72 inputs, which groups of 32 do not divide"):
        model.quantize("int4")
    assert not packed_linears_of(model) and torch.equal(logits(model), before)


def test_checkpoints_that_disagree(tmp_path: Path) -> None:
    model = model_of("seed_oss")
    model.quantize("int4")
    model.save_pretrained(tmp_path)
    load = quintet.SeedOssForCausalLM.from_pretrained
    with pytest.raises(ConfigError, match=r"in 4 bits, and 8 are asked for. Leave quantization out"):
        load(tmp_path, quantization="int8")
    tensors, config = model.state_dict(), model.config
    key = "model.layers.0.mlp.up_proj.weight_scale"
    with pytest.raises(CheckpointError, match="half packed: it has"):
        load(None, config=config, state_dict={k: v for k, v in tensors.items() if k != key})
    with pytest.raises(CheckpointError, match=r"up_proj.weight_scale' of shape .* do not fit a weight of"):
        load(None, config=config, state_dict={**tensors, key: tensors[key][:-1]})
    plain = model_of("seed_oss").state_dict()
    with pytest.raises(CheckpointError, match="says that the weights are packed .*compressed-tensors"):
        load(None, config=config, state_dict=plain)


def test_packing_names_each_layer_as_it_goes() -> None:
    model, seen = model_of("gpt2"), []
    model.quantize("int8", progress=seen.append)
    assert seen == list(packed_linears_of(model))


@pytest.mark.parametrize("disable_mmap", [False, True])
@pytest.mark.parametrize("name", ["int8", "int4-zeros"])
def test_a_file_that_was_cut_is_refused_before_it_is_mapped(name: str, disable_mmap: bool, tmp_path: Path) -> None:
    model = model_of("gpt2")
    model.quantize(FORMATS[name])
    model.save_pretrained(tmp_path)
    load = quintet.GPT2LMHeadModel.from_pretrained
    assert torch.equal(logits(load(tmp_path, disable_mmap=disable_mmap)), logits(model))
    path = tmp_path / "model.safetensors"
    whole = path.read_bytes()
    for length in (len(whole) - 1, len(whole) // 2, 1000, 4, 0):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match="model.safetensors"):
            load(tmp_path, disable_mmap=disable_mmap)


@pytest.mark.parametrize("name", ["int8-groups", "int4", "int4-zeros"])
def test_scales_of_zero_are_weights_of_zero(name: str, tmp_path: Path) -> None:
    model = model_of("seed_oss")
    model.quantize(FORMATS[name])
    layer: Any = model.model.layers[0].mlp.up_proj
    layer.weight_scale.data[:5] = 0
    model.save_pretrained(tmp_path)
    loaded: Any = quintet.SeedOssForCausalLM.from_pretrained(tmp_path)
    assert not loaded.model.layers[0].mlp.up_proj.unpack(torch.float32)[:5].any()
    with torch.no_grad():  # by the native kernels
        assert torch.isfinite(loaded(torch.arange(3)[None]).logits).all()
    assert torch.allclose(logits(loaded), logits(model), atol=1e-5)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["int8", "int4"])
def test_scales_that_are_not_finite_are_refused(name: str, bad: float, tmp_path: Path) -> None:
    model = model_of("seed_oss")
    model.quantize(FORMATS[name])
    model.get_submodule("model.layers.1.mlp.up_proj").weight_scale.data[3] = bad
    model.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"up_proj.weight_scale' has scales that are not finite. .* get it again"):
        quintet.SeedOssForCausalLM.from_pretrained(tmp_path)
