"""Perplexity by windows: by hand, and equal to the whole where the whole fits."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from quintet import AutoModelForCausalLM, AutoTokenizer
from quintet.errors import InputError
from quintet.evaluate import evaluate_perplexity, rolling_windows


def test_by_hand(table_model, table_tokenizer, logp):
    text = "b c\nc  a "
    result = evaluate_perplexity(table_model(limit=8), table_tokenizer, text)
    nats = -logp(0, 1, 2, 2, 0)  # after bos, which is `a`
    assert result.nats == pytest.approx(nats)
    assert (result.tokens, result.words, result.bytes) == (4, 4, len(text))
    assert result.token_perplexity == result.word_perplexity == pytest.approx(math.exp(nats / 4))
    assert result.bits_per_byte == pytest.approx(nats / math.log(2) / 9)
    assert (result.window, result.stride) == (8, 4)


def test_without_a_token_to_begin_after_the_first_is_not_predicted(table_model, table_tokenizer, logp):
    table_tokenizer.bos_token_id = None
    result = evaluate_perplexity(table_model(), table_tokenizer, "b c a")
    assert result.tokens == 2 and result.nats == pytest.approx(-logp(1, 2, 0))
    with pytest.raises(InputError, match="the text has 1 tokens, so there is nothing to predict"):
        evaluate_perplexity(table_model(), table_tokenizer, "b")


def test_bytes_are_those_of_utf8(table_model, table_tokenizer, monkeypatch):
    monkeypatch.setattr(type(table_tokenizer), "__call__", lambda self, text, **kwargs: {"input_ids": [1, 2]})
    assert evaluate_perplexity(table_model(), table_tokenizer, "é\u2003日").bytes == 2 + 3 + 3


def test_windows_of_a_whole_stride():
    assert list(rolling_windows(list(range(10)), 4, 4, 99)) == [
        ([99], [0, 1, 2, 3]),
        ([3], [4, 5, 6, 7]),
        ([5, 6, 7], [8, 9]),
    ]


def test_windows_that_overlap():
    assert list(rolling_windows([10, 11, 12, 13, 14, 15], 3, 2, None)) == [
        ([10], [11, 12, 13]),
        ([12, 13], [14, 15]),
    ]
    assert list(rolling_windows([1, 2], 5, 1, 0)) == [([0], [1, 2])]
    assert list(rolling_windows([], 5, 1, 0)) == []


@given(st.integers(0, 30), st.integers(1, 9), st.data())
def test_every_token_is_predicted_once_from_as_much_as_fits(size, window, data):
    stride = data.draw(st.integers(1, window))
    ids, done = [-1, *range(size)], 1
    for context, target in rolling_windows(range(size), window, stride, -1):
        given_to_model = [*context, *target][:-1]
        assert target == ids[done : done + len(target)]
        assert given_to_model == ids[max(0, done + len(target) - 1 - window) : done + len(target) - 1]
        assert len(context) > window - stride or done == 1
        done += len(target)
    assert done == size + 1


@pytest.fixture(scope="module")
def tiny(tiny_gpt2):
    return AutoModelForCausalLM.from_pretrained(tiny_gpt2), AutoTokenizer.from_pretrained(tiny_gpt2)


def test_a_text_that_fits_is_one_pass_whatever_the_stride(tiny):
    model, tokenizer = tiny
    text = "The old woman took her lantern, and went into the forest to look for it."
    ids = [tokenizer.bos_token_id, *tokenizer(text)["input_ids"]]
    with torch.no_grad():
        loss = model(torch.tensor([ids]), labels=torch.tensor([ids])).loss
    for stride in (1, 7, 128):
        result = evaluate_perplexity(model, tokenizer, text, stride=stride)
        assert result.nats / result.tokens == pytest.approx(float(loss), rel=1e-5)


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("stride", [1, 5, 16])
def test_windows_are_what_the_model_says_of_each(tiny, stride, batch_size):
    model, tokenizer = tiny
    text = "The cat went out and did not come back. The old woman talked to it all day long, one morning."
    ids = torch.tensor([tokenizer.bos_token_id, *tokenizer(text)["input_ids"]])
    assert len(ids) > 2 * 16
    nats = 0.0
    for place in range(1, len(ids)):  # the window in which it is new
        end = 1 + 16 if place <= 16 else min(len(ids), 17 + stride * math.ceil((place - 16) / stride))
        begin = max(0, end - 1 - 16)
        with torch.no_grad():
            logits = model(ids[None, begin:place]).logits[0, -1].double()
        nats -= float(torch.log_softmax(logits, -1)[ids[place]])
    result = evaluate_perplexity(model, tokenizer, text, window=16, stride=stride, batch_size=batch_size)
    assert result.nats == pytest.approx(nats, rel=1e-5) and result.tokens == len(ids) - 1


def test_progress_counts_tokens(table_model, table_tokenizer):
    steps = []
    evaluate_perplexity(
        table_model(limit=4),
        table_tokenizer,
        "a b c " * 3,
        stride=2,
        batch_size=2,
        progress=lambda *numbers: steps.append(numbers),
    )
    assert steps == [(6, 9), (9, 9)]


def test_a_hopeless_model_has_an_infinite_perplexity(table_model, table_tokenizer, monkeypatch):
    from quintet.evaluate import perplexity

    monkeypatch.setattr(perplexity.Scorer, "score", lambda self, batch: [scored(-1e6)])
    assert evaluate_perplexity(table_model(), table_tokenizer, "b c").token_perplexity == math.inf


def scored(logprob):
    from quintet.evaluate import Score

    return Score(logprob, False, 2, 0)


@pytest.mark.parametrize(("window", "stride"), [(4, 5), (4, 0), (4, -1)])
def test_strides_out_of_range(table_model, table_tokenizer, window, stride):
    with pytest.raises(InputError, match=f"stride is {stride} and window {window}; allowed is 1 <= stride <= window"):
        evaluate_perplexity(table_model(), table_tokenizer, "a b c", window=window, stride=stride)


def test_a_window_that_the_model_has_not(table_model, table_tokenizer):
    with pytest.raises(InputError, match="max_length is 9, but must be at least 1, and this model has room for 8"):
        evaluate_perplexity(table_model(limit=8), table_tokenizer, "a b c", window=9)
