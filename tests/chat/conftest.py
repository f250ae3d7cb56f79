"""The library of gpt-oss' format, as the oracle."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

# Helpers of several test files, which are no tests themselves.
sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def oracle(data_dir: Path) -> Any:
    """openai-harmony's encoding, with the vocabulary that is here."""
    harmony = pytest.importorskip("openai_harmony")
    os.environ["TIKTOKEN_ENCODINGS_BASE"] = str(data_dir / "tokenizers" / "o200k_base")
    return harmony.load_harmony_encoding(harmony.HarmonyEncodingName.HARMONY_GPT_OSS)
