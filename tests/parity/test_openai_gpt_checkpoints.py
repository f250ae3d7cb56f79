"""A GPT-1 saved here loads in the reference and the other way round, and both give the same scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

IDS = torch.tensor([[5, 17, 3, 88, 42, 9, 61], [70, 2, 33, 4, 90, 12, 8]])
NAMES = [
    "OpenAIGPTModel",
    "OpenAIGPTLMHeadModel",
    "OpenAIGPTDoubleHeadsModel",
    "OpenAIGPTForSequenceClassification",
]


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("name", NAMES)
def test_both_ways(pair: Any, same: Any, transformers: Any, tmp_path: Path, name: str, tied: bool) -> None:
    import quintet

    ours, theirs = pair(name, pad_token_id=98, tie_word_embeddings=tied)
    ours.save_pretrained(tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    wanted = theirs(IDS)
    same(getattr(transformers, name).from_pretrained(tmp_path / "ours").eval()(IDS), wanted)
    model, report = getattr(quintet, name).from_pretrained(tmp_path / "theirs", output_loading_info=True)
    same(model(IDS), wanted)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    model.save_pretrained(tmp_path / "again")  # and once more around
    same(getattr(transformers, name).from_pretrained(tmp_path / "again").eval()(IDS), wanted)


@pytest.mark.parametrize("name", NAMES)
def test_a_base_checkpoint_goes_into_every_class(pair: Any, transformers: Any, tmp_path: Path, name: str) -> None:
    import quintet

    base, theirs = pair("OpenAIGPTModel")
    theirs.save_pretrained(tmp_path)
    model = getattr(quintet, name).from_pretrained(tmp_path)
    for key, weight in base.state_dict().items():
        assert torch.equal(model.base_model.state_dict()[key], weight), key


def test_the_mask_buffers_of_old_files_are_dropped(pair: Any, same: Any, tmp_path: Path) -> None:
    """Releases before 2023 stored the causal mask of each block, and some the numbers of the positions."""
    from safetensors.torch import load_file, save_file

    import quintet

    ours, _ = pair("OpenAIGPTLMHeadModel")
    ours.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    old = {name.removeprefix("transformer."): weight for name, weight in weights.items() if "lm_head" not in name}
    for layer in range(2):
        old[f"h.{layer}.attn.bias"] = torch.ones(64, 64).tril()[None, None].clone()
    old["position_ids"] = torch.arange(64)
    save_file(old, tmp_path / "model.safetensors", metadata={"format": "pt"})
    model, report = quintet.OpenAIGPTLMHeadModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["unexpected_keys"] and not report["missing_keys"]
    same(model(IDS), ours(IDS))


def test_the_auto_classes_know_the_family(transformers: Any, tmp_path: Path) -> None:
    import quintet

    config = transformers.OpenAIGPTConfig(vocab_size=99, n_positions=64, n_embd=32, n_layer=2, n_head=4)
    transformers.OpenAIGPTLMHeadModel(config).save_pretrained(tmp_path)
    assert type(quintet.AutoConfig.from_pretrained(tmp_path)) is quintet.OpenAIGPTConfig
    assert type(quintet.AutoModel.from_pretrained(tmp_path)) is quintet.OpenAIGPTModel
    assert type(quintet.AutoModelForCausalLM.from_pretrained(tmp_path)) is quintet.OpenAIGPTLMHeadModel
    classifier = quintet.AutoModelForSequenceClassification.from_pretrained(tmp_path, num_labels=3)
    assert type(classifier) is quintet.OpenAIGPTForSequenceClassification
