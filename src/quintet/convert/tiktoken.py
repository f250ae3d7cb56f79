"""The file `o200k_base.tiktoken`, with the special tokens of o200k_base or with those of gpt-oss, as a tokenizer.

The file does not say which of the two it is for, so `quintet convert` asks: `--from o200k-harmony` for gpt-oss.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from quintet.convert.base import Layout, Progress
from quintet.tokenizers.tiktoken import write_tokenizer

__all__ = ["BASE", "HARMONY"]

FILE = "o200k_base.tiktoken"
_SIZE = 12 << 20  # of the result; it has 8 MB


def detect(folder: Path) -> bool:
    """Whether the file is in `folder`."""
    return (folder / FILE).is_file()


def size(folder: Path) -> int:
    """Bytes of the result."""
    del folder
    return _SIZE


def to_hub(encoding: str, source: Path, folder: Path, progress: Progress) -> None:
    """Convert the file to tokenizer.json and tokenizer_config.json.

    Raises:
        TokenizerError: It is missing or damaged.
    """
    files = write_tokenizer(source / FILE, folder, encoding)
    done = sum(file.stat().st_size for file in files)
    progress(done, done)


BASE = Layout(name="o200k-base", detect=detect, size=size, to_hub=partial(to_hub, "o200k_base"))
HARMONY = Layout(name="o200k-harmony", detect=detect, size=size, to_hub=partial(to_hub, "o200k_harmony"))
