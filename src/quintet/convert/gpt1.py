"""GPT-1 as OpenAI released it in 2018 (github.com/openai/finetune-transformer-lm, folder `model`).

`params_shapes.json` lists the shapes of all parameters. `params_0.npy` to `params_9.npy` are one long row of float32
numbers in ten pieces, and the parameters follow each other in it: the positions (P, E), the tokens (V, E), then twelve
arrays for each block, see `BLOCK`. The kernels are those of convolutions of width 1, (1, in, out).
`encoder_bpe_40000.json` and `vocab_40000.bpe` are the vocabulary and the merges of the tokenizer.

Letters: P positions, V vocabulary, E width.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING

from quintet.convert.base import Layout, Progress
from quintet.errors import CheckpointError
from quintet.hub import open_regular, read_json

if TYPE_CHECKING:
    import numpy as np

__all__ = ["LAYOUT"]

SHAPES, ENCODER, MERGES = "params_shapes.json", "encoder_bpe_40000.json", "vocab_40000.bpe"
HEADS = 12  # the release does not store it; its code has no other number
# Of one block, in the order of the release: name here, shape in units of E.
BLOCK: tuple[tuple[str, tuple[int, ...]], ...] = (
    ("attn.c_attn.weight", (1, 1, 3)),
    ("attn.c_attn.bias", (3,)),
    ("attn.c_proj.weight", (1, 1, 1)),
    ("attn.c_proj.bias", (1,)),
    ("ln_1.weight", (1,)),
    ("ln_1.bias", (1,)),
    ("mlp.c_fc.weight", (1, 1, 4)),
    ("mlp.c_fc.bias", (4,)),
    ("mlp.c_proj.weight", (1, 4, 1)),
    ("mlp.c_proj.bias", (1,)),
    ("ln_2.weight", (1,)),
    ("ln_2.bias", (1,)),
)
_LIMIT = 4 << 20  # of the lists of shapes and merges; the release's are 2 KB and 450 KB


def detect(folder: Path) -> bool:
    """Whether the release's files are in `folder` or, as in its repository, in `folder/model`."""
    return any((place / SHAPES).is_file() for place in (folder, folder / "model"))


def size(folder: Path) -> int:
    """Bytes of the result: the weights once more, and the texts."""
    place = _place(folder)
    texts = [place / name for name in (ENCODER, MERGES) if (place / name).is_file()]
    return sum(math.prod(shape) * 4 for shape in _shapes(place)) + sum(t.stat().st_size for t in texts) + (1 << 20)


def to_hub(source: Path, folder: Path, progress: Progress) -> None:
    """Convert the release to config.json, model.safetensors, vocab.json and merges.txt.

    Raises:
        CheckpointError: A file is missing, damaged or of another model.
    """
    place = _place(source)
    shapes = _shapes(place)
    layers = _check_shapes(shapes, place)
    shards = _shards(place, sum(map(math.prod, shapes)))
    texts = _tokenizer(place, positions=shapes[0][0], vocabulary=shapes[1][0])

    import torch

    from quintet.models.openai_gpt import OpenAIGPTConfig, OpenAIGPTLMHeadModel

    width = shapes[0][1]
    config = OpenAIGPTConfig(
        vocab_size=shapes[1][0], n_positions=shapes[0][0], n_embd=width, n_layer=layers, n_head=HEADS
    )
    names = ["positions_embed.weight", "tokens_embed.weight"]
    names += [f"h.{layer}.{name}" for layer in range(layers) for name, _ in BLOCK]
    weights: dict[str, torch.Tensor] = {}
    start, total = 0, sum(map(math.prod, shapes))
    for name, shape in zip(names, shapes, strict=True):
        count = math.prod(shape)
        values = _piece(shards, start, count).reshape(shape[-2:])  # (1, in, out) -> (in, out)
        weights[f"transformer.{name}"] = torch.from_numpy(values)
        start += count
        progress(start * 4, total * 4)
    with torch.device("meta"):
        model = OpenAIGPTLMHeadModel(config)
    state = {name: weights[name] for name in model.state_dict() if name in weights}
    model.save_pretrained(folder, state_dict=state)
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8", newline="\n")


def _place(folder: Path) -> Path:
    place = folder if (folder / SHAPES).is_file() else folder / "model"
    if not (place / SHAPES).is_file():
        raise CheckpointError(
            f"'{folder}' holds no {SHAPES}, neither itself nor in a folder 'model', so it is not GPT-1's original "
            "release. Give the folder with the .npy files."
        )
    return place


def _shapes(place: Path) -> list[tuple[int, ...]]:
    """Read the list of shapes."""
    path = place / SHAPES
    with os.fdopen(open_regular(path), "rb") as file:
        data = file.read(_LIMIT + 1)
    try:
        found = json.loads(data) if len(data) <= _LIMIT else None
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, list) or not all(isinstance(shape, list) and shape for shape in found):
        raise CheckpointError(f"'{path}' must be a JSON list of shapes, and is not. Get it again from the release.")
    for shape in found:
        if not all(type(length) is int and 0 < length < 2**31 for length in shape):
            raise CheckpointError(f"'{path}' holds the shape {shape!r}; lengths must be whole numbers above 0.")
    return [tuple(shape) for shape in found]


def _check_shapes(shapes: list[tuple[int, ...]], place: Path) -> int:
    """Return the number of blocks."""
    layers, rest = divmod(len(shapes) - 2, len(BLOCK))
    if layers < 1 or rest:
        raise CheckpointError(
            f"'{place / SHAPES}' lists {len(shapes)} shapes, but a GPT-1 has 2 and {len(BLOCK)} for each block. It is "
            "another model, or damaged."
        )
    width = shapes[0][-1]
    wanted: list[tuple[int | None, ...]] = [(None, width), (None, width)]
    for _ in range(layers):
        wanted += [
            tuple(length * width if place or len(units) == 1 else 1 for place, length in enumerate(units))
            for _, units in BLOCK
        ]
    for index, (got, want) in enumerate(zip(shapes, wanted, strict=True)):
        if len(got) != len(want) or any(w is not None and g != w for g, w in zip(got, want, strict=True)):
            raise CheckpointError(
                f"'{place / SHAPES}': shape number {index} is {list(got)}, but in a GPT-1 of width {width} it must be "
                f"{['any' if w is None else w for w in want]}. It is another model, or damaged."
            )
    if width % HEADS:
        raise CheckpointError(
            f"'{place / SHAPES}': the width is {width}, but must be a multiple of {HEADS}, the heads."
        )
    return layers


def _shards(place: Path, wanted: int) -> list[np.ndarray]:
    """Map the pieces; nothing of their data is read yet."""
    import numpy as np

    there = sorted(place.glob("params_*.npy"))
    shards: list[np.ndarray] = []
    for number in range(max(1, len(there))):
        path = place / f"params_{number}.npy"
        os.close(open_regular(path))  # not a pipe or a device; a missing file is named with what is there
        try:
            array = np.lib.format.open_memmap(path, mode="r")  # it refuses objects, which would be pickled
        except (ValueError, OSError, OverflowError, SyntaxError) as error:
            raise CheckpointError(
                f"'{path}' is not a sound .npy file: {str(error)[:200]} Get it again from the release."
            ) from error
        if array.dtype != np.float32 or array.ndim != 1:
            raise CheckpointError(
                f"'{path}' holds {array.dtype} numbers of shape {array.shape}, but must be a row of float32 numbers. "
                "Get it again from the release."
            )
        shards.append(array)
    found = sum(len(shard) for shard in shards)
    if found != wanted:
        raise CheckpointError(
            f"the {len(shards)} files params_0.npy to params_{len(shards) - 1}.npy in '{place}' hold {found:,} "
            f"numbers, and {SHAPES} wants {wanted:,}. One is missing, or of another model."
        )
    return shards


def _piece(shards: list[np.ndarray], start: int, count: int) -> np.ndarray:
    """Copy `count` numbers from `start` on, which may lie in several pieces, in the machine's byte order."""
    import numpy as np

    out, done, begin = np.empty(count, np.float32), 0, 0
    for shard in shards:
        low, high = max(start, begin), min(start + count, begin + len(shard))
        if low < high:
            out[done : done + high - low] = shard[low - begin : high - begin]
            done += high - low
        begin += len(shard)
    return out


def _tokenizer(place: Path, *, positions: int, vocabulary: int) -> dict[str, str]:
    """Return the texts of the tokenizer's files; none when the release's lie elsewhere."""
    there = [name for name in (ENCODER, MERGES) if (place / name).is_file()]
    if not there:
        return {}
    if len(there) == 1:
        missing = MERGES if there == [ENCODER] else ENCODER
        raise CheckpointError(f"'{place}' holds {there[0]} but no {missing}. Add it, or take the other away too.")
    encoder = read_json(place / ENCODER, error=CheckpointError)
    ids = sorted(value for value in encoder.values() if type(value) is int)
    if ids != list(range(len(encoder))) or len(encoder) > vocabulary:
        raise CheckpointError(
            f"'{place / ENCODER}' must number its {len(encoder)} tokens from 0 to {len(encoder) - 1}, and the model "
            f"has {vocabulary}. It is damaged, or of another model."
        )
    with os.fdopen(open_regular(place / MERGES), "rb") as file:
        data = file.read(_LIMIT + 1)
    try:
        merges = data.decode("utf-8").replace("\r\n", "\n").removesuffix("\n").split("\n")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"'{place / MERGES}' is not UTF-8 text. Get it again from the release.") from error
    for number, line in enumerate(merges[1:], start=2):  # the first line is a version
        if len(line.split(" ")) != 2:
            raise CheckpointError(f"'{place / MERGES}', line {number}: {line[:50]!r} is not a pair of tokens.")
    settings = {"model_max_length": positions, "tokenizer_class": "OpenAIGPTTokenizer", "unk_token": "<unk>"}
    return {
        "vocab.json": json.dumps(encoder, ensure_ascii=False) + "\n",
        "merges.txt": "\n".join(merges) + "\n",
        "tokenizer_config.json": json.dumps(settings, indent=2) + "\n",
    }


LAYOUT = Layout(name="gpt1-original", detect=detect, size=size, to_hub=to_hub)
