"""Kernels under the sanitizers of addresses and undefined behaviour: random sizes, buffers of exactly their size."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RUN = ROOT / "csrc" / "tests" / "run.py"


def has_sanitizers(folder: Path) -> bool:
    """Whether g++ links a program with both and it runs."""
    if shutil.which("g++") is None or not RUN.is_file():
        return False
    (folder / "empty.cpp").write_text("int main() { return 0; }\n")
    command = ["g++", "-fsanitize=address,undefined", str(folder / "empty.cpp"), "-o", str(folder / "empty")]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        return False
    return subprocess.run([str(folder / "empty")], capture_output=True, check=False).returncode == 0


def test_no_level_reads_or_writes_beyond_its_buffers(tmp_path: Path) -> None:
    if not has_sanitizers(tmp_path):
        pytest.skip("g++ has no sanitizers here")
    command = [sys.executable, str(RUN), "--cxx", "g++", "--optimize", "0", "--cases", "60"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "portable: all right" in done.stdout


def test_the_driver_finds_what_is_wrong(tmp_path: Path) -> None:
    """A kernel that reads one number more than there are is caught, with the sanitizers or without."""
    if shutil.which("g++") is None or not RUN.is_file():
        pytest.skip("no g++")
    for name in ("csrc/cpu", "csrc/tests"):
        shutil.copytree(ROOT / name, tmp_path / name)
    shutil.copy(ROOT / "setup.py", tmp_path)
    source = tmp_path / "csrc" / "cpu" / "inner.h"
    right = "inline float sum_of(const float* x, int64_t count) {\n"
    text = source.read_text(encoding="utf-8")
    assert right in text
    source.write_text(text.replace(right, right + "    ++count;\n"), encoding="utf-8")
    options = ["--cxx", "g++", "--sanitize", "", "--optimize", "0", "--cases", "3", "--levels", "portable"]
    command = [sys.executable, str(tmp_path / "csrc" / "tests" / "run.py"), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "portable: failed" in done.stdout, done.stdout + done.stderr
