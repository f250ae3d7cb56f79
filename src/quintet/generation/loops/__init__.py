"""Decoding loops: one file each, a generator of columns of tokens that talks to a `DecodeState`."""

from quintet.generation.loops.column import Column
from quintet.generation.loops.sample import sample_loop

__all__ = ["Column", "sample_loop"]
