"""Every kind of cache gives what the plain one gives, token for token, for every family; wrong caches are refused."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch

from quintet.auto import family_of, model_types
from quintet.cache import (
    Cache,
    DynamicCache,
    EncoderDecoderCache,
    OffloadedCache,
    QuantizedCache,
    StaticCache,
)
from quintet.errors import GenerationError, InputError
from quintet.generation import GenerationConfig
from quintet.generation.caches import MAKERS, make_cache
from quintet.generation.options import CACHES
from quintet.generation.prompt import prepare_prompt
from quintet.generation.resolve import SpecialTokens
from quintet.generation.state import DecodeState

PAD = 97
GREEDY: dict[str, Any] = {"eos_token_id": None, "pad_token_id": PAD, "max_new_tokens": 9}
# Kinds whose numbers are those that were stored; "quantized" rounds what is older than `residual_length` tokens.
EXACT = ["dynamic", "static", "offloaded", "offloaded_static", "sliding_window", "hybrid", "offloaded_hybrid"]
KINDS = [*EXACT, "quantized"]
DIFFERENT = ["dynamic", "static", "offloaded", "offloaded_static", "quantized"]  # the others are names of these
CLASSES: dict[str, type[Cache]] = {
    "dynamic": DynamicCache,
    "static": StaticCache,
    "offloaded": OffloadedCache,
    "offloaded_static": StaticCache,
    "sliding_window": StaticCache,
    "hybrid": StaticCache,
    "offloaded_hybrid": StaticCache,
    "quantized": QuantizedCache,
}


def tiny(model_type: str, **fields: Any) -> Any:
    """A model of the family with uneven weights; windows are shorter than the texts, and every expert takes part."""
    family = family_of(model_type)
    experts = getattr(family.tiny(), "num_local_experts", None)
    if experts is not None:
        fields = {"num_experts_per_tok": experts, "sliding_window": 5, **fields}
    torch.manual_seed(0)
    model = family.classes["causal-lm"](family.tiny(**fields))
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.15)
    return model.eval()


@pytest.fixture(scope="module", params=model_types())
def model(request: pytest.FixtureRequest) -> Any:
    """One of each family; tests must not change it."""
    return tiny(request.param)


@pytest.fixture(scope="module")
def gpt2() -> Any:
    """Where the family does not matter."""
    return tiny("gpt2")


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.randint(90, (3, 9), generator=torch.Generator().manual_seed(5))


@pytest.fixture
def mask() -> torch.Tensor:
    """Padding on the left of two rows."""
    mask = torch.ones(3, 9, dtype=torch.long)
    mask[0, :3] = mask[2, :7] = 0
    return mask


def watched(model: Any, *args: Any, **kwargs: Any) -> tuple[Any, list[int]]:
    """What `generate` returns, and how many tokens each forward pass has read."""
    lengths: list[int] = []

    def note(module: Any, args: Any, kwargs: Any) -> None:
        given = args[0] if args else kwargs.get("input_ids")
        lengths.append((kwargs["inputs_embeds"] if given is None else given).shape[1])

    hook = model.base_model.register_forward_pre_hook(note, with_kwargs=True)
    try:
        return model.generate(*args, **kwargs), lengths
    finally:
        hook.remove()


# --- by name ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_gives_the_same_tokens(model: Any, ids: torch.Tensor, mask: torch.Tensor, kind: str) -> None:
    for given in ({}, {"attention_mask": mask}):
        plain = model.generate(ids, **GREEDY, **given)
        got = model.generate(ids, cache_implementation=kind, return_dict_in_generate=True, **GREEDY, **given)
        assert torch.equal(got.sequences, plain)
        assert type(got.past_key_values) is CLASSES[kind]
        assert got.past_key_values.get_seq_length() == 17
        without = model.generate(ids, use_cache=False, **GREEDY, **given)
        assert torch.equal(without, plain)


@pytest.mark.parametrize("kind", DIFFERENT)
def test_samples_and_several_sequences(model: Any, ids: torch.Tensor, mask: torch.Tensor, kind: str) -> None:
    options = {**GREEDY, "do_sample": True, "top_k": 20, "num_return_sequences": 2, "attention_mask": mask}
    results = []
    for more in ({}, {"cache_implementation": kind}):
        torch.manual_seed(3)
        results.append(model.generate(ids, **options, **more))
    assert torch.equal(*results)


@pytest.mark.parametrize("kind", DIFFERENT)
def test_a_state_reorders_and_crops_every_kind(model: Any, ids: torch.Tensor, mask: torch.Tensor, kind: str) -> None:
    """What beams and drafts do to a cache."""
    states = []
    for name in ("dynamic", kind):
        prompt = prepare_prompt(model, ids, None, {"attention_mask": mask}, SpecialTokens())
        with torch.no_grad():
            prompt.cache = make_cache(GenerationConfig(cache_implementation=name), model.config, 40)
            state = DecodeState(model, prompt, room=20)
            scores = [state.prefill_copies(2)]
            beams = torch.tensor([1, 0, 2, 2, 5, 4])
            for step in range(4):
                scores.append(state.advance(torch.full((6,), 10 + step)))
                state.reorder(beams, newest=step + 1)
            drafts = torch.randint(90, (6, 3), generator=torch.Generator().manual_seed(1))
            scores.append(state.advance_many(drafts)[:, -1])
            state.crop(state.length - 2)
            scores.append(state.advance(torch.full((6,), 7)))
            state.reorder(torch.tensor([0, 3, 5]))
            scores.append(state.advance(torch.full((3,), 8)))
        states.append((torch.cat(scores), state.cache.tokens))
    torch.testing.assert_close(states[0][0], states[1][0], rtol=1e-5, atol=2e-5)
    assert torch.equal(states[0][1], states[1][1])
    assert states[0][1].shape == (3, 16)


def test_what_8_bits_change_is_within_their_bound(model: Any) -> None:
    """The reference's backends need other packages; what is held here is what a plain cache with rounded keys gives."""
    ids = torch.randint(90, (2, 20), generator=torch.Generator().manual_seed(8))
    arguments = {"q_group_size": 4, "residual_length": 4}
    options = {**GREEDY, "return_dict_in_generate": True, "output_logits": True, "max_new_tokens": 2}
    exact = model.generate(ids, **options)
    got = model.generate(ids, cache_implementation="quantized", cache_config=arguments, **options)
    assert torch.equal(got.logits[0], exact.logits[0])  # the prompt is read with exact keys
    assert not torch.equal(got.logits[1], exact.logits[1])
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(ids, past_key_values=cache)
        measure = QuantizedCache(**arguments)
        for layer, window in zip(cache.layers, [one.window for one in cache.layers], strict=True):
            if window is not None:
                continue
            rounded = QuantizedCache(**arguments)
            rounded.update(layer.keys, layer.values, 0)
            error = measure.quantization_error(layer.keys[:, :, :16], layer.values[:, :, :16])
            old, new = rounded.layers[0].keys, layer.keys
            assert float((old - new).abs().max()) <= error.keys_bound * 1.001
            layer.restore(old.clone(), rounded.layers[0].values.clone(), 20)
        by_hand = model(got.sequences[:, 20:21], past_key_values=cache).logits[:, -1]
    torch.testing.assert_close(got.logits[1], by_hand, rtol=1e-5, atol=2e-5)


def test_a_static_cache_is_as_large_as_asked(gpt2: Any, ids: torch.Tensor) -> None:
    def room(**options: Any) -> int:
        out = gpt2.generate(ids, return_dict_in_generate=True, **{**GREEDY, **options})
        return int(out.past_key_values.max_cache_len)

    static = {"cache_implementation": "static"}
    assert 17 <= room(**static) <= 19
    assert room(**static, max_cache_len=40) == 40
    assert room(**static, max_cache_len=3) == room(**static)  # never less than needed
    assert room(**static, cache_config={"max_cache_len": 50}) == 50
    assert room(**static, max_length=12, max_new_tokens=None) <= 13


def test_arguments_reach_the_cache(gpt2: Any, ids: torch.Tensor) -> None:
    settings = {"q_group_size": 8, "residual_length": 2, "axis_key": 0, "axis_value": -1, "nbits": 8, "backend": "int8"}
    out = gpt2.generate(
        ids, cache_implementation="quantized", cache_config=settings, return_dict_in_generate=True, **GREEDY
    )
    cache = out.past_key_values
    assert {name: getattr(cache, name) for name in settings} == settings
    assert settings["q_group_size"] == 8  # the dict is the caller's
    out = gpt2.generate(
        ids,
        cache_implementation="offloaded_static",
        cache_config={"offload_only_non_sliding": False},
        return_dict_in_generate=True,
        **GREEDY,
    )
    assert out.past_key_values._only_full is False


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"cache_implementation": "paged"}, r"cache_implementation is 'paged', but must be one of 'dynamic', 'offl"),
        ({"cache_implementation": "Static"}, "cache_implementation is 'Static'"),
        ({"cache_implementation": 3}, "cache_implementation is 3"),
        ({"cache_implementation": ["static"]}, r"cache_implementation is \['static'\]"),
        ({"cache_implementation": "quantized", "cache_config": 3}, "cache_config is 3, but must be a dict"),
        ({"cache_implementation": "quantized", "cache_config": {3: 4}}, r"cache_config is \{3: 4\}, but must be a"),
        (
            {"cache_implementation": "quantized", "cache_config": {"bits": 4}},
            "'bits', which is no argument of the cache 'quantized'; it takes backend, nbits",
        ),
        ({"cache_implementation": "dynamic", "cache_config": {"window": 4}}, "the cache 'dynamic'; it takes none"),
        ({"cache_implementation": "quantized", "cache_config": {"nbits": 4}}, "cache 'quantized': nbits is 4"),
        (
            {"cache_implementation": "quantized", "cache_config": {"backend": "quanto"}},
            "backend of a QuantizedCache is 'quanto', but the only one is 'int8'",
        ),
        ({"cache_implementation": "static", "cache_config": {"max_cache_len": "long"}}, "cache_config=.*'static'"),
        (
            {"cache_implementation": "quantized", "cache_config": {"residual_length": 0}},
            "residual_length is 0, but must be a whole number from 1",
        ),
        ({"max_cache_len": 0, "cache_implementation": "static"}, "max_cache_len is 0, but must be an integer of at"),
        ({"prefill_chunk_size": 0}, "prefill_chunk_size is 0, but must be an integer of at least 1"),
        ({"prefill_chunk_size": 2, "use_cache": False}, "prefill_chunk_size=2 reads .* parts.* use_cache is False"),
        (
            {"cache_implementation": "dynamic", "past_key_values": DynamicCache()},
            "past_key_values is given, and cache_implementation='dynamic' asks for a new cache",
        ),
        ({"past_key_values": DynamicCache(), "use_cache": False}, "past_key_values is given and use_cache is False"),
        ({"compile_config": {"fullgraph": True}}, r"compile_config=.* is refused: .*model.compile\(\.\.\.\)"),
        ({"continuous_batching_config": {}}, "continuous_batching_config=.* is refused: .*one batch"),
    ],
)
def test_options_that_cannot_be_met(gpt2: Any, ids: torch.Tensor, options: dict[str, Any], words: str) -> None:
    with pytest.raises((GenerationError, InputError), match=words):
        gpt2.generate(ids, **{**GREEDY, **options})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_cache_len": 30}, "max_cache_len=30 has no effect without cache_implementation='static'"),
        ({"cache_config": {"nbits": 8}}, "cache_config=.* has no effect without a cache_implementation"),
        ({"cache_implementation": "static", "use_cache": False}, "'static' has no effect without use_cache=True"),
    ],
)
def test_options_without_effect_are_reported(gpt2: Any, ids: torch.Tensor, options: dict[str, Any], words: str) -> None:
    with pytest.warns(UserWarning, match=words):
        out = gpt2.generate(ids, **GREEDY, **options)
    assert torch.equal(out, gpt2.generate(ids, **GREEDY))


def test_options_that_ask_for_nothing(gpt2: Any, ids: torch.Tensor) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gpt2.generate(ids, disable_compile=True, compile_config=None, cache_config={}, **GREEDY)
        gpt2.generate(ids, cache_implementation=None, max_cache_len=None, prefill_chunk_size=None, **GREEDY)


def test_a_model_compiled_beforehand(gpt2: Any, ids: torch.Tensor) -> None:
    """What a refused compile_config says to do."""
    other = copy.deepcopy(gpt2)
    other.compile(backend="eager")
    out = other.generate(ids, cache_implementation="static", **GREEDY)
    assert torch.equal(out, gpt2.generate(ids, **GREEDY))


def test_what_the_generation_config_of_a_model_says(ids: torch.Tensor) -> None:
    model = tiny("gpt2")
    plain = model.generate(ids, **GREEDY)
    model.generation_config.cache_implementation = "hybrid"  # as older checkpoints say
    out = model.generate(ids, return_dict_in_generate=True, **GREEDY)
    assert type(out.past_key_values) is DynamicCache
    model.generation_config.cache_implementation = "quantized"
    out = model.generate(ids, return_dict_in_generate=True, **GREEDY)
    assert type(out.past_key_values) is QuantizedCache
    cache = DynamicCache()
    assert torch.equal(model.generate(ids, past_key_values=cache, **GREEDY), plain)  # what is given comes first
    assert cache.get_seq_length() == 17


def test_the_table_of_names_has_a_maker_for_each(gpt2: Any) -> None:
    assert {kind for kind, _ in CACHES.values()} == set(MAKERS)


# --- in parts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 4, 50])
@pytest.mark.parametrize("kind", ["dynamic", "static", "offloaded", "quantized"])
def test_a_prompt_read_in_parts(model: Any, ids: torch.Tensor, mask: torch.Tensor, size: int, kind: str) -> None:
    for given in ({}, {"attention_mask": mask}):
        plain = model.generate(ids, **GREEDY, **given)
        got = model.generate(ids, prefill_chunk_size=size, cache_implementation=kind, **GREEDY, **given)
        assert torch.equal(got, plain)


def test_parts_have_the_size_asked_for(model: Any, ids: torch.Tensor) -> None:
    options = {**GREEDY, "max_new_tokens": 3, "prefill_chunk_size": 4}
    assert watched(model, ids, **options)[1] == [4, 4, 1, 1, 1]
    cache = DynamicCache(config=model.config)
    model.generate(ids[:, :3], past_key_values=cache, **{**options, "max_new_tokens": 1})
    assert watched(model, ids, past_key_values=cache, **options)[1] == [4, 2, 1, 1]


def test_positions_types_and_embeddings_in_parts(gpt2: Any, ids: torch.Tensor) -> None:
    positions = torch.arange(9).repeat(3, 1) + torch.tensor([[0], [5], [20]])
    types = torch.randint(0, 90, (3, 9), generator=torch.Generator().manual_seed(2))
    embeds = gpt2.transformer.wte(ids).detach()
    for given in ({"inputs": ids}, {"inputs_embeds": embeds}, {"inputs": ids[:, :4], "inputs_embeds": embeds}):
        given = {**given, "position_ids": positions, "token_type_ids": types}
        assert torch.equal(gpt2.generate(prefill_chunk_size=4, **given, **GREEDY), gpt2.generate(**given, **GREEDY))


def test_an_interruption_between_parts_leaves_the_cache_as_far_as_it_came(gpt2: Any, ids: torch.Tensor) -> None:
    cache, calls = DynamicCache(), []

    def stop(*args: Any) -> None:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt

    hook = gpt2.transformer.h[1].register_forward_pre_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        gpt2.generate(ids, past_key_values=cache, prefill_chunk_size=3, **GREEDY)
    hook.remove()
    assert [cache.get_seq_length(layer) for layer in range(2)] == [6, 6]
    assert torch.equal(cache.tokens, ids[:, :6])
    assert torch.equal(gpt2.generate(ids, past_key_values=cache, **GREEDY), gpt2.generate(ids, **GREEDY))


# --- given ------------------------------------------------------------------------------------------------------------

GIVEN = {
    "whole": lambda config: DynamicCache(),
    "config": lambda config: DynamicCache(config=config),
    "offloaded": lambda config: OffloadedCache(config=config),
    "static": lambda config: StaticCache(config, max_cache_len=60),
    "quantized": lambda config: QuantizedCache(config=config),
}


@pytest.mark.parametrize("name", GIVEN)
@pytest.mark.parametrize("padded", [False, True])
def test_turns_of_a_conversation(model: Any, ids: torch.Tensor, mask: torch.Tensor, name: str, padded: bool) -> None:
    """Each turn reads only what is new, and writes what a call without the cache writes."""
    cache = GIVEN[name](model.config)
    text, given = ids, mask if padded else torch.ones_like(ids)
    for turn in range(3):
        options = {**GREEDY, "max_new_tokens": 4, "attention_mask": given}
        plain = model.generate(text, **options)
        new = text.shape[1] - cache.get_seq_length()
        out, lengths = watched(model, text, past_key_values=cache, **options)
        assert torch.equal(out, plain)
        assert lengths == [new, 1, 1, 1]
        assert cache.get_seq_length() == plain.shape[1] - 1
        assert cache.tokens is not None
        read = plain[:, :-1].masked_fill(torch.nn.functional.pad(given, (0, 3), value=1) == 0, -1)
        assert torch.equal(cache.tokens, read)
        question = torch.randint(90, (3, 3), generator=torch.Generator().manual_seed(turn))
        text = torch.cat([plain, question], 1)
        given = torch.nn.functional.pad(given, (0, 7), value=1)


def test_rows_that_ended_early_go_on(model: Any, ids: torch.Tensor) -> None:
    """The padding behind a finished row is hidden in the next turn."""
    eos = list(range(0, 90, 3))
    options = {**GREEDY, "eos_token_id": eos, "max_new_tokens": 6}
    cache = DynamicCache(config=model.config)
    first = model.generate(ids, attention_mask=torch.ones_like(ids), past_key_values=cache, **options)
    assert torch.equal(first, model.generate(ids, attention_mask=torch.ones_like(ids), **options))
    assert (first == PAD).any()
    text = torch.cat([first, torch.randint(90, (3, 3), generator=torch.Generator().manual_seed(1))], 1)
    given = (text != PAD).long()
    given[:, :9] = 1
    assert torch.equal(
        model.generate(text, attention_mask=given, past_key_values=cache, **options),
        model.generate(text, attention_mask=given, **options),
    )


def test_only_the_new_tokens_with_a_mask_of_all(model: Any, ids: torch.Tensor, mask: torch.Tensor) -> None:
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(ids[:, :6], attention_mask=mask[:, :6], past_key_values=cache)
    plain = model.generate(ids[:, :9], attention_mask=mask, **GREEDY)
    got = model.generate(ids[:, 6:], attention_mask=mask, past_key_values=cache, **GREEDY)
    assert torch.equal(got, plain[:, 6:])
    assert cache.tokens[:, :6].eq(-1).all()  # a forward pass of the model alone notes nothing
    assert torch.equal(cache.tokens[1, 6:], plain[1, 6:-1])


def test_a_text_that_differs_is_refused_and_the_cache_stays(model: Any, ids: torch.Tensor) -> None:
    cache = DynamicCache()
    model.generate(ids, past_key_values=cache, **GREEDY)
    other = torch.cat([ids, ids], 1)
    other[1, 4] = (ids[1, 4] + 1) % 90
    words = rf"another text than the prompt: at place 4 of row 1 it has read token {ids[1, 4]}, not {other[1, 4]}.*crop"
    for _ in range(2):
        with pytest.raises(InputError, match=words):
            model.generate(other, past_key_values=cache, **GREEDY)
        assert cache.get_seq_length() == 17
    with pytest.raises(InputError, match="another text than the prompt"):
        model.generate(other[:, :17], past_key_values=cache, **GREEDY)  # as long as the cache
    assert cache.get_seq_length() == 17
    cache.crop(4)
    assert torch.equal(model.generate(other, past_key_values=cache, **GREEDY), model.generate(other, **GREEDY))


def test_padding_may_hold_any_token(gpt2: Any, ids: torch.Tensor, mask: torch.Tensor) -> None:
    cache = DynamicCache()
    gpt2.generate(ids, attention_mask=mask, past_key_values=cache, **{**GREEDY, "max_new_tokens": 1})
    assert cache.tokens[0, :3].eq(-1).all()
    other = ids.masked_fill(mask == 0, 50)
    assert torch.equal(
        gpt2.generate(other, attention_mask=mask, past_key_values=cache, **GREEDY)[:, 9:],
        gpt2.generate(ids, attention_mask=mask, **GREEDY)[:, 9:],
    )


def test_changes_of_a_cache_are_kept_account_of(gpt2: Any, ids: torch.Tensor) -> None:
    cache = DynamicCache()
    gpt2.generate(ids, past_key_values=cache, **{**GREEDY, "max_new_tokens": 1})
    with torch.no_grad():
        gpt2(ids[:, :2], past_key_values=cache)  # two more that nobody notes
    assert cache.get_seq_length() == 11
    assert torch.equal(cache.tokens, ids)
    text = torch.cat([ids, ids], 1)
    gpt2.generate(text, past_key_values=cache, **{**GREEDY, "max_new_tokens": 1})
    assert cache.tokens[:, 9:11].eq(-1).all()
    assert torch.equal(cache.tokens[:, 11:], text[:, 11:])
    cache.batch_select_indices(torch.tensor([2, 0]))
    assert torch.equal(cache.tokens[:, :9], ids[[2, 0]])
    cache.batch_repeat_interleave(2)
    assert torch.equal(cache.tokens[:, :9], ids[[2, 2, 0, 0]])
    again = copy.deepcopy(cache)
    cache.crop(-15)
    assert cache.tokens.shape == (4, 3)
    assert again.tokens.shape == (4, 18)
    assert again.record.model is gpt2
    cache.reset()
    assert cache.tokens is None
    ids[:] = 0
    assert again.tokens[:, :9].ne(0).any()  # the caller's tensor is the caller's


def test_a_pair_of_caches(ids: torch.Tensor) -> None:
    model = tiny("gpt2", add_cross_attention=True)
    states = torch.randn(3, 4, model.config.n_embd, generator=torch.Generator().manual_seed(1))
    cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
    options = {**GREEDY, "encoder_hidden_states": states}
    assert torch.equal(model.generate(ids, past_key_values=cache, **options), model.generate(ids, **options))
    assert cache.tokens.shape == (3, 17)
    with pytest.raises(InputError, match="another text"):
        model.generate(ids.flip(0).repeat(1, 2), past_key_values=cache, **options)


def test_a_cache_of_another_batch_or_model(gpt2: Any, ids: torch.Tensor) -> None:
    def filled(model: Any = gpt2, rows: int = 3) -> DynamicCache:
        cache = DynamicCache()
        with torch.no_grad():
            model(ids[:rows, :4], past_key_values=cache)
        return cache

    with pytest.raises(InputError, match=r"holds 2 rows and the prompt has 3.*batch_select_indices"):
        gpt2.generate(ids, past_key_values=filled(rows=2), **GREEDY)
    for layers in (1, 3):
        with pytest.raises(InputError, match=rf"holds keys of {layers} layers, but GPT2LMHeadModel has 2"):
            gpt2.generate(ids, past_key_values=filled(tiny("gpt2", n_layer=layers)), **GREEDY)
    with pytest.raises(InputError, match=r"made by another model: its keys are torch.bfloat16.*torch.float32"):
        gpt2.generate(ids, past_key_values=filled(copy.deepcopy(gpt2).bfloat16()), **GREEDY)
    with pytest.raises(InputError, match=r"holds keys of \(rows, heads, head size\) = \(3, 2, 16\) and got \(3, 4, 8"):
        gpt2.generate(ids, past_key_values=filled(tiny("gpt2", n_head=2)), **GREEDY)
    with pytest.raises(InputError, match="past_key_values is a str"):
        gpt2.generate(ids, past_key_values="cache", **GREEDY)


def test_a_cache_that_another_model_has_read(gpt2: Any, ids: torch.Tensor) -> None:
    other, twin = tiny("gpt2"), copy.deepcopy(gpt2)
    with torch.no_grad():
        other.transformer.h[0].attn.c_attn.weight.mul_(1.01)
    cache = DynamicCache()
    gpt2.generate(ids, past_key_values=cache, **GREEDY)
    text = torch.cat([ids, ids], 1)
    text[:, :17] = cache.tokens
    with pytest.raises(InputError, match="made by another model: its weights are others"):
        other.generate(text, past_key_values=cache, **GREEDY)
    plain = gpt2.generate(text, **GREEDY)
    assert torch.equal(twin.generate(text, past_key_values=cache, **GREEDY), plain)  # the same weights elsewhere


def test_a_static_cache_without_room(gpt2: Any, ids: torch.Tensor) -> None:
    with pytest.raises(
        InputError, match="StaticCache for 16 tokens, and prompt and new tokens are 17.*max_cache_len=17"
    ):
        gpt2.generate(ids, past_key_values=StaticCache(gpt2.config, 16), **GREEDY)
    cache = StaticCache(gpt2.config, 17)
    assert torch.equal(gpt2.generate(ids, past_key_values=cache, **GREEDY), gpt2.generate(ids, **GREEDY))


# --- with the other strategies ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", DIFFERENT)
@pytest.mark.parametrize("options", [{"num_beams": 3}, {"num_beams": 2, "num_return_sequences": 2}], ids=str)
def test_beams(model: Any, ids: torch.Tensor, mask: torch.Tensor, kind: str, options: dict[str, Any]) -> None:
    options = {**GREEDY, **options, "attention_mask": mask}
    assert torch.equal(model.generate(ids, cache_implementation=kind, **options), model.generate(ids, **options))


@pytest.mark.parametrize("kind", DIFFERENT)
def test_drafts(model: Any, kind: str) -> None:
    ids = torch.tensor([[5, 6, 7, 8, 5, 6, 7, 8, 5, 6]])
    options = {**GREEDY, "max_new_tokens": 20}
    plain = model.generate(ids, **options)
    drafted = model.generate(ids, prompt_lookup_num_tokens=4, cache_implementation=kind, **options)
    assert torch.equal(drafted, plain)


@pytest.mark.parametrize("kind", DIFFERENT)
def test_a_draft_model(model: Any, ids: torch.Tensor, kind: str) -> None:
    """The model checks several tokens at once and takes back those that it would not have written."""
    draft = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in draft.parameters():
            parameter.mul_(1.05)
    options = {**GREEDY, "max_new_tokens": 16}
    plain = model.generate(ids[:1], **options)
    drafted = model.generate(ids[:1], assistant_model=draft, cache_implementation=kind, **options)
    assert torch.equal(drafted, plain)


@pytest.mark.parametrize("name", GIVEN)
def test_drafts_and_beams_with_a_given_cache(model: Any, ids: torch.Tensor, name: str) -> None:
    cache = GIVEN[name](model.config)
    first = model.generate(ids[:1], past_key_values=cache, prompt_lookup_num_tokens=3, **GREEDY)
    assert torch.equal(first, model.generate(ids[:1], **GREEDY))
    assert cache.get_seq_length() == first.shape[1] - 1
    assert torch.equal(cache.tokens, first[:, :-1])
    text = torch.cat([first, ids[:1]], 1)
    plain = model.generate(text, num_beams=3, **GREEDY)
    assert torch.equal(model.generate(text, past_key_values=cache, num_beams=3, **GREEDY), plain)
    assert cache.get_seq_length() == first.shape[1] - 1  # beams have a copy: its rows were repeated
    out = model.generate(text, past_key_values=cache, prompt_lookup_num_tokens=3, **GREEDY)
    assert torch.equal(out, model.generate(text, **GREEDY))


@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_guesses_are_no_longer_than_what_a_window_can_take_back(kind: str) -> None:
    model = tiny("gpt_oss", sliding_window=70, layer_types=["sliding_attention"] * 2)
    ids = torch.randint(90, (1, 100), generator=torch.Generator().manual_seed(5))
    options = {**GREEDY, "max_new_tokens": 100}
    got = model.generate(ids, prompt_lookup_num_tokens=95, cache_implementation=kind, **options)
    assert torch.equal(got, model.generate(ids, **options))
