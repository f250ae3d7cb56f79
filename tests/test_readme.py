"""The code blocks of README.md run, in order, as a reader would run them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
SHELL = [code for language, code in BLOCKS if language == "sh"]
PYTHON = [code for language, code in BLOCKS if language == "python"]

# Commands that install, which the packaging tests run instead.
INSTALLING = re.compile(r"^(make|pip install|git clone|cd) ")


def shell_commands(block: str) -> list[str]:
    """The commands of a block, continued lines joined, without those that install."""
    lines = block.replace("\\\n", " ").splitlines()
    return [line for line in lines if line.strip() and not line.startswith("#") and not INSTALLING.match(line)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with a text file, `book.txt`."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "book.txt").write_text(re.sub(r"[^\w\s.,]", " ", README) * 8, encoding="utf-8")
    return folder


def test_every_block_has_a_language_that_is_run():
    assert len(re.findall(r"^```", README, re.MULTILINE)) == 2 * len(BLOCKS)
    assert {language for language, _ in BLOCKS} == {"sh", "python"}
    assert len(PYTHON) >= 3 and sum(len(shell_commands(block)) for block in SHELL) >= 8


def test_python_blocks(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(folder)
    namespace: dict[str, Any] = {"__name__": "readme"}
    for code in PYTHON:
        exec(compile(code, "README.md", "exec"), namespace)
    assert (folder / "my-classifier" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    "block", [block for block in SHELL if shell_commands(block)], ids=lambda block: block.split()[1]
)
def test_shell_blocks(block: str, folder: Path):
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    for command in shell_commands(block):
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", command],
            cwd=folder,
            env={**os.environ, "PATH": path},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stderr}"
        assert "Traceback" not in done.stderr and done.stdout.strip()


def test_links_to_files_lead_somewhere():
    for target in re.findall(r"\]\((?!http)([^)#]+)", README):
        assert (ROOT / target).exists(), target


def test_the_commands_of_the_readme_are_targets_of_the_makefile():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"^make (\w+)", "\n".join(SHELL), re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
