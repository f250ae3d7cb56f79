"""When native ways may be taken at all: in inference, which nobody watches."""

from __future__ import annotations

import torch

__all__ = ["must_be_plain"]


def must_be_plain() -> bool:
    """Return whether gradients, a compiler or autocast ask for plain PyTorch; a step asks this for each module."""
    return torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu")
