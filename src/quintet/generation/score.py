"""`model.score`: the log-probability of every token of given texts, or of what follows given beginnings.

Letters: B rows, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from quintet.errors import InputError
from quintet.generation.pairs import encode_pair
from quintet.generation.scoring import Pair, Score, score_targets

__all__ = ["ScoreMixin"]

Text = str | Sequence[int] | torch.Tensor


class ScoreMixin:
    """Adds `score` to a model with a language-modeling head."""

    def score(
        self,
        texts: Text | Sequence[Text] | None = None,
        continuations: Text | Sequence[Text] | None = None,
        *,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        tokenizer: Any = None,
        prefix_token_id: int | None = None,
        batch_size: int = 8,
        max_length: int | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[Score]:
        """Return the log-probability of each token of each text, given the tokens before it.

        The first token of a text has nothing before it and is not scored, unless `prefix_token_id` says what is. Texts
        of similar length are computed together, and a text's numbers do not depend on the others beyond rounding.
        Hidden states are computed once; the head is applied to slices of the tokens, so that memory stays bounded by
        some 200 MiB beside them whatever the vocabulary. Dropout is off.

        Args:
            texts: A text or several, each a string or token ids; or a tensor of ids, (B, T).
            continuations: For each text what follows it; then only its tokens are scored. Of two strings, blanks at the
                end of the text go to the continuation, as in lm-eval.
            input_ids: (B, T) ids in place of `texts`.
            attention_mask: (B, T) with 0 for padding in a tensor of ids, on either side.
            tokenizer: Needed for strings.
            prefix_token_id: Token to put before every text (often bos), so that the first token is scored as well.
            batch_size: Texts computed at once.
            max_length: Tokens that the model is given at most; default: what it has room for. Of a text before a longer
                continuation the beginning is left out (`Score.cut`); a whole text must fit.
            progress: Called with the number of texts done and of all.

        Returns:
            For each text a Score: `ids` and `logprobs` of the scored tokens, `logprob` their sum, `greedy`, `tokens`.

        Raises:
            InputError: a text has nothing to score or no room, an id is outside the vocabulary, or arguments do not fit
                each other.
        """
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise InputError(f"batch_size is {batch_size!r}, but must be a whole number from 1.")
        if (texts is None) == (input_ids is None):
            both = "neither" if texts is None else "both"
            raise InputError(f"give either texts or input_ids; got {both}.")
        rows = _rows("input_ids" if texts is None else "texts", input_ids if texts is None else texts, attention_mask)
        if continuations is None:
            pairs = [_whole(number, _ids(row, tokenizer), prefix_token_id) for number, row in enumerate(rows)]
        else:
            follow = _rows("continuations", continuations, None)
            if len(follow) != len(rows):
                raise InputError(
                    f"there are {len(rows)} texts and {len(follow)} continuations. Give one continuation for each text."
                )
            pairs = [_pair(*both, tokenizer, prefix_token_id) for both in zip(rows, follow, strict=True)]
        return score_targets(self, pairs, batch_size=batch_size, max_length=max_length, progress=progress)


def _rows(name: str, given: Any, mask: torch.Tensor | None) -> list[str | list[int]]:
    """Return the texts one by one: strings, or lists of ids without padding."""
    if isinstance(given, str):
        given = [given]
    if isinstance(given, torch.Tensor):
        if given.dim() not in (1, 2) or given.is_floating_point() or given.is_complex() or given.dtype == torch.bool:
            raise InputError(
                f"{name} are {given.dtype} of shape {tuple(given.shape)}, but must be ids, (rows, tokens)."
            )
        given = given.reshape(-1, given.shape[-1])
        keep = torch.ones_like(given) if mask is None else mask
        if not isinstance(keep, torch.Tensor) or keep.shape != given.shape:
            got = tuple(keep.shape) if isinstance(keep, torch.Tensor) else type(keep).__name__
            raise InputError(f"attention_mask is {got}, but must have the shape of the ids, {tuple(given.shape)}.")
        return [row[real].tolist() for row, real in zip(given, (keep != 0).to(given.device), strict=True)]
    if mask is not None:
        raise InputError(f"attention_mask goes with a tensor of ids, and {name} are none. Leave it out.")
    if not isinstance(given, Sequence) or isinstance(given, (bytes, dict)):
        raise InputError(
            f"{name} are of type {type(given).__name__}, but must be a text, a list of texts, or token ids."
        )
    if given and all(_is_id(one) for one in given):  # the ids of one text
        return [[int(one) for one in given]]
    rows: list[str | list[int]] = []
    for number, one in enumerate(given):
        if isinstance(one, torch.Tensor) and one.dim() == 1 and not one.is_floating_point():
            one = one.tolist()
        if not isinstance(one, str) and not (isinstance(one, Sequence) and all(_is_id(part) for part in one)):
            raise InputError(f"{name}[{number}] is {one!r:.60}, but must be a string or a list of token ids.")
        rows.append(one if isinstance(one, str) else [int(part) for part in one])
    return rows


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _tokenizer(tokenizer: Any) -> Any:
    if tokenizer is None:
        raise InputError("texts are strings, so their tokenizer is needed: score(texts, tokenizer=tokenizer).")
    return tokenizer


def _ids(row: str | list[int], tokenizer: Any) -> list[int]:
    if not isinstance(row, str):
        return row
    return list(_tokenizer(tokenizer)(row, return_attention_mask=False, verbose=False)["input_ids"])


def _whole(number: int, ids: list[int], prefix: int | None) -> Pair:
    """Return the context and the target of a text that is scored from its beginning."""
    known = ids[:1] if prefix is None else [prefix]
    target = ids[len(known) :] if prefix is None else ids
    if not target:
        raise InputError(
            f"text {number} (counted from 0) has {len(ids)} tokens, so there is nothing to score. Give a longer one, "
            "or prefix_token_id (often tokenizer.bos_token_id) to score the first token too."
        )
    return known, target


def _pair(text: str | list[int], following: str | list[int], tokenizer: Any, prefix: int | None) -> Pair:
    """Return the context and the target of a text and what follows it."""
    before = [] if prefix is None else [prefix]
    if isinstance(text, str) and isinstance(following, str):
        context, target = encode_pair(_tokenizer(tokenizer), text, following)
        return (context if context[:1] == before else [*before, *context]), target
    return [*before, *_ids(text, tokenizer)], _ids(following, tokenizer)
