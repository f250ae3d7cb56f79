"""With a cache a model gives what it gives without one, however the text is cut."""

from __future__ import annotations

from typing import Any

import pytest
import torch

CUTS = [[1] * 9, [4, 5], [7, 1, 1], [2, 3, 4], [8, 1]]


def fed(model: Any, ids: torch.Tensor, cut: list[int], mask: torch.Tensor | None = None, **kwargs: Any) -> torch.Tensor:
    """The logits of `ids`, given to the model in parts."""
    logits, past, end = [], None, 0
    for part in ids.split(cut, dim=1):
        end += part.shape[1]
        given = None if mask is None else mask[:, :end]
        out = model(part, attention_mask=given, past_key_values=past, use_cache=True, **kwargs)
        past = out.past_key_values
        logits.append(out.logits)
    assert past.get_seq_length() == end
    return torch.cat(logits, dim=1)


@pytest.mark.parametrize("cut", CUTS, ids=str)
@pytest.mark.parametrize("mode", ["grad", "no_grad", "inference"])
def test_cached_equals_uncached(make: Any, ids: torch.Tensor, close: Any, cut: list[int], mode: str) -> None:
    model = make()
    around = {"grad": torch.enable_grad, "no_grad": torch.no_grad, "inference": torch.inference_mode}[mode]
    with around():
        close(fed(model, ids, cut), model(ids, use_cache=False).logits)


@pytest.mark.parametrize("cut", CUTS, ids=str)
def test_cached_equals_uncached_with_padding(make: Any, ids: torch.Tensor, close: Any, cut: list[int]) -> None:
    model = make()
    mask = torch.ones_like(ids)
    mask[0, :3] = mask[1, 6:] = mask[2, 4] = 0
    with torch.no_grad():
        whole = model(ids, attention_mask=mask, use_cache=False).logits
        close(fed(model, ids, cut, mask)[mask.bool()], whole[mask.bool()])


def test_the_tuple_form_goes_in_and_comes_out(make: Any, ids: torch.Tensor, close: Any) -> None:
    model = make()
    with torch.no_grad():
        whole = model(ids).logits
        first = model(ids[:, :5], use_cache=True)
        past = first.past_key_values.to_legacy_cache()
        before = [tensor.clone() for pair in past for tensor in pair]
        for end in range(5, 9):
            out = model(ids[:, end : end + 1], past_key_values=past, use_cache=True)
            assert isinstance(out.past_key_values, tuple)
            close(out.logits, whole[:, end : end + 1])
            past = out.past_key_values
    # what was given is not written to: it can be continued a second time
    assert all(torch.equal(a, b) for a, b in zip(before, (t for p in first.past_key_values for t in p), strict=True))
    with torch.no_grad():
        again = model(ids[:, 5:], past_key_values=first.past_key_values.to_legacy_cache(), use_cache=True)
    close(again.logits, whole[:, 5:])


def test_after_crop(make: Any, ids: torch.Tensor, close: Any) -> None:
    model = make()
    with torch.no_grad():
        past = model(ids, use_cache=True).past_key_values
        past.crop(4)
        other = (ids + 1)[:, 4:]
        got = model(other, past_key_values=past, use_cache=True)
        past.crop(-2)
        more = model(ids[:, 7:], past_key_values=past, use_cache=True)
        close(got.logits, model(torch.cat([ids[:, :4], other], 1)).logits[:, 4:])
        close(more.logits, model(torch.cat([ids[:, :4], other[:, :3], ids[:, 7:]], 1)).logits[:, 7:])


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


def test_gradients_flow_through_a_cache(make: Any, ids: torch.Tensor, close: Any) -> None:
    model = make()
    fed(model, ids, [4, 2, 3]).logsumexp(-1).sum().backward()
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
