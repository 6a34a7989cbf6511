"""Going back: by itself while a champion bakes, because a person asks, and to which stacks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from retrieval_operator.api.conditions import ConditionType
from retrieval_operator.api.constants import HISTORY_MAX_ENTRIES
from retrieval_operator.api.objects import RetrievalModel
from retrieval_operator.api.status import Step
from retrieval_operator.domain.decide import decide
from retrieval_operator.domain.plan import CreateStack, DeleteStack, SetFinalizer, SwitchTraffic
from retrieval_operator.domain.simulate import (
    Outcome,
    World,
    run_until_settled,
    with_status,
)

Make = Callable[..., RetrievalModel]
Call = Callable[..., Any]  # a fixture of conftest.py


def test_a_champion_that_fails_while_it_bakes_is_rolled_back_and_stays_refused(
    condition: Call, second_life: Call
) -> None:
    world = World()
    model = second_life(world)
    assert model.status.phase == "Baking"
    bad = model.status.champion.stack  # type: ignore[union-attr]
    world.stacks[bad] = replace(world.stacks[bad], ready_replicas=0, failed="it exits with code 1")

    final = run_until_settled(model, world)[-1][1]

    assert world.traffic.live is not None and world.traffic.live.stack != bad
    assert bad not in world.stacks, "so that clients leave it"
    assert final.status.history[0].outcome == "RolledBack"
    assert final.status.history[0].message.endswith(": its servers failed: it exits with code 1")
    assert condition(final.status, ConditionType.PROMOTED)[0] == "False"


def test_the_servers_of_a_stack_that_was_rolled_back_go_also_while_mlflow_is_away(
    step: Call, second_life: Call
) -> None:
    """Clients hold connections to them, and a cluster may only end those with the servers."""
    world = World()
    model = second_life(world)
    bad = model.status.champion.stack  # type: ignore[union-attr]
    world.registry_is_up = False
    world.stacks[bad] = replace(world.stacks[bad], ready_replicas=0, failed="it exits with code 1")
    for _ in range(4):
        model, _ = step(model, world)
    assert world.traffic.live is not None and world.traffic.live.stack != bad
    assert bad not in world.stacks


def test_a_short_unreadiness_while_baking_is_no_reason_to_roll_back(step: Call, second_life: Call) -> None:
    world = World()
    model = second_life(world)
    live_stack = world.traffic.live.stack  # type: ignore[union-attr]
    world.stacks[live_stack] = replace(world.stacks[live_stack], ready_replicas=0)
    model, _ = step(model, world)
    for _ in range(5):
        model, _ = step(model, world, seconds=10)
    assert world.traffic.live.stack == live_stack  # type: ignore[union-attr]


def test_a_champion_that_is_only_unready_for_too_long_is_said_to_be_so(step: Call, second_life: Call) -> None:
    world = World()
    model = second_life(world)
    bad = model.status.champion.stack  # type: ignore[union-attr]
    while bad in world.stacks:
        world.stacks[bad] = replace(world.stacks[bad], ready_replicas=0)
        model, _ = step(model, world, seconds=10)
    assert model.status.history[0].outcome == "RolledBack"
    assert model.status.history[0].message.endswith(": it had no ready server")


def test_a_rollback_that_a_person_asks_for_acts_once(make: Make, second_life: Call) -> None:
    world = World()
    model = second_life(world)
    newer, older = world.traffic.live.stack, world.traffic.previous  # type: ignore[union-attr]
    asked = {"retrieval-operator.io/rollback": f"{model.status.champion.token}:{older}"}
    asking = make({"spec.data.revision": "2"}, status=model.status, generation=2, annotations=asked)
    final = run_until_settled(asking, world)[-1][1]
    assert world.traffic.live.stack == older  # type: ignore[union-attr]
    assert final.status.history[0].outcome == "RolledBack"
    assert final.status.history[0].message.endswith(", as was asked for")

    third = make({"spec.data.revision": "3"}, status=final.status, generation=3, annotations=asked)
    run_until_settled(third, world)
    assert world.traffic.live.stack not in (newer, older)  # type: ignore[union-attr]


def test_a_rollback_left_on_the_object_does_nothing_when_a_retry_brings_that_stack_back(
    make: Make, second_life: Call
) -> None:
    world = World()
    model = second_life(world)
    newer, older = world.traffic.live.stack, world.traffic.previous  # type: ignore[union-attr]
    asked = {"retrieval-operator.io/rollback": f"{model.status.champion.token}:{older}"}
    second = {"spec.data.revision": "2"}
    back = run_until_settled(make(second, status=model.status, generation=2, annotations=asked), world)[-1][1]
    retried = asked | {"retrieval-operator.io/retry": "once more"}
    run_until_settled(make(second, status=back.status, generation=2, annotations=retried), world)
    assert world.traffic.live.stack == newer  # type: ignore[union-attr]


def test_the_traffic_goes_back_before_anybody_tries_to_repair_what_it_leaves(step: Call, second_life: Call) -> None:
    """The repair may be refused, by a quota or a webhook, and clients must not wait for that."""
    world = World()
    model = second_life(world)
    del world.stacks[model.status.champion.stack]  # type: ignore[union-attr]
    kinds: list[type] = []
    while SwitchTraffic not in kinds:
        world.stacks.pop(model.status.champion.stack, None)  # type: ignore[union-attr]
        model, plan = step(model, world, seconds=10)
        kinds = [type(action) for action in plan.actions]
    assert CreateStack in kinds
    assert kinds.index(SwitchTraffic) < kinds.index(CreateStack)


def test_a_way_back_that_failed_neither_removes_the_former_stack_nor_ends_the_window(
    make: Make, step: Call, second_life: Call
) -> None:
    """Its only server could not start at that moment; once it can, the bake check may still go back to it."""
    world = World()
    model = second_life(world)
    bad, former = model.status.champion, world.traffic.previous  # type: ignore[union-attr]
    world.stacks[former] = replace(world.stacks[former], ready_replicas=0, failed="its image cannot be pulled")
    asked = {"retrieval-operator.io/rollback": f"{bad.token}:{former}"}
    model = make({"spec.data.revision": "2"}, status=model.status, generation=3, annotations=asked)
    for _ in range(4):
        model, _ = step(model, world, seconds=0)
        world.stacks[former] = replace(world.stacks[former], ready_replicas=0, failed="its image cannot be pulled")
    assert (model.status.history[0].kind, model.status.history[0].outcome) == ("Rollback", "Failed")
    assert model.status.champion.baking_until > world.now  # type: ignore[union-attr]

    world.stacks[former] = replace(world.stacks[former], ready_replicas=1, failed="")
    world.stacks[bad.stack] = replace(world.stacks[bad.stack], ready_replicas=0, failed="it exits with code 1")
    step(model, world)
    assert world.traffic.live is not None and world.traffic.live.stack == former


def test_asking_for_a_stack_that_cannot_start_keeps_no_baking_champion_from_going_back(
    make: Make, step: Call, second_life: Call
) -> None:
    world = World()
    model = second_life(world)
    older, bad = world.traffic.previous, world.traffic.live
    model = make({"spec.data.revision": "3"}, status=model.status, generation=3)
    model = with_status(model, run_until_settled(model, world)[-1][1].status)
    former, champion = world.traffic.previous, model.status.champion
    assert bad is not None and former == bad.stack and champion is not None
    world.stacks.pop(older, None)
    asked = {"retrieval-operator.io/rollback": f"{champion.token}:{older}"}
    model = make({"spec.data.revision": "3"}, status=model.status, generation=3, annotations=asked)
    world.stacks[champion.stack] = replace(
        world.stacks[champion.stack], ready_replicas=0, failed="it exits with code 1"
    )
    step(model, world)
    assert world.traffic.live is not None and world.traffic.live.stack == former


def test_going_back_comes_before_a_finalizer_that_may_be_refused(make: Make, second_life: Call) -> None:
    world = World()
    model = second_life(world)
    bad = model.status.champion.stack  # type: ignore[union-attr]
    world.stacks[bad] = replace(world.stacks[bad], ready_replicas=0, failed="it exits with code 1")
    changes = {"spec.data.revision": "2", "spec.deletionPolicy": "Delete"}
    plan = decide(make(changes, status=model.status, generation=3), world.observe(), world.now)
    kinds = [type(action) for action in plan.actions]
    assert kinds.index(SwitchTraffic) < kinds.index(SetFinalizer)


@pytest.mark.parametrize("asks", [True, False], ids=["asked for", "by itself"])
def test_going_back_after_the_status_was_lost_is_no_promotion(asks: bool, make: Make, second_life: Call) -> None:
    """The history that is found again knows the stack that was live before, too."""
    world = World()
    model = second_life(world)
    champion, older = model.status.champion, world.traffic.previous
    changes = {"spec.data.revision": "2"}
    model = make(changes, generation=2)
    model = with_status(model, run_until_settled(model, world)[-1][1].status)
    assert [entry.outcome for entry in model.status.history] == ["Promoted", "Promoted"]
    asked = {"retrieval-operator.io/rollback": f"{champion.token}:{older}"} if asks else {}  # type: ignore[union-attr]
    if not asks:
        world.stacks[champion.stack] = replace(world.stacks[champion.stack], ready_replicas=0, failed="it exits")  # type: ignore[union-attr]
    final = run_until_settled(make(changes, status=model.status, generation=2, annotations=asked), world)[-1][1]
    assert world.traffic.live is not None and world.traffic.live.stack == older
    assert final.status.history[0].outcome == "RolledBack"
    assert [run.tags.get("retrieval.verdict") for run in world.runs.values() if run.step == "train"] == [
        "Promoted",
        "RolledBack",
    ]

    wiped = run_until_settled(make(changes, generation=2, annotations=asked), world)[-1][1]
    assert world.traffic.live.stack == older, "nor is what was left promoted again when the status is lost once more"
    assert wiped.status.candidate is None


NEW_SERVING = {"spec.data.revision": "2", "spec.serving.connectionAgeSeconds": 19}
NEW_INDEX = {"spec.data.revision": "2", "spec.index.factory": "HNSW32"}


@pytest.mark.parametrize("second", [NEW_SERVING, NEW_INDEX], ids=["serving", "index"])
def test_going_back_goes_to_that_very_stack_and_takes_nothing_along(
    second: dict[str, Any], make: Make, live: Call
) -> None:
    """The serving spec or the index of the stack that is left may be what was wrong with it."""
    world = World()
    model = make(second, status=live(world), generation=2)
    model = with_status(model, run_until_settled(model, world)[-1][1].status)
    older = world.traffic.previous
    asked = {"retrieval-operator.io/rollback": f"{model.status.champion.token}:{older}"}  # type: ignore[union-attr]
    back = run_until_settled(make(second, status=model.status, generation=2, annotations=asked), world)[-1][1]
    assert world.traffic.live is not None and world.traffic.live.stack == older
    assert back.status.candidate is None

    edited = second | {"spec.serving.connectionAgeSeconds": 30, "spec.index.factory": "HNSW64"}
    run_until_settled(make(edited, status=back.status, generation=3), world)
    assert world.traffic.live.stack != older, "what was not left behind is new work"


def test_a_serving_spec_that_was_gone_back_from_is_not_tried_under_an_older_stack_either(
    make: Make, second_life: Call
) -> None:
    """Back from the new serving spec, and then further back to the first revision."""
    world = World()
    model = second_life(world)
    first = world.traffic.previous
    model = make(NEW_SERVING, status=model.status, generation=3)
    model = with_status(model, run_until_settled(model, world)[-1][1].status)
    for target in (world.traffic.previous, first):
        asked = {"retrieval-operator.io/rollback": f"{model.status.champion.token}:{target}"}  # type: ignore[union-attr]
        model = make(NEW_SERVING, status=model.status, generation=3, annotations=asked)
        model = with_status(model, run_until_settled(model, world)[-1][1].status)
    assert world.traffic.live is not None and world.traffic.live.stack == first
    assert model.status.candidate is None


def refusals(model: RetrievalModel, world: World, make: Make, changes: dict[str, Any], asked: dict[str, str]) -> Any:
    """Many revisions after it that cannot be trained; the status with what is left of the history."""
    passing, status = world.outcomes, model.status
    world.outcomes = lambda work: Outcome(exit_code=65) if work.step == "train" else passing(work)
    for generation in range(10, 10 + 2 * HISTORY_MAX_ENTRIES):
        newer = changes | {"spec.data.revision": f"night {generation}"}
        again = make(newer, status=status, generation=generation, annotations=asked)
        status = run_until_settled(again, world)[-1][1].status
    return status


@pytest.mark.parametrize("times", [1, 3])
def test_what_was_gone_back_from_is_left_however_many_refusals_follow(
    times: int, make: Make, second_life: Call
) -> None:
    """The manifest asks for it all the while."""
    world = World()
    model = second_life(world)
    for generation, image in enumerate(["server:3", "server:4", "server:5"], start=3):
        unwanted = {"spec.data.revision": "2", "spec.serving.image": image}
        model = make(unwanted, status=model.status, generation=generation)
        model = with_status(model, run_until_settled(model, world)[-1][1].status)
    promoted = [entry.record.stack for entry in model.status.history if entry.record is not None]
    for target in promoted[1 : times + 1]:
        asked = {"retrieval-operator.io/rollback": f"{model.status.champion.token}:{target}"}  # type: ignore[union-attr]
        model = make(unwanted, status=model.status, generation=6, annotations=asked)
        model = with_status(model, run_until_settled(model, world)[-1][1].status)
    assert world.traffic.live is not None
    live = world.traffic.live.stack
    assert live == target
    status = refusals(model, world, make, unwanted, asked)
    assert world.traffic.live.stack == live
    assert len(status.history) == HISTORY_MAX_ENTRIES


def test_a_way_back_that_failed_is_not_tried_again_however_many_refusals_follow(
    make: Make, step: Call, second_life: Call
) -> None:
    world = World()
    model, older = after_the_window(second_life(world), world)
    champion, two = model.status.champion, {"spec.data.revision": "2"}
    asked = {"retrieval-operator.io/rollback": f"{champion.token}:{older}"}  # type: ignore[union-attr]
    model = make(two, status=model.status, annotations=asked)
    while model.status.history[0].kind != "Rollback":
        model, _ = step(model, world)
        if older in world.stacks:
            world.stacks[older] = replace(world.stacks[older], ready_replicas=0, failed="its image cannot be pulled")
    assert model.status.history[0].outcome == "Failed"
    refusals(model, world, make, two, asked)
    assert world.traffic.live is not None and world.traffic.live.stack == champion.stack  # type: ignore[union-attr]


def after_the_window(model: RetrievalModel, world: World) -> tuple[RetrievalModel, str]:
    """The object once its rollback window is over, and the stack that was live before, which is gone."""
    older = world.traffic.previous
    world.tick(10_000)
    model = with_status(model, run_until_settled(model, world)[-1][1].status)
    assert older not in world.stacks
    return model, older


def test_a_rollback_reaches_a_stack_that_was_already_collected(make: Make, second_life: Call) -> None:
    world = World()
    model, older = after_the_window(second_life(world), world)
    asked = {"retrieval-operator.io/rollback": f"{model.status.champion.token}:{older}"}
    asking = make({"spec.data.revision": "2"}, status=model.status, generation=2, annotations=asked)
    final = run_until_settled(asking, world)[-1][1]
    assert world.traffic.live.stack == older  # type: ignore[union-attr]
    assert final.status.candidate is None


def test_a_suspended_object_goes_back_too_even_to_a_stack_whose_servers_are_gone(make: Make, second_life: Call) -> None:
    world = SlowStacks()
    model, older = after_the_window(second_life(world), world)
    asked = {"retrieval-operator.io/rollback": f"{model.status.champion.token}:{older}"}
    changes = {"spec.data.revision": "3", "spec.suspend": True}
    passes = run_until_settled(make(changes, status=model.status, generation=2, annotations=asked), world)
    assert world.traffic.live.stack == older  # type: ignore[union-attr]
    assert {str(Step.DEPLOYING), "Suspended"} <= {plan.status.phase for _, plan in passes}
    assert passes[-1][1].status.phase == "Suspended", "and nothing of revision 3 begins"


def test_the_former_stack_is_collected_after_the_window_and_not_before(step: Call, second_life: Call) -> None:
    world = World()
    model = second_life(world)
    former = world.traffic.previous
    world.tick(3000)
    model, _ = step(model, world)
    assert former in world.stacks
    world.tick(3600)
    model, _ = step(model, world)
    assert former not in world.stacks


class SlowStacks(World):
    """A world in which a server needs some passes until it is ready."""

    def tick(self, seconds: int = 1) -> None:
        super().tick(seconds)
        for stack, found in self.stacks.items():
            if self.now - found.created_at < 6:
                self.stacks[stack] = replace(found, ready_replicas=0)


def test_the_former_stack_outlives_the_connections_that_its_own_servers_allow(make: Make, second_life: Call) -> None:
    """Its clients were promised ten minutes when they connected, whatever the manifest says by now."""
    world = World()
    model = second_life(world)
    former = world.traffic.previous
    stack = world.stacks[former]
    record = stack.record.model_copy(update={"serving": {"connectionAgeSeconds": 600}})
    world.stacks[former] = replace(stack, record=record)
    for age in (20, 900):
        changes = {
            "spec.data.revision": "2",
            "spec.rollback.windowSeconds": 0,
            "spec.serving.connectionAgeSeconds": age,
        }
        edited = make(changes, status=model.status, generation=3)
        for seconds, is_removed in ((30, False), (599, False), (601, True)):
            plan = decide(edited, world.observe(), world.traffic.switched_at + seconds)
            assert (DeleteStack(stack=former) in plan.actions) is is_removed, (age, seconds)
            if not is_removed:
                assert plan.requeue_after_s is not None and plan.requeue_after_s <= 600 - seconds


def test_a_rollback_to_a_collected_stack_waits_for_its_server(make: Make, second_life: Call) -> None:
    world = SlowStacks()
    model, older = after_the_window(second_life(world), world)
    asked = {"retrieval-operator.io/rollback": f"{model.status.champion.token}:{older}"}
    created = len(world.created)
    asking = make({"spec.data.revision": "2"}, status=model.status, generation=2, annotations=asked)
    run_until_settled(asking, world)
    assert world.traffic.live.stack == older
    assert world.created[created:] == [f"stack {older}", f"switch to {older}"]


@pytest.mark.parametrize("at", [Step.DEPLOYING, Step.VERIFYING])
def test_an_annotation_cannot_promote_a_stack_that_was_never_live(
    make: Make, at: Step, step: Call, live: Call, until: Call
) -> None:
    world = SlowStacks()
    status = live(world)
    second = {"spec.data.revision": "2"}
    model = until(make(second, status=status, generation=2), world, at)
    dark = model.status.candidate.stack
    asked = {"retrieval-operator.io/rollback": f"{status.champion.token}:{dark}"}
    step(make(second, status=model.status, generation=2, annotations=asked), world)
    assert world.traffic.live.stack == status.champion.stack
