"""docs/adding_a_model.md followed to the letter: a sixth family, with nothing edited outside its own file."""

from __future__ import annotations

import ast
import importlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import quintet.models
from quintet import auto
from quintet.auto import AutoModelForCausalLM, family_of, model_types
from quintet.errors import ConfigError

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "adding_a_model.md").read_text(encoding="utf-8")
BUILD, USE = PAGE.split("\n## Use it\n")
LAST = "## 7. Make it known"


def blocks(text: str, language: str = "python") -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def file_of(text: str) -> str:
    """The blocks as one file, with the empty lines that ruff wants between them."""
    return "\n\n".join(blocks(text))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project of somebody's own, with the file that the page says."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "mistral.py").write_text(file_of(BUILD), encoding="utf-8")
    return folder


@pytest.fixture
def mistral(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The imported file; what it registered is gone afterwards."""
    monkeypatch.setattr(auto, "_families", {})
    monkeypatch.syspath_prepend(str(folder))
    yield importlib.import_module("mistral")
    del sys.modules["mistral"]


def both(module: ModuleType, task: str, reference: str, **fields: Any) -> tuple[Any, Any]:
    """A model of the page and transformers' with the same weights."""
    import transformers

    config = module.tiny(attn_implementation="eager", **fields)
    ours = module.FAMILY.classes[task](config).eval()
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.1)
    data = {key: value for key, value in config.to_dict().items() if key not in ("dtype", "transformers_version")}
    theirs_config = transformers.MistralConfig(**data, attn_implementation="eager")
    theirs = getattr(transformers, reference)(theirs_config).eval()
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def test_the_page_has_the_blocks_that_are_run() -> None:
    assert len(blocks(BUILD)) == 7
    assert len(blocks(USE)) == 1
    assert len(blocks(USE, "sh")) == 1
    assert len(re.findall(r"^```", PAGE, re.MULTILINE)) == 2 * 9
    for name in re.findall(r"`((?:src|tests|docs|models)/[\w./]+)`", PAGE):
        where = ROOT / "src" / "quintet" / name if name.startswith("models/") else ROOT / name
        assert where.exists() or name in ("src/quintet/models/mistral.py",), name


def test_the_file_is_written_like_those_of_the_package(folder: Path) -> None:
    for command in (["check", "--select", "E,W,F,I,UP,B,C4,SIM"], ["format", "--check"]):
        options = ["--isolated", "--line-length", "120", "--target-version", "py310"]
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, *options, str(folder / "mistral.py")],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
    imported = {
        node.module.split(".")[1]
        for node in ast.walk(ast.parse(file_of(BUILD.split(LAST)[0])))
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("quintet.")
    }
    # what families may know, see tests/layering
    allowed = "heads modeling losses generation layers outputs cache config rules family rope errors"
    assert imported <= set(allowed.split())


def test_using_it(mistral: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(blocks(USE)[0], "adding_a_model.md", "exec"), {"__name__": "page"})
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "torch.Size([1, 7, 99])"
    assert printed[1].startswith("tensor([[ 5, 17, 40,  2, 61, 33,  8,")
    difference = re.search(r"tensor\(([\d.e-]+)", printed[2])
    assert difference is not None
    assert float(difference[1]) < 1e-5
    assert printed[3] == "<class 'mistral.MistralConfig'> <class 'mistral.MistralModel'>"
    assert (tmp_path / "my-mistral" / "model.safetensors").is_file()


def test_it_is_known_when_it_is_imported_and_not_before(mistral: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    assert family_of("mistral") is mistral.FAMILY
    mistral.register_family(mistral.FAMILY)  # again: nothing changes
    monkeypatch.setattr(auto, "_families", {})
    with pytest.raises(ConfigError, match="unknown model_type 'mistral'; known are gpt2, "):
        family_of("mistral")


def test_in_the_package_the_file_is_found_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mistral.py").write_text(file_of(BUILD.split(LAST)[0]), encoding="utf-8")
    monkeypatch.setattr(quintet.models, "__path__", [*quintet.models.__path__, str(tmp_path)])
    auto._files.cache_clear()
    try:
        assert "mistral" in model_types()
        family = family_of("mistral")
        model = AutoModelForCausalLM.from_config(family.tiny())
        assert type(model).__module__ == "quintet.models.mistral"
    finally:
        monkeypatch.undo()
        auto._files.cache_clear()
        sys.modules.pop("quintet.models.mistral", None)
    assert "mistral" not in model_types()


VARIANTS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "without a window": {"sliding_window": None},
    "tied": {"tie_word_embeddings": True},
    "a head size of its own, one key head": {"head_dim": 6, "num_key_value_heads": 1},
    "rope scaled": {"rope_theta": 500.0, "rope_scaling": {"rope_type": "linear", "factor": 2.0}},
    "other activation": {"hidden_act": "gelu", "rms_norm_eps": 1e-3, "num_hidden_layers": 3},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_numbers_are_those_of_the_reference(mistral: ModuleType, variant: str) -> None:
    ours, theirs = both(mistral, "causal-lm", "MistralForCausalLM", **VARIANTS[variant])
    assert [(k, v.shape) for k, v in ours.state_dict().items()] == [
        (k, v.shape) for k, v in theirs.state_dict().items()
    ]
    ids = torch.randint(90, (3, 11))
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    positions = (mask.cumsum(-1) - 1).clamp_min(0)  # what left padding means; the reference must be told
    real = mask.bool()
    labels = ids.masked_fill(~real, -100)
    labels[0, 4] = -100  # what stands before the first token of the row is nobody's
    kwargs: dict[str, Any] = {"attention_mask": mask, "labels": labels, "output_hidden_states": True}
    got = ours(ids, **kwargs)
    wanted = theirs(ids, **kwargs, position_ids=positions)
    torch.testing.assert_close(got.logits[real], wanted.logits[real], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(got.loss, wanted.loss, rtol=1e-5, atol=1e-5)
    for state, right in zip(got.hidden_states, wanted.hidden_states, strict=True):
        torch.testing.assert_close(state[real], right[real], rtol=1e-5, atol=1e-5)
    got.loss.backward()
    wanted.loss.backward()
    for parameter, right in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, right.grad, rtol=1e-4, atol=1e-4)
    options = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None, "pad_token_id": 97}
    written = ours.generate(ids, attention_mask=mask, **options)
    assert torch.equal(written, theirs.generate(ids, attention_mask=mask, **options))


@pytest.mark.parametrize("task", ["SequenceClassification", "TokenClassification"])
def test_the_generic_heads(mistral: ModuleType, task: str) -> None:
    name = {"SequenceClassification": "sequence-classification", "TokenClassification": "token-classification"}[task]
    ours, theirs = both(mistral, name, f"MistralFor{task}", pad_token_id=97, num_labels=3)
    ids = torch.randint(90, (2, 8))
    with torch.no_grad():
        torch.testing.assert_close(ours(ids).logits, theirs(ids).logits, rtol=1e-5, atol=1e-5)


def test_checkpoints_go_both_ways(mistral: ModuleType, tmp_path: Path) -> None:
    import transformers

    ours, theirs = both(mistral, "causal-lm", "MistralForCausalLM")
    ids = torch.randint(90, (2, 9))
    ours.save_pretrained(tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    with torch.no_grad():
        wanted = theirs(ids).logits
        for back in (
            AutoModelForCausalLM.from_pretrained(tmp_path / "theirs"),
            transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours"),
        ):
            torch.testing.assert_close(back(ids).logits, wanted, rtol=1e-5, atol=1e-5)


def run_equivalence(folder: Path, *options: str) -> str:
    """The command of the page, in the checkout, with the page's file on the path."""
    command = blocks(USE, "sh")[0].strip()
    assert command == "PYTHONPATH=. pytest tests/equivalence -p mistral -k mistral"
    arguments = command.split()[2:-2]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *arguments, "-q", "-p", "no:cacheprovider", *options],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    return done.stdout.strip().splitlines()[-1]


def test_the_equivalence_tests_hold_for_it(folder: Path) -> None:
    """With the default backend; the whole command of the page is the next test."""
    summary = run_equivalence(folder, "-p", "no:xdist", "-k", "sdpa-mistral and not compiled")
    assert int(re.match(r"(\d+) passed", summary)[1]) > 40, summary  # type: ignore[index]


@pytest.mark.slow
def test_the_command_of_the_page(folder: Path) -> None:
    summary = run_equivalence(folder, "-k", "mistral")
    assert int(re.match(r"(\d+) passed", summary)[1]) > 100, summary  # type: ignore[index]
