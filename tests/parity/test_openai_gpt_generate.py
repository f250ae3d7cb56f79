"""GPT-1's `generate`, which keeps keys and values, writes what the reference writes, which has no cache."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from seeded import seeded

PROMPT = torch.tensor([[5, 17, 3, 88, 42, 9, 61], [70, 2, 33, 4, 90, 12, 8]])

STRATEGIES: list[dict[str, Any]] = [
    {"do_sample": False},
    {"do_sample": False, "repetition_penalty": 1.4},
    {"do_sample": True},
    {"do_sample": True, "top_k": 0},
    {"do_sample": True, "top_k": 5, "temperature": 1.7},
    {"do_sample": True, "top_k": 0, "top_p": 0.7},
    {"do_sample": True, "min_p": 0.02, "top_p": 0.95, "top_k": 40, "temperature": 0.8},
    {"do_sample": True, "num_return_sequences": 3},
]


@pytest.fixture
def sharp(pair: Any) -> tuple[Any, Any]:
    """Both models with larger weights, so that the likeliest token is far from the next and a wrong bit shows."""
    ours, theirs = pair("OpenAIGPTLMHeadModel", n_layer=3)
    with torch.no_grad():
        ours.transformer.tokens_embed.weight.mul_(3)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def written(model: Any, *args: Any, **options: Any) -> torch.Tensor:
    return seeded(model, *args, **{"max_new_tokens": 40, "pad_token_id": 0, **options})


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize("options", STRATEGIES, ids=str)
def test_tokens(sharp: Any, backend: str, options: dict[str, Any]) -> None:
    ours, theirs = sharp
    ours.config._attn_implementation = backend
    got = written(ours, PROMPT, **options)
    assert torch.equal(got, written(theirs, PROMPT, **options))
    assert torch.equal(got, written(ours, PROMPT, use_cache=False, **options))
    assert got.shape == (2 * options.get("num_return_sequences", 1), 47)
    assert len(got.unique()) > 5  # it does not write one word for ever


def test_ends(sharp: Any) -> None:
    ours, theirs = sharp
    ends = written(theirs, PROMPT)[:, 15:18].flatten().tolist()
    for options in ({"eos_token_id": ends[0]}, {"eos_token_id": ends}, {"eos_token_id": ends, "min_new_tokens": 12}):
        got = written(ours, PROMPT, **options)
        assert torch.equal(got, written(theirs, PROMPT, **options))
        assert got.shape[1] < 47 or (got[:, 7:] == 0).any()  # a row, or both, came to an end


def test_the_cache_is_used(sharp: Any) -> None:
    """After the prompt the model reads one token at a time, and what it returns has the cache in it."""
    ours, _ = sharp
    seen: list[int] = []
    handle = ours.transformer.tokens_embed.register_forward_pre_hook(lambda _, given: seen.append(given[0].shape[-1]))
    out = written(ours, PROMPT, max_new_tokens=5, return_dict_in_generate=True)
    handle.remove()
    assert seen == [7, 1, 1, 1, 1]
    assert out.past_key_values.get_seq_length() == 11
    more = written(ours, out.sequences, past_key_values=out.past_key_values, max_new_tokens=5)
    assert torch.equal(more, written(ours, PROMPT, max_new_tokens=10))


def test_left_padded_prompts_continue_as_they_do_alone(sharp: Any) -> None:
    ours, theirs = sharp
    mask = torch.tensor([[0, 0, 0, 1, 1, 1, 1], [1] * 7])
    got = written(ours, PROMPT, attention_mask=mask)
    assert torch.equal(got, written(theirs, PROMPT, attention_mask=mask))
    assert torch.equal(got[0, 7:], written(theirs, PROMPT[:1, 3:])[0, 4:])
    assert torch.equal(got[1], written(theirs, PROMPT[1:])[0])


def test_scores(sharp: Any, same: Any) -> None:
    ours, theirs = sharp
    options = {"output_logits": True, "output_scores": True, "return_dict_in_generate": True, "max_new_tokens": 10}
    got, wanted = written(ours, PROMPT, **options), written(theirs, PROMPT, **options)
    assert torch.equal(got.sequences, wanted.sequences)
    same(got.logits, wanted.logits, tolerance=1e-4)
    same(got.scores, wanted.scores, tolerance=1e-4)


def test_the_positions_end(sharp: Any) -> None:
    ours, _ = sharp
    with pytest.raises(ValueError, match="64"):
        written(ours, PROMPT, max_new_tokens=80)
    assert written(ours, PROMPT, max_new_tokens=57).shape == (2, 64)
