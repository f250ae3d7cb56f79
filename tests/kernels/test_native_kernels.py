"""Native kernels say what their references say: every size, type, order in memory and number of rows; any threads."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import pytest
import torch

import quintet
from quintet.errors import InputError
from quintet.kernels.linear import linear_reference, matmul, matvec, native_matmul, native_matvec
from quintet.kernels.loader import FEW_ROWS, LEVELS, check, library, status
from quintet.kernels.mxfp4 import (
    mxfp4_experts,
    mxfp4_experts_reference,
    mxfp4_matvec,
    mxfp4_matvec_reference,
    native_mxfp4_experts,
    native_mxfp4_matvec,
)
from quintet.quant.mxfp4 import unpack

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# Largest difference to the exact product, as a share of its largest value: the rounding of the result, and sums.
BOUNDS = {torch.float32: 2e-6, torch.bfloat16: 4e-3, torch.float16: 6e-4}
# What x may be multiplied as without being rounded.
EXACT = ("bf16", "tiles")
# Numbers of rows: each of the few, and many, the last in no tile's multiple.
ROWS = (*range(1, FEW_ROWS + 1), 9, 12, 33)
needs_native = pytest.mark.skipif(library() is None, reason=f"no native kernels: {status().reason}")


def near(got: torch.Tensor, exact: torch.Tensor) -> None:
    assert got.shape == exact.shape
    bound = BOUNDS[got.dtype] * max(1e-30, float(exact.abs().max()))
    assert float((got.double() - exact).abs().max()) <= bound


def packed(outputs: int, groups: int, *lead: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Random bytes: every code, scales from 2^-9 to 2^3."""
    blocks = torch.randint(0, 256, (*lead, outputs, groups, 16), dtype=torch.uint8)
    return blocks, torch.randint(118, 131, (*lead, outputs, groups), dtype=torch.uint8)


def stacks(dtype: torch.dtype, experts: int = 5, hidden: int = 96, inner: int = 160) -> tuple[torch.Tensor, ...]:
    into, out = packed(2 * inner, hidden // 32, experts), packed(hidden, inner // 32, experts)
    return (
        *(into[0], into[1] - 5, torch.randn(experts, 2 * inner).to(dtype)),
        *(out[0], out[1] - 5, torch.randn(experts, hidden).to(dtype)),
    )


def check_everything() -> None:
    """What every level of instructions must do; also run in processes of their own."""
    torch.manual_seed(3)
    for dtype in DTYPES:
        for inputs, outputs in ((1, 1), (7, 3), (31, 9), (70, 130), (257, 66), (1000, 33), (1030, 70), (4100, 100)):
            weight, bias, x = torch.randn(outputs, inputs), torch.randn(outputs), torch.randn(max(ROWS), inputs)
            weight, bias, x = weight.to(dtype), bias.to(dtype), x.to(dtype)
            for multiply in (native_matvec, native_matmul):
                alone = torch.cat([multiply(row, weight, bias) for row in x.split(1)])
                for rows in ROWS:
                    for added in (None, bias):
                        got = multiply(x[:rows], weight, added)
                        wide = None if added is None else added.double()
                        near(got, linear_reference(x[:rows].double(), weight.double(), wide))
                    assert torch.equal(got, alone[:rows]), "a row depends on its batch"
        for groups, outputs in ((1, 1), (2, 5), (3, 70), (9, 18), (65, 130)):  # the largest are shared among threads
            blocks, scales = packed(outputs, groups)
            bias, x = torch.randn(outputs).to(dtype), torch.randn(max(ROWS), groups * 32).to(dtype)
            exact = x.double() @ unpack(blocks, scales, torch.float64).t() + bias.double()
            for order in EXACT:
                alone = torch.cat([native_mxfp4_matvec(row, blocks, scales, bias, order) for row in x.split(1)])
                for rows in ROWS:
                    got = native_mxfp4_matvec(x[:rows], blocks, scales, bias, order)
                    near(got, exact[:rows])
                    assert torch.equal(got, alone[:rows]), "a row depends on its batch"
        for hidden, inner in ((96, 160), (288, 224)):  # threads share the larger ones
            given = stacks(dtype, hidden=hidden, inner=inner)
            x, weights = torch.randn(45, hidden).to(dtype), torch.rand(45, 2).to(dtype)
            indices = torch.randint(0, 5, (45, 2))
            indices[:3], indices[20:] = torch.tensor([[4, 0], [1, 1], [2, 3]]), torch.tensor([1, 3])
            wide = [part if part.dtype == torch.uint8 else part.double() for part in given]
            exact = mxfp4_experts_reference(x.double(), indices, weights.double(), wide, 1.5, 2.0)
            for rows, order in product((3, 45), EXACT):
                got = native_mxfp4_experts(x[:rows], indices[:rows], weights[:rows], given, 1.5, 2.0, order)
                # values between both products are rounded to bfloat16 where products are made of it
                assert float((got.double() - exact[:rows]).abs().max()) <= 4 * BOUNDS[dtype] * float(exact.abs().max())
                for row in range(rows):
                    part = slice(row, row + 1)
                    one = native_mxfp4_experts(x[part], indices[part], weights[part], given, 1.5, 2.0, order)
                    assert torch.equal(one, got[part]), "a row depends on its batch"


@needs_native
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_equals_the_reference(threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        check_everything()
    finally:
        torch.set_num_threads(before)


@needs_native
@pytest.mark.parametrize("dtype", DTYPES)
def test_any_number_of_threads_gives_the_same_bits(dtype: torch.dtype) -> None:
    weight, x = torch.randn(1100, 300).to(dtype), torch.randn(35, 300).to(dtype)
    blocks, scales = packed(1400, 20)
    given, found = torch.randn(35, 640).to(dtype), []
    before = torch.get_num_threads()
    for threads in (1, 2, 3, 1000):
        torch.set_num_threads(threads)
        try:
            found.append(
                [multiply(x[:rows], weight) for rows in (2, 35) for multiply in (native_matvec, native_matmul)]
            )
            found[-1] += [
                native_mxfp4_matvec(given[:rows], blocks, scales, None, order) for rows in (2, 35) for order in EXACT
            ]
        finally:
            torch.set_num_threads(before)
    for others in found[1:]:
        assert all(map(torch.equal, others, found[0]))


def in_process(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(Path(__file__).parent), str(Path(quintet.__file__).parents[1])])
    env = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "2", **environment}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=False)


@needs_native
@pytest.mark.parametrize("level", LEVELS)
def test_every_level_equals_the_reference(level: str) -> None:
    if library().quintet_has(level.encode()) != 1:
        pytest.skip(f"this CPU has no {level}")
    done = in_process(
        "from quintet.kernels.loader import status\n"
        "import test_native_integers, test_native_kernels\n"
        "test_native_kernels.check_everything()\n"
        "test_native_integers.check_everything()\n"
        "print(status().level)",
        **{"QUINTET_ISA": level},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == level


def test_plain_pytorch_can_be_asked_for() -> None:
    code = (
        "import torch\n"
        "from quintet.kernels.loader import library, status\n"
        "from quintet.kernels.linear import native_matvec, matvec\n"
        "x, w = torch.randn(2, 8), torch.randn(3, 8)\n"
        "assert library() is None and native_matvec(x, w) is None\n"
        "torch.testing.assert_close(matvec(x, w), x @ w.t())\n"
        "print(status().reason)"
    )
    done = in_process(code, QUINTET_NATIVE="0")
    assert done.returncode == 0 and done.stdout.strip() == "QUINTET_NATIVE=0", done.stderr


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("QUINTET_ISA", "sse9", "QUINTET_ISA='sse9' is not one of amx, avx512, avx2, neon, portable"),
        ("QUINTET_NATIVE", "yes", "QUINTET_NATIVE='yes' must be 0"),
    ],
)
def test_settings_that_are_not_allowed(name: str, value: str, said: str) -> None:
    done = in_process("from quintet.kernels.loader import library; library()", **{name: value})
    assert done.returncode and said in done.stderr


@needs_native
def test_instructions_that_the_cpu_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    from quintet.errors import ConfigError
    from quintet.kernels import loader

    class Poor:
        def __getattr__(self, name: str) -> object:
            return lambda *_: {"quintet_version": loader.VERSION}.get(name, 0)

        def quintet_has(self, level: bytes) -> int:
            return int(level == b"portable")

        class quintet_runtime:
            restype: object = None

    monkeypatch.setattr(loader.ctypes, "CDLL", lambda path: Poor())
    monkeypatch.setenv("QUINTET_NATIVE", "1")
    monkeypatch.setenv("QUINTET_ISA", "avx512")
    with pytest.raises(ConfigError, match="QUINTET_ISA=avx512: this CPU does not have.*Set one of portable"):
        loader._loaded.__wrapped__()


def test_a_library_that_does_not_fit_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from quintet.kernels import loader

    monkeypatch.setenv("QUINTET_NATIVE", "1")
    monkeypatch.delenv("QUINTET_ISA", raising=False)
    monkeypatch.setattr(loader, "PATH", tmp_path / "_cpu.so")
    found, why = loader._loaded.__wrapped__()
    assert found is None and "not built" in why.reason
    (tmp_path / "_cpu.so").write_bytes(b"no library")
    found, why = loader._loaded.__wrapped__()
    assert found is None and "does not load" in why.reason


@needs_native
def test_a_library_of_another_version_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    from quintet.kernels import loader

    monkeypatch.setenv("QUINTET_NATIVE", "1")
    monkeypatch.setattr(loader, "VERSION", -1)
    found, why = loader._loaded.__wrapped__()
    assert found is None and "another version" in why.reason


@needs_native
def test_orders_in_memory() -> None:
    weight, x = torch.randn(12, 40)[2:, 3:33], torch.randn(30, 4).t()
    bias = torch.randn(20)[::2]
    near(native_matvec(x, weight, bias), linear_reference(x.double(), weight.double(), bias.double()))
    near(native_matvec(x.reshape(2, 2, 30), weight), (x.double() @ weight.double().t()).view(2, 2, 10))
    blocks, scales = packed(7, 2)
    given = torch.randn(64, 3).t()
    near(native_mxfp4_matvec(given, blocks, scales), given.double() @ unpack(blocks, scales, torch.float64).t())
    # starts that no instruction likes
    raw = torch.empty(2 * 33 * 5 + 1, dtype=torch.uint8)
    odd = raw[1:].numpy().view("uint16")
    twisted = torch.from_numpy(odd.view("int16")).view(torch.float16).view(5, 33)
    twisted.copy_(torch.randn(5, 33))
    assert twisted.data_ptr() % 2 == 1
    near(
        native_matvec(x[:1, :1].expand(1, 33).half(), twisted),
        x[:1, :1].expand(1, 33).half().double() @ twisted.double().t(),
    )


@needs_native
def test_one_expert_for_every_choice_of_few_rows() -> None:
    parts, x = stacks(torch.float32), torch.randn(8, 96)
    indices, weights = torch.full((8, 4), 2), torch.rand(8, 4)
    got = native_mxfp4_experts(x, indices, weights, parts, 1.7, 7.0)
    wanted = mxfp4_experts_reference(x, indices, weights, parts, 1.7, 7.0)
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))


@needs_native
def test_what_is_not_taken() -> None:
    weight, x = torch.randn(4, 6), torch.randn(2, 6)
    assert native_matvec(x.double(), weight.double()) is None
    assert native_matvec(x.half(), weight) is None
    assert native_matvec(x, torch.randn(6, 4).t()) is None
    assert native_matvec(x[:0], weight) is None and native_matvec(x[:, :5], weight) is None
    assert native_matvec(x, weight, torch.randn(3)) is None
    assert native_matvec(x, weight, torch.randn(4).half()) is None
    blocks, scales = packed(4, 2)
    x = torch.randn(1, 64)
    assert native_mxfp4_matvec(x[:, :32], blocks, scales) is None
    assert native_mxfp4_matvec(x, blocks[:3], scales) is None  # a buffer that is too short is not read
    assert native_mxfp4_matvec(x, blocks.transpose(0, 1).contiguous().transpose(0, 1), scales) is None
    assert native_mxfp4_matvec(x, blocks, scales, torch.randn(3)) is None
    parts = stacks(torch.float32)
    x, weights, indices = torch.randn(1, 96), torch.rand(1, 2), torch.tensor([[0, 1]])
    for wrong in range(6):
        cut = [part[:-1] if at == wrong else part for at, part in enumerate(parts)]
        assert native_mxfp4_experts(x, indices, weights, cut, 1.7, 7.0) is None
    with pytest.raises(IndexError, match="there are 5"):
        native_mxfp4_experts(x, torch.tensor([[0, 5]]), weights, parts, 1.7, 7.0)


@needs_native
def test_numbers_that_would_run_wild_are_refused() -> None:
    found, nothing = library(), torch.empty(8)
    at = nothing.data_ptr()
    for kind, rows, inputs, outputs in ((0, 0, 1, 1), (0, 1 << 40, 1, 1), (3, 1, 1, 1), (0, 1, -1, 1), (0, 1, 1, -1)):
        assert found.quintet_matvec(kind, rows, inputs, outputs, at, 1, at, 1, None, at, 1) == 1
        assert found.quintet_mxfp4_matvec(kind, 0, rows, inputs, outputs, at, at, at, 1, None, at, 1) == 1
    with pytest.raises(RuntimeError, match=r"refused its arguments \(code 1\)"):
        check(1)
    with pytest.raises(MemoryError):
        check(2)


@needs_native
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_code_and_scale_is_exact(dtype: torch.dtype) -> None:
    """One input at a time: each product is one of the weights, to the bit."""
    blocks = torch.arange(256, dtype=torch.uint8).view(16, 1, 16)
    for byte in (117, 127, 128, 130):
        scales = torch.full((16, 1), byte, dtype=torch.uint8)
        exact = unpack(blocks, scales, torch.float64)  # (16, 32)
        for begin in range(0, 32, 8):
            x = torch.eye(32, dtype=dtype)[begin : begin + 8]
            assert torch.equal(native_mxfp4_matvec(x, blocks, scales).double(), exact[:, begin : begin + 8].t())
    if dtype == torch.float16:  # which does not hold them
        return
    for byte in (0, 1, 250, 255):
        scales = torch.full((16, 1), byte, dtype=torch.uint8)
        exact = unpack(blocks, scales, torch.float64).to(dtype)
        got = native_mxfp4_matvec(torch.eye(32, dtype=dtype)[:8], blocks, scales)
        if byte == 255:
            assert got.isnan().all()
        elif byte:
            assert torch.equal(got, exact[:, :8].t())


@needs_native
@pytest.mark.parametrize("blocks_each", [3, 4, 5, 90])
def test_one_row_takes_the_first_and_the_last_scale(blocks_each: int) -> None:
    """2^-127 and no number, which no shift of the bits makes, among others and in what is left of four blocks."""
    torch.manual_seed(blocks_each)
    blocks = torch.randint(0, 256, (39, blocks_each, 16), dtype=torch.uint8)
    scales = torch.randint(118, 132, (39, blocks_each), dtype=torch.uint8)
    scales[7] = 0
    scales[11, -1] = scales[12, 0] = scales[36, 1] = 255
    scales[13, 0] = scales[38, -1] = 0
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.randn(3, 32 * blocks_each).to(dtype)
        together = native_mxfp4_matvec(x, blocks, scales)
        assert together.isnan().any(0).nonzero().flatten().tolist() == [11, 12, 36]
        exact = x.double() @ unpack(blocks, scales, torch.float64).view(39, -1).t()
        for row in range(3):
            alone = native_mxfp4_matvec(x[row : row + 1], blocks, scales)[0]
            assert torch.equal(alone.view(torch.uint8), together[row].view(torch.uint8))
            assert torch.allclose(alone.double(), exact[row], rtol=1e-2, atol=1e-3, equal_nan=True)
            assert 0 < alone[7].abs() < 1e-35


@needs_native
def test_no_number_and_too_large_ones_come_through() -> None:
    for dtype in DTYPES:
        weight = torch.ones(3, 40, dtype=dtype)
        x = torch.ones(1, 40, dtype=dtype)
        weight[0, 39], weight[1, 0] = float("nan"), float("inf")
        got = native_matvec(x, weight)
        assert got[0, 0].isnan() and got[0, 1] == float("inf") and got[0, 2] == 40
    large = torch.full((1, 2), 300.0).half()
    assert native_matvec(large, large)[0, 0] == float("inf")
    small = torch.tensor([[2.0**-24, 0.0]]).half()
    assert native_matvec(torch.ones(1, 2).half(), small)[0, 0] == 2.0**-24


@needs_native
def test_from_two_python_threads() -> None:
    weight, xs = torch.randn(900, 400), torch.randn(2, 50, 1, 400)
    wanted = [[native_matvec(x, weight) for x in part] for part in xs]
    found: list[list[torch.Tensor]] = [[], []]

    def work(index: int) -> None:
        found[index] = [native_matvec(x, weight) for x in xs[index]]

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        threads = [threading.Thread(target=work, args=(index,)) for index in (0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        torch.set_num_threads(before)
    assert all(
        torch.equal(a, b) for got, want in zip(found, wanted, strict=True) for a, b in zip(got, want, strict=True)
    )


@needs_native
@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork here")
def test_after_fork() -> None:
    """In a process of its own, whose threads are in use when it forks."""
    code = """
import os, signal, torch
from quintet.kernels.linear import native_matvec
torch.set_num_threads(2)
weight, x = torch.randn(2000, 400), torch.randn(1, 400)
want = native_matvec(x, weight)
child = os.fork()
if child == 0:
    signal.alarm(20)
    os._exit(0 if torch.equal(native_matvec(x, weight), want) else 3)
_, code = os.waitpid(child, 0)
assert torch.equal(native_matvec(x, weight), want)
print(code)
"""
    done = in_process(code)
    assert done.returncode == 0 and done.stdout.strip() == "0", done.stdout + done.stderr


@needs_native
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_one_pool_of_threads() -> None:
    code = """
import os, torch
from quintet.kernels.linear import native_matvec
from quintet.kernels.loader import status
torch.set_num_threads(2)
weight = torch.randn(2000, 400)
torch.randn(1000, 1000) @ torch.randn(1000, 1000); weight.sum()
before = len(os.listdir("/proc/self/task"))
for _ in range(5): native_matvec(torch.randn(1, 400), weight)
maps = open("/proc/self/maps").read()
paths = {line.split()[-1] for line in maps.splitlines() if "libgomp" in line or "libiomp" in line}
print(len(os.listdir("/proc/self/task")) - before, len(paths), status().threads is not None)
"""
    done = in_process(code)
    assert done.stdout.split() == ["0", "1", "True"], done.stdout + done.stderr


@pytest.fixture(params=["as it is", "without the library"])
def either(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    if request.param == "without the library":
        from quintet.kernels import linear, mxfp4

        for module in (linear, mxfp4):
            monkeypatch.setattr(module, "library", lambda: None)
    yield


@pytest.mark.usefixtures("either")
def test_operators() -> None:
    x, weight, bias = torch.randn(2, 3, 40), torch.randn(9, 40), torch.randn(9)
    near(matvec(x, weight, bias), linear_reference(x.double(), weight.double(), bias.double()))
    torch.library.opcheck(torch.ops.quintet.matvec.default, (x, weight, bias))
    torch.library.opcheck(torch.ops.quintet.matvec.default, (x.bfloat16(), weight.bfloat16()))
    near(matmul(x, weight, bias), linear_reference(x.double(), weight.double(), bias.double()))
    torch.library.opcheck(torch.ops.quintet.matmul.default, (x, weight, bias))
    torch.library.opcheck(torch.ops.quintet.matmul.default, (x.bfloat16(), weight.bfloat16()))
    blocks, scales = packed(9, 3)
    x = torch.randn(2, 96)
    near(mxfp4_matvec(x, blocks, scales), mxfp4_matvec_reference(x.double(), blocks, scales))
    near(mxfp4_matvec(x, blocks, scales), x.double() @ unpack(blocks, scales, torch.float64).t())
    torch.library.opcheck(torch.ops.quintet.mxfp4_matvec.default, (x, blocks, scales))
    given, indices, weights = stacks(torch.float32), torch.tensor([[4, 0], [1, 2]]), torch.rand(2, 2)
    got = mxfp4_experts(x, indices, weights, list(given), 1.7, 7.0)
    torch.testing.assert_close(got, mxfp4_experts_reference(x, indices, weights, given, 1.7, 7.0), rtol=1e-5, atol=1e-5)
    torch.library.opcheck(torch.ops.quintet.mxfp4_experts.default, (x, indices, weights, list(given), 1.7, 7.0))


def test_operators_refuse_sizes_that_disagree() -> None:
    x, (blocks, scales) = torch.randn(2, 64), packed(9, 2)
    with pytest.raises(InputError, match=r"x of shape \[2, 64\] and a weight of shape \[3, 5\]"):
        matvec(x, torch.randn(3, 5))
    with pytest.raises(InputError, match=r"a bias of shape \[2\] for 3 outputs"):
        matvec(x, torch.randn(3, 64), torch.randn(2))
    with pytest.raises(InputError, match="pass \\(n, in\\) and \\(out, G\\)"):
        mxfp4_matvec(x[0], blocks, scales)
    with pytest.raises(InputError, match="for 32 inputs"):
        mxfp4_matvec(x[:, :32], blocks, scales)
    with pytest.raises(InputError, match="both must be uint8"):
        mxfp4_matvec(x, blocks.int(), scales)
    with pytest.raises(InputError, match=r"a bias of shape \[8\] for 9 outputs"):
        mxfp4_matvec(x, blocks, scales, torch.randn(8))
    x, indices, weights, parts = torch.randn(1, 96), torch.tensor([[0]]), torch.ones(1, 1), list(stacks(torch.float32))
    with pytest.raises(InputError, match=r"pass \(n, D\), \(n, k\) and \(n, k\)"):
        mxfp4_experts(x, indices, weights[:, :0], parts, 1.7, 7.0)
    with pytest.raises(InputError, match="takes 6 stacks .* and got 5"):
        mxfp4_experts(x, indices, weights, parts[:5], 1.7, 7.0)
    with pytest.raises(InputError, match="biases of shapes"):
        mxfp4_experts(x, indices, weights, [*parts[:5], parts[5][:, :3]], 1.7, 7.0)
