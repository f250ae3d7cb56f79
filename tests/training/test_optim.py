"""Schedules and the decay of matrices only."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from quintet.models.gpt2 import GPT2LMHeadModel, tiny
from quintet.training.arguments import TrainingArguments
from quintet.training.optim import learning_rate, make_optimizer


def rates(options: dict[str, Any], **change: Any) -> list[float]:
    args = TrainingArguments(**{**options, "max_steps": 110, "warmup_steps": 10, "learning_rate": 1.0, **change})
    return [learning_rate(args, step) for step in range(args.max_steps + 1)]


@pytest.mark.parametrize("kind", ["cosine", "trapezoid", "linear", "constant"])
def test_every_schedule_rises_and_never_passes_its_height(options: dict[str, Any], kind: str) -> None:
    values = rates(options, lr_scheduler_type=kind)
    assert values[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert max(values) == pytest.approx(1.0)
    assert all(a >= b - 1e-12 for a, b in zip(values[10:], values[11:], strict=False))


def test_shapes_by_hand(options: dict[str, Any]) -> None:
    assert rates(options, lr_scheduler_type="cosine")[60] == pytest.approx(0.5)
    assert rates(options, lr_scheduler_type="cosine")[110] == pytest.approx(0.0)
    assert rates(options, lr_scheduler_type="linear")[60] == pytest.approx(0.5)
    trapezoid = rates(options, lr_scheduler_type="trapezoid", decay_ratio=0.5)
    assert trapezoid[59] == pytest.approx(1.0)
    assert trapezoid[85] == pytest.approx(0.5)
    assert rates(options, lr_scheduler_type="cosine", min_lr_ratio=0.1)[110] == pytest.approx(0.1)
    assert rates(options, lr_scheduler_type="constant")[110] == 1.0
    assert rates(options, warmup_steps=0)[0] == 1.0


def test_a_trapezoid_is_the_same_until_it_falls(options: dict[str, Any]) -> None:
    short = rates(options, lr_scheduler_type="trapezoid", decay_ratio=0.2)
    long = rates(options, lr_scheduler_type="trapezoid", decay_ratio=0.2, max_steps=200)
    assert short[:90] == long[:90]


def test_decay_is_for_matrices_only(options: dict[str, Any]) -> None:
    model = GPT2LMHeadModel(tiny())
    optimizer = make_optimizer(model, TrainingArguments(**options))
    decayed, plain = optimizer.param_groups
    assert decayed["weight_decay"] == 0.1 and plain["weight_decay"] == 0.0
    assert all(p.dim() >= 2 for p in decayed["params"]) and all(p.dim() < 2 for p in plain["params"])
    assert sum(len(g["params"]) for g in optimizer.param_groups) == len(list(model.parameters()))


def test_a_step_without_gradient_only_decays(options: dict[str, Any]) -> None:
    model = GPT2LMHeadModel(tiny())
    optimizer = make_optimizer(model, TrainingArguments(**{**options, "learning_rate": 0.5}))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.detach(), before[name] * (1 - 0.5 * 0.1 if p.dim() >= 2 else 1))
