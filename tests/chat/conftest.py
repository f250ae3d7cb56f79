"""The vocabulary of gpt-oss, and a small one with Seed-OSS' special tokens."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from quintet.tokenizers.engine import byte_values
from quintet.tokenizers.fast import PreTrainedTokenizerFast
from quintet.tokenizers.tiktoken import write_tokenizer

# Helpers of several test files, which are no tests themselves.
sys.path.insert(0, str(Path(__file__).parent))

SEED_TOKENS = (
    *("<seed:bos>", "<seed:eos>", "<seed:pad>", "<seed:think>", "</seed:think>"),
    *("<seed:cot_budget_reflect>", "</seed:cot_budget_reflect>", "<seed:tool_call>", "</seed:tool_call>"),
)


def byte_tokenizer(special: tuple[str, ...] = (), **kwargs: Any) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer in which every byte is a token: small, and hard on streaming."""
    vocabulary = {char: index for index, char in enumerate(byte_values())}
    engine = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    engine.decoder = decoders.ByteLevel()
    engine.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return PreTrainedTokenizerFast(tokenizer_object=engine, **kwargs)


@pytest.fixture(scope="session")
def make_bytes() -> Any:
    """`byte_tokenizer`."""
    return byte_tokenizer


@pytest.fixture(scope="session")
def harmony_tokenizer(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerFast:
    """o200k_harmony, as gpt-oss uses it."""
    path = data_dir / "tokenizers" / "o200k_base" / "o200k_base.tiktoken"
    if not path.exists():
        pytest.skip(f"no {path}")
    folder = tmp_path_factory.mktemp("harmony")
    write_tokenizer(path, folder, "o200k_harmony")
    return PreTrainedTokenizerFast.from_pretrained(folder)


@pytest.fixture(scope="session")
def oracle(data_dir: Path) -> Any:
    """openai-harmony's encoding, with the vocabulary that is here."""
    harmony = pytest.importorskip("openai_harmony")
    os.environ["TIKTOKEN_ENCODINGS_BASE"] = str(data_dir / "tokenizers" / "o200k_base")
    return harmony.load_harmony_encoding(harmony.HarmonyEncodingName.HARMONY_GPT_OSS)


@pytest.fixture(scope="session")
def seed_tokenizer() -> PreTrainedTokenizerFast:
    """Bytes and Seed-OSS' special tokens."""
    return byte_tokenizer(SEED_TOKENS, bos_token="<seed:bos>", eos_token="<seed:eos>", pad_token="<seed:pad>")
