"""The way of a candidate: every step in order, refusals, imports, and what each kind of change builds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from retrieval_operator.api.conditions import ConditionType
from retrieval_operator.api.constants import HISTORY_MAX_ENTRIES
from retrieval_operator.api.objects import RetrievalModel
from retrieval_operator.api.status import CandidateKind, RetrievalModelStatus, Step
from retrieval_operator.domain.decide import decide
from retrieval_operator.domain.plan import StartWorkload
from retrieval_operator.domain.simulate import (
    Outcome,
    Outcomes,
    World,
    all_pass,
    passing_report,
    run_until_settled,
    with_status,
)
from retrieval_operator.domain.workloads import WorkloadSpec

Make = Callable[..., RetrievalModel]
Call = Callable[..., Any]  # a fixture of conftest.py


def test_a_first_life_goes_through_every_step_in_order(make: Make) -> None:
    steps: list[str] = []
    for _, plan in run_until_settled(make(), World()):
        if plan.status.candidate is not None and plan.status.candidate.step not in steps:
            steps.append(plan.status.candidate.step)
    assert steps == [
        Step.TRAINING,
        Step.REGISTERING,
        Step.INDEXING_EVALUATION,
        Step.EVALUATING,
        Step.INDEXING_SERVING,
        Step.DEPLOYING,
        Step.VERIFYING,
        Step.PROMOTING,
    ]


def test_a_worse_revision_is_refused_with_its_numbers_and_costs_no_deployment(
    make: Make, live: Call, condition: Call, worse: Outcomes
) -> None:
    world = World(outcomes=worse)
    status = live(world)
    stacks = set(world.stacks)

    final = run_until_settled(make({"spec.data.revision": "2"}, status=status, generation=2), world)[-1][1]

    assert final.status.champion == status.champion
    assert set(world.stacks) == stacks
    assert final.status.history[0].outcome == "Rejected"
    assert "delta -0.1000" in final.status.history[0].message
    assert condition(final.status, ConditionType.GATES_PASSED) == ("False", "GatesFailed")
    assert condition(final.status, ConditionType.PROMOTED) == ("False", "GatesFailed")
    assert condition(final.status, ConditionType.STALLED) == ("True", "GatesFailed")
    assert condition(final.status, ConditionType.READY) == ("True", "ChampionServing")
    assert world.versions[next(b for b in world.versions if world.versions[b].number == "2")].tags[
        "retrieval.verdict"
    ] == ("Rejected")


def test_an_inconclusive_comparison_is_never_promoted_and_says_how_many_members_would_decide(
    make: Make, live: Call, condition: Call, undecided: Outcomes
) -> None:
    world = World(outcomes=undecided)
    status = live(world)
    final = run_until_settled(make({"spec.data.revision": "2"}, status=status, generation=2), world)[-1][1]
    assert final.status.history[0].outcome == "Inconclusive"
    assert "9000 members" in final.status.history[0].message
    assert condition(final.status, ConditionType.GATES_PASSED) == ("Unknown", "GatesInconclusive")
    assert final.status.champion == status.champion


def test_a_refused_revision_stays_refused_when_the_status_is_wiped(
    make: Make, live: Call, condition: Call, worse: Outcomes
) -> None:
    world = World(outcomes=worse)
    status = live(world)
    second = make({"spec.data.revision": "2"}, status=status, generation=2)
    run_until_settled(second, world)
    before = list(world.created)

    final = run_until_settled(with_status(second, RetrievalModelStatus()), world)[-1][1]

    assert world.created == before
    assert final.status.champion is not None
    assert condition(final.status, ConditionType.STALLED) == ("True", "AlreadyRefused")


def test_a_promotion_that_no_status_saw_coming_is_recorded(make: Make) -> None:
    world = World()
    model = make()
    for _ in range(40):
        plan = decide(model, world.observe(), world.now)  # no status is ever written
        for action in plan.actions:
            world.apply(action)
        world.tick()
    assert [(e.outcome, e.record.stack) for e in plan.status.history] == [("Promoted", world.traffic.live.stack)]  # type: ignore[union-attr]


def test_many_refusals_do_not_push_out_the_stack_that_traffic_can_go_back_to(
    make: Make, second_life: Call, worse: Outcomes
) -> None:
    world = World()
    model = second_life(world)
    older, status = world.traffic.previous, model.status
    world.outcomes = worse
    for revision in range(3, 16):
        another = make({"spec.data.revision": str(revision)}, status=status, generation=revision)
        status = run_until_settled(another, world)[-1][1].status
    assert len(status.history) == HISTORY_MAX_ENTRIES
    assert older in [entry.record.stack for entry in status.history if entry.record is not None]


def test_conditions_after_a_refusal_speak_of_what_ended_it_and_not_of_work_long_over(
    make: Make, live: Call, condition: Call, worse: Outcomes
) -> None:
    world = World(outcomes=worse)
    status = live(world)
    final = run_until_settled(make({"spec.data.revision": "2"}, status=status, generation=2), world)[-1][1].status
    assert condition(final, ConditionType.TRAINING_SUCCEEDED) == ("True", "Succeeded")
    assert condition(final, ConditionType.INDEX_READY) == ("Unknown", "GatesFailed")
    assert condition(final, ConditionType.ENCODER_READY) == ("Unknown", "GatesFailed")


def test_a_refresh_builds_a_new_generation_under_the_champions_bundle_and_does_not_train(
    make: Make, live: Call
) -> None:
    world = World()
    status = live(world)
    trainings = sum("-train-" in name for name in world.specs)
    refreshed = make({"spec.index.refresh": {"revision": "monday"}}, status=status, generation=2)
    passes = run_until_settled(refreshed, world)
    assert passes[0][1].status.candidate.kind is CandidateKind.REFRESH  # type: ignore[union-attr]
    champion = passes[-1][1].status.champion
    assert champion is not None and status.champion is not None
    assert champion.bundle_id == status.champion.bundle_id
    assert champion.generation_id != status.champion.generation_id
    assert sum("-train-" in name for name in world.specs) == trainings
    starts = [a.workload for _, plan in passes for a in plan.actions if isinstance(a, StartWorkload)]
    index = next(workload for workload in starts if workload.step == "index")
    assert index.arguments[index.arguments.index("--previous") + 1] == status.champion.generation_uri


def test_another_server_image_deploys_the_same_bundle_and_generation(make: Make, live: Call) -> None:
    world = World()
    status = live(world)
    changed = make({"spec.serving.image": "server:2"}, status=status, generation=2)
    champion = run_until_settled(changed, world)[-1][1].status.champion
    assert champion is not None and status.champion is not None
    assert champion.stack != status.champion.stack
    assert (champion.bundle_id, champion.generation_id) == (
        status.champion.bundle_id,
        status.champion.generation_id,
    )


def test_a_refused_revision_does_not_keep_the_champion_from_being_refreshed(
    make: Make, live: Call, worse: Outcomes
) -> None:
    world = World(outcomes=worse)
    status = live(world)
    second = {"spec.data.revision": "2"}
    status = run_until_settled(make(second, status=status, generation=2), world)[-1][1].status
    both = make(second | {"spec.index.refresh": {"revision": "monday"}}, status=status, generation=3)
    final = run_until_settled(both, world)[-1][1]
    assert final.status.history[0].kind is CandidateKind.REFRESH
    assert final.status.history[0].outcome == "Promoted"


def test_a_step_without_progress_ends_at_its_deadline(make: Make, until: Call) -> None:
    world = World()
    model = until(make(), world, Step.DEPLOYING)
    began = world.now
    while not model.status.history:
        for stack, found in world.stacks.items():
            world.stacks[stack] = replace(found, ready_replicas=0)
        world.now += 60
        assert world.now - began < 3600 + 300
        model = with_status(model, decide(model, world.observe(), world.now).status)
    assert model.status.history[0].reason == "ProgressDeadlineExceeded"


def test_an_immutable_field_that_was_changed_stalls_the_object_and_touches_nothing(
    make: Make, live: Call, condition: Call
) -> None:
    world = World()
    status = live(world)
    before = list(world.created)
    final = run_until_settled(make({"spec.storage.uri": "/elsewhere"}, status=status, generation=2), world)[-1][1]
    assert condition(final.status, ConditionType.STALLED) == ("True", "ImmutableFieldChanged")
    assert "spec.storage.uri: found '/elsewhere', accepted before '/store'" in final.why
    assert world.created == before


def test_an_imported_bundle_is_not_trained(make: Make) -> None:
    world = World()
    imported = {"spec.model": {"bundleUri": "/bundles/good/bundle"}}

    def outcome(workload: WorkloadSpec) -> Outcome:
        if workload.step == "train":
            assert workload.arguments[:2] == ("--import", "/bundles/good/bundle")
            report = passing_report(replace(workload, key="good"))
            return Outcome(report=report)
        return all_pass(workload)

    world.outcomes = outcome
    status = run_until_settled(make(imported), world)[-1][1].status
    assert status.phase == "Live"
    assert status.champion is not None and status.champion.bundle_uri == "/bundles/good/bundle"


@pytest.mark.parametrize("stop_after", range(14))
def test_conditions_keep_their_rules_in_every_pass(
    make: Make, stop_after: int, step: Call, live: Call, worse: Outcomes
) -> None:
    world = World(outcomes=worse)
    status = live(world)
    model = make({"spec.data.revision": "2"}, status=status, generation=2)
    for _ in range(stop_after + 1):
        model, plan = step(model, world)
    found = {c.type: c for c in plan.status.conditions}
    assert not (ConditionType.STALLED in found and ConditionType.RECONCILING in found)
    assert all(
        found[kind].status == "True"
        for kind in (ConditionType.STALLED, ConditionType.RECONCILING, ConditionType.PROGRESSING)
        if kind in found
    )
    assert all(len(c.message) <= 1024 for c in plan.status.conditions)
    assert found[ConditionType.READY].status == "True"
    assert plan.status.observed_generation == 2


def test_going_back_to_an_earlier_manifest_is_a_promotion_and_not_a_rollback(make: Make, second_life: Call) -> None:
    world = World()
    model = second_life(world)
    world.tick(10)
    reverted = run_until_settled(make(status=model.status, generation=3), world)[-1][1].status
    assert [entry.outcome for entry in reverted.history] == ["Promoted"] * 3
    assert world.traffic.previous in world.stacks, "the stack it left is kept for the rollback window"
    world.tick(10)
    once_more = make({"spec.data.revision": "2"}, status=reverted, generation=4)
    assert run_until_settled(once_more, world)[-1][1].status.phase == "Baking"


def test_after_a_wiped_status_nothing_begins_before_the_registry_can_say_what_was_refused(
    make: Make, step: Call, second_life: Call
) -> None:
    world = World()
    model = second_life(world)
    second = {"spec.data.revision": "2"}
    newer, older = world.traffic.live.stack, world.traffic.previous
    asked = {"retrieval-operator.io/rollback": f"{model.status.champion.token}:{older}"}
    run_until_settled(make(second, status=model.status, generation=2, annotations=asked), world)
    world.registry_is_up = False
    wiped = make(second, generation=2)
    for _ in range(3):
        wiped, plan = step(wiped, world)
        assert plan.status.candidate is None
    world.registry_is_up = True
    run_until_settled(wiped, world)
    assert world.traffic.live.stack == older != newer


def test_another_served_width_is_evaluated_anew(make: Make, live: Call, until: Call) -> None:
    world = World()
    wide = {"spec.model.servedDimension": 128}
    status = live(world, wide)
    second = {"spec.data.revision": "2"}
    model = until(make(wide | second, status=status, generation=2), world, Step.INDEXING_SERVING)
    run_until_settled(make({"spec.model.servedDimension": 64} | second, status=model.status, generation=3), world)
    widths = [
        spec.arguments[spec.arguments.index("--served-dimension") + 1]
        for spec in world.specs.values()
        if spec.step == "idxeval"
    ]
    assert widths == ["128", "128", "64"]


def test_writing_down_the_default_name_of_the_registered_model_changes_nothing(make: Make, live: Call) -> None:
    world = World()
    status = live(world)
    named = make({"spec.registry": {"name": "default.feed"}}, status=status, generation=2)
    assert run_until_settled(named, world)[-1][1].status.phase == "Live"


def datasets(world: World) -> list[str]:
    """Over which the serving indexes were built."""
    built = [spec.arguments for spec in world.specs.values() if spec.step == "index"]
    return [arguments[arguments.index("--dataset") + 1] for arguments in built]


def test_a_refresh_reads_the_data_where_the_manifest_says_that_they_are(make: Make, live: Call) -> None:
    world = World()
    moved = make(
        {"spec.data.uri": "/data/moved", "spec.index.refresh.revision": "monday"}, status=live(world), generation=2
    )
    assert run_until_settled(moved, world)[-1][1].status.champion.data_uri == "/data/moved"  # type: ignore[union-attr]
    assert datasets(world) == ["/data/one", "/data/moved"]


@pytest.mark.parametrize("ended", ["refused", "gone back from"])
def test_a_refresh_under_the_champion_does_not_serve_the_data_of_a_revision_that_was(
    ended: str, make: Make, live: Call, worse: Outcomes
) -> None:
    world = World()
    status, other = live(world), {"spec.data.uri": "/data/two", "spec.data.revision": "2"}
    former, asked = status.champion.stack, dict[str, str]()
    world.outcomes = worse if ended == "refused" else all_pass
    status = run_until_settled(make(other, status=status, generation=2), world)[-1][1].status
    if ended == "gone back from":
        asked = {"retrieval-operator.io/rollback": f"{status.champion.token}:{former}"}  # type: ignore[union-attr]
        status = run_until_settled(make(other, status=status, generation=2, annotations=asked), world)[-1][1].status
    before = datasets(world)
    refreshed = other | {"spec.index.refresh.revision": "monday"}
    status = run_until_settled(make(refreshed, status=status, generation=3, annotations=asked), world)[-1][1].status
    assert datasets(world) == [*before, "/data/one"]
    assert status.champion is not None and status.champion.data_uri == "/data/one"
    assert (status.history[0].kind, status.history[0].outcome) == ("Refresh", "Promoted")
