"""The champion has as many servers as the manifest says, in both directions and in place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from retrieval_operator.api.objects import RetrievalModel
from retrieval_operator.domain.decide import decide
from retrieval_operator.domain.plan import CreateStack, ScaleStack, SwitchTraffic
from retrieval_operator.domain.simulate import World, run_until_settled
from retrieval_operator.domain.upkeep import AUTOSCALER_SETTLES_S

Make = Callable[..., RetrievalModel]


@pytest.mark.parametrize(
    ("bounds", "has", "wanted"),
    [
        ({"min": 3}, (1, 0), (3, 0)),
        ({"min": 1}, (3, 0), (1, 0)),
        ({"min": 2}, (2, 0), None),
        ({}, (2, 0), (1, 0)),
        ({"min": 2, "max": 2}, (2, 0), None),
        ({"min": 2, "max": 4}, (2, 4), None),
        ({"min": 2, "max": 4}, (1, 4), (2, 4)),
        ({"min": 2, "max": 4}, (2, 3), (2, 4)),  # another max alone is a change, too
        ({"min": 2, "max": 4}, (2, 0), (2, 4)),  # an autoscaler takes over
        ({"min": 2}, (2, 4), (2, 0)),  # and no more
    ],
    ids=str,
)
def test_the_champion_is_scaled_into_its_bounds(
    make: Make, bounds: dict[str, Any], has: tuple[int, int], wanted: tuple[int, int] | None
) -> None:
    world = World()
    status = run_until_settled(make(), world)[-1][1].status
    world.now += AUTOSCALER_SETTLES_S
    stack = next(iter(world.stacks))
    world.stacks[stack] = replace(world.stacks[stack], replicas=has[0], max_replicas=has[1], ready_replicas=has[0])
    plan = decide(make({"spec.serving.replicas": bounds}, status=status, generation=2), world.observe(), world.now)
    expected = [] if wanted is None else [ScaleStack(stack=stack, replicas=wanted[0], max_replicas=wanted[1])]
    assert list(plan.actions) == expected
    assert plan.status.candidate is None, "no new stack"


@pytest.mark.parametrize(
    ("ready", "bounds", "scaled"),
    [
        pytest.param(3, {"min": 1}, (3, 0), id="more run than are asked for, by a hand or an autoscaler that was"),
        pytest.param(3, {"min": 1, "max": 5}, (3, 5), id="an autoscaler gave it three"),
        pytest.param(3, {"min": 1, "max": 2}, (3, 3), id="the bound was lowered meanwhile"),
        pytest.param(0, {"min": 2}, None, id="a champion that is down asks for nothing more"),
        pytest.param(2, {"min": 2}, None, id="already enough"),
    ],
)
def test_a_candidate_gets_as_many_servers_as_the_champion_has_ready_before_the_traffic_moves(
    make: Make, step: Callable[..., Any], ready: int, bounds: dict[str, Any], scaled: tuple[int, int] | None
) -> None:
    world = World()
    status = run_until_settled(make(), world)[-1][1].status
    old = next(iter(world.stacks))
    model = make({"spec.data.revision": "2", "spec.serving.replicas": bounds}, status=status, generation=2)
    scales, at_switch = [], None
    for _ in range(60):
        world.stacks[old] = replace(world.stacks[old], ready_replicas=ready)
        model, plan = step(model, world)
        scales += [action for action in plan.actions if isinstance(action, ScaleStack) and action.stack != old]
        switched = [action for action in plan.actions if isinstance(action, SwitchTraffic)]
        if switched:
            at_switch = world.stacks[switched[0].record.stack]
            break
    assert at_switch is not None, "it is promoted"
    assert at_switch.ready_replicas >= max(ready, bounds["min"])
    assert [(action.replicas, action.max_replicas) for action in scales] == ([scaled] if scaled else [])


def test_the_floor_a_champion_was_promoted_with_falls_when_the_autoscaler_has_seen_its_load(make: Make) -> None:
    """At once would be wrong: what it remembers of the last minutes is an idle, dark stack."""
    world = World()
    bounds = {"spec.serving.replicas": {"min": 1, "max": 5}}
    status = run_until_settled(make(bounds), world)[-1][1].status
    stack = next(iter(world.stacks))
    world.stacks[stack] = replace(world.stacks[stack], replicas=3, ready_replicas=3)
    world.now = world.traffic.switched_at + 1
    plan = decide(make(bounds, status=status), world.observe(), world.now)
    assert list(plan.actions) == []
    assert plan.requeue_after_s is not None
    world.now = world.traffic.switched_at + AUTOSCALER_SETTLES_S
    assert plan.requeue_after_s <= AUTOSCALER_SETTLES_S
    plan = decide(make(bounds, status=status), world.observe(), world.now)
    assert list(plan.actions) == [ScaleStack(stack=stack, replicas=1, max_replicas=5)]


def test_what_a_stack_lost_is_made_again(make: Make) -> None:
    world = World()
    status = run_until_settled(make(), world)[-1][1].status
    stack = next(iter(world.stacks))
    world.stacks[stack] = replace(world.stacks[stack], complete=False)
    plan = decide(make(status=status), world.observe(), world.now)
    assert [action for action in plan.actions if isinstance(action, CreateStack)] == [
        CreateStack(record=world.stacks[stack].record, replicas=1)
    ]


@pytest.mark.parametrize(
    ("former_has", "ready", "later_s", "scaled"),
    [
        pytest.param((1, 5), 3, 60, (3, 5), id="the autoscaler gave the champion three"),
        pytest.param((1, 2), 3, 60, (3, 3), id="the bound was raised meanwhile"),
        pytest.param((3, 5), 3, 60, None, id="enough"),
        pytest.param((1, 5), 0, 60, None, id="the champion is down"),
        pytest.param((5, 5), 6, 60, None, id="one more while a rolling change goes on"),
        pytest.param((1, 0), 3, 60, (3, 0), id="no autoscaler: the champion was given more"),
        pytest.param((1, 5), 3, 4000, None, id="after the window it goes"),
    ],
)
def test_while_the_champion_bakes_the_former_stack_can_carry_its_load(
    make: Make,
    second_life: Callable[..., Any],
    former_has: tuple[int, int],
    ready: int,
    later_s: int,
    scaled: tuple[int, int] | None,
) -> None:
    world = World()
    status = second_life(world).status
    live, former = world.traffic.live.stack, world.traffic.previous  # type: ignore[union-attr]
    bounds = {"spec.data.revision": "2", "spec.serving.replicas": {"min": 1, "max": 5}}
    world.stacks[live] = replace(world.stacks[live], max_replicas=5, ready_replicas=ready)
    world.stacks[former] = replace(world.stacks[former], replicas=former_has[0], max_replicas=former_has[1])
    now = world.traffic.switched_at + later_s
    plan = decide(make(bounds, status=status, generation=2), world.observe(), now)
    scales = [action for action in plan.actions if isinstance(action, ScaleStack)]
    wanted = [] if scaled is None else [ScaleStack(stack=former, replicas=scaled[0], max_replicas=scaled[1])]
    assert scales == wanted


def test_servers_that_somebody_removed_from_the_former_stack_are_not_scaled(
    make: Make, second_life: Callable[..., Any]
) -> None:
    """The port has nothing to scale then, and its refusal would end every pass."""
    world = World()
    status = second_life(world).status
    former = world.traffic.previous
    world.stacks[former] = replace(world.stacks[former], replicas=0, ready_replicas=0, complete=False)
    plan = decide(make({"spec.data.revision": "2"}, status=status, generation=2), world.observe(), world.now)
    assert not [action for action in plan.actions if isinstance(action, ScaleStack)]
