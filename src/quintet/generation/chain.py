"""The logits processors and stopping criteria of one call: those that the options ask for, and the caller's.

Letters: B rows, T tokens of the prompt.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar, cast

import torch

from quintet.errors import GenerationError
from quintet.generation import processors as built_in
from quintet.generation import stopping
from quintet.generation.config import GenerationConfig
from quintet.generation.given import GenerativeModel, Prompt
from quintet.generation.resolve import Lengths, SpecialTokens, warn
from quintet.generation.watermark_config import as_watermarking_config

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
    *,
    model: GenerativeModel | None = None,
    prefix_allowed_tokens_fn: Callable[..., Any] | None = None,
    negative_prompt_ids: torch.Tensor | None = None,
    negative_prompt_attention_mask: torch.Tensor | None = None,
) -> built_in.LogitsProcessorList:
    """Return the processors in the reference's order.

    Guidance; bias and repetition; what may stand where; the caller's; those of sampling; watermark; normalization.

    Args:
        config: Options in force.
        own: The caller's processors; ours among them are copied, because they take notes of the rows.
        prompt: What is continued.
        lengths: Limits in tokens.
        special: Special tokens in force.
        copies: Rows that each prompt has while decoding: its beams, or its returned sequences.
        model: The model, for guidance and watermarks.
        prefix_allowed_tokens_fn: See `GenerationMixin.generate`.
        negative_prompt_ids: See `GenerationMixin.generate`.
        negative_prompt_attention_mask: See `GenerationMixin.generate`.

    Raises:
        GenerationError: an option needs something that is not there.
        InputError: the negative prompt cannot be used.
    """
    own = [copy.copy(one) if type(one).__module__.startswith(built_in.__name__) else one for one in own]
    built = [
        *_guidance(config, model, lengths, negative_prompt_ids, negative_prompt_attention_mask),
        *_repetition(config, prompt, copies),
        *_lengths(config, prompt, lengths, special),
        *_places(config, prompt, lengths, special, prefix_allowed_tokens_fn),
    ]
    chain = built_in.LogitsProcessorList(_merged(built, own, "logits processor"))
    if config.do_sample:
        chain.extend(_warpers(config, special))
    if config.watermarking_config is not None:
        settings = as_watermarking_config(config.watermarking_config)
        chain.append(settings.construct_processor(cast(Any, model).config.vocab_size, prompt.ids.device))
    if config.renormalize_logits:
        chain.append(built_in.LogitNormalization())
    return chain


Processors = Iterator[Callable[..., Any]]


def _guidance(
    config: GenerationConfig,
    model: GenerativeModel | None,
    lengths: Lengths,
    ids: torch.Tensor | None,
    mask: torch.Tensor | None,
) -> Processors:
    if config.guidance_scale is None or config.guidance_scale == 1:
        if ids is not None or mask is not None:
            warn("negative_prompt_ids has no effect without guidance_scale: set that, above 1.0, or leave it out.")
        return
    scale = float(config.guidance_scale)
    yield built_in.UnbatchedClassifierFreeGuidanceLogitsProcessor(scale, model, ids, mask, config.use_cache)
    limit = cast(GenerativeModel, model)._position_limit()
    if ids is not None and limit is not None and ids.shape[1] + lengths.new - 1 > limit:
        raise GenerationError(
            f"negative_prompt_ids has {ids.shape[1]} tokens and is continued by up to {lengths.new} new ones, and the "
            f"model has {limit} positions (max_position_embeddings). Shorten it, or ask for at most "
            f"{max(limit - ids.shape[1] + 1, 0)} new tokens."
        )


def _repetition(config: GenerationConfig, prompt: Prompt, copies: int) -> Processors:
    if config.sequence_bias is not None:
        yield built_in.SequenceBiasLogitsProcessor(config.sequence_bias)
    penalty, of_prompt = config.repetition_penalty, config.encoder_repetition_penalty
    if of_prompt is not None and of_prompt != 1.0 and _has_tokens("encoder_repetition_penalty", prompt):
        yield built_in.EncoderRepetitionPenaltyLogitsProcessor(float(of_prompt), prompt.ids)
    if penalty is not None and penalty != 1.0:
        _warn_of_embeds("repetition_penalty", prompt)
        yield built_in.RepetitionPenaltyLogitsProcessor(float(penalty), _padding(prompt, copies))
    if config.no_repeat_ngram_size:
        _warn_of_embeds("no_repeat_ngram_size", prompt)
        yield built_in.NoRepeatNGramLogitsProcessor(int(config.no_repeat_ngram_size))
    if config.encoder_no_repeat_ngram_size and _has_tokens("encoder_no_repeat_ngram_size", prompt):
        yield built_in.EncoderNoRepeatNGramLogitsProcessor(int(config.encoder_no_repeat_ngram_size), prompt.ids)


def _warn_of_embeds(name: str, prompt: Prompt) -> None:
    if prompt.ids.shape[1] == 0:
        warn(f"{name} counts new tokens only, because the prompt is given as inputs_embeds without input_ids.")


def _has_tokens(name: str, prompt: Prompt) -> bool:
    if prompt.embeds is not None:
        warn(f"{name} has no effect, because the prompt is given as inputs_embeds. Give input_ids, or unset it.")
    return prompt.embeds is None


def _lengths(config: GenerationConfig, prompt: Prompt, lengths: Lengths, special: SpecialTokens) -> Processors:
    device, start, eos = prompt.ids.device, prompt.ids.shape[1], list(special.eos)
    if config.bad_words_ids is not None:
        yield built_in.NoBadWordsLogitsProcessor(config.bad_words_ids, eos or None)
    if eos and lengths.minimum > start:
        if config.min_new_tokens is not None:
            least = lengths.minimum - start
            yield built_in.MinNewTokensLengthLogitsProcessor(start, least, eos, device=device)
        else:
            yield built_in.MinLengthLogitsProcessor(lengths.minimum, eos, device=device)


def _places(
    config: GenerationConfig,
    prompt: Prompt,
    lengths: Lengths,
    special: SpecialTokens,
    prefix_allowed_tokens_fn: Callable[..., Any] | None,
) -> Processors:
    device, start = prompt.ids.device, prompt.ids.shape[1]
    if prefix_allowed_tokens_fn is not None:
        yield built_in.PrefixConstrainedLogitsProcessor(prefix_allowed_tokens_fn, config.num_beams)
    if config.forced_bos_token_id is not None:
        yield built_in.ForcedBOSTokenLogitsProcessor(config.forced_bos_token_id)
    if config.forced_eos_token_id is not None:
        yield built_in.ForcedEOSTokenLogitsProcessor(lengths.maximum, config.forced_eos_token_id, device=device)
    if config.remove_invalid_values:
        yield built_in.InfNanRemoveLogitsProcessor()
    if config.exponential_decay_length_penalty is not None:
        if not special.eos:
            raise GenerationError(
                f"exponential_decay_length_penalty={config.exponential_decay_length_penalty!r} makes the end of the "
                "text likelier, and there is no eos_token_id that would end it. Set eos_token_id, or unset the penalty."
            )
        pair = config.exponential_decay_length_penalty
        yield built_in.ExponentialDecayLengthPenalty(pair, list(special.eos), start)
    if config.suppress_tokens is not None:
        yield built_in.SuppressTokensLogitsProcessor(config.suppress_tokens, device=device)
    if config.begin_suppress_tokens is not None:
        begin = start if start > 1 or config.forced_bos_token_id is None else start + 1
        yield built_in.SuppressTokensAtBeginLogitsProcessor(config.begin_suppress_tokens, begin, device=device)


def _warpers(config: GenerationConfig, special: SpecialTokens) -> Processors:
    # Beams need a token that goes on beside those that end.
    keep = max(len(special.eos), 1) + 1 if config.num_beams > 1 else 1
    if config.temperature is not None and config.temperature != 1.0:
        yield built_in.TemperatureLogitsWarper(float(config.temperature))
    if config.top_h is not None:
        yield built_in.TopHLogitsWarper(float(config.top_h))
    if config.top_k:
        yield built_in.TopKLogitsWarper(int(config.top_k), min_tokens_to_keep=keep)
    if config.top_p is not None and config.top_p < 1.0:
        yield built_in.TopPLogitsWarper(float(config.top_p), min_tokens_to_keep=keep)
    if config.min_p is not None:
        yield built_in.MinPLogitsWarper(float(config.min_p), min_tokens_to_keep=keep)
    if config.typical_p is not None and config.typical_p < 1.0:
        yield built_in.TypicalLogitsWarper(float(config.typical_p), min_tokens_to_keep=keep)
    if config.epsilon_cutoff is not None and 0.0 < config.epsilon_cutoff < 1.0:
        yield built_in.EpsilonLogitsWarper(float(config.epsilon_cutoff), min_tokens_to_keep=keep)
    if config.eta_cutoff is not None and 0.0 < config.eta_cutoff < 1.0:
        yield built_in.EtaLogitsWarper(float(config.eta_cutoff), min_tokens_to_keep=keep)


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
    """Return the stopping criteria in the reference's order: length, time, strings, end, sureness, the caller's."""
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
    if config.is_assistant and config.assistant_confidence_threshold:
        built.append(stopping.ConfidenceCriteria(float(config.assistant_confidence_threshold)))
    return stopping.StoppingCriteriaList(_merged(built, own, "stopping criterion"))
