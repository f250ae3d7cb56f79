"""The scores of tokens along the texts of a result."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from quintet.errors import InputError
from quintet.generation import GenerationMixin

PAD = 0
RECORD = {"return_dict_in_generate": True, "output_scores": True, "output_logits": True}


class Bare(GenerationMixin):
    """The lookup needs nothing of a model."""


def test_a_lookup_by_hand() -> None:
    """Two texts of beam search in two rows a step: the second has two tokens, and a third place behind its end."""
    scores = tuple(torch.arange(8.0).view(2, 4) + 10 * step for step in range(3))
    sequences = torch.tensor([[9, 3, 0, 2], [9, 1, 1, 7]])
    beams = torch.tensor([[0, 1, 0], [0, 0, -1]], dtype=torch.int32)
    got = Bare().compute_transition_scores(sequences, scores, beams)
    assert got.tolist() == [[3.0, 14.0, 22.0], [1.0, 11.0, 0.0]]
    normalized = Bare().compute_transition_scores(sequences, scores, beams, normalize_logits=True)
    wanted = [[scores[0][0].log_softmax(0)[3], scores[1][1].log_softmax(0)[0], scores[2][0].log_softmax(0)[2]]]
    torch.testing.assert_close(normalized[:1], torch.tensor(wanted))


def test_texts_shorter_than_the_run() -> None:
    """The run may go on longer than the texts that won: only their steps are there."""
    scores = tuple(torch.randn(2, 4) for _ in range(5))
    beams = torch.tensor([[0, 1]])
    got = Bare().compute_transition_scores(torch.tensor([[8, 8, 3, 2]]), scores, beams)
    assert got.tolist() == [[scores[0][0, 3].item(), scores[1][1, 2].item()]]
    assert Bare().compute_transition_scores(torch.tensor([[8]]), scores, torch.full((1, 3), -1)).shape == (1, 0)


def test_padding_behind_a_text_may_be_no_token() -> None:
    got = Bare().compute_transition_scores(
        torch.tensor([[5, 1, 1], [5, 1, -1]]), (torch.ones(2, 4),) * 2, torch.tensor([[0, 0], [1, -1]])
    )
    assert got.tolist() == [[1.0, 1.0], [1.0, 0.0]]


@pytest.mark.parametrize("penalty", [0.0, 1.0, 2.0])
@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 4},
        {"num_beams": 4, "do_sample": True, "top_k": 20},
        {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.6},
        {"num_beams": 3, "early_stopping": True, "repetition_penalty": 1.3},
    ],
    ids=str,
)
def test_they_add_up_to_the_scores_of_the_texts(
    model: Any, prompt: torch.Tensor, options: dict[str, Any], penalty: float
) -> None:
    out = model.generate(
        prompt,
        num_return_sequences=3,
        max_new_tokens=15,
        eos_token_id=list(range(8, 40)),
        pad_token_id=PAD,
        length_penalty=penalty,
        **options,
        **RECORD,
    )
    steps = model.compute_transition_scores(out.sequences, out.scores, out.beam_indices)
    lengths = (out.beam_indices >= 0).sum(dim=1)
    assert len(lengths.unique()) > 1 or penalty == 2.0  # the texts end at different places
    torch.testing.assert_close(steps.sum(dim=1) / lengths**penalty, out.sequences_scores, atol=1e-5, rtol=1e-5)


def test_sampling_and_greedy_decoding(model: Any, prompt: torch.Tensor) -> None:
    for do_sample in (False, True):
        out = model.generate(
            prompt, do_sample=do_sample, max_new_tokens=9, eos_token_id=None, pad_token_id=PAD, **RECORD
        )
        logs = model.compute_transition_scores(out.sequences, out.logits, normalize_logits=True)
        full = model(out.sequences[:, :-1]).logits.log_softmax(-1)[:, 6:]
        torch.testing.assert_close(logs, full.gather(2, out.sequences[:, 7:, None])[:, :, 0], atol=1e-5, rtol=1e-5)


SCORES = (torch.zeros(2, 4),) * 3


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (([[1]], SCORES), "sequences is list, but must be a tensor"),
        ((torch.ones(3), SCORES), r"sequences is \(3,\), but must be a tensor of shape \(rows, tokens\)"),
        ((torch.ones(2, 5), None), "scores is None, but must hold one tensor.*output_scores=True"),
        ((torch.ones(2, 5), ()), r"scores is \(\), but must hold one tensor"),
        ((torch.ones(1, 5), SCORES), "sequences has 1 rows and the scores have 2. After beam search pass beam_indices"),
        ((torch.ones(2, 2).long(), SCORES), "sequences has 2 tokens a row, and the scores are those of 3 new tokens"),
        (
            (torch.ones(2, 5), SCORES, torch.zeros(1, 3)),
            r"beam_indices has shape \(1, 3\), but must be \(2, at most 3\)",
        ),
        ((torch.ones(2, 5), SCORES, torch.zeros(2, 4)), r"beam_indices has shape \(2, 4\)"),
        ((torch.ones(2, 5), SCORES, torch.full((2, 3), 2)), "beam_indices names row 2, and the scores have 2"),
        ((torch.full((2, 5), 4), SCORES), "sequences holds the token 4, and the scores are of 4 tokens"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_refused(arguments: tuple[Any, ...], words: str) -> None:
    with pytest.raises(InputError, match=words):
        Bare().compute_transition_scores(*arguments)
