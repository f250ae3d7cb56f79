"""Processes that hold parts of one model run it equally often, whoever is finished first."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch

ONE = torch.tensor([[5, 6, 7]])

SCRIPT = """
    import json, sys
    import torch
    from torch import distributed
    from quintet.models.gpt2 import GPT2Config, GPT2LMHeadModel

    rank, port = int(sys.argv[1]), sys.argv[2]
    distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    torch.manual_seed(0)
    sizes = dict(vocab_size=300, n_positions=64, n_embd=32, n_layer=2, n_head=4, eos_token_id=None, bos_token_id=None)
    model = GPT2LMHeadModel(GPT2Config(**sizes)).eval()
    count = 0

    def run(module, args):  # what sharded parameters do: without the other process it waits for ever
        global count
        count += 1
        distributed.all_reduce(torch.ones(1))

    model.register_forward_pre_hook(run)
    prompt = torch.tensor([[5, 6, 7 + rank]])
    lengths = {"greedy": (4, 19), "to the last position": (61, 7), "beams": (9, 3), "iteration": (2, 11)}
    for name, pair in lengths.items():
        count, new = 0, pair[rank]
        options = dict(max_new_tokens=new, synced_gpus=True, pad_token_id=0)
        if name == "beams":
            options["num_beams"] = 3
        if name == "iteration":
            tokens = [column.ids[0] for column in model.generate_iter(prompt, **options)]
        else:
            tokens = model.generate(prompt, **options)[0, 3:].tolist()
        runs = count
        count = 0
        del options["synced_gpus"]
        handle = model._forward_pre_hooks.copy()
        model._forward_pre_hooks.clear()
        alone = model.generate(prompt, **options)[0, 3:].tolist()
        model._forward_pre_hooks.update(handle)
        print(json.dumps([name, runs, tokens == alone, len(tokens)]), flush=True)
    distributed.barrier()
    distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_the_one_that_is_finished_waits_for_the_other(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(SCRIPT), encoding="utf-8")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    processes = [
        subprocess.Popen(
            [sys.executable, str(script), str(rank), port],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        for rank in range(2)
    ]
    try:
        outs = [process.communicate(timeout=180)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    mine, other = ([json.loads(line) for line in out.splitlines()] for out in outs)
    assert [name for name, *_ in mine] == ["greedy", "to the last position", "beams", "iteration"]
    for first, second in zip(mine, other, strict=True):
        assert first[1] == second[1]  # forward passes
        assert first[2] and second[2]  # the tokens of one process alone
        assert first[1] >= max(first[3], second[3])
    assert [first[1] for first in mine if first[0] != "beams"] == [19, 61, 11]


def test_one_process_has_nobody_to_wait_for(model: Any) -> None:
    with pytest.warns(UserWarning, match="synced_gpus=True has no effect: there is one process") as caught:
        out = model.generate(ONE, synced_gpus=True, max_new_tokens=5)
    assert caught[0].filename == __file__
    assert torch.equal(out, model.generate(ONE, synced_gpus=False, max_new_tokens=5))
