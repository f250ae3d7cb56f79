"""Safetensors files written piece by piece: the header first, then each tensor's bytes as they are made. No torch.

Nothing is held but the piece that is being written, so a conversion needs no more memory than its largest piece.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from quintet.convert.base import Progress
from quintet.errors import CheckpointError
from quintet.hub import StagedFiles, open_regular

__all__ = ["Planned", "Span", "write_shards"]

_PIECE = 16 << 20
_ALIGNMENT = 64
_ITEM = {"U8": 1, "I8": 1, "BF16": 2, "F16": 2, "F32": 4, "I32": 4, "F64": 8, "I64": 8}


@dataclass(frozen=True)
class Span:
    """Bytes of a file, from `begin` on."""

    path: Path
    begin: int
    length: int

    def pieces(self) -> Iterator[bytes]:
        """Read them.

        Raises:
            CheckpointError: the file ends before.
        """
        with os.fdopen(open_regular(self.path), "rb", buffering=0) as file:
            file.seek(self.begin)
            left = self.length
            while left:
                data = file.read(min(left, _PIECE))
                if not data:
                    raise CheckpointError(f"'{self.path}' became shorter while it was read. Get it again.")
                left -= len(data)
                yield data


@dataclass(frozen=True)
class Planned:
    """A tensor that is to be written.

    Args:
        name: Its name.
        dtype: As safetensors names types.
        shape: Its sizes.
        length: Its bytes.
        pieces: Makes them, in order.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    length: int
    pieces: Callable[[], Iterable[bytes | memoryview]]


def write_shards(
    folder: Path,
    planned: Iterable[Planned],
    *,
    limit: int,
    progress: Progress,
    separator: str = "-",
    resume: bool = False,
) -> None:
    """Write tensors to `model.safetensors`, or to shards with an index.

    Args:
        folder: Where to.
        planned: The tensors, in the order of the files.
        limit: Bytes of tensors in one file; a larger tensor gets one of its own.
        progress: Called with the bytes written and those in all.
        separator: Stands before a shard's number.
        resume: Files that are there count as done; each gets its name when it is complete and on the disk.
    """
    tensors = list(planned)
    total = sum(tensor.length for tensor in tensors)
    shards: list[list[Planned]] = [[]]
    for tensor in tensors:
        if shards[-1] and sum(other.length for other in shards[-1]) + tensor.length > limit:
            shards.append([])
        shards[-1].append(tensor)
    names = [f"model{separator}{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    names = names if len(shards) > 1 else ["model.safetensors"]
    done = 0
    for name, shard in zip(names, shards, strict=True):
        if resume and (folder / name).is_file():
            done += sum(tensor.length for tensor in shard)
            progress(done, total)
            continue
        with StagedFiles(folder) as staged:
            for count in _write(staged.path(name) if resume else folder / name, shard):
                done += count
                progress(done, total)
            staged.commit()
    if len(shards) > 1:
        weight_map = {tensor.name: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        text = json.dumps(index, indent=2, ensure_ascii=False) + "\n"
        (folder / "model.safetensors.index.json").write_text(text, encoding="utf-8", newline="\n")


def _write(path: Path, shard: list[Planned]) -> Iterator[int]:
    """Write one file, and yield after each piece how many bytes it had."""
    # widest elements first, so that every tensor is aligned to its own
    order = sorted(shard, key=lambda tensor: -_ITEM.get(tensor.dtype, 1))
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    begins: dict[str, int] = {}
    position = 0
    for tensor in order:
        end = position + tensor.length
        header[tensor.name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [position, end]}
        begins[tensor.name] = position
        position = end
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    text += b" " * (-(8 + len(text)) % _ALIGNMENT)
    with open(path, "xb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        start = file.tell()
        for tensor in shard:  # as given: what is made together is not held until all of its kind is written
            file.seek(start + begins[tensor.name])
            written = 0
            for piece in tensor.pieces():
                file.write(piece)
                written += len(piece)
                yield len(piece)
            if written != tensor.length:
                raise CheckpointError(
                    f"Tensor '{tensor.name}' came to {written:,} bytes, and {tensor.length:,} were announced; this is "
                    "a bug of quintet."
                )
