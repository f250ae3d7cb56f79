"""What `forward` returns: records whose fields can be read by attribute, key, index or slice; None is left out."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch.utils import _pytree

from quintet.cache import Cache

__all__ = [
    "BaseModelOutput",
    "BaseModelOutputWithPast",
    "BaseModelOutputWithPastAndCrossAttentions",
    "CausalLMOutput",
    "CausalLMOutputWithCrossAttentions",
    "CausalLMOutputWithPast",
    "DoubleHeadsModelOutput",
    "ModelOutput",
    "MoeCausalLMOutputWithPast",
    "MoeModelOutputWithPast",
    "QuestionAnsweringModelOutput",
    "SequenceClassifierOutput",
    "SequenceClassifierOutputWithPast",
    "TokenClassifierOutput",
]

Tensors = tuple[torch.Tensor, ...]


class ModelOutput(OrderedDict[str, Any]):
    """Base of all outputs: a dataclass that is also an ordered dict of its fields that are not None.

    `out.logits`, `out["logits"]`, `out[0]` and `out[:2]` all work; index and slice count the present fields only.
    """

    def __init_subclass__(cls) -> None:
        # So that torch's own tools (compile, data parallelism) see the tensors inside.
        _pytree.register_pytree_node(cls, _flatten, lambda values, keys: cls(**dict(zip(keys, values, strict=True))))

    def __post_init__(self) -> None:
        self.__dict__["_made"] = True
        self._follow()

    def _follow(self) -> None:
        """Let the dict hold the present fields, in the order of the fields."""
        super().clear()
        for field in fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if value is not None:
                super().__setitem__(field.name, value)

    def __getitem__(self, key: Any) -> Any:
        return super().__getitem__(key) if isinstance(key, str) else self.to_tuple()[key]

    def __setitem__(self, key: str, value: Any) -> None:
        names = [field.name for field in fields(self)]  # type: ignore[arg-type]
        if key not in names:
            raise KeyError(f"{type(self).__name__} has no field {key!r}; it has {', '.join(names)}.")
        setattr(self, key, value)

    def __setattr__(self, key: str, value: Any) -> None:
        super().__setattr__(key, value)
        if "_made" in self.__dict__:  # the fields are all there
            self._follow()

    def _refuse(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError(f"a {type(self).__name__} is a record: set a field to None instead of taking it out.")

    __delitem__ = pop = popitem = clear = setdefault = update = move_to_end = _refuse

    def __reduce__(self) -> Any:
        return type(self), tuple(getattr(self, field.name) for field in fields(self))  # type: ignore[arg-type]

    def to_tuple(self) -> tuple[Any, ...]:
        """Return the fields that are not None, in order."""
        return tuple(self[key] for key in self)


def _flatten(output: ModelOutput) -> tuple[list[Any], list[str]]:
    return list(output.values()), list(output.keys())


@dataclass(eq=False)
class BaseModelOutput(ModelOutput):
    """Final hidden states (B, T, D), with those of every layer (n_layer + 1 of them) and attentions when asked."""

    last_hidden_state: torch.Tensor | None = None
    hidden_states: Tensors | None = None
    attentions: Tensors | None = None


@dataclass(eq=False)
class BaseModelOutputWithPast(ModelOutput):
    """BaseModelOutput with the cache."""

    last_hidden_state: torch.Tensor | None = None
    past_key_values: Cache | None = None
    hidden_states: Tensors | None = None
    attentions: Tensors | None = None


@dataclass(eq=False)
class BaseModelOutputWithPastAndCrossAttentions(ModelOutput):
    """BaseModelOutput with the cache and the attentions over encoder states."""

    last_hidden_state: torch.Tensor | None = None
    past_key_values: Cache | None = None
    hidden_states: Tensors | None = None
    attentions: Tensors | None = None
    cross_attentions: Tensors | None = None


@dataclass(eq=False)
class MoeModelOutputWithPast(ModelOutput):
    """BaseModelOutputWithPast with the experts' scores, (B * T, experts) for each layer, when asked."""

    last_hidden_state: torch.Tensor | None = None
    past_key_values: Cache | None = None
    hidden_states: Tensors | None = None
    attentions: Tensors | None = None
    router_logits: Tensors | None = None


@dataclass(eq=False)
class CausalLMOutput(ModelOutput):
    """Next-token scores (B, T, V) and their loss."""

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    hidden_states: Tensors | None = None
    attentions: Tensors | None = None


@dataclass(eq=False)
class CausalLMOutputWithPast(ModelOutput):
    """CausalLMOutput with the cache."""

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    past_key_values: Cache | None = None
    hidden_states: Tensors | None = None
    attentions: Tensors | None = None


@dataclass(eq=False)
class MoeCausalLMOutputWithPast(ModelOutput):
    """CausalLMOutputWithPast with the experts' scores and their load-balancing loss, which `loss` includes."""

    loss: torch.Tensor | None = None
    aux_loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    past_key_values: Cache | None = None
    hidden_states: Tensors | None = None
    attentions: Tensors | None = None
    router_logits: Tensors | None = None


@dataclass(eq=False)
class CausalLMOutputWithCrossAttentions(ModelOutput):
    """CausalLMOutput with the cache and the attentions over encoder states."""

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    past_key_values: Cache | None = None
    hidden_states: Tensors | None = None
    attentions: Tensors | None = None
    cross_attentions: Tensors | None = None


@dataclass(eq=False)
class SequenceClassifierOutput(ModelOutput):
    """Scores of a whole sequence (B, num_labels)."""

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    hidden_states: Tensors | None = None
    attentions: Tensors | None = None


@dataclass(eq=False)
class SequenceClassifierOutputWithPast(ModelOutput):
    """SequenceClassifierOutput with the cache."""

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    past_key_values: Cache | None = None
    hidden_states: Tensors | None = None
    attentions: Tensors | None = None


@dataclass(eq=False)
class TokenClassifierOutput(ModelOutput):
    """Scores of every token (B, T, num_labels)."""

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    hidden_states: Tensors | None = None
    attentions: Tensors | None = None


@dataclass(eq=False)
class QuestionAnsweringModelOutput(ModelOutput):
    """Scores of every token as start and as end of the answer (B, T)."""

    loss: torch.Tensor | None = None
    start_logits: torch.Tensor | None = None
    end_logits: torch.Tensor | None = None
    hidden_states: Tensors | None = None
    attentions: Tensors | None = None


@dataclass(eq=False)
class DoubleHeadsModelOutput(ModelOutput):
    """Next-token scores (B, C, T, V) of C choices, and one score for each choice (B, C)."""

    loss: torch.Tensor | None = None
    mc_loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    mc_logits: torch.Tensor | None = None
    past_key_values: Cache | None = None
    hidden_states: Tensors | None = None
    attentions: Tensors | None = None
