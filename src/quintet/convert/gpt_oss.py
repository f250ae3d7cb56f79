"""gpt-oss as OpenAI released it (the folder `original` of the published models; github.com/openai/gpt-oss).

`config.json` has the names of the release's own code, `dtypes.json` says what each tensor's bytes are. The tensors are
those of our layout under other names, packed experts included; the three projections of attention are one, `qkv`, its
rows those of the queries, then keys, then values. So a conversion copies bytes, and what it makes converts back bit for
bit.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from quintet.convert.base import Layout, Progress
from quintet.convert.shards import Planned, Span, write_shards
from quintet.errors import CheckpointError
from quintet.hub import read_json

__all__ = ["LAYOUT"]

# Name in the release, name here; of the model and of one block.
MODEL = {
    "embedding.weight": "model.embed_tokens.weight",
    "norm.scale": "model.norm.weight",
    "unembedding.weight": "lm_head.weight",
}
BLOCK = {
    "attn.norm.scale": "input_layernorm.weight",
    "attn.sinks": "self_attn.sinks",
    "attn.out.weight": "self_attn.o_proj.weight",
    "attn.out.bias": "self_attn.o_proj.bias",
    "mlp.norm.scale": "post_attention_layernorm.weight",
    "mlp.gate.weight": "mlp.router.weight",
    "mlp.gate.bias": "mlp.router.bias",
    "mlp.mlp1_weight.blocks": "mlp.experts.gate_up_proj_blocks",
    "mlp.mlp1_weight.scales": "mlp.experts.gate_up_proj_scales",
    "mlp.mlp1_bias": "mlp.experts.gate_up_proj_bias",
    "mlp.mlp2_weight.blocks": "mlp.experts.down_proj_blocks",
    "mlp.mlp2_weight.scales": "mlp.experts.down_proj_scales",
    "mlp.mlp2_bias": "mlp.experts.down_proj_bias",
}
QKV = ("weight", "bias")
# Fields of config.json with the same name and meaning, and those with another name.
SAME = ("num_hidden_layers", "vocab_size", "hidden_size", "intermediate_size", "swiglu_limit", "head_dim",
        "num_attention_heads", "num_key_value_heads", "sliding_window", "rope_theta")  # fmt: skip
OTHER = {"num_experts": "num_local_experts", "experts_per_token": "num_experts_per_tok"}
# What the release's code takes for a field that is not there.
DEFAULTS: dict[str, Any] = {
    "num_hidden_layers": 36, "num_experts": 128, "experts_per_token": 4, "vocab_size": 201088, "hidden_size": 2880,
    "intermediate_size": 2880, "swiglu_limit": 7.0, "head_dim": 64, "num_attention_heads": 64,
    "num_key_value_heads": 8, "sliding_window": 128, "initial_context_length": 4096, "rope_theta": 150000.0,
    "rope_scaling_factor": 32.0, "rope_ntk_alpha": 1.0, "rope_ntk_beta": 32.0,
}  # fmt: skip
# What its code has no field for: the only values that it computes.
FIXED: dict[str, Any] = {
    "attention_bias": True, "hidden_act": "silu", "rms_norm_eps": 1e-5, "swiglu_alpha": 1.702,
    "tie_word_embeddings": False,
}  # fmt: skip
VOCABULARY, ENDS = 201088, {"eos_token_id": 200002, "pad_token_id": 199999}  # of the published tokenizer
NOT_PACKED = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]
HUB_SHARD, SHARD = 5 * 10**9, 15 * 10**9


def detect(folder: Path) -> bool:
    """Whether a folder's config.json is in the words of the release."""
    path = folder / "config.json"
    if not path.is_file() or path.stat().st_size > 1 << 16 or not any(folder.glob("*.safetensors")):
        return False
    try:
        found = read_json(path)
    except (ValueError, OSError):
        return False
    return "model_type" not in found and {"num_experts", "experts_per_token"} <= found.keys()


def size(folder: Path) -> int:
    """Bytes of the result: the weights once more, and the texts."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors")) + (4 << 20)


def to_hub(source: Path, folder: Path, progress: Progress) -> None:
    """Convert the release to our layout.

    Raises:
        CheckpointError: A file is missing, damaged or of another model.
    """
    from quintet.models.gpt_oss import GptOssConfig

    made = GptOssConfig(**_hub_config(read_json(source / "config.json", error=CheckpointError), source))
    stored = _Stored.read(sorted(source.glob("*.safetensors")), source)
    layers = made.num_hidden_layers
    rows = _qkv_rows(made)
    planned = [stored.renamed(old, new) for old, new in _names(layers).items()]
    for layer, part in _parts(layers):
        whole = f"block.{layer}.attn.qkv.{part}"
        stored.check(whole, (sum(rows.values()), *([made.hidden_size] if part == "weight" else [])))
        begin = 0
        for name, count in rows.items():
            planned.append(stored.rows(whole, f"model.layers.{layer}.self_attn.{name}_proj.{part}", begin, count))
            begin += count
    stored.check_all_used(source)
    write_shards(folder, _by_layer(planned), limit=HUB_SHARD, progress=progress)
    (folder / "config.json").write_text(made.to_json_string(), encoding="utf-8", newline="\n")


def from_hub(source: Path, folder: Path, progress: Progress) -> None:
    """Convert our layout to that of the release.

    Raises:
        CheckpointError: The model is of another family, not packed, or has something that the release has no field for.
    """
    found = read_json(source / "config.json", error=CheckpointError)
    if found.get("model_type") != "gpt_oss":
        raise CheckpointError(
            f"'{source}' holds a model of the type {found.get('model_type')!r}, and this layout is for 'gpt_oss' only."
        )
    from quintet.checkpoint import find_weights
    from quintet.models.gpt_oss import GptOssConfig

    config = GptOssConfig.from_dict(found)
    values = _release_config(config, source)
    stored = _Stored.read(find_weights(source), source)
    if not any(name.endswith("_blocks") for name in stored.spans):
        raise CheckpointError(
            f"The experts of '{source}' are not packed, and the release's are. Pack them first: quintet convert "
            f"{source.name} packed --to mxfp4."
        )
    layers, rows = config.num_hidden_layers, _qkv_rows(config)
    planned = [stored.renamed(new, old) for old, new in _names(layers).items()]
    for layer, part in _parts(layers):
        names = [f"model.layers.{layer}.self_attn.{name}_proj.{part}" for name in rows]
        for name, count in zip(names, rows.values(), strict=True):
            stored.check(name, (count, *([config.hidden_size] if part == "weight" else [])))
        planned.append(stored.joined(names, f"block.{layer}.attn.qkv.{part}"))
    stored.check_all_used(source)
    write_shards(folder, _by_layer(planned), limit=SHARD, progress=progress, separator="--")
    kinds = {tensor.name: _kind(tensor) for tensor in sorted(planned, key=lambda tensor: tensor.name)}
    for name, content in (("config.json", values), ("dtypes.json", kinds)):
        (folder / name).write_text(json.dumps(content, indent=4) + "\n", encoding="utf-8", newline="\n")


def _hub_config(found: Mapping[str, Any], source: Path) -> dict[str, Any]:
    """Our fields for a config.json of the release."""
    config = {**DEFAULTS, **found}
    length, factor = config["initial_context_length"], config["rope_scaling_factor"]
    for name, value in (("initial_context_length", length), ("rope_scaling_factor", factor)):
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value < 2**40:
            raise CheckpointError(f"'{source / 'config.json'}': {name} is {value!r}, but must be a number above 0.")
    return {
        **{name: config[name] for name in SAME},
        **{new: config[old] for old, new in OTHER.items()},
        **FIXED,
        **(ENDS if config["vocab_size"] == VOCABULARY else {}),
        "max_position_embeddings": int(length * factor),
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": factor,
            "beta_fast": config["rope_ntk_beta"],
            "beta_slow": config["rope_ntk_alpha"],
            "truncate": False,
            "original_max_position_embeddings": length,
        },
        "architectures": ["GptOssForCausalLM"],
        "quantization_config": {"modules_to_not_convert": NOT_PACKED, "quant_method": "mxfp4"},
    }


def _release_config(config: Any, source: Path) -> dict[str, Any]:
    """The release's config.json; everything that it has no words for must be what its code does."""
    rope = config.rope_parameters
    length = rope.get("original_max_position_embeddings")
    wanted: dict[str, Any] = {
        **FIXED,
        "layer_types": [("sliding_attention", "full_attention")[i % 2] for i in range(config.num_hidden_layers)],
    }
    wrong = {name: getattr(config, name) for name, value in wanted.items() if getattr(config, name) != value}
    rest = {name: rope[name] for name in ("attention_factor", "mscale", "mscale_all_dim") if rope.get(name) is not None}
    if rope.get("rope_type") != "yarn" or rope.get("truncate", True) or rest or not length:
        wrong["rope_parameters"] = rope
    if wrong:
        shown = ", ".join(f"{name}={str(value)[:60]}" for name, value in wrong.items())
        raise CheckpointError(
            f"'{source}' cannot be written in the release's layout, which has no words for {shown}. Keep it as it is."
        )
    return {
        "num_hidden_layers": config.num_hidden_layers,
        **{old: getattr(config, new) for old, new in OTHER.items()},
        **{name: getattr(config, name) for name in SAME[1:-1]},
        "initial_context_length": length,
        "rope_theta": rope["rope_theta"],
        "rope_scaling_factor": rope["factor"],
        "rope_ntk_alpha": rope.get("beta_slow", 1.0),
        "rope_ntk_beta": rope.get("beta_fast", 32.0),
    }


def _names(layers: int) -> dict[str, str]:
    """Name in the release: name here, of every tensor that is one in both."""
    blocks = {
        f"block.{layer}.{old}": f"model.layers.{layer}.{new}" for layer in range(layers) for old, new in BLOCK.items()
    }
    return {**MODEL, **blocks}


def _parts(layers: int) -> Iterator[tuple[int, str]]:
    return ((layer, part) for layer in range(layers) for part in QKV)


def _qkv_rows(config: Any) -> dict[str, int]:
    keys = config.num_key_value_heads * config.head_dim
    return {"q": config.num_attention_heads * config.head_dim, "k": keys, "v": keys}


def _by_layer(planned: Iterable[Planned]) -> list[Planned]:
    """Layer after layer, so that a shard holds whole layers; what belongs to none stands first."""

    def number(tensor: Planned) -> int:
        found = re.search(r"\.(\d+)\.", tensor.name)
        return int(found[1]) if found else -1

    return sorted(planned, key=number)


def _kind(tensor: Planned) -> str:
    return {"blocks": "FP4", "scales": "UE8"}.get(tensor.name.rpartition(".")[2], tensor.dtype)


@dataclass
class _Stored:
    """The tensors of some files: type, shape and place of each; and which of them were used."""

    spans: dict[str, tuple[str, tuple[int, ...], Span]]
    used: set[str]

    @classmethod
    def read(cls, paths: Iterable[Path], folder: Path) -> _Stored:
        from quintet.checkpoint import read_header

        spans: dict[str, tuple[str, tuple[int, ...], Span]] = {}
        for path in paths:
            header = read_header(path)
            for name, info in header.tensors.items():
                if name in spans:
                    raise CheckpointError(f"Tensor '{name}' is in two files of '{folder}'. Get the checkpoint again.")
                span = Span(path, header.data_start + info.begin, info.end - info.begin)
                spans[name] = (info.dtype, info.shape, span)
        return cls(spans, set())

    def find(self, name: str) -> tuple[str, tuple[int, ...], Span]:
        """Return type, shape and place of a tensor."""
        if name not in self.spans:
            raise CheckpointError(
                f"The checkpoint has no tensor '{name}', which its config.json makes one expect. It is not complete, "
                "or config.json belongs to another model."
            )
        self.used.add(name)
        return self.spans[name]

    def check(self, name: str, shape: tuple[int, ...]) -> None:
        """Refuse a tensor of another shape."""
        got = self.find(name)[1]
        if got != shape:
            raise CheckpointError(
                f"Tensor '{name}' has the shape {list(got)}, and config.json makes one expect {list(shape)}. One of "
                "them belongs to another model."
            )

    def check_all_used(self, folder: Path) -> None:
        """Refuse tensors that would be lost."""
        rest = sorted(self.spans.keys() - self.used)
        if rest:
            raise CheckpointError(
                f"'{folder}' holds {len(rest)} tensors that this model has no place for: {', '.join(rest[:4])}"
                f"{', ...' if len(rest) > 4 else ''}. config.json belongs to another model, or the tensors do."
            )

    def renamed(self, name: str, new: str) -> Planned:
        """The same tensor by another name."""
        dtype, shape, span = self.find(name)
        return Planned(new, dtype, shape, span.length, span.pieces)

    def rows(self, name: str, new: str, begin: int, count: int) -> Planned:
        """Some rows of a tensor."""
        dtype, shape, span = self.find(name)
        row = span.length // shape[0]
        part = Span(span.path, span.begin + begin * row, count * row)
        return Planned(new, dtype, (count, *shape[1:]), part.length, part.pieces)

    def joined(self, names: list[str], new: str) -> Planned:
        """Tensors one below the other."""
        found = [self.find(name) for name in names]
        dtypes: Mapping[str, None] = dict.fromkeys(dtype for dtype, _, _ in found)
        if len(dtypes) > 1:
            raise CheckpointError(f"'{names[0]}' and its like are of several types: {', '.join(dtypes)}. Convert one.")
        shape = (sum(shape[0] for _, shape, _ in found), *found[0][1][1:])
        length = math.fsum(span.length for _, _, span in found)
        return Planned(
            new, found[0][0], shape, int(length), lambda: chain.from_iterable(span.pieces() for _, _, span in found)
        )


LAYOUT = Layout(name="gpt-oss-original", detect=detect, size=size, to_hub=to_hub, from_hub=from_hub)
