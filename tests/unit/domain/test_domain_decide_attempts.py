"""Attempts at a piece of work, retries that people ask for, and clocks that go wrong meanwhile."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest

from retrieval_operator.api.objects import RetrievalModel
from retrieval_operator.api.status import Step
from retrieval_operator.domain.decide import decide
from retrieval_operator.domain.simulate import (
    Outcome,
    World,
    all_pass,
    passing_report,
    run_until_settled,
)
from retrieval_operator.domain.workloads import WorkloadSpec

Make = Callable[..., RetrievalModel]
Call = Callable[..., Any]  # a fixture of conftest.py


def test_a_retry_gives_a_failed_training_fresh_attempts_once(make: Make) -> None:
    def crashes(workload: WorkloadSpec) -> Outcome:
        dies = workload.step == "train" and workload.attempt <= 3
        return Outcome(exit_code=1, message="killed") if dies else all_pass(workload)

    world = World(outcomes=crashes)
    status = run_until_settled(make(), world)[-1][1].status
    assert (status.history[0].outcome, status.history[0].reason) == ("Failed", "TrainingFailed")
    assert len(world.specs) == 3

    retried = make(status=status, annotations={"retrieval-operator.io/retry": "please"})
    final = run_until_settled(retried, world)[-1][1]
    assert final.status.phase == "Live"
    assert [name for name in world.specs if "-train-" in name][-1].endswith("-train-4")


def test_a_retry_left_on_the_object_does_nothing_after_the_status_is_wiped(make: Make) -> None:
    world = World(outcomes=lambda _: Outcome(exit_code=1))
    retry = {"retrieval-operator.io/retry": "please"}
    status = run_until_settled(make(), world)[-1][1].status
    run_until_settled(make(status=status, annotations=retry), world)
    attempts = len(world.specs)
    run_until_settled(make(annotations=retry), world)
    assert len(world.specs) == attempts


@pytest.mark.parametrize(
    ("code", "attempts", "reason"),
    [
        (65, 1, "BadInput"),
        (69, 1, "Diverged"),
        (2, 1, "TrainingFailed"),
        (1, 3, "TrainingFailed"),
        (75, 3, "TrainingFailed"),
    ],
)
def test_exit_codes_decide_whether_another_attempt_makes_sense(
    make: Make, code: int, attempts: int, reason: str
) -> None:
    world = World(outcomes=lambda _: Outcome(exit_code=code, message="the column item_id is missing"))
    final = run_until_settled(make(), world)[-1][1]
    assert len(world.specs) == attempts
    assert final.status.history[0].reason == reason
    assert "the column item_id is missing" in final.status.history[0].message


def test_what_a_program_said_goes_before_the_exit_code_of_its_launcher(make: Make) -> None:
    """torchrun ends with 1 whatever its workers ended with."""
    world = World(outcomes=lambda _: Outcome(exit_code=1, reason="BadInput", message="the column item_id is missing"))
    final = run_until_settled(make(), world)[-1][1]
    assert len(world.specs) == 1
    assert final.status.history[0].reason == "BadInput"


def test_attempts_wait_longer_each_time(make: Make) -> None:
    world = World(outcomes=lambda _: Outcome(exit_code=1))
    run_until_settled(make({"spec.promotion.failureLimit": 5}), world)
    starts = [workload.started_at for workload in world.workloads.values()]
    gaps = [later - earlier for earlier, later in itertools.pairwise(starts)]
    assert gaps == sorted(gaps)
    assert gaps[-1] >= 80


def test_a_program_that_ends_well_without_a_report_is_started_again(make: Make) -> None:
    def silent(workload: WorkloadSpec) -> Outcome:
        return Outcome() if workload.attempt == 1 and workload.step == "train" else all_pass(workload)

    world = World(outcomes=silent)
    assert run_until_settled(make(), world)[-1][1].status.phase == "Live"
    assert sum("-train-" in name for name in world.specs) == 2


def test_the_registry_away_for_longer_than_the_progress_deadline_does_not_fail_the_candidate(
    make: Make, step: Call, until: Call
) -> None:
    world = World()
    model = until(make(), world, Step.INDEXING_SERVING)
    world.registry_is_up = False
    for _ in range(4):
        model, _ = step(model, world, seconds=3000)
    world.registry_is_up = True
    assert run_until_settled(model, world)[-1][1].status.phase == "Live"


def test_a_verification_that_failed_once_does_not_take_the_rollback_window_away(make: Make) -> None:
    fails = True

    def outcome(workload: WorkloadSpec) -> Outcome:
        report = passing_report(workload)
        return Outcome(report=report | {"matched": 40} if report.get("kind") == "verification" and fails else report)

    world = World(outcomes=outcome)
    status = run_until_settled(make(), world)[-1][1].status
    fails = False
    retried = make(status=status, annotations={"retrieval-operator.io/retry": "once more"})
    status = run_until_settled(retried, world)[-1][1].status
    first = world.traffic.live.stack
    run_until_settled(make({"spec.data.revision": "2"}, status=status, generation=2), world)
    assert first in world.stacks


def test_a_night_without_a_control_plane_does_not_fail_the_candidate(make: Make, until: Call) -> None:
    world = World()
    model = until(make(), world, Step.INDEXING_SERVING)
    world.now += 50_000
    assert run_until_settled(model, world)[-1][1].status.phase == "Live"


def test_a_retry_lifts_a_refusal_that_only_the_registry_remembers(make: Make) -> None:
    fails = True

    def outcome(workload: WorkloadSpec) -> Outcome:
        return Outcome(exit_code=65) if fails else all_pass(workload)

    world = World(outcomes=outcome)
    run_until_settled(make(), world)
    run_until_settled(make(), world)  # deleted and applied again: no status
    fails = False
    retried = make(annotations={"retrieval-operator.io/retry": "mended"})
    assert run_until_settled(retried, world)[-1][1].status.phase == "Live"


def test_a_clock_that_was_ahead_does_not_hold_up_the_next_attempt(make: Make, step: Call) -> None:
    world = World(outcomes=lambda _: Outcome(exit_code=1), now=5_000_000)
    model = make()
    for _ in range(3):
        model, _ = step(model, world)
    world.now -= 2_592_000
    plan = decide(model, world.observe(), world.now)
    assert plan.requeue_after_s is not None and plan.requeue_after_s <= 600
