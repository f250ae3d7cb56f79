"""Every option that shapes scores, through `generate`: token for token and score for score what the reference gives."""

from __future__ import annotations

import copy
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from quintet.errors import GenerationError
from quintet.generation import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PrefixConstrainedLogitsProcessor,
    SequenceBiasLogitsProcessor,
    SynthIDTextWatermarkingConfig,
    UnbatchedClassifierFreeGuidanceLogitsProcessor,
    WatermarkingConfig,
)

transformers = pytest.importorskip("transformers")

PAD, EOS = 0, 2
KEYS = [654, 400, 836, 123, 340]


def a_third(batch: int, tokens: torch.Tensor) -> list[int]:
    return [one for one in range(3, 60) if (one + int(tokens[-1]) + batch) % 3 == 0]


# Options, and tokens that end the text: many where the option is about the end.
MANY = list(range(20, 40))
OPTIONS: list[dict[str, Any]] = [
    {"sequence_bias": [[[5], 3.0], [[7, 8], -2.0], [[9], -50.0]]},
    {"sequence_bias": {(5,): 4.0, (5, 5): -9.0}},
    {"encoder_repetition_penalty": 1.8},
    {"encoder_repetition_penalty": 0.4},
    {"repetition_penalty": 1.3, "encoder_repetition_penalty": 1.3},
    {"no_repeat_ngram_size": 1},
    {"no_repeat_ngram_size": 2},
    {"encoder_no_repeat_ngram_size": 1},
    {"encoder_no_repeat_ngram_size": 2},
    {"bad_words_ids": [[5], [9, 10], [2]]},
    {"bad_words_ids": [[one] for one in range(3, 55)]},
    {"prefix_allowed_tokens_fn": a_third},
    {"forced_eos_token_id": 7},
    {"forced_eos_token_id": [30, 7], "eos_token_id": MANY},
    {"remove_invalid_values": True},
    {"exponential_decay_length_penalty": (3, 1.3), "eos_token_id": MANY[:3]},
    {"exponential_decay_length_penalty": [0, 2.0], "eos_token_id": 21},
    {"suppress_tokens": list(range(3, 40))},
    {"begin_suppress_tokens": list(range(3, 59))},
    {"renormalize_logits": True},
    {"guidance_scale": 1.7},
    {"guidance_scale": 0.2, "use_cache": False},
    {"watermarking_config": {"bias": 3.0}},
    {"watermarking_config": {"seeding_scheme": "selfhash", "context_width": 3, "greenlist_ratio": 0.5}},
    {"watermarking_config": SynthIDTextWatermarkingConfig(5, KEYS)},
    {"watermarking_config": SynthIDTextWatermarkingConfig(3, KEYS, 4, skip_first_ngram_calls=True)},
    {"min_new_tokens": 5, "bad_words_ids": [[6]], "no_repeat_ngram_size": 2, "eos_token_id": MANY},
]
SAMPLED: list[dict[str, Any]] = [
    {"top_h": 0.4},
    {"top_h": 0.97, "top_k": 0},
    {"typical_p": 0.3},
    {"typical_p": 0.95, "top_k": 0},
    {"epsilon_cutoff": 0.05},
    {"eta_cutoff": 0.3, "top_k": None},
    {"temperature": 1.7, "top_h": 0.8, "top_k": 30, "top_p": 0.95, "min_p": 0.01, "typical_p": 0.9}
    | {"epsilon_cutoff": 3e-3, "eta_cutoff": 2e-3, "renormalize_logits": True, "repetition_penalty": 1.2},
    {"top_p": 0.8, "watermarking_config": {"bias": 1.5}, "renormalize_logits": True},
]


def named(options: dict[str, Any]) -> str:
    return ", ".join(f"{name}={getattr(value, '__name__', str(value)[:40])}" for name, value in options.items())


def both(pair: Any, ids: torch.Tensor, seed: int = 11, **options: Any) -> list[Any]:
    """Run both libraries from the same state of the global generator; return (ours, reference)."""
    if pair.ours.config.model_type == "openai-gpt" and "guidance_scale" in options:
        options["use_cache"] = False  # the reference, which has no cache here, fails with it
    results = []
    for model in pair:
        torch.manual_seed(seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            call = {"pad_token_id": PAD, "eos_token_id": EOS, "max_new_tokens": 15} | copy.deepcopy(options)
            results.append(model.generate(ids.clone(), output_scores=True, return_dict_in_generate=True, **call))
    return results


def assert_same(pair: Any, ids: torch.Tensor, **options: Any) -> Any:
    ours, reference = both(pair, ids, **options)
    assert torch.equal(ours.sequences, reference.sequences)
    for mine, theirs in zip(ours.scores, reference.scores, strict=True):
        # Of scores far from 0 the last bits differ between any two ways to multiply matrices.
        largest = float(theirs[theirs.abs() < 1e30].abs().max())
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5 * max(1.0, largest))
    return ours


def prompts(pair: Any, rows: int = 3, length: int = 6, seed: int = 5) -> torch.Tensor:
    size = min(pair.ours.config.vocab_size, 60)
    return torch.randint(3, size, (rows, length), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("options", OPTIONS, ids=named)
def test_every_option(family_pair: Any, options: dict[str, Any]) -> None:
    out = assert_same(family_pair, prompts(family_pair), **options)
    assert out.sequences.shape[1] <= 21


@pytest.mark.parametrize("options", OPTIONS, ids=named)
def test_every_option_while_sampling(pair: Any, options: dict[str, Any]) -> None:
    assert_same(pair, prompts(pair), do_sample=True, **options)


@pytest.mark.parametrize("options", SAMPLED, ids=named)
def test_every_option_of_sampling(family_pair: Any, options: dict[str, Any]) -> None:
    assert_same(family_pair, prompts(family_pair), do_sample=True, **options)


@pytest.mark.parametrize("options", [one for one in OPTIONS if "guidance_scale" not in one], ids=named)
def test_left_padded_batches_with_several_sequences(pair: Any, options: dict[str, Any]) -> None:
    ids = prompts(pair, 2, 8)
    mask = torch.ones_like(ids)
    ids[1, :5], mask[1, :5] = PAD, 0
    assert_same(pair, ids, attention_mask=mask, do_sample=True, num_return_sequences=2, **options)


@pytest.mark.parametrize("more", [{}, {"begin_suppress_tokens": list(range(3, 200))}], ids=["alone", "begin"])
def test_a_forced_first_token(pair: Any, more: dict[str, Any]) -> None:
    forced = {"forced_bos_token_id": 44} | more
    out = assert_same(pair, torch.tensor([[1], [5]]), **forced)
    assert out.sequences[:, 1].tolist() == [44, 44]
    longer = assert_same(pair, prompts(pair), **forced)  # only behind a single token
    assert not (longer.sequences[:, 6] == 44).all()


def test_an_own_processor_takes_the_place_of_the_built_one(pair: Any) -> None:
    ids = prompts(pair)
    own = SequenceBiasLogitsProcessor([[[33], 100.0]])
    with pytest.warns(UserWarning, match="SequenceBiasLogitsProcessor is given, and the options ask for one too"):
        out = pair.ours.generate(ids, logits_processor=[own], sequence_bias=[[[44], 100.0]], max_new_tokens=3)
    assert (out[:, 6:] == 33).all()


def test_own_processors_can_be_used_again(pair: Any) -> None:
    """What a run notes of its rows does not stay in the caller's objects."""
    ids = prompts(pair)
    own = [
        PrefixConstrainedLogitsProcessor(a_third, 1),
        UnbatchedClassifierFreeGuidanceLogitsProcessor(1.5, pair.ours, prompts(pair, length=3, seed=8)),
        SynthIDTextWatermarkingConfig(4, KEYS).construct_processor(300),
    ]
    call: dict[str, Any] = {"logits_processor": own, "eos_token_id": MANY, "pad_token_id": PAD, "max_new_tokens": 12}
    first = pair.ours.generate(ids, **call)
    assert torch.equal(pair.ours.generate(ids, **call), first)
    assert pair.ours.generate(ids[:, :4], **call).shape[0] == 3


# --- what cannot be ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"top_h": 0}, "top_h is 0, but must be a number above 0 and at most 1, or None.*switches it off"),
        ({"top_h": 1.1}, "top_h is 1.1"),
        ({"typical_p": 0.0}, "typical_p is 0.0"),
        ({"typical_p": float("nan")}, "typical_p is nan"),
        ({"epsilon_cutoff": -0.1}, "epsilon_cutoff is -0.1, but must be a number from 0 to 1"),
        ({"eta_cutoff": "x"}, "eta_cutoff is 'x'"),
        ({"repetition_penalty": 0.0}, "repetition_penalty is 0.0"),
        ({"encoder_repetition_penalty": -1.0}, "encoder_repetition_penalty is -1.0.*1.0 switches it off"),
        ({"no_repeat_ngram_size": -1}, "no_repeat_ngram_size is -1, but must be an integer of at least 0"),
        ({"no_repeat_ngram_size": 2.0}, "no_repeat_ngram_size is 2.0"),
        ({"encoder_no_repeat_ngram_size": "2"}, "encoder_no_repeat_ngram_size is '2'"),
        ({"bad_words_ids": [3]}, r"bad_words_ids is \[3\], but must be a list of lists of token ids"),
        ({"bad_words_ids": []}, r"bad_words_ids is \[\]"),
        ({"bad_words_ids": [[EOS]]}, "holds end-of-sequence tokens only"),
        ({"bad_words_ids": [[3000]]}, "bad_words_ids holds the token id 3000, but the model has scores for 0 to 299"),
        ({"sequence_bias": [[5, 1.0]]}, "sequence_bias is"),
        ({"sequence_bias": {(5,): None}}, "sequence_bias is"),
        ({"suppress_tokens": 5}, "suppress_tokens is 5, but must be a list of token ids"),
        ({"begin_suppress_tokens": [-1]}, "begin_suppress_tokens is"),
        ({"forced_bos_token_id": -1}, "forced_bos_token_id is -1"),
        ({"forced_eos_token_id": []}, r"forced_eos_token_id is \[\]"),
        ({"forced_eos_token_id": 999}, "forced_eos_token_id holds the token id 999"),
        ({"exponential_decay_length_penalty": 1.5}, r"but must be a pair \(start, factor\)"),
        ({"exponential_decay_length_penalty": (1, 2), "eos_token_id": None}, "there is no eos_token_id that would end"),
        ({"renormalize_logits": 1}, "renormalize_logits is 1, but must be True or False"),
        ({"remove_invalid_values": "yes"}, "remove_invalid_values is 'yes'"),
        ({"guidance_scale": "a"}, "guidance_scale is 'a'"),
        ({"guidance_scale": float("inf")}, "guidance_scale is inf"),
        ({"watermarking_config": 3}, "watermarking_config is 3, but must be a WatermarkingConfig"),
        ({"watermarking_config": {"bais": 2.0}}, "'bais' is not a setting of WatermarkingConfig. Did you mean 'bias'"),
        ({"watermarking_config": {"greenlist_ratio": 2}}, "watermarking_config.greenlist_ratio is 2, but must be"),
        ({"watermarking_config": {"keys": [1]}}, "ngram_len"),
        ({"prefix_allowed_tokens_fn": [1]}, "prefix_allowed_tokens_fn is a list, but must be a function"),
        ({"prefix_allowed_tokens_fn": lambda batch, tokens: []}, "allows no token for row 0 after 6 tokens"),
        ({"token_healing": True}, "token_healing=True .from the call. is refused: it would write the prompt anew"),
        ({"suppress_tokens": list(range(300))}, "all -inf: the processors ruled out every token"),
    ],
    ids=lambda one: named(one) if isinstance(one, dict) else "",
)
def test_options_that_cannot_be_met(pair: Any, options: dict[str, Any], words: str) -> None:
    with pytest.raises(GenerationError, match=words):
        pair.ours.generate(prompts(pair), do_sample=True, max_new_tokens=3, pad_token_id=PAD, **options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"encoder_repetition_penalty": 1.5}, "encoder_repetition_penalty has no effect, because the prompt is given"),
        ({"encoder_no_repeat_ngram_size": 2}, "encoder_no_repeat_ngram_size has no effect"),
        ({"no_repeat_ngram_size": 2}, "no_repeat_ngram_size counts new tokens only"),
        ({"repetition_penalty": 1.5}, "repetition_penalty counts new tokens only"),
    ],
    ids=str,
)
def test_prompts_of_embeddings(pair: Any, options: dict[str, Any], words: str) -> None:
    embeds = pair.ours.get_input_embeddings()(prompts(pair))
    with pytest.warns(UserWarning, match=words):
        ours = pair.ours.generate(inputs_embeds=embeds, max_new_tokens=9, pad_token_id=PAD, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = pair.reference.generate(inputs_embeds=embeds, max_new_tokens=9, pad_token_id=PAD, **options)
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("value", [float("nan"), float("inf")], ids=str)
def test_scores_of_a_broken_model(pair: Any, value: float) -> None:
    class Break(LogitsProcessor):
        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            return scores.index_fill(1, torch.tensor([7]), value)

    for options in (*SAMPLED[:6], {"renormalize_logits": True}):
        with pytest.raises(GenerationError, match="hold NaN|hold .inf"):
            pair.ours.generate(
                prompts(pair), logits_processor=[Break()], do_sample=True, max_new_tokens=2, pad_token_id=PAD, **options
            )


# --- files ------------------------------------------------------------------------------------------------------------

SETTINGS: dict[str, Any] = {
    "sequence_bias": [[[5, 6], 2.5], [[7], -1.0]],
    "bad_words_ids": [[5], [6, 7]],
    "suppress_tokens": [1, 2],
    "begin_suppress_tokens": [3],
    "exponential_decay_length_penalty": [15, 1.05],
    "forced_bos_token_id": 4,
    "forced_eos_token_id": 5,
    "watermarking_config": {"greenlist_ratio": 0.5, "bias": 1.5, "hashing_key": 7, "context_width": 2}
    | {"seeding_scheme": "selfhash"},
}


def test_the_references_files_are_read_and_written(tmp_path: Path) -> None:
    theirs = transformers.GenerationConfig(**copy.deepcopy(SETTINGS), do_sample=True, top_h=0.5, typical_p=0.9)
    theirs.save_pretrained(tmp_path)
    ours = GenerationConfig.from_pretrained(tmp_path)
    assert ours.watermarking_config == WatermarkingConfig(0.5, 1.5, 7, "selfhash", 2)
    ours.save_pretrained(tmp_path / "ours")
    again = transformers.GenerationConfig.from_pretrained(tmp_path / "ours")
    for name in (*SETTINGS, "top_h", "typical_p"):
        if name != "watermarking_config":
            assert getattr(ours, name) == getattr(theirs, name) == getattr(again, name), name
    assert again.watermarking_config.to_dict() == theirs.watermarking_config.to_dict()
    assert GenerationConfig.from_pretrained(tmp_path / "ours") == ours


def test_sequences_as_keys_of_a_dict_survive_a_file(tmp_path: Path) -> None:
    config = GenerationConfig(sequence_bias={(5, 6): 2.5, (7,): -1.0})
    config.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "generation_config.json").read_text())["sequence_bias"] == [
        [[5, 6], 2.5],
        [[7], -1.0],
    ]
    read = GenerationConfig.from_pretrained(tmp_path)
    expected = SequenceBiasLogitsProcessor(config.sequence_bias).sequence_bias
    assert SequenceBiasLogitsProcessor(read.sequence_bias).sequence_bias == expected


def test_settings_of_synthid_survive_a_file(tmp_path: Path) -> None:
    settings = SynthIDTextWatermarkingConfig(5, KEYS, skip_first_ngram_calls=True)
    GenerationConfig(watermarking_config=settings).save_pretrained(tmp_path)
    assert GenerationConfig.from_pretrained(tmp_path).watermarking_config == settings
    settings.to_json_file(tmp_path / "settings.json")
    assert SynthIDTextWatermarkingConfig.from_dict(json.loads((tmp_path / "settings.json").read_text())) == settings
    theirs = transformers.SynthIDTextWatermarkingConfig(5, KEYS, skip_first_ngram_calls=True)
    assert settings.to_dict() == theirs.to_dict() and dict(iter(settings)) == dict(iter(theirs))
    settings.update(ngram_len=7, nothing=3)
    assert settings.ngram_len == 7 and repr(settings).startswith('SynthIDTextWatermarkingConfig {\n  "ngram_len": 7')
    assert GenerationConfig(watermarking_config=theirs).watermarking_config is theirs  # an object of theirs will do


# --- order ------------------------------------------------------------------------------------------------------------


def kinds(chain: Any) -> list[str]:
    return [type(one).__name__ for one in chain]


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("eos", [None, 2, [2, 9]], ids=str)
def test_the_order_is_that_of_the_reference(
    pair: Any, monkeypatch: pytest.MonkeyPatch, beams: int, eos: int | list[int] | None
) -> None:
    """All options at once; the caller's processor stands before those of sampling."""

    class Mine(LogitsProcessor):
        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            return scores

    options: dict[str, Any] = SETTINGS | {
        "guidance_scale": 1.5, "encoder_repetition_penalty": 1.1, "repetition_penalty": 1.1, "no_repeat_ngram_size": 3,
        "encoder_no_repeat_ngram_size": 4, "min_new_tokens": 3, "remove_invalid_values": True, "do_sample": True,
        "temperature": 0.9, "top_h": 0.9, "top_k": 40, "top_p": 0.9, "min_p": 0.01, "typical_p": 0.9,
        "epsilon_cutoff": 0.01, "eta_cutoff": 0.01, "renormalize_logits": True, "max_new_tokens": 5,
        "num_beams": beams, "prefix_allowed_tokens_fn": a_third, "eos_token_id": eos, "pad_token_id": PAD,
    }  # fmt: skip
    if eos is None:
        options = options | {"exponential_decay_length_penalty": None, "min_new_tokens": None}
    chains: list[Any] = []

    class Enough(Exception):
        pass

    for kind in (LogitsProcessorList, transformers.LogitsProcessorList):

        def note(self: Any, *args: Any, **kwargs: Any) -> Any:
            chains.append(self)
            raise Enough

        monkeypatch.setattr(kind, "__call__", note)
    for model in pair:
        with pytest.raises(Enough), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.generate(prompts(pair), logits_processor=[Mine()], **copy.deepcopy(options))
    ours, theirs = chains
    # The reference has one more for min_length, which it makes of min_new_tokens.
    theirs = [one for one in theirs if type(one).__name__ != "MinLengthLogitsProcessor"]
    assert kinds(ours) == kinds(theirs)
    assert kinds(ours)[-1] == "LogitNormalization" and len(ours) > 20
    for mine, other in zip(ours, theirs, strict=True):
        assert getattr(mine, "min_tokens_to_keep", 1) == getattr(other, "min_tokens_to_keep", 1), type(mine).__name__
        assert getattr(mine, "top_k", 0) == getattr(other, "top_k", 0)
