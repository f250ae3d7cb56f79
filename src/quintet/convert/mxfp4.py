"""Packing and unpacking the experts of a checkpoint: our layout on both sides, MXFP4 on one.

A packed checkpoint is in our own layout as well, so this one is never found, only asked for: `--to mxfp4` packs, and
`--from mxfp4` unpacks to bfloat16. Tensors pass through one expert at a time.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from quintet.convert.base import Layout, Progress
from quintet.convert.shards import Planned, Span, write_shards
from quintet.errors import CheckpointError
from quintet.hub import read_json

__all__ = ["LAYOUT"]

WEIGHTS = ("gate_up_proj", "down_proj")
NOT_PACKED = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]
SHARD = 5 * 10**9
# Weights are written anew; an index would name files that are not there.
LEFT_OUT = (".safetensors", ".safetensors.index.json", ".bin", ".bin.index.json")


def detect(folder: Path) -> bool:
    """Never: a packed checkpoint is read as it is, and unpacked only when asked."""
    return False


def size(folder: Path) -> int:
    """Bytes of the result: unpacked four times as many, at most."""
    weights = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    packed = bool(_config(folder).get("quantization_config"))
    return (4 * weights if packed else weights) + (64 << 20)


def from_hub(source: Path, folder: Path, progress: Progress) -> str:
    """Pack the experts of a plain checkpoint; the error of the rounding is what is returned.

    Raises:
        CheckpointError: There are no experts, or they are packed already.
        InputError: A size that is not a multiple of 32, naming the tensor.
    """
    from quintet.quant.mxfp4 import BLOCK, check_width, pack

    config, tensors = _config(source), _tensors(source)
    plain = [name for name, (_, shape, _) in tensors.items() if name.endswith(WEIGHTS) and len(shape) == 3]
    if not plain or config.get("quantization_config"):
        state = "are packed already" if config.get("quantization_config") else "are not there"
        raise CheckpointError(f"'{source}' has nothing to pack as MXFP4: its experts {state}.")
    errors: dict[str, list[float]] = {name: [] for name in plain}
    scales: dict[str, list[Any]] = {}

    def blocks(name: str) -> Iterator[memoryview]:
        scales[name] = []
        for expert in _experts(tensors[name]):
            packed = pack(expert.t(), f"'{name}'")  # (in, out) -> (out, in)
            errors[name].append(packed.error)
            scales[name].append(packed.scales)
            yield _bytes(packed.blocks)

    planned = []
    for name, (dtype, shape, span) in tensors.items():
        if name not in errors:
            planned.append(Planned(name, dtype, shape, span.length, span.pieces))
            continue
        experts, inputs, outputs = shape
        check_width(inputs, f"'{name}'")
        small = (experts, outputs, inputs // BLOCK)
        large = (*small, BLOCK // 2)
        # Written one after the other, so the scales of one tensor at a time are held.
        planned.append(Planned(f"{name}_blocks", "U8", large, math.prod(large), _made(blocks, name)))
        planned.append(
            Planned(f"{name}_scales", "U8", small, math.prod(small), _made(lambda n: map(_bytes, scales.pop(n)), name))
        )
    config["quantization_config"] = {"modules_to_not_convert": NOT_PACKED, "quant_method": "mxfp4"}
    write_shards(folder, planned, limit=SHARD, progress=progress)
    _texts(source, folder, config)
    mean = {name: sum(values) / len(values) for name, values in errors.items()}
    worst = max(mean, key=lambda name: mean[name])
    return (
        f"packed {len(mean)} tensors as MXFP4: relative error {sum(mean.values()) / len(mean):.4f} on average, at most "
        f"{mean[worst]:.4f} ({worst})"
    )


def to_hub(source: Path, folder: Path, progress: Progress) -> str:
    """Unpack the experts of a packed checkpoint to bfloat16.

    Raises:
        CheckpointError: It is not packed, half packed, or damaged.
    """
    import torch

    from quintet.quant.mxfp4 import BLOCK, check_packed, check_scales, unpack

    config, tensors = _config(source), _tensors(source)
    stems = [name.removesuffix("_blocks") for name in tensors if name.endswith(tuple(f"{w}_blocks" for w in WEIGHTS))]
    if not stems:
        raise CheckpointError(f"'{source}' holds no tensor named '..._blocks', so there is nothing to unpack.")

    def weights(stem: str) -> Iterator[memoryview]:
        every = zip(_experts(tensors[f"{stem}_blocks"]), _experts(tensors[f"{stem}_scales"]), strict=True)
        for blocks, scales in every:
            check_scales(scales, f"{stem}_scales")
            yield _bytes(unpack(blocks, scales, torch.bfloat16).t())  # (out, in) -> (in, out)

    planned = []
    for name, (dtype, shape, span) in tensors.items():
        stem, _, part = name.rpartition("_")
        if stem not in stems or part not in ("blocks", "scales"):
            planned.append(Planned(name, dtype, shape, span.length, span.pieces))
        elif part == "blocks":
            if f"{stem}_scales" not in tensors:
                raise CheckpointError(f"The checkpoint is half packed: it has '{name}' without its scales.")
            small = tensors[f"{stem}_scales"][1]
            check_packed(shape, small, f"'{stem}'")
            experts, outputs, groups = small
            made = (experts, groups * BLOCK, outputs)
            planned.append(Planned(stem, "BF16", made, 2 * math.prod(made), _made(weights, stem)))
    config.pop("quantization_config", None)
    write_shards(folder, planned, limit=SHARD, progress=progress)
    _texts(source, folder, config)
    return f"unpacked {len(stems)} tensors to bfloat16, exactly"


Stored = tuple[str, tuple[int, ...], Span]


def _config(folder: Path) -> dict[str, Any]:
    return read_json(folder / "config.json", error=CheckpointError)


def _tensors(folder: Path) -> dict[str, Stored]:
    from quintet.checkpoint import find_weights, read_header

    found: dict[str, Stored] = {}
    for path in find_weights(folder):
        header = read_header(path)
        for name, info in header.tensors.items():
            span = Span(path, header.data_start + info.begin, info.end - info.begin)
            found[name] = (info.dtype, info.shape, span)
    return found


def _experts(stored: Stored) -> Iterator[Any]:
    """Read a stack of experts one after the other."""
    import torch

    from quintet.checkpoint.tensorfile import DTYPES

    dtype, shape, span = stored
    each = span.length // shape[0]
    for expert in range(shape[0]):
        data = bytearray().join(Span(span.path, span.begin + expert * each, each).pieces())
        yield torch.frombuffer(data, dtype=DTYPES[dtype]).view(shape[1:])


def _bytes(tensor: Any) -> memoryview:
    import torch

    return memoryview(tensor.contiguous().view(torch.uint8).numpy()).cast("B")


def _made(function: Callable[[str], Any], name: str) -> Callable[[], Any]:
    return lambda: function(name)


def _texts(source: Path, folder: Path, config: dict[str, Any]) -> None:
    """Write config.json, and copy what else stands beside the weights: tokenizer, generation settings, licence."""
    for path in sorted(source.iterdir()):
        if path.is_file() and path.name != "config.json" and not path.name.endswith(LEFT_OUT):
            shutil.copyfile(path, folder / path.name)
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    (folder / "config.json").write_text(text, encoding="utf-8", newline="\n")


LAYOUT = Layout(name="mxfp4", detect=detect, size=size, to_hub=to_hub, from_hub=from_hub)
