"""Gradients, autocast and compilers ask for plain PyTorch, and nothing else does."""

from __future__ import annotations

import pytest
import torch

from quintet.kernels.inference import must_be_plain


def test_only_inference_is_native(monkeypatch: pytest.MonkeyPatch) -> None:
    assert must_be_plain()
    with torch.inference_mode():
        assert not must_be_plain()
    with torch.no_grad():
        assert not must_be_plain()
        with torch.autocast("cpu", torch.bfloat16):
            assert must_be_plain()
            with torch.autocast("cpu", enabled=False):
                assert not must_be_plain()
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
        assert must_be_plain()
