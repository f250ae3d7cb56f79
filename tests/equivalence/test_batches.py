"""A batch gives each of its rows what the row gives alone, padded on the left, on the right, or with holes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from quintet.cache import DynamicCache, StaticCache
from quintet.errors import InputError
from quintet.layers.begin import windows_of


def test_rows_of_equal_length(make: Any, ids: torch.Tensor, close: Any) -> None:
    model = make()
    with torch.no_grad():
        together = model(ids).logits
        for row, got in zip(ids, together, strict=True):
            close(got, model(row[None]).logits[0])


@pytest.mark.parametrize("lengths", [[3, 9, 1], [9, 9, 2], [5, 6, 7]], ids=str)
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding(make: Any, ids: torch.Tensor, close: Any, lengths: list[int], side: str) -> None:
    model = make()
    mask = torch.zeros_like(ids)
    for row, length in enumerate(lengths):
        mask[row, 9 - length :] = 1 if side == "left" else 0
        mask[row, :length] = 1 if side == "right" else mask[row, :length]
    with torch.no_grad():
        together = model(ids, attention_mask=mask).logits
        for row, got, real in zip(ids, together, mask.bool(), strict=True):
            close(got[real], model(row[real][None]).logits[0])


def test_a_hole_in_a_left_padded_row(make: Any, ids: torch.Tensor, close: Any) -> None:
    """The row alone has the same hole; only the padding before its first token is cut off."""
    model = make()
    mask = torch.tensor([[0, 0, 1, 1, 0, 1, 1, 0, 1], [1, 1, 1, 0, 0, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0, 0, 0, 1]])
    with torch.no_grad():
        together = model(ids, attention_mask=mask).logits
        for row, got, real in zip(ids, together, mask, strict=True):
            first = int(real.argmax())
            alone = model(row[None, first:], attention_mask=real[None, first:]).logits[0]
            close(got[first:][real[first:].bool()], alone[real[first:].bool()])


@pytest.mark.parametrize("cut", [[5, 1, 1, 1, 1], [3, 3, 3]], ids=str)
def test_left_padding_with_a_cache(make: Any, ids: torch.Tensor, close: Any, cut: list[int]) -> None:
    model = make()
    mask = torch.ones_like(ids)
    mask[0, :4] = mask[2, :2] = 0
    past, end, parts = None, 0, []
    with torch.no_grad():
        for part in ids.split(cut, dim=1):
            end += part.shape[1]
            out = model(part, attention_mask=mask[:, :end], past_key_values=past, use_cache=True)
            past = out.past_key_values
            parts.append(out.logits)
        together = torch.cat(parts, dim=1)
        for row, got, real in zip(ids, together, mask.bool(), strict=True):
            close(got[real], model(row[real][None]).logits[0])


def test_a_row_that_is_all_padding_is_finite_and_changes_nothing(make: Any, ids: torch.Tensor, close: Any) -> None:
    model = make()
    mask = torch.ones_like(ids)
    mask[1] = 0
    with torch.no_grad():
        got = model(ids, attention_mask=mask).logits
        assert got.isfinite().all()
        close(got[[0, 2]], model(ids[[0, 2]]).logits)
        got = model(ids, attention_mask=mask, output_attentions=True)
        assert got.logits.isfinite().all()
        assert all(weights.isfinite().all() for weights in got.attentions)


def test_what_stands_under_the_padding_does_not_matter(make: Any, ids: torch.Tensor, close: Any) -> None:
    model = make()
    mask = torch.ones_like(ids)
    mask[0, :4] = mask[1, 7:] = mask[2, 3] = 0
    other = torch.where(mask.bool(), ids, (ids + 13) % 90)
    with torch.no_grad():
        real = mask.bool()
        close(model(ids, attention_mask=mask).logits[real], model(other, attention_mask=mask).logits[real])


def test_a_token_never_sees_those_after_it(make: Any, ids: torch.Tensor, close: Any) -> None:
    model = make()
    other = ids.clone()
    other[:, 5:] = (other[:, 5:] + 7) % 90
    with torch.no_grad():
        close(model(ids).logits[:, :5], model(other).logits[:, :5])
        assert not torch.allclose(model(ids).logits[:, 5:], model(other).logits[:, 5:], atol=1e-3)


def test_the_mask_as_four_dimensions_says_the_same(make: Any, kinds: Any, ids: torch.Tensor, close: Any) -> None:
    """A 4-D mask stands alone: it must say what causality, padding and the window of a layer say."""
    mask = torch.ones_like(ids)
    mask[1, 7:] = mask[2, 3] = 0
    for fields, window in kinds:
        model = make(**fields)
        rule = torch.ones(9, 9).tril().bool()
        rule &= ~torch.ones(9, 9).tril(-(window or 9)).bool()
        full = rule & mask.bool()[:, None, None, :]  # (B, 1, T, S)
        additive = torch.zeros(full.shape).masked_fill(~full, -torch.inf)
        with torch.no_grad():
            wanted = model(ids, attention_mask=mask).logits
            for given in (full, full.long(), additive, additive.clamp_min(torch.finfo(torch.float32).min)):
                close(model(ids, attention_mask=given).logits[mask.bool()], wanted[mask.bool()])


def test_a_mask_of_four_dimensions_replaces_the_window(make: Any, kinds: Any, ids: torch.Tensor, close: Any) -> None:
    everything = torch.ones(9, 9).tril().bool().repeat(3, 1, 1, 1)
    for fields, window in kinds:
        model = make(**fields)
        with torch.no_grad():
            got, windowed = model(ids, attention_mask=everything).logits, model(ids).logits
            if window is None:
                close(got, windowed)
            else:
                close(got[:, :window], windowed[:, :window])
                assert not torch.allclose(got[:, window:], windowed[:, window:], atol=1e-3)


def test_a_mask_for_each_kind_of_layer(make: Any, family: Any, ids: torch.Tensor, close: Any) -> None:
    model = make()
    names = dict.fromkeys(getattr(model.config, "layer_types", None) or ())
    if not names:
        with pytest.raises((ValueError, TypeError, AttributeError)):
            model(ids, attention_mask={"full_attention": None})
        return
    mask = torch.ones_like(ids)
    mask[0, :4] = mask[1, 7:] = 0
    real = mask.bool()
    windows = dict(zip(model.config.layer_types, windows_of(model.config), strict=True))
    rules = {}
    for name, window in windows.items():
        rule = torch.ones(9, 9).tril().bool() & ~torch.ones(9, 9).tril(-(window or 9)).bool()
        rules[name] = rule & real[:, None, None, :]
    with torch.no_grad():
        wanted = model(ids, attention_mask=mask).logits[real]
        close(model(ids, attention_mask=rules).logits[real], wanted)
        close(model(ids, attention_mask=dict.fromkeys(names, mask)).logits[real], wanted)
        # and with a cache that keeps every key: the last rows of the same masks
        before = {name: rule[:, :, :6, :6] for name, rule in rules.items()}
        past = model(ids[:, :6], attention_mask=before, past_key_values=DynamicCache()).past_key_values
        got = model(ids[:, 6:], attention_mask={k: v[:, :, 6:] for k, v in rules.items()}, past_key_values=past)
        whole = model(ids, attention_mask=mask).logits[:, 6:]
        close(got.logits[real[:, 6:]], whole[real[:, 6:]])


def test_a_mask_over_keys_that_are_gone_is_refused(make: Any, kinds: Any, ids: torch.Tensor, close: Any) -> None:
    """A 4-D mask over all tokens could show keys that a window has dropped; a store that keeps all takes it."""
    everything = torch.ones(9, 9).tril().bool()[None, None].repeat(3, 1, 1, 1)
    for fields, window in kinds:
        model = make(**fields)
        with torch.no_grad():
            past = model(ids[:, :8], past_key_values=DynamicCache(), attention_mask=everything[:, :, :8, :8])
            got = model(ids[:, 8:], past_key_values=past.past_key_values, attention_mask=everything[:, :, 8:])
            close(got.logits, model(ids, attention_mask=everything).logits[:, 8:])
            past = model(ids[:, :8], use_cache=True).past_key_values
            if window is None:
                close(model(ids[:, 8:], past_key_values=past, attention_mask=everything[:, :, 8:]).logits, got.logits)
                continue
            with pytest.raises(InputError, match="4-D attention_mask over 9 tokens .* past_key_values=DynamicCache"):
                model(ids[:, 8:], past_key_values=past, attention_mask=everything[:, :, 8:])


def test_a_query_that_sees_nothing_is_finite(make: Any, ids: torch.Tensor) -> None:
    model = make()
    blind = torch.ones(9, 9).tril().bool().repeat(3, 1, 1, 1)
    blind[0, 0, 4] = False
    additive = torch.zeros(blind.shape).masked_fill(~blind, -torch.inf)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        model.to(dtype)
        for given in (blind, additive, additive.clamp_min(torch.finfo(torch.float32).min)):
            out = model(ids, attention_mask=given)
            assert out.logits.isfinite().all()
            out.logits.float().sum().backward()
            assert all(p.grad.isfinite().all() for p in model.parameters())


def test_backends_agree(make_one: Any, backends: list[str], fed: Any, ids: torch.Tensor, close: Any) -> None:
    model = make_one()
    mask = torch.ones_like(ids)
    mask[0, :4] = mask[1, 7:] = 0
    assert {"eager", "sdpa", "flex_attention"} <= set(backends)
    with torch.no_grad():
        for given in (None, mask, torch.randn(3, 1, 9, 9)):
            results = []
            for backend in backends:
                model.set_attn_implementation(backend)
                results.append(model(ids, attention_mask=given).logits)
                if backend != "flex_attention":
                    results.append(model(ids, attention_mask=given, output_attentions=True).logits)
                if given is None:
                    results.append(fed(model, ids, [5, 3, 1])[0])
                elif given.dim() == 2:
                    results.append(fed(model, ids, [8, 1], given, StaticCache(model.config, max_cache_len=9))[0])
            real = slice(None) if given is None or given.dim() == 4 else mask.bool()
            for result in results[1:]:
                close(result[real], results[0][real])


@pytest.mark.parametrize("rope_type", ["dynamic", "longrope"])
def test_rows_whose_rotation_depends_on_the_length(
    make: Any, family: Any, ids: torch.Tensor, close: Any, rope_type: str
) -> None:
    """What a row gives depends on its own length alone, whatever rows are beside it."""
    if not hasattr(family.tiny(), "rope_parameters"):
        assert not hasattr(family.config, "rope_parameters"), "a family without rotation"
        return
    size, share = len(rotary_of(make()).inv_freq), family.tiny().partial_rotary_factor
    base = {"rope_theta": 10000.0} if share == 1 else {"rope_theta": 10000.0, "partial_rotary_factor": share}
    parameters: dict[str, Any] = {"rope_type": "dynamic", "factor": 3.0}
    if rope_type == "longrope":
        factors = {"short_factor": [1.0] * size, "long_factor": [4.0 + i for i in range(size)]}
        parameters = {"rope_type": "longrope", "original_max_position_embeddings": 6, "factor": 2.0, **factors}
    # The limit is between the lengths of the rows.
    model = make(max_position_embeddings=6, rope_parameters={**base, **parameters})
    mask = torch.ones_like(ids)
    mask[0, :5] = mask[2, :2] = 0  # 4, 9 and 7 tokens
    with torch.no_grad():
        for given in (None, mask):
            together = model(ids, attention_mask=given).logits
            for row, got, real in zip(ids, together, mask.bool() if given is not None else ids >= 0, strict=True):
                close(got[real], model(row[real][None]).logits[0])
        plain = make(rope_parameters={"rope_type": "default", **base})
        assert not torch.allclose(plain(ids).logits, model(ids).logits, atol=1e-3)


def rotary_of(model: Any) -> Any:
    return next(module for module in model.modules() if hasattr(module, "inv_freq"))
