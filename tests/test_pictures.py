"""The pictures of docs/shell.md: they are there, small and well formed; the little terminal that draws them."""

from __future__ import annotations

import importlib.util
import re
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from types import ModuleType

import pytest

from quintet.cli.main import COMMANDS
from quintet.cli.slash import COMMANDS as SLASHES

DOCS = Path(__file__).resolve().parents[1] / "docs"

if sys.platform == "win32":
    pytest.skip("pseudo-terminals are of Unix", allow_module_level=True)


@pytest.fixture(scope="module")
def pictures() -> ModuleType:
    spec = importlib.util.spec_from_file_location("quintet_docs_pictures", DOCS / "pictures.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_the_page_shows_each_picture_and_names_each_command(pictures: ModuleType) -> None:
    page = (DOCS / "shell.md").read_text(encoding="utf-8")
    assert set(re.findall(r"\(pictures/(\w+)\.svg\)", page)) == set(pictures.PICTURES) <= set(COMMANDS)
    assert not [name for name in SLASHES if f"`/{name}" not in page]
    for name in pictures.PICTURES:
        path = DOCS / "pictures" / f"{name}.svg"
        assert path.stat().st_size < 200_000
        texts = "".join(ElementTree.parse(path).getroot().itertext())
        assert f"quintet {name}" in texts.replace("\n", "") and "Traceback" not in texts


def test_the_screen_obeys_what_commands_print(pictures: ModuleType) -> None:
    screen = pictures.Screen(columns=10)
    screen.feed(
        "ab\tc\r\n\x1b[2mdim\x1b[0m\x1b[?2004h <&\r\nthinking\rthought 5\r\n0123456789ab\r\x1b[K\x1b[30;48;5;153mx"
    )
    lines = ["".join(text for _, text, _ in pictures.runs(row)) for row in screen.rows]
    assert lines == ["ab      c", "dim <&", "thought 5", "0123456789", "x"]
    assert pictures.runs(screen.rows[1])[0] == (0, "dim", pictures.Style(dim=True))
    assert screen.rows[4][0][1].back == "#afd7ff"
    drawn = ElementTree.fromstring(pictures.svg(screen))
    assert "dim" in drawn.itertext() and "<&" in drawn.itertext()


def test_no_text_of_a_picture_needs_its_spaces_kept(pictures: ModuleType) -> None:
    screen = pictures.Screen(columns=20)
    screen.feed("$\x1b[1m two words\x1b[0m  6    13")
    texts = [(each.text, float(each.get("x"))) for each in ElementTree.fromstring(pictures.svg(screen)).iter()
             if each.tag.endswith("text")]  # fmt: skip
    places = [round((x - pictures.MARGIN) / pictures.WIDTH, 1) for _, x in texts]
    assert [text for text, _ in texts] == ["$", "two words", "6", "13"] and places == [0, 2, 13, 18]
    for path in (DOCS / "pictures").glob("*.svg"):
        for text in ElementTree.parse(path).getroot().itertext():
            assert "  " not in text.strip("\n") and text.strip("\n") == text.strip(), path.name
