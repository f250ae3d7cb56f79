"""Small checkpoints of every family and task, on disk, for our pipelines and the reference's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from quintet.auto import family_of, model_types
from quintet.pipelines import TASKS, pipeline
from quintet.tokenizers import PreTrainedTokenizerFast
from quintet.tokenizers.trainer import train_bpe

TEXT = (
    "Once upon a time there was a little house at the edge of a forest. In the house lived an old woman and her cat. "
    "The cat said nothing, but the old woman talked to it all day long. One morning the cat went out and did not come "
    "back. The old woman took her lantern, and went into the forest to look for it. Who lives there? She does.\n\n"
)
# Texts of very different lengths, in no order.
TEXTS = [
    "The cat",
    "Once upon a time there was a little house at the edge of a forest, and the cat said nothing at all.",
    "a",
    "The old woman took her lantern, and went out.",
    "She",
]
POSITIONS = 128
LABELS = {"sequence-classification": ["contradiction", "neutral", "entailment"], "token-classification": None}
TAGS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]


@pytest.fixture(scope="session")
def transformers() -> ModuleType:
    """The reference."""
    module = pytest.importorskip(
        "transformers",
        reason="parity is measured against transformers, which is not installed: pip install -e '.[dev]'",
    )
    module.logging.set_verbosity_error()
    return module


@pytest.fixture(scope="session")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tokenizer that has a padding token."""
    folder = tmp_path_factory.mktemp("pipeline-tokenizer")
    text = folder.with_suffix(".txt")
    text.write_text(TEXT * 4, encoding="utf-8")
    engine = train_bpe([text], vocab_size=330, output=folder, model_max_length=POSITIONS)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=engine,
        eos_token="<|endoftext|>",
        bos_token="<|endoftext|>",
        pad_token="<|pad|>",
        model_max_length=POSITIONS,
    )
    tokenizer.save_pretrained(folder)
    return folder


Checkpoint = Callable[..., Path]


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, vocabulary: Path) -> Checkpoint:
    """Makes the folder of a family's model for a head, once: `checkpoint("gpt2", "causal-lm")`."""
    made: dict[Any, Path] = {}

    def get(kind: str, head: str, **fields: Any) -> Path:
        key = (kind, head, *sorted((name, repr(value)) for name, value in fields.items()))
        if key not in made:
            made[key] = build(kind, head, fields, tmp_path_factory.mktemp(f"{kind}-{head}"), vocabulary)
        return made[key]

    return get


def build(kind: str, head: str, fields: dict[str, Any], folder: Path, vocabulary: Path) -> Path:
    """Write a small model with weights that are far from symmetric, and the tokenizer."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(vocabulary)
    family = family_of(kind)
    sizes = {"n_positions": POSITIONS} if kind in ("gpt2", "openai-gpt") else {"max_position_embeddings": POSITIONS}
    end = tokenizer.eos_token_id
    given = {"vocab_size": len(tokenizer), "bos_token_id": end, "eos_token_id": end}
    given |= {"pad_token_id": tokenizer.pad_token_id, **sizes}
    names = TAGS if head == "token-classification" else LABELS.get(head)
    if names:
        given["id2label"] = dict(enumerate(names))
    torch.manual_seed(0)
    model = family.classes[head](family.tiny(**{**given, **fields}))
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.15)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(params=model_types())
def kind(request: pytest.FixtureRequest) -> str:
    """Every family."""
    return str(request.param)


@pytest.fixture
def ours(checkpoint: Checkpoint) -> Callable[..., Any]:
    """Makes a pipeline of ours: `ours("ner", "gpt2", **options)`."""

    def make(task: str, kind: str = "gpt2", fields: dict[str, Any] | None = None, **options: Any) -> Any:
        head = TASKS[{"ner": "token-classification"}.get(task, task)].head
        return pipeline(task, model=checkpoint(kind, head, **(fields or {})), device="cpu", **options)

    return make


@pytest.fixture
def pair(checkpoint: Checkpoint, transformers: ModuleType) -> Callable[..., tuple[Any, Any]]:
    """Makes a pipeline of ours and the reference's with the same weights."""

    def make(task: str, kind: str = "gpt2", fields: dict[str, Any] | None = None, **options: Any) -> tuple[Any, Any]:
        folder = checkpoint(kind, TASKS[task].head, **(fields or {}))
        theirs = transformers.pipeline(task, model=str(folder), device="cpu", **options)
        return pipeline(task, model=folder, device="cpu", **options), theirs

    return make


@pytest.fixture(scope="session")
def alike() -> Callable[..., None]:
    """Asserts that two results are the same, numbers to 1e-5."""

    def check(got: Any, wanted: Any, where: str = "result", tolerance: float = 1e-5) -> None:
        if isinstance(wanted, dict):
            assert [*got] == [*wanted], where
            for key in wanted:
                check(got[key], wanted[key], f"{where}.{key}", tolerance)
        elif isinstance(wanted, (list, tuple)):
            assert isinstance(got, (list, tuple)) and len(got) == len(wanted), f"{where}: {got!r} and {wanted!r}"
            for number, (one, other) in enumerate(zip(got, wanted, strict=True)):
                check(one, other, f"{where}[{number}]", tolerance)
        elif isinstance(wanted, torch.Tensor):
            torch.testing.assert_close(got, wanted, rtol=tolerance, atol=tolerance)
        elif isinstance(wanted, (int, str, bool)) or wanted is None:
            assert got == wanted, f"{where}: {got!r} and {wanted!r}"
        else:
            assert abs(float(got) - float(wanted)) <= tolerance, f"{where}: {got!r} and {wanted!r}"

    return check
