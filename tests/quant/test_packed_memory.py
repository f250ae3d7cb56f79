"""Peak memory of loading packed checkpoints, and of packing plain ones, each in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from quintet.checkpoint import save_weights
from quintet.checkpoint.meta import without_memory
from quintet.models.gpt_oss import GptOssForCausalLM, tiny

MIB = 2**20
LAYERS, EXPERTS, WIDTH = 8, 8, 512

PRELUDE = """
import json, sys, threading, time
import torch
from quintet import GptOssForCausalLM

def now():
    lines = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return {name: int(lines[name].split()[0]) / 1024 for name in ("VmRSS", "RssAnon", "RssFile")}

def watched(work):
    base, peak, done = now(), {}, False

    def watch():
        while not done:
            for name, value in now().items():
                peak[name] = max(peak.get(name, 0), value)
            time.sleep(0.0005)

    watcher = threading.Thread(target=watch)
    watcher.start()
    result = work()
    done = True
    watcher.join()
    return result, {name: peak[name] - base[name] for name in base}
"""

CODE = (
    PRELUDE
    + """
folder, warm, dequantize, ids = sys.argv[1:]
GptOssForCausalLM.from_pretrained(warm, dequantize=dequantize == "yes")  # what the code itself needs is not counted

def work():
    model = GptOssForCausalLM.from_pretrained(folder, dequantize=dequantize == "yes")
    if ids == "yes":
        with torch.no_grad():
            model(torch.arange(40)[None])

print(json.dumps(watched(work)[1]))
"""
)

PACKING = (
    PRELUDE
    + """
folder, warm, style = sys.argv[1:]
GptOssForCausalLM.from_pretrained(warm, quantization=style)
model, used = watched(lambda: GptOssForCausalLM.from_pretrained(folder, quantization=style))
packed = sum(p.nbytes for p in model.parameters() if type(p).__name__ == "PackedParameter")
print(json.dumps({**used, "packed": packed / 2**20}))
"""
)

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")


def save(folder: Path, **sizes: int) -> Path:
    with without_memory():
        model = GptOssForCausalLM(tiny(num_experts_per_tok=2, **sizes))
    state: dict[str, torch.Tensor] = {}
    for name, tensor in model.state_dict().items():
        if tensor.dim() == 3:
            experts, inputs, outputs = tensor.shape
            state[f"{name}_blocks"] = torch.randint(0, 256, (experts, outputs, inputs // 32, 16), dtype=torch.uint8)
            state[f"{name}_scales"] = torch.full((experts, outputs, inputs // 32), 120, dtype=torch.uint8)
        else:
            state[name] = torch.randn(tensor.shape, dtype=torch.bfloat16) * 0.02
    save_weights(state, folder, max_shard_size="10MB", texts={"config.json": model.config.to_json_string()})
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    path = tmp_path_factory.mktemp("packed")
    sizes = {"hidden_size": WIDTH, "intermediate_size": 2 * WIDTH}
    return save(path / "large", num_hidden_layers=LAYERS, num_local_experts=EXPERTS, **sizes), save(path / "small")


def measure(folders: tuple[Path, Path], dequantize: bool, run: bool = False) -> dict[str, float]:
    words = [sys.executable, "-c", CODE, *map(str, folders), "yes" if dequantize else "no", "yes" if run else "no"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    result: dict[str, float] = json.loads(done.stdout)
    return result


PACKED = LAYERS * EXPERTS * 3 * 2 * WIDTH * WIDTH / 2 * (17 / 16) / MIB  # 51 MiB
PLAIN = LAYERS * EXPERTS * 3 * 2 * WIDTH * WIDTH * 2 / MIB  # 192 MiB
LARGEST = EXPERTS * 4 * WIDTH * WIDTH * 2 / MIB  # 16 MiB: gate and up of one layer, unpacked


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A large and a small checkpoint in bfloat16: what is to be packed is nearly all of it."""
    experts = {"num_local_experts": EXPERTS, "intermediate_size": 2 * WIDTH}
    return write_plain(tmp_path_factory.mktemp("plain"), num_hidden_layers=LAYERS, **experts)


def write_plain(path: Path, **sizes: int) -> tuple[Path, Path]:
    wide = {"hidden_size": WIDTH, "num_attention_heads": 64, "head_dim": 64, **sizes}
    for name, options in (("large", wide), ("small", {})):
        with without_memory():
            model = GptOssForCausalLM(tiny(num_experts_per_tok=2, **options))
        state = {key: torch.randn(t.shape, dtype=torch.bfloat16) * 0.02 for key, t in model.state_dict().items()}
        save_weights(state, path / name, max_shard_size="10MB", texts={"config.json": model.config.to_json_string()})
    return path / "large", path / "small"


ATTENTION = 64 * 64 * WIDTH * 2 / MIB  # 4 MiB: the queries of one layer


def test_packing_of_attention_needs_one_tensor_above_the_result(tmp_path: Path) -> None:
    """The same as below in a second or two: experts are next to nothing."""
    layers = 16
    used = packing(write_plain(tmp_path, num_hidden_layers=layers, num_local_experts=2, intermediate_size=64), "int8")
    assert used["packed"] > layers * ATTENTION  # queries and outputs, a byte a number
    assert used["packed"] * 0.8 < used["RssAnon"] < used["packed"] + ATTENTION + 40


def packing(folders: tuple[Path, Path], style: str) -> dict[str, float]:
    words = [sys.executable, "-c", PACKING, *map(str, folders), style]
    result: dict[str, float] = json.loads(subprocess.run(words, capture_output=True, text=True, check=True).stdout)
    return result


@pytest.mark.slow
@pytest.mark.parametrize("style", ["mxfp4", "mxfp4+int8", "mxfp4+int4", "int8", "int4"])
def test_packing_while_loading_needs_one_tensor_above_the_result(style: str, plain: tuple[Path, Path]) -> None:
    used = packing(plain, style)
    largest = LARGEST if style.startswith("mxfp4") else ATTENTION
    # Beside what is made: the tensor that is being packed, and what its rows become on the way. What stays plain
    # is in the mapped file.
    assert used["packed"] * 0.8 < used["RssAnon"] < used["packed"] + largest + 40


@pytest.mark.slow
def test_packed_weights_take_no_memory_of_their_own(folders: tuple[Path, Path]) -> None:
    used = measure(folders, dequantize=False)
    assert used["RssAnon"] < 8
    ran = measure(folders, dequantize=False, run=True)
    assert ran["RssFile"] < PACKED * 1.1 + 8
    assert ran["RssAnon"] < 40  # tiles, and what a forward pass makes, but nothing of the size of the weights


@pytest.mark.slow
def test_unpacking_needs_one_tensor_above_the_result(folders: tuple[Path, Path]) -> None:
    used = measure(folders, dequantize=True)
    assert used["RssAnon"] > PLAIN * 0.95
    assert used["VmRSS"] < PLAIN + LARGEST * 1.3 + 16  # with its packed form in the mapped file, which is given back
