"""`generate` gives what the reference gives: token for token, seeded sampling included, and score for score."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch

transformers = pytest.importorskip("transformers")

VOCABULARY, PAD, EOS = 300, 0, 2


def both(pair: Any, *args: Any, seed: int = 11, **kwargs: Any) -> list[Any]:
    """Run both libraries from the same state of the global generator; return (ours, reference)."""
    results = []
    for model in pair:
        torch.manual_seed(seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            results.append(model.generate(*copy.deepcopy(args), **copy.deepcopy(kwargs)))
    return results


def assert_same(pair: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
    ours, reference = both(pair, *args, **kwargs)
    assert ours.shape == reference.shape
    assert torch.equal(ours, reference)
    return ours


def left_padded() -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.randint(3, VOCABULARY, (4, 9), generator=torch.Generator().manual_seed(3))
    mask = torch.ones_like(ids)
    for row, padding in enumerate((0, 3, 8, 1)):
        ids[row, :padding], mask[row, :padding] = PAD, 0
    return ids, mask


STRATEGIES: list[dict[str, Any]] = [
    {},
    {"do_sample": True},  # top_k is 50 by default
    {"do_sample": True, "top_k": 0},
    {"do_sample": True, "top_k": 5},
    {"do_sample": True, "top_k": 1000, "temperature": 1.7},
    {"do_sample": True, "top_k": None, "temperature": 0.6},
    {"do_sample": True, "top_k": 0, "top_p": 0.7},
    {"do_sample": True, "top_p": 0.9, "temperature": 1.3},
    {"do_sample": True, "top_k": 0, "min_p": 0.1},
    {"do_sample": True, "min_p": 0.02, "top_p": 0.95, "top_k": 40, "temperature": 0.8},
    {"repetition_penalty": 1.4},
    {"do_sample": True, "repetition_penalty": 0.8, "top_p": 0.8},
    {"do_sample": True, "repetition_penalty": 2.0, "temperature": 2.0, "min_p": 0.01},
]


@pytest.mark.parametrize("options", STRATEGIES, ids=str)
def test_two_hundred_tokens_of_a_batch(pair: Any, prompt: torch.Tensor, options: dict[str, Any]) -> None:
    out = assert_same(pair, prompt, max_new_tokens=200, eos_token_id=None, pad_token_id=PAD, **options)
    assert out.shape == (3, 207)


@pytest.mark.parametrize("options", STRATEGIES, ids=str)
def test_left_padded_batches(pair: Any, options: dict[str, Any]) -> None:
    ids, mask = left_padded()
    out = assert_same(pair, ids, attention_mask=mask, max_new_tokens=30, pad_token_id=PAD, **options)
    if not options.get("do_sample"):  # and each row gives what it gives alone
        model = pair.ours
        for row in range(4):
            alone = model.generate(ids[row : row + 1, mask[row] == 1], max_new_tokens=30, pad_token_id=PAD, **options)
            new = alone[0, int(mask[row].sum()) :]
            assert torch.equal(out[row, 9 : 9 + len(new)], new)


@pytest.mark.parametrize("sampling", [{}, {"do_sample": True, "temperature": 1.5}], ids=str)
@pytest.mark.parametrize(
    "stops",
    [
        {"eos_token_id": 20},
        {"eos_token_id": list(range(10, 30)), "pad_token_id": 7},
        {"eos_token_id": list(range(3, 200)), "min_new_tokens": 9, "pad_token_id": PAD},
        {"eos_token_id": list(range(3, 200)), "min_length": 20, "pad_token_id": PAD},
        {"eos_token_id": list(range(3, 200)), "min_length": 3, "pad_token_id": PAD},
        {"eos_token_id": 20, "max_length": 30},
        {"eos_token_id": [20, 20], "max_length": 30, "min_length": 25, "min_new_tokens": 2},
    ],
    ids=str,
)
def test_ends(pair: Any, prompt: torch.Tensor, stops: dict[str, Any], sampling: dict[str, Any]) -> None:
    length = {} if "max_length" in stops else {"max_new_tokens": 40}
    assert_same(pair, prompt, **stops, **sampling, **length)


def test_rows_that_finish_early_are_padded(pair: Any, prompt: torch.Tensor) -> None:
    out = assert_same(
        pair, prompt, do_sample=True, eos_token_id=list(range(3, 100)), pad_token_id=PAD, max_new_tokens=100, top_k=0
    )
    assert (out == PAD).any()
    first_pad = (out == PAD).int().argmax(dim=1)
    for row, start in enumerate(first_pad.tolist()):
        if start:
            assert (out[row, start:] == PAD).all()


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("padded", [False, True])
def test_several_sequences_of_each_prompt(pair: Any, rows: int, padded: bool) -> None:
    ids, mask = left_padded()
    ids, mask = (
        (ids[1 : rows + 1], mask[1 : rows + 1]) if padded else (ids[:1].repeat(rows, 1), mask[:1].repeat(rows, 1))
    )
    out = assert_same(
        pair,
        ids,
        attention_mask=mask,
        do_sample=True,
        num_return_sequences=3,
        max_new_tokens=50,
        repetition_penalty=1.2,
        pad_token_id=PAD,
    )
    assert out.shape[0] == 3 * rows


def test_the_default_length_is_twenty_new_tokens_up_to_the_last_position(pair: Any, prompt: torch.Tensor) -> None:
    assert assert_same(pair, prompt, eos_token_id=None, pad_token_id=PAD).shape == (3, 27)
    long = prompt.repeat(1, 36)[:, :250]
    assert assert_same(pair, long, eos_token_id=None, pad_token_id=PAD).shape == (3, 256)


def test_the_last_token_needs_no_position(pair: Any, prompt: torch.Tensor) -> None:
    long = prompt.repeat(1, 37)[:, :256]
    assert assert_same(pair, long, max_new_tokens=1, eos_token_id=None, pad_token_id=PAD).shape == (3, 257)


def test_without_a_prompt_it_begins_with_bos(pair: Any) -> None:
    out = assert_same(pair, do_sample=True, max_new_tokens=20)
    assert out[0, 0] == 1


def test_masks_inferred_from_padding_tokens(pair: Any) -> None:
    ids, mask = left_padded()
    out = assert_same(pair, ids, pad_token_id=PAD, max_new_tokens=40)
    assert torch.equal(out, pair.ours.generate(ids, attention_mask=mask, pad_token_id=PAD, max_new_tokens=40))


def test_masks_with_holes_skip_positions(pair: Any, prompt: torch.Tensor) -> None:
    mask = torch.ones_like(prompt)
    mask[0, 2:4] = mask[1, 0] = mask[1, 5] = 0
    assert_same(pair, prompt, attention_mask=mask, pad_token_id=PAD, max_new_tokens=60, do_sample=True)


def test_given_positions_and_token_types_go_on(pair: Any, prompt: torch.Tensor) -> None:
    positions = torch.arange(7).repeat(3, 1) + torch.tensor([[0], [5], [40]])
    types = torch.randint(0, VOCABULARY, (3, 7))
    for cached in (True, False):
        assert_same(
            pair,
            prompt,
            position_ids=positions,
            token_type_ids=types,
            max_new_tokens=40,
            pad_token_id=PAD,
            use_cache=cached,
        )


@pytest.mark.parametrize("padded", [False, True])
def test_without_a_cache(pair: Any, padded: bool) -> None:
    ids, mask = left_padded()
    if not padded:
        ids, mask = ids[:1], mask[:1]
    out = assert_same(pair, ids, attention_mask=mask, use_cache=False, max_new_tokens=40, pad_token_id=PAD)
    assert torch.equal(out, pair.ours.generate(ids, attention_mask=mask, max_new_tokens=40, pad_token_id=PAD))
    assert_same(
        pair,
        ids,
        attention_mask=mask,
        use_cache=False,
        max_new_tokens=20,
        pad_token_id=PAD,
        do_sample=True,
        num_return_sequences=2,
    )


@pytest.mark.parametrize(
    "options", [{}, {"max_length": 40}, {"max_new_tokens": 30, "repetition_penalty": 1.5}], ids=str
)
def test_prompts_of_embeddings(pair: Any, prompt: torch.Tensor, options: dict[str, Any]) -> None:
    embeds = pair.ours.transformer.wte(prompt).detach()
    options = options | {"eos_token_id": None, "pad_token_id": PAD}
    alone = assert_same(pair, inputs_embeds=embeds, **options)
    beside = assert_same(pair, prompt, inputs_embeds=embeds, **options)
    if "repetition_penalty" not in options:
        assert torch.equal(alone, pair.ours.generate(prompt, **options)[:, 7:])
        assert torch.equal(beside[:, 7:], alone)


def test_everything_that_can_be_recorded(pair: Any, make_pair: Callable[..., Any]) -> None:
    pair = make_pair(attn_implementation="eager")
    ids, mask = left_padded()
    ours, reference = both(
        pair,
        ids,
        attention_mask=mask,
        do_sample=True,
        num_return_sequences=2,
        max_new_tokens=12,
        eos_token_id=list(range(3, 40)),
        pad_token_id=PAD,
        repetition_penalty=1.2,
        top_p=0.9,
        return_dict_in_generate=True,
        output_scores=True,
        output_logits=True,
        output_attentions=True,
        output_hidden_states=True,
    )
    assert list(ours.keys()) == list(reference.keys())
    assert torch.equal(ours.sequences, reference.sequences)
    for name in ("scores", "logits"):
        for mine, theirs in zip(ours[name], reference[name], strict=True):
            torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)
    real = mask.repeat_interleave(2, dim=0).bool()
    for step, (mine, theirs) in enumerate(zip(ours.hidden_states, reference.hidden_states, strict=True)):
        for a, b in zip(mine, theirs, strict=True):
            assert a.shape == b.shape
            rows = real if step == 0 else slice(None)  # what stands at padding is nobody's
            torch.testing.assert_close(a[rows], b[rows], atol=1e-4, rtol=1e-4)
    for step, (mine, theirs) in enumerate(zip(ours.attentions, reference.attentions, strict=True)):
        for a, b in zip(mine, theirs, strict=True):
            assert a.shape == b.shape
            if step:
                torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)
    assert ours.past_key_values.get_seq_length() == reference.past_key_values.get_seq_length()


def test_a_cache_goes_on_in_the_next_turn(pair: Any, prompt: torch.Tensor) -> None:
    more = torch.randint(3, VOCABULARY, (3, 4))
    final = []
    for model in pair:
        first = model.generate(
            prompt, max_new_tokens=9, eos_token_id=None, pad_token_id=PAD, return_dict_in_generate=True
        )
        text = torch.cat([first.sequences, more], dim=1)
        again = model.generate(
            text, past_key_values=first.past_key_values, max_new_tokens=30, eos_token_id=None, pad_token_id=PAD
        )
        final.append(again)
    assert torch.equal(final[0], final[1])
    fresh = pair.ours.generate(text, max_new_tokens=30, eos_token_id=None, pad_token_id=PAD)
    assert torch.equal(final[0], fresh)


def test_a_cache_of_a_padded_batch_and_only_the_new_tokens(pair: Any) -> None:
    ids, mask = left_padded()
    more = torch.randint(3, VOCABULARY, (4, 5))
    final = []
    for model in pair:
        first = model.generate(
            ids,
            attention_mask=mask,
            max_new_tokens=6,
            eos_token_id=None,
            pad_token_id=PAD,
            return_dict_in_generate=True,
        )
        new = torch.cat([first.sequences[:, -1:], more], dim=1)  # the last token was never read
        longer = torch.cat([mask, torch.ones(4, 11, dtype=torch.long)], dim=1)
        final.append(
            model.generate(
                new,
                attention_mask=longer,
                past_key_values=first.past_key_values,
                max_new_tokens=20,
                eos_token_id=None,
                pad_token_id=PAD,
            )
        )
    assert torch.equal(final[0], final[1])
    whole = torch.cat([first.sequences, more], dim=1)
    fresh = pair.ours.generate(whole, attention_mask=longer, max_new_tokens=20, eos_token_id=None, pad_token_id=PAD)
    assert torch.equal(final[0][:, 6:], fresh[:, 20:])


STOPS: list[Any] = ["stop", [" st", "zz"], ["e"], ["op. St", "pp", "é"], ["漢"], ["<eos>"], ["\ufffd"]]


@pytest.mark.parametrize("stop_strings", STOPS, ids=str)
def test_stop_strings(pair: Any, make_tokenizer: Callable[[], Any], stop_strings: Any) -> None:
    tokenizer = make_tokenizer()
    for seed in range(3):
        texts = tokenizer(["The st", "Nobody sto"], return_tensors="pt", padding=True, padding_side="left")
        texts.pop("token_type_ids", None)
        assert_same(
            pair,
            **texts,
            seed=seed,
            do_sample=True,
            top_k=0,
            stop_strings=stop_strings,
            tokenizer=tokenizer,
            max_new_tokens=60,
            pad_token_id=PAD,
            eos_token_id=EOS if seed % 2 else None,
        )


def test_own_processors_criteria_and_config(pair: Any, prompt: torch.Tensor) -> None:
    def no_even(input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        assert input_ids.is_contiguous()
        scores = scores.clone()
        scores[:, ::2] = -float("inf")
        return scores

    def third_row_stops(input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        return torch.tensor([input_ids.shape[1] > 40, input_ids.shape[1] > 20, input_ids[2, -1] % 3 == 0])

    for kwargs in (
        {
            "generation_config": {
                "do_sample": True,
                "temperature": 0.9,
                "max_new_tokens": 50,
                "eos_token_id": list(range(9)),
            }
        },
        {"generation_config": {"max_length": 50}, "top_k": 7, "do_sample": True},
    ):
        results = []
        for model, kind in zip(pair, (None, transformers.GenerationConfig), strict=True):
            if kind is None:
                from quintet.generation import GenerationConfig as kind
            torch.manual_seed(4)
            options = kwargs | {"generation_config": kind(**kwargs["generation_config"], pad_token_id=PAD)}
            results.append(
                model.generate(prompt, logits_processor=[no_even], stopping_criteria=[third_row_stops], **options)
            )
        assert torch.equal(*results)


def test_a_large_vocabulary(make_pair: Callable[..., Any]) -> None:
    """Above a few thousand entries top_p leaves out of its sort what top_k has ruled out."""
    pair = make_pair(vocab_size=6000, n_embd=16)
    ids = torch.randint(3, 6000, (2, 5))
    for options in (
        {"top_p": 0.6},
        {"top_p": 0.95, "top_k": 200},
        {"top_p": 0.8, "top_k": 0},
        {"top_k": 3, "top_p": 0.5},
    ):
        assert_same(pair, ids, do_sample=True, max_new_tokens=40, eos_token_id=None, pad_token_id=PAD, **options)


def test_half_precision(pair: Any, prompt: torch.Tensor) -> None:
    halves = [copy.deepcopy(model).to(torch.bfloat16) for model in pair]
    assert_same(halves, prompt[:1], max_new_tokens=20, do_sample=True, top_p=0.9)
