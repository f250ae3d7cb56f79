"""The memory that a model takes, part by part and in each number format, from its shapes alone. No torch at import."""

from __future__ import annotations

from typing import Any

from quintet.cli.machine import memory

__all__ = ["BYTES", "PACKED", "KvCache", "kv_cache", "memory_plan"]

MIB = 2**20
BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
# Names of modules by which the families call their attention.
_ATTENTION = {"attn", "self_attn", "attention", "crossattention"}
# Formats of weights that are packed: of the experts, and bits of the linear layers. What is not packed is in 16 bits.
PACKED: dict[str, tuple[bool, int | None]] = {
    "int8": (False, 8),
    "int4": (False, 4),
    "mxfp4": (True, None),
    "mxfp4+int8": (True, 8),
    "mxfp4+int4": (True, 4),
}


class KvCache:
    """What keys and values of one row take.

    Args:
        values: Numbers that one layer holds for one token.
        full: Layers that hold every token.
        sliding: Layers that hold the last `window` tokens only.
        window: See there; 0 where no layer has one.
    """

    def __init__(self, values: int, full: int, sliding: int = 0, window: int = 0) -> None:
        self.values = values
        self.full = full
        self.sliding = sliding
        self.window = window

    def numbers(self, tokens: int) -> int:
        """Numbers held after so many tokens."""
        return self.values * (self.full * tokens + self.sliding * min(tokens, self.window))

    @property
    def per_token(self) -> int:
        """Numbers that a token adds as long as it is within the windows."""
        return self.values * (self.full + self.sliding)

    @property
    def beyond_window(self) -> int:
        """Numbers that a token adds behind the windows."""
        return self.values * self.full

    def tokens_in(self, numbers: float) -> int:
        """How many tokens find room in so many numbers; -1 for no end of them."""
        if self.numbers(self.window) > numbers:
            return max(0, int(numbers // self.per_token))
        if not self.full:
            return -1
        return int((numbers - self.values * self.sliding * self.window) // self.beyond_window)


def kv_cache(config: Any) -> KvCache:
    """Return what the cache of a model takes, from its configuration."""
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    kinds = getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers
    window = getattr(config, "sliding_window", None)
    sliding = sum(kind == "sliding_attention" for kind in kinds) if window else 0
    return KvCache(2 * heads * head_dim, config.num_hidden_layers - sliding, sliding, window or 0)


def memory_plan(network: Any, config: Any, length: int | None = None) -> dict[str, Any]:
    """Return the plan of a model that was built on the meta device.

    Args:
        network: The model, its experts plain.
        config: Its configuration.
        length: Tokens in the cache; None takes the most that the configuration allows, or 1024.

    Returns:
        `parts`: parameters and MiB by format of each part of the model. `packed_head`: MiB of the output head when it
        is packed too, which no format does by itself, and whether it is `tied`: the embedding then stays beside it.
        None without a head. `formats`: for each number format the MiB of weights and cache, whether this machine has
        them available, and the tokens that fit beside the weights.
    """
    parts = _parts(network)
    cache = kv_cache(config)
    length = length or getattr(config, "max_position_embeddings", None) or 1024
    names = next(iter(parts.values()))["bytes"]
    weights = {name: sum(part["bytes"][name] for part in parts.values()) for name in names}
    # beside packed weights the cache is in bfloat16
    formats = {name: (size, BYTES.get(name, 2)) for name, size in weights.items()}
    facts = memory()
    available = facts["available_mib"]
    return {
        "parts": {
            name: {
                "parameters": part["parameters"],
                "mib": {key: _mib(value) for key, value in part["bytes"].items()},
            }
            for name, part in parts.items()
        },
        "packed_head": _packed_head(network),
        "length": length,
        "machine": facts,
        "formats": {
            name: {
                "weights_bytes": total,
                "weights_mib": _mib(total),
                "kv_cache_mib": _mib(cache.numbers(length) * item),
                "fits": None if available is None else total + cache.numbers(length) * item <= available * MIB,
                "tokens_that_fit": None if available is None else _room(cache, available * MIB - total, item, config),
            }
            for name, (total, item) in formats.items()
        },
    }


def _room(cache: KvCache, left: float, item: int, config: Any) -> int:
    """Tokens that find room in so many bytes, no more than the configuration allows."""
    most = getattr(config, "max_position_embeddings", None)
    room = cache.tokens_in(left / item) if left > 0 else 0
    return int(most) if most and (room < 0 or room > most) else room


def _packed_head(network: Any) -> dict[str, Any] | None:
    """What the output head takes in 8 and in 4 bits, as far as its size allows it."""
    head = network.get_output_embeddings()
    if head is None:
        return None
    sizes = {}
    for style in ("int8", "int4"):
        kinds = [("linear" if name == "weight" else "plain", parameter) for name, parameter in head.named_parameters()]
        parts = [_bytes(head, parameter, kind, style) for kind, parameter in kinds]
        if None not in parts:
            sizes[style] = sum(part or 0 for part in parts)
    tied = head.weight is network.get_input_embeddings().weight
    return {"tied": tied, "bytes": sizes, "mib": {style: _mib(size) for style, size in sizes.items()}}


def _parts(network: Any) -> dict[str, dict[str, Any]]:
    """Parameters, and bytes in each format that the model can have, part by part."""
    from quintet.quant.linears import linears_of

    head = network.get_output_embeddings()
    linears = {id(module) for module in linears_of(network).values()}
    seen: set[int] = set()
    kinds: set[str] = set()
    parts: dict[str, dict[str, Any]] = {}
    lacking: set[str] = set()
    for path, module in network.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) in seen:  # tied
                continue
            seen.add(id(parameter))
            part = "head" if module is head else _part(path, module)
            if part == "experts":
                kind = "experts" if parameter.dim() == 3 else "plain"
            else:
                kind = "linear" if id(module) in linears and name == "weight" else "plain"
            kinds.add(kind)
            entry = parts.setdefault(part, {"parameters": 0, "bytes": dict.fromkeys((*BYTES, *PACKED), 0)})
            entry["parameters"] += parameter.numel()
            for style in entry["bytes"]:
                size = _bytes(module, parameter, kind, style)
                if size is None:
                    lacking.add(style)
                entry["bytes"][style] += size or 0
    for style, (experts, bits) in PACKED.items():
        # of a model with experts they are packed first: nearly all of its numbers are theirs
        if experts != ("experts" in kinds) or (bits is not None and "linear" not in kinds):
            lacking.add(style)
    for entry in parts.values():
        entry["bytes"] = {style: size for style, size in entry["bytes"].items() if style not in lacking}
    order = ("embeddings", "attention", "experts", "other", "head")
    return {name: parts[name] for name in order if name in parts}


def _part(path: str, module: Any) -> str:
    """Which part of the model a module is; the output head is told apart elsewhere."""
    from torch import nn

    from quintet.layers.experts import Experts

    if isinstance(module, nn.Embedding):
        return "embeddings"
    if isinstance(module, Experts):
        return "experts"
    return "attention" if _ATTENTION & set(path.split(".")) else "other"


def _bytes(module: Any, parameter: Any, kind: str, style: str) -> int | None:
    """Bytes of a parameter in a format, scales included; None where its size does not allow it.

    Args:
        module: What it belongs to.
        parameter: Of experts (E, in, out), of linear layers (out, in) or (in, out).
        kind: "experts", "linear" or "plain".
        style: A key of BYTES or PACKED.
    """
    from quintet.layers.conv1d import Conv1D
    from quintet.quant.config import GROUP_SIZE
    from quintet.quant.mxfp4 import BLOCK

    count: int = parameter.numel()
    experts, bits = PACKED.get(style, (False, None))
    if kind == "experts" and experts:
        return None if parameter.shape[1] % BLOCK else count // 2 + count // BLOCK
    if kind == "linear" and bits is not None:
        outputs, inputs = parameter.shape[::-1] if isinstance(module, Conv1D) else parameter.shape
        if bits == 8:
            return int(count + 2 * outputs)
        # the shape is stored with each, as two numbers of 8 bytes
        return None if inputs % GROUP_SIZE else int(count // 2 + 2 * (count // GROUP_SIZE) + 16)
    return count * BYTES.get(style, 2)


def _mib(size: float) -> float:
    return round(size / MIB, 1)
