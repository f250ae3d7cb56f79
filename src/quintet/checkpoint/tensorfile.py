"""One safetensors file, memory-mapped after its header was checked."""

from __future__ import annotations

import mmap
import os
import sys
from collections.abc import Iterator, KeysView
from pathlib import Path

import torch

from quintet.checkpoint.header import Header, TensorInfo, header_length, parse_header
from quintet.errors import CheckpointError, suggest
from quintet.hub import open_regular
from quintet.pages import ask_for_large_pages

__all__ = ["DTYPES", "DTYPE_NAMES", "TensorFile", "read_header"]

_NAMES = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "U16": "uint16", "I16": "int16", "U32": "uint32", "I32": "int32",
    "U64": "uint64", "I64": "int64", "F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64",
    "C64": "complex64", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz", "F8_E8M0": "float8_e8m0fnu", "F4": "float4_e2m1fn_x2",
}  # fmt: skip
# older torch lacks the newest 8 and 4 bit types
DTYPES: dict[str, torch.dtype] = {name: getattr(torch, attr) for name, attr in _NAMES.items() if hasattr(torch, attr)}
DTYPE_NAMES: dict[torch.dtype, str] = {dtype: name for name, dtype in DTYPES.items()}


class TensorFile:
    """A safetensors file whose tensors are views of a private mapping.

    Private means copy-on-write: a tensor may be trained in place, which neither writes the file nor fails, and pages
    that nobody writes stay shared with the file cache. The mapping lives as long as any tensor made from it, also when
    another file takes this one's place in the folder (renaming does; writing into the same file would not be safe).
    """

    def __init__(self, path: Path, header: Header, buffer: mmap.mmap | bytearray | None) -> None:
        self.path = path
        self.header = header
        self._buffer = buffer

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, mapped: bool = True) -> TensorFile:
        """Check the header of a file and map it, or read it whole when `mapped` is false.

        Raises:
            HubError: There is no such file.
            CheckpointError: It is not a sound safetensors file.
        """
        path = Path(path)
        descriptor = open_regular(path)
        try:
            size = os.fstat(descriptor).st_size
            header = _header(descriptor, size, path)
            unknown = {info.dtype for info in header.tensors.values()} - DTYPES.keys()
            if unknown:
                raise CheckpointError(
                    f"'{path}' holds tensors of dtype {', '.join(sorted(unknown))}, which torch {torch.__version__} "
                    "does not have. Install a newer torch."
                )
            return cls(path, header, _map(descriptor, size) if mapped else _read_whole(descriptor, size))
        finally:
            os.close(descriptor)

    @property
    def metadata(self) -> dict[str, str]:
        """The `__metadata__` of the file, empty when it has none."""
        return self.header.metadata

    def keys(self) -> KeysView[str]:
        """Names of the tensors, in the order of the header."""
        return self.header.tensors.keys()

    def __iter__(self) -> Iterator[str]:
        return iter(self.header.tensors)

    def __contains__(self, key: object) -> bool:
        return key in self.header.tensors

    def __len__(self) -> int:
        return len(self.header.tensors)

    def shape(self, key: str) -> tuple[int, ...]:
        """Shape of a tensor as torch sees it (two F4 values make one element)."""
        info = self._info(key)
        return (*info.shape[:-1], info.shape[-1] // 2) if info.dtype == "F4" else info.shape

    def dtype(self, key: str) -> torch.dtype:
        """Type of a tensor."""
        return DTYPES[self._info(key).dtype]

    def nbytes(self, key: str) -> int:
        """Bytes that a tensor takes in the file."""
        info = self._info(key)
        return info.end - info.begin

    def get(self, key: str) -> torch.Tensor:
        """Return a tensor as a view of the mapping; nothing is read until it is used.

        Raises:
            CheckpointError: There is no tensor of that name.
        """
        info, dtype, shape = self._info(key), self.dtype(key), self.shape(key)
        count, start = info.end - info.begin, self.header.data_start + info.begin
        if not count or self._buffer is None:
            return torch.empty(shape, dtype=dtype, device="cpu")
        raw = torch.frombuffer(self._buffer, dtype=torch.uint8, count=count, offset=start)
        # Vector loads want aligned elements; a file may put a tensor anywhere, so an odd one is copied.
        if start % dtype.itemsize:
            raw = raw.clone()
        return raw.view(dtype).view(shape)

    def release(self, key: str) -> None:
        """Give the pages of a tensor back, for one that was copied and that nobody holds as a view any more."""
        info = self._info(key)
        advice = getattr(mmap, "MADV_DONTNEED", None)
        if advice is None or not isinstance(self._buffer, mmap.mmap):
            return
        # Only whole pages of this tensor: the first and last may belong to a neighbour that was written to.
        begin = -(-(self.header.data_start + info.begin) // mmap.PAGESIZE) * mmap.PAGESIZE
        end = (self.header.data_start + info.end) // mmap.PAGESIZE * mmap.PAGESIZE
        if end > begin:
            self._buffer.madvise(advice, begin, end - begin)

    def _info(self, key: str) -> TensorInfo:
        try:
            return self.header.tensors[key]
        except KeyError:
            raise CheckpointError(
                f"'{self.path}' has no tensor '{key}'.{suggest(key, self.keys())} It has {len(self)} tensors."
            ) from None


def read_header(path: str | os.PathLike[str]) -> Header:
    """Return the checked header of a safetensors file, its data neither mapped nor read.

    Raises:
        HubError: There is no such file.
        CheckpointError: It is not a sound safetensors file.
    """
    descriptor = open_regular(path)
    try:
        return _header(descriptor, os.fstat(descriptor).st_size, Path(path))
    finally:
        os.close(descriptor)


def _header(descriptor: int, size: int, path: Path) -> Header:
    length = header_length(_read(descriptor, 8, 0), size, str(path))
    return parse_header(_read(descriptor, length, 8), size - 8 - length, str(path))


def _map(descriptor: int, size: int) -> mmap.mmap | bytearray:
    try:
        if sys.platform == "linux":
            # Private and writable, and nothing set aside for pages that nobody writes: else the kernel refuses to map
            # a file larger than the memory. The number is for a Python without a name for the flag.
            flags = mmap.MAP_PRIVATE | getattr(mmap, "MAP_NORESERVE", 0x4000)
            buffer = mmap.mmap(descriptor, size, flags=flags, prot=mmap.PROT_READ | mmap.PROT_WRITE)
            ask_for_large_pages(torch.frombuffer(buffer, dtype=torch.uint8))  # of what is not in the page cache yet
            return buffer
        return mmap.mmap(descriptor, size, access=mmap.ACCESS_COPY)
    except (OSError, ValueError):
        return _read_whole(descriptor, size)  # some network file systems cannot map


def _read_whole(descriptor: int, size: int) -> bytearray:
    buffer, position = bytearray(size), 0
    os.lseek(descriptor, 0, os.SEEK_SET)
    with open(os.dup(descriptor), "rb", buffering=0) as file:
        while position < size:
            got = file.readinto(memoryview(buffer)[position:])
            if not got:
                raise CheckpointError(f"The file became shorter ({position:,} bytes) while it was read.")
            position += got
    return buffer


def _read(descriptor: int, length: int, offset: int) -> bytes:
    os.lseek(descriptor, offset, os.SEEK_SET)
    parts = []
    while length > 0:
        part = os.read(descriptor, length)
        if not part:
            break
        parts.append(part)
        length -= len(part)
    return b"".join(parts)
