"""Facts about this machine: processor, memory, and how fast memory is read. No torch at import."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from quintet.pages import ask_for_large_pages

__all__ = ["cpu", "library_versions", "memory", "peak_rss_mib", "read_bandwidth"]

MIB = 2**20

# The instructions that the speed of a language model hangs on, as /proc/cpuinfo and sysctl spell them.
ISA_FLAGS = (
    "sse4_2", "avx", "avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512bw", "avx512vl", "avx512_vnni",
    "avx512_bf16", "avx512_fp16", "amx_tile", "amx_int8", "amx_bf16",
    "asimd", "asimdhp", "asimddp", "bf16", "i8mm", "sve", "sve2", "sme",
)  # fmt: skip

LIBRARIES = ("torch", "safetensors", "tokenizers", "huggingface_hub", "numpy", "tqdm", "matplotlib", "transformers")


def library_versions() -> dict[str, str | None]:
    """Installed versions of what quintet uses, without importing any of it; None where one is not installed."""
    from importlib.metadata import PackageNotFoundError, version

    def installed(name: str) -> str | None:
        try:
            return version(name)
        except PackageNotFoundError:
            return None

    return {name: installed(name) for name in LIBRARIES}


def cpu() -> dict[str, Any]:
    """Model, instruction-set flags, cores and caches of the processor."""
    info = _read("/proc/cpuinfo")
    model = re.search(r"^(?:model name|Model|cpu model)\s*:\s*(.+)$", info, re.MULTILINE)
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", info, re.MULTILINE)
    found = set(flags[1].split()) if flags else set()
    name = model[1].strip() if model else platform.processor() or platform.machine()
    if sys.platform == "darwin":
        name = _sysctl("machdep.cpu.brand_string") or name
        found = {flag for flag in ("bf16", "i8mm") if _sysctl(f"hw.optional.arm.FEAT_{flag.upper()}") == "1"}
        found |= {"asimd"} if platform.machine() == "arm64" else set()
    return {
        "model": name,
        "architecture": platform.machine(),
        "isa": [flag for flag in ISA_FLAGS if flag in found],
        "cores_online": os.cpu_count(),
        "cores_usable": usable_cores(),
        "l3_mib": round(l3_bytes() / MIB, 1) or None,
    }


def usable_cores() -> int:
    """Cores this process may use: its affinity, and the quota of its container if there is one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _read("/sys/fs/cgroup/cpu.max").split()
    if len(quota) == 2 and quota[0].isdigit():
        cores = min(cores, max(1, round(int(quota[0]) / int(quota[1]))))
    return cores


def l3_bytes() -> int:
    """Size of the last-level cache, 0 where the system does not say."""
    size = re.fullmatch(r"(\d+)([KMG])", _read("/sys/devices/system/cpu/cpu0/cache/index3/size").strip())
    return int(size[1]) * {"K": 2**10, "M": 2**20, "G": 2**30}[size[2]] if size else 0


def memory() -> dict[str, int | None]:
    """Total and available memory in MiB; the limit of the container counts where there is one."""
    rows = dict(re.findall(r"^(\w+):\s+(\d+) kB$", _read("/proc/meminfo"), re.MULTILINE))
    total = int(rows["MemTotal"]) // 1024 if "MemTotal" in rows else _total_without_proc()
    free = int(rows["MemAvailable"]) // 1024 if "MemAvailable" in rows else None
    limit, used = _read("/sys/fs/cgroup/memory.max").strip(), _read("/sys/fs/cgroup/memory.current").strip()
    if limit.isdigit() and total is not None and int(limit) // MIB < total:
        total = int(limit) // MIB
        if used.isdigit() and free is not None:
            free = min(free, max(0, total - int(used) // MIB))
    return {"total_mib": total, "available_mib": free}


def _total_without_proc() -> int | None:
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // MIB
    return None


def peak_rss_mib() -> float | None:
    """The most memory that this process has had resident, in MiB; None where the system does not say.

    Linux: VmHWM of /proc, which starts at zero in a new program. `getrusage` is for other systems only: on Linux its
    figure is inherited over fork and exec, so a small child of a large parent would look large.
    """
    status = re.search(r"^VmHWM:\s+(\d+) kB$", _read("/proc/self/status"), re.MULTILINE)
    if status:
        return round(int(status[1]) / 1024, 1)
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (MIB if sys.platform == "darwin" else 1024), 1)


def read_bandwidth(*, seconds: float = 1.5, size: int | None = None) -> dict[str, float]:
    """Measure how fast this machine reads memory, with all of torch's threads; the best of several passes.

    Two ways of reading are tried, and the faster one counts: a sum, and the matrix-vector product that writing a
    token mostly consists of. Imports torch.

    Args:
        seconds: For how long, at least two passes each.
        size: Bytes of the buffer; by default four times the last-level cache, 256 MiB or more, and no more than a
            quarter of the memory that is available.

    Returns:
        `gb_s` (10^9 bytes a second), `buffer_mib` and `threads`.
    """
    import torch

    if size is None:
        size = max(256 * MIB, 4 * l3_bytes())
        available = memory()["available_mib"]
        if available is not None:
            size = max(16 * MIB, min(size, available * MIB // 4))
    rows = size // (4 * 4096)
    matrix = torch.empty(rows, 4096)
    ask_for_large_pages(matrix)  # as for weights
    matrix.fill_(1)
    vector = torch.ones(4096)
    best = 0.0
    with torch.inference_mode():
        for read in (matrix.sum, lambda: torch.mv(matrix, vector)):
            read()
            end, passes = time.perf_counter() + seconds / 2, 0
            while passes < 2 or time.perf_counter() < end:
                began = time.perf_counter()
                read()
                best = max(best, matrix.nbytes / (time.perf_counter() - began))
                passes += 1
    return {
        "gb_s": round(best / 1e9, 1),
        "buffer_mib": round(matrix.nbytes / MIB, 1),
        "threads": torch.get_num_threads(),
    }


def _read(path: str) -> str:
    """Contents of a small system file, empty where there is none."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _sysctl(name: str) -> str:
    try:
        done = subprocess.run(["sysctl", "-n", name], capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip()
