"""`quintet tokenize` and `quintet train-tokenizer`: what they print, and what they refuse."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

from quintet.cli.main import main
from quintet.tokenizers import AutoTokenizer, train_bpe

TEXT = "the cat sat on the mat; the cats sat.\n" * 20


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("cli-tokenizer")
    text = folder.with_suffix(".txt")
    text.write_text(TEXT, encoding="utf-8")
    train_bpe([text], vocab_size=280, output=folder)
    return str(folder)


class Stdin:
    """A stand-in for sys.stdin with bytes behind it."""

    def __init__(self, data: bytes, tty: bool = False) -> None:
        self.buffer = io.BytesIO(data)
        self._tty = tty

    def isatty(self) -> bool:
        return self._tty


def test_one_token_a_line_when_piped(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tokenize", "the cat\t\u00e9", "--model", model]) == 0
    tokenizer = AutoTokenizer.from_pretrained(model)
    lines = capsys.readouterr().out.splitlines()
    assert [int(line.split("\t")[0]) for line in lines] == tokenizer("the cat\t\u00e9")["input_ids"]
    assert [line.split("\t")[1] for line in lines] == ['"the"', '" cat"', '"\\t"', r"b'\xc3'", r"b'\xa9'"]


def test_ids_count_and_json(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    ids = AutoTokenizer.from_pretrained(model)("the cat")["input_ids"]
    assert main(["tokenize", "the cat", "--model", model, "--ids"]) == 0
    assert capsys.readouterr().out == " ".join(map(str, ids)) + "\n"
    assert main(["tokenize", "the cat", "--model", model, "--count"]) == 0
    assert capsys.readouterr().out == f"{len(ids)}\n"
    assert main(["tokenize", "the cat", "--model", model, "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    expected = {"count": len(ids), "ids": ids, "tokens": ["the", "\u0120cat"], "offsets": [[0, 3], [3, 7]]}
    assert record == expected


def test_offsets(model: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = AutoTokenizer.from_pretrained(model)("the cat")["input_ids"]
    assert main(["tokenize", "the cat", "--model", model, "--offsets"]) == 0
    assert capsys.readouterr().out == f'{first}\t0\t3\t"the"\n{second}\t3\t7\t" cat"\n'
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert main(["tokenize", "the cat", "--model", model, "--offsets"]) == 0
    assert f'{second}\t3\t7\t\x1b[30;48;5;223m" cat"\x1b[0m\n' in capsys.readouterr().out


def test_ids_in_the_colours_of_their_tokens(
    model: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    first, second = AutoTokenizer.from_pretrained(model)("the cat")["input_ids"]
    assert main(["tokenize", "the cat", "--model", model]) == 0
    ids = f"\x1b[30;48;5;153m{first}\x1b[0m \x1b[30;48;5;223m{second}\x1b[0m"
    assert capsys.readouterr().out.splitlines()[1] == ids
    assert main(["tokenize", "the cat " * 200, "--model", model]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2, "the text and the count"


@pytest.mark.parametrize("form", [["1 2 3"], ["1", "2", "3"], ["1,2,3"], ["[1, 2, 3]"]])
def test_decode(form: list[str], model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tokenize", "--model", model, "--decode", *form]) == 0
    assert capsys.readouterr().out == AutoTokenizer.from_pretrained(model).decode([1, 2, 3]) + "\n"


def test_text_from_a_file_and_from_stdin(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "the cat\r\n"
    (tmp_path / "text.txt").write_bytes(text.encode())
    expected = AutoTokenizer.from_pretrained(model)(text)["input_ids"]
    for source in (["--file", str(tmp_path / "text.txt")], ["-"], [], ["--file", "-"]):
        monkeypatch.setattr(sys, "stdin", Stdin(text.encode()))
        assert main(["tokenize", "--model", model, "--json", *source]) == 0
        assert json.loads(capsys.readouterr().out)["ids"] == expected, "the text as it is, its last newline too"
    monkeypatch.setattr(sys, "stdin", Stdin(b""))
    assert main(["tokenize", "--model", model, "--count"]) == 0
    assert capsys.readouterr().out == "0\n"


def test_colours(model: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert main(["tokenize", "the cat\n\x1b[2J\u00e9", "--model", model]) == 0
    out = capsys.readouterr().out
    assert "\x1b[30;48;5;153mthe\x1b[0m\x1b[30;48;5;223m cat\x1b[0m" in out
    assert "\u23ce\x1b[0m\n" in out
    assert "<c3>" in out
    assert "\x1b[2J" not in out, "the terminal must not obey the text"
    assert "\\x1b" in out
    assert "characters a token" in out
    monkeypatch.setenv("NO_COLOR", "1")
    assert main(["tokenize", "the cat", "--model", model]) == 0
    assert "\x1b" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        (["a", "b"], 2, "2 texts were given. Put quotes around the text"),
        (["a", "--file", "x"], 2, "a text and --file were both given"),
        (["--decode", "a"], 2, "--decode takes token ids, and 'a' is none"),
        (["--decode", " "], 2, "--decode got no ids"),
        (["--decode", "99999"], 1, "no token with the id 99999"),
        (["--ids", "--count", "a"], 2, "not allowed with argument"),
        (["a", "--jsn"], 2, "unknown option '--jsn'. Did you mean '--json'?"),
        (["--file", "/no/such/file"], 1, "No such file"),
        (["a", "--model", "/no/such/folder"], 1, "/no/such/folder"),
    ],
)
def test_what_is_refused(
    argv: list[str], code: int, message: str, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [] if "--model" in argv else ["--model", model]
    assert main(["tokenize", *argv, *options]) == code
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def test_bad_input_text(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bad.txt").write_bytes(b"ok \xff")
    assert main(["tokenize", "--file", str(tmp_path / "bad.txt"), "--model", model]) == 1
    assert "bad.txt' is not UTF-8 text: byte 3 is 0xff" in capsys.readouterr().err
    monkeypatch.setattr(sys, "stdin", Stdin(b"", tty=True))
    assert main(["tokenize", "--model", model]) == 2
    assert "no text. Give one" in capsys.readouterr().err
    monkeypatch.setattr("quintet.cli.tokenize.MAX_INPUT_BYTES", 2)
    assert main(["tokenize", "--file", str(tmp_path / "bad.txt"), "--model", model]) == 1
    assert "larger than 0 MiB. Split it first" in capsys.readouterr().err


def test_tokenize_loads_no_torch(model: str) -> None:
    code = (
        "import sys; from quintet.cli.main import main\n"
        f"assert main(['tokenize', 'the cat', '--model', {model!r}]) == 0\n"
        "assert not {'torch', 'numpy'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_train_tokenizer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "book.txt").write_text(TEXT, encoding="utf-8")
    out = tmp_path / "new" / "tokenizer"
    argv = ["train-tokenizer", str(tmp_path / "book.txt"), "--vocab-size", "270", "--output", str(out)]
    assert main([*argv, "--model-max-length", "64", "--special-token", "<end>", "--special-token", "<pad>"]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("270 tokens from 1 file(s) in ")
    assert captured.err == ""
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert (tokenizer.eos_token, tokenizer.model_max_length, len(tokenizer)) == ("<end>", 64, 270)
    assert tokenizer.convert_tokens_to_ids("<pad>") == 269


def test_train_tokenizer_on_a_small_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "book.txt").write_text("aa aa", encoding="utf-8")
    assert main(["train-tokenizer", str(tmp_path / "book.txt"), "--output", str(tmp_path / "out")]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("258 tokens")
    assert "4096 tokens were asked for, but the text has no more pairs that occur 2 times" in captured.err


@pytest.mark.parametrize(
    ("content", "options", "code", "message"),
    [
        (None, [], 1, "There is no file"),
        (b"", [], 1, "is empty: nothing can be learnt"),
        (b"\xff", [], 1, "is not UTF-8 text: byte 0xff at position 0"),
        (b"text", ["--vocab-size", "256"], 1, "vocab_size is 256, but must be between 257"),
        (b"text", ["--vocab-size", "many"], 2, "invalid int value: 'many'"),
        (b"text", ["--vocab-sise", "300"], 2, "Did you mean '--vocab-size'?"),
    ],
)
def test_train_tokenizer_refuses(
    content: bytes | None,
    options: list[str],
    code: int,
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if content is not None:
        (tmp_path / "book.txt").write_bytes(content)
    argv = ["train-tokenizer", str(tmp_path / "book.txt"), "--output", str(tmp_path / "out"), *options]
    assert main(argv) == code
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
