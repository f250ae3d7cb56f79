"""Which beams go on and which texts are complete: the bookkeeping of beam search, on the host.

A *candidate* is a beam and the token that may follow it. Of the candidates of a step, those that end a text compete for
the places of the complete ones, and the best of the others are the next beams. Tokens are stored once, as a tree: a
beam knows the beam it came from.

Letters: N searches side by side, K beams of each, C candidates of each at a step.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

__all__ = ["NOTHING", "Hypotheses", "Hypothesis"]

# The score of a place that holds nothing yet. Finite, so that sums and comparisons stay defined; the value is part of
# the results where a search has fewer live candidates than beams.
NOTHING = -1.0e9


History = tuple[list[list[int]], list[list[int]]]  # of one step: (N, K) parents and tokens


@dataclass(frozen=True)
class Hypothesis:
    """A complete text.

    Args:
        score: Sum of the scores of its tokens, divided by (number of tokens) ** length_penalty.
        tokens: Its new tokens; empty when the search has found fewer texts than it was to return.
        beams: For each token the beam, 0 to K - 1, that it followed.
    """

    score: float
    tokens: list[int]
    beams: list[int]


class Hypotheses:
    """Beams and complete texts of N searches that go in step.

    Args:
        searches: N.
        beams: K.
        candidates: C.
        most: New tokens that a text may have.
        length_penalty: Exponent of the length by which scores are divided.
        drops: Rows of searches that are settled are not read any more, and so need not move.
        early_stopping: True: a search ends with its K-th complete text. False: when its best beam, at its present
            length, is worse than the worst complete text. "never": when no continuation can be better.
    """

    def __init__(
        self,
        searches: int,
        beams: int,
        candidates: int,
        *,
        most: int,
        length_penalty: float,
        early_stopping: bool | str,
        drops: bool = False,
    ) -> None:
        self.length = 0  # new tokens of the beams
        # All beams begin as the same text: one of them counts, or every candidate would be there K times.
        self.scores = torch.zeros(searches, beams)  # (N, K), of the beams
        self.scores[:, 1:] = NOTHING
        self.parents = torch.zeros(searches, beams, dtype=torch.long)  # (N, K) beam each one came from, last step
        self.tokens = torch.zeros(searches, beams, dtype=torch.long)  # (N, K) last token of each
        self.finished = False  # whether no search can go on
        self._beams, self._most = beams, most
        self._penalty, self._early, self._drops = length_penalty, early_stopping, drops
        self._in_reach = torch.arange(candidates) < beams  # (C,) candidates good enough to be a complete text
        self._done_scores = torch.full((searches, beams), NOTHING)  # (N, K) complete texts, the best first
        self._is_done = torch.zeros(searches, beams, dtype=torch.bool)
        self._last = torch.full((searches, beams, 3), -1)  # (N, K, 3): last step, beam it followed, last token
        self._improvable = torch.ones(searches, 1, dtype=torch.bool)
        self._history: list[tuple[torch.Tensor, torch.Tensor]] = []  # of each step (parents, tokens)
        self._shared = torch.zeros(searches, beams, beams, dtype=torch.long)  # tokens that two beams begin with
        self._own = torch.arange(beams)
        self._offer: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]

    @property
    def open(self) -> torch.Tensor:
        """(N,) searches whose result may still change."""
        full = self._is_done.all(dim=1) if self._early is True else torch.zeros(len(self.scores), dtype=torch.bool)
        return self._improvable[:, 0] & ~full

    @property
    def settled(self) -> torch.Tensor:
        """(N,) searches that have K complete texts, which nothing can change any more."""
        return self._is_done.all(dim=1) & (~self.open | self.finished)

    @property
    def said(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(N, K) tokens that the beams chose in the last step, and whether each is of a text of an open search."""
        scores, tokens, ends, was_open = self._offer
        # When every candidate ends, by length for instance, no beam goes on; then the best count.
        going_on = torch.where(ends.all(dim=1, keepdim=True), scores, scores + ends.to(torch.float32) * NOTHING)
        best, chosen = going_on.topk(self._beams)
        return tokens.gather(1, chosen), (best > NOTHING / 2) & was_open[:, None]

    @property
    def alive(self) -> torch.Tensor:
        """(N,) searches with a beam that is a text and not only a placeholder."""
        return self.scores[:, 0] > NOTHING / 2

    def step(self, scores: torch.Tensor, parents: torch.Tensor, tokens: torch.Tensor, ends: torch.Tensor) -> int:
        """Choose the next beams, and take in texts that are complete.

        Args:
            scores: (N, C) sums of scores of the candidates, in float32.
            parents: (N, C) beam of each.
            tokens: (N, C) token that follows.
            ends: (N, C) whether the text ends with it.

        Returns:
            How many of the newest tokens read by the model differ, at most, between a beam and the one whose place it
            takes; 0 when none does.
        """
        self._offer = (scores, tokens, ends, self.open)
        self._take_in(scores, parents, tokens, ends)
        going_on = scores + ends.to(torch.float32) * NOTHING
        self.scores, chosen = going_on.topk(self._beams)  # (N, K)
        self.parents, self.tokens = parents.gather(1, chosen), tokens.gather(1, chosen)
        self._history.append((self.parents, self.tokens))
        newest = self._moved()
        self.length += 1
        self._look_ahead(bool(ends.all()))
        return newest

    def rest(self) -> None:
        """Stand still for a step, while other searches go on."""
        self.parents = self._own.expand_as(self.parents)
        scores, tokens, ends, _ = self._offer
        self._offer = (scores, tokens, ends, torch.zeros(len(scores), dtype=torch.bool))

    def _take_in(self, scores: torch.Tensor, parents: torch.Tensor, tokens: torch.Tensor, ends: torch.Tensor) -> None:
        """Let candidates that end compete with the complete texts for the K places."""
        complete = ends & self._in_reach
        final = scores / (self.length + 1) ** self._penalty
        # One sum after the other: in float32 the order decides between places that hold nothing.
        if self._early is True:
            final = final + self._is_done.all(dim=1, keepdim=True).to(torch.float32) * NOTHING
        final = final + (~self._improvable).to(torch.float32) * NOTHING
        final = final + (~complete).to(torch.float32) * NOTHING
        last = torch.stack((torch.full_like(parents, self.length), parents, tokens), dim=2)  # (N, C, 3)
        self._done_scores, best = torch.cat((self._done_scores, final), dim=1).topk(self._beams)  # (N, K)
        self._is_done = torch.cat((self._is_done, complete), dim=1).gather(1, best)
        best = best[:, :, None].expand(-1, -1, 3)  # (N, K) -> (N, K, 3)
        self._last = torch.cat((self._last, last), dim=1).gather(1, best)

    def _moved(self) -> int:
        """Return what `step` returns, and note the tokens that the new beams share."""
        moved = self.parents != self._own
        if self._drops:
            moved &= ~self.settled[:, None]
        newest = 0
        if bool(moved.any()):
            with_place = self._shared.gather(2, self.parents[:, :, None])[:, :, 0]  # (N, K): of parent and place
            newest = self.length - int(with_place[moved].min())
        rows, columns = self.parents[:, :, None], self.parents[:, None, :]  # (N, K, 1), (N, 1, K)
        shared = self._shared.gather(1, rows.expand_as(self._shared))
        shared = shared.gather(2, columns.expand_as(self._shared))
        self._shared = torch.where(rows == columns, self.length, shared)
        return newest

    def _look_ahead(self, all_end: bool) -> None:
        """Find out which searches can still be improved, and whether any goes on."""
        length = self._most if self._early == "never" and self._penalty > 0 else self.length
        best_possible = self.scores[:, :1] / length**self._penalty
        worst = torch.where(self._is_done, self._done_scores.min(dim=1, keepdim=True)[0], NOTHING)  # (N, K)
        self._improvable = self._improvable & (best_possible > worst).any(dim=1, keepdim=True)
        full = self._early is True and bool(self._is_done.all())
        self.finished = all_end or full or not bool(self._improvable.any())

    def best(self, count: int) -> list[list[Hypothesis]]:
        """Return the `count` best texts of each search, the best first."""
        history = [(parents.tolist(), tokens.tolist()) for parents, tokens in self._history]
        scores, last = self._done_scores.tolist(), self._last.tolist()
        return [
            [self._walk(history, search, scores[search][place], *last[search][place]) for place in range(count)]
            for search in range(len(scores))
        ]

    @staticmethod
    def _walk(
        history: list[tuple[list[list[int]], list[list[int]]]],
        search: int,
        score: float,
        step: int,
        beam: int,
        token: int,
    ) -> Hypothesis:
        """Follow the tree from a last token to the first."""
        tokens, beams = [], []
        while step >= 0:
            tokens.append(token)
            beams.append(beam)
            step -= 1
            if step >= 0:
                parents, chosen = history[step]
                beam, token = parents[search][beam], chosen[search][beam]
        return Hypothesis(score, tokens[::-1], beams[::-1])
