"""Schedules take each slot once; suspension stops new work and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from retrieval_operator.api.conditions import ConditionType
from retrieval_operator.api.objects import RetrievalModel
from retrieval_operator.api.status import CandidateKind, RetrievalModelStatus, Step
from retrieval_operator.domain.decide import decide
from retrieval_operator.domain.observed import Problem
from retrieval_operator.domain.simulate import (
    World,
    run_until_settled,
    with_status,
)

Make = Callable[..., RetrievalModel]
Call = Callable[..., Any]  # a fixture of conftest.py


def test_a_schedule_takes_each_slot_once_and_skips_what_it_slept_through(make: Make) -> None:
    world = World(now=1_700_000_000)
    hourly = {"spec.data.schedule": "0 * * * *", "metadata.creationTimestamp": 1_700_000_000}
    model = make(hourly)
    model = with_status(model, run_until_settled(model, world)[-1][1].status)
    first = sum("-train-" in name for name in world.specs)
    world.tick(3600)
    model = with_status(model, run_until_settled(model, world)[-1][1].status)
    assert sum("-train-" in name for name in world.specs) == first + 1
    assert model.status.champion.slot == "2023-11-14T23:00:00Z"  # type: ignore[union-attr]
    world.tick(10 * 3600)
    run_until_settled(model, world)
    assert sum("-train-" in name for name in world.specs) == first + 2


def test_each_scheduled_training_is_measured_over_the_data_of_its_own_time(make: Make) -> None:
    """The files behind data.uri are others by then, and a finished index of former ones cannot be built upon."""
    world = World(now=1_700_000_000)
    hourly = {"spec.data.schedule": "0 * * * *", "metadata.creationTimestamp": 1_700_000_000}
    model = make(hourly)
    for _ in range(3):
        model = with_status(model, run_until_settled(model, world)[-1][1].status)
        world.tick(3600)
    evaluated = [spec for spec in world.specs.values() if spec.step in ("idxeval", "idxchamp")]
    outs = [spec.arguments[spec.arguments.index("--out") + 1] for spec in evaluated]
    assert [spec.step for spec in evaluated] == ["idxeval", *["idxeval", "idxchamp"] * 2]
    assert len(set(outs)) == len(outs), "nothing is built where another one is finished"


@pytest.mark.parametrize(
    ("schedule", "kind"),
    [("spec.data.schedule", CandidateKind.REVISION), ("spec.index.refresh.schedule", CandidateKind.REFRESH)],
)
def test_a_settled_object_wakes_itself_at_its_next_slot(
    make: Make, step: Call, schedule: str, kind: CandidateKind
) -> None:
    """Nothing else does: no event comes with a slot, and a pass only comes when the pass before asked for it."""
    slot = 1_700_013_600  # 03:00 in Berlin; it is 23:13:20 there
    world = World(now=1_700_000_000)
    asked = {schedule: "0 3 * * *", "spec.data.timeZone": "Europe/Berlin", "metadata.creationTimestamp": world.now}
    model = make(asked)
    model = with_status(model, run_until_settled(model, world)[-1][1].status)
    while True:
        model, plan = step(model, world, seconds=0)
        if model.status.candidate is not None:
            break
        assert world.now < slot and plan.requeue_after_s is not None, "nobody would ever look again"
        world.tick(round(plan.requeue_after_s))
    assert (model.status.candidate.kind, world.now) == (kind, slot)


def test_a_wiped_status_does_not_take_up_an_old_slot(make: Make) -> None:
    world = World(now=1_700_000_000)
    hourly = {"spec.data.schedule": "0 * * * *", "metadata.creationTimestamp": 1_700_000_000 - 7200}
    model = make(hourly)
    run_until_settled(model, world)
    before = list(world.created)
    run_until_settled(with_status(model, RetrievalModelStatus()), world)
    assert world.created == before


def test_suspend_stops_a_training_and_resuming_goes_on_with_the_next_attempt(
    make: Make, step: Call, condition: Call
) -> None:
    world = World()
    model = make()
    for _ in range(2):
        plan = decide(model, world.observe(), world.now)
        for action in plan.actions:
            world.apply(action)
        model = with_status(model, plan.status)
    suspended = make({"spec.suspend": True}, status=model.status, generation=2)
    model, plan = step(suspended, world)
    assert [workload.reason for workload in world.workloads.values()] == ["Stopped"]
    assert condition(plan.status, ConditionType.SUSPENDED)[0] == "True"
    said = next(one for one in plan.status.conditions if one.type is ConditionType.SUSPENDED)
    assert said.message == "spec.suspend is true: no new work is started", "nothing serves yet"
    resumed = make(status=model.status, generation=3)
    assert run_until_settled(resumed, world)[-1][1].status.phase == "Live"
    assert sorted(name.split("-train-")[1] for name in world.specs if "-train-" in name) == ["1", "2"]


def test_suspension_for_longer_than_the_progress_deadline_does_not_fail_the_candidate(
    make: Make, step: Call, until: Call
) -> None:
    world = World()
    model = until(make(), world, Step.EVALUATING)
    suspended = make({"spec.suspend": True}, status=model.status, generation=2)
    suspended, _ = step(suspended, world)
    world.tick(10_000)
    suspended, _ = step(suspended, world)
    assert run_until_settled(make(status=suspended.status, generation=3), world)[-1][1].status.phase == "Live"


def test_a_scheduled_training_goes_on_when_the_status_is_wiped_after_its_starting_deadline(make: Make) -> None:
    world = World(now=1_700_000_000)
    hourly = {"spec.data.schedule": "0 0 * * *", "metadata.creationTimestamp": 1_700_000_000}
    model = make(hourly)
    model = with_status(model, run_until_settled(model, world)[-1][1].status)
    world.now += 24 * 3600
    for _ in range(2):  # the slot is taken and its training runs
        plan = decide(model, world.observe(), world.now)
        for action in plan.actions:
            world.apply(action)
        model = with_status(model, plan.status)
    running = [name for name, workload in world.workloads.items() if workload.state == "Running"]
    world.now += 2 * 3600
    plan = decide(with_status(model, RetrievalModelStatus()), world.observe(), world.now)
    assert plan.status.candidate is not None
    assert [workload.name for workload in world.workloads.values() if workload.state == "Running"] == running
    assert not any(type(action).__name__ == "StopWorkload" for action in plan.actions)


@pytest.mark.parametrize(
    "trouble",
    [
        {"registry": None},
        {"problems": (Problem(dependency="storage", message="the claim is missing"),)},
    ],
    ids=["MLflow is away", "a claim is missing"],
)
def test_a_settled_object_in_trouble_looks_whether_that_is_over(make: Make, trouble: dict[str, Any]) -> None:
    """Nothing tells of MLflow or of a claim: what waits for them, and the condition, would stay as it is for good."""
    world, model = World(), make()
    model = with_status(model, run_until_settled(model, world)[-1][1].status)
    world.now = world.traffic.switched_at + 10_000
    assert decide(model, world.observe(), world.now).requeue_after_s is None
    plan = decide(model, replace(world.observe(), **trouble), world.now)
    assert plan.requeue_after_s is not None and plan.requeue_after_s <= 60


def test_work_of_a_schedule_is_that_of_a_schedule_also_when_it_begins_late(make: Make, condition: Call) -> None:
    """The pass that takes the slot up cannot begin, as MLflow is away; nobody has edited anything."""
    world = World(now=1_700_000_000)
    model = make({"spec.data.schedule": "0 * * * *", "metadata.creationTimestamp": world.now})
    model = with_status(model, run_until_settled(model, world)[-1][1].status)
    world.tick(3600)
    late = decide(model, replace(world.observe(), registry=None), world.now)
    assert late.status.training_slot > model.status.training_slot and late.status.candidate is None
    model = with_status(model, late.status)
    world.tick(60)
    plan = decide(model, world.observe(), world.now)
    assert plan.status.candidate is not None and plan.status.candidate.scheduled
    assert condition(plan.status, ConditionType.PROGRESSING)[0] == "True"
    assert condition(plan.status, ConditionType.RECONCILING)[0] == "absent"
    assert condition(plan.status, ConditionType.PROMOTED)[0] == "True"
