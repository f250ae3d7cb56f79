"""Folders: what is written, what is read, and that both are the same tokenizer."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quintet.errors import HubError, TokenizerError
from quintet.hub import StagedFiles
from quintet.tokenizers import AutoTokenizer, GPT2Tokenizer, GPT2TokenizerFast, PreTrainedTokenizerFast

Make = Callable[..., GPT2TokenizerFast]
TEXT = "The quick <tool> na\u00efve \U0001f98a<|endoftext|>  fox"


def config_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))


def test_everything_comes_back(make_small: Make, tmp_path: Path) -> None:
    first = make_small(
        pad_token="<|pad|>",
        padding_side="left",
        truncation_side="left",
        model_max_length=99,
        add_prefix_space=True,
        add_bos_token=True,
        extra_special_tokens=["<tool>"],
        chat_template="{{ messages }}",
        split_special_tokens=True,
        something_else=[1, 2],
    )
    first.add_tokens(["quick"])
    paths = first.save_pretrained(tmp_path / "new" / "folder")
    assert [Path(path).name for path in paths] == ["tokenizer.json", "chat_template.jinja", "tokenizer_config.json"]
    assert sorted(os.listdir(tmp_path / "new" / "folder")) == sorted(Path(path).name for path in paths)
    second = AutoTokenizer.from_pretrained(tmp_path / "new" / "folder")
    assert type(second) is GPT2TokenizerFast
    assert second(TEXT, split_special_tokens=False).data == first(TEXT, split_special_tokens=False).data
    assert second(TEXT).data == first(TEXT).data
    names = ("padding_side", "truncation_side", "model_max_length", "add_prefix_space", "add_bos_token")
    for name in (*names, "chat_template", "split_special_tokens", "special_tokens_map", "extra_special_tokens"):
        assert getattr(second, name) == getattr(first, name), name
    assert second.init_kwargs["something_else"] == [1, 2]
    assert second.get_vocab() == first.get_vocab()
    assert second.name_or_path == str(tmp_path / "new" / "folder")
    second.save_pretrained(tmp_path / "again")
    assert config_of(tmp_path / "again") == config_of(tmp_path / "new" / "folder")


NAMED = {"default": "{{ messages }}", "rag": "{{ documents }}", "tool_use": "{{ tools }} \u00e9\n"}


@pytest.mark.parametrize("templates", [NAMED, {"rag": "{{ documents }}"}, {"default": "d"}, "one", None])
@pytest.mark.parametrize("files", [True, False])
def test_named_chat_templates_are_files_as_the_reference_has_them(
    templates: Any, files: bool, small: GPT2TokenizerFast, tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    small.chat_template = templates
    paths = small.save_pretrained(ours, save_jinja_files=files)
    reference = transformers.GPT2TokenizerFast.from_pretrained(ours)
    several = templates != {"default": "d"}  # the only template has no name any more when it comes from a file
    assert reference.chat_template == (templates if several or not files else "d")
    assert AutoTokenizer.from_pretrained(ours).chat_template == reference.chat_template
    reference.chat_template = templates
    reference.save_pretrained(theirs, save_jinja_files=files)
    assert AutoTokenizer.from_pretrained(theirs).chat_template == (templates if several or not files else "d")
    mine, its = ({str(p.relative_to(d)): p.read_text("utf-8") for p in d.rglob("*.jinja")} for d in (ours, theirs))
    assert mine == its and {*mine} <= {str(Path(path).relative_to(ours)) for path in paths}
    assert ("chat_template" in config_of(ours)) == (templates is not None and not files)


def test_templates_of_another_tokenizer_do_not_come_back(small: GPT2TokenizerFast, tmp_path: Path) -> None:
    small.chat_template = NAMED
    small.save_pretrained(tmp_path)
    (tmp_path / "additional_chat_templates" / "notes.txt").write_text("kept")
    small.chat_template = {"rag": "new"}
    small.save_pretrained(tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path).chat_template == {"rag": "new"}
    small.chat_template = "one"
    small.save_pretrained(tmp_path, save_jinja_files=False)
    assert AutoTokenizer.from_pretrained(tmp_path).chat_template == "one"
    assert [path.name for path in (tmp_path / "additional_chat_templates").iterdir()] == ["notes.txt"]


def test_changes_after_loading_are_saved(small: GPT2TokenizerFast, tmp_path: Path) -> None:
    small.pad_token = small.eos_token
    small.unk_token = None
    small.padding_side = "left"
    small.model_max_length = 7
    small("a b c d e f g h i", truncation=True, max_length=3, padding="max_length")
    small.save_pretrained(tmp_path)
    engine = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    assert engine["truncation"] is engine["padding"] is None, "the last call's lengths are no part of a tokenizer"
    back = GPT2TokenizerFast.from_pretrained(tmp_path)
    assert (back.pad_token, back.unk_token) == ("<|endoftext|>", None)
    assert (back.padding_side, back.model_max_length) == ("left", 7)


def test_the_slow_class_comes_back(small_dir: Path, tmp_path: Path) -> None:
    first = GPT2Tokenizer.from_pretrained(small_dir, errors="ignore", add_bos_token=True)
    first.save_pretrained(tmp_path)
    assert config_of(tmp_path)["tokenizer_class"] == "GPT2Tokenizer"
    second = GPT2Tokenizer.from_pretrained(tmp_path)
    assert (second.errors, second.add_bos_token) == ("ignore", True)
    assert second(TEXT).data == first(TEXT).data
    assert type(AutoTokenizer.from_pretrained(tmp_path, use_fast=False)) is GPT2Tokenizer
    assert AutoTokenizer.from_pretrained(tmp_path)(TEXT).data == first(TEXT).data


def test_vocabulary_files(gpt2_dir: Path, fast: GPT2TokenizerFast, tmp_path: Path) -> None:
    paths = fast.save_vocabulary(str(tmp_path), filename_prefix="my")
    assert [Path(path).name for path in paths] == ["my-vocab.json", "my-merges.txt"]
    again = GPT2TokenizerFast(*paths)
    assert again.get_vocab() == fast.get_vocab()
    published = (gpt2_dir / "merges.txt").read_text(encoding="utf-8")
    assert Path(paths[1]).read_text(encoding="utf-8") == published
    assert json.loads(Path(paths[0]).read_text(encoding="utf-8")) == json.loads(
        (gpt2_dir / "vocab.json").read_text(encoding="utf-8")
    )


def test_the_older_layout(small: GPT2TokenizerFast, tmp_path: Path) -> None:
    small.add_special_tokens({"pad_token": "<|pad|>"})
    small.save_pretrained(tmp_path, legacy_format=True)
    (tmp_path / "tokenizer.json").unlink()
    added = {str(i): {"content": str(t), "special": t.special} for i, t in small.added_tokens_decoder.items()}
    config = {"model_max_length": 12, "added_tokens_decoder": added, "tokenizer_class": "GPT2Tokenizer"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    named = {"pad_token": {"content": "<|pad|>", "lstrip": False}, "eos_token": "<|endoftext|>"}
    (tmp_path / "special_tokens_map.json").write_text(json.dumps(named), encoding="utf-8")
    back = AutoTokenizer.from_pretrained(tmp_path)
    assert back(TEXT + "<|pad|>").data == small(TEXT + "<|pad|>").data
    assert (back.pad_token, back.pad_token_id, back.model_max_length) == ("<|pad|>", small.pad_token_id, 12)


def test_the_oldest_layout(small: GPT2TokenizerFast, tmp_path: Path) -> None:
    small.save_vocabulary(tmp_path)
    size = small.vocab_size
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<tool>": size + 1, "<more>": size}), encoding="utf-8")
    back = GPT2Tokenizer.from_pretrained(tmp_path)
    assert back.convert_tokens_to_ids(["<more>", "<tool>"]) == [size, size + 1]
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<tool>": size + 40}), encoding="utf-8")
    with pytest.raises(TokenizerError, match=rf"'<tool>' the id {size + 40}, but with this vocabulary it gets {size}"):
        GPT2Tokenizer.from_pretrained(tmp_path)


def test_prefix_space_of_tokenizer_json_is_the_truth(make_small: Make, tmp_path: Path) -> None:
    make_small(add_prefix_space=True).save_pretrained(tmp_path)
    config = config_of(tmp_path)
    del config["add_prefix_space"]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    for kind in (GPT2TokenizerFast, GPT2Tokenizer, PreTrainedTokenizerFast):
        assert kind.from_pretrained(tmp_path).add_prefix_space is True
        assert kind.from_pretrained(tmp_path, add_prefix_space=False).add_prefix_space is False


def test_lengths_baked_into_tokenizer_json(small_dir: Path, tmp_path: Path) -> None:
    engine = PreTrainedTokenizerFast.from_pretrained(small_dir).backend_tokenizer
    engine.enable_truncation(3)
    engine.enable_padding(pad_id=0, pad_token="!", length=9)
    engine.save(str(tmp_path / "tokenizer.json"))
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    assert len(tokenizer("The quick brown fox")["input_ids"]) not in (3, 9), "a call says itself how long it may be"
    assert tokenizer.pad_token == "!"


def test_remote_code_and_private_keys_are_dropped(small_dir: Path, tmp_path: Path) -> None:
    tokenizer = GPT2TokenizerFast.from_pretrained(small_dir)
    tokenizer.save_pretrained(tmp_path)
    config = config_of(tmp_path)
    config |= {"auto_map": {"AutoTokenizer": ["evil.Evil", None]}, "trust_remote_code": True, "_private": 1}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    (tmp_path / "evil.py").write_text("raise SystemExit('code of a checkpoint was run')", encoding="utf-8")
    for kind in (GPT2TokenizerFast, AutoTokenizer):
        loaded = kind.from_pretrained(tmp_path, trust_remote_code=True)
        assert not {"auto_map", "trust_remote_code", "_private"} & set(loaded.init_kwargs)
        loaded.save_pretrained(tmp_path / "saved")
        assert not {"auto_map", "trust_remote_code", "_private"} & set(config_of(tmp_path / "saved"))


def test_an_interrupted_save_leaves_the_old_files(
    small: GPT2TokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small.save_pretrained(tmp_path)
    before = {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)}
    small.add_tokens(["<new>"])
    original = StagedFiles.write_text

    def full_disk(self: StagedFiles, name: str, text: str) -> None:
        if name == "tokenizer_config.json":
            raise OSError(28, "No space left on device")
        original(self, name, text)

    monkeypatch.setattr(StagedFiles, "write_text", full_disk)
    with pytest.raises(OSError, match="No space left"):
        small.save_pretrained(tmp_path)
    assert {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)} == before


def test_bad_targets(small: GPT2TokenizerFast, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for save in (small.save_pretrained, small.save_vocabulary):
        with pytest.raises(TokenizerError, match="it is a file. Give a folder"):
            save(tmp_path / "file")
        with pytest.raises(TokenizerError, match=r"filename_prefix '\.\./x' holds a folder separator"):
            save(tmp_path / "out", filename_prefix="../x")
    with pytest.raises(TokenizerError, match=r"save_pretrained has no option 'push'"):
        small.save_pretrained(tmp_path, push=True)
    with pytest.raises(TokenizerError, match="cannot be written as JSON"):
        GPT2TokenizerFast.from_pretrained(small.name_or_path, odd={1, 2}).save_pretrained(tmp_path / "out")


def test_a_folder_without_a_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(
        TokenizerError, match=r"needs tokenizer.json or vocab.json and merges.txt. The folder holds: config"
    ):
        GPT2Tokenizer.from_pretrained(tmp_path)
    with pytest.raises(TokenizerError, match=r"holds no files of a PreTrainedTokenizerFast: it needs tokenizer.json\."):
        PreTrainedTokenizerFast.from_pretrained(tmp_path)
    with pytest.raises(HubError):
        GPT2Tokenizer.from_pretrained(tmp_path / "missing")


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    special=st.lists(
        st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8), max_size=4, unique=True
    ),
    side=st.sampled_from(["left", "right"]),
    limit=st.integers(1, 10**6),
    extra=st.dictionaries(
        st.text(st.characters(codec="ascii", categories=["Ll"]), min_size=12, max_size=12), st.integers()
    ),
)
def test_any_settings_come_back(
    special: list[str], side: str, limit: int, extra: dict[str, int], small_dir: Path, tmp_path: Path
) -> None:
    first = PreTrainedTokenizerFast.from_pretrained(
        small_dir, extra_special_tokens=special, padding_side=side, model_max_length=limit, **extra
    )
    first.save_pretrained(tmp_path)
    second = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    assert second.extra_special_tokens == special
    assert (second.padding_side, second.model_max_length) == (side, limit)
    assert second.get_vocab() == first.get_vocab()
    text = "fox".join(special)
    assert second(text).data == first(text).data
    assert {key: second.init_kwargs[key] for key in extra} == extra
