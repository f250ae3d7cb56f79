"""Other processes that hold parts of the same model, and must run it as often as this one.

Where the parameters are sharded (FSDP, ZeRO-3), each forward pass gathers them from all processes, so that a process
whose rows are finished must go on running the model until the others are finished too.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import distributed

from quintet.errors import GenerationError
from quintet.generation.given import GenerativeModel
from quintet.generation.loops.column import Column
from quintet.generation.resolve import warn
from quintet.generation.run import Run
from quintet.outputs import ModelOutput

__all__ = ["Peers", "SyncedRun", "find_peers"]


class Peers:
    """The processes of a torch.distributed group, asked once before each forward pass whether one of them has work.

    Args:
        model: The model; its device carries the question.
    """

    def __init__(self, model: GenerativeModel) -> None:
        self._model = model

    def join(self) -> None:
        """Say that this process runs the model once more."""
        self._someone_works(True)

    def wait(self) -> None:
        """Run the model along, on one token and for nothing, until every process is done."""
        token = torch.zeros((1, 1), dtype=torch.long, device=self._model.device)
        while self._someone_works(False):
            self._model(input_ids=token, use_cache=False)

    def _someone_works(self, mine: bool) -> bool:
        flag = torch.tensor(int(mine), device=self._model.device)
        distributed.all_reduce(flag, op=distributed.ReduceOp.MAX)
        return bool(flag)


def find_peers(synced_gpus: Any, model: GenerativeModel) -> Peers | None:
    """Return the other processes when `synced_gpus` asks for them and there are some.

    Raises:
        GenerationError: `synced_gpus` is no bool.
    """
    if synced_gpus is None or synced_gpus is False:
        return None
    if synced_gpus is not True:
        raise GenerationError(f"synced_gpus is {synced_gpus!r}, but must be True, False or None.")
    if not distributed.is_available() or not distributed.is_initialized() or distributed.get_world_size() < 2:
        warn("synced_gpus=True has no effect: there is one process. It is for models sharded over several.")
        return None
    return Peers(model)


class SyncedRun(Run):
    """A run after which the process waits for its peers.

    Args:
        run: The run.
        peers: The peers, which its state joins before each forward pass.
    """

    def __init__(self, run: Run, peers: Peers) -> None:
        self._run, self._peers = run, peers

    def columns(self) -> Iterator[Column]:
        """See Run."""
        yield from self._run.columns()
        self._peers.wait()

    def finish(self, streamer: Any) -> ModelOutput | torch.Tensor:
        """See Run."""
        result = self._run.finish(streamer)
        self._peers.wait()
        return result
