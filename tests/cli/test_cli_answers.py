"""`quintet generate --response-format` and `--thinking-budget`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from quintet.cli.main import main

pytest.importorskip("llguidance")

SCHEMA = {"type": "object", "properties": {"n": {"enum": [1, 22]}}, "required": ["n"], "additionalProperties": False}


@pytest.fixture
def generate(tiny_gpt2: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs the command with a tiny model and returns (stdout, stderr)."""

    def run(*argv: str, code: int = 0, model: Path = tiny_gpt2) -> tuple[str, str]:
        assert main(["generate", "The cat", "--model", str(model), "--threads", "1", *argv]) == code
        captured = capsys.readouterr()
        return captured.out, captured.err

    return run


@pytest.mark.parametrize(
    "content", [SCHEMA, {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA, "strict": True}}]
)
def test_a_schema_from_a_file(generate: Any, tmp_path: Path, content: Any) -> None:
    file = tmp_path / "schema.json"
    file.write_text(json.dumps(content), encoding="utf-8")
    for seed in ("1", "2"):
        record = json.loads(generate("--response-format", str(file), "--json", "--seed", seed, "-n", "90")[0])
        jsonschema.validate(json.loads(record["text"]), SCHEMA)
        assert record["finish_reason"] == "stop"


def test_any_json_and_other_forms(generate: Any, tmp_path: Path) -> None:
    assert generate("--response-format", "json", "--greedy", "-n", "20")[0].startswith("The cat{")
    file = tmp_path / "choice.json"
    file.write_text('{"type": "choice", "choice": [" sat", " ran"]}', encoding="utf-8")
    assert generate("--response-format", str(file), "--greedy")[0] in ("The cat sat\n", "The cat ran\n")


def test_files_that_hold_no_form(generate: Any, tmp_path: Path) -> None:
    file = tmp_path / "form.json"
    for content, words in (("{", "is no JSON"), ("[1]", "holds no JSON object"), ("[" * 9999, "is no JSON")):
        file.write_text(content, encoding="utf-8")
        assert words in generate("--response-format", str(file), code=2)[1]
    assert "No such file" in generate("--response-format", str(tmp_path / "none"), code=1)[1]
    file.write_text('{"type": "json_schema"}', encoding="utf-8")
    assert "has no schema" in generate("--response-format", str(file), code=1)[1]


def test_a_thinking_budget(generate: Any, talking_seed_oss: Path) -> None:
    assert "has no tokens that begin and end thoughts" in generate("--thinking-budget", "5", code=1)[1]
    out, _ = generate("--thinking-budget", "5", "-n", "9", "--greedy", model=talking_seed_oss)
    assert out.startswith("The cat")
    assert "a whole number of at least 0" in generate("--thinking-budget", "-5", code=2)[1]
