"""The logits processors and stopping criteria of one call: those that the options ask for, and the caller's.

Letters: B rows, T tokens of the prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch

from quintet.errors import GenerationError
from quintet.generation import processors as built_in
from quintet.generation import stopping
from quintet.generation.config import GenerationConfig
from quintet.generation.resolve import Lengths, SpecialTokens, warn
from quintet.generation.state import Prompt

__all__ = ["build_criteria", "build_processors", "check_callables"]

CallableT = TypeVar("CallableT", bound=Callable[..., Any])


def check_callables(name: str, given: Any) -> list[Callable[..., Any]]:
    """Return the caller's processors or criteria as a list.

    Raises:
        GenerationError: it is no list of callables.
    """
    if given is None:
        return []
    if not isinstance(given, (list, tuple)) or not all(callable(one) for one in given):
        raise GenerationError(
            f"{name} is a {type(given).__name__}, but must be a list of callables. Put a single one into a list: "
            f"{name}=[...]."
        )
    return list(given)


def _merged(built: Sequence[CallableT], own: Sequence[CallableT], what: str) -> list[CallableT]:
    """Put the caller's objects after the built ones; one of the same type takes the built one's place."""
    result: list[CallableT] = []
    for one in built:
        same = next((mine for mine in own if type(mine) is type(one)), None)
        if same is not None:
            warn(
                f"the {what} {type(one).__name__} is given, and the options ask for one too; the given one is used. "
                "Remove the option or the object.",
            )
        result.append(one if same is None else same)
    return result + [mine for mine in own if not any(mine is one for one in result)]


def build_processors(
    config: GenerationConfig,
    own: Sequence[Callable[..., Any]],
    prompt: Prompt,
    lengths: Lengths,
    special: SpecialTokens,
    copies: int = 1,
) -> built_in.LogitsProcessorList:
    """Return the processors in the reference's order: penalties, lengths, the caller's, then those of sampling.

    Args:
        config: Options in force.
        own: The caller's processors.
        prompt: What is continued.
        lengths: Limits in tokens.
        special: Special tokens in force.
        copies: Rows that each prompt has while decoding: its beams, or its returned sequences.
    """
    device = prompt.ids.device
    built: list[Callable[..., Any]] = []
    if config.repetition_penalty is not None and config.repetition_penalty != 1.0:
        if prompt.ids.shape[1] == 0:
            warn(
                "repetition_penalty counts new tokens only, because the prompt is given as inputs_embeds without "
                "input_ids.",
            )
        penalty = float(config.repetition_penalty)
        built.append(built_in.RepetitionPenaltyLogitsProcessor(penalty, _padding(prompt, copies)))
    start = prompt.ids.shape[1]
    if special.eos and lengths.minimum > start:
        eos = list(special.eos)
        if config.min_new_tokens is not None:
            least = lengths.minimum - start
            built.append(built_in.MinNewTokensLengthLogitsProcessor(start, least, eos, device=device))
        else:
            built.append(built_in.MinLengthLogitsProcessor(lengths.minimum, eos, device=device))
    chain = built_in.LogitsProcessorList(_merged(built, own, "logits processor"))
    if config.do_sample:
        if config.temperature is not None and config.temperature != 1.0:
            chain.append(built_in.TemperatureLogitsWarper(float(config.temperature)))
        if config.top_k:
            chain.append(built_in.TopKLogitsWarper(int(config.top_k)))
        if config.top_p is not None and config.top_p < 1.0:
            chain.append(built_in.TopPLogitsWarper(float(config.top_p)))
        if config.min_p is not None:
            chain.append(built_in.MinPLogitsWarper(float(config.min_p)))
    return chain


def _padding(prompt: Prompt, copies: int) -> torch.Tensor | None:
    """Padding before each row's first token, (rows of the result,), for processors that look at the tokens."""
    if prompt.mask is None:
        return None
    leading = (prompt.mask != 0).int().argmax(dim=1)  # (B,)
    leading = (leading - (prompt.mask.shape[1] - prompt.ids.shape[1])).clamp(min=0)
    return leading.repeat_interleave(copies, dim=0)


def build_criteria(
    config: GenerationConfig,
    own: Sequence[Callable[..., Any]],
    lengths: Lengths,
    special: SpecialTokens,
    tokenizer: Any,
) -> stopping.StoppingCriteriaList:
    """Return the stopping criteria in the reference's order: length, time, strings, end of sequence, the caller's."""
    built: list[Callable[..., Any]] = [stopping.MaxLengthCriteria(lengths.maximum)]
    if config.max_time is not None:
        built.append(stopping.MaxTimeCriteria(float(config.max_time)))
    if config.stop_strings is not None:
        if tokenizer is None:
            raise GenerationError(
                f"stop_strings={config.stop_strings!r} needs the tokenizer, to know which tokens spell the strings. "
                "Pass generate(..., tokenizer=tokenizer)."
            )
        built.append(stopping.StopStringCriteria(tokenizer, config.stop_strings))
    if special.eos:
        built.append(stopping.EosTokenCriteria(list(special.eos)))
    return stopping.StoppingCriteriaList(_merged(built, own, "stopping criterion"))
