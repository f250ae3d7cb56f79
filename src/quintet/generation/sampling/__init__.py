"""Shaping of next-token scores and choice of a token: pure functions, every setting a number or one value per row.

The processor classes wrap these for `generate`, and a batch of requests with different settings calls them directly.
"""

from __future__ import annotations

from quintet.generation.sampling.choose import greedy, race, sample
from quintet.generation.sampling.draws import Draws, Generators
from quintet.generation.sampling.penalties import (
    decay_length,
    guide,
    hamming_diversity,
    no_repeat_ngram,
    remove_invalid,
    repetition_penalty,
)
from quintet.generation.sampling.warp import (
    PerRow,
    epsilon,
    eta,
    min_p,
    temperature,
    top_h,
    top_k,
    top_p,
    typical,
)

__all__ = [
    "Draws",
    "Generators",
    "PerRow",
    "decay_length",
    "epsilon",
    "eta",
    "greedy",
    "guide",
    "hamming_diversity",
    "min_p",
    "no_repeat_ngram",
    "race",
    "remove_invalid",
    "repetition_penalty",
    "sample",
    "temperature",
    "top_h",
    "top_k",
    "top_p",
    "typical",
]
