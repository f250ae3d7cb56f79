"""Who may import whom, read from the sources: a rule in a table, and the few exceptions with their reasons."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import quintet
from quintet.cli.main import COMMANDS

SOURCE = Path(quintet.__file__).parent

# From the top to the bottom: a part may import what stands in a lower row, never what stands beside it or above.
ROWS = """
    __init__ __main__
    cli
    integrations
    training evaluate convert pipelines server
    engine
    auto
    models
    heads
    modeling
    embeddings fused losses
    quant
    generation checkpoint
    tokenizers
    chat
    swap
    layers
    outputs
    cache
    kernels
    config
    hub
    rules family rope paths pages
    errors
"""
ROW = {part: row for row, parts in enumerate(ROWS.split("\n")) for part in parts.split()}

# Parts that may import less than what stands below them.
ONLY: dict[str, set[str]] = {
    # No torch: a tokenizer, a configuration and a hub are used where there is none to load.
    "tokenizers": {"chat", "hub", "config", "rules", "family", "errors"},
    "chat": {"hub", "config", "family", "errors"},
    # A streamer takes any tokenizer, a loop any model.
    "generation": {"cache", "layers", "outputs", "config", "hub", "errors"},
    "checkpoint": {"layers", "config", "hub", "family", "pages", "errors"},
    "fused": {"quant", "swap", "layers", "cache", "kernels", "family", "errors"},
    "quant": {"checkpoint", "swap", "layers", "kernels", "pages", "errors"},
    "embeddings": {"layers", "config", "errors"},
    # Families are data and modules; text is not their business.
    "models": {
        *("heads", "modeling", "losses", "generation", "layers", "outputs", "cache"),
        *("config", "rules", "family", "rope", "errors"),
    },
    "losses": {"config", "errors"},
    "heads": {"modeling", "losses", "layers", "outputs", "config", "family", "errors"},
    "modeling": {
        *("family", "embeddings", "fused", "quant", "swap", "generation", "checkpoint", "layers"),
        *("outputs", "config", "hub", "family", "errors"),
    },
    # Shell commands say what is to be done; only `convert`, `info` and the like need to look inside.
    "__main__": {"cli"},
}

# (file, imported module): why it may.
EXCEPTIONS: dict[tuple[str, str], str] = {
    ("cli/main.py", "quintet"): "the version, which is in quintet/__init__.py",
    ("cli/env.py", "quintet"): "the version, which is in quintet/__init__.py",
    **{
        ("generation/thinking_formats.py", f"quintet.chat.{name}"): "the marks of the formats, which have one home"
        for name in ("harmony_parser", "pieces", "seed_oss", "seed_parser")
    },
}

# Files that import a module by a name they compute: why, and from which table the name comes.
DYNAMIC = {
    "__init__.py": "lazy public names, from the table in it",
    "paths.py": "aliases, from the table in it",
    "auto.py": "families, by the files in models/",
    "evaluate/__init__.py": "lazy names, from the table in it",
    "generation/__init__.py": "lazy names, from the table in it",
    "pipelines/__init__.py": "lazy names, from the table in it",
    "tokenizers/auto.py": "tokenizer classes, from the table in it",
    "cli/main.py": "commands, from the table in it",
    "convert/__init__.py": "layouts, from the table in it",
}


def files() -> list[Path]:
    return sorted(SOURCE.rglob("*.py"))


def part_of(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Every imported module, with its line; those inside functions and under TYPE_CHECKING too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import; write the whole name"
            if node.module == "quintet":
                yield from ((node.lineno, f"quintet.{a.name}" if a.name in ROW else "quintet") for a in node.names)
            else:
                yield node.lineno, str(node.module)


def own_imports() -> Iterator[tuple[str, Path, int, str]]:
    for path in files():
        for line, module in imports(path):
            if module.partition(".")[0] == "quintet":
                yield part_of(path), path, line, module


def test_every_part_has_a_row() -> None:
    parts = {part_of(path) for path in files()}
    assert parts <= set(ROW), f"say in ROWS where {parts - set(ROW)} stands"


def test_nothing_imports_upwards_or_sideways() -> None:
    wrong = []
    for part, path, line, module in own_imports():
        name = path.relative_to(SOURCE).as_posix()
        other = module.split(".")[1] if "." in module else "__init__"
        if (name, module) in EXCEPTIONS or other == part:
            continue
        if other not in ROW or ROW[other] <= ROW[part] or other not in ONLY.get(part, {other}):
            wrong.append(f"{name}:{line}: {part} may not import {module}")
    assert not wrong, "\n".join(wrong)


def test_families_do_not_know_each_other() -> None:
    for part, path, line, module in own_imports():
        if module.startswith("quintet.models.") and part == "models":
            pytest.fail(f"{path.name}:{line} imports {module}: no inheritance between families")


def test_exceptions_are_still_needed() -> None:
    found = {(path.relative_to(SOURCE).as_posix(), module) for _, path, _, module in own_imports()}
    assert set(EXCEPTIONS) <= found, f"no longer needed: {set(EXCEPTIONS) - found}"
    assert set(ONLY) <= set(ROW)


def test_modules_with_computed_names_are_known() -> None:
    found = set()
    for path in files():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
                if called in ("import_module", "__import__") and not isinstance(node.args[0], ast.Constant):
                    found.add(path.relative_to(SOURCE).as_posix())
    assert found == set(DYNAMIC)


def test_the_reference_is_imported_by_tests_only() -> None:
    for path in files():
        for line, module in imports(path):
            assert module.partition(".")[0] != "transformers", f"{path}:{line}"


def loaded(code: str) -> set[str]:
    """The modules that a fresh interpreter has loaded after `code`, without those of a bare start."""
    script = (
        f"import sys\nbefore = set(sys.modules)\n{code}\nprint(*sorted(set(sys.modules) - before), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stderr.splitlines()[-1].split())


def foreign(modules: set[str]) -> set[str]:
    """Packages among them that are neither Python's nor ours."""
    return {module.partition(".")[0] for module in modules} - sys.stdlib_module_names - {"quintet"}


def test_import_quintet_loads_next_to_nothing() -> None:
    modules = loaded("import quintet")
    assert {module for module in modules if module.startswith("quintet")} == {"quintet", "quintet.paths"}
    assert not foreign(modules)
    assert len(modules) < 25, modules  # not even `typing` or `re`


LIGHT = {
    "import quintet.errors, quintet.rules, quintet.family": set(),
    "import quintet.hub, quintet.config": set(),
    "import quintet.modeling_outputs, quintet.cache_utils, quintet.generation.utils": set(),
    "from quintet import GenerationConfig, PretrainedConfig, TextStreamer": set(),
    "from quintet.pipelines import ALIASES, TASKS, find_task": set(),
    "import quintet.chat, quintet.chat.template": set(),
    "import quintet.tokenizers": {"tokenizers", "huggingface_hub"},
    "from quintet import AutoTokenizer, GPT2TokenizerFast": {"tokenizers", "huggingface_hub"},
    "from quintet.cli.main import main; main(['--help'])": set(),
    "from quintet.cli.main import main; main(['--version'])": set(),
    "from quintet.cli.main import main; main(['generat'])": set(),
    "from quintet.training.arguments import TrainingArguments": set(),
}


@pytest.mark.parametrize("code", LIGHT)
def test_what_loads_no_torch(code: str) -> None:
    modules = loaded(code)
    assert "torch" not in modules
    unexpected = foreign(modules) - LIGHT[code]
    # What the tokenizers library itself brings along is its own business, as long as it is not torch.
    assert not unexpected or LIGHT[code], unexpected


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_loads_no_torch(command: str) -> None:
    code = f"from quintet.cli.main import main\ntry: main([{command!r}, '--help'])\nexcept SystemExit: pass"
    assert "torch" not in loaded(code)
