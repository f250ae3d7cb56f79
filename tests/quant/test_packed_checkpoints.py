"""Checkpoints as gpt-oss is published: loaded packed or unpacked, saved again bit for bit, refused when damaged."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

import quintet
from quintet import GptOssForCausalLM, GptOssForSequenceClassification, GptOssModel, Mxfp4Config
from quintet.checkpoint import TensorFile, save_weights
from quintet.errors import CheckpointError, ConfigError, InputError
from quintet.layers.experts import Experts
from quintet.models.gpt_oss import tiny
from quintet.quant.mxfp4 import unpack
from quintet.quant.packed_experts import PackedExperts, PackedParameter

# As the published config.json has it.
DECLARED = {
    "modules_to_not_convert": [
        "model.layers.*.self_attn",
        "model.layers.*.mlp.router",
        "model.embed_tokens",
        "lm_head",
    ],
    "quant_method": "mxfp4",
}
STEM = "model.layers.{}.mlp.experts.{}"
WEIGHTS = ("gate_up_proj", "down_proj")
IDS = torch.tensor([[5, 3, 90, 7, 2, 41, 11]])


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small checkpoint in the layout of the published ones: bfloat16, experts packed."""
    folder = tmp_path_factory.mktemp("gpt-oss")
    torch.manual_seed(7)
    model = GptOssForCausalLM(tiny(hidden_size=64, intermediate_size=96, initializer_range=0.3)).to(torch.bfloat16)
    state = dict(model.state_dict())
    for layer, weight in [(layer, weight) for layer in range(2) for weight in WEIGHTS]:
        stem = STEM.format(layer, weight)
        experts, inputs, outputs = state.pop(stem).shape
        state[f"{stem}_blocks"] = torch.randint(0, 256, (experts, outputs, inputs // 32, 16), dtype=torch.uint8)
        state[f"{stem}_scales"] = torch.randint(118, 124, (experts, outputs, inputs // 32), dtype=torch.uint8)
    model.config.architectures = ["GptOssForCausalLM"]
    config = {**json.loads(model.config.to_json_string()), "quantization_config": DECLARED}
    config.pop("dtype", None)  # the published file has none
    save_weights(state, folder, texts={"config.json": json.dumps(config)})
    return folder


@pytest.fixture
def copy(published: Path, tmp_path: Path) -> Callable[..., Path]:
    """Makes a copy of the checkpoint with its tensors or its config.json changed."""

    def make(change: Callable[[dict[str, torch.Tensor]], Any] | None = None, **config: Any) -> Path:
        file = TensorFile.open(published / "model.safetensors")
        tensors = {name: file.get(name).clone() for name in file}
        if change is not None:
            change(tensors)
        data = {**json.loads((published / "config.json").read_text()), **config}
        data = {key: value for key, value in data.items() if value is not None}
        save_weights(tensors, tmp_path / "changed", texts={"config.json": json.dumps(data)})
        return tmp_path / "changed"

    return make


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        out: torch.Tensor = model(IDS).logits
    return out


def experts(model: nn.Module) -> list[nn.Module]:
    return [module for name, module in model.named_modules() if name.endswith(".experts")]


def files(folder: Path) -> dict[str, torch.Tensor]:
    file = TensorFile.open(folder / "model.safetensors")
    return {name: file.get(name) for name in file}


# --- loading ----------------------------------------------------------------------------------------------------------


def test_stays_packed(published: Path) -> None:
    model, report = GptOssForCausalLM.from_pretrained(published, output_loading_info=True)
    assert all(type(module) is PackedExperts for module in experts(model)) and len(experts(model)) == 2
    assert not any(report.values())
    assert model.dtype == torch.bfloat16
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16, torch.uint8}
    stored = files(published)
    assert set(model.state_dict()) == set(stored)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, stored[name])
    blocks = model.get_parameter(f"{STEM.format(1, 'down_proj')}_blocks")
    assert isinstance(blocks, PackedParameter)
    assert model.config.quantization_config == DECLARED


def test_packed_numbers_are_counted(published: Path) -> None:
    packed, plain = (GptOssForCausalLM.from_pretrained(published, dequantize=asked) for asked in (False, True))
    assert packed.num_parameters() == plain.num_parameters()
    rest = plain.num_parameters() - sum(p.numel() for p in plain.parameters() if p.dim() == 3)
    assert packed.num_parameters(only_trainable=True) == rest
    assert packed.get_memory_footprint(return_buffers=False) == sum(t.nbytes for t in files(published).values())


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="mappings are read from /proc")
@pytest.mark.parametrize("style", ["mxfp4", "int8", "int4"])
def test_packed_weights_are_views_of_the_file(style: str, published: Path, tmp_path: Path) -> None:
    folder = published
    if style != "mxfp4":
        made, folder = GptOssForCausalLM(tiny()), tmp_path
        made.quantize(style)
        made.save_pretrained(folder)
    model = GptOssForCausalLM.from_pretrained(folder)
    ranges = [
        tuple(int(part, 16) for part in line.split()[0].split("-"))
        for line in Path("/proc/self/maps").read_text().splitlines()
        if str(folder) in line
    ]
    packed = {name: one for name, one in model.named_parameters() if isinstance(one, PackedParameter)}
    assert len(packed) == 2 * (4 if style == "mxfp4" else 8), sorted(packed)  # codes and scales, in two layers
    for name, parameter in packed.items():
        assert any(begin <= parameter.data_ptr() < end for begin, end in ranges), name


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_packed_says_what_unpacked_says(published: Path, dtype: str) -> None:
    packed = GptOssForCausalLM.from_pretrained(published, dtype=dtype)
    plain = GptOssForCausalLM.from_pretrained(published, dtype=dtype, dequantize=True)
    assert all(type(module) is PackedExperts for module in experts(packed))
    assert all(type(module) is Experts for module in experts(plain))
    bound = 1e-4 if dtype == "float32" else 0.1
    torch.testing.assert_close(logits(packed), logits(plain), atol=bound, rtol=bound)
    out = [model.generate(IDS, max_new_tokens=6, do_sample=False) for model in (packed, plain)]
    if dtype == "float32":
        assert torch.equal(*out)


def test_the_reference_reads_the_same(published: Path) -> None:
    theirs = transformers.GptOssForCausalLM.from_pretrained(
        published,
        quantization_config=transformers.Mxfp4Config(dequantize=True),
        attn_implementation="eager",
        dtype=torch.float32,
    )
    ours = GptOssForCausalLM.from_pretrained(published, dtype="float32")
    torch.testing.assert_close(logits(ours), logits(theirs), atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize(
    "asked",
    [
        {"quantization_config": Mxfp4Config(dequantize=True)},
        {"quantization_config": {"dequantize": True}},
        {"quantization_config": {"quant_method": "mxfp4", "dequantize": True}},
        {"dequantize": True},
        {"quantization_config": transformers.Mxfp4Config(dequantize=True)},
    ],
    ids=["object", "mapping", "full mapping", "keyword", "the reference's object"],
)
def test_dequantising(published: Path, asked: dict[str, Any], tmp_path: Path) -> None:
    model = quintet.AutoModelForCausalLM.from_pretrained(published, **asked)
    stored = files(published)
    for layer, weight in [(layer, weight) for layer in range(2) for weight in WEIGHTS]:
        stem = STEM.format(layer, weight)
        parameter = model.get_parameter(stem)
        assert parameter.dtype == torch.bfloat16 and parameter.requires_grad
        want = unpack(stored[f"{stem}_blocks"], stored[f"{stem}_scales"]).transpose(1, 2)
        assert torch.equal(parameter, want)
    assert not hasattr(model.config, "quantization_config")
    model.save_pretrained(tmp_path)
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text())
    assert torch.equal(logits(GptOssForCausalLM.from_pretrained(tmp_path)), logits(model))


def test_a_plain_checkpoint_stays_plain_when_unpacking_is_asked_for(tmp_path: Path) -> None:
    GptOssForCausalLM(tiny()).save_pretrained(tmp_path)
    model = GptOssForCausalLM.from_pretrained(tmp_path, dequantize=True)
    assert all(type(module) is Experts for module in experts(model))


@pytest.mark.parametrize("cls", [GptOssModel, GptOssForSequenceClassification])
def test_other_heads_find_the_packed_tensors(published: Path, cls: Any) -> None:
    model = cls.from_pretrained(published, pad_token_id=0)
    assert all(type(module) is PackedExperts for module in experts(model))
    base = GptOssModel.from_pretrained(published, dequantize=True)
    with torch.no_grad():
        got = getattr(model, "model", model)(IDS).last_hidden_state
        torch.testing.assert_close(got, base(IDS).last_hidden_state, atol=0.1, rtol=0.1)


def test_from_a_state_dict(published: Path) -> None:
    config = quintet.AutoConfig.from_pretrained(published)
    state = {name: tensor.clone() for name, tensor in files(published).items()}
    model = GptOssForCausalLM.from_pretrained(None, config=config, state_dict=state)
    plain = GptOssForCausalLM.from_pretrained(None, config=config, state_dict=state, dequantize=True)
    torch.testing.assert_close(logits(model), logits(plain), atol=0.1, rtol=0.1)
    assert config.quantization_config == DECLARED  # the caller's is not touched


def test_names_decide_without_a_declaration(copy: Callable[..., Path]) -> None:
    model = GptOssForCausalLM.from_pretrained(copy(quantization_config=None))
    assert all(type(module) is PackedExperts for module in experts(model))
    assert model.config.quantization_config["quant_method"] == "mxfp4"


def test_some_layers_may_be_plain_when_they_are_named(copy: Callable[..., Path]) -> None:
    def one_plain(tensors: dict[str, torch.Tensor]) -> None:
        for weight in WEIGHTS:
            stem = STEM.format(1, weight)
            parts = [tensors.pop(f"{stem}_{part}") for part in ("blocks", "scales")]
            tensors[stem] = unpack(*parts).transpose(1, 2).contiguous()

    named = {**DECLARED, "modules_to_not_convert": ["model.layers.1.mlp"]}
    model = GptOssForCausalLM.from_pretrained(copy(one_plain, quantization_config=named))
    assert [type(module) for module in experts(model)] == [PackedExperts, Experts]
    with pytest.raises(CheckpointError, match=r"half packed: 2 weights .* MXFP4 and 2 are not: model\.layers\.1\.mlp"):
        GptOssForCausalLM.from_pretrained(copy(one_plain))


# --- saving -----------------------------------------------------------------------------------------------------------


def test_saved_bit_for_bit(published: Path, tmp_path: Path) -> None:
    GptOssForCausalLM.from_pretrained(published).save_pretrained(tmp_path)
    before, after = files(published), files(tmp_path)
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert tensor.dtype == after[name].dtype and torch.equal(tensor, after[name])
    old, new = (json.loads((folder / "config.json").read_text()) for folder in (published, tmp_path))
    assert new["quantization_config"] == old["quantization_config"]
    assert {key: new[key] for key in old if key != "transformers_version"} == {
        key: value for key, value in old.items() if key != "transformers_version"
    }


def test_packing_while_loading(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    plain = GptOssForCausalLM(tiny(initializer_range=0.3))
    plain.save_pretrained(tmp_path / "plain")
    with caplog.at_level("INFO", logger="quintet.quant"):
        model = GptOssForCausalLM.from_pretrained(tmp_path / "plain", quantization_config=Mxfp4Config())
    assert caplog.text.count("as MXFP4, relative error 0.") == 4
    assert all(type(module) is PackedExperts for module in experts(model))
    model.save_pretrained(tmp_path / "packed")
    again = GptOssForCausalLM.from_pretrained(tmp_path / "packed")
    assert torch.equal(logits(again), logits(model))
    plain.quantize()
    for name, tensor in plain.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name])
    only = Mxfp4Config(modules_to_not_convert=["model.layers.0.*"])
    mixed = GptOssForCausalLM.from_pretrained(tmp_path / "plain", quantization_config=only)
    assert [type(module) for module in experts(mixed)] == [Experts, PackedExperts]
    mixed.save_pretrained(tmp_path / "mixed")
    assert torch.equal(logits(GptOssForCausalLM.from_pretrained(tmp_path / "mixed")), logits(mixed))


def test_packing_a_model(tmp_path: Path) -> None:
    model = GptOssForCausalLM(tiny(initializer_range=0.3)).eval()
    plain = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    before = logits(model)
    report = model.quantize("mxfp4", modules_to_not_convert=["model.layers.1.*"])
    assert report.kept == ["model.layers.1.mlp.experts"]
    assert set(report.errors) == {STEM.format(0, weight) for weight in WEIGHTS}
    assert 0.05 < report.error < 0.15 and "packed 2 weights" in report.describe()
    stem = STEM.format(0, "down_proj")
    held = model.state_dict()
    back = unpack(held[f"{stem}_blocks"], held[f"{stem}_scales"], torch.float32).transpose(1, 2)
    error = (back - plain[stem]).norm() / plain[stem].norm()
    assert report.errors[stem] == pytest.approx(error.item(), rel=1e-4)
    assert model.config.quantization_config["quant_method"] == "mxfp4"
    assert not torch.equal(logits(model), before)
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(GptOssForCausalLM.from_pretrained(tmp_path)), logits(model))
    assert model.dequantize() == ["model.layers.0.mlp.experts"]
    assert [type(module) for module in experts(model)] == [Experts, Experts]
    assert not hasattr(model.config, "quantization_config")


def test_what_cannot_be_packed() -> None:
    with pytest.raises(InputError, match=r"model\.layers\.0\.mlp\.experts\.gate_up_proj has rows of 48 numbers"):
        GptOssForCausalLM(tiny(hidden_size=48)).quantize()
    with pytest.raises(ConfigError, match="quantization='int3' is not known. Use one of mxfp4, int8, int4"):
        GptOssForCausalLM(tiny()).quantize("int3")
    with pytest.raises(ConfigError, match="no experts to pack as MXFP4 but those to skip"):
        GptOssForCausalLM(tiny()).quantize(modules_to_not_convert=["*"])
    with pytest.raises(ConfigError, match="GPT2LMHeadModel has no experts to pack as MXFP4. "):
        quintet.GPT2LMHeadModel(quintet.models.gpt2.tiny()).quantize()


# --- training on top --------------------------------------------------------------------------------------------------


class LoRA(nn.Module):
    """A low-rank addition to a linear layer."""

    def __init__(self, inner: nn.Linear) -> None:
        super().__init__()
        self.inner = inner
        self.a = nn.Parameter(torch.randn(4, inner.in_features) * 0.1)
        self.b = nn.Parameter(torch.zeros(inner.out_features, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.inner(x) + x @ self.a.t() @ self.b.t()
        return out


@pytest.mark.parametrize("checkpointing", [False, True])
def test_adapters_train_over_packed_experts(published: Path, checkpointing: bool) -> None:
    results = []
    for words in ({}, {"dequantize": True}):
        torch.manual_seed(2)
        model = GptOssForCausalLM.from_pretrained(published, dtype="float32", **words).train()
        for parameter in model.parameters():
            if parameter.is_floating_point():
                parameter.requires_grad_(False)
        trained: dict[str, nn.Parameter] = {}
        for index, layer in enumerate(model.model.layers):
            layer.self_attn.q_proj = LoRA(layer.self_attn.q_proj)
            trained[f"{index}.a"], trained[f"{index}.b"] = layer.self_attn.q_proj.a, layer.self_attn.q_proj.b
            for name in ("gate_up_proj_bias", "down_proj_bias"):
                trained[f"{index}.{name}"] = getattr(layer.mlp.experts, name).requires_grad_(True)
            trained[f"{index}.router"] = layer.mlp.router.weight.requires_grad_(True)
            trained[f"{index}.sinks"] = layer.self_attn.sinks.requires_grad_(True)
        if checkpointing:
            model.gradient_checkpointing_enable()
        embeds = model.get_input_embeddings()(IDS).detach().requires_grad_(True)
        optimiser = torch.optim.AdamW(trained.values(), lr=1e-2)
        losses = []
        for step in range(4):
            optimiser.zero_grad()
            loss = model(inputs_embeds=embeds, labels=IDS, use_cache=False).loss
            loss.backward()
            if step == 0:
                gradients = {name: parameter.grad.clone() for name, parameter in trained.items()}
                gradients["inputs"] = embeds.grad.clone()
            optimiser.step()
            losses.append(loss.item())
        assert losses[-1] < losses[0]
        results.append((gradients, losses))
    (got, first), (want, second) = results
    assert first == pytest.approx(second, rel=1e-3)
    for name, gradient in got.items():
        torch.testing.assert_close(gradient, want[name], atol=1e-4, rtol=1e-3, msg=name)
        assert name == "0.a" or name == "1.a" or gradient.abs().sum() > 0  # b is 0 at first, so a has none


def test_gradients_of_packed_weights_are_refused(published: Path) -> None:
    model = GptOssForCausalLM.from_pretrained(published)
    with pytest.raises(InputError, match=r"packed weights.*LoRA"):
        model.requires_grad_(True)


# --- damage -----------------------------------------------------------------------------------------------------------

BLOCKS, SCALES = f"{STEM.format(0, 'down_proj')}_blocks", f"{STEM.format(0, 'down_proj')}_scales"


def nan_scale(tensors: dict[str, torch.Tensor]) -> None:
    tensors[SCALES][1, 2, 0] = 255


def plain_too(tensors: dict[str, torch.Tensor]) -> None:
    tensors[STEM.format(0, "down_proj")] = torch.zeros(4, 96, 64, dtype=torch.bfloat16)


DAMAGE: list[tuple[Callable[[dict[str, torch.Tensor]], Any], str]] = [
    (lambda t: t.pop(SCALES), r"half packed: it has '.*0\.mlp\.experts\.down_proj_blocks' without its scales"),
    (lambda t: t.pop(BLOCKS), r"half packed: it has '.*0\.mlp\.experts\.down_proj_scales' without its blocks"),
    (lambda t: (t.pop(BLOCKS), t.pop(SCALES)), r"half packed: 3 weights .* and 1 are not: .*\.0\.mlp\.experts\.down"),
    (plain_too, r"'.*down_proj' both plain and packed"),
    (nan_scale, r"'.*0\.mlp\.experts\.down_proj_scales' holds the scale 255, which stands for NaN, 1 time"),
    (
        lambda t: t.update({SCALES: t[SCALES][:, :-1].clone()}),
        r"'.*0\.mlp\.experts\.down_proj': blocks of shape \[4, 64, 3, 16\] and scales of shape \[4, 63, 3\]",
    ),
    (
        lambda t: t.update({BLOCKS: t[BLOCKS][:3].clone(), SCALES: t[SCALES][:3].clone()}),
        r"another shape in the checkpoint .*down_proj_blocks' is \[3, 64, 3, 16\], model \[4, 64, 3, 16\]",
    ),
    (lambda t: t.update({BLOCKS: t[BLOCKS].float()}), r"down_proj_blocks' is torch\.float32 in the checkpoint"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "words"), DAMAGE, ids=range(len(DAMAGE)))
def test_damage_is_refused(change: Callable[..., Any], words: str, copy: Callable[..., Path]) -> None:
    folder = copy(change)
    with pytest.raises(CheckpointError, match=words):
        GptOssForCausalLM.from_pretrained(folder)


@pytest.mark.parametrize(("change", "words"), DAMAGE[:6], ids=range(6))
def test_damage_is_refused_when_unpacking(change: Callable[..., Any], words: str, copy: Callable[..., Path]) -> None:
    folder = copy(change)
    with pytest.raises(CheckpointError, match=words):
        GptOssForCausalLM.from_pretrained(folder, dequantize=True)


@pytest.mark.parametrize("disable_mmap", [False, True])
def test_a_file_that_was_cut_is_refused_before_it_is_mapped(disable_mmap: bool, copy: Callable[..., Path]) -> None:
    folder = copy()
    assert torch.isfinite(logits(GptOssForCausalLM.from_pretrained(folder, disable_mmap=disable_mmap))).all()
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    for length in (len(whole) - 1, len(whole) // 2, 1000, 4, 0):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match="model.safetensors"):
            GptOssForCausalLM.from_pretrained(folder, disable_mmap=disable_mmap)


def test_without_mmap_a_file_may_be_cut_while_the_model_is_used(copy: Callable[..., Path]) -> None:
    folder = copy()
    model = GptOssForCausalLM.from_pretrained(folder, disable_mmap=True)
    before = logits(model)
    os.truncate(folder / "model.safetensors", 100)
    assert torch.equal(logits(model), before)


def test_a_model_of_another_size(copy: Callable[..., Path]) -> None:
    with pytest.raises(InputError, match=r"model\.layers\.0\.mlp\.experts\.gate_up_proj has rows of 80 numbers"):
        GptOssForCausalLM.from_pretrained(copy(hidden_size=80))


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"quant_method": "gptq", "bits": 4}, "method 'gptq', and what is read is plain weights, mxfp4,"),
        (17, "method 'int', and what is read"),
        ({"wbits": 4}, "method 'None', and what is read"),
        ({"bits": 4, "size": 3}, "IntegerConfig has no field 'size'"),
        ({"modules_to_not_convert": "lm_head"}, "modules_to_not_convert='lm_head' must be a list of module paths"),
        ({"dequantize": 1}, "dequantize=1 must be True or False"),
    ],
)
def test_configurations_that_are_refused(published: Path, value: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        GptOssForCausalLM.from_pretrained(published, quantization_config=value)


def test_the_configuration_object() -> None:
    config = Mxfp4Config(["lm_head"], extra=3)
    assert config.to_dict() == {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}
    assert repr(config) == "Mxfp4Config(modules_to_not_convert=['lm_head'], dequantize=False)"
