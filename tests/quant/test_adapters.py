"""LoRA by PEFT over packed layers: it is found, it learns, and the packed weights stay as they are."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_packable import logits, model_of

from quintet.quant.config import IntegerConfig

TARGETS = {
    "gpt2": ["c_attn", "c_fc"],
    "openai-gpt": ["c_attn", "c_proj"],
    "gpt_neox": ["query_key_value", "dense"],
    "seed_oss": ["q_proj", "down_proj"],
    "gpt_oss": ["q_proj", "o_proj"],
}


@pytest.mark.parametrize("family", sorted(TARGETS))
@pytest.mark.parametrize("bits", [8, 4])
def test_lora_learns_over_packed_layers(family: str, bits: int) -> None:
    peft: Any = pytest.importorskip("peft")
    model = model_of(family)
    model.quantize(IntegerConfig(bits, group_size=32))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=TARGETS[family]))
    trained = {name: p for name, p in adapted.named_parameters() if p.requires_grad}
    assert trained and all("lora_" in name for name in trained)

    ids = torch.arange(24).view(2, 12) % 50
    optimizer = torch.optim.Adam(trained.values(), lr=1e-2)
    losses = []
    for _ in range(12):
        loss = adapted(input_ids=ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 0.02
    after = {
        name.replace(".base_layer", "").removeprefix("base_model.model."): t for name, t in adapted.state_dict().items()
    }
    for name, tensor in before.items():
        assert torch.equal(after[name], tensor), name


def test_adapters_are_merged_into_what_is_unpacked() -> None:
    peft: Any = pytest.importorskip("peft")
    model = model_of("seed_oss")
    model.quantize(IntegerConfig(4, group_size=32))
    options = {"r": 4, "target_modules": TARGETS["seed_oss"], "init_lora_weights": False}  # they do something at once
    adapted = peft.get_peft_model(model, peft.LoraConfig(**options)).eval()
    want = logits(adapted)
    plain = model_of("seed_oss")
    model.dequantize()
    merged = adapted.merge_and_unload()
    assert [type(module) for module in merged.modules()] == [type(module) for module in plain.modules()]
    assert not torch.allclose(logits(merged), logits(plain), atol=1e-2)
    torch.testing.assert_close(logits(merged), want, rtol=1e-4, atol=1e-5)
