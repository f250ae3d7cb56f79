"""What a step of `generate` costs besides its native call: counted, as time depends on the machine."""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any

import pytest
import torch

from quintet import GPT2Config, GPT2LMHeadModel
from quintet.kernels.loader import status

pytestmark = pytest.mark.skipif(not status().native, reason=f"no native kernels: {status().reason}")

# Some more than there are in 12 layers; `benchmarks/dispatch.py` measures what they take: 541 took twice as much.
PYTHON_CALLS = 300


def calls(model: Any, prompt: torch.Tensor, tokens: int) -> int:
    """Functions of Python that `generate` calls."""
    count = 0

    def watch(frame: FrameType, event: str, given: object) -> None:
        nonlocal count
        count += event == "call"

    sys.setprofile(watch)
    try:
        model.generate(prompt, do_sample=False, max_new_tokens=tokens, pad_token_id=0, eos_token_id=None)
    finally:
        sys.setprofile(None)
    return count


def test_a_token_takes_few_calls_of_python() -> None:
    torch.manual_seed(0)
    config = GPT2Config(n_embd=32, n_layer=12, n_head=2, vocab_size=64, n_positions=128)
    model, prompt = GPT2LMHeadModel(config).eval(), torch.randint(64, (1, 8))
    calls(model, prompt, 4)  # makes the twins, and what a step is told
    few, many = calls(model, prompt, 10), calls(model, prompt, 50)
    assert 0 < (many - few) / 40 <= PYTHON_CALLS
