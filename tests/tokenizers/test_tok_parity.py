"""The call API gives what the reference's GPT-2 tokenizer gives, option by option."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quintet.tokenizers import BatchEncoding, GPT2TokenizerFast, PreTrainedTokenizerFast

TEXTS = [
    "Hello world",
    "",
    " It's  a\tlong   way home, they've said: 1,234.56 miles!\n\n",
    "\u00c9t\u00e9 na\u00efve \u6771\u4eac\u90fd \U0001f98a\U0001f468\u200d\U0001f469\u200d\U0001f467 \u202e",
    "one<|endoftext|>two",
    "x" * 50,
]
PAIRS = ["the second", "", "and\nmore", "\u00e9", "<|endoftext|>", "y z"]

OPTIONS: list[dict[str, Any]] = [
    {},
    {"add_special_tokens": False},
    {"padding": True},
    {"padding": "longest", "padding_side": "left"},
    {"padding": True, "padding_side": "right", "pad_to_multiple_of": 8},
    {"padding": "max_length", "max_length": 40, "truncation": False},
    {"padding": "max_length", "max_length": 7, "truncation": True},
    {"padding": "do_not_pad", "truncation": "do_not_truncate"},
    {"truncation": True, "max_length": 4},
    {"max_length": 5},
    {"truncation": "longest_first", "max_length": 3, "padding": True, "padding_side": "left"},
    {"truncation": True, "max_length": 6, "stride": 2, "return_overflowing_tokens": True},
    {"truncation": True, "max_length": 8, "stride": 3, "return_overflowing_tokens": True, "padding": True},
    {"truncation": True, "max_length": 8, "padding": True, "pad_to_multiple_of": 4},
    {"truncation": True, "max_length": 0},
    {"return_token_type_ids": True, "return_attention_mask": False},
    {"return_special_tokens_mask": True, "return_offsets_mapping": True, "return_length": True},
    {"return_special_tokens_mask": True, "padding": True, "return_token_type_ids": True},
    {"split_special_tokens": True, "return_offsets_mapping": True},
]


def plain(encoding: Any) -> dict[str, Any]:
    """The values of a BatchEncoding as lists, and with them everything that its encodings know."""
    result = {key: value.tolist() if hasattr(value, "tolist") else value for key, value in encoding.items()}
    for number, row in enumerate(encoding.encodings or []):
        result[f"row {number}"] = (row.tokens, row.offsets, row.word_ids, row.sequence_ids, row.special_tokens_mask)
    return result


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_batch_and_its_rows(options: dict[str, Any], padded: GPT2TokenizerFast, reference: Any) -> None:
    assert plain(padded(TEXTS, **options)) == plain(reference(TEXTS, **options))
    for text in TEXTS:
        assert plain(padded(text, **options)) == plain(reference(text, **options))
        assert padded.encode(text, **options) == reference.encode(text, **options)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_pairs(options: dict[str, Any], padded: GPT2TokenizerFast, reference: Any) -> None:
    assert plain(padded(TEXTS, PAIRS, **options)) == plain(reference(TEXTS, PAIRS, **options))
    assert plain(padded(TEXTS[2], PAIRS[0], **options)) == plain(reference(TEXTS[2], PAIRS[0], **options))
    both = list(zip(TEXTS, PAIRS, strict=True))
    assert plain(padded(both, **options)) == plain(reference(both, **options))


@pytest.mark.parametrize("strategy", ["only_first", "only_second"])
@pytest.mark.parametrize("stride", [0, 2])
def test_truncation_of_one_side_of_a_pair(
    strategy: str, stride: int, padded: GPT2TokenizerFast, reference: Any
) -> None:
    long, short = "a b c d e f g h i j k l m n", "one two three"
    first, second = (long, short) if strategy == "only_first" else (short, long)
    options = {"truncation": strategy, "max_length": 9, "stride": stride, "return_overflowing_tokens": True}
    got, expected = padded(first, second, **options), reference(first, second, **options)
    assert plain(got) == plain(expected)
    assert got["overflow_to_sample_mapping"] == [0] * len(got["input_ids"])
    assert len(got["input_ids"]) > 2


@pytest.mark.parametrize("kind", ["pt", "np"])
@pytest.mark.parametrize("text", ["Hello world", ["Hello world", "a b c"], ""])
def test_tensors(kind: str, text: Any, padded: GPT2TokenizerFast, reference: Any) -> None:
    got = padded(text, padding=True, return_tensors=kind)
    expected = reference(text, padding=True, return_tensors=kind)
    for key in expected:
        assert type(got[key]) is type(expected[key])
        assert got[key].dtype == expected[key].dtype
        assert got[key].shape == expected[key].shape
        assert got[key].tolist() == expected[key].tolist()


def test_truncation_from_the_left(gpt2_dir: Path, reference: Any) -> None:
    ours = GPT2TokenizerFast.from_pretrained(gpt2_dir, truncation_side="left", padding_side="left", pad_token="!")
    theirs = type(reference).from_pretrained(gpt2_dir, truncation_side="left", padding_side="left", pad_token="!")
    for options in OPTIONS:
        options = {key: value for key, value in options.items() if key != "padding_side"}
        assert plain(ours(TEXTS, **options)) == plain(theirs(TEXTS, **options))


def test_words(gpt2_dir: Path, reference: Any) -> None:
    ours = GPT2TokenizerFast.from_pretrained(gpt2_dir, add_prefix_space=True, pad_token="<|endoftext|>")
    theirs = type(reference).from_pretrained(gpt2_dir, add_prefix_space=True, pad_token="<|endoftext|>")
    batch = [["Hello", "wonderful", "w\u00f6rld", ""], ["It's", " spaced", "one"]]
    for options in OPTIONS:
        got = ours(batch, is_split_into_words=True, **options)
        assert plain(got) == plain(theirs(batch, is_split_into_words=True, **options))
        got = ours(batch[0], is_split_into_words=True, **options)
        assert plain(got) == plain(theirs(batch[0], is_split_into_words=True, **options))
        pair = ours(batch, batch[::-1], is_split_into_words=True, **options)
        assert plain(pair) == plain(theirs(batch, batch[::-1], is_split_into_words=True, **options))
    assert plain(ours(TEXTS)) == plain(theirs(TEXTS)), "add_prefix_space"


@pytest.mark.parametrize("flags", [{"add_bos_token": True}, {"add_bos_token": True, "add_eos_token": True}], ids=str)
def test_tokens_around_a_text(flags: dict[str, bool], gpt2_dir: Path, reference: Any) -> None:
    ours = GPT2TokenizerFast.from_pretrained(gpt2_dir, pad_token="!", eos_token=".", **flags)
    theirs = type(reference).from_pretrained(gpt2_dir, pad_token="!", eos_token=".", **flags)
    assert ours.num_special_tokens_to_add() == theirs.num_special_tokens_to_add()
    assert ours.num_special_tokens_to_add(pair=True) == theirs.num_special_tokens_to_add(pair=True)
    for options in OPTIONS:
        if options.get("max_length") == 0:
            continue  # no room for them: an error, see test_tok_errors.py
        if options.get("max_length", 10) >= 6 and not options.get("stride"):
            assert plain(ours(TEXTS, PAIRS, **options)) == plain(theirs(TEXTS, PAIRS, **options))
        assert plain(ours(TEXTS, **options)) == plain(theirs(TEXTS, **options))


def test_where_tokens_come_from(padded: GPT2TokenizerFast, reference: Any) -> None:
    texts, seconds = ["The na\u00efve fox", "It's \U0001f98a"], ["jumps up", "over it"]
    got, expected = padded(texts, seconds, padding=True), reference(texts, seconds, padding=True)
    assert isinstance(got, BatchEncoding)
    for row in range(2):
        assert got.tokens(row) == expected.tokens(row)
        assert got.word_ids(row) == expected.word_ids(row)
        assert got.sequence_ids(row) == expected.sequence_ids(row)
        for second in range(2):
            text = (texts, seconds)[second][row]
            for char in range(len(text)):
                assert got.char_to_token(row, char, second) == expected.char_to_token(row, char, second)
                assert got.char_to_word(row, char, second) == expected.char_to_word(row, char, second)
            for word in range(2):
                assert got.word_to_tokens(row, word, second) == expected.word_to_tokens(row, word, second)
                assert got.word_to_chars(row, word, second) == expected.word_to_chars(row, word, second)
        for token in range(len(got["input_ids"][row])):
            assert got.token_to_chars(row, token) == expected.token_to_chars(row, token)
            assert got.token_to_word(row, token) == expected.token_to_word(row, token)
            assert got.token_to_sequence(row, token) == expected.token_to_sequence(row, token)
    assert got.char_to_token(5) == expected.char_to_token(5)
    assert got.token_to_chars(-3) == expected.token_to_chars(4)
    assert got[1].tokens == expected[1].tokens
    assert (got.n_sequences, got.is_fast) == (2, True)


def test_padding_of_finished_encodings(padded: GPT2TokenizerFast, reference: Any) -> None:
    rows = [padded("a b c", return_special_tokens_mask=True, return_token_type_ids=True), None]
    rows[1] = padded("one two three four five", return_special_tokens_mask=True, return_token_type_ids=True)
    for options in (
        {},
        {"padding_side": "left"},
        {"padding": "max_length", "max_length": 9},
        {"pad_to_multiple_of": 8},
        {"return_tensors": "pt"},
        {"return_tensors": "np", "padding_side": "left"},
        {"padding": False},
        {"return_attention_mask": False},
    ):
        for given_rows in (rows, rows[0], {key: [rows[0][key], rows[1][key]] for key in rows[0]}):
            if options.get("return_tensors") and given_rows is rows[0]:
                continue
            copies = [dict(row) for row in given_rows] if isinstance(given_rows, list) else dict(given_rows)
            assert plain(padded.pad(given_rows, **options)) == plain(reference.pad(copies, **options)), options
    tensor = padded.pad({"input_ids": [torch.tensor([1, 2]), torch.tensor([3])]})
    assert tensor["input_ids"].tolist() == [[1, 2], [3, 50256]]
    array = padded.pad({"input_ids": [numpy.array([1, 2]), numpy.array([3])]})
    assert isinstance(array["attention_mask"], numpy.ndarray)


@pytest.mark.parametrize("skip", [False, True])
def test_decoding(skip: bool, padded: GPT2TokenizerFast, reference: Any) -> None:
    rows = [padded(text)["input_ids"] for text in TEXTS]
    assert padded.batch_decode(rows, skip_special_tokens=skip) == reference.batch_decode(rows, skip_special_tokens=skip)
    assert padded.decode(rows, skip_special_tokens=skip) == reference.decode(rows, skip_special_tokens=skip)
    for row in rows:
        expected = reference.decode(row, skip_special_tokens=skip)
        assert padded.decode(row, skip_special_tokens=skip) == expected
        assert padded.decode(torch.tensor(row, dtype=torch.long), skip_special_tokens=skip) == expected
        assert padded.decode(numpy.array(row, dtype=numpy.int64), skip_special_tokens=skip) == expected
        tokens = reference.convert_ids_to_tokens(row, skip_special_tokens=skip)
        assert padded.convert_ids_to_tokens(row, skip_special_tokens=skip) == tokens
        assert padded.convert_tokens_to_string(tokens) == reference.convert_tokens_to_string(tokens)
        assert padded.convert_tokens_to_ids(tokens) == reference.convert_tokens_to_ids(tokens)
    assert padded.decode(15496) == reference.decode(15496) == "Hello"
    assert padded.convert_ids_to_tokens(15496) == "Hello"
    assert padded.decode(padded("a b")) == "a b"


@settings(max_examples=200)
@given(ids=st.lists(st.integers(0, 50256), max_size=30), skip=st.booleans())
def test_decoding_of_any_ids(ids: list[int], skip: bool, padded: GPT2TokenizerFast, reference: Any) -> None:
    assert padded.decode(ids, skip_special_tokens=skip) == reference.decode(ids, skip_special_tokens=skip)


@settings(max_examples=200)
@given(text=st.text(max_size=60), pair=st.none() | st.text(max_size=20))
def test_encoding_of_any_text(text: str, pair: str | None, padded: GPT2TokenizerFast, reference: Any) -> None:
    assert plain(padded(text, pair)) == plain(reference(text, pair))


def test_vocabulary_and_special_tokens(padded: GPT2TokenizerFast, reference: Any) -> None:
    assert padded.get_vocab() == reference.get_vocab() == padded.vocab
    assert len(padded) == len(reference) == padded.vocab_size == reference.vocab_size == 50257
    assert padded.special_tokens_map == reference.special_tokens_map
    assert padded.all_special_tokens == reference.all_special_tokens
    assert padded.all_special_ids == reference.all_special_ids
    assert padded.get_added_vocab() == reference.get_added_vocab()
    assert {i: str(t) for i, t in padded.added_tokens_decoder.items()} == {50256: "<|endoftext|>"}
    assert padded.convert_tokens_to_ids("no such token") == reference.convert_tokens_to_ids("no such token") == 50256
    ids = [15496, 50256, 995]
    expected = reference.get_special_tokens_mask(ids, already_has_special_tokens=True)
    assert padded.get_special_tokens_mask(ids, already_has_special_tokens=True) == expected == [0, 1, 0]
    assert padded.tokenize("Hello  w\u00f6rld") == reference.tokenize("Hello  w\u00f6rld")
    assert padded.model_max_length == reference.model_max_length


def test_added_tokens(gpt2_dir: Path, reference: Any) -> None:
    pair = []
    for kind in (GPT2TokenizerFast, type(reference)):
        tokenizer = kind.from_pretrained(gpt2_dir)
        counts = (
            tokenizer.add_tokens(["<new>", "world"]),
            tokenizer.add_special_tokens({"pad_token": "<|pad|>", "extra_special_tokens": ["<a>", "<b>"]}),
            tokenizer.add_tokens("<a>"),
        )
        text = "Hello world <new><a>\n<|pad|> <b>"
        ids = tokenizer(text)["input_ids"]
        pair.append(
            (
                counts,
                len(tokenizer),
                tokenizer.vocab_size,
                ids,
                tokenizer.decode(ids),
                tokenizer.decode(ids, skip_special_tokens=True),
                tokenizer.pad_token_id,
                tokenizer.all_special_tokens,
                tokenizer.extra_special_tokens,
                tokenizer.get_added_vocab(),
            )
        )
    assert pair[0] == pair[1]


def test_folders_are_read_by_both(gpt2_dir: Path, tmp_path: Path, reference: Any) -> None:
    import transformers

    ours = GPT2TokenizerFast.from_pretrained(gpt2_dir, pad_token="<|pad|>", model_max_length=1024, padding_side="left")
    ours.add_special_tokens({"extra_special_tokens": ["<tool>"]})
    ours.save_pretrained(tmp_path / "ours")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "ours")
    text = ["Hello <tool> world", "a<|endoftext|>"]
    assert plain(theirs(text, padding=True)) == plain(ours(text, padding=True))
    assert (theirs.model_max_length, theirs.padding_side, theirs.pad_token) == (1024, "left", "<|pad|>")
    theirs.save_pretrained(tmp_path / "theirs")
    back = GPT2TokenizerFast.from_pretrained(tmp_path / "theirs")
    assert plain(back(text, padding=True)) == plain(ours(text, padding=True))
    assert back.special_tokens_map == ours.special_tokens_map
    assert back.extra_special_tokens == ["<tool>"]
    assert (back.model_max_length, back.padding_side) == (1024, "left")


def test_training_anew_gives_the_same_vocabulary(small_dir: Path) -> None:
    transformers = pytest.importorskip("transformers")
    texts = ["the cat sat on the mat", "the dog sat on the log", "cats and dogs and mats and logs"] * 20
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(small_dir)
    new_theirs = theirs.train_new_from_iterator(texts, 290, new_special_tokens=["<x>"])
    ours = PreTrainedTokenizerFast.from_pretrained(small_dir)
    new_ours = ours.train_new_from_iterator([texts[:30], texts[30:]], 290, new_special_tokens=["<x>"])
    assert new_ours.get_vocab() == new_theirs.get_vocab()
    assert (
        new_ours("the cat<x> and<|endoftext|>")["input_ids"] == new_theirs("the cat<x> and<|endoftext|>")["input_ids"]
    )
    assert ours.vocab_size > 300, "the old one is as it was"
