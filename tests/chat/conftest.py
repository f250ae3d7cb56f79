"""The vocabulary of gpt-oss, and a small one with Seed-OSS' special tokens."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from quintet.tokenizers.fast import PreTrainedTokenizerFast
from quintet.tokenizers.tiktoken import write_tokenizer

# Helpers of several test files, which are no tests themselves.
sys.path.insert(0, str(Path(__file__).parent))

SEED_TOKENS = (
    *("<seed:bos>", "<seed:eos>", "<seed:pad>", "<seed:think>", "</seed:think>"),
    *("<seed:cot_budget_reflect>", "</seed:cot_budget_reflect>", "<seed:tool_call>", "</seed:tool_call>"),
)


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
def seed_tokenizer(make_bytes: Any) -> PreTrainedTokenizerFast:
    """Bytes and Seed-OSS' special tokens."""
    return make_bytes(SEED_TOKENS, bos_token="<seed:bos>", eos_token="<seed:eos>", pad_token="<seed:pad>")
