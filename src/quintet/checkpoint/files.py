"""Which files of a folder hold the weights."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from quintet.errors import CheckpointError, HubError
from quintet.hub import read_json, safe_join

__all__ = ["WeightFiles", "find_weights", "read_index", "variant_name"]

SAFE_WEIGHTS = "model.safetensors"
TORCH_WEIGHTS = "pytorch_model.bin"
INDEX_SUFFIX = ".index.json"


@dataclass(frozen=True)
class WeightFiles:
    """The files of one checkpoint: `weight_map` (tensor name to file name) when an index listed them."""

    folder: Path
    paths: tuple[Path, ...]
    format: Literal["safetensors", "torch"] = "safetensors"
    weight_map: dict[str, str] | None = None

    def __iter__(self) -> Iterator[Path]:
        return iter(self.paths)

    def __len__(self) -> int:
        return len(self.paths)


def variant_name(name: str, variant: str | None) -> str:
    """Put a variant into a file name: `model.fp16.safetensors`, `model.safetensors.index.fp16.json`.

    Raises:
        CheckpointError: The variant is not a plain word.
    """
    if variant is None:
        return name
    if not isinstance(variant, str) or not variant or not all(char.isalnum() or char in "-_" for char in variant):
        raise CheckpointError(
            f"variant={variant!r} is not usable: letters, digits, '-' and '_' are allowed, as in variant='fp16'."
        )
    stem, extension = name.rsplit(".", 1)
    return f"{stem}.{variant}.{extension}"


def find_weights(
    folder: str | os.PathLike[str], *, variant: str | None = None, use_safetensors: bool | None = None
) -> WeightFiles:
    """Find the weights of a model folder: one file, or an index with its shards.

    Args:
        folder: The model's folder.
        variant: Takes `model.<variant>.safetensors` in place of `model.safetensors`, and so on.
        use_safetensors: None and True take safetensors only; False takes `pytorch_model.bin` (a pickle) only.

    Raises:
        HubError: There is no such folder, or no weights in it.
        CheckpointError: Only a pickle is there and it was not asked for; an index is not sound.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise HubError(f"There is no folder '{folder}'. Check the path.")
    plain = TORCH_WEIGHTS if use_safetensors is False else SAFE_WEIGHTS
    kind: Literal["safetensors", "torch"] = "torch" if use_safetensors is False else "safetensors"
    single = folder / variant_name(plain, variant)
    if single.is_file():
        return WeightFiles(folder, (single,), kind)
    index = folder / variant_name(plain + INDEX_SUFFIX, variant)
    if index.is_file():
        weight_map = read_index(index)
        paths = tuple(safe_join(folder, name) for name in dict.fromkeys(weight_map.values()))
        missing = [path.name for path in paths if not path.is_file()]
        if missing:
            raise CheckpointError(
                f"'{index}' names {len(missing)} of {len(paths)} files that are not there: {', '.join(missing[:5])}"
                f"{', ...' if len(missing) > 5 else ''}. The download or copy is not complete; get them."
            )
        return WeightFiles(folder, paths, kind, weight_map)
    raise _nothing_found(folder, single.name, index.name, use_safetensors)


def _nothing_found(folder: Path, single: str, index: str, use_safetensors: bool | None) -> Exception:
    there = sorted(entry.name for entry in folder.iterdir())
    if use_safetensors is not False and any(name.startswith("pytorch_model") for name in there):
        return CheckpointError(
            f"'{folder}' has its weights only as a pickle (pytorch_model*.bin), which can run code when it is read, so "
            "it is refused. If you trust its source: load it once with use_safetensors=False and call "
            "save_pretrained(folder), which writes model.safetensors."
        )
    shown = ", ".join(there[:12]) + (f", ... ({len(there)} entries)" if len(there) > 12 else "")
    return HubError(
        f"'{folder}' has neither '{single}' nor '{index}'. It holds: {shown or 'nothing'}. If the model "
        "is published only as pytorch_model.bin, load it with use_safetensors=False."
    )


def read_index(path: str | os.PathLike[str]) -> dict[str, str]:
    """Read a shard index and return its weight map, every file name checked.

    Raises:
        CheckpointError: Not an index, or it names anything but a plain file inside its folder.
    """
    path = Path(path)
    weight_map = read_json(path, error=CheckpointError).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(
            f"'{path}' needs a 'weight_map' object from tensor names to file names, and has "
            f"{'an empty one' if weight_map == {} else type(weight_map).__name__}. Get it again."
        )
    for key, value in weight_map.items():
        if not isinstance(value, str):
            raise CheckpointError(f"'{path}' gives {value!r} as the file of tensor '{key}': a file name is needed.")
    for name in set(weight_map.values()):
        safe_join(path.parent, name)
    return weight_map
