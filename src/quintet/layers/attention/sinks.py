"""Attention sinks on kernels that know nothing of them: a step after the kernel, exact in both directions.

A sink is one key more, with a score of its own and no value (Xiao et al., arXiv 2309.17453; learned in gpt-oss). It
only enlarges the sum under the softmax, so with the log of that sum, lse, which flash kernels return (Dao, arXiv
2307.08691),

    lse' = log(exp(lse) + exp(sink)),  out' = out * exp(lse - lse').

The kernels' backward passes compute the weights anew as exp(score - lse) and use rowsum(grad * out) for the softmax's
own derivative: given out' and lse' in place of out and lse they give the exact gradients of q, k and v. Written with
autograd the two lines above would give wrong ones, silently, as the kernels do not differentiate lse.

Letters: B rows, H query heads, G key/value heads, T queries, K keys, D head size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F

__all__ = ["add_sinks", "lse_kernels", "with_sinks"]

Rule = torch.Tensor | None
# (q, k, v, rule, causal, scale) -> out (B, H, T, D), lse (B, H, T), what backward needs besides
Forward = Callable[
    [torch.Tensor, torch.Tensor, torch.Tensor, Rule, bool, float],
    tuple[torch.Tensor, torch.Tensor, tuple[Any, ...]],
]
# (grad, q, k, v, out, lse, rule, causal, scale, what forward left) -> gradients of q, k, v
Backward = Callable[..., tuple[torch.Tensor, torch.Tensor, torch.Tensor]]


def add_sinks(out: torch.Tensor, lse: torch.Tensor, sink: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return out' (B, H, T, D) and lse' (B, H, T) for a sink that broadcasts to (B, H, T); see the top of the file."""
    whole = torch.logaddexp(lse, sink.to(lse.dtype))
    return (out * torch.exp(lse - whole)[..., None]).to(out.dtype), whole


def with_sinks(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    rule: Rule,
    sink: torch.Tensor,
    *,
    causal: bool,
    scale: float,
) -> torch.Tensor:
    """Attention with sinks by a fused kernel.

    Args:
        q: (B, H, T, D).
        k, v: (B, G, K, D).
        rule: Added to the scores, broadcastable to (B, H, T, K); None for none. It gets no gradient.
        sink: (1, H, T) or (1, H, 1).
        causal: Whether a query sees only the keys up to its own, for T = K.
        scale: Factor of the scores.

    Returns:
        (B, H, T, D).
    """
    pair = lse_kernels(q, masked=rule is not None)
    if pair is None:
        return _extra_column(q, k, v, rule, sink, causal, scale)
    # Direct kernel calls want what torch's own wrapper sees to.
    k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (k, v))
    q = q if q.stride(-1) == 1 else q.contiguous()
    if torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v, sink)):
        result: torch.Tensor = _Sinks.apply(q, k, v, sink, rule, causal, scale, *pair)
        return result
    # Measured for one query of gpt-oss (64 heads over 8 of 64, one core, keys in a cache's slab), this against matmul,
    # softmax over one column more, matmul: 38 and 57 us over 64 keys, 0.32 and 0.44 ms over 1,024, 1.2 and 1.7 ms over
    # 4,096 in bfloat16; 25 and 28 us, 0.26 and 0.27 ms, 1.0 and 1.25 ms in float32.
    out, lse, _ = pair[0](q, k, v, rule, causal, scale)
    return add_sinks(out, lse, sink)[0]


class _Sinks(torch.autograd.Function):
    """The kernel, the step after it, and the kernel's own backward pass fed with the results of that step."""

    @staticmethod
    def forward(
        ctx: Any,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        sink: torch.Tensor,
        rule: Rule,
        causal: bool,
        scale: float,
        run: Forward,
        back: Backward,
    ) -> torch.Tensor:
        out, lse, left = run(q, k, v, rule, causal, scale)
        out, lse = add_sinks(out, lse, sink)
        ctx.save_for_backward(q, k, v, sink, rule, out, lse)
        ctx.rest = (causal, scale, left, back)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        q, k, v, sink, rule, out, lse = ctx.saved_tensors
        causal, scale, left, back = ctx.rest
        grad = grads[0].to(out.dtype)
        dq, dk, dv = back(grad, q, k, v, out, lse, rule, causal, scale, left)
        # d out' / d sink = -exp(sink - lse') * out'
        share = torch.exp(sink.to(lse.dtype) - lse) * (grad.to(lse.dtype) * out).sum(-1)  # (B, H, T)
        return dq, dk, dv, -share.sum_to_size(sink.shape).to(sink.dtype), None, None, None, None, None


def _extra_column(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, rule: Rule, sink: torch.Tensor, causal: bool, scale: float
) -> torch.Tensor:
    """The sink as one key more, of zeros, whose score comes from the mask: exact, with a mask of H x T x (K + 1)."""
    rows, heads, tokens, _ = q.shape
    keys = k.shape[2]
    if rule is None:
        rule = torch.zeros(1, 1, tokens, keys, dtype=q.dtype, device=q.device)
        if causal:
            rule = rule.masked_fill(torch.ones(tokens, keys, device=q.device, dtype=torch.bool).triu(1), -torch.inf)
    column = sink.to(q.dtype).expand(1, heads, tokens)[..., None]  # (1, H, T, 1)
    rule = torch.cat([rule.expand(-1, heads, tokens, keys), column.expand(rule.shape[0], -1, -1, -1)], dim=-1)
    k, v = (F.pad(x, (0, 0, 0, 1)) for x in (k, v))  # (B, G, K + 1, D)
    grouped: dict[str, bool] = {"enable_gqa": True} if heads != k.shape[1] else {}
    return F.scaled_dot_product_attention(q, k, v, attn_mask=rule, scale=scale, **grouped)


# -- the kernels that return lse, by device: torch has a forward and a backward for each -------------------------------


def _cpu_forward(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, rule: Rule, causal: bool, scale: float
) -> tuple[torch.Tensor, torch.Tensor, tuple[Any, ...]]:
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        q, k, v, 0.0, causal, attn_mask=rule, scale=scale
    )
    return out, lse, ()


def _cpu_backward(
    grad: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    rule: Rule,
    causal: bool,
    scale: float,
    left: tuple[Any, ...],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    dq, dk, dv = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
        grad, q, k, v, out, lse, 0.0, causal, attn_mask=rule, scale=scale
    )
    return dq, dk, dv


def _flash_forward(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, rule: Rule, causal: bool, scale: float
) -> tuple[torch.Tensor, torch.Tensor, tuple[Any, ...]]:
    out, lse, *left, _ = torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, 0.0, causal, False, scale=scale)
    return out, lse, tuple(left)


def _flash_backward(
    grad: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    rule: Rule,
    causal: bool,
    scale: float,
    left: tuple[Any, ...],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    starts_q, starts_k, most_q, most_k, seed, place = left
    dq, dk, dv = torch.ops.aten._scaled_dot_product_flash_attention_backward(
        *(grad, q, k, v, out, lse, starts_q, starts_k, most_q, most_k, 0.0, causal, seed, place), scale=scale
    )
    return dq, dk, dv


def lse_kernels(q: torch.Tensor, *, masked: bool) -> tuple[Forward, Backward] | None:
    """The kernels for queries like these that return the log-sum-exp, or None."""
    if q.device.type == "cpu" and hasattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu"):
        return _cpu_forward, _cpu_backward
    if q.device.type == "cuda" and not masked:
        half = q.dtype in (torch.float16, torch.bfloat16)
        if half and q.shape[-1] % 8 == 0 and q.shape[-1] <= 256:
            return _flash_forward, _flash_backward
    return None
