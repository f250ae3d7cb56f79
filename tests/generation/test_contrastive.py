"""Contrastive search by hand, beside a slow direct form of its formula, in batches and with every cache."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from drafts import PAD, made, tokens

from quintet.auto import model_types
from quintet.cache import DynamicCache
from quintet.errors import GenerationError
from quintet.generation import GenerationConfig
from quintet.generation.loops.contrastive import choose


@pytest.fixture(params=model_types(), scope="module")
def model(request: pytest.FixtureRequest) -> Any:
    """A tiny model of each family; tests must not change it."""
    return made(request.param)


@pytest.fixture(scope="module")
def gpt2() -> Any:
    """The same of GPT-2 alone."""
    return made("gpt2")


def direct(model: Any, ids: torch.Tensor, new: int, k: int, alpha: float, penalty: float = 1.0) -> torch.Tensor:
    """Equation 5 of the paper, word for word: one row, no cache, every candidate read with the whole text."""
    for _ in range(new):
        with torch.no_grad():
            out = model(ids, output_hidden_states=True)
            text, scores = out.hidden_states[-1][0], out.logits[0, -1].clone()  # (S, E), (V,)
            seen = ids[0].unique()
            scores[seen] = torch.where(scores[seen] < 0, scores[seen] * penalty, scores[seen] / penalty)
            likely = scores.softmax(-1).topk(k)
            values = []
            for p, token in zip(likely.values.tolist(), likely.indices.tolist(), strict=True):
                longer = torch.cat([ids, torch.tensor([[token]])], dim=1)
                state = model(longer, output_hidden_states=True).hidden_states[-1][0, -1]
                alike = max(float(torch.nn.functional.cosine_similarity(state, one, dim=0)) for one in text)
                values.append((1 - alpha) * p - alpha * alike)
        best = max(range(k), key=values.__getitem__)
        ids = torch.cat([ids, likely.indices[best].reshape(1, 1)], dim=1)
    return ids


def test_a_choice_by_hand() -> None:
    # Two tokens of text along the axes. Candidates: along the first (cos 1), between (0.7071), opposite (0 at most).
    text = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    states = torch.tensor([[[1.0, 0.0], [0.5**0.5, 0.5**0.5], [-1.0, 0.0]]])
    likely = torch.tensor([[0.6, 0.3, 0.1]])
    # alpha 0:   0.6, 0.3, 0.1                           -> the first
    # alpha 0.2: 0.28, 0.24 - 0.1414 = 0.0986, 0.08      -> the first
    # alpha 0.5: -0.2, 0.15 - 0.3536 = -0.2036, 0.05     -> the third
    assert [int(choose(likely, states, text, alpha)) for alpha in (0.0, 0.2, 0.5, 1.0)] == [0, 0, 2, 2]
    # The text's second token is padding: the third is opposite to the first one, cos -1.
    padded = text * torch.tensor([[[1.0], [0.0]]])
    assert int(choose(torch.tensor([[0.9, 0.05, 0.05]]), states, padded, 0.35)) == 2  # 0.235, -0.215, 0.3825
    # A token that is ruled out is not taken, however new it is.
    assert int(choose(torch.tensor([[0.7, 0.3, 0.0]]), states, text, 0.9)) == 1


@pytest.mark.parametrize(("k", "alpha"), [(2, 0.6), (4, 0.6), (6, 0.95), (3, 0.1), (1, 0.6)])
def test_tokens_are_those_of_the_direct_form(model: Any, k: int, alpha: float) -> None:
    ids = tokens(1, 6)
    out = model.generate(ids, max_new_tokens=12, eos_token_id=None, penalty_alpha=alpha, top_k=k)
    assert torch.equal(out, direct(model, ids, 12, k, alpha))
    if k == 1:
        assert torch.equal(out, model.generate(ids, max_new_tokens=12, eos_token_id=None))
    elif alpha == 0.95:  # where the likeness counts, another text comes out
        assert not torch.equal(out, model.generate(ids, max_new_tokens=12, eos_token_id=None))


def test_processors_come_first(gpt2: Any) -> None:
    ids = tokens(1, 6)
    out = gpt2.generate(ids, max_new_tokens=12, eos_token_id=None, penalty_alpha=0.6, top_k=4, repetition_penalty=1.8)
    assert torch.equal(out, direct(gpt2, ids, 12, 4, 0.6, penalty=1.8))
    plain = gpt2.generate(ids, max_new_tokens=12, eos_token_id=None, penalty_alpha=0.6, top_k=4)
    assert not torch.equal(out, plain)
    # Of two tokens that are allowed, none of the 8 candidates beyond them may be taken.
    few = gpt2.generate(
        ids,
        max_new_tokens=12,
        eos_token_id=None,
        penalty_alpha=0.9,
        top_k=8,
        prefix_allowed_tokens_fn=lambda row, text: [4, 7],
    )
    assert set(few[0, 6:].tolist()) <= {4, 7}


def test_left_padded_batches_give_what_each_row_gives_alone(model: Any) -> None:
    ids, mask = tokens(3, 8), torch.ones(3, 8, dtype=torch.long)
    for row, padding in enumerate((0, 3, 7)):
        ids[row, :padding], mask[row, :padding] = PAD, 0
    given: dict[str, Any] = {"max_new_tokens": 15, "eos_token_id": None, "penalty_alpha": 0.6, "top_k": 4}
    out = model.generate(ids, attention_mask=mask, **given)
    for row in range(3):
        alone = ids[row : row + 1, mask[row] == 1]
        got = model.generate(alone, attention_mask=torch.ones_like(alone), **given)
        assert torch.equal(out[row, 8:], got[0, alone.shape[1] :])


@pytest.mark.parametrize(
    "way",
    [
        {"use_cache": False},
        {"cache_implementation": "static"},
        {"cache_implementation": "offloaded"},
        {"past_key_values": "empty"},
        {"prefill_chunk_size": 9},
    ],
    ids=str,
)
def test_every_cache_gives_the_same(model: Any, way: dict[str, Any]) -> None:
    given: dict[str, Any] = {"max_new_tokens": 15, "eos_token_id": None, "penalty_alpha": 0.6, "top_k": 4}
    if "past_key_values" in way:
        way = {"past_key_values": DynamicCache(config=model.config)}
    plain = model.generate(tokens(2, 8), **given)
    assert torch.equal(model.generate(tokens(2, 8), **given, **way), plain)


def test_finished_rows_are_padded_and_the_others_go_on(gpt2: Any) -> None:
    given: dict[str, Any] = {"max_new_tokens": 30, "penalty_alpha": 0.6, "top_k": 4, "pad_token_id": PAD}
    free = gpt2.generate(tokens(4, 8), eos_token_id=None, **given)
    eos = int(free[0, 12])
    out = gpt2.generate(tokens(4, 8), eos_token_id=eos, **given)
    for row in range(4):
        ends = (free[row, 8:] == eos).nonzero()
        length = 8 + int(ends[0]) + 1 if len(ends) else out.shape[1]
        assert torch.equal(out[row, :length], free[row, :length])
        assert (out[row, length:] == PAD).all()
    assert (out[0, 13:] == PAD).all()
    assert out.shape[1] > 13


def test_what_comes_back(gpt2: Any) -> None:
    given: dict[str, Any] = {"max_new_tokens": 7, "eos_token_id": None, "penalty_alpha": 0.6, "top_k": 4}
    shown = dict.fromkeys(("output_scores", "output_logits", "output_hidden_states"), True)
    out = gpt2.generate(tokens(2, 5), return_dict_in_generate=True, repetition_penalty=1.5, **shown, **given)
    assert out.past_key_values.get_seq_length() == 5 + 7 - 1
    assert out.past_key_values.layers[0].keys.shape[0] == 2
    with torch.no_grad():
        whole = gpt2(out.sequences, output_hidden_states=True)
    for place in range(7):
        torch.testing.assert_close(out.logits[place], whole.logits[:, 4 + place], atol=1e-4, rtol=1e-4)
        assert not torch.equal(out.scores[place], out.logits[place])
        for mine, all_of_it in zip(out.hidden_states[place], whole.hidden_states, strict=True):
            wanted = all_of_it[:, :5] if place == 0 else all_of_it[:, 4 + place : 5 + place]
            torch.testing.assert_close(mine, wanted, atol=1e-4, rtol=1e-4)
    columns = list(gpt2.generate_iter(tokens(2, 5), repetition_penalty=1.5, **given))
    assert [column.ids for column in columns] == out.sequences[:, 5:].T.tolist()
    assert columns[0].collected == {} or "hidden_states" not in gpt2.config.to_dict()
    for column, logits in zip(columns, out.logits, strict=True):
        wanted = logits.log_softmax(-1).gather(1, column.tokens[:, None])[:, 0]
        torch.testing.assert_close(column.logprobs, wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("stop", [1, 2, 6])
def test_leaving_early_leaves_the_cache_usable(model: Any, stop: int) -> None:
    cache = DynamicCache(config=model.config)
    given: dict[str, Any] = {"eos_token_id": None, "penalty_alpha": 0.6, "top_k": 4}
    columns: Any = model.generate_iter(tokens(2, 6), max_new_tokens=20, past_key_values=cache, **given)
    got = torch.stack([next(columns).tokens for _ in range(stop)], dim=1)
    columns.close()
    assert cache.get_seq_length() == 6 + stop - 1
    text = torch.cat([tokens(2, 6), got], dim=1)
    given = {"max_new_tokens": 5, "eos_token_id": None, "attention_mask": torch.ones_like(text)}
    assert torch.equal(model.generate(text, past_key_values=cache, **given), model.generate(text, **given))


def test_ctrl_c_in_a_forward_pass(model: Any) -> None:
    given: dict[str, Any] = {"max_new_tokens": 20, "eos_token_id": None, "penalty_alpha": 0.6, "top_k": 4}
    plain = model.generate(tokens(2, 6), **given)
    blocks = next(one for one in model.base_model.children() if isinstance(one, torch.nn.ModuleList))
    cache, left = DynamicCache(config=model.config), [5]

    def interrupt(*_: Any) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt

    handle = blocks[-1].register_forward_pre_hook(interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            model.generate(tokens(2, 6), past_key_values=cache, **given)
    finally:
        handle.remove()
    assert cache.get_seq_length() == 6 + 4
    assert torch.equal(model.generate(tokens(2, 6), **given), plain)
    text = plain[:, : 6 + 4 + 1]
    more: dict[str, Any] = {"max_new_tokens": 5, "eos_token_id": None, "attention_mask": torch.ones_like(text)}
    assert torch.equal(model.generate(text, past_key_values=cache, **more), model.generate(text, **more))


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "sampling": ({"do_sample": True}, r"penalty_alpha=0.6 \(contrastive search\) and do_sample=True contradict"),
    "beams": ({"num_beams": 2}, r"\(contrastive search\) and num_beams=2 contradict"),
    "sequences": ({"num_return_sequences": 2}, "num_return_sequences is 2 without sampling"),
    "top_k 0": ({"top_k": 0}, "chooses among the top_k most likely tokens, and top_k is 0"),
    "top_k None": ({"top_k": None}, "and top_k is None"),
    "parts": ({"prefill_chunk_size": 2}, "needs the states of the whole prompt, and prefill_chunk_size=2"),
    "alpha": ({"penalty_alpha": 1.2}, "penalty_alpha is 1.2, but must be a number from 0 to 1"),
    "negative": ({"penalty_alpha": -0.1}, "penalty_alpha is -0.1, but must be a number from 0 to 1"),
    "nan": ({"penalty_alpha": float("nan")}, "penalty_alpha is nan, but must be a number from 0 to 1"),
    "text": ({"penalty_alpha": "0.6"}, "must be a number from 0 to 1"),
    "length": (
        {"max_new_tokens": 60},
        "reads every token before it takes it: 60 new tokens after a prompt of 5 need 65",
    ),
}


@pytest.mark.parametrize("name", list(BAD))
def test_what_cannot_be_met_is_said(gpt2: Any, name: str) -> None:
    given, words = BAD[name]
    with pytest.raises(GenerationError, match=words):
        gpt2.generate(tokens(1, 5), **({"max_new_tokens": 3, "penalty_alpha": 0.6, "top_k": 4} | given))


def test_a_cache_that_holds_tokens_is_refused(gpt2: Any) -> None:
    with torch.no_grad():
        cache = gpt2(tokens(1, 4), use_cache=True).past_key_values
    with pytest.raises(GenerationError, match="past_key_values holds none of them for its 4 tokens"):
        gpt2.generate(tokens(1, 6), past_key_values=cache, penalty_alpha=0.6, top_k=4, max_new_tokens=3)


def test_up_to_the_last_position(gpt2: Any) -> None:
    out = gpt2.generate(tokens(1, 5), max_new_tokens=59, eos_token_id=None, penalty_alpha=0.6, top_k=2)
    assert out.shape == (1, 64)


def test_alpha_of_zero_is_greedy_and_top_k_has_an_effect_without_sampling(gpt2: Any) -> None:
    given: dict[str, Any] = {"max_new_tokens": 10, "eos_token_id": None}
    assert torch.equal(gpt2.generate(tokens(1, 5), penalty_alpha=0.0, **given), gpt2.generate(tokens(1, 5), **given))
    GenerationConfig(penalty_alpha=0.6, top_k=4).validate(strict=True)


def test_scores_that_are_not_usable(gpt2: Any) -> None:
    broken = copy.deepcopy(gpt2)
    with torch.no_grad():
        broken.base_model.ln_f.weight.fill_(torch.nan)
    with pytest.raises(GenerationError, match="scores of row 0 hold NaN"):
        broken.generate(tokens(1, 5), max_new_tokens=3, penalty_alpha=0.6, top_k=4)
    with pytest.raises(GenerationError, match="of row 1 are all -inf"):
        gpt2.generate(
            tokens(2, 5),
            logits_processor=[lambda ids, scores: scores.index_fill(0, torch.tensor([1]), -torch.inf)],
            max_new_tokens=3,
            penalty_alpha=0.6,
            top_k=4,
        )
