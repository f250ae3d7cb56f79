"""What the tests of the native step share."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from quintet.fused.blocks import FusedBlocks
from quintet.fused.whole_step import Stepped, WholeStep

sys.path.insert(0, str(Path(__file__).parent))  # for tiny_blocks


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bool]]:
    """For each step of decoding whether native code did it: its blocks, or as a whole."""
    done: list[bool] = []
    plain, plain_whole = FusedBlocks.run, WholeStep.run

    def run(self: FusedBlocks, x: torch.Tensor, step: Any) -> torch.Tensor | None:
        out = plain(self, x, step)
        done.append(out is not None)
        return out

    def whole(self: WholeStep, *given: Any) -> Stepped | None:
        out = plain_whole(self, *given)
        if out is not None:
            done.append(True)
        return out

    monkeypatch.setattr(FusedBlocks, "run", run)
    monkeypatch.setattr(WholeStep, "run", whole)
    yield done
