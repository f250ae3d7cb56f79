"""GPT-NeoX checkpoints go both ways: what one library saves the other loads, and both give the same logits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

IDS = torch.tensor([[5, 17, 3, 88, 42, 9, 61], [70, 2, 33, 4, 90, 12, 8]])
NAMES = {
    "GPTNeoXModel": "last_hidden_state",
    "GPTNeoXForCausalLM": "logits",
    "GPTNeoXForSequenceClassification": "logits",
    "GPTNeoXForTokenClassification": "logits",
    "GPTNeoXForQuestionAnswering": "start_logits",
}
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "sequential": {"use_parallel_residual": False, "attention_bias": False},
    "tied": {"tie_word_embeddings": True},
    "linear": {"rope_scaling": {"type": "linear", "factor": 2.0}, "rotary_pct": 1.0, "rotary_emb_base": 500},
    "yarn": {"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 4}},
}
CASES = [*((name, "plain") for name in NAMES), *(("GPTNeoXForCausalLM", option) for option in OPTIONS)]


def published_names(folder: Path) -> list[str]:
    return sorted(load_file(folder / "model.safetensors"))


@pytest.mark.parametrize(("name", "option"), CASES)
def test_what_we_save_the_reference_loads(
    transformers: Any, pair: Any, same: Any, tmp_path: Path, name: str, option: str
) -> None:
    ours, _ = pair(name, pad_token_id=98, **OPTIONS[option])
    ours.save_pretrained(tmp_path)
    theirs, report = getattr(transformers, name).from_pretrained(
        tmp_path, output_loading_info=True, attn_implementation="eager"
    )
    assert not report["missing_keys"] and not report["unexpected_keys"]
    same(ours(IDS)[NAMES[name]], theirs.eval()(IDS)[NAMES[name]])


@pytest.mark.parametrize(("name", "option"), CASES)
def test_what_the_reference_saves_we_load(
    transformers: Any, pair: Any, same: Any, tmp_path: Path, name: str, option: str
) -> None:
    import quintet

    ours, theirs = pair(name, pad_token_id=98, **OPTIONS[option])
    theirs.save_pretrained(tmp_path / "theirs")
    ours.save_pretrained(tmp_path / "ours")
    assert published_names(tmp_path / "theirs") == published_names(tmp_path / "ours")
    again, report = getattr(quintet, name).from_pretrained(
        tmp_path / "theirs", output_loading_info=True, attn_implementation="eager"
    )
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert again.config.rope_parameters == ours.config.rope_parameters
    same(again(IDS)[NAMES[name]], theirs(IDS)[NAMES[name]])


@pytest.mark.parametrize("into", NAMES)
@pytest.mark.parametrize("name", ["GPTNeoXModel", "GPTNeoXForCausalLM"])
def test_every_class_from_another(transformers: Any, pair: Any, tmp_path: Path, name: str, into: str) -> None:
    import quintet

    pair(name)[1].save_pretrained(tmp_path)
    theirs, their_report = getattr(transformers, into).from_pretrained(tmp_path, output_loading_info=True)
    ours, our_report = getattr(quintet, into).from_pretrained(tmp_path, output_loading_info=True)
    renamed = {key.replace("lm_head.", "embed_out.") for key in their_report["missing_keys"]}
    assert our_report["missing_keys"] == renamed
    state = {key.replace("lm_head.", "embed_out."): tensor for key, tensor in theirs.state_dict().items()}
    assert list(ours.state_dict()) == list(state)
    for key, tensor in ours.state_dict().items():
        assert key in renamed or torch.equal(tensor, state[key]), key


def test_an_old_checkpoint(pair: Any, same: Any, tmp_path: Path) -> None:
    """Releases before 2023 stored mask buffers and frequencies; they hold nothing that is learnt."""
    import quintet

    ours, _ = pair("GPTNeoXForCausalLM")
    ours.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    for layer in range(2):
        place = f"gpt_neox.layers.{layer}.attention"
        tensors[f"{place}.bias"] = torch.ones(1, 1, 64, 64, dtype=torch.bool).tril()
        tensors[f"{place}.masked_bias"] = torch.tensor(-1e9)
        tensors[f"{place}.rotary_emb.inv_freq"] = torch.full((2,), 9.0)
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    config = json.loads((tmp_path / "config.json").read_text())
    config["torch_dtype"] = config.pop("dtype", None) or "float32"
    (tmp_path / "config.json").write_text(json.dumps(config))
    again, report = quintet.GPTNeoXForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    same(again(IDS).logits, ours(IDS).logits)


def test_the_frequencies_are_there_after_a_load(pair: Any, tmp_path: Path) -> None:
    """They are in no file, and the model is made without memory: its layers compute them again, in float32."""
    import quintet

    ours, _ = pair("GPTNeoXForCausalLM")
    ours.half().save_pretrained(tmp_path)
    again = quintet.AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto")
    assert again.dtype == torch.float16
    frequencies = again.gpt_neox.rotary_emb.inv_freq
    assert frequencies.dtype == torch.float32
    assert torch.equal(frequencies, ours.gpt_neox.rotary_emb.inv_freq)


def test_published_configurations_are_read(transformers: Any) -> None:
    """The config.json of pythia-70m and gpt-neox-20b, as the hub has them."""
    from quintet import GPTNeoXConfig

    common = {"architectures": ["GPTNeoXForCausalLM"], "bos_token_id": 0, "hidden_act": "gelu", "layer_norm_eps": 1e-5}
    common |= {"initializer_range": 0.02, "max_position_embeddings": 2048, "model_type": "gpt_neox", "rotary_pct": 0.25}
    common |= {"rotary_emb_base": 10000, "tie_word_embeddings": False, "torch_dtype": "float16", "use_cache": True}
    pythia = {"eos_token_id": 0, "hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8}
    pythia |= {"num_hidden_layers": 6, "use_parallel_residual": True, "vocab_size": 50304}
    large = {"attention_probs_dropout_prob": 0, "hidden_dropout_prob": 0, "eos_token_id": 0, "hidden_size": 6144}
    large |= {"hidden_act": "gelu_fast"}
    large |= {"intermediate_size": 24576, "num_attention_heads": 64, "num_hidden_layers": 44, "vocab_size": 50432}
    for fields in (pythia, large):
        data = {**common, **fields}
        ours, theirs = GPTNeoXConfig.from_dict(data), transformers.GPTNeoXConfig.from_dict(data)
        for name, value in fields.items():
            assert getattr(ours, name) == value, name
        assert ours.rope_parameters == theirs.rope_parameters
        assert ours.dtype == "float16"


def test_defaults(transformers: Any) -> None:
    from quintet import GPTNeoXConfig

    ours, theirs = GPTNeoXConfig(), transformers.GPTNeoXConfig()
    shared = [name for name in theirs.to_dict() if name in ours.to_dict()]
    assert len(shared) > 25
    for name in shared:
        if name not in ("transformers_version", "architectures"):
            assert ours.to_dict()[name] == theirs.to_dict()[name], name
    assert ours.rope_parameters == theirs.rope_parameters
