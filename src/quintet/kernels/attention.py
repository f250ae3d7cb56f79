"""Attention over stored keys and values: `quintet::attention`.

For a prompt in blocks of queries and keys with a running maximum and sum, so that no memory grows with both lengths,
and blocks that no query sees are left out; for a few tokens over the keys where they are, in pieces for all threads.
Products are added up in float32. A row's result depends neither on its batch nor on the number of threads.

Letters: B rows, H query heads, G key/value heads (H is a multiple of G), T new tokens, S keys, D head size.
"""

from __future__ import annotations

import ctypes

import torch

from quintet.errors import InputError
from quintet.kernels.linear import TYPES
from quintet.kernels.loader import check, library, status

__all__ = ["attention", "attention_reference", "native_attention", "pays"]

# Up to so many new tokens keys are read where they are, which is faster than torch at every level.
FEW_TOKENS = 4
# From so many rows, the heads of a group for each token, blocks pay, and at which levels. Measured on 2 cores against
# torch's fused kernel: 0.5 to 1.5 times as fast below, 1.4 to 6 times above; `portable` is slower.
MANY_ROWS = 24
MANY_LEVELS = ("amx", "avx512", "avx2")

_int, _long, _pointer = ctypes.c_int32, ctypes.c_int64, ctypes.c_void_p


class _Call(ctypes.Structure):
    """As `AttentionCall` in csrc/cpu/attention.h."""

    _fields_ = [
        *((name, _int) for name in ("type", "sinks_type")),
        *((name, _long) for name in ("texts", "heads", "groups", "tokens", "keys", "head")),
        *((name, _pointer) for name in ("queries", "stored", "values", "out")),
        *((f"{name}_strides", _long * 3) for name in ("query", "key", "value", "out")),
        *((name, _long) for name in ("past", "window", "causal")),
        *(("scale", ctypes.c_double), ("padding", _pointer), ("padding_stride", _long), ("sinks", _pointer)),
        ("threads", _long),
    ]


def _empty(q: torch.Tensor) -> torch.Tensor:
    """Room for the result: (B, H, T, D), in memory (B, T, H, D), as what follows reads it."""
    rows, heads, tokens, size = q.shape
    return q.new_empty(rows, tokens, heads, size).transpose(1, 2)


def pays(q: torch.Tensor, k: torch.Tensor) -> bool:
    """Whether the native kernel is the fastest for queries (B, H, T, D) and keys (B, G, S, D) like these."""
    if q.shape[2] <= FEW_TOKENS:
        return library() is not None
    return q.shape[2] * (q.shape[1] // max(1, k.shape[1])) >= MANY_ROWS and status().level in MANY_LEVELS


def native_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    scale: float,
    causal: bool = True,
    window: int | None = None,
    padding: torch.Tensor | None = None,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor | None:
    """Return `attention` by the native kernel, or None where it does not take it.

    For inference: no gradient flows, and no dispatcher is asked. It takes float32, bfloat16 and float16 on a CPU, any
    strides but of the numbers of a head, which must be in one piece, and no padding without causality.
    """
    native, kind = library(), TYPES.get(q.dtype)
    if native is None or kind is None or not q.is_cpu or not scale > 0:
        return None
    if not _fit(q, k, v) or k.dtype != q.dtype or v.dtype != q.dtype or not q.numel() or not k.numel():
        return None
    if q.stride(3) != 1 or k.stride(3) != 1 or v.stride(3) != 1 or not k.is_cpu or not v.is_cpu:
        return None
    rows, heads, tokens, size = q.shape
    groups, keys = k.shape[1:3]
    if causal and tokens > keys or (not causal and (window is not None or padding is not None)):
        return None
    call = _Call(kind, 0, rows, heads, groups, tokens, keys, size, q.data_ptr(), k.data_ptr(), v.data_ptr())
    call.past, call.window, call.causal, call.scale = keys - tokens if causal else 0, window or 0, causal, scale
    if padding is not None:
        if padding.dtype != torch.bool or padding.shape != (rows, keys) or not padding.is_cpu:
            return None
        padding = padding if padding.stride(1) == 1 else padding.contiguous()
        call.padding, call.padding_stride = padding.data_ptr(), padding.stride(0)
    if sinks is not None:
        if sinks.dtype not in TYPES or sinks.shape != (heads,) or not sinks.is_cpu:
            return None
        sinks = sinks.contiguous()
        call.sinks, call.sinks_type = sinks.data_ptr(), TYPES[sinks.dtype]
    out = _empty(q)
    call.out, call.threads = out.data_ptr(), torch.get_num_threads()
    call.query_strides[:], call.key_strides[:] = q.stride()[:3], k.stride()[:3]
    call.value_strides[:], call.out_strides[:] = v.stride()[:3], out.stride()[:3]
    check(native.quintet_attention(ctypes.byref(call)))
    return out


def attention_reference(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    scale: float,
    causal: bool = True,
    window: int | None = None,
    padding: torch.Tensor | None = None,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """The same in plain PyTorch, in float32 (float64 for float64), rounded once."""
    wide = torch.promote_types(q.dtype, torch.float32)
    rows, heads, tokens, size = q.shape
    keys, repeated = k.shape[2], heads // k.shape[1]
    k, v = (x.to(wide).repeat_interleave(repeated, dim=1) for x in (k, v))  # (B, G, S, D) -> (B, H, S, D)
    scores = q.to(wide) @ k.transpose(-1, -2) * scale  # (B, H, T, S)
    own = torch.arange(keys - tokens, keys, device=q.device)[:, None]  # (T, 1): the place of a query's own key
    place = torch.arange(keys, device=q.device)  # (S,)
    seen = (place <= own if causal else torch.ones_like(place <= own))[None, None]  # (1, 1, T, S)
    if window is not None:
        seen = seen & (own - place < window)
    if padding is not None:
        seen = seen & padding[:, None, None, :]  # (B, 1, T, S)
    seen = seen | (~seen.any(-1, keepdim=True) & ((place == own) | (not causal)))
    scores = scores.masked_fill(~seen, -torch.inf)
    if sinks is not None:
        column = sinks.to(wide).view(1, heads, 1, 1).expand(rows, -1, tokens, 1)  # (H,) -> (B, H, T, 1)
        scores = torch.cat([scores, column], dim=-1)
    weights = scores.softmax(-1)[..., :keys]
    return _empty(q).copy_(weights @ v)


def _fit(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> bool:
    if q.dim() != 4 or k.dim() != 4 or k.shape != v.shape or not k.shape[1]:
        return False
    return q.shape[0] == k.shape[0] and q.shape[3] == k.shape[3] and q.shape[1] % k.shape[1] == 0


def _check(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    scale: float,
    causal: bool,
    window: int | None,
    padding: torch.Tensor | None,
    sinks: torch.Tensor | None,
) -> None:
    if not _fit(q, k, v) or not q.is_floating_point():
        raise InputError(
            f"attention: queries of shape {list(q.shape)} and {q.dtype}, keys of {list(k.shape)} and values of "
            f"{list(v.shape)} do not fit: pass (B, H, T, D), (B, G, S, D) and (B, G, S, D) of a float type, H a "
            "multiple of G."
        )
    if k.dtype != q.dtype or v.dtype != q.dtype:
        raise InputError(f"attention: queries of {q.dtype}, keys of {k.dtype}, values of {v.dtype}. Pass one type.")
    rows, heads, tokens, _ = q.shape
    keys = k.shape[2]
    if causal and tokens > keys:
        raise InputError(
            f"attention: {tokens} queries for {keys} keys. The last keys are those of the queries: pass at least as "
            "many, or causal=False."
        )
    if window is not None and (window < 1 or not causal):
        raise InputError(f"attention: window={window} with causal={causal}. Pass 1 or more with causal=True, or None.")
    if padding is not None and (padding.dtype != torch.bool or padding.shape != (rows, keys)):
        raise InputError(
            f"attention: padding of shape {list(padding.shape)} and {padding.dtype}. Pass [{rows}, {keys}] of bool, "
            "True for keys that may be seen."
        )
    if sinks is not None and (sinks.shape != (heads,) or not sinks.is_floating_point()):
        raise InputError(
            f"attention: sinks of shape {list(sinks.shape)} and {sinks.dtype} for {heads} heads. Pass one float each."
        )


@torch.library.custom_op("quintet::attention", mutates_args=())
def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    scale: float,
    causal: bool = True,
    window: int | None = None,
    padding: torch.Tensor | None = None,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return softmax(q k^T * scale) v over the keys that each query sees.

    Args:
        q: (B, H, T, D).
        k, v: (B, G, S, D); query head h uses key/value head h * G // H.
        scale: Factor of the scores.
        causal: The last T keys are those of the queries, and a query sees its own and those before it; else all.
        window: Keys that a query sees, its own included; None for all.
        padding: (B, S) bool, True for keys that may be seen; None for all. A query that would see none sees its own
            (all without causality).
        sinks: (H,) scores of one key more that every query sees and that has no value; None for none.

    Returns:
        (B, H, T, D), in memory (B, T, H, D). No gradient flows.

    Raises:
        InputError: shapes, types or options that do not belong together.
    """
    _check(q, k, v, scale, causal, window, padding, sinks)
    out = native_attention(q, k, v, scale, causal, window, padding, sinks)
    return attention_reference(q, k, v, scale, causal, window, padding, sinks) if out is None else out


@attention.register_fake
def _(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    scale: float,
    causal: bool = True,
    window: int | None = None,
    padding: torch.Tensor | None = None,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    _check(q, k, v, scale, causal, window, padding, sinks)
    return _empty(q)
