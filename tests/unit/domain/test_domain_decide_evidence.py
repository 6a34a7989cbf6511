"""Evidence that is about something else, or says that something is wrong, promotes nothing; a retry measures anew."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from retrieval_operator.api.objects import RetrievalModel
from retrieval_operator.api.status import RetrievalModelStatus, Step
from retrieval_operator.domain.simulate import (
    Outcome,
    World,
    all_pass,
    passing_report,
    run_until_settled,
    with_status,
)
from retrieval_operator.domain.workloads import WorkloadSpec

Make = Callable[..., RetrievalModel]
Call = Callable[..., Any]  # a fixture of conftest.py


def test_evidence_about_other_bundles_is_not_evidence(make: Make) -> None:
    def mixed_up(workload: WorkloadSpec) -> Outcome:
        report = passing_report(workload)
        if "candidate" in report:
            report["candidate"] = {"bundleId": "b-ffffffffffffffff", "generationId": "g-ffffffffffffffff"}
        return Outcome(report=report)

    world = World(outcomes=mixed_up)
    final = run_until_settled(make(), world)[-1][1]
    assert world.traffic.live is None
    assert final.status.history[0].outcome == "Inconclusive"


def test_a_dark_stack_that_answers_wrongly_is_refused_and_removed(make: Make) -> None:
    def wrong(workload: WorkloadSpec) -> Outcome:
        report = passing_report(workload)
        return Outcome(report=report | {"matched": 40} if report.get("kind") == "verification" else report)

    world = World(outcomes=wrong)
    final = run_until_settled(make(), world)[-1][1]
    assert final.status.history[0].reason == "VerificationFailed"
    assert world.stacks == {}
    assert world.traffic.live is None


@pytest.mark.parametrize(
    ("step_name", "lie"),
    [
        ("idxeval", {"kind": "serving"}),
        ("eval", {"asOf": 2}),
        ("eval", {"candidate": {"generationId": "g-ffffffffffffffff"}}),
    ],
)
def test_evidence_of_another_kind_generation_or_time_is_no_evidence(
    make: Make, step_name: str, lie: dict[str, Any]
) -> None:
    def outcome(workload: WorkloadSpec) -> Outcome:
        report = passing_report(workload)
        if workload.step == step_name:
            told = lie if "candidate" not in lie else {"candidate": report["candidate"] | lie["candidate"]}
            report |= told
        return Outcome(report=report)

    assert run_until_settled(make(), World(outcomes=outcome))[-1][1].status.champion is None


@pytest.mark.parametrize(
    ("recorded", "reported", "outcome"),
    [
        pytest.param(1000, True, "Promoted", id="by its record"),
        pytest.param(1000, False, "Promoted", id="by its record, whatever became of the run"),
        pytest.param(None, True, "Promoted", id="an older record: by its report"),
        pytest.param(None, False, "Inconclusive", id="not known at all"),
    ],
)
def test_a_refresh_is_compared_with_the_champions_size_or_not_promoted(
    make: Make, live: Call, recorded: int | None, reported: bool, outcome: str
) -> None:
    world = World()
    status = live(world)
    former = world.traffic.live.model_copy(update={"items": recorded})  # type: ignore[union-attr]
    world.traffic = replace(world.traffic, live=former)
    world.stacks[former.stack] = replace(world.stacks[former.stack], record=former)
    if not reported:
        world.runs["index:deleted"] = world.runs.pop(f"index:{former.generation_key}")
    refreshed = make({"spec.index.refresh": {"revision": "monday"}}, status=status, generation=2)
    final = run_until_settled(refreshed, world)[-1][1].status
    assert final.history[0].outcome == outcome, final.history[0].message
    if outcome == "Inconclusive":
        assert f"restore its run (index {former.generation_key})" in final.history[0].message


def evaluations(world: World) -> list[WorkloadSpec]:
    return [spec for spec in world.specs.values() if spec.step == "eval"]


def test_a_retry_of_an_inconclusive_candidate_measures_anew_and_once(
    make: Make, live: Call, undecided: Any, condition: Call
) -> None:
    """The same report again would only say the same; whoever asks has mended something outside the manifest."""
    world = World(outcomes=undecided)
    status = live(world)
    second = {"spec.data.revision": "2"}
    status = run_until_settled(make(second, status=status, generation=2), world)[-1][1].status
    assert status.history[0].outcome == "Inconclusive"
    before = evaluations(world)

    world.outcomes = all_pass
    retry = {"retrieval-operator.io/retry": "more memory"}
    status = run_until_settled(make(second, status=status, annotations=retry, generation=2), world)[-1][1].status

    assert status.history[0].outcome == "Promoted"
    (again,) = evaluations(world)[len(before) :]
    assert again.key not in {spec.key for spec in before}
    assert "--cache" not in again.arguments
    assert "--cache" in before[-1].arguments
    run_until_settled(make(second, annotations=retry, generation=2), world)  # a wiped status
    assert len(evaluations(world)) == len(before) + 1


def test_a_retry_while_the_candidate_is_on_its_way_does_not_send_it_back(make: Make, until: Call) -> None:
    world = World()
    model = until(make(), world, Step.DEPLOYING)
    retry = {"retrieval-operator.io/retry": "hurry"}
    assert run_until_settled(make(status=model.status, annotations=retry), world)[-1][1].status.phase == "Live"
    assert len(evaluations(world)) == 1


@pytest.mark.parametrize("wiped_after", range(0, 12, 3))
def test_a_retried_candidate_keeps_to_its_new_evaluation_when_the_status_is_wiped(
    make: Make, live: Call, step: Call, undecided: Any, wiped_after: int
) -> None:
    world = World(outcomes=undecided)
    status = live(world)
    second = {"spec.data.revision": "2"}
    status = run_until_settled(make(second, status=status, generation=2), world)[-1][1].status
    before, world.outcomes = len(evaluations(world)), all_pass
    retry = {"retrieval-operator.io/retry": "more memory"}
    model = make(second, status=status, annotations=retry, generation=2)
    for _ in range(1 + wiped_after):
        model, _ = step(model, world)
    final = run_until_settled(with_status(model, RetrievalModelStatus()), world)[-1][1].status
    assert final.champion is not None and final.champion.revision != status.champion.revision
    assert len(evaluations(world)) == before + 1
