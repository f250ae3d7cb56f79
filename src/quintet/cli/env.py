"""`quintet env`: what this machine and this installation offer, for bug reports and for judging speeds."""

from __future__ import annotations

import argparse
import os
import platform
import sys
from typing import Any

from quintet import __version__
from quintet.cli import machine
from quintet.cli.common import add_examples, add_json, print_json, print_table

__all__ = ["add_arguments", "collect", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.usage = "%(prog)s [options]"
    add_examples(
        parser,
        "quintet env",
        "quintet env --json > machine.json",
        "quintet env --no-bandwidth     # at once: without the two seconds of measuring memory",
    )
    add_json(parser, "everything")
    parser.add_argument("--no-bandwidth", action="store_true", help="do not measure how fast memory is read")


def run(args: argparse.Namespace) -> int:
    """Collect the facts and print them."""
    facts = collect(bandwidth=not args.no_bandwidth)
    if args.json:
        print_json(facts)
    else:
        print_table(_rows(facts))
    return 0


def collect(*, bandwidth: bool = True) -> dict[str, Any]:
    """Return everything that `quintet env` prints. Imports torch."""
    import torch

    from quintet.hub import cache_folder, is_offline
    from quintet.kernels import loader
    from quintet.layers.attention import usable_backends

    kernels = loader.status()
    return {
        "versions": {"quintet": __version__, **machine.library_versions()},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": machine.cpu(),
        "memory": machine.memory(),
        "read_bandwidth": machine.read_bandwidth() if bandwidth else None,
        "torch": {
            "threads": torch.get_num_threads(),
            "cpu_capability": torch.backends.cpu.get_cpu_capability(),
            "mkl": torch.backends.mkl.is_available(),
            "onednn": torch.backends.mkldnn.is_available(),
            "cuda": torch.version.cuda,
            "devices": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        },
        "attention": usable_backends(),
        "kernels": {
            **{"native": kernels.native, "level": kernels.level, "threads": kernels.threads, "reason": kernels.reason},
            "operations": dict.fromkeys(loader.NATIVE_OPS, f"native {kernels.level}" if kernels.native else "PyTorch"),
        },
        "cache_folder": str(cache_folder()),
        "offline": is_offline(),
        "environment": {
            name: os.environ[name]
            for name in (
                "HF_HOME",
                "HF_HUB_CACHE",
                "HF_HUB_OFFLINE",
                "OMP_NUM_THREADS",
                "MKL_NUM_THREADS",
                "QUINTET_NATIVE",
                "QUINTET_ISA",
            )
            if name in os.environ
        },
        "executable": sys.executable,
    }


def _rows(facts: dict[str, Any]) -> list[tuple[str, str]]:
    """The facts as lines of a table."""
    cpu, memory, torch_facts, speed = facts["cpu"], facts["memory"], facts["torch"], facts["read_bandwidth"]
    versions = dict(facts["versions"])
    l3 = f", {cpu['l3_mib']:g} MiB L3" if cpu["l3_mib"] else ""
    built = ", ".join(
        [torch_facts["cpu_capability"]]
        + [name for name, there in (("MKL", torch_facts["mkl"]), ("oneDNN", torch_facts["onednn"])) if there]
        + [f"CUDA {torch_facts['cuda']}" if torch_facts["cuda"] else "no CUDA"]
    )
    rows = [
        ("quintet", versions.pop("quintet")),
        ("Python", f"{facts['python']} ({facts['executable']})"),
        ("system", facts["platform"]),
        ("libraries", ", ".join(f"{name} {number}" for name, number in versions.items() if number)),
        ("torch", built),
        ("CPU", f"{cpu['model']} ({cpu['architecture']}{l3})"),
        ("instructions", " ".join(cpu["isa"]) or "unknown"),
        (
            "cores",
            f"{cpu['cores_usable']} usable of {cpu['cores_online']}; torch uses {torch_facts['threads']} threads",
        ),
        ("memory", f"{_gib(memory['total_mib'])} in all, {_gib(memory['available_mib'])} available"),
    ]
    if speed:
        how = f"{speed['threads']} threads, best pass over {speed['buffer_mib']:g} MiB"
        rows.append(("memory read", f"{speed['gb_s']:g} GB/s ({how})"))
    rows += [
        ("GPUs", ", ".join(torch_facts["devices"]) or "none"),
        ("attention", ", ".join(facts["attention"])),
        ("kernels", _kernels(facts["kernels"])),
        ("model cache", facts["cache_folder"] + (" (offline)" if facts["offline"] else "")),
    ]
    rows += [(name, value) for name, value in facts["environment"].items()]
    return rows


def _kernels(facts: dict[str, Any]) -> str:
    """One line: what computes each operation, and why."""
    if not facts["native"]:
        return f"plain PyTorch ({facts['reason']})"
    names = ", ".join(facts["operations"])
    return f"native {facts['level']} ({facts['reason']}; threads of {facts['threads'] or 'none'}): {names}"


def _gib(mib: int | None) -> str:
    return "unknown" if mib is None else f"{mib / 1024:.1f} GiB"
