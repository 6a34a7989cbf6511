"""Trainings and refreshes that find little new: one bundle of several revisions, one stack under several keys."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from retrieval_operator.api.objects import RetrievalModel
from retrieval_operator.api.status import RetrievalModelStatus
from retrieval_operator.domain.plan import CreateStack
from retrieval_operator.domain.simulate import Outcome, World, passing_report, run_until_settled, with_status
from retrieval_operator.domain.workloads import WorkloadSpec

Make = Callable[..., RetrievalModel]
Call = Callable[..., Any]  # a fixture of conftest.py


def same_bundle(workload: WorkloadSpec) -> Outcome:
    """Two trainings that give the same bytes, as a seeded one does."""
    report, bundle = passing_report(workload), "b-1111111111111111"
    if workload.step == "train":
        report["id"] = bundle
    if "bundleId" in report and "count" not in report:
        report["bundleId"] = bundle
    for who in ("candidate", "champion"):
        if report.get(who):
            report[who]["bundleId"] = bundle
    return Outcome(report=report)


ONE_GENERATION = {"index": {"id": "g-2222222222222222"}, "verify": {"generationId": "g-2222222222222222"}}


def same_generation(workload: WorkloadSpec) -> Outcome:
    """The serving index is the same content each time, as over unchanged data."""
    return Outcome(report=passing_report(workload) | ONE_GENERATION.get(workload.step, {}))


def nothing_new(workload: WorkloadSpec) -> Outcome:
    """Two trainings over the same data: the same bundle, and the same index."""
    return Outcome(report=dict(same_bundle(workload).report) | ONE_GENERATION.get(workload.step, {}))


def same_serving_index(workload: WorkloadSpec) -> Outcome:
    """Each bundle has one serving index, whenever it is built."""
    report = passing_report(workload)
    if workload.step == "index":
        report["id"] = f"g-{report['bundleId'][2:]}"
    if workload.step == "verify":
        report["generationId"] = f"g-{report['bundleId'][2:]}"
    return Outcome(report=report)


@pytest.mark.parametrize(
    "manifest",
    [
        pytest.param({"spec.model": {"bundleUri": "/bundles/good/bundle"}}, id="imported"),
        pytest.param({}, id="trained, and what is new are items that nobody engaged with"),
    ],
)
def test_the_same_bundle_gets_another_index_with_other_data(make: Make, manifest: dict[str, Any]) -> None:
    """Its id stays, so nothing but the revision tells the indexes apart."""
    world = World(outcomes=same_bundle)
    status = run_until_settled(make(manifest), world)[-1][1].status
    first = status.champion
    newer = manifest | {"spec.data.uri": "/data/two", "spec.data.revision": "2"}
    model = with_status(make(newer, generation=2), status)
    final = run_until_settled(model, world)[-1][1].status
    assert first is not None and final.champion is not None
    assert final.champion.bundle_id == first.bundle_id
    assert (final.champion.data_uri, final.history[0].outcome) == ("/data/two", "Promoted")
    assert final.champion.generation_key != first.generation_key
    built = [spec.arguments for spec in world.specs.values() if spec.step == "index"]
    assert ["/data/two" in arguments for arguments in built] == [False, True]
    before = list(world.created)
    run_until_settled(with_status(model, final), world)
    assert world.created == before


def test_a_refused_import_over_other_data_does_not_serve_as_a_refresh(make: Make) -> None:
    def refused(workload: WorkloadSpec) -> Outcome:
        report = dict(same_bundle(workload).report)
        if report.get("champion"):
            report["gates"] = [gate | {"value": 0.1, "valueLower": 0.1, "valueUpper": 0.1} for gate in report["gates"]]
        return Outcome(report=report)

    world = World(outcomes=same_bundle)
    imported = {"spec.model": {"bundleUri": "/bundles/good/bundle"}}
    status = run_until_settled(make(imported), world)[-1][1].status
    world.outcomes = refused
    newer = make(imported | {"spec.data.revision": "2"}, status=status, generation=2)
    final = run_until_settled(newer, world)[-1][1].status
    assert final.history[0].outcome == "Rejected"
    assert [spec.step for spec in world.specs.values()].count("index") == 1


def test_a_retraining_that_gives_the_same_bundle_and_index_ends_and_is_not_done_again(make: Make, live: Call) -> None:
    world = World(outcomes=nothing_new)
    status = live(world)
    switched_at = world.traffic.switched_at
    again = make(status=status, annotations={"retrieval-operator.io/retrain": "1"})
    final = run_until_settled(again, world)[-1][1].status
    assert world.traffic.switched_at == switched_at, "no client noticed"
    assert final.champion.revision != status.champion.revision
    assert (final.history[0].outcome, final.phase) == ("Promoted", "Live")
    before = list(world.created)
    run_until_settled(make(annotations={"retrieval-operator.io/retrain": "1"}), world)  # status wiped
    assert world.created == before


def test_a_refresh_that_gives_the_same_index_ends_as_promoted(make: Make, live: Call) -> None:
    world = World(outcomes=same_generation)
    status = live(world)
    switched_at = world.traffic.switched_at
    asks = make({"spec.index.refresh.revision": "monday"}, status=status, generation=2)
    final = run_until_settled(asks, world)[-1][1].status
    kinds = [(entry.kind, entry.outcome) for entry in final.history]
    assert kinds == [("Refresh", "Promoted"), ("Revision", "Promoted")]
    assert (final.phase, final.candidate) == ("Live", None)
    assert world.traffic.switched_at == switched_at, "the stack is the same one, and no client noticed"
    assert final.champion is not None and final.champion.generation_key == final.history[0].id


def test_refreshes_of_unchanged_data_push_no_former_stack_out_of_the_history(make: Make, second_life: Call) -> None:
    """However many nights bring nothing new, there is a way back, and the files for it."""
    world = World(outcomes=same_serving_index)
    model = second_life(world)
    champion, former = model.status.champion, world.stacks[world.traffic.previous].record  # type: ignore[union-attr]
    world.tick(10_000)
    for night in range(12):
        asks = {"spec.data.revision": "2", "spec.index.refresh.revision": f"night {night}"}
        model = make(asks, status=model.status, generation=3 + night)
        model = with_status(model, run_until_settled(model, world)[-1][1].status)
    told = [(entry.kind, entry.outcome) for entry in model.status.history]
    assert told == [("Refresh", "Promoted"), ("Revision", "Promoted"), ("Revision", "Promoted")]
    collected = {name for spec in world.specs.values() if spec.step == "collect" for name in spec.arguments}
    assert not [name for name in collected if former.generation_key in name or former.revision in name]
    asked = {"retrieval-operator.io/rollback": f"{model.status.champion.token}:{former.stack}"}  # type: ignore[union-attr]
    final = run_until_settled(make(asks, status=model.status, generation=20, annotations=asked), world)[-1][1].status
    assert final.champion is not None and champion is not None
    assert final.champion.stack == former.stack != champion.stack


def test_what_let_a_revision_in_is_told_of_it_also_when_its_stack_is_the_one_before(make: Make) -> None:
    measured = [0.5, 0.77]
    world = World(outcomes=lambda work: with_value(nothing_new(work), measured[0]))
    first = run_until_settled(make(), world)[-1][1].status
    measured.pop(0)
    second = run_until_settled(make({"spec.data.revision": "2"}, status=first, generation=2), world)[-1][1].status
    assert first.champion is not None and second.champion is not None
    assert second.champion.stack == first.champion.stack
    assert [gate.value for gate in second.champion.gates] == [0.77]
    assert [[gate.value for gate in entry.gates] for entry in second.history] == [[0.77], [0.5]]
    assert second.champion.evaluation_run not in ("", first.champion.evaluation_run)
    (version,) = world.versions.values()
    assert version.tags["revision"] == second.champion.revision
    assert version.tags["bundle_uri"] == second.champion.bundle_uri
    assert "0.7700" in version.description


def with_value(outcome: Outcome, value: float) -> Outcome:
    """Every gate measures this."""
    report = dict(outcome.report)
    measured = {"value": value, "valueLower": value, "valueUpper": value}
    if "gates" in report:
        report["gates"] = [gate | measured for gate in report["gates"]]
    return Outcome(report=report)


def test_a_page_in_the_registry_tells_of_the_revision_that_is_asked_about(make: Make) -> None:
    """A bundle that was refused is imported again over other data, and a reviewer reads its numbers there."""
    measured = [0.1, 0.9]
    world = World(outcomes=lambda work: with_value(same_bundle(work), measured[0]))
    imported = {"spec.model": {"bundleUri": "/bundles/good/bundle"}, "spec.promotion.mode": "Manual"}
    refused = run_until_settled(make(imported), world)[-1][1].status
    (version,) = world.versions.values()
    assert (refused.history[0].outcome, version.tags["retrieval.verdict"]) == ("Rejected", "Rejected")
    measured.pop(0)
    newer = imported | {"spec.data.revision": "2"}
    asked = run_until_settled(make(newer, status=refused, generation=2), world)[-1][1].status
    (version,) = world.versions.values()
    assert asked.candidate is not None and asked.candidate.approval_token
    assert version.tags["revision"] == asked.candidate.revision
    assert version.tags.get("retrieval.verdict", "") == ""
    assert "under way" in version.description and "0.9000" in version.description
    approval = {"retrieval-operator.io/approve": asked.candidate.approval_token}
    run_until_settled(make(newer, status=asked, generation=2, annotations=approval), world)
    (version,) = world.versions.values()
    assert version.tags["retrieval.verdict"] == "Promoted"


def test_a_candidate_that_is_refused_leaves_the_page_to_the_champion_of_the_same_bundle(make: Make) -> None:
    measured = [0.9, 0.1]
    world = World(outcomes=lambda work: with_value(same_bundle(work), measured[0]))
    status = run_until_settled(make(), world)[-1][1].status
    measured.pop(0)
    final = run_until_settled(make({"spec.data.revision": "2"}, status=status, generation=2), world)[-1][1].status
    assert final.champion is not None
    assert final.history[0].outcome == "Rejected"
    (version,) = world.versions.values()
    assert (version.tags["revision"], version.tags["retrieval.verdict"]) == (final.champion.revision, "Promoted")


def test_a_reviewer_reads_the_candidates_numbers_also_when_the_champion_has_the_same_bundle(make: Make) -> None:
    measured = [0.5, 0.77]
    world = World(outcomes=lambda work: with_value(same_bundle(work), measured[0]))
    status = run_until_settled(make(), world)[-1][1].status
    measured.pop(0)
    manual = {"spec.data.revision": "2", "spec.promotion.mode": "Manual"}
    asked = run_until_settled(make(manual, status=status, generation=2), world)[-1][1].status
    (version,) = world.versions.values()
    assert asked.candidate is not None
    assert version.tags["revision"] == asked.candidate.revision
    assert "under way" in version.description and "0.7700" in version.description
    rejection = {"retrieval-operator.io/reject": asked.candidate.approval_token}
    final = run_until_settled(make(manual, status=asked, generation=2, annotations=rejection), world)[-1][1].status
    (version,) = world.versions.values()
    assert final.champion is not None and final.history[0].outcome == "Rejected"
    assert (version.tags["revision"], version.tags["retrieval.verdict"]) == (final.champion.revision, "Promoted")
    assert "0.5000" in version.description


def test_of_one_stack_under_many_records_the_newest_keeps_its_files(make: Make) -> None:
    world, status = World(outcomes=nothing_new), RetrievalModelStatus()
    for night in range(1, 7):
        manifest = {"spec.data.revision": str(night)}
        status = run_until_settled(make(manifest, status=status, generation=night), world)[-1][1].status
    assert [entry.outcome for entry in status.history] == ["Promoted"] * 6
    assert [entry.record is not None for entry in status.history] == [True] + [False] * 5
    assert status.champion is not None and status.history[0].record is not None
    assert status.history[0].record.generation_key == status.champion.generation_key


def test_a_stack_of_which_a_part_is_gone_is_completed_under_its_own_record(make: Make, step: Call) -> None:
    """Its other parts name the files of the first record."""
    world, status = World(outcomes=nothing_new), RetrievalModelStatus()
    for night in (1, 2):
        model = make({"spec.data.revision": str(night)}, status=status, generation=night)
        status = run_until_settled(model, world)[-1][1].status
    assert status.champion is not None
    stack = world.stacks[status.champion.stack]
    assert stack.record.generation_key != status.champion.generation_key
    world.stacks[status.champion.stack] = replace(stack, complete=False, ready_replicas=0)
    _, plan = step(with_status(model, status), world)
    assert [action.record for action in plan.actions if isinstance(action, CreateStack)] == [stack.record]


def failed_servers(world: World, status: RetrievalModelStatus) -> None:
    assert status.champion is not None
    stack = status.champion.stack
    world.stacks[stack] = replace(world.stacks[stack], ready_replicas=0, failed="it exits with code 1")


@pytest.mark.parametrize("asks", [False, True], ids=["by itself", "by hand"])
def test_going_back_blames_what_was_new_and_not_what_the_stack_was_first_made_for(
    make: Make, live: Call, asks: bool
) -> None:
    """A refresh that found nothing new moved the record of the traffic on, and left that of the stack."""
    world = World(outcomes=same_generation)
    refreshed = {"spec.index.refresh.revision": "monday"}
    before = run_until_settled(make(refreshed, status=live(world), generation=2), world)[-1][1].status
    world.tick(10_000)
    served = refreshed | {"spec.serving.image": "server:2"}
    status = run_until_settled(make(served, status=before, generation=3), world)[-1][1].status
    annotations = {}
    if asks:
        annotations = {"retrieval-operator.io/rollback": f"{status.champion.token}:{before.champion.stack}"}  # type: ignore[union-attr]
    else:
        failed_servers(world, status)
    model = make(served, status=status, generation=3, annotations=annotations)
    final = run_until_settled(model, world)[-1][1].status
    assert [(entry.kind, entry.outcome) for entry in final.history[:2]] == [
        ("Serving", "RolledBack"),
        ("Serving", "Promoted"),
    ]
    assert final.champion is not None and before.champion is not None
    assert (final.champion.stack, final.champion.generation_key) == (
        before.champion.stack,
        before.champion.generation_key,
    )
    without = run_until_settled(make(refreshed, status=final, generation=4), world)[-1][1].status
    assert without.phase == "Live", "nothing is left to ask for"
