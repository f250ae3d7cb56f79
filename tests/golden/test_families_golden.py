"""Numbers that must never change, of the families with rotary positions; how they are made is in test_gpt2_golden.py.

    python tests/golden/test_families_golden.py gpt_neox        writes gpt_neox.json anew

To add a family: give it an entry in RECIPES, with the configurations whose numbers are kept, and run the line above
with its name. Write a file anew only for a deliberate change, and say in the commit what changed and why. That the
numbers were right when they were written is checked against the reference, when it is installed.
"""

from __future__ import annotations

import json
import sys
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from quintet.auto import family_of

FOLDER = Path(__file__).parent
PRIME = 2**31 - 1
IDS = torch.tensor([[5, 17, 3, 88, 42, 9, 61, 7], [70, 2, 33, 4, 90, 12, 8, 98]])
MASK = torch.tensor([[1] * 8, [1] * 6 + [0] * 2])


@dataclass(frozen=True)
class Recipe:
    """What is kept of a family.

    Args:
        cases: Fields of its tiny() configuration by name; "plain" is also the one that writes text.
        renamed: Beginnings of parameter names that the reference's model has otherwise in memory.
        tasks: Keys of its `FAMILY.classes`.
        extra: Arguments of the language model's forward besides the common ones.
    """

    cases: dict[str, dict[str, Any]]
    renamed: dict[str, str] = field(default_factory=dict)
    tasks: tuple[str, ...] = (
        "causal-lm",
        "sequence-classification",
        "token-classification",
        "question-answering",
    )
    extra: dict[str, Any] = field(default_factory=dict)


RECIPES: dict[str, Recipe] = {
    "gpt_neox": Recipe(
        cases={
            "plain": {},
            "options": {
                "use_parallel_residual": False,
                "attention_bias": False,
                "hidden_act": "relu",
                "rotary_pct": 1.0,
                "rotary_emb_base": 500,
                "layer_norm_eps": 1e-3,
                "num_hidden_layers": 3,
            },
            "odd part": {"rotary_pct": 0.375, "num_attention_heads": 2, "hidden_act": "gelu_new"},
            "linear": {"rope_scaling": {"type": "linear", "factor": 3.0}},
            "dynamic": {"rope_scaling": {"type": "dynamic", "factor": 2.0}, "max_position_embeddings": 4},
            "yarn": {
                "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
                "rotary_pct": 1.0,
            },
        },
        renamed={"embed_out.": "lm_head."},
    ),
    "seed_oss": Recipe(
        cases={
            "plain": {},
            "options": {
                "attention_bias": False,
                "attention_out_bias": True,
                "mlp_bias": True,
                "hidden_act": "gelu",
                "num_key_value_heads": 1,
                "head_dim": 14,
                "rms_norm_eps": 1e-2,
                "rope_theta": 77.0,
                "num_hidden_layers": 3,
            },
            "tied": {"tie_word_embeddings": True, "num_key_value_heads": 4},
            "llama3": {
                "rope_scaling": {
                    "rope_type": "llama3",
                    "factor": 8.0,
                    "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0,
                    "original_max_position_embeddings": 16,
                }
            },
        },
    ),
    "gpt_oss": Recipe(
        cases={
            "plain": {},
            "options": {
                "layer_types": ["full_attention", "sliding_attention"],
                "sliding_window": 3,
                "num_local_experts": 7,
                "num_experts_per_tok": 3,
                "swiglu_alpha": 1.1,
                "swiglu_limit": 0.3,
                "attention_bias": False,
                "num_key_value_heads": 1,
                "head_dim": 14,
                "router_aux_loss_coef": 0.5,
            },
            "every expert": {"num_experts_per_tok": 4, "tie_word_embeddings": True},
            "yarn": {
                "rope_parameters": {
                    "rope_type": "yarn",
                    "rope_theta": 300.0,
                    "factor": 4.0,
                    "original_max_position_embeddings": 8,
                    "beta_fast": 4.0,
                    "truncate": True,
                }
            },
        },
        tasks=("causal-lm", "sequence-classification", "token-classification"),
        extra={"output_router_logits": True},
    ),
}
ALL = [(name, case, task) for name, recipe in RECIPES.items() for case in recipe.cases for task in recipe.tasks]


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


def build(name: str, case: str, task: str, library: Any = None, backend: str = "eager") -> Any:
    """A model of ours, or with `library` the reference's with the same weights."""
    family, recipe = family_of(name), RECIPES[name]
    config = family.tiny(**{"pad_token_id": 98, "attn_implementation": backend, **recipe.cases[case]})
    model = family.classes[task](config).eval()
    fill(model)
    if library is None:
        return model
    their_config = getattr(library, type(config).__name__).from_dict(config.to_dict())
    their_config._attn_implementation = "eager"
    theirs = getattr(library, type(model).__name__)(their_config).eval()
    state = {}
    for key, tensor in model.state_dict().items():
        old = next((prefix for prefix in recipe.renamed if key.startswith(prefix)), "")
        state[recipe.renamed.get(old, "") + key.removeprefix(old)] = tensor
    theirs.load_state_dict(state)
    return theirs


def inputs(name: str, task: str) -> dict[str, Any]:
    given: dict[str, Any] = {"input_ids": IDS, "attention_mask": MASK}
    if task == "causal-lm":
        labels = torch.where(MASK.bool(), IDS, -100)
        given |= {"labels": labels, "output_hidden_states": True, "output_attentions": True, **RECIPES[name].extra}
    elif task == "sequence-classification":
        given["labels"] = torch.tensor([1, 0])
    elif task == "token-classification":
        given["labels"] = IDS % 2
    else:
        given |= {"start_positions": torch.tensor([1, 0]), "end_positions": torch.tensor([4, 5])}
    return given


@torch.no_grad()
def measure(name: str, case: str, task: str, library: Any = None) -> dict[str, Any]:
    """The numbers of one model: of each tensor its shape, its sum of squares and its last eight values."""
    out = build(name, case, task, library)(**inputs(name, task))
    found: dict[str, Any] = {}
    for key, value in out.items():
        if key == "past_key_values":
            continue
        for index, tensor in enumerate(value if isinstance(value, tuple) else (value,)):
            last = tensor.flatten()[-8:].tolist()
            found[f"{key}.{index}"] = [list(tensor.shape), tensor.double().square().sum().item(), *last]
    return found


def continued(name: str, library: Any = None, steps: int = 24) -> list[int]:
    """What the plain model writes when it always takes the likeliest token, one forward pass a token."""
    model, ids, past = build(name, "plain", "causal-lm", library), IDS[:1], None
    with torch.no_grad():
        for _ in range(steps):
            out = model(ids if past is None else ids[:, -1:], past_key_values=past)
            past = out.past_key_values
            best = out.logits[0, -1].topk(2)
            assert best.values[0] - best.values[1] > 1e-3, "too close to call: change the recipe"
            ids = torch.cat([ids, best.indices[None, :1]], 1)
    return ids[0].tolist()


def record(name: str) -> dict[str, Any]:
    measured = {f"{case} {task}": measure(name, case, task) for family, case, task in ALL if family == name}
    return {"forward": measured, "greedy": continued(name)}


def golden(name: str) -> dict[str, Any]:
    data: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    return data


def compare(got: dict[str, Any], wanted: dict[str, Any]) -> None:
    assert list(got) == list(wanted)
    for name, (shape, *numbers) in wanted.items():
        assert got[name][0] == shape, name
        assert got[name][1:] == pytest.approx(numbers, rel=2e-5, abs=2e-5), name


def test_every_number_that_is_kept_is_checked() -> None:
    for name in RECIPES:
        assert list(golden(name)["forward"]) == [f"{case} {task}" for family, case, task in ALL if family == name]


@pytest.mark.parametrize(("name", "case", "task"), ALL)
def test_forward(name: str, case: str, task: str) -> None:
    compare(measure(name, case, task), golden(name)["forward"][f"{case} {task}"])


@pytest.mark.parametrize("name", RECIPES)
def test_greedy_text(name: str) -> None:
    wanted = golden(name)["greedy"]
    assert continued(name) == wanted
    model = build(name, "plain", "causal-lm")
    written = model.generate(IDS[:1], max_new_tokens=24, do_sample=False, eos_token_id=None, pad_token_id=98)
    assert written[0].tolist() == wanted


@pytest.mark.parametrize("name", RECIPES)
def test_the_same_numbers_from_the_fused_backend(name: str) -> None:
    with torch.no_grad():
        logits = build(name, "plain", "causal-lm", backend="sdpa")(IDS, attention_mask=MASK).logits
    # the padded end of the second row is nobody's result, but it is computed by the same rule
    wanted = golden(name)["forward"]["plain causal-lm"]["logits.0"][2:]
    assert logits.flatten()[-8:].tolist() == pytest.approx(wanted, rel=2e-5, abs=2e-5)


@pytest.mark.parametrize(("name", "case", "task"), ALL)
def test_the_numbers_are_the_references(name: str, case: str, task: str) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed: pip install -e '.[dev]'")
    found, wanted = measure(name, case, task, transformers), golden(name)["forward"][f"{case} {task}"]
    compare({key: found[key] for key in wanted}, wanted)
    if case == "plain" and task == "causal-lm":
        assert continued(name, transformers) == golden(name)["greedy"]


if __name__ == "__main__":
    torch.set_num_threads(1)
    for _name in sys.argv[1:] or RECIPES:
        _file = FOLDER / f"{_name}.json"
        _file.write_text(json.dumps(record(_name), indent=1) + "\n", encoding="utf-8")
        print(f"{_file}: {_file.stat().st_size} bytes")
