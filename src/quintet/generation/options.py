"""Every option of `generate`, as one table: its default, what it may hold, whether it works, and what it depends on.

`GenerationConfig` is made from this table, `generate` resolves and checks by it, and the errors are worded from it.
No torch here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from quintet.errors import GenerationError
from quintet.generation import checks
from quintet.generation.checks import Check
from quintet.generation.checks import anything as _anything
from quintet.generation.checks import early_stopping as _early_stopping
from quintet.generation.checks import flag as _flag
from quintet.generation.checks import integer as _integer
from quintet.generation.checks import is_number as _is_number
from quintet.generation.checks import number as _number
from quintet.generation.checks import strings as _strings
from quintet.generation.checks import token_id as _token_id
from quintet.generation.checks import token_ids as _token_ids
from quintet.generation.watermark_config import as_watermarking_config

__all__ = [
    "BEAMS",
    "CACHED",
    "CACHES",
    "DRAFT",
    "NAMED",
    "OPTIONS",
    "OWN",
    "RECORD",
    "SAMPLING",
    "STATIC",
    "Option",
    "is_static",
    "works",
]

# What an option depends on: without it the option has no effect.
SAMPLING, BEAMS, DRAFT, RECORD = "do_sample", "num_beams", "assistant_model", "return_dict_in_generate"

CACHED, NAMED, STATIC = "use_cache", "cache_implementation", "a static cache"

_MOVED = ("offload_only_non_sliding",)
_QUANTIZED = ("backend", "nbits", "axis_key", "axis_value", "q_group_size", "residual_length")

CACHES: dict[str, tuple[str, tuple[str, ...]]] = {
    "dynamic": ("dynamic", ()),
    "offloaded": ("offloaded", _MOVED),
    "quantized": ("quantized", _QUANTIZED),
    "int8": ("int8", ()),
    "static": ("static", ("max_cache_len",)),
    "offloaded_static": ("offloaded_static", ("max_cache_len", *_MOVED)),
    # Older names: which layers have a window is read from the model.
    "sliding_window": ("static", ("max_cache_len",)),
    "hybrid": ("static", ("max_cache_len",)),
    "hybrid_chunked": ("static", ("max_cache_len",)),
    "offloaded_hybrid": ("offloaded_static", ("max_cache_len", *_MOVED)),
    "offloaded_hybrid_chunked": ("offloaded_static", ("max_cache_len", *_MOVED)),
}
"""Values of `cache_implementation`: the kind of cache, and what `cache_config` may hold for it."""


def is_static(name: Any) -> bool:
    """Whether a `cache_implementation` has a fixed size."""
    return name in CACHES and "static" in CACHES[name][0]


def _watermark(value: Any) -> str | None:
    as_watermarking_config(value).validate()  # which names the setting
    return None


def _cache_name(value: Any) -> str | None:
    return None if isinstance(value, str) and value in CACHES else f"one of {', '.join(map(repr, CACHES))}"


def _arguments(value: Any) -> str | None:
    return None if isinstance(value, dict) and all(isinstance(key, str) for key in value) else "a dict of arguments"


def _thinking_budget(value: Any) -> str | None:
    values = value if isinstance(value, (list, tuple)) and value else [value]
    if all(checks.is_id(one) and int(one) >= -1 for one in values):
        return None
    return "a number of tokens (0 for an answer at once, -1 for no limit), or a list with one for each prompt"


@dataclass(frozen=True)
class Option:
    """One option of `generate`.

    Args:
        name: Its name.
        check: Returns the words for what is allowed when a value is not.
        default: Value used when neither the call nor the model's generation config gives one.
        works: Whether `generate` does what it says.
        neutral: Values, besides None and the default, that ask for nothing.
        needs: Option without which this one has no effect.
        never_bites: The option cannot change anything here, whatever its value, and so is accepted.
        refusal: Why it will not be carried out, and what to do instead; "" when nothing is to be said.
    """

    name: str
    check: Check = _anything
    default: Any = None
    works: bool = False
    neutral: tuple[Any, ...] = ()
    needs: str | None = None
    never_bites: bool = False
    refusal: str = ""

    def is_neutral(self, value: Any) -> bool:
        """Whether `value` asks for nothing."""
        if value is None:
            return True
        return any(type(value) is type(none) and value == none for none in (self.default, *self.neutral)) or (
            _is_number(value) and any(_is_number(none) and value == none for none in (self.default, *self.neutral))
        )

    def validate(self, value: Any) -> None:
        """Check a value.

        Raises:
            GenerationError: it is not allowed; the message says what is.
        """
        if value is None:
            return
        allowed = self.check(value)
        if allowed is not None:
            advice = _ADVICE.get(self.name, "")
            raise GenerationError(f"{self.name} is {checks.shown(value)}, but must be {allowed}, or None.{advice}")


_ADVICE = {
    "temperature": " For the most likely token at every step use do_sample=False.",
    "top_k": " 0 or None switches it off.",
    "top_p": " 1.0 switches it off.",
    "min_p": " None switches it off.",
    "top_h": " None switches it off.",
    "typical_p": " 1.0 switches it off.",
    "epsilon_cutoff": " 0.0 switches it off.",
    "eta_cutoff": " 0.0 switches it off.",
    "no_repeat_ngram_size": " 0 switches it off.",
    "encoder_no_repeat_ngram_size": " 0 switches it off.",
    "encoder_repetition_penalty": " 1.0 switches it off; above 1.0 keeps more to the prompt's tokens.",
    "guidance_scale": " 1.0 switches it off; above 1.0 keeps more to the prompt.",
    "repetition_penalty": " 1.0 switches it off; above 1.0 repeats less, below 1.0 more.",
    "eos_token_id": " None generates up to the length limit.",
    "stop_strings": " None stops at no string.",
}

MOST_ROWS = 2**31 - 1  # of a tensor's dimension; memory ends long before

_POSITIVE = _number("a number above 0", lambda value: value > 0)
_SHARE = _number("a number above 0 and at most 1", lambda value: 0 < value <= 1)
_UNIT = _number("a number from 0 to 1", lambda value: 0 <= value <= 1)
_SCHEDULE = checks.one_of("constant", "heuristic", "heuristic_transient")
_INSIDE = _number("a number between 0 and 1, neither of them", lambda value: 0 < value < 1)
_NUMBER = _number("a finite number")

_NO_CONSTRAINTS = (
    "Search with constraints is not part of quintet. To allow only some tokens at each place use "
    "prefix_allowed_tokens_fn; to give the text a form, a grammar (response_format)."
)

_NO_MTP = (
    "no model of the five families has heads that predict several tokens. Use an assistant_model, "
    "prompt_lookup_num_tokens or assistant_early_exit."
)
_NO_SPECULATION = (
    "it names a kind of draft model that reads the states of one particular model, and none exists for the five "
    "families. Pass an assistant_model without it."
)

_TABLE = (
    # Lengths
    Option("max_length", _integer(1), 20, works=True),
    Option("max_new_tokens", _integer(1), works=True),
    Option("min_length", _integer(0), 0, works=True),
    Option("min_new_tokens", _integer(0), works=True),
    Option("max_time", _POSITIVE, works=True),
    Option("stop_strings", _strings, works=True),
    # Strategy
    Option("do_sample", _flag, False, works=True),
    Option("num_beams", _integer(1, MOST_ROWS), 1, works=True),
    Option("early_stopping", _early_stopping, False, works=True, needs=BEAMS),
    Option("length_penalty", _NUMBER, 1.0, works=True, needs=BEAMS),
    Option("low_memory", _flag, neutral=(False,), needs=BEAMS, never_bites=True),  # beams share their prompt anyway
    Option("num_beam_groups", _integer(1), 1, works=True),
    Option("diversity_penalty", _number("a number of at least 0", lambda value: value >= 0), 0.0, works=True),
    Option("constraints", refusal=_NO_CONSTRAINTS),
    Option("force_words_ids", refusal=_NO_CONSTRAINTS),
    Option("penalty_alpha", _UNIT, works=True, neutral=(0.0,)),
    Option(
        "dola_layers",
        refusal="Decoding by contrast of layers is not part of quintet. Contrastive search (penalty_alpha with top_k) "
        "and repetition_penalty are, and also work against dull and repeated text.",
    ),
    Option("use_mtp", _flag, neutral=(False,), refusal=_NO_MTP),
    # Cache
    Option("use_cache", _flag, True, works=True),
    Option("cache_implementation", _cache_name, works=True, needs=CACHED),
    Option("cache_config", _arguments, works=True, neutral=({},), needs=NAMED),
    Option("max_cache_len", _integer(1), works=True, needs=STATIC),
    Option("prefill_chunk_size", _integer(1), works=True),
    # Shaping of the scores
    Option("temperature", _POSITIVE, 1.0, works=True, needs=SAMPLING),
    Option("top_k", _integer(0), 50, works=True, needs=SAMPLING),
    Option("top_p", _SHARE, 1.0, works=True, needs=SAMPLING),
    Option("min_p", _UNIT, works=True, needs=SAMPLING),
    Option("top_h", _SHARE, works=True, needs=SAMPLING),
    Option("typical_p", _SHARE, 1.0, works=True, needs=SAMPLING),
    Option("epsilon_cutoff", _UNIT, 0.0, works=True, neutral=(1.0,), needs=SAMPLING),
    Option("eta_cutoff", _UNIT, 0.0, works=True, neutral=(1.0,), needs=SAMPLING),
    Option("repetition_penalty", _POSITIVE, 1.0, works=True),
    Option("encoder_repetition_penalty", _POSITIVE, 1.0, works=True),
    Option("no_repeat_ngram_size", _integer(0), 0, works=True),
    Option("encoder_no_repeat_ngram_size", _integer(0), 0, works=True),
    Option("bad_words_ids", checks.id_sequences, works=True),
    Option("sequence_bias", checks.bias_of_sequences, works=True),
    Option("suppress_tokens", checks.id_list, works=True),
    Option("begin_suppress_tokens", checks.id_list, works=True),
    Option("forced_bos_token_id", checks.usable_id, works=True),
    Option("forced_eos_token_id", checks.usable_ids, works=True),
    Option("exponential_decay_length_penalty", checks.decay_pair, works=True),
    Option("renormalize_logits", _flag, works=True, neutral=(False,)),
    Option("remove_invalid_values", _flag, False, works=True),
    Option(
        "token_healing",
        _flag,
        neutral=(False,),
        refusal="it would write the prompt anew, without its special tokens and outer spaces, which fits neither chats "
        "nor the attention mask. Leave out the prompt's last token, and let prefix_allowed_tokens_fn allow the tokens "
        "that begin with its text for the first new one.",
    ),
    Option("guidance_scale", _NUMBER, works=True, neutral=(1.0,)),
    Option("watermarking_config", _watermark, works=True),
    # What comes back
    Option("num_return_sequences", _integer(1, MOST_ROWS), 1, works=True),
    Option("return_dict_in_generate", _flag, False, works=True),
    Option("output_scores", _flag, False, works=True, needs=RECORD),
    Option("output_logits", _flag, works=True, neutral=(False,), needs=RECORD),
    Option("output_attentions", _flag, works=True, neutral=(False,), needs=RECORD),
    Option("output_hidden_states", _flag, works=True, neutral=(False,), needs=RECORD),
    # Special tokens
    Option("pad_token_id", _token_id, works=True),
    Option("bos_token_id", _token_id, works=True),
    Option("eos_token_id", _token_ids, works=True),
    Option("decoder_start_token_id", _token_ids, never_bites=True),  # for models with an encoder
    # Draft models
    Option("is_assistant", _flag, works=True, neutral=(False,)),
    Option("num_assistant_tokens", _integer(1), 20, works=True, needs=DRAFT),
    Option("num_assistant_tokens_schedule", _SCHEDULE, "constant", works=True, needs=DRAFT),
    Option("assistant_confidence_threshold", _UNIT, 0.4, works=True, neutral=(0.0,), needs=DRAFT),
    Option("assistant_lookbehind", _integer(0), 10, works=True, needs=DRAFT),
    Option("target_lookbehind", _integer(0), 10, works=True, needs=DRAFT),
    Option("assistant_ensemble_weight", _INSIDE, works=True, needs=DRAFT),
    Option("speculation_type", needs=DRAFT, refusal=_NO_SPECULATION),
    Option("max_matching_ngram_size", _integer(1), works=True, needs="prompt_lookup_num_tokens"),
    Option("prompt_lookup_num_tokens", _integer(1), works=True),
    Option("assistant_early_exit", _integer(1), works=True),
    # Compilation and batching engines of the reference
    Option(
        "compile_config",
        refusal="generate() compiles nothing by itself. Call model.compile(...) with these arguments before it; "
        "cache_implementation='static' keeps the shapes of a step.",
    ),
    Option("disable_compile", _flag, never_bites=True),  # nothing is compiled
    Option(
        "continuous_batching_config",
        refusal="generate() decodes one batch from its beginning to its end, and lets no rows in on the way. Give the "
        "prompts as one padded batch.",
    ),
    # Our own
    Option("thinking_budget", _thinking_budget, works=True, neutral=(-1,)),
    Option("response_format", works=True),  # checked when it is compiled, for one tokenizer
)

OWN = ("thinking_budget", "response_format")
"""The options that the reference does not have."""

OPTIONS: dict[str, Option] = {option.name: option for option in _TABLE}
"""Every option by name: the fields of the reference's newest GenerationConfig, and OWN."""


def works() -> list[str]:
    """Return the names of the options that `generate` carries out."""
    return [option.name for option in _TABLE if option.works]
