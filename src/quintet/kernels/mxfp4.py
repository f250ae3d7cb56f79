"""Weights in MXFP4 times few rows, in the layout they are published in: `quintet::mxfp4_matvec`, `mxfp4_experts`.

Weights are (out, G, 16) bytes of elements, two in each, the low half first, and (out, G) bytes of scales, G = in / 32;
with experts one more dimension in front. What the bytes mean is told in `quant.mxfp4`. Weights are exact, and sums are
in float32; activations stay as they are, or, with `activations="int8"`, are rounded as in `kernels.integers`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from quintet.errors import InputError
from quintet.kernels.integers import ACTIVATIONS, check_activations, round_activations
from quintet.kernels.linear import TYPES, check_bias, whole_bias
from quintet.kernels.loader import check, library

__all__ = [
    "mxfp4_experts",
    "mxfp4_experts_reference",
    "mxfp4_matvec",
    "mxfp4_matvec_reference",
    "native_mxfp4_experts",
    "native_mxfp4_matvec",
]

GROUP = 32
_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)


def _is_bytes(tensor: torch.Tensor, shape: tuple[int, ...]) -> bool:
    """Whether this is what a kernel reads: bytes in one piece on the CPU, as many as the shape says."""
    return tensor.dtype == torch.uint8 and tensor.shape == shape and tensor.is_contiguous() and tensor.is_cpu


def native_mxfp4_matvec(
    x: torch.Tensor,
    blocks: torch.Tensor,
    scales: torch.Tensor,
    bias: torch.Tensor | None = None,
    activations: str = "bf16",
) -> torch.Tensor | None:
    """Return `x @ W.T + bias` by the native kernel, or None where it does not take it.

    Args:
        x: (n, in).
        blocks: (out, G, 16) uint8.
        scales: (out, G) uint8.
        bias: (out,) or None.
        activations: One of `integers.ACTIVATIONS`.

    Returns:
        (n, out), or None.
    """
    kind = TYPES.get(x.dtype)
    native = library()
    if native is None or kind is None or scales.dim() != 2 or x.dim() != 2 or not x.is_cpu:
        return None
    outputs, groups = scales.shape
    rows, inputs = x.shape
    if not rows or inputs != groups * GROUP or not inputs:
        return None
    if not _is_bytes(blocks, (outputs, groups, GROUP // 2)) or not _is_bytes(scales, (outputs, groups)):
        return None
    added = whole_bias(bias, x.dtype, outputs)
    if added is None:
        return None
    x = x.contiguous()
    out = torch.empty(rows, outputs, dtype=x.dtype)
    check(
        native.quintet_mxfp4_matvec(
            *(kind, ACTIVATIONS.index(activations), rows, groups, outputs, blocks.data_ptr(), scales.data_ptr()),
            *(x.data_ptr(), inputs, added[1], out.data_ptr(), torch.get_num_threads()),
        )
    )
    return out


def _unpacked(blocks: torch.Tensor, scales: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The numbers of packed rows, (..., 32 G)."""
    table = torch.tensor(_VALUES, dtype=dtype, device=blocks.device)
    values = torch.stack([table[(blocks & 15).int()], table[(blocks >> 4).int()]], dim=-1).flatten(-2)  # (..., G, 32)
    powers = torch.exp2(scales.double() - 127)
    powers = torch.where(scales == 255, torch.nan, powers).to(dtype)
    return (values * powers[..., None]).flatten(-2)


def mxfp4_matvec_reference(
    x: torch.Tensor,
    blocks: torch.Tensor,
    scales: torch.Tensor,
    bias: torch.Tensor | None = None,
    activations: str = "bf16",
) -> torch.Tensor:
    """The same in plain PyTorch: sums in float32 (float64 for float64), rounded once."""
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    given = round_activations(x) if activations == "int8" else x
    out = given.to(wide) @ _unpacked(blocks, scales, wide).t()
    return (out if bias is None else out + bias.to(wide)).to(x.dtype)


def _check_packed(name: str, blocks: torch.Tensor, scales: torch.Tensor, inputs: int) -> None:
    if blocks.dtype != torch.uint8 or scales.dtype != torch.uint8:
        raise InputError(f"{name}: packed weights of {blocks.dtype} and scales of {scales.dtype}; both must be uint8.")
    if blocks.shape != (*scales.shape, GROUP // 2) or scales.shape[-1] * GROUP != inputs:
        raise InputError(
            f"{name}: blocks of shape {list(blocks.shape)} and scales of shape {list(scales.shape)} for {inputs} "
            f"inputs. Scales must be (..., out, {inputs} / {GROUP}), and blocks have a last dimension of 16 more."
        )


def _check_matvec(
    x: torch.Tensor, blocks: torch.Tensor, scales: torch.Tensor, bias: torch.Tensor | None, activations: str
) -> None:
    check_activations("mxfp4_matvec", activations)
    if x.dim() != 2 or scales.dim() != 2:
        raise InputError(
            f"mxfp4_matvec: x of shape {list(x.shape)} and scales of shape {list(scales.shape)}; "
            "pass (n, in) and (out, G)."
        )
    _check_packed("mxfp4_matvec", blocks, scales, x.shape[1])
    check_bias("mxfp4_matvec", bias, scales.shape[0])


@torch.library.custom_op("quintet::mxfp4_matvec", mutates_args=())
def mxfp4_matvec(
    x: torch.Tensor,
    blocks: torch.Tensor,
    scales: torch.Tensor,
    bias: torch.Tensor | None = None,
    activations: str = "bf16",
) -> torch.Tensor:
    """Return `x @ W.T + bias` for a packed W, natively for few rows on a CPU.

    Args:
        x: (n, in).
        blocks: (out, G, 16) uint8.
        scales: (out, G) uint8.
        bias: (out,) or None.
        activations: "bf16": x in its own type. "int8": x rounded to 8 bits in groups of 32.

    Returns:
        (n, out).

    Raises:
        InputError: shapes or types that do not belong together.
    """
    _check_matvec(x, blocks, scales, bias, activations)
    out = native_mxfp4_matvec(x, blocks, scales, bias, activations)
    return mxfp4_matvec_reference(x, blocks, scales, bias, activations) if out is None else out


@mxfp4_matvec.register_fake
def _(
    x: torch.Tensor,
    blocks: torch.Tensor,
    scales: torch.Tensor,
    bias: torch.Tensor | None = None,
    activations: str = "bf16",
) -> torch.Tensor:
    _check_matvec(x, blocks, scales, bias, activations)
    return x.new_empty(x.shape[0], scales.shape[0])


# ---- routed experts --------------------------------------------------------------------------------------------------


def native_mxfp4_experts(
    x: torch.Tensor,
    indices: torch.Tensor,
    weights: torch.Tensor,
    stacks: Sequence[torch.Tensor],
    alpha: float,
    limit: float,
    activations: str = "bf16",
) -> torch.Tensor | None:
    """Return the weighted sum of what each row's experts say, by the native kernel, or None where it does not take it.

    Args:
        x: (n, D); rows that ask the same expert are computed together.
        indices: (n, k) experts of each row.
        weights: (n, k) their weights.
        stacks: Blocks (E, 2F, D / 32, 16), scales (E, 2F, D / 32) and biases (E, 2F) of gate and up, which stand in
            turn; the same of down: (E, D, F / 32, 16), (E, D, F / 32), (E, D).
        alpha: Steepness of the sigmoid.
        limit: The gate is cut off above it, up on both sides.
        activations: "int8" rounds what both weights are multiplied with.

    Returns:
        (n, D), or None.

    Raises:
        IndexError: an expert that there is none of.
    """
    native = library()
    kind = TYPES.get(x.dtype)
    gate_up, gate_up_scales, gate_up_bias, down, down_scales, down_bias = stacks
    if native is None or kind is None or x.dim() != 2 or not x.is_cpu or not len(x):
        return None
    rows, hidden = x.shape
    experts, _, inner_groups = down_scales.shape
    inner = inner_groups * GROUP
    shape, down_shape = (experts, 2 * inner, hidden // GROUP), (experts, hidden, inner_groups)
    if hidden % GROUP or not hidden or not inner:
        return None
    if not _is_bytes(gate_up, (*shape, GROUP // 2)) or not _is_bytes(gate_up_scales, shape):
        return None
    if not _is_bytes(down, (*down_shape, GROUP // 2)) or not _is_bytes(down_scales, down_shape):
        return None
    for bias, wanted in ((gate_up_bias, shape[:2]), (down_bias, down_shape[:2])):
        if bias.dtype != x.dtype or bias.shape != wanted or not bias.is_contiguous() or not bias.is_cpu:
            return None
    if indices.shape != weights.shape or indices.dim() != 2 or indices.shape[0] != rows or not indices.is_cpu:
        return None
    # the sum goes by rising experts, as the plain one's
    chosen, order = indices.long().sort(dim=1)
    shares = weights.float().gather(1, order).contiguous()
    if chosen.numel() and not 0 <= int(chosen.min()) <= int(chosen.max()) < experts:
        raise IndexError(f"experts {chosen.tolist()} are asked for, and there are {experts}")
    x, chosen = x.contiguous(), chosen.contiguous()
    out = torch.empty_like(x)
    check(
        native.quintet_mxfp4_experts(
            *(kind, ACTIVATIONS.index(activations), rows, experts, chosen.shape[1], hidden, inner),
            *(stack.data_ptr() for stack in stacks),
            *(chosen.data_ptr(), shares.data_ptr(), x.data_ptr(), out.data_ptr()),
            *(float(alpha), float(limit), torch.get_num_threads()),
        )
    )
    return out


def mxfp4_experts_reference(
    x: torch.Tensor,
    indices: torch.Tensor,
    weights: torch.Tensor,
    stacks: Sequence[torch.Tensor],
    alpha: float,
    limit: float,
    activations: str = "bf16",
) -> torch.Tensor:
    """The same in plain PyTorch, in float32 (float64 for float64), rounded once."""
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    gate_up, gate_up_scales, gate_up_bias, down, down_scales, down_bias = stacks
    rounded = round_activations if activations == "int8" else torch.Tensor.clone
    given = rounded(x.to(wide))
    out = torch.zeros(x.shape, dtype=wide, device=x.device)
    for row in range(x.shape[0]):
        for slot in range(indices.shape[1]):
            expert = indices[row, slot : slot + 1]  # indexed by a tensor: its value may be unknown
            into = _unpacked(gate_up[expert][0], gate_up_scales[expert][0], wide)  # (2F, D)
            both = into @ given[row] + gate_up_bias[expert][0].to(wide)
            gate, up = both[::2].clamp(max=limit), both[1::2].clamp(-limit, limit)  # (F,) each
            inner = rounded((up + 1) * (gate * torch.sigmoid(gate * alpha)))
            said = _unpacked(down[expert][0], down_scales[expert][0], wide) @ inner + down_bias[expert][0].to(wide)
            out[row] += weights[row, slot].to(wide) * said
    return out.to(x.dtype)


def _check_experts(
    x: torch.Tensor, indices: torch.Tensor, weights: torch.Tensor, stacks: Sequence[torch.Tensor], activations: str
) -> None:
    check_activations("mxfp4_experts", activations)
    if x.dim() != 2 or indices.dim() != 2 or indices.shape != weights.shape or len(indices) != len(x):
        raise InputError(
            f"mxfp4_experts: x of shape {list(x.shape)}, indices of shape {list(indices.shape)} and weights of shape "
            f"{list(weights.shape)} do not fit: pass (n, D), (n, k) and (n, k)."
        )
    if len(stacks) != 6:
        raise InputError(
            f"mxfp4_experts takes 6 stacks (blocks, scales, biases, of both weights) and got {len(stacks)}."
        )
    gate_up, gate_up_scales, gate_up_bias, down, down_scales, down_bias = stacks
    _check_packed("mxfp4_experts", gate_up, gate_up_scales, x.shape[1])
    _check_packed("mxfp4_experts", down, down_scales, gate_up.shape[1] // 2)
    if gate_up_bias.shape != gate_up.shape[:2] or down_bias.shape != down.shape[:2] or len(gate_up) != len(down):
        raise InputError(
            f"mxfp4_experts: biases of shapes {list(gate_up_bias.shape)} and {list(down_bias.shape)} for weights of "
            f"{list(gate_up.shape[:2])} and {list(down.shape[:2])} experts and outputs."
        )


@torch.library.custom_op("quintet::mxfp4_experts", mutates_args=())
def mxfp4_experts(
    x: torch.Tensor,
    indices: torch.Tensor,
    weights: torch.Tensor,
    stacks: Sequence[torch.Tensor],
    alpha: float,
    limit: float,
    activations: str = "bf16",
) -> torch.Tensor:
    """Return the weighted sum of what each row's experts say, see `native_mxfp4_experts`.

    Returns:
        (n, D).

    Raises:
        InputError: shapes or types that do not belong together.
        IndexError: an expert that there is none of.
    """
    _check_experts(x, indices, weights, stacks, activations)
    out = native_mxfp4_experts(x, indices, weights, stacks, alpha, limit, activations)
    if out is None:
        return mxfp4_experts_reference(x, indices, weights, stacks, alpha, limit, activations)
    return out


@mxfp4_experts.register_fake
def _(
    x: torch.Tensor,
    indices: torch.Tensor,
    weights: torch.Tensor,
    stacks: Sequence[torch.Tensor],
    alpha: float,
    limit: float,
    activations: str = "bf16",
) -> torch.Tensor:
    _check_experts(x, indices, weights, stacks, activations)
    return torch.empty_like(x)
