"""A tiny random GPT-2 in both libraries with the same weights, and a tokenizer that both accept."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch

from quintet.generation import GenerationConfig, GenerationMixin
from quintet.models.gpt2 import GPT2Config, GPT2LMHeadModel

sys.path.insert(0, str(Path(__file__).parent))  # for drafts.py

VOCABULARY, POSITIONS = 300, 256
PAD, BOS, EOS = 0, 1, 2


class Pair(NamedTuple):
    """The same weights twice."""

    ours: GPT2LMHeadModel
    reference: Any


def _make_pair(**changes: Any) -> Pair:
    """Make both models; large weights make the distributions uneven, so that a wrong bit shows."""
    transformers = pytest.importorskip("transformers")
    values = {"vocab_size": VOCABULARY, "n_positions": POSITIONS, "n_embd": 32, "n_layer": 2, "n_head": 4}
    values |= {"bos_token_id": BOS, "eos_token_id": EOS} | changes
    torch.manual_seed(1)
    reference = transformers.GPT2LMHeadModel(transformers.GPT2Config(**values, initializer_range=0.4)).eval()
    ours = GPT2LMHeadModel(GPT2Config(**values)).eval()
    ours.load_state_dict(reference.state_dict())
    return Pair(ours, reference)


@pytest.fixture(scope="package")
def make_pair() -> Callable[..., Pair]:
    """Makes both models with other settings."""
    return _make_pair


@pytest.fixture(scope="package")
def pair() -> Pair:
    """Both models; tests must not change them."""
    return _make_pair()


@pytest.fixture(scope="package")
def exact_pair() -> Pair:
    """Both in float64: which of two beams is ahead by a millionth must not depend on the CPU's order of sums."""
    return Pair(*(model.double() for model in _make_pair()))


@pytest.fixture(scope="package")
def model(pair: Pair) -> GPT2LMHeadModel:
    """Our model alone."""
    return pair.ours


@pytest.fixture(scope="package", params=["openai-gpt", "gpt2", "gpt_neox", "seed_oss", "gpt_oss"])
def family_pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """A tiny model of each family in both libraries, from one checkpoint; tests must not change them."""
    transformers = pytest.importorskip("transformers")
    from quintet.auto import AutoModelForCausalLM, family_of

    config = family_of(request.param).tiny()
    torch.manual_seed(1)
    ours = AutoModelForCausalLM.from_config(config).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():  # large weights make the distributions uneven, so that a wrong bit shows
        for parameter in ours.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    folder = tmp_path_factory.mktemp(request.param)
    ours.save_pretrained(folder)
    reference = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return Pair(ours, reference)


@pytest.fixture
def prompt() -> torch.Tensor:
    """Three prompts of seven tokens, none of them special."""
    return torch.randint(3, VOCABULARY, (3, 7), generator=torch.Generator().manual_seed(5))


@pytest.fixture(scope="package")
def make_tokenizer() -> Callable[[], Any]:
    """Make the reference's tokenizer over a byte-level BPE of our vocabulary size."""
    transformers = pytest.importorskip("transformers")
    import tokenizers

    text = ["The stop sign stood at the top of the hill, and nobody stopped. Stopping tops the stoppers.\n"] * 3
    text.append("naïve 漢字 😀")
    engine = tokenizers.Tokenizer(tokenizers.models.BPE())
    engine.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    engine.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<pad>", "<bos>", "<eos>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    engine.train_from_iterator(text, trainer)

    def make() -> Any:
        return transformers.PreTrainedTokenizerFast(
            tokenizer_object=engine, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>"
        )

    return make


class Table(GenerationMixin):
    """A model whose next token depends on the last one alone: row t of the table holds the probabilities after t."""

    training, device = False, torch.device("cpu")

    def __init__(self, probabilities: list[list[float]]) -> None:
        self.logits = torch.tensor(probabilities).log()
        self.config = SimpleNamespace(vocab_size=len(probabilities), max_position_embeddings=None)
        self.generation_config = GenerationConfig(use_cache=False)

    def forward(self, input_ids: torch.Tensor, attention_mask: Any = None, use_cache: Any = None, **_: Any) -> Any:
        return SimpleNamespace(logits=self.logits[input_ids], past_key_values=None)

    __call__ = forward


@pytest.fixture(scope="package")
def make_table() -> Callable[[list[list[float]]], Any]:
    """Makes a model of a table of probabilities, for results that can be calculated by hand."""
    return Table
