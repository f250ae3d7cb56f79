"""The bundled model: whole, small, readable by the reference, and as good as docs/storyteller.md says."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from quintet import AutoModelForCausalLM, AutoTokenizer
from quintet.hub import resolve_folder
from quintet.training.data import read_texts, tokenize_texts
from quintet.training.trainer import evaluate

ROOT = Path(__file__).resolve().parents[1]
FOLDER = resolve_folder("storyteller")


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained("storyteller")


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained("storyteller")


def test_it_is_stored_as_a_published_checkpoint() -> None:
    files = {file.name: file.stat().st_size for file in FOLDER.iterdir() if file.is_file()}
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"} <= set(files)
    assert sum(files.values()) <= 10_000_000
    with safe_open(FOLDER / "model.safetensors", "pt") as weights:
        names = list(weights.keys())
        assert {weights.get_tensor(name).dtype for name in names} == {torch.float16}
        assert "transformer.wte.weight" in names and "lm_head.weight" not in names
        assert weights.metadata() == {"format": "pt"}


def test_shape_and_tokens_are_those_of_the_recipe(model, tokenizer) -> None:
    recipe = json.loads((ROOT / "recipes" / "storyteller.json").read_text())
    for name, value in recipe["model"].items():
        assert getattr(model.config, name) == value
    assert len(tokenizer) == model.config.vocab_size
    assert tokenizer.eos_token_id == model.config.eos_token_id == model.generation_config.eos_token_id
    assert tokenizer.decode(tokenizer("An old tale, “retold”.")["input_ids"]) == "An old tale, “retold”."


def test_it_writes_english(model, tokenizer) -> None:
    torch.manual_seed(1)
    prompt = tokenizer("Once upon a time there was a little girl who", return_tensors="pt")
    text = tokenizer.decode(model.generate(**prompt, do_sample=True, temperature=0.7, top_k=40, max_new_tokens=200)[0])
    words = re.findall(r"[a-z']+", text.lower())
    common = {"the", "and", "a", "to", "of", "was", "in", "it", "he", "she", "that", "you", "i", "had", "his", "her"}
    assert len(words) > 100
    assert 0.15 < sum(word in common for word in words) / len(words) < 0.6  # about a third in English prose
    assert "\ufffd" not in text


def test_the_reference_reads_it_and_gives_the_same_numbers(model, tokenizer) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.GPT2LMHeadModel.from_pretrained(FOLDER, dtype=torch.float32).eval()
    ids = tokenizer("The king looked out of the window, and said nothing.", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, theirs(ids).logits, atol=2e-5, rtol=0)
    words = transformers.AutoTokenizer.from_pretrained(FOLDER)
    assert words("Once upon a time")["input_ids"] == tokenizer("Once upon a time")["input_ids"]


def test_bits_per_byte_are_those_of_the_page(model, tokenizer, data_dir: Path) -> None:
    file = data_dir / "storybook" / "valid.txt"
    if not file.is_file():
        pytest.skip(f"no held-out book: {file} is not there")
    texts = read_texts([str(file)])
    tokens = tokenize_texts(tokenizer, texts)
    loss = evaluate(model, tokens, model.config.n_positions, rows=2)
    measured = loss * (len(tokens) - 1) / math.log(2) / len(texts[0].encode())
    page = (ROOT / "docs" / "storyteller.md").read_text(encoding="utf-8")
    printed = re.search(r"\| storyteller, blocks of 512 \| ([\d.]+) \|", page)
    assert printed is not None
    assert measured == pytest.approx(float(printed[1]), abs=0.002)
