"""The code on docs/chat.md runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

PAGE = Path(__file__).resolve().parents[2] / "docs" / "chat.md"


def test_the_pages_code_runs(harmony_tokenizer: Any, capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    text = "<|channel|>analysis<|message|>Easy.<|end|><|start|>assistant<|channel|>final<|message|>Four.<|return|>"
    answer = harmony_tokenizer(text, add_special_tokens=False)["input_ids"]
    names: dict[str, Any] = {"tokenizer": harmony_tokenizer, "answer": answer}
    assert len(blocks) == 1
    exec(blocks[0], names)
    assert capsys.readouterr().out == "Four."
    assert names["message"] == {"role": "assistant", "content": "Four.", "reasoning_content": "Easy."}
