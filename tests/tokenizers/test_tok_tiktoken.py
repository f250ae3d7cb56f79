"""Tokenizers made of `.tiktoken` files give tiktoken's ids."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from quintet.errors import TokenizerError
from quintet.tokenizers import AutoTokenizer, PreTrainedTokenizerFast, train_bpe_from_iterator
from quintet.tokenizers import tiktoken as ours
from quintet.tokenizers.engine import byte_values

URL = "https://openaipublic.blob.core.windows.net/encodings/o200k_base.tiktoken"
TEXTS = [
    "Hello world",
    "",
    "It's  a\tlong   WAY home, THEY'VE said: 1,234.56 miles!\n\n  \r\n/x//\n",
    "\u00c9t\u00e9 na\u00efve \u6771\u4eac\u90fd \U0001f98a\U0001f468\u200d\U0001f469\u200d\U0001f467 \u202e",
    "one<|endoftext|>two<|endofprompt|> <|start|>user<|message|>hi<|end|><|reserved_200500|>",
    "camelCaseWord HTTPServer \u01c5 a\u0301b \u00df\u017f'\u017f 'S'T'LL x'D",
    "x" * 300 + " " * 200 + "\n" * 40 + "12345678",
]


@pytest.fixture(scope="module")
def o200k_file(data_dir: Path) -> Path:
    return data_dir / "tokenizers" / "o200k_base" / "o200k_base.tiktoken"


@pytest.fixture(scope="module")
def load(o200k_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Any, Any]]:
    """Makes our tokenizer of an encoding, and tiktoken's from the same file, without a download."""
    tiktoken = pytest.importorskip("tiktoken")
    folder, made = tmp_path_factory.mktemp("o200k"), dict[str, tuple[Any, Any]]()
    # tiktoken keeps what it has downloaded under this name.
    shutil.copy(o200k_file, folder / hashlib.sha1(URL.encode()).hexdigest())

    def get(name: str) -> tuple[Any, Any]:
        if name not in made:
            (folder / name).mkdir()
            ours.write_tokenizer(o200k_file, folder / name, name)
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("TIKTOKEN_CACHE_DIR", str(folder))
                made[name] = AutoTokenizer.from_pretrained(folder / name), tiktoken.get_encoding(name)
        return made[name]

    return get


def compare(tokenizer: Any, reference: Any, texts: list[str]) -> None:
    got = tokenizer(texts, verbose=False)["input_ids"]
    expected = reference.encode_batch(texts, num_threads=2, allowed_special="all")
    wrong = [number for number, text in enumerate(texts) if got[number] != expected[number]]
    assert not wrong, f"ids differ in texts {wrong[:10]}; the first begins {texts[wrong[0]][:80]!r}"
    assert tokenizer.batch_decode(got) == texts


def test_harmony_gives_the_ids_of_tiktoken(load: Callable[[str], tuple[Any, Any]], data_dir: Path) -> None:
    tokenizer, reference = load("o200k_harmony")
    texts = [(data_dir / "storybook" / "valid.txt").read_text(encoding="utf-8")[:100_000], *TEXTS]
    lines = (data_dir / "lambada_test.jsonl").read_text(encoding="utf-8").splitlines()
    compare(tokenizer, reference, [*texts, *(json.loads(line)["text"] for line in lines[::50])])
    for text in TEXTS:
        assert tokenizer(text, split_special_tokens=True)["input_ids"] == reference.encode_ordinary(text)


@pytest.fixture(scope="module")
def harmony(load: Callable[[str], tuple[Any, Any]]) -> tuple[Any, Any]:
    return load("o200k_harmony")


@settings(max_examples=300)
@given(text=st.text(max_size=60))
def test_harmony_on_any_text(text: str, harmony: tuple[Any, Any]) -> None:
    assert harmony[0](text)["input_ids"] == harmony[1].encode(text, allowed_special="all")


@settings(max_examples=200)
@given(ids=st.lists(st.integers(0, 201087), max_size=30))
def test_harmony_decodes_any_ids(ids: list[int], harmony: tuple[Any, Any]) -> None:
    tokenizer, reference = harmony
    known = [index for index in ids if index != 200018]  # tiktoken has two names for it
    assert tokenizer.decode(known) == reference.decode(known)
    pieces = [reference.decode_single_token_bytes(index) for index in known]
    assert [tokenizer.token_bytes(index) for index in known] == pieces
    stream = tokenizer.stream_decoder()
    assert "".join([*map(stream.put, known), stream.end()]) == reference.decode(known)


@pytest.mark.parametrize(
    "run",
    ["a", " ", "\n", "\u00e9", "\U0001f98a", "1", ".", "ab ", "\t \r\n", "\u6771", "A", "'S", "/", "\u0301", "aB"],
)
def test_harmony_on_very_long_runs(run: str, harmony: tuple[Any, Any]) -> None:
    compare(*harmony, [run * 3000, "x" + run * 3000 + "y"])


def test_the_special_tokens_of_harmony(harmony: tuple[Any, Any]) -> None:
    tokenizer, reference = harmony
    expected = {name: index for name, index in reference._special_tokens.items() if name != "<|reserved_200018|>"}
    assert tokenizer.get_added_vocab() == expected
    assert len(tokenizer) == 201088 == max(tokenizer.get_vocab().values()) + 1
    names = {"<|startoftext|>": 199998, "<|endoftext|>": 199999, "<|return|>": 200002, "<|constrain|>": 200003}
    names |= {"<|channel|>": 200005, "<|start|>": 200006, "<|end|>": 200007, "<|message|>": 200008, "<|call|>": 200012}
    names |= {"<|endofprompt|>": 200018, "<|reserved_200013|>": 200013, "<|reserved_201087|>": 201087}
    assert {name: tokenizer.convert_tokens_to_ids(name) for name in names} == names
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (
        ("<|startoftext|>", "<|return|>", "<|endoftext|>")
    )
    assert type(tokenizer) is PreTrainedTokenizerFast
    assert tokenizer.decode([200006, 1428, 200008], skip_special_tokens=True) == reference.decode([1428])


def test_the_reference_reads_the_same_file(harmony: tuple[Any, Any], data_dir: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    harmony[0].save_pretrained(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    texts = [*TEXTS, (data_dir / "storybook" / "valid.txt").read_text(encoding="utf-8")[:20_000]]
    got = harmony[0](texts, padding=True, return_offsets_mapping=True)
    expected = theirs(texts, padding=True, return_offsets_mapping=True)
    assert got["input_ids"] == expected["input_ids"]
    assert got["attention_mask"] == expected["attention_mask"]
    assert got["offset_mapping"] == expected["offset_mapping"]
    assert harmony[0].batch_decode(got, skip_special_tokens=True) == theirs.batch_decode(
        got["input_ids"], skip_special_tokens=True
    )
    assert theirs.special_tokens_map == harmony[0].special_tokens_map


def test_harmony_gives_the_ids_of_openai_harmony(
    harmony: tuple[Any, Any], o200k_file: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = pytest.importorskip("openai_harmony")
    monkeypatch.setenv("TIKTOKEN_ENCODINGS_BASE", str(o200k_file.parent))
    reference = package.load_harmony_encoding(package.HarmonyEncodingName.HARMONY_GPT_OSS)
    story = (data_dir / "storybook" / "valid.txt").read_text(encoding="utf-8")[:50_000]
    texts = [*TEXTS, story, *harmony[0].get_added_vocab()]
    # That package has only the other name of 200018.
    texts = [text for text in texts if "<|endofprompt|>" not in text]
    assert harmony[0](texts, verbose=False)["input_ids"] == [
        reference.encode(text, allowed_special="all") for text in texts
    ]
    assert reference.encode("<|reserved_200018|>", allowed_special="all") == [200018]


@pytest.mark.slow
def test_base_gives_the_ids_of_tiktoken(load: Callable[[str], tuple[Any, Any]]) -> None:
    tokenizer, reference = load("o200k_base")
    compare(tokenizer, reference, TEXTS)
    assert tokenizer.get_added_vocab() == reference._special_tokens
    assert tokenizer("<|start|>")["input_ids"] == reference.encode("<|start|>"), "ordinary text here"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["o200k_base", "o200k_harmony"])
def test_all_corpora(name: str, load: Callable[[str], tuple[Any, Any]], corpora: Callable[[bool], list[str]]) -> None:
    texts = corpora(True)
    for start in range(0, len(texts), 32):  # the encodings of all at once would take gigabytes
        compare(*load(name), texts[start : start + 32])


@pytest.mark.slow
def test_every_character(harmony: tuple[Any, Any]) -> None:
    """Beside letters, marks, spaces and quotes: the two libraries have regular expressions of their own."""
    characters = [chr(code) for code in range(sys.maxunicode + 1) if not 0xD800 <= code < 0xE000]
    texts = ["".join(f"a{char}B {char}b'{char} {char}{char}1{char}\n" for char in row) for row in rows(characters, 64)]
    for part in rows(texts, 512):
        compare(*harmony, part)


def rows(items: list[str], size: int) -> list[list[str]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


# --- any file ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small_ranks() -> dict[bytes, int]:
    """Ranks of a small vocabulary that was trained here."""
    text = "The quick brown fox jumps over the lazy dog; na\u00efve caf\u00e9s, 1,234 miles! It's THE fox.\n\n"
    engine = train_bpe_from_iterator([text * 9], vocab_size=340, special_tokens=[], min_frequency=2)
    table = byte_values()
    return {bytes(table[char] for char in token): index for token, index in engine.get_vocab().items()}


def write(path: Path, ranks: dict[bytes, int]) -> Path:
    lines = (f"{base64.b64encode(token).decode()} {rank}\n" for token, rank in ranks.items())
    path.write_text("".join(lines), encoding="ascii")
    return path


@settings(max_examples=80)
@given(text=st.text(max_size=40) | st.text(alphabet="The quickbrown'sEVL\n\u00e9 1", max_size=80))
def test_a_small_vocabulary_gives_the_ids_of_tiktoken(text: str, small_ranks: dict[bytes, int]) -> None:
    tiktoken = pytest.importorskip("tiktoken")
    encoding = ours.Encoding(ours.O200K_PATTERN, {"<|a|>": 1000, "<|b|>": 2000}, {})
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=ours.engine_from_ranks(small_ranks, encoding))
    reference = tiktoken.Encoding(
        "small", pat_str=encoding.pattern, mergeable_ranks=small_ranks, special_tokens=dict(encoding.special_tokens)
    )
    text = text[:20] + "<|a|>" + text[20:]
    ids = tokenizer(text)["input_ids"]
    assert ids == reference.encode(text, allowed_special="all")
    assert tokenizer.decode(ids) == text
    assert (tokenizer.convert_tokens_to_ids("<|b|>"), tokenizer.decode([2000])) == (2000, "<|b|>")


def test_the_merges_are_those_of_the_training(small_ranks: dict[bytes, int]) -> None:
    merges = ours.recover_merges(small_ranks)
    assert len(merges) == len(small_ranks) - 256
    assert [small_ranks[left + right] for left, right in merges] == list(range(256, len(small_ranks)))
    gap = {token: rank for token, rank in small_ranks.items() if rank != 256}
    with pytest.raises(TokenizerError, match=r"The token b'.*' of rank \d+ is not made of two tokens of lower ranks"):
        ours.recover_merges({**gap, b"zzzz": 9999})


def test_files_that_cannot_be_used(small_ranks: dict[bytes, int], tmp_path: Path) -> None:
    path = write(tmp_path / "a.tiktoken", small_ranks)
    assert ours.read_ranks(path) == small_ranks
    good, number = path.read_text(encoding="ascii"), len(small_ranks) + 1
    for text, words in [
        (good + "aGVsbG8= 7777 1\n", rf"line {number}: b'aGVsbG8= 7777 1' is not a token in base 64 and its rank"),
        (good + "!!! 7777\n", rf"line {number}: b'!!! 7777' is not a token in base 64"),
        (good + "aGVsbG8= -1\n", r"is not a token in base 64 and its rank"),
        (good + "aGVsbG8=\n", r"is not a token in base 64 and its rank"),
        (good + "aGVsbG9oZWxsbw== 7\n", "gives one rank to two tokens"),
        (good + good.splitlines()[0] + "\n", rf"line {number}: the token b['\"].*['\"] occurs twice"),
        ("", r"has no token for 256 of the 256 bytes \(the first is 0x00\)"),
    ]:
        path.write_text(text, encoding="ascii")
        with pytest.raises(TokenizerError, match=words):
            ours.read_ranks(path)
    with pytest.raises(TokenizerError, match="encoding is 'o200k', but must be one of .*Did you mean 'o200k_base'"):
        ours.write_tokenizer(path, tmp_path, "o200k")
    path = write(path, {**small_ranks, b"Th": 200018})
    with pytest.raises(TokenizerError, match=r"'<\|endofprompt\|>' must have the id 200018, but the file has a token"):
        ours.write_tokenizer(path, tmp_path, "o200k_base")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.tiktoken"]


def test_the_file_is_in_the_form_that_is_read_quickest(tmp_path: Path, small_ranks: dict[bytes, int]) -> None:
    ours.write_tokenizer(write(tmp_path / "a.tiktoken", small_ranks), tmp_path, "o200k_base")
    text = (tmp_path / "tokenizer.json").read_text(encoding="utf-8")
    model = json.loads(text)["model"]
    assert list(model["vocab"]) == sorted(model["vocab"])
    assert model["merges"] and all(type(pair) is str and pair.count(" ") == 1 for pair in model["merges"])
    assert text.count("\n") == 1
    made = ours.engine_from_ranks(small_ranks, ours.ENCODINGS["o200k_base"])
    assert json.loads(Tokenizer.from_str(text).to_str()) == json.loads(made.to_str())
