"""Runs a case in both libraries and compares everything that comes back."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Callable
from typing import Any

import torch
import transformers
from differential_cases import BEAMS, ONE_ROW, Case
from differential_models import VOCABULARY, drafts, pair, tokenizer

from quintet.cache import Cache
from quintet.generation import GenerationConfig, SynthIDTextWatermarkingConfig

TOLERANCE = 1e-5


def line(case: Case) -> str:
    """Return the case as one line, which `replay` reads."""
    return json.dumps(case)


# --- what the caller writes himself -----------------------------------------------------------------------------------


def no_even(input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    scores = scores.clone()
    scores[:, ::2] = -float("inf")
    return scores


def less_of_the_last(input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    return scores.scatter_add(1, input_ids[:, -1:], torch.full_like(scores[:, :1], -2.0))


def by_length(input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    return scores / (1 + input_ids.shape[1] % 3)


def in_place(input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    scores[:, 11:17] -= 1.5
    return scores


def by_sum(input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
    return input_ids.sum(dim=1) % 7 == 3


def by_row_length(input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
    return torch.tensor([(row + input_ids.shape[1]) % 9 == 8 for row in range(len(input_ids))])


def by_flag(input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
    return torch.full((len(input_ids),), input_ids.shape[1] >= 11)


def a_third(batch: int, tokens: torch.Tensor) -> list[int]:
    last = int(tokens[-1]) if len(tokens) else 0
    return [one for one in range(3, VOCABULARY) if (one + last + batch) % 3 == 0]


PROCESSORS: dict[str, Callable[..., torch.Tensor]] = {
    "no_even": no_even,
    "less_of_the_last": less_of_the_last,
    "by_length": by_length,
    "in_place": in_place,
}
CRITERIA: dict[str, Callable[..., torch.Tensor]] = {"sum": by_sum, "row_length": by_row_length, "flag": by_flag}


class Recorder:
    """A streamer that notes what it gets."""

    def __init__(self) -> None:
        self.put_in: list[list[int]] = []

    def put(self, value: torch.Tensor) -> None:
        self.put_in.append(value.flatten().tolist())

    def end(self) -> None:
        self.put_in.append([])


# --- a call -----------------------------------------------------------------------------------------------------------


def _prompt(case: Case, model: Any) -> dict[str, Any]:
    """Return the arguments that are the prompt."""
    generator = torch.Generator().manual_seed(case["seed"])
    rows, length = case["rows"], case["length"]
    if case["prompt"] == "bos":
        return {"bos_token_id": 5}
    # Not the two last ids: some families pad with them, and a mask would be inferred.
    ids = torch.randint(8, VOCABULARY - 2, (rows, length), generator=generator)
    if case["strategy"] in ONE_ROW and length > 4:
        ids[:, length // 2 :] = ids[:, : length - length // 2].clone()  # something to look up
    pad = case["options"].get("pad_token_id", 0)
    found: dict[str, Any] = {"input_ids": ids}
    if case["padding"] != "none":
        mask = torch.ones_like(ids)
        if case["padding"] in ("left", "inferred"):
            leading = torch.randint(0, length, (rows,), generator=generator)
            mask = (torch.arange(length)[None] >= leading[:, None]).long()
            ids = found["input_ids"] = ids.masked_fill(mask == 0, pad)
        elif case["padding"] == "holes" and length > 3:
            mask[:, 1] = 0
            mask[0, length - 2] = 0
        if case["padding"] != "inferred":
            found["attention_mask"] = mask
    if case["prompt"].startswith("embeds"):
        found["inputs_embeds"] = model.get_input_embeddings()(ids).detach()
        if case["prompt"] == "embeds":
            del found["input_ids"]
    elif case["prompt"] == "positions":
        mask = found.get("attention_mask", torch.ones_like(ids))
        found["position_ids"] = (mask.cumsum(dim=1) - 1).clamp(min=0) + 2
    return found


def _turn(case: Case, model: Any, found: dict[str, Any], with_cache: bool) -> None:
    """Let the model write a few tokens, and go on from its cache with a few more tokens of the caller."""
    more = torch.randint(8, VOCABULARY, (case["rows"], 3), generator=torch.Generator().manual_seed(case["seed"] + 1))
    prompt = {name: found[name] for name in ("input_ids", "attention_mask") if name in found}
    first = model.generate(
        **prompt, max_new_tokens=3, eos_token_id=None, pad_token_id=0, do_sample=False, return_dict_in_generate=True
    )
    found["input_ids"] = torch.cat([first.sequences, more], dim=1)
    if "attention_mask" in found:
        mask = found["attention_mask"]
        found["attention_mask"] = torch.cat([mask, mask.new_ones(len(mask), 6)], dim=1)
    if with_cache:
        found["past_key_values"] = first.past_key_values


def _arguments(case: Case, model: Any, ours: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return options, and the other arguments of a call."""
    options: dict[str, Any] = copy.deepcopy(case["options"])
    call = _prompt(case, model)
    if "bos_token_id" in call:
        options["bos_token_id"] = call.pop("bos_token_id")
    settings = options.get("watermarking_config")
    if settings and "keys" in settings:
        kind = SynthIDTextWatermarkingConfig if ours else transformers.SynthIDTextWatermarkingConfig
        options["watermarking_config"] = kind(**settings)
    if case["processors"]:
        call["logits_processor"] = [PROCESSORS[name] for name in case["processors"]]
    if case["criteria"]:
        call["stopping_criteria"] = [CRITERIA[name] for name in case["criteria"]]
    if case["prefix_allowed"]:
        call["prefix_allowed_tokens_fn"] = a_third
    if case["negative"] and "guidance_scale" in options:
        generator = torch.Generator().manual_seed(case["seed"] + 2)
        rows = 1 if case["prompt"] == "bos" else case["rows"]
        call["negative_prompt_ids"] = torch.randint(8, VOCABULARY, (rows, case["negative"]), generator=generator)
    if case["stop_strings"] is not None:
        options["stop_strings"] = case["stop_strings"]
        call["tokenizer"] = tokenizer()
    if case["strategy"] == "assisted":
        call["assistant_model"] = drafts(case["family"], case["variant"])[0 if ours else 1]
    return options, call


def _for_reference(case: Case, options: dict[str, Any], call: dict[str, Any]) -> None:
    """Change what the reference is asked for, where it cannot be asked for the same."""
    options.pop("low_memory", None)  # refused in 5.x; it changes nothing
    plain = case["family"] == "openai-gpt"  # has no cache there
    plain |= case["strategy"] == "lookup-sample"  # draws for all guesses at once there; ours is plain sampling
    plain |= case["strategy"] == "early-exit"  # carried out there by some families only; ours is plain decoding
    plain |= case["strategy"] in ONE_ROW and "cache_implementation" in options  # refused there
    plain |= case["strategy"] == "assisted" and case["stop_strings"] is not None  # finds no tokenizer there
    plain |= case["strategy"] in ONE_ROW and bool(case["criteria"])  # asked there behind all accepted guesses only
    plain |= case["strategy"] in ONE_ROW and case["prompt"] == "turn"  # writes another text there than plain decoding
    if plain:
        call.pop("assistant_model", None)
        for name in ("prompt_lookup_num_tokens", "max_matching_ngram_size", "assistant_early_exit"):
            options.pop(name, None)
        for name in ("num_assistant_tokens", "num_assistant_tokens_schedule", "assistant_confidence_threshold"):
            options.pop(name, None)
    name = options.get("cache_implementation")
    if plain or name in ("quantized", "offloaded", "offloaded_static"):
        # Offloading needs an accelerator there, and 8 bits another package; here the newest tokens stay as they are.
        options.pop("cache_implementation", None)
        options.pop("max_cache_len", None)
    if plain:
        options.pop("prefill_chunk_size", None)


def _reference_takes_cache(case: Case) -> bool:
    """Whether a cache of an earlier turn has the rows that the reference wants: one for each row of the result."""
    several = case["strategy"] in BEAMS or case["options"].get("num_return_sequences", 1) > 1
    return not several and case["family"] != "openai-gpt"


def _generate(case: Case, model: Any, ours: bool, **changes: Any) -> tuple[Any, list[list[int]] | None]:
    options, call = _arguments(case, model, ours)
    if not ours:
        _for_reference(case, options, call)
    options |= changes
    if case["prompt"] == "turn":
        _turn(case, model, call, ours or _reference_takes_cache(case))
        if "max_length" in options:
            options["max_length"] += 6
    recorder = Recorder() if case["streamer"] else None
    if recorder is not None:
        call["streamer"] = recorder
    kind = GenerationConfig if ours else transformers.GenerationConfig
    kept, keptdraft = model.generation_config, None
    if call.get("assistant_model") is not None:
        keptdraft = call["assistant_model"].generation_config
        call["assistant_model"].generation_config = copy.deepcopy(keptdraft)  # a heuristic count stays in it
    try:
        if case["given"] == "config":
            call["generation_config"] = kind(**options)
        elif case["given"] == "model":
            model.generation_config = kind(**options)
        else:
            call |= options
        torch.manual_seed(case["seed"])
        out = model.generate(**call)
    finally:
        model.generation_config = kept
        if keptdraft is not None:
            call["assistant_model"].generation_config = keptdraft
    return out, None if recorder is None else recorder.put_in


# --- comparing --------------------------------------------------------------------------------------------------------


def _close(what: str, mine: torch.Tensor, theirs: torch.Tensor) -> None:
    """Compare scores; those far from 0 are as exact as their size allows, in any way to multiply matrices."""
    assert mine.shape == theirs.shape, f"{what}: {tuple(mine.shape)} and {tuple(theirs.shape)}"
    finite = theirs.isfinite() & (theirs.abs() < 1e30)
    largest = float(theirs[finite].abs().max()) if bool(finite.any()) else 0.0
    bound = TOLERANCE * max(1.0, largest)
    torch.testing.assert_close(mine, theirs, rtol=TOLERANCE, atol=bound, msg=lambda text: f"{what}: {text}")


def _compare_records(case: Case, mine: Any, theirs: Any) -> None:
    names = [name for name, _ in theirs.items() if name != "past_key_values"]
    assert [name for name, _ in mine.items() if name != "past_key_values"] == names
    assert type(mine).__name__ == type(theirs).__name__
    _compare_tokens(case, mine.sequences, theirs.sequences)
    for name in ("scores", "logits"):
        if name in names:
            assert len(mine[name]) == len(theirs[name]), name
            for step, (one, two) in enumerate(zip(mine[name], theirs[name], strict=True)):
                _close(f"{name}[{step}]", one, two)
    if "sequences_scores" in names:
        _close("sequences_scores", mine.sequences_scores, theirs.sequences_scores)
    if "beam_indices" in names:
        assert torch.equal(mine.beam_indices, theirs.beam_indices), "beam_indices"
    # Drafts are read several at once there and shown so; ours look like plain decoding. Without the cache of an earlier
    # turn the reference shows the whole prompt.
    if case["strategy"] not in ONE_ROW and (case["prompt"] != "turn" or _reference_takes_cache(case)):
        for name in ("attentions", "hidden_states"):
            for step, (one, two) in enumerate(zip(mine.get(name) or (), theirs.get(name) or (), strict=True)):
                _compare_layers(case, f"{name}[{step}]", step, one, two)
    cache, other = mine.get("past_key_values"), theirs.get("past_key_values")
    plain = case["strategy"] in ONE_ROW or case["family"] == "openai-gpt"  # see _for_reference
    if isinstance(cache, Cache) and other is not None and not plain:
        assert cache.get_seq_length() == other.get_seq_length(), "past_key_values"


def _compare_layers(case: Case, what: str, step: int, mine: Any, theirs: Any) -> None:
    assert len(mine) == len(theirs), what
    for layer, (one, two) in enumerate(zip(mine, theirs, strict=True)):
        if case["padding"] not in ("none", "ones") and one.shape[-2] > 1:
            assert one.shape == two.shape, what  # what stands at padding is nobody's
        else:
            _close(f"{what}[{layer}]", one, two)


def _compare_tokens(case: Case, mine: torch.Tensor, theirs: torch.Tensor) -> None:
    if case["strategy"] in BEAMS and bool((theirs < 0).any()):
        # Without an end the reference writes -1 behind shorter texts, which no tokenizer can decode.
        theirs = theirs.masked_fill(theirs < 0, case["options"].get("pad_token_id", -1))
    assert mine.tolist() == theirs.tolist(), f"tokens: ours {mine.tolist()}\n        theirs {theirs.tolist()}"


def check(case: Case) -> None:
    """Run a case in both libraries, and once more in ours without a record, where finished rows leave the batch.

    Raises:
        AssertionError: something differs.
    """
    models = pair(case["family"], case["variant"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mine, my_stream = _generate(case, models.ours, True)
        theirs, their_stream = _generate(case, models.reference, False)
        again = None
        if case["options"].get("return_dict_in_generate"):
            again, _ = _generate(case, models.ours, True, return_dict_in_generate=False)
    if isinstance(theirs, torch.Tensor):
        assert isinstance(mine, torch.Tensor)
        _compare_tokens(case, mine, theirs)
    else:
        _compare_records(case, mine, theirs)
        assert torch.equal(again, mine.sequences), "without a record other tokens come"
    if case["strategy"] in ONE_ROW and my_stream is not None and their_stream is not None:
        # The reference streams what one step accepts; ours token by token.
        their_stream = [their_stream[0], *([one] for put in their_stream[1:-1] for one in put), their_stream[-1]]
    assert my_stream == their_stream, f"streams: {my_stream} and {their_stream}"
