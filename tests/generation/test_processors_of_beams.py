"""Processors while beams are reordered: what they know of a row goes where the row goes."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch

from quintet.generation import LogitsProcessor, SynthIDTextWatermarkingConfig

PAD, EOS = 0, 2
OPTIONS: list[dict[str, Any]] = [
    {"sequence_bias": [[[5], 3.0], [[7, 8], -2.0]]},
    {"encoder_repetition_penalty": 1.8, "repetition_penalty": 1.2},
    {"no_repeat_ngram_size": 2, "encoder_no_repeat_ngram_size": 2},
    {"bad_words_ids": [[one] for one in range(3, 155)]},
    {"prefix_allowed_tokens_fn": lambda batch, tokens: list(range(3 + batch, 300, 3))},
    {"forced_eos_token_id": 7},
    {"exponential_decay_length_penalty": (3, 1.3), "eos_token_id": [20, 21]},
    {"suppress_tokens": list(range(3, 140)), "begin_suppress_tokens": [200]},
    {"renormalize_logits": True, "repetition_penalty": 1.3},
    {"watermarking_config": {"bias": 3.0}, "renormalize_logits": True},
    {"do_sample": True, "top_k": 3, "top_p": 0.5, "min_p": 0.4, "typical_p": 0.3, "eos_token_id": [20, 21, 22]},
    {"do_sample": True, "epsilon_cutoff": 0.3, "eta_cutoff": 0.3, "top_h": 0.9},
]


def prompts() -> torch.Tensor:
    return torch.randint(3, 300, (3, 6), generator=torch.Generator().manual_seed(5))


def sequences(model: Any, **options: Any) -> torch.Tensor:
    torch.manual_seed(3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        call = {"pad_token_id": PAD, "eos_token_id": EOS, "max_new_tokens": 12, "num_beams": 3} | options
        return model.generate(prompts(), **copy.deepcopy(call))


@pytest.mark.parametrize("options", OPTIONS, ids=lambda one: ", ".join(one))
def test_options_with_beams_are_the_references(pair: Any, options: dict[str, Any]) -> None:
    assert torch.equal(sequences(pair.ours, **options), sequences(pair.reference, **options))


class Guided(LogitsProcessor):
    """Guidance that reads the other prompt from its beginning at every step."""

    def __init__(self, model: Any, other: torch.Tensor, beams: int) -> None:
        self.model, self.other = model, other.repeat_interleave(beams, dim=0)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        text = torch.cat([self.other, input_ids[:, 6:]], dim=1)
        unwanted, wanted = self.model(text).logits[:, -1].log_softmax(-1), scores.log_softmax(-1)
        return unwanted + 1.7 * (wanted - unwanted)


@pytest.mark.parametrize("use_cache", [True, False])
def test_the_other_prompt_follows_the_beams(pair: Any, use_cache: bool) -> None:
    other = prompts()[:, :4].flip(1)
    ours = sequences(pair.ours, guidance_scale=1.7, negative_prompt_ids=other, use_cache=use_cache, eos_token_id=None)
    slowly = pair.ours.generate(
        prompts(), num_beams=3, max_new_tokens=12, eos_token_id=None, pad_token_id=PAD,
        logits_processor=[Guided(pair.ours, other, 3)],
    )  # fmt: skip
    assert torch.equal(ours, slowly)
    assert not torch.equal(ours, sequences(pair.ours, eos_token_id=None))


def test_a_watermark_of_the_new_tokens_follows_the_beams(pair: Any) -> None:
    """SynthID marks what a beam has written, not what stood in its row before."""
    settings = SynthIDTextWatermarkingConfig(3, [654, 400, 836])

    class Anew(LogitsProcessor):
        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            processor = settings.construct_processor(300)
            processor(input_ids[:, :6], scores)  # where the prompt ends
            return processor(input_ids, scores)

    built = sequences(pair.ours, watermarking_config=settings, eos_token_id=None)
    assert torch.equal(built, sequences(pair.ours, logits_processor=[Anew()], eos_token_id=None))
