"""Parameters of rotary positions (RoPE) in configurations. No torch."""

from __future__ import annotations

from quintet.rope.fields import RopeFields
from quintet.rope.parameters import ROPE_TYPES, check_sizes, merge, rotary_size, standardise

__all__ = ["ROPE_TYPES", "RopeFields", "check_sizes", "merge", "rotary_size", "standardise"]
