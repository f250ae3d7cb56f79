"""Perplexity of a text that is longer than the model: by windows that slide over it.

Letters: N tokens of the text, W window, S stride.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from quintet.errors import InputError
from quintet.evaluate.lambada import exponential
from quintet.generation.pairs import prefix_token
from quintet.generation.scoring import Scorer

__all__ = ["PerplexityResult", "evaluate_perplexity", "rolling_windows"]

# Models with room for a hundred thousand tokens are given this many, unless asked: attention grows with the square.
DEFAULT_WINDOW = 2048


@dataclass(frozen=True)
class PerplexityResult:
    """How well a model predicts a text.

    Args:
        nats: -log p of the predicted tokens, natural logarithm.
        tokens: Tokens predicted: all of the text, the first after bos (or eos; without both it is not predicted).
        bytes: Length of the text in UTF-8.
        words: Words of the text: what is between white space.
        token_perplexity: exp(nats / tokens). Depends on the tokenizer: compare models with the same one only.
        bits_per_byte: nats / ln 2 / bytes. Comparable between models whose tokens spell the text as it is.
        word_perplexity: exp(nats / words). Comparable likewise.
        window: W, tokens that the model is given at once.
        stride: S, tokens that a window adds: each but those of the first window is predicted from at least W - S.
    """

    nats: float
    tokens: int
    bytes: int
    words: int
    token_perplexity: float
    bits_per_byte: float
    word_perplexity: float
    window: int
    stride: int


def rolling_windows(
    tokens: Sequence[int], window: int, stride: int, prefix: int | None
) -> Iterator[tuple[list[int], list[int]]]:
    """Yield contexts and targets that together predict each token of a text once.

    The first window predicts its W tokens, each further one S more (the last what is left) after as many tokens as fit
    before them. With S = W these are the windows of lm-eval's `loglikelihood_rolling`.

    Args:
        tokens: (N,) the text.
        window: W, tokens given to the model at most.
        stride: S, from 1 to W.
        prefix: What the text begins after; None: its first token is not predicted.

    Raises:
        InputError: stride or window is out of range.
    """
    if window < 1 or not 1 <= stride <= window:
        raise InputError(f"stride is {stride} and window {window}; allowed is 1 <= stride <= window.")
    ids = [*([] if prefix is None else [prefix]), *tokens]
    done = 1  # of ids; the first has nothing before it
    while done < len(ids):
        end = min(done + (window if done == 1 else stride), len(ids))
        begin = max(0, end - 1 - window)  # the last target is not given to the model
        yield ids[begin:done], ids[done:end]
        done = end


def evaluate_perplexity(
    model: Any,
    tokenizer: Any,
    text: str,
    *,
    window: int | None = None,
    stride: int | None = None,
    batch_size: int = 8,
    progress: Callable[[int, int], None] | None = None,
) -> PerplexityResult:
    """Predict each token of a text from those before it.

    Args:
        model: A model with a language model's head.
        tokenizer: Its tokenizer.
        text: The text, of any length.
        window: W; default: what the model has room for, 2,048 at most.
        stride: S; default: half the window. Smaller is slower, and gives each token more to be predicted from.
        batch_size: Windows computed at once.
        progress: Called with the number of tokens done and of all.

    Raises:
        InputError: there is nothing to predict, or window or stride are out of range.
    """
    limit = model._position_limit()
    if window is None:
        window = min(limit or DEFAULT_WINDOW, DEFAULT_WINDOW)
    scorer = Scorer(model, window)
    stride = max(1, window // 2) if stride is None else stride
    tokens = tokenizer(text, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
    prefix = prefix_token(tokenizer)
    total = len(tokens) - (prefix is None)
    if total < 1:
        raise InputError(f"the text has {len(tokens)} tokens, so there is nothing to predict. Give a longer one.")
    windows = rolling_windows(tokens, window, stride, prefix)
    nats, done = 0.0, 0
    while batch := list(itertools.islice(windows, batch_size)):
        for score in scorer.score(batch):
            nats -= score.logprob
            done += score.tokens
        if progress is not None:
            progress(done, total)
    size, words = len(text.encode()), len(text.split())
    return PerplexityResult(
        nats=nats,
        tokens=done,
        bytes=size,
        words=words,
        token_perplexity=exponential(nats / done),
        bits_per_byte=nats / math.log(2) / size,
        word_perplexity=exponential(nats / max(words, 1)),
        window=window,
        stride=stride,
    )
