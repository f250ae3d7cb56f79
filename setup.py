"""The part of the build that pyproject.toml has no words for: one shared object of C++, if there is a compiler.

Every source is compiled with the instructions of its level; which level runs is chosen at load. Neither torch nor
Python's headers are needed, so one wheel serves every version of both. Without a compiler quintet installs as pure
Python and computes in plain PyTorch; `quintet env` says which.
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

SOURCES = Path("csrc", "cpu")
COMMON = [
    "-std=c++17",
    "-O3",
    "-fPIC",
    "-fvisibility=default",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-Wno-psabi",
    "-Wall",
    "-Wno-maybe-uninitialized",
    "-Wno-uninitialized",
]
# Instructions of each level that a kind of machine may have; what is not named runs on every CPU of its kind.
X86_LEVELS = {
    "avx2": ["-mavx2", "-mfma", "-mf16c"],
    "avx512": [
        *("-mavx2", "-mfma", "-mf16c", "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512bf16"),
        "-mavx512vnni",
        "-mprefer-vector-width=512",
    ],
}
ARM_LEVELS: dict[str, list[str]] = {"neon": []}
LEVELS = {"x86_64": X86_LEVELS, "amd64": X86_LEVELS, "aarch64": ARM_LEVELS, "arm64": ARM_LEVELS}


def levels(machine: str) -> list[str]:
    """Levels of instructions that are built for a kind of machine."""
    return ["portable", *LEVELS.get(machine, {})]


def sources(machine: str) -> list[str]:
    """Files to compile for it."""
    names = [f"{prefix}{level}.cpp" for level in levels(machine) for prefix in ("", "inner_")]
    shared = ("library.cpp", "threads.cpp", "blocks.cpp", "attention.cpp", "head.cpp", "norms.cpp")
    return [str(SOURCES / name) for name in (*shared, *names)]


def flags_of(source: str, machine: str) -> list[str]:
    """What the compiler is told for one of them."""
    stem = Path(source).stem
    flags = LEVELS.get(machine, {}).get(stem.removeprefix("inner_"), [])
    # sums of products in loops that compilers turn into vectors
    return [*flags, "-ffp-contract=fast"] if stem.startswith("inner_") else flags


def defines(machine: str) -> list[str]:
    """What all files are told about the machine."""
    found = levels(machine)
    return ["-DQUINTET_X86"] if "avx2" in found else ["-DQUINTET_NEON"] if "neon" in found else []


def compiler() -> list[str] | None:
    """The C++ compiler: CXX, or the first that is found; None where there is none."""
    named = os.environ.get("CXX", "").split()
    found = [[name] for name in ("g++", "c++", "clang++")]
    return next((command for command in ([named] if named else found) if shutil.which(command[0])), None)


def up_to_date(made: Path, command: list[str]) -> bool:
    """Whether this command made an object, and nothing has changed since that it read (as -MD lists it)."""
    told, listed = made.with_suffix(".command"), made.with_suffix(".d")
    if not (made.is_file() and listed.is_file() and told.is_file()) or told.read_text() != shlex.join(command):
        return False
    files = shlex.split(listed.read_text().replace("\\\n", " ").partition(":")[2])
    since = told.stat().st_mtime_ns
    return all(os.path.exists(file) and os.stat(file).st_mtime_ns < since for file in files)


def compile_all(commands: dict[Path, list[str]], force: bool = False) -> None:
    """Make objects by their commands, all at once; with `force` those that are up to date too."""
    running = []
    for made, command in commands.items():
        if force or not up_to_date(made, command):
            made.with_suffix(".command").unlink(missing_ok=True)
            made.with_suffix(".started").write_text(
                shlex.join(command)
            )  # its time: what changes from now on was not read
            running.append((made, subprocess.Popen(command)))
    failed = [made for made, process in running if process.wait()]
    for made, _ in running:
        if made not in failed:
            made.with_suffix(".started").replace(made.with_suffix(".command"))
    if failed:
        raise OSError("the C++ compiler failed")


class Build(build_ext):
    """Compiles each source with its own flags, and links without any library of Python's."""

    def build_extension(self, ext: Extension) -> None:
        """Build `_cpu.so`; a failure is a warning, because the extension is optional."""
        cxx = compiler()
        if cxx is None:  # CXX names one that is not there
            raise OSError(f"CXX={os.environ.get('CXX')!r} was not found")
        folder = Path(self.build_temp)
        folder.mkdir(parents=True, exist_ok=True)
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        machine = platform.machine().lower()
        chosen = ["-arch", machine] if sys.platform == "darwin" else []  # a compiler there may make code of either kind
        commands = {}
        for source in ext.sources:
            made = folder / (Path(source).stem + ".o")
            flags = [*COMMON, *chosen, *defines(machine), *flags_of(source, machine)]
            commands[made] = [*cxx, *flags, "-MD", "-c", source, "-o", str(made)]
        compile_all(commands, bool(self.force))
        objects = map(str, commands)
        libraries = [] if sys.platform == "darwin" else ["-ldl", "-lpthread", "-s"]  # without names of what is inside
        subprocess.run([*cxx, *chosen, "-shared", *objects, "-o", str(target), *libraries], check=True)

    def get_ext_filename(self, fullname: str) -> str:
        """Without Python's version in the name: nothing of Python is in it."""
        return str(Path(*fullname.split("."))) + ".so"

    def run(self) -> None:
        """Build, and say what a failure means."""
        try:
            super().run()
        except (OSError, subprocess.CalledProcessError) as error:
            print(f"warning: {error}: quintet is installed without native kernels", file=sys.stderr)


class Wheel(bdist_wheel):
    """A wheel for every Python of this platform."""

    def get_tag(self) -> tuple[str, str, str]:
        """Python's version and ABI do not matter."""
        python, abi, system = super().get_tag()
        return (python, abi, system) if self.root_is_pure else ("py3", "none", system)


def extensions() -> list[Extension]:
    """The extension, or nothing where there is no compiler or the system is not one that it is written for."""
    if not sys.platform.startswith(("linux", "darwin")):
        return []
    if compiler() is None:
        print("warning: no C++ compiler: quintet is installed without native kernels", file=sys.stderr)
        return []
    headers = [str(path) for path in sorted(SOURCES.glob("*.h"))]
    return [Extension("quintet.kernels._cpu", sources(platform.machine().lower()), depends=headers, optional=True)]


if __name__ == "__main__":  # csrc/tests/run.py reads the flags above
    setup(ext_modules=extensions(), cmdclass={"build_ext": Build, "bdist_wheel": Wheel})
