"""Attention by the flash-attn packages, where they are installed (Dao, 2307.08691; Shah et al., 2407.08608).

Letters: B rows, H query heads, G key/value heads, T new tokens, K keys, D head size, N real tokens of all rows.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch

from quintet.layers.attention.eager import Output
from quintet.layers.attention.limits import refusal
from quintet.layers.attention.sinks import add_sinks
from quintet.layers.masks import MaskSpec

__all__ = ["MODULES", "flash_attention_2", "flash_attention_3", "missing"]

# Name of the backend: the module that it needs, and the package that has it.
MODULES = {
    "flash_attention_2": ("flash_attn", "flash-attn"),
    "flash_attention_3": ("flash_attn_interface", "flash-attn-3"),
}


def missing(name: str) -> str | None:
    """What a backend of `MODULES` lacks on this machine, in words; None for nothing."""
    module, package = MODULES[name]
    if not _installed(module):
        return f"the package {package} (module {module}) is not installed"
    return None if torch.cuda.is_available() else "torch sees no GPU"


@cache
def _installed(module: str) -> bool:
    return find_spec(module) is not None


def flash_attention_2(
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
    """Attention by flash-attn 2.

    Raises:
        ConfigError: something that it cannot do, see `limits.ABLE`.
    """
    _check("flash_attention_2", q, k, v, mask, sinks)
    return _flash("flash_attention_2", q, k, v, mask, scale, {"dropout_p": dropout}, sinks), None


def flash_attention_3(
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
    """Attention by flash-attn 3, for Hopper GPUs.

    Raises:
        ConfigError: something that it cannot do, see `limits.ABLE`.
    """
    if dropout:
        raise refusal("flash_attention_3", "attention dropout", dropout)
    _check("flash_attention_3", q, k, v, mask, sinks)
    return _flash("flash_attention_3", q, k, v, mask, scale, {}, sinks), None


def _check(
    name: str, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: MaskSpec, sinks: torch.Tensor | None
) -> None:
    """Raise for what the packages cannot do."""
    if not _on_gpu(q):
        raise refusal(name, "tensors outside a GPU", q.device)
    if q.dtype not in (torch.float16, torch.bfloat16):
        raise refusal(name, "other dtypes than float16 and bfloat16", q.dtype)
    if mask.given is not None:
        raise refusal(name, "a 4-D attention_mask")
    if isinstance(mask.past, torch.Tensor):
        raise refusal(name, "a cache of fixed shape")
    if sinks is not None and torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v, sinks)):
        raise refusal(name, "gradients through attention sinks")


def _on_gpu(q: torch.Tensor) -> bool:
    return q.device.type == "cuda"


def _flash(
    name: str,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: MaskSpec,
    scale: float,
    options: dict[str, Any],
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """Run the package's function, over the real tokens only when there is padding: (B, H, T, D)."""
    options |= {"softmax_scale": scale, "causal": mask.causal}
    if mask.window is not None:
        options["window_size"] = (mask.window - 1, 0)  # keys before the query's own and after it
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # (B, T or K, H or G, D)
    if mask.padding is not None:
        return _over_real(name, q, k, v, mask, options, sinks).transpose(1, 2)
    # With fewer queries than keys both packages stand the last query at the last key, as a cache wants it.
    out, lse = _call(_functions(name)[0], q, k, v, options, sinks is not None)
    if sinks is not None:
        out = _after(out, lse[..., : q.shape[1]].transpose(1, 2), sinks)  # lse (B, H, T) -> (B, T, H)
    return out.transpose(1, 2)  # (B, H, T, D)


def _after(out: torch.Tensor, lse: torch.Tensor, sinks: torch.Tensor) -> torch.Tensor:
    """The sinks' step for (..., H, D) and (..., H)."""
    return add_sinks(out, lse, sinks)[0]


@cache
def _functions(name: str) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """The published functions: for rows of one length, and for rows of their own lengths, packed."""
    if name == "flash_attention_2":
        module = import_module("flash_attn")
    else:
        module = import_module("flash_attn_interface")
    return module.flash_attn_func, module.flash_attn_varlen_func


def _call(function: Callable[..., Any], *given: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Call with the log of the softmax's sum when it is wanted; some versions return it always."""
    *tensors, options, wants_lse = given
    if wants_lse and "return_attn_probs" in inspect.signature(function).parameters:
        options = {**options, "return_attn_probs": True}
    result = function(*tensors, **options)
    return (result[0], result[1]) if isinstance(result, tuple) else (result, result)


def _over_real(
    name: str,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: MaskSpec,
    options: dict[str, Any],
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """Pack the real tokens of all rows, attend, and put the results back among zeros: (B, T, H, D).

    A real query sees itself and the real tokens before it, so in a packed row the last query still stands at the last
    key. Distances survive the packing only where no padding stands between real tokens; windows need that.
    """
    rows, tokens = q.shape[:2]
    real = mask.real_keys(q.device)  # (B, K)
    asks = real[:, -tokens:] if mask.causal else torch.ones(rows, tokens, dtype=torch.bool, device=q.device)  # (B, T)
    if mask.window is not None and bool((real[:, 1:] & ~real[:, :-1]).sum(-1).add(real[:, 0].int()).gt(1).any()):
        raise refusal(name, "padding between the tokens of sliding layers")
    lengths: list[Any] = []
    for which in (asks, real):
        counts = which.sum(-1)
        starts = torch.nn.functional.pad(counts.cumsum(0), (1, 0)).to(torch.int32)  # (B + 1,)
        lengths.append((starts, int(counts.max())))
    (starts_q, most_q), (starts_k, most_k) = lengths
    packed = (q[asks], k[real], v[real], starts_q, starts_k, most_q, most_k)  # (N, H or G, D) of the real ones
    got, lse = _call(_functions(name)[1], *packed, options, sinks is not None)
    if sinks is not None:
        got = _after(got, lse.transpose(0, 1), sinks)  # lse (H, N) -> (N, H)
    out = q.new_zeros(q.shape)
    out[asks] = got
    return out
