"""The pages in docs/ name only what is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import quintet

ROOT = Path(__file__).resolve().parents[1]
SOURCE = Path(quintet.__file__).parent


def test_every_file_in_the_architecture_page_exists() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    table = text.partition("## Where do I change...?")[2].partition("## Tests")[0]
    rows = [line.split("|")[2] for line in table.splitlines() if line.startswith("| ")][2:]
    assert len(rows) > 15
    for row in rows:
        folder = SOURCE
        for name in re.findall(r"`([\w./]+?(?:\.py|/))`", row):
            found = [place / name for place in (SOURCE, folder, ROOT) if (place / name).exists()]
            assert found, f"{name} in: {row.strip()}"
            folder = found[0] if found[0].is_dir() else found[0].parent
    for part in sorted(path.stem for path in SOURCE.glob("*.py") if not path.stem.startswith("__")):
        assert re.search(rf"\b{part}\b", text), f"docs/architecture.md does not say what {part}.py is"
    for part in sorted(path.parent.name for path in SOURCE.glob("*/__init__.py")):
        assert f"{part}/" in text or f"`{part}`" in text, f"docs/architecture.md does not say what {part}/ is"


def test_the_import_rule_on_the_page_is_the_one_that_is_tested() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    chain = re.search(r"```text\n(cli -> .*?)```", text, re.DOTALL)
    assert chain is not None
    tested = (ROOT / "tests" / "layering" / "test_imports.py").read_text(encoding="utf-8")
    rows = [
        set(row.split()) for row in tested.partition('ROWS = """')[2].partition('"""')[0].splitlines() if row.strip()
    ]
    hidden = {"__init__", "__main__", "tokenizers", "chat", "paths"}  # said in words
    on_page = [set(re.findall(r"\w+", part)) for part in chain[1].split("->")]
    assert on_page == [row - hidden for row in rows if row - hidden]


@pytest.mark.parametrize(
    "page", ["architecture.md", "differences.md", "adding_a_model.md", "generation.md", "quantization.md"]
)
def test_links_lead_somewhere(page: str) -> None:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        if not target.startswith("http"):
            assert (ROOT / "docs" / target).exists(), f"{page} links to {target}"
