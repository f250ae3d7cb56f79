"""AutoTokenizer finds the class."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from quintet.errors import HubError, TokenizerError
from quintet.tokenizers import AutoTokenizer, GPT2Tokenizer, GPT2TokenizerFast, PreTrainedTokenizerFast, auto


class Custom(PreTrainedTokenizerFast):
    """A class of somebody else's."""


@pytest.fixture(autouse=True)
def _registry() -> Iterator[None]:
    before = dict(auto._registered)
    yield
    auto._registered.clear()
    auto._registered.update(before)


@pytest.fixture
def folder(small_dir: Path, tmp_path: Path) -> Path:
    shutil.copy(small_dir / "tokenizer.json", tmp_path)
    return tmp_path


def write(folder: Path, name: str, **values: Any) -> None:
    (folder / name).write_text(json.dumps(values), encoding="utf-8")


@pytest.mark.parametrize("name", ["GPT2Tokenizer", "GPT2TokenizerFast"])
def test_by_the_tokenizer_config(name: str, folder: Path) -> None:
    write(folder, "tokenizer_config.json", tokenizer_class=name)
    write(folder, "config.json", model_type="something-else")
    assert type(AutoTokenizer.from_pretrained(folder)) is GPT2TokenizerFast
    assert type(AutoTokenizer.from_pretrained(folder, use_fast=False)) is GPT2Tokenizer


def test_by_the_model_config(folder: Path) -> None:
    write(folder, "config.json", model_type="gpt2")
    assert type(AutoTokenizer.from_pretrained(folder)) is GPT2TokenizerFast
    write(folder, "config.json", model_type="other", tokenizer_class="GPT2Tokenizer")
    assert type(AutoTokenizer.from_pretrained(folder)) is GPT2TokenizerFast
    (folder / "config.json").unlink()

    class Config:
        model_type = "gpt2"

    assert type(AutoTokenizer.from_pretrained(folder, config=Config())) is GPT2TokenizerFast
    assert type(AutoTokenizer.from_pretrained(folder, tokenizer_type="gpt2")) is GPT2TokenizerFast


@pytest.mark.parametrize("name", ["LlamaTokenizer", "TokenizersBackend", "../evil", "quintet.cli.main"])
def test_unknown_classes_take_tokenizer_json(name: str, folder: Path) -> None:
    assert type(AutoTokenizer.from_pretrained(folder)) is PreTrainedTokenizerFast
    write(folder, "tokenizer_config.json", tokenizer_class=name, eos_token="<|endoftext|>")
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    assert type(tokenizer) is PreTrainedTokenizerFast
    assert (tokenizer.eos_token, tokenizer.padding_side) == ("<|endoftext|>", "left")


def test_nothing_to_load(tmp_path: Path) -> None:
    write(tmp_path, "tokenizer_config.json", tokenizer_class="LlamaTokenizer")
    with pytest.raises(
        TokenizerError, match=r"does not have the tokenizer class 'LlamaTokenizer', and there is no tokeni"
    ):
        AutoTokenizer.from_pretrained(tmp_path)
    write(tmp_path, "tokenizer_config.json")
    write(tmp_path, "config.json", model_type="bert")
    with pytest.raises(
        TokenizerError, match=r"the model type 'bert', .* The folder holds: config.json, tokenizer_config"
    ):
        AutoTokenizer.from_pretrained(tmp_path)
    with pytest.raises(TokenizerError, match=r"tokenizer_type is 'gpt3', but must be one of \['gpt2', 'gpt_neox', '"):
        AutoTokenizer.from_pretrained(tmp_path, tokenizer_type="gpt3")
    with pytest.raises(HubError):
        AutoTokenizer.from_pretrained("nobody/nothing")
    with pytest.raises(TokenizerError, match="AutoTokenizer.from_pretrained"):
        AutoTokenizer()


def test_by_name_from_the_local_cache(folder: Path, tmp_path: Path) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    repo = tmp_path / "cache" / "models--somebody--small"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(commit, encoding="utf-8")
    (repo / "snapshots" / commit).mkdir(parents=True)
    shutil.copy(folder / "tokenizer.json", repo / "snapshots" / commit)
    tokenizer = AutoTokenizer.from_pretrained("somebody/small", cache_dir=tmp_path / "cache", local_files_only=True)
    assert tokenizer.name_or_path == "somebody/small"


def test_register(folder: Path) -> None:
    class Config:
        model_type = "custom"

    AutoTokenizer.register(Config, fast_tokenizer_class=Custom)
    write(folder, "config.json", model_type="custom")
    assert type(AutoTokenizer.from_pretrained(folder)) is Custom
    AutoTokenizer.from_pretrained(folder).save_pretrained(folder)
    (folder / "config.json").unlink()
    assert type(AutoTokenizer.from_pretrained(folder)) is Custom, "by the class name that it saved"
    with pytest.raises(TokenizerError, match="'custom' has a tokenizer already. Pass exist_ok=True"):
        AutoTokenizer.register("custom", Custom)
    AutoTokenizer.register("custom", slow_tokenizer_class=Custom, exist_ok=True)
    with pytest.raises(TokenizerError, match="'gpt2' has a tokenizer already"):
        AutoTokenizer.register("gpt2", Custom)
    with pytest.raises(TokenizerError, match="is not a tokenizer class: derive it from PreTrainedTokenizerFast"):
        AutoTokenizer.register("new", dict)  # type: ignore[arg-type]
    with pytest.raises(TokenizerError, match="needs slow_tokenizer_class or fast_tokenizer_class"):
        AutoTokenizer.register("new")
    with pytest.raises(TokenizerError, match="needs a configuration class with a model_type"):
        AutoTokenizer.register(object(), Custom)
