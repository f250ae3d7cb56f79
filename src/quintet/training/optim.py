"""The optimiser and the learning rate."""

from __future__ import annotations

import math

import torch
from torch import nn

from quintet.training.arguments import TrainingArguments

__all__ = ["learning_rate", "make_optimizer"]


def make_optimizer(model: nn.Module, args: TrainingArguments) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter, arXiv 1711.05101) with weight decay on matrices only, not on norms and biases."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": args.weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    betas = (args.adam_beta1, args.adam_beta2)
    return torch.optim.AdamW(groups, lr=args.learning_rate, betas=betas, eps=args.adam_epsilon, fused=True)


def learning_rate(args: TrainingArguments, step: int) -> float:
    """Learning rate of a step, counted from 0: a linear rise, then the shape of `lr_scheduler_type`.

    "cosine" falls along half a cosine (Loshchilov and Hutter, arXiv 1608.03983), "trapezoid" stays high and falls
    linearly in the last `decay_ratio` of the run, "linear" falls from the rise to the end, "constant" stays.
    """
    if step < args.warmup_steps:
        return args.learning_rate * (step + 1) / args.warmup_steps
    part = (step - args.warmup_steps) / max(1, args.max_steps - args.warmup_steps)  # 0 after the rise, 1 at the end
    if args.lr_scheduler_type == "cosine":
        height = 0.5 * (1 + math.cos(math.pi * part))
    elif args.lr_scheduler_type == "trapezoid":
        height = min(1.0, (1 - part) / args.decay_ratio) if args.decay_ratio > 0 else 1.0
    elif args.lr_scheduler_type == "linear":
        height = 1 - part
    else:
        height = 1.0
    return args.learning_rate * (args.min_lr_ratio + (1 - args.min_lr_ratio) * height)
