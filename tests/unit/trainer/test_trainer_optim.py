"""The learning rate as a function of the step, and which parameters decay."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from retrieval_trainer.optim import build_optimizer, learning_rate


@pytest.mark.parametrize(
    ("step", "expected"),
    [(0, 0.1), (4, 0.5), (9, 1.0), (10, 90 / 91), (55, 45 / 91), (99, 1 / 91)],
)
def test_it_rises_to_the_peak_and_falls_towards_zero(step: int, expected: float) -> None:
    assert learning_rate(step, steps=100, peak=1.0, warmup_fraction=0.1) == pytest.approx(expected)


@pytest.mark.parametrize("steps", [1, 2, 3, 17])
@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.5])
def test_every_step_moves_the_weights(steps: int, warmup: float) -> None:
    rates = [learning_rate(s, steps=steps, peak=2.0, warmup_fraction=warmup) for s in range(steps)]
    assert all(0 < rate <= 2.0 for rate in rates)


def test_gains_and_biases_do_not_decay_and_frozen_parameters_are_left_out() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2), nn.Linear(2, 2))
    model[2].requires_grad_(requires_grad=False)
    optimizer = build_optimizer(model, weight_decay=0.3)
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert decay == {id(model[0].weight): 0.3, id(model[0].bias): 0, id(model[1].weight): 0, id(model[1].bias): 0}
    assert isinstance(optimizer, torch.optim.AdamW)
