"""Prompt lookup: what is copied, from where, and what a step costs."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
from drafts import made, tokens
from hypothesis import given, settings
from hypothesis import strategies as st

from quintet.errors import GenerationError
from quintet.generation.candidates import PromptLookup, cut_at_end


def test_the_text_goes_on_as_it_did() -> None:
    lookup = PromptLookup(3, 2)
    assert lookup.propose([1, 2, 3, 4, 5, 9, 1, 2], 9).ids == [3, 4, 5]
    assert lookup.propose([1, 2, 3, 4, 5, 9, 1, 2, 3, 4, 5, 9], 2).ids == [1, 2], "the copy goes on; at most two"
    assert PromptLookup(3, 2).propose([1, 2, 3], 9).ids == []
    assert PromptLookup(3, 2).propose([1], 9).ids == []
    assert PromptLookup(3, 2).propose([], 9).ids == []


def test_longer_groups_come_first_then_later_places() -> None:
    text = [5, 7, 1, 6, 7, 2, 8, 7, 3, 6, 7]
    assert PromptLookup(1, 2).propose(text, 9).ids == [2], "6 7 stood before 2"
    assert PromptLookup(1, 1).propose(text, 9).ids == [3], "7 stood before 3 last"
    assert PromptLookup(1, 5).propose(text, 9).ids == [2]


def test_a_copy_may_run_into_itself() -> None:
    assert PromptLookup(5, 2).propose([4, 8, 9, 8, 9], 9).ids == [8, 9, 8, 9, 8]


def test_a_copy_ends_with_the_text() -> None:
    assert PromptLookup(5, 1, eos=(3,)).propose([1, 2, 3, 4, 1], 9).ids == [2, 3]
    assert cut_at_end([1, 2, 3, 2], (2, 3)) == [1, 2]
    assert cut_at_end([], (2,)) == []


def test_a_copy_that_the_text_has_left_is_looked_up_again() -> None:
    lookup = PromptLookup(2, 1)
    assert lookup.propose([1, 2, 3, 4, 1], 9).ids == [2, 3]
    # The text went on with 2 and 9, not with 2 and 3.
    assert lookup.propose([1, 2, 3, 4, 1, 2, 9], 9).ids == []
    assert lookup.propose([1, 2, 3, 4, 1, 2, 9, 4], 9).ids == [1, 2]


@settings(deadline=None)
@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=60),
    st.integers(1, 4),
    st.lists(st.integers(1, 5), min_size=1, max_size=12),
)
def test_what_is_found_stood_after_the_longest_group(text: list[int], size: int, steps: list[int]) -> None:
    lookup, end = PromptLookup(1, size), 0
    for step in steps:
        end = min(end + step, len(text))
        ids = text[:end]
        found = lookup.propose(ids, 1).ids
        wanted: set[int] = set()
        for length in range(min(size, end), 0, -1):
            group = ids[-length:]
            wanted = {ids[at + length] for at in range(end - length) if ids[at : at + length] == group}
            if wanted:
                break
        going_on = {ids[at + 1] for at in range(end - 1) if ids[at] == ids[-1]}
        assert bool(found) == bool(wanted)
        assert set(found) <= wanted | going_on


def test_a_step_costs_the_same_however_long_the_text_is() -> None:
    # A copy of a long text, fed token by token: if each step looked at all of it, this would take minutes.
    text = torch.randint(0, 1000, (60_000,), generator=torch.Generator().manual_seed(0)).tolist()
    lookup, ids, right = PromptLookup(8, 2), text[:30_000] + text[:2], 0
    lookup.propose(ids, 8)
    begin = time.perf_counter()
    for place in range(2, 20_000):
        right += lookup.propose(ids, 1).ids[:1] == [text[place]]
        ids.append(text[place])
    assert time.perf_counter() - begin < 5.0
    assert right > 19_000


def _copying(period: int) -> tuple[Any, list[int]]:
    """Return a GPT-2 whose scores are those of a copy of its prompt, and the tokens that each of its passes reads."""
    model = made("gpt2", n_positions=256)
    text: list[int] = []
    reads: list[int] = []
    forward = model.forward

    def copied(input_ids: torch.Tensor, **kwargs: Any) -> Any:
        out = forward(input_ids, **kwargs)
        reads.append(input_ids.shape[1])
        length = out.past_key_values.get_seq_length()
        del text[length - input_ids.shape[1] :]  # what was rejected
        text.extend(input_ids[0].tolist())
        kept = out.logits.shape[1]
        following = [text[place + 1 - period] for place in range(length - kept, length)]
        out.logits = torch.nn.functional.one_hot(torch.tensor([following]), 99).float() * 20
        return out

    model.forward = copied
    return model, reads


@pytest.mark.parametrize("count", [1, 4, 10])
def test_a_copying_model_is_asked_once_for_many_tokens(count: int) -> None:
    model, reads = _copying(20)
    ids = tokens(1, 20)
    out = model.generate(ids, max_new_tokens=100, eos_token_id=None, prompt_lookup_num_tokens=count)
    assert torch.equal(out, ids.repeat(1, 6))
    # Once for the prompt, twice until its first two tokens stand again, then once for each `count` and one more.
    assert len(reads) <= 4 + 99 / (count + 1)


def test_lookup_options_that_are_wrong() -> None:
    model = made("gpt2")
    for bad in (0, -1, 2.5, True, "3"):
        with pytest.raises(GenerationError, match="prompt_lookup_num_tokens is .*must be an integer of at least 1"):
            model.generate(tokens(1, 5), prompt_lookup_num_tokens=bad)
        with pytest.raises(GenerationError, match="max_matching_ngram_size is .*must be an integer of at least 1"):
            model.generate(tokens(1, 5), prompt_lookup_num_tokens=3, max_matching_ngram_size=bad)
    with pytest.warns(UserWarning, match="max_matching_ngram_size=3 has no effect without prompt_lookup_num_tokens"):
        model.generate(tokens(1, 5), max_new_tokens=2, max_matching_ngram_size=3)
