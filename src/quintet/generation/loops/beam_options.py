"""What a call asks of beam search, and what cannot go with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from quintet.errors import GenerationError
from quintet.generation.call import Call

__all__ = ["BeamOptions", "resolve_beams"]


@dataclass(frozen=True)
class BeamOptions:
    """What the search is to do.

    Args:
        beams: K, beams of each group.
        groups: G.
        candidates: C, candidates that are looked at: enough to have K that go on when all others end.
        returned: Texts of each prompt that are returned.
        length_penalty: Exponent of the length by which scores are divided.
        early_stopping: When a search ends; see Hypotheses.
        diversity_penalty: What a token costs a group for each beam of an earlier group that has chosen it.
        do_sample: Draw the candidates, without replacement, instead of taking the best.
        generator: Source of randomness; None for the global one.
        fill: Token behind texts that are shorter than the longest.
        drops: Take prompts whose search is settled out of the model's batch.
    """

    beams: int
    groups: int
    candidates: int
    returned: int
    length_penalty: float
    early_stopping: bool | str
    diversity_penalty: float
    do_sample: bool
    generator: torch.Generator | None
    fill: int
    drops: bool


def resolve_beams(call: Call) -> BeamOptions:
    """Return what the search is to do.

    Raises:
        GenerationError: options that contradict each other; a length penalty or a vocabulary that leaves nothing to
            compare.
    """
    config = call.config
    groups = config.num_beam_groups or 1
    _check_numbers(config.num_beams, config.num_return_sequences, groups, bool(config.do_sample))
    _check_diversity(float(config.diversity_penalty or 0.0), groups)
    beams = config.num_beams // groups
    penalty = 1.0 if config.length_penalty is None else float(config.length_penalty)
    _check_length_penalty(penalty, call.lengths.new)
    return BeamOptions(
        beams=beams,
        groups=groups,
        candidates=_candidates(call, beams),
        returned=config.num_return_sequences,
        length_penalty=penalty,
        early_stopping=False if config.early_stopping is None else config.early_stopping,
        diversity_penalty=float(config.diversity_penalty or 0.0),
        do_sample=config.do_sample,
        generator=_one_generator(call.arguments.generator),
        fill=_fill(call.special.eos, call.special.pad),
        drops=_drops(call, penalty),
    )


def _check_numbers(beams: int, returned: int, groups: int, do_sample: bool) -> None:
    if groups > 1 and (beams < groups or beams % groups):
        raise GenerationError(
            f"num_beam_groups is {groups} and num_beams {beams}, but every group needs equally many beams. Make "
            "num_beams a multiple of num_beam_groups."
        )
    if returned > beams:
        raise GenerationError(
            f"num_return_sequences is {returned}, but must be at most num_beams ({beams}). Raise num_beams or lower it."
        )
    if groups > 1 and do_sample:
        raise GenerationError(
            f"num_beam_groups is {groups} and do_sample is True, but groups of beams are kept apart by a penalty and "
            "not by chance. Set do_sample=False, or num_beam_groups=1."
        )


def _check_diversity(penalty: float, groups: int) -> None:
    if groups > 1 and penalty == 0:
        raise GenerationError(
            f"num_beam_groups is {groups} and diversity_penalty 0.0, so that all groups would find the same. Set "
            "diversity_penalty above 0, for example 0.5, or num_beam_groups=1."
        )
    if groups == 1 and penalty:
        raise GenerationError(
            f"diversity_penalty is {penalty}, and has no effect without groups of beams. Set num_beam_groups to 2 or "
            "more, or leave diversity_penalty out."
        )


def _one_generator(generator: Any) -> torch.Generator | None:
    if generator is None or isinstance(generator, torch.Generator):
        return generator
    raise GenerationError(
        f"generator is a {type(generator).__name__}, but beam search takes one torch.Generator, whose numbers serve "
        "every prompt alike. Pass torch.Generator().manual_seed(1)."
    )


def _candidates(call: Call, beams: int) -> int:
    """Return how many continuations of a group's beams are looked at, so that enough of them go on."""
    eos, vocabulary = call.config.eos_token_id, getattr(call.model.config, "vocab_size", None)
    ends = 0 if eos is None else len(eos) if isinstance(eos, (list, tuple)) else 1
    count = max(2, 1 + ends) * beams
    if vocabulary is not None and count > beams * vocabulary:
        raise GenerationError(
            f"beam search with {ends} end-of-sequence tokens looks at {count} continuations of {beams} beams, and with "
            f"a vocabulary of {vocabulary} tokens there are {beams * vocabulary}. Give fewer ids in eos_token_id."
        )
    return count


def _drops(call: Call, penalty: float) -> bool:
    """Return whether settled prompts may leave the batch: nothing that is returned shows their rows.

    With dropout a row depends on the batch. With an extreme length penalty even placeholders look better than texts, so
    that a search may go on when all its candidates have ended, and the batch decides when.
    """
    shown = call.config.return_dict_in_generate or call.needs_all_rows or call.model.training
    return call.rows > 1 and not shown and float(call.lengths.new) ** penalty < 1e6


def _fill(eos: tuple[int, ...], pad: int | None) -> int:
    """Return the token behind shorter texts: as in the reference, a padding id of 0 gives way to the first eos id."""
    if eos:
        return pad or eos[0]
    # Without eos ids only criteria end texts early. -1, which is no token, when there is no padding id either.
    return -1 if pad is None else pad


def _check_length_penalty(penalty: float, most: int) -> None:
    try:
        divisor = float(most) ** penalty
    except OverflowError:
        divisor = 0.0
    if not 1e-30 < divisor < 1e30:
        raise GenerationError(
            f"length_penalty is {penalty}, and scores would be divided by {most} ** {penalty}, which is beyond the "
            "range of numbers. Use a value between -5 and 5; 0.0 gives plain sums, 1.0 the mean of each token."
        )
