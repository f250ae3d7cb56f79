"""Packing by what a text lets flow through the layers: the algorithm, every family, interruptions, what is refused."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from tiny_packable import logits, model_of, numbers
from torch import nn

from quintet.auto import model_types
from quintet.errors import ConfigError, InputError
from quintet.quant import calibration
from quintet.quant.calibration import Parts, calibration_rows
from quintet.quant.compensation import round_compensating
from quintet.quant.config import IntegerConfig
from quintet.quant.linears import packed_linears_of
from quintet.quant.rounding import round_weight


def ids(rows: int, seed: int) -> torch.Tensor:
    return torch.randint(0, 90, (rows, 12), generator=torch.Generator().manual_seed(seed))


# --- the algorithm ---


@pytest.mark.parametrize(("bits", "group", "symmetric"), [(8, None, True), (4, 32, True), (4, 64, False)])
def test_products_with_the_inputs_change_less(bits: int, group: int | None, symmetric: bool) -> None:
    weight = torch.randn(48, 192)
    x = torch.randn(400, 24) @ torch.randn(24, 192) + 0.1 * torch.randn(400, 192)
    alone = numbers(round_weight(weight, bits, group, symmetric), torch.float32)
    together = numbers(round_compensating(weight, x.t() @ x, bits, group, symmetric), torch.float32)
    assert (x @ (together - weight).t()).norm() < 0.5 * (x @ (alone - weight).t()).norm()


@pytest.mark.parametrize("bits", [8, 4])
def test_inputs_that_have_nothing_to_do_with_each_other_are_rounded_alone(bits: int) -> None:
    weight, importance = torch.randn(16, 64), torch.rand(64) + 0.1
    packed = round_compensating(weight, torch.diag(importance), bits, 32)
    for name, tensor in round_weight(weight, bits, 32, importance=importance).items():
        assert torch.equal(packed[name], tensor), name


@pytest.mark.parametrize("seen", [0, 1, 3])
def test_inputs_that_are_always_zero_and_fewer_texts_than_inputs(seen: int) -> None:
    weight, x = torch.randn(16, 64), torch.randn(seen, 64)
    x[:, 10:] = 0
    before = x.t() @ x
    packed = round_compensating(weight, given := before.clone(), 4, 32)
    assert torch.equal(given, before)
    assert (numbers(packed) - weight).norm() < 0.15 * weight.norm()


def test_inputs_that_are_not_finite_are_refused() -> None:
    with pytest.raises(InputError, match="h.0.c_fc was given inputs that are not finite while calibrating"):
        round_compensating(torch.randn(8, 32), torch.full((32, 32), float("nan")), 4, 32, name="h.0.c_fc")


# --- models ---


@pytest.mark.parametrize("family", sorted(model_types()))
@pytest.mark.parametrize("head", [None, 4])
def test_every_family_comes_closer_to_its_plain_model(family: str, head: int | None) -> None:
    plain = model_of(family)
    config = IntegerConfig(4, symmetric=False, head_bits=head)
    alone, together = copy.deepcopy(plain), copy.deepcopy(plain)
    seen: list[str] = []
    first = alone.quantize(config)
    report = together.quantize(config, calibration=ids(60, 1), progress=seen.append)
    assert set(seen) == set(report.errors) == set(first.errors) == set(packed_linears_of(together))
    assert len(seen) == len(set(seen))
    assert together.config.quantization_config == alone.config.quantization_config
    want, held_out = logits(plain, ids(8, 2)), ids(8, 2)
    far, near = ((logits(model, held_out) - want).norm() for model in (alone, together))
    assert near < 0.95 * far


def test_experts_are_packed_first() -> None:
    plain = model_of("gpt_oss")
    alone, together = copy.deepcopy(plain), copy.deepcopy(plain)
    alone.quantize("mxfp4+int4")
    together.quantize("mxfp4+int4", calibration=ids(60, 1))
    want = copy.deepcopy(plain)
    want.quantize("mxfp4")
    far, near = ((logits(model, ids(8, 2)) - logits(want, ids(8, 2))).norm() for model in (alone, together))
    assert near < 0.95 * far


def test_training_mode_and_gradients_are_as_they_were() -> None:
    model = model_of("gpt2").train()
    model.quantize("int8", calibration=ids(4, 1))
    assert model.training and torch.is_grad_enabled()
    assert all(module.training for module in packed_linears_of(model).values())


def test_layers_with_the_same_input_share_its_products() -> None:
    model = model_of("seed_oss")
    block = model.model.layers[0]
    modules = {name: module for name, module in block.named_modules() if isinstance(module, nn.Linear)}
    inputs: dict[str, torch.Tensor] = {}
    for name, module in modules.items():
        module.register_forward_pre_hook(lambda _, given, name=name: inputs.__setitem__(name, given[0]))
    found = calibration._products(modules, lambda: logits(model, ids(3, 1)))
    assert found["self_attn.q_proj"] is found["self_attn.v_proj"] and found["mlp.gate_proj"] is found["mlp.up_proj"]
    assert found["self_attn.q_proj"] is not found["mlp.up_proj"]
    for name, x in inputs.items():
        flat = x.flatten(0, 1)
        assert torch.allclose(found[name], flat.t() @ flat, rtol=1e-4, atol=1e-5), name


class Shelf:
    """Keeps blocks in memory, and fails when it has kept so many."""

    def __init__(self, most: int = 100) -> None:
        self.blocks: dict[int, dict[str, Parts]] = {}
        self.most = most

    def load(self, number: int) -> Mapping[str, Parts] | None:
        return self.blocks.get(number)

    def save(self, number: int, parts: Mapping[str, Parts]) -> None:
        if len(self.blocks) == self.most:
            raise KeyboardInterrupt
        self.blocks[number] = {path: {name: t.clone() for name, t in one.items()} for path, one in parts.items()}


def test_what_was_kept_is_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    config = IntegerConfig(4, head_bits=8)
    whole = model_of("gpt_neox")
    whole.quantize(config, calibration=ids(10, 1))
    shelf = Shelf(most=1)
    with pytest.raises(KeyboardInterrupt):
        model_of("gpt_neox").quantize(config, calibration=ids(10, 1), store=shelf)
    assert list(shelf.blocks) == [0]
    shelf.most = 100
    again, made = model_of("gpt_neox"), []
    plain = calibration.round_compensating
    monkeypatch.setattr(
        calibration, "round_compensating", lambda *a, name, **k: (made.append(name), plain(*a, name=name, **k))[1]
    )
    again.quantize(config, calibration=ids(10, 1), store=shelf)
    assert made and not any(".layers.0." in name for name in made)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


# --- what a calibration may be ---


def words(text: str, **kwargs: Any) -> dict[str, list[int]]:
    return {"input_ids": [len(word) for word in text.split()]}


def test_forms_of_a_calibration() -> None:
    want = [2, 5, 3]
    for given in ([2, 5, 3], torch.tensor(want), torch.tensor([want]), [torch.tensor(want)], [want]):
        assert [row.tolist() for row in calibration_rows(given, None, None)] == [want]
    assert [row.tolist() for row in calibration_rows("so green gum", words, None)] == [want]
    assert [row.tolist() for row in calibration_rows(["so green", "gum"], words, None)] == [[2, 5], [3]]
    assert [len(row) for row in calibration_rows(torch.arange(1300), None, None)] == [512, 512]
    assert [len(row) for row in calibration_rows(torch.arange(1300), None, 300)] == [300, 300, 300, 300]
    assert sum(len(row) for row in calibration_rows(torch.zeros(100_000, dtype=torch.long), None, None)) == 1 << 15


@pytest.mark.parametrize(
    ("given", "kind", "match"),
    [
        ("a text", ConfigError, "no tokenizer is given. Pass tokenizer="),
        ([], InputError, "calibration has 0 tokens"),
        (torch.tensor([3]), InputError, "calibration has 1 tokens. Give a text"),
        (torch.zeros(3, 4, 5, dtype=torch.long), InputError, r"torch.int64 of shape \[4, 5\]"),
        (torch.zeros(2, 3), InputError, "torch.float32 of shape"),
        (7, InputError, "calibration is a int, but must be a text"),
    ],
)
def test_what_is_no_calibration(given: Any, kind: type[Exception], match: str) -> None:
    model = model_of("gpt2")
    with pytest.raises(kind, match=match):
        model.quantize("int4", calibration=given)
    assert not packed_linears_of(model)


def test_experts_alone_are_not_calibrated() -> None:
    with pytest.raises(ConfigError, match=r"quantize\('mxfp4'\) packs no linear layers"):
        model_of("gpt_oss").quantize("mxfp4", calibration=ids(2, 1))
