"""What sits on top of a base model, once for every family: losses, pooling, sequence summary.

Letters: B rows, T tokens, V vocabulary, D hidden size, L labels, C choices.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from quintet.config import PreTrainedConfig
from quintet.errors import ConfigError, InputError
from quintet.layers.activations import get_activation

__all__ = [
    "SequenceSummary",
    "causal_lm_loss",
    "keep_logits",
    "last_token_logits",
    "question_answering_loss",
    "sequence_classification_loss",
    "token_classification_loss",
]

IGNORE_INDEX = -100


def keep_logits(hidden_states: torch.Tensor, logits_to_keep: int | torch.Tensor) -> torch.Tensor:
    """Keep the positions (B, T, D) whose logits are wanted: the last `n` (0 means all), or those of an index tensor."""
    if isinstance(logits_to_keep, torch.Tensor):
        return hidden_states[:, logits_to_keep]
    if logits_to_keep < 0:
        raise InputError(f"logits_to_keep is {logits_to_keep}; give 0 for all, n for the last n, or an index tensor.")
    return hidden_states if logits_to_keep == 0 else hidden_states[:, -logits_to_keep:]


def check_labels(labels: torch.Tensor, classes: int, what: str = "labels") -> None:
    """Raise InputError when a label is neither -100 nor from 0 to `classes` - 1 (checked where looking is free)."""
    if (
        torch.compiler.is_compiling()
        or labels.device.type != "cpu"
        or labels.is_floating_point()
        or labels.numel() == 0
    ):
        return
    wrong = (labels != IGNORE_INDEX) & ((labels < 0) | (labels >= classes))
    if bool(wrong.any()):
        raise InputError(
            f"{what} holds {int(labels[wrong][0])}; allowed are 0 to {classes - 1}, and {IGNORE_INDEX} to be ignored."
        )


def causal_lm_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    vocab_size: int,
    num_items_in_batch: int | torch.Tensor | None = None,
) -> torch.Tensor:
    """Cross-entropy of each token given those before it.

    Args:
        logits: (..., T, V); position t predicts token t + 1.
        labels: (..., T), not shifted; -100 is ignored.
        vocab_size: V.
        num_items_in_batch: Divide the sum by this number instead of the tokens counted here, so that gradient
            accumulation over several batches equals one large batch.

    Raises:
        InputError: shapes differ, or a label is outside the vocabulary.
    """
    if tuple(labels.shape) != tuple(logits.shape[:-1]):
        raise InputError(
            f"labels have shape {tuple(labels.shape)} and the logits are for {tuple(logits.shape[:-1])} tokens. Give "
            "one label for each token (they are shifted inside), and do not cut the logits with logits_to_keep."
        )
    check_labels(labels, vocab_size)
    labels = labels.to(logits.device, torch.int64)
    labels = F.pad(labels, (0, 1), value=IGNORE_INDEX)[..., 1:].reshape(-1)  # (... * T,)
    scores = logits.float().reshape(-1, vocab_size)  # (... * T, V)
    if num_items_in_batch is None:
        return F.cross_entropy(scores, labels, ignore_index=IGNORE_INDEX)
    total = F.cross_entropy(scores, labels, ignore_index=IGNORE_INDEX, reduction="sum")
    return total / num_items_in_batch


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


def sequence_classification_loss(config: PreTrainedConfig, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Loss of (B, L) scores: mean square for "regression", cross-entropy for "single_label_classification", binary
    cross-entropy for "multi_label_classification". When `config.problem_type` is None it is found from the number and
    type of the labels and remembered there, as the reference does."""
    labels = labels.to(logits.device)
    if config.problem_type is None:
        if config.num_labels == 1:
            config.problem_type = "regression"
        elif labels.dtype in (torch.long, torch.int):
            config.problem_type = "single_label_classification"
        else:
            config.problem_type = "multi_label_classification"
    if config.problem_type == "regression":
        if config.num_labels == 1:
            return F.mse_loss(logits.squeeze(), labels.squeeze().to(logits.dtype))
        return F.mse_loss(logits, labels)
    if config.problem_type == "single_label_classification":
        check_labels(labels, config.num_labels)
        return F.cross_entropy(logits.view(-1, config.num_labels), labels.reshape(-1).long())
    if config.problem_type == "multi_label_classification":
        return F.binary_cross_entropy_with_logits(logits, labels)
    raise ConfigError(
        f"config.problem_type is {config.problem_type!r}, but must be regression, single_label_classification, "
        "multi_label_classification or None."
    )


def token_classification_loss(logits: torch.Tensor, labels: torch.Tensor, num_labels: int) -> torch.Tensor:
    """Cross-entropy of (B, T, L) scores against (B, T) labels, -100 ignored."""
    check_labels(labels, num_labels)
    return F.cross_entropy(logits.view(-1, num_labels), labels.to(logits.device, torch.int64).reshape(-1))


def question_answering_loss(
    start_logits: torch.Tensor, end_logits: torch.Tensor, starts: torch.Tensor, ends: torch.Tensor
) -> torch.Tensor:
    """Mean of the cross-entropies of start and end, (B, T) scores against (B,) positions.

    Positions past the end of the text (a cut-off answer) are ignored, negative ones count as 0.
    """
    length = start_logits.shape[1]

    def one(logits: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        positions = positions.squeeze(-1) if positions.dim() > 1 else positions
        positions = positions.to(logits.device, torch.int64).clamp(0, length)
        return F.cross_entropy(logits, positions, ignore_index=length)

    return (one(start_logits, starts) + one(end_logits, ends)) / 2


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
