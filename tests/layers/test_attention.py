"""Every backend over every kind of mask equals attention written out in double precision, and so do its gradients.

Letters: B rows, H query heads, G key/value heads, T queries, K keys, D head size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch

from quintet.kernels.loader import library
from quintet.layers.attention import BACKENDS, attend, native, rules, sdpa, usable_backends
from quintet.layers.masks import MaskSpec
from quintet.layers.step import Step

ROWS, HEADS, SIZE = 2, 8, 16
SCALE = SIZE**-0.5


def padded(size: int, *hidden: tuple[int, int, int]) -> torch.Tensor:
    """(B, S) bool, False at the given (row, from, to)."""
    padding = torch.ones(ROWS, size, dtype=torch.bool)
    for row, start, end in hidden:
        padding[row, start:end] = False
    return padding


def drawn(*shape: int, share: float = 0.6) -> torch.Tensor:
    """A bool mask in which every query sees some key."""
    rule = torch.rand(shape, generator=torch.Generator().manual_seed(1)) < share
    rule[..., 0] = True
    return rule


def numbers(*shape: int) -> torch.Tensor:
    """A float mask, part of it -inf."""
    generator = torch.Generator().manual_seed(2)
    return torch.randn(shape, generator=generator).masked_fill(~drawn(*shape), -torch.inf)


# Made anew at every use: a mask keeps what backends make of it.
MASKS: dict[str, Callable[[], MaskSpec]] = {
    "causal": lambda: MaskSpec(9, 9),
    "first": lambda: MaskSpec(1, 1),
    "decode": lambda: MaskSpec(1, 12, past=11),
    "chunk": lambda: MaskSpec(5, 12, past=7),
    "left": lambda: MaskSpec(9, 9, padding=padded(9, (0, 0, 4))),
    "right": lambda: MaskSpec(9, 9, padding=padded(9, (1, 6, 9))),
    "holes": lambda: MaskSpec(9, 9, padding=padded(9, (0, 0, 2), (0, 4, 6), (1, 3, 4))),
    "decode-left": lambda: MaskSpec(1, 12, past=11, padding=padded(12, (0, 0, 5))),
    "chunk-left": lambda: MaskSpec(5, 12, past=7, padding=padded(12, (0, 0, 8))),
    "long-chunk-left": lambda: MaskSpec(21, 30, past=9, padding=padded(30, (0, 0, 12))),
    "window": lambda: MaskSpec(9, 9, window=3),
    "window-decode": lambda: MaskSpec(1, 4, past=20, offset=17, window=4),
    "window-decode-all": lambda: MaskSpec(1, 21, past=20, window=4),
    "window-chunk": lambda: MaskSpec(5, 9, past=20, offset=16, window=5),
    "window-left": lambda: MaskSpec(9, 9, window=3, padding=padded(9, (0, 0, 5), (1, 2, 6))),
    "window-long": lambda: MaskSpec(150, 150, window=4, padding=padded(150, (0, 0, 70), (1, 90, 95))),
    "window-long-chunk": lambda: MaskSpec(140, 160, past=30, offset=10, window=9),
    "fixed": lambda: MaskSpec(2, 16, past=torch.tensor(5), offset=torch.tensor(0)),
    "fixed-left": lambda: MaskSpec(
        2, 16, past=torch.tensor(5), offset=torch.tensor(0), padding=padded(7, (0, 0, 6), (1, 0, 1))
    ),
    "fixed-window": lambda: MaskSpec(1, 5, past=torch.tensor(2), offset=torch.tensor(-2), window=4),
    "bool": lambda: MaskSpec(9, 12, past=3, given=drawn(ROWS, 1, 9, 12)),
    "bool-heads": lambda: MaskSpec(9, 12, past=3, given=drawn(1, HEADS, 9, 12)),
    "bool-heads-decode": lambda: MaskSpec(1, 12, past=11, given=drawn(ROWS, HEADS, 1, 12)),
    "bool-columns": lambda: MaskSpec(4, 12, past=8, given=drawn(ROWS, 1, 1, 12)),
    "float": lambda: MaskSpec(9, 12, past=3, given=numbers(ROWS, 1, 9, 12)),
    "float-heads": lambda: MaskSpec(20, 32, past=12, given=numbers(1, HEADS, 20, 32)),
    "float-heads-decode": lambda: MaskSpec(1, 12, past=11, given=numbers(ROWS, HEADS, 1, 12)),
    "encoder": lambda: MaskSpec(4, 6, causal=False),
    "encoder-padded": lambda: MaskSpec(4, 6, causal=False, padding=padded(6, (0, 0, 2), (1, 5, 6))),
}


@dataclass
class Inputs:
    """Queries (B, H, T, D), keys and values (B, G, K, D), sinks (H,) or None."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    sinks: torch.Tensor | None

    def tensors(self) -> list[torch.Tensor]:
        """Those that there are."""
        return [x for x in (self.q, self.k, self.v, self.sinks) if x is not None]


def inputs(mask: MaskSpec, groups: int, sinks: bool, dtype: torch.dtype = torch.float32) -> Inputs:
    """Numbers of one seed, as views of larger tensors: so a cache and a fused projection hand them over."""
    generator = torch.Generator().manual_seed(3)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    return Inputs(
        draw(ROWS, mask.queries, HEADS, SIZE).transpose(1, 2),
        draw(ROWS, groups, mask.keys + 3, SIZE)[:, :, : mask.keys],
        draw(ROWS, groups, mask.keys + 3, SIZE)[:, :, : mask.keys],
        draw(HEADS) + 1 if sinks else None,
    )


def visible(mask: MaskSpec) -> torch.Tensor:
    """The rule of a mask that is not the caller's, written out: (B, T, K) bool."""
    padding = None if mask.padding is None else tuple(map(tuple, mask.padding.tolist()))
    return written_out(mask.queries, mask.keys, int(mask.past), int(mask.offset), mask.causal, mask.window, padding)


@cache
def written_out(
    queries: int, keys: int, past: int, offset: int, causal: bool, window: int | None, padding: Any
) -> torch.Tensor:
    rule = torch.zeros(ROWS, queries, keys, dtype=torch.bool)
    for row in range(ROWS):
        for query in range(queries):
            own = past + query
            for key in range(keys):
                slot = offset + key
                seen = slot >= 0
                if causal:
                    seen = seen and slot <= own
                if window is not None:
                    seen = seen and own - slot < window
                if padding is not None:
                    seen = seen and slot < len(padding[row]) and padding[row][slot]
                rule[row, query, key] = seen
            if not rule[row, query].any():
                rule[row, query, own - offset] = True
    return rule


def reference(x: Inputs, mask: MaskSpec) -> torch.Tensor:
    """softmax over the keys, and the sink as one of them, in double precision: (B, H, T, D)."""
    repeated = HEADS // x.k.shape[1]
    k, v = (y.double().repeat_interleave(repeated, dim=1) for y in (x.k, x.v))  # (B, H, K, D)
    scores = x.q.double() @ k.transpose(-1, -2) * SCALE  # (B, H, T, K)
    if mask.given is None:
        scores = scores.masked_fill(~visible(mask)[:, None].to(scores.device), -torch.inf)
    elif mask.given.dtype == torch.bool:
        scores = scores.masked_fill(~mask.given.to(scores.device), -torch.inf)
    else:
        scores = scores + mask.given.to(scores)
    if x.sinks is None:
        return torch.softmax(scores, -1) @ v
    column = x.sinks.double().view(1, HEADS, 1, 1).expand(*scores.shape[:3], 1)
    return torch.softmax(torch.cat([scores, column], -1), -1)[..., :-1] @ v


def run(backend: str, x: Inputs, mask: MaskSpec, dropout: float = 0.0) -> torch.Tensor:
    """The output of one backend."""
    return BACKENDS[backend](x.q, x.k, x.v, mask, scale=SCALE, dropout=dropout, upcast=False, sinks=x.sinks)[0]


# What rounding of inputs, weights and outputs may do; the reference is in double precision on the same inputs.
BOUNDS = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3, torch.float64: 1e-12}

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def close(got: torch.Tensor, wanted: torch.Tensor, bound: float) -> None:
    torch.testing.assert_close(got.double(), wanted.double(), rtol=bound, atol=bound)


@pytest.mark.parametrize("sinks", [False, True], ids=["plain", "sinks"])
@pytest.mark.parametrize("groups", [8, 4, 1])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_equals_the_definition(backend: str, mask: str, groups: int, sinks: bool) -> None:
    for dtype, bound in BOUNDS.items():
        x = inputs(MASKS[mask](), groups, sinks, dtype)
        got = run(backend, x, MASKS[mask]())
        assert got.dtype == dtype and got.shape == x.q.shape
        close(got, reference(x, MASKS[mask]()), bound)


@pytest.mark.skipif(library() is None, reason="no native kernels")
@pytest.mark.parametrize("sinks", [False, True], ids=["plain", "sinks"])
@pytest.mark.parametrize("groups", [8, 2])
@pytest.mark.parametrize("mask", MASKS)
def test_native_attention_equals_the_definition(
    mask: str, groups: int, sinks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it does not take goes to sdpa: masks of the caller, caches of fixed shape, padding without causality."""
    given_up: list[str] = []
    monkeypatch.setattr(native, "pays", lambda q, k: True)
    monkeypatch.setattr(native, "sdpa", lambda *args, **options: given_up.append(mask) or sdpa.sdpa(*args, **options))
    for dtype, bound in BOUNDS.items():
        x = inputs(MASKS[mask](), groups, sinks, dtype)
        given_up.clear()
        with torch.no_grad():
            got = native.native(x.q, x.k, x.v, MASKS[mask](), scale=SCALE, dropout=0.0, upcast=False, sinks=x.sinks)[0]
        close(got, reference(x, MASKS[mask]()), bound)
        others = mask.startswith(("bool", "float", "fixed")) or mask == "encoder-padded" or dtype == torch.float64
        assert bool(given_up) == others
    with torch.enable_grad():
        native.native(x.q, x.k, x.v, MASKS[mask](), scale=SCALE, dropout=0.0, upcast=False, sinks=x.sinks)
    assert given_up, "gradients are torch's"


@pytest.mark.parametrize("mask", MASKS)
def test_flex_attention_equals_the_definition(mask: str) -> None:
    """In fewer combinations: without a compiler it is slow."""
    for groups, sinks in ((8, False), (4, True), (1, True)) if mask == "chunk-left" else ((4, True),):
        x = inputs(MASKS[mask](), groups, sinks)
        close(run("flex_attention", x, MASKS[mask]()), reference(x, MASKS[mask]()), 1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_flex_attention_in_other_dtypes(dtype: torch.dtype) -> None:
    for mask in ("left", "float-heads"):
        x = inputs(MASKS[mask](), 4, True, dtype)
        got = run("flex_attention", x, MASKS[mask]())
        assert got.dtype == dtype
        close(got, reference(x, MASKS[mask]()), max(BOUNDS[dtype], 1e-6))


def gradients(out: torch.Tensor, x: Inputs) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(4)
    direction = torch.randn(out.shape, generator=generator).to(out)
    return torch.autograd.grad(out, x.tensors(), direction)


@pytest.mark.parametrize("sinks", [False, True], ids=["plain", "sinks"])
@pytest.mark.parametrize("groups", [8, 2])
@pytest.mark.parametrize("mask", [name for name in MASKS if not name.startswith("fixed")])
@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_gradients_equal_those_of_the_definition(backend: str, mask: str, groups: int, sinks: bool) -> None:
    for dtype, bound in ((torch.float32, 1e-4), (torch.bfloat16, 0.1), (torch.float16, 2e-2)):
        x = inputs(MASKS[mask](), groups, sinks, dtype)
        for tensor in x.tensors():
            tensor.requires_grad_()
        wanted = gradients(reference(x, MASKS[mask]()), x)
        for got, expected in zip(gradients(run(backend, x, MASKS[mask]()), x), wanted, strict=True):
            assert got.dtype == dtype
            close(got, expected, bound)


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize("sinks", [False, True], ids=["plain", "sinks"])
def test_a_float_mask_gets_its_gradient(backend: str, sinks: bool) -> None:
    x = inputs(MASKS["causal"](), 4, sinks)
    bias = torch.randn(1, HEADS, 9, 9, requires_grad=True)
    wanted = torch.autograd.grad(reference(x, MaskSpec(9, 9, given=bias)).sum(), bias)[0]
    got = torch.autograd.grad(run(backend, x, MaskSpec(9, 9, given=bias)).sum(), bias)[0]
    assert wanted.abs().max() > 0.1
    close(got, wanted, 1e-4)


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_row_that_is_hidden_altogether_is_finite(backend: str, dtype: torch.dtype) -> None:
    hidden = torch.full((ROWS, 1, 9, 9), -torch.inf)
    for given in (hidden, hidden.clamp_min(torch.finfo(torch.float32).min), torch.zeros(ROWS, 1, 9, 9).bool()):
        for sinks in (False, True):
            x = inputs(MASKS["causal"](), 4, sinks, dtype)
            for tensor in x.tensors():
                tensor.requires_grad_()
            out = run(backend, x, MaskSpec(9, 9, given=given))
            assert out.isfinite().all()
            assert all(gradient.isfinite().all() for gradient in gradients(out, x))


@pytest.mark.parametrize("backend", ["eager", "sdpa", "flex_attention"])
def test_scores_beyond_float16(backend: str) -> None:
    """Products of up to 10,000 * 16 are infinite in float16; scaled scores are not."""
    x = inputs(MASKS["causal"](), 4, False, torch.float16)
    x.q, x.k = x.q.clamp(-1, 1) * 100, x.k.clamp(-1, 1) * 100
    assert (x.q @ x.k.repeat_interleave(2, 1).transpose(-1, -2)).isinf().any()
    close(run(backend, x, MaskSpec(9, 9)), reference(x, MaskSpec(9, 9)), 3e-3)


def test_windows_are_cut_into_pieces_where_it_pays() -> None:
    for name in MASKS:
        pieces = rules.window_pieces(MASKS[name]())
        assert bool(pieces) == name.startswith("window-long")
        if pieces:
            mask = MASKS[name]()
            assert [piece[0] for piece in pieces[1:]] == [piece[1] for piece in pieces[:-1]]
            assert pieces[0][0] == 0 and pieces[-1][1] == mask.queries
            assert all(high - low < end - start + mask.window for start, end, low, high, _ in pieces)
    assert rules.window_pieces(MaskSpec(100_000, 100_000, window=128))[-1][1] == 100_000
    assert len(rules.window_pieces(MaskSpec(100_000, 100_000, window=128))) <= rules.MOST_PIECES


def test_copies_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Groups of heads go through float32 a few at a time when there are many keys."""
    for count in (1, 3 * 2 * ROWS * 12 * SIZE * 4):  # one group, three groups
        monkeypatch.setattr(sdpa, "COPY", count)
        for mask in ("decode", "decode-left", "float-heads-decode", "bool-heads", "causal"):
            for groups, sinks in ((8, True), (4, False), (8, False), (4, True)):
                x = inputs(MASKS[mask](), groups, sinks, torch.float16)
                close(run("sdpa", x, MASKS[mask]()), reference(x, MASKS[mask]()), BOUNDS[torch.float16])


@pytest.mark.parametrize("mask", ["causal", "long-chunk-left", "float-heads", "bool-heads", "window-long"])
def test_kernels_that_would_repeat_keys_run_head_by_head(monkeypatch: pytest.MonkeyPatch, mask: str) -> None:
    monkeypatch.setattr(sdpa, "FOLD", 0)
    monkeypatch.setattr(sdpa, "_shares_keys", lambda *_: False)
    for sinks in (False, True):
        x = inputs(MASKS[mask](), 2, sinks)
        for tensor in x.tensors():
            tensor.requires_grad_()
        wanted = reference(x, MASKS[mask]())
        got = run("sdpa", x, MASKS[mask]())
        close(got, wanted, 1e-5)
        for one, other in zip(gradients(got, x), gradients(wanted, x), strict=True):
            close(one, other, 1e-4)


def test_dropout_keeps_the_mean() -> None:
    mask = MaskSpec(9, 9)
    for backend in ("eager", "sdpa"):
        for groups, sinks in ((8, False), (2, False), (2, True)):
            x = inputs(mask, groups, sinks)
            mean = torch.stack([run(backend, x, mask, dropout=0.3) for _ in range(600)]).mean(0)
            assert not torch.equal(run(backend, x, mask, dropout=0.3), run(backend, x, mask, dropout=0.3))
            close(mean, reference(x, mask), 0.2)


@pytest.mark.parametrize("sinks", [False, True], ids=["plain", "sinks"])
@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize("queries", [1, 9, 150])
def test_compiles_to_one_graph(backend: str, sinks: bool, queries: int) -> None:
    torch._dynamo.reset()
    mask = MaskSpec(queries, queries, window=4)
    x = inputs(mask, 4, sinks)

    def layer(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, sinks: torch.Tensor | None) -> torch.Tensor:
        step = Step(masks=(MaskSpec(queries, queries, window=4),), backend=backend)
        return attend(q, k, v, step, 0, scale=SCALE, sinks=sinks)

    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    wanted = reference(x, mask).transpose(1, 2).flatten(2)
    with torch.no_grad():
        close(compiled(x.q, x.k, x.v, x.sinks), wanted, 1e-5)
    for tensor in x.tensors():
        tensor.requires_grad_()
    out = compiled(x.q, x.k, x.v, x.sinks)
    for got, expected in zip(gradients(out, x), gradients(layer(x.q, x.k, x.v, x.sinks), x), strict=True):
        close(got, expected, 1e-4)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("sinks", [False, True], ids=["plain", "sinks"])
@pytest.mark.parametrize("groups", [8, 2])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("backend", usable_backends())
def test_on_a_gpu(backend: str, mask: str, groups: int, sinks: bool) -> None:
    flash = backend.startswith("flash")
    if flash and (mask.startswith(("bool", "float", "fixed")) or mask == "window-left"):
        pytest.skip("refused, as the tests of limits hold")
    for dtype in (torch.bfloat16, torch.float16) if flash else (torch.float32, torch.bfloat16):
        x = inputs(MASKS[mask](), groups, sinks, dtype)
        x = Inputs(x.q.cuda(), x.k.cuda(), x.v.cuda(), None if x.sinks is None else x.sinks.cuda())
        wanted = reference(x, MASKS[mask]())
        with torch.no_grad():
            got = run(backend, x, MASKS[mask]())
        spec = MASKS[mask]()
        if flash and spec.padding is not None and spec.causal:  # padded places get zeros there
            real = spec.padding[:, int(spec.past) :].cuda()
            got, wanted = got.transpose(1, 2)[real], wanted.transpose(1, 2)[real]
        close(got, wanted, 2e-2 if dtype != torch.float32 else 1e-4)
        if flash and sinks:
            continue
        for tensor in x.tensors():
            tensor.requires_grad_()
        if not flash or spec.padding is None:
            pairs = zip(
                gradients(run(backend, x, MASKS[mask]()), x), gradients(reference(x, MASKS[mask]()), x), strict=True
            )
            for one, other in pairs:
                close(one, other, 0.1 if dtype != torch.float32 else 1e-3)
