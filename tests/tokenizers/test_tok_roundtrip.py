"""Text survives encoding and decoding, in one piece and token by token."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from quintet.errors import TokenizerError
from quintet.tokenizers import GPT2Tokenizer, GPT2TokenizerFast, PreTrainedTokenizerBase, PreTrainedTokenizerFast

# Every character that text can hold: controls, unassigned ones, joiners; no surrogates, which are no characters.
ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=80)
HARD = st.text(
    st.sampled_from("\u200d\U0001f468\U0001f3fd\u0301e \n\x00\ufffd\u6771's"),
    max_size=40,
)

ERRORS = st.sampled_from(["replace", "ignore"])


def streamed(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], **options: Any) -> list[str]:
    stream = tokenizer.stream_decoder(**options)
    return [*(stream.put(index) for index in ids), stream.end()]


@settings(max_examples=300)
@given(text=ANY_TEXT | HARD)
def test_any_text_comes_back(text: str, fast: GPT2TokenizerFast, slow: GPT2Tokenizer) -> None:
    ids = fast(text)["input_ids"]
    assert fast.decode(ids) == text
    assert slow.encode(text) == ids
    assert slow.decode(ids) == text
    assert fast.convert_tokens_to_string(fast.tokenize(text)) == text
    assert "".join(streamed(fast, ids)) == text


@settings(max_examples=200)
@given(text=ANY_TEXT | HARD)
def test_any_text_comes_back_with_a_small_vocabulary(text: str, general: PreTrainedTokenizerFast) -> None:
    assert general.decode(general(text)["input_ids"]) == text


@pytest.mark.parametrize("run", ["x" * 200_000, " " * 100_000, "\U0001f98a" * 20_000, "ab " * 50_000, "\n" * 100_000])
def test_very_long_runs(run: str, fast: GPT2TokenizerFast) -> None:
    ids = fast(run)["input_ids"]
    assert fast.decode(ids) == run
    assert "".join(streamed(fast, ids)) == run


@settings(max_examples=300)
@given(ids=st.lists(st.integers(0, 50256), max_size=40), skip=st.booleans(), errors=ERRORS)
def test_streaming_any_ids_equals_decode(
    ids: list[int], skip: bool, errors: str, fast: GPT2TokenizerFast, slow: GPT2Tokenizer
) -> None:
    assert "".join(streamed(fast, ids, skip_special_tokens=skip)) == fast.decode(ids, skip_special_tokens=skip)
    raw = b"".join(slow.token_bytes(index) or b"" for index in ids if not (skip and index == 50256))
    assert "".join(streamed(slow, ids, skip_special_tokens=skip, errors=errors)) == raw.decode("utf-8", errors)


@settings(max_examples=200)
@given(
    words=st.lists(st.sampled_from([" ", "'", ".", " n't", " 's", "ab", " '", "  ", "?", "\u00e9", " 've", "x ", "\n"]))
)
def test_streaming_with_clean_up_equals_decode(words: list[str], fast: GPT2TokenizerFast) -> None:
    ids = fast("".join(words))["input_ids"]
    expected = fast.decode(ids, clean_up_tokenization_spaces=True)
    pieces = streamed(fast, ids, clean_up_tokenization_spaces=True)
    assert "".join(pieces) == expected


def test_clean_up_is_streamed_word_by_word(fast: GPT2TokenizerFast) -> None:
    ids = fast("one two three .")["input_ids"]
    assert streamed(fast, ids, clean_up_tokenization_spaces=True) == ["", "one", " two", " three", "."]


def test_a_split_character_is_held_back(fast: GPT2TokenizerFast) -> None:
    ids = fast("a\U0001f98a\u6771b")["input_ids"]
    assert len(ids) > 5, "the characters must be split for this test to mean something"
    pieces = streamed(fast, ids)
    assert "".join(pieces) == "a\U0001f98a\u6771b"
    assert not any("\ufffd" in piece for piece in pieces)
    assert set(pieces) == {"", "a", "\U0001f98a", "\u6771", "b"}


def test_an_unfinished_character_comes_out_at_the_end(fast: GPT2TokenizerFast) -> None:
    ids = fast("\U0001f98a")["input_ids"][:-1]
    stream = fast.stream_decoder()
    assert [stream.put(index) for index in ids] == [""] * len(ids)
    assert stream.end() == fast.decode(ids) == "\ufffd"
    assert stream.put(64) + stream.end() == "a", "it starts anew"


def test_special_tokens_in_a_stream(fast: GPT2TokenizerFast) -> None:
    ids = [64, 50256, 65]
    assert streamed(fast, ids) == ["a", "<|endoftext|>", "b", ""]
    assert streamed(fast, ids, skip_special_tokens=True) == ["a", "", "b", ""]


def test_streaming_takes_linear_time(fast: GPT2TokenizerFast) -> None:
    def seconds(count: int) -> float:
        ids = random.Random(0).choices(range(50257), k=count)
        stream = fast.stream_decoder()
        start = time.process_time()
        for index in ids:
            stream.put(index)
        return time.process_time() - start

    seconds(2_000)
    assert seconds(40_000) < 60 * max(seconds(4_000), 1e-3)


def test_streaming_refuses_an_unknown_id(fast: GPT2TokenizerFast) -> None:
    with pytest.raises(TokenizerError, match=r"no token with the id 50257 .* 50257 tokens"):
        fast.stream_decoder().put(50257)
    with pytest.raises(TokenizerError, match="no option 'skip_specials'"):
        fast.stream_decoder(skip_specials=True)


def word_level() -> Tokenizer:
    engine = Tokenizer(models.WordLevel({"[UNK]": 0, "the": 1, "cat": 2, "sat": 3, ".": 4}, unk_token="[UNK]"))
    engine.normalizer = normalizers.Lowercase()
    engine.pre_tokenizer = pre_tokenizers.Whitespace()
    return engine


def end_of_word() -> Tokenizer:
    vocabulary = {"c": 0, "a": 1, "t</w>": 2, "at</w>": 3, "cat</w>": 4, "s": 5, "s</w>": 6}
    merges = [("a", "t</w>"), ("c", "at</w>")]
    engine = Tokenizer(models.BPE(vocabulary, merges, end_of_word_suffix="</w>"))
    engine.pre_tokenizer = pre_tokenizers.Whitespace()
    engine.decoder = decoders.BPEDecoder(suffix="</w>")
    return engine


def byte_fallback() -> Tokenizer:
    vocabulary = {f"<0x{byte:02X}>": byte for byte in range(256)} | {"\u2581a": 256, "b": 257}
    engine = Tokenizer(models.BPE(vocabulary, [], byte_fallback=True))
    engine.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return engine


@pytest.mark.parametrize("make", [word_level, end_of_word])
def test_streaming_with_other_decoders(make: Callable[[], Tokenizer]) -> None:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=make())
    choose = random.Random(1)
    for _ in range(50):
        ids = choose.choices(range(len(tokenizer)), k=12)
        assert "".join(streamed(tokenizer, ids)) == tokenizer.decode(ids)


def test_streaming_with_byte_fallback() -> None:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=byte_fallback())
    ids = [256, 257, *"\U0001f98a".encode(), 257, *"\u00e9".encode(), 256]
    pieces = streamed(tokenizer, ids)
    assert "".join(pieces) == tokenizer.decode(ids) == "ab\U0001f98ab\u00e9 a"
    assert not any("\ufffd" in piece for piece in pieces)


def test_an_added_token_outside_ascii_comes_back(small: GPT2TokenizerFast) -> None:
    # The library's decoder takes its characters for bytes: "\u00e9" would come out as a replacement character.
    small.add_tokens(["\u00e9-tok", "<\u00fc>", AddedToken("two words")])
    text = "a\u00e9-tok b<\u00fc>two words \u6771"
    ids = small(text)["input_ids"]
    assert len(small) - 1 in ids
    assert small.decode(ids) == text
    assert "".join(streamed(small, ids)) == text


def test_errors_of_the_slow_class(gpt2_dir: Any) -> None:
    files = (str(gpt2_dir / "vocab.json"), str(gpt2_dir / "merges.txt"))
    broken = GPT2TokenizerFast(*files)("\U0001f98a")["input_ids"][:1] + [64]
    assert GPT2Tokenizer(*files).decode(broken) == "\ufffda"
    assert GPT2Tokenizer(*files, errors="ignore").decode(broken) == "a"
    with pytest.raises(UnicodeDecodeError):
        GPT2Tokenizer(*files, errors="strict").decode(broken)
    with pytest.raises(TokenizerError, match="errors is 'quiet'"):
        GPT2Tokenizer(*files, errors="quiet")
