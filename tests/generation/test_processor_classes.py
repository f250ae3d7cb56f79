"""Every processor class against the reference's: random scores and ids, edge values, wrong arguments, changing rows."""

from __future__ import annotations

import copy
import inspect
import math
from typing import Any

import pytest
import torch

from quintet import generation
from quintet.errors import GenerationError
from quintet.generation import (
    EncoderNoRepeatNGramLogitsProcessor,
    EncoderRepetitionPenaltyLogitsProcessor,
    EpsilonLogitsWarper,
    EtaLogitsWarper,
    ExponentialDecayLengthPenalty,
    ForcedBOSTokenLogitsProcessor,
    ForcedEOSTokenLogitsProcessor,
    HammingDiversityLogitsProcessor,
    InfNanRemoveLogitsProcessor,
    LogitNormalization,
    LogitsProcessorList,
    NoBadWordsLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    PrefixConstrainedLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    SuppressTokensAtBeginLogitsProcessor,
    SuppressTokensLogitsProcessor,
    SynthIDTextWatermarkLogitsProcessor,
    TopHLogitsWarper,
    TopKLogitsWarper,
    TypicalLogitsWarper,
    UnbatchedClassifierFreeGuidanceLogitsProcessor,
    WatermarkLogitsProcessor,
)

INF = math.inf
VOCABULARY = 40
PROMPTS = torch.tensor([[3, 7, 3, 9, 39], [0, 1, 2, 3, 4], [5, 5, 5, 5, 5]])
SYNTHID = {
    "ngram_len": 3,
    "keys": [654, 400, 836, 123],
    "sampling_table_size": 1000,
    "sampling_table_seed": 1,
    "context_history_size": 7,
    "device": "cpu",
}

DECAY = {"exponential_decay_length_penalty": (1, 1.3), "eos_token_id": [2, 3], "input_ids_seq_length": 2}


def odd(batch: int, tokens: torch.Tensor) -> list[int]:
    return [batch, *(one for one in range(VOCABULARY) if (one + int(tokens[-1])) % 3 == 0)]


CASES: list[tuple[type, dict[str, Any]]] = [
    (TopHLogitsWarper, {"top_h": 0.4}),
    (TopHLogitsWarper, {"top_h": 1.0}),
    (TopHLogitsWarper, {"top_h": 0.01, "filter_value": -9.0}),
    (TypicalLogitsWarper, {}),
    (TypicalLogitsWarper, {"mass": 0.2}),
    (TypicalLogitsWarper, {"mass": 0.01, "min_tokens_to_keep": 4, "filter_value": -20.0}),
    (TypicalLogitsWarper, {"mass": 0.9999}),
    (EpsilonLogitsWarper, {"epsilon": 0.02}),
    (EpsilonLogitsWarper, {"epsilon": 0.9, "min_tokens_to_keep": 3}),
    (EpsilonLogitsWarper, {"epsilon": 0.1, "filter_value": -3.0}),
    (EpsilonLogitsWarper, {"epsilon": 0.1, "min_tokens_to_keep": 999}),
    (EtaLogitsWarper, {"epsilon": 0.02}),
    (EtaLogitsWarper, {"epsilon": 0.9, "min_tokens_to_keep": 2, "device": "cpu"}),
    (EtaLogitsWarper, {"epsilon": 3e-4, "filter_value": -3.0}),
    (EncoderRepetitionPenaltyLogitsProcessor, {"penalty": 1.6, "encoder_input_ids": PROMPTS}),
    (EncoderRepetitionPenaltyLogitsProcessor, {"penalty": 0.3, "encoder_input_ids": PROMPTS}),
    (EncoderRepetitionPenaltyLogitsProcessor, {"penalty": 2.0, "encoder_input_ids": PROMPTS[:1]}),
    (NoRepeatNGramLogitsProcessor, {"ngram_size": 1}),
    (NoRepeatNGramLogitsProcessor, {"ngram_size": 2}),
    (NoRepeatNGramLogitsProcessor, {"ngram_size": 3}),
    (NoRepeatNGramLogitsProcessor, {"ngram_size": 30}),
    (EncoderNoRepeatNGramLogitsProcessor, {"encoder_ngram_size": 1, "encoder_input_ids": PROMPTS}),
    (EncoderNoRepeatNGramLogitsProcessor, {"encoder_ngram_size": 2, "encoder_input_ids": PROMPTS}),
    (EncoderNoRepeatNGramLogitsProcessor, {"encoder_ngram_size": 3, "encoder_input_ids": PROMPTS[0]}),
    (EncoderNoRepeatNGramLogitsProcessor, {"encoder_ngram_size": 9, "encoder_input_ids": PROMPTS}),
    (SequenceBiasLogitsProcessor, {"sequence_bias": [[[4], 2.5], [[3, 9], -4.0], [[5, 5, 6], 3.0]]}),
    (SequenceBiasLogitsProcessor, {"sequence_bias": {(4,): 2.5, (1, 4): 1.0, (9, 4): 1.5, (5,): -INF}}),
    (SequenceBiasLogitsProcessor, {"sequence_bias": {(1,) * 20 + (4,): 2.5}}),
    (NoBadWordsLogitsProcessor, {"bad_words_ids": [[4], [3, 9], [5, 5, 6]]}),
    (NoBadWordsLogitsProcessor, {"bad_words_ids": [[2], [4], [5, 2]], "eos_token_id": 2}),
    (NoBadWordsLogitsProcessor, {"bad_words_ids": [[2], [4]], "eos_token_id": torch.tensor([2, 9])}),
    (SuppressTokensLogitsProcessor, {"suppress_tokens": [1, 5, 5, 39]}),
    (SuppressTokensLogitsProcessor, {"suppress_tokens": []}),
    (SuppressTokensLogitsProcessor, {"suppress_tokens": (1, 40, 1000)}),
    (SuppressTokensAtBeginLogitsProcessor, {"begin_suppress_tokens": [1, 5], "begin_index": 6}),
    (SuppressTokensAtBeginLogitsProcessor, {"begin_suppress_tokens": [1, 5], "begin_index": 5}),
    (ForcedBOSTokenLogitsProcessor, {"bos_token_id": 7}),
    (ForcedEOSTokenLogitsProcessor, {"max_length": 7, "eos_token_id": 7}),
    (ForcedEOSTokenLogitsProcessor, {"max_length": 7, "eos_token_id": [7, 8]}),
    (ForcedEOSTokenLogitsProcessor, {"max_length": 8, "eos_token_id": 7}),
    (ExponentialDecayLengthPenalty, DECAY),
    (ExponentialDecayLengthPenalty, DECAY | {"exponential_decay_length_penalty": (4, 1.3), "eos_token_id": 2}),
    (ExponentialDecayLengthPenalty, DECAY | {"exponential_decay_length_penalty": (0, 0.5)}),
    (InfNanRemoveLogitsProcessor, {}),
    (LogitNormalization, {}),
    (PrefixConstrainedLogitsProcessor, {"prefix_allowed_tokens_fn": odd, "num_beams": 1}),
    (PrefixConstrainedLogitsProcessor, {"prefix_allowed_tokens_fn": odd, "num_beams": 3}),
    (WatermarkLogitsProcessor, {"vocab_size": VOCABULARY, "device": "cpu"}),
    (WatermarkLogitsProcessor, {
        "vocab_size": VOCABULARY, "device": "cpu", "greenlist_ratio": 0.6, "bias": -1.0, "hashing_key": 77,
        "seeding_scheme": "selfhash", "context_width": 3,
    }),
    (WatermarkLogitsProcessor, {"vocab_size": VOCABULARY, "device": "cpu", "context_width": 30}),
    (SynthIDTextWatermarkLogitsProcessor, SYNTHID),
    (SynthIDTextWatermarkLogitsProcessor, SYNTHID | {"debug_mode": True, "ngram_len": 5}),
]  # fmt: skip


def named(case: Any) -> str:
    return case.__name__ if isinstance(case, type) else "-".join(str(one)[:30] for one in case)


def inputs(rows: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(4)
    ids = torch.randint(0, VOCABULARY, (rows, 6), generator=generator)
    ids[:, 2:] = torch.tensor([[3, 9, 3, 9], [5, 5, 5, 5], [1, 2, 4, 1]])[:rows]
    return ids, torch.randn(rows, VOCABULARY, generator=generator) * 3


@pytest.mark.parametrize(("kind", "arguments"), CASES, ids=named)
def test_as_the_reference(kind: type, arguments: dict[str, Any]) -> None:
    transformers = pytest.importorskip("transformers")
    input_ids, scores = inputs()
    ids_before, scores_before = input_ids.clone(), scores.clone()
    expected = getattr(transformers.generation, kind.__name__)(**copy.deepcopy(arguments))(input_ids, scores.clone())
    processor = kind(**arguments)
    torch.testing.assert_close(processor(input_ids, scores), expected, rtol=0, atol=1e-6)
    assert torch.equal(scores, scores_before) and torch.equal(input_ids, ids_before)
    if kind not in (SynthIDTextWatermarkLogitsProcessor,):  # whose contexts repeat at a second call
        torch.testing.assert_close(processor(input_ids, scores), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("kind", "arguments"), CASES, ids=named)
def test_scores_that_are_ruled_out_already(kind: type, arguments: dict[str, Any]) -> None:
    transformers = pytest.importorskip("transformers")
    input_ids, scores = inputs()
    scores[:, ::2] = -INF
    scores[1, 1:30] = -INF
    expected = getattr(transformers.generation, kind.__name__)(**copy.deepcopy(arguments))(input_ids, scores.clone())
    torch.testing.assert_close(kind(**arguments)(input_ids, scores), expected, rtol=0, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize("kind", sorted({kind for kind, _ in CASES}, key=lambda one: one.__name__))
def test_arguments_have_the_names_and_defaults_of_the_reference(kind: type) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = inspect.signature(getattr(transformers.generation, kind.__name__).__init__).parameters.values()
    ours = inspect.signature(kind.__init__).parameters.values()
    assert [(one.name, one.default) for one in ours] == [(one.name, one.default) for one in theirs]


def test_no_class_for_decoders_is_missing() -> None:
    transformers = pytest.importorskip("transformers")
    theirs = {
        name
        for name in dir(transformers.generation)
        if name.endswith(
            ("LogitsProcessor", "LogitsWarper", "LengthPenalty", "LogitNormalization", "WatermarkingConfig")
        )
    }
    for_other_models = ("Whisper", "Bark", "Dia", "Alternating", "ClassifierFree")
    missing = {name for name in theirs if not hasattr(generation, name) and not name.startswith(for_other_models)}
    assert missing == set()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize(("kind", "arguments"), CASES, ids=named)
def test_other_dtypes_stay_what_they_are(kind: type, arguments: dict[str, Any], dtype: torch.dtype) -> None:
    input_ids, scores = inputs()
    after = kind(**arguments)(input_ids, scores.to(dtype))
    assert after.dtype == dtype and after.shape == scores.shape
    assert not after.isnan().any()


# --- repetition -------------------------------------------------------------------------------------------------------


def test_ids_without_a_score_do_no_harm() -> None:
    """An embedding may be larger than the head."""
    ids, scores = torch.tensor([[45, 3, 50, 45, 3]]), torch.ones(1, VOCABULARY)
    assert NoRepeatNGramLogitsProcessor(1)(ids, scores).isneginf().nonzero()[:, 1].tolist() == [3]
    assert EncoderNoRepeatNGramLogitsProcessor(2, torch.tensor([[3, 99]]))(ids, scores).isfinite().all()
    penalised = EncoderRepetitionPenaltyLogitsProcessor(2.0, torch.tensor([[45, 3]]))(ids, scores)
    assert penalised[0].tolist() == [2.0 if one == 3 else 1.0 for one in range(VOCABULARY)]


def test_no_group_of_tokens_comes_twice() -> None:
    generator = torch.Generator().manual_seed(1)
    for size in (1, 2, 3):
        ids = torch.zeros((4, 1), dtype=torch.long)
        for _ in range(12):
            scores = NoRepeatNGramLogitsProcessor(size)(ids, torch.randn(4, 20, generator=generator))
            ids = torch.cat([ids, scores.argmax(-1, keepdim=True)], dim=1)
        for row in ids.tolist():
            groups = [tuple(row[start : start + size]) for start in range(len(row) - size + 1)]
            assert len(set(groups)) == len(groups)


def test_hamming_diversity_by_hand() -> None:
    """Two prompts, four beams in two groups: the second group loses what the first has chosen."""
    processor = HammingDiversityLogitsProcessor(0.5, num_beams=4, num_beam_groups=2)
    chosen = torch.tensor([3, 3, 9, 9, 1, 2, 9, 9])  # the first two of each four belong to group 0
    scores = torch.zeros(4, 6)
    first = processor(torch.zeros(4, 1), scores, current_tokens=chosen, beam_group_idx=0)
    assert torch.equal(first, scores)
    second = processor(torch.zeros(4, 1), scores, current_tokens=chosen, beam_group_idx=1)
    assert second.tolist() == [
        [0, 0, 0, -1, 0, 0],
        [0, 0, 0, -1, 0, 0],
        [0, -0.5, -0.5, 0, 0, 0],
        [0, -0.5, -0.5, 0, 0, 0],
    ]
    through_a_list = LogitsProcessorList([processor])(
        torch.zeros(4, 1), scores, current_tokens=chosen, beam_group_idx=1
    )
    assert torch.equal(through_a_list, second)
    with pytest.raises(GenerationError, match=r"also needs the argument\(s\) current_tokens, beam_group_idx"):
        LogitsProcessorList([processor])(torch.zeros(4, 1), scores)


# --- rows that go -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        (RepetitionPenaltyLogitsProcessor, {"penalty": 1.7, "prompt_ignore_length": torch.tensor([0, 2, 4])}),
        (EncoderRepetitionPenaltyLogitsProcessor, {"penalty": 1.7, "encoder_input_ids": PROMPTS}),
        (EncoderNoRepeatNGramLogitsProcessor, {"encoder_ngram_size": 1, "encoder_input_ids": PROMPTS}),
        (PrefixConstrainedLogitsProcessor, {"prefix_allowed_tokens_fn": odd, "num_beams": 1}),
        (SynthIDTextWatermarkLogitsProcessor, SYNTHID),
    ],
    ids=named,
)
def test_rows_may_be_dropped_and_reordered(kind: type, arguments: dict[str, Any]) -> None:
    input_ids, scores = inputs()
    processor = kind(**arguments)
    processor(input_ids, scores)
    longer = torch.cat([input_ids, torch.tensor([[8], [9], [10]])], dim=1)
    all_rows = copy.deepcopy(processor)(longer, scores)
    rows = torch.tensor([2, 0])
    processor.select(rows)
    assert torch.equal(processor(longer[rows], scores[rows]), all_rows[rows])
    processor.select(torch.tensor([1]))
    assert torch.equal(processor(longer[:1], scores[:1]), all_rows[:1])


# --- lists of tokens and functions ------------------------------------------------------------------------------------


def test_the_place_of_the_begin_can_be_moved() -> None:
    processor = SuppressTokensAtBeginLogitsProcessor([1], 3)
    assert processor(torch.zeros(1, 4, dtype=torch.long), torch.zeros(1, 5)).isfinite().all()
    processor.set_begin_index(4)
    assert processor(torch.zeros(1, 4, dtype=torch.long), torch.zeros(1, 5)).isneginf().nonzero().tolist() == [[0, 1]]


def test_what_a_function_allows_comes_even_when_it_was_ruled_out() -> None:
    transformers = pytest.importorskip("transformers")
    scores = torch.zeros(4, 6)
    scores[:, 3] = -INF
    scores[0, 4] = -INF
    ids = torch.zeros(4, 2, dtype=torch.long)
    for beams in (1, 2):
        got = PrefixConstrainedLogitsProcessor(lambda batch, tokens: [3], beams)(ids, scores)
        assert got.argmax(-1).tolist() == [3] * 4 and (got.exp().sum(-1) == 1).all()
    some = PrefixConstrainedLogitsProcessor(lambda batch, tokens: [3, 4], 2)(ids, scores)
    theirs = transformers.PrefixConstrainedLogitsProcessor(lambda batch, tokens: [3, 4], 2)(ids, scores)
    assert torch.equal(some, theirs)  # one beam of the first prompt can go on: the other dies


@pytest.mark.parametrize("as_kind", [list, tuple, set, torch.tensor], ids=lambda one: one.__name__)
def test_a_function_may_return_any_list_of_ids(as_kind: Any) -> None:
    processor = PrefixConstrainedLogitsProcessor(lambda batch, tokens: as_kind([1, 2 + batch]), 1)
    kept = processor(torch.zeros(2, 1, dtype=torch.long), torch.zeros(2, 6)).isfinite().nonzero().tolist()
    assert kept == [[0, 1], [0, 2], [1, 1], [1, 3]]


@pytest.mark.parametrize(
    ("returned", "words"),
    [
        ([], "allows no token for row 0 after 2 tokens.*Return at least one id"),
        (None, "what prefix_allowed_tokens_fn returned for row 0 is None, but must be a list of token ids"),
        ([1.5], r"is \[1.5\], but must be a list of token ids"),
        ([-1], r"is \[-1\]"),
        ([6], "holds the token id 6, but the model has scores for 0 to 5"),
    ],
)
def test_functions_that_return_no_tokens(returned: Any, words: str) -> None:
    with pytest.raises(GenerationError, match=words):
        PrefixConstrainedLogitsProcessor(lambda batch, tokens: returned, 1)(torch.zeros(1, 2), torch.zeros(1, 6))


@pytest.mark.parametrize(
    ("processor", "length", "words"),
    [
        (SequenceBiasLogitsProcessor([[[1, 7], 1.0]]), 3, "sequence_bias holds the token id 7.*0 to 5"),
        (NoBadWordsLogitsProcessor([[8]]), 3, "bad_words_ids holds the token id 8"),
        (ForcedBOSTokenLogitsProcessor(6), 1, "forced_bos_token_id holds the token id 6"),
        (ForcedEOSTokenLogitsProcessor(4, [1, 9]), 3, "forced_eos_token_id holds the token id 9"),
        (ExponentialDecayLengthPenalty((0, 1.5), 6, 2), 3, "eos_token_id holds the token id 6"),
    ],
    ids=lambda one: type(one).__name__,
)
def test_ids_outside_the_vocabulary(processor: Any, length: int, words: str) -> None:
    with pytest.raises(GenerationError, match=words):
        processor(torch.zeros((1, length), dtype=torch.long), torch.zeros(1, 6))


def test_a_long_text_does_not_overflow_the_length_penalty() -> None:
    processor = ExponentialDecayLengthPenalty((0, 2.0), 1, 0)
    for scores in (torch.tensor([[1.0, 3.0, 2.0]]), torch.tensor([[1.0, -3.0, 2.0]])):
        after = processor(torch.zeros((1, 5000), dtype=torch.long), scores)
        assert after.isfinite().all() and after.argmax() == 1
    ruled_out = processor(torch.zeros((1, 5000), dtype=torch.long), torch.tensor([[1.0, -INF, 2.0]]))
    assert ruled_out.tolist() == [[1.0, -INF, 2.0]]


def test_nan_and_inf() -> None:
    scores = torch.tensor([[math.nan, INF, -INF, 1.0]])
    limits = torch.finfo(torch.float32)
    after = InfNanRemoveLogitsProcessor()(torch.zeros(1, 1), scores)
    assert after.tolist() == [[0.0, limits.max, limits.min, 1.0]]
    # NaN goes through the others, so that the loop can say where it comes from.
    for warper in (TopHLogitsWarper(0.5), TypicalLogitsWarper(0.5), EpsilonLogitsWarper(0.1), EtaLogitsWarper(0.1)):
        assert warper(torch.zeros(1, 1), scores).isnan().any(), type(warper).__name__


# --- wrong arguments --------------------------------------------------------------------------------------------------

WATERMARK = (VOCABULARY, "cpu")


@pytest.mark.parametrize(
    ("kind", "arguments", "words"),
    [
        (TopHLogitsWarper, (0.0,), "top_h is 0.0, but must be a number above 0 and at most 1"),
        (TopHLogitsWarper, (1.5,), "top_h is 1.5"),
        (TopHLogitsWarper, (True,), "top_h is True"),
        (TopKLogitsWarper, (3, math.nan), "filter_value is nan, but must be a number"),
        (TypicalLogitsWarper, (1.0,), "mass is 1.0, but must be a number above 0 and below 1"),
        (TypicalLogitsWarper, ("a",), "mass is 'a'"),
        (TypicalLogitsWarper, (0.5, -1.0, 0), "min_tokens_to_keep is 0, but must be an integer of at least 1"),
        (EpsilonLogitsWarper, (0.0,), "epsilon is 0.0"),
        (EpsilonLogitsWarper, (0.1, None), "filter_value is None"),
        (EtaLogitsWarper, (1.0,), "epsilon is 1.0"),
        (EtaLogitsWarper, (0.1, -1.0, 1.5), "min_tokens_to_keep is 1.5"),
        (NoRepeatNGramLogitsProcessor, (0,), "ngram_size is 0, but must be an integer of at least 1"),
        (EncoderNoRepeatNGramLogitsProcessor, (-1, PROMPTS), "encoder_ngram_size is -1"),
        (
            EncoderNoRepeatNGramLogitsProcessor,
            (2, [1, 2]),
            "encoder_input_ids is a list, but must be an int",
        ),
        (EncoderRepetitionPenaltyLogitsProcessor, (0.0, PROMPTS), "penalty is 0.0, but must be a number above 0"),
        (EncoderRepetitionPenaltyLogitsProcessor, (2.0, torch.zeros(2, 2)), r"has shape \(2, 2\), but must be an int"),
        (HammingDiversityLogitsProcessor, (0.0, 4, 2), "diversity_penalty is 0.0"),
        (HammingDiversityLogitsProcessor, (1.0, 1, 2), "num_beams is 1, but must be an integer of at least 2"),
        (HammingDiversityLogitsProcessor, (1.0, 4, 1), "num_beam_groups is 1"),
        (HammingDiversityLogitsProcessor, (1.0, 5, 2), "every group needs equally many beams"),
        (SequenceBiasLogitsProcessor, ({},), "sequence_bias is {}, but must be a list of pairs of token ids"),
        (SequenceBiasLogitsProcessor, ([],), r"sequence_bias is \[\]"),
        (SequenceBiasLogitsProcessor, ({1: 2.0},), "sequence_bias is {1: 2.0}"),
        (SequenceBiasLogitsProcessor, ({(1,): "a"},), "sequence_bias is"),
        (SequenceBiasLogitsProcessor, ([[[1], math.nan]],), "sequence_bias is"),
        (SequenceBiasLogitsProcessor, ([[[], 1.0]],), "sequence_bias is"),
        (SequenceBiasLogitsProcessor, ([[[-1], 1.0]],), "sequence_bias is"),
        (SequenceBiasLogitsProcessor, ([[1, 1.0]],), "sequence_bias is"),
        (NoBadWordsLogitsProcessor, ([],), r"bad_words_ids is \[\], but must be a list of lists of token ids"),
        (NoBadWordsLogitsProcessor, ([5],), r"bad_words_ids is \[5\]"),
        (NoBadWordsLogitsProcessor, ([[]],), r"bad_words_ids is \[\[\]\]"),
        (NoBadWordsLogitsProcessor, ([[1, -2]],), "bad_words_ids is"),
        (NoBadWordsLogitsProcessor, ([[2]], 2), "holds end-of-sequence tokens only.*Use min_new_tokens"),
        (SuppressTokensLogitsProcessor, (3,), "suppress_tokens is 3, but must be a list of token ids"),
        (SuppressTokensLogitsProcessor, ([-1],), r"suppress_tokens is \[-1\]"),
        (SuppressTokensAtBeginLogitsProcessor, (["a"], 1), "begin_suppress_tokens is"),
        (SuppressTokensAtBeginLogitsProcessor, ([1], -1), "begin_index is -1"),
        (ForcedBOSTokenLogitsProcessor, (-1,), "bos_token_id is -1, but must be a token id"),
        (ForcedEOSTokenLogitsProcessor, (5, -1), r"eos_token_id is \[-1\]"),
        (ForcedEOSTokenLogitsProcessor, (0, 1), "max_length is 0"),
        (ForcedEOSTokenLogitsProcessor, (5, "a"), "eos_token_id is 'a'"),
        (ForcedEOSTokenLogitsProcessor, (5, torch.tensor([1.0])), "eos_token_id is a tensor of torch.float32"),
        (ExponentialDecayLengthPenalty, ((1,), 2, 3), r"penalty is \(1,\), but must be a pair \(start, factor\)"),
        (ExponentialDecayLengthPenalty, ((1, 0.0), 2, 3), "but must be a pair"),
        (ExponentialDecayLengthPenalty, ((-1, 1.1), 2, 3), "but must be a pair"),
        (ExponentialDecayLengthPenalty, ((1, 1.1), -2, 3), "eos_token_id is"),
        (ExponentialDecayLengthPenalty, ((1, 1.1), 2, None), "input_ids_seq_length is None"),
        (PrefixConstrainedLogitsProcessor, (3, 1), "prefix_allowed_tokens_fn is a int, but must be a function"),
        (PrefixConstrainedLogitsProcessor, (print, 0), "num_beams is 0"),
        (
            UnbatchedClassifierFreeGuidanceLogitsProcessor,
            ("a", None),
            "guidance_scale is 'a', but must be a fin",
        ),
        (
            WatermarkLogitsProcessor,
            (*WATERMARK, 0.0),
            "greenlist_ratio is 0.0, but must be a number above 0",
        ),
        (WatermarkLogitsProcessor, (*WATERMARK, 1.0), "greenlist_ratio is 1.0"),
        (WatermarkLogitsProcessor, (*WATERMARK, 0.5, math.inf), "bias is inf"),
        (WatermarkLogitsProcessor, (*WATERMARK, 0.5, 1.0, 0), "hashing_key is 0"),
        (WatermarkLogitsProcessor, (*WATERMARK, 0.5, 1.0, 5, "right"), "'right', but must be 'lefthash' or 'selfhash'"),
        (WatermarkLogitsProcessor, (*WATERMARK, 0.5, 1.0, 5, "lefthash", 0), "context_width is 0"),
        (SynthIDTextWatermarkLogitsProcessor, (1, [1], 9, 0, 9, "cpu"), "ngram_len is 1, but must be an integer"),
        (SynthIDTextWatermarkLogitsProcessor, (2, [], 9, 0, 9, "cpu"), r"keys is \[\], but must be a list of integers"),
        (SynthIDTextWatermarkLogitsProcessor, (2, [1], 0, 0, 9, "cpu"), "sampling_table_size is 0"),
        (SynthIDTextWatermarkLogitsProcessor, (2, [1], 2**24 + 1, 0, 9, "cpu"), "sampling_table_size is 16777217"),
        (SynthIDTextWatermarkLogitsProcessor, (2, [1], 9, -1, 9, "cpu"), "sampling_table_seed is -1"),
        (SynthIDTextWatermarkLogitsProcessor, (2, [1], 9, 0, 0, "cpu"), "context_history_size is 0"),
        (SynthIDTextWatermarkLogitsProcessor, (2, [1], 9, 0, 9, "cpu", 1), "skip_first_ngram_calls is 1"),
    ],
    ids=named,
)
def test_wrong_arguments(kind: type, arguments: tuple[Any, ...], words: str) -> None:
    with pytest.raises(GenerationError, match=words):
        kind(*arguments)


def test_long_values_are_cut_in_messages() -> None:
    with pytest.raises(GenerationError, match=r"but must be a list of token ids") as caught:
        SuppressTokensLogitsProcessor(list(range(100_000)) + [-1])
    assert len(str(caught.value)) < 500


def test_prompts_of_another_batch() -> None:
    for processor in (
        EncoderRepetitionPenaltyLogitsProcessor(1.5, PROMPTS[:2]),
        EncoderNoRepeatNGramLogitsProcessor(2, PROMPTS[:2]),
    ):
        with pytest.raises(GenerationError, match="encoder_input_ids has 2 rows and the batch 3"):
            processor(*inputs())
