"""What every benchmark shares: checkpoints, alternating rounds, fresh processes, one JSON line per result.

Only the standard library is imported at the top, because the processes that are measured import this file too.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT / "src") not in sys.path:  # the code beside these scripts, whatever is installed
    sys.path.insert(0, str(ROOT / "src"))

PEERS = ("quintet", "transformers")
DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
# Published shapes; "tiny" is for trying a script out.
SHAPES: dict[str, dict[str, int]] = {
    "gpt2": {"n_embd": 768, "n_layer": 12, "n_head": 12, "vocab_size": 50257, "n_positions": 1024},
    "gpt2-medium": {"n_embd": 1024, "n_layer": 24, "n_head": 16, "vocab_size": 50257, "n_positions": 1024},
    "tiny": {"n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 512, "n_positions": 1024},
}


def parser(description: str | None, *, shape: bool = True) -> argparse.ArgumentParser:
    """Return a parser with the options that benchmarks have in common."""
    made = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    made.add_argument("--threads", type=int, default=None, help="torch threads (default: every usable core)")
    made.add_argument("--rounds", type=int, default=5, help="alternating rounds that count; 0: the warm-up alone")
    if shape:
        made.add_argument("--model-shape", choices=tuple(SHAPES), default="gpt2")
        made.add_argument("--work-dir", type=Path, default=Path(tempfile.gettempdir()) / "quintet-benchmarks")
    return made


def checkpoint(work_dir: Path, shape: str) -> Path:
    """Return a folder with random float32 weights at that shape, made once."""
    folder = work_dir / shape
    if not (folder / "model.safetensors").exists():
        import torch

        from quintet.models.gpt2 import GPT2Config, GPT2LMHeadModel

        last = SHAPES[shape]["vocab_size"] - 1
        torch.manual_seed(0)
        model = GPT2LMHeadModel(GPT2Config(**SHAPES[shape], bos_token_id=last, eos_token_id=last))
        model.save_pretrained(folder)
    return folder


def load_model(peer: str, folder: Path, dtype: str) -> Any:
    """Load the checkpoint with one of the PEERS, in evaluation mode, set to decode without an end."""
    import torch

    if peer == "quintet":
        from quintet.auto import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, DTYPES[dtype])).eval()
    else:
        os.environ["HF_HUB_OFFLINE"] = "1"
        import transformers

        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, DTYPES[dtype])).eval()
    model.generation_config.eos_token_id = None
    return model


def set_threads(count: int | None) -> int:
    """Set torch's threads and return how many there are."""
    import torch

    from quintet.cli.machine import usable_cores

    torch.set_num_threads(count or usable_cores())
    return torch.get_num_threads()


def thread_counts(most: int | None) -> list[int]:
    """Return 1, 2, 4 and so on up to `most` (None: every usable core), which is the last."""
    from quintet.cli.machine import usable_cores

    most = most or usable_cores()
    return [*(1 << n for n in range(most.bit_length()) if 1 << n < most), most]


def alternate(
    runs: dict[str, Callable[[], float]], rounds: int, *, seconds: float = float("inf")
) -> dict[str, list[float]]:
    """Run all in turn, round after round, so that what else the machine does hits all of them alike.

    The order turns around every round. The first round warms up and does not count, unless it takes more than twice
    `seconds`: then it is the only one.
    """
    values: dict[str, list[float]] = {name: [] for name in runs}
    began, names = time.perf_counter(), list(runs)
    for number in range(rounds + 1):
        measured = {name: runs[name]() for name in (names if number % 2 else names[::-1])}
        spent = time.perf_counter() - began
        slow = number == 0 and spent > 2 * seconds
        if number or slow or rounds == 0:
            for name, value in measured.items():
                values[name].append(value)
        if slow or (values[names[0]] and spent > seconds):
            break
    return values


def ratio(values: dict[str, list[float]], over: str, under: str) -> float:
    """Return the median of the rounds' ratios."""
    return statistics.median(a / b for a, b in zip(values[over], values[under], strict=True))


def summary(values: dict[str, list[float]], digits: int = 4) -> dict[str, Any]:
    """Return median and range of each."""
    return {
        name: {"median": round(statistics.median(v), digits), "range": [round(min(v), digits), round(max(v), digits)]}
        for name, v in values.items()
    }


def peak_rss_mib() -> float:
    """Return the most memory this process has had resident (VmHWM), in MiB.

    Not `ru_maxrss`, which begins with that of the process that started this one.
    """
    found = re.search(r"^VmHWM:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    if found is None:
        raise RuntimeError("/proc/self/status has no VmHWM; this benchmark needs Linux.")
    return round(int(found[1]) / 1024, 1)


def forget_peak() -> None:
    """Let `peak_rss_mib` begin anew, with what is resident now."""
    Path("/proc/self/clear_refs").write_text("5")


def child_env(threads: int | None = None) -> dict[str, str]:
    """Return the environment of measured processes: this source tree, no network, so many threads."""
    paths = [str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "HF_HUB_OFFLINE": "1"}
    if threads:
        env["OMP_NUM_THREADS"] = str(threads)
    return env


def run_child(argv: Iterable[str], threads: int | None = None) -> tuple[float, dict[str, Any]]:
    """Run `python argv`; return the seconds until it printed its one JSON line, and that line.

    Raises:
        RuntimeError: it printed none.
    """
    command = [sys.executable, *argv]
    began = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=child_env(threads)) as process:
        line = process.stdout.readline() if process.stdout else ""
        seconds = time.perf_counter() - began
    if process.returncode or not line:
        raise RuntimeError(f"{shlex.join(command)} ended with exit code {process.returncode} and no result.")
    return seconds, json.loads(line)


def wall(argv: Iterable[str], env: dict[str, str]) -> float:
    """Return the seconds that `python argv` takes."""
    began = time.perf_counter()
    subprocess.run([sys.executable, *argv], check=True, stdout=subprocess.DEVNULL, env=env)
    return time.perf_counter() - began


def best_of(found: dict[str, float], peer: str) -> tuple[float, str]:
    """Return the least value of a peer, whose ways of running are keys that begin with its name, and which it is of."""
    return min((value, key) for key, value in found.items() if key.startswith(peer))


def bytes_per_step(model: Any, rows: int = 1, past: int = 0) -> int:
    """Return what a decoding step must read: weights, but no embedding that is not a head, and the cache.

    Args:
        model: With packed experts or others.
        rows: Texts. Of the experts those count that so many ask if each chooses as if at random.
        past: Tokens in the cache of each.
    """
    from quintet.cli.plan import kv_cache
    from quintet.quant.packed_experts import PackedExperts

    total = rows * kv_cache(model.config).numbers(past) * model.dtype.itemsize if past else 0
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings()
    for module in model.modules():
        share = 1.0
        if isinstance(module, PackedExperts):
            share = 1 - (1 - model.config.num_experts_per_tok / model.config.num_local_experts) ** rows
        for tensor in module.parameters(recurse=False):
            if tensor is embedding and getattr(head, "weight", None) is not embedding:
                continue
            if tensor is embedding and module is head:
                continue  # counted where it is the embedding
            total += int(tensor.numel() * tensor.element_size() * share)
    return total


def commit() -> str:
    """Return the commit of this tree, with a + when files differ from it."""

    def git(*args: str) -> str:
        try:
            return subprocess.run(
                ["git", "-C", str(ROOT), *args], capture_output=True, text=True, check=True
            ).stdout.strip()
        except (OSError, subprocess.CalledProcessError):
            return ""

    head = git("rev-parse", "--short", "HEAD")
    return f"{head}+" if head and git("status", "--porcelain", "--untracked-files=no") else head


def machine(threads: int | None) -> dict[str, Any]:
    """Return what a figure depends on besides the code."""
    from importlib.metadata import PackageNotFoundError, version

    from quintet.cli.machine import cpu
    from quintet.kernels.loader import status

    versions: dict[str, str | None] = {}
    for name in ("torch", "transformers"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = None
    facts = cpu()
    return {
        "cpu": facts["model"],
        "cores": facts["cores_usable"],
        "threads": threads or facts["cores_usable"],
        "level": status().level,
        "load": round(os.getloadavg()[0], 1),
        "python": sys.version.split()[0],
        **versions,
        "commit": commit(),
        "date": time.strftime("%Y-%m-%d"),
    }


def emit(benchmark: str, record: dict[str, Any], threads: int | None = None) -> None:
    """Print one result as a JSON line, with its command and the machine."""
    command = "python benchmarks/" + shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
    print(json.dumps({"benchmark": benchmark, **record, "command": command, "machine": machine(threads)}), flush=True)


def data_folder() -> Path | None:
    """Return the folder of texts (QUINTET_DATA, else ../shared/data), or None."""
    folder = Path(os.environ.get("QUINTET_DATA") or ROOT.parent / "shared" / "data")
    return folder if folder.is_dir() else None
