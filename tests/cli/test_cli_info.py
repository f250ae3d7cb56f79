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
    assert main(["info", str(tiny_gpt2 / "config.json")]) == 1


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
