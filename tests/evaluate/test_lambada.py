"""LAMBADA by hand, and how a passage becomes a context and a target."""

from __future__ import annotations

import math

import pytest

from quintet import AutoTokenizer
from quintet.errors import ConfigError, InputError
from quintet.evaluate import TASKS, encode_pair, evaluate_lambada, find_task, prefix_token, split_last_word


def test_by_hand(table_model, table_tokenizer, logp):
    texts = ["c a b", "a b c", "b a", "b b"]
    result = evaluate_lambada(table_model(), table_tokenizer, texts, batch_size=3)
    # p: 0.5 (likeliest), 0.5 (likeliest), 0.125, 0.375
    assert result.perplexity == pytest.approx(math.exp(-math.log(0.5 * 0.5 * 0.125 * 0.375) / 4))
    assert (result.records, result.accuracy, result.target_tokens, result.cut) == (4, 0.5, 4, 0)
    assert result.accuracy_stderr == pytest.approx(math.sqrt(0.5 * 0.5 / 3))
    assert logp(0, 1) == pytest.approx(math.log(0.5))


def test_one_text_has_no_standard_error_and_cut_texts_are_counted(table_model, table_tokenizer):
    assert evaluate_lambada(table_model(), table_tokenizer, ["a b"]).accuracy_stderr is None
    assert evaluate_lambada(table_model(limit=2), table_tokenizer, ["a b", "a b c a", "b a c"]).cut == 1


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_the_batch_size_changes_nothing(tiny_gpt2, batch_size):
    from quintet import AutoModelForCausalLM

    model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny_gpt2), AutoTokenizer.from_pretrained(tiny_gpt2)
    texts = ["the old woman took her lantern", "the cat", "Once upon a time there was a little house", "went out"]
    whole = evaluate_lambada(model, tokenizer, texts, batch_size=4)
    result = evaluate_lambada(model, tokenizer, texts, batch_size=batch_size)
    assert result.perplexity == pytest.approx(whole.perplexity, rel=1e-5) and result.accuracy == whole.accuracy


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("the cat sat", ("the cat", " sat")),
        ("one", ("", " one")),
        ('he said "Sal!"\nso', ("he said", ' "Sal!"\nso')),
        ("two  blanks", ("two ", " blanks")),
    ],
)
def test_the_last_word_is_what_follows_the_last_space(text, parts):
    assert split_last_word(text) == parts


def test_pairs_are_cut_from_the_whole(tiny_gpt2):
    tokenizer = AutoTokenizer.from_pretrained(tiny_gpt2)
    whole = tokenizer("the cat went")["input_ids"]
    context, target = encode_pair(tokenizer, "the cat", " went")
    assert context + target == whole and tokenizer.decode(target) == " went"
    # Blanks of the context belong to what follows.
    assert encode_pair(tokenizer, "the cat ", "went") == (context, target)
    begin = prefix_token(tokenizer)
    assert encode_pair(tokenizer, "", "the cat") == ([begin], context)
    assert encode_pair(tokenizer, "", "<|endoftext|>the cat") == ([begin], context)


def test_prefix_token(table_tokenizer):
    assert prefix_token(table_tokenizer) == 0
    table_tokenizer.bos_token_id = None
    assert prefix_token(table_tokenizer) is None
    table_tokenizer.eos_token_id = 2
    assert prefix_token(table_tokenizer) == 2


@pytest.mark.parametrize("texts", [[], "a b", ()])
def test_texts_are_a_list(table_model, table_tokenizer, texts):
    with pytest.raises(InputError, match="texts must be a list of at least one text"):
        evaluate_lambada(table_model(), table_tokenizer, texts)


def test_a_text_without_a_last_word_is_named(table_model, table_tokenizer):
    with pytest.raises(InputError, match=r"text 1 \(counted from 0\): the text ends with a space.*'a b '"):
        evaluate_lambada(table_model(), table_tokenizer, ["a b", "a b "])
    table_tokenizer.bos_token_id = None
    with pytest.raises(InputError, match="text 0 .*' b' after '' has no token of its own to predict"):
        evaluate_lambada(table_model(), table_tokenizer, ["b"])


def test_find_task():
    assert find_task("lambada") is TASKS["lambada"]
    with pytest.raises(ConfigError, match="unknown evaluation 'lamdba'. Did you mean 'lambada'?"):
        find_task("lamdba")
    with pytest.raises(ConfigError, match="unknown evaluation 'zzz'. The tasks are lambada, perplexity"):
        find_task("zzz")
