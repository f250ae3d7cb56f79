"""Steps in one call where they could hang or part: models and threads at once, fork, 1000 threads, 300 tokens."""

from __future__ import annotations

import copy
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

import quintet
from quintet.auto import family_of
from quintet.cache import Cache, DynamicCache, Int8Cache
from quintet.fused.blocks import FusedBlocks
from quintet.kernels.loader import status
from quintet.quant import packed_experts
from quintet.quant.config import IntegerConfig

pytestmark = pytest.mark.skipif(not status().native, reason=f"no native kernels: {status().reason}")
PATIENCE = 240  # seconds for a process that takes a few
# Family, type, format, cache: steps of each kind, wide enough that products are shared among threads.
KINDS: tuple[tuple[str, torch.dtype, Any, type[Cache]], ...] = (
    ("seed_oss", torch.float32, None, DynamicCache),
    ("gpt2", torch.bfloat16, IntegerConfig(4), DynamicCache),
    ("gpt_neox", torch.float32, IntegerConfig(8), DynamicCache),
    ("gpt_oss", torch.bfloat16, "mxfp4", DynamicCache),
    ("seed_oss", torch.bfloat16, IntegerConfig(8), Int8Cache),
    ("gpt_oss", torch.float32, "mxfp4", Int8Cache),
)
WIDE: dict[str, dict[str, int]] = {
    "seed_oss": {"hidden_size": 256, "intermediate_size": 512},
    "gpt2": {"n_embd": 256, "n_head": 4},
    "gpt_neox": {"hidden_size": 256, "num_attention_heads": 4, "intermediate_size": 512},
    "gpt_oss": {"hidden_size": 256, "intermediate_size": 256},
}


class Kind(NamedTuple):
    """A model, and what it keeps keys and values in."""

    model: Any
    cache: type[Cache]


def models() -> list[Kind]:
    """A model of each kind, ready to decode."""
    made = []
    for family, dtype, form, cache in KINDS:
        torch.manual_seed(0)
        record = family_of(family)
        model = record.classes["causal-lm"](record.tiny(**WIDE[family])).eval()
        if form is not None:
            model.quantize(form)
        model.to(dtype)
        model.optimize()
        assert any(type(module) is FusedBlocks for module in model.modules())
        made.append(Kind(model, cache))
    return made


def begin(kind: Kind, seed: int, tokens: int = 20) -> tuple[torch.Tensor, Any]:
    """Tokens that are to come, and a cache with a prompt of 4."""
    ids = torch.randint(1, 90, (1, 4 + tokens), generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        cache = kind.cache(config=kind.model.config)
        return ids[:, 4:], kind.model(ids[:, :4], past_key_values=cache, use_cache=True).past_key_values


def go_on(kind: Kind, ids: torch.Tensor, cache: Any) -> bytes:
    """Logits of tokens that are given one at a time."""
    assert type(cache) is kind.cache
    with torch.no_grad():
        parts = [kind.model(one, past_key_values=cache, use_cache=True).logits.float() for one in ids.split(1, dim=1)]
    return torch.cat(parts, 1).numpy().tobytes()


def decode(kind: Kind, seed: int) -> bytes:
    """Both."""
    return go_on(kind, *begin(kind, seed))


def in_process(code: str) -> list[str]:
    """Run a program on two threads and return its words; what hangs fails with what it had printed."""
    folders = [str(Path(__file__).parent), str(Path(quintet.__file__).parents[1])]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(folders), "OMP_NUM_THREADS": "2"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False, timeout=PATIENCE)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.split()


TOGETHER = """
from concurrent.futures import ThreadPoolExecutor
import torch
from test_fused_safety import decode, models
torch.set_num_threads(2)
made = models()
jobs = [(model, seed) for seed in range(3) for model in made]  # the same model in several threads, and all of them
want = [decode(*job) for job in jobs]
with ThreadPoolExecutor(6) as pool:
    for _ in range(3):
        print(list(pool.map(lambda job: decode(*job), jobs)) == want)
"""


def test_threads_of_python_with_the_same_and_with_different_models() -> None:
    assert in_process(TOGETHER) == ["True"] * 3


# torch's own products of a prompt would wait in the child for threads that are not there, and so are made before
AFTER_FORK = """
import os, signal
import torch
from test_fused_safety import begin, decode, go_on, models
torch.set_num_threads(2)
made = models()
want = [decode(model, 7) for model in made]
for _ in range(2):
    begun = [begin(model, 7) for model in made]
    child = os.fork()
    if child == 0:
        signal.alarm(90)
    right = [go_on(model, *one) for model, one in zip(made, begun)] == want
    if child == 0:
        os._exit(0 if right else 3)
    print(os.waitpid(child, 0)[1], right)
"""


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork here")
def test_steps_in_children_of_fork() -> None:
    """Their parent has decoded on two threads, and goes on meanwhile."""
    assert in_process(AFTER_FORK) == ["0", "True"] * 2


MANY = """
import torch
from test_fused_safety import begin, go_on, models
made = models()
def said(threads):
    torch.set_num_threads(1)
    begun = [begin(model, 7, 2) for model in made]
    torch.set_num_threads(threads)
    return [go_on(model, *one) for model, one in zip(made, begun)]
want = said(1)
print(said(1000) == want)
torch.get_num_threads = lambda: 0
print(said(1) == want)
"""


def test_a_thousand_threads_and_none() -> None:
    assert in_process(MANY) == ["True", "True"]


def test_three_hundred_greedy_tokens_over_experts_in_mxfp4(monkeypatch: pytest.MonkeyPatch) -> None:
    """Activations in float32, natively and unpacked by torch: the same text."""
    record = family_of("gpt_oss")
    torch.manual_seed(3)
    wide = {"hidden_size": 128, "intermediate_size": 128, "vocab_size": 2000, "sliding_window": 16}
    model = record.classes["causal-lm"](record.tiny(**wide, max_position_embeddings=512)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.5 if "embed" in name or "lm_head" in name else 0.12)
    model.quantize("mxfp4")
    ids = torch.randint(1, 2000, (1, 5))
    options = {"do_sample": False, "min_new_tokens": 300, "max_new_tokens": 300, "repetition_penalty": 1.1}
    plain: Any = copy.deepcopy(model)
    plain.optimize = lambda: None
    fused = model.generate(ids, **options)
    assert any(type(module) is FusedBlocks for module in model.modules())
    assert fused.shape == (1, 305) and len(set(fused[0].tolist())) > 100, "a text that goes on, and not round"
    monkeypatch.setattr(packed_experts, "native_mxfp4_experts", lambda *_: None)
    assert torch.equal(plain.generate(ids, **options), fused)
    assert not any(type(module) is FusedBlocks for module in plain.modules())
