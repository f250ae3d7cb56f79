"""Which candidates a call of `generate` is to check, and what cannot go together with them.

Letters: S tokens of the prompt.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from quintet.errors import GenerationError
from quintet.generation.call import Call
from quintet.generation.candidates import Candidates, DraftModel, DraftPlan, DraftReader, PromptLookup
from quintet.generation.given import GenerativeModel
from quintet.generation.options import OPTIONS
from quintet.generation.processors import LogitsProcessorList
from quintet.generation.sampling.draws import Draws
from quintet.generation.state import NOT_PER_ROW
from quintet.generation.translation import SharedDraft, TextDraft, Translator, shared_tokens
from quintet.generation.twins import use_twins

__all__ = ["asks_for_candidates", "check_candidates", "first_layers", "make_candidates"]

# Processors whose answer depends on nothing but tokens and scores: a draft model may use them too, and writes what will
# be accepted more often. Others count their calls, run a model, or are the caller's.
FOR_DRAFTS = {
    "EpsilonLogitsWarper",
    "EtaLogitsWarper",
    "ExponentialDecayLengthPenalty",
    "ForcedBOSTokenLogitsProcessor",
    "ForcedEOSTokenLogitsProcessor",
    "InfNanRemoveLogitsProcessor",
    "LogitNormalization",
    "MinLengthLogitsProcessor",
    "MinNewTokensLengthLogitsProcessor",
    "MinPLogitsWarper",
    "NoBadWordsLogitsProcessor",
    "NoRepeatNGramLogitsProcessor",
    "RepetitionPenaltyLogitsProcessor",
    "SequenceBiasLogitsProcessor",
    "SuppressTokensAtBeginLogitsProcessor",
    "SuppressTokensLogitsProcessor",
    "TemperatureLogitsWarper",
    "TopHLogitsWarper",
    "TopKLogitsWarper",
    "TopPLogitsWarper",
    "TypicalLogitsWarper",
}
PACKAGE = LogitsProcessorList.__module__.rpartition(".")[0]

LOOKUP, EXIT = "prompt_lookup_num_tokens", "assistant_early_exit"


def asks_for_candidates(call: Call) -> bool:
    """Whether a call asks for assisted generation."""
    return bool(_sources(call)) or call.arguments.assistant_tokenizer is not None


def _sources(call: Call) -> list[str]:
    found = ["assistant_model"] if call.arguments.assistant_model is not None else []
    return found + [name for name in (LOOKUP, EXIT) if getattr(call.config, name) is not None]


def check_candidates(call: Call) -> None:
    """Check that what a call asks for goes together with assisted generation.

    Raises:
        GenerationError: it does not, or the draft model is of a kind that cannot draft.
    """
    config, sources = call.config, _sources(call)
    if not sources:
        raise GenerationError("assistant_tokenizer is given without an assistant_model. Pass both, or neither.")
    name = sources[0]
    if len(sources) > 1:
        raise GenerationError(
            f"{' and '.join(sources)} are set, and each is another way to guess tokens. Use one of them."
        )
    if config.num_beams > 1:
        raise GenerationError(
            f"{name} and num_beams={config.num_beams} contradict: guesses are checked against greedy decoding or "
            "sampling. Use num_beams=1, or leave out the guesses."
        )
    if config.num_return_sequences > 1 or call.rows > 1:
        what = f"num_return_sequences={config.num_return_sequences}" if call.rows == 1 else f"{call.rows} prompts"
        raise GenerationError(
            f"{name} works for one row, and {what} were given: rows would accept different numbers of guesses. "
            "Generate one by one, or leave out the guesses."
        )
    if config.penalty_alpha:
        raise GenerationError(
            f"{name} and penalty_alpha={config.penalty_alpha} (contrastive search) contradict. Use one of them."
        )
    if not config.use_cache:
        raise GenerationError(f"{name} needs the cache, and use_cache is False. Leave it out.")
    if config.assistant_ensemble_weight is not None and name == LOOKUP:
        raise GenerationError(
            "assistant_ensemble_weight mixes the probabilities of a draft model, and prompt lookup has none. Leave it "
            "out, or pass an assistant_model."
        )
    if name != LOOKUP and call.prompt.ids.shape[1] == 0:
        raise GenerationError(
            f"{name} drafts from tokens, and the prompt is inputs_embeds without input_ids. Pass input_ids, or use "
            f"{LOOKUP}."
        )
    if name == EXIT:
        first_layers(call.model, config.assistant_early_exit)
    if name == "assistant_model":
        _check_draft_model(call)


def _check_draft_model(call: Call) -> None:
    draft, arguments = call.arguments.assistant_model, call.arguments
    if not isinstance(draft, nn.Module) or not hasattr(draft, "_position_limit"):
        raise GenerationError(
            f"assistant_model is a {type(draft).__name__}, but must be a model of quintet with a language-modeling "
            "head, such as AutoModelForCausalLM.from_pretrained(...) gives."
        )
    if getattr(draft.config, "is_encoder_decoder", False):
        raise GenerationError(
            f"assistant_model is a {type(draft).__name__} with an encoder, and such a model cannot go on writing a "
            "text. Use a decoder."
        )
    if draft.training:
        raise GenerationError(
            "assistant_model is in training mode, so that dropout would spoil its drafts. Call assistant_model.eval()."
        )
    sizes = [getattr(one.config, "vocab_size", None) for one in (call.model, draft)]
    if arguments.assistant_tokenizer is not None and arguments.tokenizer is None:
        raise GenerationError(
            "assistant_tokenizer is given without the tokenizer of the model itself, and text has to be carried from "
            "one to the other. Pass tokenizer=... too."
        )
    if arguments.assistant_tokenizer is None and sizes[0] != sizes[1]:
        raise GenerationError(
            f"assistant_model has a vocabulary of {sizes[1]} tokens and the model one of {sizes[0]}. Pass "
            "tokenizer=... and assistant_tokenizer=..., or a draft model with the same tokenizer. (Where only the "
            "padding of the vocabulary differs, the two tokenizers show it.)"
        )
    if arguments.assistant_tokenizer is None or _same_tokens(call):
        return
    if call.config.do_sample:
        _shared(call)
    elif call.config.assistant_ensemble_weight is not None:
        raise GenerationError(
            "assistant_ensemble_weight mixes probabilities of the same tokens, and the draft model has another "
            "tokenizer. Leave it out, or use do_sample=True, where drafts keep to the tokens that both have."
        )


def _shared(call: Call) -> dict[int, int]:
    """Return the tokens that model and draft model share, as far as they have scores for them."""
    arguments = call.arguments
    sizes = call.model.config.vocab_size, arguments.assistant_model.config.vocab_size
    found = shared_tokens(arguments.tokenizer, arguments.assistant_tokenizer)
    shared = {one: two for one, two in found.items() if one < sizes[0] and two < sizes[1]}
    if not shared:
        raise GenerationError(
            "tokenizer and assistant_tokenizer have no token in common, so that drafts cannot be compared when "
            "sampling. Use do_sample=False, where they cross over as text, or another draft model."
        )
    return shared


def _same_tokens(call: Call) -> bool:
    """Whether both tokenizers have the same tokens, so that ids mean the same."""
    own, other = call.arguments.tokenizer, call.arguments.assistant_tokenizer
    return own is other or own.get_vocab() == other.get_vocab()


def make_candidates(call: Call, draws: Draws | None) -> Candidates:
    """Return what guesses for a call that `check_candidates` let through.

    Args:
        call: The call.
        draws: Draws tokens when the call samples.
    """
    config = call.config
    if config.prompt_lookup_num_tokens is not None:
        return PromptLookup(config.prompt_lookup_num_tokens, config.max_matching_ngram_size or 2, call.special.eos)
    others: dict[str, Any] = {}
    if config.assistant_early_exit is not None:
        draft = first_layers(call.model, config.assistant_early_exit)
        others = {name: one for name, one in call.prompt.others.items() if name not in NOT_PER_ROW}
    else:
        draft = call.arguments.assistant_model
        use_twins(draft)
    plan = _plan(call, draft.generation_config, draws)
    text = call.arguments.assistant_tokenizer is not None and not _same_tokens(call)
    reader = DraftReader(draft, call.prompt.ids.device, None if text else _mask(call), others)
    return _translated(call, reader, plan, draft) if text else DraftModel(reader, plan)


def _plan(call: Call, of_draft: Any, draws: Draws | None) -> DraftPlan:
    processors = LogitsProcessorList(
        one for one in call.processors if type(one).__name__ in FOR_DRAFTS and type(one).__module__.startswith(PACKAGE)
    )
    return DraftPlan(
        count=_option(call, of_draft, "num_assistant_tokens"),
        schedule=_option(call, of_draft, "num_assistant_tokens_schedule"),
        threshold=_option(call, of_draft, "assistant_confidence_threshold"),
        eos=call.special.eos,
        vocabulary=int(call.model.config.vocab_size),
        processors=processors,
        draws=draws,
        keep_scores=draws is not None or call.config.assistant_ensemble_weight is not None,
        owner=of_draft,
    )


def _option(call: Call, of_draft: Any, name: str) -> Any:
    """Return an option of drafting: the call's, else that of the draft model's generation config, else in force."""
    places = (call.config, of_draft) if name in call.explicit else (of_draft, call.config)
    found = (getattr(place, name, None) for place in places)
    return next((value for value in found if value is not None), OPTIONS[name].default)


def _mask(call: Call) -> torch.Tensor | None:
    """Return the mask of the tokens that the draft model is to read, those that the result begins with."""
    mask = call.prompt.mask
    return None if mask is None else mask[:, mask.shape[1] - call.prompt.ids.shape[1] :]


def _translated(call: Call, reader: DraftReader, plan: DraftPlan, draft: Any) -> Candidates:
    own, other = call.arguments.tokenizer, call.arguments.assistant_tokenizer
    to_draft = Translator(own, other)
    if plan.draws is not None:
        return SharedDraft(reader, plan, _shared(call), to_draft)
    ends = draft.generation_config.eos_token_id
    plan.eos = tuple(ends) if isinstance(ends, (list, tuple)) else () if ends is None else (int(ends),)
    return TextDraft(
        reader,
        plan,
        to_draft,
        Translator(other, own),
        target_lookbehind=_option(call, draft.generation_config, "target_lookbehind"),
        draft_lookbehind=_option(call, draft.generation_config, "assistant_lookbehind"),
        eos=call.special.eos,
    )


def first_layers(model: GenerativeModel, count: int) -> Any:
    """Return a model of the same weights that ends after `count` blocks; the model itself stays as it is.

    Raises:
        GenerationError: `count` is not below the number of blocks, or the model has no list of blocks.
    """
    total = model.config.num_hidden_layers
    if count >= total:
        raise GenerationError(
            f"{EXIT}={count}, and the model has {total} layers: drafts must leave out at least one. Use a number from "
            f"1 to {total - 1}."
        )
    short: Any = _shallow(model)
    base = getattr(model, "base_model", None)
    path = next((name for name, one in short._modules.items() if one is base), None)
    inner = None if base is None or path is None else _shallow(base)
    blocks = [
        name
        for name, one in (() if inner is None else inner._modules.items())
        if isinstance(one, nn.ModuleList) and len(one) == total
    ]
    if inner is None or len(blocks) != 1:
        raise GenerationError(
            f"{EXIT} needs the list of blocks of the model, and {type(model).__name__} has none that can be told. "
            "Leave it out."
        )
    inner._modules[blocks[0]] = nn.ModuleList(list(inner._modules[blocks[0]])[:count])
    inner.config = short.config = copy.deepcopy(model.config)
    if short.config.__dict__.get("layer_types"):
        short.config.layer_types = list(short.config.layer_types)[:count]
    short.config.num_hidden_layers = count
    short._modules[path] = inner
    return short


def _shallow(module: Any) -> Any:
    """Return a module of the same parts, of which some can then be exchanged."""
    new = copy.copy(module)
    new._modules = dict(module._modules)
    return new
