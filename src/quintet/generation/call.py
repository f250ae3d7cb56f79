"""One call of `generate`, resolved: everything that can be wrong with it is found here, before the model runs.

Letters: B rows of the prompt, S tokens.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from quintet.errors import GenerationError
from quintet.generation.answers import shape_answers
from quintet.generation.buffer import ColumnBuffer
from quintet.generation.caches import check_room, make_cache
from quintet.generation.chain import build_criteria, build_processors, check_callables
from quintet.generation.config import GenerationConfig
from quintet.generation.given import GenerativeModel, Prompt
from quintet.generation.options import OPTIONS
from quintet.generation.processors import LogitsProcessorList
from quintet.generation.prompt import check_model_kwargs, pick_inputs, prepare_prompt
from quintet.generation.resolve import (
    Lengths,
    SpecialTokens,
    resolve_config,
    resolve_lengths,
    resolve_special_tokens,
)
from quintet.generation.sampling import Generators
from quintet.generation.state import DecodeState
from quintet.generation.stopping import StoppingCriteriaList, StopRules

__all__ = ["Arguments", "Call", "Callables", "resolve_call"]

Callables = Sequence[Callable[..., Any]] | None

COLLECTED = ("attentions", "hidden_states")


@dataclass
class Arguments:
    """What the caller gave beside options and prompt; see `GenerationMixin.generate`."""

    logits_processor: Callables = None
    stopping_criteria: Callables = None
    tokenizer: Any = None
    generator: Generators = None
    assistant_model: Any = None
    assistant_tokenizer: Any = None
    prefix_allowed_tokens_fn: Callable[..., Any] | None = None
    negative_prompt_ids: torch.Tensor | None = None
    negative_prompt_attention_mask: torch.Tensor | None = None
    logprobs: int | None = None
    packs: bool = True
    """Whether the result is packed at the end, and the cache with it; otherwise only columns are read."""
    before_forward: Callable[[], None] | None = None
    """Called before each forward pass of the model."""


@dataclass
class Call:
    """A checked call, from which a strategy makes its loop.

    Args:
        model: The model.
        config: Options in force; none of those that have a default is None.
        explicit: Names of the options that the caller set.
        arguments: What else the caller gave.
        prompt: What is continued.
        special: Special tokens in force.
        lengths: Limits in tokens.
        processors: Applied to the scores, in order; made for `copies` rows of each prompt.
        criteria: When rows end.
        use_cache: Keep keys and values.
        collect: Which further outputs of the model the result shows.
        callers_cache: The cache belongs to the caller, and goes on to hold the rows of the prompt.
    """

    model: GenerativeModel
    config: GenerationConfig
    explicit: set[str]
    arguments: Arguments
    prompt: Prompt
    special: SpecialTokens
    lengths: Lengths
    processors: LogitsProcessorList
    criteria: StoppingCriteriaList
    use_cache: bool = True
    collect: tuple[str, ...] = field(default=())
    callers_cache: bool = False

    @property
    def rows(self) -> int:
        """B: prompts."""
        return self.prompt.ids.shape[0]

    @property
    def copies(self) -> int:
        """Rows that each prompt has while decoding: its beams, or its returned sequences."""
        return _copies(self.config)

    @property
    def keep_scores(self) -> bool:
        """Whether the result shows the processed scores."""
        return bool(self.config.return_dict_in_generate and self.config.output_scores)

    @property
    def keep_logits(self) -> bool:
        """Whether the result shows the model's scores."""
        return bool(self.config.return_dict_in_generate and self.config.output_logits)

    @property
    def own_code(self) -> bool:
        """Whether processors or criteria of the caller look at the tokens."""
        given = self.arguments
        return bool(given.logits_processor or given.stopping_criteria or given.prefix_allowed_tokens_fn)

    @property
    def needs_all_rows(self) -> bool:
        """Whether rows that are finished must stay in the model's batch, because somebody would miss them.

        The result shows what the model computes for them, or their part of the cache; the caller's cache holds them;
        the caller's processors know them by their number, or see what the model makes of them; a cache of fixed shape
        would be made anew; dropout draws for all rows together.
        """
        shown = self.keep_scores or self.keep_logits or bool(self.collect)
        cache = self.prompt.cache
        return (
            shown
            or (self.arguments.packs and bool(self.config.return_dict_in_generate))
            or bool(self.arguments.logits_processor)
            or self.callers_cache
            or (cache is not None and cache.is_compileable)
            or self.model.training
        )

    def begin(self) -> DecodeState:
        """Return the model before it reads the prompt."""
        state = DecodeState(
            self.model,
            self.prompt,
            room=self.lengths.new,
            use_cache=self.use_cache,
            collect=self.collect,
            chunk=self.config.prefill_chunk_size,
        )
        state.before_forward = self.arguments.before_forward
        return state

    def sequences(self) -> ColumnBuffer:
        """Return the prompt's tokens, one row for each copy, with room for the new ones."""
        buffer = ColumnBuffer(self.prompt.ids, self.lengths.new)
        buffer.repeat(self.copies)
        return buffer

    def rules(self) -> StopRules:
        """Return the criteria, compiled for the rows of `sequences()`."""
        return StopRules(self.criteria, self.rows * self.copies, self.prompt.ids.shape[1])


def resolve_call(
    model: GenerativeModel,
    inputs: torch.Tensor | None,
    given: GenerationConfig | None,
    arguments: Arguments,
    kwargs: dict[str, Any],
) -> Call:
    """Check a call of `generate` and return what it asks for.

    Raises:
        GenerationError: an option is unknown, out of range or contradictory.
        InputError: the prompt, its mask or its cache do not fit.
    """
    options = {name: kwargs.pop(name) for name in list(kwargs) if name in OPTIONS}
    input_ids = kwargs.pop("input_ids", None)
    model_kwargs = check_model_kwargs(model, kwargs)
    of_model = model.generation_config
    config, explicit = resolve_config(of_model, given, options, has_draft=arguments.assistant_model is not None)
    processors = check_callables("logits_processor", arguments.logits_processor)
    criteria = check_callables("stopping_criteria", arguments.stopping_criteria)

    ids, embeds = pick_inputs(model, inputs, model_kwargs, config.bos_token_id, input_ids)
    special = resolve_special_tokens(
        config,
        rows=ids.shape[0],
        has_mask="attention_mask" in model_kwargs,
        vocabulary=getattr(model.config, "vocab_size", None),
    )
    prompt = prepare_prompt(model, ids, embeds, model_kwargs, special)
    use_cache = _use_cache(config, explicit, prompt.embeds is not None, prompt.cache is not None)
    default_length = options.get("max_length") is None and all(
        one is None or one.max_length is None for one in (given, of_model)
    )
    lengths = resolve_lengths(config, explicit, prompt, limit=model._position_limit(), default_length=default_length)
    copies = _copies(config)
    needed = prompt.past + prompt.unread + lengths.new - 1  # the last token is never read
    check_room(prompt.cache, needed)
    callers_cache = prompt.cache is not None and copies == 1
    if copies > 1 and prompt.cache is not None:
        prompt.cache = copy.deepcopy(prompt.cache)  # its rows get repeated, and the caller's must not
    elif prompt.cache is None and use_cache:
        prompt.cache = make_cache(config, model.config, needed + 1)  # a draft may be read one token further
    call = Call(
        model,
        config,
        explicit,
        arguments,
        prompt,
        special,
        lengths,
        build_processors(
            config,
            processors,
            prompt,
            lengths,
            special,
            copies,
            model=model,
            prefix_allowed_tokens_fn=arguments.prefix_allowed_tokens_fn,
            negative_prompt_ids=arguments.negative_prompt_ids,
            negative_prompt_attention_mask=arguments.negative_prompt_attention_mask,
        ),
        build_criteria(config, criteria, lengths, special, arguments.tokenizer),
        use_cache,
        tuple(name for name in COLLECTED if config.return_dict_in_generate and getattr(config, f"output_{name}")),
        callers_cache,
    )
    shape_answers(call.processors, config, arguments.tokenizer, prompt, special, lengths, copies)
    return call


def _copies(config: GenerationConfig) -> int:
    return max(config.num_beams, config.num_return_sequences)


def _use_cache(config: GenerationConfig, explicit: set[str], has_embeds: bool, has_cache: bool) -> bool:
    if has_cache and config.cache_implementation is not None and "cache_implementation" in explicit:
        raise GenerationError(
            f"past_key_values is given, and cache_implementation={config.cache_implementation!r} asks for a new cache. "
            "Leave out one of them."
        )
    if config.use_cache:
        return True
    if config.prefill_chunk_size is not None:
        raise GenerationError(
            f"prefill_chunk_size={config.prefill_chunk_size} reads the prompt in parts, which only a cache can join, "
            "and use_cache is False. Leave out one of them."
        )
    if has_cache:
        raise GenerationError(
            "past_key_values is given and use_cache is False, which contradict. Leave out one of them."
        )
    # Embeddings have no tokens to read again, so they are read once, as in the reference; the result is the same.
    return has_embeds
