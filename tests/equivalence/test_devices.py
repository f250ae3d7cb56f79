"""No decoding step waits for the device, and a GPU gives what the CPU gives."""

from __future__ import annotations

from typing import Any

import pytest
import torch

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def decode(model: Any, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Read all but the last three tokens of a padded batch, then one token at a time; return the logits."""
    past, parts = None, []
    for start, end in ((0, 6), (6, 7), (7, 8), (8, 9)):
        out = model(ids[:, start:end], attention_mask=mask[:, :end], past_key_values=past, use_cache=True)
        past = out.past_key_values
        parts.append(out.logits)
    return torch.cat(parts, 1)


@pytest.fixture
def mask(ids: torch.Tensor) -> torch.Tensor:
    mask = torch.ones_like(ids)
    mask[0, :4] = mask[1, :2] = 0
    return mask


def test_no_value_is_looked_at_outside_the_cpu(make: Any, ids: torch.Tensor, mask: torch.Tensor) -> None:
    """Tensors of the meta device have no values: to look at one is an error."""
    model = make().to("meta")
    with torch.no_grad():
        assert decode(model, ids.to("meta"), mask.to("meta")).shape == (3, 9, 99)
        out = model(ids.to("meta"), labels=ids.to("meta"), output_attentions=True, attention_mask=mask.to("meta"))
    assert out.loss.shape == ()


@pytest.mark.gpu
@needs_gpu
def test_a_decoding_step_does_not_wait_for_the_gpu(
    make: Any, family: Any, ids: torch.Tensor, mask: torch.Tensor
) -> None:
    # Fewer choices than experts, as in a decode step of a published model.
    fields = {"num_local_experts": 16} if hasattr(family.tiny(), "num_local_experts") else {}
    model, ids, mask = make(**fields).to("cuda"), ids.to("cuda"), mask.to("cuda")
    with torch.no_grad():
        decode(model, ids, mask)  # kernels are loaded, memory is reserved
        past = model(ids[:, :6], attention_mask=mask[:, :6], use_cache=True).past_key_values
        torch.cuda.set_sync_debug_mode("error")
        try:
            model(ids[:, 6:7], attention_mask=mask[:, :7], past_key_values=past)
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@needs_gpu
def test_a_gpu_gives_what_the_cpu_gives(make: Any, ids: torch.Tensor, mask: torch.Tensor) -> None:
    model = make()
    with torch.no_grad():
        wanted = decode(model, ids, mask)
        got = decode(model.to("cuda"), ids.to("cuda"), mask.to("cuda")).cpu()
    real = mask.bool()
    torch.testing.assert_close(got[real], wanted[real], rtol=1e-3, atol=1e-3)


@pytest.mark.gpu
@needs_gpu
def test_mistakes_are_errors_before_the_gpu_sees_them(make: Any, ids: torch.Tensor) -> None:
    model, ids = make().to("cuda"), ids.to("cuda")
    for wrong in (ids + 1000, ids - 1000):
        with pytest.raises(ValueError, match="outside the vocabulary"):
            model(wrong)
    torch.cuda.synchronize()  # no assertion has ended the context
    assert model(ids).logits.isfinite().all()


def test_an_optimized_model_gives_the_same(make: Any, ids: torch.Tensor, mask: torch.Tensor, close: Any) -> None:
    model = make()
    with torch.no_grad():
        wanted = decode(model, ids, mask)
    names = list(model.state_dict())
    assert model.optimize().replaced
    assert list(model.state_dict()) == names
    for around in (torch.no_grad, torch.inference_mode, torch.enable_grad):
        with around():
            close(decode(model, ids, mask), wanted)
    model(ids, labels=ids).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
