"""`generate`: resolves what was asked, picks a loop, packs what comes out. The work is done elsewhere.

Letters: B rows, S tokens, E hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any, cast

import torch

from quintet.errors import GenerationError
from quintet.generation import checks
from quintet.generation.asynchronous import read_in_thread
from quintet.generation.call import Arguments, Callables, resolve_call
from quintet.generation.config import GenerationConfig
from quintet.generation.given import GenerativeModel
from quintet.generation.loops.column import Column
from quintet.generation.peers import SyncedRun, find_peers
from quintet.generation.run import Run
from quintet.generation.sampling import Generators
from quintet.generation.score import ScoreMixin
from quintet.generation.strategies import pick_strategy, refuse_custom
from quintet.generation.transitions import transition_scores
from quintet.generation.twins import use_twins
from quintet.outputs import ModelOutput

__all__ = ["GenerationMixin"]

# Arguments of `generate` beside options that `generate_iter` takes as keywords.
BY_NAME = (
    "prefix_allowed_tokens_fn",
    "synced_gpus",
    "assistant_model",
    "negative_prompt_ids",
    "negative_prompt_attention_mask",
    "custom_generate",
    "tokenizer",
    "assistant_tokenizer",
    "generator",
)


def _start(
    model: GenerativeModel,
    inputs: torch.Tensor | None,
    config: GenerationConfig | None,
    given: dict[str, Any],
    kwargs: dict[str, Any],
) -> Run:
    """Return the run of a call.

    Args:
        model: The model.
        inputs: The prompt.
        config: Options of the call.
        given: Fields of Arguments, and `custom_generate` and `synced_gpus`, by name.
        kwargs: Options, and arguments of the model.
    """
    refuse_custom(given.pop("custom_generate", None))
    peers = find_peers(given.pop("synced_gpus", None), model)
    arguments = Arguments(**given, before_forward=None if peers is None else peers.join)
    call = resolve_call(model, inputs, config, arguments, kwargs)
    run = pick_strategy(call)(call)
    return run if peers is None else SyncedRun(run, peers)


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
        generator: Generators = None,
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
            assistant_model: A draft model that guesses tokens, which are then checked several at once.
            tokenizer: Needed for `thinking_budget`, `response_format`, `stop_strings`, and for a draft model with
                another tokenizer.
            assistant_tokenizer: The draft model's tokenizer, when it is another one.
            generator: Source of randomness for sampling; None for the global one, as in the reference. With one
                torch.Generator every prompt draws the same numbers, so that a row gives the same tokens alone and in
                any batch; the copies of num_return_sequences draw others. A list gives each row of the result its own.
            synced_gpus: For models of which several processes hold parts; each goes on until all are done.
            custom_generate: Refused: no code from model repositories is run.
            **kwargs: Options by name, and arguments of the model (`attention_mask`, `past_key_values`,
                `inputs_embeds`, `position_ids`, ...).

        Returns:
            (B * num_return_sequences, S + new) tokens, prompt included; with `return_dict_in_generate=True` a
            GenerateDecoderOnlyOutput, of beams a GenerateBeamDecoderOnlyOutput.

        Raises:
            GenerationError: an option is unknown, out of range, contradictory, or not carried out yet.
            InputError: the prompt, its mask or its cache do not fit.
        """
        given = {
            "logits_processor": logits_processor,
            "stopping_criteria": stopping_criteria,
            "prefix_allowed_tokens_fn": prefix_allowed_tokens_fn,
            "synced_gpus": synced_gpus,
            "assistant_model": assistant_model,
            "negative_prompt_ids": negative_prompt_ids,
            "negative_prompt_attention_mask": negative_prompt_attention_mask,
            "custom_generate": custom_generate,
            "tokenizer": tokenizer,
            "assistant_tokenizer": assistant_tokenizer,
            "generator": generator,
        }
        _check_streamer(streamer)
        try:
            run = _start(cast(GenerativeModel, self), inputs, generation_config, given, kwargs)
            use_twins(self)
            return run.finish(streamer)
        except BaseException as error:
            # A consumer in another thread would wait for ever for text that does not come.
            fail = getattr(streamer, "fail", None)
            if fail is not None:
                with suppress(Exception):  # what went wrong first is what the caller must see
                    fail(error)
            raise

    def generate_iter(
        self,
        inputs: torch.Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        logits_processor: Callables = None,
        stopping_criteria: Callables = None,
        *,
        logprobs: int | None = 0,
        **kwargs: Any,
    ) -> Iterator[Column]:
        """Continue a batch of prompts, giving every column of tokens as soon as it is there.

        Takes what `generate` takes, except a streamer. Options are checked at once; the model runs when the iterator is
        read. Leaving the loop early (break, an exception, Ctrl-C) ends the run and leaves the model, and a cache that
        was given, ready for the next call: the cache holds the prompt and all columns but the last.

        Args:
            inputs: (B, S) prompt tokens; `input_ids` is the same. None begins with the bos token.
            generation_config: Options; those at None are the model's. Keywords override it.
            logits_processor: Callables `(input_ids, scores) -> scores`, applied before those of sampling.
            stopping_criteria: Callables `(input_ids, scores) -> done`.
            logprobs: 0 for the log-probabilities of the chosen tokens, N for those of the N best as well, None for
                neither.
            **kwargs: Other arguments of `generate`.

        Returns:
            Iterator of Column; `output_scores=True` and `output_logits=True` fill those fields.

        Raises:
            GenerationError, InputError: as `generate`; or `logprobs` is out of range.
        """
        given = {"logits_processor": logits_processor, "stopping_criteria": stopping_criteria}
        return _columns(self, inputs, generation_config, given, logprobs, kwargs)

    def astream(
        self,
        inputs: torch.Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        logits_processor: Callables = None,
        stopping_criteria: Callables = None,
        *,
        logprobs: int | None = 0,
        **kwargs: Any,
    ) -> AsyncIterator[Column]:
        """As `generate_iter`, for an event loop: `async for column in model.astream(...)`.

        The model runs in a thread of its own, one column ahead of the reader at most. When the reader stops or its task
        is cancelled, the run ends within one step, and nothing runs any more when control comes back (after a plain
        `break` the event loop ends the run; `contextlib.aclosing` waits for it).

        Args:
            inputs, generation_config, logits_processor, stopping_criteria, logprobs, **kwargs: See `generate_iter`.

        Returns:
            Asynchronous iterator of Column.

        Raises:
            GenerationError, InputError: as `generate_iter`, at once.
        """
        given = {"logits_processor": logits_processor, "stopping_criteria": stopping_criteria}
        return read_in_thread(_columns(self, inputs, generation_config, given, logprobs, kwargs))

    def compute_transition_scores(
        self,
        sequences: torch.Tensor,
        scores: Sequence[torch.Tensor],
        beam_indices: torch.Tensor | None = None,
        normalize_logits: bool = False,
    ) -> torch.Tensor:
        """Return what each new token of a result scored when it was chosen.

        Args:
            sequences: (B, S) `sequences` of a result.
            scores: Its `scores`, one (R, V) tensor for each step.
            beam_indices: (B, N) its `beam_indices`; None for a result without beams.
            normalize_logits: Turn the scores into log-probabilities first.

        Returns:
            (B, N) scores of the N new tokens; 0 after the end of a text of beam search.

        Raises:
            InputError: the arguments are not those of one result.
        """
        return transition_scores(sequences, scores, beam_indices, normalize_logits)


def _check_streamer(streamer: Any) -> None:
    """Check that a streamer is one.

    Raises:
        GenerationError: it has no `put` or no `end`.
    """
    missing = [name for name in ("put", "end") if not callable(getattr(streamer, name, None))]
    if streamer is not None and missing:
        raise GenerationError(
            f"streamer is a {type(streamer).__name__}, but must have put(tokens) and end(), such as "
            f"TextStreamer(tokenizer) has; {' and '.join(missing)} is missing."
        )


def _columns(
    mixin: GenerationMixin,
    inputs: torch.Tensor | None,
    config: GenerationConfig | None,
    given: dict[str, Any],
    logprobs: int | None,
    kwargs: dict[str, Any],
) -> Iterator[Column]:
    """Check a call and return its columns; the model runs when they are read."""
    if logprobs is not None:
        checks.require("logprobs", logprobs, checks.integer(0), " None leaves them out.")
    given |= {name: kwargs.pop(name) for name in BY_NAME if name in kwargs}
    kwargs.setdefault("return_dict_in_generate", True)
    with torch.no_grad():
        run = _start(
            cast(GenerativeModel, mixin), inputs, config, {**given, "logprobs": logprobs, "packs": False}, kwargs
        )
    return _read(mixin, run.columns())


@torch.no_grad()
def _read(mixin: GenerationMixin, columns: Iterator[Column]) -> Iterator[Column]:
    """Pass columns on; gradients are off inside and as the caller has them between columns."""
    use_twins(mixin)
    yield from columns
