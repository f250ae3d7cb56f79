"""Beam search gives what the reference gives: token for token, seeded sampling included, and score for score."""

from __future__ import annotations

import copy
import random
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch

transformers = pytest.importorskip("transformers")

PAD, EOS = 7, 2
RECORD = {"return_dict_in_generate": True, "output_scores": True, "output_logits": True}


def both(pair: Any, *args: Any, seed: int = 11, **kwargs: Any) -> list[Any]:
    """Run both libraries from the same state of the global generator; return (ours, reference)."""
    results = []
    for model in pair:
        torch.manual_seed(seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            results.append(model.generate(*copy.deepcopy(args), **copy.deepcopy(kwargs)))
    return results


def rounding(scores: torch.Tensor) -> float:
    """Give the absolute error that sums in another order may make: a difference of large logits keeps their error.

    This model's logits reach 11 in size, and the reference's own lie up to 2.3e-5 from the same model's in float64.
    """
    return max(1e-5, 2e-6 * float(scores[scores.isfinite()].abs().max()))


def assert_same(pair: Any, *args: Any, **kwargs: Any) -> Any:
    """Compare everything that is returned; return our result."""
    ours, reference = both(pair, *args, **{"pad_token_id": PAD, **RECORD, **kwargs})
    assert type(ours).__name__ == type(reference).__name__ == "GenerateBeamDecoderOnlyOutput"
    # Behind shorter texts, and without an eos id, the reference writes -1, which no tokenizer can decode.
    assert torch.equal(ours.sequences, reference.sequences.masked_fill(reference.sequences < 0, PAD))
    assert torch.equal(ours.beam_indices, reference.beam_indices)
    assert ours.beam_indices.dtype == reference.beam_indices.dtype
    torch.testing.assert_close(ours.sequences_scores, reference.sequences_scores, atol=1e-5, rtol=1e-5)
    for name in ("scores", "logits"):
        assert len(ours[name]) == len(reference[name])
        for mine, theirs in zip(ours[name], reference[name], strict=True):
            torch.testing.assert_close(mine, theirs, atol=rounding(theirs), rtol=1e-5)
    return ours


def left_padded(vocabulary: int = 60) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.randint(8, vocabulary, (4, 9), generator=torch.Generator().manual_seed(3))
    mask = torch.ones_like(ids)
    for row, padding in enumerate((0, 3, 8, 1)):
        ids[row, :padding], mask[row, :padding] = PAD, 0
    return ids, mask


OPTIONS: list[dict[str, Any]] = [
    {},
    {"num_beams": 2, "num_return_sequences": 1},
    {"num_beams": 9, "num_return_sequences": 9},
    {"early_stopping": True},
    {"early_stopping": "never"},
    {"early_stopping": "never", "length_penalty": 2.0},
    {"early_stopping": "never", "length_penalty": -0.5},
    {"length_penalty": 0.0},
    {"length_penalty": -2.0, "early_stopping": True},
    {"length_penalty": 3.5},
    {"repetition_penalty": 1.4},
    {"no_repeat_ngram_size": 2},
    {"min_new_tokens": 9},
    {"min_length": 14, "early_stopping": True},
    {"use_cache": False},
    {"max_length": 25, "max_new_tokens": None},
    {"do_sample": True},
    {"do_sample": True, "top_k": 3},
    {"do_sample": True, "top_k": 0, "temperature": 0.4},
    {"do_sample": True, "top_k": 0, "top_p": 0.3, "temperature": 1.5},
    {"do_sample": True, "top_k": 20, "min_p": 0.2, "early_stopping": True},
    {"do_sample": True, "repetition_penalty": 1.2, "length_penalty": 2.0, "num_beams": 6},
]
ENDS: list[Any] = [None, EOS, list(range(8, 40)), [20, 20, 33]]


@pytest.mark.parametrize("eos", ENDS, ids=["none", "one", "many", "twice"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_left_padded_batches(exact_pair: Any, options: dict[str, Any], eos: Any) -> None:
    ids, mask = left_padded()
    kwargs: dict[str, Any] = {"num_beams": 4, "num_return_sequences": 3, "max_new_tokens": 20, "eos_token_id": eos}
    out = assert_same(exact_pair, ids, attention_mask=mask, **kwargs | options)
    assert out.sequences.shape[0] == 4 * options.get("num_return_sequences", 3)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"early_stopping": True, "length_penalty": 0.5, "num_return_sequences": 4},
        {"do_sample": True, "top_k": 10, "num_return_sequences": 2},
        {"early_stopping": "never", "repetition_penalty": 1.3, "num_beams": 3},
    ],
    ids=str,
)
def test_every_family(family_pair: Any, options: dict[str, Any]) -> None:
    ids, mask = left_padded(family_pair.ours.config.vocab_size)
    for eos in (None, list(range(8, 24))):
        assert_same(
            family_pair,
            ids,
            attention_mask=mask,
            **{"num_beams": 4, "max_new_tokens": 16, "eos_token_id": eos} | options,
        )


def random_case(seed: int) -> dict[str, Any]:
    """Draw options that go together."""
    rng = random.Random(seed)
    beams = rng.randint(2, 6)
    case: dict[str, Any] = {
        "num_beams": beams,
        "num_return_sequences": rng.randint(1, beams),
        "length_penalty": rng.choice([-1.0, 0.0, 0.7, 1.0, 2.0]),
        "early_stopping": rng.choice([True, False, "never"]),
        "max_new_tokens": rng.randint(1, 24),
        "eos_token_id": rng.choice([None, 5, sorted(rng.sample(range(8, 300), rng.randint(1, 120)))]),
        "do_sample": rng.random() < 0.5,
    }
    if rng.random() < 0.3:
        case["repetition_penalty"] = rng.choice([0.8, 1.5])
    if rng.random() < 0.3:
        case["min_new_tokens"] = rng.randint(0, case["max_new_tokens"])
    if case["do_sample"]:
        case |= {"top_k": rng.choice([0, 2, 50]), "top_p": rng.choice([0.2, 0.9, 1.0])}
        case |= {"temperature": rng.choice([0.5, 1.0, 2.0])}
    return case


@pytest.mark.parametrize("seed", range(25))
def test_random_options(pair: Any, seed: int) -> None:
    ids, mask = left_padded()
    rows, case = 1 + seed % 4, random_case(seed)
    out = assert_same(pair, ids[:rows], attention_mask=mask[:rows], seed=seed, **case)
    torch.manual_seed(seed)  # without a record, prompts that are settled leave the batch
    plain = pair.ours.generate(ids[:rows], attention_mask=mask[:rows], pad_token_id=PAD, **case)
    assert torch.equal(plain, out.sequences)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(25, 325))
def test_many_random_options(pair: Any, seed: int) -> None:
    ids, mask = left_padded()
    rows, case = 1 + seed % 4, random_case(seed)
    out = assert_same(pair, ids[:rows], attention_mask=mask[:rows], seed=seed, **case)
    torch.manual_seed(seed)  # without a record, prompts that are settled leave the batch
    plain = pair.ours.generate(ids[:rows], attention_mask=mask[:rows], pad_token_id=PAD, **case)
    assert torch.equal(plain, out.sequences)


def test_the_plain_result(pair: Any, prompt: torch.Tensor) -> None:
    for options in ({}, {"do_sample": True}, {"num_return_sequences": 2}):
        ours, reference = both(pair, prompt, num_beams=3, max_new_tokens=15, pad_token_id=PAD, **options)
        assert torch.equal(ours, reference)


def test_long_texts(pair: Any, prompt: torch.Tensor) -> None:
    assert assert_same(pair, prompt, num_beams=4, max_new_tokens=150, eos_token_id=None).sequences.shape == (3, 157)


def test_without_a_prompt_it_begins_with_bos(pair: Any) -> None:
    assert assert_same(pair, num_beams=3, max_new_tokens=10).sequences[0, 0] == 1


def test_up_to_the_last_position(pair: Any, prompt: torch.Tensor) -> None:
    long = prompt.repeat(1, 36)[:2, :250]
    assert_same(pair, long, num_beams=2, max_length=257)


@pytest.mark.parametrize("beside", [False, True])
def test_prompts_of_embeddings(pair: Any, prompt: torch.Tensor, beside: bool) -> None:
    embeds = pair.ours.transformer.wte(prompt).detach()
    args = (prompt,) if beside else ()
    assert_same(pair, *args, inputs_embeds=embeds, num_beams=3, max_new_tokens=12, eos_token_id=list(range(8, 40)))


def test_a_cache_goes_on_in_the_next_turn(pair: Any, prompt: torch.Tensor) -> None:
    """The reference wants a cache with a row for each beam; ours repeats the rows, and leaves the caller's alone."""
    model, options = pair.ours, {"num_beams": 3, "max_new_tokens": 12, "eos_token_id": None, "pad_token_id": PAD}
    first = model.generate(prompt, max_new_tokens=9, eos_token_id=None, pad_token_id=PAD, return_dict_in_generate=True)
    text = torch.cat([first.sequences, torch.randint(8, 300, (3, 4))], dim=1)
    _, wanted = both(pair, text, **options)
    for _ in range(2):
        assert torch.equal(model.generate(text, past_key_values=first.past_key_values, **options), wanted)


def test_stop_strings(pair: Any, make_tokenizer: Callable[[], Any]) -> None:
    tokenizer = make_tokenizer()
    texts = tokenizer(["The st", "Nobody sto"], return_tensors="pt", padding=True, padding_side="left")
    texts.pop("token_type_ids", None)
    for stop_strings in ("e", [" st", "pp", "t"]):
        for do_sample in (False, True):
            assert_same(
                pair,
                **texts,
                do_sample=do_sample,
                stop_strings=stop_strings,
                tokenizer=tokenizer,
                num_beams=4,
                num_return_sequences=4,
                max_new_tokens=25,
                pad_token_id=0,
                eos_token_id=EOS,
            )


def test_own_processors_and_criteria(pair: Any, prompt: torch.Tensor) -> None:
    def no_even(input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        assert input_ids.shape[0] == scores.shape[0]
        scores = scores.clone()
        scores[:, ::2] = -float("inf")
        scores[torch.arange(len(scores)), input_ids[:, -1]] -= 3  # what the beam has just said
        return scores

    def ends(input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        assert len(scores) == input_ids.shape[1] - 7
        return (input_ids[:, -3:].sum(dim=1) % 5 == 0) & (input_ids.shape[1] > 12)

    for options in ({}, {"do_sample": True}, {"early_stopping": True, "num_return_sequences": 4}):
        for eos in (EOS, list(range(9, 31))):
            assert_same(
                pair,
                prompt,
                logits_processor=[no_even],
                stopping_criteria=[ends],
                num_beams=4,
                max_new_tokens=20,
                eos_token_id=eos,
                **options,
            )


def test_max_time_ends_every_beam(pair: Any, prompt: torch.Tensor) -> None:
    out = assert_same(pair, prompt, num_beams=3, max_new_tokens=50, max_time=1e-9, num_return_sequences=3)
    assert out.sequences.shape == (9, 8)


def test_a_criterion_that_ends_everything_at_once(pair: Any, prompt: torch.Tensor) -> None:
    assert_same(
        pair,
        prompt,
        num_beams=3,
        num_return_sequences=3,
        max_new_tokens=9,
        stopping_criteria=[lambda ids, scores: torch.full((len(ids),), ids.shape[1] > 9)],
    )


def test_few_tokens_are_allowed(pair: Any, prompt: torch.Tensor) -> None:
    """Fewer live candidates than beams: places without a text stay behind."""

    def two(input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return torch.full_like(scores, -float("inf")).index_copy(1, torch.tensor([9, 12]), scores[:, [9, 12]])

    for eos in (None, 12, [9, 12]):
        for early_stopping in (True, False):
            assert_same(
                pair,
                prompt,
                logits_processor=[two],
                num_beams=4,
                num_return_sequences=2,
                max_new_tokens=6,
                eos_token_id=eos,
                early_stopping=early_stopping,
            )


def test_everything_that_can_be_recorded(make_pair: Callable[..., Any]) -> None:
    pair = make_pair(attn_implementation="eager")
    ids, mask = left_padded()
    options: dict[str, Any] = {"num_beams": 3, "num_return_sequences": 2, "max_new_tokens": 8, "pad_token_id": PAD}
    options |= {"eos_token_id": list(range(8, 40)), "output_attentions": True, "output_hidden_states": True} | RECORD
    ours, reference = both(pair, ids, attention_mask=mask, **options)
    assert list(ours.keys()) == list(reference.keys())
    assert torch.equal(ours.sequences, reference.sequences)
    real = mask.repeat_interleave(3, dim=0).bool()
    for step, (mine, theirs) in enumerate(zip(ours.hidden_states, reference.hidden_states, strict=True)):
        for a, b in zip(mine, theirs, strict=True):
            rows = real if step == 0 else slice(None)  # what stands at padding is nobody's
            torch.testing.assert_close(a[rows], b[rows], atol=1e-4, rtol=1e-4)
    for step, (mine, theirs) in enumerate(zip(ours.attentions, reference.attentions, strict=True)):
        for a, b in zip(mine, theirs, strict=True):
            assert a.shape == b.shape
            if step:
                torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)
    cache, theirs = ours.past_key_values, reference.past_key_values
    assert cache.get_seq_length() == theirs.get_seq_length()
    real = torch.cat([mask, mask.new_ones(4, cache.get_seq_length() - 9)], dim=1).repeat_interleave(3, dim=0).bool()
    for layer in range(2):
        keys, wanted = cache[layer][0].transpose(1, 2), theirs.layers[layer].keys.transpose(1, 2)  # (R, S, H, D)
        torch.testing.assert_close(keys[real], wanted[real], atol=1e-4, rtol=1e-4)


def test_fields_that_were_not_asked_for(pair: Any, prompt: torch.Tensor) -> None:
    ours, reference = both(pair, prompt, num_beams=2, max_new_tokens=4, return_dict_in_generate=True)
    assert list(ours.keys()) == list(reference.keys()) == ["sequences", "beam_indices", "past_key_values"]


@pytest.mark.parametrize(
    "options", [{}, {"num_return_sequences": 3, "length_penalty": 0.4}, {"do_sample": True}], ids=str
)
def test_transition_scores(pair: Any, options: dict[str, Any]) -> None:
    ids, mask = left_padded()
    kwargs = {"num_beams": 3, "max_new_tokens": 14, "eos_token_id": list(range(8, 30)), "pad_token_id": PAD}
    for normalize in (False, True):
        results = [
            model.compute_transition_scores(out.sequences, out.scores, out.beam_indices, normalize)
            for model, out in zip(pair, both(pair, ids, attention_mask=mask, **RECORD | kwargs | options), strict=True)
        ]
        torch.testing.assert_close(*results, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("do_sample", [False, True])
def test_transition_scores_without_beams(pair: Any, prompt: torch.Tensor, do_sample: bool) -> None:
    results = []
    for model, out in zip(pair, both(pair, prompt, do_sample=do_sample, pad_token_id=PAD, **RECORD), strict=True):
        results.append(model.compute_transition_scores(out.sequences, out.logits, normalize_logits=True))
    torch.testing.assert_close(*results, atol=1e-5, rtol=1e-5)


def test_half_precision(pair: Any, prompt: torch.Tensor) -> None:
    halves = [copy.deepcopy(model).to(torch.bfloat16) for model in pair]
    ours, reference = both(halves, prompt[:1], num_beams=3, max_new_tokens=12, pad_token_id=PAD)
    assert torch.equal(ours, reference)
