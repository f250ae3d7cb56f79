"""gpt-oss: the release's layout there and back bit for bit, and packing and unpacking of whole checkpoints."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from quintet import GptOssForCausalLM
from quintet.convert import gpt_oss, mxfp4
from quintet.convert.run import convert, detect_layout
from quintet.errors import CheckpointError, InputError
from quintet.models.gpt_oss import tiny
from quintet.quant.mxfp4 import unpack
from quintet.quant.packed_experts import PackedExperts

D, F, X, HEADS, KEYS, SIZE, LAYERS, VOCABULARY = 64, 96, 4, 4, 2, 8, 3, 99
CONFIG = {
    "num_hidden_layers": LAYERS,
    "num_experts": X,
    "experts_per_token": 2,
    "vocab_size": VOCABULARY,
    "hidden_size": D,
    "intermediate_size": F,
    "swiglu_limit": 7.0,
    "head_dim": SIZE,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KEYS,
    "sliding_window": 4,
    "initial_context_length": 64,
    "rope_theta": 150000.0,
    "rope_scaling_factor": 4.0,
    "rope_ntk_alpha": 1.0,
    "rope_ntk_beta": 32.0,
}
IDS = torch.tensor([[5, 3, 90, 7, 2, 41, 11]])


def release() -> dict[str, torch.Tensor]:
    """Random tensors with the names and shapes of the release."""
    torch.manual_seed(4)

    def floats(*shape: int) -> torch.Tensor:
        return (torch.randn(shape) * 0.3).to(torch.bfloat16)

    def packed(outputs: int, inputs: int) -> tuple[torch.Tensor, torch.Tensor]:
        blocks = torch.randint(0, 256, (X, outputs, inputs // 32, 16), dtype=torch.uint8)
        return blocks, torch.randint(118, 124, (X, outputs, inputs // 32), dtype=torch.uint8)

    rows = (HEADS + 2 * KEYS) * SIZE
    tensors = {
        "embedding.weight": floats(VOCABULARY, D),
        "norm.scale": floats(D),
        "unembedding.weight": floats(VOCABULARY, D),
    }
    for layer in range(LAYERS):
        block = f"block.{layer}"
        tensors |= {
            f"{block}.attn.norm.scale": floats(D),
            f"{block}.attn.qkv.weight": floats(rows, D),
            f"{block}.attn.qkv.bias": floats(rows),
            f"{block}.attn.sinks": floats(HEADS),
            f"{block}.attn.out.weight": floats(D, HEADS * SIZE),
            f"{block}.attn.out.bias": floats(D),
            f"{block}.mlp.norm.scale": floats(D),
            f"{block}.mlp.gate.weight": floats(X, D),
            f"{block}.mlp.gate.bias": floats(X),
            f"{block}.mlp.mlp1_bias": floats(X, 2 * F),
            f"{block}.mlp.mlp2_bias": floats(X, D),
        }
        for name, sizes in (("mlp1", (2 * F, D)), ("mlp2", (D, F))):
            blocks, scales = packed(*sizes)
            tensors |= {f"{block}.mlp.{name}_weight.blocks": blocks, f"{block}.mlp.{name}_weight.scales": scales}
    return tensors


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("original")
    save_file(release(), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder


@pytest.fixture
def changed(original: Path, tmp_path: Path) -> Callable[..., Path]:
    """Makes a copy of the release with its tensors or its config.json changed."""

    def make(change: Callable[[dict[str, torch.Tensor]], Any] | None = None, **config: Any) -> Path:
        tensors = release()
        if change is not None:
            change(tensors)
        folder = tmp_path / "changed"
        folder.mkdir()
        save_file(tensors, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps({**CONFIG, **config}))
        return folder

    return make


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for path in folder.glob("*.safetensors"):
        found |= load_file(path)
    return found


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert tensor.dtype == other[name].dtype and torch.equal(tensor, other[name]), name


def test_a_release_becomes_a_model(original: Path, tmp_path: Path) -> None:
    assert detect_layout(original) == "gpt-oss-original"
    done = convert(original, tmp_path / "hub")
    assert (done.source_layout, done.target_layout) == ("gpt-oss-original", "hub")
    model, report = GptOssForCausalLM.from_pretrained(tmp_path / "hub", output_loading_info=True)
    assert not any(report.values())
    assert type(model.model.layers[0].mlp.experts) is PackedExperts
    stored = release()
    layer = model.model.layers[1]
    qkv = stored["block.1.attn.qkv.weight"]
    assert torch.equal(layer.self_attn.q_proj.weight, qkv[:32])
    assert torch.equal(layer.self_attn.k_proj.weight, qkv[32:48])
    assert torch.equal(layer.self_attn.v_proj.weight, qkv[48:])
    assert torch.equal(layer.self_attn.v_proj.bias, stored["block.1.attn.qkv.bias"][48:])
    assert torch.equal(layer.mlp.experts.down_proj_scales, stored["block.1.mlp.mlp2_weight.scales"])
    assert torch.equal(layer.post_attention_layernorm.weight, stored["block.1.mlp.norm.scale"])
    config = model.config
    assert (config.max_position_embeddings, config.num_experts_per_tok, config.rms_norm_eps) == (256, 2, 1e-5)
    assert config.layer_types == ["sliding_attention", "full_attention", "sliding_attention"]
    assert config.rope_scaling == {
        "rope_type": "yarn", "factor": 4.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False,
        "original_max_position_embeddings": 64,
    }  # fmt: skip
    assert model(IDS).logits.isfinite().all()


@pytest.mark.parametrize("limit", [10**9, 40_000])
def test_there_and_back_bit_for_bit(original: Path, tmp_path: Path, limit: int, monkeypatch: Any) -> None:
    monkeypatch.setattr(gpt_oss, "HUB_SHARD", limit)
    monkeypatch.setattr(gpt_oss, "SHARD", limit)
    convert(original, tmp_path / "hub")
    seen: list[tuple[int, int]] = []
    convert(
        tmp_path / "hub", tmp_path / "again", target_layout="gpt-oss-original", progress=lambda *part: seen.append(part)
    )
    same(tensors_of(tmp_path / "again"), release())
    assert json.loads((tmp_path / "again" / "config.json").read_text()) == CONFIG
    kinds = json.loads((tmp_path / "again" / "dtypes.json").read_text())
    assert kinds.keys() == release().keys()
    assert kinds["block.0.mlp.mlp1_weight.blocks"] == "FP4" and kinds["block.0.mlp.mlp1_weight.scales"] == "UE8"
    assert kinds["block.0.attn.qkv.weight"] == "BF16"
    assert seen[-1][0] == seen[-1][1] == sum(tensor.nbytes for tensor in release().values())
    names = sorted(path.name for path in (tmp_path / "again").glob("*.safetensors"))
    if limit < 10**9:
        assert names[0].startswith("model--00001-of-000") and len(names) > 2
        assert any(path.name.startswith("model-00001-of-") for path in (tmp_path / "hub").iterdir())
    else:
        assert names == ["model.safetensors"]
    convert(tmp_path / "again", tmp_path / "third")
    same(tensors_of(tmp_path / "third"), tensors_of(tmp_path / "hub"))


def test_what_was_saved_here_converts_too(original: Path, tmp_path: Path) -> None:
    convert(original, tmp_path / "hub")
    GptOssForCausalLM.from_pretrained(tmp_path / "hub").save_pretrained(tmp_path / "saved", max_shard_size="50KB")
    convert(tmp_path / "saved", tmp_path / "again", target_layout="gpt-oss-original")
    same(tensors_of(tmp_path / "again"), release())


def test_published_sizes_end_with_the_published_tokens(changed: Callable[..., Path], tmp_path: Path) -> None:
    def large(tensors: dict[str, torch.Tensor]) -> None:
        for name in ("embedding.weight", "unembedding.weight"):
            tensors[name] = torch.zeros(201088, D, dtype=torch.bfloat16)

    convert(changed(large, vocab_size=201088), tmp_path / "hub")
    config = json.loads((tmp_path / "hub" / "config.json").read_text())
    assert (config["eos_token_id"], config["pad_token_id"]) == (200002, 199999)


@pytest.mark.parametrize(
    ("change", "config", "words"),
    [
        (lambda t: t.pop("block.1.attn.sinks"), {}, r"no tensor 'block\.1\.attn\.sinks'"),
        (lambda t: t.pop("block.0.mlp.mlp1_weight.scales"), {}, r"no tensor 'block\.0\.mlp\.mlp1_weight\.scales'"),
        (lambda t: t.update(extra=torch.zeros(2)), {}, "holds 1 tensors that this model has no place for: extra"),
        (None, {"num_hidden_layers": 2}, r"holds 15 tensors that this model has no place for: block\.2"),
        (None, {"num_attention_heads": 6}, r"'block\.0\.attn\.qkv\.weight' has the shape \[64, 64\], .* \[80, 64\]"),
        (None, {"rope_scaling_factor": "32"}, "rope_scaling_factor is '32', but must be a number above 0"),
    ],
)
def test_damaged_releases(changed: Callable[..., Path], tmp_path: Path, change: Any, config: Any, words: str) -> None:
    with pytest.raises(CheckpointError, match=words):
        convert(changed(change, **config), tmp_path / "hub")
    assert not (tmp_path / "hub").exists()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"rms_norm_eps": 1e-6}, "no words for rms_norm_eps=1e-06"),
        ({"layer_types": ["full_attention"] * 2}, "no words for layer_types="),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}, "no words for rope_parameters="),
        ({"tie_word_embeddings": True}, "no words for tie_word_embeddings=True"),
        ({}, "experts of .* are not packed, .* --to mxfp4"),
    ],
)
def test_models_that_the_release_has_no_words_for(tmp_path: Path, fields: dict[str, Any], words: str) -> None:
    GptOssForCausalLM(tiny(**fields)).save_pretrained(tmp_path / "hub")
    with pytest.raises(CheckpointError, match=words):
        convert(tmp_path / "hub", tmp_path / "out", target_layout="gpt-oss-original")


def test_another_family(tiny_gpt2: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="of the type 'gpt2', and this layout is for 'gpt_oss' only"):
        convert(tiny_gpt2, tmp_path / "out", target_layout="gpt-oss-original")
    with pytest.raises(CheckpointError, match="nothing to pack as MXFP4: its experts are not there"):
        convert(tiny_gpt2, tmp_path / "out", target_layout="mxfp4")
    with pytest.raises(CheckpointError, match=r"no tensor named '\.\.\._blocks', so there is nothing to unpack"):
        convert(tiny_gpt2, tmp_path / "out", source_layout="mxfp4")


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    model = GptOssForCausalLM(tiny(hidden_size=D, intermediate_size=F, initializer_range=0.3)).to(torch.bfloat16)
    model.save_pretrained(tmp_path / "plain", max_shard_size="100KB")
    (tmp_path / "plain" / "tokenizer.json").write_text("{}")
    return tmp_path / "plain"


@pytest.mark.parametrize("limit", [10**9, 40_000])
def test_packing_a_checkpoint(
    plain: Path, tmp_path: Path, limit: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(mxfp4, "SHARD", limit)
    done = convert(plain, tmp_path / "packed", target_layout="mxfp4")
    assert done.note is not None and done.note.startswith("packed 4 tensors as MXFP4: relative error 0.1")
    with caplog.at_level(logging.WARNING, logger="quintet.checkpoint"):
        model = GptOssForCausalLM.from_pretrained(tmp_path / "packed")
    assert not caplog.text
    want = GptOssForCausalLM.from_pretrained(plain)
    want.quantize()
    same(dict(model.state_dict()), dict(want.state_dict()))
    assert (tmp_path / "packed" / "tokenizer.json").read_text() == "{}"
    config = json.loads((tmp_path / "packed" / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "mxfp4"
    with pytest.raises(CheckpointError, match="nothing to pack as MXFP4: its experts are packed already"):
        convert(tmp_path / "packed", tmp_path / "twice", target_layout="mxfp4")
    back = convert(tmp_path / "packed", tmp_path / "back", source_layout="mxfp4")
    assert back.note == "unpacked 4 tensors to bfloat16, exactly"
    again = GptOssForCausalLM.from_pretrained(tmp_path / "back")
    assert not hasattr(again.config, "quantization_config")
    dequantised = GptOssForCausalLM.from_pretrained(tmp_path / "packed", dequantize=True)
    same(dict(again.state_dict()), dict(dequantised.state_dict()))
    experts = model.model.layers[0].mlp.experts
    down = unpack(experts.down_proj_blocks, experts.down_proj_scales).transpose(1, 2)
    assert torch.equal(again.model.layers[0].mlp.experts.down_proj, down)


def test_sizes_that_cannot_be_packed(tmp_path: Path) -> None:
    GptOssForCausalLM(tiny(hidden_size=48)).save_pretrained(tmp_path / "plain")
    with pytest.raises(InputError, match=r"'model\.layers\.0\.mlp\.experts\.gate_up_proj' has rows of 48 numbers"):
        convert(tmp_path / "plain", tmp_path / "packed", target_layout="mxfp4")


def test_damage_found_while_unpacking(plain: Path, tmp_path: Path) -> None:
    convert(plain, tmp_path / "packed", target_layout="mxfp4")
    tensors = tensors_of(tmp_path / "packed")
    name = "model.layers.1.mlp.experts.down_proj_scales"
    tensors[name][2, 1, 0] = 255
    save_file(tensors, tmp_path / "packed" / "model.safetensors")
    with pytest.raises(CheckpointError, match=f"'{name}' holds the scale 255"):
        convert(tmp_path / "packed", tmp_path / "out", source_layout="mxfp4")
    tensors.pop(name)
    save_file(tensors, tmp_path / "packed" / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"half packed: it has '.*down_proj_blocks' without its scales"):
        convert(tmp_path / "packed", tmp_path / "out", source_layout="mxfp4")
