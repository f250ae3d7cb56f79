"""Thinking budgets and forms of answers in the text-generation pipeline."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from quintet.pipelines import pipeline

CHAT = [{"role": "user", "content": "What is 2 + 2?"}]
SCHEMA = {"type": "array", "items": {"enum": ["cat", None]}, "minItems": 1, "maxItems": 2}


def test_a_form_for_every_text_of_a_batch(tiny_gpt2: Path) -> None:
    pytest.importorskip("llguidance")
    pipe = pipeline("text-generation", tiny_gpt2, do_sample=True, batch_size=2)
    found = pipe(
        ["The cat", "In the forest an old", "A"],
        response_format={"type": "json_schema", "schema": SCHEMA},
        return_full_text=False,
        max_new_tokens=60,
    )
    for [record] in found:
        assert {*json.loads(record["generated_text"])} <= {"cat", None}


def test_a_thinking_budget_and_a_form_in_a_chat(talking_gpt_oss: Path) -> None:
    pytest.importorskip("llguidance")
    pipe = pipeline("text-generation", talking_gpt_oss, do_sample=True)
    for _ in range(3):
        [record] = pipe(
            CHAT, thinking_budget=0, response_format={"type": "choice", "choice": ["four", "five"]}, max_new_tokens=99
        )
        answer = record["generated_text"][-1]
        assert answer["role"] == "assistant" and answer["content"] in ("four", "five")
        assert set(answer) == {"role", "content"}  # nothing was thought
