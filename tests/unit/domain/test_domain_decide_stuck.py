"""What does not go on by itself comes to an end and says why; what only waits is neither blamed nor forgotten."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from retrieval_operator.api.conditions import ConditionType
from retrieval_operator.api.objects import RetrievalModel
from retrieval_operator.api.status import Step
from retrieval_operator.domain.decide import decide
from retrieval_operator.domain.observed import Observed, Problem
from retrieval_operator.domain.plan import Plan, StartWorkload, StopWorkload
from retrieval_operator.domain.simulate import Outcome, World, run_until_settled, with_status

Make = Callable[..., RetrievalModel]
Call = Callable[..., Any]  # a fixture of conftest.py

REFUSED = Problem(
    dependency="request", message="StartWorkload was refused: exceeded quota: count/jobs.batch=5", holds_back=False
)


class WithoutWork(World):
    """A world that starts no work of one step: its API server refuses it."""

    refuses = "train"

    def observe(self) -> Observed:
        return replace(super().observe(), problems=(REFUSED,))

    def apply(self, action: Any) -> None:
        if not (isinstance(action, StartWorkload) and action.workload.step == self.refuses):
            super().apply(action)


def decided(model: RetrievalModel, world: World) -> tuple[RetrievalModel, Plan]:
    """A pass in which nothing that runs comes to its end; its actions are still to be performed."""
    plan = decide(model, world.observe(), world.now)
    return with_status(model, plan.status), plan


def test_a_training_that_cannot_be_started_ends_with_the_words_of_the_refusal(make: Make, step: Call) -> None:
    world, model = WithoutWork(), make()
    began = world.now
    while not model.status.history:
        model, _ = step(model, world, seconds=60)
    waited = world.now - began
    limit = model.spec.promotion.progress_deadline_seconds
    assert limit < waited < limit + 600
    assert model.status.history[0].reason == "ProgressDeadlineExceeded"
    assert "-train-1 is starting; StartWorkload was refused: exceeded quota" in model.status.history[0].message
    assert model.status.phase == "Stalled"


def test_a_training_that_runs_may_take_days_and_its_next_attempt_has_its_own_time(make: Make, step: Call) -> None:
    """Its second attempt is refused for a while: the days of the first are not held against it."""
    world, model = WithoutWork(), make()
    world.refuses = "none"
    world.outcomes = lambda _: Outcome(exit_code=1)
    while not world.workloads:
        model, plan = decided(model, world)
        for action in plan.actions:
            world.apply(action)
    for _ in range(48):
        world.now += 3600
        model, _ = decided(model, world)
    assert model.status.candidate is not None and model.status.candidate.step is Step.TRAINING
    world.tick()  # it fails
    world.refuses = "train"
    for _ in range(10):
        model, _ = step(model, world, seconds=60)
    assert model.status.candidate is not None and not model.status.history


def test_a_registry_that_goes_away_now_and_then_does_not_move_a_candidate_nor_renew_its_time(
    make: Make, until: Call, step: Call, condition: Call
) -> None:
    world = World()
    model = until(make(), world, Step.DEPLOYING)
    began = world.now
    events = len(world.events)
    while not model.status.history and world.now < began + 100_000:
        for name, stack in world.stacks.items():
            world.stacks[name] = replace(stack, ready_replicas=0)
        world.registry_is_up = (world.now // 60) % 30 != 0
        model, plan = decided(model, world)
        for action in plan.actions:
            world.apply(action)
        if model.status.candidate is not None:
            assert model.status.candidate.step is Step.DEPLOYING
            assert condition(model.status, ConditionType.TRAINING_SUCCEEDED)[0] == "True"
            assert len(world.events) == events, "no step was left or reached"
        world.now += 60
    assert model.status.history[0].reason == "ProgressDeadlineExceeded"
    away = 60 * ((world.now - began) // 1800 + 1)
    assert world.now - began < model.spec.promotion.progress_deadline_seconds + away + 300


@pytest.mark.parametrize("change", ["an outage", "a retry"])
def test_the_grace_of_an_overdue_step_does_not_run_while_nothing_could_be_done(
    make: Make, until: Call, change: str
) -> None:
    world = World()
    model = until(make(), world, Step.DEPLOYING)

    def pass_at(model: RetrievalModel, seconds: int, **metadata: Any) -> RetrievalModel:
        world.now = began + limit + seconds
        for name, stack in world.stacks.items():
            world.stacks[name] = replace(stack, ready_replicas=0)
        model, plan = decided(make(status=model.status, **metadata), world)
        for action in plan.actions:
            world.apply(action)
        return model

    began, limit = world.now, model.spec.promotion.progress_deadline_seconds
    model = pass_at(model, -limit)
    model = pass_at(model, 60)
    assert model.status.candidate is not None and model.status.candidate.overdue_since is not None
    if change == "an outage":
        world.registry_is_up = False
        for seconds in (70, 400, 1000):
            model = pass_at(model, seconds)
        world.registry_is_up = True
        model = pass_at(model, 1010)
        model = pass_at(model, 1015)
        assert model.status.candidate is not None, "ten seconds of its grace are over, not a quarter of an hour"
        model = pass_at(model, 1130)
        assert model.status.candidate is None
    else:
        model = pass_at(model, 70, annotations={"retrieval-operator.io/retry": "again"})
        model = pass_at(model, 70 + limit, annotations={"retrieval-operator.io/retry": "again"})
        model = pass_at(model, 75 + limit, annotations={"retrieval-operator.io/retry": "again"})
        assert model.status.candidate is not None, "its time began anew, and so does its grace"


def test_a_control_plane_that_was_down_twice_fails_nobody_for_it(make: Make, until: Call, step: Call) -> None:
    """One look between two long absences is not the grace that a stuck step has."""
    world = World()
    model = until(make(), world, Step.DEPLOYING)
    for _ in range(3):
        world.now += 4000
        world.stacks = {name: replace(stack, ready_replicas=0) for name, stack in world.stacks.items()}
        model, _ = decided(model, world)
        assert model.status.candidate is not None and not model.status.history
    for _ in range(10):
        world.now += 15
        model, _ = decided(model, world)
    assert model.status.history[0].reason == "ProgressDeadlineExceeded"


def test_an_attempt_that_outlives_its_deadline_is_stopped(make: Make) -> None:
    world, model = World(), make()
    while not world.workloads:
        model, plan = decided(model, world)
        for action in plan.actions:
            world.apply(action)
    [(name, running)] = world.workloads.items()
    assert running.state == "Running"
    assert StopWorkload(name=name) not in decided(model, world)[1].actions
    world.workloads[name] = replace(running, overdue=True)
    assert StopWorkload(name=name) in decided(model, world)[1].actions


def test_an_attempt_at_another_step_is_no_training_that_may_take_days(make: Make, until: Call, step: Call) -> None:
    """The claim was replaced: the training is due again, and its next attempt is refused."""
    world = WithoutWork()
    world.refuses = "none"
    model = until(make(), world, Step.EVALUATING)
    world.runs = {}
    world.workloads = {name: one for name, one in world.workloads.items() if one.step != "train"}
    world.refuses, began = "train", world.now
    while not model.status.history and world.now < began + 100_000:
        model, _ = step(model, world, seconds=60)
    assert model.status.history and model.status.history[0].reason == "ProgressDeadlineExceeded"


def test_attempts_are_counted_up_to_a_limit_beyond_those_that_are_kept(make: Make, step: Call) -> None:
    world = World(outcomes=lambda _: Outcome(exit_code=75))
    model = make({"spec.promotion.failureLimit": 60})
    while not model.status.history:
        assert len(world.specs) <= 60
        model, _ = step(model, world, seconds=600)
    assert len(world.specs) == 60
    assert model.status.history[0].outcome == "Failed"
    step(model, world)
    assert len(world.workloads) == 40, "those of a candidate that has ended are not counted any more"


def test_a_suspended_candidate_does_not_say_that_it_runs(make: Make, step: Call, condition: Call) -> None:
    world, model = World(), make()
    for _ in range(3):
        model, _ = step(model, world, seconds=0)
    suspended = make({"spec.suspend": True}, status=model.status, generation=2)
    suspended, _ = step(suspended, world)
    suspended, _ = step(suspended, world)
    assert suspended.status.candidate is not None
    assert suspended.status.candidate.message == "suspended: no new work is started"
    assert condition(suspended.status, ConditionType.RECONCILING) == ("absent", "")
    assert not any("is running" in said.message for said in suspended.status.conditions)


@pytest.mark.parametrize("retried", [False, True])
def test_a_way_back_that_cannot_be_made_ready_ends_and_lets_other_work_begin(
    retried: bool, make: Make, second_life: Call, condition: Call
) -> None:
    """Its stack was collected, and what is made of it again fails at once."""
    world = World()
    model = second_life(world)
    second, first = model.status.champion, world.traffic.previous
    world.tick(100_000)
    model = with_status(model, run_until_settled(model, world)[-1][1].status)
    assert first not in world.stacks
    asked = {"retrieval-operator.io/rollback": f"{second.token}:{first}"}

    def settle(model: RetrievalModel) -> RetrievalModel:
        for _ in range(60):
            model, plan = decided(model, world)
            for action in plan.actions:
                world.apply(action)
            if first in world.stacks:
                world.stacks[first] = replace(world.stacks[first], ready_replicas=0, failed="it exits with code 65")
            world.tick()
        return model

    changes = {"spec.data.revision": "2"}
    model = settle(make(changes, status=model.status, generation=3, annotations=asked))
    assert world.created.count(f"stack {first}") == 2, "once in its life, once to go back to"
    assert (model.status.history[0].kind, model.status.history[0].outcome) == ("Rollback", "Failed")
    assert condition(model.status, ConditionType.STALLED)[0] == "True"
    if retried:
        asked |= {"retrieval-operator.io/retry": "once more"}
        model = settle(make(changes, status=model.status, generation=3, annotations=asked))
        assert world.created.count(f"stack {first}") == 3
    model = settle(make({"spec.data.revision": "3"}, status=model.status, generation=4, annotations=asked))
    assert world.traffic.live is not None and world.traffic.live.stack not in (first, second.stack)
    assert condition(model.status, ConditionType.PROMOTED)[0] == "True"
