"""Any combination of the call's options gives what the reference gives, or an error that says what is wrong."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quintet.errors import TokenizerError
from quintet.tokenizers import GPT2TokenizerFast, GPTNeoXTokenizerFast, OpenAIGPTTokenizerFast

WORDS = ["Hello", "world", "\u00e9", "\u6771\u4eac", "<|endoftext|>", "a", "don't", "  x", "1,234", "\n", "\U0001f98a"]
# What the reference lets pass, with rows of objects, lengths that are not kept or no overlap at all.
STRICTER = re.compile(
    r"max_length=\d+ leaves room for -?\d+ tokens of text beside \d+ special tokens, and stride=\d+ must be smaller|"
    r"Cannot make a tensor of '\w+': its rows have different lengths"
)
OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "add_special_tokens": st.booleans(),
        "padding": st.sampled_from([True, False, "longest", "max_length", "do_not_pad"]),
        "truncation": st.sampled_from([True, False, None, "longest_first", "only_first", "only_second"]),
        "max_length": st.sampled_from([None, 0, 1, 2, 3, 5, 8, 16]),
        "stride": st.integers(0, 3),
        "pad_to_multiple_of": st.sampled_from([None, 4, 8]),
        "padding_side": st.sampled_from([None, "left", "right"]),
        "return_tensors": st.sampled_from([None, "np", "pt"]),
        "return_token_type_ids": st.sampled_from([None, True, False]),
        "return_attention_mask": st.sampled_from([None, True, False]),
        "return_overflowing_tokens": st.booleans(),
        "return_special_tokens_mask": st.booleans(),
        "return_offsets_mapping": st.booleans(),
        "return_length": st.booleans(),
        "split_special_tokens": st.booleans(),
    },
)


def several(words: list[str], least: int) -> st.SearchStrategy[str]:
    return st.lists(st.sampled_from(words), min_size=least, max_size=8).map(" ".join)


@st.composite
def inputs(draw: st.DrawFn) -> tuple[Any, Any]:
    """One text, a pair, a batch, or a batch of pairs; the reference takes an empty second text for none."""
    text, second = several([*WORDS, "", "<unk>"], 0), several(WORDS, 1)
    batch = draw(st.lists(st.tuples(text, second), min_size=1, max_size=3))
    firsts, seconds = [list(part) for part in zip(*batch, strict=True)]
    kind = draw(st.sampled_from(["text", "pair", "batch", "pairs"]))
    if kind in ("text", "pair"):
        return firsts[0], seconds[0] if kind == "pair" else None
    return firsts, seconds if kind == "pairs" else None


@pytest.fixture(scope="module")
def both(data_dir: Path) -> dict[str, tuple[Any, Any]]:
    transformers = pytest.importorskip("transformers")
    folder = data_dir / "tokenizers"
    around = {"eos_token": ".", "add_bos_token": True, "add_eos_token": True, "model_max_length": 9}
    made: dict[str, tuple[Any, Any]] = {}
    for name, kind, place, settings_ in [
        ("gpt2", GPT2TokenizerFast, "gpt2", {"pad_token": "!"}),
        ("gpt2 left", GPT2TokenizerFast, "gpt2", {"pad_token": "!", "truncation_side": "left", "padding_side": "left"}),
        ("gpt2 around", GPT2TokenizerFast, "gpt2", {"pad_token": "!", **around}),
        ("gpt1", OpenAIGPTTokenizerFast, "openai-gpt", {"pad_token": "<unk>", "model_max_length": 6}),
        ("neox", GPTNeoXTokenizerFast, "gpt-neox-20b", {"pad_token": "<|padding|>", "trim_offsets": False}),
    ]:
        theirs = getattr(transformers, kind.__name__)
        made[name] = (
            kind.from_pretrained(folder / place, **settings_),
            theirs.from_pretrained(folder / place, **settings_),
        )
    return made


def plain(encoding: Any) -> dict[str, Any]:
    """The values of a BatchEncoding as lists, and with them everything that its encodings know."""
    result = {key: value.tolist() if hasattr(value, "tolist") else value for key, value in encoding.items()}
    for number, row in enumerate(encoding.encodings or []):
        result[f"row {number}"] = (row.tokens, row.offsets, row.word_ids, row.sequence_ids)
        result[f"masks {number}"] = (row.special_tokens_mask, row.attention_mask, row.type_ids)
    return result


@pytest.mark.parametrize("name", ["gpt2", "gpt2 left", "gpt2 around", "gpt1", "neox"])
@pytest.mark.filterwarnings("ignore:.?max_length.? (has no effect|is ignored)")
@settings(max_examples=120)
@given(texts=inputs(), options=OPTIONS)
def test_a_call(name: str, texts: tuple[Any, Any], options: dict[str, Any], both: dict[str, tuple[Any, Any]]) -> None:
    ours, theirs = both[name]
    try:
        expected = plain(theirs(*texts, **options))
    except BaseException as error:  # panics of the library are no Exceptions
        if isinstance(error, KeyboardInterrupt):
            raise
        expected = None
    try:
        got = plain(ours(*texts, **options))
    except TokenizerError as error:
        assert expected is None or STRICTER.match(str(error)), error
    else:
        assert got == expected


RUNS = ["a", " ", "\n", "\u00e9", "\U0001f98a", "1", ".", "ab ", "e\u0301", "\t \r\n", "\u6771", "A", "\u0000", "<|"]


@pytest.mark.parametrize("name", ["gpt2", "gpt1", "neox"])
def test_very_long_runs(name: str, both: dict[str, tuple[Any, Any]]) -> None:
    ours, theirs = both[name]
    for run in RUNS:
        text = "x" + run * 5000 + "y"
        got = ours(text, return_offsets_mapping=True, verbose=False)
        expected = theirs(text, return_offsets_mapping=True, verbose=False)
        assert got["input_ids"] == expected["input_ids"], run
        assert got["offset_mapping"] == expected["offset_mapping"], run
        assert ours.decode(got["input_ids"]) == theirs.decode(expected["input_ids"]), run


def test_options_by_position(both: dict[str, tuple[Any, Any]]) -> None:
    ours, theirs = both["gpt2"]
    arguments = ("a b c d", "e f", True, "max_length", True, 12, 0, "left", "np")
    assert ours.encode(*arguments).tolist() == theirs.encode(*arguments).tolist()
    texts = [ours("Hello , world")["input_ids"], ours("<|endoftext|> a .")["input_ids"]]
    assert ours.batch_decode(texts, True, False) == theirs.batch_decode(texts, True, False)
    assert ours.batch_decode(texts, True, True) == ["Hello, world", " a."]


def test_room_beside_the_special_tokens(both: dict[str, tuple[Any, Any]]) -> None:
    for name, single, pair in [("gpt2 around", 7, 5), ("gpt1", 6, 6)]:
        ours, theirs = both[name]
        assert (ours.max_len_single_sentence, ours.max_len_sentences_pair) == (single, pair)
        assert (theirs.max_len_single_sentence, theirs.max_len_sentences_pair) == (single, pair)


def test_a_class_may_have_its_own_sides(data_dir: Path) -> None:
    class Left(GPT2TokenizerFast):
        padding_side = "left"
        truncation_side = "left"

    folder = data_dir / "tokenizers" / "gpt2"
    tokenizer = Left.from_pretrained(folder, pad_token="!")
    assert tokenizer(["a b c", "a"], padding=True)["input_ids"][1][:2] == [0, 0]
    assert tokenizer("a b c", max_length=1)["input_ids"] == tokenizer(" c")["input_ids"]
    assert Left.from_pretrained(folder, padding_side="right").padding_side == "right"
    assert GPT2TokenizerFast.from_pretrained(folder).padding_side == "right"
