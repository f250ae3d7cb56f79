"""What docs/differences.md says about processors is true: of us, and of the reference that it speaks of."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from quintet.errors import GenerationError
from quintet.generation import ExponentialDecayLengthPenalty, GenerationConfig, SynthIDTextWatermarkingConfig

transformers = pytest.importorskip("transformers")

IDS = torch.tensor([[5, 17, 3, 88, 42], [70, 2, 33, 4, 90]])
OTHER = torch.tensor([[9, 8, 7], [60, 61, 62]])
CALL: dict[str, Any] = {"max_new_tokens": 10, "eos_token_id": None, "pad_token_id": 98}


def scores(model: Any, ids: torch.Tensor, **options: Any) -> torch.Tensor:
    """The first step's scores and the last one's, (2, B, V)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        out = model.generate(ids, output_scores=True, return_dict_in_generate=True, **{**CALL, **options})
    return torch.stack([out.scores[0], out.scores[-1]])


def test_padding_of_negative_prompts(pair: Any, same: Any) -> None:
    ours, theirs = pair("GPT2LMHeadModel")
    padded, mask = torch.tensor([[0, 0, 7]]), torch.tensor([[0, 0, 1]])
    first = IDS[:1]
    alone = {"guidance_scale": 2.0, "negative_prompt_ids": padded[:, 2:]}
    together = {"guidance_scale": 2.0, "negative_prompt_ids": padded, "negative_prompt_attention_mask": mask}
    same(scores(ours, first, **alone), scores(theirs, first, **alone))
    same(scores(ours, first, **together), scores(ours, first, **alone))
    assert not torch.allclose(scores(theirs, first, **together), scores(theirs, first, **alone), atol=1e-3)


def test_several_sequences_beside_a_negative_prompt(pair: Any) -> None:
    ours, theirs = pair("GPT2LMHeadModel")
    options = {"guidance_scale": 2.0, "negative_prompt_ids": OTHER, "num_return_sequences": 2, "do_sample": True}
    assert ours.generate(IDS, **CALL, **options).shape == (4, 15)
    with pytest.raises((RuntimeError, ValueError)):
        theirs.generate(IDS, **CALL, **options)


def test_gpt_1_has_a_cache_for_the_other_prompt(pair: Any, same: Any) -> None:
    ours, theirs = pair("OpenAIGPTLMHeadModel")
    options = {"guidance_scale": 2.0, "negative_prompt_ids": OTHER}
    same(scores(ours, IDS, **options), scores(theirs, IDS, use_cache=False, **options))
    with pytest.raises(RuntimeError):
        scores(theirs, IDS, **options)


def test_settings_of_synthid_in_a_file(tmp_path: Path) -> None:
    settings = SynthIDTextWatermarkingConfig(5, [1, 2, 3])
    (tmp_path / "generation_config.json").write_text(json.dumps({"watermarking_config": settings.to_dict()}))
    assert GenerationConfig.from_pretrained(tmp_path).watermarking_config == settings
    with pytest.raises(TypeError):
        transformers.GenerationConfig.from_pretrained(tmp_path)


def test_synthid_and_reordered_rows() -> None:
    """Two rows change places: ours marks what they hold, theirs what stood there before."""
    arguments = {"sampling_table_size": 4096, "sampling_table_seed": 0, "context_history_size": 9, "device": "cpu"}
    flat = torch.zeros(2, 50)
    prompt, one, two = torch.tensor([[1], [1]]), torch.tensor([[1, 5], [1, 6]]), torch.tensor([[1, 6, 7], [1, 5, 8]])
    results = []
    for library in (transformers, __import__("quintet")):
        kind = library.SynthIDTextWatermarkLogitsProcessor
        straight, crossed = (kind(4, [3, 4], **arguments) for _ in range(2))
        straight(prompt, flat), straight(one[[1, 0]], flat)
        crossed(prompt, flat), crossed(one, flat)
        results.append(torch.equal(straight(two, flat), crossed(two, flat)))
    assert results == [False, True]


def test_length_decay_of_long_texts() -> None:
    ids, flat = torch.zeros((1, 5000), dtype=torch.long), torch.ones(1, 4)
    assert ExponentialDecayLengthPenalty((0, 2.0), 1, 0)(ids, flat).argmax() == 1
    with pytest.raises(OverflowError):
        transformers.ExponentialDecayLengthPenalty((0, 2.0), 1, 0)(ids, flat)


def test_token_healing_is_refused(pair: Any) -> None:
    ours, _ = pair("GPT2LMHeadModel")
    with pytest.raises(GenerationError, match="token_healing=True.*is refused.*prefix_allowed_tokens_fn"):
        ours.generate(IDS, token_healing=True, **CALL)
