"""AdamW on float32 master weights, and a learning rate that is a function of the step (nothing to save or restore)."""

from __future__ import annotations

import torch
from torch import nn


def learning_rate(step: int, *, steps: int, peak: float, warmup_fraction: float) -> float:
    """Linear from peak / warm-up steps at step 0 up to `peak`, then linear towards zero (never reached) at `steps`."""
    warmup = max(1, round(steps * warmup_fraction))
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * (steps - step) / max(1, steps - warmup + 1)


def build_optimizer(model: nn.Module, *, weight_decay: float) -> torch.optim.AdamW:
    """AdamW over the trainable parameters; gains and biases (one axis) do not decay. The loop sets the rate."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=0.0)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate
