"""Makes the tiny checkpoints that the examples of the model pages run on; needs no network.

    python tests/examples/checkpoints.py FOLDER DATA

FOLDER gets one folder per family with random weights. Tokenizers: the published vocabularies of GPT-2, GPT-1 and
GPT-NeoX are read from DATA; Seed-OSS and gpt-oss get that of the bundled storyteller with their own special tokens.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

import quintet

FAMILIES = ("gpt2", "openai_gpt", "gpt_neox", "seed_oss", "gpt_oss")
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}


def gpt2(folder: Path, data: Path) -> None:
    """GPT-2: the published vocabulary."""
    tokenizer = quintet.GPT2TokenizerFast.from_pretrained(data / "tokenizers" / "gpt2")
    config = quintet.GPT2Config(n_embd=8, n_layer=2, n_head=2)
    save(tokenizer, quintet.GPT2LMHeadModel(config), folder)


def openai_gpt(folder: Path, data: Path) -> None:
    """GPT-1: the published vocabulary."""
    tokenizer = quintet.OpenAIGPTTokenizerFast.from_pretrained(data / "tokenizers" / "openai-gpt")
    config = quintet.OpenAIGPTConfig(n_embd=8, n_layer=2, n_head=2)
    save(tokenizer, quintet.OpenAIGPTLMHeadModel(config), folder)


def gpt_neox(folder: Path, data: Path) -> None:
    """GPT-NeoX: the published tokenizer."""
    tokenizer = quintet.GPTNeoXTokenizerFast.from_pretrained(data / "tokenizers" / "gpt-neox-20b")
    sizes = {name: SIZES[name] for name in ("hidden_size", "num_hidden_layers", "num_attention_heads")}
    config = quintet.GPTNeoXConfig(**sizes, intermediate_size=64)
    save(tokenizer, quintet.GPTNeoXForCausalLM(config), folder)


def seed_oss(folder: Path, data: Path) -> None:
    """Seed-OSS: the storyteller's vocabulary, with Seed-OSS' special tokens."""
    tokenizer = with_tokens(bos_token="<seed:bos>", eos_token="<seed:eos>", pad_token="<seed:pad>")
    config = quintet.SeedOssConfig(**SIZES, intermediate_size=64, **ids(tokenizer))
    save(tokenizer, quintet.SeedOssForCausalLM(config), folder)


def gpt_oss(folder: Path, data: Path) -> None:
    """gpt-oss: the storyteller's vocabulary, with some of harmony's special tokens."""
    tokenizer = with_tokens(bos_token="<|startoftext|>", eos_token="<|return|>", pad_token="<|endoftext|>")
    experts = {"num_local_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 32}
    config = quintet.GptOssConfig(**SIZES, **experts, **ids(tokenizer))
    save(tokenizer, quintet.GptOssForCausalLM(config), folder)


def with_tokens(**special: str) -> Any:
    """The storyteller's tokenizer with other special tokens."""
    found = quintet.AutoTokenizer.from_pretrained("storyteller")
    tokenizer = quintet.PreTrainedTokenizerFast(tokenizer_object=found.backend_tokenizer)
    tokenizer.add_special_tokens(special)
    return tokenizer


def ids(tokenizer: Any) -> dict[str, int]:
    """What a configuration says about a tokenizer."""
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    return {"vocab_size": len(tokenizer), **{name: getattr(tokenizer, name) for name in names}}


def save(tokenizer: Any, model: Any, folder: Path) -> None:
    """Write both into one folder."""
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)


def make(family: str, folder: Path, data: Path) -> Path:
    """Make the checkpoint of `family` in `folder`; returns its folder."""
    torch.manual_seed(0)
    globals()[family](folder / family, data)
    return folder / family


if __name__ == "__main__":
    for name in FAMILIES:
        print(make(name, Path(sys.argv[1]), Path(sys.argv[2])))
