"""GPT-1's original release at any size, with random numbers, and its algorithm in numpy, written from the paper and the
release's description alone: a test of the converter must not share a line with it."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

# The order in which the release stores the arrays of a block.
OF_BLOCK = [
    ("attn/c_attn/w", lambda e: (1, e, 3 * e)),
    ("attn/c_attn/b", lambda e: (3 * e,)),
    ("attn/c_proj/w", lambda e: (1, e, e)),
    ("attn/c_proj/b", lambda e: (e,)),
    ("ln_1/g", lambda e: (e,)),
    ("ln_1/b", lambda e: (e,)),
    ("mlp/c_fc/w", lambda e: (1, e, 4 * e)),
    ("mlp/c_fc/b", lambda e: (4 * e,)),
    ("mlp/c_proj/w", lambda e: (1, 4 * e, e)),
    ("mlp/c_proj/b", lambda e: (e,)),
    ("ln_2/g", lambda e: (e,)),
    ("ln_2/b", lambda e: (e,)),
]


def shapes(positions: int, vocabulary: int, width: int, layers: int) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {"pe": (positions, width), "we": (vocabulary, width)}
    for layer in range(layers):
        found.update({f"h{layer}/{name}": shape(width) for name, shape in OF_BLOCK})
    return found


def random_parameters(wanted: dict[str, tuple[int, ...]], seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        name: (rng.standard_normal(shape, dtype=np.float32) * 0.2 + name.endswith("/g")).astype(np.float32)
        for name, shape in wanted.items()
    }


def write(folder: Path, parameters: dict[str, np.ndarray], cuts: int | list[int] = 10) -> Path:
    """Write `params_shapes.json` and the pieces: so many of equal length, or cut at these places."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "params_shapes.json").write_text(json.dumps([list(array.shape) for array in parameters.values()]))
    row = np.concatenate([array.ravel() for array in parameters.values()])
    for number, piece in enumerate(np.array_split(row, cuts)):
        np.save(folder / f"params_{number}.npy", piece)
    return folder


def forward(parameters: dict[str, np.ndarray], ids: list[int], heads: int) -> np.ndarray:
    """Scores (tokens, vocabulary) of the next token at each place, in float64."""
    p = {name: array.astype(np.float64) for name, array in parameters.items()}
    layers = sum(name.endswith("ln_1/g") for name in p)
    x = p["we"][ids] + p["pe"][: len(ids)]

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        centred = x - x.mean(-1, keepdims=True)
        return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * p[f"{name}/g"] + p[f"{name}/b"]

    def conv(x: np.ndarray, name: str) -> np.ndarray:
        return x @ p[f"{name}/w"][0] + p[f"{name}/b"]

    for layer in range(layers):
        at = f"h{layer}"
        q, k, v = np.split(conv(x, f"{at}/attn/c_attn"), 3, axis=-1)
        joined = []
        for qh, kh, vh in zip(*(np.split(part, heads, axis=-1) for part in (q, k, v)), strict=True):
            scores = qh @ kh.T / np.sqrt(qh.shape[-1])
            scores = np.where(np.tri(len(ids), dtype=bool), scores, -1e9)
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            joined.append(weights / weights.sum(-1, keepdims=True) @ vh)
        n = norm(x + conv(np.concatenate(joined, -1), f"{at}/attn/c_proj"), f"{at}/ln_1")
        inner = conv(n, f"{at}/mlp/c_fc")
        inner = 0.5 * inner * (1 + np.tanh(np.sqrt(2 / np.pi) * (inner + 0.044715 * inner**3)))
        x = norm(n + conv(inner, f"{at}/mlp/c_proj"), f"{at}/ln_2")
    return x @ p["we"].T


TOKENS = ["<unk>", *"the.é", *(f"{letter}</w>" for letter in "the.é"), "th", "the</w>"]


@pytest.fixture(scope="session")
def release() -> SimpleNamespace:
    """The functions above."""
    return SimpleNamespace(shapes=shapes, random_parameters=random_parameters, write=write, forward=forward)


@pytest.fixture
def parameters() -> dict[str, np.ndarray]:
    """16 positions, 40 tokens, width 24, 2 blocks."""
    return random_parameters(shapes(16, 40, 24, 2))


@pytest.fixture
def original(tmp_path: Path, parameters: dict[str, np.ndarray]) -> Path:
    """A small GPT-1 in the layout of its first release: the repository's folder, whose files lie in `model`."""
    folder = write(tmp_path / "original" / "model", parameters)
    (folder / "encoder_bpe_40000.json").write_text(json.dumps({token: i for i, token in enumerate(TOKENS)}))
    (folder / "vocab_40000.bpe").write_text("#version: 0.2\nt h\nth e</w>\n")
    return folder.parent
