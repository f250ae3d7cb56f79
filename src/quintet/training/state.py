"""The checkpoint of a run: weights, optimiser and counters in one folder that is whole or not there.

Everything is safetensors and JSON; nothing is pickled. A new folder is written beside the old one and takes its place
by two renames, so that a kill at any moment leaves one whole checkpoint.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from quintet.errors import TrainingError
from quintet.hub import read_json, write_json_atomic

__all__ = ["find_last", "load_state", "replace_folder", "save_state"]

STATE, WEIGHTS, OPTIMIZER = "trainer_state.json", "weights.safetensors", "optimizer.safetensors"


def replace_folder(new: Path, final: Path) -> None:
    """Let folder `new` take the place of `final`, after everything in it has reached the disk."""
    for file in new.rglob("*"):
        if file.is_file():
            with open(file, "rb") as handle:
                os.fsync(handle.fileno())
    old = final.with_name(final.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        final.rename(old)
    new.rename(final)
    shutil.rmtree(old, ignore_errors=True)


def find_last(run: Path) -> Path | None:
    """Return the folder of the last whole checkpoint of a run, or None."""
    last = run / "last"
    old = last.with_name("last.old")
    if not last.exists() and old.exists():  # killed between the two renames
        old.rename(last)
    return last if (last / STATE).is_file() else None


def save_state(run: Path, model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Write the checkpoint `run/last`."""
    new = run / "last.new"
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    names = {id(p): name for name, p in model.named_parameters()}  # a tied weight appears once
    save_file({name: p.detach().contiguous() for name, p in model.named_parameters()}, new / WEIGHTS)
    moments = {
        f"{names[id(p)]}.{key}": value.detach().cpu().contiguous()
        for p, values in optimizer.state.items()
        for key, value in values.items()
    }
    save_file(moments, new / OPTIMIZER)
    write_json_atomic(new / STATE, state)
    replace_folder(new, run / "last")


def load_state(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Restore model and optimiser in place from a checkpoint folder; return its counters.

    Raises:
        TrainingError: the checkpoint is of another model.
    """
    weights = load_file(folder / WEIGHTS)
    moments = load_file(folder / OPTIMIZER)
    parameters = dict(model.named_parameters())
    if {n: p.shape for n, p in parameters.items()} != {n: w.shape for n, w in weights.items()}:
        raise TrainingError(
            f"the checkpoint {folder} is of a model with other weights. Use another output_dir, or the same options."
        )
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(weights[name])
    for name, parameter in parameters.items():
        found = {
            key.removeprefix(f"{name}."): value for key, value in moments.items() if key.rpartition(".")[0] == name
        }
        if found:
            optimizer.state[parameter] = {
                key: value if key == "step" else value.to(parameter.device) for key, value in found.items()
            }
    return read_json(folder / STATE)
