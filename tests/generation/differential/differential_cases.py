"""Cases of the differential suite: what is drawn for a number, and what is left out because the libraries differ.

A case is a dict of plain values, so that it prints as a line of JSON from which it can be run again.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from differential_models import VARIANTS, VOCABULARY

KEYS = [654, 400, 836, 123, 340]
Case = dict[str, Any]

STRATEGIES = ("greedy", "sample", "sample", "beam", "beam-sample", "assisted", "lookup", "lookup-sample", "early-exit")
BEAMS = ("beam", "beam-sample")
ONE_ROW = ("assisted", "lookup", "lookup-sample", "early-exit")
SAMPLING = ("sample", "beam-sample", "lookup-sample")

STOP_STRINGS = ["e", "st", [" a", "zz"], ["the", "on", "a."], "<eos>", ["ee", " "], "aaaaaaaaaaaa"]
PROCESSORS = ("no_even", "less_of_the_last", "by_length", "in_place")
CRITERIA = ("sum", "row_length", "flag")


def _ids(rng: random.Random, least: int, most: int) -> list[int]:
    return [rng.randrange(3, VOCABULARY) for _ in range(rng.randint(least, most))]


def _watermark(rng: random.Random) -> dict[str, Any]:
    if rng.random() < 0.4:
        return {"ngram_len": rng.randint(2, 5), "keys": KEYS, "context_history_size": rng.choice([4, 64])}
    found: dict[str, Any] = {"bias": rng.choice([0.5, 3.0]), "greenlist_ratio": rng.choice([0.25, 0.5])}
    if rng.random() < 0.3:
        found["seeding_scheme"] = "selfhash"
    return found


Draw = Callable[[random.Random], Any]

SHAPING: dict[str, Draw] = {
    "repetition_penalty": lambda rng: rng.choice([0.7, 1.2, 2.5]),
    "encoder_repetition_penalty": lambda rng: rng.choice([0.5, 1.5]),
    "no_repeat_ngram_size": lambda rng: rng.randint(1, 3),
    "encoder_no_repeat_ngram_size": lambda rng: rng.randint(1, 3),
    "bad_words_ids": lambda rng: [_ids(rng, 1, 2) for _ in range(rng.randint(1, 20))],
    "sequence_bias": lambda rng: [[_ids(rng, 1, 3), rng.choice([-20.0, -2.0, 3.0])] for _ in range(rng.randint(1, 9))],
    "suppress_tokens": lambda rng: sorted(set(_ids(rng, 1, 60))),
    "begin_suppress_tokens": lambda rng: sorted(set(_ids(rng, 1, 90))),
    "forced_bos_token_id": lambda rng: rng.randrange(3, VOCABULARY),
    "forced_eos_token_id": lambda rng: rng.choice([rng.randrange(3, VOCABULARY), _ids(rng, 2, 2)]),
    "exponential_decay_length_penalty": lambda rng: [rng.randint(0, 5), rng.choice([1.05, 1.6])],
    "renormalize_logits": lambda rng: True,
    "remove_invalid_values": lambda rng: True,
    "guidance_scale": lambda rng: rng.choice([0.3, 1.5, 3.0]),
    "watermarking_config": _watermark,
}
OF_SAMPLING: dict[str, Draw] = {
    "temperature": lambda rng: rng.choice([0.5, 0.9, 1.7, 3.0]),
    "top_k": lambda rng: rng.choice([0, 1, 3, 20, 500]),
    "top_p": lambda rng: rng.choice([0.1, 0.6, 0.95, 1.0]),
    "min_p": lambda rng: rng.choice([0.0, 0.02, 0.3]),
    "top_h": lambda rng: rng.choice([0.2, 0.6, 0.95]),
    "typical_p": lambda rng: rng.choice([0.2, 0.8, 1.0]),
    "epsilon_cutoff": lambda rng: rng.choice([0.0, 0.003, 0.05]),
    "eta_cutoff": lambda rng: rng.choice([0.0, 0.003, 0.3]),
}
WITHOUT_EFFECT: dict[str, Draw] = {
    "disable_compile": lambda rng: rng.choice([True, False]),
    "decoder_start_token_id": lambda rng: rng.randrange(VOCABULARY),
    "max_time": lambda rng: 1e6,
}
OF_BEAMS: dict[str, Draw] = {
    "length_penalty": lambda rng: rng.choice([-1.0, 0.0, 0.6, 1.0, 2.0]),
    "early_stopping": lambda rng: rng.choice([True, False, "never"]),
    "low_memory": lambda rng: rng.choice([True, False]),
}
OF_DRAFTS: dict[str, Draw] = {
    "num_assistant_tokens": lambda rng: rng.randint(1, 8),
    "num_assistant_tokens_schedule": lambda rng: rng.choice(["constant", "heuristic", "heuristic_transient"]),
    "assistant_confidence_threshold": lambda rng: rng.choice([0.0, 0.2, 0.9]),
}
SHOWN = ("output_scores", "output_logits", "output_attentions", "output_hidden_states")
STATIC = ("static", "offloaded_static", "sliding_window", "hybrid", "hybrid_chunked")
CACHES = ("dynamic", "offloaded", "quantized", *STATIC)

NOT_DRAWN = {
    "thinking_budget": "not in the reference",
    "response_format": "not in the reference",
    "penalty_alpha": "code from the hub in the reference",
    "num_beam_groups": "code from the hub in the reference",
    "diversity_penalty": "code from the hub in the reference",
    "cache_config": "holds arguments of caches that the reference has on accelerators only",
    "is_assistant": "for a model that drafts, which the drafting cases are",
    "assistant_ensemble_weight": "the text depends on where drafts end, which differs at the first step",
    "assistant_lookbehind": "for drafts with another tokenizer",
    "target_lookbehind": "for drafts with another tokenizer",
}
"""Options that have tests of their own, and why they are not here."""


def make_case(number: int) -> Case:
    """Return the case of a number: the same on every machine."""
    rng = random.Random(number)
    family = rng.choice(list(VARIANTS))
    case: Case = {
        "family": family,
        "variant": rng.randrange(len(VARIANTS[family])),
        "strategy": rng.choice(STRATEGIES),
        "seed": rng.randrange(1000),
        "rows": rng.choice([1, 1, 2, 3, 4]),
        "length": rng.choice([1, 2, 5, 9, 12]) if rng.random() < 0.95 else rng.randint(30, 48),
        "prompt": rng.choice(["ids"] * 8 + ["bos", "embeds", "embeds and ids", "turn", "turn", "positions"]),
        "padding": rng.choice(["none", "ones", "left", "left", "inferred", "holes"]),
        "given": rng.choice(["keywords", "keywords", "config", "model"]),
    }
    if case["prompt"] == "bos":
        case["length"] = 1
    case["options"] = {
        **_lengths(rng, case["length"]),
        **_ends(rng),
        **_strategy(rng, case["strategy"]),
        **_shaping(rng, case["strategy"] in SAMPLING),
        **_outputs(rng),
        **_cache(rng),
        **_some(rng, WITHOUT_EFFECT, 0.03),
    }
    case |= _callers(rng)
    for rule in LEFT_OUT:
        if rule["when"](case):
            rule["mend"](case)
    return case


def _lengths(rng: random.Random, length: int) -> dict[str, Any]:
    new = rng.randint(1, 14)
    found: dict[str, Any] = {"max_length": length + new} if rng.random() < 0.2 else {"max_new_tokens": new}
    if rng.random() < 0.2:
        found["min_new_tokens"] = rng.randint(0, new)
    elif rng.random() < 0.2:
        found["min_length"] = rng.randint(0, length + new)
    return found


def _ends(rng: random.Random) -> dict[str, Any]:
    many = sorted(rng.sample(range(3, VOCABULARY), rng.randint(2, 40)))
    eos = rng.choice(["unset", None, rng.randrange(3, VOCABULARY), many, many, [20, 20, 33]])
    pad = rng.choice(["unset", 0, 0, 7])
    return {name: one for name, one in (("eos_token_id", eos), ("pad_token_id", pad)) if one != "unset"}


def _some(rng: random.Random, draws: dict[str, Draw], share: float) -> dict[str, Any]:
    return {name: draw(rng) for name, draw in draws.items() if rng.random() < share}


def _strategy(rng: random.Random, strategy: str) -> dict[str, Any]:
    found: dict[str, Any] = {"do_sample": strategy in SAMPLING}
    if strategy in BEAMS:
        found["num_beams"] = rng.randint(2, 5)
        found["num_return_sequences"] = rng.randint(1, found["num_beams"])
        found |= _some(rng, OF_BEAMS, 0.5)
    elif strategy == "sample" and rng.random() < 0.3:
        found["num_return_sequences"] = rng.randint(2, 3)
    elif strategy == "assisted":
        found |= _some(rng, OF_DRAFTS, 0.5)
    elif strategy == "early-exit":
        found |= {"assistant_early_exit": 1} | _some(rng, OF_DRAFTS, 0.5)
    elif strategy in ONE_ROW:
        found["prompt_lookup_num_tokens"] = rng.randint(1, 9)
        if rng.random() < 0.5:
            found["max_matching_ngram_size"] = rng.randint(1, 3)
    return found


def _shaping(rng: random.Random, sampling: bool) -> dict[str, Any]:
    found = _some(rng, SHAPING, rng.choice([0.0, 0.08, 0.25]))
    return found | (_some(rng, OF_SAMPLING, rng.choice([0.1, 0.4])) if sampling else {})


def _outputs(rng: random.Random) -> dict[str, Any]:
    if rng.random() < 0.35:
        return {}
    found = {name: True for name in SHOWN if rng.random() < (0.7 if name in SHOWN[:2] else 0.15)}
    return {"return_dict_in_generate": True, **found}


def _cache(rng: random.Random) -> dict[str, Any]:
    what = rng.random()
    if what < 0.6:
        return {}
    if what < 0.7:
        return {"use_cache": False}
    if what < 0.8:
        return {"prefill_chunk_size": rng.randint(1, 6)}
    found: dict[str, Any] = {"cache_implementation": rng.choice(CACHES)}
    return found | ({"max_cache_len": rng.randint(70, 80)} if rng.random() < 0.3 else {})


def _callers(rng: random.Random) -> dict[str, Any]:
    return {
        "processors": [one for one in PROCESSORS if rng.random() < 0.06],
        "criteria": [one for one in CRITERIA if rng.random() < 0.05],
        "prefix_allowed": rng.random() < 0.05,
        "negative": rng.choice([0, 0, rng.randint(1, 5)]),
        "stop_strings": rng.choice(STOP_STRINGS) if rng.random() < 0.12 else None,
        "streamer": rng.random() < 0.15,
    }


# --- what both libraries refuse, or do otherwise as docs/differences.md says ------------------------------------------


def _without(*names: str) -> Callable[[Case], None]:
    def mend(case: Case) -> None:
        for name in names:
            case["options"].pop(name, None)

    return mend


def _with(**fields: Any) -> Callable[[Case], None]:
    return lambda case: case.update(fields)


def _padded(case: Case) -> bool:
    return case["padding"] not in ("none", "ones")


def _several(case: Case) -> bool:
    return case["strategy"] in BEAMS or case["options"].get("num_return_sequences", 1) > 1


def _synthid(case: Case) -> bool:
    return "keys" in (case["options"].get("watermarking_config") or {})


LEFT_OUT: list[dict[str, Any]] = [
    # What makes no sense, or is refused by both.
    {"why": "guesses are for one row", "when": lambda case: case["strategy"] in ONE_ROW, "mend": _with(rows=1)},
    {
        "why": "guesses need a cache",
        "when": lambda case: case["strategy"] in ONE_ROW and case["options"].get("use_cache") is False,
        "mend": _without("use_cache"),
    },
    {
        "why": "a prompt that is not there, or one token long, has no padding and no turns",
        "when": lambda case: case["prompt"] == "bos" or case["length"] == 1,
        "mend": lambda case: case.update(padding="none", prompt="bos" if case["prompt"] == "bos" else "ids"),
    },
    {
        "why": "beams are not streamed",
        "when": lambda case: case["strategy"] in BEAMS,
        "mend": _with(streamer=False),
    },
    {
        "why": "a cache of an earlier turn needs use_cache and is no new one",
        "when": lambda case: case["prompt"] == "turn",
        "mend": _without("use_cache", "cache_implementation", "max_cache_len"),
    },
    {
        "why": "embeddings are read once; drafts are made from tokens",
        "when": lambda case: case["prompt"].startswith("embeds"),
        "mend": lambda case: (
            _without("use_cache")(case),
            case["strategy"] in ONE_ROW and case.update(prompt="ids"),
        ),
    },
    {
        "why": "with max_length the lengths of embeddings are counted apart, which tests of their own compare",
        "when": lambda case: case["prompt"].startswith("embeds"),
        "mend": _without("min_length"),
    },
    {
        "why": "only a padding token can be inferred",
        "when": lambda case: (
            case["padding"] == "inferred" and (case["options"].get("pad_token_id") is None or case["prompt"] != "ids")
        ),
        "mend": _with(padding="left"),
    },
    {
        "why": "without an end the decay has nothing to make likelier",
        "when": lambda case: case["options"].get("eos_token_id") is None,
        "mend": _without("exponential_decay_length_penalty"),
    },
    {
        "why": "all tokens may be ruled out",
        "when": lambda case: "no_even" in case["processors"] or case["prefix_allowed"],
        "mend": _without(
            "suppress_tokens",
            "begin_suppress_tokens",
            "bad_words_ids",
            "no_repeat_ngram_size",
            "encoder_no_repeat_ngram_size",
            "min_new_tokens",
            "min_length",
        ),
    },  # fmt: skip
    {
        "why": "a forced token that is suppressed leaves none",
        "when": lambda case: bool(case["options"].keys() & {"forced_bos_token_id", "forced_eos_token_id"}),
        "mend": lambda case: (
            case.update(processors=[one for one in case["processors"] if one != "no_even"], prefix_allowed=False),
            _without(
                "suppress_tokens",
                "begin_suppress_tokens",
                "bad_words_ids",
                "no_repeat_ngram_size",
                "encoder_no_repeat_ngram_size",
            )(case),
        ),
    },  # fmt: skip
    # docs/differences.md
    {
        "why": "GPT-1 of the reference takes no embeddings",
        "when": lambda case: case["prompt"].startswith("embeds") and case["family"] == "openai-gpt",
        "mend": _with(prompt="ids"),
    },
    {
        "why": "GPT-1 of the reference has no cache, and shows the states of all tokens at every step",
        "when": lambda case: (
            case["family"] == "openai-gpt"
            and case["strategy"] not in ONE_ROW
            and (case["options"].keys() & {"output_attentions", "output_hidden_states"})
        ),
        "mend": lambda case: (
            _without("cache_implementation", "max_cache_len", "prefill_chunk_size")(case),
            case["options"].update(use_cache=False),
            case["prompt"] == "turn" and case.update(prompt="ids"),
        ),
    },  # fmt: skip
    {
        "why": "what is left of all scores but one is the least number, and more than that after the decay",
        "when": lambda case: bool(case["options"].keys() & {"forced_eos_token_id", "remove_invalid_values"}),
        "mend": _without("exponential_decay_length_penalty"),
    },
    {
        "why": "embeddings: the reference cannot read them in parts",
        "when": lambda case: case["prompt"].startswith("embeds"),
        "mend": _without("prefill_chunk_size"),
    },
    {
        "why": "embeddings: the reference leaves out as many new tokens from the penalty as there is padding",
        "when": lambda case: case["prompt"] == "embeds" and _padded(case),
        "mend": _without("repetition_penalty"),
    },
    {
        "why": "logits are what the model gave, also where a processor of the caller writes into its scores",
        "when": lambda case: "in_place" in case["processors"],
        "mend": _without("output_logits"),
    },
    {
        "why": "the empty places of a static cache show, and how many there are is each library's own affair",
        "when": lambda case: case["options"].get("cache_implementation") in STATIC,
        "mend": _without("output_attentions"),
    },
    {
        "why": "a static cache has room for all tokens",
        "when": lambda case: case["options"].get("cache_implementation") not in STATIC,
        "mend": _without("max_cache_len"),
    },
    {
        "why": "guidance: the other prompt follows its row, counts its padding out, and is cached",
        "when": lambda case: (
            _several(case) or _padded(case) or case["strategy"] in ONE_ROW or case["prompt"] not in ("ids", "bos")
        ),
        "mend": _without("guidance_scale"),
    },  # fmt: skip
    {
        "why": "guidance: GPT-1 of the reference has no cache, and fails",
        "when": lambda case: case["family"] == "openai-gpt" and "guidance_scale" in case["options"],
        "mend": lambda case: case["options"].update(use_cache=False),
    },
    {
        "why": "SynthID marks what follows the prompt in a row, wherever the row came from",
        "when": lambda case: _synthid(case) and (case["strategy"] in BEAMS or case["strategy"] in ONE_ROW),
        "mend": _without("watermarking_config"),
    },
    {
        "why": "SynthID of the reference cannot be read from a file, nor copied with a config",
        "when": lambda case: _synthid(case) and case["given"] != "keywords",
        "mend": _with(given="keywords"),
    },
]
