"""What is wrong with a call is said, by name, whatever the strategy; and the model is as before."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from drafts import disturbed

from quintet.cache import DynamicCache
from quintet.errors import GenerationError, InputError
from quintet.generation import GenerationConfig
from quintet.generation.options import OPTIONS

PAD, EOS, NAN, INF = 0, 2, math.nan, math.inf
ONE = torch.tensor([[5, 6, 7, 5, 6]])
HUGE = 10**20


def quietly(model: Any, *args: Any, **kwargs: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return model.generate(*args, **{"max_new_tokens": 4, "pad_token_id": PAD, "eos_token_id": None} | kwargs)


# --- every option -----------------------------------------------------------------------------------------------------

COUNT = [0, -1, -HUGE, 1.5, True, "3", NAN, INF, [1], object()]
FROM_ZERO = [-1, 0.5, True, "1", NAN, [], {}]
POSITIVE = [0, -0.1, NAN, INF, -INF, "1", True, [1.0], torch.tensor([1.0, 2.0])]
SHARE = [0, -0.1, 1.01, NAN, INF, "x", True, (0.5,)]
UNIT = [-0.1, 1.1, NAN, INF, "x", True, [0.5]]
NUMBER = [NAN, INF, -INF, "x", True, [1.0]]
FLAG = [0, 1, "yes", 1.0, []]
ID = [0.5, "a", [1], True, 2**63, -HUGE]
IDS = [[], 0.5, "a", [None], [0.5], True, [True], 2**63, [HUGE], {3}]
ID_LIST = [5, "a", [-1], [0.5], [None], {3: 1}, [[5]], [HUGE]]

WRONG: dict[str, list[Any]] = {
    **dict.fromkeys(("max_length", "max_new_tokens", "num_beam_groups", "max_cache_len", "prefill_chunk_size"), COUNT),
    **dict.fromkeys(("num_assistant_tokens", "max_matching_ngram_size", "prompt_lookup_num_tokens"), COUNT),
    **dict.fromkeys(("num_beams", "num_return_sequences"), [*COUNT, HUGE, 2**31]),
    "assistant_early_exit": COUNT,
    **dict.fromkeys(("min_length", "min_new_tokens", "assistant_lookbehind", "target_lookbehind"), FROM_ZERO),
    **dict.fromkeys(("top_k", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size"), FROM_ZERO),
    **dict.fromkeys(("temperature", "repetition_penalty", "encoder_repetition_penalty", "max_time"), POSITIVE),
    **dict.fromkeys(("top_p", "top_h", "typical_p"), SHARE),
    **dict.fromkeys(("min_p", "epsilon_cutoff", "eta_cutoff", "penalty_alpha"), UNIT),
    "assistant_confidence_threshold": UNIT,
    "assistant_ensemble_weight": [0, 1, *UNIT],
    **dict.fromkeys(("length_penalty", "guidance_scale"), NUMBER),
    "diversity_penalty": [-0.1, *NUMBER],
    **dict.fromkeys(("do_sample", "low_memory", "use_cache", "use_mtp", "token_healing", "is_assistant"), FLAG),
    **dict.fromkeys(("renormalize_logits", "remove_invalid_values", "disable_compile"), FLAG),
    **dict.fromkeys(("return_dict_in_generate", "output_scores", "output_logits"), FLAG),
    **dict.fromkeys(("output_attentions", "output_hidden_states"), FLAG),
    **dict.fromkeys(("pad_token_id", "bos_token_id"), ID),
    **dict.fromkeys(("eos_token_id", "decoder_start_token_id"), IDS),
    "forced_bos_token_id": [-1, *ID],
    "forced_eos_token_id": [-1, [-1], *IDS],
    **dict.fromkeys(("suppress_tokens", "begin_suppress_tokens"), ID_LIST),
    "bad_words_ids": [[], [3], [[]], "a", [[-1]], [[0.5]], {}, 3],
    "sequence_bias": [[], {}, [[5, 1.0]], {(5,): None}, {5: 1.0}, [[[5], NAN]], [[[], 1.0]], "a", 3],
    "exponential_decay_length_penalty": [1.5, (1,), (1, 2, 3), (-1, 1.1), (1, 0), (1, NAN), ("a", "b"), {}],
    "stop_strings": ["", [], [""], ["a", ""], [3], [None], b"a", ["a", b"b"], [["a"]], {"a": 1}, 3, object()],
    "early_stopping": [1, 0, "always", [], 0.0],
    "cache_implementation": ["", "paged", 3, [], True, object()],
    "cache_config": ["a", 3, [], {3: 1}, True],
    "num_assistant_tokens_schedule": ["", "linear", 3, True, []],
    "watermarking_config": [3, "a", [], {"bias": "x"}, {"greenlist_ratio": 2}, {"keys": [1]}, {"bias": NAN}],
    "thinking_budget": [-2, 0.5, "a", [], [-2], [None], True, NAN],
    "response_format": [3, [], {"type": "nothing"}, {"type": "regex"}, "a regex", object()],
    "constraints": [[3], object()],
    "force_words_ids": [[[3]], 3],
    "dola_layers": ["high", [0, 1], 3],
    "speculation_type": ["mtp"],
    "compile_config": [{}, object()],
    "continuous_batching_config": [{}, object()],
}


def test_every_option_has_wrong_values_here() -> None:
    assert set(WRONG) == set(OPTIONS)


@pytest.mark.parametrize("name", list(OPTIONS))
def test_values_that_an_option_cannot_have(model: Any, name: str) -> None:
    """As a keyword, in a config of the call, and in that of the model."""
    own = model.generation_config
    more = {"assistant_model": model} if name == "speculation_type" else {}
    for value in WRONG[name]:
        words = f"{name}|watermarking_config|WatermarkingConfig" if name == "watermarking_config" else name
        with pytest.raises(GenerationError, match=words):
            quietly(model, ONE, **{name: value}, **more)
        with pytest.raises(GenerationError, match=words):
            next(model.generate_iter(ONE, **{name: value}, **more))
        try:
            config = GenerationConfig(**{name: value})
        except GenerationError as error:
            assert name in str(error) or name == "watermarking_config"
            continue
        with pytest.raises(GenerationError, match=name):  # what only a call can know
            quietly(model, ONE, generation_config=config, **more)
        try:
            model.generation_config = config
            with pytest.raises(GenerationError, match=name):
                quietly(model, ONE, **more)
        finally:
            model.generation_config = own


REFUSED = [option.name for option in OPTIONS.values() if not option.works and not option.never_bites]


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_carried_out_is_refused_with_a_reason(model: Any, name: str) -> None:
    option = OPTIONS[name]
    assert len(option.refusal) > 60, "a reason, and what to do instead"
    more = {"assistant_model": model} if option.needs else {}
    value = True if option.check(True) is None and option.neutral else WRONG[name][0]
    with pytest.raises(GenerationError, match=rf"{name}=.*\(from the call\) is refused: ") as caught:
        quietly(model, ONE, **{name: value}, **more)
    assert option.refusal in str(caught.value)
    for neutral in (None, *option.neutral):
        quietly(model, ONE, **{name: neutral}, **more)


# --- strategies -------------------------------------------------------------------------------------------------------

WAYS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sample": {"do_sample": True, "top_k": 0},
    "sequences": {"do_sample": True, "num_return_sequences": 2},
    "beams": {"num_beams": 3},
    "beam sample": {"num_beams": 3, "do_sample": True},
    "groups": {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5},
    "lookup": {"prompt_lookup_num_tokens": 3},
    "early exit": {"assistant_early_exit": 1},
    "draft": {"assistant_model": None},
    "contrastive": {"penalty_alpha": 0.6, "top_k": 4},
    "no cache": {"use_cache": False},
    "static": {"cache_implementation": "static"},
    "guided": {"guidance_scale": 1.5},
}
STREAMED = [name for name in WAYS if name not in ("beams", "beam sample", "groups", "sequences")]


def asked(model: Any, name: str) -> dict[str, Any]:
    way = dict(WAYS[name])
    if "assistant_model" in way:
        way["assistant_model"] = disturbed(model, 0.02)
    return way


def works(model: Any) -> None:
    """The model is as before: greedy decoding gives the tokens of the forward pass."""
    out = quietly(model, ONE, do_sample=False)
    assert out[0, 5] == model(ONE).logits[0, -1].argmax()
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("value", [NAN, INF], ids=str)
def test_a_broken_model(model: Any, way: str, value: float) -> None:
    broken = copy.deepcopy(model)
    with torch.no_grad():
        broken.transformer.ln_f.weight.fill_(value)
    with pytest.raises(GenerationError, match=r"hold NaN|hold \+inf"):
        quietly(broken, ONE, **asked(model, way))


@pytest.mark.parametrize("way", WAYS)
def test_all_tokens_are_ruled_out(model: Any, way: str) -> None:
    with pytest.raises(GenerationError, match="all -inf: the processors ruled out every token|no text"):
        quietly(model, ONE, suppress_tokens=list(range(300)), **asked(model, way))
    works(model)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("result", "words"),
    [
        (lambda scores: scores[:, 1:], r"scores of shape \(\d, 299\) for \(\d, 300\)"),
        (lambda scores: scores[0], r"scores of shape \(300,\)"),
        (lambda scores: torch.cat([scores, scores]), r"scores of shape \(\d, 300\) for \(\d, 300\)"),
        (lambda scores: None, "is a `return` missing"),
        (lambda scores: scores.argmax(-1), "returned scores of shape|returned scores of dtype"),
    ],
    ids=["narrow", "flat", "twice", "none", "ids"],
)
def test_a_processor_that_returns_another_shape(
    model: Any, way: str, result: Callable[[torch.Tensor], Any], words: str
) -> None:
    with pytest.raises(GenerationError, match=words):
        quietly(model, ONE, logits_processor=[lambda ids, scores: result(scores)], **asked(model, way))
    works(model)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_processor_that_raises(model: Any, way: str, error: type[BaseException]) -> None:
    def third(input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if input_ids.shape[1] > 6:
            raise error("here")
        return scores

    with pytest.raises(error, match="here"):
        quietly(model, ONE, logits_processor=[third], **asked(model, way))
    works(model)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "answer",
    [lambda rows: torch.zeros(rows + 1, dtype=torch.bool), lambda rows: "yes", lambda rows: torch.zeros(rows, 2)],
    ids=["rows", "text", "columns"],
)
def test_a_criterion_that_answers_something_else(model: Any, way: str, answer: Callable[[int], Any]) -> None:
    with pytest.raises(GenerationError, match="criterion"):
        quietly(model, ONE, stopping_criteria=[lambda ids, scores: answer(len(ids))], **asked(model, way))
    works(model)


class Faulty:
    """A streamer that raises at its n-th column."""

    def __init__(self, after: int, error: type[BaseException]) -> None:
        self.left, self.error = after, error

    def put(self, value: torch.Tensor) -> None:
        self.left -= 1
        if self.left < 0:
            raise self.error("the streamer broke")

    def end(self) -> None:
        pass


@pytest.mark.parametrize("way", STREAMED)
@pytest.mark.parametrize("after", [0, 1, 3])
def test_a_streamer_that_raises(model: Any, way: str, after: int) -> None:
    given = {} if way in ("no cache", "static", "contrastive") else {"past_key_values": DynamicCache()}
    for error in (ValueError, KeyboardInterrupt):
        if given:
            given["past_key_values"].crop(0)
        with pytest.raises(error, match="the streamer broke"):
            quietly(model, ONE, streamer=Faulty(after, error), max_new_tokens=9, **asked(model, way), **given)
        works(model)
        cache = given.get("past_key_values")
        if cache is not None and cache.get_seq_length() > 5:
            whole = quietly(model, ONE, max_new_tokens=9)
            if way not in ("sample", "guided"):  # what was read is the beginning of the text
                again = quietly(model, whole[:, : cache.get_seq_length() + 1], past_key_values=cache, max_new_tokens=1)
                assert torch.equal(again, whole[:, : again.shape[1]])


@pytest.mark.parametrize("streamer", [3, object(), "text"], ids=["number", "object", "text"])
def test_a_streamer_that_is_none(model: Any, streamer: Any) -> None:
    with pytest.raises(GenerationError, match="streamer is a .*, but must have put"):
        quietly(model, ONE, streamer=streamer)


@pytest.mark.parametrize("way", ["beams", "beam sample", "groups"])
def test_beams_are_not_streamed(model: Any, way: str) -> None:
    with pytest.raises(GenerationError, match="a streamer is given, and beam search knows its text only at the end"):
        quietly(model, ONE, streamer=Faulty(9, ValueError), **WAYS[way])


@pytest.mark.parametrize("way", [one for one in WAYS if one not in ("no cache", "sequences")])
def test_scores_that_the_caller_writes_into_are_not_the_models(model: Any, way: str) -> None:
    """The model's own logits are shown as they were."""

    def worse(input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        scores[:, ::2] -= 100.0
        return scores

    record = {"return_dict_in_generate": True, "output_logits": True, "logits_processor": [worse]}
    out = quietly(model, ONE, **record, **asked(model, way))
    if way != "guided":
        torch.testing.assert_close(out.logits[0][0], model(ONE).logits[0, -1], rtol=1e-4, atol=1e-4)
    assert (out.sequences[0, 5:] % 2 == 1).all()


# --- prompts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"bos_token_id": None}, "there is no prompt: pass input_ids"),
        ({"inputs": ONE[:, :0]}, "the prompt is empty"),
        ({"inputs": ONE[:0]}, "the prompt is empty|has no rows|0 rows"),
        ({"inputs": torch.tensor([[5, 300]])}, "300"),
        ({"inputs": torch.tensor([[5, -1]])}, "-1"),
        ({"bos_token_id": 300}, "300"),
    ],
    ids=["no bos", "no tokens", "no rows", "outside", "negative", "bos outside"],
)
def test_prompts_that_are_none(model: Any, way: str, given: dict[str, Any], words: str) -> None:
    with pytest.raises((InputError, GenerationError), match=words):
        quietly(model, **given, **asked(model, way))
    works(model)


@pytest.mark.parametrize("way", [name for name in WAYS if name != "contrastive"])
def test_a_prompt_as_long_as_the_context_gets_one_token(model: Any, way: str) -> None:
    full = torch.randint(3, 300, (1, 256), generator=torch.Generator().manual_seed(1))
    out = quietly(model, full, max_new_tokens=1, **asked(model, way))
    assert out.shape[1] == 257
    assert torch.equal(out[:1, :256], full)
    if way in ("greedy", "lookup", "early exit", "draft", "no cache", "static"):
        assert out[0, 256] == model(full).logits[0, -1].argmax()
    with pytest.raises(GenerationError, match="Ask for at most 1 new tokens"):
        quietly(model, full, max_new_tokens=2, **asked(model, way))
    with pytest.raises(InputError, match="the prompt has 257 tokens, and the model has 256 positions"):
        quietly(model, torch.cat([full, full[:, :1]], dim=1), max_new_tokens=1, **asked(model, way))
    with pytest.raises(GenerationError, match="max_length is 256, prompt included: nothing can be generated"):
        quietly(model, full, max_new_tokens=None, max_length=256, **asked(model, way))


# --- padding with the token that ends ---------------------------------------------------------------------------------

ENDS = list(range(20, 60))


@pytest.mark.parametrize("way", ["greedy", "sample", "sequences", "beams", "beam sample", "contrastive", "static"])
def test_padding_with_an_end_changes_nothing_but_the_filling(model: Any, way: str) -> None:
    """Left padding and rows that end early, filled with a token that is an end, too."""
    ids = torch.randint(60, 300, (3, 6), generator=torch.Generator().manual_seed(4))
    mask = torch.ones_like(ids)
    mask[0, :2] = mask[1, :4] = 0
    outs: dict[int, torch.Tensor] = {}
    options = WAYS[way] | {"eos_token_id": ENDS, "suppress_tokens": [PAD], "max_new_tokens": 25}
    for pad in (PAD, ENDS[0], ENDS[-1]):
        torch.manual_seed(7)
        padded = ids.masked_fill(mask == 0, pad)
        outs[pad] = quietly(model, padded, attention_mask=mask, pad_token_id=pad, **options)
    if way not in ("beams", "beam sample"):  # which fill with the first end when the padding id is 0, as the reference
        kept = outs[PAD] != PAD
        assert not kept.all(), "some row ends early"
    else:
        kept = torch.ones_like(outs[PAD], dtype=torch.bool)
        kept[:, :6] = mask.bool().repeat_interleave(len(kept) // 3, dim=0)
        assert torch.equal(outs[PAD][kept], outs[ENDS[0]][kept])
        return
    for pad in ENDS[0], ENDS[-1]:
        assert torch.equal(outs[pad][kept], outs[PAD][kept])
        assert (outs[pad][~kept] == pad).all()


def test_padding_that_is_an_end_is_text_without_a_mask(model: Any) -> None:
    ids = torch.tensor([[EOS, EOS, 5, 6]])
    text = quietly(model, ids, pad_token_id=EOS, eos_token_id=EOS)
    assert torch.equal(text, quietly(model, ids, attention_mask=torch.ones_like(ids), eos_token_id=EOS))


def test_a_prompt_that_ends_in_an_end_goes_on(model: Any) -> None:
    out = quietly(model, torch.tensor([[5, 6, EOS]]), eos_token_id=EOS, pad_token_id=EOS, min_new_tokens=2)
    assert out.shape[1] >= 5


# --- stop strings -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "stops",
    [
        "a" * 5000,
        [f"{one} x" for one in range(400)],
        ["é", "漢字", "😀"],
        "\n",
        " ",
        ("stop",),
        ["stop"] * 3,
        "\x00",
    ],
    ids=["long", "many", "unicode", "newline", "space", "tuple", "same", "zero"],
)
@pytest.mark.parametrize("way", ["greedy", "beams", "lookup"])
def test_stop_strings_of_odd_shapes(model: Any, make_tokenizer: Callable[[], Any], stops: Any, way: str) -> None:
    tokenizer = make_tokenizer()
    ids = tokenizer("The stop", return_tensors="pt").input_ids
    out = quietly(model, ids, stop_strings=stops, tokenizer=tokenizer, max_new_tokens=12, **WAYS[way])
    plain = quietly(model, ids, max_new_tokens=12, **WAYS[way])
    new = out[0, ids.shape[1] :]
    found = [tokenizer.decode(new[:count]) for count in range(1, len(new))]
    assert not any(stop in text for text in found for stop in ([stops] if isinstance(stops, str) else stops))
    if way != "beams":
        assert torch.equal(out, plain[:, : out.shape[1]])


@pytest.mark.parametrize("tokenizer", [3, object()], ids=["number", "object"])
def test_a_tokenizer_that_cannot_spell(model: Any, tokenizer: Any) -> None:
    with pytest.raises(GenerationError, match="tokenizer"):
        quietly(model, ONE, stop_strings="a", tokenizer=tokenizer)
    with pytest.raises(GenerationError, match="stop_strings='a' needs the tokenizer"):
        quietly(model, ONE, stop_strings="a")
