"""Tests that meet native kernels pass with QUINTET_NATIVE=0 too; `make test-plain` runs all of them so."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from quintet.kernels.loader import status

TESTS = Path(__file__).parent
# One or more for each place that takes a kernel where there is one.
CHOSEN = (
    *("fused/test_cpu_linear.py", "fused/test_cpu_experts.py", "fused/test_report.py"),
    *("kernels/test_native_kernels.py", "kernels/test_native_integers.py", "kernels/test_native_attention.py"),
    *("kernels/test_native_head.py", "kernels/test_native_norms.py"),
    *("quant/test_packed_linears.py", "quant/test_packed_experts.py"),
    *("generation/test_head_shortcut.py", "generation/test_generate_calls.py"),
    *("evaluate/test_scoring.py", "pipelines/test_pipeline_calls.py", "cli/test_cli_env.py"),
)


@pytest.mark.skipif(not status().native, reason="the tests themselves run without native kernels")
def test_a_choice_of_tests_passes_without_native_kernels() -> None:
    env = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "QUINTET_ISA"))}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-rs", "-p", "no:xdist", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, *(str(TESTS / name) for name in CHOSEN)],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
        cwd=TESTS.parent,
        env={**env, "QUINTET_NATIVE": "0", "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert "no native kernels: QUINTET_NATIVE=0" in done.stdout, "what needs kernels was left out"
    counted = re.search(r"(\d+) passed", done.stdout)
    assert counted is not None and int(counted[1]) > 300, done.stdout[-500:]
