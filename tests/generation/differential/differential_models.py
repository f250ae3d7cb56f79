"""Tiny models of every family in both libraries with the same weights, made once and never changed."""

from __future__ import annotations

import copy
from functools import cache
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
import transformers

from quintet.auto import AutoModelForCausalLM, family_of

VOCABULARY = 99

VARIANTS: dict[str, tuple[dict[str, Any], ...]] = {
    "openai-gpt": ({}, {"n_layer": 3, "n_head": 2, "n_embd": 24}),
    "gpt2": ({}, {"scale_attn_by_inverse_layer_idx": True, "n_layer": 3, "n_inner": 40}),
    "gpt_neox": ({}, {"use_parallel_residual": False, "rotary_pct": 1.0}),
    "seed_oss": ({}, {"tie_word_embeddings": True, "num_key_value_heads": 1}),
    "gpt_oss": ({}, {"sliding_window": 7, "num_local_experts": 8, "num_experts_per_tok": 3}),
}
"""Changes of the tiny configuration of each family."""


class Pair(NamedTuple):
    """The same weights in both libraries."""

    ours: Any
    reference: Any


def _noisy(model: Any, amount: float, seed: int) -> Any:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * amount)
    return model.eval()


def _paired(ours: Any) -> Pair:
    with TemporaryDirectory() as folder:
        ours.save_pretrained(folder)
        # Eager attention: the one that can show its weights, and the only one that knows sinks.
        reference = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager"
        )
    return Pair(ours, reference.eval())


@cache
def pair(family: str, variant: int) -> Pair:
    """Return the models; large weights make the distributions uneven, so that a wrong bit shows."""
    torch.manual_seed(1)
    config = family_of(family).tiny(vocab_size=VOCABULARY, **VARIANTS[family][variant])
    return _paired(_noisy(AutoModelForCausalLM.from_config(config), 0.2, 1))


@cache
def drafts(family: str, variant: int) -> Pair:
    """Return draft models that are often right."""
    return _paired(_noisy(copy.deepcopy(pair(family, variant).ours), 0.03, 3))


@cache
def tokenizer() -> Any:
    """Return a tokenizer over all ids of the models; the reference's class, which both libraries take."""
    import tokenizers

    letters = ["<pad>", "<bos>", "<eos>", "Ġ", ".", *"abcdefghijklmnopqrstuvwxyz"]
    pieces = [one + two for one in ("Ġ", *"aeiouts") for two in "abcdehlmnrst"]
    merges = [(piece[0], piece[1]) for piece in pieces]
    words = letters + pieces
    vocabulary = {word: index for index, word in enumerate(words[:VOCABULARY])}
    engine = tokenizers.Tokenizer(
        tokenizers.models.BPE(vocab=vocabulary, merges=[pair for pair in merges if "".join(pair) in vocabulary])
    )
    engine.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    engine.decoder = tokenizers.decoders.ByteLevel()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=engine, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>"
    )
