"""The header of a safetensors file, checked in full before a byte of its data is touched. No torch here.

Layout (https://huggingface.co/docs/safetensors): 8 bytes little-endian header length N, N bytes of JSON
`{"name": {"dtype": "F32", "shape": [2, 3], "data_offsets": [begin, end]}, ..., "__metadata__": {str: str}}`, then the
data. The tensors must cover the data exactly: no hole, no overlap, nothing behind the last one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from quintet.errors import CheckpointError
from quintet.hub import parse_json_object

__all__ = ["DTYPE_BITS", "MAX_HEADER", "Header", "TensorInfo", "parse_header"]

MAX_HEADER = 100_000_000
MAX_DIMS = 64
MAX_ELEMENTS = 2**63 - 1

DTYPE_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "F8_E8M0": 8, "F4": 4,
    "U16": 16, "I16": 16, "F16": 16, "BF16": 16, "U32": 32, "I32": 32, "F32": 32,
    "U64": 64, "I64": 64, "F64": 64, "C64": 64,
}  # fmt: skip


@dataclass(frozen=True)
class TensorInfo:
    """One entry of the header; offsets count from the start of the data."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class Header:
    """A header that was found to be sound; `data_start` is the file offset of the data."""

    tensors: dict[str, TensorInfo]
    metadata: dict[str, str] = field(default_factory=dict)
    data_start: int = 8


def header_length(prefix: bytes, file_size: int, path: str) -> int:
    """Return the length of the JSON part from the first bytes of a file of `file_size` bytes.

    Raises:
        CheckpointError: The file is empty, too short, a pointer file, or its length field cannot be true.
    """
    if file_size == 0:
        raise CheckpointError(f"'{path}' is empty (0 bytes): the download or save did not finish. Get it again.")
    if prefix.startswith(b"version "):
        raise CheckpointError(
            f"'{path}' is a Git LFS pointer, not the weights. Run `git lfs pull` in that folder, or download the file."
        )
    if file_size < 8 or len(prefix) < 8:
        raise CheckpointError(f"'{path}' has {file_size} bytes, too few for a safetensors file. Get it again.")
    length = int.from_bytes(prefix[:8], "little")
    if length > MAX_HEADER:
        raise CheckpointError(
            f"'{path}' claims a header of {length:,} bytes, and {MAX_HEADER:,} are allowed. It is damaged or not a "
            "safetensors file; get it again."
        )
    if 8 + length > file_size:
        raise CheckpointError(
            f"'{path}' claims a header of {length:,} bytes but has only {file_size:,} in all. It is truncated; "
            "get it again."
        )
    return length


def parse_header(data: bytes, data_size: int, path: str) -> Header:
    """Check the JSON part of a header against `data_size`, the number of bytes behind it.

    Args:
        data: The JSON bytes.
        data_size: File size less 8 less the header length.
        path: Names the file in errors.

    Raises:
        CheckpointError: Anything at all is not as the format says.
    """
    if not data.startswith(b"{"):
        raise CheckpointError(f"The header of '{path}' does not begin with '{{': this is not a safetensors file.")
    try:
        entries = parse_json_object(data, f"The header of '{path}'", CheckpointError)
    except MemoryError as error:
        raise CheckpointError(f"The header of '{path}' does not fit into memory. It is damaged or hostile.") from error
    metadata = _metadata(entries.pop("__metadata__", None), path)
    tensors = {name: _tensor_info(name, entry, path) for name, entry in entries.items()}
    _check_layout(tensors, data_size, path)
    return Header(tensors, metadata, 8 + len(data))


def _metadata(value: Any, path: str) -> dict[str, str]:
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(item, str) for item in value.values()):
        raise CheckpointError(f"The __metadata__ of '{path}' must map strings to strings. The file is damaged.")
    return value


def _tensor_info(name: str, entry: Any, path: str) -> TensorInfo:
    where = f"Tensor {_shown(name)} in '{path}'"
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        raise CheckpointError(f"{where}: its name is not valid Unicode. The file is damaged or hostile.") from None
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= entry.keys():
        raise CheckpointError(f"{where}: needs dtype, shape and data_offsets, has {_shown(entry)}. It is damaged.")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise CheckpointError(f"{where}: unknown dtype {_shown(dtype)}. Known: {', '.join(DTYPE_BITS)}.")
    if not isinstance(shape, list) or not all(_is_size(size) for size in shape):
        raise CheckpointError(f"{where}: shape {_shown(shape)} is not a list of whole numbers from 0 to 2^63 - 1.")
    if len(shape) > MAX_DIMS:
        raise CheckpointError(f"{where}: {len(shape)} dimensions, and {MAX_DIMS} are allowed.")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(_is_size(offset) for offset in offsets):
        raise CheckpointError(f"{where}: data_offsets {_shown(offsets)} are not two whole numbers from 0 on.")
    begin, end = offsets
    if begin > end:
        raise CheckpointError(f"{where}: data_offsets [{begin}, {end}] are reversed.")
    # the sizes other than 0 are bounded too: torch multiplies them into strides even when the tensor is empty
    if math.prod(size for size in shape if size) > MAX_ELEMENTS:
        raise CheckpointError(f"{where}: shape {_shown(shape)} overflows 2^63 elements.")
    bits = math.prod(shape) * DTYPE_BITS[dtype]
    if bits % 8 or bits // 8 != end - begin:
        raise CheckpointError(
            f"{where}: dtype {dtype} and shape {_shown(shape)} need {bits / 8:,.10g} bytes, "
            f"but data_offsets [{begin}, {end}] give {end - begin:,}. The file is damaged."
        )
    if dtype == "F4" and (not shape or shape[-1] % 2):
        raise CheckpointError(f"{where}: the last size of an F4 tensor must be even, got shape {_shown(shape)}.")
    return TensorInfo(dtype, tuple(shape), begin, end)


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _check_layout(tensors: dict[str, TensorInfo], data_size: int, path: str) -> None:
    """The tensors, sorted, must follow each other without a hole or an overlap, and end where the file ends."""
    position, before = 0, "the start of the data"
    for name, info in sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)):
        if info.end > data_size:
            raise CheckpointError(
                f"Tensor {_shown(name)} in '{path}' ends at byte {info.end:,} of the data, but the file has "
                f"{data_size:,}. The file is truncated; get it again."
            )
        if info.begin != position:
            fault = "overlaps" if info.begin < position else "leaves a hole behind"
            raise CheckpointError(
                f"Tensor {_shown(name)} in '{path}' {fault} {before}: it begins at byte {info.begin:,} and "
                f"{position:,} was expected. The file is damaged."
            )
        position, before = info.end, f"tensor {_shown(name)}"
    if position != data_size:
        raise CheckpointError(
            f"'{path}' has {data_size - position:,} bytes behind its last tensor, which no safetensors file has. "
            "It is damaged; get it again."
        )


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 120 else text[:117] + "..."
