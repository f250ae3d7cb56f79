"""Losses of the heads, once for every family.

Letters: B rows, T tokens, V vocabulary, L labels.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from quintet.config import PreTrainedConfig
from quintet.errors import ConfigError, InputError

__all__ = [
    "causal_lm_loss",
    "question_answering_loss",
    "sequence_classification_loss",
    "token_classification_loss",
]

IGNORE_INDEX = -100


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
