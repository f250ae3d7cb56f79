"""What sits on top of a base model, once for every family: pooling, sequence summary, the generic heads.

Letters: B rows, T tokens, V vocabulary, D hidden size, L labels, C choices.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

import torch
from torch import nn

from quintet.config import PreTrainedConfig
from quintet.errors import InputError
from quintet.family import StepMap
from quintet.layers.activations import get_activation
from quintet.losses import question_answering_loss, sequence_classification_loss, token_classification_loss
from quintet.modeling import PreTrainedModel
from quintet.outputs import (
    QuestionAnsweringModelOutput,
    SequenceClassifierOutputWithPast,
    TokenClassifierOutput,
)

__all__ = [
    "GenericForQuestionAnswering",
    "GenericForSequenceClassification",
    "GenericForTokenClassification",
    "SequenceSummary",
    "ends_with_head",
    "keep_logits",
    "last_token_logits",
    "question_answering_output",
    "sequence_classifier_output",
    "steps_by",
    "token_classifier_output",
]


ForwardT = TypeVar("ForwardT", bound=Callable[..., Any])


def ends_with_head(forward: ForwardT) -> ForwardT:
    """Mark a `forward` whose logits are those of the output head, of the base model's last states, and nothing else.

    `generate` may then ask the head itself. A subclass with a `forward` of its own has no mark, nor has a function that
    copies the attributes of this one (`functools.wraps`): the mark is the function itself.
    """
    forward.ends_with_head = forward  # type: ignore[attr-defined]
    return forward


def steps_by(step_map: StepMap) -> Callable[[ForwardT], ForwardT]:
    """Mark the `forward` of a base model that, given token ids, a cache and a mask of padding, does what a map says.

    Native code may then do a decoding step in its place. The mark is the function itself, as that of `ends_with_head`.
    """

    def mark(forward: ForwardT) -> ForwardT:
        forward.steps_by = forward, step_map  # type: ignore[attr-defined]
        return forward

    return mark


def keep_logits(hidden_states: torch.Tensor, logits_to_keep: int | torch.Tensor) -> torch.Tensor:
    """Keep the positions (B, T, D) whose logits are wanted: the last `n` (0 means all), or those of an index tensor."""
    if isinstance(logits_to_keep, torch.Tensor):
        return hidden_states[:, logits_to_keep]
    if logits_to_keep < 0:
        raise InputError(f"logits_to_keep is {logits_to_keep}; give 0 for all, n for the last n, or an index tensor.")
    return hidden_states if logits_to_keep == 0 else hidden_states[:, -logits_to_keep:]


def last_token_logits(logits: torch.Tensor, input_ids: torch.Tensor | None, pad_token_id: int | None) -> torch.Tensor:
    """Pick each row's logits (B, T, L) at its last token that is not padding; returns (B, L).

    Without `input_ids` (embeddings were given) or without a padding token in a single row, the last position counts.

    Raises:
        InputError: several rows and no padding token, so that their ends are unknown.
    """
    rows = logits.shape[0]
    if pad_token_id is None and rows != 1:
        raise InputError(
            f"a batch of {rows} rows needs to know its padding token, and config.pad_token_id is None. "
            "Set model.config.pad_token_id (often the tokenizer's eos_token_id), or give one row at a time."
        )
    if pad_token_id is None or input_ids is None:
        return logits[:, -1]
    place = torch.arange(input_ids.shape[-1], device=logits.device)
    last = (place * (input_ids != pad_token_id).to(logits.device)).argmax(-1)  # (B,)
    return logits[torch.arange(rows, device=logits.device), last]


def sequence_classifier_output(
    model: Any, out: Any, logits: torch.Tensor, input_ids: torch.Tensor | None, labels: torch.Tensor | None
) -> SequenceClassifierOutputWithPast:
    """Pack the scores of whole texts.

    Args:
        model: Its configuration says where rows end (`pad_token_id`), what the labels are, and how many.
        out: Record of the base model.
        logits: (B, T, L) scores at every token; those of each row's last real token count.
        input_ids: (B, T), to find it.
        labels: (B,) or (B, L), which add the loss; None for none.
    """
    logits = last_token_logits(logits, input_ids, model.config.pad_token_id)  # (B, L)
    loss = None if labels is None else sequence_classification_loss(model.config, logits, labels)
    return SequenceClassifierOutputWithPast(
        loss=loss,
        logits=logits,
        past_key_values=out.past_key_values,
        hidden_states=out.hidden_states,
        attentions=out.attentions,
    )


def token_classifier_output(
    model: Any, out: Any, logits: torch.Tensor, labels: torch.Tensor | None
) -> TokenClassifierOutput:
    """Pack the scores (B, T, L) of every token; `labels` (B, T) add the loss."""
    loss = None if labels is None else token_classification_loss(logits, labels, model.num_labels)
    return TokenClassifierOutput(loss=loss, logits=logits, hidden_states=out.hidden_states, attentions=out.attentions)


def question_answering_output(
    out: Any, logits: torch.Tensor, starts: torch.Tensor | None, ends: torch.Tensor | None
) -> QuestionAnsweringModelOutput:
    """Pack the scores (B, T, 2) of every token as start and end; `starts` and `ends` (B,) together add the loss."""
    start_logits, end_logits = logits.unbind(-1)  # each (B, T)
    loss = None
    if starts is not None and ends is not None:
        loss = question_answering_loss(start_logits, end_logits, starts, ends)
    return QuestionAnsweringModelOutput(
        loss=loss,
        start_logits=start_logits,
        end_logits=end_logits,
        hidden_states=out.hidden_states,
        attentions=out.attentions,
    )


class ClassificationHead(PreTrainedModel):
    """What the generic heads share: the base model under its usual name, and a way to run it.

    A family writes `class FooForX(GenericForX, FooPreTrainedModel): base_class = FooModel`.
    """

    base_class: ClassVar[type[Any]]

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        setattr(self, self.base_model_prefix, self.base_class(config))

    def _states(self, arguments: dict[str, Any]) -> Any:
        """Run the base model; return its record."""
        return self.base_model(**{**arguments, "return_dict": True})


class GenericForSequenceClassification(ClassificationHead):
    """Scores for the whole text, read at its last real token."""

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config)
        self.score = nn.Linear(config.hidden_size, config.num_labels, bias=False)
        self.post_init()

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutputWithPast | tuple[Any, ...]:
        """Score each row (B, L); arguments as in the base model, and `labels` (B,) or (B, L), which add `loss`.

        Rows end at their last token that is not `config.pad_token_id`; without one a batch of several rows is refused.
        """
        return_dict = kwargs.pop("return_dict", None)
        out = self._states(
            {
                "input_ids": input_ids,
                "attention_mask": attention_mask,
                "position_ids": position_ids,
                "past_key_values": past_key_values,
                "inputs_embeds": inputs_embeds,
                "use_cache": use_cache,
                **kwargs,
            }
        )
        logits = self.score(out.last_hidden_state)  # (B, T, L)
        return self.finish(sequence_classifier_output(self, out, logits, input_ids, labels), return_dict)


class GenericForTokenClassification(ClassificationHead):
    """Scores for each token."""

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config)
        rates = (getattr(config, name, None) for name in ("classifier_dropout", "hidden_dropout"))
        self.dropout = nn.Dropout(next((rate for rate in rates if rate is not None), 0.1))
        self.score = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> TokenClassifierOutput | tuple[Any, ...]:
        """Score each token (B, T, L); arguments as in the base model, and `labels` (B, T), which add `loss`."""
        return_dict = kwargs.pop("return_dict", None)
        out = self._states(
            {
                "input_ids": input_ids,
                "attention_mask": attention_mask,
                "position_ids": position_ids,
                "past_key_values": past_key_values,
                "inputs_embeds": inputs_embeds,
                "use_cache": use_cache,
                **kwargs,
            }
        )
        logits = self.score(self.dropout(out.last_hidden_state))  # (B, T, L)
        return self.finish(token_classifier_output(self, out, logits, labels), return_dict)


class GenericForQuestionAnswering(ClassificationHead):
    """Scores for each token as the start and the end of an answer."""

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config)
        self.qa_outputs = nn.Linear(config.hidden_size, 2)
        self.post_init()

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: torch.Tensor | None = None,
        start_positions: torch.Tensor | None = None,
        end_positions: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> QuestionAnsweringModelOutput | tuple[Any, ...]:
        """Score each token (B, T) twice; arguments as in the base model, and these.

        Args:
            start_positions, end_positions: (B,) first and last token of the answer; both together add `loss`.
        """
        return_dict = kwargs.pop("return_dict", None)
        out = self._states(
            {
                "input_ids": input_ids,
                "attention_mask": attention_mask,
                "position_ids": position_ids,
                "past_key_values": past_key_values,
                "inputs_embeds": inputs_embeds,
                **kwargs,
            }
        )
        logits = self.qa_outputs(out.last_hidden_state)  # (B, T, 2)
        return self.finish(question_answering_output(out, logits, start_positions, end_positions), return_dict)


class SequenceSummary(nn.Module):
    """One vector for each sequence, by the five `summary_*` options of GPT-1 and GPT-2.

    Args:
        config: Reads summary_type ("last", "first", "mean", "cls_index"), summary_use_proj, summary_proj_to_labels,
            summary_activation (only "tanh" activates), summary_first_dropout and summary_last_dropout.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.summary_type = config.summary_type
        self.summary: nn.Module = nn.Identity()
        if config.summary_use_proj:
            to_labels = config.summary_proj_to_labels and config.num_labels > 0
            self.summary = nn.Linear(config.hidden_size, config.num_labels if to_labels else config.hidden_size)
        name = config.summary_activation
        self.activation = get_activation(name) if name == "tanh" else nn.Identity()
        self.first_dropout = nn.Dropout(config.summary_first_dropout)
        self.last_dropout = nn.Dropout(getattr(config, "summary_last_dropout", None) or 0.0)

    def forward(self, hidden_states: torch.Tensor, cls_index: torch.Tensor | None = None) -> torch.Tensor:
        """Summarise (..., T, D).

        Args:
            hidden_states: (B, T, D) or (B, C, T, D).
            cls_index: Position of the classification token, (B,) or (B, C); None for the last one.

        Returns:
            (B, L) or (B, C, L).
        """
        if self.summary_type == "last":
            picked = hidden_states[..., -1, :]
        elif self.summary_type == "first":
            picked = hidden_states[..., 0, :]
        elif self.summary_type == "mean":
            picked = hidden_states.mean(dim=-2)
        elif cls_index is None:
            picked = hidden_states[..., -1, :]
        else:
            index = self._checked(cls_index, hidden_states)[..., None, None]  # (..., 1, 1)
            picked = hidden_states.gather(-2, index.expand(*index.shape[:-1], hidden_states.shape[-1])).squeeze(-2)
        return self.last_dropout(self.activation(self.summary(self.first_dropout(picked))))

    @staticmethod
    def _checked(cls_index: torch.Tensor, hidden_states: torch.Tensor) -> torch.Tensor:
        length = hidden_states.shape[-2]
        if tuple(cls_index.shape) != tuple(hidden_states.shape[:-2]):
            raise InputError(
                f"mc_token_ids have shape {tuple(cls_index.shape)}, but must be {tuple(hidden_states.shape[:-2])}: one "
                "position for each sequence."
            )
        if cls_index.device.type == "cpu" and bool(((cls_index < 0) | (cls_index >= length)).any()):
            raise InputError(f"mc_token_ids must be positions from 0 to {length - 1}, and got {cls_index.tolist()}.")
        return cls_index.to(hidden_states.device)
