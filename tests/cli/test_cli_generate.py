"""`quintet generate`: prompts, streaming, options, JSON, stop texts, errors."""

from __future__ import annotations

import io
import json
import re
import sys
from pathlib import Path

import pytest

from quintet.cli import generate as module
from quintet.cli.generate import StopFilter
from quintet.cli.main import main
from quintet.kernels import loader

PROMPT = "Once upon a time there was"


class Stdin:
    """A standard input with bytes and an answer to isatty()."""

    def __init__(self, data: bytes, tty: bool = False) -> None:
        self.buffer = io.BytesIO(data)
        self._tty = tty

    def isatty(self) -> bool:
        return self._tty


@pytest.fixture(autouse=True)
def no_stdin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", Stdin(b"", tty=True))


@pytest.fixture
def generate(tiny_gpt2: Path, capsys: pytest.CaptureFixture[str]):
    """Runs the command with the tiny model and returns (stdout, stderr)."""

    def run(*argv: str, code: int = 0) -> tuple[str, str]:
        assert main(["generate", "--model", str(tiny_gpt2), "--threads", "1", *argv]) == code
        captured = capsys.readouterr()
        return captured.out, captured.err

    return run


def record(out: str) -> dict:
    assert out.count("\n") == 1
    return json.loads(out)


def test_streams_prompt_and_text_and_tells_the_speed(generate):
    out, err = generate(PROMPT, "-n", "12", "--seed", "5")
    answer = record(generate(PROMPT, "-n", "12", "--seed", "5", "--json")[0])
    assert out == PROMPT + answer["text"] + "\n"
    assert re.fullmatch(r"12 tokens in \d+\.\d\d s: [\d.e+]+ tokens/s \(seed 5\)\n", err)


def test_every_piece_is_flushed_as_it_comes(generate, monkeypatch):
    pieces: list[str] = []

    class Recorder(io.StringIO):
        def flush(self) -> None:
            pieces.append(self.getvalue())

    monkeypatch.setattr(sys, "stdout", Recorder())
    generate(PROMPT, "-n", "12", "--seed", "5")
    lengths = sorted(set(map(len, pieces)))
    assert pieces[0] == PROMPT  # before the first token
    assert len(lengths) > 6  # most tokens are a character or more of their own


def test_no_stream_prints_the_same(generate):
    assert (
        generate(PROMPT, "-n", "12", "--seed", "5", "--no-stream")[0] == generate(PROMPT, "-n", "12", "--seed", "5")[0]
    )


def test_json_says_everything(generate, tiny_gpt2):
    answer = record(generate(PROMPT, "-n", "7", "--seed", "1", "--json")[0])
    assert answer["prompt"] == PROMPT and answer["model"] == str(tiny_gpt2)
    assert answer["tokens"] == 7 and answer["finish_reason"] == "length" and answer["seed"] == 1
    assert answer["seconds"] > 0 and answer["tok_s"] > 0
    assert set(answer) == {"prompt", "text", "tokens", "seconds", "tok_s", "finish_reason", "seed", "model"}


def test_the_seed_decides_and_is_told(generate):
    first, err = generate(PROMPT, "-n", "12")
    seed = re.search(r"\(seed (\d+)\)", err)
    assert seed and generate(PROMPT, "-n", "12", "--seed", seed[1])[0] == first
    assert generate(PROMPT, "-n", "12", "--seed", str(int(seed[1]) + 1))[0] != first


def test_same_as_the_library(generate, tiny_gpt2):
    import torch

    from quintet import AutoModelForCausalLM, AutoTokenizer

    options = [
        "--temperature",
        "0.8",
        "--top-k",
        "20",
        "--top-p",
        "0.9",
        "--min-p",
        "0.01",
        "--repetition-penalty",
        "1.1",
    ]
    answer = record(generate(PROMPT, "-n", "20", "--seed", "3", "--json", *options)[0])
    tokenizer = AutoTokenizer.from_pretrained(tiny_gpt2)
    model = AutoModelForCausalLM.from_pretrained(tiny_gpt2).eval()
    inputs = tokenizer(PROMPT, return_tensors="pt")
    torch.manual_seed(3)
    output = model.generate(
        **inputs,
        do_sample=True,
        max_new_tokens=20,
        temperature=0.8,
        top_k=20,
        top_p=0.9,
        min_p=0.01,
        repetition_penalty=1.1,
    )
    new = output[0, inputs["input_ids"].shape[1] :]
    assert answer["text"] == tokenizer.decode(new, skip_special_tokens=True)


def test_greedy_needs_no_seed(generate):
    out, err = generate(PROMPT, "-n", "8", "--greedy")
    assert "(greedy)" in err
    answer = record(generate(PROMPT, "-n", "8", "--greedy", "--json")[0])
    assert PROMPT + answer["text"] + "\n" == out and answer["seed"] is None


def test_several_continuations_are_those_of_the_following_seeds(generate):
    out, err = generate(PROMPT, "-n", "6", "--seed", "10", "--num", "3")
    assert err.count("tokens/s") == 3
    alone = [generate(PROMPT, "-n", "6", "--seed", str(10 + i))[0] for i in range(3)]
    assert out == "---\n".join(alone)
    lines = generate(PROMPT, "-n", "6", "--seed", "10", "--num", "3", "--json")[0].splitlines()
    assert [json.loads(line)["seed"] for line in lines] == [10, 11, 12]


def test_prompt_from_a_file_and_from_stdin(generate, tmp_path, monkeypatch):
    expected = generate("Hällo wörld", "-n", "5", "--seed", "1")[0]
    file = tmp_path / "prompt.txt"
    file.write_bytes(b"\xef\xbb\xbf" + "Hällo wörld\r\n".encode())
    assert generate("--file", str(file), "-n", "5", "--seed", "1")[0] == expected
    for argv in ([], ["-"], ["--file", "-"]):
        monkeypatch.setattr(sys, "stdin", Stdin("Hällo wörld\n".encode()))
        assert generate(*argv, "-n", "5", "--seed", "1")[0] == expected


def test_an_empty_prompt_begins_a_text(generate):
    answer = record(generate("", "-n", "5", "--seed", "1", "--json")[0])
    assert answer["prompt"] == "" and answer["tokens"] == 5


def test_the_bundled_model_has_an_opening_of_its_own(monkeypatch):
    import argparse

    for stdin in (Stdin(b"", tty=True), Stdin(b"\n"), None):
        monkeypatch.setattr(sys, "stdin", stdin)
        args = argparse.Namespace(prompt=None, file=None, model="storyteller")
        assert module.read_prompt(args) == "Once upon a time"


@pytest.mark.parametrize(
    ("argv", "stdin", "code", "message"),
    [
        ([], Stdin(b"", tty=True), 2, "no prompt. Give one: quintet generate"),
        (["-"], Stdin(b"  \n"), 2, "no prompt."),
        ([], Stdin(b"a\xffb"), 1, "stdin is not UTF-8 text: byte 1 is 0xff. Convert it to UTF-8."),
        (["x", "--file", "y"], Stdin(b""), 2, "a prompt and --file were both given."),
        (["--file", "/nowhere/at/all"], Stdin(b""), 1, "No such file or directory: '/nowhere/at/all'"),
        (["x", "--greedy", "--top-k", "3", "--min-p", "0.1"], Stdin(b""), 2, "--top-k, --min-p would do nothing."),
        (["x", "--greedy", "--num", "2"], Stdin(b""), 2, "so --num 2 is of no use."),
        (["x", "--stop", ""], Stdin(b""), 2, "--stop was given an empty text"),
        (["x", "--device", "abacus"], Stdin(b""), 2, "unknown device 'abacus'. Use cpu, cuda"),
        (["x", "--device", "cuda:77"], Stdin(b""), 2, "device 'cuda:77' is not there: this torch sees"),
        (["word " * 200], Stdin(b""), 1, "tokens, but this model holds 128 in all. Shorten the prompt."),
        (["word", "-n", "128"], Stdin(b""), 1, "--max-new-tokens asks for 128 more, but this model holds 128 in all."),
    ],
)
def test_wrong_input_is_a_clear_error(argv, stdin, code, message, generate, monkeypatch):
    monkeypatch.setattr(sys, "stdin", stdin)
    out, err = generate(*argv, code=code)
    assert out == "" and err.startswith("quintet: error: ") and err.count("\n") == 1
    assert message in err


def test_a_prompt_too_large_to_be_one_is_refused(generate, monkeypatch):
    monkeypatch.setattr(module, "MAX_PROMPT_BYTES", 1 << 20)
    monkeypatch.setattr(sys, "stdin", Stdin(b"x" * ((1 << 20) + 1)))
    assert "is larger than 1 MiB" in generate(code=1)[1]


def test_a_missing_model_says_where_it_looked(capsys):
    assert main(["generate", "hello", "--model", "no-such/model"]) == 1
    err = capsys.readouterr().err
    assert "no-such/model" in err and err.count("\n") == 1


def test_without_a_length_it_writes_what_fits(generate):
    answer = record(generate("word " * 20, "--greedy", "--json")[0])
    from quintet import AutoTokenizer

    used = len(AutoTokenizer.from_pretrained(answer["model"])(answer["prompt"])["input_ids"])
    assert answer["finish_reason"] == "stop" or used + answer["tokens"] == 128


def test_a_stop_text_ends_the_text_and_is_left_out(generate):
    whole = record(generate(PROMPT, "-n", "60", "--seed", "5", "--json")[0])["text"]
    stop = re.findall("[a-z]{2}", whole)[3]  # a random model also writes what is no character; this is one
    answer = record(generate(PROMPT, "-n", "60", "--seed", "5", "--json", "--stop", stop)[0])
    assert answer["text"] == whole[: whole.index(stop)]
    assert answer["finish_reason"] == "stop" and answer["tokens"] < 60
    out, _ = generate(PROMPT, "-n", "60", "--seed", "5", "--stop", stop)
    assert out == PROMPT + answer["text"] + "\n"


def test_a_terminal_gets_no_control_sequences(generate, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Terminal()
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setattr(sys, "stdout", screen)
    generate("a\x1b[2Jb", "-n", "2")
    assert screen.getvalue().startswith(r"a\x1b[2Jb") and "\x1b" not in screen.getvalue()


@pytest.mark.parametrize(
    ("pieces", "stops", "shown"),
    [
        (["ab", "cd", "ef"], [], ["ab", "cd", "ef"]),
        (["ab", "cd", "ef"], ["cd"], ["ab"]),
        (["abc", "def"], ["cd"], ["ab"]),
        (["abc", "xef"], ["cd"], ["ab", "cxef"]),
        (["a", "b", "a", "b", "c", "z"], ["abc"], ["ab"]),
        (["xEN"], ["END"], ["x", "EN"]),
        (["one two three"], ["three", "two"], ["one "]),
        (["aab"], ["ab"], ["a"]),
    ],
)
def test_the_stop_filter_shows_what_is_safe(pieces, stops, shown):
    written: list[str] = []
    stop_filter = StopFilter(stops, written.append)
    for piece in pieces:
        stop_filter.feed(piece)
    stop_filter.feed("", end=True)
    assert written == shown and stop_filter.text == "".join(shown)


def test_the_stop_filter_never_depends_on_how_the_text_is_cut():
    from hypothesis import given
    from hypothesis import strategies as st

    letters = st.text("ab", max_size=12)

    @given(st.lists(letters, max_size=8), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3))
    def check(pieces: list[str], stops: list[str]) -> None:
        text = "".join(pieces)
        stop_filter = StopFilter(stops, lambda piece: None)
        for piece in pieces:
            stop_filter.feed(piece)
        stop_filter.feed("", end=True)
        # The text ends before the stop that is complete first, and before the longest of several that end together.
        ends = [(at + len(stop), at) for stop in stops if (at := text.find(stop)) >= 0]
        assert stop_filter.stopped == bool(ends)
        assert stop_filter.text == (text[: min(ends)[1]] if ends else text)

    check()


def test_a_tokenizer_of_another_model_is_refused(tiny_gpt2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    from quintet.models.gpt2 import GPT2LMHeadModel, tiny

    GPT2LMHeadModel(tiny()).save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((tiny_gpt2 / name).read_bytes())
    assert main(["generate", "--model", str(tmp_path), PROMPT]) == 1
    assert re.search(r"the tokenizer has \d+ tokens, but the model only 99", capsys.readouterr().err)


def test_rows_of_a_padded_vocabulary_are_never_written(tiny_gpt2, tmp_path, capsys):
    """Published vocabularies have more rows than tokens; here those rows score highest."""
    import torch

    from quintet import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny_gpt2), AutoTokenizer.from_pretrained(tiny_gpt2)
    model.resize_token_embeddings(len(tokenizer) + 30)
    model.config.tie_word_embeddings = False
    head = torch.nn.Linear(32, len(tokenizer) + 30, bias=False)
    head.weight.data[: len(tokenizer)] = model.lm_head.weight.data[: len(tokenizer)]
    head.weight.data[len(tokenizer) :] = 50 * model.lm_head.weight.data[:30]
    model.lm_head = head
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    ids = tokenizer(PROMPT, return_tensors="pt").input_ids
    assert int(model.generate(ids, max_new_tokens=12, do_sample=False).max()) >= len(tokenizer)  # it would
    seen: list[int] = []
    generate = type(model).generate

    def watched(self, *args, **kwargs):
        out = generate(self, *args, **kwargs)
        seen.extend(out[0].tolist())
        return out

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(model), "generate", watched)
        for how in (["--greedy"], ["--seed", "1", "--temperature", "5"]):
            assert main(["generate", PROMPT, "--model", str(tmp_path), "-n", "12", *how]) == 0
    assert len(seen) > 2 * len(ids[0]) and max(seen) < len(tokenizer)
    capsys.readouterr()


def test_a_wrong_name_of_instructions_is_said_before_anything_is_written(generate, monkeypatch):
    monkeypatch.setenv("QUINTET_ISA", "sse")
    loader._loaded.cache_clear()
    try:
        out, err = generate(PROMPT, "-n", "2", code=1)
    finally:
        loader._loaded.cache_clear()
    assert out == "" and "QUINTET_ISA='sse' is not one of amx, avx512" in err
