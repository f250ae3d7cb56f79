"""The header check: every fault of a file is a CheckpointError, and what the safetensors library takes, we take."""

from __future__ import annotations

import contextlib
import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.torch import load as load_bytes
from safetensors.torch import save as save_bytes

from quintet.checkpoint.header import DTYPE_BITS, MAX_HEADER, parse_header
from quintet.checkpoint.tensorfile import DTYPES, TensorFile
from quintet.errors import CheckpointError, HubError

relaxed = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def make(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    """Build a file from a header (an object, or the bytes themselves)."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(dtype: str = "F32", shape: Any = (2,), begin: Any = 0, end: Any = 8) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape) if isinstance(shape, tuple) else shape, "data_offsets": [begin, end]}


def read(path: Path, content: bytes) -> dict[str, torch.Tensor]:
    path.write_bytes(content)
    file = TensorFile.open(path)
    return {key: file.get(key) for key in file}


BAD_FILES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "is empty \\(0 bytes\\)"),
    "seven bytes": (b"1234567", "has 7 bytes, too few"),
    "git lfs pointer": (b"version https://git-lfs.github.com/spec/v1\noid", "Git LFS pointer"),
    "header too long": (make({}, length=MAX_HEADER + 1), "claims a header of 100,000,001 bytes, and 100,000,000"),
    "huge length": (make({}, length=2**64 - 1), "claims a header of 18,446,744,073,709,551,615"),
    "past the end": (make({}, length=50), "claims a header of 50 bytes but has only 10 in all. It is truncated"),
    "no header": (make(b""), "does not begin with"),
    "spaces first": (make(b"  {}"), "does not begin with"),
    "html": (make(b"<html></html>"), "does not begin with"),
    "not json": (make(b"{]"), "is not JSON"),
    "two objects": (make(b"{}{}"), "is not JSON"),
    "bad utf-8": (make(b'{"\xff": 1}'), "is not UTF-8 text \\(byte 2\\)"),
    "deep": (make(b'{"a":' * 100_000), "nested too deeply"),
    "duplicate tensor": (
        make(b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{}}', b"x"),
        "gives the key 'a' twice",
    ),
    "duplicate field": (
        make(b'{"a":{"dtype":"U8","dtype":"I8","shape":[1],"data_offsets":[0,1]}}', b"x"),
        "gives the key 'dtype' twice",
    ),
    "duplicate metadata": (make(b'{"__metadata__":{"a":"1","a":"2"}}'), "gives the key 'a' twice"),
    "metadata not text": (make({"__metadata__": {"a": 1}}), "must map strings to strings"),
    "metadata a list": (make({"__metadata__": ["a"]}), "must map strings to strings"),
    "entry a list": (make({"a": [1, 2]}), "needs dtype, shape and data_offsets"),
    "entry without shape": (make({"a": {"dtype": "F32", "data_offsets": [0, 8]}}, b"x" * 8), "needs dtype, shape"),
    "unknown dtype": (make({"a": entry("F33")}, b"x" * 8), "unknown dtype 'F33'. Known: BOOL"),
    "six bits": (make({"a": entry("F6_E2M3", (4,), 0, 3)}, b"xxx"), "unknown dtype 'F6_E2M3'"),
    "dtype a number": (make({"a": entry(32)}, b"x" * 8), "unknown dtype 32"),  # type: ignore[arg-type]
    "dtype unhashable": (make({"a": entry(["F32"])}, b"x" * 8), "unknown dtype"),  # type: ignore[arg-type]
    "shape a number": (make({"a": entry(shape=2)}, b"x" * 8), "shape 2 is not a list of whole numbers"),
    "negative size": (make({"a": entry(shape=[-2])}, b"x" * 8), r"shape \[-2\] is not a list"),
    "two negative sizes": (make({"a": entry(shape=[-1, -2])}, b"x" * 8), r"shape \[-1, -2\] is not a list"),
    "float size": (make({"a": entry(shape=[2.0])}, b"x" * 8), r"shape \[2.0\] is not a list"),
    "true as a size": (make({"a": entry("U8", [True], 0, 1)}, b"x"), r"shape \[True\] is not a list"),
    "huge size": (make({"a": entry(shape=[2**63])}, b"x" * 8), "is not a list of whole numbers from 0 to"),
    "product overflows": (make({"a": entry(shape=[2**32, 2**32, 2])}, b"x" * 8), "overflows 2\\^63 elements"),
    "overflow to zero": (make({"a": entry(shape=[2**32, 2**32], end=0)}), "overflows 2\\^63 elements"),
    "overflow beside a zero": (make({"a": entry(shape=[2**62, 0, 4], end=0)}), "overflows 2\\^63 elements"),
    "too many dimensions": (make({"a": entry("U8", [1] * 65, 0, 1)}, b"x"), "65 dimensions, and 64"),
    "shape too small": (make({"a": entry(shape=[1])}, b"x" * 8), "need 4 bytes, but data_offsets \\[0, 8\\] give 8"),
    "shape too large": (make({"a": entry(shape=[9])}, b"x" * 8), "need 36 bytes, but data_offsets"),
    "offsets missing one": (make({"a": {**entry(), "data_offsets": [0]}}, b"x" * 8), "are not two whole numbers"),
    "offsets negative": (make({"a": entry(begin=-8, end=0)}, b"x" * 8), "are not two whole numbers"),
    "offsets floats": (make({"a": entry(begin=0.0)}, b"x" * 8), "are not two whole numbers"),
    "offsets text": (make({"a": {**entry(), "data_offsets": "08"}}, b"x" * 8), "are not two whole numbers"),
    "offsets huge": (make({"a": entry(begin=0, end=2**64)}, b"x" * 8), "are not two whole numbers"),
    "reversed": (make({"a": entry(begin=8, end=0)}, b"x" * 8), "data_offsets \\[8, 0\\] are reversed"),
    "past the data": (make({"a": entry()}, b"x" * 7), "ends at byte 8 of the data, but the file has 7. .*truncated"),
    "trailing bytes": (make({"a": entry()}, b"x" * 9), "has 1 bytes behind its last tensor"),
    "data without tensors": (make({}, b"x"), "has 1 bytes behind its last tensor"),
    "hole at the start": (make({"a": entry(begin=1, end=9)}, b"x" * 9), "leaves a hole behind the start of the data"),
    "hole": (make({"a": entry(), "b": entry(begin=9, end=17)}, b"x" * 17), "'b' .* leaves a hole behind tensor 'a'"),
    "overlap": (make({"a": entry(), "b": entry(begin=4, end=12)}, b"x" * 12), "'b' .* overlaps tensor 'a'"),
    "same place": (make({"a": entry(), "b": entry()}, b"x" * 8), "overlaps tensor"),
    "empty tensor inside another": (make({"a": entry(), "b": entry(shape=[0], begin=4, end=4)}, b"x" * 8), "overlaps"),
    "odd four bits": (make({"a": entry("F4", [3], 0, 2)}, b"xx"), "need 1.5 bytes"),
    "odd last four bits": (make({"a": entry("F4", [2, 3], 0, 3)}, b"xxx"), "last size of an F4 tensor must be even"),
    "four bits without size": (make({"a": entry("F4", [], 0, 0)}), "need 0.5 bytes"),
    "half a surrogate": (make(b'{"\\ud800":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}', b"x"), "valid Unicode"),
    "endless number": (make(b'{"a":' + b"9" * 5000 + b"}"), "is not JSON"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_files(tmp_path: Path, case: str) -> None:
    content, words = BAD_FILES[case]
    with pytest.raises(CheckpointError, match=words) as caught:
        read(tmp_path / "model.safetensors", content)
    assert str(tmp_path / "model.safetensors") in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_the_length_is_checked_before_anything_is_read(tmp_path: Path) -> None:
    """A header of 100 MB exactly is let through, in a sparse file of the right size, and found not to be one."""
    path = tmp_path / "model.safetensors"
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", MAX_HEADER + 1))
        file.truncate(8 + MAX_HEADER + 1)
    with pytest.raises(CheckpointError, match="100,000,000 are allowed"):
        TensorFile.open(path)


def test_missing_and_special_files(tmp_path: Path) -> None:
    with pytest.raises(HubError, match="no file 'model.safetensors'"):
        TensorFile.open(tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="not a regular file"):
        TensorFile.open("/dev/zero")


def test_good_file(tmp_path: Path) -> None:
    tensors = {
        "b": torch.arange(6.0).view(2, 3),
        "a": torch.tensor([1, 2], dtype=torch.int16),
        "empty": torch.ones(0, 4),
    }
    path = tmp_path / "model.safetensors"
    path.write_bytes(save_bytes(tensors, {"format": "pt"}))
    file = TensorFile.open(path)
    assert file.metadata == {"format": "pt"}
    assert set(file.keys()) == set(tensors) and len(file) == 3 and "a" in file and "x" not in file
    assert (file.shape("b"), file.dtype("b"), file.nbytes("b")) == ((2, 3), torch.float32, 24)
    assert all(torch.equal(file.get(key), tensors[key]) for key in tensors)
    with pytest.raises(CheckpointError, match="has no tensor 'bb'. Did you mean 'b'\\?"):
        file.get("bb")


def test_metadata_may_be_null_and_unknown_fields_are_let_be(tmp_path: Path) -> None:
    header = {"__metadata__": None, "a": {**entry(), "comment": "x"}}
    assert read(tmp_path / "f", make(header, b"\0" * 8))["a"].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("name", DTYPE_BITS)
def test_every_dtype_loads_as_the_library_loads_it(tmp_path: Path, name: str) -> None:
    if name not in DTYPES:
        pytest.skip(f"this torch has no {name}")
    data = bytes(range(16)) if name != "BOOL" else b"\0\1" * 8
    content = make({"a": entry(name, [128 // DTYPE_BITS[name]], 0, 16)}, data)
    got = read(tmp_path / "f", content)["a"]
    assert got.dtype == DTYPES[name]
    assert bytes(got.view(torch.uint8).tolist()) == data
    if name not in ("F4", "F8_E8M0"):  # the library's pure Python reader does not know these two
        want = load_bytes(content)["a"]
        assert want.dtype == got.dtype and torch.equal(want.view(torch.uint8), got.view(torch.uint8))


def test_a_type_that_torch_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(DTYPES, "F8_E8M0")
    with pytest.raises(CheckpointError, match="dtype F8_E8M0, which torch .* does not have. Install a newer torch"):
        read(tmp_path / "f", make({"a": entry("F8_E8M0", [1], 0, 1)}, b"x"))


def test_unaligned_tensors_are_copied_and_right(tmp_path: Path) -> None:
    values = torch.tensor([1.5, -2.0])
    header = {"a": entry("U8", [1], 0, 1), "b": entry("F32", [2], 1, 9)}
    got = read(tmp_path / "f", make(header, b"\7" + values.numpy().tobytes()))
    assert got["a"].tolist() == [7] and torch.equal(got["b"], values)
    assert got["b"].data_ptr() % 4 == 0


@pytest.mark.parametrize("mapped", [True, False])
def test_tensors_are_private(tmp_path: Path, mapped: bool) -> None:
    path = tmp_path / "f"
    path.write_bytes(save_bytes({"a": torch.zeros(5000), "b": torch.zeros(3)}))
    before = path.read_bytes()
    tensor = TensorFile.open(path, mapped=mapped).get("a")
    tensor.add_(1.0)
    assert tensor.sum() == 5000
    assert path.read_bytes() == before


def test_without_mmap_the_file_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import mmap

    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError("this file system cannot map")

    monkeypatch.setattr(mmap, "mmap", type("mmap", (), {"__new__": refuse}))
    got = read(tmp_path / "f", save_bytes({"a": torch.arange(4.0)}))
    assert got["a"].tolist() == [0, 1, 2, 3]


# --- properties -------------------------------------------------------------------------------------------------------

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
near_entries = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from([*DTYPE_BITS, "X"]) | json_values,
        "shape": st.lists(st.integers(-1, 5), max_size=3) | json_values,
        "data_offsets": st.lists(st.integers(-1, 64), min_size=2, max_size=2) | json_values,
    }
)


@relaxed
@given(st.dictionaries(st.text(max_size=3), near_entries | json_values, max_size=4), st.binary(max_size=64))
def test_random_headers_never_crash(tmp_path: Path, header: dict[str, Any], data: bytes) -> None:
    try:
        got = read(tmp_path / "f", make(header, data))
    except CheckpointError:
        return
    want = load_bytes(make(header, data))
    assert got.keys() == want.keys()


@relaxed
@given(st.binary(max_size=200))
@example(b"{}")
def test_random_header_bytes_never_crash(data: bytes) -> None:
    with contextlib.suppress(CheckpointError):
        parse_header(data, 0, "f")


tensors_of_any_kind = st.dictionaries(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=8).filter(lambda name: name != "__metadata__"),
    st.tuples(
        st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool]),
        st.lists(st.integers(0, 4), max_size=3),
    ),
    max_size=5,
)


def filled(dtype: torch.dtype, shape: list[int]) -> torch.Tensor:
    count = int(torch.Size(shape).numel())
    return (torch.arange(count) % 7).to(dtype).reshape(shape)


@relaxed
@given(
    tensors_of_any_kind, st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), st.just("v"), max_size=2)
)
def test_what_the_library_writes_we_read(
    tmp_path: Path, kinds: dict[str, tuple[torch.dtype, list[int]]], metadata: dict[str, str]
) -> None:
    tensors = {name: filled(*kind) for name, kind in kinds.items()}
    path = tmp_path / "f"
    path.write_bytes(save_bytes(tensors, metadata or None))  # an empty one comes out malformed
    file = TensorFile.open(path)
    assert file.metadata == metadata
    assert file.keys() == tensors.keys()
    for name, tensor in tensors.items():
        got = file.get(name)
        assert got.dtype == tensor.dtype and torch.equal(got, tensor)


VALID = save_bytes({"a": torch.arange(3.0), "b": torch.ones(2, 2, dtype=torch.bfloat16)}, {"format": "pt"})


@relaxed
@given(
    st.lists(st.tuples(st.integers(0, len(VALID) - 1), st.integers(0, 255)), max_size=3),
    st.integers(0, len(VALID)) | st.just(len(VALID)),
    st.binary(max_size=3),
)
def test_mutated_files_load_as_the_library_loads_them_or_not_at_all(
    tmp_path: Path, changes: list[tuple[int, int]], cut: int, tail: bytes
) -> None:
    content = bytearray(VALID)
    for position, value in changes:
        content[position] = value
    content = content[:cut] + tail
    try:
        got = read(tmp_path / "f", bytes(content))
    except CheckpointError:
        got = None
    try:
        want = load_bytes(bytes(content))
    except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError, OverflowError):
        want = None
    if got is not None and want is not None:
        assert got.keys() == want.keys()
        assert all(
            torch.equal(got[key].view(torch.uint8), want[key].view(torch.uint8)) for key in got if got[key].numel()
        )
    if want is None:
        assert got is None  # never more lenient than the library
