"""docs/real_work.md says what comes out."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from quintet import AutoModelForCausalLM, AutoTokenizer
from quintet.evaluate import evaluate_lambada, read_records

PAGE = Path(__file__).resolve().parents[2] / "docs" / "real_work.md"


def test_the_example_runs(capsys):
    code = re.search(r"From Python:\n\n```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert code is not None
    exec(compile(code[1], str(PAGE), "exec"), {})
    bits, scores = capsys.readouterr().out.splitlines()
    assert 0.5 < float(bits) < 3 and scores.startswith("[Score(logprob=-")


def test_pictures_and_links_are_there():
    for target in re.findall(r"\]\(([^)#]+)\)", PAGE.read_text(encoding="utf-8")):
        assert (PAGE.parent / target).exists(), target


@pytest.mark.slow
def test_lambada_is_that_of_the_page(data_dir):
    file = data_dir / "lambada_test.jsonl"
    if not file.is_file():
        pytest.skip(f"no passages: {file} is not there")
    row = re.search(r"`quintet eval lambada` \| ([\d.]+)% .*?\| ([\d,.]+) \|", PAGE.read_text(encoding="utf-8"))
    assert row is not None
    model, tokenizer = AutoModelForCausalLM.from_pretrained("storyteller"), AutoTokenizer.from_pretrained("storyteller")
    result = evaluate_lambada(model, tokenizer, read_records(file), batch_size=16)
    assert 100 * result.accuracy == pytest.approx(float(row[1]), abs=1e-3)
    assert result.perplexity == pytest.approx(float(row[2].replace(",", "")), rel=1e-4)
