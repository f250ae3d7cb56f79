"""The page about quantisation: its code and its commands run, its bounds are those that are tested."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "quantization.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
STORY = "Once upon a time there was a king who had a great forest near his palace, full of all kinds of wild animals. "


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "book.txt").write_text(STORY * 10, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_block_is_run() -> None:
    assert len(re.findall(r"^```", PAGE, re.MULTILINE)) == 2 * len(BLOCKS)
    assert {language for language, _ in BLOCKS} == {"python", "sh"}
    assert sum(language == "python" for language, _ in BLOCKS) == 6


def run(*words: str) -> str:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    done = subprocess.run(words, env={**os.environ, "PATH": path}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_python_blocks_run(folder: Path) -> None:
    # in a process of its own: other packages change torch when they are imported
    out = run(sys.executable, "-c", "\n".join(code for language, code in BLOCKS if language == "python"))
    said = re.search(r"# (packed 16 weights; .*)$", PAGE, re.MULTILINE)
    assert said is not None and said[1] in out
    assert "linear layers in int4" in out and "linear layers in int8" in out
    assert (folder / "storyteller-int8" / "model.safetensors").is_file()


def test_the_commands_run(folder: Path) -> None:
    (code,) = (code for language, code in BLOCKS if language == "sh")
    out = run("bash", "-euo", "pipefail", "-c", code)
    assert "Once upon a time" in out and "16 weights packed" in out
    assert "17 weights packed by calibration" in out and "16 linear layers in int4" in out


def test_links_lead_somewhere() -> None:
    headings = {re.sub(r"[^\w -]", "", one).lower().replace(" ", "-") for one in re.findall(r"^#+ (.+)$", PAGE, re.M)}
    for target in re.findall(r"\]\(([^)]+)\)", PAGE):
        file, _, heading = target.partition("#")
        if file:
            text = (ROOT / "docs" / file).read_text(encoding="utf-8")
            title = heading.replace("-", " ")
            assert not heading or re.search(rf"^#+ {title}$", text, re.M | re.I), target
        else:
            assert heading in headings, target


def test_the_bounds_are_those_of_the_tests() -> None:
    tests = (ROOT / "tests" / "quant" / "test_accuracy.py").read_text(encoding="utf-8")
    assert "bfloat16 within 0.1 % of float32's perplexity, 8 bits within 0.3 %, 4 bits within 3 %" in PAGE
    for line in re.findall(r'^    "(bf16|int8|int4).*?\), ([\d.]+), ', tests, re.M):
        assert float(line[1]) == {"bf16": 0.001, "int8": 0.003, "int4": 0.03}[line[0]]
