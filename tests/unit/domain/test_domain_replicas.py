"""The champion has as many servers as the manifest says, in both directions and in place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from retrieval_operator.api.objects import RetrievalModel
from retrieval_operator.domain.decide import decide
from retrieval_operator.domain.plan import ScaleStack
from retrieval_operator.domain.simulate import World, run_until_settled


@pytest.mark.parametrize(
    ("bounds", "has", "wanted"),
    [
        ({"min": 3}, 1, 3),
        ({"min": 1}, 3, 1),
        ({"min": 2}, 2, None),
        ({"min": 2, "max": 4}, 1, 2),
        ({"min": 2, "max": 4}, 3, None),
        ({"min": 2, "max": 4}, 5, 4),
        ({}, 2, 1),
    ],
    ids=str,
)
def test_the_champion_is_scaled_into_its_bounds(
    make: Callable[..., RetrievalModel], bounds: dict[str, Any], has: int, wanted: int | None
) -> None:
    world = World()
    status = run_until_settled(make(), world)[-1][1].status
    stack = next(iter(world.stacks))
    world.stacks[stack] = replace(world.stacks[stack], replicas=has, ready_replicas=has)
    plan = decide(make({"spec.serving.replicas": bounds}, status=status, generation=2), world.observe(), world.now)
    expected = [] if wanted is None else [ScaleStack(stack=stack, replicas=wanted)]
    assert list(plan.actions) == expected
    assert plan.status.candidate is None, "no new stack"
