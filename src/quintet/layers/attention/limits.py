"""Which backend can do what beyond plain attention, and how one says that it cannot."""

from __future__ import annotations

from quintet.errors import ConfigError

__all__ = ["ABLE", "refusal"]

# Abilities that not every backend has, in the words of an error message. (Attention weights and float32 scores are not
# here: eager steps in for them.)
ABLE: dict[str, tuple[str, ...]] = {
    "attention dropout": ("eager", "sdpa", "flash_attention_2"),
    "gradients on this device": ("eager", "sdpa"),
    "gradients through attention sinks": ("eager", "sdpa"),
    "gradients of a float attention_mask": ("eager", "sdpa"),
    "a 4-D attention_mask": ("eager", "sdpa", "flex_attention"),
    "padding between the tokens of sliding layers": ("eager", "sdpa", "flex_attention"),
    "a cache of fixed shape": ("eager", "sdpa", "flex_attention"),
    "tensors outside a GPU": ("eager", "sdpa", "flex_attention"),
    "other dtypes than float16 and bfloat16": ("eager", "sdpa", "flex_attention"),
}


def refusal(backend: str, ability: str, got: object = None) -> ConfigError:
    """The error of a backend that lacks an ability of the table; `got` is what was asked for, in a word or two."""
    able = ABLE[ability]
    detail = "" if got is None else f" (got {got})"
    return ConfigError(
        f"attn_implementation {backend!r} cannot do {ability}{detail}; {', '.join(able)} can. Choose one with "
        f"model.set_attn_implementation('sdpa')."
    )
