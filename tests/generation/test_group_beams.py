"""Groups of beams that are kept apart: Vijayakumar et al., arXiv 1610.02424, calculated by hand on small tables."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

PAD = 0
RECORD = {"return_dict_in_generate": True, "output_scores": True}


#  after   a    b    c    end
ROWS = [
    [0.50, 0.30, 0.15, 0.05],  # a
    [0.20, 0.60, 0.15, 0.05],  # b
    [0.10, 0.10, 0.75, 0.05],  # c
    [0.25, 0.25, 0.25, 0.25],
]


@pytest.fixture
def groups(make_table: Callable[..., Any]) -> Callable[..., Any]:
    """Searches a table with groups of beams."""

    def search(
        table: list[list[float]], first: list[int], beams: int, count: int, penalty: float, **options: Any
    ) -> Any:
        kwargs = {"num_return_sequences": beams, "eos_token_id": 3, "length_penalty": 0.0} | RECORD | options
        return make_table(table).generate(
            torch.tensor([first]), num_beams=beams, num_beam_groups=count, diversity_penalty=penalty, **kwargs
        )

    return search


def test_a_weak_penalty_changes_nothing_but_the_score(groups: Callable[..., Any]) -> None:
    """log .5 - log .3 = .511: a penalty of .4 leaves a the best token of the second group too."""
    out = groups(ROWS, [0], 2, 2, 0.4, max_new_tokens=1)
    assert out.sequences[:, 1:].tolist() == [[0], [0]]
    assert out.sequences_scores.tolist() == pytest.approx([math.log(0.5), math.log(0.5) - 0.4])


def test_a_strong_penalty_sends_the_second_group_elsewhere(groups: Callable[..., Any]) -> None:
    """With .6 the second group takes b; in the second step the groups say different things anyway.

    Group 1: a a, .5 * .5. Group 2: b b, .3 * .6. No penalty was paid.
    """
    out = groups(ROWS, [0], 2, 2, 0.6, max_new_tokens=2)
    assert out.sequences[:, 1:].tolist() == [[0, 0], [1, 1]]
    assert out.sequences_scores.tolist() == pytest.approx([math.log(0.25), math.log(0.18)])
    assert out.beam_indices.tolist() == [[0, 0], [1, 1]]


def test_the_penalty_counts_tokens_of_the_same_step_only_and_stays_in_the_sum(groups: Callable[..., Any]) -> None:
    """Penalty .2, three steps from a: both groups say a a a, and the second pays .2 at each."""
    out = groups(ROWS, [0], 2, 2, 0.2, max_new_tokens=3)
    assert out.sequences[:, 1:].tolist() == [[0, 0, 0], [0, 0, 0]]
    assert out.sequences_scores.tolist() == pytest.approx([3 * math.log(0.5), 3 * (math.log(0.5) - 0.2)])


def test_every_earlier_beam_counts(groups: Callable[..., Any]) -> None:
    """Three groups of one: the third pays twice for what both others said.

    Penalty .3: group 1 a (-.693), group 2 a (-.993, b is -1.204), group 3: a -1.293, b -1.204: b.
    """
    out = groups(ROWS, [0], 3, 3, 0.3, max_new_tokens=1)
    assert out.sequences[:, 1:].tolist() == [[0], [0], [1]]
    wanted = [math.log(0.5), math.log(0.5) - 0.3, math.log(0.3)]
    assert out.sequences_scores.tolist() == pytest.approx(wanted)


def test_two_beams_of_a_group_that_say_the_same_count_twice(groups: Callable[..., Any]) -> None:
    """Groups of two from a, penalty .5.

    Step 1: group 1 a b; group 2: a -1.193, b -1.704, c -1.897, end -2.996: a b.
    Step 2: group 1: aa .25, bb .18, ab .15: aa bb. Group 2 pays .5 for a and b, each said once, beside
    the .5 before: bb -1.715 - 1 = -2.715, aa -1.386 - 1 = -2.386, ab -2.897, ac .5 * .15: -2.590 - .5 = -3.090: aa bb.
    With all weight of both rows on one token, both beams of group 1 say it, and it costs group 2 double.
    """
    out = groups(ROWS, [0], 4, 2, 0.5, max_new_tokens=2)
    assert out.sequences[:, 1:].tolist() == [[0, 0], [1, 1], [0, 0], [1, 1]]
    logs = [math.log(0.25), math.log(0.18)]
    assert out.sequences_scores.tolist() == pytest.approx(logs + [value - 1.0 for value in logs])

    #         a    b     c     d     end
    peaked = [
        [0.01, 0.01, 0.90, 0.079, 0.001],
        [0.01, 0.01, 0.90, 0.079, 0.001],
        [0.20, 0.20, 0.30, 0.20, 0.10],
        [0.20, 0.20, 0.20, 0.30, 0.10],
        [0.50, 0.48, 0.01, 0.009, 0.001],
    ]
    out = groups(peaked, [4], 4, 2, 1.0, max_new_tokens=2, eos_token_id=None)
    # Group 1: ac .45, bc .432. Group 2 pays 1 for a or b; then c costs 2: log .9 - 2 = -2.105; d: log .079 = -2.538.
    assert out.sequences[:, 1:].tolist() == [[0, 2], [1, 2], [0, 2], [1, 2]]
    wanted = [math.log(0.45), math.log(0.432)]
    assert out.sequences_scores.tolist() == pytest.approx(wanted + [value - 3.0 for value in wanted], abs=1e-5)
    out = groups(peaked, [4], 4, 2, 1.3, max_new_tokens=2, eos_token_id=None)
    # c now costs 2.6: -2.705, worse than d at -2.538.
    assert out.sequences[2:, 1:].tolist() == [[0, 3], [1, 3]]
    assert out.sequences_scores[2].item() == pytest.approx(math.log(0.5 * 0.079) - 1.3, abs=1e-5)


def test_a_group_whose_search_is_over_has_no_say(groups: Callable[..., Any]) -> None:
    """One beam each, early stopping, penalty 1.

    Step 1 after s: group 1 a .5, group 2 b .45. Step 2: group 1 ends with .9, and its best beam that goes on says c;
    group 2 says c for .9 and pays 1. Step 3: a beam of group 1 would say d as well, but its search is
    over: d costs nothing.
    """
    #        a     b     c     d     end   s
    table = [
        [0.01, 0.01, 0.07, 0.005, 0.90, 0.005],  # a
        [0.02, 0.02, 0.90, 0.02, 0.02, 0.02],  # b
        [0.02, 0.02, 0.02, 0.90, 0.02, 0.02],  # c
        [0.10, 0.10, 0.10, 0.50, 0.10, 0.10],
        [0.10, 0.10, 0.10, 0.50, 0.10, 0.10],
        [0.50, 0.45, 0.02, 0.01, 0.01, 0.01],  # s
    ]
    out = groups(table, [5], 2, 2, 1.0, max_new_tokens=3, eos_token_id=4, early_stopping=True)
    assert out.sequences[:, 1:].tolist() == [[0, 4, 4], [1, 2, 3]]
    assert out.sequences_scores.tolist() == pytest.approx([math.log(0.45), math.log(0.45 * 0.81) - 1.0])


def test_scores_hold_the_penalties(groups: Callable[..., Any], make_table: Callable[..., Any]) -> None:
    out = groups(ROWS, [0], 4, 2, 0.5, max_new_tokens=2)
    model = make_table(ROWS)
    steps = model.compute_transition_scores(out.sequences, out.scores, out.beam_indices)
    torch.testing.assert_close(steps.sum(dim=1), out.sequences_scores)
    first = torch.tensor(ROWS[0]).log()
    torch.testing.assert_close(out.scores[0][0], first)
    torch.testing.assert_close(out.scores[0][2], first - torch.tensor([0.5, 0.5, 0.0, 0.0]))


# --- on models --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"early_stopping": True}, {"length_penalty": 2.0, "early_stopping": "never"}])
def test_with_next_to_no_penalty_every_group_is_a_plain_search(
    model: Any, prompt: torch.Tensor, options: dict[str, Any]
) -> None:
    shared = {"max_new_tokens": 15, "pad_token_id": PAD, "eos_token_id": list(range(8, 40))} | RECORD | options
    plain = model.generate(prompt, num_beams=3, num_return_sequences=3, **shared)
    apart = model.generate(
        prompt, num_beams=6, num_beam_groups=2, diversity_penalty=1e-7, num_return_sequences=6, **shared
    )
    for row in range(3):
        texts = apart.sequences[6 * row : 6 * row + 6].tolist()
        wanted = plain.sequences[3 * row : 3 * row + 3].tolist()
        assert sorted(texts) == sorted(wanted * 2)
    scores = apart.sequences_scores.view(3, 3, 2)
    torch.testing.assert_close(scores[:, :, 0], plain.sequences_scores.view(3, 3), atol=1e-5, rtol=1e-5)


def test_a_higher_penalty_gives_texts_that_differ_more(model: Any, prompt: torch.Tensor) -> None:
    def variety(penalty: float) -> int:
        out = model.generate(
            prompt,
            num_beams=4,
            num_beam_groups=4,
            diversity_penalty=penalty,
            num_return_sequences=4,
            max_new_tokens=10,
            eos_token_id=None,
            pad_token_id=PAD,
        )
        new = out[:, 7:].view(3, 4, 10)
        return sum(len(set(new[row, :, step].tolist())) for row in range(3) for step in range(10))

    assert variety(0.01) < variety(2.0) <= variety(100.0) == 120  # 3 prompts, 10 steps, 4 different tokens at each


def test_groups_in_a_padded_batch_give_what_they_give_alone(model: Any) -> None:
    ids = torch.randint(8, 300, (2, 9), generator=torch.Generator().manual_seed(3))
    mask = torch.ones_like(ids)
    ids[1, :4], mask[1, :4] = PAD, 0
    options = {"num_beams": 6, "num_beam_groups": 3, "diversity_penalty": 0.7, "num_return_sequences": 4}
    options |= {"max_new_tokens": 12, "pad_token_id": PAD, "eos_token_id": None, "repetition_penalty": 1.2}
    together = model.generate(ids, attention_mask=mask, **options)
    alone = model.generate(ids[1:, 4:], **options)
    assert torch.equal(together[4:, 9:], alone[:, 5:])
    assert torch.equal(model.generate(ids, attention_mask=mask, use_cache=False, **options), together)


def test_criteria_see_the_candidates_of_one_group_at_a_time(model: Any, prompt: torch.Tensor) -> None:
    seen = []

    def record(ids: torch.Tensor, scores: Any) -> torch.Tensor:
        seen.append(tuple(ids.shape))
        assert torch.equal(ids[:, :7], prompt.repeat_interleave(4, dim=0))
        return ids[:, -1] % 5 == 0

    out = model.generate(
        prompt,
        num_beams=4,
        num_beam_groups=2,
        diversity_penalty=0.7,
        max_new_tokens=6,
        pad_token_id=PAD,
        eos_token_id=None,
        stopping_criteria=[record],
    )
    assert seen[0] == seen[1] == (12, 8) and {shape[0] for shape in seen} == {12}
    assert len(out) == 3
