"""Bad input: every error says what is wrong, the value, and what to do."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quintet.errors import QuintetError, TokenizerError
from quintet.tokenizers import AutoTokenizer, GPT2Tokenizer, GPT2TokenizerFast, PreTrainedTokenizerFast

Make = Callable[..., GPT2TokenizerFast]

BAD_TEXTS: list[tuple[Any, str]] = [
    (None, r"needs text; got None"),
    (5, r"text is of type int; give a string or a list of strings"),
    (b"abc", r"text is of type bytes; .* Decode bytes first"),
    ({"text": "a"}, r"text is of type dict; .* one of its values"),
    ((line for line in ["a"]), r"text is of type generator; .* list\(text\)"),
    (numpy.array(["a", "b"]), r"text is of type ndarray; .* list\(text\)"),
    ([], r"text is an empty list; give at least one text"),
    (["a", None], r"text number 1 is None; give strings"),
    (["a", 5], r"text number 1 is of type int"),
    (["a", b"b"], r"text number 1 is of type bytes; .* Decode bytes first"),
    (["a", ["b", "c", "d"]], r"text number 1 is a list of 3; give strings, or pairs .* is_split_into_words=True"),
    ([("a", None)], r"text number 0, a part of it is None"),
    ("a\ud800b", r"text holds the lone surrogate '\\ud800' at position 1, .* text.encode\('utf-8', 'replace'\)"),
    (["fine", "\udfff"], r"text number 1 holds the lone surrogate '\\udfff' at position 0"),
]


@pytest.mark.parametrize(("text", "message"), BAD_TEXTS, ids=range(len(BAD_TEXTS)))
def test_what_is_no_text(text: Any, message: str, small: GPT2TokenizerFast) -> None:
    with pytest.raises(TokenizerError, match=message):
        small(text)
    assert small("fine")["input_ids"], "the tokenizer still works"


def test_what_are_no_words(make_small: Make) -> None:
    tokenizer = make_small(add_prefix_space=True)
    with pytest.raises(TokenizerError, match="takes a list of words, not the string 'a b'"):
        tokenizer("a b", is_split_into_words=True)
    with pytest.raises(TokenizerError, match="text, a part of it is None; give strings"):
        tokenizer(["a", None], is_split_into_words=True)
    with pytest.raises(TokenizerError, match=r"text number 1, a part of it holds the lone surrogate"):
        tokenizer([["a"], ["\ud800"]], is_split_into_words=True)


def test_pairs_that_do_not_fit(small: GPT2TokenizerFast) -> None:
    with pytest.raises(TokenizerError, match="text_pair is 1 texts, but text is a batch of 2"):
        small(["a", "b"], ["c"])
    with pytest.raises(TokenizerError, match="text_pair is of type str, but text is a batch of 2"):
        small(["a", "b"], "c")
    with pytest.raises(TokenizerError, match="text, a part of it is of type int"):
        small("a", 5)


BAD_OPTIONS: list[tuple[dict[str, Any], str]] = [
    ({"padding": "longst"}, r"padding is 'longst', but must be True, False or one of .*Did you mean 'longest'"),
    ({"padding": 3}, r"padding is 3, but must be"),
    ({"truncation": "only_frist"}, r"truncation is 'only_frist', .*Did you mean 'only_first'"),
    ({"padding": True, "padding_side": "middle"}, r"padding_side is 'middle', but must be 'left' or 'right'"),
    ({"max_length": -1}, r"max_length is -1, but must be an integer from 0"),
    ({"max_length": 2**40}, r"max_length is 1099511627776, but must be"),
    ({"max_length": 2.5}, r"max_length is 2.5, but must be an integer"),
    ({"max_length": True}, r"max_length is True, but must be an integer"),
    ({"max_length": 5, "stride": 5}, r"max_length=5 leaves room for 5 .* stride=5 must be smaller"),
    ({"max_length": 5, "stride": -1}, r"stride is -1, but must be"),
    ({"padding": True, "pad_to_multiple_of": 0}, r"pad_to_multiple_of is 0, but must be"),
    (
        {"padding": True, "truncation": True, "max_length": 9, "pad_to_multiple_of": 4},
        r"9 is not a multiple of 4. Choose a max_length that is",
    ),
    ({"return_tensors": "tf"}, r"return_tensors is 'tf', but must be .*'pt', 'np'"),
    ({"paddding": True}, r"A tokenizer call has no option 'paddding'"),
    (
        {"truncation": "only_second", "max_length": 1},
        r"Truncation as asked is impossible: .*Second sequence not provided",
    ),
]


@pytest.mark.parametrize(("options", "message"), BAD_OPTIONS, ids=str)
def test_options(options: dict[str, Any], message: str, make_small: Make) -> None:
    tokenizer = make_small(pad_token="!")
    with pytest.raises(TokenizerError, match=message):
        tokenizer("The quick brown fox", **options)
    assert len(tokenizer("The quick brown fox")["input_ids"]) == 4, "nothing of the failed call is left"


def test_padding_without_a_pad_token(small: GPT2TokenizerFast) -> None:
    message = r"Padding needs a pad token .* tokenizer.pad_token = tokenizer.eos_token, or tokenizer.add_special_tokens"
    with pytest.raises(TokenizerError, match=message):
        small(["a", "b c"], padding=True)
    with pytest.raises(TokenizerError, match=message):
        small.pad({"input_ids": [[1], [2, 3]]})
    assert small(["a"])["input_ids"], "without padding it works"


def test_no_room_for_special_tokens(make_small: Make) -> None:
    tokenizer = make_small(add_bos_token=True)
    with pytest.raises(TokenizerError, match="max_length=0 leaves room for -1 tokens of text beside 1 special"):
        tokenizer("a", max_length=0, truncation=True)
    assert tokenizer("a", max_length=0, truncation=True, add_special_tokens=False)["input_ids"] == []


def test_rows_of_different_lengths(small: GPT2TokenizerFast) -> None:
    for kind in ("pt", "np"):
        with pytest.raises(TokenizerError, match=r"'input_ids': its rows have different lengths.*padding=True"):
            small(["a", "the quick"], return_tensors=kind)


BAD_IDS: list[tuple[Any, str]] = [
    ([1, 99999], r"no token with the id 99999 \(number 1 of 2\): the vocabulary has \d+ tokens, with ids from 0 to"),
    ([1, -100], r"id -100 .*Ids below 0 mark labels"),
    (10**12, r"no token with the id 1000000000000"),
    ([1, "a"], r"must be integers; number 1 is 'a' of type str"),
    ([1, 2.0], r"must be integers; number 1 is 2.0 of type float"),
    ([[1], [99999]], r"no token with the id 99999"),
    ("abc", r"must be an integer, a list of integers or a tensor, not str"),
    (None, r"must be an integer, a list of integers or a tensor, not NoneType"),
    (torch.tensor([0.5]), r"must be integers"),
    ({"ids": [1]}, r"needs the key 'input_ids'; its keys are \['ids'\]"),
]


@pytest.mark.parametrize(("ids", "message"), BAD_IDS, ids=lambda value: repr(value)[:30])
def test_what_are_no_ids(ids: Any, message: str, small: GPT2TokenizerFast) -> None:
    with pytest.raises(TokenizerError, match=message):
        small.decode(ids)


def test_ids_in_a_gap_of_the_vocabulary(small_dir: Path, tmp_path: Path) -> None:
    state = json.loads((small_dir / "tokenizer.json").read_text(encoding="utf-8"))
    state["model"]["merges"] = []
    state["model"]["vocab"] = {"a": 0, "b": 2, "c": 7}
    state["added_tokens"] = []
    (tmp_path / "tokenizer.json").write_text(json.dumps(state), encoding="utf-8")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    assert tokenizer.decode([0, 2, 7]) == "abc"
    for missing in (1, 3, 8):
        with pytest.raises(TokenizerError, match=rf"id {missing} .* has 3 tokens, with ids from 0 to 7"):
            tokenizer.decode([0, missing])


def test_two_tokens_with_one_id_in_the_middle(tmp_path: Path) -> None:
    # The ids end where they should, so that loading sees nothing; the first decoding does.
    content = '{"model": {"type": "BPE", "vocab": {"a": 0, "b": 2, "c": 2}, "merges": []}}'
    (tmp_path / "tokenizer.json").write_text(content, encoding="utf-8")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    with pytest.raises(TokenizerError, match="gives the id 2 to two tokens, 'b' and 'c'"):
        tokenizer.decode([0])


def test_other_calls(small: GPT2TokenizerFast) -> None:
    with pytest.raises(TokenizerError, match="no token with the id 5000"):
        small.convert_ids_to_tokens([1, 5000])
    with pytest.raises(TokenizerError, match="decode has no option 'skip_special_token'. Did you mean"):
        small.decode([1], skip_special_token=True)
    with pytest.raises(TokenizerError, match="already_has_special_tokens=True"):
        small.get_special_tokens_mask([1, 2])
    with pytest.raises(TokenizerError, match="needs tokenizer_file .* or tokenizer_object"):
        PreTrainedTokenizerFast()
    with pytest.raises(
        TokenizerError, match=r"GPT2Tokenizer needs vocab_file and merges_file, or tokenizer_file; got .*None"
    ):
        GPT2Tokenizer(None, "merges.txt")
    with pytest.raises(TokenizerError, match="padding_side is 'up'"):
        PreTrainedTokenizerFast(tokenizer_object=small.backend_tokenizer, padding_side="up")
    with pytest.raises(TokenizerError, match="model_max_length is -3, but must be an integer of at least 1"):
        PreTrainedTokenizerFast(tokenizer_object=small.backend_tokenizer, model_max_length=-3)


def test_padding_what_is_no_encoding(make_small: Make) -> None:
    tokenizer = make_small(pad_token="!")
    with pytest.raises(TokenizerError, match=r"pad\(\) takes an encoding or a list of encodings, not 'text'"):
        tokenizer.pad("text")
    with pytest.raises(TokenizerError, match=r"needs 'input_ids' among the keys, but they are \['ids'\]"):
        tokenizer.pad({"ids": [1]})
    with pytest.raises(TokenizerError, match=r"number 1 has the keys \['a', 'input_ids'\], but the first one has"):
        tokenizer.pad([{"input_ids": [1]}, {"input_ids": [1], "a": [1]}])
    with pytest.raises(TokenizerError, match="'input_ids' has 2 rows, but 'labels' does not"):
        tokenizer.pad({"input_ids": [[1], [2]], "labels": [1]})


# --- files ------------------------------------------------------------------------------------------------------------

BAD_JSON: list[tuple[bytes, str]] = [
    (b"", r"is empty. The file is damaged"),
    (b"{", r"is not a usable tokenizer.json: .* get the file again"),
    (b"[]", r"is not a usable tokenizer.json"),
    (b"{}", r"is not a usable tokenizer.json: Model missing"),
    (b"\xff\xfe{}", r"is not UTF-8 text \(byte 0\)"),
    (b'{"model": {"type": "BPE", "vocab": {"a": -1}, "merges": []}}', r"is not a usable tokenizer.json"),
    (b'{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["a b"]}}', r"Token `b` out of vocabulary"),
    (
        b'{"model": {"type": "BPE", "vocab": {"a": 0, "b": 0}, "merges": []}}',
        r"gives the id 0 to two tokens, 'a' and 'b'",
    ),
    (
        b'{"model": {"type": "BPE", "vocab": {"a": 4000000000}, "merges": []}}',
        r"uses the id 4000000000, but ids must be",
    ),
    (b'{"model": {"type": "Nonsense"}}', r"is not a usable tokenizer.json"),
    (b'{"model": {"type": "BPE", "vocab": {}, "merges": []}}', r"holds no tokens at all"),
]


@pytest.mark.parametrize(("content", "message"), BAD_JSON, ids=lambda value: repr(value)[:50])
def test_tokenizer_json(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    for load in (
        PreTrainedTokenizerFast.from_pretrained,
        GPT2TokenizerFast.from_pretrained,
        AutoTokenizer.from_pretrained,
    ):
        with pytest.raises(TokenizerError, match=message):
            load(tmp_path)


BAD_VOCAB: list[tuple[bytes, str]] = [
    (b"", r"vocab.json' is empty"),
    (b"not json", r"vocab.json' is not JSON"),
    (b"[1]", r"vocab.json' holds a JSON list, and an object"),
    (b'{"a": 0, "a": 1}', r"gives the key 'a' twice|names the token"),
    (b'{"a": "0"}', r"gives the token 'a' the id '0', but ids are integers"),
    (b'{"a": 1.5}', r"gives the token 'a' the id 1.5"),
    (b'{"a": -1}', r"gives the token 'a' the id -1"),
    (b'{"a": 0, "b": 0, "ab": 1}', r"gives the id 0 to two tokens, 'a' and 'b'"),
    (b'{"a": 0}', r"line 2 names the token 'b', which is not in .*vocab.json'. The two files do not belong together"),
]


@pytest.mark.parametrize(("content", "message"), BAD_VOCAB, ids=lambda value: repr(value)[:50])
def test_vocab_json(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_bytes(content)
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\n", encoding="utf-8")
    for kind in (GPT2Tokenizer, GPT2TokenizerFast):
        with pytest.raises(TokenizerError, match=message):
            kind.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"merges.txt' is empty"),
        (b"#version: 0.2\na\n", r"merges.txt', line 2: 'a' is not two tokens with one space"),
        (b"a b\na b c\n", r"line 2: 'a b c' is not two tokens"),
        (b"a b\nb a\n", r"line 2 names the token 'ba', which is not in"),
        (b"\xff b\n", r"merges.txt' is not UTF-8 text|names the token"),
    ],
)
def test_merges_txt(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text('{"a": 0, "b": 1, "ab": 2}', encoding="utf-8")
    (tmp_path / "merges.txt").write_bytes(content)
    with pytest.raises(TokenizerError, match=message):
        GPT2TokenizerFast.from_pretrained(tmp_path)


def test_missing_and_odd_files(small_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = str(tmp_path / "none.json")
    with pytest.raises(TokenizerError, match=r"There is no tokenizer.json at .*none.json'. The folder holds: nothing"):
        PreTrainedTokenizerFast(tokenizer_file=missing)
    with pytest.raises(
        TokenizerError, match=r"There is no vocab.json at .* needs tokenizer.json, or vocab.json and merges"
    ):
        GPT2Tokenizer(missing, missing)
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(TokenizerError, match="is not a regular file"):
        PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "folder.json"))
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(TokenizerError, match="is not a regular file"):
        PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "pipe"))
    monkeypatch.setattr("quintet.tokenizers.engine.FILE_LIMIT", 1000)
    with pytest.raises(TokenizerError, match=r"bytes; a tokenizer.json of more than 1,000 is refused"):
        PreTrainedTokenizerFast.from_pretrained(small_dir)


BAD_CONFIG: list[tuple[str, str]] = [
    ("[]", r"tokenizer_config.json' holds a JSON list"),
    ("{", r"tokenizer_config.json' is not JSON"),
    ('{"model_max_length": "long"}', r"model_max_length is 'long', but must be an integer"),
    ('{"padding_side": 3}', r"padding_side is 3, but must be 'left' or 'right'"),
    ('{"pad_token": 5}', r"pad_token: 5 is not a token"),
    ('{"pad_token": {"content": 5}}', r"content must be a string, not 5"),
    ('{"added_tokens_decoder": [1]}', r"added_tokens_decoder must map ids to tokens"),
    ('{"added_tokens_decoder": {"x": {"content": "<x>"}}}', r"'x': .* is not an id and an added token"),
    ('{"added_tokens_decoder": {"7": {"content": "<x>"}}}', r"'<x>' the id 7, but with this vocabulary it gets"),
    ('{"extra_special_tokens": 5}', r"extra_special_tokens must be a list"),
    ('{"extra_special_tokens": [""]}', r"'' is not a token"),
    ('{"model_input_names": 5}', r"model_input_names must be a list of names"),
    ('{"add_bos_token": true, "bos_token": null}', r"add_bos_token=True needs a bos_token"),
]


@pytest.mark.parametrize(("content", "message"), BAD_CONFIG)
def test_tokenizer_config(content: str, message: str, small_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes((small_dir / "tokenizer.json").read_bytes())
    (tmp_path / "tokenizer_config.json").write_text(content, encoding="utf-8")
    with pytest.raises(TokenizerError, match=message):
        AutoTokenizer.from_pretrained(tmp_path)


def test_chat_template_files(small_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes((small_dir / "tokenizer.json").read_bytes())
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(TokenizerError, match=r"chat_template.jinja' is not UTF-8 text \(byte 0\)"):
        AutoTokenizer.from_pretrained(tmp_path)
    (tmp_path / "chat_template.jinja").write_bytes(b"x" * (2**20 + 1))
    with pytest.raises(TokenizerError, match="larger than 1,048,576 bytes, which no chat template is"):
        AutoTokenizer.from_pretrained(tmp_path)
    (tmp_path / "chat_template.jinja").write_bytes(b"x")
    several = tmp_path / "additional_chat_templates"
    several.mkdir()
    (several / "rag.jinja").write_bytes(b"{{ '\xff' }}")
    with pytest.raises(TokenizerError, match=r"rag.jinja' is not UTF-8 text \(byte 4\)"):
        AutoTokenizer.from_pretrained(tmp_path)
    (several / "rag.jinja").unlink()
    (several / "rag.jinja").symlink_to(small_dir / "tokenizer.json")
    with pytest.raises(TokenizerError, match="cannot be called 'rag': .* is a link that leads out of the folder"):
        AutoTokenizer.from_pretrained(tmp_path)
    (several / "rag.jinja").unlink()
    for number in range(101):
        (several / f"{number}.jinja").touch()
    with pytest.raises(TokenizerError, match="holds 101 chat templates, more than the 100 that are read"):
        AutoTokenizer.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["../out", "a/b", "x\0", "C:x", "x" * 300])
def test_names_of_templates_that_are_no_file_names(name: str, small: Any, tmp_path: Path) -> None:
    small.chat_template = {"default": "x", name: "y"}
    with pytest.raises(TokenizerError, match="A chat template cannot be called .* is refused"):
        small.save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())


def test_every_error_can_be_caught_as_usual() -> None:
    assert issubclass(TokenizerError, ValueError)
    assert issubclass(TokenizerError, QuintetError)


JUNK = [b"", b"0", b"-", b"}", b"null", b'"', b"\xff", b"99"]


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_files_never_do_worse_than_an_error(data: st.DataObject, small_dir: Path, tmp_path: Path) -> None:
    state = json.loads((small_dir / "tokenizer.json").read_text(encoding="utf-8"))
    state["model"]["vocab"] = dict(list(state["model"]["vocab"].items())[:300])
    state["model"]["merges"] = state["model"]["merges"][:20]
    content = bytearray(json.dumps(state).encode())
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(content) - 1))
        cut = data.draw(st.sampled_from([0, 1, 5, 100]))
        content[place : place + cut] = data.draw(st.sampled_from(JUNK))
    (tmp_path / "tokenizer.json").write_bytes(content)
    try:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(tmp_path)
        ids = tokenizer("the fox")["input_ids"]
        assert isinstance(tokenizer.decode(ids), str)
    except TokenizerError:
        pass
