"""The command table, exit codes, one-line errors, colours, Ctrl-C, closed pipes."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import types
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from quintet import __version__
from quintet.cli import main as cli
from quintet.cli.main import COMMANDS, main
from quintet.errors import HubError, UsageError

PYTHON = [sys.executable, "-m", "quintet"]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch):
    """Adds a command `probe` whose `run` the test gives."""

    def add(run) -> None:
        module = types.SimpleNamespace(add_arguments=lambda parser: parser.add_argument("--size", type=int), run=run)
        monkeypatch.setitem(COMMANDS, "probe", cli.Command("probe", "for tests"))
        monkeypatch.setattr(cli.importlib, "import_module", lambda name: module)

    return add


def test_help_lists_every_command(capsys):
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    for name, entry in COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(entry.help)}$", out, re.MULTILINE)
    assert "examples:" in out


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_examples(name, capsys):
    assert main([name, "--help"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"usage: quintet {name}")
    assert f"\nexamples:\n  quintet {name}" in out
    assert main(["help", name]) == 0
    assert capsys.readouterr().out == out


@pytest.mark.parametrize("name", COMMANDS)
def test_every_example_is_a_valid_command_line(name):
    import importlib
    import shlex

    from quintet.cli.common import CommandParser

    module = importlib.import_module(COMMANDS[name].module)
    parser = CommandParser(prog=f"quintet {name}")
    module.add_arguments(parser)
    lines = parser.epilog.removeprefix("examples:\n").replace("\\\n", " ").splitlines()
    assert lines
    for line in lines:
        words = shlex.split(line, comments=True)
        if "|" in words:
            bar = words.index("|")
            words = words[:bar] if words[0] == "quintet" else words[bar + 1 :]
        for mark in ("<", ">", ">>"):
            if mark in words:
                words = words[: words.index(mark)]
        assert words[:2] == ["quintet", name]
        parser.parse_args(words[2:])


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"quintet {__version__}\n"


def test_no_command_is_a_usage_error(capsys):
    assert main([]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("usage: quintet COMMAND")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["genrate"], "unknown command 'genrate'. Did you mean 'generate'? See 'quintet --help'."),
        (["zzz"], "unknown command 'zzz'. The commands are generate, "),
        (["--versoin"], "unknown option '--versoin' before the command. Did you mean '--version'?"),
        (["--json", "env"], "unknown option '--json' before the command. A command's own options come after its name."),
        (["help", "enf"], "unknown command 'enf'. Did you mean 'env'?"),
        (["generate", "--temprature", "1"], "unknown option '--temprature'. Did you mean '--temperature'? See"),
        (["generate", "--temp", "1"], "unknown option '--temp'. Did you mean '--temperature'?"),
        (["generate", "--sed=1"], "unknown option '--sed'. Did you mean '--seed'?"),
        (["generate", "one", "two"], "unexpected argument 'two'."),
        (["generate", "--dtype", "fp31"], "invalid choice: 'fp31'"),
        (["generate", "--top-p", "1.5"], "argument --top-p: '1.5' is not a number from 0 to 1."),
        (["generate", "--top-p", "x"], "argument --top-p: 'x' is not a number from 0 to 1."),
        (["generate", "--temperature", "nan"], "argument --temperature: 'nan' is not a number above 0."),
        (["generate", "--temperature", "inf"], "argument --temperature: 'inf' is not a number above 0."),
        (["generate", "--max-new-tokens", "0"], "'0' is not a whole number of at least 1."),
        (["generate", "--seed", "-1"], "'-1' is not a whole number of at least 0."),
        (["generate", "--seed"], "argument --seed: expected one argument."),
        (["info"], "the following arguments are required: MODEL."),
    ],
)
def test_a_wrong_command_line_is_one_line_and_exit_code_2(argv, message, capsys):
    assert main(argv) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("quintet: error: ") and captured.err.count("\n") == 1
    assert message in captured.err
    assert "?." not in captured.err


def test_an_invalid_choice_suggests_the_nearest(capsys):
    main(["generate", "--dtype", "bf61"])
    assert "(choose from 'auto', 'fp32', 'bf16', 'fp16'). Did you mean 'bf16'?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (HubError("there is no model 'x'.\n  Looked in: a, b"), 1, "there is no model 'x'. Looked in: a, b"),
        (UsageError("give one of them"), 2, "give one of them"),
        (FileNotFoundError(2, "No such file or directory", "story.txt"), 1, "No such file or directory: 'story.txt'"),
        (OSError("disk on fire"), 1, "disk on fire"),
        (MemoryError(), 1, "out of memory."),
        (KeyError("x"), 1, "unexpected KeyError: 'x' (run again with --debug for the trace)"),
        (HubError("evil \x1b[2J name\x07"), 1, r"evil \x1b[2J name\x07"),
    ],
)
def test_an_error_is_one_printable_line(error, code, text, command, capsys):
    def run(args):
        raise error

    command(run)
    assert main(["probe"]) == code
    captured = capsys.readouterr()
    assert captured.err.startswith("quintet: error: ") and captured.err.count("\n") == 1
    assert text in captured.err
    assert "Traceback" not in captured.err and "\x1b" not in captured.err


@pytest.mark.parametrize("argv", [["--debug", "probe"], ["probe", "--debug"]])
def test_debug_prints_the_trace(argv, command, capsys):
    def run(args):
        raise HubError("there is no model 'x'")

    command(run)
    assert main(argv) == 1
    err = capsys.readouterr().err
    assert "Traceback (most recent call last)" in err and err.endswith("quintet: error: there is no model 'x'\n")


def test_a_warning_is_one_line(command, capsys):
    def run(args):
        warnings.warn("first line\nsecond line", stacklevel=1)
        return 0

    command(run)
    assert main(["probe"]) == 0
    assert capsys.readouterr().err == "quintet: warning: first line second line\n"


def test_a_log_record_of_the_library_is_shown_line_by_line(command, capsys):
    def run(args):
        logging.getLogger("quintet.checkpoint").warning("loading:\n  evil \x1b[2J key")
        logging.getLogger("quintet.checkpoint").info("not this")
        return 0

    command(run)
    assert main(["probe"]) == 0
    assert capsys.readouterr().err == "quintet: warning: loading:\n  evil \\x1b[2J key\n"
    assert not logging.getLogger("quintet").handlers


def test_ctrl_c_in_a_command_is_130(command, capsys):
    def run(args):
        raise KeyboardInterrupt

    command(run)
    assert main(["probe"]) == 130
    assert "Traceback" not in capsys.readouterr().err


def test_colours_follow_the_environment_and_the_terminal(monkeypatch, capsys):
    main(["genrate"])
    assert "\x1b" not in capsys.readouterr().err
    monkeypatch.setenv("FORCE_COLOR", "1")
    main(["genrate"])
    assert capsys.readouterr().err.startswith("\x1b[1;31mquintet: error:\x1b[0m ")
    monkeypatch.setenv("NO_COLOR", "1")
    main(["genrate"])
    assert "\x1b" not in capsys.readouterr().err


def _loaded_modules(code: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys; print(*sys.modules)"], capture_output=True, text=True, check=True
    )
    return set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize("argv", ["['--help']", "['--version']", "['genrate']", "['generate', '--help']"])
def test_help_and_mistakes_load_nothing_heavy(argv):
    loaded = _loaded_modules(f"from quintet.cli.main import main; main({argv})")
    heavy = {"torch", "numpy", "tokenizers", "safetensors", "huggingface_hub", "tqdm", "jinja2", "matplotlib"}
    assert "quintet.cli.main" in loaded
    assert not loaded & heavy
    if argv == "['--help']":
        assert "argparse" not in loaded


@pytest.mark.parametrize("name", COMMANDS)
def test_no_command_loads_torch_before_it_runs(name):
    assert "torch" not in _loaded_modules(f"from quintet.cli.main import main; main([{name!r}, '--help'])")


def test_exit_codes_of_the_process(tiny_gpt2: Path):
    def code(*argv: str) -> int:
        return subprocess.run([*PYTHON, *argv], capture_output=True, stdin=subprocess.DEVNULL, check=False).returncode

    assert code("--version") == 0
    assert code("info", str(tiny_gpt2 / "nothing-here")) == 1
    assert code("genrate") == 2


@contextlib.contextmanager
def _streaming(tiny_gpt2: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that writes texts until it is stopped, here at the latest after five minutes."""
    argv = ["generate", "Once", "--model", str(tiny_gpt2), "--num", "1000000", "--threads", "1"]
    pipe = subprocess.PIPE
    with subprocess.Popen([*PYTHON, *argv], stdout=pipe, stderr=pipe, stdin=subprocess.DEVNULL, bufsize=0) as process:
        guard = threading.Timer(300, process.kill)
        guard.start()
        try:
            yield process
        finally:
            guard.cancel()
            process.kill()


@pytest.mark.skipif(os.name != "posix", reason="sends SIGINT")
def test_ctrl_c_while_streaming_ends_quietly_with_130(tiny_gpt2: Path):
    with _streaming(tiny_gpt2) as process:
        assert process.stdout is not None and process.stderr is not None
        for _ in range(20):  # well inside a text
            process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        process.stdout.read()
        err = process.stderr.read()
        assert process.wait() == 130
    assert b"Traceback" not in err and b"KeyboardInterrupt" not in err


@pytest.mark.skipif(os.name != "posix", reason="needs SIGPIPE semantics")
def test_a_closed_pipe_ends_quietly(tiny_gpt2: Path):
    with _streaming(tiny_gpt2) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.read(1)
        process.stdout.close()
        err = process.stderr.read()
        assert process.wait() == 1
    assert b"Traceback" not in err and b"BrokenPipe" not in err and b"Exception ignored" not in err
