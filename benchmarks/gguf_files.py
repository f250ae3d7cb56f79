"""GGUF files with random weights at the shapes of the benchmarks, for a comparison with llama.cpp.

Speed depends on shapes and formats, not on what a model knows, so the blocks of each format are random. Needs the
packages `gguf` and `numpy` alone: `python gguf_files.py --shape pythia-410m --format q8_0 --out model.gguf`.

Formats: "bf16", "q8_0", "q4_0" for every matrix; for gpt-oss the experts are MXFP4 in all of them, and the format is
that of the rest. Norms, biases and the router stay in float32, as converters write them.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

# Name: architecture, sizes; the shapes are those of families.py.
SHAPES: dict[str, dict[str, Any]] = {
    "gpt2": {"arch": "gpt2", "width": 768, "layers": 12, "heads": 12, "inner": 3072, "vocab": 50257, "context": 1024},
    "pythia-410m": {
        "arch": "gptneox",
        "width": 1024,
        "layers": 24,
        "heads": 16,
        "inner": 4096,
        "vocab": 50304,
        "context": 2048,
    },
    "seed-oss-1.5b": {
        "arch": "seed_oss",
        "width": 2048,
        "layers": 18,
        "heads": 16,
        "groups": 4,
        "head": 128,
        "inner": 6144,
        "vocab": 155136,
        "context": 32768,
    },
    "gpt-oss-20b": {
        "arch": "gpt-oss",
        "width": 2880,
        "layers": 24,
        "heads": 64,
        "groups": 8,
        "head": 64,
        "inner": 2880,
        "experts": 32,
        "used": 4,
        "window": 128,
        "vocab": 201088,
        "context": 131072,
    },
}
SHAPES["gpt-oss-20b-6-layers"] = {**SHAPES["gpt-oss-20b"], "layers": 6}
FORMATS = ("bf16", "q8_0", "q4_0")

Tensor = tuple[str, tuple[int, ...], str]


def tensors(shape: dict[str, Any], matrix: str) -> Iterator[Tensor]:
    """Yield (name, shape, format) of every tensor, the last dimension of a shape being the one that is contiguous."""
    arch, width, inner, vocab = shape["arch"], shape["width"], shape["inner"], shape["vocab"]
    head = shape.get("head", width // shape["heads"])
    queries, keys = head * shape["heads"], head * shape.get("groups", shape["heads"])
    yield "token_embd.weight", (vocab, width), matrix
    yield "output_norm.weight", (width,), "f32"
    old = arch in ("gpt2", "gptneox")
    if old:
        yield "output_norm.bias", (width,), "f32"
    if arch == "gpt2":
        yield "position_embd.weight", (shape["context"], width), "f32"
    else:
        yield "output.weight", (vocab, width), matrix
    for layer in range(shape["layers"]):
        block = f"blk.{layer}"
        yield f"{block}.attn_norm.weight", (width,), "f32"
        if old:
            yield f"{block}.attn_norm.bias", (width,), "f32"
            yield f"{block}.attn_qkv.weight", (3 * width, width), matrix
            yield f"{block}.attn_qkv.bias", (3 * width,), "f32"
            yield f"{block}.attn_output.weight", (width, width), matrix
            yield f"{block}.attn_output.bias", (width,), "f32"
            yield f"{block}.ffn_norm.weight", (width,), "f32"
            yield f"{block}.ffn_norm.bias", (width,), "f32"
            yield f"{block}.ffn_up.weight", (inner, width), matrix
            yield f"{block}.ffn_up.bias", (inner,), "f32"
            yield f"{block}.ffn_down.weight", (width, inner), matrix
            yield f"{block}.ffn_down.bias", (width,), "f32"
            continue
        yield f"{block}.post_attention_norm.weight", (width,), "f32"
        for name, rows in (("q", queries), ("k", keys), ("v", keys)):
            yield f"{block}.attn_{name}.weight", (rows, width), matrix
            yield f"{block}.attn_{name}.bias", (rows,), "f32"
        yield f"{block}.attn_output.weight", (width, queries), matrix
        if arch == "seed_oss":
            for name, size in (("gate", (inner, width)), ("up", (inner, width)), ("down", (width, inner))):
                yield f"{block}.ffn_{name}.weight", size, matrix
            continue
        experts = shape["experts"]
        yield f"{block}.attn_output.bias", (width,), "f32"
        yield f"{block}.attn_sinks.weight", (shape["heads"],), "f32"
        yield f"{block}.ffn_gate_inp.weight", (experts, width), "f32"
        yield f"{block}.ffn_gate_inp.bias", (experts,), "f32"
        for name, size in (("gate", (inner, width)), ("up", (inner, width)), ("down", (width, inner))):
            yield f"{block}.ffn_{name}_exps.weight", (experts, *size), "mxfp4"
            yield f"{block}.ffn_{name}_exps.bias", (experts, size[0]), "f32"


class Blocks:
    """Random contents of tensors, from one pool of blocks for each format, so that gigabytes take seconds."""

    def __init__(self) -> None:
        random = np.random.default_rng(0)
        count = 2**16
        scale = (random.random((count, 1)) * 2e-3 + 1e-3).astype(np.float16).view(np.uint8)
        numbers = (random.standard_normal(32 * count) * 0.02).astype(np.float32)
        self._pool = {
            "f32": numbers.view(np.uint8).reshape(count, -1),
            "bf16": (numbers.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8).reshape(count, -1),
            "q8_0": np.hstack([scale, random.integers(0, 256, (count, 32), np.uint8)]),
            "q4_0": np.hstack([scale * np.uint8(1), random.integers(0, 256, (count, 16), np.uint8)]),
            "mxfp4": np.hstack(
                [random.integers(119, 122, (count, 1), np.uint8), random.integers(0, 256, (count, 16), np.uint8)]
            ),
        }

    def take(self, shape: tuple[int, ...], kind: str) -> np.ndarray[Any, Any]:
        """Return the bytes of a tensor; for float32 its numbers."""
        pool = self._pool[kind]
        if kind == "f32":
            flat = np.resize(pool.reshape(-1).view(np.float32), int(np.prod(shape)))
            return flat.reshape(shape)
        blocks = int(np.prod(shape)) // 32
        repeated = np.resize(pool, (blocks, pool.shape[1]))  # repeats the pool from its beginning
        return repeated.reshape(*shape[:-1], shape[-1] // 32 * pool.shape[1])


def write(path: Path, name: str, matrix: str) -> None:
    """Write a GGUF file of the shape `name` with matrices in `matrix`.

    Args:
        path: Where.
        name: A key of SHAPES.
        matrix: One of FORMATS.
    """
    import gguf

    shape = SHAPES[name]
    arch = shape["arch"]
    kinds = {
        "f32": gguf.GGMLQuantizationType.F32,
        "bf16": gguf.GGMLQuantizationType.BF16,
        "q8_0": gguf.GGMLQuantizationType.Q8_0,
        "q4_0": gguf.GGMLQuantizationType.Q4_0,
        "mxfp4": gguf.GGMLQuantizationType.MXFP4,
    }
    head = shape.get("head", shape["width"] // shape["heads"])
    partial = path.with_suffix(".partial")
    writer = gguf.GGUFWriter(partial, arch)
    writer.add_context_length(shape["context"])
    writer.add_embedding_length(shape["width"])
    writer.add_block_count(shape["layers"])
    writer.add_feed_forward_length(shape["inner"])
    writer.add_head_count(shape["heads"])
    writer.add_head_count_kv(shape.get("groups", shape["heads"]))
    if arch in ("gpt2", "gptneox"):
        writer.add_layer_norm_eps(1e-5)
    else:
        writer.add_layer_norm_rms_eps(1e-5)
        writer.add_key_length(head)
        writer.add_value_length(head)
    if arch == "gptneox":
        writer.add_rope_dimension_count(head // 4)
        writer.add_parallel_residual(True)
    elif arch != "gpt2":
        writer.add_rope_dimension_count(head)
        writer.add_rope_freq_base(150000.0 if arch == "gpt-oss" else 1e7)
    if arch == "gpt-oss":
        writer.add_expert_count(shape["experts"])
        writer.add_expert_used_count(shape["used"])
        writer.add_expert_feed_forward_length(shape["inner"])
        writer.add_sliding_window(shape["window"])
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(32.0)
        writer.add_rope_scaling_orig_ctx_len(4096)
    writer.add_tokenizer_model("no_vocab")
    writer.add_vocab_size(shape["vocab"])
    blocks = Blocks()
    table = list(tensors(shape, matrix))
    for tensor, size, kind in table:
        sample = blocks.take((*[1] * (len(size) - 1), size[-1]), kind)
        raw = size if kind == "f32" else (*size[:-1], sample.shape[-1])
        dtype = np.dtype(np.float32 if kind == "f32" else np.uint8)
        nbytes = int(np.prod(raw)) * dtype.itemsize
        writer.add_tensor_info(tensor, raw, dtype, nbytes, raw_dtype=kinds[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for _, size, kind in table:
        writer.write_tensor_data(blocks.take(size, kind))
    writer.close()
    partial.replace(path)


def main() -> None:
    """Write one file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shape", choices=tuple(SHAPES), required=True)
    parser.add_argument("--format", choices=FORMATS, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    write(args.out, args.shape, args.format)
    print(f"{args.out}: {args.out.stat().st_size / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
