"""Guidance: away from another prompt, which follows its row wherever it goes."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch

from quintet.errors import GenerationError, InputError
from quintet.generation import UnbatchedClassifierFreeGuidanceLogitsProcessor

PAD = 0
MANY = list(range(20, 40))


def prompts(pair: Any, rows: int = 3, length: int = 6, seed: int = 5) -> torch.Tensor:
    size = min(pair.ours.config.vocab_size, 60)
    return torch.randint(3, size, (rows, length), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("scale", [1.6, 0.0, -0.5])
def test_away_from_another_prompt_as_the_reference(family_pair: Any, scale: float, use_cache: bool) -> None:
    ids, other = prompts(family_pair), prompts(family_pair, length=4, seed=9)
    if family_pair.ours.config.model_type == "openai-gpt":
        use_cache = False  # the reference, which has no cache here, fails with it
    for masked in ({}, {"negative_prompt_attention_mask": torch.ones_like(other)}):
        options = {"guidance_scale": scale, "negative_prompt_ids": other, "use_cache": use_cache} | masked
        options |= {"max_new_tokens": 15, "pad_token_id": PAD, "eos_token_id": 2}
        results = []
        for model in family_pair:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                call = copy.deepcopy(options)
                results.append(model.generate(ids, output_scores=True, return_dict_in_generate=True, **call))
        ours, theirs = results
        assert torch.equal(ours.sequences, theirs.sequences)
        for mine, other_scores in zip(ours.scores, theirs.scores, strict=True):
            largest = float(other_scores.abs().max())
            torch.testing.assert_close(mine, other_scores, rtol=1e-5, atol=1e-5 * max(1.0, largest))


@torch.no_grad()
def test_columns_are_guided_too(pair: Any) -> None:
    options = {"guidance_scale": 1.8, "negative_prompt_ids": prompts(pair, seed=9), "max_new_tokens": 7}
    options |= {"prefix_allowed_tokens_fn": lambda batch, tokens: list(range(3, 200)), "eos_token_id": None}
    whole = pair.ours.generate(prompts(pair), **options)
    columns = [column.tokens for column in pair.ours.generate_iter(prompts(pair), **options)]
    assert torch.equal(torch.stack(columns, dim=1), whole[:, 6:])


def guided_by_hand(model: Any, ids: torch.Tensor, other: torch.Tensor, scale: float, steps: int) -> torch.Tensor:
    """One row: both texts are read from the beginning at every step."""
    new = ids[:0]
    for _ in range(steps):
        logs = [model(torch.cat([text, new])[None]).logits[0, -1].log_softmax(-1) for text in (ids, other)]
        new = torch.cat([new, (logs[1] + scale * (logs[0] - logs[1])).argmax()[None]])
    return new


@torch.no_grad()
def test_each_row_is_guided_by_its_own_prompt(pair: Any) -> None:
    """Rows that end are dropped, and negative prompts may be padded: the result is that of each row alone."""
    ids, other = prompts(pair, 3), prompts(pair, 3, 5, seed=9)
    mask = torch.ones_like(other)
    other[1, :3], mask[1, :3] = PAD, 0
    out = pair.ours.generate(
        ids, guidance_scale=1.8, negative_prompt_ids=other, negative_prompt_attention_mask=mask,
        eos_token_id=MANY, pad_token_id=PAD, max_new_tokens=20,
    )  # fmt: skip
    for row in range(3):
        alone = guided_by_hand(pair.ours, ids[row], other[row, mask[row] == 1], 1.8, 20)
        new = out[row, 6:]
        assert torch.equal(new[new != PAD], alone[: int((new != PAD).sum())])
    assert (out == PAD).any()


@torch.no_grad()
@pytest.mark.parametrize("own", [True, False])
def test_guidance_follows_steps_in_any_order(pair: Any, own: bool) -> None:
    """A loop that tells of its rows, one that goes back, and one that begins another text."""
    ids = prompts(pair, 2)
    other = prompts(pair, 2, 3, seed=9) if own else None
    model = pair.ours
    processor = UnbatchedClassifierFreeGuidanceLogitsProcessor(1.5, model, other)

    def expected(tokens: torch.Tensor, rows: list[int]) -> torch.Tensor:
        begin = ids[:, -1:] if other is None else other
        text = torch.cat([begin[rows], tokens[:, 6:]], dim=1)
        first, second = (model(one).logits[:, -1].log_softmax(-1) for one in (tokens, text))
        return second + 1.5 * (first - second)

    def check(tokens: torch.Tensor, rows: list[int]) -> None:
        got = processor(tokens, model(tokens).logits[:, -1])
        torch.testing.assert_close(got, expected(tokens, rows), rtol=1e-4, atol=1e-4)

    check(ids, [0, 1])
    one = torch.cat([ids, torch.tensor([[4], [5]])], dim=1)
    check(one, [0, 1])
    two = torch.cat([one, torch.tensor([[6], [7]])], dim=1)
    check(two, [0, 1])
    check(one, [0, 1])  # a step back
    processor.select(torch.tensor([1, 0]))
    swapped = torch.cat([one[[1, 0]], torch.tensor([[8], [9]])], dim=1)
    check(swapped, [1, 0])
    processor.select(torch.tensor([1]))
    check(torch.cat([swapped[1:], torch.tensor([[8]])], dim=1), [0])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"negative_prompt_ids": "a"}, "the negative prompt cannot be used: input_ids is a str"),
        ({"negative_prompt_ids": torch.zeros(3)}, r"the negative prompt cannot be used: input_ids has shape \(3,\)"),
        ({"negative_prompt_attention_mask": torch.ones(3, 2)}, "without negative_prompt_ids, which it belongs to"),
        (
            {"negative_prompt_ids": torch.ones(3, 2).long(), "negative_prompt_attention_mask": torch.ones(3, 3)},
            r"the negative prompt cannot be used: attention_mask has shape \(3, 3\)",
        ),
        (
            {"negative_prompt_ids": torch.ones(1, 2).long(), "negative_prompt_attention_mask": torch.tensor([[1, 0]])},
            "row 0 ends with padding",
        ),
    ],
    ids=str,
)
def test_negative_prompts_that_cannot_be_used(pair: Any, options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        pair.ours.generate(prompts(pair), guidance_scale=2.0, max_new_tokens=3, **options)


def test_negative_prompts_that_do_not_fit(pair: Any) -> None:
    ids = prompts(pair)
    with pytest.raises(GenerationError, match="negative_prompt_ids has 2 rows and the batch 3"):
        pair.ours.generate(ids, guidance_scale=2.0, negative_prompt_ids=ids[:2], max_new_tokens=3)
    with pytest.raises(GenerationError, match="negative_prompt_ids has 250 tokens and is continued by up to 20 new"):
        pair.ours.generate(ids, guidance_scale=2.0, negative_prompt_ids=ids.repeat(1, 50)[:, :250], max_new_tokens=20)
    with pytest.warns(UserWarning, match="negative_prompt_ids has no effect without guidance_scale"):
        pair.ours.generate(ids, negative_prompt_ids=ids, max_new_tokens=3)


def test_guidance_needs_a_token_to_begin_with(pair: Any) -> None:
    embeds = pair.ours.get_input_embeddings()(prompts(pair))
    with pytest.raises(InputError, match="a prompt of inputs_embeds alone has none. Pass negative_prompt_ids"):
        pair.ours.generate(inputs_embeds=embeds, guidance_scale=2.0, max_new_tokens=2)
