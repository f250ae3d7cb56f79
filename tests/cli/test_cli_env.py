"""`quintet env` and what it measures."""

from __future__ import annotations

import json
import sys

import pytest
import torch

from quintet import __version__
from quintet.cli import machine
from quintet.cli.main import main
from quintet.kernels import loader


def test_json_has_everything(capsys):
    assert main(["env", "--json"]) == 0
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    facts = json.loads(out)
    assert facts["versions"]["quintet"] == __version__ and facts["versions"]["torch"] == torch.__version__
    assert facts["cpu"]["model"] and 1 <= facts["cpu"]["cores_usable"] <= facts["cpu"]["cores_online"]
    assert 0 < facts["memory"]["available_mib"] <= facts["memory"]["total_mib"]
    assert facts["read_bandwidth"]["gb_s"] > 0
    assert facts["attention"][:3] == ["eager", "sdpa", "flex_attention"]
    kernels = facts["kernels"]
    assert set(kernels["operations"]) == set(loader.NATIVE_OPS)
    way = f"native {kernels['level']}" if kernels["native"] else "PyTorch"
    assert set(kernels["operations"].values()) == {way} and kernels["reason"]
    assert facts["offline"] is True  # as tests/conftest.py sets it
    assert facts["environment"]["HF_HUB_OFFLINE"] == "1"


def test_the_table_for_people(capsys):
    assert main(["env", "--no-bandwidth"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("quintet ") and f"torch {torch.__version__}" in out and "memory read" not in out
    assert "eager, sdpa" in out and "(offline)" in out


def test_the_line_about_kernels(capsys, monkeypatch):
    states = {
        "native avx2 (QUINTET_ISA; threads of libgomp.so.1): matvec, matmul, int8_linear": loader.Status(
            True, "avx2", "libgomp.so.1", "QUINTET_ISA"
        ),
        "plain PyTorch (QUINTET_NATIVE=0)": loader.Status(False, None, None, "QUINTET_NATIVE=0"),
    }
    for line, state in states.items():
        monkeypatch.setattr(loader, "status", lambda state=state: state)
        assert main(["env", "--no-bandwidth"]) == 0
        assert line in capsys.readouterr().out


def test_read_bandwidth_takes_a_size_and_is_plausible():
    measured = machine.read_bandwidth(seconds=0.1, size=64 * 2**20)
    assert measured["buffer_mib"] == 64 and measured["threads"] == torch.get_num_threads()
    assert 0.1 < measured["gb_s"] < 20_000


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_peak_memory_counts_what_was_touched():
    before = machine.peak_rss_mib()
    block = torch.ones(256 * 2**20, dtype=torch.uint8)
    after = machine.peak_rss_mib()
    assert before is not None and after is not None and block.nbytes == 256 * 2**20
    assert after >= 256 and after >= before


def test_the_limits_of_a_container_count(monkeypatch):
    files = {
        "/proc/meminfo": "MemTotal:       67108864 kB\nMemAvailable:   33554432 kB\n",
        "/sys/fs/cgroup/memory.max": f"{4 * 2**30}\n",
        "/sys/fs/cgroup/memory.current": f"{1 * 2**30}\n",
        "/sys/fs/cgroup/cpu.max": "150000 100000\n",
    }
    monkeypatch.setattr(machine, "_read", lambda path: files.get(path, ""))
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda pid: set(range(16)), raising=False)
    assert machine.memory() == {"total_mib": 4096, "available_mib": 3072}
    assert machine.usable_cores() == 2
    files.update({"/sys/fs/cgroup/memory.max": "max\n", "/sys/fs/cgroup/cpu.max": "max 100000\n"})
    assert machine.memory() == {"total_mib": 65536, "available_mib": 32768}
    assert machine.usable_cores() == 16


def test_flags_of_two_architectures(monkeypatch):
    monkeypatch.setattr(machine.sys, "platform", "linux")
    x86 = "processor : 0\nmodel name\t: Some CPU 9000\nflags\t\t: fpu avx2 fma avx512f avx512_bf16 made_up\n"
    monkeypatch.setattr(machine, "_read", lambda path: x86 if path == "/proc/cpuinfo" else "")
    facts = machine.cpu()
    assert facts["model"] == "Some CPU 9000" and facts["isa"] == ["avx2", "fma", "avx512f", "avx512_bf16"]
    assert facts["l3_mib"] is None
    arm = "processor : 0\nFeatures\t: fp asimd asimddp bf16 sve\n"
    monkeypatch.setattr(machine, "_read", lambda path: arm if path == "/proc/cpuinfo" else "")
    assert machine.cpu()["isa"] == ["asimd", "asimddp", "bf16", "sve"]


def test_nothing_known_is_no_error(monkeypatch, capsys):
    monkeypatch.setattr(machine, "_read", lambda path: "")
    monkeypatch.setattr(machine, "LIBRARIES", ("no-such-library",))
    assert machine.library_versions() == {"no-such-library": None}
    assert main(["env", "--no-bandwidth"]) == 0
    assert "unknown" in capsys.readouterr().out
