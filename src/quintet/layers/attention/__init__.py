"""Attention, once for every family: `attend` appends to the cache and runs one backend of a table."""

from __future__ import annotations

from quintet.layers.attention.attend import attend, cross_attend
from quintet.layers.attention.eager import scores_to_output
from quintet.layers.attention.table import BACKENDS, check_backend, usable_backends

__all__ = ["BACKENDS", "attend", "check_backend", "cross_attend", "scores_to_output", "usable_backends"]
