"""The twin of experts says what the plain ones say, for every type, and steps aside for training."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from quintet.fused.cpu_experts import CpuExperts, use_cpu_twins
from quintet.layers.experts import Experts, TopKRouter

E, D, F, K = 5, 16, 12, 2


def model(dtype: torch.dtype) -> nn.ModuleDict:
    torch.manual_seed(1)
    made = nn.ModuleDict({"router": TopKRouter(E, D, K), "experts": Experts(E, D, F), "proj": nn.Linear(D, D)})
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.4)
    return made.to(dtype)


def ask(net: nn.ModuleDict, x: torch.Tensor) -> torch.Tensor:
    _, weights, indices = net["router"](x)
    out: torch.Tensor = net["experts"](x, indices, weights)
    return out


@pytest.mark.parametrize("rows", [1, 3, 40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_says_the_same(dtype: torch.dtype, rows: int) -> None:
    net = model(dtype)
    x = torch.randn(rows, D).to(dtype)
    names = list(net.state_dict())
    with torch.no_grad():
        want = ask(net, x)
        report = use_cpu_twins(net)
        got = ask(net, x)
    assert report.replaced == ["experts", "proj"]
    assert type(net["experts"]) is CpuExperts
    assert list(net.state_dict()) == names
    bound = 1e-5 if dtype == torch.float32 else 3e-2
    torch.testing.assert_close(got, want, atol=bound, rtol=bound)


def test_training_goes_the_plain_way() -> None:
    net = model(torch.float32)
    x = torch.randn(6, D)
    ask(net, x).sum().backward()
    want = [parameter.grad for parameter in net["experts"].parameters()]
    net.zero_grad()
    use_cpu_twins(net)
    ask(net, x).sum().backward()
    for parameter, gradient in zip(net["experts"].parameters(), want, strict=True):
        assert torch.equal(parameter.grad, gradient)


def test_other_types_stay() -> None:
    net = model(torch.float64)
    assert use_cpu_twins(net).kept == ["experts", "proj"]
    assert type(net["experts"]) is Experts
