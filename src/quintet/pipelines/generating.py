"""Lengths, ends and scores of generated text, so that a prompt in a batch gets what it gets alone.

Letters: V vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from quintet.errors import GenerationError
from quintet.generation import StopStringCriteria

__all__ = ["Budget", "StopRecorder", "cut_after_end", "lengths_for", "scores_of", "with_ends"]


@dataclass(frozen=True)
class Budget:
    """New tokens of one prompt: at most, and at least; None leaves it to generate()."""

    most: int | None
    least: int | None

    def applied(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return options of generate() with these lengths in place of those that count the prompt."""
        options = dict(given)
        config = options.get("generation_config")
        if config is not None:
            options["generation_config"] = config = copy.deepcopy(config)
        for name, value, total in (
            ("max_new_tokens", self.most, "max_length"),
            ("min_new_tokens", self.least, "min_length"),
        ):
            if value is not None:
                options[name] = value
                options.pop(total, None)
                if config is not None:
                    setattr(config, total, None)
        return options


def lengths_for(wanted: Mapping[str, Any], prompt: int, prefix: int, room: int | None) -> Budget:
    """Return how many tokens may follow a prompt.

    Args:
        wanted: The lengths in force; `by_default` names those that nobody asked for.
        prompt: Tokens of the prompt, prefix included.
        prefix: Tokens of the prefix, which do not count for max_length and min_length.
        room: Tokens that fit behind the prompt, or None.

    Raises:
        GenerationError: max_length leaves nothing to generate.
    """
    most, least = wanted["max_new_tokens"], wanted["min_new_tokens"]
    if most is not None:
        if "max_new_tokens" in wanted["by_default"] and room is not None:
            most = max(min(most, room), 1)
    elif wanted["max_length"] is not None:
        most = wanted["max_length"] + prefix - prompt
        if most <= 0:
            raise GenerationError(
                f"the prompt has {prompt - prefix} tokens and max_length is {wanted['max_length']}, prompt included: "
                "nothing can be generated. Set max_new_tokens, or raise max_length."
            )
    if least is None and wanted["min_length"]:
        least = max(wanted["min_length"] + prefix - prompt, 0)
    return Budget(most, least)


def with_ends(wanted: Mapping[str, Any], ids: Sequence[int], texts: Sequence[str]) -> dict[str, Any]:
    """Return options of generate() that end a text also at these ids and texts.

    Args:
        wanted: The options in force.
        ids: Ids of tokens.
        texts: Stop strings.
    """
    eos, stops = wanted["eos_token_id"], wanted["stop_strings"]
    known = {*eos} if isinstance(eos, (list, tuple)) else set() if eos is None else {eos}
    given = [stops] if isinstance(stops, str) else list(stops or ())
    return {"eos_token_id": sorted({*known, *ids}) or None, "stop_strings": [*given, *texts] or None}


class StopRecorder(StopStringCriteria):
    """Stop strings that remember how long each row was when one of them was complete."""

    def __init__(self, tokenizer: Any, stop_strings: str | Sequence[str]) -> None:
        super().__init__(tokenizer, stop_strings)
        self._ends: dict[int, int] = {}
        self._steps = 0

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        """See StoppingCriteria."""
        done = super().__call__(input_ids, scores, **kwargs)
        self._steps += 1
        for row in done.nonzero().flatten().tolist():
            self._ends.setdefault(row, self._steps)
        return done

    def end(self, row: int) -> int | None:
        """New tokens of a row up to the end of its first stop string; None when there was none."""
        return self._ends.get(row)


def cut_after_end(rows: Sequence[list[int]], eos: Any, ends: Sequence[int | None] | None) -> list[list[int]]:
    """Cut the continuations of one prompt to the length that they have when no other prompt is read with it."""
    stops = {*eos} if isinstance(eos, (list, tuple)) else {eos}
    lengths = []
    for number, row in enumerate(rows):
        found = [index + 1 for index, token in enumerate(row) if token in stops][:1]
        end = ends[number] if ends else None
        lengths.append(min([*found, *([] if end is None else [end]), len(row)]))
    return [row[: max(lengths)] for row in rows]


def scores_of(made: Any, rows: range, new: int) -> dict[str, list[Any]]:
    """Return `scores` and `logits` of some rows, (steps, V) for each, where generate() was asked for them."""
    found = {}
    for name in ("scores", "logits"):
        steps = getattr(made, name, None)
        if steps:
            found[name] = [torch.stack([step[row] for step in steps[:new]]).cpu().tolist() for row in rows]
    return found
