"""Log-probabilities of given tokens after given contexts: what `model.score` and every evaluation is made of.

Letters: B rows, T tokens of the longest row, D hidden size, V vocabulary, N scored tokens of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from quintet.errors import InputError
from quintet.generation.twins import use_twins

__all__ = ["Score", "Scorer", "left_padded", "score_targets"]

# Log-probabilities are made for as many tokens at once as have room in this, whatever the vocabulary: 80 of 200,000.
SLICE_BYTES = 64 * 2**20

# The ids of a context and of what follows it.
Pair = tuple[Sequence[int], Sequence[int]]


@dataclass(frozen=True)
class Score:
    """What a model says of one target.

    Args:
        logprob: Natural logarithm of the probability of all its tokens, one after the other.
        greedy: Whether each token is the likeliest one at its place, so that greedy decoding would write the target.
        tokens: How many tokens it has.
        cut: How many tokens of the context's beginning were left out, because the model has no room for them.
        ids: These tokens.
        logprobs: Natural logarithm of the probability of each, given all before it.
    """

    logprob: float
    greedy: bool
    tokens: int
    cut: int
    ids: tuple[int, ...] = field(default=(), compare=False, repr=False)
    logprobs: tuple[float, ...] = field(default=(), compare=False, repr=False)


def score_targets(
    model: Any,
    pairs: Sequence[Pair],
    *,
    batch_size: int = 8,
    max_length: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Score]:
    """Return the log-probability of each target after its context.

    Rows of similar length are computed together; the order of the results is that of the pairs, and a pair's numbers
    do not depend on its neighbours beyond rounding. Hidden states are computed once; the head and the probabilities,
    in float32, in slices of the tokens: memory for them stays at some 200 MiB, never rows x tokens x vocabulary.

    Args:
        model: A model with a language model's head.
        pairs: For each target the token ids of its context, at least one, and its own, at least one.
        batch_size: Rows computed at once.
        max_length: Tokens that the model is given at most; default: what it has room for. Longer contexts lose their
            beginning.
        progress: Called with the number of pairs done and of all.

    Raises:
        InputError: a context or target is empty, a target has no room, or an id is not in the vocabulary.
    """
    scorer = Scorer(model, max_length)
    order = sorted(range(len(pairs)), key=lambda i: -len(pairs[i][0]) - len(pairs[i][1]))  # the largest batch first
    scores: dict[int, Score] = {}
    for first in range(0, len(order), batch_size):
        batch = order[first : first + batch_size]
        scores.update(zip(batch, scorer.score([pairs[i] for i in batch]), strict=True))
        if progress is not None:
            progress(len(scores), len(pairs))
    return [scores[i] for i in range(len(pairs))]


class Scorer:
    """Scores batches in the order they come; see `score_targets`, which sorts them.

    Args:
        model: A model with a language model's head.
        max_length: Tokens that the model is given at most; default: what it has room for.
    """

    def __init__(self, model: Any, max_length: int | None = None) -> None:
        limit = model._position_limit()
        if max_length is not None and (max_length < 1 or (limit is not None and max_length > limit)):
            room = f", and this model has room for {limit}" if limit is not None else ""
            raise InputError(f"max_length is {max_length}, but must be at least 1{room}.")
        use_twins(model)
        self.model = model
        self.max_length: int | None = max_length or limit
        self._size = model.get_input_embeddings().num_embeddings
        self._plain: bool | None = None  # whether the logits are what the head makes of the last states

    def score(self, batch: Sequence[Pair]) -> list[Score]:
        """Score the pairs of one batch.

        Raises:
            InputError: a context or target is empty, a target has no room, or an id is not in the vocabulary.
        """
        if not batch:
            return []
        rows, cuts = zip(*(self._row(context, target) for context, target in batch), strict=True)
        lengths = [len(target) for _, target in batch]
        ids, mask = left_padded(rows)  # (B, T), (B, T) or None
        targets = torch.cat([torch.as_tensor(target, dtype=torch.long) for _, target in batch])  # (N,)
        low, high = (int(edge(edge(ids), edge(targets))) for edge in (torch.min, torch.max))
        if low < 0 or high >= self._size:
            raise InputError(
                f"token ids go from {low} to {high}, but the model has {self._size} tokens: tokenizer and model do not "
                "belong together."
            )
        # A row ends at the right edge, and its targets are predicted by its last places.
        row_of = torch.tensor([row for row, count in enumerate(lengths) for _ in range(count)])  # (N,)
        place = torch.cat([torch.arange(ids.shape[1] - count, ids.shape[1]) for count in lengths])  # (N,)
        with evaluating(self.model):
            logprobs, likeliest = self._compare(ids, mask, row_of, place, targets)
        parts = zip(logprobs.split(lengths), likeliest.split(lengths), lengths, cuts, strict=True)
        return [
            Score(float(logs.sum()), bool(hits.all()), count, cut, tuple(map(int, target)), tuple(logs.tolist()))
            for (logs, hits, count, cut), (_, target) in zip(parts, batch, strict=True)
        ]

    def _row(self, context: Sequence[int], target: Sequence[int]) -> tuple[list[int], int]:
        """What the model is given, the last token of the target not, and how many tokens were cut off before it."""
        if not len(context) or not len(target):
            empty = "target" if len(context) else "context"
            raise InputError(f"the {empty} has no tokens; both need at least one. An empty text begins after bos.")
        whole = [*context, *target][:-1]
        cut = 0 if self.max_length is None else max(0, len(whole) - self.max_length)
        if cut >= len(context):
            raise InputError(
                f"the target has {len(target)} tokens, but the model is given {self.max_length} at most. Score it in "
                "parts, as rolling_windows does."
            )
        return whole[cut:], cut

    def _compare(
        self, ids: Tensor, mask: Tensor | None, row_of: Tensor, place: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Log-probabilities of the targets (N,), float64, and whether each is the likeliest token (N,); on the CPU."""
        device = self.model.device
        if self._plain is None:
            self._plain = self._head_is_plain(ids[:1, -8:].to(device))
        if not self._plain and len(ids) > 1:  # whole logits: at least not those of all rows at once
            parts = []
            for row in range(len(ids)):
                mine = row_of == row
                row_mask = None if mask is None else mask[row : row + 1]
                parts.append(self._compare(ids[row : row + 1], row_mask, row_of[mine] * 0, place[mine], targets[mine]))
            return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])
        given = {"input_ids": ids.to(device), "attention_mask": None if mask is None else mask.to(device)}
        head: Any = self.model.get_output_embeddings() if self._plain else torch.nn.Identity()
        states = self._states(given) if self._plain else self.model(**given, use_cache=False, return_dict=True).logits
        picked = states[row_of.to(states.device), place.to(states.device)]  # (N, D), or (N, V)
        del states
        size = max(1, SLICE_BYTES // (4 * self._size))
        logprobs, likeliest = [], []
        for first in range(0, len(picked), size):
            logits = head(picked[first : first + size])  # (slice, V)
            wanted = targets[first : first + size].to(logits.device)
            likeliest.append((logits.argmax(-1) == wanted).cpu())
            logits = logits.log_softmax(-1, dtype=torch.float32)
            logprobs.append(logits.gather(1, wanted[:, None])[:, 0].double().cpu())  # (slice,)
        return torch.cat(logprobs), torch.cat(likeliest)

    def _states(self, given: dict[str, Any]) -> Tensor:
        return self.model.base_model(**given, use_cache=False, return_dict=True).last_hidden_state  # (B, T, D)

    def _head_is_plain(self, ids: Tensor) -> bool:
        """Whether base model and output layer give the model's logits; a family of one's own may scale or cap them."""
        head = self.model.get_output_embeddings()
        if head is None or self.model.base_model is self.model:
            return False
        whole = self.model(input_ids=ids, use_cache=False, return_dict=True).logits.float()
        parts = head(self._states({"input_ids": ids})).float()
        return parts.shape == whole.shape and torch.allclose(parts, whole, rtol=1e-3, atol=1e-3)


def left_padded(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor | None]:
    """Make ids (B, T), filled up at the left with zeros, and the mask of what is real (B, T), None when everything is.

    At the left because then every family counts positions from the first real token, also where the length of a row
    changes the frequencies of its positions.
    """
    longest = max(map(len, rows))
    ids = torch.tensor([[0] * (longest - len(row)) + list(row) for row in rows], dtype=torch.long)
    if all(len(row) == longest for row in rows):
        return ids, None
    return ids, torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows], dtype=torch.long)


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Without dropout and gradients; the model is afterwards in the mode it was in."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)
