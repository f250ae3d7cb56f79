"""Sinks as a step after a kernel: right forwards and backwards, where the plain way is wrong, and by every way."""

from __future__ import annotations

import pytest
import torch

from quintet.layers.attention import sinks as module
from quintet.layers.attention.eager import eager
from quintet.layers.attention.rules import additive
from quintet.layers.attention.sdpa import sdpa
from quintet.layers.masks import MaskSpec

ROWS, HEADS, GROUPS, TOKENS, SIZE = 2, 8, 2, 11, 16
SCALE = SIZE**-0.5


@pytest.fixture
def tensors() -> list[torch.Tensor]:
    """q, k, v and sinks that want gradients."""
    shapes = [(ROWS, HEADS, TOKENS, SIZE), (ROWS, GROUPS, TOKENS, SIZE), (ROWS, GROUPS, TOKENS, SIZE), (HEADS,)]
    return [torch.randn(shape).requires_grad_() for shape in shapes]


def mask() -> MaskSpec:
    padding = torch.ones(ROWS, TOKENS, dtype=torch.bool)
    padding[0, :4] = False
    return MaskSpec(TOKENS, TOKENS, window=5, padding=padding)


def by_eager(tensors: list[torch.Tensor], rule: MaskSpec) -> torch.Tensor:
    q, k, v, sinks = tensors
    return eager(q, k, v, rule, scale=SCALE, dropout=0.0, upcast=True, sinks=sinks)[0]


def gradients(out: torch.Tensor, tensors: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    direction = torch.randn(out.shape, generator=torch.Generator().manual_seed(9))
    return torch.autograd.grad(out, tensors, direction.to(out.dtype))


def naive(tensors: list[torch.Tensor], rule: torch.Tensor) -> torch.Tensor:
    """The two lines of the forward pass, left to autograd."""
    q, k, v, sinks = tensors
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, attn_mask=rule, scale=SCALE)
    return out * torch.exp(lse - torch.logaddexp(lse, sinks.view(1, -1, 1)))[..., None]


def test_left_to_autograd_the_gradients_are_wrong(tensors: list[torch.Tensor]) -> None:
    """Why there is a function with a backward pass of its own: this one gives wrong numbers and no error."""
    rule = additive(mask(), torch.float32, torch.device("cpu"))
    wanted = by_eager(tensors, mask())
    out = naive(tensors, rule)
    torch.testing.assert_close(out, wanted, rtol=1e-5, atol=1e-5)
    errors = [(a - b).abs().max() for a, b in zip(gradients(out, tensors), gradients(wanted, tensors), strict=True)]
    assert errors[0] > 0.01 and errors[1] > 0.01  # q and k, silently
    assert errors[2] < 1e-4 and errors[3] < 1e-4  # v and the sinks


@pytest.mark.parametrize(
    ("dtype", "forward", "backward"),
    [(torch.float32, 1e-5, 1e-4), (torch.bfloat16, 3e-2, 1e-1), (torch.float16, 4e-3, 2e-2)],
    ids=str,
)
def test_ours_are_right(tensors: list[torch.Tensor], dtype: torch.dtype, forward: float, backward: float) -> None:
    narrow = [x.detach().to(dtype).requires_grad_() for x in tensors]
    wide = [x.detach().float().requires_grad_() for x in narrow]
    for rule in (mask, lambda: MaskSpec(TOKENS, TOKENS)):
        wanted = by_eager(wide, rule())
        q, k, v, sinks = narrow
        got = sdpa(q, k, v, rule(), scale=SCALE, dropout=0.0, upcast=False, sinks=sinks)[0]
        torch.testing.assert_close(got.float(), wanted, rtol=forward, atol=forward)
        for one, other in zip(gradients(got, narrow), gradients(wanted, wide), strict=True):
            torch.testing.assert_close(one.float(), other, rtol=backward, atol=backward)


@pytest.mark.parametrize("wants", range(4), ids=["q", "k", "v", "sinks"])
def test_one_gradient_alone(tensors: list[torch.Tensor], wants: int) -> None:
    for index, tensor in enumerate(tensors):
        tensor.requires_grad_(index == wants)
    q, k, v, sinks = tensors
    got = sdpa(q, k, v, mask(), scale=SCALE, dropout=0.0, upcast=False, sinks=sinks)[0]
    expected = gradients(by_eager(tensors, mask()), [tensors[wants]])
    torch.testing.assert_close(gradients(got, [tensors[wants]]), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "masked"])
def test_the_extra_column(tensors: list[torch.Tensor], causal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """What runs where torch has no kernel that returns the log-sum-exp."""
    monkeypatch.setattr(module, "lse_kernels", lambda *_, **__: None)
    q, k, v, sinks = tensors
    rule = None if causal else additive(mask(), torch.float32, torch.device("cpu"))
    got = module.with_sinks(q, k, v, rule, sinks.view(1, -1, 1), causal=causal, scale=SCALE)
    wanted = by_eager(tensors, MaskSpec(TOKENS, TOKENS) if causal else mask())
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)
    for one, other in zip(gradients(got, tensors), gradients(wanted, tensors), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_large_and_small_sinks(tensors: list[torch.Tensor]) -> None:
    """A sink of -inf takes nothing, one far above the scores takes all, and neither makes a NaN."""
    q, k, v, _ = tensors
    rule = MaskSpec(TOKENS, TOKENS)
    options = {"scale": SCALE, "dropout": 0.0, "upcast": False}
    without = sdpa(q, k, v, rule, sinks=None, **options)[0]
    for value, wanted in ((-1e4, without), (-torch.inf, without), (1e4, torch.zeros_like(without))):
        sinks = torch.full((HEADS,), value, requires_grad=True)
        out = sdpa(q, k, v, rule, sinks=sinks, **options)[0]
        torch.testing.assert_close(out, wanted, rtol=1e-5, atol=1e-5)
        assert all(gradient.isfinite().all() for gradient in gradients(out, [q, k, v, sinks]))


def test_keys_that_are_not_contiguous(tensors: list[torch.Tensor]) -> None:
    q, k, v, sinks = tensors
    turned = [x.transpose(-1, -2).contiguous().transpose(-1, -2) for x in (q, k, v)]
    assert turned[1].stride(-1) != 1
    got = sdpa(*turned, mask(), scale=SCALE, dropout=0.0, upcast=False, sinks=sinks)[0]
    torch.testing.assert_close(got, by_eager(tensors, mask()), rtol=1e-5, atol=1e-5)


def test_the_kernels_of_a_gpu_take_these_arguments() -> None:
    """Shapes and order of arguments of the CUDA kernels, held on tensors without values."""
    q, k, v = (torch.empty(2, 8, 16, 64, dtype=torch.bfloat16, device="meta") for _ in range(3))
    out, lse, left = module._flash_forward(q, k, v, None, True, SCALE)
    assert out.shape == q.shape and lse.shape == q.shape[:3]
    grads = module._flash_backward(out, q, k, v, out, lse, None, True, SCALE, left)
    assert [x.shape for x in grads] == [q.shape, k.shape, v.shape]
