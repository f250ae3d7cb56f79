"""Log-probabilities of targets: by hand, by definition, in batches, in slices."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from quintet.auto import family_of, model_types
from quintet.errors import InputError
from quintet.evaluate import Score, Scorer, score_targets
from quintet.fused.blocks import FusedBlocks
from quintet.fused.cpu_linear import CpuConv1D
from quintet.generation import scoring
from quintet.kernels.loader import status
from quintet.models.gpt2 import GPT2Config, GPT2LMHeadModel

PAIRS = [([5, 6, 7], [8]), ([9], [10, 11]), ([1, 2, 3, 4, 5, 6, 7, 8], [9, 10, 11]), ([3, 3], [3]), ([4] * 6, [5])]


def small(family: Any) -> Any:
    """A model of the family with weights that are far from symmetric; every expert takes part."""
    config = family.tiny()
    experts = getattr(config, "num_local_experts", None)
    config = config if experts is None else family.tiny(num_experts_per_tok=experts)
    torch.manual_seed(0)
    model = family.classes["causal-lm"](config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.15)
    return model.eval()


def by_definition(model: Any, context: list[int], target: list[int]) -> tuple[float, bool]:
    with torch.no_grad():
        logits = model(torch.tensor([context + target])).logits[0, len(context) - 1 : -1].double()
    wanted = torch.tensor(target)
    logs = torch.log_softmax(logits, -1)[torch.arange(len(target)), wanted]
    return float(logs.sum()), bool((logits.argmax(-1) == wanted).all())


def test_by_hand(table_model, logp):
    model = table_model()
    # 0.5 * 0.5, both likeliest; 0.25, not likeliest.
    scores = score_targets(model, [([2, 0], [1, 2]), ([0], [2])], batch_size=2)
    assert [score.logprob for score in scores] == pytest.approx([logp(0, 1, 2), logp(0, 2)], rel=1e-6)
    assert logp(0, 1, 2) == pytest.approx(-1.3862943611)
    assert [(score.greedy, score.tokens, score.cut) for score in scores] == [(True, 2, 0), (False, 1, 0)]
    assert model.training  # as it was


@pytest.mark.parametrize("model_type", model_types())
@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_batches_are_their_rows_and_the_definition(model_type, batch_size):
    model = small(family_of(model_type))
    scores = score_targets(model, PAIRS, batch_size=batch_size)
    for score, (context, target) in zip(scores, PAIRS, strict=True):
        logprob, greedy = by_definition(model, context, target)
        assert score.logprob == pytest.approx(logprob, abs=2e-4, rel=1e-5)
        assert score == Score(score.logprob, greedy, len(target), 0)


def test_the_likeliest_continuation_is_greedy():
    model = small(family_of("gpt2"))
    written = model.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=3, do_sample=False)[0, 3:].tolist()
    other = [*written[:2], (written[2] + 1) % 90]
    scores = score_targets(model, [([5, 6, 7], written), ([5, 6, 7], other)])
    assert [score.greedy for score in scores] == [True, False]


def test_logits_are_made_in_slices(monkeypatch):
    model = small(family_of("gpt2"))
    whole = score_targets(model, PAIRS, batch_size=5)
    seen = []
    model.lm_head.register_forward_hook(lambda module, args, output: seen.append(output.shape))
    monkeypatch.setattr(scoring, "SLICE_BYTES", 4 * model.config.vocab_size * 3)
    sliced = score_targets(model, PAIRS, batch_size=5)
    for one, other in zip(whole, sliced, strict=True):
        assert one.logprob == pytest.approx(other.logprob, abs=1e-5)
    # Targets alone, three at a time, after the two looks at the head's own behaviour.
    assert [shape[0] for shape in seen[2:]] == [3, 3, 2]


class Capped(GPT2LMHeadModel):
    """Logits that are not what the output layer gives."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        out = super().forward(*args, **kwargs)
        out.logits = 3 * torch.tanh(out.logits / 3)
        return out


def test_a_model_that_changes_its_logits():
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=50, n_positions=32, n_embd=16, n_layer=1, n_head=2, initializer_range=1.0)
    model = Capped(config).eval()
    for score, (context, target) in zip(score_targets(model, PAIRS, batch_size=3), PAIRS, strict=True):
        assert score.logprob == pytest.approx(by_definition(model, context, target)[0], abs=1e-4)


def test_long_contexts_lose_their_beginning(table_model, logp):
    model = table_model(limit=4)
    (score,) = score_targets(model, [([0, 0, 0, 1, 2, 0], [1, 2])])
    assert score.cut == 3  # of 7 given tokens, the last target not among them, 4 have room
    assert score.logprob == pytest.approx(logp(0, 1, 2))
    assert model.given[-1].tolist() == [[1, 2, 0, 1]]
    assert score_targets(model, [([0], [1, 2, 1, 2])])[0].cut == 0
    assert score_targets(model, [([0, 0], [1, 2])], max_length=2)[0].cut == 1


def test_progress_counts_pairs(table_model):
    steps = []
    score_targets(table_model(), [([0], [1])] * 5, batch_size=2, progress=lambda *numbers: steps.append(numbers))
    assert steps == [(2, 5), (4, 5), (5, 5)]


def test_nothing_to_score(table_model):
    assert score_targets(table_model(), []) == [] and Scorer(table_model()).score([]) == []


@pytest.mark.parametrize(
    ("pair", "words"),
    [
        (([], [1]), "the context has no tokens; both need at least one"),
        (([1], []), "the target has no tokens"),
        (([0], [1, 2, 0, 1, 2]), "the target has 5 tokens, but the model is given 4 at most. Score it in parts"),
        (([3], [1]), "token ids go from 0 to 3, but the model has 3 tokens"),
        (([-1, 0], [1]), "token ids go from -1 to 1"),
        (([0], [7]), "token ids go from 0 to 7, but the model has 3 tokens"),
    ],
)
def test_what_cannot_be_scored(table_model, pair, words):
    with pytest.raises(InputError, match=words):
        score_targets(table_model(limit=4), [([0], [1]), pair])


@pytest.mark.parametrize("length", [0, -1, 5])
def test_a_length_that_the_model_has_not(table_model, length):
    with pytest.raises(
        InputError, match=f"max_length is {length}, but must be at least 1, and this model has room for 4"
    ):
        Scorer(table_model(limit=4), length)


def test_scores_are_computed_by_twins() -> None:
    """Those of `quintet eval`, of `model.score` and of the adaptor for lm-eval, which all go through a Scorer."""
    for evaluate in (score_targets, lambda model, pairs: Scorer(model).score(pairs)):
        torch.manual_seed(0)
        model = GPT2LMHeadModel(GPT2Config(vocab_size=20, n_positions=16, n_embd=32, n_layer=2, n_head=2))
        evaluate(model, PAIRS)
        assert not any(isinstance(module, CpuConv1D) for module in model.modules()), "a model in training stays plain"
        evaluate(model.eval(), PAIRS)
        assert all(isinstance(block.mlp.c_fc, CpuConv1D) for block in model.transformer.h)
        assert isinstance(model.transformer.h, FusedBlocks) == status().native
