"""What the number formats cost on the storyteller: perplexity of a book it has not read, how far predictions move."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

import quintet
from quintet.quant.config import IntegerConfig

ROWS, LENGTH = 24, 512


@cache
def rows(file: Path, begin: int = 0) -> torch.Tensor:
    """Token ids of a part of a text, (24, 512)."""
    text = file.read_text(encoding="utf-8")[begin : begin + 80_000]
    ids = quintet.AutoTokenizer.from_pretrained("storyteller")(text, verbose=False)["input_ids"]
    return torch.tensor(ids[: ROWS * LENGTH]).view(ROWS, LENGTH)


def load(**options: Any) -> Any:
    return quintet.GPT2LMHeadModel.from_pretrained("storyteller", **{"dtype": "float32", **options})


@torch.no_grad()
def predictions(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """Log-probabilities, (24, 512, V)."""
    return torch.cat([model(batch).logits.float().log_softmax(-1) for batch in ids.split(8)])


class Judge:
    """Compares models with the one in float32."""

    def __init__(self, ids: torch.Tensor) -> None:
        self.ids, self.plain = ids, predictions(load(), ids)

    def __call__(self, model: Any) -> tuple[float, float]:
        """Return by what part the perplexity is higher, and the divergence of the predictions in nats."""
        found = predictions(model, self.ids)
        gain = (self.plain - found)[:, :-1].gather(-1, self.ids[:, 1:, None]).mean()
        return float(gain.exp() - 1), float((self.plain.exp() * (self.plain - found)).sum(-1).mean())


@pytest.fixture(scope="module")
def judge(data_dir: Path) -> Judge:
    return Judge(rows(data_dir / "storybook" / "valid.txt"))


# What a format may cost in perplexity, and how far predictions may move (twice what was measured, in nats).
BOUNDS: dict[str, tuple[dict[str, Any], float, float]] = {
    "bf16": ({"dtype": "bfloat16"}, 0.001, 2e-4),
    "int8": ({"quantization": "int8"}, 0.003, 2e-4),
    "int8, head int8": ({"quantization_config": IntegerConfig(8, head_bits=8)}, 0.003, 3e-4),
    "int8, activations int8": ({"quantization_config": IntegerConfig(8, activations="int8")}, 0.003, 4e-4),
    "int4": ({"quantization": "int4"}, 0.03, 2.2e-2),
    "int4, activations int8": ({"quantization_config": IntegerConfig(4, activations="int8")}, 0.03, 2.3e-2),
    "int4, groups of 128, activations int8": (
        {"quantization_config": IntegerConfig(4, group_size=128, activations="int8")},
        *(0.03, 3.4e-2),
    ),
    "int8, activations int8, bf16": (
        {"quantization_config": IntegerConfig(8, activations="int8"), "dtype": "bfloat16"},
        *(0.003, 6e-4),
    ),
    "int4, activations int8, bf16": (
        {"quantization_config": IntegerConfig(4, activations="int8"), "dtype": "bfloat16"},
        *(0.03, 2.3e-2),
    ),
    "int8, groups of 128, activations int8": (
        {"quantization_config": IntegerConfig(8, group_size=128, activations="int8")},
        *(0.003, 6e-4),
    ),
    "int4, zero points": ({"quantization_config": IntegerConfig(4, symmetric=False)}, 0.03, 2e-2),
    "int4, groups of 128": ({"quantization_config": IntegerConfig(4, group_size=128)}, 0.03, 3.4e-2),
    "int4, head int8": ({"quantization_config": IntegerConfig(4, head_bits=8)}, 0.03, 2.2e-2),
    "int4, head int4": ({"quantization_config": IntegerConfig(4, head_bits=4)}, 0.03, 3.6e-2),
}


@pytest.mark.parametrize("name", BOUNDS)
def test_formats_cost_no_more_than_they_may(name: str, judge: Judge) -> None:
    options, most, apart = BOUNDS[name]
    cost, divergence = judge(load(**options))
    assert cost < most
    assert 0 < divergence < apart


@pytest.mark.slow
@pytest.mark.parametrize(("symmetric", "group"), [(True, 32), (False, 32), (True, 128)])
def test_a_calibration_halves_what_4_bits_cost(symmetric: bool, group: int, judge: Judge, data_dir: Path) -> None:
    config = IntegerConfig(4, symmetric=symmetric, group_size=group)
    nearest, calibrated = load(quantization_config=config), load()
    calibrated.quantize(config, calibration=rows(data_dir / "storybook" / "train.txt", 1_000_000))
    (cost, divergence), (less, nearer) = judge(nearest), judge(calibrated)
    assert nearer < 0.7 * divergence
    assert less < cost  # perplexity of a book that neither the model nor the calibration has seen
    assert less < 0.01


def test_a_short_calibration_helps(judge: Judge, data_dir: Path) -> None:
    config = IntegerConfig(4, group_size=128)
    nearest, calibrated = load(quantization_config=config), load()
    calibrated.quantize(config, calibration=rows(data_dir / "storybook" / "train.txt", 1_000_000)[:8])
    (cost, divergence), (less, nearer) = judge(nearest), judge(calibrated)
    assert nearer < 0.8 * divergence
    assert less < cost  # perplexity of a book that neither the model nor the calibration has seen
