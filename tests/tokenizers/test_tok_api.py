"""The rest of the call API, method by method, as the reference answers: GPT-1, GPT-NeoX, files like Seed-OSS'."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quintet.tokenizers import AutoTokenizer, GPTNeoXTokenizerFast, OpenAIGPTTokenizerFast, train_bpe_from_iterator

NAMES = ["gpt1", "neox", "seed"]
TEXTS = ["The na\u00efve fox, isn't it?", "It's \U0001f98a 1,234\n\u6771\u4eac", "", "<seed:bos>a<unk> b<|endoftext|>"]
CHAT = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"


@pytest.fixture(scope="module")
def seed_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level BPE with Seed-OSS' special tokens, in the layout of its published files."""
    folder = tmp_path_factory.mktemp("seed")
    special = ["<seed:bos>", "<seed:pad>", "<seed:eos>", "<seed:think>", "</seed:think>"]
    engine = train_bpe_from_iterator([" ".join(TEXTS) * 9], vocab_size=330, special_tokens=special)
    engine.save(str(folder / "tokenizer.json"))
    config = {
        "bos_token": "<seed:bos>",
        "eos_token": "<seed:eos>",
        "pad_token": "<seed:pad>",
        "model_max_length": 1e30,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "chat_template.jinja").write_text(CHAT, encoding="utf-8")
    (folder / "config.json").write_text(json.dumps({"model_type": "seed_oss"}), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def make(data_dir: Path, seed_dir: Path) -> Callable[..., tuple[Any, Any]]:
    """Makes both tokenizers of a family anew."""
    transformers = pytest.importorskip("transformers")
    folder = data_dir / "tokenizers"

    def get(name: str, **kwargs: Any) -> tuple[Any, Any]:
        if name == "gpt1":
            kwargs = {"pad_token": "<unk>", **kwargs}
            kinds, place = (OpenAIGPTTokenizerFast, transformers.OpenAIGPTTokenizerFast), folder / "openai-gpt"
        elif name == "neox":
            kwargs = {"pad_token": "<|padding|>", "trim_offsets": False, **kwargs}
            kinds, place = (GPTNeoXTokenizerFast, transformers.GPTNeoXTokenizerFast), folder / "gpt-neox-20b"
        else:
            kinds, place = (AutoTokenizer, transformers.AutoTokenizer), seed_dir
        return kinds[0].from_pretrained(place, **kwargs), kinds[1].from_pretrained(place, **kwargs)

    return get


@pytest.fixture(scope="module")
def pairs(make: Callable[..., tuple[Any, Any]]) -> dict[str, tuple[Any, Any]]:
    """Both tokenizers of each family. Tests must not change them."""
    return {name: make(name) for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=60)
@given(text=st.text(min_size=1, max_size=40), pair=st.text(min_size=1, max_size=20))
def test_where_tokens_come_from(name: str, text: str, pair: str, pairs: dict[str, tuple[Any, Any]]) -> None:
    ours, theirs = pairs[name]
    got, expected = ours([text], [pair]), theirs([text], [pair])
    assert (got.tokens(), got.word_ids(), got.sequence_ids()) == (
        (expected.tokens(), expected.word_ids(), expected.sequence_ids())
    )
    assert (got.n_sequences, got.is_fast) == (expected.n_sequences, True)
    for second, part in enumerate((text, pair)):
        for char in range(len(part)):
            assert got.char_to_token(0, char, second) == expected.char_to_token(0, char, second)
            assert got.char_to_word(0, char, second) == expected.char_to_word(0, char, second)
        for word in range(3):
            assert got.word_to_tokens(0, word, second) == expected.word_to_tokens(0, word, second)
            if expected.word_to_tokens(0, word, second) is not None:
                assert got.word_to_chars(0, word, second) == expected.word_to_chars(0, word, second)
    for token in range(len(got["input_ids"][0])):
        assert got.token_to_chars(0, token) == expected.token_to_chars(0, token)
        assert got.token_to_word(0, token) == expected.token_to_word(0, token)
        assert got.token_to_sequence(0, token) == expected.token_to_sequence(0, token)


@pytest.mark.parametrize("name", NAMES)
def test_settings_and_special_tokens(name: str, pairs: dict[str, tuple[Any, Any]]) -> None:
    ours, theirs = pairs[name]
    for attribute in ("special_tokens_map", "all_special_tokens", "all_special_ids", "padding_side", "truncation_side"):
        assert getattr(ours, attribute) == getattr(theirs, attribute), attribute
    for token in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"):
        assert getattr(ours, f"{token}_token") == getattr(theirs, f"{token}_token")
        assert getattr(ours, f"{token}_token_id") == getattr(theirs, f"{token}_token_id")
    assert ours.model_max_length == theirs.model_max_length
    assert ours.clean_up_tokenization_spaces == theirs.clean_up_tokenization_spaces
    assert ours.chat_template == theirs.chat_template == (CHAT if name == "seed" else None)
    ids = ours(TEXTS[3])["input_ids"]
    expected = theirs.get_special_tokens_mask(ids, already_has_special_tokens=True)
    assert ours.get_special_tokens_mask(ids, already_has_special_tokens=True) == expected
    assert ours.num_special_tokens_to_add(True) == theirs.num_special_tokens_to_add(True)


@pytest.mark.parametrize("name", NAMES)
def test_tokens_are_added_and_found_again(name: str, make: Callable[..., tuple[Any, Any]], tmp_path: Path) -> None:
    answers = []
    for who, tokenizer in zip(("ours", "theirs"), make(name), strict=True):
        counts = [
            tokenizer.add_tokens(["NewWord", "fox"]),
            tokenizer.add_special_tokens({"cls_token": "[CLS]", "extra_special_tokens": ["<x>", "<y>"]}),
            tokenizer.add_tokens(["NewWord"]),
        ]
        tokenizer.save_pretrained(tmp_path / who)
        for again in (tokenizer, type(tokenizer).from_pretrained(tmp_path / who)):
            ids = again("[CLS] a NewWord <x>fox<y>")["input_ids"]
            texts = again.decode(ids), again.decode(ids, skip_special_tokens=True)
            answers.append((counts, len(again), again.get_added_vocab(), ids, *texts, again.all_special_tokens))
    assert answers[0] == answers[1] == answers[2] == answers[3]


@pytest.mark.parametrize("name", NAMES)
def test_padding_of_finished_encodings(name: str, pairs: dict[str, tuple[Any, Any]]) -> None:
    ours, theirs = pairs[name]
    rows = [ours(text, return_special_tokens_mask=True, return_token_type_ids=True) for text in TEXTS[:2]]
    for options in (
        {},
        {"padding_side": "left", "pad_to_multiple_of": 8},
        {"padding": "max_length", "max_length": 40, "return_tensors": "pt"},
    ):
        got, expected = ours.pad(rows, **options), theirs.pad([dict(row) for row in rows], **options)
        assert list(got) == list(expected)
        for key in got:
            assert torch.equal(torch.as_tensor(got[key]), torch.as_tensor(expected[key])), key


@pytest.mark.parametrize("name", NAMES)
def test_clean_up(name: str, make: Callable[..., tuple[Any, Any]]) -> None:
    ours, theirs = make(name)
    text = "it isn't so , is it ? ' yes ' , we 've ."
    ids = ours(text)["input_ids"]
    for option in ({}, {"clean_up_tokenization_spaces": False}):
        assert ours.decode(ids, **option) == theirs.decode(ids, **option)
        assert ours.batch_decode([ids], **option) == theirs.batch_decode([ids], **option)
    # An explicit True cleans; 5.x then wants a longer name for it.
    cleaned = theirs.clean_up_tokenization(theirs.decode(ids))
    assert cleaned != theirs.decode(ids)
    assert ours.clean_up_tokenization(ours.decode(ids)) == cleaned
    assert ours.decode(ids, clean_up_tokenization_spaces=True) == cleaned
    theirs.clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output = True
    assert theirs.decode(ids, clean_up_tokenization_spaces=True) == cleaned
    # A setting in a file cleans the text of GPT-1, whose tokens are words, as in 4.x; bytes are left alone.
    by_file, _ = make(name, clean_up_tokenization_spaces=True)
    assert by_file.decode(ids) == (cleaned if name == "gpt1" else ours.decode(ids))


@pytest.mark.parametrize("name", NAMES)
def test_targets(name: str, pairs: dict[str, tuple[Any, Any]]) -> None:
    ours, theirs = pairs[name]
    got = ours(TEXTS[:2], text_target=TEXTS[1::-1], padding=True, return_tensors="pt")
    expected = theirs(TEXTS[:2], text_target=TEXTS[1::-1], padding=True, return_tensors="pt")
    assert list(got) == list(expected)
    assert all(torch.equal(got[key], expected[key]) for key in got)
    assert ours(text_target=TEXTS[0])["input_ids"] == theirs(text_target=TEXTS[0])["input_ids"]


@pytest.mark.parametrize("name", NAMES)
def test_names_of_the_vocabulary_files(name: str, make: Callable[..., tuple[Any, Any]], tmp_path: Path) -> None:
    ours, _ = make(name)
    names = [Path(path).name for path in ours.save_vocabulary(str(tmp_path), "old")]
    assert names == ["old-vocab.json", "old-merges.txt"]
    vocabulary = json.loads((tmp_path / "old-vocab.json").read_text(encoding="utf-8"))
    assert vocabulary == {token: index for token, index in ours.get_vocab().items() if index < ours.vocab_size}
    saved = {Path(path).name for path in ours.save_pretrained(tmp_path / "all")}
    assert {"tokenizer.json", "tokenizer_config.json"} <= saved
    assert ("chat_template.jinja" in saved) == (name == "seed")


def test_training_anew_gives_the_same_vocabulary(pairs: dict[str, tuple[Any, Any]]) -> None:
    texts = ["the cat sat on the mat", "the dog sat on the log", "cats and dogs and mats and logs"] * 20
    ours, theirs = (kind.train_new_from_iterator(texts, 300, new_special_tokens=["<x>"]) for kind in pairs["seed"])
    assert ours.get_vocab() == theirs.get_vocab()
    text = "the cat<x> and the dog  e\u0301<seed:eos>"
    assert ours(text)["input_ids"] == theirs(text)["input_ids"]
    neox = pairs["neox"][0].train_new_from_iterator(texts, 300)
    assert neox("e\u0301 cats")["input_ids"] == neox("\u00e9 cats")["input_ids"], "NFC as before"
    assert list(neox.get_added_vocab()) == ["<|endoftext|>", "<|padding|>"]
