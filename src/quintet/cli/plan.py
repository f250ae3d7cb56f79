"""The memory that a model takes, part by part and in each number format, from its shapes alone. No torch at import."""

from __future__ import annotations

from typing import Any

from quintet.cli.machine import memory

__all__ = ["BYTES", "KvCache", "kv_cache", "memory_plan"]

MIB = 2**20
BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
# Names of modules by which the families call their attention.
_ATTENTION = {"attn", "self_attn", "attention", "crossattention"}
# A packed weight takes half a byte for a number and one byte for each 32 of them.
_PACKED = 17 / 32


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
        `parts`: parameters and MiB by format of each part of the model. `formats`: for each number format the MiB of
        weights and cache, whether this machine has them available, and the tokens that fit beside the weights.
    """
    parts = _parts(network)
    cache = kv_cache(config)
    length = length or getattr(config, "max_position_embeddings", None) or 1024
    weights = {name: sum(part["bytes"][name] for part in parts.values()) for name in BYTES}
    formats = {name: (weights[name], size) for name, size in BYTES.items()}
    packed = [part["packed"] for part in parts.values()]
    if any(packed):
        # whatever is not packed is kept in bfloat16, and so is the cache
        formats["mxfp4"] = (sum(part["packed"] or part["bytes"]["bf16"] for part in parts.values()), 2)
    facts = memory()
    available = facts["available_mib"]
    return {
        "parts": {
            name: {
                "parameters": part["parameters"],
                "mib": {key: _mib(value) for key, value in part["bytes"].items()}
                | ({"mxfp4": _mib(part["packed"])} if part["packed"] else {}),
            }
            for name, part in parts.items()
        },
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


def _parts(network: Any) -> dict[str, dict[str, Any]]:
    """Parameters, bytes in each format, and bytes when packed (None where that is not possible), part by part."""
    from torch import nn

    from quintet.layers.experts import RoutedExperts
    from quintet.quant.mxfp4 import BLOCK

    head = network.get_output_embeddings()
    seen: set[int] = set()
    parts: dict[str, dict[str, Any]] = {}
    for path, module in network.named_modules():
        for parameter in module.parameters(recurse=False):
            if id(parameter) in seen:  # tied
                continue
            seen.add(id(parameter))
            experts = isinstance(module, RoutedExperts)
            if isinstance(module, nn.Embedding):
                part = "embeddings"
            elif module is head:
                part = "head"
            elif experts:
                part = "experts"
            elif _ATTENTION & set(path.split(".")):
                part = "attention"
            else:
                part = "other"
            entry = parts.setdefault(part, {"parameters": 0, "bytes": dict.fromkeys(BYTES, 0), "packed": None})
            count = parameter.numel()
            entry["parameters"] += count
            for key, size in BYTES.items():
                entry["bytes"][key] += count * size
            if experts:
                # a weight (E, in, out) is packed along its inputs
                whole = parameter.dim() == 3 and parameter.shape[1] % BLOCK == 0
                entry["packed"] = (entry["packed"] or 0) + int(count * (_PACKED if whole else 2))
    order = ("embeddings", "attention", "experts", "other", "head")
    return {name: parts[name] for name in order if name in parts}


def _mib(size: float) -> float:
    return round(size / MIB, 1)
