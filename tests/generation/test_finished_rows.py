"""Rows that are finished leave the model's batch, and nobody can tell from the result."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from quintet.cache import DynamicCache, StaticCache
from quintet.generation.loops.active import ActiveRows

PAD = 0
ENDS = list(range(20, 50))  # so many tokens end a text that rows finish all over the run
MANY = {"max_new_tokens": 40, "eos_token_id": ENDS, "pad_token_id": PAD}


@contextmanager
def batches(model: Any) -> Iterator[list[int]]:
    """Note the number of rows of every forward pass."""
    seen: list[int] = []

    def note(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        seen.append(kwargs["input_ids"].shape[0])

    handle = model.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield seen
    finally:
        handle.remove()


def prompts(rows: int, vocabulary: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Left-padded prompts of different lengths."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(50, vocabulary, (rows, 8), generator=generator)
    mask = torch.ones_like(ids)
    for row in range(1, rows):
        padding = int(torch.randint(0, 7, (), generator=generator))
        ids[row, :padding], mask[row, :padding] = PAD, 0
    return ids, mask


OPTIONS: list[dict[str, Any]] = [
    {},
    {"do_sample": True, "top_k": 0},
    {"do_sample": True, "top_p": 0.9, "temperature": 1.3},
    {"do_sample": True, "repetition_penalty": 1.3, "no_repeat_ngram_size": 3, "min_new_tokens": 3},
    {"do_sample": True, "num_return_sequences": 3, "bad_words_ids": [[60], [61, 62]], "begin_suppress_tokens": [70]},
    {"use_cache": False, "do_sample": True},
    {"repetition_penalty": 1.2, "encoder_repetition_penalty": 1.1, "exponential_decay_length_penalty": (3, 1.05)},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_the_result_is_that_of_the_reference(family_pair: Any, options: dict[str, Any]) -> None:
    ids, mask = prompts(6, family_pair.ours.config.vocab_size, 0)
    results, rows = [], []
    for model in family_pair:
        torch.manual_seed(5)
        with batches(family_pair.ours) as seen, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            results.append(
                model.generate(ids, attention_mask=mask, **MANY | {"max_new_tokens": 25}, **copy.deepcopy(options))
            )
        rows += seen
    assert torch.equal(*results)
    if options.get("do_sample"):  # greedy, a model may end all rows at once
        assert min(rows) < max(rows)


def test_rows_are_dropped_in_the_step_after_their_end(model: Any) -> None:
    ids, mask = prompts(6, 300, 1)
    torch.manual_seed(3)
    with batches(model) as seen:
        out = model.generate(ids, attention_mask=mask, do_sample=True, top_k=0, **MANY)
    new = out[:, 8:]
    ended = (torch.isin(new, torch.tensor(ENDS)) | (new == PAD)).int()  # (B, N)
    alive = 6 - ended.sum(dim=0)
    assert seen == [6, *alive[:-1].tolist()]
    assert len(set(seen)) > 3


def test_the_global_source_goes_on_as_if_all_rows_were_there(model: Any) -> None:
    ids, mask = prompts(6, 300, 1)
    states = []
    for options in ({}, {"return_dict_in_generate": True}):
        torch.manual_seed(3)
        model.generate(ids, attention_mask=mask, do_sample=True, **MANY, **options)
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


KEEPING: list[dict[str, Any]] = [
    {"return_dict_in_generate": True},  # the result holds the cache
    {"return_dict_in_generate": True, "output_scores": True},
    {"return_dict_in_generate": True, "output_logits": True, "use_cache": False},
    {"return_dict_in_generate": True, "output_hidden_states": True},
    {"logits_processor": [lambda ids, scores: scores.roll(1, 0)]},  # a row depends on its neighbour
    {"cache_implementation": "static"},
]


@pytest.mark.parametrize("options", KEEPING, ids=lambda options: "-".join(options))
def test_rows_stay_where_somebody_would_miss_them(pair: Any, options: dict[str, Any]) -> None:
    ids, mask = prompts(6, 300, 2)
    results = []
    for model in pair:
        torch.manual_seed(4)
        with batches(pair.ours) as seen:
            results.append(model.generate(ids, attention_mask=mask, do_sample=True, **MANY, **options))
        if seen:
            assert set(seen) == {6}
    if not options.get("return_dict_in_generate"):
        assert torch.equal(*results)
        return
    ours, reference = results
    assert torch.equal(ours.sequences, reference.sequences)
    for name in ("scores", "logits"):
        for mine, theirs in zip(ours.get(name) or (), reference.get(name) or (), strict=True):
            torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)
    for step, other in zip(ours.hidden_states or (), reference.hidden_states or (), strict=True):
        for mine, theirs in zip(step, other, strict=True):
            torch.testing.assert_close(mine[:, -1], theirs[:, -1], atol=1e-4, rtol=1e-4)
    if ours.past_key_values is not None:
        real = torch.cat([mask, torch.ones(6, ours.sequences.shape[1] - 9)], dim=1).bool()
        mine = ours.past_key_values[1][0].transpose(1, 2)[real]  # (B, H, S, D) -> (tokens, H, D)
        theirs = reference.past_key_values.layers[1].keys.transpose(1, 2)[real]
        torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("cache", [DynamicCache, "static"])
def test_a_cache_of_the_caller_keeps_its_rows(model: Any, cache: Any) -> None:
    ids, _ = prompts(1, 300, 5)
    ids = ids.repeat(6, 1) + torch.arange(6)[:, None] % 3
    given = StaticCache(model.config, max_cache_len=64) if cache == "static" else cache()
    expected = model.generate(ids, **MANY)
    assert torch.equal(model.generate(ids, past_key_values=given, **MANY), expected)
    assert given.get_seq_length() == expected.shape[1] - 1
    options = {"attention_mask": torch.ones_like(expected), "max_new_tokens": 3, "eos_token_id": None}
    more = model.generate(expected, past_key_values=given, **options)
    assert torch.equal(more, model.generate(expected, **options))


def test_dropout_draws_for_all_rows(model: Any) -> None:
    twin = copy.deepcopy(model).train()
    ids, mask = prompts(6, 300, 1)
    with batches(twin) as seen:
        torch.manual_seed(3)
        twin.generate(ids, attention_mask=mask, do_sample=True, **MANY)
    assert set(seen) == {6}


def test_a_criterion_sees_all_rows(model: Any) -> None:
    ids, mask = prompts(6, 300, 1)
    shapes = set()

    def never(input_ids: torch.Tensor, scores: Any) -> torch.Tensor:
        shapes.add(input_ids.shape[0])
        assert scores is None
        return input_ids[:, -1] == 60

    torch.manual_seed(3)
    with batches(model) as seen:
        model.generate(ids, attention_mask=mask, do_sample=True, stopping_criteria=[never], **MANY)
    assert shapes == {6} and min(seen) < 6


def test_iteration_gives_all_rows(model: Any) -> None:
    ids, mask = prompts(6, 300, 1)
    options = {"attention_mask": mask, "do_sample": True, **MANY}
    torch.manual_seed(3)
    with batches(model) as seen:
        columns = list(model.generate_iter(ids, logprobs=2, **options))
    assert min(seen) < 6
    torch.manual_seed(3)
    with batches(model) as seen:
        whole = list(model.generate_iter(ids, logprobs=2, output_logits=True, **options))
    assert set(seen) == {6}
    done = [False] * 6
    for mine, other in zip(columns, whole, strict=True):
        assert mine.ids == other.ids == mine.tokens.tolist()
        assert mine.finished == other.finished
        for name in ("logprobs", "top_ids", "top_logprobs"):
            torch.testing.assert_close(getattr(mine, name), getattr(other, name))
        for row in range(6):
            if done[row]:
                assert mine.ids[row] == PAD and mine.logprobs[row] == 0
                assert mine.top_ids[row].tolist() == [PAD] * 2 and mine.top_logprobs[row].isneginf().all()
        done = mine.finished


def test_a_row_without_a_usable_token_is_named_as_the_caller_knows_it(model: Any) -> None:
    from quintet.errors import GenerationError

    ids, mask = prompts(6, 300, 1)

    def allowed(row: int, tokens: torch.Tensor) -> list[int]:
        if row == 5:
            return list(range(60, 90)) if len(tokens) < 12 else []
        return [ENDS[row]] if len(tokens) > 8 + row // 2 else [100]

    with pytest.raises(GenerationError, match=r"(row|prefix|batch).* 5"):
        model.generate(ids, attention_mask=mask, prefix_allowed_tokens_fn=allowed, **MANY)


def test_each_place_is_filled_from_the_end() -> None:
    rows = ActiveRows(6)
    done = [False] * 6
    assert rows.drop(done, torch.device("cpu")) is None and rows.index is None
    done[1] = done[4] = True
    assert rows.drop(done, torch.device("cpu")).tolist() == [0, 5, 2, 3]
    assert rows.drop(done, torch.device("cpu")) is None
    assert rows.index.tolist() == [0, 5, 2, 3]
    assert rows.spread(torch.tensor([10, 15, 12, 13]), 9).tolist() == [10, 9, 12, 13, 9, 15]
    assert rows.spread_list([10, 15, 12, 13], 9) == [10, 9, 12, 13, 9, 15]
    assert rows.pick(torch.arange(6)).tolist() == [0, 5, 2, 3]
    done[0] = done[3] = True
    assert rows.drop(done, torch.device("cpu")).tolist() == [2, 1]
    assert [rows.row(place) for place in range(2)] == [2, 5]
    done[2] = True
    assert rows.drop(done, torch.device("cpu")).tolist() == [1]
    assert rows.index.tolist() == [5]


@pytest.mark.parametrize("bad", [0, 1])
def test_a_prompt_that_ends_at_once(model: Any, bad: int) -> None:
    ids, _ = prompts(1, 300, 5)
    ids = torch.cat([ids, ids + 1])
    first = model.generate(ids, max_new_tokens=1, eos_token_id=None, pad_token_id=PAD)[:, -1].tolist()
    out = model.generate(ids, max_new_tokens=12, eos_token_id=first[bad], pad_token_id=PAD)
    alone = model.generate(ids[1 - bad :][:1], max_new_tokens=12, eos_token_id=first[bad], pad_token_id=PAD)
    assert out[bad, 8:].tolist() == [first[bad], *[PAD] * (out.shape[1] - 9)]
    assert torch.equal(out[1 - bad, : alone.shape[1]], alone[0])
