"""Packed experts with and without the native kernel: the same words, and training as before."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from quintet.kernels.loader import library, packed_rows, status
from quintet.layers.experts import Experts, RoutedExperts
from quintet.models import gpt_oss, seed_oss
from quintet.quant import packed_experts as module
from quintet.quant.packed_experts import PackedExperts

pytestmark = pytest.mark.skipif(library() is None, reason=f"no native kernels: {status().reason}")
E, D, F, K = 6, 64, 96, 2


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Rows of every call that the native kernel takes."""
    rows: list[int] = []
    native = module.native_mxfp4_experts

    def counted(x: torch.Tensor, *rest: object) -> torch.Tensor | None:
        out = native(x, *rest)  # type: ignore[arg-type]
        if out is not None:
            rows.append(x.shape[0])
        return out

    monkeypatch.setattr(module, "native_mxfp4_experts", counted)
    yield rows


def packed(dtype: torch.dtype) -> PackedExperts:
    plain = Experts(E, D, F, alpha=1.5, limit=2.0)
    for parameter in plain.parameters():
        nn.init.normal_(parameter, std=0.3)
    return PackedExperts.from_plain(plain.to(dtype))[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_tokens_go_through_the_kernel(dtype: torch.dtype, asked: list[int]) -> None:
    made = packed(dtype)
    for rows in (0, 1, 2, 8, 9, 20):
        x = torch.randn(rows, D).to(dtype)
        indices = torch.stack([torch.randperm(E)[:K] for _ in range(rows)]) if rows else torch.empty(0, K).long()
        weights = torch.rand(rows, K).to(dtype)
        with torch.no_grad():
            got, want = made(x, indices, weights), RoutedExperts.forward(made, x, indices, weights)
        bound = 1e-5 if dtype == torch.float32 else 3e-2
        assert got.dtype == dtype
        torch.testing.assert_close(got, want, atol=bound * float(want.abs().max()) if rows else 0, rtol=bound)
    assert asked == [rows for rows in (1, 2, 8, 9, 20) if rows <= packed_rows()]


def test_steps_aside_for_gradients_and_autocast(asked: list[int]) -> None:
    made = packed(torch.float32)
    x, indices, weights = torch.randn(1, D, requires_grad=True), torch.tensor([[0, 3]]), torch.rand(1, K)
    made(x, indices, weights).sum().backward()
    assert x.grad is not None and x.grad.abs().sum() > 0
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        made(x, indices, weights)
    with torch.no_grad():
        made(x.double(), indices, weights.double())
    assert asked == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_packed_model_decodes_the_same(dtype: torch.dtype, asked: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    model = gpt_oss.GptOssForCausalLM(gpt_oss.tiny(hidden_size=64, intermediate_size=64)).eval()
    for name, parameter in model.named_parameters():
        if "experts" in name:
            nn.init.normal_(parameter, std=0.1)
    model.quantize("mxfp4")
    model.to(dtype)
    ids = torch.randint(0, model.config.vocab_size, (1, 6))
    with torch.no_grad():
        got = model(ids).logits
        assert asked and set(asked) == {6}
        monkeypatch.setattr(module, "native_mxfp4_experts", lambda *_: None)
        want = model(ids).logits
    bound = 1e-4 if dtype == torch.float32 else 5e-2
    torch.testing.assert_close(got, want, atol=bound * float(want.abs().max()), rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_model_of_linear_layers_decodes_the_same(dtype: torch.dtype) -> None:
    model = seed_oss.SeedOssForCausalLM(seed_oss.tiny()).eval().to(dtype)
    plain = copy.deepcopy(model)
    model.optimize()
    ids = torch.randint(0, model.config.vocab_size, (2, 4))
    with torch.no_grad():
        for length in (1, 2, 4):
            got, want = model(ids[:, :length]).logits, plain(ids[:, :length]).logits
            bound = 1e-5 if dtype == torch.float32 else 3e-2
            torch.testing.assert_close(got, want, atol=bound * float(want.abs().max()), rtol=0)
