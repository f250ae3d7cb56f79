"""With a cache a model gives what it gives without one, however the text is cut."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from quintet.cache import DynamicCache
from quintet.errors import InputError
from quintet.layers.begin import windows_of

MODES = {"grad": torch.enable_grad, "no_grad": torch.no_grad, "inference": torch.inference_mode}


@pytest.mark.parametrize("mode", MODES)
def test_cached_equals_uncached(make: Any, fed: Any, ids: torch.Tensor, close: Any, mode: str) -> None:
    model = make()
    mask = torch.ones_like(ids)
    mask[0, :3] = mask[1, 6:] = mask[2, 4] = 0
    real = mask.bool()
    with MODES[mode]():
        whole, padded = model(ids, use_cache=False).logits, model(ids, attention_mask=mask, use_cache=False).logits
        for cut in ([1] * 9, [4, 5], [7, 1, 1], [2, 3, 4], [8, 1]):
            close(fed(model, ids, cut)[0], whole)
            close(fed(model, ids, cut, mask)[0][real], padded[real])


def test_the_tuple_form_goes_in_and_comes_out(make: Any, ids: torch.Tensor, close: Any) -> None:
    model = make()
    with torch.no_grad():
        whole = model(ids).logits
        # Without a configuration every key is kept, those that a window does not show too.
        first = model(ids[:, :5], past_key_values=DynamicCache(), use_cache=True)
        past = first.past_key_values.to_legacy_cache()
        before = [tensor.clone() for pair in past for tensor in pair]
        for end in range(5, 9):
            out = model(ids[:, end : end + 1], past_key_values=past, use_cache=True)
            assert isinstance(out.past_key_values, tuple)
            assert all(tensor.shape[2] == end + 1 for pair in out.past_key_values for tensor in pair)
            close(out.logits, whole[:, end : end + 1])
            past = out.past_key_values
        there_and_back = DynamicCache.from_legacy_cache(past).to_legacy_cache()
        assert all(torch.equal(a, b) for p, q in zip(past, there_and_back, strict=True) for a, b in zip(p, q))  # noqa: B905
    # what was given is not written to: it can be continued a second time
    assert all(torch.equal(a, b) for a, b in zip(before, (t for p in first.past_key_values for t in p), strict=True))
    with torch.no_grad():
        again = model(ids[:, 5:], past_key_values=first.past_key_values.to_legacy_cache(), use_cache=True)
    close(again.logits, whole[:, 5:])


def test_after_crop(make: Any, ids: torch.Tensor, close: Any) -> None:
    model = make()
    with torch.no_grad():
        past = model(ids, past_key_values=DynamicCache(), use_cache=True).past_key_values
        past.crop(4)
        other = (ids + 1)[:, 4:]
        got = model(other, past_key_values=past, use_cache=True)
        past.crop(-2)
        more = model(ids[:, 7:], past_key_values=past, use_cache=True)
        close(got.logits, model(torch.cat([ids[:, :4], other], 1)).logits[:, 4:])
        close(more.logits, model(torch.cat([ids[:, :4], other[:, :3], ids[:, 7:]], 1)).logits[:, 7:])


@pytest.mark.parametrize("cut", [[6, 3], [1] * 9, [8, 1]], ids=str)
def test_a_store_with_windows_undoes_and_refuses(
    make: Any, family: Any, fed: Any, ids: torch.Tensor, close: Any, cut: list[int]
) -> None:
    """What a model makes by itself drops keys: the last update can be undone, a deep crop is refused and changes
    nothing."""
    model = make()
    with torch.no_grad():
        past = fed(model, ids, cut)[1]
        past.crop(-cut[-1])
        start = 9 - cut[-1]
        other = (ids + 1)[:, start:]
        wanted = model(torch.cat([ids[:, :start], other], 1)).logits[:, start:]
        close(model(other, past_key_values=past).logits, wanted)
        past = fed(model, ids[:, :8].repeat(1, 3), [8, 8, 8])[1]
        if windows_of(model.config) == [None] * model.config.num_hidden_layers:
            assert len(past.to_legacy_cache()) == model.config.num_hidden_layers
            past.crop(3)
            close(model(ids[:, 3:], past_key_values=past).logits, model(ids).logits[:, 3:])
            return
        with pytest.raises(InputError, match="has dropped keys .* use a DynamicCache.. made without a config"):
            past.to_legacy_cache()
        with pytest.raises(InputError, match="cannot be cropped from 24 to 3 tokens: .* without a config"):
            past.crop(3)
        longer = torch.cat([ids[:, :8].repeat(1, 3), other], 1)
        close(model(other, past_key_values=past).logits, model(longer).logits[:, 24:])


def test_after_rows_are_chosen(make: Any, ids: torch.Tensor, close: Any) -> None:
    model = make()
    with torch.no_grad():
        whole = model(ids).logits
        for order in ([2, 0, 1], [1, 1, 1], [2], [0, 0, 1, 2, 2]):
            past = model(ids[:, :6], use_cache=True).past_key_values
            past.reorder_cache(torch.tensor(order)) if len(order) == 3 else past.batch_select_indices(
                torch.tensor(order)
            )
            close(model(ids[order, 6:], past_key_values=past).logits, whole[order, 6:])
        past = model(ids[:, :6], use_cache=True).past_key_values
        past.batch_repeat_interleave(2)
        close(
            model(ids[:, 6:].repeat_interleave(2, 0), past_key_values=past).logits, whole[:, 6:].repeat_interleave(2, 0)
        )


def test_gradients_flow_through_a_cache(make: Any, fed: Any, ids: torch.Tensor) -> None:
    model = make()
    fed(model, ids, [4, 2, 3])[0].logsumexp(-1).sum().backward()
    got = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    model(ids, use_cache=False).logits.logsumexp(-1).sum().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(got[name], parameter.grad, rtol=1e-4, atol=1e-4)


def test_a_cache_made_in_inference_mode_goes_on_outside(make: Any, ids: torch.Tensor, close: Any) -> None:
    model = make()
    with torch.inference_mode():
        past = model(ids[:, :3], use_cache=True).past_key_values
        model(ids[:, 3:5], past_key_values=past)
    with torch.no_grad():
        model(ids[:, 5:6], past_key_values=past)
    out = model(ids[:, 6:], past_key_values=past)  # with gradients
    close(out.logits, model(ids).logits[:, 6:])
    out.logits.sum().backward()


def test_no_cache_is_made_unless_wanted(make: Any, ids: torch.Tensor) -> None:
    model = make()
    assert model(ids, use_cache=False).past_key_values is None
    assert model(ids, use_cache=True).past_key_values.get_seq_length() == 9
    past = model(ids, use_cache=True).past_key_values
    assert model(ids, past_key_values=past, use_cache=True).past_key_values is past


def test_a_cache_that_does_not_fit_is_refused(make: Any, family: Any, ids: torch.Tensor) -> None:
    model = make()
    past = model(ids[:, :4], use_cache=True).past_key_values
    with pytest.raises(ValueError, match="Use the cache with the batch it was made for"):
        model(ids[:2, 4:], past_key_values=past)
    past = model(ids[:, :4], use_cache=True).past_key_values
    with pytest.raises(ValueError, match="must all hold the same number"):
        model(ids[:, 4:], past_key_values=past.to_legacy_cache()[:1])
    with pytest.raises(ValueError, match="past_key_values is a str"):
        model(ids, past_key_values="yesterday")
    with pytest.raises(ValueError, match="attention_mask has shape .3, 5., but must be .3, 9."):
        model(ids[:, 4:], past_key_values=past, attention_mask=torch.ones(3, 5))
    with pytest.raises(ValueError, match="torch.float32 on cpu and got torch.bfloat16"):
        model.to(torch.bfloat16)(ids[:, 4:], past_key_values=past)
