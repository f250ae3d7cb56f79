"""Mixture of experts as gpt-oss has it: a router that picks k experts for each token, and the experts themselves.

N tokens, D model width, E experts, k experts of a token, F inner width of an expert.

Sources: GLU variants, Shazeer 2020 (arXiv 2002.05202); the clamped form, the router's softmax over the chosen experts
and the shapes, the model card of gpt-oss (arXiv 2508.10925); the balancing loss, Fedus et al. (arXiv 2101.03961,
equations 4 to 6).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import nn

from quintet.errors import InputError

__all__ = ["Experts", "RoutedExperts", "TopKRouter", "clamped_swiglu", "groups", "load_balancing_loss"]


class TopKRouter(nn.Module):
    """Scores every expert for each token and picks the best.

    Args:
        num_experts: E.
        hidden_size: D.
        top_k: k, at most E.
    """

    def __init__(self, num_experts: int, hidden_size: int, top_k: int) -> None:
        super().__init__()
        self.num_experts = num_experts
        self.top_k = top_k
        self.weight = nn.Parameter(torch.empty(num_experts, hidden_size))
        self.bias = nn.Parameter(torch.zeros(num_experts))
        if self.weight.device.type != "meta":
            nn.init.normal_(self.weight, std=0.02)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Route tokens.

        Args:
            x: (N, D).

        Returns:
            Logits of all experts (N, E); weights of the chosen ones, a softmax over those alone (N, k), the largest
            first; their indices (N, k).
        """
        logits = nn.functional.linear(x, self.weight, self.bias)  # (N, E)
        best, indices = torch.topk(logits, self.top_k, dim=-1)  # (N, k)
        return logits, torch.softmax(best, dim=-1), indices

    def extra_repr(self) -> str:
        """Sizes, for print(model)."""
        return f"num_experts={self.num_experts}, hidden_size={self.weight.shape[1]}, top_k={self.top_k}"


def clamped_swiglu(gate_up: torch.Tensor, alpha: float = 1.702, limit: float = 7.0) -> torch.Tensor:
    """Return `(up + 1) * gate * sigmoid(alpha * gate)` of clamped gate and up.

    Args:
        gate_up: (..., 2F), gate in the even columns, up in the odd ones.
        alpha: Steepness of the sigmoid.
        limit: The gate is cut off above it, up on both sides.

    Returns:
        (..., F).
    """
    gate, up = gate_up[..., ::2], gate_up[..., 1::2]  # (..., F) each
    gate = gate.clamp(max=limit)
    up = up.clamp(min=-limit, max=limit)
    return (up + 1) * (gate * torch.sigmoid(gate * alpha))


def groups(indices: torch.Tensor, num_experts: int) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
    """Sort tokens by expert: for each expert that some token uses, in rising order, who uses it.

    The counts come to the CPU once, whatever the number of experts.

    Args:
        indices: (N, k) experts of each token.
        num_experts: E.

    Yields:
        The expert; the rows of its tokens (n,); which of the token's k choices it is (n,).
    """
    chosen = indices.reshape(-1)  # (N, k) -> (N * k,)
    order = chosen.argsort(stable=True)
    row, slot = order // indices.shape[-1], order % indices.shape[-1]
    begin = 0
    for expert, count in enumerate(torch.bincount(chosen, minlength=num_experts).tolist()):
        if count:
            yield expert, row[begin : begin + count], slot[begin : begin + count]
            begin += count


class RoutedExperts(nn.Module):
    """E gated MLPs, of which each token uses k: how tokens get to them and back, for any way of storing the weights.

    Only experts that some token uses are computed, each once for all of its tokens.
    """

    num_experts: int
    hidden_size: int
    intermediate_size: int
    alpha: float
    limit: float

    def stacks(self) -> tuple[torch.Tensor, ...]:
        """Return the tensors that `compute` needs a slice of, the experts in their first dimension."""
        raise NotImplementedError

    def compute(self, x: torch.Tensor, *parts: torch.Tensor) -> torch.Tensor:
        """Return what one expert says to (n, D) tokens; `parts` are its slices of `stacks()`."""
        raise NotImplementedError

    def forward(self, x: torch.Tensor, indices: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Return the weighted sum of what each token's experts say.

        Args:
            x: (N, D).
            indices: (N, k) experts of each token.
            weights: (N, k) their weights.

        Returns:
            (N, D).
        """
        # To a compiler, and on the meta device, indices have no values. On a GPU a look at them would make every decode
        # step wait for the device; for many tokens the wait is nothing beside the work.
        few = x.device.type != "cpu" and indices.numel() < self.num_experts
        if torch.compiler.is_compiling() or x.is_meta or few:
            return self._with_fixed_shapes(x, indices, weights)
        stacks = [_slices(stack) for stack in self.stacks()]
        out = torch.zeros_like(x)
        if x.shape[0] == 1:
            # No sorting for the one token of a decode step; the order of the sum is that of many tokens.
            for expert, choice in sorted((expert, choice) for choice, expert in enumerate(indices[0].tolist())):
                said = self.compute(x, *(stack[expert] for stack in stacks))
                out = out + (said * weights[:, choice, None]).to(x.dtype)
            return out
        for expert, row, slot in groups(indices, self.num_experts):
            said = self.compute(x[row], *(stack[expert] for stack in stacks))  # (n, D)
            out.index_add_(0, row, (said * weights[row, slot, None]).to(x.dtype))
        return out

    def _with_fixed_shapes(self, x: torch.Tensor, indices: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """The same without a look at how many tokens an expert gets, which a compiler could not follow.

        Few tokens ask each of their experts by itself; from as many choices as there are experts on, every token asks
        all experts, and the weights of those it did not choose are 0.
        """
        rows, chosen = indices.shape
        stacks = self.stacks()
        out = torch.zeros_like(x)
        if rows * chosen < self.num_experts:
            said = [
                self.compute(x[row : row + 1], *(stack[indices[row, slot : slot + 1]][0] for stack in stacks))  # (1, D)
                for row in range(rows)
                for slot in range(chosen)
            ]
            every = torch.cat(said).view(rows, chosen, -1) * weights[..., None]  # (N * k, D) -> (N, k, D)
            return every.sum(1).to(x.dtype)
        share = weights.new_zeros(rows, self.num_experts).scatter(1, indices, weights)  # (N, E)
        for expert in range(self.num_experts):
            said_to_all = self.compute(x, *(stack[expert] for stack in stacks))  # (N, D)
            out = out + (said_to_all * share[:, expert, None]).to(x.dtype)
        return out

    def extra_repr(self) -> str:
        """Sizes, for print(model)."""
        return (
            f"num_experts={self.num_experts}, hidden_size={self.hidden_size}, "
            f"intermediate_size={self.intermediate_size}, alpha={self.alpha}, limit={self.limit}"
        )


class Experts(RoutedExperts):
    """Experts with plain weights.

    Args:
        num_experts: E.
        hidden_size: D.
        intermediate_size: F.
        alpha: See `clamped_swiglu`.
        limit: See `clamped_swiglu`.
    """

    def __init__(
        self,
        num_experts: int,
        hidden_size: int,
        intermediate_size: int,
        *,
        alpha: float = 1.702,
        limit: float = 7.0,
    ) -> None:
        super().__init__()
        self.num_experts = num_experts
        self.hidden_size = hidden_size
        self.intermediate_size = intermediate_size
        self.alpha = alpha
        self.limit = limit
        # Gate and up stand in turn: gate in the even columns, up in the odd ones.
        self.gate_up_proj = nn.Parameter(torch.empty(num_experts, hidden_size, 2 * intermediate_size))
        self.gate_up_proj_bias = nn.Parameter(torch.zeros(num_experts, 2 * intermediate_size))
        self.down_proj = nn.Parameter(torch.empty(num_experts, intermediate_size, hidden_size))
        self.down_proj_bias = nn.Parameter(torch.zeros(num_experts, hidden_size))
        if self.gate_up_proj.device.type != "meta":
            nn.init.normal_(self.gate_up_proj, std=0.02)
            nn.init.normal_(self.down_proj, std=0.02)

    def stacks(self) -> tuple[torch.Tensor, ...]:
        """Return weights and biases, inner ones first."""
        return self.gate_up_proj, self.gate_up_proj_bias, self.down_proj, self.down_proj_bias

    def compute(self, x: torch.Tensor, *parts: torch.Tensor) -> torch.Tensor:
        """Return what one expert says to (n, D) tokens."""
        gate_up, gate_up_bias, down, down_bias = parts
        inner = clamped_swiglu(x @ gate_up + gate_up_bias, self.alpha, self.limit)  # (n, F)
        return inner @ down + down_bias


def _slices(stack: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
    """What `[expert]` gives the parameters of one expert of.

    Cut all at once where gradients are wanted: they then come together in one tensor, and not in one of the whole
    size for each expert.
    """
    return stack.unbind(0) if torch.is_grad_enabled() and stack.requires_grad else stack


def load_balancing_loss(
    router_logits: Sequence[torch.Tensor],
    num_experts: int,
    top_k: int,
    padding: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return `E * sum_e f_e * P_e`, which is smallest when the tokens spread evenly over the experts.

    f_e counts how often expert e is among a token's k, per token; P_e is the mean probability that the router gives
    it. Both are taken over the tokens of all layers together, so an even spread gives k.

    Args:
        router_logits: One (B * T, E) tensor for each layer.
        num_experts: E.
        top_k: k.
        padding: (B, S) true or 1 where a token counts, S at least T (slots of a cache before them are passed over);
            None when all do.

    Raises:
        InputError: no layers, or the padding is of another batch.
    """
    if not router_logits:
        raise InputError("load_balancing_loss needs the router logits of at least one layer and got none.")
    rows = router_logits[0].shape[0]
    device = router_logits[0].device
    counts = torch.ones(rows, device=device)
    if padding is not None:
        length = rows // padding.shape[0]
        if rows % padding.shape[0] or padding.shape[1] < length:
            raise InputError(
                f"load_balancing_loss: a padding mask of shape {tuple(padding.shape)} does not fit {rows} tokens. "
                "Pass (batch, length) of the same batch, at least as long."
            )
        counts = padding[:, padding.shape[1] - length :].reshape(-1).to(device=device, dtype=torch.float32)  # (B * T,)
    uses = torch.zeros(num_experts, device=device)
    probabilities = torch.zeros(num_experts, device=device)
    for logits in router_logits:
        shares = torch.softmax(logits.to(device), dim=-1)  # (B * T, E)
        chosen = torch.topk(shares, top_k, dim=-1).indices  # (B * T, k)
        uses = uses.scatter_add(0, chosen.reshape(-1), counts.repeat_interleave(top_k))
        probabilities = probabilities + (shares.float() * counts[:, None]).sum(0)
    total = counts.sum() * len(router_logits)
    return num_experts * (uses / total * (probabilities / total)).sum()
