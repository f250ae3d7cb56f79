"""What the sources may hold: sizes, and calls that could run what a file says."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import quintet

SOURCE = Path(quintet.__file__).parent
FILES = sorted(SOURCE.rglob("*.py"))
LONGEST_FILE, LONGEST_BODY = 400, 60

# Longer files: why. A family is one file, read from top to bottom, and may be longer than others.
LONG: dict[str, str] = {"__init__.py": "one line for each public name, where type checkers and `__all__` want them"}
LONGEST_FAMILY = 850

UNSAFE_MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "shelve", "marshal", "joblib", "imp", "code"}
UNSAFE_CALLS = {"eval", "exec", "compile", "__import__", "input"}
# File that asks a person in the shell: why.
ASKS = {"cli/terminal.py": "quintet chat reads what its user types"}
# File with a call of torch.load: why.
PICKLES = {"checkpoint/torchbin.py": "pytorch_model.bin, only when asked for, with weights_only"}


def name_of(path: Path) -> str:
    return path.relative_to(SOURCE).as_posix()


def calls() -> Iterator[tuple[str, ast.Call, str]]:
    """Every call with its file and the dotted name of what is called."""
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, (ast.Name, ast.Attribute)):
                yield name_of(path), node, ast.unparse(node.func)


def test_files_are_short() -> None:
    sizes = {name_of(path): len(path.read_text(encoding="utf-8").splitlines()) for path in FILES}
    limit = {name: LONGEST_FAMILY if name.startswith("models/") else LONGEST_FILE for name in sizes}
    long = {name for name, lines in sizes.items() if lines > limit[name]}
    assert long == set(LONG), f"split it, or say why not: {long ^ set(LONG)}"


def test_functions_are_short() -> None:
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                body = node.body[1:] if ast.get_docstring(node) else node.body
                lines = (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0
                assert lines <= LONGEST_BODY, f"{name_of(path)}: {node.name} has {lines} lines"


def test_every_file_says_what_it_is() -> None:
    for path in FILES:
        text = path.read_text(encoding="utf-8")
        if text.strip():
            assert ast.get_docstring(ast.parse(text)), f"{name_of(path)} has no docstring"


def test_nothing_is_unpickled_or_run() -> None:
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            modules += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            for module in modules:
                assert module.partition(".")[0] not in UNSAFE_MODULES, f"{name_of(path)}:{node.lineno}: {module}"
    for name, node, called in calls():
        where = f"{name}:{node.lineno}: {called}"
        assert called not in UNSAFE_CALLS or name in ASKS and called == "input", where
        assert called not in ("os.system", "os.popen", "torch.hub.load", "torch.jit.load"), where
        keywords = {keyword.arg: keyword.value for keyword in node.keywords}
        assert not (isinstance(keywords.get("shell"), ast.Constant) and keywords["shell"].value), where  # type: ignore[attr-defined]
        assert "allow_pickle" not in keywords or keywords["allow_pickle"].value is False, where  # type: ignore[attr-defined]
        if called in ("torch.load", "torch.save", "np.load", "numpy.load"):
            assert name in PICKLES, where
            assert keywords["weights_only"].value is True, where  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", [*LONG, *PICKLES])
def test_files_with_a_reason_exist(name: str) -> None:
    assert (SOURCE / name).is_file()


# Where layers ask which device they are on: why. What a module computes, and how weights are stored, never depends on
# it in a family or a layer; twins (fused/, quant/) are put in the place of modules for that.
ON_DEVICE = {
    ("layers/conv1d.py", "lay_out"): "the order in memory that products on a CPU want; the loader asks for it",
    ("layers/experts.py", "forward"): "a look at who asks which expert makes a GPU wait",
    ("layers/inputs.py", "check_ids"): "a look at ids makes a GPU wait",
    ("layers/inputs.py", "_check_cache_position"): "a look at positions makes a GPU wait",
    ("layers/masks.py", "_read"): "a look at a cache's length makes a GPU wait",
    ("layers/masks.py", "padding_of"): "a look at padding makes a GPU wait",
    ("layers/attention/eager.py", "eager"): "autocast is switched off by the name of a device",
    ("layers/attention/flash.py", "_on_gpu"): "the package is for GPUs",
    ("layers/attention/flex.py", "flex"): "torch has no gradients of it on a CPU, and compiles it for others",
    ("layers/attention/sdpa.py", "_is_slow"): "which of torch's kernels for a CPU are slow",
    ("layers/attention/sdpa.py", "_shares_keys"): "which of torch's kernels read grouped heads in place",
    ("layers/attention/sinks.py", "lse_kernels"): "which of torch's kernels give the log-sum-exp",
}
# Names that only somebody who asks how weights are stored needs.
STORED = {"quantization_config", "is_quantized", "weight_packed", "weight_scale", "dequantize", "unpack"}


def device_questions(tree: ast.AST) -> Iterator[str]:
    """Functions that ask for the kind of a device; "meta" is none, as nothing has values there."""
    for function in ast.walk(tree):
        if not isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        meta = {
            id(side)
            for node in ast.walk(function)
            if isinstance(node, ast.Compare) and "'meta'" in map(ast.unparse, node.comparators)
            for side in ast.walk(node)
        }
        for node in ast.walk(function):
            if isinstance(node, ast.Attribute) and id(node) not in meta:
                owner = ast.unparse(node.value).rpartition(".")[2]
                if node.attr in ("is_cuda", "is_cpu") or (node.attr == "type" and "device" in owner):
                    yield function.name


def test_families_and_layers_ask_neither_for_device_nor_for_format() -> None:
    found = set()
    for path in FILES:
        name = name_of(path)
        if name.startswith(("models/", "layers/")):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            found |= {(name, function) for function in device_questions(tree)}
            for node in ast.walk(tree):
                said = getattr(node, "attr", None) or (node.value if isinstance(node, ast.Constant) else None)
                assert said not in STORED, f"{name}:{node.lineno}: {said}"  # type: ignore[attr-defined]
    assert found == set(ON_DEVICE), f"say why, or ask elsewhere: {found ^ set(ON_DEVICE)}"


@pytest.mark.parametrize(
    ("code", "asks"),
    [
        ("def f(x):\n    return x.device.type == 'cpu'", ["f"]),
        ("def f(device):\n    return device.type", ["f"]),
        ("def f(x):\n    return x.is_cuda and x.weight.is_cpu", ["f", "f"]),
        ("def f(x):\n    return x.weight.device.type != 'meta' or x.to(x.device)", []),
    ],
)
def test_questions_about_devices_are_found(code: str, asks: list[str]) -> None:
    assert list(device_questions(ast.parse(code))) == asks
