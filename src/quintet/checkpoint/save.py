"""Weights to files: shards and their index, all complete before the first of them takes its final name."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path

import torch

from quintet.checkpoint.files import INDEX_SUFFIX, SAFE_WEIGHTS, variant_name
from quintet.checkpoint.tensorfile import DTYPE_NAMES
from quintet.errors import CheckpointError
from quintet.hub import StagedFiles

__all__ = ["parse_size", "save_weights"]

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
          "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}  # fmt: skip
_ALIGNMENT = 64


def parse_size(size: int | str) -> int:
    """Return a size in bytes: 5000000000, "5GB", "500 MB", "2GiB".

    Raises:
        CheckpointError: Not a size, or not above zero.
    """
    count = size
    if isinstance(size, str):
        match = re.fullmatch(r"\s*(\d{1,18}(?:\.\d{1,6})?)\s*([KMGT]?I?B?)\s*", size.upper())
        count = int(float(match[1]) * _UNITS[match[2]]) if match and match[2] in _UNITS else 0
    if not isinstance(count, int) or isinstance(count, bool) or count <= 0:
        raise CheckpointError(
            f"max_shard_size={size!r} is not a size: a number of bytes above 0, or a text such as '5GB' or '500MB'."
        )
    return count


def save_weights(
    state_dict: Mapping[str, torch.Tensor],
    folder: str | os.PathLike[str],
    *,
    max_shard_size: int | str = "5GB",
    metadata: Mapping[str, str] | None = None,
    variant: str | None = None,
    tied: Mapping[str, str] | None = None,
    texts: Mapping[str, str] | None = None,
) -> list[Path]:
    """Write a state dict as `model.safetensors`, or as shards with `model.safetensors.index.json`.

    Every file is written beside its final name and flushed to the disk; then all are renamed; then the files of the
    former save that are not part of this one are removed. Until the first rename the old checkpoint is whole.

    Args:
        state_dict: Names to tensors, on any device.
        folder: Created when it does not exist.
        max_shard_size: Bytes of tensors in one file; a larger tensor gets a file of its own.
        metadata: Strings for the header; `{"format": "pt"}` when left out, which other readers want to see.
        variant: Puts a word into the file names (`model.fp16.safetensors`).
        tied: Name to name: the first is left out when it holds the same as the second.
        texts: Further files (config.json) that become real together with the weights.

    Returns:
        The files written.

    Raises:
        CheckpointError: The folder is a file, the disk is full, a tensor cannot be stored.
    """
    folder = Path(folder)
    limit = parse_size(max_shard_size)
    tensors = _without_ties(_checked(state_dict), tied or {})
    shards = _split(tensors, limit)
    names = _shard_names(len(shards), variant)
    head = dict(metadata) if metadata is not None else {"format": "pt"}
    _make_folder(folder)
    try:
        with StagedFiles(folder) as staged:
            for name, shard in zip(names, shards, strict=True):
                _write_file(staged.path(name), shard, head)
            written = list(names)
            if len(shards) > 1:
                index = variant_name(SAFE_WEIGHTS + INDEX_SUFFIX, variant)
                staged.write_text(index, _index_text(names, shards))
                written.append(index)
            for name, text in (texts or {}).items():
                staged.write_text(name, text)
            stale = _former_files(folder, variant) - set(written)
            # Shards that take the names of other shards: without its index, a set that a power cut left half
            # renamed is refused as incomplete, where it would otherwise load as a mixture.
            first = [name for name in written if name.endswith(".json") and any((folder / n).exists() for n in names)]
            staged.commit(first=first if len(shards) > 1 else (), remove=sorted(stale))
    except OSError as error:
        needed = sum(_nbytes(tensor) for tensor in tensors.values())
        raise CheckpointError(
            f"Saving to '{folder}' failed: {error.strerror or error}. It needs {needed:,} bytes; nothing there was "
            "changed. Free some space or choose another folder, and save again."
        ) from error
    return [folder / name for name in (*written, *(texts or {}))]


def _checked(state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    for key, tensor in state_dict.items():
        if not isinstance(key, str) or not isinstance(tensor, torch.Tensor):
            raise CheckpointError(f"Entry {key!r} of the state dict holds a {type(tensor).__name__}, not a tensor.")
        if key == "__metadata__":
            raise CheckpointError("A tensor may not be named '__metadata__': safetensors uses that name. Rename it.")
        if tensor.layout != torch.strided or tensor.device.type == "meta" or tensor.dtype not in DTYPE_NAMES:
            raise CheckpointError(
                f"Tensor '{key}' ({tensor.dtype}, {tensor.layout}, on {tensor.device}) cannot be saved: a dense tensor "
                f"with values, of one of the types {', '.join(DTYPE_NAMES.values())}, is needed."
            )
    return dict(state_dict)


def _without_ties(tensors: dict[str, torch.Tensor], tied: Mapping[str, str]) -> dict[str, torch.Tensor]:
    kept = dict(tensors)
    for name, other in tied.items():
        if name in kept and other in kept and name != other and _same(kept[name], kept[other]):
            del kept[name]
    return kept


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors are one: by memory, or, after a conversion had copied both, by value."""
    if one.device != other.device or one.shape != other.shape or one.dtype != other.dtype:
        return False
    return (one.data_ptr() == other.data_ptr() and one.stride() == other.stride()) or torch.equal(one, other)


def _nbytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.dtype.itemsize


def _split(tensors: dict[str, torch.Tensor], limit: int) -> list[dict[str, torch.Tensor]]:
    """Fill files in the order of the state dict; a tensor above the limit gets one of its own at once."""
    shards: list[dict[str, torch.Tensor]] = []
    current: dict[str, torch.Tensor] = {}
    size = 0
    for name, tensor in tensors.items():
        if _nbytes(tensor) > limit:
            shards.append({name: tensor})
            continue
        if current and size + _nbytes(tensor) > limit:
            shards.append(current)
            current, size = {}, 0
        current[name] = tensor
        size += _nbytes(tensor)
    return [*shards, current] if current or not shards else shards


def _shard_names(count: int, variant: str | None) -> list[str]:
    if count == 1:
        return [variant_name(SAFE_WEIGHTS, variant)]
    stem = variant_name(SAFE_WEIGHTS, variant).removesuffix(".safetensors")
    return [f"{stem}-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]


def _index_text(names: list[str], shards: list[dict[str, torch.Tensor]]) -> str:
    total = sum(_nbytes(tensor) for shard in shards for tensor in shard.values())
    weight_map = {key: name for name, shard in zip(names, shards, strict=True) for key in shard}
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    return json.dumps(index, indent=2, ensure_ascii=False) + "\n"


def _former_files(folder: Path, variant: str | None) -> set[str]:
    """Weight files of an earlier save of the same variant."""
    single = variant_name(SAFE_WEIGHTS, variant)
    stem = re.escape(single.removesuffix(".safetensors"))
    shard = re.compile(stem + r"-\d{5}-of-\d{5}\.safetensors")
    fixed = {single, variant_name(SAFE_WEIGHTS + INDEX_SUFFIX, variant)}
    return {entry.name for entry in folder.iterdir() if entry.name in fixed or shard.fullmatch(entry.name)}


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise CheckpointError(f"'{folder}' is a file (or below one), and a folder is needed to save into.") from error
    except OSError as error:
        raise CheckpointError(f"The folder '{folder}' cannot be created: {error.strerror or error}.") from error


def _write_file(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
    """Write one safetensors file, tensor by tensor; none is copied unless it is strided or on another device."""
    # widest elements first, so that every tensor is aligned to its own elements whatever the others' sizes
    order = sorted(tensors, key=lambda name: -tensors[name].dtype.itemsize)
    header: dict[str, object] = {"__metadata__": metadata} if metadata else {}
    position = 0
    for name in order:
        tensor = tensors[name]
        dtype, shape = DTYPE_NAMES[tensor.dtype], list(tensor.shape)
        if dtype == "F4":
            shape = [*shape[:-1], shape[-1] * 2]  # two values in one element of torch's type
        end = position + _nbytes(tensor)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [position, end]}
        position = end
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    # the data begins on a cache line, which makes vector loads from a mapping faster
    text += b" " * (-(8 + len(text)) % _ALIGNMENT)
    with open(path, "xb", buffering=0) as file:
        _write_all(file.fileno(), len(text).to_bytes(8, "little") + text)
        for name in order:
            plain = tensors[name].detach().resolve_conj().resolve_neg().to("cpu").contiguous()
            flat = plain.as_strided((plain.numel(),), (1,))  # a single element may have any stride, bytes may not
            _write_all(file.fileno(), flat.view(torch.uint8).numpy().data)


def _write_all(descriptor: int, data: bytes | memoryview) -> None:
    """Write everything: the system takes at most 2 GiB at a time, and less when the disk fills."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view[: 1 << 30]) :]
