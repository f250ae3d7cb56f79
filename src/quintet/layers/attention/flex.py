"""Attention by torch's flex_attention, which compiles a kernel for the rule: for GPUs; on a CPU it is a check.

Letters: B rows, H query heads, G key/value heads, T new tokens, K keys, D head size.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch

from quintet.layers.attention.eager import Output
from quintet.layers.attention.limits import refusal
from quintet.layers.attention.sinks import add_sinks
from quintet.layers.masks import MaskSpec

__all__ = ["flex"]

NAME = "flex_attention"


def flex(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: MaskSpec,
    *,
    scale: float,
    dropout: float,
    upcast: bool,
    sinks: torch.Tensor | None,
) -> Output:
    """Attention by flex_attention; a function of the elements cannot see a row, so sinks are the step after it.

    Raises:
        ConfigError: dropout, or gradients on a CPU, for which torch has no kernel.
    """
    if dropout:
        raise refusal(NAME, "attention dropout", dropout)
    if q.is_meta:  # tensors without values, which torch's function does not take: only shapes count
        return torch.empty_like(q, memory_format=torch.contiguous_format), None
    if q.device.type == "cpu":
        leaves = [x for x in (q, k, v, sinks, mask.given) if x is not None]
        if torch.is_grad_enabled() and any(x.requires_grad for x in leaves):
            raise refusal(NAME, "gradients on this device", "cpu; for a forward pass alone use torch.no_grad()")
        q, k, v = q.detach(), k.detach(), v.detach()  # torch refuses even when no gradients are on
    if mask.given is not None and mask.given.requires_grad:
        raise refusal(NAME, "gradients of a float attention_mask")
    options: dict[str, Any] = {"scale": scale, "enable_gqa": q.shape[1] != k.shape[1]}
    bias = mask.bias(q.dtype, q.device)
    if bias is not None:
        options["score_mod"] = _added(bias.expand(q.shape[0], q.shape[1], q.shape[2], k.shape[2]))
    elif not mask.everything:
        options["block_mask"] = mask.once((NAME, q.device), lambda: _block_mask(mask, q))
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    # Compiled where that is the point of it, but not within a program that is being compiled.
    function = _function(compiled=q.device.type != "cpu" and not torch.compiler.is_compiling())
    if sinks is None:
        return function(q, k, v, **options), None
    out, lse = _with_lse(function, q, k, v, options)
    return add_sinks(out, lse, sinks.view(1, -1, 1))[0], None


@cache
def _function(compiled: bool) -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import flex_attention

    function: Callable[..., Any] = flex_attention
    return torch.compile(function) if compiled else function


def _with_lse(
    function: Callable[..., Any], q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, options: dict[str, Any]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Call it for the output and the natural log of the sum; newer versions of torch ask for it in another way."""
    from torch.nn.attention import flex_attention as module

    if hasattr(module, "AuxRequest"):
        out, rest = function(q, k, v, return_aux=module.AuxRequest(lse=True), **options)
        return out, rest.lse
    out, lse = function(q, k, v, return_lse=True, **options)
    return out, lse


def _added(bias: torch.Tensor) -> Callable[..., torch.Tensor]:
    """The caller's float mask (B, H, T, K) as a change of scores."""

    def change(
        score: torch.Tensor, row: torch.Tensor, head: torch.Tensor, query: torch.Tensor, key: torch.Tensor
    ) -> torch.Tensor:
        return score + bias[row, head, query, key]

    return change


def _block_mask(mask: MaskSpec, q: torch.Tensor) -> Any:
    """The rule in the form that lets the kernel pass over blocks of keys that nobody sees."""
    from torch.nn.attention.flex_attention import create_block_mask

    device = q.device
    if mask.given is not None or not mask.causal:
        rule = mask.boolean(device)  # (B or 1, H or 1, T or 1, K)
        rows, heads = (None if size == 1 else size for size in rule.shape[:2])
        rule = rule.expand(q.shape[0], q.shape[1], mask.queries, mask.keys)

        def sees(row: torch.Tensor, head: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
            return rule[row, head, query, key]

    else:
        rows, heads = None if mask.padding is None else q.shape[0], None
        sees = _by_place(mask, device)
    return create_block_mask(sees, rows, heads, mask.queries, mask.keys, device=str(device))


def _by_place(mask: MaskSpec, device: torch.device) -> Callable[..., torch.Tensor]:
    """Causality, window and padding as a function of places, with nothing of the size T x K behind it.

    The slots are tensors and not numbers: a compiled kernel is then one for all lengths of a conversation.
    """
    past, offset = (torch.as_tensor(x, device=device) for x in (mask.past, mask.offset))
    window = mask.window
    shown = seen = None
    if mask.padding is not None:
        shown = mask.real_keys(device)  # (B, K)
        place = torch.arange(mask.queries, device=device) + past - offset  # (T,) the key that is the query's own
        low = torch.zeros_like(place) if window is None else (place - window + 1).clamp(min=0)
        counts = torch.nn.functional.pad(shown.cumsum(-1), (1, 0))  # (B, K + 1)
        seen = counts[:, place + 1] > counts[:, low]  # (B, T) whether the query sees any key

    def sees(row: torch.Tensor, head: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        own, slot = query + past, key + offset
        rule = (slot <= own) & (slot >= 0)
        if window is not None:
            rule = rule & (own - slot < window)
        if shown is None or seen is None:
            return rule
        return (rule & shown[row, key]) | (~seen[row, query] & (own == slot))

    return sees
