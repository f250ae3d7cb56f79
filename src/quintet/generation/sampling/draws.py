"""Where the random numbers of a batch come from: one source for all rows, or a stream of its own for each row.

With the global source a row's numbers depend on the rows beside it, as in the reference. With a generator given, they
depend on nothing but the generator and the number of the new token: a row gives the same tokens alone and in any batch.

Letters: B rows of the result, A rows that are still decoded, C copies of each prompt, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from quintet.errors import GenerationError
from quintet.generation.sampling.choose import race

__all__ = ["Draws", "Generators"]

Generators = torch.Generator | Sequence[torch.Generator] | None

# Numbers that float32 can hold: 0 would give a token without a probability the division 0 / 0, and 1 would take the
# only token that is left out of the race.
LEAST, MOST = 1e-30, 1 - 2**-24


class Draws:
    """Draws a token for each row of a batch.

    Args:
        generators: None for the global source. One generator: each copy of a prompt gets a stream of its own that
            begins with a number drawn from it, the first copies of all prompts the same, and so on. A list of B
            generators: each row draws from its own, until it is finished.
        rows: B.
        copies: C; the copies of a prompt stand side by side.

    Raises:
        GenerationError: `generators` is of another type, has another length, or names a generator twice.
    """

    def __init__(self, generators: Generators, rows: int, copies: int = 1) -> None:
        self._rows, self._copies = rows, copies
        self._streams: list[torch.Generator] | None = None
        self._shared = False
        if isinstance(generators, torch.Generator):
            self._streams, self._shared = _split(generators, copies), True
        elif generators is not None:
            self._streams = _checked(generators, rows)

    def __call__(self, scores: torch.Tensor, rows: torch.Tensor | None = None) -> torch.Tensor:
        """Draw with the probabilities softmax(scores).

        Args:
            scores: (A, V).
            rows: (A,) which rows of the result these are; None for all.

        Returns:
            (A,) tokens; -1 where the scores give no distribution (NaN, inf, or all -inf).
        """
        if self._streams is None:
            # The global source must go on as if all rows were there, so that the others' numbers stay what they are.
            noise = scores.new_empty((self._rows, scores.shape[1])).exponential_(1)
            return race(scores, noise if rows is None else noise.index_select(0, rows))
        if not self._shared:
            own = range(self._rows) if rows is None else rows.tolist()
            return race(scores, _exponential([self._streams[row] for row in own], scores))
        noise = _exponential(self._streams, scores)  # (C, V): the same for every prompt
        if self._copies == 1:
            return race(scores, noise)
        every = torch.arange(self._rows, device=scores.device) if rows is None else rows
        return race(scores, noise.index_select(0, every % self._copies))


def _exponential(streams: Sequence[torch.Generator], scores: torch.Tensor) -> torch.Tensor:
    """Draw exponential numbers, one row for each stream.

    `Tensor.exponential_` takes three times as long on a CPU. The uniform numbers are of 53 bits: of 24, as float32 has,
    one in 16 million is 0 and wins whatever its probability, once in 80 steps with a vocabulary of 200,000.
    """
    device = streams[0].device
    uniform = torch.empty((len(streams), scores.shape[1]), device=device, dtype=torch.float64)
    for row, stream in zip(uniform, streams, strict=True):
        row.uniform_(generator=stream)
    noise = uniform.to(torch.float32).clamp_(LEAST, MOST).neg_().log1p_().neg_()
    return noise.to(scores.device)


def _split(generator: torch.Generator, copies: int) -> list[torch.Generator]:
    """Return a stream for each copy, begun with numbers drawn one by one: those of the first copies stay the same."""
    streams = []
    for _ in range(copies):
        seed = torch.randint(2**63 - 1, (), generator=generator, device=generator.device)
        streams.append(torch.Generator(generator.device).manual_seed(int(seed)))
    return streams


def _checked(generators: Sequence[torch.Generator], rows: int) -> list[torch.Generator]:
    if not isinstance(generators, (list, tuple)) or not all(isinstance(one, torch.Generator) for one in generators):
        raise GenerationError(
            f"generator is {generators!r}, but must be a torch.Generator, or a list with one for each row of the "
            "result. Make one with torch.Generator().manual_seed(1)."
        )
    if len(generators) != rows:
        raise GenerationError(
            f"generator is a list of {len(generators)}, and the result has {rows} rows (num_return_sequences counted). "
            "Give one generator for each row, or a single one."
        )
    if len({id(one) for one in generators}) < rows:
        raise GenerationError(
            "generator names the same torch.Generator for two rows, so that each would depend on the other. Give "
            "every row its own; two with the same seed are fine."
        )
    if len({one.device for one in generators}) > 1:
        raise GenerationError("the generators are on different devices. Make all of them on the same one.")
    return list(generators)
