"""`quintet info`: figures from the configuration and the headers alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from quintet.cli.main import main


def info(folder: Path | str, capsys: pytest.CaptureFixture[str]) -> dict:
    assert main(["info", str(folder), "--json"]) == 0
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    return json.loads(out)


def test_figures_are_those_of_the_model(tiny_gpt2, capsys):
    from quintet import AutoModelForCausalLM, AutoTokenizer

    facts = info(tiny_gpt2, capsys)
    model = AutoModelForCausalLM.from_pretrained(tiny_gpt2)
    assert facts["family"] == "gpt2" and facts["architectures"] == ["GPT2LMHeadModel"]
    assert (facts["layers"], facts["heads"], facts["kv_heads"], facts["width"]) == (2, 4, 4, 32)
    assert (facts["context"], facts["vocabulary"]) == (128, model.config.vocab_size)
    assert facts["parameters"] == sum(p.numel() for p in model.parameters())
    assert facts["memory_mib"]["fp32"] == round(model.get_memory_footprint(return_buffers=False) / 2**20, 1)
    tokenizer = AutoTokenizer.from_pretrained(tiny_gpt2)
    assert facts["tokenizer"] == {"class": type(tokenizer).__name__, "tokens": len(tokenizer)}


def test_the_cache_is_as_large_as_it_says(tiny_gpt2, capsys):
    import torch

    from quintet import AutoModelForCausalLM

    facts = info(tiny_gpt2, capsys)
    cache = AutoModelForCausalLM.from_pretrained(tiny_gpt2)(torch.zeros(1, 10, dtype=torch.long)).past_key_values
    size = sum(t.nbytes for layer in cache.to_legacy_cache() for t in layer)
    assert facts["kv_cache_bytes_per_token"] == {"fp32": size // 10, "bf16": size // 20, "fp16": size // 20}
    assert facts["kv_cache_full_mib"]["fp32"] == round(size // 10 * 128 / 2**20, 1)


def test_stored_weights_come_from_the_headers(tiny_gpt2, capsys):
    from safetensors import safe_open

    weights = info(tiny_gpt2, capsys)["weights"]
    with safe_open(tiny_gpt2 / "model.safetensors", "pt") as file:
        names = list(file.keys())
    assert weights["files"] == ["model.safetensors"] and weights["tensors"] == len(names)
    assert set(weights["mib_by_dtype"]) == {"F32"} and weights["mib"] == weights["mib_by_dtype"]["F32"]


def test_no_weights_are_read(tiny_gpt2, tmp_path, capsys):
    """A file whose data is one hole on disk is described as fast as any other."""
    import struct

    config = json.loads((tiny_gpt2 / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "n_embd": 8192, "n_layer": 100, "n_head": 64}))
    size = 50 * 2**30
    header = json.dumps({"x": {"dtype": "BF16", "shape": [size // 2], "data_offsets": [0, size]}}).encode()
    with open(tmp_path / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + size)
    facts = info(tmp_path, capsys)
    assert facts["weights"]["mib_by_dtype"] == {"BF16": 50 * 1024.0}
    assert facts["parameters"] > 80e9 and facts["tokenizer"] is None


def test_a_configuration_alone_is_enough(tiny_gpt2, tmp_path, capsys):
    shutil.copy(tiny_gpt2 / "config.json", tmp_path)
    facts = info(tmp_path, capsys)
    assert facts["weights"] is None and facts["tokenizer"] is None and facts["parameters"] > 0


def test_shards_count_together_and_an_index_without_them_is_no_error(tiny_gpt2, tmp_path, capsys):
    from quintet import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained(tiny_gpt2).save_pretrained(tmp_path, max_shard_size="64KB")
    whole, shards = info(tiny_gpt2, capsys)["weights"], info(tmp_path, capsys)["weights"]
    assert len(shards["files"]) > 1
    assert (shards["tensors"], shards["mib"]) == (whole["tensors"], whole["mib"])
    for file in tmp_path.glob("*.safetensors"):
        file.unlink()
    assert info(tmp_path, capsys)["weights"] is None


def test_the_table_for_people(tiny_gpt2, capsys):
    assert main(["info", str(tiny_gpt2)]) == 0
    out = capsys.readouterr().out
    for text in ("gpt2 (GPT2LMHeadModel)", "2 layers, 4 heads, width 32", "128 tokens", "in model.safetensors: F32"):
        assert text in out
    assert main(["info", str(tiny_gpt2 / "tokenizer.json")]) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "gpt_zero"}, "unknown model_type 'gpt_zero'"),
        ({"n_head": 5}, "n_head"),
        ({"n_layer": -1}, "n_layer is -1"),
    ],
)
def test_a_bad_configuration_is_an_error(change, message, tiny_gpt2, tmp_path, capsys):
    config = json.loads((tiny_gpt2 / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
    assert main(["info", str(tmp_path)]) == 1
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1


def test_a_damaged_weight_file_is_an_error(tiny_gpt2, tmp_path, capsys):
    shutil.copytree(tiny_gpt2, tmp_path, dirs_exist_ok=True)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    assert main(["info", str(tmp_path)]) == 1
    assert "truncated" in capsys.readouterr().err


def test_a_tokenizer_that_cannot_be_read_does_not_hide_the_rest(tiny_gpt2, tmp_path, capsys):
    shutil.copytree(tiny_gpt2, tmp_path, dirs_exist_ok=True)
    (tmp_path / "tokenizer.json").write_text("{")
    facts = info(tmp_path, capsys)
    assert "tokenizer.json" in facts["tokenizer"]["error"] and facts["parameters"] > 0
    assert main(["info", str(tmp_path)]) == 0
    assert "cannot be read: " in capsys.readouterr().out


# --- the memory plan --------------------------------------------------------------------------------------------------

# config.json of openai/gpt-oss-20b, as published; the 120B model has other numbers of layers and experts.
GPT_OSS = {
    "architectures": ["GptOssForCausalLM"],
    "attention_bias": True,
    "attention_dropout": 0.0,
    "eos_token_id": 200002,
    "experts_per_token": 4,
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 2880,
    "initial_context_length": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 2880,
    "layer_types": ["sliding_attention", "full_attention"] * 12,
    "max_position_embeddings": 131072,
    "model_type": "gpt_oss",
    "num_attention_heads": 64,
    "num_experts_per_tok": 4,
    "num_hidden_layers": 24,
    "num_key_value_heads": 8,
    "num_local_experts": 32,
    "output_router_logits": False,
    "pad_token_id": 199999,
    "quantization_config": {
        "modules_to_not_convert": [
            "model.layers.*.self_attn",
            "model.layers.*.mlp.router",
            "model.embed_tokens",
            "lm_head",
        ],
        "quant_method": "mxfp4",
    },
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "factor": 32.0,
        "original_max_position_embeddings": 4096,
        "rope_type": "yarn",
        "truncate": False,
    },
    "rope_theta": 150000,
    "router_aux_loss_coef": 0.9,
    "sliding_window": 128,
    "swiglu_limit": 7.0,
    "tie_word_embeddings": False,
    "transformers_version": "4.55.0.dev0",
    "use_cache": True,
    "vocab_size": 201088,
}
LARGE = {"num_hidden_layers": 36, "num_local_experts": 128, "layer_types": ["sliding_attention", "full_attention"] * 18}


@pytest.mark.parametrize(
    ("change", "parameters", "file"),
    [({}, 20_914_757_184, 13_761_264_768), (LARGE, 116_829_156_672, 65_248_815_744)],
)
def test_the_published_sizes_of_gpt_oss(change, parameters, file, tmp_path, capsys):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**GPT_OSS, **change}))
    facts = info(path, capsys)
    assert facts["parameters"] == parameters  # 21B and 117B in the model card
    plan = facts["plan"]
    assert plan["formats"]["mxfp4"]["weights_bytes"] == file  # total_size of the published index
    assert plan["formats"]["bf16"]["weights_bytes"] == 2 * parameters
    assert list(plan["parts"]) == ["embeddings", "attention", "experts", "other", "head"]
    assert sum(part["parameters"] for part in plan["parts"].values()) == parameters
    assert plan["parts"]["embeddings"]["parameters"] == plan["parts"]["head"]["parameters"] == 201088 * 2880
    experts = plan["parts"]["experts"]["mib"]
    assert experts["bf16"] / experts["mxfp4"] == pytest.approx(2 / (17 / 32), rel=1e-2)
    assert facts["weights"] is None and facts["tokenizer"] is None


def test_the_cache_of_layers_with_a_window(tmp_path, capsys):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(GPT_OSS))
    facts = info(path, capsys)
    layer = 2 * 8 * 64 * 2  # keys and values of 8 heads of 64 numbers in bf16
    assert facts["kv_cache_bytes_per_token"]["bf16"] == 24 * layer
    assert facts["kv_cache_bytes_per_token_beyond_window"]["bf16"] == 12 * layer
    assert (facts["layers_with_window"], facts["window"]) == (12, 128)
    whole = 12 * layer * 131072 + 12 * layer * 128
    assert facts["kv_cache_full_mib"]["bf16"] == round(whole / 2**20, 1)
    assert facts["plan"]["formats"]["mxfp4"]["kv_cache_mib"] == round(whole / 2**20, 1)
    assert main(["info", str(path), "--json", "--length", "100"]) == 0
    plan = json.loads(capsys.readouterr().out)["plan"]
    assert plan["length"] == 100 and plan["formats"]["bf16"]["kv_cache_mib"] == round(24 * layer * 100 / 2**20, 1)


@pytest.mark.parametrize(("available", "mxfp4", "bf16"), [(None, None, None), (10_000, False, False)])
def test_what_fits_is_said_only_where_it_is_known(available, mxfp4, bf16, tmp_path, capsys, monkeypatch):
    from quintet.cli import plan

    monkeypatch.setattr(plan, "memory", lambda: {"total_mib": available, "available_mib": available})
    (tmp_path / "config.json").write_text(json.dumps(GPT_OSS))
    formats = info(tmp_path, capsys)["plan"]["formats"]
    assert (formats["mxfp4"]["fits"], formats["bf16"]["fits"]) == (mxfp4, bf16)


def test_what_fits_a_machine(tmp_path, capsys, monkeypatch):
    from quintet.cli import plan

    (tmp_path / "config.json").write_text(json.dumps(GPT_OSS))
    monkeypatch.setattr(plan, "memory", lambda: {"total_mib": 16_000, "available_mib": 14_000})
    formats = info(tmp_path, capsys)["plan"]["formats"]
    entry = formats["mxfp4"]
    assert not entry["fits"] and not formats["bf16"]["tokens_that_fit"]
    layer = 2 * 8 * 64 * 2
    left = 14_000 * 2**20 - entry["weights_bytes"]
    room = entry["tokens_that_fit"]
    assert 0 < room < 131072
    assert 12 * layer * (room + 128) <= left < 12 * layer * (room + 129)
    assert main(["info", str(tmp_path), "--length", str(room)]) == 0
    out = capsys.readouterr().out
    assert "14,000 of 16,000 MiB available" in out
    assert f"for {room:,} tokens: fits" in out and ": no room" in out
    assert "12 of 24 layers hold 128 tokens: beyond them bf16 24.0 KiB a token" in out
    assert main(["info", str(tmp_path)]) == 0
    assert f"does not fit, room for {room:,} tokens" in capsys.readouterr().out


def test_a_cache_that_never_ends():
    from quintet.cli.plan import KvCache

    assert KvCache(10, full=0, sliding=2, window=5).tokens_in(100) == -1
    assert KvCache(10, full=0, sliding=2, window=5).tokens_in(99) == 4
    assert KvCache(10, full=1, sliding=1, window=5).tokens_in(119) == 6
    assert KvCache(10, full=3).tokens_in(89) == 2


@pytest.mark.parametrize("family", ["gpt2", "openai-gpt", "gpt_neox", "seed_oss", "gpt_oss"])
def test_the_plan_is_what_packing_makes(family, tmp_path, capsys):
    from quintet.auto import family_of

    record = family_of(family)
    wide = {"intermediate_size": 64} if family in ("gpt_neox", "seed_oss") else {}
    config = record.tiny(**wide)
    (tmp_path / "config.json").write_text(config.to_json_string())
    formats = info(tmp_path, capsys)["plan"]["formats"]
    names = ["mxfp4", "mxfp4+int8", "mxfp4+int4"] if family == "gpt_oss" else ["int8", "int4"]
    assert [*formats] == ["fp32", "bf16", "fp16", *names]
    for name in names:
        model = record.classes["causal-lm"](config).bfloat16()
        model.quantize(name)
        buffers = [t for key, t in model.named_buffers() if key.endswith("weight_shape")]
        size = sum(tensor.nbytes for tensor in [*model.parameters(), *buffers])
        assert formats[name]["weights_bytes"] == size, name


@pytest.mark.parametrize("family", ["gpt2", "openai-gpt", "gpt_neox", "seed_oss", "gpt_oss"])
@pytest.mark.parametrize("bits", [8, 4])
def test_a_packed_head_is_what_packing_makes(bits, family, tmp_path, capsys):
    from quintet import IntegerConfig
    from quintet.auto import family_of

    record = family_of(family)
    wide = {"intermediate_size": 64} if family in ("gpt_neox", "seed_oss") else {}
    config = record.tiny(**wide)
    (tmp_path / "config.json").write_text(config.to_json_string())
    said = info(tmp_path, capsys)["plan"]["packed_head"]
    model = record.classes["causal-lm"](config).bfloat16()
    assert said["tied"] == (model.get_output_embeddings().weight is model.get_input_embeddings().weight)
    model.quantize(IntegerConfig(8, head_bits=bits))
    head = model.get_output_embeddings()
    assert head.bits == bits
    assert said["bytes"][f"int{bits}"] == sum(tensor.nbytes for tensor in [*head.parameters(), *head.buffers()])


@pytest.mark.parametrize("tied", [False, True])
def test_a_packed_head_is_told(tied, tmp_path, capsys):
    (tmp_path / "config.json").write_text(json.dumps({**GPT_OSS, "tie_word_embeddings": tied}))
    assert main(["info", str(tmp_path)]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.endswith("int8 552.7 MiB, int4 310.7 MiB")]
    words = "head tied; packed beside the embedding:" if tied else "packed:"
    assert line.split()[:-6] == words.split()


def test_a_head_that_cannot_be_packed_in_four_bits(tmp_path, capsys):
    from quintet.models.gpt2 import tiny

    (tmp_path / "config.json").write_text(tiny(n_embd=24, n_head=2).to_json_string())
    assert [*info(tmp_path, capsys)["plan"]["packed_head"]["mib"]] == ["int8"]


def test_a_format_that_does_not_fit_is_not_in_the_plan(tmp_path, capsys):
    from quintet.models.gpt2 import tiny

    (tmp_path / "config.json").write_text(tiny(n_embd=24, n_head=2).to_json_string())
    assert [*info(tmp_path, capsys)["plan"]["formats"]] == ["fp32", "bf16", "fp16", "int8"]


def test_parts_are_told_once_for_each_size(tmp_path, capsys):
    (tmp_path / "config.json").write_text(json.dumps(GPT_OSS))
    assert main(["info", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "bf16 1,215.4 MiB, int8 608.2 MiB, int4 342.1 MiB" in out  # attention
    assert "bf16 36,462.7 MiB, mxfp4 9,694.7 MiB\n" in out  # experts
    assert "  mxfp4+int4  12,250.5 MiB" in out


def test_formats_of_packed_files(tiny_gpt2, tmp_path, capsys):
    from quintet import GPT2LMHeadModel, IntegerConfig

    model = GPT2LMHeadModel.from_pretrained(tiny_gpt2).bfloat16()
    model.quantize(IntegerConfig(4, symmetric=False, head_bits=8))
    model.save_pretrained(tmp_path)
    facts = info(tmp_path, capsys)["weights"]
    assert set(facts["mib_by_format"]) == {"bf16", "int4", "int8"}
    assert sum(facts["mib_by_format"].values()) == pytest.approx(facts["mib"], abs=0.3)
    assert main(["info", str(tmp_path)]) == 0
    assert "  packed " in capsys.readouterr().out
    assert info(tiny_gpt2, capsys)["weights"]["mib_by_format"].keys() == {"fp32"}


def test_packed_weights_are_named(tmp_path, capsys):
    from quintet import GptOssForCausalLM
    from quintet.models.gpt_oss import tiny

    model = GptOssForCausalLM(tiny()).bfloat16()
    model.quantize()
    model.save_pretrained(tmp_path)
    facts = info(tmp_path, capsys)
    assert set(facts["weights"]["mib_by_dtype"]) == {"BF16", "U8"}
    assert set(facts["weights"]["mib_by_format"]) == {"bf16", "mxfp4"}
    size = sum(tensor.nbytes for tensor in model.state_dict().values())
    assert facts["plan"]["formats"]["mxfp4"]["weights_bytes"] == size
    assert facts["parameters"] == model.num_parameters()
