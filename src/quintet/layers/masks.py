"""Which query may see which key, described once per forward and turned into a tensor only when a backend needs one.

Letters: B rows, H heads, T queries (new tokens), K keys that a layer's store returns, S all tokens so far.

Every token has a slot, its index in the row from 0, padding counted. A store returns the keys of K neighbouring slots:
all of them, the last ones of a window, or a fixed number of which the last are not written yet.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch.nn import functional as F

from quintet.cache import Cache
from quintet.errors import InputError

__all__ = ["MaskSpec", "make_encoder_mask", "make_masks", "padding_of"]

Made = TypeVar("Made")


@dataclass(eq=False)
class MaskSpec:
    """The visibility rule of one forward pass for the layers of one kind.

    Args:
        queries: T, the new tokens.
        keys: K.
        past: Slot of the first query; a 0-d tensor for a store of fixed shape, so that a compiled step is one program.
        offset: Slot of the first key; a tensor as `past` is, and then perhaps negative (slots that do not exist).
        causal: Whether a query sees only its own slot and those before it.
        window: Number of slots that a query sees, its own included; None for all.
        padding: (B, S) bool by slot, True where a token is real; None when all are.
        given: A 4-D mask of the caller, broadcast to (B, H, T, K): bool (True = visible) or float (added to scores).
            It stands alone: causality, window and padding are then the caller's.

    A query that would see nothing (a padded place before the first real token) sees its own slot instead, or every
    encoder state: a softmax over nothing has no value, and that row's result is nobody's.
    """

    queries: int
    keys: int
    past: int | torch.Tensor = 0
    offset: int | torch.Tensor = 0
    causal: bool = True
    window: int | None = None
    padding: torch.Tensor | None = None
    given: torch.Tensor | None = None
    _made: dict[tuple[object, ...], Any] = field(default_factory=dict)

    @property
    def _plain(self) -> bool:
        within = self.window is None or self.keys <= self.window
        return self.padding is None and self.given is None and within and isinstance(self.past, int)

    @property
    def square_causal(self) -> bool:
        """Whether the rule is just causality over a square, which kernels know without a mask."""
        return self.causal and self.queries == self.keys and self._plain

    @property
    def everything(self) -> bool:
        """Whether every query sees every key, so that no mask is needed."""
        if not self.causal:
            return self._plain
        return self._plain and self.queries == 1 and self.keys == self.past - self.offset + 1

    def once(self, key: tuple[object, ...], make: Callable[[], Made]) -> Made:
        """Return `make()`, made at the first call with this key: layers of one kind share what a backend needs."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def bias(self, dtype: torch.dtype, device: torch.device) -> torch.Tensor | None:
        """Return the caller's float mask in `dtype`, made once, or None when the rule is bool.

        Its values are held at the least finite one of `dtype`: float32's would be -inf in half precision, and a row of
        nothing else would be NaN.
        """
        if self.given is None or self.given.dtype == torch.bool:
            return None
        # Compared in the wider of the two types: the least number of the other may be none of this one.
        given = self.given.to(torch.promote_types(self.given.dtype, dtype))
        return self.once((device, dtype), lambda: given.to(device).clamp_min(torch.finfo(dtype).min).to(dtype))

    def boolean(self, device: torch.device) -> torch.Tensor:
        """Return the rule as bool, broadcastable to (B, H, T, K), True where the query sees the key; made once."""
        return self.once((device, torch.bool), lambda: self._build(device))

    def _build(self, device: torch.device) -> torch.Tensor:
        place = (torch.arange(self.queries, device=device) + self.past)[:, None]  # (T, 1)
        key = (torch.arange(self.keys, device=device) + self.offset)[None, :]  # (1, K)
        if self.given is not None:
            rule = self.given.to(device)  # broadcasts to (B, H, T, K)
        else:
            rule = (key <= place if self.causal else torch.ones_like(key <= place))[None, None]  # (1, 1, T, K)
            if self.window is not None:
                rule = rule & (place - key < self.window)
            if isinstance(self.offset, torch.Tensor):
                rule = rule & (key >= 0)
            if self.padding is not None:
                rule = rule & self.real_keys(device)[:, None, None, :]  # (B, 1, T, K)
            elif self.causal and not isinstance(self.offset, torch.Tensor):
                return rule  # every query sees at least itself
        blind = ~rule.any(-1, keepdim=True)
        return rule | (blind & (key == place) if self.causal else blind)

    def real_keys(self, device: torch.device) -> torch.Tensor:
        """Return `padding` for the slots of the keys, (B, K)."""
        assert self.padding is not None, "asked for only when there is padding"
        padding = self.padding.to(device)
        if isinstance(self.offset, torch.Tensor):
            slots = torch.arange(self.keys, device=device) + self.offset  # (K,)
            inside = (slots >= 0) & (slots < padding.shape[1])
            return padding[:, slots.clamp(0, padding.shape[1] - 1)] & inside
        real = padding[:, self.offset : self.offset + self.keys]
        return F.pad(real, (0, self.keys - real.shape[1]), value=False)  # slots that are not written yet


def make_masks(
    attention_mask: torch.Tensor | Mapping[str, torch.Tensor | None] | None,
    *,
    rows: int,
    queries: int,
    cache: Cache | None,
    windows: Sequence[int | None],
    kinds: Sequence[str] = (),
) -> tuple[MaskSpec, ...]:
    """Describe the visibility for a forward pass, one rule per layer; layers of one kind share theirs.

    Args:
        attention_mask: None; (B, S) with 1 for real tokens and 0 for padding; or a 4-D mask broadcastable to
            (B, H, T, S), bool (True = visible) or float (added to the scores), which replaces causality and windows.
            Or a mapping from each of the `kinds` to one of these; a 4-D one may then be over the keys that the layers
            of that kind keep, (B, H, T, K).
        rows, queries: B and T.
        cache: What holds the tokens before; None when there are none.
        windows: For each layer the number of tokens that one sees, None for all.
        kinds: For each layer its kind, as in `config.layer_types`; needed for a mapping only.

    Raises:
        InputError: the mask has another shape; the message says which one is wanted.
    """
    if isinstance(attention_mask, Mapping):
        _check_kinds(attention_mask, kinds)
    else:
        kinds = ["all"] * len(windows)
        attention_mask = {"all": attention_mask}
    made: dict[tuple[int | None, str], MaskSpec] = {}
    read: dict[str, tuple[torch.Tensor | None, torch.Tensor | None]] = {}
    for layer, rule in enumerate(zip(windows, kinds, strict=True)):
        if rule in made:
            continue
        window, kind = rule
        past: int | torch.Tensor = 0
        keys, offset = queries, 0  # type: int, int | torch.Tensor
        if cache is not None:
            past = cache.past(layer)
            keys, offset = cache.get_mask_sizes(queries, layer)
        if kind not in read:
            read[kind] = _read(attention_mask[kind], rows, queries, cache, None if kind == "all" else keys)
        padding, given = read[kind]
        whole = None if given is None else _columns(given, keys, offset)
        made[rule] = MaskSpec(queries, keys, past, offset, window=window, padding=padding, given=whole)
    return tuple(made[rule] for rule in zip(windows, kinds, strict=True))


def _check_kinds(masks: Mapping[str, torch.Tensor | None], kinds: Sequence[str]) -> None:
    if not kinds:
        raise InputError(
            f"attention_mask is a mapping with the keys {sorted(masks)}, but the layers of this model are all of one "
            "kind. Give one mask."
        )
    if missing := sorted({*kinds} - {*masks}):
        raise InputError(
            f"attention_mask is a mapping with the keys {sorted(masks)}, but must have one for each kind of layer, and "
            f"{missing[0]!r} is missing."
        )


def _read(
    attention_mask: torch.Tensor | None, rows: int, queries: int, cache: Cache | None, keys: int | None
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Return the caller's mask as padding by slot, or as a 4-D mask; one of them is None.

    A 4-D mask may be over `keys` columns too, unless that is None.
    """
    if attention_mask is None:
        return None, None
    if not isinstance(attention_mask, torch.Tensor):
        raise InputError(
            f"attention_mask is a {type(attention_mask).__name__}, but must be a tensor of shape (rows, tokens) with 1 "
            "for real tokens and 0 for padding. Make one with torch.tensor(...)."
        )
    past = 0 if cache is None else cache.past()
    fixed = isinstance(past, torch.Tensor)
    known = not fixed or (past.device.type == "cpu" and not torch.compiler.is_compiling())  # type: ignore[union-attr]
    total = int(past) + queries if known else None
    # A store of fixed shape takes a mask over all its slots too, so that a compiled step has one shape.
    room = cache.get_max_cache_shape() if fixed and cache is not None else None
    allowed = [size for size in (total, room) if size is not None]
    size = attention_mask.shape[-1] if attention_mask.dim() else 0
    if attention_mask.dim() == 4:
        wanted = (rows, None, queries, size if size in (1, keys, *allowed) else allowed[0])
        for got, want in zip(attention_mask.shape, wanted, strict=True):
            if want is not None and got not in (1, want):
                raise InputError(
                    f"attention_mask has shape {tuple(attention_mask.shape)}; a 4-D mask must broadcast to ({rows}, "
                    f"heads, {queries}, {allowed[0]}) = (rows, heads, new tokens, all tokens)."
                )
        return None, attention_mask if attention_mask.is_floating_point() else attention_mask.bool()
    if attention_mask.dim() != 2 or attention_mask.shape[0] != rows or (known and size not in allowed):
        raise InputError(
            f"attention_mask has shape {tuple(attention_mask.shape)}, but must be {(rows, total)}: a 1 or 0 for each "
            f"of the {(total or 0) - queries} cached and {queries} new tokens of each of the {rows} rows."
        )
    return padding_of(attention_mask), None


def padding_of(mask: torch.Tensor) -> torch.Tensor | None:
    """Return a mask of ones and zeros as bool, or None when nothing is padded and looking costs nothing."""
    padding = mask.bool() if not mask.is_floating_point() else mask > 0
    # On a CPU looking is free and lets the kernels run without a mask; elsewhere it would stall the device.
    if padding.device.type == "cpu" and not torch.compiler.is_compiling() and bool(padding.all()):
        return None
    return padding


def _columns(given: torch.Tensor, keys: int, offset: int | torch.Tensor) -> torch.Tensor:
    """Cut or fill the columns of a 4-D mask so that they are those of the keys a store returns."""
    size = given.shape[-1]
    if size in (1, keys):
        return given
    if isinstance(offset, int) and offset == 0:  # a store of fixed shape: slots that are not written yet stay hidden
        hidden = False if given.dtype == torch.bool else torch.finfo(given.dtype).min
        return F.pad(given, (0, keys - size), value=hidden)
    raise InputError(
        f"a 4-D attention_mask over {size} tokens cannot be used with a cache that keeps only the last tokens of "
        "sliding layers: the mask might show one that is gone. Give a cache that keeps all, past_key_values="
        "DynamicCache(), or a mask of (rows, tokens)."
    )


def make_encoder_mask(mask: torch.Tensor | None, *, rows: int, queries: int, states: int) -> MaskSpec:
    """Describe which encoder states may be seen, from None, (B, states) or a 4-D mask.

    Raises:
        InputError: the mask has another shape.
    """
    if mask is None:
        return MaskSpec(queries, states, causal=False)
    if mask.dim() == 4:
        if any(got not in (1, want) for got, want in zip(mask.shape[::2], (rows, queries), strict=True)) or mask.shape[
            3
        ] not in (1, states):
            raise InputError(
                f"encoder_attention_mask has shape {tuple(mask.shape)}; a 4-D mask must broadcast to ({rows}, heads, "
                f"{queries}, {states}) = (rows, heads, new tokens, encoder states)."
            )
        given = mask if mask.is_floating_point() else mask.bool()
        return MaskSpec(queries, states, causal=False, given=given)
    if tuple(mask.shape) != (rows, states):
        raise InputError(
            f"encoder_attention_mask has shape {tuple(mask.shape)}, but must be {(rows, states)}: a 1 or 0 for each of "
            f"the {states} encoder states of each of the {rows} rows."
        )
    return MaskSpec(queries, states, causal=False, padding=padding_of(mask))
