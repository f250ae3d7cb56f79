"""What `generate` refuses, and what it leaves behind: wrong calls, interruptions, iteration, randomness of its own."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch

from quintet.cache import DynamicCache
from quintet.errors import GenerationError, InputError
from quintet.generation import DecodeState, GenerationConfig, StopStringCriteria, TemperatureLogitsWarper
from quintet.generation.buffer import ColumnBuffer
from quintet.generation.given import Prompt

ONE = torch.tensor([[5, 6, 7]])
PAD = 0


# --- prompts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("inputs", "kwargs", "words"),
    [
        ([[5, 6]], {}, r"input_ids is a list, but must be a tensor of shape \(rows, tokens\). Use torch.tensor"),
        ("text", {}, r"input_ids is a str.*tokenizer\(text"),
        ({"input_ids": ONE}, {}, r"input_ids is a dict.*generate\(\*\*inputs\)"),
        (ONE[0], {}, r"input_ids has shape \(3,\), but must be \(rows, tokens\). Use input_ids\[None\]"),
        (ONE.float(), {}, "input_ids is of dtype torch.float32, but must hold integers"),
        (ONE[:, :0], {}, r"the prompt is empty \(input_ids has shape \(1, 0\)\)"),
        (None, {"bos_token_id": None}, "there is no prompt: pass input_ids"),
        (ONE, {"input_ids": ONE}, "inputs and input_ids are both given"),
        (None, {"inputs_embeds": torch.zeros(3, 32)}, r"inputs_embeds is \(3, 32\), but must be a tensor"),
        (ONE, {"inputs_embeds": torch.zeros(2, 3, 32)}, "input_ids has 1 rows and inputs_embeds 2"),
        (torch.full((1, 257), 5), {}, r"the prompt has 257 tokens, and the model has 256 positions"),
        (ONE, {"attention_mask": torch.ones(1, 4)}, r"attention_mask has shape \(1, 4\), but must be \(1, 3\)"),
        (ONE, {"attention_mask": torch.ones(1, 1, 3, 3)}, r"attention_mask has shape \(1, 1, 3, 3\)"),
        (ONE, {"attention_mask": [[1, 1, 1]]}, "attention_mask is a list"),
        (ONE, {"attention_mask": torch.tensor([[0, 2, 1]])}, "attention_mask holds values other than 0 and 1"),
        (ONE, {"attention_mask": torch.zeros(1, 3)}, "attention_mask says that row 0 has no token at all"),
        (
            ONE,
            {"position_ids": torch.zeros(1, 2)},
            r"position_ids has shape \(1, 2\), but must be a tensor of shape \(1, 3\)",
        ),
        (ONE, {"token_type_ids": "a"}, "token_type_ids is a str"),
        (ONE, {"past_key_values": 3}, "past_key_values is a int, but must be a Cache"),
    ],
    ids=str,
)
def test_prompts_that_do_not_fit(model: Any, inputs: Any, kwargs: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        model.generate(inputs, **kwargs)


@pytest.mark.parametrize("inferred", [False, True])
def test_right_padding_is_refused(model: Any, inferred: bool) -> None:
    ids = torch.tensor([[5, 6, 7], [5, PAD, PAD]])
    kwargs = {} if inferred else {"attention_mask": (ids != PAD).long()}
    with pytest.raises(InputError, match=r"row 1 ends with padding.*Pad on the left: tokenizer.padding_side = 'left'"):
        model.generate(ids, pad_token_id=PAD, **kwargs)


def test_padding_that_cannot_be_told_from_text_is_reported(model: Any, caplog: pytest.LogCaptureFixture) -> None:
    model.generate(torch.tensor([[5, 6, 7], [5, 2, 2]]), max_new_tokens=2)
    assert "neither attention_mask nor pad_token_id is given for a batch of 2 rows" in caplog.text
    assert "ends with the padding token 2, and without attention_mask it counts as text" in caplog.text


def test_a_cache_that_is_longer_than_the_prompt(model: Any) -> None:
    out = model.generate(ONE, max_new_tokens=9, eos_token_id=None, return_dict_in_generate=True)
    with pytest.raises(
        InputError, match=r"holds 11 tokens and the prompt has 3. Pass the whole sequence.*\(rows, 14\)"
    ):
        model.generate(ONE, past_key_values=out.past_key_values)
    with pytest.raises(GenerationError, match="past_key_values is given and use_cache is False"):
        model.generate(out.sequences, past_key_values=out.past_key_values, use_cache=False)


# --- options ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"max_new_token": 3}, "'max_new_token' is neither an option.*GPT2LMHeadModel. Did you mean 'max_new_tokens'"),
        ({"attention_masks": 3}, "Did you mean 'attention_mask'"),
        ({"return_dict": True}, "'return_dict' is neither an option"),
        ({"use_mtp": True}, "is refused: no model of the five families"),
        ({"max_length": 3}, "the prompt has 3 tokens and max_length is 3, prompt included: nothing can be generated"),
        (
            {"max_new_tokens": 255},
            r"max_new_tokens=255 after a prompt of 3 tokens needs 257 positions.*at most 254 new",
        ),
        ({"max_length": 258}, r"max_length=258 after a prompt of 3 tokens needs 257 positions, and the model has 256"),
        (
            {"max_new_tokens": 3, "min_length": 20},
            "min_length=20 asks for at least 17 new tokens, and at most 3 can be",
        ),
        ({"min_length": 9, "max_length": 8}, "min_length=9 asks for at least 6 new tokens, and at most 5 can be"),
        ({"num_return_sequences": 2}, "greedy decoding gives the same sequence every time"),
        ({"stop_strings": "a"}, r"stop_strings='a' needs the tokenizer.*tokenizer=tokenizer"),
        ({"prefix_allowed_tokens_fn": 3}, "prefix_allowed_tokens_fn is a int, but must be a function"),
        ({"assistant_model": 3}, "assistant_model is a int, but must be a model of quintet"),
        ({"synced_gpus": 1}, "synced_gpus is 1, but must be True, False or None"),
        ({"custom_generate": "x/y"}, "custom_generate is refused: quintet runs no code from model repositories"),
        (
            {"logits_processor": print},
            "logits_processor is a builtin_function_or_method, but must be a list of callables",
        ),
        ({"stopping_criteria": [3]}, "stopping_criteria is a list, but must be a list of callables"),
        ({"generation_config": {"top_k": 3}}, "generation_config is a dict"),
    ],
    ids=str,
)
def test_options_that_cannot_be_met(model: Any, kwargs: dict[str, Any], words: str) -> None:
    with pytest.raises(GenerationError, match=words):
        model.generate(ONE, **kwargs)


def test_neutral_arguments_are_taken(model: Any) -> None:
    out = model.generate(ONE, None, None, None, None, False, None, None, None, None, None, max_new_tokens=2)
    assert out.shape == (1, 5)


def test_warnings_name_the_callers_line(model: Any) -> None:
    cases: list[tuple[str, dict[str, Any]]] = [
        ("temperature=0.5 has no effect", {"temperature": 0.5}),
        ("negative ids never occur", {"eos_token_id": -1}),
        (r"both max_new_tokens \(4\) and max_length \(9\) are set", {"max_new_tokens": 4, "max_length": 9}),
        ("labels has no effect", {"labels": ONE}),
    ]
    for words, kwargs in cases:
        for call in (model.generate, model.generate_iter):
            with pytest.warns(UserWarning, match=words) as caught:
                call(ONE, **kwargs)
            assert caught[0].filename == __file__


def test_a_default_length_from_the_model_is_clipped(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    # the default counts new tokens
    assert model.generate(torch.full((1, 50), 5), min_length=60, eos_token_id=None).shape == (1, 70)
    monkeypatch.setattr(model, "generation_config", GenerationConfig(max_length=900))
    assert model.generate(ONE, eos_token_id=None).shape == (1, 256)
    monkeypatch.setattr(model, "generation_config", GenerationConfig(min_length=90))
    with pytest.warns(UserWarning, match="min_length=90 asks for at least 87 new tokens"):
        assert model.generate(ONE, max_new_tokens=5).shape == (1, 8)


def test_padding_does_not_count_as_positions(model: Any) -> None:
    ids = torch.cat([torch.full((1, 250), PAD), ONE], dim=1)
    mask = (ids != PAD).long()
    out = model.generate(ids, attention_mask=mask, max_new_tokens=20, eos_token_id=None)
    alone = model.generate(ONE, max_new_tokens=20, eos_token_id=None)
    assert torch.equal(out[:, 250:], alone)


def test_a_padding_token_outside_the_vocabulary(model: Any, prompt: torch.Tensor) -> None:
    with pytest.raises(
        GenerationError, match=r"pad_token_id is 999, outside the vocabulary \(0 to 299\).*for example 2"
    ):
        model.generate(prompt, pad_token_id=999)


def test_own_objects_replace_built_ones(model: Any) -> None:
    options = {"do_sample": True, "temperature": 0.5, "max_new_tokens": 5}
    model.generate(ONE, logits_processor=[TemperatureLogitsWarper(3.0)], **options)  # both apply: not the same stage
    from quintet.generation import MaxLengthCriteria

    with pytest.warns(UserWarning, match="stopping criterion MaxLengthCriteria is given"):
        assert model.generate(ONE, stopping_criteria=[MaxLengthCriteria(6)], max_new_tokens=9).shape == (1, 6)


@pytest.mark.parametrize("do_sample", [False, True])
@pytest.mark.parametrize(("value", "words"), [(math.nan, "row 1 hold NaN"), (-math.inf, "row 1 are all -inf")])
def test_scores_without_a_usable_token(model: Any, do_sample: bool, value: float, words: str) -> None:
    def spoil(input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        scores = scores.clone()
        scores[1] = value
        return scores

    options = {"do_sample": True, "top_k": 0} if do_sample else {}
    with pytest.raises(GenerationError, match=words):
        model.generate(ONE.repeat(2, 1), logits_processor=[spoil], pad_token_id=PAD, **options)


def test_a_processor_that_returns_another_shape(model: Any) -> None:
    with pytest.raises(GenerationError, match=r"returned scores of shape \(1, 299\) for \(1, 300\)"):
        model.generate(ONE, logits_processor=[lambda ids, scores: scores[:, 1:]])


# --- what is left behind ----------------------------------------------------------------------------------------------


def test_the_result_can_be_trained_on(model: Any, prompt: torch.Tensor) -> None:
    twin = copy.deepcopy(model).train()
    out = twin.generate(prompt, max_new_tokens=5, pad_token_id=PAD, return_dict_in_generate=True, output_logits=True)
    assert twin.training
    assert torch.is_grad_enabled()
    twin(input_ids=out.sequences, labels=out.sequences).loss.backward()
    weight = torch.ones(300, requires_grad=True)
    (out.logits[0] * weight).sum().backward()  # no inference tensors
    more = twin(input_ids=prompt[:, :2], past_key_values=out.past_key_values)
    assert more.logits.shape == (3, 2, 300)


def test_max_time_ends_after_a_column(model: Any) -> None:
    begin = time.time()
    out = model.generate(ONE, max_time=1e-6, max_new_tokens=200, eos_token_id=None)
    assert out.shape == (1, 4)
    assert time.time() - begin < 5


def test_dropout_differs_between_sequences_of_one_prompt(model: Any) -> None:
    twin = copy.deepcopy(model).train()
    outs = twin.generate(
        ONE, do_sample=True, top_k=1, num_return_sequences=8, max_new_tokens=3, eos_token_id=None, pad_token_id=PAD
    )
    assert len({tuple(row) for row in outs.tolist()}) > 1


class Interrupting:
    """Wraps a block so that its n-th call raises."""

    def __init__(self, block: torch.nn.Module, after: int, error: type[BaseException]) -> None:
        self.calls, self.after, self.error = 0, after, error
        self.handle = block.register_forward_pre_hook(self)

    def __call__(self, *args: Any) -> None:
        self.calls += 1
        if self.calls > self.after:
            raise self.error("interrupted")


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interruption_between_layers_leaves_model_and_cache_usable(
    model: Any, error: type[BaseException], prompt: torch.Tensor
) -> None:
    cache = DynamicCache()
    model(input_ids=prompt[:, :4], past_key_values=cache)
    hook = Interrupting(model.transformer.h[1], 5, error)  # the first layer has stored a token that the second has not
    with pytest.raises(error, match="interrupted"):
        model.generate(prompt, past_key_values=cache, max_new_tokens=20, eos_token_id=None, pad_token_id=PAD)
    hook.handle.remove()
    lengths = {cache.get_seq_length(layer) for layer in range(2)}
    assert lengths == {7 + 4}
    assert torch.is_grad_enabled()
    cache.crop(7)
    options = {"max_new_tokens": 20, "eos_token_id": None, "pad_token_id": PAD}
    assert torch.equal(model.generate(prompt, past_key_values=cache, **options), model.generate(prompt, **options))


def test_a_given_cache_grows_but_not_its_rows(model: Any) -> None:
    cache = DynamicCache()
    model(input_ids=ONE[:, :2], past_key_values=cache)
    out = model.generate(ONE, past_key_values=cache, max_new_tokens=6, eos_token_id=None)
    assert cache.get_seq_length() == 8
    again = model.generate(out[:, :8], past_key_values=cache, max_new_tokens=1, eos_token_id=None)
    assert torch.equal(again, out)  # as long as the cache: its last token is read again
    cache.crop(2)
    many = model.generate(ONE, past_key_values=cache, do_sample=True, num_return_sequences=4, max_new_tokens=3)
    assert many.shape[0] == 4
    assert cache.key_cache[0].shape[0] == 1
    assert cache.get_seq_length() == 2


def test_a_cache_of_the_tuple_form(model: Any) -> None:
    cache = DynamicCache()
    model(input_ids=ONE[:, :2], past_key_values=cache)
    out = model.generate(ONE, past_key_values=cache.to_legacy_cache(), max_new_tokens=6, eos_token_id=None)
    assert torch.equal(out, model.generate(ONE, max_new_tokens=6, eos_token_id=None))


def test_the_result_holds_no_spare_room(model: Any) -> None:
    out = model.generate(ONE, max_new_tokens=200, eos_token_id=list(range(300)))
    assert out.shape == (1, 4)
    assert out.untyped_storage().nbytes() == 4 * 8


# --- iteration --------------------------------------------------------------------------------------------------------


def test_columns_are_what_generate_returns(model: Any, prompt: torch.Tensor) -> None:
    options = {
        "max_new_tokens": 20,
        "eos_token_id": list(range(3, 60)),
        "pad_token_id": PAD,
        "top_k": 0,
        "do_sample": True,
    }
    torch.manual_seed(3)
    out = model.generate(prompt, return_dict_in_generate=True, output_scores=True, output_logits=True, **options)
    torch.manual_seed(3)
    columns = list(model.generate_iter(prompt, output_scores=True, output_logits=True, **options))
    assert torch.equal(torch.stack([column.tokens for column in columns], dim=1), out.sequences[:, 7:])
    assert [column.ids for column in columns] == out.sequences[:, 7:].T.tolist()
    for column, scores, logits in zip(columns, out.scores, out.logits, strict=True):
        assert torch.equal(column.scores, scores)
        assert torch.equal(column.logits, logits)
    done = [column.finished for column in columns]
    assert all(done[-1]) and not all(done[0])
    assert all(
        before <= after
        for early, late in zip(done, done[1:], strict=False)
        for before, after in zip(early, late, strict=True)
    )


def test_iteration_keeps_to_itself(model: Any) -> None:
    columns = model.generate_iter(ONE, max_new_tokens=20, eos_token_id=None)
    first = next(columns)
    assert torch.is_grad_enabled()  # gradients are off only inside
    assert not first.tokens.is_inference()
    columns.close()
    expected = model.generate(ONE, max_new_tokens=5, eos_token_id=None)
    columns = model.generate_iter(ONE, max_new_tokens=20, eos_token_id=None)
    with pytest.raises(KeyboardInterrupt):
        for number, column in enumerate(columns):
            assert column.ids == [int(expected[0, 3 + number])]
            if number == 4:
                raise KeyboardInterrupt
    assert torch.equal(model.generate(ONE, max_new_tokens=5, eos_token_id=None), expected)


def test_two_iterations_side_by_side(model: Any, prompt: torch.Tensor) -> None:
    options = {"max_new_tokens": 12, "eos_token_id": None}
    pairs = zip(model.generate_iter(prompt[:1], **options), model.generate_iter(prompt[1:2], **options), strict=True)
    tokens = torch.tensor([[a.ids[0], b.ids[0]] for a, b in pairs]).T
    assert torch.equal(tokens[:1], model.generate(prompt[:1], **options)[:, 7:])
    assert torch.equal(tokens[1:], model.generate(prompt[1:2], **options)[:, 7:])


def test_iteration_checks_its_options_at_once(model: Any) -> None:
    with pytest.raises(GenerationError, match="top_k is -3"):
        model.generate_iter(ONE, top_k=-3)
    with pytest.raises(GenerationError, match="'streamer' is neither an option"):
        model.generate_iter(ONE, streamer=3)


# --- the state that later loops stand on ------------------------------------------------------------------------------


@pytest.mark.parametrize("use_cache", [True, False])
def test_a_state_can_be_reordered_cropped_and_expanded(model: Any, prompt: torch.Tensor, use_cache: bool) -> None:
    mask = torch.ones_like(prompt)
    mask[1, :3] = 0

    def alone(row: int, *tokens: int) -> torch.Tensor:
        ids = torch.cat([prompt[row, mask[row] == 1], torch.tensor(tokens, dtype=torch.long)])[None]
        return model(input_ids=ids).logits[0, -1]

    with torch.no_grad():
        state = DecodeState(model, Prompt(prompt, prompt, mask=mask), use_cache=use_cache)
        torch.testing.assert_close(state.prefill(), torch.stack([alone(0), alone(1), alone(2)]), atol=1e-4, rtol=1e-4)
        state.advance(torch.tensor([10, 11, 12]))
        state.reorder(torch.tensor([1, 1, 0, 2]))
        assert state.rows == 4
        found = state.advance(torch.tensor([20, 21, 22, 23]))
        wanted = [alone(1, 11, 20), alone(1, 11, 21), alone(0, 10, 22), alone(2, 12, 23)]
        torch.testing.assert_close(found, torch.stack(wanted), atol=1e-4, rtol=1e-4)
        state.crop(8)
        state.expand(2)
        found = state.advance(torch.arange(30, 38))
        wanted = [
            alone(row, first, 30 + i)
            for i, (row, first) in enumerate([(1, 11), (1, 11), (1, 11), (1, 11), (0, 10), (0, 10), (2, 12), (2, 12)])
        ]
        torch.testing.assert_close(found, torch.stack(wanted), atol=1e-4, rtol=1e-4)


def test_a_buffer_grows() -> None:
    buffer = ColumnBuffer(torch.tensor([[1], [2]]), room=2)
    views = []
    for number in range(9):
        buffer.append(torch.tensor([number, -number]))
        views.append((buffer.view, buffer.view.clone()))
    assert buffer.view.tolist() == [[1, *range(9)], [2, *range(0, -9, -1)]]
    assert buffer.last.tolist() == [[8], [-8]]
    assert all(torch.equal(view, then) for view, then in views)
    assert ColumnBuffer(torch.zeros(1, 1), room=10**12)._slab.numel() < 10**4


class Bare(torch.nn.Module):
    """The least that generation asks of a model: no logits_to_keep, and perhaps no cache."""

    def __init__(self, shape: str = "rows") -> None:
        super().__init__()
        self.config, self.generation_config, self.shape = object(), GenerationConfig(), shape
        self.device = torch.device("cpu")

    def _position_limit(self) -> None:
        return None

    def forward(self, input_ids: torch.Tensor, use_cache: bool = True, return_dict: bool = True) -> Any:
        class Out:
            logits = torch.nn.functional.one_hot((input_ids + 1) % 10, 10).float()
            past_key_values = None

        if self.shape == "choices":
            Out.logits = Out.logits[None]
        return Out


def test_other_models() -> None:
    from quintet.generation import GenerationMixin

    class Counter(GenerationMixin, Bare):
        pass

    assert Counter().generate(ONE, use_cache=False, max_new_tokens=4).tolist() == [[5, 6, 7, 8, 9, 0, 1]]
    with pytest.raises(GenerationError, match=r"Counter returned no past_key_values. Call generate\(use_cache=False\)"):
        Counter().generate(ONE)
    with pytest.raises(InputError, match=r"Counter gave scores of shape \(1, 1, 3, 10\), but generate"):
        Counter("choices").generate(ONE, use_cache=False)


def test_stop_strings_with_our_own_tokenizer(tiny_gpt2: Any) -> None:
    from quintet.tokenizers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_gpt2)
    ids = tokenizer("The old woman talked", return_tensors="pt")["input_ids"]
    criterion = StopStringCriteria(tokenizer, ["wom", "talke"])
    hits = [bool(criterion(ids[:, : end + 1], None)) for end in range(ids.shape[1])]
    texts = [tokenizer.decode(ids[0, : end + 1]) for end in range(ids.shape[1])]
    assert hits.index(True) == next(i for i, text in enumerate(texts) if "wom" in text)


def test_double_heads(make_pair: Callable[..., Any]) -> None:
    from quintet.models.gpt2 import GPT2DoubleHeadsModel

    pair = make_pair()
    double = GPT2DoubleHeadsModel(pair.ours.config).eval()
    double.load_state_dict(pair.ours.state_dict(), strict=False)
    assert torch.equal(double.generate(ONE, max_new_tokens=9), pair.ours.generate(ONE, max_new_tokens=9))
