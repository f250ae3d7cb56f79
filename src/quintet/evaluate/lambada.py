"""LAMBADA: can a model guess the last word of a passage, which takes the whole passage to guess.

Data: Paperno et al. 2016, arXiv 1606.06031; the untouched passages are those that OpenAI tested GPT-2 with. The two
numbers are those of lm-eval's task `lambada_openai`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from quintet.errors import InputError
from quintet.generation.pairs import encode_pair
from quintet.generation.scoring import score_targets

__all__ = ["LambadaResult", "evaluate_lambada", "split_last_word"]


@dataclass(frozen=True)
class LambadaResult:
    """How a model did on LAMBADA.

    Args:
        records: Passages.
        accuracy: Part of them whose last word is what greedy decoding writes, all its tokens.
        accuracy_stderr: Standard error of the accuracy; None for a single passage.
        perplexity: exp(-mean of log p(last word)); a word of several tokens counts once, with all of them.
        target_tokens: Tokens of all last words.
        cut: Passages whose beginning was left out, because the model has no room for it.
    """

    records: int
    accuracy: float
    accuracy_stderr: float | None
    perplexity: float
    target_tokens: int
    cut: int


def split_last_word(text: str) -> tuple[str, str]:
    """Split at the last space: ("the cat sat", " down"). The word keeps the space; without one the context is empty.

    Raises:
        InputError: the text ends with a space, so that no word follows it.
    """
    context, _, word = text.rpartition(" ")
    if not word:
        raise InputError(f"the text ends with a space, so it has no last word: {text[-40:]!r}. Remove the space.")
    return context, " " + word


def evaluate_lambada(
    model: Any,
    tokenizer: Any,
    texts: Sequence[str],
    *,
    batch_size: int = 8,
    progress: Callable[[int, int], None] | None = None,
) -> LambadaResult:
    """Predict the last word of each text.

    Args:
        model: A model with a language model's head.
        tokenizer: Its tokenizer.
        texts: Passages, each with its last word.
        batch_size: Rows computed at once.
        progress: Called with the number of passages done and of all.

    Raises:
        InputError: there is no text, or one has no last word.
    """
    if isinstance(texts, str) or not len(texts):
        raise InputError(f"texts must be a list of at least one text, and got {texts!r:.40}.")
    pairs = []
    for number, text in enumerate(texts):
        try:
            pairs.append(encode_pair(tokenizer, *split_last_word(text)))
        except InputError as error:
            raise InputError(f"text {number} (counted from 0): {error}") from None
    scores = score_targets(model, pairs, batch_size=batch_size, progress=progress)
    count = len(scores)
    accuracy = sum(score.greedy for score in scores) / count
    return LambadaResult(
        records=count,
        accuracy=accuracy,
        accuracy_stderr=math.sqrt(accuracy * (1 - accuracy) / (count - 1)) if count > 1 else None,
        perplexity=exponential(-sum(score.logprob for score in scores) / count),
        target_tokens=sum(score.tokens for score in scores),
        cut=sum(score.cut > 0 for score in scores),
    )


def exponential(value: float) -> float:
    """e to the power of `value`, infinity where that is too large for a number."""
    return math.exp(value) if value < 709 else math.inf
