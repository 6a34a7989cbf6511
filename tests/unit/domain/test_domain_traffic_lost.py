"""Somebody deletes the stable Service: its champion gets the traffic back, and nothing else comes of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from retrieval_operator.api.objects import RetrievalModel
from retrieval_operator.api.status import Step
from retrieval_operator.domain.decide import decide
from retrieval_operator.domain.observed import TrafficObserved
from retrieval_operator.domain.plan import CreateStack, DeleteStack, EmitEvent, Plan, SwitchTraffic
from retrieval_operator.domain.simulate import World, run_until_settled, with_status

Make = Callable[..., RetrievalModel]
Call = Callable[..., Any]  # a fixture of conftest.py

SECOND = {"spec.data.revision": "2"}
NEW_SERVING = SECOND | {"spec.serving.connectionAgeSeconds": 19}


def lose_the_traffic(world: World) -> None:
    """`kubectl delete service feed`."""
    world.traffic = TrafficObserved(version="0")
    world.created.clear()
    world.events.clear()


def live_stack(world: World) -> str:
    return world.traffic.live.stack if world.traffic.live else ""


def settled(model: RetrievalModel, world: World) -> RetrievalModel:
    return with_status(model, run_until_settled(model, world)[-1][1].status)


def next_plan(model: RetrievalModel, world: World) -> Plan:
    return decide(model, world.observe(), world.now)


def switches(plan: Plan) -> list[SwitchTraffic]:
    return [action for action in plan.actions if isinstance(action, SwitchTraffic)]


def gone_back(make: Make, model: RetrievalModel, world: World, changes: dict[str, Any]) -> RetrievalModel:
    """A person has gone back to the stack that was live before."""
    champion = model.status.champion
    assert champion is not None
    asked = {"retrieval-operator.io/rollback": f"{champion.token}:{world.traffic.previous}"}
    return settled(make(changes, status=model.status, generation=2, annotations=asked), world)


def events(plan: Plan) -> list[tuple[str, str]]:
    return [(found.type, str(found.reason)) for found in plan.actions if isinstance(found, EmitEvent)]


def test_the_champion_gets_its_traffic_back_in_one_pass_and_nothing_is_made_or_removed(
    make: Make, step: Call, live: Call
) -> None:
    world = World()
    model = make(status=live(world))
    stacks, address = dict(world.stacks), world.traffic.address
    lose_the_traffic(world)

    model, plan = step(model, world)

    assert events(plan) == [("Warning", "StackRepaired")]
    assert "was gone" in plan.actions[-1].message
    assert live_stack(world) in stacks
    assert world.created == [f"switch to {live_stack(world)}"]
    assert world.stacks == stacks
    assert model.status.address == "", "the status states only what was observed"
    assert settled(model, world).status.address == address


def test_the_traffic_comes_back_before_anything_that_may_be_refused(make: Make, live: Call) -> None:
    """Another server needs KServe, and a finalizer the object; the address needs neither."""
    world = World()
    changes = {"spec.serving.replicas": {"min": 3}, "spec.deletionPolicy": "Delete"}
    model = make(changes, status=live(world), generation=2)
    lose_the_traffic(world)
    assert isinstance(next_plan(model, world).actions[0], SwitchTraffic)


def test_the_champion_that_comes_back_is_the_one_that_it_was(make: Make, live: Call) -> None:
    """Its promotion, its token and its history are those from before: its return is no promotion and no rollback."""
    world = World()
    before = live(world)
    world.tick(100)
    lose_the_traffic(world)
    after = settled(make(status=before), world).status
    assert world.traffic.switched_at > before.champion.promoted_at
    assert after.champion == before.champion
    assert after.history == before.history
    assert (after.phase, after.candidate) == (before.phase, None)


def test_a_second_loss_changes_as_little(make: Make, live: Call) -> None:
    world = World()
    before = live(world)
    model = make(status=before)
    for _ in range(2):
        world.tick(100)
        lose_the_traffic(world)
        model = settled(model, world)
    assert (model.status.champion, model.status.history) == (before.champion, before.history)


@pytest.mark.parametrize("seconds", [5, 10_000], ids=["just now", "long ago"])
@pytest.mark.parametrize("second", [SECOND, NEW_SERVING], ids=["revision", "serving"])
def test_after_a_rollback_the_traffic_returns_to_the_good_stack_and_what_was_left_stays_left(
    make: Make, live: Call, second: dict[str, Any], seconds: int
) -> None:
    world = World()
    model = settled(make(second, status=live(world), generation=2), world)
    good = world.traffic.previous
    model = gone_back(make, model, world, second)
    world.tick(seconds)
    lose_the_traffic(world)

    after = settled(model, world)

    assert live_stack(world) == good
    assert world.created == [f"switch to {good}"]
    assert set(world.stacks) == {good}
    assert (after.status.champion, after.status.history) == (model.status.champion, model.status.history)
    assert (after.status.phase, after.status.candidate) == ("Stalled", None)


@pytest.mark.parametrize("changes", [{"spec.suspend": True}, {"spec.storage.uri": "/elsewhere"}], ids=str)
def test_neither_a_suspended_nor_a_stalled_object_waits_for_its_traffic(
    make: Make, step: Call, live: Call, changes: dict[str, Any]
) -> None:
    world = World()
    status = live(world)
    lose_the_traffic(world)
    step(make(changes, status=status, generation=2), world)
    assert live_stack(world) == status.champion.stack


def test_the_traffic_returns_while_mlflow_is_away(make: Make, step: Call, live: Call) -> None:
    world = World()
    status = live(world)
    lose_the_traffic(world)
    world.registry_is_up = False
    step(make(status=status), world)
    assert live_stack(world) == status.champion.stack


@pytest.mark.parametrize("what_is_left", ["nothing", "a part", "failed servers"])
def test_a_champion_whose_stack_is_gone_as_well_is_made_again_and_then_gets_its_traffic(
    make: Make, step: Call, live: Call, what_is_left: str
) -> None:
    world = World()
    before = live(world)
    stack = before.champion.stack
    broken = {"complete": False} if what_is_left == "a part" else {"failed": "exit code 1", "ready_replicas": 0}
    world.stacks = {} if what_is_left == "nothing" else {stack: replace(world.stacks[stack], **broken)}
    lose_the_traffic(world)

    model, plan = step(make(status=before), world)
    assert [type(action) for action in plan.actions][:1] == [CreateStack]
    assert not [action for action in plan.actions if isinstance(action, SwitchTraffic | DeleteStack)]

    world.stacks[stack] = replace(world.stacks[stack], failed="")
    world.tick()
    after = settled(model, world)
    assert live_stack(world) == stack
    assert not [made for made in world.created if made.startswith(("workload", "run"))], "nothing is trained again"
    assert (after.status.champion, after.status.history) == (before.champion, before.history)


def test_a_champion_that_is_not_ready_is_kept_and_looked_at_again_soon(make: Make, step: Call, live: Call) -> None:
    world = World()
    model = make(status=live(world))
    stack = live_stack(world)
    lose_the_traffic(world)
    for _ in range(3):
        world.stacks[stack] = replace(world.stacks[stack], ready_replicas=0)
        model, plan = step(model, world)
        assert plan.actions == ()
        assert plan.requeue_after_s == 5
        assert model.status.champion is not None
    model, _ = step(model, world)
    assert live_stack(world) == stack


def test_the_former_stack_stays_for_the_rest_of_the_rollback_window(step: Call, second_life: Call) -> None:
    world = World()
    model = second_life(world)
    newer, older = live_stack(world), world.traffic.previous
    lose_the_traffic(world)
    world.stacks[newer] = replace(world.stacks[newer], ready_replicas=0)
    model, _ = step(model, world)
    model = settled(model, world)
    assert (live_stack(world), set(world.stacks)) == (newer, {newer, older})
    assert model.status.phase == "Baking"
    world.tick(4000)
    model, _ = step(model, world)
    assert set(world.stacks) == {newer}, "and no longer"


def test_what_is_rolled_back_while_it_bakes_can_be_so_after_its_traffic_was_lost(second_life: Call) -> None:
    world = World()
    model = second_life(world)
    bad, good = live_stack(world), world.traffic.previous
    lose_the_traffic(world)
    model = settled(model, world)
    world.stacks[bad] = replace(world.stacks[bad], ready_replicas=0, failed="it exits with code 1")
    final = settled(model, world)
    assert live_stack(world) == good
    assert bad not in world.stacks
    assert [entry.outcome for entry in final.status.history] == ["RolledBack", "Promoted", "Promoted"]


def test_a_bad_champion_without_traffic_is_rolled_back_and_does_not_get_it_again(second_life: Call) -> None:
    world = World()
    model = second_life(world)
    bad, good = live_stack(world), world.traffic.previous
    lose_the_traffic(world)
    world.stacks[bad] = replace(world.stacks[bad], ready_replicas=0, failed="it exits with code 1")
    final = settled(model, world)
    assert world.created == [f"switch to {good}"]
    assert [entry.outcome for entry in final.status.history] == ["RolledBack", "Promoted", "Promoted"]
    assert set(world.stacks) == {good}


def test_a_rollback_that_a_person_asked_for_needs_no_detour(make: Make, second_life: Call) -> None:
    world = World()
    model = second_life(world)
    older = world.traffic.previous
    asked = {"retrieval-operator.io/rollback": f"{model.status.champion.token}:{older}"}
    lose_the_traffic(world)
    final = settled(make(SECOND, status=model.status, generation=2, annotations=asked), world)
    assert world.created == [f"switch to {older}"]
    assert final.status.history[0].outcome == "RolledBack"
    assert set(world.stacks) == {older}


@pytest.mark.parametrize("at", [Step.TRAINING, Step.EVALUATING, Step.DEPLOYING, Step.VERIFYING])
def test_a_candidate_in_flight_goes_on_and_is_measured_against_the_champion(
    make: Make, until: Call, live: Call, at: Step
) -> None:
    world = World()
    model = until(make(SECOND, status=live(world), generation=2), world, at)
    first = live_stack(world)
    lose_the_traffic(world)

    model = settled(model, world)

    assert [made for made in world.created if made.startswith("switch")] == [
        f"switch to {first}",
        f"switch to {live_stack(world)}",
    ]
    assert world.traffic.previous == first
    assert model.status.champion.gates[0].champion_value is not None
    assert [entry.outcome for entry in model.status.history] == ["Promoted", "Promoted"]
    assert [spec.attempt for spec in world.specs.values()] == [1] * len(world.specs)


def test_a_candidate_about_to_be_promoted_waits_for_the_champions_traffic(make: Make, step: Call, live: Call) -> None:
    """Both switches were decided on the same view, so the second one would be refused as stale."""
    world = World()
    model = make(SECOND, status=live(world), generation=2)
    first = live_stack(world)
    while not switches(next_plan(model, world)):
        model, _ = step(model, world)
    lose_the_traffic(world)

    assert [switch.record.stack for switch in switches(next_plan(model, world))] == [first]

    model = settled(model, world)
    assert world.traffic.previous == first
    assert [entry.outcome for entry in model.status.history] == ["Promoted", "Promoted"]


class FirstStackStaysDown(World):
    """Once this is said, the servers of that stack never become ready again."""

    down = ""

    def tick(self, seconds: int = 1) -> None:
        super().tick(seconds)
        if self.down in self.stacks:
            self.stacks[self.down] = replace(self.stacks[self.down], ready_replicas=0)


def test_a_candidate_that_passed_need_not_wait_for_a_champion_that_does_not_come_back(
    make: Make, step: Call, until: Call, live: Call
) -> None:
    world = FirstStackStaysDown()
    model = until(make(SECOND, status=live(world), generation=2), world, Step.VERIFYING)
    first = live_stack(world)
    lose_the_traffic(world)
    world.down = first
    world.stacks[first] = replace(world.stacks[first], ready_replicas=0)

    for _ in range(12):
        model, _ = step(model, world)

    assert live_stack(world) not in ("", first)
    assert world.traffic.previous == "", "what a Service that was made anew cannot know"
    assert first in world.stacks, "the former stack is kept for its window all the same"
    assert model.status.phase == "Baking"
    assert [entry.outcome for entry in model.status.history] == ["Promoted", "Promoted"]


def test_an_address_that_leads_nowhere_is_put_right_also_while_its_champion_is_not_ready(
    make: Make, step: Call, second_life: Call
) -> None:
    """Only then its bake check can speak: that nobody can reach a champion is not held against it."""
    world = World()
    model = second_life(world)
    champion = live_stack(world)
    world.traffic = replace(world.traffic, live=None)
    world.stacks[champion] = replace(world.stacks[champion], ready_replicas=0)

    _, plan = step(model, world)

    assert live_stack(world) == champion
    assert any("led nowhere" in action.message for action in plan.actions if isinstance(action, EmitEvent))


def test_a_retraining_that_gave_the_same_bundle_keeps_its_revision(make: Make, live: Call) -> None:
    """The stack's own record still names the revision that it was made for."""
    world = World()
    first = live(world)
    model = make(SECOND, status=first, generation=2)
    relabelled = first.champion.model_copy(update={"revision": "the second"})
    model = with_status(model, first.model_copy(update={"champion": relabelled}))
    lose_the_traffic(world)
    assert [switch.record.revision for switch in switches(next_plan(model, world))] == ["the second"]


def test_an_object_being_deleted_gets_no_traffic_again(make: Make, step: Call, live: Call) -> None:
    world = World()
    status = live(world)
    lose_the_traffic(world)
    model = make(status=status, deleting=True)
    for _ in range(4):
        model, plan = step(model, world)
        assert not [action for action in plan.actions if isinstance(action, SwitchTraffic | CreateStack)]
    assert world.traffic.live is None
    assert world.stacks == {}
    assert world.finalizer is False


def test_a_baking_champion_is_not_blamed_for_an_address_that_is_lost_again_and_again(
    step: Call, second_life: Call
) -> None:
    world = World()
    model = second_life(world)
    stack = live_stack(world)
    for _ in range(5):
        lose_the_traffic(world)
        model, _ = step(model, world, seconds=10)
        assert live_stack(world) == stack
    lose_the_traffic(world)
    world.stacks[stack] = replace(world.stacks[stack], ready_replicas=0)
    assert switches(next_plan(model, world)) == []
