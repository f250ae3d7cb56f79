"""Tensors into a module: names, shapes, types, ties, what is missing, and memory that may be trained."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from quintet.checkpoint import KeyRules, LoadReport, load_weights, open_source, save_weights, source_dtype
from quintet.checkpoint.meta import without_memory
from quintet.checkpoint.rules import is_dropped, resolve
from quintet.errors import CheckpointError


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(6, 4)
        self.norm = nn.LayerNorm(4)


class Head(nn.Module):
    def __init__(self, tied: bool = True) -> None:
        super().__init__()
        self.base = Base()
        self.out = nn.Linear(4, 6, bias=False)
        if tied:
            self.out.weight = self.base.embed.weight


def on_meta(tied: bool = True) -> Head:
    with without_memory():
        return Head(tied)


def full() -> dict[str, torch.Tensor]:
    return {
        "base.embed.weight": torch.randn(6, 4),
        "base.norm.weight": torch.randn(4),
        "base.norm.bias": torch.randn(4),
        "out.weight": torch.randn(6, 4),
    }


def tied() -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in full().items() if name != "out.weight"}


# --- names ------------------------------------------------------------------------------------------------------------


def test_resolve() -> None:
    rules = KeyRules(drop=(r"\.mask$",), rename=((r"\.gamma$", ".weight"),))
    assert resolve(rules, "base", "norm.gamma", {"base.norm.weight"}) == "base.norm.weight"
    assert resolve(rules, "base", "base.norm.gamma", {"norm.weight"}) == "norm.weight"
    assert resolve(rules, "base", "x", {"x", "base.x"}) == "x"
    assert resolve(rules, "base", "y", {"x"}) is None
    assert resolve(rules, "", "base.x", {"x"}) is None
    assert is_dropped(rules, "h.0.mask") and not is_dropped(rules, "h.0.masked")


@pytest.mark.parametrize("strip", [True, False])
def test_prefix_both_ways(strip: bool) -> None:
    given = tied()
    with without_memory():
        model = Head() if strip else Base()
    state = {name.removeprefix("base."): tensor for name, tensor in given.items()} if strip else given
    report = load_weights(model, state, prefix="base")
    assert report == LoadReport()
    embed = model.base.embed if isinstance(model, Head) else model.embed
    assert torch.equal(embed.weight, given["base.embed.weight"])


def test_exact_name_wins_over_the_one_with_a_prefix() -> None:
    for order in (1, -1):
        state = dict(list({**tied(), "embed.weight": torch.zeros(6, 4)}.items())[::order])
        model = on_meta()
        report = load_weights(model, state, prefix="base")
        assert report.unexpected_keys == {"embed.weight"}
        assert torch.equal(model.base.embed.weight, state["base.embed.weight"])


def test_report_of_missing_unexpected_dropped() -> None:
    state = tied()
    del state["base.norm.bias"]
    state |= {"h.0.mask": torch.zeros(1), "other": torch.zeros(1)}
    report = load_weights(on_meta(), state, rules=KeyRules(drop=(r"\.mask$",)))
    assert report.to_dict() == {
        "missing_keys": {"base.norm.bias"},
        "unexpected_keys": {"other"},
        "mismatched_keys": set(),
        "error_msgs": [],
        "untied_keys": set(),
        "dropped_keys": {"h.0.mask"},
    }


def test_nothing_in_common() -> None:
    with pytest.raises(
        CheckpointError, match="no tensor of this model: it has 'h', 'x', and the model wants 'base.emb"
    ):
        load_weights(on_meta(), {"x": torch.zeros(1), "h": torch.zeros(1)})


@pytest.mark.parametrize("state", [{"a": 1}, {3: torch.zeros(1)}, {"a": None}])
def test_not_a_state_dict(state: dict[str, torch.Tensor]) -> None:
    with pytest.raises(CheckpointError, match="A state dict maps names to tensors"):
        load_weights(on_meta(), state)


# --- shapes and types -------------------------------------------------------------------------------------------------


def test_mismatch_raises_or_initialises() -> None:
    state = {**tied(), "base.norm.weight": torch.zeros(5)}
    model = on_meta()
    with pytest.raises(CheckpointError, match=r"1 tensor has another shape .*'base.norm.weight' is \[5\], model \[4\]"):
        load_weights(model, state)
    assert model.base.embed.weight.is_meta  # nothing was touched

    def initialise() -> None:
        model.base.norm.reset_parameters()

    report = load_weights(model, state, ignore_mismatched_sizes=True, initialise=initialise)
    assert report.mismatched_keys == {("base.norm.weight", (5,), (4,))} and report.missing_keys == set()
    assert model.base.norm.weight.tolist() == [1, 1, 1, 1]
    assert torch.equal(model.base.norm.bias, state["base.norm.bias"])


def test_mismatch_of_a_tied_tensor() -> None:
    model = on_meta()
    state = {**tied(), "base.embed.weight": torch.zeros(9, 4)}
    with pytest.raises(CheckpointError, match="pass ignore_mismatched_sizes=True"):
        load_weights(model, state)
    report = load_weights(model, state, ignore_mismatched_sizes=True)
    assert report.missing_keys == set() and model.out.weight is model.base.embed.weight
    assert model.out.weight.shape == (6, 4)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.uint8, torch.complex64, torch.float8_e4m3fn])
def test_another_kind_of_number_is_refused(dtype: torch.dtype) -> None:
    state = {**tied(), "base.norm.weight": torch.zeros(4).to(dtype)}
    with pytest.raises(CheckpointError, match="'base.norm.weight' is torch.* and the model wants torch.float32"):
        load_weights(on_meta(), state)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64, torch.float32])
def test_conversion(tmp_path: Path, dtype: torch.dtype) -> None:
    state = tied()
    save_file(state, tmp_path / "model.safetensors")
    model = on_meta()
    load_weights(model, tmp_path, dtype=dtype)
    for name, tensor in state.items():
        assert torch.equal(model.get_parameter(name), tensor.to(dtype))
    assert model.out.weight is model.base.embed.weight


def test_without_a_dtype_the_types_of_the_file_stay() -> None:
    state = {**tied(), "base.norm.weight": torch.ones(4, dtype=torch.bfloat16)}
    model = on_meta()
    load_weights(model, state)
    assert model.base.norm.weight.dtype == torch.bfloat16 and model.base.norm.bias.dtype == torch.float32


def test_some_tensors_stay_float32() -> None:
    model = on_meta()
    load_weights(model, tied(), rules=KeyRules(keep_float32=(r"norm\.",)), dtype=torch.bfloat16)
    assert model.base.norm.weight.dtype == torch.float32 and model.base.embed.weight.dtype == torch.bfloat16


def test_source_dtype_is_that_of_most_bytes() -> None:
    state = {"a": torch.zeros(3), "b": torch.zeros(100, dtype=torch.bfloat16), "c": torch.zeros(999, dtype=torch.uint8)}
    assert source_dtype(open_source(state)) == torch.bfloat16
    assert source_dtype(open_source({"c": state["c"]})) is None
    assert source_dtype(open_source({"e": torch.zeros(0, dtype=torch.float16)})) == torch.float16


def test_buffers() -> None:
    class Counted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("count", torch.zeros(2, dtype=torch.int64))
            self.register_buffer("table", torch.zeros(2), persistent=False)

    with without_memory():
        model = Counted()
    report = load_weights(model, {"count": torch.tensor([3, 4]), "table": torch.ones(2)}, dtype=torch.bfloat16)
    assert model.count.tolist() == [3, 4] and model.count.dtype == torch.int64
    assert report.unexpected_keys == {"table"} and model.table.is_meta


# --- ties -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", ["base.embed.weight", "out.weight"])
def test_either_name_of_a_tie_is_enough(given: str) -> None:
    state = tied()
    value = state.pop("base.embed.weight")
    state[given] = value
    model = on_meta()
    assert load_weights(model, state) == LoadReport()
    assert model.out.weight is model.base.embed.weight
    assert torch.equal(model.out.weight, value)


def test_both_names_with_one_value_are_tied() -> None:
    state = full()
    state["out.weight"] = state["base.embed.weight"].clone()
    model = on_meta()
    assert load_weights(model, state) == LoadReport()
    assert model.out.weight is model.base.embed.weight


def test_both_names_with_two_values_are_kept_apart() -> None:
    state, model = full(), on_meta()
    report = load_weights(model, state, dtype=torch.float64)
    assert report.untied_keys == {("base.embed.weight", "out.weight")}
    assert torch.equal(model.out.weight, state["out.weight"].double())
    assert torch.equal(model.base.embed.weight, state["base.embed.weight"].double())
    assert "base.embed.weight and out.weight" in report.describe("Head", "x")


def test_neither_name_of_a_tie() -> None:
    state = {name: tensor for name, tensor in tied().items() if "embed" not in name}
    model = on_meta()
    report = load_weights(model, state, initialise=lambda: nn.init.ones_(model.base.embed.weight))
    assert report.missing_keys == {"base.embed.weight", "out.weight"}
    assert model.out.weight is model.base.embed.weight and bool((model.out.weight == 1).all())


# --- what is missing --------------------------------------------------------------------------------------------------


def test_initialisation_cannot_reach_what_was_loaded() -> None:
    state = tied()
    del state["base.norm.bias"]
    model = on_meta()

    def initialise() -> None:
        for parameter in model.parameters():
            nn.init.constant_(parameter, 7.0)

    load_weights(model, state, initialise=initialise)
    assert model.base.norm.bias.tolist() == [7, 7, 7, 7]
    assert torch.equal(model.base.norm.weight, state["base.norm.weight"])
    assert torch.equal(model.out.weight, state["base.embed.weight"])
    assert all(parameter.requires_grad and not parameter.is_meta for parameter in model.parameters())


def test_a_live_model_keeps_what_the_checkpoint_does_not_have() -> None:
    model = Head()
    before = model.base.norm.bias
    state = tied()
    del state["base.norm.bias"]
    assert load_weights(model, state).missing_keys == {"base.norm.bias"}
    assert model.base.norm.bias is before
    assert torch.equal(model.base.norm.weight, state["base.norm.weight"])


def test_frozen_parameters_stay_frozen() -> None:
    model = on_meta()
    model.base.norm.weight.requires_grad_(False)
    load_weights(model, tied())
    assert not model.base.norm.weight.requires_grad and model.base.norm.bias.requires_grad


# --- memory -----------------------------------------------------------------------------------------------------------


def test_a_state_dict_of_the_caller_is_copied() -> None:
    state = tied()
    before = state["base.embed.weight"].clone()
    model = on_meta()
    load_weights(model, state)
    with torch.no_grad():
        model.out.weight.add_(1)
    assert torch.equal(state["base.embed.weight"], before)


def test_an_optimiser_step_on_mapped_weights(tmp_path: Path) -> None:
    """The step works and does not write the file; the file may be replaced and removed meanwhile."""
    path = tmp_path / "model.safetensors"
    state = tied()
    save_weights(state, tmp_path)
    content = path.read_bytes()
    model = on_meta()
    load_weights(model, tmp_path)
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.1)
    model.out(model.base.norm(model.base.embed(torch.tensor([1, 2])))).sum().backward()
    optimiser.step()
    assert path.read_bytes() == content
    assert not torch.equal(model.base.embed.weight, state["base.embed.weight"])
    trained = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    save_weights(model.state_dict(), tmp_path, tied={"out.weight": "base.embed.weight"})
    path.unlink()
    assert all(torch.equal(tensor, trained[name]) for name, tensor in model.state_dict().items())


def test_released_pages_come_back(tmp_path: Path) -> None:
    """A converted tensor gives its pages back; asked for again, they are read from the file again."""
    value = torch.arange(40_000.0)
    save_file({"a": value, "b": value + 1}, tmp_path / "model.safetensors")
    source = open_source(tmp_path)
    neighbour = source.get("b")
    neighbour.add_(1)
    source.release("a")
    assert torch.equal(source.get("a"), value) and torch.equal(neighbour, value + 2)


# --- words ------------------------------------------------------------------------------------------------------------


def test_describe() -> None:
    assert LoadReport().describe("M", "x") == ""
    report = LoadReport(
        missing_keys={f"h.{n}.{part}.weight" for n in range(12) for part in "ab"} | {"score.weight"},
        unexpected_keys={f"{letter}{letter}.weight" for letter in "abcdefghijkl"},
        mismatched_keys={("lm_head.weight", (5, 2), (6, 2))},
    )
    words = report.describe("GPT2Model", "folder")
    assert words.startswith("Loading GPT2Model from 'folder':\n  not in the checkpoint")
    assert "    h.*.a.weight (12)\n    h.*.b.weight (12)\n    score.weight" in words
    assert "lm_head.weight: [5, 2], model [6, 2]" in words
    assert "... and 4 more" in words
