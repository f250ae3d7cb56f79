"""`o200k_base.tiktoken` becomes a tokenizer, of the kind that was asked for."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from quintet.convert.run import convert
from quintet.errors import CheckpointError, TokenizerError, UsageError
from quintet.tokenizers import AutoTokenizer


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A file of the same form with few tokens."""
    folder = tmp_path / "in"
    folder.mkdir()
    tokens = [*(bytes([byte]) for byte in range(256)), b"he", b"ll", b"hell", b"hello"]
    lines = (f"{base64.b64encode(token).decode()} {rank}\n" for rank, token in enumerate(tokens))
    (folder / "o200k_base.tiktoken").write_text("".join(lines), encoding="ascii")
    return folder


@pytest.mark.parametrize(
    ("layout", "text", "ids"),
    [
        ("o200k-harmony", "hello<|return|>", [259, 200002]),
        ("o200k-base", "hello<|endoftext|>he", [259, 199999, 256]),
    ],
)
def test_both_forms(layout: str, text: str, ids: list[int], source: Path, tmp_path: Path) -> None:
    done = convert(source, tmp_path / "out", source_layout=layout)
    assert [file.name for file in done.files] == ["tokenizer.json", "tokenizer_config.json"]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer(text)["input_ids"] == ids
    assert tokenizer.decode(ids) == text
    assert tokenizer.eos_token == {"o200k-harmony": "<|return|>", "o200k-base": "<|endoftext|>"}[layout]


def test_a_model_keeps_its_weights(source: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        (tmp_path / "out" / name).write_text("old", encoding="ascii")
    convert(source, tmp_path / "out", source_layout="o200k-harmony", force=True)
    kept = {file.name for file in (tmp_path / "out").iterdir() if file.read_bytes() == b"old"}
    assert kept == {"model.safetensors", "config.json"}


def test_the_file_does_not_say_which(source: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="may be any of o200k-base, o200k-harmony. Say which one with --from"):
        convert(source, tmp_path / "out")
    (source / "o200k_base.tiktoken").write_text("", encoding="ascii")
    with pytest.raises(TokenizerError, match="has no token for 256 of the 256 bytes"):
        convert(source, tmp_path / "out", source_layout="o200k-harmony")
    assert not (tmp_path / "out").exists()
    (source / "config.json").write_text("{}", encoding="ascii")
    with pytest.raises(UsageError, match="cannot be converted from 'hub' to 'o200k-base'"):
        convert(source, tmp_path / "back", source_layout="hub", target_layout="o200k-base")
