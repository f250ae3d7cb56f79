"""`pytorch_model.bin`: a pickle, read only when asked for and only by a torch whose restricted reader is sound."""

from __future__ import annotations

import os
import re
from pathlib import Path

import torch

from quintet.errors import CheckpointError
from quintet.hub import open_regular

__all__ = ["MINIMUM_TORCH", "read_torch_file"]

MINIMUM_TORCH = (2, 10)


def read_torch_file(path: Path) -> dict[str, torch.Tensor]:
    """Read the tensors of a `.bin` file with `weights_only=True`.

    Raises:
        CheckpointError: torch is too old to do that safely, or the file holds anything but tensors.
    """
    numbers = re.match(r"(\d+)\.(\d+)", torch.__version__)
    version = (int(numbers[1]), int(numbers[2])) if numbers else (0, 0)
    if version < MINIMUM_TORCH:
        raise CheckpointError(
            f"Reading the pickle '{path}' needs torch >= 2.10, and this is {torch.__version__}: the restricted reader "
            "of older ones can be made to run code (CVE-2025-32434) or corrupt memory (CVE-2026-24747). "
            "Install a newer torch, or convert the file to safetensors elsewhere."
        )
    os.close(open_regular(path))
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as first:  # unpickling raises whatever it likes
        tensors = _without_mapping(path, first)
    if not isinstance(tensors, dict) or not all(
        isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in tensors.items()
    ):
        raise CheckpointError(
            f"'{path}' is not a plain state dict (names to tensors). If it is a training checkpoint, save its model "
            "part with save_pretrained."
        )
    return dict(tensors)


def _without_mapping(path: Path, first: Exception) -> object:
    """Files from before torch 1.6 are not zip archives and cannot be mapped."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"'{path}' cannot be read as weights: {reason} It is damaged, or holds more than tensors, which is refused."
        ) from first
