"""What tests of answers in a form share: a small tokenizer, and answers drawn at random from what a form allows."""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("llguidance")

# Helpers of several test files, which are no tests themselves.
sys.path.insert(0, str(Path(__file__).parents[1]))

LETTERS = 300


@pytest.fixture(scope="session")
def small(tiny_gpt2: Path) -> Any:
    """The tokenizer of the tiny GPT-2: bytes and a few words."""
    from quintet import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_gpt2)


@pytest.fixture(scope="session")
def drawn() -> Any:
    """Draws an answer in a form: `drawn(response_format, tokenizer, seed)` its text, or None if too long."""
    from quintet.generation.structured import compile_form
    from quintet.generation.structured.processor import FormRow

    def draw(given: Any, tokenizer: Any, seed: int) -> str | None:
        compiled = compile_form(given, tokenizer)
        assert compiled is not None
        end = tokenizer.eos_token_id
        row, chance = FormRow(compiled, None, [], [end]), random.Random(seed)
        tokens: list[int] = []
        spelled = compiled.vocabulary.bytes
        while len(tokens) < LETTERS:
            allowed = row.allowed().nonzero()[0].tolist()
            assert allowed, tokenizer.decode(tokens)
            # Half of the time towards an end, or answers would grow and grow.
            closing = [one for one in allowed if one == end or spelled[one][-1:] in b'"}]0']
            token = chance.choice(closing if closing and chance.random() < 0.5 else allowed)
            if token == end:
                return compiled.vocabulary.spell(tokens).decode()
            tokens.append(token)
            row.advance(token)
        return None

    return draw
