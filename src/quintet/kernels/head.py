"""The output head, `quintet::head_topk`: the best of all logits and their log-sum-exp, without the row of all of them.

The logits are those of the product alone, rounded to the type of x. NaN is above all numbers; of equal logits the
lowest token comes first. Neither threads nor other rows change a bit.

Letters: V outputs (the vocabulary), G groups of inputs that share a scale.
"""

from __future__ import annotations

import torch

from quintet.errors import InputError
from quintet.kernels.integers import int4_linear_reference, int8_linear_reference, native_layout
from quintet.kernels.linear import TYPES, check_bias, linear_reference, whole_bias
from quintet.kernels.loader import FEW_ROWS, check, library
from quintet.kernels.packing import WORD

__all__ = ["MOST_WANTED", "head_topk", "head_topk_reference", "native_head_topk"]

# More than so many are looked for by torch.
MOST_WANTED = 1024
# Bits of a packed weight, by the type that it is stored in.
BITS = {torch.int8: 8, torch.int32: 4}

Found = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def native_head_topk(
    x: torch.Tensor,
    weight: torch.Tensor,
    k: int,
    scale: torch.Tensor | None = None,
    zero_point: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    log_sum: bool = True,
) -> Found | None:
    """Return `head_topk` by the native kernel, or None where it does not take it.

    For inference: no gradient flows, and no dispatcher is asked. It takes up to 8 rows and 1024 tokens.

    Args:
        x, weight, k, scale, zero_point, bias: See `head_topk`.
        log_sum: Compute the log-sum-exp too; otherwise it is an empty tensor.
    """
    native, kind = library(), TYPES.get(x.dtype)
    if native is None or kind is None or x.dim() == 0 or not x.is_cpu or weight.dim() != 2 or not weight.is_cpu:
        return None
    inputs, outputs, bits = x.shape[-1], weight.shape[0], BITS.get(weight.dtype, 0)
    rows = x.numel() // inputs if inputs else 0
    if not 0 < rows <= FEW_ROWS or not 0 < k <= min(outputs, MOST_WANTED) or weight.stride(1) != 1:
        return None
    if not bits and (weight.dtype != x.dtype or weight.shape[1] != inputs):
        return None
    layout: tuple[int, int, int | None, int | None] | None = (0, inputs, None, None)
    if bits:
        layout = None if scale is None else native_layout(bits, inputs, weight, scale, zero_point)
    if layout is None:
        return None
    added = whole_bias(bias, x.dtype, outputs)
    if added is None:
        return None
    x = x.contiguous()
    scale_kind, group, scales, zeros = layout
    values, tokens = torch.empty((*x.shape[:-1], k)), torch.empty((*x.shape[:-1], k), dtype=torch.int64)
    sums = torch.empty(x.shape[:-1] if log_sum else 0)
    check(
        native.quintet_head_topk(
            *(bits, kind, scale_kind, rows, inputs, outputs, group, weight.data_ptr(), weight.stride(0), scales, zeros),
            *(x.data_ptr(), inputs, added[1], k, values.data_ptr(), tokens.data_ptr()),
            *(sums.data_ptr() if log_sum else None, torch.get_num_threads()),
        )
    )
    return values, tokens, sums


def head_topk_reference(
    x: torch.Tensor,
    weight: torch.Tensor,
    k: int,
    scale: torch.Tensor | None = None,
    zero_point: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
) -> Found:
    """The same in plain PyTorch."""
    if scale is None:
        logits = linear_reference(x, weight, bias)
    elif weight.dtype == torch.int8:
        logits = int8_linear_reference(x, weight, scale, bias)
    else:
        logits = int4_linear_reference(x, weight, scale, zero_point, bias)
    logits = logits.float()  # (..., V)
    values, tokens = logits.sort(dim=-1, descending=True, stable=True)
    return values[..., :k].contiguous(), tokens[..., :k].contiguous(), logits.logsumexp(dim=-1)


def _check(
    x: torch.Tensor,
    weight: torch.Tensor,
    k: int,
    scale: torch.Tensor | None,
    zero_point: torch.Tensor | None,
    bias: torch.Tensor | None,
) -> None:
    bits = BITS.get(weight.dtype, 0)
    if bool(bits) != (scale is not None):
        raise InputError(
            f"head_topk: a weight of {weight.dtype} with{'out' if scale is None else ''} scales. Packed weights (int8, "
            "or int32 for 4 bits) come with scales, others without."
        )
    inputs = weight.shape[1] * (WORD if bits == 4 else 1) if weight.dim() == 2 else -1
    if x.dim() == 0 or x.shape[-1] != inputs:
        raise InputError(
            f"head_topk: x of shape {list(x.shape)} and a weight of shape {list(weight.shape)} do not fit: the weight "
            "must be (out, in), packed or not, and x (..., in)."
        )
    if not 1 <= k <= weight.shape[0]:
        raise InputError(f"head_topk: k is {k} and must be from 1 to {weight.shape[0]}, the number of outputs.")
    if zero_point is not None and bits != 4:
        raise InputError("head_topk: zero_point belongs to weights of 4 bits. Leave it out.")
    check_bias("head_topk", bias, weight.shape[0])


@torch.library.custom_op("quintet::head_topk", mutates_args=())
def head_topk(
    x: torch.Tensor,
    weight: torch.Tensor,
    k: int,
    scale: torch.Tensor | None = None,
    zero_point: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the k largest of `x @ W.T + bias`, which they are, and the log-sum-exp of all.

    Args:
        x: (..., in).
        weight: (V, in) of x's type; int8; or int32 for 4 bits, (V, in / 8), as `int8_linear` and `int4_linear` take it.
        k: How many, 1 to V.
        scale: (V, G) of packed weights, for 8 bits also (V,).
        zero_point: (ceil(V / 8), G) int32 for 4 bits; None for symmetric weights.
        bias: (V,) or None.

    Returns:
        (..., k) logits in float32, best first; (..., k) tokens, int64, of equal logits the lowest first; (...)
        log(sum(exp(logits))) over all V, float32.

    Raises:
        InputError: shapes or types that do not belong together.
    """
    _check(x, weight, k, scale, zero_point, bias)
    found = native_head_topk(x, weight, k, scale, zero_point, bias)
    return head_topk_reference(x, weight, k, scale, zero_point, bias) if found is None else found


@head_topk.register_fake
def _(
    x: torch.Tensor,
    weight: torch.Tensor,
    k: int,
    scale: torch.Tensor | None = None,
    zero_point: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    _check(x, weight, k, scale, zero_point, bias)
    shape, wide = x.shape[:-1], torch.float32
    return (
        x.new_empty((*shape, k), dtype=wide),
        x.new_empty((*shape, k), dtype=torch.int64),
        x.new_empty(shape, dtype=wide),
    )
