"""What is said when the twins that `optimize()` put in have to compute as the plain modules do."""

from __future__ import annotations

import logging
from functools import lru_cache

import torch

__all__ = ["gradients_are_on"]

logger = logging.getLogger("quintet.fused")


def gradients_are_on() -> bool:
    """Whether gradients are on, so that the plain way has to be taken; says so, once in a process."""
    if not torch.is_grad_enabled():
        return False
    if not torch.compiler.is_compiling():
        _say()
    return True


@lru_cache(maxsize=1)
def _say() -> None:
    logger.warning(
        "gradients are on, so the plain modules compute, and not the faster twins that optimize() (which generate() "
        "calls) has put in. For inference call the model under torch.inference_mode(); for training all is as it "
        "should be. This is said once."
    )
