"""GPT-1's original words: ftfy and spaCy, chosen by an argument and never by what is installed."""

from __future__ import annotations

import copy
import json
import pickle
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from quintet.errors import TokenizerError
from quintet.tokenizers import AutoTokenizer, OpenAIGPTTokenizer, OpenAIGPTTokenizerFast, words

Files = tuple[str, str]


@pytest.fixture
def files(data_dir: Path) -> Files:
    folder = data_dir / "tokenizers" / "openai-gpt"
    return str(folder / "vocab.json"), str(folder / "merges.txt")


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    words._tools.cache_clear()
    yield
    words._tools.cache_clear()


@pytest.fixture
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Packages that do the simplest thing: words end at spaces, and at the end of a sentence."""

    class English:
        @staticmethod
        def tokenizer(text: str) -> list[SimpleNamespace]:
            return [SimpleNamespace(text=word) for word in re.findall(r"\n ?|[^\s.]+|\.", text)]

    ftfy, spacy, lang, english = (ModuleType(name) for name in ("ftfy", "spacy", "spacy.lang", "spacy.lang.en"))
    ftfy.fix_text = lambda text: text.replace("\u00e2\u20ac\u2122", "'")  # type: ignore[attr-defined]
    english.English = English  # type: ignore[attr-defined]
    for module in (ftfy, spacy, lang, english):
        monkeypatch.setitem(sys.modules, module.__name__, module)


def test_it_is_refused_when_a_package_is_missing(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ftfy", None)
    with pytest.raises(
        TokenizerError, match=r"needs the packages spacy and ftfy.*pip install \"quintet\[spacy\]\", or"
    ):
        OpenAIGPTTokenizer(*files, pretokenizer="spacy")
    assert OpenAIGPTTokenizer(*files).pretokenizer == "basic"


@pytest.mark.usefixtures("stand_ins")
def test_what_is_installed_changes_nothing(files: Files) -> None:
    tokenizer = OpenAIGPTTokenizer(*files)
    assert tokenizer.pretokenizer == "basic"
    assert tokenizer.tokenize("it's \u2014 caf\u00e9") == ["it</w>", "'</w>", "s</w>", "<unk>", "cafe</w>"]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("a\u2014b \u2013 \u2015 c\u2026 \u00b4", "a - b - - c... '"),
        ('say "what?!" (now) [x] {y}', 'say " what ? ! " ( now ) [ x ] { y }'),
        ("one -- two---three~~ +4, 5;", "one -- two --- three ~~ + 4 , 5 ;"),
        ("a/b\\c*d|e_f", "a / b \\ c * d | e _ f"),
        ("  many\t\tspaces\u00a0here  ", "many spaces here"),
        ("line\n\n  \n next", "line \n next"),
        ("", ""),
    ],
)
def test_texts_are_evened_out(text: str, wanted: str) -> None:
    assert words.standardize(text) == wanted


@pytest.mark.usefixtures("stand_ins")
@pytest.mark.parametrize("kind", [OpenAIGPTTokenizer, OpenAIGPTTokenizerFast])
def test_words_and_ids(kind: Any, files: Files) -> None:
    tokenizer = kind(*files, pretokenizer="spacy")
    text = "The CAF\u00c9 isn\u00e2\u20ac\u2122t\nhere."
    tokens = tokenizer.tokenize(text)
    assert "".join(tokens).split("</w>") == ["the", "caf\u00e9", "isn't", "\n", "here", ".", ""]
    assert "<unk>" not in tokens
    batch = tokenizer([text, "a b"], ["here", "there ."])
    assert batch["input_ids"][1] == tokenizer("a b")["input_ids"] + tokenizer("there .")["input_ids"]
    assert batch.word_ids(1) == [0, 1, 0, 1]
    assert tokenizer(["A", "b."], is_split_into_words=True).word_ids() == [0, 1, 1]
    assert tokenizer("")["input_ids"] == []
    assert tokenizer.decode(tokenizer("Here. there")["input_ids"]) == "here . there"


@pytest.mark.usefixtures("stand_ins")
def test_special_tokens_stay_whole(files: Files) -> None:
    tokenizer = OpenAIGPTTokenizer(*files, pretokenizer="spacy")
    assert tokenizer("a<unk>b")["input_ids"] == tokenizer("a")["input_ids"] + [0] + tokenizer("b")["input_ids"]
    assert tokenizer.add_special_tokens({"cls_token": "[CLS]"}) == 1
    assert tokenizer("Here. [CLS]")["input_ids"][-1] == 40478
    assert 40478 not in tokenizer("Here. [CLS]", split_special_tokens=True)["input_ids"]


@pytest.mark.usefixtures("stand_ins")
def test_it_is_saved_as_a_setting(files: Files, tmp_path: Path) -> None:
    tokenizer = OpenAIGPTTokenizer(*files, pretokenizer="spacy")
    tokenizer.save_pretrained(tmp_path / "a")
    OpenAIGPTTokenizer(*files).save_pretrained(tmp_path / "b")
    config = json.loads((tmp_path / "a" / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert config["pretokenizer"] == "spacy"
    same = [json.loads((tmp_path / name / "tokenizer.json").read_text(encoding="utf-8")) for name in "ab"]
    assert same[0] == same[1], "tokenizer.json is the published one, which every reader understands"
    again = AutoTokenizer.from_pretrained(tmp_path / "a")
    assert (type(again), again.pretokenizer) == (OpenAIGPTTokenizerFast, "spacy")
    text = "He said: isn\u00e2\u20ac\u2122t it?!\n"
    expected = tokenizer(text)["input_ids"]
    assert expected != OpenAIGPTTokenizer(*files)(text)["input_ids"]
    for other in (again, copy.deepcopy(tokenizer), pickle.loads(pickle.dumps(tokenizer))):
        assert other(text)["input_ids"] == expected
    assert tokenizer.train_new_from_iterator(["here. here."] * 9, 60).tokenize("HERE.") == ["here</w>", ".</w>"]


@pytest.mark.usefixtures("stand_ins")
def test_errors(files: Files) -> None:
    tokenizer = OpenAIGPTTokenizer(*files, pretokenizer="spacy")
    with pytest.raises(TokenizerError, match="return_offsets_mapping is not possible with pretokenizer='spacy'"):
        tokenizer("a", return_offsets_mapping=True)
    with pytest.raises(TokenizerError, match="lone surrogate"):
        tokenizer("a\ud800")
    with pytest.raises(TokenizerError, match="text number 1 is None; give strings"):
        tokenizer(["a", None])


def bpe(word: str, ranks: dict[tuple[str, str], int]) -> list[str]:
    """BPE of one word as the paper describes it, one merge at a time."""
    parts = [*word[:-1], word[-1] + "</w>"]
    while len(parts) > 1:
        pairs = [ranks.get(pair, len(ranks)) for pair in zip(parts, parts[1:], strict=False)]
        if min(pairs) == len(ranks):
            break
        left, right = list(zip(parts, parts[1:], strict=False))[pairs.index(min(pairs))]
        merged: list[str] = []
        for part in parts:
            if merged and (merged[-1], part) == (left, right):
                merged[-1] += part
            else:
                merged.append(part)
        parts = merged
    return parts


def test_with_the_real_packages(files: Files, data_dir: Path) -> None:
    ftfy = pytest.importorskip("ftfy")
    english = pytest.importorskip("spacy.lang.en")
    vocabulary = json.loads(Path(files[0]).read_text(encoding="utf-8"))
    lines = Path(files[1]).read_text(encoding="utf-8").splitlines()[1:]
    ranks = {(pair[0], pair[1]): rank for rank, line in enumerate(lines) if len(pair := line.split()) == 2}
    cut = english.English().tokenizer
    tokenizer = OpenAIGPTTokenizer(*files, pretokenizer="spacy")
    story = (data_dir / "storybook" / "valid.txt").read_text(encoding="utf-8")
    reviews = (data_dir / "lambada_test.jsonl").read_text(encoding="utf-8").splitlines()[::200]
    for text in [
        story[:20_000],
        *(json.loads(line)["text"] for line in reviews),
        "Mr. Smith\u2019s caf\u00e9\u2026\n\n",
    ]:
        expected = []
        for token in cut(words.standardize(ftfy.fix_text(text))):
            word = token.text.lower()
            parts = ["\n</w>"] if word.strip(" ") == "\n" else bpe(word, ranks)
            expected += [vocabulary.get(part, 0) for part in parts]
        assert tokenizer(text, verbose=False)["input_ids"] == expected
