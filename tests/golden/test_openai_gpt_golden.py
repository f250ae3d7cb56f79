"""Numbers that must never change: GPT-1 with weights made by whole-number arithmetic, the same on every machine.

    python tests/golden/test_openai_gpt_golden.py        writes openai_gpt.json anew

Write it anew only for a deliberate change, and say in the commit what changed and why. That the numbers were right when
they were written is checked against the reference, when it is installed.
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch

import quintet
from quintet.models.openai_gpt import tiny

FILE = Path(__file__).with_name("openai_gpt.json")
PRIME = 2**31 - 1
TASKS = ("OpenAIGPTLMHeadModel", "OpenAIGPTDoubleHeadsModel", "OpenAIGPTForSequenceClassification")
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "options": {
        "afn": "silu",
        "n_layer": 3,
        "n_head": 8,
        "layer_norm_epsilon": 1e-3,
        "summary_activation": "tanh",
        "tie_word_embeddings": False,
    },
}
IDS = torch.tensor([[5, 17, 3, 88, 42, 9, 61, 7], [70, 2, 33, 4, 90, 12, 8, 98]])
MASK = torch.tensor([[1] * 8, [1] * 6 + [0] * 2])


def fill(model: torch.nn.Module) -> None:
    """Give every weight a value from -0.5 to 0.5 that depends on its name and place alone."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            place = torch.arange(weight.numel(), dtype=torch.int64)
            mixed = (place * 48271 + zlib.crc32(name.encode())) % PRIME
            for factor in (48271, 69621):  # two steps of a Lehmer generator, with bits folded so that no pattern stays
                mixed = (mixed ^ (mixed >> 15)) * factor % PRIME
            values = (mixed.double() / PRIME - 0.5).float().view(weight.shape)
            weight.copy_(1 + values / 4 if name.endswith("weight") and weight.dim() == 1 else values)


def build(case: str, task: str, library: Any = quintet, backend: str = "eager") -> Any:
    config = tiny(pad_token_id=98, attn_implementation=backend, **CASES[case])
    if library is not quintet:
        config = library.OpenAIGPTConfig.from_dict(config.to_dict())
    model = getattr(library, task)(config)
    fill(model)
    return model.eval()


def inputs(task: str) -> dict[str, Any]:
    if task == "OpenAIGPTDoubleHeadsModel":
        given: dict[str, Any] = {"input_ids": IDS[None], "mc_token_ids": torch.tensor([[7, 5]])}
        return given | {"labels": IDS[None], "mc_labels": torch.tensor([1])}
    given = {"input_ids": IDS, "attention_mask": MASK}
    if task == "OpenAIGPTForSequenceClassification":
        return given | {"labels": torch.tensor([1, 0])}
    labels = torch.where(MASK.bool(), IDS, -100)
    return given | {"labels": labels, "output_hidden_states": True, "output_attentions": True}


@torch.no_grad()
def measure(case: str, task: str, library: Any = quintet) -> dict[str, Any]:
    """The numbers of one model: of each tensor its shape, its sum of squares and its last eight values."""
    found: dict[str, Any] = {}
    for name, value in build(case, task, library)(**inputs(task)).items():
        for index, tensor in enumerate(value if isinstance(value, tuple) else (value,)):
            last = tensor.flatten()[-8:].tolist()
            found[f"{name}.{index}"] = [list(tensor.shape), tensor.double().square().sum().item(), *last]
    return found


def writer(library: Any = quintet) -> Any:
    """The plain model with larger kernels and positions: as it is, it writes one word for ever."""
    model = build("plain", "OpenAIGPTLMHeadModel", library)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() == 2 and "tokens_embed" not in name:
                weight.mul_(3 if "positions" in name else 2)
    return model


def continued(library: Any = quintet, steps: int = 24) -> list[int]:
    """What a model writes when it always takes the likeliest token, without a cache."""
    model, ids = writer(library), IDS[:1]
    with torch.no_grad():
        for _ in range(steps):
            best = model(ids).logits[0, -1].topk(2)
            assert best.values[0] - best.values[1] > 1e-3, "too close to call: change the recipe"
            ids = torch.cat([ids, best.indices[None, :1]], 1)
    return ids[0].tolist()


def record() -> dict[str, Any]:
    measured = {f"{case} {task}": measure(case, task) for case in CASES for task in TASKS}
    return {"forward": measured, "greedy": continued()}


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    data: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
    return data


def compare(got: dict[str, Any], wanted: dict[str, Any]) -> None:
    assert list(got) == list(wanted)
    for name, (shape, *numbers) in wanted.items():
        assert got[name][0] == shape, name
        assert got[name][1:] == pytest.approx(numbers, rel=2e-5, abs=2e-5), name


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("case", CASES)
def test_forward(golden: dict[str, Any], case: str, task: str) -> None:
    compare(measure(case, task), golden["forward"][f"{case} {task}"])


def test_greedy_text(golden: dict[str, Any]) -> None:
    assert continued() == golden["greedy"]
    assert len(set(golden["greedy"][8:])) > 6
    model = writer()
    for cached in (True, False):
        written = model.generate(IDS[:1], max_new_tokens=24, do_sample=False, pad_token_id=98, use_cache=cached)
        assert written[0].tolist() == golden["greedy"]


def test_the_same_numbers_from_the_fused_kernels(golden: dict[str, Any]) -> None:
    wanted = golden["forward"]["plain OpenAIGPTLMHeadModel"]["logits.0"][2:]
    with torch.no_grad():
        logits = build("plain", "OpenAIGPTLMHeadModel", backend="sdpa")(IDS, attention_mask=MASK).logits
    assert logits.flatten()[-8:].tolist() == pytest.approx(wanted, rel=2e-5, abs=2e-5)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("case", CASES)
def test_the_numbers_are_the_references(golden: dict[str, Any], case: str, task: str) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed: pip install -e '.[dev]'")
    compare(measure(case, task, transformers), golden["forward"][f"{case} {task}"])
    if case == "plain" and task == "OpenAIGPTLMHeadModel":
        assert continued(transformers) == golden["greedy"]


if __name__ == "__main__":
    torch.set_num_threads(1)
    FILE.write_text(json.dumps(record(), indent=1) + "\n", encoding="utf-8")
    print(f"{FILE}: {FILE.stat().st_size} bytes")
