"""Which strategy a call asks for, and what cannot go together.

A strategy is a file in `loops/` with a function `start(call) -> Run`, and one line in the table here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from quintet.errors import GenerationError
from quintet.generation.call import Call
from quintet.generation.drafting import asks_for_candidates
from quintet.generation.loops import assisted, beam, contrastive, sample
from quintet.generation.run import Run

__all__ = ["STRATEGIES", "pick_strategy", "refuse_custom"]

STRATEGIES: dict[str, Callable[[Call], Run]] = {
    "assisted": assisted.start,
    "beams": beam.start,  # with groups and with draws as well
    "contrastive": contrastive.start,
    "sample": sample.start,  # greedy decoding is its case without draws
}


def pick_strategy(call: Call) -> Callable[[Call], Run]:
    """Return the strategy that the options in force ask for."""
    config = call.config
    if asks_for_candidates(call):
        return STRATEGIES["assisted"]
    if config.penalty_alpha:
        return STRATEGIES["contrastive"]
    if config.num_beams > 1 or (config.num_beam_groups or 1) > 1 or config.diversity_penalty:
        return STRATEGIES["beams"]
    return STRATEGIES["sample"]


def refuse_custom(custom_generate: Any) -> None:
    """Refuse loops from outside.

    Raises:
        GenerationError: `custom_generate` is given.
    """
    if custom_generate is not None:
        raise GenerationError(
            "custom_generate is refused: quintet runs no code from model repositories. Write the loop around "
            "generate_iter(), or pass logits_processor and stopping_criteria."
        )
