"""Assisted generation gives what plain decoding gives: token for token when greedy, in distribution when sampling."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from drafts import PAD, disturbed, far_from, made, quietly, tokens

from quintet.auto import AutoModel, model_types
from quintet.cache import DynamicCache, QuantizedCache
from quintet.errors import GenerationError
from quintet.generation import GenerationConfig, LogitsProcessorList, StoppingCriteriaList
from quintet.generation.candidates import Draft, DraftModel, DraftPlan, DraftReader
from quintet.generation.drafting import FOR_DRAFTS, first_layers
from quintet.generation.sampling.speculative import mixture, speculate
from quintet.models.gpt2 import GPT2Config, GPT2LMHeadModel


@pytest.fixture(params=model_types(), scope="module")
def both(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    """A tiny model of each family and a draft model; tests must not change them."""
    model = made(request.param)
    return model, disturbed(model, 0.04)


@pytest.fixture(scope="module")
def gpt2() -> tuple[Any, Any]:
    """The same of GPT-2 alone."""
    model = made("gpt2")
    return model, disturbed(model, 0.04)


@pytest.fixture
def forwards(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], list[int]]:
    """Counts the tokens that each forward pass of a model reads."""

    def watch(model: Any) -> list[int]:
        counts: list[int] = []
        forward = model.forward

        def counted(*args: Any, **kwargs: Any) -> Any:
            counts.append(kwargs["input_ids"].shape[1])
            return forward(*args, **kwargs)

        monkeypatch.setattr(model, "forward", counted)
        return counts

    return watch


WAYS: list[dict[str, Any]] = [
    {"assistant_model": True},
    {"assistant_model": True, "num_assistant_tokens": 1},
    {"assistant_model": True, "num_assistant_tokens": 7, "assistant_confidence_threshold": 0.0},
    {"assistant_model": True, "num_assistant_tokens_schedule": "heuristic_transient", "num_assistant_tokens": 2},
    {"prompt_lookup_num_tokens": 3},
    {"prompt_lookup_num_tokens": 10, "max_matching_ngram_size": 1},
    {"assistant_early_exit": 1},
    {"assistant_early_exit": 1, "assistant_confidence_threshold": 0.0, "num_assistant_tokens": 9},
]


def asked(way: dict[str, Any], draft: Any) -> dict[str, Any]:
    return way | {"assistant_model": draft} if "assistant_model" in way else way


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_greedy_tokens_are_those_of_plain_decoding(both: tuple[Any, Any], way: dict[str, Any]) -> None:
    model, draft = both
    for length in (1, 9):  # what follows one token, and a text
        ids = tokens(1, length)
        plain = model.generate(ids, max_new_tokens=40, eos_token_id=None)
        assert torch.equal(model.generate(ids, max_new_tokens=40, eos_token_id=None, **asked(way, draft)), plain)


@pytest.mark.parametrize("way", [WAYS[0], WAYS[4], WAYS[7]], ids=str)
def test_left_padding_of_one_row(both: tuple[Any, Any], way: dict[str, Any]) -> None:
    model, draft = both
    ids = torch.cat([torch.full((1, 4), PAD), tokens(1, 6)], dim=1)
    given = {"attention_mask": (ids != PAD).long(), "max_new_tokens": 30, "eos_token_id": None}
    assert torch.equal(model.generate(ids, **given, **asked(way, draft)), model.generate(ids, **given))


SHAPES: list[dict[str, Any]] = [
    {"repetition_penalty": 1.6},
    {"no_repeat_ngram_size": 2},
    {"bad_words_ids": [[5], [6, 7], [40, 41]], "suppress_tokens": [8, 9, 10]},
    {"sequence_bias": {(11,): 4.0, (12, 13): -3.0}},
    {"min_new_tokens": 20, "eos_token_id": list(range(3, 60))},
    {"eos_token_id": list(range(3, 30))},
    {"forced_eos_token_id": 17, "begin_suppress_tokens": list(range(3, 50))},
    {"exponential_decay_length_penalty": (5, 1.1), "eos_token_id": 3},
    {"guidance_scale": 1.7},
    {"renormalize_logits": True, "remove_invalid_values": True, "encoder_repetition_penalty": 1.3},
    {"prefill_chunk_size": 3},
    {"prefix_allowed_tokens_fn": lambda row, ids: [int(ids[-1]) // 2 + 3, int(ids.sum()) % 90 + 3, 50]},
]


@pytest.mark.parametrize("way", [WAYS[0], WAYS[4], WAYS[6]], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "-".join(shape))
def test_every_processor_sees_what_it_sees_in_plain_decoding(
    gpt2: tuple[Any, Any], shape: dict[str, Any], way: dict[str, Any]
) -> None:
    model, draft = gpt2
    given: dict[str, Any] = {"max_new_tokens": 40, "pad_token_id": PAD, "eos_token_id": None} | shape
    assert torch.equal(
        quietly(model, tokens(1, 8), **given, **asked(way, draft)), quietly(model, tokens(1, 8), **given)
    )


@pytest.mark.parametrize("way", [WAYS[0], WAYS[4], WAYS[6]], ids=str)
def test_own_processors_and_criteria_are_asked_as_in_plain_decoding(gpt2: tuple[Any, Any], way: dict[str, Any]) -> None:
    model, draft = gpt2

    def told(**more: Any) -> tuple[list[Any], torch.Tensor]:
        calls: list[Any] = []

        def process(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            calls.append(("scores", ids.tolist()))
            return scores.masked_fill(torch.arange(99) % 7 == len(calls) % 7, -1e4)

        def stop(ids: torch.Tensor, scores: Any) -> bool:
            calls.append(("stop", ids.tolist(), len(scores)))
            return ids.shape[1] >= 30

        record = {"return_dict_in_generate": True, "output_scores": True}
        given = LogitsProcessorList([process]), StoppingCriteriaList([stop])
        out = quietly(
            model, tokens(1, 8), None, *given, max_new_tokens=50, pad_token_id=PAD, eos_token_id=None, **record, **more
        )
        return calls, out.sequences

    plain, assisted = told(), told(**asked(way, draft))
    assert assisted[0] == plain[0]
    assert torch.equal(assisted[1], plain[1])
    assert plain[1].shape == (1, 30)


def test_stop_strings(make_tokenizer: Callable[[], Any]) -> None:
    torch.manual_seed(3)
    config = GPT2Config(vocab_size=300, n_positions=256, n_embd=32, n_layer=2, n_head=4, initializer_range=0.4)
    model, tokenizer = GPT2LMHeadModel(config).eval(), make_tokenizer()
    ids = tokens(1, 6, 300)
    free = model.generate(ids, max_new_tokens=40, eos_token_id=None)
    words = [tokenizer.decode([token]) for token in free[0, 6:].tolist()]
    place, text = next((place, word) for place, word in enumerate(words) if place > 9 and word.isascii())
    for more in ({}, {"assistant_model": disturbed(model, 0.02)}, {"prompt_lookup_num_tokens": 4}):
        out = model.generate(
            ids, max_new_tokens=40, eos_token_id=None, stop_strings=[text], tokenizer=tokenizer, **more
        )
        assert 6 < out.shape[1] <= 6 + place + 1
        assert torch.equal(out, free[:, : out.shape[1]])


@pytest.mark.parametrize("draft_length", [3, 20])
@pytest.mark.parametrize("prompt", [2, 23])
def test_windows_of_gpt_oss(prompt: int, draft_length: int) -> None:
    model = made("gpt_oss", sliding_window=4)
    draft = disturbed(model, 0.04)
    ids = tokens(1, prompt)
    plain = model.generate(ids, max_new_tokens=60, eos_token_id=None)
    ways: list[dict[str, Any]] = [
        {"assistant_model": draft, "num_assistant_tokens": draft_length, "assistant_confidence_threshold": 0.0},
        {"assistant_model": model, "num_assistant_tokens": draft_length},
        {"assistant_early_exit": 1, "num_assistant_tokens": draft_length},
        {"prompt_lookup_num_tokens": draft_length},
    ]
    for way in ways:
        assert torch.equal(model.generate(ids, max_new_tokens=60, eos_token_id=None, **way), plain)
        keeping = DynamicCache()  # which has no window, and lets drafts be longer
        assert torch.equal(
            model.generate(ids, max_new_tokens=60, eos_token_id=None, past_key_values=keeping, **way), plain
        )


def test_a_draft_is_no_longer_than_the_window_lets_it_be_taken_back(forwards: Callable[[Any], list[int]]) -> None:
    model = made("gpt_oss", sliding_window=4)
    draft = copy.deepcopy(model)
    read = forwards(model)
    given: dict[str, Any] = {"max_new_tokens": 40, "eos_token_id": None, "assistant_confidence_threshold": 0.0}
    model.generate(tokens(1, 9), assistant_model=draft, **given)
    assert max(read[1:]) == 5  # four guesses and the token before them


def test_a_model_that_drafts_for_itself_is_asked_rarely(forwards: Callable[[Any], list[int]]) -> None:
    model = made("gpt2")
    twin = copy.deepcopy(model)
    read, drafted = forwards(model), forwards(twin)
    given: dict[str, Any] = {"max_new_tokens": 37, "num_assistant_tokens": 5, "assistant_confidence_threshold": 0.0}
    model.generate(tokens(1, 8), eos_token_id=None, assistant_model=twin, **given)
    assert read == [8] + [6] * 6  # the prompt and its token; then five guesses and one more, six times
    assert drafted == [9, 1, 1, 1, 1] + [2, 1, 1, 1, 1] * 5  # what was accepted is not read again


def test_what_is_rejected_is_taken_back_and_no_prompt_is_read_again(
    gpt2: tuple[Any, Any], forwards: Callable[[Any], list[int]]
) -> None:
    model, draft = copy.deepcopy(gpt2[0]), copy.deepcopy(gpt2[1])
    read, drafted = forwards(model), forwards(draft)
    model.generate(
        tokens(1, 20), max_new_tokens=40, eos_token_id=None, assistant_model=draft, assistant_confidence_threshold=0.0
    )
    assert read[0] == 20
    assert drafted[0] == 21
    assert max(drafted[1:]) <= 2
    assert max(read[1:]) <= 21
    assert 5 < len(read) < 40, "some guesses were right and some were wrong"


def test_drafts_end_where_the_draft_model_is_not_sure(gpt2: tuple[Any, Any]) -> None:
    draft = gpt2[1]
    lengths = {}
    for threshold in (0.0, 0.5, 1.0):
        maker = DraftModel(DraftReader(draft, torch.device("cpu")), DraftPlan(9, threshold=threshold, vocabulary=99))
        with torch.no_grad():
            lengths[threshold] = len(maker.propose(tokens(1, 8)[0].tolist(), 20).ids)
    assert lengths[0.0] == 9
    assert lengths[1.0] == 1
    assert lengths[1.0] <= lengths[0.5] <= 9


def test_schedules(gpt2: tuple[Any, Any]) -> None:
    plan = DraftPlan(5, "heuristic", owner=GenerationConfig())
    plan.settle(5, 5)
    assert plan.count == 7
    plan.settle(6, 7)
    assert plan.count == 6
    plan.settle(0, 0)  # nothing was guessed
    assert plan.count == 6
    assert plan.owner.num_assistant_tokens == 6
    for _ in range(9):
        plan.settle(0, 3)
    assert plan.count == 1
    steady = DraftPlan(5)
    steady.settle(5, 5)
    assert steady.count == 5
    # What a heuristic found is kept for the next call with the same draft model, and does not keep it from being saved.
    model, draft = gpt2[0], copy.deepcopy(gpt2[0])
    draft.generation_config.num_assistant_tokens_schedule = "heuristic"
    draft.generation_config.num_assistant_tokens = 3
    model.generate(tokens(1, 5), max_new_tokens=30, eos_token_id=None, assistant_model=draft)
    assert draft.generation_config.num_assistant_tokens > 3
    draft.generation_config.validate(strict=True)


def test_options_of_the_draft_model_count_unless_the_call_sets_them(forwards: Callable[[Any], list[int]]) -> None:
    model = made("gpt2")
    draft = copy.deepcopy(model)
    draft.generation_config.num_assistant_tokens = 2
    draft.generation_config.assistant_confidence_threshold = 0.0
    read = forwards(model)
    model.generate(tokens(1, 5), max_new_tokens=13, eos_token_id=None, assistant_model=draft)
    assert read == [5, 3, 3, 3, 3]
    read.clear()
    model.generate(tokens(1, 5), max_new_tokens=13, eos_token_id=None, assistant_model=draft, num_assistant_tokens=5)
    assert read == [5, 6, 6]


# --- what comes back --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", [WAYS[2], WAYS[4]], ids=str)
def test_scores_attentions_and_states_are_those_of_plain_decoding(both: tuple[Any, Any], way: dict[str, Any]) -> None:
    model, draft = both
    model.config._attn_implementation = "eager"  # which gives attentions
    shown = dict.fromkeys(("output_scores", "output_logits", "output_attentions", "output_hidden_states"), True)
    given = shown | {"return_dict_in_generate": True, "max_new_tokens": 25, "eos_token_id": None}
    try:
        plain = quietly(model, tokens(1, 7), repetition_penalty=1.2, **given)
        out = quietly(model, tokens(1, 7), repetition_penalty=1.2, **given, **asked(way, draft))
    finally:
        model.config._attn_implementation = "sdpa"
    assert torch.equal(out.sequences, plain.sequences)
    for name in ("scores", "logits"):
        assert len(out[name]) == 25
        for one, two in zip(out[name], plain[name], strict=True):
            torch.testing.assert_close(one, two, atol=1e-4, rtol=1e-4)
    for name in ("attentions", "hidden_states"):
        for one, two in zip(out[name], plain[name], strict=True):
            for mine, other in zip(one, two, strict=True):
                torch.testing.assert_close(mine, other, atol=1e-4, rtol=1e-4)
    assert out.past_key_values.get_seq_length() == plain.past_key_values.get_seq_length() == 7 + 25 - 1


@pytest.mark.parametrize("way", [WAYS[0], WAYS[4]], ids=str)
def test_columns_come_one_by_one(gpt2: tuple[Any, Any], way: dict[str, Any]) -> None:
    model, draft = gpt2
    plain = list(model.generate_iter(tokens(1, 7), max_new_tokens=20, eos_token_id=None, logprobs=3))
    columns = list(
        model.generate_iter(tokens(1, 7), max_new_tokens=20, eos_token_id=None, logprobs=3, **asked(way, draft))
    )
    assert [column.ids for column in columns] == [column.ids for column in plain]
    assert [column.finished for column in columns] == [[False]] * 19 + [[True]]
    for one, two in zip(columns, plain, strict=True):
        assert one.tokens.tolist() == one.ids
        torch.testing.assert_close(one.logprobs, two.logprobs, atol=1e-5, rtol=1e-4)
        assert torch.equal(one.top_ids, two.top_ids)  # type: ignore[arg-type]


class Kept:
    """A streamer that keeps what it gets."""

    def __init__(self) -> None:
        self.got: list[Any] = []

    def put(self, value: torch.Tensor) -> None:
        self.got.append(value.tolist())

    def end(self) -> None:
        self.got.append("end")


def test_a_streamer_gets_every_token_by_itself(gpt2: tuple[Any, Any]) -> None:
    model, draft = gpt2
    streamer = Kept()
    out = model.generate(tokens(1, 7), max_new_tokens=9, eos_token_id=None, assistant_model=draft, streamer=streamer)
    assert streamer.got == [tokens(1, 7).tolist(), *[[token] for token in out[0, 7:].tolist()], "end"]


# --- caches -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", [WAYS[0], WAYS[4], WAYS[6]], ids=str)
def test_a_given_cache_goes_on_and_is_left_as_plain_decoding_leaves_it(
    both: tuple[Any, Any], way: dict[str, Any]
) -> None:
    model, draft = both
    more = asked(way, draft)
    given: dict[str, Any] = {"max_new_tokens": 15, "eos_token_id": None, "return_dict_in_generate": True}
    first = model.generate(tokens(1, 7), **given, **more)
    whole = torch.cat([first.sequences, tokens(1, 3, seed=9)], dim=1)
    given |= _all(whole)  # the new text may hold the padding token
    plain = model.generate(whole, **given)
    second = model.generate(whole, past_key_values=first.past_key_values, **given, **more)
    assert torch.equal(second.sequences, plain.sequences)
    # Only the new tokens, with a mask for all of them.
    short = model.generate(whole[:, -3:], past_key_values=_read(model, whole[:, :-3]), **given, **more)
    assert torch.equal(short.sequences[:, 3:], plain.sequences[:, whole.shape[1] :])


def _read(model: Any, ids: torch.Tensor) -> Any:
    with torch.no_grad():
        return model(ids, use_cache=True).past_key_values


def _all(ids: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"attention_mask": torch.ones_like(ids)}


@pytest.mark.parametrize("name", ["offloaded", "static"])
def test_kinds_of_caches(both: tuple[Any, Any], name: str) -> None:
    model, draft = both
    plain = model.generate(tokens(1, 7), max_new_tokens=30, eos_token_id=None)
    out = model.generate(
        tokens(1, 7), max_new_tokens=30, eos_token_id=None, assistant_model=draft, cache_implementation=name
    )
    assert torch.equal(out, plain)


def test_a_quantized_cache_can_be_cropped(gpt2: tuple[Any, Any]) -> None:
    model, draft = gpt2
    cache = QuantizedCache(config=model.config, residual_length=8)
    out = model.generate(
        tokens(1, 7), max_new_tokens=30, eos_token_id=None, assistant_model=draft, past_key_values=cache
    )
    assert out.shape == (1, 37)
    assert cache.get_seq_length() == 36


@pytest.mark.parametrize("way", [WAYS[2], WAYS[4]], ids=str)
@pytest.mark.parametrize("stop", [1, 4])
def test_leaving_early_leaves_the_cache_usable(both: tuple[Any, Any], way: dict[str, Any], stop: int) -> None:
    model, draft = both
    cache = DynamicCache(config=model.config)
    columns: Iterator[Any] = model.generate_iter(
        tokens(1, 9), max_new_tokens=30, eos_token_id=None, past_key_values=cache, **asked(way, draft)
    )
    got = [next(columns).ids[0] for _ in range(stop)]
    columns.close()  # type: ignore[attr-defined]
    assert cache.get_seq_length() == 9 + stop - 1
    text = torch.cat([tokens(1, 9), torch.tensor([got])], dim=1)
    plain = model.generate(tokens(1, 9), max_new_tokens=30, eos_token_id=None)
    on = model.generate(text, max_length=39, eos_token_id=None, past_key_values=cache, **_all(text))
    assert torch.equal(on, plain)


@pytest.mark.parametrize("way", [WAYS[0], WAYS[4], WAYS[6]], ids=str)
def test_ctrl_c_in_a_forward_pass(both: tuple[Any, Any], way: dict[str, Any]) -> None:
    model, draft = both
    more = asked(way, draft)
    plain = model.generate(tokens(1, 9), max_new_tokens=30, eos_token_id=None)
    for passes in (2, 5):
        for victim in {model, draft} if "assistant_model" in way else {model}:
            cache, left = DynamicCache(config=model.config), [passes]

            def interrupt(*_: Any, left: list[int] = left) -> None:
                left[0] -= 1
                if left[0] < 0:
                    raise KeyboardInterrupt

            blocks = next(one for one in victim.base_model.children() if isinstance(one, torch.nn.ModuleList))
            handle = blocks[-1].register_forward_pre_hook(interrupt)  # the first block has stored its keys by then
            columns = model.generate_iter(
                tokens(1, 9), max_new_tokens=30, eos_token_id=None, past_key_values=cache, **more
            )
            got: list[int] = []
            try:
                with pytest.raises(KeyboardInterrupt):
                    for column in columns:
                        got += column.ids
            finally:
                handle.remove()
            assert got, "it came in the middle"
            assert cache.get_seq_length() in (9 + len(got) - 1, 9 + len(got))
            text = torch.cat([tokens(1, 9), torch.tensor([got])], dim=1)
            on = model.generate(text, max_length=39, eos_token_id=None, past_key_values=cache, **_all(text))
            assert torch.equal(on, plain)
            assert torch.equal(model.generate(tokens(1, 9), max_new_tokens=30, eos_token_id=None, **more), plain)


# --- limits -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_up_to_the_last_position(gpt2: tuple[Any, Any], way: dict[str, Any]) -> None:
    model, draft = gpt2
    for new in (1, 2, 3, 45):
        plain = model.generate(tokens(1, 20), max_new_tokens=new, eos_token_id=None)
        out = model.generate(tokens(1, 20), max_new_tokens=new, eos_token_id=None, **asked(way, draft))
        assert torch.equal(out, plain)


def test_a_draft_model_with_fewer_positions_stops_drafting() -> None:
    model = made("gpt2", n_positions=64)
    draft = made("gpt2", n_positions=24)
    plain = model.generate(tokens(1, 10), max_new_tokens=50, eos_token_id=None)
    with pytest.warns(UserWarning, match="the draft model has 24 positions, and the text is longer"):
        out = model.generate(tokens(1, 10), max_new_tokens=50, eos_token_id=None, assistant_model=draft)
    assert torch.equal(out, plain)
    with pytest.warns(UserWarning, match="the draft model has 24 positions"):
        long = model.generate(tokens(1, 40), max_new_tokens=8, eos_token_id=None, assistant_model=draft)
    assert torch.equal(long, model.generate(tokens(1, 40), max_new_tokens=8, eos_token_id=None))


def test_prompts_of_embeddings(gpt2: tuple[Any, Any]) -> None:
    model, draft = gpt2
    embeds = model.get_input_embeddings()(tokens(1, 8)).detach()
    plain = model.generate(inputs_embeds=embeds, max_new_tokens=30, eos_token_id=None)
    out = model.generate(inputs_embeds=embeds, max_new_tokens=30, eos_token_id=None, prompt_lookup_num_tokens=4)
    assert torch.equal(out, plain)
    with_ids = model.generate(
        tokens(1, 8), inputs_embeds=embeds, max_new_tokens=30, eos_token_id=None, assistant_model=draft
    )
    assert torch.equal(with_ids[:, 8:], plain)
    for more in ({"assistant_model": draft}, {"assistant_early_exit": 1}):
        with pytest.raises(GenerationError, match="drafts from tokens, and the prompt is inputs_embeds"):
            model.generate(inputs_embeds=embeds, max_new_tokens=3, **more)


def test_own_positions_and_token_types(gpt2: tuple[Any, Any]) -> None:
    model, draft = gpt2
    given: dict[str, Any] = {
        "position_ids": torch.arange(3, 11)[None],
        "token_type_ids": tokens(1, 8, seed=8),
        "max_new_tokens": 30,
        "eos_token_id": None,
    }
    plain = model.generate(tokens(1, 8), **given)
    for more in ({"assistant_model": draft}, {"assistant_early_exit": 1}, {"prompt_lookup_num_tokens": 4}):
        assert torch.equal(model.generate(tokens(1, 8), **given, **more), plain)


def test_early_exit_leaves_the_model_alone(both: tuple[Any, Any]) -> None:
    model, _ = both
    before = copy.deepcopy(model.config.to_dict())
    short = first_layers(model, 1)
    assert short.config.num_hidden_layers == 1
    with torch.no_grad():
        states = model(tokens(1, 8), output_hidden_states=True).hidden_states
        shown = short(tokens(1, 8), output_hidden_states=True).hidden_states
    assert len(shown) == 2
    assert len(states) == 3
    torch.testing.assert_close(shown[0], states[0])
    assert model.config.to_dict() == before
    model.generate(tokens(1, 8), max_new_tokens=5, assistant_early_exit=1)
    assert model.config.to_dict() == before
    assert len(model.state_dict()) == len(copy.deepcopy(model).state_dict())


# --- sampling ---------------------------------------------------------------------------------------------------------


def _peaked(vocabulary: int = 12) -> Any:
    """Return a model of few tokens with uneven distributions that depend on the text."""
    torch.manual_seed(4)
    config = GPT2Config(vocab_size=vocabulary, n_positions=32, n_embd=16, n_layer=2, n_head=2, initializer_range=0.5)
    return GPT2LMHeadModel(config).eval()


def _pairs(model: Any, runs: int, **more: Any) -> torch.Tensor:
    """Count the first two tokens of many texts, (V * V,): the second is a guess as often as the first."""
    vocabulary = model.config.vocab_size
    counts = torch.zeros(vocabulary * vocabulary)
    torch.manual_seed(7)
    for _ in range(runs):
        out = model.generate(torch.tensor([[3, 5, 1]]), max_new_tokens=4, eos_token_id=None, do_sample=True, **more)
        counts[int(out[0, 4]) * vocabulary + int(out[0, 5])] += 1  # those that a draft is made of
    return counts


def _exact(model: Any, **shape: Any) -> torch.Tensor:
    """Return the distribution of the second and third new token, (V * V,)."""
    vocabulary = model.config.vocab_size
    warp = _warp(**shape)
    with torch.no_grad():
        first = warp(model(torch.tensor([[3, 5, 1]])).logits[0, -1])
        found = torch.zeros(vocabulary, vocabulary)
        for a in range(vocabulary):
            second = warp(model(torch.tensor([[3, 5, 1, a]])).logits[0, -1])
            texts = torch.tensor([[3, 5, 1, a, b] for b in range(vocabulary)])
            third = torch.stack([warp(row) for row in model(texts).logits[:, -1]])
            found += first[a] * second[:, None] * third
    return found.reshape(-1)


def _warp(temperature: float = 1.0, top_k: int = 0) -> Callable[[torch.Tensor], torch.Tensor]:
    def warped(scores: torch.Tensor) -> torch.Tensor:
        scores = scores / temperature
        if top_k:
            scores = scores.masked_fill(scores < scores.topk(top_k).values[-1], -torch.inf)
        return scores.softmax(dim=-1)

    return warped


@pytest.mark.parametrize(
    ("noise", "shape"), [(0.1, {"top_k": 0}), (0.6, {"top_k": 0}), (0.6, {"top_k": 5, "temperature": 1.4})], ids=str
)
def test_sampling_with_a_draft_model_has_the_models_distribution(noise: float, shape: dict[str, Any]) -> None:
    model = _peaked()
    draft = disturbed(model, noise)
    counts = _pairs(model, 600, assistant_model=draft, assistant_confidence_threshold=0.0, **shape)
    assert not far_from(counts, _exact(model, **shape))
    # The test can tell: the draft model's own distribution is another one.
    if noise == 0.6:
        assert far_from(counts, _exact(draft, **shape))


def test_sampling_with_early_exit_has_the_models_distribution() -> None:
    model = _peaked()
    counts = _pairs(model, 600, assistant_early_exit=1, top_k=0, assistant_confidence_threshold=0.0)
    assert not far_from(counts, _exact(model))


@pytest.mark.parametrize("generator", [False, True])
@pytest.mark.parametrize(
    "shape", [{"top_k": 0}, {"top_p": 0.8}, {"temperature": 0.6, "repetition_penalty": 1.2}], ids=str
)
def test_sampling_by_lookup_draws_what_plain_sampling_draws(
    both: tuple[Any, Any], shape: dict[str, Any], generator: bool
) -> None:
    model, _ = both
    runs = []
    for more in ({}, {"prompt_lookup_num_tokens": 4}):
        torch.manual_seed(6)
        source = torch.Generator().manual_seed(8) if generator else None
        runs.append(
            model.generate(
                tokens(1, 8), do_sample=True, max_new_tokens=40, eos_token_id=None, generator=source, **shape, **more
            )
        )
    assert torch.equal(*runs)


def test_seeded_sampling_repeats(gpt2: tuple[Any, Any]) -> None:
    model, draft = gpt2
    given: dict[str, Any] = {"do_sample": True, "max_new_tokens": 30, "eos_token_id": None, "assistant_model": draft}
    one, two, other = (
        model.generate(tokens(1, 8), generator=torch.Generator().manual_seed(seed), **given) for seed in (1, 1, 2)
    )
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


def test_a_draft_becomes_a_token_of_the_models_distribution() -> None:
    generator = torch.Generator().manual_seed(0)
    scores, draft = torch.randn((2, 6), generator=generator).mul(2).unsqueeze(1).unbind(0)
    wanted, offered = scores.softmax(-1)[0], draft.softmax(-1)[0]
    counts, kept = torch.zeros(6), 0
    for _ in range(4000):
        token = int(torch.multinomial(offered, 1, generator=generator))

        def draw(rows: torch.Tensor) -> torch.Tensor:
            return torch.multinomial(rows.softmax(-1), 1, generator=generator)[:, 0]

        became = int(speculate(scores, draft, token, draw))
        counts[became] += 1
        kept += became == token
    assert not far_from(counts, wanted)
    assert kept / 4000 == pytest.approx(float(torch.minimum(wanted, offered).sum()), abs=0.03)  # corollary 3.6
    same = speculate(scores, scores.clone(), 2, lambda rows: rows.argmax(-1))
    assert int(same) == 2


def test_ensembles_mix_the_distributions() -> None:
    model = _peaked()
    draft = disturbed(model, 0.6)
    generator = torch.Generator().manual_seed(0)
    scores, other = torch.randn((2, 1, 6), generator=generator).mul(2).unbind(0)
    wanted = 0.3 * scores.softmax(-1) + 0.7 * other.softmax(-1)
    torch.testing.assert_close(mixture(scores, other, 0.3).exp(), wanted)
    counts = torch.zeros(6)
    for _ in range(4000):
        token = int(torch.multinomial(other.softmax(-1)[0], 1, generator=generator))

        def draw(rows: torch.Tensor) -> torch.Tensor:
            return torch.multinomial(rows.softmax(-1), 1, generator=generator)[:, 0]

        counts[int(speculate(scores, other, token, draw, weight=0.3))] += 1
    assert not far_from(counts, wanted[0])
    # Greedy: with nearly no weight for the model the draft model's own text comes out, but for the tokens after drafts.
    given: dict[str, Any] = {"max_new_tokens": 6, "eos_token_id": None}
    start = torch.tensor([[3, 5, 1]])
    out = model.generate(
        start, assistant_model=draft, assistant_ensemble_weight=1e-6, assistant_confidence_threshold=0.0, **given
    )
    first = model.generate(start, **given)[:, :4]
    assert torch.equal(out[:, :-1], draft.generate(first, max_new_tokens=4, eos_token_id=None))


# --- errors -----------------------------------------------------------------------------------------------------------


def _bad(gpt2: tuple[Any, Any]) -> dict[str, tuple[dict[str, Any], str]]:
    model, draft = gpt2
    training = copy.deepcopy(draft).train()
    other = made("gpt2", vocab_size=120)
    return {
        "two ways": (
            {"assistant_model": draft, "prompt_lookup_num_tokens": 3},
            "assistant_model and prompt_lookup_num_tokens are set, and each is another way",
        ),
        "exit and lookup": ({"assistant_early_exit": 1, "prompt_lookup_num_tokens": 3}, "each is another way"),
        "beams": ({"assistant_model": draft, "num_beams": 2}, "assistant_model and num_beams=2 contradict"),
        "sequences": (
            {"prompt_lookup_num_tokens": 3, "num_return_sequences": 2, "do_sample": True},
            "prompt_lookup_num_tokens works for one row, and num_return_sequences=2",
        ),
        "contrastive": ({"assistant_model": draft, "penalty_alpha": 0.5, "top_k": 4}, "contrastive search"),
        "no cache": ({"prompt_lookup_num_tokens": 3, "use_cache": False}, "prompt_lookup_num_tokens needs the cache"),
        "lookup ensemble": (
            {"prompt_lookup_num_tokens": 3, "assistant_ensemble_weight": 0.5},
            "prompt lookup has none",
        ),
        "number": ({"assistant_model": 3}, "assistant_model is a int, but must be a model of quintet"),
        "no head": ({"assistant_model": AutoModel.from_config(model.config).eval()}, "with a language-modeling head"),
        "module": ({"assistant_model": torch.nn.Linear(2, 2)}, "assistant_model is a Linear"),
        "training": ({"assistant_model": training}, "in training mode.*assistant_model.eval"),
        "vocabulary": (
            {"assistant_model": other},
            "vocabulary of 120 tokens and the model one of 99.*tokenizer=... and assistant_tokenizer",
        ),
        "one tokenizer": ({"assistant_model": other, "tokenizer": object()}, "vocabulary of 120 tokens"),
        "the other tokenizer": (
            {"assistant_model": other, "assistant_tokenizer": object()},
            "without the tokenizer of the model itself",
        ),
        "no model": ({"assistant_tokenizer": object()}, "assistant_tokenizer is given without an assistant_model"),
        "too many layers": ({"assistant_early_exit": 2}, "the model has 2 layers.*from 1 to 1"),
        "schedule": (
            {"assistant_model": draft, "num_assistant_tokens_schedule": "linear"},
            "num_assistant_tokens_schedule is 'linear', but must be 'constant' or 'heuristic'",
        ),
        "weight": (
            {"assistant_model": draft, "assistant_ensemble_weight": 1.0},
            "assistant_ensemble_weight is 1.0, but must be a number between 0 and 1",
        ),
        "threshold": (
            {"assistant_model": draft, "assistant_confidence_threshold": 1.5},
            "assistant_confidence_threshold is 1.5, but must be a number from 0 to 1",
        ),
        "no tokens": ({"assistant_model": draft, "num_assistant_tokens": 0}, "an integer of at least 1"),
        "nan": ({"assistant_model": draft, "assistant_confidence_threshold": float("nan")}, "from 0 to 1"),
        "kind": (
            {"assistant_model": draft, "speculation_type": "dflash"},
            "speculation_type='dflash' .*is refused: it names a kind of draft model",
        ),
        "heads": ({"use_mtp": True}, "use_mtp=True .*is refused: no model of the five families"),
    }


NAMES = list(_bad((made("gpt2"), made("gpt2"))))


@pytest.mark.filterwarnings("ignore:assistant_ensemble_weight=0.5 has no effect")
@pytest.mark.parametrize("name", NAMES)
def test_what_cannot_be_met_is_said(gpt2: tuple[Any, Any], name: str) -> None:
    given, words = _bad(gpt2)[name]
    with pytest.raises(GenerationError, match=words):
        gpt2[0].generate(tokens(1, 5), max_new_tokens=3, **given)
    if name not in ("heads", "kind", "schedule", "weight", "threshold", "no tokens", "nan"):
        with pytest.raises(GenerationError, match=words):  # at once, and not when the iterator is read
            gpt2[0].generate_iter(tokens(1, 5), max_new_tokens=3, **given)


def test_an_encoder_cannot_draft(gpt2: tuple[Any, Any]) -> None:
    model, draft = gpt2
    encoder = copy.deepcopy(draft)
    encoder.config.is_encoder_decoder = True
    with pytest.raises(GenerationError, match="with an encoder"):
        model.generate(tokens(1, 5), max_new_tokens=3, assistant_model=encoder)


def test_batches_are_refused(gpt2: tuple[Any, Any]) -> None:
    for more in ({"assistant_model": gpt2[1]}, {"prompt_lookup_num_tokens": 3}, {"assistant_early_exit": 1}):
        with pytest.raises(GenerationError, match="works for one row, and 2 prompts were given.*one by one"):
            gpt2[0].generate(tokens(2, 5), max_new_tokens=3, **more)


@pytest.mark.parametrize("way", [WAYS[0], WAYS[4], WAYS[6]], ids=str)
def test_scores_that_are_not_usable(gpt2: tuple[Any, Any], way: dict[str, Any]) -> None:
    model, draft = copy.deepcopy(gpt2[0]), gpt2[1]
    with torch.no_grad():
        model.base_model.ln_f.weight.fill_(torch.nan)
    for more in ({}, {"do_sample": True}, {"repetition_penalty": 1.1}):
        with pytest.raises(GenerationError, match="scores of row 0 hold NaN"):
            model.generate(tokens(1, 5), max_new_tokens=3, eos_token_id=None, **asked(way, draft), **more)


def test_a_broken_draft_model_costs_only_time(gpt2: tuple[Any, Any]) -> None:
    model, draft = gpt2[0], copy.deepcopy(gpt2[1])
    with torch.no_grad():
        draft.base_model.ln_f.weight.fill_(torch.nan)
    plain = model.generate(tokens(1, 5), max_new_tokens=20, eos_token_id=None)
    assert torch.equal(model.generate(tokens(1, 5), max_new_tokens=20, eos_token_id=None, assistant_model=draft), plain)
    out = model.generate(tokens(1, 5), max_new_tokens=20, eos_token_id=None, assistant_model=draft, do_sample=True)
    assert out.shape == (1, 25)


def test_a_processor_of_another_shape(gpt2: tuple[Any, Any]) -> None:
    for more in ({"assistant_model": gpt2[1]}, {"prompt_lookup_num_tokens": 3}):
        with pytest.raises(GenerationError, match="shape"):
            gpt2[0].generate(
                tokens(1, 5), logits_processor=[lambda ids, scores: scores[:, :5]], max_new_tokens=3, **more
            )


def test_a_marked_model_stops_where_it_is_not_sure(gpt2: tuple[Any, Any]) -> None:
    model, _ = gpt2
    record = {"return_dict_in_generate": True, "output_scores": True, "max_new_tokens": 30, "eos_token_id": None}
    out = model.generate(tokens(1, 8), **record)
    sure = [float(one.softmax(-1).max()) for one in out.scores]
    threshold = sorted(sure)[3]
    marked = model.generate(tokens(1, 8), is_assistant=True, assistant_confidence_threshold=threshold, **record)
    stop = next(place for place, one in enumerate(sure) if one < threshold)
    assert torch.equal(marked.sequences, out.sequences[:, : 8 + stop + 1])
    with pytest.raises(GenerationError, match="is_assistant=True stops at tokens .* needs the scores"):
        model.generate(tokens(1, 8), is_assistant=True, max_new_tokens=3)


def test_the_processors_for_drafts_exist() -> None:
    import quintet.generation as generation

    assert {name for name in FOR_DRAFTS if not hasattr(generation, name)} == set()
    assert Draft().ids == []
