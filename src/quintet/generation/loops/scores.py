"""What every loop does with scores before a token is chosen, and what it says when none can be.

Letters: B rows, S tokens so far, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from quintet.errors import GenerationError
from quintet.generation.processors import LogitsProcessorList

__all__ = ["check_usable", "processed"]


def processed(
    processors: LogitsProcessorList, ids: torch.Tensor, logits: torch.Tensor, keep: bool = False
) -> torch.Tensor:
    """Return the scores after every processor.

    Args:
        processors: At least one.
        ids: (B, S).
        logits: (B, V).
        keep: Leave `logits` as they are, also where a processor of the caller writes into its scores.

    Raises:
        GenerationError: a processor returned something else than scores of that shape.
    """
    return processors(ids, logits.clone() if keep else logits)


def check_usable(scores: torch.Tensor, tokens: list[int], row_of: Callable[[int], int] = lambda place: place) -> None:
    """Check the choice of one column.

    Args:
        scores: (B, V) that the tokens were chosen from.
        tokens: B of them; -1 where the choice failed.
        row_of: Gives the row of the result for a row of `scores`, for the message.

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
    raise GenerationError(f"the next-token scores of row {row_of(row)} {what}. No token can be chosen.")
