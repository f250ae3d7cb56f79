"""`quintet eval`: the table, JSON, options, errors."""

from __future__ import annotations

import json
import re

import pytest

from quintet import AutoModelForCausalLM, AutoTokenizer
from quintet.cli import eval as module
from quintet.cli.main import main
from quintet.evaluate import evaluate_lambada, evaluate_perplexity

TEXTS = ["the old woman took her lantern", "the cat said nothing", "went into the forest"]


@pytest.fixture
def passages(tmp_path):
    path = tmp_path / "passages.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS), encoding="utf-8")
    return path


@pytest.fixture
def book(tmp_path):
    path = tmp_path / "book.txt"
    path.write_text("The cat went out.\nThe old woman took her lantern.\n" * 6, encoding="utf-8")
    return path


@pytest.fixture
def evaluate(tiny_gpt2, capsys):
    def run(task, *argv, code=0):
        assert main(["eval", task, "--model", str(tiny_gpt2), "--threads", "1", *map(str, argv)]) == code
        captured = capsys.readouterr()
        return captured.out, captured.err

    return run


def loaded(folder):
    return AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)


def test_lambada_as_json(evaluate, passages, tiny_gpt2):
    out, err = evaluate("lambada", "--file", passages, "--json", "--batch-size", 2)
    record = json.loads(out)
    wanted = evaluate_lambada(*loaded(tiny_gpt2), TEXTS)
    assert record["perplexity"] == pytest.approx(wanted.perplexity, rel=1e-5)
    assert (record["task"], record["records"], record["accuracy"]) == ("lambada", 3, wanted.accuracy)
    assert record["file"] == str(passages) and record["seconds"] > 0 and not err


def test_perplexity_as_json(evaluate, book, tiny_gpt2):
    out, _ = evaluate("perplexity", "-f", book, "--json", "--stride", 10, "--window", 40)
    wanted = evaluate_perplexity(*loaded(tiny_gpt2), book.read_text(), window=40, stride=10)
    record = json.loads(out)
    assert record["bits_per_byte"] == pytest.approx(wanted.bits_per_byte, rel=1e-5)
    assert (record["bytes"], record["tokens"], record["words"]) == (wanted.bytes, wanted.tokens, 60)
    assert (record["window"], record["stride"]) == (40, 10)


def test_limits(evaluate, passages, book):
    assert json.loads(evaluate("lambada", "-f", passages, "--limit", 1, "--json")[0])["records"] == 1
    assert json.loads(evaluate("perplexity", "-f", book, "--limit", 2, "--json")[0])["words"] == 10


def test_the_table(evaluate, passages, book):
    out, _ = evaluate("lambada", "-f", passages)
    assert re.search(r"^accuracy stderr +0\.\d{4}$", out, re.MULTILINE) and re.search(
        r"^records +3$", out, re.MULTILINE
    )
    out, _ = evaluate("perplexity", "-f", book)
    assert re.search(r"^bits per byte +\d+\.\d{4}$", out, re.MULTILINE)


def test_the_bar_is_on_stderr(evaluate, passages, monkeypatch):
    monkeypatch.setattr(module, "show_progress", lambda: True)
    out, err = evaluate("lambada", "-f", passages, "--json")
    assert "3/3" in err and json.loads(out)["records"] == 3


def test_what_is_infinite_is_null(evaluate, passages, monkeypatch):
    monkeypatch.setattr(module, "_measure", lambda *args: {"perplexity": float("inf"), "accuracy": 0.0})
    assert json.loads(evaluate("lambada", "-f", passages, "--json")[0])["perplexity"] is None


@pytest.mark.parametrize(
    ("task", "argv", "words"),
    [
        ("lambda", ["-f", "x"], "unknown evaluation 'lambda'. Did you mean 'lambada'?"),
        ("zzz", ["-f", "x"], "unknown evaluation 'zzz'. The tasks are lambada, perplexity."),
        ("lambada", [], "the following arguments are required: --file/-f."),
        ("lambada", ["-f", "x", "--stride", "3"], "--stride is for perplexity, not for lambada. Leave it out."),
        ("perplexity", ["-f", "x", "--stride", "9", "--window", "8"], "--stride 9 is larger than --window 8"),
        ("perplexity", ["-f", "x", "--limit", "0"], "'0' is not a whole number of at least 1"),
        ("perplexity", ["-f", "x", "--strid", "1"], "unknown option '--strid'. Did you mean '--stride'?"),
    ],
)
def test_wrong_command_lines(evaluate, task, argv, words):
    out, err = evaluate(task, *argv, code=2)
    assert not out and err.startswith("quintet: error: ") and words in err and err.count("\n") == 1


def test_wrong_files_are_found_before_the_model_is_loaded(capsys, tmp_path):
    missing = str(tmp_path / "nowhere.jsonl")
    assert main(["eval", "lambada", "--model", "no/such-model", "--file", missing]) == 1
    assert f"there is no file '{missing}'" in capsys.readouterr().err


def test_a_stride_longer_than_the_model(evaluate, book):
    _, err = evaluate("perplexity", "-f", book, "--stride", 129, code=1)
    assert "stride is 129 and window 128" in err
    _, err = evaluate("perplexity", "-f", book, "--window", 200, code=1)
    assert "max_length is 200" in err and "room for 128" in err
