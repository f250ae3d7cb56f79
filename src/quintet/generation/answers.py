"""What an answer has to be: thoughts that end at a budget, and a form that the text is held to."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from quintet.errors import GenerationError
from quintet.generation.config import GenerationConfig
from quintet.generation.given import Prompt
from quintet.generation.processors import LogitsProcessorList, warpers
from quintet.generation.resolve import Lengths, SpecialTokens

__all__ = ["check_answers", "shape_answers"]

_OF_SAMPLING = tuple(getattr(warpers, name) for name in warpers.__all__)


def shape_answers(
    processors: LogitsProcessorList,
    config: GenerationConfig,
    tokenizer: Any,
    prompt: Prompt,
    special: SpecialTokens,
    lengths: Lengths,
    copies: int,
) -> None:
    """Add what the options ask for to the processors of a call.

    Args:
        processors: Those of the call; changed in place.
        config: Options in force.
        tokenizer: The tokenizer that the caller gave, or None.
        prompt: What is continued.
        special: Special tokens in force.
        lengths: Limits in tokens.
        copies: Rows that each prompt has while decoding.

    Raises:
        GenerationError: an option that does not fit the tokenizer, the prompts or the other options.
    """
    if config.response_format is not None:
        _hold_to_form(processors, config, tokenizer, prompt, special, copies)
    if config.thinking_budget is not None:
        from quintet.generation.thinking import thinking_processor

        found = thinking_processor(config.thinking_budget, tokenizer, prompt, copies=copies, room=lengths.new)
        if found is not None:
            processors.append(found)  # at the end: nothing may rule out the tokens that it asks for


def _hold_to_form(
    processors: LogitsProcessorList,
    config: GenerationConfig,
    tokenizer: Any,
    prompt: Prompt,
    special: SpecialTokens,
    copies: int,
) -> None:
    from quintet.generation.structured.processor import form_processor

    found = form_processor(config.response_format, tokenizer, prompt, special.eos, copies=copies)
    if found is None:
        return
    if config.forced_eos_token_id is not None:
        raise GenerationError(
            f"forced_eos_token_id={config.forced_eos_token_id!r} ends a text whatever it holds, and response_format "
            "ends it when it is complete. Leave out one of them."
        )
    # Before the first one of sampling: top_k and the like choose among the tokens that the form allows.
    place = next((at for at, one in enumerate(processors) if isinstance(one, _OF_SAMPLING)), len(processors))
    processors.insert(place, found)


def check_answers(config: GenerationConfig, texts: Iterable[tuple[float, int]]) -> None:
    """Check that the texts that beams found are answers in the form.

    Args:
        config: Options in force.
        texts: Score and length of each text of the result.

    Raises:
        GenerationError: there are fewer answers than texts were asked for, so that some are none.
    """
    if config.response_format is None:
        return
    # What the form rules out has a score of -inf, and what goes on behind the end of an answer one of -1e9.
    found = [score * length**config.length_penalty > -1e8 for score, length in texts]
    if not all(found):
        raise GenerationError(
            f"beams found {sum(found)} answers in the form of response_format, and {len(found)} are asked for. Lower "
            "num_return_sequences, or raise num_beams if the form has more answers than that."
        )
