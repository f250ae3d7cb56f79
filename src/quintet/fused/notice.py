"""What is said when the twins that `optimize()` put in have to compute as the plain modules do."""

from __future__ import annotations

import logging
from functools import lru_cache

import torch

from quintet.kernels.inference import must_be_plain

__all__ = ["must_be_plain_and_say"]

logger = logging.getLogger("quintet.fused")


def must_be_plain_and_say() -> bool:
    """Whether the plain way has to be taken; where gradients are the reason that is said, once in a process."""
    if not must_be_plain():
        return False
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        _say()
    return True


@lru_cache(maxsize=1)
def _say() -> None:
    logger.warning(
        "gradients are on, so the plain modules compute, and not the faster twins that optimize() (which generate() "
        "calls) has put in. For inference call the model under torch.inference_mode(); for training all is as it "
        "should be. This is said once."
    )
