"""Which query may see which key, described once per forward and turned into a tensor only when a backend needs one.

Letters: B rows, H heads, T queries (new tokens), S keys (stored and new tokens).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from quintet.errors import InputError

__all__ = ["MaskSpec", "make_mask"]


@dataclass(eq=False)
class MaskSpec:
    """The visibility rule of one forward pass.

    Args:
        queries: T, the new tokens.
        keys: S, all tokens; query i stands at key S - T + i.
        causal: Whether a query sees only its own place and those before it.
        padding: (B, S) bool, True where a token is real; None when all are.
        given: A 4-D mask of the caller, broadcast to (B, H, T, S): bool (True = visible) or float (added to scores).
            It stands alone: causality and padding are then the caller's.

    A query that would see nothing (a padded place before the first real token) sees its own place instead, or every
    encoder state: a softmax over nothing has no value, and that row's result is nobody's.
    """

    queries: int
    keys: int
    causal: bool = True
    padding: torch.Tensor | None = None
    given: torch.Tensor | None = None
    _made: dict[tuple[torch.device, torch.dtype], torch.Tensor] = field(default_factory=dict)

    @property
    def square_causal(self) -> bool:
        """Whether the rule is just causality over a square, which kernels know without a mask."""
        return self.causal and self.queries == self.keys and self.padding is None and self.given is None

    @property
    def everything(self) -> bool:
        """Whether every query sees every key, so that no mask is needed."""
        return (not self.causal or self.queries == 1) and self.padding is None and self.given is None

    def bias(self, dtype: torch.dtype, device: torch.device) -> torch.Tensor | None:
        """Return the caller's float mask in `dtype`, made once, or None when the rule is bool.

        Its values are held at the least finite one of `dtype`: float32's would be -inf in half precision, and a row of
        nothing else would be NaN.
        """
        if self.given is None or self.given.dtype == torch.bool:
            return None
        if (device, dtype) not in self._made:
            self._made[device, dtype] = self.given.to(device).clamp_min(torch.finfo(dtype).min).to(dtype)
        return self._made[device, dtype]

    def boolean(self, device: torch.device) -> torch.Tensor:
        """Return the rule as bool, broadcastable to (B, H, T, S), True where the query sees the key; made once."""
        if (device, torch.bool) not in self._made:
            self._made[device, torch.bool] = self._build(device)
        return self._made[device, torch.bool]

    def _build(self, device: torch.device) -> torch.Tensor:
        place = torch.arange(self.keys - self.queries, self.keys, device=device)[:, None]  # (T, 1)
        key = torch.arange(self.keys, device=device)[None, :]  # (1, S)
        rule = key <= place if self.causal else torch.ones_like(key <= place)  # (T, S)
        if self.given is not None:
            rule = self.given.to(device)  # broadcasts to (B, H, T, S)
        elif self.padding is not None:
            rule = rule & self.padding.to(device)[:, None, None, :]  # (B, 1, T, S)
        else:
            return rule[None, None]  # (1, 1, T, S)
        blind = ~rule.any(-1, keepdim=True)
        return rule | (blind & (key == place) if self.causal else blind)


def make_mask(
    attention_mask: torch.Tensor | None,
    *,
    rows: int,
    queries: int,
    keys: int,
    causal: bool = True,
    what: str = "attention_mask",
) -> MaskSpec:
    """Describe the visibility for a forward pass.

    Args:
        attention_mask: None; (B, S) with 1 for real tokens and 0 for padding; or a 4-D mask broadcastable to
            (B, H, T, S), bool (True = visible) or float (added to the scores).
        rows, queries, keys: B, T and S.
        causal: False for attention over encoder states.
        what: Name of the argument, for the error.

    Raises:
        InputError: the mask has another shape; the message says which one is wanted.
    """
    if attention_mask is None:
        return MaskSpec(queries, keys, causal)
    if attention_mask.dim() == 4:
        wanted = (rows, None, queries, keys)
        for got, want in zip(attention_mask.shape, wanted, strict=True):
            if want is not None and got not in (1, want):
                raise InputError(
                    f"{what} has shape {tuple(attention_mask.shape)}; a 4-D mask must broadcast to ({rows}, heads, "
                    f"{queries}, {keys}) = (rows, heads, new tokens, all tokens)."
                )
        given = attention_mask if attention_mask.is_floating_point() else attention_mask.bool()
        return MaskSpec(queries, keys, causal, given=given)
    if tuple(attention_mask.shape) != (rows, keys):
        tokens = f"{keys - queries} cached and {queries} new tokens" if causal else f"{keys} encoder states"
        raise InputError(
            f"{what} has shape {tuple(attention_mask.shape)}, but must be {(rows, keys)}: a 1 or 0 for each of the "
            f"{tokens} of each of the {rows} rows."
        )
    padding = attention_mask.bool() if not attention_mask.is_floating_point() else attention_mask > 0
    # On a CPU looking is free and lets the kernels run without a mask; elsewhere it would stall the device.
    if padding.device.type == "cpu" and not torch.compiler.is_compiling() and bool(padding.all()):
        return MaskSpec(queries, keys, causal)
    return MaskSpec(queries, keys, causal, padding=padding)
