"""`generate`: resolves what was asked, picks a loop, packs what comes out. The work is done elsewhere.

Letters: B rows, S tokens, E hidden size, V vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch

from quintet.errors import GenerationError
from quintet.generation.buffer import ColumnBuffer
from quintet.generation.config import GenerationConfig
from quintet.generation.loops.column import Column
from quintet.generation.loops.sample import SampleOptions, sample_loop
from quintet.generation.options import OPTIONS
from quintet.generation.output import GenerateDecoderOnlyOutput
from quintet.generation.prompt import check_model_kwargs, pick_inputs, prepare_prompt
from quintet.generation.resolve import (
    build_criteria,
    build_processors,
    check_callables,
    resolve_config,
    resolve_lengths,
    resolve_special_tokens,
)
from quintet.generation.state import DecodeState, GenerativeModel
from quintet.generation.stopping import StopRules

__all__ = ["GenerationMixin", "Run"]

Callables = Sequence[Callable[..., Any]] | None

COLLECTED = ("attentions", "hidden_states")


@dataclass
class Run:
    """One call of `generate`, ready to go.

    Args:
        config: Options in force.
        state: The model and its prompt.
        sequences: Tokens of the result so far.
        columns: The loop.
    """

    config: GenerationConfig
    state: DecodeState
    sequences: ColumnBuffer
    columns: Iterator[Column]

    def finish(self, streamer: Any) -> GenerateDecoderOnlyOutput | torch.Tensor:
        """Run the loop to its end and pack the result."""
        if streamer is not None:
            streamer.put(self.sequences.view.cpu())
        record = self.config.return_dict_in_generate
        columns: list[Column] = []
        for column in self.columns:
            if streamer is not None:
                streamer.put(column.tokens.cpu())
            if record:
                columns.append(column)
        if streamer is not None:
            streamer.end()
        sequences = self.sequences.view.clone()  # without the spare room
        return self._packed(sequences, columns) if record else sequences

    def _packed(self, sequences: torch.Tensor, columns: list[Column]) -> GenerateDecoderOnlyOutput:
        fields: dict[str, Any] = {}
        if self.config.output_scores:
            fields["scores"] = tuple(column.scores for column in columns)
        if self.config.output_logits:
            fields["logits"] = tuple(column.logits for column in columns)
        for name in COLLECTED:
            if getattr(self.config, f"output_{name}"):
                fields[name] = tuple(column.collected[name] for column in columns)
        return GenerateDecoderOnlyOutput(sequences=sequences, past_key_values=self.state.cache, **fields)


def _start(
    model: GenerativeModel,
    inputs: torch.Tensor | None,
    given: GenerationConfig | None,
    own_processors: Callables,
    own_criteria: Callables,
    tokenizer: Any,
    generator: torch.Generator | None,
    kwargs: dict[str, Any],
) -> Run:
    """Resolve one call: everything that can be wrong with it is found here, before the model runs."""
    options = {name: kwargs.pop(name) for name in list(kwargs) if name in OPTIONS}
    input_ids = kwargs.pop("input_ids", None)
    model_kwargs = check_model_kwargs(model, kwargs)
    of_model = model.generation_config
    config, explicit = resolve_config(of_model, given, options)
    processors = check_callables("logits_processor", own_processors)
    criteria = check_callables("stopping_criteria", own_criteria)

    ids, embeds = pick_inputs(model, inputs, model_kwargs, config.bos_token_id, input_ids)
    special = resolve_special_tokens(
        config,
        rows=ids.shape[0],
        has_mask="attention_mask" in model_kwargs,
        vocabulary=getattr(model.config, "vocab_size", None),
    )
    prompt = prepare_prompt(model, ids, embeds, model_kwargs, special)
    use_cache = _use_cache(config, prompt.embeds is not None, prompt.cache is not None)
    default_length = options.get("max_length") is None and all(
        one is None or one.max_length is None for one in (given, of_model)
    )
    lengths = resolve_lengths(config, explicit, prompt, limit=model._position_limit(), default_length=default_length)

    optimize = getattr(model, "optimize", None)
    if optimize is not None and not model.training:
        optimize()
    count = config.num_return_sequences
    if count > 1 and prompt.cache is not None:
        prompt.cache = copy.deepcopy(prompt.cache)  # its rows get repeated, and the caller's must not
    collect = tuple(name for name in COLLECTED if config.return_dict_in_generate and getattr(config, f"output_{name}"))
    state = DecodeState(model, prompt, room=lengths.new, use_cache=use_cache, collect=collect)
    sequences = ColumnBuffer(prompt.ids, lengths.new)
    sequences.repeat(count)
    rules = StopRules(
        build_criteria(config, criteria, lengths, special, tokenizer), prompt.ids.shape[0] * count, prompt.ids.shape[1]
    )
    record = bool(config.return_dict_in_generate)
    loop = SampleOptions(
        do_sample=config.do_sample,
        generator=generator,
        pad_token_id=special.pad if rules.pads_rows else None,
        num_return_sequences=count,
        keep_scores=record and bool(config.output_scores),
        keep_logits=record and bool(config.output_logits),
        own_ids=bool(processors or criteria),
    )
    chain = build_processors(config, processors, prompt, lengths, special)
    return Run(config, state, sequences, sample_loop(state, sequences, chain, rules, loop))


def _use_cache(config: GenerationConfig, has_embeds: bool, has_cache: bool) -> bool:
    if config.use_cache:
        return True
    if has_cache:
        raise GenerationError(
            "past_key_values is given and use_cache is False, which contradict. Leave out one of them."
        )
    # Embeddings have no tokens to read again, so they are read once, as in the reference; the result is the same.
    return has_embeds


class GenerationMixin:
    """Adds `generate` to a model with a language-modeling head."""

    def _position_limit(self) -> int | None:
        """Return how many positions the model has, or None; families whose positions are open-ended override it."""
        limit = getattr(cast(Any, self).config, "max_position_embeddings", None)
        return int(limit) if limit else None

    @torch.no_grad()
    def generate(
        self,
        inputs: torch.Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        logits_processor: Callables = None,
        stopping_criteria: Callables = None,
        prefix_allowed_tokens_fn: Callable[..., Any] | None = None,
        synced_gpus: bool | None = None,
        assistant_model: Any = None,
        streamer: Any = None,
        negative_prompt_ids: torch.Tensor | None = None,
        negative_prompt_attention_mask: torch.Tensor | None = None,
        custom_generate: Any = None,
        *,
        tokenizer: Any = None,
        assistant_tokenizer: Any = None,
        generator: torch.Generator | None = None,
        **kwargs: Any,
    ) -> GenerateDecoderOnlyOutput | torch.Tensor:
        """Continue a batch of prompts.

        Args:
            inputs: (B, S) prompt tokens; `input_ids` is the same. None begins with the bos token.
            generation_config: Options; those at None are the model's. Keywords override it.
            logits_processor: Callables `(input_ids, scores) -> scores`, applied before those of sampling.
            stopping_criteria: Callables `(input_ids, scores) -> done`.
            streamer: Gets the prompt, then every column of tokens, then the end.
            tokenizer: Needed for `stop_strings`.
            generator: Source of randomness for sampling; None for the global one.
            prefix_allowed_tokens_fn, synced_gpus, assistant_model, negative_prompt_ids,
                negative_prompt_attention_mask, custom_generate, assistant_tokenizer: Refused for now.
            **kwargs: Options by name, and arguments of the model (`attention_mask`, `past_key_values`,
                `inputs_embeds`, `position_ids`, ...).

        Returns:
            (B * num_return_sequences, S + new) tokens, prompt included; with `return_dict_in_generate=True` a
            GenerateDecoderOnlyOutput.

        Raises:
            GenerationError: an option is unknown, out of range, contradictory, or not carried out yet.
            InputError: the prompt, its mask or its cache do not fit.
        """
        _refuse(
            prefix_allowed_tokens_fn=prefix_allowed_tokens_fn,
            synced_gpus=synced_gpus or None,
            assistant_model=assistant_model,
            negative_prompt_ids=negative_prompt_ids,
            negative_prompt_attention_mask=negative_prompt_attention_mask,
            custom_generate=custom_generate,
            assistant_tokenizer=assistant_tokenizer,
        )
        try:
            call = (inputs, generation_config, logits_processor, stopping_criteria, tokenizer, generator)
            return _start(cast(GenerativeModel, self), *call, kwargs).finish(streamer)
        except BaseException as error:
            # A consumer in another thread would wait for ever for text that does not come.
            fail = getattr(streamer, "fail", None)
            if fail is not None:
                fail(error)
            raise

    def generate_iter(
        self,
        inputs: torch.Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        logits_processor: Callables = None,
        stopping_criteria: Callables = None,
        *,
        tokenizer: Any = None,
        generator: torch.Generator | None = None,
        **kwargs: Any,
    ) -> Iterator[Column]:
        """Continue a batch of prompts, giving every column of tokens as soon as it is there.

        Takes what `generate` takes. Options are checked at once; the model runs when the iterator is read. Leaving the
        loop early, or Ctrl-C in it, leaves the model ready for the next call.

        Returns:
            Iterator of Column; `output_scores=True` and `output_logits=True` fill those fields.

        Raises:
            GenerationError, InputError: as `generate`.
        """
        kwargs.setdefault("return_dict_in_generate", True)
        with torch.no_grad():
            call = (inputs, generation_config, logits_processor, stopping_criteria, tokenizer, generator)
            run = _start(cast(GenerativeModel, self), *call, kwargs)
        return _without_gradients(run.columns)


@torch.no_grad()
def _without_gradients(columns: Iterator[Column]) -> Iterator[Column]:
    """Pass columns on; gradients are off inside and as the caller has them between columns."""
    yield from columns


def _refuse(**arguments: Any) -> None:
    for name, value in arguments.items():
        if value is None:
            continue
        if name == "custom_generate":
            raise GenerationError(
                "custom_generate is refused: quintet runs no code from model repositories. Write the loop around "
                "generate_iter(), or pass logits_processor and stopping_criteria."
            )
        raise GenerationError(f"{name} is an argument that generate() cannot carry out yet. Leave it out.")
