"""The twin of experts says what the plain ones say, for every type, and steps aside for training."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from quintet.fused.cpu_experts import BAG_ROWS, CpuExperts, bag_product, use_cpu_twins
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


@pytest.mark.parametrize("threads", [1, 2, 3, 20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weighted_sums_of_rows_are_the_product(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, threads: int
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    stored = torch.randn(70, 33).to(dtype)
    with torch.no_grad():
        for rows in range(1, 10):
            x = torch.randn(rows, 70).to(dtype)
            got = bag_product(x, stored)
            assert (got is not None) == (rows <= BAG_ROWS[dtype])
            if got is not None:
                bound = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}[dtype]
                assert got.dtype == dtype
                torch.testing.assert_close(got.double(), x.double() @ stored.double(), rtol=bound, atol=10 * bound)
        x = torch.randn(1, 70).to(dtype)
        assert bag_product(x, torch.randn(33, 70).to(dtype).t()) is None  # another order in memory
        assert bag_product(x.double(), stored.double()) is None
    assert bag_product(x, stored) is None  # gradients are on


def test_the_weights_stay_where_they_are() -> None:
    net = model(torch.bfloat16)
    before = [parameter.data_ptr() for parameter in net.parameters()]
    with torch.no_grad():
        use_cpu_twins(net)
        ask(net, torch.randn(1, D).bfloat16())
    assert [parameter.data_ptr() for parameter in net.parameters()] == before


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
