"""Training: determinism, faithful pre-tokens, sizes, bad files."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import pre_tokenizers

from quintet.errors import TokenizerError
from quintet.tokenizers import AutoTokenizer, GPT2TokenizerFast, train_bpe, train_bpe_from_iterator, trainer
from quintet.tokenizers.trainer import read_pieces, save_bpe

TEXT = "the cat sat on the mat; the cats sat.\n\nThe  mat\u00e9 \U0001f98a was flat.<|endoftext|>\n" * 20


@pytest.fixture
def book(tmp_path: Path) -> Path:
    path = tmp_path / "book.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


def test_the_result_is_a_published_folder(book: Path, tmp_path: Path) -> None:
    engine = train_bpe([book], vocab_size=275, output=tmp_path / "out", model_max_length=77)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["tokenizer.json", "tokenizer_config.json"]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert type(tokenizer) is GPT2TokenizerFast
    assert (len(tokenizer), tokenizer.vocab_size, engine.get_vocab_size()) == (275, 275, 275)
    assert tokenizer.eos_token_id == 274, "special tokens come last, as GPT-2's does"
    assert (tokenizer.bos_token, tokenizer.pad_token, tokenizer.model_max_length) == ("<|endoftext|>", None, 77)
    ids = tokenizer(TEXT)["input_ids"]
    assert tokenizer.decode(ids) == TEXT
    assert len(ids) < len(TEXT) / 2
    assert "\u0120the" in tokenizer.get_vocab()
    tokenizer.save_vocabulary(tmp_path)
    again = GPT2TokenizerFast(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt"))
    assert again(TEXT)["input_ids"] == ids, "vocab.json and merges.txt are enough"


def test_the_same_input_gives_the_same_files(book: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from quintet.tokenizers import train_bpe\n"
        "train_bpe([sys.argv[1]], vocab_size=320, output=sys.argv[2])"
    )
    for name in ("one", "two"):
        subprocess.run([sys.executable, "-c", code, str(book), str(tmp_path / name)], check=True)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_special_tokens_in_the_text_are_boundaries(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("ab<|endoftext|>" * 50, encoding="utf-8")
    engine = train_bpe([path], vocab_size=400)
    assert engine.get_vocab_size() == 258, "256 bytes, 'ab' and the special token: nothing of its text was learnt"
    assert engine.encode("abab<|endoftext|>").ids == [256, 256, 257]


def test_several_special_tokens(book: Path, tmp_path: Path) -> None:
    tokens = ("<s>", "<|pad|>", "</s>")
    train_bpe([book], vocab_size=280, special_tokens=tokens, output=tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.convert_tokens_to_ids(list(tokens)) == [277, 278, 279]
    assert tokenizer.special_tokens_map == dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<s>")
    assert tokenizer.decode(tokenizer("a<|pad|>b</s>")["input_ids"], skip_special_tokens=True) == "ab"
    train_bpe([book], vocab_size=280, special_tokens=(), output=tmp_path / "none")
    assert AutoTokenizer.from_pretrained(tmp_path / "none").special_tokens_map == {}


def test_min_frequency_and_small_texts(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("ab ab cd", encoding="utf-8")
    assert train_bpe([path], vocab_size=500).get_vocab_size() == 258
    assert train_bpe([path], vocab_size=500, min_frequency=3).get_vocab_size() == 257
    assert train_bpe([path], vocab_size=257).get_vocab_size() == 257


def test_several_files_are_one_text(book: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.txt"
    other.write_text("zebra zebra zebra", encoding="utf-8")
    assert "zebra" in train_bpe([book, other], vocab_size=400).get_vocab()
    assert "zebra" not in train_bpe([book], vocab_size=400).get_vocab()


@settings(max_examples=200)
@given(
    text=st.text(st.sampled_from("ab\u00e9\U0001f98a \n\t\u3000'.1"), max_size=200) | st.text(max_size=60),
    size=st.integers(1, 40),
)
def test_pieces_of_a_file_do_not_change_the_pre_tokens(
    text: str, size: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "pieces.txt"
    path.write_bytes(text.encode("utf-8"))
    pieces = list(read_pieces(path, chunk_bytes=size))
    text = text.removeprefix("\ufeff")
    assert "".join(pieces) == text
    split = pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str
    whole = [token for token, _ in split(text)]
    assert [token for piece in pieces for token, _ in split(piece)] == whole


def test_a_long_text_without_any_white_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer, "LONGEST_PIECE", 5000)
    path = tmp_path / "dna.txt"
    path.write_text("acgt" * 10_000, encoding="utf-8")
    pieces = list(read_pieces(path, chunk_bytes=1000))
    assert max(map(len, pieces)) < 7000
    assert "".join(pieces) == "acgt" * 10_000


def test_training_from_memory() -> None:
    engine = train_bpe_from_iterator(["the cat", "the dog"] * 10, vocab_size=300)
    assert engine.get_vocab_size() > 260
    with pytest.raises(TokenizerError, match="no text to train a tokenizer on: every text is empty"):
        train_bpe_from_iterator(["", ""], vocab_size=300)
    with pytest.raises(TokenizerError, match="Training text number 1 is of type bytes; give strings"):
        train_bpe_from_iterator(["a", b"b"], vocab_size=300)  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"text.txt' is empty: nothing can be learnt"),
        (
            b"good \xff",
            r"text.txt' is not UTF-8 text: byte 0xff at position 5 \(invalid start byte\). Convert the file",
        ),
        (b"good \xe2\x82", r"byte 0xe2 at position 5 \(unexpected end of data\)"),
        (b"<|endoftext|>", r"There is no text to train a tokenizer on"),
    ],
)
def test_bad_files(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(content)
    with pytest.raises(TokenizerError, match=message):
        train_bpe([path], vocab_size=300, output=tmp_path / "out")
    assert not (tmp_path / "out").exists(), "nothing half-written"


def test_where_the_broken_byte_is(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes("\u00e9 word ".encode() * 1000 + b"\x80")
    with pytest.raises(TokenizerError, match=r"byte 0x80 at position 8000 "):
        list(read_pieces(path, chunk_bytes=7))


def test_missing_files(book: Path, tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="There is no file '.*none.txt' to train on. Check the path"):
        train_bpe([book, tmp_path / "none.txt"], vocab_size=300)
    with pytest.raises(TokenizerError, match="is a folder. Name the text files in it one by one"):
        train_bpe([tmp_path], vocab_size=300)
    with pytest.raises(TokenizerError, match="got no files"):
        train_bpe([], vocab_size=300)
    engine = train_bpe([book], vocab_size=300)
    with pytest.raises(TokenizerError, match="it is a file. Give a folder"):
        save_bpe(engine, book)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vocab_size": 256}, r"vocab_size is 256, but must be between 257 \(256 bytes and 1 special tokens\)"),
        ({"vocab_size": 0}, "vocab_size is 0, but must be between 257"),
        ({"vocab_size": 10**7}, "vocab_size is 10000000, but must be between 257 .* and 1000000"),
        ({"vocab_size": "many"}, "vocab_size must be an integer, not 'many'"),
        ({"vocab_size": True}, "vocab_size must be an integer, not True"),
        ({"vocab_size": 300, "min_frequency": 0}, "min_frequency is 0, but must be 1 or more"),
        ({"vocab_size": 300, "special_tokens": "<s>"}, "must be a list of strings, not the string '<s>'"),
        ({"vocab_size": 300, "special_tokens": ["a b"]}, "a string without white space, not 'a b'"),
        ({"vocab_size": 300, "special_tokens": ["<s>", "<s>"]}, "special_tokens must differ from each other"),
    ],
    ids=str,
)
def test_bad_options(options: dict[str, object], message: str, book: Path) -> None:
    with pytest.raises(TokenizerError, match=message):
        train_bpe([book], **options)  # type: ignore[arg-type]


def test_training_anew(book: Path, tmp_path: Path) -> None:
    train_bpe([book], vocab_size=300, output=tmp_path)
    old = AutoTokenizer.from_pretrained(tmp_path, add_bos_token=True, padding_side="left", pad_token="<|pad|>")
    texts = ["one two three", "two three four"] * 10
    new = old.train_new_from_iterator(
        iter([texts]), 280, new_special_tokens=["<x>"], special_tokens_map={"<|endoftext|>": "<|end|>"}
    )
    assert type(new) is type(old)
    assert (new.eos_token, new.pad_token, new.padding_side, new.add_bos_token) == ("<|end|>", "<|pad|>", "left", True)
    assert new.decode(new("one two four<x>")["input_ids"]) == "<|end|>one two four<x>"
    assert "\u0120three" in new.get_vocab()
    assert "<|endoftext|>" not in new.get_vocab()
    assert old.eos_token == "<|endoftext|>"
    assert new.extra_special_tokens == ["<x>"]
    new.save_pretrained(tmp_path / "new")
    back = AutoTokenizer.from_pretrained(tmp_path / "new")
    assert back("one two<x>").data == new("one two<x>").data
    with pytest.raises(TokenizerError, match=r"vocab_size is 200, but must be an integer of at least 258"):
        old.train_new_from_iterator(texts, 200)
    with pytest.raises(TokenizerError, match="no text to train"):
        old.train_new_from_iterator([], 300)
    with pytest.raises(TokenizerError, match="Training texts must be strings, not int"):
        old.train_new_from_iterator([[5]], 300)  # type: ignore[list-item]


def test_post_processors_follow_the_new_ids(book: Path, tmp_path: Path) -> None:
    train_bpe([book], vocab_size=270, output=tmp_path)
    old = AutoTokenizer.from_pretrained(tmp_path, add_bos_token=True)
    old.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text(encoding="utf-8"))
    del config["add_bos_token"]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    old = AutoTokenizer.from_pretrained(tmp_path)
    assert old("the")["input_ids"][0] == 269, "the template is in tokenizer.json"
    new = old.train_new_from_iterator(["the cat"] * 9, 270)
    assert new("the")["input_ids"][0] == new.bos_token_id == 0
