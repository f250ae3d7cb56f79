"""The backends of the flash-attn packages, run on stand-ins with the packages' published signatures.

What a stand-in cannot show is the kernels; the tests marked `gpu` run those where they are installed.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import torch

from quintet.layers.attention import BACKENDS, flash
from quintet.layers.masks import MaskSpec

ROWS, HEADS, GROUPS, SIZE = 2, 8, 2, 16
SCALE = SIZE**-0.5


def row(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, causal: bool, window: tuple[int, int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """One row of the packages' rule: (T, H, D) over (K, G, D), the last query at the last key; out, lse (H, T)."""
    queries, keys = q.shape[0], k.shape[0]
    k, v = (x.double().repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    scores = torch.einsum("thd,khd->htk", q.double(), k) * scale
    place, key = torch.arange(queries)[:, None] + keys - queries, torch.arange(keys)[None]
    left, right = window
    seen = torch.ones(queries, keys, dtype=torch.bool)
    if causal:
        seen &= key <= place
    if left >= 0:
        seen &= key >= place - left
    if right >= 0:
        seen &= key <= place + right
    scores = scores.masked_fill(~seen, -torch.inf)
    lse = torch.logsumexp(scores, -1)
    return torch.einsum("htk,khd->thd", torch.softmax(scores, -1), v).to(q.dtype), lse.float()


def rows(q: Any, k: Any, v: Any, scale: float, causal: bool, window: tuple[int, int]) -> Any:
    parts = [row(*x, scale, causal, window) for x in zip(q, k, v, strict=True)]
    return torch.stack([out for out, _ in parts]), torch.stack([lse for _, lse in parts])


def packed(q: Any, k: Any, v: Any, at: Any, to: Any, scale: float, causal: bool, window: tuple[int, int]) -> Any:
    assert at.dtype == to.dtype == torch.int32 and at.shape == to.shape == (ROWS + 1,)
    outs, lses = [], []
    for index in range(len(at) - 1):
        mine, keys = slice(int(at[index]), int(at[index + 1])), slice(int(to[index]), int(to[index + 1]))
        out, lse = row(q[mine], k[keys], v[keys], scale, causal, window)
        outs.append(out)
        lses.append(lse)
    return torch.cat(outs), torch.cat(lses, dim=1)


def second() -> ModuleType:
    module = ModuleType("flash_attn")

    def flash_attn_func(
        q: Any,
        k: Any,
        v: Any,
        dropout_p: float = 0.0,
        softmax_scale: Any = None,
        causal: bool = False,
        window_size: Any = (-1, -1),
        softcap: float = 0.0,
        alibi_slopes: Any = None,
        deterministic: bool = False,
        return_attn_probs: bool = False,
    ) -> Any:
        out, lse = rows(q, k, v, softmax_scale, causal, window_size)
        return (out, lse, None) if return_attn_probs else out

    def flash_attn_varlen_func(
        q: Any,
        k: Any,
        v: Any,
        cu_seqlens_q: Any,
        cu_seqlens_k: Any,
        max_seqlen_q: int,
        max_seqlen_k: int,
        dropout_p: float = 0.0,
        softmax_scale: Any = None,
        causal: bool = False,
        window_size: Any = (-1, -1),
        softcap: float = 0.0,
        alibi_slopes: Any = None,
        deterministic: bool = False,
        return_attn_probs: bool = False,
        block_table: Any = None,
    ) -> Any:
        assert max_seqlen_q == cu_seqlens_q.diff().max() and max_seqlen_k == cu_seqlens_k.diff().max()
        out, lse = packed(q, k, v, cu_seqlens_q, cu_seqlens_k, softmax_scale, causal, window_size)
        return (out, lse, None) if return_attn_probs else out

    module.flash_attn_func, module.flash_attn_varlen_func = flash_attn_func, flash_attn_varlen_func  # type: ignore
    return module


def third() -> ModuleType:
    """The third's functions know no dropout, and its first releases return the log-sum-exp always."""
    module = ModuleType("flash_attn_interface")

    def flash_attn_func(
        q: Any, k: Any, v: Any, softmax_scale: Any = None, causal: bool = False, window_size: Any = (-1, -1)
    ) -> Any:
        return rows(q, k, v, softmax_scale, causal, window_size)

    def flash_attn_varlen_func(
        q: Any,
        k: Any,
        v: Any,
        cu_seqlens_q: Any,
        cu_seqlens_k: Any,
        max_seqlen_q: int,
        max_seqlen_k: int,
        softmax_scale: Any = None,
        causal: bool = False,
        window_size: Any = (-1, -1),
    ) -> Any:
        return packed(q, k, v, cu_seqlens_q, cu_seqlens_k, softmax_scale, causal, window_size)

    module.flash_attn_func, module.flash_attn_varlen_func = flash_attn_func, flash_attn_varlen_func  # type: ignore
    return module


@pytest.fixture(params=["flash_attention_2", "flash_attention_3"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A backend whose package is the stand-in, on a machine that takes the CPU for a GPU."""
    for module in (second(), third()):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(flash, "_on_gpu", lambda q: True)
    flash._functions.cache_clear()
    yield request.param
    flash._functions.cache_clear()


def padding(size: int, *hidden: tuple[int, int, int]) -> torch.Tensor:
    real = torch.ones(ROWS, size, dtype=torch.bool)
    for index, start, end in hidden:
        real[index, start:end] = False
    return real


MASKS = {
    "causal": MaskSpec(9, 9),
    "decode": MaskSpec(1, 12, past=11),
    "chunk": MaskSpec(5, 12, past=7),
    "window": MaskSpec(9, 9, window=3),
    "window-chunk": MaskSpec(5, 9, past=20, offset=16, window=5),
    "left": MaskSpec(9, 9, padding=padding(9, (0, 0, 4))),
    "right": MaskSpec(9, 9, padding=padding(9, (1, 6, 9))),
    "holes": MaskSpec(9, 9, padding=padding(9, (0, 0, 2), (0, 4, 6), (1, 3, 4))),
    "decode-left": MaskSpec(1, 12, past=11, padding=padding(12, (0, 0, 5))),
    "chunk-left": MaskSpec(5, 12, past=7, padding=padding(12, (0, 0, 9))),
    "window-left": MaskSpec(9, 9, window=3, padding=padding(9, (0, 0, 5))),
    "window-right": MaskSpec(9, 9, window=3, padding=padding(9, (0, 0, 1), (1, 7, 9))),
    "encoder": MaskSpec(4, 6, causal=False),
    "encoder-padded": MaskSpec(4, 6, causal=False, padding=padding(6, (0, 0, 2), (1, 5, 6))),
}


@pytest.mark.parametrize("sinks", [False, True], ids=["plain", "sinks"])
@pytest.mark.parametrize("name", MASKS)
def test_equals_eager(backend: str, name: str, sinks: bool) -> None:
    mask = MASKS[name]
    q = torch.randn(ROWS, HEADS, mask.queries, SIZE).half()
    k, v = (torch.randn(ROWS, GROUPS, mask.keys, SIZE).half() for _ in range(2))
    options: dict[str, Any] = {"scale": SCALE, "dropout": 0.0, "upcast": False}
    options["sinks"] = torch.randn(HEADS).half() if sinks else None
    wanted = BACKENDS["eager"](q, k, v, mask, **options)[0]
    got, weights = BACKENDS[backend](q, k, v, mask, **options)
    assert weights is None and got.dtype == q.dtype and got.shape == q.shape
    if mask.padding is not None and mask.causal:
        real = mask.padding[:, int(mask.past) :]  # (B, T)
        assert (got.transpose(1, 2)[~real] == 0).all()  # a padded place has no result
        got, wanted = got.transpose(1, 2)[real], wanted.transpose(1, 2)[real]
    torch.testing.assert_close(got, wanted, rtol=3e-3, atol=3e-3)


def test_gradients_without_sinks(backend: str) -> None:
    mask = MaskSpec(9, 9, padding=padding(9, (0, 0, 4)))
    q, k, v = (torch.randn(ROWS, HEADS, 9, SIZE).half().requires_grad_() for _ in range(3))
    found = []
    for name in ("eager", backend):
        out = BACKENDS[name](q, k, v, mask, scale=SCALE, dropout=0.0, upcast=False, sinks=None)[0]
        loss = out.transpose(1, 2)[mask.padding].float().pow(2).sum()
        found.append(torch.autograd.grad(loss, (q, k, v)))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-2, atol=1e-2)
