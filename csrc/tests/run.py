"""Builds the driver of the kernels and runs it on every level of instructions, by default under sanitizers.

    python csrc/tests/run.py                                  # addresses, undefined behaviour
    python csrc/tests/run.py --sanitize thread --threads 3    # data races
    python csrc/tests/run.py --sanitize "" --machine aarch64 --cxx aarch64-linux-gnu-g++ \
        --runner "qemu-aarch64-static -L /usr/aarch64-linux-gnu"    # another machine's instructions, emulated

Flags and sources are those of setup.py.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]
LACKING = 3  # what the driver returns for a level that the CPU does not have


def build_flags() -> ModuleType:
    """Return setup.py as a module."""
    spec = importlib.util.spec_from_file_location("quintet_setup", ROOT / "setup.py")
    if spec is None or spec.loader is None:
        raise SystemExit(f"{ROOT / 'setup.py'} is not there")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def call(command: list[str]) -> None:
    """Run a command; leave with what it said when it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{shlex.join(command)}\n{done.stderr[-4000:]}")


def build(options: argparse.Namespace, folder: Path) -> Path:
    """Compile the kernels and, with its pool of threads, the driver; return the program, or the library alone."""
    setup = build_flags()
    cxx = shlex.split(options.cxx) if options.cxx else setup.compiler()
    if cxx is None:
        raise SystemExit("there is no C++ compiler; name one with --cxx")
    checks = [f"-fsanitize={options.sanitize}", "-fno-sanitize-recover=all"] if options.sanitize else []
    common = [*setup.COMMON, f"-O{options.optimize}", "-g1", "-w", *checks]
    kernels = [(ROOT / source, setup.flags_of(source, options.machine)) for source in setup.sources(options.machine)]
    tests = ROOT / "csrc" / "tests"
    program = [] if options.package else [(tests / name, []) for name in ("driver.cpp", "inner.cpp", "attention.cpp")]
    pool = folder / "libgomp-pool.so"  # found by the name that a runtime of OpenMP has
    commands, objects = [], []
    for source, flags in [*kernels, *program]:
        objects.append(str(folder / f"{source.parent.name}-{source.stem}.o"))
        commands.append([*cxx, *common, *setup.defines(options.machine), *flags, "-c", str(source), "-o", objects[-1]])
    commands.append([*cxx, *common, "-shared", str(tests / "pool.cpp"), "-o", str(pool), "-lpthread"])
    with ThreadPoolExecutor(options.jobs) as jobs:
        list(jobs.map(call, commands))
    if options.package:
        call([*cxx, *checks, "-shared", *objects, "-o", str(folder / "_cpu.so"), "-ldl", "-lpthread"])
        return folder / "_cpu.so"
    driver = folder / "driver"
    call(
        [
            *cxx,
            *checks,
            "-Wl,--no-as-needed",
            *objects,
            str(pool),
            f"-Wl,-rpath,{folder}",
            "-ldl",
            "-lpthread",
            "-o",
            str(driver),
        ]
    )
    return driver


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sanitize", default="address,undefined", help='for -fsanitize; "" for none')
    parser.add_argument("--machine", default=platform.machine().lower(), help="x86_64, aarch64 or arm64")
    parser.add_argument("--cxx", help="compiler; by default the one of setup.py")
    parser.add_argument("--runner", default="", help="what runs the program, for another machine's")
    parser.add_argument("--levels", nargs="*", help="levels of instructions; by default all of the machine")
    parser.add_argument(
        "--package", type=Path, help="no driver: a copy of src/ is made here, with a library that is watched"
    )
    parser.add_argument("--optimize", default="1", help="0 compiles fastest")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--cases", type=int, default=400, help="of each operation")
    parser.add_argument("--threads", type=int, default=2, help="threads of the program that call kernels at once")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="compilers at once")
    return parser.parse_args()


def main() -> int:
    """Build and run; return 0 when every level that the CPU has is right."""
    options = arguments()
    levels = options.levels or build_flags().levels(options.machine)
    if not options.levels and "avx512" in levels:
        levels.append("amx")  # in the same object
    failed = 0
    with tempfile.TemporaryDirectory(prefix="quintet-driver-") as folder:
        driver = build(options, Path(folder))
        if options.package:
            ignored = shutil.ignore_patterns("__pycache__", "*.egg-info", "*.so")
            shutil.copytree(ROOT / "src", options.package, ignore=ignored, dirs_exist_ok=True)
            shutil.copy(driver, options.package / "quintet" / "kernels")
            return 0
        for level in levels:
            command = [
                *shlex.split(options.runner),
                str(driver),
                level,
                *map(str, (options.seed, options.cases, options.threads)),
            ]
            code = subprocess.run(command, check=False).returncode
            if code == LACKING:
                print(f"{level}: this CPU does not have it")
            elif code:
                print(f"{level}: failed with code {code}")
                failed = 1
            sys.stdout.flush()
    return failed


if __name__ == "__main__":
    sys.exit(main())
