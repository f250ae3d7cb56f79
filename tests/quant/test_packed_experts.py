"""Packed experts say and teach what plain ones with the same numbers do, and unpack no more than is used."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from quintet.errors import InputError
from quintet.fused.cpu_experts import use_cpu_twins
from quintet.layers.experts import Experts
from quintet.quant import packed_experts as module
from quintet.quant.mxfp4 import unpack_into
from quintet.quant.packed_experts import PackedExperts, PackedParameter, packed_linear

E, D, F, K = 6, 64, 96, 2


def pair(dtype: torch.dtype = torch.float32) -> tuple[PackedExperts, Experts]:
    """A packed module, and a plain one of the numbers that it holds."""
    torch.manual_seed(5)
    plain = Experts(E, D, F, alpha=1.5, limit=2.0)
    for parameter in plain.parameters():
        nn.init.normal_(parameter, std=0.3)
    packed, _ = PackedExperts.from_plain(plain.to(dtype))
    return packed, packed.to_plain(dtype)


def tokens(rows: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    indices = torch.stack([torch.randperm(E)[:K] for _ in range(rows)])
    return torch.randn(rows, D, dtype=dtype), indices, torch.rand(rows, K).to(dtype)


@pytest.fixture
def unpacked(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Numbers that every call of `unpack_into` inside the module makes."""
    made: list[int] = []

    def counted(out: torch.Tensor, blocks: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        made.append(blocks.numel() * 2)
        return unpack_into(out, blocks, *rest)

    monkeypatch.setattr(module, "unpack_into", counted)
    yield made


@pytest.mark.parametrize("tile", [1, 1000, 2**21])
@pytest.mark.parametrize("rows", [1, 2, 9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_says_what_the_plain_one_says(
    dtype: torch.dtype, rows: int, tile: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TILE", tile)
    packed, plain = pair(dtype)
    given = tokens(rows, dtype)
    with torch.no_grad():
        got, want = packed(*given), plain(*given)
    assert got.dtype == dtype
    bound = 1e-5 if dtype.itemsize > 2 else 2e-2
    largest = float(want.abs().max())  # of 16 bits, the plain one rounds between products
    torch.testing.assert_close(got, want, atol=bound * largest, rtol=bound)


ONE = D * 2 * F + F * D  # numbers of an expert


def test_only_used_experts_are_unpacked(unpacked: list[int]) -> None:
    packed, _ = pair()
    x = torch.randn(7, D)
    for rows in (1, 7):
        unpacked.clear()
        packed(x[:rows], torch.tensor([[4, 1]]).expand(rows, 2), torch.ones(rows, 2))
        assert sum(unpacked) == 2 * ONE
    unpacked.clear()
    packed(x[:0], torch.empty(0, K, dtype=torch.long), torch.empty(0, K))
    assert not unpacked


def test_tiles_are_small(unpacked: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TILE", 500)
    packed, _ = pair()
    unpacked.clear()
    packed(*tokens(1))
    assert max(unpacked) <= 500 and sum(unpacked) == K * ONE


def test_gradients_are_those_of_plain_weights(unpacked: list[int]) -> None:
    packed, plain = pair()
    x, indices, weights = tokens(5)
    unpacked.clear()
    results = []
    for net in (packed, plain):
        given, shares = x.clone().requires_grad_(True), weights.clone().requires_grad_(True)
        net(given, indices, shares).square().sum().backward()
        results.append([given.grad, shares.grad, net.gate_up_proj_bias.grad, net.down_proj_bias.grad])
    for got, want in zip(*results, strict=True):
        assert got is not None and got.abs().sum() > 0
        torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)
    used = len(set(indices.flatten().tolist()))
    assert sum(unpacked) == 2 * used * ONE  # once on the way there, once on the way back
    assert all(parameter.grad is None for parameter in packed.parameters() if isinstance(parameter, PackedParameter))


def test_the_backward_pass_keeps_no_unpacked_weight() -> None:
    packed, _ = pair()
    x, indices, weights = tokens(1)
    kept: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        packed(x.requires_grad_(True), indices, weights)
    held = {parameter.untyped_storage().data_ptr() for parameter in packed.parameters()}
    for tensor in kept:
        assert tensor.numel() <= 2 * F or tensor.untyped_storage().data_ptr() in held


def test_gradients_by_differences() -> None:
    packed, _ = pair(torch.float64)
    one = (packed.down_proj_blocks[2], packed.down_proj_scales[2])
    x = torch.randn(3, F, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda given: packed_linear(given, *one), (x,))


def test_under_autocast() -> None:
    packed, plain = pair()
    x, indices, weights = tokens(4)
    x.requires_grad_(True)
    with torch.autocast("cpu", torch.bfloat16):
        got = packed(x, indices, weights)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, plain(x, indices, weights), atol=0.1, rtol=0.1)
    got.sum().backward()
    assert x.grad is not None and x.grad.dtype == torch.float32


WORDS = r"packed weights, which have no gradients.*LoRA.*dequantize=True"


def test_gradients_of_packed_weights_are_refused() -> None:
    packed, _ = pair()
    for net in (packed, copy.deepcopy(packed), copy.deepcopy(packed).to(torch.bfloat16)):
        for name in ("gate_up_proj_blocks", "down_proj_scales"):
            parameter = net.get_parameter(name)
            assert isinstance(parameter, PackedParameter) and not parameter.requires_grad
            with pytest.raises(InputError, match=WORDS):
                parameter.requires_grad_(True)
            with pytest.raises(InputError, match=WORDS):
                parameter.requires_grad = True
            parameter.requires_grad_(False)
        with pytest.raises(InputError, match=WORDS):
            net.requires_grad_(True)
    with pytest.raises(InputError, match=WORDS):
        PackedParameter(torch.zeros(3, dtype=torch.uint8), requires_grad=True)
    assert packed.requires_grad_(False) is packed


def test_types_change_around_the_packed_weights() -> None:
    packed, _ = pair()
    before = packed.gate_up_proj_blocks.clone()
    packed.to(torch.float16)
    assert packed.down_proj_bias.dtype == torch.float16
    assert torch.equal(packed.gate_up_proj_blocks, before)


@pytest.mark.parametrize("rows", [1, 4])
def test_compiled_says_the_same(rows: int) -> None:
    packed, _ = pair()
    given = tokens(rows)
    with torch.no_grad():
        got = torch.compile(packed, fullgraph=True, backend="eager")(*given)
        torch.testing.assert_close(got, packed(*given), rtol=1e-5, atol=1e-5)


def test_there_and_back() -> None:
    packed, plain = pair()
    again, errors = PackedExperts.from_plain(plain, "h.0.experts")
    assert set(errors) == {"h.0.experts.gate_up_proj", "h.0.experts.down_proj"}
    assert max(errors.values()) == 0  # these numbers fit
    for name, weight in again.to_plain().state_dict().items():
        assert torch.equal(weight, plain.state_dict()[name])
    assert packed.to_plain(torch.bfloat16).down_proj.dtype == torch.bfloat16
    assert (plain.alpha, plain.limit, again.alpha, again.limit) == (1.5, 2.0, 1.5, 2.0)


def test_optimising_leaves_packed_experts_alone() -> None:
    packed, _ = pair()
    net = nn.ModuleDict({"experts": packed})
    report = use_cpu_twins(net)
    assert not report.replaced and net["experts"] is packed


@pytest.mark.parametrize(("sizes", "name"), [((48, 64), "gate_up_proj"), ((64, 48), "down_proj")])
def test_other_sizes_are_refused_by_name(sizes: tuple[int, int], name: str) -> None:
    with pytest.raises(InputError, match=rf"mlp\.experts\.{name} has rows of 48 numbers"):
        PackedExperts.from_plain(Experts(2, *sizes), "mlp.experts")
