"""Kernels where they could hang or read what is not there: after fork, any number of threads, null, no torch at all."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import quintet
from quintet.kernels import attention, head, integers, linear, mxfp4, norms
from quintet.kernels.attention import native_attention
from quintet.kernels.head import native_head_topk
from quintet.kernels.integers import native_int4_linear, native_int8_linear
from quintet.kernels.linear import native_matmul, native_matvec
from quintet.kernels.loader import FEW_ROWS, NATIVE_OPS, PATH, library, status
from quintet.kernels.mxfp4 import native_mxfp4_experts, native_mxfp4_matvec
from quintet.kernels.norms import native_layer_norm, native_rms_norm, native_rope
from quintet.kernels.packing import quantize_int4, quantize_int8

pytestmark = pytest.mark.skipif(library() is None, reason=f"no native kernels: {status().reason}")
MODULES = (linear, mxfp4, integers, attention, head, norms)
PATIENCE = 240  # seconds for a process that takes two


def packed(outputs: int, groups: int, *lead: int) -> tuple[torch.Tensor, torch.Tensor]:
    blocks = torch.randint(0, 256, (*lead, outputs, groups, 16), dtype=torch.uint8)
    return blocks, torch.randint(113, 126, (*lead, outputs, groups), dtype=torch.uint8)


def calls(rows: int) -> dict[str, Callable[[], torch.Tensor | None]]:
    """Every operation, large enough to be shared among threads."""
    torch.manual_seed(rows)
    weight, x, bias = torch.randn(1100, 320), torch.randn(rows, 320), torch.randn(1100)
    eight, four, mx = quantize_int8(weight, 32), quantize_int4(weight, 32, False), packed(1100, 10)
    into, out = packed(2 * 256, 10, 4), packed(320, 8, 4)
    stacks = (*into, torch.randn(4, 512), *out, torch.randn(4, 320))
    indices, shares = torch.randint(0, 4, (rows, 2)), torch.rand(rows, 2)
    q, k, v = torch.randn(2, 8, rows, 32), torch.randn(2, 2, rows + 600, 32), torch.randn(2, 2, rows + 600, 32)
    seen, sinks = torch.rand(2, rows + 600) > 0.2, torch.randn(8)
    halves = [part.bfloat16() for part in (x, weight, bias)]
    wide, residual, scale, shift = torch.randn(rows, 1100), torch.randn(rows, 1100), torch.randn(1100), bias
    cosines, sines = torch.randn(2, rows, 16).cos(), torch.randn(2, rows, 16).sin()
    return {
        "matvec": lambda: native_matvec(x, weight, bias),
        "matmul": lambda: native_matmul(*halves),
        "int8_linear": lambda: native_int8_linear(x, *eight, bias),
        "int4_linear": lambda: native_int4_linear(x, *four, bias),
        "mxfp4_matvec": lambda: native_mxfp4_matvec(x, *mx, bias),
        "mxfp4_experts": lambda: native_mxfp4_experts(x, indices, shares, stacks, 1.7, 7.0),
        "attention": lambda: native_attention(q, k, v, 0.2, True, 500, seen, sinks),
        "head_topk": lambda: together(native_head_topk(x[:FEW_ROWS], weight, 9, bias=bias)),
        "rms_norm": lambda: first(native_rms_norm(wide, scale, 1e-5, residual)),
        "layer_norm": lambda: first(native_layer_norm(wide, scale, shift, 1e-5, residual)),
        "rope": lambda: native_rope(q, cosines, sines),
    }


def first(found: tuple[torch.Tensor, ...] | None) -> torch.Tensor | None:
    """The norm; the sum with the residual, which it is of, is the second."""
    return None if found is None else found[0]


def together(found: tuple[torch.Tensor, ...] | None) -> torch.Tensor | None:
    """Logits, tokens and the log-sum-exp of each row."""
    return None if found is None else torch.cat([found[0], found[1].float(), found[2][:, None]], dim=1)


OPERATIONS = sorted(calls(1))


def test_no_operation_is_left_out() -> None:
    """The blocks of a model have tests of their own, in tests/fused."""
    assert {*OPERATIONS, "blocks"} == set(NATIVE_OPS)


def in_process(code: str, *, patience: float = PATIENCE, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a program; what hangs fails with what it had printed."""
    path = os.pathsep.join([str(Path(__file__).parent), str(Path(quintet.__file__).parents[1])])
    env = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "2", **environment}
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=env, check=False, timeout=patience
    )


@pytest.mark.parametrize("rows", [1, 8, 33])
@pytest.mark.parametrize("threads", [1000, 0, -3])
@pytest.mark.parametrize("name", OPERATIONS)
def test_any_number_of_threads_may_be_asked_of_the_library(
    name: str, threads: int, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = calls(rows)[name]
    before = call()
    assert before is not None
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    for _ in range(2):
        assert torch.equal(call(), before)


class WithNull:
    """In the place of the library: tries null in the place of every buffer, before the call that is asked for."""

    def __init__(self, native: ctypes.CDLL) -> None:
        self.native = native
        self.codes: list[int] = []

    def __getattr__(self, name: str) -> Callable[..., int]:
        function: Any = getattr(self.native, name)

        def called(*given: Any) -> int:
            for place, (kind, value) in enumerate(zip(function.argtypes, given, strict=True)):
                if isinstance(getattr(value, "_obj", None), ctypes.Structure):  # buffers within a structure
                    self.codes.extend(function(ctypes.byref(one)) for one in each_with_null(value._obj))
                elif kind is ctypes.c_void_p and value is not None:
                    self.codes.append(function(*given[:place], None, *given[place + 1 :]))
            return int(function(*given))

        return called


def each_with_null(structure: Any) -> Iterator[ctypes.Structure]:
    """Copies with null in the place of one buffer each."""
    for name, kind in structure._fields_:
        if kind is ctypes.c_void_p and getattr(structure, name) is not None:
            copy = type(structure).from_buffer_copy(structure)
            setattr(copy, name, None)
            yield copy


@pytest.mark.parametrize("name", OPERATIONS)
def test_null_is_refused_wherever_something_must_be(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    call = calls(2)[name]
    before, native = call(), WithNull(library())  # type: ignore[arg-type]
    for module in MODULES:
        monkeypatch.setattr(module, "library", lambda: native)
    assert torch.equal(call(), before)
    assert len(native.codes) >= 4 and set(native.codes) <= {0, 1}
    # a bias, the zero points of 4 bits, padding, sinks and room for a log-sum-exp need not be there; all else must
    may = {"int4_linear": 2, "mxfp4_experts": 0, "attention": 2, "head_topk": 2, "rms_norm": 0, "rope": 0}
    assert native.codes.count(0) == may.get(name, 1)


def test_no_scales_and_scales_of_another_size_are_not_read() -> None:
    x, weight = torch.randn(2, 64), torch.randn(9, 64)
    eight, scale = quantize_int8(weight, 32)
    packed4, scale4, _ = quantize_int4(weight, 32)
    for wrong in (scale[:0], scale[:, :0], scale[:8], torch.empty(0), scale[0], scale.to("meta")):
        assert native_int8_linear(x, eight, wrong) is None
    for wrong in (scale4[:0], scale4[:, :0], scale4[:8], torch.empty(0), scale4.to("meta")):
        assert native_int4_linear(x, packed4, wrong) is None
    blocks, scales = packed(9, 2)
    for wrong in (scales[:0], scales[:, :0], scales[:, :1], scales[0], scales.to("meta"), scales.int()):
        assert native_mxfp4_matvec(x, blocks, wrong) is None


AFTER_FORK = """
import os, signal
import torch
import test_kernel_safety
torch.set_num_threads(2)
made = [calls for rows in (1, 8, 33) for calls in test_kernel_safety.calls(rows).values()]
def numbers(call): return call().view(torch.uint8).numpy().tobytes()  # torch's own threads do not live on in a child
want = [numbers(call) for call in made]
assert len(os.listdir("/proc/self/task")) > 1, "threads are there"
for again in range(3):
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        right = all(numbers(call) == one for call, one in zip(made, want))
        grandchild = os.fork()
        if grandchild == 0:
            os._exit(0 if numbers(made[0]) == want[0] else 4)
        right &= os.waitpid(grandchild, 0)[1] == 0
        os._exit(0 if right else 3)
    here = all(numbers(call) == one for call, one in zip(made, want))  # while the child is at it
    print(os.waitpid(child, 0)[1], here)
"""


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork here")
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_every_operation_in_children_of_fork() -> None:
    """Their parent has used all of them on two threads, and goes on meanwhile."""
    done = in_process(AFTER_FORK)
    assert done.returncode == 0 and done.stdout.split() == ["0", "True"] * 3, done.stdout + done.stderr


ONE_THREAD = """
import os
import torch
import test_kernel_safety
torch.set_num_threads(1)
tasks = lambda: len(os.listdir("/proc/self/task"))
made = [calls for rows in (1, 8, 33) for calls in test_kernel_safety.calls(rows).values()]
before = tasks()
first = [call() for call in made]
alone = tasks() - before
torch.set_num_threads(3)
again = [call() for call in made]
print(alone, tasks() > before, all(torch.equal(a, b) for a, b in zip(first, again)))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_the_number_of_threads_is_torchs() -> None:
    """One means that nobody is woken; more, that they are."""
    done = in_process(ONE_THREAD, OMP_NUM_THREADS="1")
    assert done.stdout.split() == ["0", "True", "True"], done.stdout + done.stderr


TOGETHER = """
import sys, threading
import torch
import test_kernel_safety
torch.set_num_threads(2)
want = {rows: {n: call() for n, call in test_kernel_safety.calls(rows).items()} for rows in (1, 8, 33)}
wrong = []
def work(rows):
    made = test_kernel_safety.calls(rows)
    for _ in range(15):
        wrong.extend(name for name, call in made.items() if not torch.equal(call(), want[rows][name]))
threads = [threading.Thread(target=work, args=(rows,)) for rows in (1, 8, 33, 1, 8)]
kept = {rows: test_kernel_safety.calls(rows) for rows in want}
test_kernel_safety.calls = kept.get  # random numbers are drawn once
for thread in threads: thread.start()
for thread in threads: thread.join()
print(len(wrong))
"""


def test_five_threads_of_python_with_every_operation() -> None:
    done = in_process(TOGETHER)
    assert done.returncode == 0 and done.stdout.split() == ["0"], done.stdout + done.stderr


BARE = """
import ctypes, sys
native = ctypes.CDLL({path!r})
native.quintet_runtime.restype = ctypes.c_char_p
assert native.quintet_matvec(0, *[ctypes.c_int64(1)] * 3, *[None] * 6) == 1, "before a level is chosen"
assert native.quintet_has(b"portable") == 1 and native.quintet_has(b"sse9") == -1
assert native.quintet_choose(b"portable") == 0 and native.quintet_choose(b"sse9") == 1
one, out = (ctypes.c_float * 8)(*range(8)), (ctypes.c_float * 1)()
size, at = ctypes.c_int64, ctypes.addressof
void = ctypes.c_void_p
code = native.quintet_matvec(0, size(1), size(8), size(1), void(at(one)), size(8), void(at(one)), size(8), None,
                             void(at(out)), size(1000))
print(code, out[0], native.quintet_runtime().decode() == "", "torch" in sys.modules)
"""


def test_the_library_needs_neither_torch_nor_its_threads() -> None:
    """It is loaded by a Python that has imported nothing; without an OpenMP runtime it computes on one thread."""
    done = subprocess.run(
        [sys.executable, "-S", "-c", BARE.format(path=str(PATH))], capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == ["0", "140.0", "True", "False"], done.stdout + done.stderr
