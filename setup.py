"""The part of the build that pyproject.toml has no words for: one shared object of C++, if there is a compiler.

Every source is compiled with the instructions of its level; which level runs is chosen at load. Neither torch nor
Python's headers are needed, so one wheel serves every version of both. Without a compiler quintet installs as pure
Python and computes in plain PyTorch; `quintet env` says which.
"""

from __future__ import annotations

import os
import platform
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
X86 = platform.machine().lower() in ("x86_64", "amd64")
# Instructions of each source; what is not named runs on every CPU.
LEVELS = {
    "avx2": ["-mavx2", "-mfma", "-mf16c"],
    "avx512": [
        *("-mavx2", "-mfma", "-mf16c", "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512bf16"),
        "-mprefer-vector-width=512",
    ],
}


def compiler() -> list[str] | None:
    """The C++ compiler: CXX, or the first that is found; None where there is none."""
    named = os.environ.get("CXX", "").split()
    found = [[name] for name in ("g++", "c++", "clang++")]
    return next((command for command in ([named] if named else found) if shutil.which(command[0])), None)


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
        defines = ["-DQUINTET_X86"] if X86 else []
        running = []
        for source in ext.sources:
            made = folder / (Path(source).stem + ".o")
            stem = Path(source).stem
            flags = [*COMMON, *defines, *LEVELS.get(stem.removeprefix("inner_"), [])]
            if stem.startswith("inner_"):
                flags.append("-ffp-contract=fast")  # sums of products in loops that compilers turn into vectors
            running.append((made, subprocess.Popen([*cxx, *flags, "-c", source, "-o", str(made)])))
        codes = [process.wait() for _, process in running]
        if any(codes):
            raise OSError("the C++ compiler failed")
        objects = [str(made) for made, _ in running]
        subprocess.run([*cxx, "-shared", *objects, "-o", str(target), "-ldl", "-lpthread"], check=True)

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
    if not sys.platform.startswith("linux"):
        return []
    if compiler() is None:
        print("warning: no C++ compiler: quintet is installed without native kernels", file=sys.stderr)
        return []
    levels = ["portable", *(LEVELS if X86 else ())]
    names = ["library.cpp", "blocks.cpp", *(f"{prefix}{level}.cpp" for level in levels for prefix in ("", "inner_"))]
    headers = [str(path) for path in sorted(SOURCES.glob("*.h"))]
    sources = [str(SOURCES / name) for name in names]
    return [Extension("quintet.kernels._cpu", sources, depends=headers, optional=True)]


setup(ext_modules=extensions(), cmdclass={"build_ext": Build, "bdist_wheel": Wheel})
