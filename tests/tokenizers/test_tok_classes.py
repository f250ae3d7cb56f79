"""The classes: arguments, special tokens, prefix spaces, words, copies, threads."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, models, pre_tokenizers

from quintet.errors import TokenizerError
from quintet.tokenizers import (
    AddedToken,
    BatchEncoding,
    GPT2Tokenizer,
    GPT2TokenizerFast,
    PreTrainedTokenizer,
    PreTrainedTokenizerFast,
)

Make = Callable[..., GPT2TokenizerFast]


def test_the_examples_of_the_page(fast: GPT2TokenizerFast, slow: GPT2Tokenizer) -> None:
    for tokenizer in (fast, slow):
        assert tokenizer("Hello world")["input_ids"] == [15496, 995]
        assert tokenizer(" Hello world")["input_ids"] == [18435, 995]
        assert tokenizer("Hello world", add_prefix_space=True)["input_ids"] == [18435, 995]
        assert tokenizer("Hello world")["input_ids"] == [15496, 995], "a call's option must not stay"
    assert issubclass(GPT2Tokenizer, PreTrainedTokenizer)
    assert issubclass(GPT2TokenizerFast, PreTrainedTokenizerFast)


def test_prefix_space_from_the_constructor(gpt2_dir: Path) -> None:
    for kind in (GPT2Tokenizer, GPT2TokenizerFast):
        tokenizer = kind.from_pretrained(gpt2_dir, add_prefix_space=True)
        assert tokenizer("Hello world")["input_ids"] == [18435, 995]
        assert tokenizer(" Hello world")["input_ids"] == [18435, 995]
        assert tokenizer("Hello world", return_offsets_mapping=True)["offset_mapping"] == [(0, 5), (5, 11)]
        assert tokenizer("Hello world", add_prefix_space=False)["input_ids"] == [15496, 995]
        tokenizer.add_prefix_space = False
        assert tokenizer("Hello world")["input_ids"] == [15496, 995]
        assert tokenizer.add_prefix_space is False


def test_words_get_a_space_each_in_the_slow_class(slow: GPT2Tokenizer) -> None:
    got = slow(["Hello", "world"], is_split_into_words=True)
    assert got["input_ids"] == [18435, 995]
    assert got.word_ids() == [0, 1]
    assert slow("Hello")["input_ids"] == [15496]


def test_words_need_the_prefix_space_in_the_fast_class(fast: GPT2TokenizerFast) -> None:
    with pytest.raises(TokenizerError, match="needs add_prefix_space=True when the GPT2TokenizerFast"):
        fast(["Hello", "world"], is_split_into_words=True)
    assert fast(["Hello", "world"], is_split_into_words=True, add_prefix_space=True)["input_ids"] == [18435, 995]


def test_add_bos_token(gpt2_dir: Path) -> None:
    for kind in (GPT2Tokenizer, GPT2TokenizerFast):
        tokenizer = kind.from_pretrained(gpt2_dir, add_bos_token=True)
        got = tokenizer("Hello", "world", return_special_tokens_mask=True, return_offsets_mapping=True)
        assert got["input_ids"] == [50256, 15496, 50256, 6894]
        assert got["special_tokens_mask"] == [1, 0, 1, 0]
        assert got["offset_mapping"] == [(0, 0), (0, 5), (0, 0), (0, 5)]
        assert tokenizer("Hello", add_special_tokens=False)["input_ids"] == [15496]
        assert tokenizer("Hello world", max_length=2)["input_ids"] == [50256, 15496]
        tokenizer.bos_token = "!"
        assert tokenizer("Hello")["input_ids"] == [0, 15496], "a new token is used at once"
        with pytest.raises(TokenizerError, match="add_bos_token=True needs a bos_token in the vocabulary"):
            tokenizer.bos_token = None
        assert tokenizer.bos_token == "!"
        tokenizer.add_bos_token = False
        assert tokenizer("Hello")["input_ids"] == [15496]


def test_special_tokens_are_read_and_set(small: GPT2TokenizerFast) -> None:
    end = small.eos_token_id
    assert small.bos_token == small.eos_token == small.unk_token == "<|endoftext|>"
    assert (small.pad_token, small.pad_token_id, small.mask_token_id) == (None, None, None)
    small.pad_token = small.eos_token
    assert small.pad_token_id == end
    small.pad_token_id = 5
    assert small.pad_token == small.convert_ids_to_tokens(5)
    small.cls_token = AddedToken("a", lstrip=True)
    assert small.cls_token == "a"
    small.eos_token = None
    assert (small.eos_token, small.eos_token_id) == (None, None)
    assert "eos_token" not in small.special_tokens_map
    with pytest.raises(TokenizerError, match=r"no token with the id \d+: the vocabulary has \d+ tokens"):
        small.pad_token_id = 400 + len(small)
    with pytest.raises(TokenizerError, match="pad_token: 5 is not a token"):
        small.pad_token = 5


def test_adding_special_tokens(small: GPT2TokenizerFast) -> None:
    size = len(small)
    assert small.add_special_tokens({"pad_token": "<|pad|>", "additional_special_tokens": ["<a>", "<b>"]}) == 3
    assert (len(small), small.vocab_size, small.pad_token_id) == (size + 3, small.vocab_size, size)
    assert small.extra_special_tokens == small.additional_special_tokens == ["<a>", "<b>"]
    assert small.additional_special_tokens_ids == [size + 1, size + 2]
    assert small.add_special_tokens({"pad_token": "<|pad|>"}) == 0
    small.add_special_tokens({"extra_special_tokens": ["<c>"]}, replace_extra_special_tokens=False)
    assert small.extra_special_tokens == ["<a>", "<b>", "<c>"]
    small.add_special_tokens({"additional_special_tokens": ["<d>"]}, replace_additional_special_tokens=True)
    assert small.extra_special_tokens == ["<d>"]
    ids = small("x<a>y<|pad|>")["input_ids"]
    assert small.decode(ids, skip_special_tokens=True) == "xy"
    with pytest.raises(TokenizerError, match=r"'pad_tokn' is not a special token.*Did you mean 'pad_token'\?"):
        small.add_special_tokens({"pad_tokn": "<p>"})
    with pytest.raises(TokenizerError, match="extra_special_tokens must be a list"):
        small.add_special_tokens({"extra_special_tokens": "<p>"})
    for bad in ("", None, 5):
        with pytest.raises(TokenizerError, match="is not a token; give a non-empty string"):
            small.add_tokens(["fine", bad])  # type: ignore[list-item]


def test_a_pad_token_that_is_not_in_the_vocabulary(small: GPT2TokenizerFast) -> None:
    small.pad_token = "[PAD]"
    assert small.pad_token_id is None, "never the id of the unknown token"
    with pytest.raises(TokenizerError, match=r"'\[PAD\]' is not in the vocabulary.*add_special_tokens"):
        small(["a", "b c"], padding=True)
    small.add_special_tokens({"pad_token": "[PAD]"})
    assert small(["a", "b c"], padding=True)["input_ids"][0][1:] != []


def test_named_tokens_of_one_model_only(make_small: Make) -> None:
    tokenizer = make_small(extra_special_tokens={"image_token": "<img>"}, audio_token="<audio>")
    assert tokenizer.image_token == "<img>"
    assert tokenizer.image_token_id == tokenizer.convert_tokens_to_ids("<img>")
    assert tokenizer.audio_token_id in tokenizer.all_special_ids
    assert tokenizer.special_tokens_map["image_token"] == "<img>"
    assert not hasattr(make_small(), "image_token")
    with pytest.raises(AttributeError, match="GPT2TokenizerFast has no attribute 'nonsense'"):
        _ = tokenizer.nonsense


def test_general_class_from_an_engine(general: PreTrainedTokenizerFast) -> None:
    engine = general.backend_tokenizer
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=engine, eos_token="<|endoftext|>", padding_side="left")
    tokenizer.add_tokens(["<new>"])
    assert len(tokenizer) == len(general) + 1, "the engine is copied"
    assert (tokenizer.padding_side, tokenizer.bos_token, tokenizer.eos_token) == ("left", None, "<|endoftext|>")
    slow = PreTrainedTokenizer(tokenizer_object=engine, errors="ignore")
    assert (slow.errors, slow.is_fast) == ("ignore", True)


def test_tokenizer_json_wins_over_the_other_files(small_dir: Path, gpt2_dir: Path) -> None:
    files = {"vocab_file": str(gpt2_dir / "vocab.json"), "merges_file": str(gpt2_dir / "merges.txt")}
    for kind in (GPT2Tokenizer, GPT2TokenizerFast):
        assert len(kind(**files, tokenizer_file=str(small_dir / "tokenizer.json"))) < 401
        assert len(kind(**files)) == 50257


def test_copies_and_pickles_are_independent(small: GPT2TokenizerFast) -> None:
    text = "The quick brown fox"
    ids = small(text)["input_ids"]
    for other in (copy.deepcopy(small), pickle.loads(pickle.dumps(small))):
        assert other(text)["input_ids"] == ids
        assert other.add_tokens(["quick brown"]) == 1
        assert other(text)["input_ids"] != ids
        assert small(text)["input_ids"] == ids
        assert other.eos_token == small.eos_token


def test_threads_with_different_options(make_small: Make) -> None:
    tokenizer = make_small(pad_token="<|endoftext|>")
    texts = ["The quick brown fox jumps " * 5, "over", "the lazy dog; the dog"]
    options: list[dict[str, Any]] = [
        {},
        {"truncation": True, "max_length": 5},
        {"padding": True, "padding_side": "left"},
        {"padding": "max_length", "max_length": 50, "truncation": True},
        {"add_prefix_space": True},
        {"split_special_tokens": True},
    ]
    expected = [tokenizer(texts, **option).data for option in options]

    def work(number: int) -> bool:
        index = number % len(options)
        return tokenizer(texts, **options[index]).data == expected[index]

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(600)))


def test_adding_tokens_while_others_encode(make_small: Make) -> None:
    tokenizer = make_small()
    text = "The quick brown fox " * 50

    def work(number: int) -> int:
        if number % 10 == 0:
            return tokenizer.add_tokens([f"<new{number}>"])
        return len(tokenizer(text, truncation=number % 2 == 0, max_length=7 if number % 2 == 0 else None)["input_ids"])

    with ThreadPoolExecutor(8) as pool:
        lengths = list(pool.map(work, range(200)))
    assert set(lengths[2::10]) == {7}
    assert len(tokenizer) == len(make_small()) + 20


def test_a_sequence_of_pre_tokenizers(general: PreTrainedTokenizerFast) -> None:
    # The form that newer byte-level vocabularies have: a pattern of their own, then the bytes.
    engine = copy.deepcopy(general.backend_tokenizer)
    engine.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\s?\w+|\W"), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=engine)
    assert tokenizer.add_prefix_space is False
    ids = tokenizer("fox")["input_ids"]
    assert tokenizer("fox", add_prefix_space=True) == tokenizer(" fox")
    assert tokenizer("fox")["input_ids"] == ids
    tokenizer.add_prefix_space = True
    assert tokenizer("fox") == tokenizer(" fox")
    assert PreTrainedTokenizerFast(tokenizer_object=engine, add_prefix_space=True)("fox") == tokenizer("fox")


def test_prefix_space_without_byte_level() -> None:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, unk_token="a")))
    assert tokenizer.add_prefix_space is False
    with pytest.raises(TokenizerError, match="add_prefix_space=True works only with a byte-level pre-tokenizer"):
        tokenizer("a", add_prefix_space=True)
    assert tokenizer("a")["input_ids"] == [0]


def test_a_changed_backend_is_respected(small: GPT2TokenizerFast) -> None:
    small.backend_tokenizer.enable_truncation(2)
    assert len(small("The quick brown fox jumps")["input_ids"]) > 2, "a call says itself how long it may be"
    small.backend_tokenizer.pre_tokenizer.add_prefix_space = True
    assert small("fox") == small(" fox")


def test_unlimited_model_and_lengths(make_small: Make, caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = make_small(pad_token="!")
    assert tokenizer.model_max_length == 64
    long = "The quick brown fox jumps over the lazy dog. " * 10
    assert len(tokenizer(long, truncation=True)["input_ids"]) == 64
    assert len(tokenizer("fox", padding="max_length")["input_ids"]) == 64
    assert not caplog.records
    tokenizer(long)
    tokenizer(long)
    assert [record.getMessage() for record in caplog.records] == [
        f"A text has {len(tokenizer(long)['input_ids'])} tokens, more than the 64 that this model takes; "
        "use truncation=True to cut it."
    ]
    tokenizer.model_max_length = int(1e30)
    assert len(tokenizer(long, truncation=True)["input_ids"]) > 64
    assert len(tokenizer("fox", padding="max_length")["input_ids"]) < 64


def test_targets_become_labels(small: GPT2TokenizerFast) -> None:
    got = small("The fox", text_target="the dog")
    assert got["labels"] == small("the dog")["input_ids"]
    assert small(text_target="the dog")["input_ids"] == got["labels"]


def test_older_names_of_the_call(small: GPT2TokenizerFast) -> None:
    assert small.encode_plus("a", "b") == small("a", "b")
    assert small.batch_encode_plus(["a", "b"]) == small(["a", "b"])
    assert isinstance(small.batch_encode_plus([("a", "b")]), BatchEncoding)


def test_clean_up_of_spaces(make_small: Make) -> None:
    tokenizer = make_small(clean_up_tokenization_spaces=True)
    ids = tokenizer("fox , don 't . dog")["input_ids"]
    # A setting in a file must not damage the text of a byte-level tokenizer; asking for it does what it says.
    assert tokenizer.decode(ids) == "fox , don 't . dog"
    assert tokenizer.decode(ids, clean_up_tokenization_spaces=True) == "fox, don 't. dog"
    assert tokenizer.clean_up_tokenization("it 's , ok ?") == "it's, ok?"


def test_repr_and_truth(small: GPT2TokenizerFast) -> None:
    assert "GPT2TokenizerFast(name_or_path=" in repr(small)
    assert bool(small) is True


def test_no_torch_is_imported() -> None:
    code = (
        "import sys, quintet.tokenizers as q, quintet.cli.tokenize, quintet.cli.train_tokenizer\n"
        "assert not {'torch', 'numpy', 'transformers', 'huggingface_hub', 'jinja2'} & set(sys.modules)\n"
        "e = q.PreTrainedTokenizerFast(tokenizer_object=q.train_bpe_from_iterator(['the cat'] * 9, vocab_size=300))\n"
        "e.pad_token = '!'\n"
        "assert e.decode(e(['the cat', 'a'], padding=True)['input_ids'][0]) == 'the cat'\n"
        "e('the cat', return_tensors='np')\n"
        "assert 'torch' not in sys.modules and 'numpy' in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
