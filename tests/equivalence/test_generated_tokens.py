"""`generate` writes what the plainest decoding writes: in batches, with every store of keys, in parts, optimized."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from quintet.cache import DynamicCache, OffloadedCache, QuantizedCache, StaticCache

GREEDY: dict[str, Any] = {"do_sample": False, "eos_token_id": None, "pad_token_id": 97}


def plain(model: Any, ids: torch.Tensor, count: int) -> torch.Tensor:
    """The whole text again for every token."""
    with torch.no_grad():
        for _ in range(count):
            best = model(ids, use_cache=False).logits[:, -1].argmax(-1, keepdim=True)
            ids = torch.cat([ids, best], 1)
    return ids


def test_a_padded_batch_writes_what_its_rows_write(make: Any, ids: torch.Tensor) -> None:
    model = make()
    mask = torch.ones_like(ids)
    mask[0, :4] = mask[2, :7] = 0
    for options in ({}, {"use_cache": False}):
        got = model.generate(ids, attention_mask=mask, max_new_tokens=8, **GREEDY, **options)
        assert torch.equal(got[:, :9], ids)
        for row, written, real in zip(ids, got, mask.bool(), strict=True):
            assert torch.equal(written[9:], plain(model, row[real][None], 8)[0, -8:])


@pytest.mark.parametrize("store", ["none", "all", "config", "fixed", "offloaded", "quantized"])
def test_every_store(make_one: Any, ids: torch.Tensor, store: str) -> None:
    model = make_one()
    config = model.config
    past: Any = {
        "none": lambda: None,
        "all": DynamicCache,
        "config": lambda: DynamicCache(config=config),
        "fixed": lambda: StaticCache(config, max_cache_len=17),
        "offloaded": lambda: OffloadedCache(config=config),
        "quantized": lambda: QuantizedCache(config=config, residual_length=32),
    }[store]()
    got = model.generate(ids, past_key_values=past, max_new_tokens=8, **GREEDY)
    assert torch.equal(got, plain(model, ids, 8))
    if past is not None:
        assert past.get_seq_length() == 16  # the last token was written and never read


def test_a_conversation_goes_on_with_its_store(make: Any, ids: torch.Tensor) -> None:
    """The store of one answer is handed to the next call with a longer text: only what is new is read."""
    model = make()
    out = model.generate(ids, max_new_tokens=4, return_dict_in_generate=True, **GREEDY)
    question = torch.randint(90, (3, 5))
    text = torch.cat([out.sequences, question], 1)
    seen = []
    hook = model.base_model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(args[0] if args else kwargs["input_ids"]), with_kwargs=True
    )
    # The model may have written the token that pads: without a mask it would be taken for padding.
    options = {"attention_mask": torch.ones_like(text), "past_key_values": out.past_key_values}
    got = model.generate(text, max_new_tokens=6, **options, **GREEDY)
    hook.remove()
    assert [tuple(part.shape) for part in seen] == [(3, 6)] + [(3, 1)] * 5
    assert torch.equal(got, plain(model, text, 6))


def test_samples_do_not_depend_on_the_way(make: Any, ids: torch.Tensor) -> None:
    model = make()
    options = {**GREEDY, "do_sample": True, "top_k": 20, "temperature": 0.8, "max_new_tokens": 6}
    written = []
    for more in ({}, {"use_cache": False}, {"past_key_values": DynamicCache()}):
        torch.manual_seed(11)
        written.append(model.generate(ids, **options, **more))
    assert torch.equal(written[0], written[1])
    assert torch.equal(written[0], written[2])
