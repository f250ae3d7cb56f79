"""Assisted generation and prompt lookup beside the reference: token for token, score for score."""

from __future__ import annotations

import copy
import warnings
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from drafts import disturbed, tokens

transformers = pytest.importorskip("transformers")

DRAFTING = ("prompt_lookup_num_tokens", "max_matching_ngram_size")
SHOWN = {"return_dict_in_generate": True, "output_scores": True, "output_logits": True}


def both(pair: Any, drafts: tuple[Any, Any] | None, ids: torch.Tensor, **given: Any) -> list[Any]:
    """Run both libraries; return (ours, reference)."""
    results = []
    for place, model in enumerate(pair):
        more = {} if drafts is None else {"assistant_model": drafts[place]}
        if place and pair.ours.config.model_type == "openai-gpt":  # the reference's has no cache: its plain greedy text
            more, given = {}, {name: value for name, value in given.items() if name not in DRAFTING}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            results.append(model.generate(ids, **SHOWN, **copy.deepcopy(given), **more))
    return results


def assert_same(pair: Any, drafts: tuple[Any, Any] | None, ids: torch.Tensor, **given: Any) -> torch.Tensor:
    ours, reference = both(pair, drafts, ids, **given)
    assert torch.equal(ours.sequences, reference.sequences)
    for name in ("scores", "logits"):
        assert len(ours[name]) == ours.sequences.shape[1] - ids.shape[1]
        for one, two in zip(ours[name], reference[name], strict=True):
            torch.testing.assert_close(one, two, atol=1e-4, rtol=1e-5)
    assert ours.past_key_values.get_seq_length() == ours.sequences.shape[1] - 1
    return ours.sequences


@pytest.fixture(scope="module")
def family_drafts(family_pair: Any) -> tuple[Any, Any]:
    """A draft model that is often right, in both libraries."""
    return _drafts(family_pair)


@pytest.fixture(scope="module")
def drafts(pair: Any) -> tuple[Any, Any]:
    """The same for GPT-2."""
    return _drafts(pair)


def _drafts(pair: Any) -> tuple[Any, Any]:
    ours = disturbed(pair.ours, 0.03)
    with TemporaryDirectory() as folder:
        ours.save_pretrained(folder)
        reference = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return ours, reference.eval()


@pytest.mark.parametrize("padding", [0, 3])
def test_draft_models_of_every_family(family_pair: Any, family_drafts: tuple[Any, Any], padding: int) -> None:
    ids = tokens(1, 9)
    mask = (torch.arange(9) >= padding).long()[None]
    out = assert_same(
        family_pair, family_drafts, ids, attention_mask=mask, max_new_tokens=30, eos_token_id=None, pad_token_id=0
    )
    assert out.shape == (1, 39)


def test_lookup_in_every_family(family_pair: Any) -> None:
    ids = torch.cat([tokens(1, 5)] * 3, dim=1)
    mask = torch.ones_like(ids)
    for count, size in ((3, 2), (10, 3), (1, 1)):
        assert_same(
            family_pair,
            None,
            ids,
            attention_mask=mask,
            max_new_tokens=30,
            eos_token_id=None,
            pad_token_id=0,
            prompt_lookup_num_tokens=count,
            max_matching_ngram_size=size,
        )


@pytest.mark.parametrize(
    "given",
    [
        {"num_assistant_tokens": 1},
        {"repetition_penalty": 1.4},
        {"no_repeat_ngram_size": 2},
        {"suppress_tokens": list(range(100, 200)), "bad_words_ids": [[7, 8], [9]]},
        {"eos_token_id": list(range(3, 40))},
        {"eos_token_id": list(range(3, 100)), "min_new_tokens": 12},
        {"eos_token_id": list(range(3, 100)), "min_length": 20},
        {"max_length": 12},
    ],
    ids=str,
)
@pytest.mark.parametrize("way", ["draft", "lookup"])
def test_options(pair: Any, drafts: tuple[Any, Any], given: dict[str, Any], way: str) -> None:
    more: dict[str, Any] = {"pad_token_id": 0, "eos_token_id": None} | given
    more |= {} if "max_length" in given else {"max_new_tokens": 40}
    ids = torch.cat([tokens(1, 5)] * 2, dim=1)
    if way == "lookup":
        more.pop("num_assistant_tokens", None)
        more["prompt_lookup_num_tokens"] = 4
    assert_same(pair, drafts if way == "draft" else None, ids, **more)


def test_collected_outputs(pair: Any, drafts: tuple[Any, Any]) -> None:
    shown: dict[str, Any] = {"output_attentions": True, "output_hidden_states": True}
    old = [model.config._attn_implementation for model in pair]
    for model in pair:
        model.config._attn_implementation = "eager"
    try:
        ours, reference = both(
            pair, drafts, tokens(1, 6), max_new_tokens=15, eos_token_id=None, pad_token_id=0, **shown
        )
    finally:
        for model, name in zip(pair, old, strict=True):
            model.config._attn_implementation = name
    assert torch.equal(ours.sequences, reference.sequences)
    for name in ("attentions", "hidden_states"):
        assert len(ours[name]) == 15
        for one, two in zip(ours[name], reference[name], strict=True):
            for mine, other in zip(one, two, strict=True):
                torch.testing.assert_close(mine, other[..., : mine.shape[-1]], atol=1e-4, rtol=1e-4)


def test_a_heuristic_schedule_ends_where_the_reference_ends(pair: Any) -> None:
    copies = [copy.deepcopy(model) for model in _drafts(pair)]
    for draft in copies:
        draft.generation_config.num_assistant_tokens = 4
        draft.generation_config.num_assistant_tokens_schedule = "heuristic"
        draft.generation_config.assistant_confidence_threshold = 0.0
    assert_same(pair, (copies[0], copies[1]), tokens(1, 6), max_new_tokens=40, eos_token_id=None, pad_token_id=0)
    ours, reference = (draft.generation_config.num_assistant_tokens for draft in copies)
    assert ours != 4
    assert abs(ours - reference) <= 2, "the reference drafts before it reads the prompt, and so once more"


def test_what_the_reference_refuses_is_refused(pair: Any, drafts: tuple[Any, Any]) -> None:
    for model, draft in zip(pair, drafts, strict=True):
        for given in (
            {"num_return_sequences": 2, "do_sample": True},
            {"use_cache": False},
            {"assistant_ensemble_weight": 1.0},
            {"input_ids": tokens(2, 5)},
        ):
            arguments: dict[str, Any] = {"input_ids": tokens(1, 5), "assistant_model": draft, "max_new_tokens": 4}
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                with pytest.raises(ValueError):  # each library has its own words
                    model.generate(**(arguments | given))
