"""Every code example of the model pages runs, with nothing changed but the package's name and the names on the hub.

The pages are somebody else's text: they are not in the repository, and the examples are read from them here. The table
below lists every block of code that a page has, so that none is lost or skipped unseen.
"""

from __future__ import annotations

import ast
import doctest
import re
import sys
from collections.abc import Callable
from importlib import util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

FOLDER = Path(__file__).resolve().parent
RUN, META = "run", "run on the meta device"  # META: a model of published size, made without its memory
# Why a block is not run, and words that it must hold for that reason to be true.
SKIPPED = {
    "bitsandbytes comes with a later issue": "BitsAndBytesConfig(",
    "Keras classes come with a later issue": "TFOpenAIGPT",
    "a shell command of another program: vLLM": "vllm serve",
    "a shell command of other programs: pip and spaCy": "pip install",
    "needs a CUDA device": ".cuda()",
}
BITSANDBYTES, KERAS, VLLM, SHELL, CUDA = SKIPPED

# Each block of a page, in the page's order.
PAGES: dict[str, list[tuple[str, str]]] = {
    "gpt2": [
        ("pipeline", RUN),
        ("server", VLLM),
        ("quantised", BITSANDBYTES),
        ("config", META),
        ("tokenizer", RUN),
        ("tokenizer fast", RUN),
        ("lm head", RUN),
        ("double heads", RUN),
        ("question answering", RUN),
        ("sequence classification", RUN),
        ("multi label", RUN),
        ("token classification", RUN),
    ],
    "openai_gpt": [
        ("install", SHELL),
        ("config", META),
        ("model", RUN),
        ("lm head", RUN),
        ("double heads", RUN),
        ("sequence classification", RUN),
        ("multi label", RUN),
        ("keras model", KERAS),
        ("keras lm head", KERAS),
        ("keras double heads", KERAS),
        ("keras sequence classification", KERAS),
        ("keras training", KERAS),
    ],
    "gpt_neox": [
        ("half precision", CUDA),
        ("generation", RUN),
        ("config", META),
        ("tokenizer fast", RUN),
        ("model", RUN),
        ("causal lm", RUN),
        ("question answering", RUN),
        ("sequence classification", RUN),
        ("multi label", RUN),
        ("token classification", RUN),
    ],
    "seed_oss": [("config", META), ("generation", RUN)],
    "gpt_oss": [("generation", RUN)],
}
EXAMPLES = [
    pytest.param(page, number, how, id=f"{page}-{name}")
    for page, blocks in PAGES.items()
    for number, (name, how) in enumerate(blocks)
]
# Parameters of the default models, without a head.
PARAMETERS = {"gpt2": 124_439_808, "openai_gpt": 116_534_784, "gpt_neox": 20_244_713_472, "seed_oss": 28_285_603_840}
# Names on the hub: the tiny checkpoint that stands for them.
HUB = {
    "openai-community/gpt2": "gpt2",
    "gpt2": "gpt2",
    "openai-gpt": "openai_gpt",
    "EleutherAI/gpt-neox-20b": "gpt_neox",
    "trl-internal-testing/tiny-random-GPTNeoXForCausalLM": "gpt_neox",
    "LarsJonasson/pythia-410m-deduped-sft-swedish": "gpt_neox",
    "ByteDance-Seed/SeedOss-36B": "seed_oss",
    "mistralai/GptOss-8x7B-v0.1": "gpt_oss",
}
# A page that lost a block's opening and line breaks still has its first statement, at the end of some other text.
LOST_START = re.compile(r">> (from \w+ import [\w, ]+)$")


def blocks(text: str) -> list[str]:
    """Return every fenced block of a page, and every run of prompts whose opening fence is lost."""
    found: list[str] = []
    block: list[str] | None = None
    before = ""
    for line in text.splitlines():
        if line.strip().startswith("```"):
            if block is not None:
                found.append("\n".join(block) + "\n")
            block = [] if block is None else None
        elif block is not None:
            block.append(line)
        elif line.startswith(">>> "):
            start = LOST_START.search(before)
            block = [f">>> {start.group(1)}"] if start else []
            block.append(line)
        if line.strip():
            before = line
    assert block is None, "the last block has no end"
    return found


def load_script() -> ModuleType:
    spec = util.spec_from_file_location("quintet_example_checkpoints", FOLDER / "checkpoints.py")
    assert spec is not None and spec.loader is not None
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def pages(data_dir: Path) -> dict[str, list[str]]:
    """The blocks of each page."""
    folder = data_dir.parent / "pages"
    if not folder.is_dir():
        pytest.skip(f"no model pages: there is no folder {folder}")
    return {name: blocks((folder / f"{name}.txt").read_text(encoding="utf-8")) for name in PAGES}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, data_dir: Path) -> Callable[[str], Path]:
    """Makes a family's checkpoint when it is first asked for."""
    folder, made = tmp_path_factory.mktemp("examples"), dict[str, Path]()
    script = load_script()

    def get(family: str) -> Path:
        if family not in made:
            made[family] = script.make(family, folder, data_dir)
        return made[family]

    return get


def as_ours(block: str, checkpoint: Callable[[str], Path]) -> str:
    """Change the package's name and the names on the hub."""
    block = re.sub(r"\bfrom transformers import\b", "from quintet import", block)

    def local(match: re.Match[str]) -> str:
        return f'"{checkpoint(HUB[match.group(1)])}"' if match.group(1) in HUB else match.group(0)

    return re.sub(r'"([^"\n]*)"', local, block)


def statements(block: str) -> list[doctest.Example]:
    """Return the statements of a block, with what the page shows for each; a block without prompts shows nothing."""
    if ">>> " in block:
        return doctest.DocTestParser().get_examples(block)
    return [doctest.Example(str(ast.get_source_segment(block, one)), "") for one in ast.parse(block).body]


def execute(block: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Run a block statement by statement; compare what it shows where that does not depend on trained weights."""
    namespace: dict[str, Any] = {}
    shown: list[Any] = []
    monkeypatch.setattr(sys, "displayhook", shown.append)
    for statement in statements(block):
        shown.clear()
        exec(compile(statement.source, "<page>", "single"), namespace)
        if statement.want:
            assert shown, f"nothing was shown where the page shows {statement.want!r}"
            expected = ast.literal_eval(statement.want)
            assert type(shown[-1]) is type(expected)
            if isinstance(expected, list) and isinstance(expected[0], int):  # ids, from the published vocabulary
                assert shown[-1] == expected
    return namespace


@pytest.mark.parametrize("page", PAGES)
def test_every_block_is_found(page: str, pages: dict[str, list[str]], data_dir: Path) -> None:
    text = (data_dir.parent / "pages" / f"{page}.txt").read_text(encoding="utf-8")
    assert len(pages[page]) == len(PAGES[page]), "the page has other blocks than the table"
    in_blocks = sum(block.count(">>> ") for block in pages[page])
    damaged = [line for line in text.splitlines() if LOST_START.search(line) and not line.startswith(">>> ")]
    assert in_blocks == text.count(">>> ") + len(damaged)
    for block, (name, how) in zip(pages[page], PAGES[page], strict=True):
        if how in SKIPPED:
            assert SKIPPED[how] in block, f"{name}: the reason to skip it is not true"
        else:
            assert len(statements(block)) >= 3, name
            assert "import" in block


def test_most_examples_run() -> None:
    plans = [how for table in PAGES.values() for _, how in table]
    assert (plans.count(RUN), plans.count(META), len(plans)) == (24, 4, 37)


@pytest.mark.parametrize(("page", "number", "how"), EXAMPLES)
def test_example(
    page: str,
    number: int,
    how: str,
    pages: dict[str, list[str]],
    checkpoint: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if how in SKIPPED:
        pytest.skip(how)
    block = as_ours(pages[page][number], checkpoint)
    for word in ("transformers", *(name for name in HUB if "/" in name)):
        assert word not in block
    if how == META:
        with torch.device("meta"):
            model = execute(block, monkeypatch)["model"]
        assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
        assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS[page]
    else:
        namespace = execute(block, monkeypatch)
        assert any(type(value).__module__.startswith("quintet.") for value in namespace.values())


def test_a_damaged_page_is_read() -> None:
    page = "words (`>> from transformers import A, B\n\n>>> x = A()\n>>> x\n1\n```\n\n```python\n>>> y = 2\n```\nend"
    assert blocks(page) == [">>> from transformers import A, B\n>>> x = A()\n>>> x\n1\n", ">>> y = 2\n"]
    with pytest.raises(AssertionError, match="the last block has no end"):
        blocks("```\n>>> x = 1\n")
