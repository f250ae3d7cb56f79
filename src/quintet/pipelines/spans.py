"""From scores of tokens to the best spans, as in Devlin et al. 2018 (BERT), section 4.2 and 4.3.

Letters: T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy

__all__ = ["best_spans", "merge_answers", "no_answer_score", "probabilities"]


def probabilities(logits: Any, usable: Sequence[bool]) -> Any:
    """Return the softmax of (T,) scores over the tokens that may be in an answer; the others get next to nothing."""
    kept = numpy.where(numpy.asarray(usable), logits, numpy.float32(-10000.0))
    powers = numpy.exp(kept - kept.max())
    return powers / powers.sum()


def no_answer_score(start: Any, end: Any) -> float:
    """Return the chance of the first token as a span of its own, which stands for no answer."""
    return float(start[0] * end[0])


def best_spans(
    start: Any, end: Any, usable: Sequence[bool], count: int, max_tokens: int
) -> list[tuple[int, int, float]]:
    """Return the likeliest spans as (first token, last token, score), best first.

    Args:
        start, end: (T,) probabilities; those of the first token stand for no answer and do not count.
        usable: Tokens that may be in an answer.
        count: Spans at most.
        max_tokens: Tokens of a span at most.
    """
    start, end = start.copy(), end.copy()
    start[0] = end[0] = 0.0
    scores = numpy.tril(numpy.triu(numpy.outer(start, end)), max_tokens - 1)  # (T, T), [first, last]
    flat = scores.ravel()
    if count < flat.size:
        best = numpy.argpartition(-flat, count)[:count]
        best = best[numpy.argsort(-flat[best])]
    else:
        best = numpy.argsort(-flat)
    firsts, lasts = numpy.unravel_index(best[:count], scores.shape)
    return [
        (int(first), int(last), float(scores[first, last]))
        for first, last in zip(firsts, lasts, strict=True)
        if usable[first] and usable[last]
    ]


def merge_answers(answers: list[dict[str, Any]], new: dict[str, Any]) -> None:
    """Add an answer; one with the same words, whatever their case, only adds its score."""
    for answer in answers:
        if answer["answer"].lower() == new["answer"].lower():
            answer["score"] += new["score"]
            return
    answers.append(new)
