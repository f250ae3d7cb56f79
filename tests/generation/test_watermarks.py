"""Watermarks: marked text is found and unmarked text is not, by the reference's detectors and ours alike."""

from __future__ import annotations

import copy
import inspect
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import quintet
from quintet.errors import CheckpointError, GenerationError, InputError
from quintet.generation import (
    BayesianDetectorConfig,
    BayesianDetectorModel,
    SynthIDTextWatermarkDetector,
    SynthIDTextWatermarkingConfig,
    SynthIDTextWatermarkLogitsProcessor,
    WatermarkDetector,
    WatermarkingConfig,
    WatermarkLogitsProcessor,
)

VOCABULARY, BOS, EOS = 300, 1, 2
KEYS = [654, 400, 836, 123, 340, 443, 597, 160, 57]
SYNTHID = SynthIDTextWatermarkingConfig(ngram_len=4, keys=KEYS)
FIELDS = ("num_tokens_scored", "num_green_tokens", "green_fraction", "z_score", "p_value", "prediction", "confidence")


class Tokenizer:
    """All that a detector wants of one."""

    eos_token_id = EOS


@pytest.fixture(scope="module")
def texts(model: Any) -> Any:
    """Makes the new tokens of a few prompts, sampled from a rather flat distribution; marked or not."""

    def make(settings: Any, rows: int = 8, new: int = 70, seed: int = 3) -> torch.Tensor:
        ids = torch.randint(3, VOCABULARY, (rows, 4), generator=torch.Generator().manual_seed(seed))
        out = model.generate(
            ids, do_sample=True, temperature=8.0, top_k=0, eos_token_id=None, pad_token_id=0, max_new_tokens=new,
            generator=torch.Generator().manual_seed(seed), watermarking_config=settings,
        )  # fmt: skip
        return out[:, 4:]

    return make


# --- green lists ------------------------------------------------------------------------------------------------------

GREEN = [
    WatermarkingConfig(bias=2.5),
    WatermarkingConfig(bias=3.0, greenlist_ratio=0.5, context_width=2, hashing_key=77),
    WatermarkingConfig(bias=4.0, seeding_scheme="selfhash", context_width=2),
]


@pytest.mark.parametrize("settings", GREEN, ids=lambda one: f"{one.seeding_scheme}-{one.context_width}")
@pytest.mark.parametrize("repeated", [False, True])
def test_marked_text_is_found_and_other_text_is_not(model: Any, texts: Any, settings: Any, repeated: bool) -> None:
    detector = WatermarkDetector(model.config, "cpu", settings, ignore_repeated_ngrams=repeated)
    marked, plain = texts(settings), texts(None)
    found, clean = detector(marked, return_dict=True), detector(plain, return_dict=True)
    assert found.prediction.all() and not clean.prediction.any()
    assert (found.confidence > 0.99).all() and (found.green_fraction > settings.greenlist_ratio + 0.1).all()
    assert np.array_equal(detector(marked), found.prediction)
    assert not detector(marked, z_threshold=1000.0).any()
    other_key = copy.copy(settings)
    other_key.hashing_key = 12345
    assert not WatermarkDetector(model.config, "cpu", other_key)(marked).any()


@pytest.mark.parametrize("settings", GREEN, ids=lambda one: f"{one.seeding_scheme}-{one.context_width}")
@pytest.mark.parametrize("repeated", [False, True])
def test_the_detector_gives_what_the_reference_gives(model: Any, texts: Any, settings: Any, repeated: bool) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.WatermarkDetector(
        transformers.GPT2Config(vocab_size=VOCABULARY, bos_token_id=BOS), "cpu", settings.to_dict(), repeated
    )
    ours = WatermarkDetector(model.config, "cpu", settings.to_dict(), repeated)
    for text in (texts(settings, rows=2, new=25), texts(None, rows=2, new=25)):
        with_bos = torch.cat([torch.full((2, 1), BOS), text], dim=1)
        for one in (text, with_bos, text[:, :5].repeat(1, 4)):
            mine, other = ours(one, return_dict=True), theirs(one, return_dict=True)
            for name in FIELDS:
                np.testing.assert_allclose(getattr(mine, name), getattr(other, name), atol=1e-6)


def test_texts_that_cannot_be_judged(model: Any) -> None:
    detector = WatermarkDetector(model.config, "cpu", WatermarkingConfig(context_width=3))
    with pytest.raises(InputError, match="some rows begin with the bos token 1 and some do not"):
        detector(torch.tensor([[BOS, 5, 6, 7, 8], [9, 5, 6, 7, 8]]))
    with pytest.raises(InputError, match="the texts have 3 tokens.*context_width is 3.*longer texts"):
        detector(torch.tensor([[5, 6, 7]]))
    with pytest.raises(InputError, match=r"input_ids has shape \(3,\)"):
        detector(torch.tensor([5, 6, 7]))
    with pytest.raises(GenerationError, match="z_threshold is 'a'"):
        detector(torch.tensor([[5, 6, 7, 8]]), z_threshold="a")  # type: ignore[arg-type]
    with pytest.raises(GenerationError, match="WatermarkDetector reads green lists.*SynthIDTextWatermarkDetector"):
        WatermarkDetector(model.config, "cpu", SYNTHID)  # type: ignore[arg-type]


def test_too_short_a_context_is_not_marked(caplog: pytest.LogCaptureFixture) -> None:
    processor = WatermarkLogitsProcessor(20, "cpu", context_width=5)
    scores = torch.zeros(1, 20)
    assert processor(torch.zeros((1, 4), dtype=torch.long), scores) is scores
    assert "needs 5 tokens of context and has 4" in caplog.text


def test_a_green_list_has_its_share_and_follows_the_key() -> None:
    processor = WatermarkLogitsProcessor(1000, "cpu", greenlist_ratio=0.3)
    lists = [set(processor.green_ids(torch.tensor([one])).tolist()) for one in (5, 5, 6)]
    assert lists[0] == lists[1] != lists[2] and len(lists[0]) == 300
    other = WatermarkLogitsProcessor(1000, "cpu", greenlist_ratio=0.3, hashing_key=3)
    assert set(other.green_ids(torch.tensor([5])).tolist()) != lists[0]


# --- SynthID ----------------------------------------------------------------------------------------------------------


def processors(**changes: Any) -> tuple[SynthIDTextWatermarkLogitsProcessor, Any]:
    transformers = pytest.importorskip("transformers")
    arguments = SYNTHID.to_dict() | changes | {"device": "cpu"}
    return SynthIDTextWatermarkLogitsProcessor(**arguments), transformers.SynthIDTextWatermarkLogitsProcessor(
        **arguments
    )


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("history", [1, 3, 1024])
@pytest.mark.parametrize("size", [2, 3, 6])
def test_marking_step_by_step_is_the_references(size: int, history: int, skip: bool) -> None:
    ours, theirs = processors(ngram_len=size, context_history_size=history, skip_first_ngram_calls=skip)
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(0, 3, (4, 5), generator=generator)
    for _ in range(15):  # three tokens only, so that contexts come again
        scores = torch.randn(4, 30, generator=generator)
        torch.testing.assert_close(ours(ids, scores), theirs(ids, scores.clone()), rtol=0, atol=1e-6)
        ids = torch.cat([ids, torch.randint(0, 3, (4, 1), generator=generator)], dim=1)


def test_what_detectors_read_is_the_references() -> None:
    ours, theirs = processors(context_history_size=5)
    ids = torch.randint(0, 4, (3, 40), generator=torch.Generator().manual_seed(1))
    assert torch.equal(ours.compute_g_values(ids), theirs.compute_g_values(ids))
    assert torch.equal(ours.compute_context_repetition_mask(ids), theirs.compute_context_repetition_mask(ids))
    assert torch.equal(ours.compute_eos_token_mask(ids, 3), theirs.compute_eos_token_mask(ids, 3))
    ids[1] = 0
    assert torch.equal(ours.compute_eos_token_mask(ids, 3), theirs.compute_eos_token_mask(ids, 3))
    assert ours.expected_mean_g_value(50) == theirs.expected_mean_g_value(50)
    flips, scores = ours.compute_g_values(ids)[:, :20], torch.randn(3, 20)
    torch.testing.assert_close(ours.update_scores(scores, flips), theirs.update_scores(scores, flips))


def test_the_distribution_stays_on_average_what_it_was() -> None:
    """Over many keys the marked probabilities have the model's as their mean."""
    scores = torch.tensor([[0.0, 1.0, 2.0, -1.0, 0.5]])
    total = torch.zeros(1, 5)
    for key in range(3000):
        processor = SynthIDTextWatermarkLogitsProcessor(2, [key * 7919 + 1], 4096, key, 10, "cpu")
        total += processor(torch.tensor([[3]]), scores).softmax(-1)
    torch.testing.assert_close(total / 3000, scores.softmax(-1), rtol=0, atol=0.01)


def test_coin_flips_of_marked_text_fall_on_the_marked_side(texts: Any) -> None:
    """With one round and a nearly flat model the mean is what the theory says."""
    settings = SynthIDTextWatermarkingConfig(ngram_len=4, keys=[17])
    processor = settings.construct_processor(VOCABULARY)
    marked, plain = (processor.compute_g_values(texts(one)).float().mean().item() for one in (settings, None))
    assert marked > 0.7 and abs(plain - 0.5) < 0.05
    assert marked < processor.expected_mean_g_value(VOCABULARY) + 0.05


@pytest.fixture(scope="module")
def detector(texts: Any) -> SynthIDTextWatermarkDetector:
    """A Bayesian detector, trained for a moment."""
    processor = SYNTHID.construct_processor(VOCABULARY)
    torch.manual_seed(0)
    judge = BayesianDetectorModel(BayesianDetectorConfig(watermarking_depth=len(KEYS)))
    parts = [texts(SYNTHID, rows=40, seed=10), texts(None, rows=40, seed=11)]
    flips = torch.cat([processor.compute_g_values(one) for one in parts])
    mask = torch.cat([processor.compute_context_repetition_mask(one) for one in parts])
    labels = torch.cat([torch.ones(40), torch.zeros(40)])
    optimizer = torch.optim.Adam(judge.parameters(), lr=0.05)
    losses = []
    for _ in range(60):
        _, loss = judge(flips, mask, labels=labels, loss_batch_weight=0.01)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2
    return SynthIDTextWatermarkDetector(judge.eval(), processor, Tokenizer())


def test_a_trained_detector_tells_marked_from_unmarked_text(texts: Any, detector: Any) -> None:
    (marked,), (plain,) = detector(texts(SYNTHID, seed=20)), detector(texts(None, seed=21))
    assert marked.mean() > 0.9 and (marked > 0.6).all()
    assert plain.mean() < 0.1 and (plain < 0.4).all()
    other = SynthIDTextWatermarkingConfig(ngram_len=4, keys=[one + 1 for one in KEYS])
    assert (detector(texts(other, seed=22))[0] < 0.5).all()


def test_the_judge_gives_what_the_reference_gives(texts: Any, detector: Any, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    judge = detector.detector_module
    judge.config.set_detector_information("tiny", SYNTHID.to_dict())
    judge.save_pretrained(tmp_path)
    theirs = transformers.BayesianDetectorModel.from_pretrained(tmp_path)
    _, their_processor = processors()
    other = transformers.SynthIDTextWatermarkDetector(theirs, their_processor, Tokenizer())
    text = texts(SYNTHID, rows=3, new=25)
    text[1, 12] = EOS
    torch.testing.assert_close(detector(text)[0], other(text)[0])
    flips, mask = detector.logits_processor.compute_g_values(text), torch.ones(3, 22)
    labels = torch.tensor([1.0, 0.0, 1.0])
    mine, reference = (one(flips, mask, labels, 0.5, return_dict=True) for one in (judge, theirs))
    torch.testing.assert_close(mine.loss, reference.loss)
    torch.testing.assert_close(mine.posterior_probabilities, reference.posterior_probabilities)

    again = BayesianDetectorModel.from_pretrained(tmp_path)
    assert not again.training and again.config.model_name == "tiny"
    assert SynthIDTextWatermarkingConfig.from_dict(again.config.watermarking_config) == SYNTHID
    torch.testing.assert_close(again(flips, mask)[0], mine.posterior_probabilities)
    theirs.save_pretrained(tmp_path / "theirs")
    read = BayesianDetectorModel.from_pretrained(tmp_path / "theirs")
    torch.testing.assert_close(read(flips, mask)[0], mine.posterior_probabilities)
    (tmp_path / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="does not hold the weights of a BayesianDetectorModel"):
        BayesianDetectorModel.from_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"has no model.safetensors"):
        BayesianDetectorModel.from_pretrained(tmp_path)


def test_one_text_of_one_group(detector: Any) -> None:
    """The smallest text there is: one row, one place."""
    (posterior,) = detector(torch.tensor([[5, 6, 7, 8]]))
    assert posterior.shape == (1,) and 0 < posterior.item() < 1
    with pytest.raises(GenerationError, match="the text has 3 tokens, and ngram_len is 4"):
        detector(torch.tensor([[5, 6, 7]]))
    with pytest.raises(GenerationError, match=r"input_ids has shape \(4,\)"):
        detector(torch.tensor([5, 6, 7, 8]))


def test_wrong_shapes_and_settings_of_the_judge() -> None:
    judge = BayesianDetectorModel(BayesianDetectorConfig(watermarking_depth=3))
    with pytest.raises(InputError, match=r"g_values has shape \(2, 5, 4\) and mask \(2, 5\).*\(rows, places, 3\)"):
        judge(torch.zeros(2, 5, 4), torch.ones(2, 5))
    with pytest.raises(InputError, match=r"mask \(2, 4\)"):
        judge(torch.zeros(2, 5, 3), torch.ones(2, 4))
    with pytest.raises(GenerationError, match="watermarking_depth is None"):
        BayesianDetectorModel(BayesianDetectorConfig())
    with pytest.raises(GenerationError, match="base_rate is 1.0"):
        BayesianDetectorModel(BayesianDetectorConfig(3, base_rate=1.0))
    processor, _ = processors()
    with pytest.raises(GenerationError, match=r"ngrams has shape \(1, 2, 3\), but must be \(rows, groups, 4\)"):
        processor.compute_ngram_keys(torch.zeros((1, 2, 3), dtype=torch.long))


def test_another_text_begins_anew() -> None:
    """A processor that is used again for another prompt does not take it for what it marked before."""
    scores = torch.randn(2, 30)
    used, fresh = processors()[0], processors()[0]
    used(torch.tensor([[5, 6], [7, 8]]), scores)
    used(torch.tensor([[5, 6, 1], [7, 8, 1]]), scores)
    for prompt in (torch.tensor([[9, 9, 9], [4, 4, 4]]), torch.tensor([[9], [4]])):
        assert torch.equal(used(prompt, scores), fresh(prompt, scores))


def test_settings_are_checked_before_the_model_runs(model: Any) -> None:
    ids = torch.tensor([[5, 6]])
    for settings, words in (
        (SynthIDTextWatermarkingConfig(1, KEYS), "watermarking_config.ngram_len is 1"),
        ({"ngram_len": 4, "keys": KEYS, "kyes": 1}, "'kyes' is not a setting.*Did you mean 'keys'"),
        (WatermarkingConfig(bias=math.nan), "watermarking_config.bias is nan"),
        (WatermarkingConfig(context_width=0), "watermarking_config.context_width is 0"),
    ):
        with pytest.raises(GenerationError, match=words):
            model.generate(ids, watermarking_config=settings, max_new_tokens=2)


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("WatermarkDetector", "__init__"),
        ("WatermarkDetector", "__call__"),
        ("SynthIDTextWatermarkDetector", "__init__"),
        ("SynthIDTextWatermarkDetector", "__call__"),
        ("BayesianDetectorConfig", "__init__"),
        ("BayesianDetectorModel", "forward"),
        ("WatermarkingConfig", "__init__"),
        ("SynthIDTextWatermarkingConfig", "__init__"),
        ("SynthIDTextWatermarkLogitsProcessor", "compute_g_values"),
        ("SynthIDTextWatermarkLogitsProcessor", "accumulate_hash"),
    ],
)
def test_arguments_are_the_references(name: str, method: str) -> None:
    transformers = pytest.importorskip("transformers")

    def arguments(library: Any) -> list[tuple[str, Any]]:
        function = getattr(getattr(library, name), method)
        return [(one.name, one.default) for one in inspect.signature(function).parameters.values()]

    assert arguments(quintet) == arguments(transformers)
