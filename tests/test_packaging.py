"""Wheel and sdist: what is in them, that they install and run; the Makefile: what it installs, and when."""

from __future__ import annotations

import ast
import email
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import time
import zipfile
from pathlib import Path

import pytest

import quintet

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "quintet"
MODEL_FILES = ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json")
MAX_WHEEL_BYTES = 10_000_000


def run(command: list[str], **kwargs) -> str:
    """Run a command and return what it printed on stdout; fail with what it said otherwise."""
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False, **kwargs)
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def source_files() -> list[str]:
    """Files of the package, relative to src/."""
    found = (path for path in PACKAGE.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    found = (path for path in found if path.suffix != ".so")  # made here, by an editable installation
    return sorted(path.relative_to(PACKAGE.parent).as_posix() for path in found)


# What a build needs, besides a compiler.
BUILDERS = ("setuptools", "_distutils_hack", "build", "pyproject_hooks", "packaging")


@pytest.fixture(scope="module")
def builder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A Python that can build and has nothing else: neither torch nor numpy."""
    folder = tmp_path_factory.mktemp("builder")
    run([sys.executable, "-m", "venv", "--without-pip", str(folder)])
    site = Path(sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)}))
    for path in Path(sysconfig.get_path("purelib")).iterdir():
        name = path.name.partition("-")[0]
        if path.name in BUILDERS or (path.suffix == ".dist-info" and name in BUILDERS):
            (site / path.name).symlink_to(path)
    python = str(folder / "bin" / "python")
    said = subprocess.run([python, "-c", "import torch"], capture_output=True, text=True, check=False).stderr
    assert "No module named 'torch'" in said
    return python


@pytest.fixture(scope="module")
def built(builder: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist, and the wheel that was built from it; without torch, and without a network."""
    folder = tmp_path_factory.mktemp("build")
    tree = folder / "tree"
    shutil.copytree(ROOT / "src", tree / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info", "*.so"))
    shutil.copytree(ROOT / "csrc", tree / "csrc")
    shutil.copytree(ROOT / "tests", tree / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy(path, tree)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    if HAS_COMPILER:  # the one that would be taken, in a hurry
        compiler = next(found for found in map(shutil.which, ("g++", "c++", "clang++")) if found)
        (folder / "quick").write_text(f'#!/bin/sh\nexec {compiler} "$@" -O0\n')
        (folder / "quick").chmod(0o755)
        environment["CXX"] = str(folder / "quick")
    command = [builder, "-m", "build", "--no-isolation", "--outdir", str(folder / "dist"), str(tree)]
    run(command, env={**environment, "PIP_NO_INDEX": "1"})
    return folder / "dist"


HAS_COMPILER = sys.platform.startswith(("linux", "darwin")) and any(map(shutil.which, ("g++", "c++", "clang++")))


def only(folder: Path, pattern: str) -> Path:
    (path,) = folder.glob(pattern)
    return path


def test_the_wheel_has_every_file_of_the_package_and_nothing_else(built: Path):
    wheel = only(built, "*.whl")
    platform = sysconfig.get_platform().replace("-", "_").replace(".", "_") if HAS_COMPILER else "any"
    assert wheel.name == f"quintet-{quintet.__version__}-py3-none-{platform}.whl"
    with zipfile.ZipFile(wheel) as file:
        names = file.namelist()
    inside = sorted(name for name in names if ".dist-info/" not in name)
    native = ["quintet/kernels/_cpu.so"] if HAS_COMPILER else []
    assert inside == sorted(source_files() + native)
    assert "quintet/py.typed" in inside
    assert {f"quintet/storyteller/{name}" for name in MODEL_FILES} <= set(inside)
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
    assert wheel.stat().st_size <= MAX_WHEEL_BYTES


def test_the_wheel_says_what_it_is(built: Path):
    with zipfile.ZipFile(only(built, "*.whl")) as file:
        (name,) = (name for name in file.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = email.message_from_bytes(file.read(name))
        entry_points = file.read(name.replace("METADATA", "entry_points.txt")).decode()
    assert metadata["Name"] == "quintet" and metadata["Version"] == quintet.__version__
    assert metadata["Requires-Python"] == ">=3.10" and metadata["License-Expression"] == "Apache-2.0"
    assert "quintet = quintet.cli.main:main" in entry_points


def test_the_sdist_builds_and_carries_the_tests(built: Path):
    with tarfile.open(only(built, "*.tar.gz")) as file:
        names = {name.split("/", 1)[1] for name in file.getnames() if "/" in name}
    wanted = ["LICENSE", "README.md", "CHANGELOG.md", "Makefile", "constraints.txt", "pyproject.toml"]
    wanted += ["tests/conftest.py", "tests/test_packaging.py", *(f"src/{name}" for name in source_files())]
    wanted += ["setup.py", *(path.relative_to(ROOT).as_posix() for path in (ROOT / "csrc").rglob("*.*"))]
    assert not set(wanted) - names
    assert not [name for name in names if name.endswith((".so", ".o"))]


@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no g++")
def test_only_what_changed_is_compiled_again(tmp_path: Path):
    spec = importlib.util.spec_from_file_location("quintet_setup", ROOT / "setup.py")
    setup = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(setup)
    source, header, made = (tmp_path / "a b" / name for name in ("one.cpp", "one.h", "one.o"))
    header.parent.mkdir()
    source.write_text('#include "one.h"\nint one() { return 1; }\n')
    command = ["g++", "-MD", "-c", str(source), "-o", str(made)]

    def write(text: str) -> None:
        header.write_text(text)
        time.sleep(0.02)  # what is as old as the command counts as changed, and clocks of files may tick slowly

    def compiled(command: list[str], force: bool = False) -> bool:
        before = made.stat().st_mtime_ns if made.exists() else None
        setup.compile_all({made: command}, force)
        return made.stat().st_mtime_ns != before

    write("int one();\n")
    assert compiled(command) and not compiled(command)
    assert compiled([*command, "-O1"]) and not compiled([*command, "-O1"])
    assert compiled(command) and compiled(command, force=True)
    write("int one();  // changed\n")
    assert compiled(command) and not compiled(command)
    write("broken\n")
    for _ in range(2):  # an object of an earlier source does not hide it
        with pytest.raises(OSError, match="the C\\+\\+ compiler failed"):
            setup.compile_all({made: command})
    write("int one();\n")
    assert compiled(command)


def bare_path(tmp_path: Path) -> str:
    """A PATH without any compiler."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("sh", "uname"):
        (tools / name).symlink_to(shutil.which(name) or "")
    for name in ("g++", "gcc", "c++", "cc", "clang", "clang++"):
        assert shutil.which(name, path=str(tools)) is None
    return str(tools)


# Variables that this test must not hand on to a build and an installation of its own.
OURS = ("PYTHONPATH", "CXX", "QUINTET_NATIVE", "QUINTET_ISA")


@pytest.mark.parametrize("broken", [False, True], ids=["no compiler", "a compiler that fails"])
def test_without_a_compiler_it_is_built_as_pure_python(broken: bool, tmp_path: Path):
    tree = tmp_path / "tree"
    shutil.copytree(ROOT / "src", tree / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info", "*.so"))
    shutil.copytree(ROOT / "csrc", tree / "csrc")
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy(path, tree)
    path = bare_path(tmp_path)
    if broken:
        (tmp_path / "bin" / "g++").write_text("#!/bin/sh\nexit 1\n")
        (tmp_path / "bin" / "g++").chmod(0o755)
    environment = {name: value for name, value in os.environ.items() if name not in OURS}
    made = subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", str(tmp_path / "dist"), str(tree)],
        **{"capture_output": True, "text": True, "check": False, "env": {**environment, "PATH": path}},
    )
    assert made.returncode == 0, made.stderr
    said = made.stdout + made.stderr
    assert ("without native kernels" in said) or not sys.platform.startswith(("linux", "darwin"))
    wheel = only(tmp_path / "dist", "*.whl")
    assert broken or wheel.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as file:
        file.extractall(tmp_path / "installed")
    assert not list((tmp_path / "installed").rglob("*.so"))
    environment["PYTHONPATH"] = str(tmp_path / "installed")
    said = run([sys.executable, "-m", "quintet", "env", "--no-bandwidth"], env=environment, cwd=tmp_path)
    assert "plain PyTorch (not built: there was no C++ compiler" in said


def declared() -> dict[str, set[str]]:
    """Names of the requirements by extra; "" holds those without one."""
    text = re.sub("#.*", "", (ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    groups = {"": re.search(r"^dependencies = \[\n(.*?)^\]", text, re.MULTILINE | re.DOTALL)[1]}
    extras = re.search(r"^\[project.optional-dependencies\]\n(.*?)^\[project", text, re.MULTILINE | re.DOTALL)[1]
    groups |= dict(re.findall(r"^(\w+) = \[(.*?)\]$", extras, re.MULTILINE | re.DOTALL))
    return {extra: set(re.findall(r'"([\w-]+)', lines)) for extra, lines in groups.items()}


def test_what_is_imported_is_declared_and_what_is_declared_is_imported():
    imported: set[str] = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                imported.add(node.module.split(".")[0])
    outside = imported - set(sys.stdlib_module_names) - {"quintet"}
    assert declared()[""] <= outside, "declared and not used"
    optional = set().union(*(declared()[extra] for extra in ("train", "eval", "structured", "bitsandbytes", "torchao")))
    extras = {name.replace("-", "_") for name in optional}
    assert outside <= declared()[""] | extras, "used and not declared"


def test_every_requirement_is_pinned_for_the_tests():
    pins = set(re.findall(r"^([\w-]+)==", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE))
    assert set().union(*declared().values()) - {"quintet"} <= pins


def test_continuous_integration_runs_what_a_developer_runs():
    script = ROOT / ".ci" / "run"
    if not script.exists():
        pytest.skip("an sdist has no .ci folder")
    assert os.access(script, os.X_OK)
    lines = [line for line in script.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    assert lines[0] == "set -euo pipefail" and lines[-1] == "exec make test" and len(lines) == 3


needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


@needs_make
def test_make_installs_again_only_when_the_requirements_changed(tmp_path: Path):
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)

    def planned(target: str) -> str:
        return run(["make", "-n", target], cwd=tmp_path, env={"PATH": os.environ["PATH"]})

    assert "-m venv .venv" in planned("demo") and '-e ".[dev]"' in planned("test")
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    for path in (python, tmp_path / ".venv" / ".installed"):
        path.touch()
    assert "pip install" not in planned("demo") and "venv " not in planned("demo")
    assert "pip install" in planned("test")
    (tmp_path / ".venv" / ".installed-dev").touch()
    assert "pip install" not in planned("test")
    later = python.stat().st_mtime + 10
    os.utime(tmp_path / "constraints.txt", (later, later))
    assert "pip install" in planned("demo") and "pip install" in planned("test")


@needs_make
def test_make_passes_a_prompt_on_as_it_is(tmp_path: Path):
    """Quotes, dollars and backquotes in PROMPT reach the program and not the shell."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    for name in ("pyproject.toml", "constraints.txt"):
        (tmp_path / name).touch()
    tools = tmp_path / ".venv" / "bin"
    tools.mkdir(parents=True)
    (tools / "quintet").write_text('#!/bin/sh\nprintf "%s|" "$@"\n')
    (tools / "quintet").chmod(0o755)
    for path in (tools / "python", tmp_path / ".venv" / ".installed"):
        path.touch()
    prompt = """It's "$(touch gotcha)" `touch gotcha`;"""
    out = run(["make", "demo"], cwd=tmp_path, env={"PATH": os.environ["PATH"], "PROMPT": prompt.replace("$", "$$")})
    assert out == f"generate|{prompt}|"
    assert not (tmp_path / "gotcha").exists()


@pytest.fixture(scope="module")
def bare_venv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new environment that borrows the libraries of this one, but not its quintet (.pth files there are not read)."""
    folder = tmp_path_factory.mktemp("venv")
    run([sys.executable, "-m", "venv", "--without-pip", str(folder)])
    site = sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)})
    (Path(site) / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("pattern", ["*.whl", "*.tar.gz"])
def test_it_installs_in_a_new_environment_and_tells_a_story(pattern: str, built: Path, bare_venv: Path, tmp_path: Path):
    tools = bare_venv / "bin"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    run(
        [str(tools / "python"), "-m", "pip", "install", "--no-deps", "--no-build-isolation", "--force-reinstall"]
        + ["--quiet", str(only(built, pattern))],
        env=environment,
    )
    where = run([str(tools / "python"), "-c", "import quintet; print(quintet.__file__)"], cwd=tmp_path, env=environment)
    assert Path(where.strip()).is_relative_to(bare_venv)
    text = run([str(tools / "quintet"), "generate", "Once", "-n", "16", "--seed", "1"], cwd=tmp_path, env=environment)
    assert text.startswith("Once") and len(text) > 20


@pytest.mark.slow
@needs_make
@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_make_demo_in_a_fresh_clone_without_a_compiler(tmp_path: Path):
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    clone = tmp_path / "clone"
    run(["git", "clone", "--quiet", str(ROOT), str(clone)])
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("make", "sh", "touch", "uname"):
        (tools / name).symlink_to(shutil.which(name) or "")
    (tools / "python3").symlink_to(getattr(sys, "_base_executable", sys.executable))
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment["PATH"] = str(tools)
    for name in ("g++", "gcc", "c++", "cc", "clang"):
        assert shutil.which(name, path=str(tools)) is None

    make = [str(tools / "make"), "demo"]
    first = run(make, cwd=clone, env=environment)
    assert "installing" in first and "Once upon a time" in first
    done = subprocess.run(make, cwd=clone, env=environment, capture_output=True, text=True, check=True)
    assert "installing" not in done.stdout and done.stdout.startswith("Once upon a time")
    assert re.search(r"tokens/s", done.stderr)


# --- wheels by cibuildwheel, which is not run here -------------------------------------------------------------------


def test_the_table_of_cibuildwheel_says_what_the_page_says() -> None:
    """Linux on x86-64 and 64-bit ARM, macOS on ARM; and what it installs and runs is there."""
    tomllib = pytest.importorskip("tomllib", reason="Python 3.11 and newer read TOML")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    table, extras = project["tool"]["cibuildwheel"], project["project"]["optional-dependencies"]
    builds = [name.partition("-") for name in table["build"].split()]
    assert sorted(machine for _, _, machine in builds) == ["macosx_arm64", "manylinux_aarch64", "manylinux_x86_64"]
    page = " ".join((ROOT / "docs" / "kernels.md").read_text(encoding="utf-8").split())
    assert "Linux on x86-64 and 64-bit ARM, macOS on ARM." in page
    (version,) = {python for python, _, _ in builds}  # one: nothing of Python is in what is built
    major, minor = re.fullmatch(r"cp(\d)(\d+)", version).groups()  # type: ignore[union-attr]
    assert f"Programming Language :: Python :: {major}.{minor}" in project["project"]["classifiers"]
    linux = table["linux"]
    for _, _, machine in builds:
        if machine.startswith("manylinux"):
            image = linux[f"{machine.replace('_', '-', 1)}-image"]
            assert image == "manylinux_2_28", "older ones have a compiler without AVX-512 BF16"
    assert set(table["test-extras"]) <= set(extras)
    assert set(table["test-requires"]) <= set(extras["dev"])
    env, tests = (command.split() for command in table["test-command"])
    assert env[0] in project["project"]["scripts"] and env[1] == "env"
    assert tests[0] == "pytest" and (ROOT / tests[-1].removeprefix("{project}/")).is_dir()
    known = {"build", "test-extras", "test-requires", "test-command", "linux"}
    assert set(table) == known and set(linux) == {
        *("manylinux-x86_64-image", "manylinux-aarch64-image", "test-environment")
    }
