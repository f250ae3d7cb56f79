"""generation_config.json of published models, with ids that fit tiny ones: `generate` does what the file says."""

from __future__ import annotations

import json
import warnings
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from drafts import made

from quintet.auto import AutoModelForCausalLM
from quintet.errors import GenerationError

transformers = pytest.importorskip("transformers")

MADE = {"_from_model_config": True, "transformers_version": "4.55.0.dev0"}

# The family, fields of its config.json, and its generation_config.json; None for a checkpoint that has none.
PUBLISHED: dict[str, tuple[str, dict[str, Any], dict[str, Any] | None]] = {
    "GPT-1": ("openai-gpt", {}, MADE),
    "GPT-2": (
        "gpt2",
        # Options for a pipeline, which `generate` does not read.
        {"task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}}},
        MADE | {"bos_token_id": 98, "eos_token_id": 98},
    ),
    "Pythia": ("gpt_neox", {"bos_token_id": 0, "eos_token_id": 0}, None),
    "GPT-NeoX": ("gpt_neox", {"bos_token_id": 0, "eos_token_id": 0}, MADE | {"bos_token_id": 0, "eos_token_id": 0}),
    "Seed-OSS": (
        "seed_oss",
        {},
        MADE | {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1, "temperature": 1.1, "top_p": 0.95},
    ),
    "gpt-oss": (
        "gpt_oss",
        {},
        {"bos_token_id": 90, "do_sample": True, "eos_token_id": [92, 91, *range(40, 60)], "pad_token_id": 91},
    ),
    "a chat model": (
        "seed_oss",
        {},
        {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "top_k": 20, "repetition_penalty": 1.05}
        | {"eos_token_id": [70, 71, 72, 73], "pad_token_id": 70, "max_length": 4096, "transformers_version": "4.51.0"},
    ),
    "beams": ("gpt2", {}, {"num_beams": 3, "length_penalty": 0.8, "early_stopping": True, "max_new_tokens": 9}),
    "options without effect": ("gpt2", {}, {"do_sample": False, "temperature": 0.7, "top_p": 0.8, "typical_p": 0.5}),
}


@pytest.fixture(scope="module", params=list(PUBLISHED))
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A folder with the files of a published model, and what its generation_config.json holds."""
    family, fields, options = PUBLISHED[request.param]
    folder = tmp_path_factory.mktemp("published")
    made(family).save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | fields))
    (folder / "generation_config.json").unlink()
    if options is not None:
        (folder / "generation_config.json").write_text(json.dumps(options))
    return folder, options


@lru_cache(maxsize=1)
def _models(folder: Path) -> list[Any]:
    """Load a checkpoint with both libraries."""
    kinds = (AutoModelForCausalLM, transformers.AutoModelForCausalLM)
    return [kind.from_pretrained(folder, dtype=torch.float32).eval() for kind in kinds]


def _written(model: Any, **options: Any) -> torch.Tensor:
    """Let a model write, without options unless they are given."""
    ids = torch.randint(3, 40, (3, 6), generator=torch.Generator().manual_seed(2))
    mask = torch.ones_like(ids)
    mask[1, :2] = 0
    torch.manual_seed(5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return model.generate(ids, attention_mask=mask, **options)


@pytest.mark.parametrize(
    "options",
    [{}, {"max_new_tokens": 30}, {"do_sample": False, "max_new_tokens": 12}, {"do_sample": True, "max_new_tokens": 12}],
    ids=str,
)
def test_the_file_is_honoured(checkpoint: tuple[Path, Any], options: dict[str, Any]) -> None:
    ours, theirs = (_written(model, **options) for model in _models(checkpoint[0]))
    assert ours.tolist() == theirs.tolist()


def test_sampling_is_what_the_file_asks_for(checkpoint: tuple[Path, Any]) -> None:
    folder, file = checkpoint
    samples = bool((file or {}).get("do_sample"))
    ours = _models(folder)[0]
    found = _written(ours, max_new_tokens=12)
    assert torch.equal(found, _written(ours, do_sample=False, max_new_tokens=12)) != samples


@pytest.mark.filterwarnings("error:.*has no effect")
def test_nobody_is_warned_of_what_the_file_says(checkpoint: tuple[Path, Any]) -> None:
    model = AutoModelForCausalLM.from_pretrained(checkpoint[0]).eval()
    model.generate(torch.tensor([[5, 6]]), do_sample=False, max_new_tokens=2)


def test_it_is_saved_again_as_it_was(checkpoint: tuple[Path, Any], tmp_path: Path) -> None:
    folder, options = checkpoint
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "generation_config.json").read_text())
    for name, value in (options or {"bos_token_id": 0, "eos_token_id": 0}).items():
        if name not in MADE:
            assert saved[name] == value
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert again.generation_config == model.generation_config


def test_any_end_of_a_list_ends_a_row(tmp_path: Path) -> None:
    family, _, options = PUBLISHED["gpt-oss"]
    made(family).save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps(options))
    model = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    ends = set(options["eos_token_id"]) if options else set()
    ids = torch.randint(3, 30, (24, 3), generator=torch.Generator().manual_seed(3))
    torch.manual_seed(1)
    found = set()
    for row in model.generate(ids, max_new_tokens=40)[:, 3:].tolist():
        places = [place for place, token in enumerate(row) if token in ends]
        if places:
            found.add(row[places[0]])
            assert set(row[places[0] + 1 :]) <= {91}
    assert len(found) > 2


def test_a_file_that_asks_for_what_is_not_carried_out(tmp_path: Path) -> None:
    made("gpt2").save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps({"dola_layers": "low"}))
    model = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    with pytest.raises(GenerationError, match=r"dola_layers='low' \(from the model's generation config\) is refused"):
        model.generate(torch.tensor([[5, 6]]))
    assert model.generate(torch.tensor([[5, 6]]), dola_layers=None, max_new_tokens=2).shape == (1, 4)
