"""Native attention says what its reference says: sizes, windows, sinks, padding, strides, threads, every level."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

import quintet
from quintet.errors import InputError
from quintet.kernels import attention as module
from quintet.kernels.attention import attention, attention_reference, native_attention
from quintet.kernels.loader import LEVELS, library, status

# Largest difference to the exact result, as a share of its largest value; shares are rounded to bfloat16 too.
BOUNDS = {torch.float32: 1e-5, torch.bfloat16: 1.2e-2, torch.float16: 1.5e-3}
# New tokens and keys: a few (pieces of keys) and many (blocks), odd, with keys before them and without.
LENGTHS = ((1, 1), (1, 7), (4, 300), (2, 1100), (5, 5), (9, 400), (17, 17), (130, 130), (50, 190))
# Heads, groups, size of a head
HEADS = ((4, 2, 64), (3, 3, 20), (8, 1, 7), (2, 2, 128))
needs_native = pytest.mark.skipif(library() is None, reason=f"no native kernels: {status().reason}")


def stored(rows: int, groups: int, keys: int, size: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys in a slab with room behind them, values in the order of the tokens; what nobody may read is no number."""
    k = torch.full((rows, groups, keys + 3, size), torch.nan, dtype=dtype)
    k[:, :, :keys] = torch.randn(rows, groups, keys, size)
    return k[:, :, :keys], torch.randn(rows, keys, groups, size).to(dtype).transpose(1, 2)


def padded(rows: int, keys: int) -> torch.Tensor:
    """The last row padded on its left by half, and with a hole; the first only with a hole."""
    mask = torch.ones(rows, keys, dtype=torch.bool)
    mask[-1, : keys // 2] = False
    if keys > 20:
        mask[0, 7] = mask[-1, keys - 3] = False
    return mask


def near(got: torch.Tensor | None, exact: torch.Tensor) -> None:
    assert got is not None and got.shape == exact.shape
    assert float((got.double() - exact).abs().max()) <= BOUNDS[got.dtype] * max(1e-3, float(exact.abs().max()))


def check_everything() -> None:
    """What every level of instructions must do; also run in processes of their own."""
    torch.manual_seed(3)
    for dtype in BOUNDS:
        for case, (tokens, keys) in enumerate(LENGTHS):
            for turn, (heads, groups, size) in enumerate(HEADS):
                q = torch.randn(2, tokens, heads, size).to(dtype).transpose(1, 2)
                k, v = stored(2, groups, keys, size, dtype)
                exact = tuple(x.double() for x in (q, k, v))
                sinks = torch.randn(heads).to(dtype)
                for window in (None, 1, 16, 100):
                    padding = padded(2, keys) if (case + turn) % 2 == 0 or window == 16 else None
                    for given in (None, sinks):
                        wide = None if given is None else given.double()
                        got = native_attention(q, k, v, size**-0.5, True, window, padding, given)
                        near(got, attention_reference(*exact, size**-0.5, True, window, padding, wide))
                got = native_attention(q, k, v, 0.3, False, None, None, sinks)
                near(got, attention_reference(*exact, 0.3, False, None, None, sinks.double()))


@needs_native
@pytest.mark.parametrize("threads", [1, 3])
def test_equals_the_reference(threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        check_everything()
    finally:
        torch.set_num_threads(before)


@needs_native
@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("tokens", [1, 3, 7, 70])
def test_a_row_depends_neither_on_its_batch_nor_on_threads(tokens: int, dtype: torch.dtype) -> None:
    keys = 1300
    q, sinks = torch.randn(5, 4, tokens, 64).to(dtype), torch.randn(4).to(dtype)
    k, v = stored(5, 2, keys, 64, dtype)
    padding = torch.ones(5, keys, dtype=torch.bool)
    lengths = (keys, 1037, 613, tokens, 129 + tokens)
    for row, length in enumerate(lengths):
        padding[row, : keys - length] = False
    before = torch.get_num_threads()
    for window in (None, 300):
        found = []
        for threads in (1, 2, 1000):
            torch.set_num_threads(threads)
            try:
                found.append(native_attention(q, k, v, 0.125, True, window, padding, sinks))
            finally:
                torch.set_num_threads(before)
        assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
        for row, length in enumerate(lengths):  # alone, and without what pads it
            part, own = slice(row, row + 1), slice(keys - length, keys)
            got = native_attention(q[part], k[part, :, own], v[part, :, own], 0.125, True, window, None, sinks)
            assert torch.equal(got, found[0][part]), (row, window)


@needs_native
@pytest.mark.parametrize("dtype", BOUNDS)
def test_a_prompt_in_chunks_gives_the_same_bits(dtype: torch.dtype) -> None:
    q, (k, v) = torch.randn(1, 4, 290, 64).to(dtype), stored(1, 2, 290, 64, dtype)
    whole = native_attention(q, k, v, 0.125)
    for begin, end in ((0, 40), (40, 133), (133, 290)):
        part = native_attention(q[:, :, begin:end], k[:, :, :end], v[:, :, :end], 0.125)
        assert torch.equal(part, whole[:, :, begin:end])


@needs_native
@pytest.mark.parametrize("tokens", [2, 30])
def test_what_nobody_sees_may_hold_anything(tokens: int) -> None:
    """Padding that is no number; and a query that sees nothing sees itself."""
    q, (k, v) = torch.randn(2, 2, tokens, 32), stored(2, 2, 40, 32, torch.float32)
    k, v = k.clone(), v.clone()
    k[1, :, :25], v[1, :, :25] = torch.nan, torch.nan
    padding = torch.ones(2, 40, dtype=torch.bool)
    padding[1, :25] = False
    got = native_attention(q, k, v, 0.2, True, None, padding)
    clean = attention_reference(q.double(), k.nan_to_num().double(), v.nan_to_num().double(), 0.2, True, None, padding)
    real = torch.arange(40 - tokens, 40) >= 25
    near(got[0], clean[0])
    near(got[1][:, real], clean[1][:, real])
    assert got[1][:, ~real].isnan().all()


@needs_native
@pytest.mark.parametrize("tokens", [1, 6])
def test_no_number_comes_through_and_large_ones_do_not_overflow(tokens: int) -> None:
    for dtype in BOUNDS:
        q, (k, v) = torch.randn(1, 2, tokens, 64).to(dtype), stored(1, 2, 30, 64, dtype)
        q[0, 1, 0, 3] = torch.nan
        got = native_attention(q, k, v, 1.0)
        assert got[0, 1, 0].isnan().all() and got[0, 0].isfinite().all()
        large = native_attention(q[:, :1] * 100, k[:, :1] * 100, v[:, :1], 1.0)
        near(large, attention_reference(*(x.double() for x in (q[:, :1] * 100, k[:, :1] * 100, v[:, :1])), 1.0))


@needs_native
def test_memory_does_not_grow_with_both_lengths() -> None:
    """One process: scores of 3,000 x 3,000 in 8 heads would be 288 MB."""
    code = """
import resource, torch
from quintet.kernels.attention import native_attention
torch.set_num_threads(2)
q, k, v = (torch.randn(1, 8, 3000, 32) for _ in range(3))
native_attention(q[:, :, :64], k[:, :, :64], v[:, :, :64], 0.2)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
native_attention(q, k, v, 0.2)
native_attention(q, k, v, 0.2, True, 100)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = in_process(code)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 24 * 1024, "result and packed keys and values are 11 MB"


def in_process(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(Path(__file__).parent), str(Path(quintet.__file__).parents[1])])
    env = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "2", **environment}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=False)


@pytest.mark.parametrize("level", LEVELS)
def test_every_level(level: str) -> None:
    native = library()
    if native is None or native.quintet_has(level.encode()) != 1:
        pytest.skip(f"not here: {level}")
    code = f"""
from quintet.kernels.loader import status
assert status().level == {level!r}, status()
from test_native_attention import check_everything
check_everything()
print("same")
"""
    done = in_process(code, QUINTET_ISA=level)
    assert done.returncode == 0 and done.stdout.strip() == "same", done.stderr


@pytest.fixture(params=["as it is", "without the library"])
def either(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    if request.param == "without the library":
        monkeypatch.setattr(module, "library", lambda: None)
    yield


@pytest.mark.usefixtures("either")
@pytest.mark.parametrize("tokens", [1, 12])
def test_operator(tokens: int) -> None:
    q, k, v = torch.randn(2, 4, tokens, 8), torch.randn(2, 2, 20, 8), torch.randn(2, 2, 20, 8)
    padding, sinks = padded(2, 20), torch.randn(4)
    for arguments in ((q, k, v, 0.3), (q, k, v, 0.3, False), (q, k, v, 0.3, True, 5, padding, sinks)):
        near(attention(*arguments), attention_reference(*arguments).double())
        torch.library.opcheck(torch.ops.quintet.attention.default, arguments)
    assert attention(q, k, v, 0.3).transpose(1, 2).is_contiguous()
    wide = attention(q.double(), k.double(), v.double(), 0.3, sinks=sinks.double())
    assert wide.dtype == torch.float64


@needs_native
def test_what_is_not_taken() -> None:
    q, k, v = torch.randn(2, 4, 3, 8), torch.randn(2, 2, 20, 8), torch.randn(2, 2, 20, 8)
    assert native_attention(q.double(), k.double(), v.double(), 0.3) is None
    assert native_attention(q, k.half(), v, 0.3) is None and native_attention(q, k, v[:, :, :19], 0.3) is None
    assert native_attention(q, k, v, 0.0) is None and native_attention(q, k, v, float("nan")) is None
    assert native_attention(q[..., ::2], k[..., ::2], v[..., ::2], 0.3) is None
    assert native_attention(q[:, :3], k, v, 0.3) is None and native_attention(q[:1], k, v, 0.3) is None
    assert native_attention(q, k[:, :, :2], v[:, :, :2], 0.3) is None
    assert native_attention(q, k, v, 0.3, False, 5) is None
    assert native_attention(q, k, v, 0.3, padding=torch.ones(2, 19, dtype=torch.bool)) is None
    assert native_attention(q, k, v, 0.3, sinks=torch.randn(3)) is None
    assert native_attention(q[:, :, :0], k, v, 0.3) is None


@needs_native
def test_the_structure_is_that_of_the_library_and_refuses_wild_numbers() -> None:
    native = library()
    native.quintet_attention_bytes.restype = ctypes.c_int64
    assert native.quintet_attention_bytes() == ctypes.sizeof(module._Call)
    good = torch.randn(64)

    def code(**changed: object) -> int:
        at = good.data_ptr()
        call = module._Call(0, 0, 1, 1, 1, 2, 4, 8, at, at, at, at, scale=1.0, causal=1, past=2, threads=1)
        for name in ("query", "key", "value", "out"):
            getattr(call, f"{name}_strides")[:] = (0, 0, 8)
        for name, value in changed.items():
            setattr(call, name, value)
        return native.quintet_attention(ctypes.byref(call))

    assert code() == 0
    for name in ("texts", "heads", "groups", "tokens", "keys", "head"):
        for wild in (0, -1, 1 << 40, -(1 << 62)):
            assert code(**{name: wild}) == 1, (name, wild)
    for name, wild in (("type", 3), ("sinks_type", -1), ("past", 3), ("past", -1), ("window", -1), ("scale", 0.0)):
        assert code(**{name: wild}) == 1, (name, wild)
    for name in ("queries", "stored", "values", "out"):
        assert code(**{name: None}) == 1, name
    assert code(scale=float("inf")) == 1 and code(window=3, causal=0) == 1


def test_what_does_not_fit_is_said() -> None:
    q, k = torch.randn(2, 4, 3, 8), torch.randn(2, 2, 20, 8)
    with pytest.raises(InputError, match=r"queries of shape \[2, 3, 3, 8\].*H a multiple of G"):
        attention(q[:, :3], k, k, 0.3)
    with pytest.raises(InputError, match=r"keys of torch.float64.*Pass one type"):
        attention(q, k.double(), k, 0.3)
    with pytest.raises(InputError, match="3 queries for 2 keys"):
        attention(q, k[:, :, :2], k[:, :, :2], 0.3)
    with pytest.raises(InputError, match="window=0 with causal=True"):
        attention(q, k, k, 0.3, window=0)
    with pytest.raises(InputError, match=r"padding of shape \[2, 19\].*Pass \[2, 20\] of bool"):
        attention(q, k, k, 0.3, padding=torch.ones(2, 19, dtype=torch.bool))
    with pytest.raises(InputError, match=r"sinks of shape \[3\].*for 4 heads"):
        attention(q, k, k, 0.3, sinks=torch.randn(3))


# --- the work, and not only the result ----------------------------------------------------------------------------


def fastest(*ways: Callable[[], object], rounds: int = 15) -> list[float]:
    """Seconds of each at best, taken in turn, so that what else the machine does is left out."""
    best = [float("inf")] * len(ways)
    for _ in range(rounds):
        for place, way in enumerate(ways):
            began = time.perf_counter()
            way()
            best[place] = min(best[place], time.perf_counter() - began)
    return best


@needs_native
@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_window_leaves_whole_blocks_out(dtype: torch.dtype) -> None:
    """Of 4,096 keys a query sees 128, of the causal half that is a sixteenth; a mask would save nothing."""
    q, k, v = (torch.randn(1, 4, 4096, 64).to(dtype) for _ in range(3))
    whole, window = fastest(
        lambda: native_attention(q, k, v, 0.125), lambda: native_attention(q, k, v, 0.125, True, 128), rounds=5
    )
    assert window < 0.4 * whole


@needs_native
@pytest.mark.slow
def test_one_text_with_one_head_is_shared_among_threads() -> None:
    """By pieces of its length, as there is nothing else to share."""
    if len(os.sched_getaffinity(0)) < 2 or not status().threads:
        pytest.skip("one core, or no threads")
    q, k, v = torch.randn(1, 4, 1, 64), torch.randn(1, 1, 2**14, 64), torch.randn(1, 1, 2**14, 64)
    before = torch.get_num_threads()

    def on(threads: int) -> None:
        torch.set_num_threads(threads)
        native_attention(q, k, v, 0.125)

    try:
        one, two = fastest(lambda: on(1), lambda: on(2), rounds=200)
    finally:
        torch.set_num_threads(before)
    assert two < 0.85 * one
