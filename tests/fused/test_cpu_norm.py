"""The twin of the RMS norm gives the plain one's numbers, leaves its input alone, and steps aside for training."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from quintet.fused.cpu_experts import use_cpu_twins
from quintet.fused.cpu_norm import FEW, CpuRMSNorm
from quintet.layers.norm import RMSNorm


def pair(dtype: torch.dtype, size: int = 96) -> tuple[RMSNorm, nn.Module]:
    plain = RMSNorm(size, 1e-5)
    with torch.no_grad():
        plain.weight.normal_(1, 0.2)
    plain.to(dtype)
    holder = nn.ModuleDict({"norm": RMSNorm(size, 1e-5).to(dtype)})
    holder.load_state_dict({"norm.weight": plain.weight})
    assert use_cpu_twins(holder).replaced == ["norm"]
    assert type(holder["norm"]) is CpuRMSNorm
    return plain, holder["norm"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (3, FEW // 96)], ids=str)
def test_says_the_same(dtype: torch.dtype, shape: tuple[int, int]) -> None:
    plain, fast = pair(dtype)
    x = (torch.randn(*shape, 96) * 30).to(dtype)
    x[0, 0] = 0  # a row of zeros is divided by the root of eps
    before = x.clone()
    with torch.no_grad():
        got = fast(x)
    bound = {torch.float32: 1e-6, torch.bfloat16: 1e-2, torch.float16: 2e-3}[dtype]
    assert got.dtype == dtype
    torch.testing.assert_close(got, plain(x).detach(), rtol=bound, atol=bound)
    assert torch.equal(x, before)


def test_large_half_precision_values_do_not_overflow() -> None:
    plain, fast = pair(torch.float16)
    x = torch.full((1, FEW, 96), 3e4, dtype=torch.float16)
    with torch.no_grad():
        torch.testing.assert_close(fast(x), plain(x), rtol=1e-2, atol=1e-2)


def test_training_goes_the_plain_way() -> None:
    plain, fast = pair(torch.float32)
    x = torch.randn(4, 500, 96, requires_grad=True)
    fast(x).square().sum().backward()
    got, x.grad = x.grad, None
    plain(x).square().sum().backward()
    assert torch.equal(got, x.grad)
    assert torch.equal(fast.weight.grad, plain.weight.grad)
