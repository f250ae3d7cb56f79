"""`quintet run TASK`: what goes in, what comes out, and what is refused."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import quintet
from quintet.cli.main import main
from quintet.pipelines import TASKS, pipeline

TEXTS = ["The cat", "Once upon a time there was an old woman and her cat.", "She"]
HEADS = {
    "text-classification": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
    "question-answering": "AutoModelForQuestionAnswering",
    "zero-shot-classification": "AutoModelForSequenceClassification",
}

Run = Callable[..., tuple[int, list[Any], str]]


class Stdin:
    """A stand-in for sys.stdin with bytes behind it."""

    def __init__(self, data: bytes, tty: bool = False) -> None:
        self.buffer = io.BytesIO(data)
        self._tty = tty

    def isatty(self) -> bool:
        return self._tty


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """Makes a small model for a task, with the storyteller's tokenizer."""
    made: dict[str, str] = {}

    def get(task: str) -> str:
        if task not in HEADS:
            return "storyteller"
        if task not in made:
            labels = {0: "contradiction", 1: "entailment"}
            tokenizer = quintet.AutoTokenizer.from_pretrained("storyteller")
            config = quintet.GPT2Config(
                n_embd=8, n_layer=1, n_head=2, vocab_size=len(tokenizer), id2label=labels, pad_token_id=0
            )
            torch.manual_seed(0)
            path = tmp_path_factory.mktemp(task)
            getattr(quintet, HEADS[task]).from_config(config).save_pretrained(path)
            tokenizer.save_pretrained(path)
            made[task] = str(path)
        return made[task]

    return get


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs the command: `run(*words, stdin=...)` gives the exit code, the lines of stdout as JSON, and stderr."""

    def call(*words: str, stdin: bytes | None = None) -> tuple[int, list[Any], str]:
        monkeypatch.setattr(sys, "stdin", Stdin(stdin or b"", tty=stdin is None))
        code = main(["run", *words])
        shown = capsys.readouterr()
        return code, [json.loads(line) for line in shown.out.splitlines()], shown.err

    return call


def rounded(value: Any) -> Any:
    """The same record with numbers that a batch does not change."""
    if isinstance(value, dict):
        return {name: rounded(one) for name, one in value.items()}
    if isinstance(value, list):
        return [rounded(one) for one in value]
    return pytest.approx(value, abs=1e-5) if isinstance(value, float) else value


def item_for(task: str, text: str) -> Any:
    """A JSON line of a task."""
    return {"question": "Who?", "context": text} if task == "question-answering" else text


@pytest.mark.parametrize("task", TASKS)
def test_json_lines_in_json_lines_out(run: Run, folder: Any, task: str) -> None:
    options: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False} if task == "text-generation" else {}
    words = [word for name, value in options.items() for word in ("-o", f"{name}={json.dumps(value)}")]
    if task == "zero-shot-classification":
        words, options = ["--labels", "cat,house"], {"candidate_labels": ["cat", "house"]}
    items = [item_for(task, text) for text in TEXTS]
    stdin = "\n\n".join(map(json.dumps, items)).encode()
    code, lines, shown = run(task, "--model", folder(task), "--batch-size", "2", *words, stdin=stdin)
    assert (code, shown) == (0, "")
    wanted = pipeline(task, folder(task), device="cpu")(items, **options)
    assert [line["id"] for line in lines] == [0, 1, 2]
    assert rounded([line["output"] for line in lines]) == rounded(wanted)
    assert [*lines[0]] == ["id", "output"]


def test_one_text_and_a_seed(run: Run) -> None:
    words = ("text-generation", "Once upon a time", "-o", "max_new_tokens=5", "--seed", "3")
    code, (line,), shown = run(*words)
    assert code == 0 and line["output"][0]["generated_text"].startswith("Once upon a time")
    assert run(*words)[1] == [line]
    assert "storyteller" not in shown


def test_files(run: Run, folder: Any, tmp_path: Path) -> None:
    model = ("--model", folder("text-classification"))
    text, lines = tmp_path / "text.txt", tmp_path / "items.jsonl"
    text.write_bytes("\ufeffThe cat\r\nShe\r\n".encode())
    lines.write_text('{"text": "The cat", "id": "x"}\n{"text": "The cat", "text_pair": "She"}\n', encoding="utf-8")
    pipe = pipeline("text-classification", model[1], device="cpu")
    (whole,) = run("text-classification", "--file", str(text), *model)[1]
    assert whole["output"]["label"] == pipe(["The cat\nShe"])[0]["label"]
    assert whole["output"]["score"] == pytest.approx(pipe(["The cat\nShe"])[0]["score"], abs=1e-6)
    each = run("sentiment-analysis", "-f", str(text), "--input", "lines", *model)[1]
    assert [one["output"]["score"] for one in each] == pytest.approx([one["score"] for one in pipe(["The cat", "She"])])
    first, second = run("text-classification", "-f", str(lines), *model)[1]
    assert (first["id"], second["id"]) == ("x", 1)
    assert first["output"] == each[0]["output"]
    wanted = pipe({"text": "The cat", "text_pair": "She"})
    assert second["output"]["score"] == pytest.approx(wanted["score"])


def test_questions_and_labels(run: Run, folder: Any) -> None:
    qa, shot = ("-m", folder("question-answering")), ("-m", folder("zero-shot-classification"))
    code, (line,), _ = run("question-answering", "Who?", "--context", TEXTS[1], *qa)
    assert code == 0 and [*line["output"]] == ["score", "start", "end", "answer"]
    shared = run("question-answering", "--context", TEXTS[1], *qa, stdin=b'"Who?"\n{"question": "Who?"}')[1]
    assert [one["output"] for one in shared] == [line["output"]] * 2
    own = b'{"text": "The cat", "candidate_labels": ["a", "b", "c"]}'
    assert len(run("zero-shot-classification", *shot, stdin=own)[1][0]["output"]["labels"]) == 3


def test_chats(run: Run, tmp_path: Path) -> None:
    pipe = pipeline("text-generation", "storyteller", device="cpu")
    pipe.tokenizer.chat_template = "{% for m in messages %}{{ m.content }} {% endfor %}"
    pipe.save_pretrained(tmp_path)
    chat = [{"role": "user", "content": "Once upon a time"}]
    options = ("-o", "max_new_tokens=3", "-m", str(tmp_path))
    for line in (json.dumps({"messages": chat}), json.dumps(chat)):
        (made,) = run("text-generation", *options, stdin=line.encode())[1]
        assert made["output"][0]["generated_text"][-1]["role"] == "assistant"


def test_results_come_before_the_input_ends(folder: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    seen: list[str] = []

    class Slow(io.BytesIO):
        def readline(self, size: int | None = -1, /) -> bytes:
            seen.append(capsys.readouterr().out)
            return super().readline(size)

    stdin = Stdin(b"")
    stdin.buffer = Slow(b'"a"\n"b"\n"c"\n')
    monkeypatch.setattr(sys, "stdin", stdin)
    assert main(["run", "text-classification", "-m", folder("text-classification")]) == 0
    assert [bool(text) for text in seen] == [False, True, True, True]


def test_progress_is_drawn_on_a_terminal(run: Run, folder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quintet.cli.run.show_progress", lambda: True)
    code, lines, shown = run("text-classification", "-m", folder("text-classification"), stdin=b'"a"\n"b"\n')
    assert (code, len(lines)) == (0, 2)
    assert "2item" in shown


def test_no_bar_stands_between_results_on_a_terminal(run: Run, folder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quintet.cli.run.show_progress", lambda: True)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    code, lines, shown = run("text-classification", "-m", folder("text-classification"), stdin=b'"a"\n"b"\n')
    assert (code, len(lines)) == (0, 2)
    assert "item" not in shown


@pytest.mark.parametrize(
    ("words", "stdin", "code", "message"),
    [
        (["text-classificaton", "x"], None, 2, "Did you mean 'text-classification'"),
        ([], None, 2, "TASK"),
        (["ner", "x"], None, 2, "no default model for token-classification. Give one: --model"),
        (["text-generation"], None, 2, "no input. Give a text, --file FILE, or JSON lines on stdin"),
        (["text-generation", "x", "--file", "y"], None, 2, "a text and --file were both given"),
        (["text-generation", "x", "--input", "lines"], None, 2, "--input says what a file or stdin holds"),
        (["text-generation", "x", "--labels", "a"], None, 2, "--labels is for zero-shot-classification"),
        (["text-generation", "x", "--context", "a"], None, 2, "--context is for question-answering"),
        (["text-generation", "x", "-o", "top_k"], None, 2, "--option takes NAME=VALUE"),
        (["text-generation", "x", "--batch-size", "0"], None, 2, "batch-size"),
        (["text-generation", "x", "--bach-size", "1"], None, 2, "Did you mean '--batch-size'"),
        (["text-generation", "x", "-o", "max_new_tokns=3"], None, 1, "Did you mean 'max_new_tokens'"),
        (["text-generation", "--file", "/nowhere/x.jsonl"], None, 1, "No such file"),
        (["text-generation", "x", "--model", "/nowhere"], None, 1, "/nowhere"),
        (["text-generation"], b"", 1, "there are no items"),
        (["text-generation"], b'"a"\nb\n', 1, "stdin, line 2: not JSON"),
        (["text-generation"], b'"\xff"\n', 1, "stdin, line 1 is not UTF-8"),
        (["text-generation", "-o", "max_new_tokens=1"], b'"a"\n3\n', 1, "item 1 (counted from 0)"),
        (["question-answering", "Who?", "-m", "x"], None, 1, "a question without a context"),
        (["zero-shot-classification", "A cat", "-m", "x"], None, 1, "has no labels"),
        (["text-classification", "x", "-m", "storyteller"], None, 1, "no weights for score.weight"),
    ],
    ids=str,
)
def test_what_is_refused(run: Run, words: list[str], stdin: bytes | None, code: int, message: str) -> None:
    got, _, shown = run(*words, stdin=stdin)
    assert got == code
    error = shown.splitlines()[-1]
    assert error.startswith("quintet: error: ") and message in error


def test_items_before_a_bad_line_are_done(run: Run, folder: Any) -> None:
    words = ("text-classification", "-m", folder("text-classification"), "--batch-size", "4")
    for bad, message in ((b'""', "item 2 (counted from 0): the text has no tokens"), (b"no", "line 3: not JSON")):
        code, lines, shown = run(*words, stdin=b'"a"\n"b"\n' + bad + b"\n")
        assert (code, len(lines)) == (1, 2)
        assert message in shown
