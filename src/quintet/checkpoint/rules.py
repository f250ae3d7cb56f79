"""How names in a checkpoint become names in a model, as data; and the report of what a load found."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from quintet.family import KeyRules

__all__ = ["KeyRules", "LoadReport", "is_dropped", "resolve", "stays_float32"]

_SHOWN = 8


def is_dropped(rules: KeyRules, key: str) -> bool:
    """Whether a tensor of the checkpoint is left out silently."""
    return any(re.search(pattern, key) for pattern in rules.drop)


def stays_float32(rules: KeyRules, key: str) -> bool:
    """Whether a tensor of the model is kept in float32 when the model is loaded in a 16-bit type."""
    return any(re.search(pattern, key) for pattern in rules.keep_float32)


def resolve(rules: KeyRules, prefix: str, key: str, wanted: Collection[str]) -> str | None:
    """Return the model's name for a tensor of the checkpoint, or None when the model has no such tensor.

    Args:
        rules: The renames of the family.
        prefix: Name of the base model inside a model with a head (`transformer`). A checkpoint may have it where the
            model does not, and the other way round.
        key: Name in the checkpoint.
        wanted: Names of the model.
    """
    for pattern, replacement in rules.rename:
        key = re.sub(pattern, replacement, key)
    options = (key, f"{prefix}.{key}", key.removeprefix(f"{prefix}.")) if prefix else (key,)
    return next((option for option in options if option in wanted), None)


@dataclass
class LoadReport:
    """What a load found: the four entries of the reference's `output_loading_info`, and what else is worth saying.

    Attributes:
        missing_keys: In the model and not in the checkpoint: initialised by the model's own rule.
        unexpected_keys: In the checkpoint and not in the model: left out.
        mismatched_keys: (name, shape in the checkpoint, shape in the model), in one but not the same shape.
        error_msgs: Always empty here (errors are raised); kept for callers that look at it.
        untied_keys: (name, name) pairs that the model ties but that the checkpoint gives with different values: both
            are kept as they are, untied.
        dropped_keys: Left out silently because the rules of the family say so.
    """

    missing_keys: set[str] = field(default_factory=set)
    unexpected_keys: set[str] = field(default_factory=set)
    mismatched_keys: set[tuple[str, tuple[int, ...], tuple[int, ...]]] = field(default_factory=set)
    error_msgs: list[str] = field(default_factory=list)
    untied_keys: set[tuple[str, str]] = field(default_factory=set)
    dropped_keys: set[str] = field(default_factory=set)

    def to_dict(self) -> dict[str, Any]:
        """Return the dictionary that `from_pretrained(output_loading_info=True)` gives."""
        return {
            "missing_keys": self.missing_keys,
            "unexpected_keys": self.unexpected_keys,
            "mismatched_keys": self.mismatched_keys,
            "error_msgs": self.error_msgs,
            "untied_keys": self.untied_keys,
            "dropped_keys": self.dropped_keys,
        }

    def describe(self, model: str, source: str) -> str:
        """Return one readable block about everything that did not fit, or an empty string when all did."""
        lines = []
        if self.missing_keys:
            lines.append("  not in the checkpoint, so newly initialised (train them before use):")
            lines += _listed(self.missing_keys)
        if self.mismatched_keys:
            lines.append("  of another shape in the checkpoint, so newly initialised (train them before use):")
            lines += _listed({f"{key}: {list(got)}, model {list(want)}" for key, got, want in self.mismatched_keys})
        if self.unexpected_keys:
            lines.append("  in the checkpoint but not in the model, so left out (fine when the heads differ):")
            lines += _listed(self.unexpected_keys)
        if self.untied_keys:
            lines.append("  tied by the configuration, but different in the checkpoint, so both kept and not tied")
            lines.append("  (set tie_word_embeddings=False to say so):")
            lines += _listed({f"{first} and {second}" for first, second in self.untied_keys})
        return "\n".join([f"Loading {model} from '{source}':", *lines]) if lines else ""


def _listed(keys: Collection[str]) -> list[str]:
    """Show the first names of a sorted list, layers folded: `h.*.attn.bias (12)`."""
    folded: dict[str, list[str]] = {}
    for key in sorted(keys):
        folded.setdefault(re.sub(r"(?<=\.)\d+(?=\.)", "*", key), []).append(key)
    lines = [f"    {name} ({len(same)})" if len(same) > 1 else f"    {same[0]}" for name, same in folded.items()]
    return lines if len(lines) <= _SHOWN else [*lines[:_SHOWN], f"    ... and {len(lines) - _SHOWN} more"]
