"""A call of `generate` on its way: the columns that come, and what they are packed into."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from quintet.errors import GenerationError
from quintet.generation.buffer import ColumnBuffer
from quintet.generation.call import COLLECTED, Call
from quintet.generation.loops.column import Column
from quintet.generation.output import GenerateDecoderOnlyOutput
from quintet.generation.state import DecodeState
from quintet.outputs import ModelOutput

__all__ = ["ColumnRun", "Run"]


class Run:
    """What a strategy makes of a call; a subclass says how it ends, and whether it can be read column by column."""

    def columns(self) -> Iterator[Column]:
        """Return the columns of new tokens as they come.

        Raises:
            GenerationError: the strategy knows its tokens only at the end.
        """
        raise GenerationError(
            "beams are chosen at the end, so there is no column of tokens to give before. Use generate() for beam "
            "search, or num_beams=1."
        )

    def finish(self, streamer: Any) -> ModelOutput | torch.Tensor:
        """Run to the end and pack the result.

        Args:
            streamer: Gets the prompt, every column and the end; or None.
        """
        raise NotImplementedError(f"{type(self).__name__} must define finish(streamer).")


@dataclass
class ColumnRun(Run):
    """A run of a loop that gives one column of tokens after the other.

    Args:
        call: The call.
        state: The model and its prompt.
        sequences: Tokens of the result so far; the loop appends to it.
        loop: The loop.
    """

    call: Call
    state: DecodeState
    sequences: ColumnBuffer
    loop: Iterator[Column]

    def columns(self) -> Iterator[Column]:
        """See Run."""
        return self.loop

    def finish(self, streamer: Any) -> ModelOutput | torch.Tensor:
        """See Run."""
        if streamer is not None:
            streamer.put(self.sequences.view.cpu())
        record = self.call.config.return_dict_in_generate
        columns: list[Column] = []
        try:
            for column in self.loop:
                if streamer is not None:
                    streamer.put(column.tokens.cpu())
                if record:
                    columns.append(column)
        finally:  # an error of the streamer must not leave the loop where it stands
            if isinstance(self.loop, Generator):
                self.loop.close()
        if streamer is not None:
            streamer.end()
        sequences = self.sequences.view.clone()  # without the spare room
        return self._packed(sequences, columns) if record else sequences

    def _packed(self, sequences: torch.Tensor, columns: list[Column]) -> GenerateDecoderOnlyOutput:
        fields: dict[str, Any] = {}
        if self.call.keep_scores:
            fields["scores"] = tuple(column.scores for column in columns)
        if self.call.keep_logits:
            fields["logits"] = tuple(column.logits for column in columns)
        for name in COLLECTED:
            if name in self.call.collect:
                fields[name] = tuple(column.collected[name] for column in columns)
        return GenerateDecoderOnlyOutput(sequences=sequences, past_key_values=self.state.cache, **fields)
