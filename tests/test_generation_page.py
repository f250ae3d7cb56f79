"""The page about generation: its examples run, one after the other, and its table is the table of options."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest

from quintet.generation.options import OPTIONS

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "generation.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def test_every_block_is_run() -> None:
    assert len(re.findall(r"^```", PAGE, re.MULTILINE)) == 2 * len(BLOCKS)
    assert {language for language, _ in BLOCKS} == {"python"}
    assert len(BLOCKS) > 15


def test_the_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {"__name__": "generation"}
    structured = importlib.util.find_spec("llguidance") is not None
    for _, code in BLOCKS:
        if structured or not re.search(r"response_format|compiled", code):
            exec(compile(code, "docs/generation.md", "exec"), namespace)
    assert (tmp_path / "king.cache").is_file()
    assert "Once upon a time" in capsys.readouterr().out


def test_the_table_is_that_of_the_options() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \| (.+) \|$", PAGE.partition("## All options")[2], re.MULTILINE)
    assert [(name, default) for name, default, _ in rows] == [(one.name, repr(one.default)) for one in OPTIONS.values()]
    for name, _, words in rows:
        option = OPTIONS[name]
        refused = not option.works and not option.never_bites
        assert words.startswith("refused") == refused, name
        assert words.startswith("accepted") == option.never_bites, name


def test_links_within_the_page() -> None:
    headings = {re.sub(r"[^\w -]", "", one).lower().replace(" ", "-") for one in re.findall(r"^#+ (.+)$", PAGE, re.M)}
    for target in re.findall(r"\]\(#([\w-]+)\)", PAGE):
        assert target in headings


def test_the_order_of_the_filters_is_as_written(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    from quintet.generation import LogitsProcessorList
    from quintet.models.gpt2 import GPT2LMHeadModel, tiny

    written = PAGE.partition("They are applied in this order:")[2].partition(";")[0]
    names = re.findall(r"`(\w+)`", written)
    values = {"temperature": 0.9, "top_h": 0.9, "top_k": 40, "top_p": 0.9, "min_p": 0.01, "typical_p": 0.9}
    values |= {"epsilon_cutoff": 0.01, "eta_cutoff": 0.01}
    assert set(names) == set(values)
    seen: list[str] = []

    def note(self: Any, ids: Any, scores: Any, **kwargs: Any) -> Any:
        seen.extend(type(one).__name__ for one in self)
        return scores

    monkeypatch.setattr(LogitsProcessorList, "__call__", note)
    options = {**values, "repetition_penalty": 1.2, "renormalize_logits": True, "watermarking_config": {"bias": 1.0}}
    model = GPT2LMHeadModel(tiny()).eval()
    model.generate(torch.tensor([[5, 6]]), do_sample=True, max_new_tokens=1, logits_processor=[print], **options)
    kinds = [
        {"typical_p": "Typical", "epsilon_cutoff": "Epsilon", "eta_cutoff": "Eta"}.get(name, name) for name in names
    ]
    filters = [one.removesuffix("LogitsWarper") for one in seen if one.endswith("LogitsWarper")]
    assert [one.lower() for one in filters] == [kind.lower().replace("_", "") for kind in kinds]
    assert seen[0] == "RepetitionPenaltyLogitsProcessor" and seen[1] == type(print).__name__
    assert seen[-2:] == ["WatermarkLogitsProcessor", "LogitNormalization"]
