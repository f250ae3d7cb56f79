"""An interpolated Kneser-Ney n-gram model over token ids, in numpy.

Modified Kneser-Ney of Chen and Goodman (1999, "An empirical study of smoothing techniques for language modeling"):
the longest order counts occurrences, the shorter ones count different left neighbours, three discounts per order, and
what they take away goes to the next shorter order, down to the uniform distribution. Probabilities sum to 1.

Letters: N tokens of text, n order, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = ["KneserNey", "discounts"]


def discounts(counts: np.ndarray) -> np.ndarray:
    """Return what to take from counts of 0, 1, 2 and from 3 on, (4,), by the formula of Chen and Goodman.

    Where a small text has no n-gram of some count, the formula has no value and half an occurrence is taken.
    """
    n = np.bincount(np.minimum(counts, 5), minlength=6).astype(np.float64)
    taken = np.array([0.0, 0.5, 0.5, 0.5])
    if n[1] and n[2]:
        y = n[1] / (n[1] + 2 * n[2])
        for k in (1, 2, 3):
            if n[k] and n[k + 1]:
                taken[k] = min(max(k - (k + 1) * y * n[k + 1] / n[k], 0.0), float(k))
    return taken


@dataclass
class _Order:
    """The n-grams of one length, sorted by key = (rank of the first n - 1 tokens) * V + last token.

    Args:
        keys: (types,) the sorted keys; a type's place in it is its rank.
        kept: (types,) its count less the discount.
        total: (contexts,) sum of the counts after each context, indexed by the context's rank one order below.
        spare: (contexts,) sum of the discounts after each context.
    """

    keys: np.ndarray
    kept: np.ndarray
    total: np.ndarray
    spare: np.ndarray


class KneserNey:
    """Counts of a text, ready to give probabilities.

    Args:
        tokens: (N,) ids of the text, N at least `order`.
        vocab_size: V.
        order: The longest n-gram.
    """

    def __init__(self, tokens: np.ndarray, vocab_size: int, order: int = 5) -> None:
        tokens = np.asarray(tokens, dtype=np.int64)
        if len(tokens) < order:
            raise ValueError(f"the text has {len(tokens)} tokens, but an order of {order} needs at least {order}.")
        if len(tokens) * vocab_size >= 2**63:
            raise ValueError(f"{len(tokens)} tokens of {vocab_size} kinds are too many for keys of 64 bits.")
        self.vocab_size, self.order = vocab_size, order
        self._orders: list[_Order] = []
        keys, ranks, first = [], [], []
        prefix = np.zeros(len(tokens), dtype=np.int64)  # rank of the empty context
        for n in range(1, order + 1):
            # n-grams by their start: the rank of the first n - 1 tokens, and the last token
            spelled = prefix[: len(tokens) - n + 1] * vocab_size + tokens[n - 1 :]
            unique, start, prefix = np.unique(spelled, return_index=True, return_inverse=True)
            keys.append(unique)
            ranks.append(prefix)
            first.append(start)
        for n in range(order):
            if n == order - 1:
                counts = np.bincount(ranks[n], minlength=len(keys[n]))
            else:
                # Each type one token longer is one left neighbour of the type it ends with.
                counts = np.bincount(ranks[n][first[n + 1] + 1], minlength=len(keys[n]))
            contexts = 1 if n == 0 else len(keys[n - 1])
            taken = discounts(counts)[np.minimum(counts, 3)]
            owner = keys[n] // vocab_size
            total = np.bincount(owner, weights=counts, minlength=contexts)
            spare = np.bincount(owner, weights=taken, minlength=contexts)
            self._orders.append(_Order(keys[n], counts - taken, total, spare))

    def probabilities(self, contexts: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """Return the probability of each token after its context.

        Args:
            contexts: (M, order - 1) ids of the tokens before, the nearest last; -1 where there is none.
            tokens: (M,) ids.
        """
        contexts, tokens = np.asarray(contexts, dtype=np.int64), np.asarray(tokens, dtype=np.int64)
        p = np.full(len(tokens), 1.0 / self.vocab_size)
        for n, table in enumerate(self._orders):
            context = self._ranks(contexts[:, contexts.shape[1] - n :])
            place, found = self._find(table.keys, np.where(context >= 0, context * self.vocab_size + tokens, -1))
            total = np.where(context >= 0, table.total[context], 0.0)
            known = total > 0  # after a context that the text has not, the shorter order stands alone
            kept = np.where(found, table.kept[place], 0.0)
            p = np.where(known, (kept + table.spare[context] * p) / np.where(known, total, 1.0), p)
        return p

    def nats(self, tokens: np.ndarray) -> float:
        """Return -log of the probability of a whole text (N,), each token after the `order` - 1 before it."""
        tokens = np.asarray(tokens, dtype=np.int64)
        padded = np.concatenate([np.full(self.order - 1, -1), tokens])
        windows = np.lib.stride_tricks.sliding_window_view(padded, self.order)  # (N, order)
        return float(-np.log(self.probabilities(windows[:, :-1], tokens)).sum())

    def _ranks(self, contexts: np.ndarray) -> np.ndarray:
        """Return the rank of each context (M, n), or -1 where the text does not have it."""
        rank = np.zeros(len(contexts), dtype=np.int64)
        for n in range(contexts.shape[1]):
            usable = (rank >= 0) & (contexts[:, n] >= 0)
            key = np.where(usable, rank * self.vocab_size + contexts[:, n], -1)
            place, found = self._find(self._orders[n].keys, key)
            rank = np.where(found, place, -1)
        return rank

    @staticmethod
    def _find(keys: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
        return place, keys[place] == wanted
