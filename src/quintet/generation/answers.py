"""What an answer has to be: thoughts that end at a budget, and a form that the text is held to."""

from __future__ import annotations

from typing import Any

from quintet.generation.config import GenerationConfig
from quintet.generation.processors import LogitsProcessorList
from quintet.generation.resolve import Lengths, SpecialTokens
from quintet.generation.state import Prompt

__all__ = ["shape_answers"]


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
    if config.thinking_budget is not None:
        from quintet.generation.thinking import thinking_processor

        found = thinking_processor(config.thinking_budget, tokenizer, prompt, copies=copies, room=lengths.new)
        if found is not None:
            processors.append(found)  # at the end: nothing may rule out the tokens that it asks for
