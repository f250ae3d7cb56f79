"""Compiled models: the same numbers, no graph break, and one program for every step of a conversation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from quintet.cache import StaticCache

# "eager" runs what the compiler's front end has recorded as it is; what a back end makes of it is its own business.
FRONT = "eager"


@pytest.fixture(autouse=True)
def _fresh() -> Any:
    """No test meets what another has compiled."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def greedy(model: Any, ids: torch.Tensor, count: int) -> torch.Tensor:
    """The plainest decoding: the whole text again for every token."""
    for _ in range(count):
        best = model(ids, use_cache=False).logits[:, -1].argmax(-1, keepdim=True)
        ids = torch.cat([ids, best], 1)
    return ids


def test_forward(make_one: Any, ids: torch.Tensor, close: Any) -> None:
    model = make_one()
    mask = torch.ones_like(ids)
    mask[0, :4] = mask[1, 7:] = 0
    compiled = torch.compile(model, fullgraph=True, backend=FRONT)
    with torch.no_grad():
        close(compiled(ids, use_cache=False).logits, model(ids).logits)
        padded = compiled(ids, attention_mask=mask, use_cache=False).logits[mask.bool()]
        close(padded, model(ids, attention_mask=mask).logits[mask.bool()])


def decode(model: Any, step: Any, ids: torch.Tensor, count: int, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Greedy decoding with a store of fixed shape: a prompt, then `step` for every token."""
    past = StaticCache(model.config, max_cache_len=ids.shape[1] + count)
    with torch.no_grad():
        best = model(ids, attention_mask=mask, past_key_values=past).logits[:, -1].argmax(-1, keepdim=True)
        for _ in range(count - 1):
            ids = torch.cat([ids, best], 1)
            best = step(best, attention_mask=mask, past_key_values=past).logits[:, -1].argmax(-1, keepdim=True)
    return torch.cat([ids, best], 1)


def test_a_decode_step_is_one_program(make: Any, ids: torch.Tensor) -> None:
    model = make()
    counter = CompileCounterWithBackend(FRONT)
    step = torch.compile(model.forward, fullgraph=True, backend=counter)
    with torch.no_grad():
        wanted = greedy(model, ids, 8)
        assert torch.equal(decode(model, step, ids, 8), wanted)
        assert counter.frame_count == 1
        # neither does another text of another length need another one, in a store of the same size
        assert torch.equal(decode(model, step, ids[:, :7], 10), greedy(model, ids[:, :7], 10))
        assert counter.frame_count == 1


def test_a_padded_decode_step_is_one_program(make_one: Any, ids: torch.Tensor) -> None:
    """The mask covers every slot of the store from the beginning."""
    model = make_one()
    counter = CompileCounterWithBackend(FRONT)
    step = torch.compile(model.forward, fullgraph=True, backend=counter)
    mask = torch.ones(3, 15, dtype=torch.int64)
    mask[0, :4] = mask[2, :1] = 0
    with torch.no_grad():
        got = decode(model, step, ids, 6, mask)
        assert counter.frame_count == 1
        for row, written, pad in zip(ids, got, (4, 0, 1), strict=True):
            assert torch.equal(greedy(model, row[None, pad:], 6)[0], written[pad:])


def test_a_compiled_step_with_chosen_experts_in_a_large_batch(make_one: Any, close: Any) -> None:
    """With as many choices as experts another way is taken than for a few tokens; the numbers are the same."""
    model = make_one()
    if not hasattr(model.config, "num_local_experts"):
        pytest.skip("a family without experts")
    compiled = torch.compile(model, fullgraph=True, backend=FRONT, dynamic=False)
    with torch.no_grad():
        for rows in (1, 8):
            some = torch.randint(90, (rows, 1))
            close(compiled(some, use_cache=False).logits, model(some).logits)


@pytest.mark.slow
def test_gradients(make: Any, ids: torch.Tensor) -> None:
    model = make()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    found = []
    for way in (model, compiled):
        model.zero_grad()
        way(ids, use_cache=False).logits.logsumexp(-1).sum().backward()
        found.append([parameter.grad.clone() for parameter in model.parameters()])
    for got, wanted in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_the_usual_back_end(make: Any, ids: torch.Tensor, close: Any) -> None:
    model = make()
    compiled = torch.compile(model, fullgraph=True)
    step = torch.compile(model.forward, fullgraph=True)
    with torch.no_grad():
        close(compiled(ids, use_cache=False).logits, model(ids).logits, atol=1e-4)
        assert torch.equal(decode(model, step, ids, 6), greedy(model, ids, 6))
