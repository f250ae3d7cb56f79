"""What tests of gpt-oss and Seed-OSS do with a pair of models, ours and the reference's."""

from __future__ import annotations

from typing import Any

import torch
from seeded import seeded

__all__ = ["PROMPT", "STRATEGIES", "YARN", "check_gradient_checkpointing", "check_gradients", "sharpen", "written"]

PROMPT = torch.tensor([[5, 17, 3, 88, 42, 9, 61], [70, 2, 33, 4, 90, 12, 8]])
YARN = {
    "rope_parameters": {
        "rope_type": "yarn",
        "rope_theta": 10000.0,
        "factor": 4.0,
        "original_max_position_embeddings": 32,
    },
    "max_position_embeddings": 128,
}

STRATEGIES: list[dict[str, Any]] = [
    {"do_sample": False},
    {"do_sample": False, "repetition_penalty": 1.4},
    {"do_sample": True},
    {"do_sample": True, "top_k": 5, "temperature": 1.7},
    {"do_sample": True, "top_k": 0, "top_p": 0.7, "num_return_sequences": 2},
]


def sharpen(ours: Any, theirs: Any) -> tuple[Any, Any]:
    """Larger weights, so that the likeliest token is far from the next and a wrong bit shows."""
    with torch.no_grad():
        ours.lm_head.weight.mul_(6)
        ours.model.embed_tokens.weight.mul_(3)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def written(model: Any, *args: Any, **options: Any) -> torch.Tensor:
    return seeded(model, *args, **{"max_new_tokens": 300, "pad_token_id": 0, "eos_token_id": None, **options})


def loss_of(out: Any) -> torch.Tensor:
    found: torch.Tensor = out["loss"] if "loss" in out else (out.last_hidden_state**2).mean()
    return found


def check_gradients(models: tuple[Any, Any], given: dict[str, Any], same: Any) -> None:
    """Every parameter has the reference's gradient, with padding."""
    ours, theirs = models
    ids = given["input_ids"]
    mask = torch.ones_like(ids)
    mask[-1, 5:] = 0
    for model in models:
        loss_of(model(**given, attention_mask=mask)).backward()
    wanted = {n: p.grad for n, p in theirs.named_parameters()}
    assert [n for n, _ in ours.named_parameters()] == list(wanted)
    for parameter, weight in ours.named_parameters():
        assert weight.grad is not None, parameter
        same(weight.grad, wanted[parameter], tolerance=1e-4, where=parameter)


def check_gradient_checkpointing(models: tuple[Any, Any], given: dict[str, Any], same: Any) -> None:
    """Gradients are the same to the bit, and the reference's; no cache is made."""
    ours, theirs = models
    for model in models:
        model.train()
        model.dropout = torch.nn.Identity()  # of the token classifier
        loss_of(model(**given)).backward()
    plain = {n: p.grad.clone() for n, p in ours.named_parameters()}
    ours.zero_grad()
    ours.gradient_checkpointing_enable()
    out = ours(**given)
    assert out.get("past_key_values") is None
    loss_of(out).backward()
    for parameter, weight in ours.named_parameters():
        assert torch.equal(weight.grad, plain[parameter]), parameter
        same(weight.grad, theirs.get_parameter(parameter).grad, tolerance=1e-4, where=parameter)
