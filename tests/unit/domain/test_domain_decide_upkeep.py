"""What is done beside the candidate's way: the champion's repair, projections, the end of the object."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from retrieval_operator.api.objects import RetrievalModel
from retrieval_operator.domain.decide import decide
from retrieval_operator.domain.simulate import (
    World,
    run_until_settled,
)

Make = Callable[..., RetrievalModel]
Call = Callable[..., Any]  # a fixture of conftest.py


def test_a_suspended_object_still_repairs_its_champion(make: Make, step: Call, live: Call) -> None:
    world = World()
    status = live(world)
    world.stacks.clear()
    _model, _ = step(make({"spec.suspend": True}, status=status, generation=2), world)
    assert list(world.stacks) == [status.champion.stack]  # type: ignore[union-attr]


def test_the_champion_is_repaired_while_the_registry_is_away(make: Make, step: Call, live: Call) -> None:
    world = World()
    status = live(world)
    world.stacks.clear()
    world.registry_is_up = False
    step(make(status=status), world)
    assert list(world.stacks) == [status.champion.stack]  # type: ignore[union-attr]


def test_a_champion_whose_servers_fail_is_not_said_to_be_repaired(make: Make, step: Call, live: Call) -> None:
    """In a cluster they are started again without us, so every pass would say so."""
    world = World()
    model = make(status=live(world))
    stack = model.status.champion.stack  # type: ignore[union-attr]
    world.events.clear()
    for repaired, found in ((False, replace(world.stacks[stack], failed="exit code 1")), (True, None)):
        world.stacks = {stack: found} if found else {}
        step(model, world)
        assert ("StackRepaired" in [event.reason for event in world.events]) == repaired


def test_an_alias_moved_by_hand_is_moved_back_with_an_event(second_life: Call) -> None:
    world = World()
    model = second_life(world)
    world.aliases["champion"] = "1"
    world.events.clear()
    run_until_settled(model, world)
    assert world.aliases["champion"] == "2"
    assert [event.reason for event in world.events] == ["AliasRepaired"]


def test_deletion_ends_serving_then_work_then_lets_the_object_go(make: Make, step: Call, live: Call) -> None:
    world = World()
    status = live(world)
    model = make(status=status, deleting=True)
    model, _ = step(model, world)
    assert world.traffic.live is None and world.workloads == {}
    model, _ = step(model, world)
    assert world.stacks == {}
    step(model, world)
    assert world.finalizer is False
    assert world.versions, "MLflow's record stays"


def test_the_champions_repair_comes_before_what_a_candidate_wants(make: Make, live: Call) -> None:
    world = World()
    status = live(world)
    world.stacks.clear()
    plan = decide(make({"spec.data.revision": "2"}, status=status, generation=2), world.observe(), world.now)
    assert type(plan.actions[0]).__name__ == "CreateStack"
