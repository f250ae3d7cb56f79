"""Caches, prompts in parts, turns and embeddings under `generate` give what the reference gives."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch

from quintet.cache import DynamicCache, StaticCache

CLASSES = ["GPT2LMHeadModel", "GPTNeoXForCausalLM", "SeedOssForCausalLM", "GptOssForCausalLM", "OpenAIGPTLMHeadModel"]
# The reference's GPT-1 has no cache.
CACHED = CLASSES[:-1]
PAD = 97
GREEDY: dict[str, Any] = {"eos_token_id": None, "pad_token_id": PAD, "max_new_tokens": 8, "do_sample": False}


@pytest.fixture
def models(pair: Callable[..., Any], request: pytest.FixtureRequest) -> tuple[Any, Any]:
    """Ours and theirs; windows are shorter than the texts, and every expert takes part."""
    more = {"num_experts_per_tok": 4, "num_local_experts": 4, "sliding_window": 5}
    return pair(request.param, **(more if request.param.startswith("GptOss") else {}))


def both(models: tuple[Any, Any], *args: Any, **kwargs: Any) -> Any:
    """Run both; assert that the tokens are the same and return them."""
    results = []
    for model in models:
        torch.manual_seed(3)
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            results.append(model.generate(*copy.deepcopy(args), **copy.deepcopy(kwargs)))
    assert torch.equal(*results)
    return results[0]


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.randint(90, (3, 9), generator=torch.Generator().manual_seed(5))


@pytest.fixture
def mask() -> torch.Tensor:
    mask = torch.ones(3, 9, dtype=torch.long)
    mask[0, :3] = mask[2, :7] = 0
    return mask


@pytest.mark.parametrize("models", CACHED, indirect=True)
@pytest.mark.parametrize("kind", ["dynamic", "static", "hybrid", "sliding_window"])
def test_caches_by_name(models: Any, ids: torch.Tensor, mask: torch.Tensor, kind: str) -> None:
    both(models, ids, cache_implementation=kind, **GREEDY)
    both(models, ids, attention_mask=mask, cache_implementation=kind, num_beams=2, **GREEDY)
    both(models, ids, attention_mask=mask, cache_implementation=kind, max_cache_len=30, **GREEDY)
    both(models, ids, cache_implementation=kind, num_return_sequences=2, **{**GREEDY, "do_sample": True})


@pytest.mark.parametrize("models", CACHED, indirect=True)
@pytest.mark.parametrize("size", [1, 4, 20])
def test_prompts_in_parts(models: Any, ids: torch.Tensor, mask: torch.Tensor, size: int) -> None:
    both(models, ids, prefill_chunk_size=size, **GREEDY)
    both(models, ids, attention_mask=mask, prefill_chunk_size=size, **GREEDY)
    both(models, ids, attention_mask=mask, prefill_chunk_size=size, cache_implementation="static", **GREEDY)


@pytest.mark.parametrize("models", CACHED, indirect=True)
@pytest.mark.parametrize("store", ["dynamic", "config", "static"])
@pytest.mark.parametrize("padded", [False, True])
def test_turns(models: Any, transformers: Any, ids: torch.Tensor, mask: torch.Tensor, store: str, padded: bool) -> None:
    """A given cache goes from call to call in both; the whole text is given, and only what is new is read."""
    caches: list[Any] = []
    for model, dynamic, static in (
        (models[0], DynamicCache, StaticCache),
        (models[1], transformers.DynamicCache, transformers.StaticCache),
    ):
        config = model.config
        caches.append(
            {
                "dynamic": dynamic,
                "config": lambda dynamic=dynamic, config=config: dynamic(config=config),
                "static": lambda static=static, config=config: static(config=config, max_cache_len=60),
            }[store]()
        )
    text, given = ids, mask if padded else torch.ones_like(ids)
    for turn in range(3):
        results = []
        for model, cache in zip(models, caches, strict=True):
            with torch.no_grad():
                results.append(model.generate(text, attention_mask=given, past_key_values=cache, **GREEDY))
        assert torch.equal(*results)
        assert caches[0].get_seq_length() == int(caches[1].get_seq_length())
        text = torch.cat([results[0], torch.randint(90, (3, 3), generator=torch.Generator().manual_seed(turn))], 1)
        given = torch.nn.functional.pad(given, (0, 11), value=1)


@pytest.mark.parametrize("models", CACHED, indirect=True)
@pytest.mark.parametrize("prefix", [0, 3, 9, 12])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"max_new_tokens": None, "max_length": 24},
        {"max_new_tokens": None},
        {"repetition_penalty": 1.4},
        {"min_length": 23, "max_new_tokens": 15, "eos_token_id": list(range(0, 90, 2))},
        {"num_beams": 2},
        {"num_return_sequences": 2, "do_sample": True},
    ],
    ids=str,
)
def test_embeddings_after_a_prefix(models: Any, ids: torch.Tensor, prefix: int, options: dict[str, Any]) -> None:
    """The prefix is what the result begins with; what is read are the embeddings.

    Without a mask the reference takes that of the prefix, whose length then is wrong: see the next test.
    """
    embeds = models[0].get_input_embeddings()(ids).detach()
    before = {} if not prefix else {"input_ids": torch.cat([ids, ids], 1)[:, :prefix]}
    both(models, inputs_embeds=embeds, attention_mask=torch.ones_like(ids), **before, **{**GREEDY, **options})


@pytest.mark.parametrize("models", CACHED[:1], indirect=True)
def test_a_prefix_and_embeddings_may_be_too_long_together(models: Any, ids: torch.Tensor) -> None:
    embeds = models[0].get_input_embeddings()(ids).detach()
    for model in models:
        with pytest.raises(ValueError, match=r"the prompt has 21 tokens and max_length is 20|Input length"):
            model.generate(torch.cat([ids, ids], 1)[:, :12], inputs_embeds=embeds, max_length=20)


@pytest.mark.parametrize("models", CLASSES, indirect=True)
@pytest.mark.parametrize("prefix", [3, 9, 12])
def test_a_prefix_does_not_move_the_embeddings(models: Any, ids: torch.Tensor, prefix: int) -> None:
    """Embeddings of tokens are read as the tokens are, whatever the result is to begin with, mask or none."""
    ours = models[0]
    embeds = ours.get_input_embeddings()(ids).detach()
    wanted = ours.generate(ids, **GREEDY)[:, 9:]
    before = torch.cat([ids, ids], 1)[:, :prefix]
    for given in ({}, {"attention_mask": torch.ones_like(ids)}, {"prefill_chunk_size": 4}):
        out = ours.generate(before, inputs_embeds=embeds, **given, **GREEDY)
        assert torch.equal(out, torch.cat([before, wanted], 1))


@pytest.mark.parametrize("models", CACHED, indirect=True)
def test_embeddings_with_padding_and_positions(models: Any, ids: torch.Tensor, mask: torch.Tensor) -> None:
    embeds = models[0].get_input_embeddings()(ids).detach()
    both(models, inputs_embeds=embeds, attention_mask=mask, **GREEDY)
    both(models, ids, inputs_embeds=embeds, attention_mask=mask, **GREEDY)
    positions = torch.arange(9).repeat(3, 1) + torch.tensor([[0], [5], [20]])
    both(models, ids, position_ids=positions, **GREEDY)
    both(models, inputs_embeds=embeds, position_ids=positions, **GREEDY)


@pytest.mark.parametrize("models", ["GPT2LMHeadModel", "OpenAIGPTLMHeadModel"], indirect=True)
def test_types_of_tokens(models: Any, ids: torch.Tensor, mask: torch.Tensor) -> None:
    types = torch.randint(0, 90, (3, 9), generator=torch.Generator().manual_seed(2))
    both(models, ids, token_type_ids=types, **GREEDY)
    both(models, ids, token_type_ids=types, attention_mask=mask, **GREEDY)


@pytest.mark.parametrize("models", CACHED, indirect=True)
def test_a_mask_of_four_dimensions_is_refused_by_both(models: Any, ids: torch.Tensor) -> None:
    whole = torch.ones(3, 1, 9, 9, dtype=torch.bool).tril()
    for model in models:
        with pytest.raises(ValueError, match=r"attention_mask has shape \(3, 1, 9, 9\)|must be 2D"):
            model.generate(ids, attention_mask=whole, **GREEDY)
