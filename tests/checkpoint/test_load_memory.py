"""Peak memory of a load, measured in a process of its own: at most the file and a tenth in the file's type."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from quintet.checkpoint import TensorFile, save_weights

MIB = 2**20
LAYERS, WIDTH = 19, 1024  # 19 matrices of 16 MiB, 304 MiB in float32

CODE = """
import json, sys, threading, time
import torch
from torch import nn
from quintet.checkpoint import load_weights, open_source
from quintet.checkpoint.meta import without_memory

def now():
    lines = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return {name: int(lines[name].split()[0]) // 1024 for name in ("VmRSS", "RssAnon", "RssFile")}

folder, dtype, mapped, touch = sys.argv[1:]
with without_memory():
    model = nn.Sequential(*[nn.Linear(1024, 4096, bias=False) for _ in range(19)])
torch.ones(10).to(torch.bfloat16).sum()  # what torch itself needs is not counted
base, peak, done = now(), {}, False

def watch():
    while not done:
        for name, value in now().items():
            peak[name] = max(peak.get(name, 0), value)
        time.sleep(0.0005)

watcher = threading.Thread(target=watch)
watcher.start()
source = open_source(folder, mapped=mapped == "yes")
load_weights(model, source, dtype=getattr(torch, dtype))
loaded = now()
if touch == "yes":
    total = sum(float(parameter.detach().sum()) for parameter in model.parameters())
done = True
watcher.join()
print(json.dumps({name: [peak[name] - base[name], loaded[name] - base[name]] for name in base}))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("large")
    state = {f"{layer}.weight": torch.randn(4 * WIDTH, WIDTH) for layer in range(LAYERS)}
    save_weights(state, path, max_shard_size="100MB")
    return path


def measure(folder: Path, dtype: str, *, mapped: bool = True, touch: bool = True) -> dict[str, list[int]]:
    """Return [peak, after the load] in MiB above what the process had before."""
    words = [sys.executable, "-c", CODE, str(folder), dtype, "yes" if mapped else "no", "yes" if touch else "no"]
    run = subprocess.run(words, capture_output=True, text=True, check=True)
    result: dict[str, list[int]] = json.loads(run.stdout)
    return result


FILE = LAYERS * 4 * WIDTH * WIDTH * 4 // MIB

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc"),
]


def test_mapped_weights_take_no_memory_of_their_own(folder: Path) -> None:
    used = measure(folder, "float32", touch=False)
    assert used["VmRSS"][0] < 0.1 * FILE, used
    used = measure(folder, "float32")
    assert used["RssAnon"][0] < 0.1 * FILE, used
    assert used["VmRSS"][0] <= 1.1 * FILE, used


def test_converted_weights_take_the_result_and_a_tensor(folder: Path) -> None:
    used = measure(folder, "bfloat16")
    assert used["VmRSS"][0] <= 0.5 * FILE + 16 + 0.1 * FILE, used
    used = measure(folder, "float64")
    assert used["VmRSS"][0] <= 2 * FILE + 16 + 0.1 * FILE, used


def test_without_mapping_the_file_is_held_once(folder: Path) -> None:
    used = measure(folder, "float32", mapped=False)
    assert used["VmRSS"][0] <= 1.1 * FILE, used


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other kernels account for mappings differently")
def test_a_file_larger_than_the_memory_is_mapped(tmp_path: Path) -> None:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    rows = 2 * memory // 4096
    header = json.dumps({"x": {"dtype": "F32", "shape": [rows, 1024], "data_offsets": [0, rows * 4096]}}).encode()
    header += b" " * (-len(header) % 8)
    file = tmp_path / "large.safetensors"
    with open(file, "wb") as out:  # sparse: it takes no room on the disk
        out.write(len(header).to_bytes(8, "little") + header)
        out.truncate(8 + len(header) + rows * 4096)
    tensor = TensorFile.open(file).get("x")
    assert tensor.shape == (rows, 1024) and float(tensor[rows // 2, 5]) == 0.0
    tensor[-1, -1] = 1.0  # copy-on-write still works, and the file stays
    assert float(tensor[-1, -1]) == 1.0 and float(TensorFile.open(file).get("x")[-1, -1]) == 0.0
