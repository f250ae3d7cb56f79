"""What every loop does with scores before a token is chosen, and what it says when none can be.

Letters: B rows, S tokens so far, V vocabulary.
"""

from __future__ import annotations

import torch

from quintet.errors import GenerationError
from quintet.generation.processors import LogitsProcessorList

__all__ = ["check_usable", "processed"]


def processed(processors: LogitsProcessorList, ids: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """Return the scores after every processor.

    Args:
        processors: At least one.
        ids: (B, S).
        logits: (B, V).

    Raises:
        GenerationError: a processor returned another shape.
    """
    scores = processors(ids, logits)
    if scores.shape != logits.shape:
        raise GenerationError(
            f"the logits processors returned scores of shape {tuple(scores.shape)} for "
            f"{tuple(logits.shape)}. Each must return one score per row and vocabulary entry."
        )
    return scores


def check_usable(scores: torch.Tensor, tokens: list[int]) -> None:
    """Check the choice of one column.

    Args:
        scores: (B, V) that the tokens were chosen from.
        tokens: B of them; -1 where the choice failed.

    Raises:
        GenerationError: a row has no usable score.
    """
    if min(tokens) >= 0:
        return
    row = next(index for index, token in enumerate(tokens) if token < 0)
    values = scores[row]
    if bool(values.isnan().any()):
        what = "hold NaN: the model overflowed or its weights are damaged (float32 or bfloat16 often helps)"
    elif bool((values == float("inf")).any()):
        what = "hold +inf: a processor or the model overflowed"
    else:
        what = "are all -inf: the processors ruled out every token. Loosen one of them"
    raise GenerationError(f"the next-token scores of row {row} {what}. No token can be chosen.")
