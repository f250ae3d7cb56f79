"""`generate`: resolves what was asked, picks a loop, packs what comes out. The work is done elsewhere.

Letters: B rows, S tokens, E hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, cast

import torch

from quintet.errors import GenerationError
from quintet.generation.call import Arguments, Callables, resolve_call
from quintet.generation.config import GenerationConfig
from quintet.generation.loops.column import Column
from quintet.generation.run import Run
from quintet.generation.score import ScoreMixin
from quintet.generation.state import GenerativeModel
from quintet.generation.strategies import pick_strategy, refuse_custom
from quintet.outputs import ModelOutput

__all__ = ["GenerationMixin"]


def _start(
    model: GenerativeModel,
    inputs: torch.Tensor | None,
    config: GenerationConfig | None,
    arguments: Arguments,
    kwargs: dict[str, Any],
) -> Run:
    call = resolve_call(model, inputs, config, arguments, kwargs)
    strategy = pick_strategy(call)
    optimize = getattr(model, "optimize", None)
    if optimize is not None and not model.training:
        optimize()
    return strategy(call)


class GenerationMixin(ScoreMixin):
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
    ) -> ModelOutput | torch.Tensor:
        """Continue a batch of prompts.

        Args:
            inputs: (B, S) prompt tokens; `input_ids` is the same. None begins with the bos token.
            generation_config: Options; those at None are the model's. Keywords override it.
            logits_processor: Callables `(input_ids, scores) -> scores`, applied before those of sampling.
            stopping_criteria: Callables `(input_ids, scores) -> done`.
            prefix_allowed_tokens_fn: `(batch_id, input_ids) -> ids` of the tokens that may follow a row's (S,) tokens.
            negative_prompt_ids: (B, P) prompts to keep away from, with `guidance_scale`; None takes the last tokens.
            negative_prompt_attention_mask: (B, P) with 0 for padding in them.
            streamer: Gets the prompt, then every column of tokens, then the end.
            tokenizer: Needed for `stop_strings`.
            generator: Source of randomness for sampling; None for the global one.
            synced_gpus, assistant_model, custom_generate, assistant_tokenizer: Refused for now.
            **kwargs: Options by name, and arguments of the model (`attention_mask`, `past_key_values`,
                `inputs_embeds`, `position_ids`, ...).

        Returns:
            (B * num_return_sequences, S + new) tokens, prompt included; with `return_dict_in_generate=True` a
            GenerateDecoderOnlyOutput.

        Raises:
            GenerationError: an option is unknown, out of range, contradictory, or not carried out yet.
            InputError: the prompt, its mask or its cache do not fit.
        """
        refuse_custom(custom_generate)
        _refuse(
            synced_gpus=synced_gpus or None,
            assistant_model=assistant_model,
            assistant_tokenizer=assistant_tokenizer,
        )
        arguments = Arguments(
            logits_processor,
            stopping_criteria,
            tokenizer,
            generator,
            assistant_model,
            assistant_tokenizer,
            prefix_allowed_tokens_fn=prefix_allowed_tokens_fn,
            negative_prompt_ids=negative_prompt_ids,
            negative_prompt_attention_mask=negative_prompt_attention_mask,
        )
        try:
            return _start(cast(GenerativeModel, self), inputs, generation_config, arguments, kwargs).finish(streamer)
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
        prefix_allowed_tokens_fn: Callable[..., Any] | None = None,
        negative_prompt_ids: torch.Tensor | None = None,
        negative_prompt_attention_mask: torch.Tensor | None = None,
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
            arguments = Arguments(
                logits_processor,
                stopping_criteria,
                tokenizer,
                generator,
                prefix_allowed_tokens_fn=prefix_allowed_tokens_fn,
                negative_prompt_ids=negative_prompt_ids,
                negative_prompt_attention_mask=negative_prompt_attention_mask,
            )
            run = _start(cast(GenerativeModel, self), inputs, generation_config, arguments, kwargs)
        return _without_gradients(run.columns())


@torch.no_grad()
def _without_gradients(columns: Iterator[Column]) -> Iterator[Column]:
    """Pass columns on; gradients are off inside and as the caller has them between columns."""
    yield from columns


def _refuse(**arguments: Any) -> None:
    for name, value in arguments.items():
        if value is None:
            continue
        raise GenerationError(f"{name} is an argument that generate() cannot carry out yet. Leave it out.")
