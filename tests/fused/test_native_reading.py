"""Prompts through all blocks in one native call: equal to the modules in every family, format, batch and cache."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_blocks import FORMATS, TOLERANCE, model_of

import quintet
from quintet.auto import model_types
from quintet.cache import DynamicCache, Int8Cache, StaticCache
from quintet.fused import blocks
from quintet.kernels import integers
from quintet.kernels.linear import matmul_pays
from quintet.kernels.loader import status

pytestmark = pytest.mark.skipif(not matmul_pays(torch.bfloat16, 2), reason="no native products of many rows")
BOUND = TOLERANCE[torch.bfloat16]


def ready(family: str, form: str = "plain", **overrides: Any) -> Any:
    length = {"n_positions" if family in ("gpt2", "openai-gpt") else "max_position_embeddings": 256}
    model = model_of(family, torch.bfloat16, form, **length, **overrides)
    model.optimize()
    return model


def plain_of(model: Any) -> Any:
    """The same model as modules: of a prompt that somebody watches."""
    blocks_of = next(one for one in model.modules() if isinstance(one, blocks.FusedBlocks))

    def run(ids: torch.Tensor, **given: Any) -> Any:
        hook = blocks_of[0].register_forward_hook(lambda *_: None)
        try:
            return model(ids, **given)
        finally:
            hook.remove()

    return run


def texts(rows: int, length: int, pad: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens, and a mask with rows that are padded on the left by different lengths."""
    ids = torch.randint(1, 90, (rows, length), generator=torch.Generator().manual_seed(rows))
    mask = torch.ones(rows, length, dtype=torch.long)
    for row in range(1, rows):
        mask[row, : pad * row] = 0
    return ids, mask


def close(got: torch.Tensor, want: torch.Tensor, where: torch.Tensor | None = None) -> bool:
    got, want = got.float(), want.float()
    if where is not None:
        got, want = got[where.bool()], want[where.bool()]
    return float((got - want).abs().max()) <= BOUND * float(want.abs().max())


@pytest.mark.parametrize("cached", [False, True], ids=["no cache", "cache"])
@pytest.mark.parametrize("form", sorted(FORMATS))
@pytest.mark.parametrize("family", model_types())
def test_a_prompt_is_what_the_modules_compute(family: str, form: str, cached: bool, steps: list[bool]) -> None:
    # all experts: where two are nearly as good, another rounding may ask another one
    model = ready(family, form, **({"num_experts_per_tok": 4} if family == "gpt_oss" else {}))
    for rows, length in ((1, 9), (1, 70), (3, 41), (5, 2)):
        ids, mask = texts(rows, length, 0 if length < 20 else 3)
        with torch.no_grad():
            want = plain_of(model)(ids, attention_mask=mask, use_cache=cached)
            assert steps == [False]
            got = model(ids, attention_mask=mask, use_cache=cached)
        assert steps == [False, True] and close(got.logits, want.logits, mask)
        steps.clear()
        if not cached:
            continue
        for layer in range(model.config.num_hidden_layers):
            for one, other in zip(got.past_key_values[layer], want.past_key_values[layer], strict=True):
                assert one.shape == other.shape
                assert close(one.transpose(1, 2), other.transpose(1, 2), mask[:, -one.shape[2] :])


@pytest.mark.parametrize("at_once", [1, 7, 64])
@pytest.mark.parametrize("window", [4, 9, 100])
def test_prompts_in_parts_windows_and_what_follows(
    window: int, at_once: int, steps: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """However a prompt is cut, here or by the caller, and with layers that keep only a window."""
    model = ready("gpt_oss", sliding_window=window, num_experts_per_tok=4)
    ids, mask = texts(2, 90)
    with torch.no_grad():
        want = plain_of(model)(ids, attention_mask=mask).logits
        monkeypatch.setattr(blocks, "PROMPT_ROWS", 2 * at_once)
        for ends in ((90,), (30, 90), (31, 50, 51, 52, 90)):
            cache, begin, found = DynamicCache(config=model.config), 0, []
            for end in ends:
                out = model(ids[:, begin:end], attention_mask=mask[:, :end], past_key_values=cache, use_cache=True)
                found.append(out.logits)
                begin = end
            assert all(steps[1:]) and close(torch.cat(found, 1), want, mask)
            assert cache.get_seq_length() == 90
        assert close(model(ids, attention_mask=mask, use_cache=False).logits, want, mask)
    assert all(steps[1:])


def test_a_text_and_a_thread_more_change_no_bit() -> None:
    model = ready("gpt_oss", sliding_window=9)
    ids, _ = texts(4, 50)
    with torch.no_grad():
        together = model(ids, use_cache=False).logits
        alone = torch.cat([model(row, use_cache=False).logits for row in ids.split(1)])
        assert torch.equal(together, alone)
        before = torch.get_num_threads()
        try:
            for threads in (1, 3):
                torch.set_num_threads(threads)
                assert torch.equal(model(ids, use_cache=False).logits, together)
        finally:
            torch.set_num_threads(before)


@pytest.mark.parametrize("form", ["int8", "int4"])
def test_layers_say_what_they_are_multiplied_with_at_every_prompt(form: str, steps: list[bool]) -> None:
    model = ready("seed_oss", form)
    ids, _ = texts(1, 40)
    packed = [one for one in model.modules() if hasattr(one, "activations")]
    found = {}
    with torch.no_grad():
        for choice in ("bf16", "int8", "auto", "bf16"):
            for one in packed:
                one.activations = choice
            got = model(ids).logits
            assert choice not in found or torch.equal(got, found[choice])
            found[choice] = got
    auto = integers.activations_for("auto", 40, torch.bfloat16)
    assert auto == ("tiles" if status().level == "amx" else "int8") and all(steps)
    assert torch.equal(found["auto"], found["int8" if auto == "int8" else "bf16"])
    assert not torch.equal(found["bf16"], found["int8"])
    assert close(found["int8"], found["bf16"])


def test_a_prompt_behind_a_cache_of_modules_and_crops(steps: list[bool]) -> None:
    model = ready("seed_oss")
    ids, _ = texts(2, 60)
    with torch.no_grad():
        want = plain_of(model)(ids).logits
        cache = plain_of(model)(ids[:, :20], use_cache=True).past_key_values
        steps.clear()
        model(ids[:, 20:55], past_key_values=cache, use_cache=True)
        cache.crop(33)
        got = model(ids[:, 33:], past_key_values=cache, use_cache=True).logits
    assert steps == [True, True] and close(got, want[:, 33:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_other_types_go_through_the_modules(dtype: torch.dtype, steps: list[bool]) -> None:
    model = model_of("seed_oss", dtype)
    model.optimize()
    with torch.no_grad():
        model(texts(1, 20)[0])
    assert steps == [False]


def test_what_a_prompt_asks_for_goes_through_the_modules(steps: list[bool]) -> None:
    model = ready("gpt_oss")
    ids, mask = texts(2, 20)
    with torch.no_grad():
        for cache in (Int8Cache(config=model.config), StaticCache(config=model.config, max_cache_len=64)):
            model(ids, past_key_values=cache, use_cache=True)
        model(ids, output_attentions=True)
        model(ids, output_router_logits=True)
        with torch.autocast("cpu", torch.bfloat16):
            model(ids)
        assert not any(steps)
        model(ids, attention_mask=mask)
        assert steps.pop()
        steps.clear()
        assert len(model(ids, output_hidden_states=True).hidden_states) == model.config.num_hidden_layers + 1
        model.train()
        model(ids)
    model.eval()
    model(ids, labels=ids).loss.backward()
    assert not any(steps) and any(p.grad is not None for p in model.parameters())


def test_a_cache_of_another_type_is_left_as_it_was(steps: list[bool]) -> None:
    model = ready("seed_oss")
    ids, _ = texts(1, 30)
    with torch.no_grad():
        cache = model(ids[:, :10], use_cache=True).past_key_values
        other = DynamicCache(config=model.config)
        for layer in range(model.config.num_hidden_layers):
            keys, values = cache[layer]
            other.update(keys.float(), values.float(), layer)
        steps.clear()
        with pytest.raises(Exception, match="float32"):
            model(ids[:, 10:], past_key_values=other, use_cache=True)
    assert steps == [False] and other.get_seq_length() == 10


def test_memory_of_a_long_prompt_is_given_back() -> None:
    """What lies between the blocks is held for a part of the prompt, and not after a large one."""
    script = (
        "import torch, resource\n"
        "from tiny_blocks import model_of\n"
        "model = model_of('seed_oss', torch.bfloat16, max_position_embeddings=40000, intermediate_size=4096)\n"
        "model.optimize()\n"
        "with torch.inference_mode():\n"
        "    model(torch.ones(1, 1024, dtype=torch.long), logits_to_keep=1)\n"
        "    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "    model(torch.ones(1, 16384, dtype=torch.long), logits_to_keep=1)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    folders = [str(Path(__file__).parent), str(Path(quintet.__file__).parents[1])]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(folders)}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 100_000, "KiB: 16 times as many rows would be 250 MB of feed-forward alone"
