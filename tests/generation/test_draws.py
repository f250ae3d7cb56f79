"""Draws with a generator: a row's tokens depend on its prompt and its seed alone, and follow the distribution."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from quintet.errors import GenerationError
from quintet.generation.sampling import Draws, sample

PAD = 0
OPTIONS = {
    "do_sample": True,
    "top_k": 0,
    "max_new_tokens": 25,
    "pad_token_id": PAD,
    "eos_token_id": list(range(20, 40)),
}


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def texts() -> tuple[torch.Tensor, torch.Tensor]:
    """Five prompts of different lengths, padded on the left."""
    ids = torch.randint(50, 300, (5, 9), generator=seeded(4))
    mask = torch.ones_like(ids)
    for row, padding in enumerate((0, 4, 2, 7, 1)):
        ids[row, :padding], mask[row, :padding] = PAD, 0
    return ids, mask


def new_tokens(out: torch.Tensor, length: int) -> list[list[int]]:
    """The new tokens of each row, without padding."""
    return [[token for token in row if token != PAD] for row in out[:, length:].tolist()]


@pytest.fixture(scope="module")
def alone(model: Any) -> list[list[int]]:
    """What each text gives with the seed 7 by itself, without padding."""
    ids, mask = texts()
    found = []
    for row in range(5):
        own = ids[row, mask[row] == 1][None]
        found += new_tokens(model.generate(own, generator=seeded(7), **OPTIONS), own.shape[1])
    assert len({len(one) for one in found}) > 2  # they end at different places
    return found


@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4], [4, 2, 0, 3, 1], [1, 1, 3], [2]], ids=str)
@pytest.mark.parametrize("extra", [{}, {"return_dict_in_generate": True}, {"use_cache": False}], ids=str)
def test_a_row_gives_the_same_alone_and_in_any_batch(
    model: Any, alone: list[list[int]], order: list[int], extra: dict[str, Any]
) -> None:
    ids, mask = texts()
    wider = torch.nn.functional.pad(ids[order], (3, 0), value=PAD)  # further padding
    wide_mask = torch.nn.functional.pad(mask[order], (3, 0), value=0)
    for batch, masked in ((ids[order], mask[order]), (wider, wide_mask)):
        out = model.generate(batch, attention_mask=masked, generator=seeded(7), **OPTIONS, **extra)
        tokens = out.sequences if extra.get("return_dict_in_generate") else out
        assert new_tokens(tokens, batch.shape[1]) == [alone[row] for row in order]


def test_with_processors_and_in_iteration(model: Any) -> None:
    ids, mask = texts()
    options = OPTIONS | {"top_p": 0.9, "top_k": 60, "temperature": 1.2, "repetition_penalty": 1.1}
    out = model.generate(ids, attention_mask=mask, generator=seeded(3), **options)
    for row in range(5):
        own = ids[row, mask[row] == 1][None]
        single = model.generate(own, generator=seeded(3), **options)
        assert new_tokens(single, own.shape[1])[0] == new_tokens(out, 9)[row]
    columns = list(model.generate_iter(ids, attention_mask=mask, generator=seeded(3), **options))
    assert torch.equal(torch.stack([one.tokens for one in columns], dim=1), out[:, 9:])


def test_copies_of_a_prompt_differ_and_do_not_depend_on_their_number(model: Any) -> None:
    ids, mask = texts()
    few, many = (
        model.generate(ids, attention_mask=mask, generator=seeded(7), num_return_sequences=count, **OPTIONS)
        for count in (2, 4)
    )
    by_prompt = [new_tokens(few, 9)[2 * row : 2 * row + 2] for row in range(5)]
    assert by_prompt == [new_tokens(many, 9)[4 * row : 4 * row + 2] for row in range(5)]
    assert all(len(set(map(tuple, copies))) == 2 for copies in by_prompt)
    one = model.generate(ids[:1], generator=seeded(7), num_return_sequences=4, **OPTIONS)
    assert new_tokens(one, 9) == new_tokens(many, 9)[:4]


def test_a_generator_for_each_row(model: Any) -> None:
    ids, mask = texts()
    seeds = [3, 1, 4, 1, 5]
    out = new_tokens(model.generate(ids, attention_mask=mask, generator=[seeded(seed) for seed in seeds], **OPTIONS), 9)
    order = [2, 4, 0]
    part = model.generate(
        ids[order], attention_mask=mask[order], generator=[seeded(seeds[row]) for row in order], **OPTIONS
    )
    assert new_tokens(part, 9) == [out[row] for row in order]
    for row in range(5):
        own, source = ids[row, mask[row] == 1][None], seeded(seeds[row])
        assert new_tokens(model.generate(own, generator=[source], **OPTIONS), own.shape[1])[0] == out[row]
    copies = model.generate(
        ids[:2],
        attention_mask=mask[:2],
        generator=[seeded(seed) for seed in (3, 8, 1, 8)],
        num_return_sequences=2,
        **OPTIONS,
    )
    assert [new_tokens(copies, 9)[place] for place in (0, 2)] == [out[0], out[1]]


def test_a_row_stops_drawing_when_it_is_finished(model: Any) -> None:
    ids, mask = texts()
    sources = [seeded(1) for _ in range(5)]
    out = new_tokens(model.generate(ids, attention_mask=mask, generator=sources, **OPTIONS), 9)
    for row, source in enumerate(sources):
        own = seeded(1)
        for _ in out[row]:
            torch.empty(300, dtype=torch.float64).uniform_(generator=own)
        assert torch.equal(own.get_state(), source.get_state())


def test_the_global_source_is_left_alone_and_the_generator_goes_on(model: Any) -> None:
    ids, mask = texts()
    state, source = torch.get_rng_state(), seeded(7)
    first, second = (model.generate(ids, attention_mask=mask, generator=source, **OPTIONS) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert new_tokens(first, 9) != new_tokens(second, 9)


def chi_square(counts: torch.Tensor, expected: torch.Tensor) -> float:
    """Return how many standard deviations the statistic lies above its mean; tokens that never come must not."""
    assert int(counts[expected == 0].sum()) == 0
    likely = expected > 5
    rest = torch.tensor([float(counts[~likely].sum())]), torch.tensor([float(expected[~likely].sum())])
    counts, expected = torch.cat([counts[likely], rest[0]]), torch.cat([expected[likely], rest[1].clamp_min(1e-9)])
    freedom = len(counts) - 1
    return float((((counts - expected) ** 2 / expected).sum() - freedom) / (2 * freedom) ** 0.5)


def scores_for_test(vocabulary: int) -> torch.Tensor:
    scores = torch.randn(vocabulary, generator=seeded(2)) * 2
    scores[::7] = -torch.inf
    return scores


@pytest.mark.parametrize("kind", ["one", "list", "global"])
def test_draws_follow_the_distribution(kind: str) -> None:
    rows, steps, scores = 500, 80, scores_for_test(60)
    torch.manual_seed(5)
    sources: Any = {"one": seeded(5), "list": [seeded(row) for row in range(rows)], "global": None}[kind]
    # one generator: many copies of one prompt
    draws = Draws(sources, rows, copies=rows if kind == "one" else 1)
    drawn = torch.cat([draws(scores.expand(rows, -1)) for _ in range(steps)])
    counts = torch.bincount(drawn, minlength=60).float()
    assert chi_square(counts, scores.softmax(0) * rows * steps) < 4


def test_chi_square_notices_a_small_difference() -> None:
    """The statistic is sharp: scores that are 4 % warmer give another distribution."""
    scores = scores_for_test(60)
    draws = Draws(seeded(5), 500, copies=500)
    drawn = torch.cat([draws((scores / 1.04).expand(500, -1)) for _ in range(80)])
    counts = torch.bincount(drawn, minlength=60).float()
    assert chi_square(counts, scores.softmax(0) * 500 * 80) > 6


def test_one_stream_over_steps_follows_the_distribution() -> None:
    draws, scores = Draws(seeded(8), 3), scores_for_test(25)
    drawn = torch.stack([draws(scores.expand(3, -1)) for _ in range(20_000)])
    assert torch.equal(drawn[:, 0], drawn[:, 2])  # every prompt draws the same numbers
    counts = torch.bincount(drawn[:, 0], minlength=25).float()
    assert chi_square(counts, scores.softmax(0) * 20_000) < 4
    pairs = torch.bincount(
        drawn[:-1, 0] * 25 + drawn[1:, 0], minlength=625
    ).float()  # one step says nothing of the next
    assert chi_square(pairs, torch.outer(scores.softmax(0), scores.softmax(0)).flatten() * 19_999) < 4


def test_a_large_vocabulary_gives_no_unlikely_token() -> None:
    scores = torch.full((1, 200_000), -60.0)
    scores[0, 13] = 0.0
    draws = Draws(seeded(1), 1)
    # A uniform number of 24 bits is 0 once in 16 million; its token would win whatever its probability, here 7 times.
    assert {int(draws(scores)) for _ in range(600)} == {13}


def test_a_certain_token_is_always_drawn() -> None:
    scores = torch.full((4, 50), -torch.inf)
    scores[:, 13] = -3.0
    draws = Draws(seeded(0), 4)
    assert all(draws(scores).tolist() == [13] * 4 for _ in range(2000))
    scores[1] = -torch.inf
    scores[2, 5] = torch.nan
    assert draws(scores).tolist() == [13, -1, -1, 13]


def test_rows_that_are_left_draw_what_they_would_draw() -> None:
    scores = torch.randn(6, 40, generator=seeded(3))
    rows = torch.tensor([0, 5, 2])
    for make in (
        lambda: Draws(None, 6),
        lambda: Draws(seeded(1), 6),
        lambda: Draws(seeded(1), 6, 3),
        lambda: Draws([seeded(row) for row in range(6)], 6),
    ):
        torch.manual_seed(2)
        every = make()(scores)
        torch.manual_seed(2)
        assert torch.equal(make()(scores[rows], rows), every[rows])
    torch.manual_seed(2)
    everyone = Draws(None, 6)(scores)
    torch.manual_seed(2)
    assert torch.equal(sample(scores), everyone)


@pytest.mark.parametrize(
    ("generator", "words"),
    [
        (3, "generator is 3, but must be a torch.Generator, or a list with one for each row"),
        ([seeded(1), None], "but must be a torch.Generator, or a list"),
        ([seeded(1)], r"generator is a list of 1, and the result has 2 rows \(num_return_sequences counted\)"),
        ([seeded(1)] * 2, "names the same torch.Generator for two rows"),
    ],
    ids=["number", "none", "short", "twice"],
)
def test_generators_that_do_not_fit(model: Any, generator: Any, words: str) -> None:
    ids, mask = texts()
    with pytest.raises(GenerationError, match=words):
        model.generate(ids[:2], attention_mask=mask[:2], generator=generator, **OPTIONS)
