"""What decide() does, as short stories in a simulated world."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from retrieval_operator.api.conditions import ConditionType
from retrieval_operator.api.objects import RetrievalModel
from retrieval_operator.api.status import CandidateKind, RetrievalModelStatus, Step
from retrieval_operator.domain.decide import decide
from retrieval_operator.domain.plan import Plan, StartWorkload
from retrieval_operator.domain.simulate import Outcome, World, all_pass, passing_report, run_until_settled, with_status
from retrieval_operator.domain.workloads import WorkloadSpec

Make = Callable[..., RetrievalModel]


def step(model: RetrievalModel, world: World, seconds: int = 1) -> tuple[RetrievalModel, Plan]:
    plan = decide(model, world.observe(), world.now)
    for action in plan.actions:
        world.apply(action)
    world.tick(seconds)
    return with_status(model, plan.status), plan


def live(make: Make, world: World, changes: dict[str, Any] | None = None) -> RetrievalModelStatus:
    """A world with the plain manifest's first stack live; its status."""
    return run_until_settled(make(changes), world)[-1][1].status


def until(model: RetrievalModel, world: World, at: Step) -> RetrievalModel:
    for _ in range(60):
        model, _ = step(model, world)
        if model.status.candidate is not None and model.status.candidate.step is at:
            return model
    raise AssertionError(f"never came to {at}")


def condition(status: RetrievalModelStatus, kind: ConditionType) -> tuple[str, str]:
    found = {c.type: (str(c.status), str(c.reason)) for c in status.conditions}
    return found.get(kind, ("absent", ""))


def refused(entry: dict[str, Any]) -> Callable[[WorkloadSpec], Outcome]:
    """Every step succeeds, but evaluations against a champion measure this."""

    def outcome(workload: WorkloadSpec) -> Outcome:
        report = passing_report(workload)
        if report.get("champion") is not None:
            report["gates"] = [gate | entry for gate in report["gates"]]
        return Outcome(report=report)

    return outcome


WORSE = {"value": 0.30, "championValue": 0.40, "delta": -0.10, "lower": -0.12, "upper": -0.08}
UNDECIDED = {"value": 0.39, "championValue": 0.40, "delta": -0.01, "lower": -0.03, "upper": 0.01, "nToDecide": 9000}


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


def test_a_worse_revision_is_refused_with_its_numbers_and_costs_no_deployment(make: Make) -> None:
    world = World(outcomes=refused(WORSE))
    status = live(make, world)
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


def test_an_inconclusive_comparison_is_never_promoted_and_says_how_many_members_would_decide(make: Make) -> None:
    world = World(outcomes=refused(UNDECIDED))
    status = live(make, world)
    final = run_until_settled(make({"spec.data.revision": "2"}, status=status, generation=2), world)[-1][1]
    assert final.status.history[0].outcome == "Inconclusive"
    assert "9000 members" in final.status.history[0].message
    assert condition(final.status, ConditionType.GATES_PASSED) == ("Unknown", "GatesInconclusive")
    assert final.status.champion == status.champion


def test_a_refused_revision_stays_refused_when_the_status_is_wiped(make: Make) -> None:
    world = World(outcomes=refused(WORSE))
    status = live(make, world)
    second = make({"spec.data.revision": "2"}, status=status, generation=2)
    run_until_settled(second, world)
    before = list(world.created)

    final = run_until_settled(with_status(second, RetrievalModelStatus()), world)[-1][1]

    assert world.created == before
    assert final.status.champion is not None
    assert condition(final.status, ConditionType.STALLED) == ("True", "AlreadyRefused")


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


def test_manual_mode_waits_and_an_approval_tag_set_before_the_verdict_does_not_count(make: Make) -> None:
    world = World()
    model = until(make({"spec.promotion.mode": "Manual"}), world, Step.EVALUATING)
    bundle = next(iter(world.versions))
    world.versions[bundle] = replace(
        world.versions[bundle], tags={**world.versions[bundle].tags, "approved_by": "too early"}
    )
    model = until(model, world, Step.AWAITING_APPROVAL)
    for _ in range(3):
        model, plan = step(model, world)
    assert plan.status.candidate is not None
    assert plan.status.candidate.step is Step.AWAITING_APPROVAL
    assert "approved_by" not in world.versions[bundle].tags

    world.versions[bundle] = replace(world.versions[bundle], tags={**world.versions[bundle].tags, "approved_by": "ana"})
    assert run_until_settled(model, world)[-1][1].status.phase == "Live"


def test_manual_mode_goes_on_when_the_annotation_names_the_token(make: Make) -> None:
    world = World()
    manual = {"spec.promotion.mode": "Manual"}
    model = until(make(manual), world, Step.AWAITING_APPROVAL)
    assert model.status.candidate is not None
    token = model.status.candidate.approval_token
    wrong = make(manual, status=model.status, annotations={"retrieval-operator.io/approve": "another"})
    assert step(wrong, world)[1].status.candidate.step is Step.AWAITING_APPROVAL  # type: ignore[union-attr]
    right = make(manual, status=model.status, annotations={"retrieval-operator.io/approve": token})
    assert run_until_settled(right, world)[-1][1].status.phase == "Live"


def test_a_reviewer_who_says_no_ends_the_candidate(make: Make) -> None:
    world = World()
    model = until(make({"spec.promotion.mode": "Manual"}), world, Step.AWAITING_APPROVAL)
    model, _ = step(model, world)
    bundle = next(iter(world.versions))
    world.versions[bundle] = replace(world.versions[bundle], tags={**world.versions[bundle].tags, "rejected_by": "ana"})
    final = run_until_settled(model, world)[-1][1]
    assert final.status.history[0].reason == "RejectedByReviewer"
    assert world.traffic.live is None


def second_life(make: Make, world: World, **more: Any) -> RetrievalModel:
    status = live(make, world)
    model = make({"spec.data.revision": "2"}, status=status, generation=2, **more)
    return with_status(model, run_until_settled(model, world)[-1][1].status)


def test_a_champion_that_fails_while_it_bakes_is_rolled_back_and_stays_refused(make: Make) -> None:
    world = World()
    model = second_life(make, world)
    assert model.status.phase == "Baking"
    bad = model.status.champion.stack  # type: ignore[union-attr]
    world.stacks[bad] = replace(world.stacks[bad], ready_replicas=0, failed="it exits with code 1")

    final = run_until_settled(model, world)[-1][1]

    assert world.traffic.live is not None and world.traffic.live.stack != bad
    assert bad not in world.stacks, "so that clients leave it"
    assert final.status.history[0].outcome == "RolledBack"
    assert condition(final.status, ConditionType.PROMOTED)[0] == "False"


def test_a_short_unreadiness_while_baking_is_no_reason_to_roll_back(make: Make) -> None:
    world = World()
    model = second_life(make, world)
    live_stack = world.traffic.live.stack  # type: ignore[union-attr]
    world.stacks[live_stack] = replace(world.stacks[live_stack], ready_replicas=0)
    model, _ = step(model, world)
    for _ in range(5):
        model, _ = step(model, world, seconds=10)
    assert world.traffic.live.stack == live_stack  # type: ignore[union-attr]


def test_a_rollback_that_a_person_asks_for_acts_once(make: Make) -> None:
    world = World()
    model = second_life(make, world)
    newer, older = world.traffic.live.stack, world.traffic.previous  # type: ignore[union-attr]
    asked = {"retrieval-operator.io/rollback": f"{model.status.champion.token}:{older}"}
    asking = make({"spec.data.revision": "2"}, status=model.status, generation=2, annotations=asked)
    final = run_until_settled(asking, world)[-1][1]
    assert world.traffic.live.stack == older  # type: ignore[union-attr]
    assert final.status.history[0].outcome == "RolledBack"

    third = make({"spec.data.revision": "3"}, status=final.status, generation=3, annotations=asked)
    run_until_settled(third, world)
    assert world.traffic.live.stack not in (newer, older)  # type: ignore[union-attr]


def test_a_rollback_left_on_the_object_does_nothing_when_a_retry_brings_that_stack_back(make: Make) -> None:
    world = World()
    model = second_life(make, world)
    newer, older = world.traffic.live.stack, world.traffic.previous  # type: ignore[union-attr]
    asked = {"retrieval-operator.io/rollback": f"{model.status.champion.token}:{older}"}
    second = {"spec.data.revision": "2"}
    back = run_until_settled(make(second, status=model.status, generation=2, annotations=asked), world)[-1][1]
    retried = asked | {"retrieval-operator.io/retry": "once more"}
    run_until_settled(make(second, status=back.status, generation=2, annotations=retried), world)
    assert world.traffic.live.stack == newer  # type: ignore[union-attr]


def test_a_promotion_that_no_status_saw_coming_is_recorded(make: Make) -> None:
    world = World()
    model = make()
    for _ in range(40):
        plan = decide(model, world.observe(), world.now)  # no status is ever written
        for action in plan.actions:
            world.apply(action)
        world.tick()
    assert [(e.outcome, e.record.stack) for e in plan.status.history] == [("Promoted", world.traffic.live.stack)]  # type: ignore[union-attr]


def test_many_refusals_do_not_push_out_the_stack_that_traffic_can_go_back_to(make: Make) -> None:
    world = World()
    model = second_life(make, world)
    older, status = world.traffic.previous, model.status
    world.outcomes = refused(WORSE)
    for revision in range(3, 16):
        another = make({"spec.data.revision": str(revision)}, status=status, generation=revision)
        status = run_until_settled(another, world)[-1][1].status
    assert len(status.history) == 10
    assert older in [entry.record.stack for entry in status.history if entry.record is not None]


def test_conditions_after_a_refusal_speak_of_what_ended_it_and_not_of_work_long_over(make: Make) -> None:
    world = World(outcomes=refused(WORSE))
    status = live(make, world)
    final = run_until_settled(make({"spec.data.revision": "2"}, status=status, generation=2), world)[-1][1].status
    assert condition(final, ConditionType.TRAINING_SUCCEEDED) == ("True", "Succeeded")
    assert condition(final, ConditionType.INDEX_READY) == ("Unknown", "GatesFailed")
    assert condition(final, ConditionType.ENCODER_READY) == ("Unknown", "GatesFailed")


def test_a_rollback_reaches_a_stack_that_was_already_collected(make: Make) -> None:
    world = World()
    model = second_life(make, world)
    _newer, older = world.traffic.live.stack, world.traffic.previous  # type: ignore[union-attr]
    world.tick(10_000)
    model = with_status(model, run_until_settled(model, world)[-1][1].status)
    assert older not in world.stacks
    asked = {"retrieval-operator.io/rollback": f"{model.status.champion.token}:{older}"}
    asking = make({"spec.data.revision": "2"}, status=model.status, generation=2, annotations=asked)
    final = run_until_settled(asking, world)[-1][1]
    assert world.traffic.live.stack == older  # type: ignore[union-attr]
    assert final.status.candidate is None


def test_the_former_stack_is_collected_after_the_window_and_not_before(make: Make) -> None:
    world = World()
    model = second_life(make, world)
    former = world.traffic.previous
    world.tick(3000)
    model, _ = step(model, world)
    assert former in world.stacks
    world.tick(3600)
    model, _ = step(model, world)
    assert former not in world.stacks


def test_a_refresh_builds_a_new_generation_under_the_champions_bundle_and_does_not_train(make: Make) -> None:
    world = World()
    status = live(make, world)
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


def test_another_server_image_deploys_the_same_bundle_and_generation(make: Make) -> None:
    world = World()
    status = live(make, world)
    changed = make({"spec.serving.image": "server:2"}, status=status, generation=2)
    champion = run_until_settled(changed, world)[-1][1].status.champion
    assert champion is not None and status.champion is not None
    assert champion.stack != status.champion.stack
    assert (champion.bundle_id, champion.generation_id) == (
        status.champion.bundle_id,
        status.champion.generation_id,
    )


def test_a_refused_revision_does_not_keep_the_champion_from_being_refreshed(make: Make) -> None:
    world = World(outcomes=refused(WORSE))
    status = live(make, world)
    second = {"spec.data.revision": "2"}
    status = run_until_settled(make(second, status=status, generation=2), world)[-1][1].status
    both = make(second | {"spec.index.refresh": {"revision": "monday"}}, status=status, generation=3)
    final = run_until_settled(both, world)[-1][1]
    assert final.status.history[0].kind is CandidateKind.REFRESH
    assert final.status.history[0].outcome == "Promoted"


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


def test_a_wiped_status_does_not_take_up_an_old_slot(make: Make) -> None:
    world = World(now=1_700_000_000)
    hourly = {"spec.data.schedule": "0 * * * *", "metadata.creationTimestamp": 1_700_000_000 - 7200}
    model = make(hourly)
    run_until_settled(model, world)
    before = list(world.created)
    run_until_settled(with_status(model, RetrievalModelStatus()), world)
    assert world.created == before


def test_suspend_stops_a_training_and_resuming_goes_on_with_the_next_attempt(make: Make) -> None:
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
    resumed = make(status=model.status, generation=3)
    assert run_until_settled(resumed, world)[-1][1].status.phase == "Live"
    assert sorted(name.split("-train-")[1] for name in world.specs if "-train-" in name) == ["1", "2"]


def test_a_suspended_object_still_repairs_its_champion(make: Make) -> None:
    world = World()
    status = live(make, world)
    world.stacks.clear()
    _model, _ = step(make({"spec.suspend": True}, status=status, generation=2), world)
    assert list(world.stacks) == [status.champion.stack]  # type: ignore[union-attr]


def test_the_champion_is_repaired_while_the_registry_is_away(make: Make) -> None:
    world = World()
    status = live(make, world)
    world.stacks.clear()
    world.registry_is_up = False
    step(make(status=status), world)
    assert list(world.stacks) == [status.champion.stack]  # type: ignore[union-attr]


def test_the_registry_away_for_longer_than_the_progress_deadline_does_not_fail_the_candidate(make: Make) -> None:
    world = World()
    model = until(make(), world, Step.INDEXING_SERVING)
    world.registry_is_up = False
    for _ in range(4):
        model, _ = step(model, world, seconds=3000)
    world.registry_is_up = True
    assert run_until_settled(model, world)[-1][1].status.phase == "Live"


def test_a_step_without_progress_ends_at_its_deadline(make: Make) -> None:
    world = World()
    model = until(make(), world, Step.DEPLOYING)
    for _ in range(3):
        for stack, found in world.stacks.items():
            world.stacks[stack] = replace(found, ready_replicas=0)
        world.now += 3000
        plan = decide(model, world.observe(), world.now)
        model = with_status(model, plan.status)
    assert plan.status.history[0].reason == "ProgressDeadlineExceeded"


def test_an_immutable_field_that_was_changed_stalls_the_object_and_touches_nothing(make: Make) -> None:
    world = World()
    status = live(make, world)
    before = list(world.created)
    final = run_until_settled(make({"spec.storage.uri": "/elsewhere"}, status=status, generation=2), world)[-1][1]
    assert condition(final.status, ConditionType.STALLED) == ("True", "ImmutableFieldChanged")
    assert "spec.storage.uri: found '/elsewhere', accepted before '/store'" in final.why
    assert world.created == before


def test_an_alias_moved_by_hand_is_moved_back_with_an_event(make: Make) -> None:
    world = World()
    model = second_life(make, world)
    world.aliases["champion"] = "1"
    world.events.clear()
    run_until_settled(model, world)
    assert world.aliases["champion"] == "2"
    assert [event.reason for event in world.events] == ["AliasRepaired"]


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


def test_deletion_ends_serving_then_work_then_lets_the_object_go(make: Make) -> None:
    world = World()
    status = live(make, world)
    model = make(status=status, deleting=True)
    model, _ = step(model, world)
    assert world.traffic.live is None and world.stacks == {} and world.workloads == {}
    step(model, world)
    assert world.finalizer is False
    assert world.versions, "MLflow's record stays"


@pytest.mark.parametrize("stop_after", range(14))
def test_conditions_keep_their_rules_in_every_pass(make: Make, stop_after: int) -> None:
    world = World(outcomes=refused(WORSE))
    status = live(make, world)
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


class SlowStacks(World):
    """A world in which a server needs some passes until it is ready."""

    def tick(self, seconds: int = 1) -> None:
        super().tick(seconds)
        for stack, found in self.stacks.items():
            if self.now - found.created_at < 6:
                self.stacks[stack] = replace(found, ready_replicas=0)


def test_a_rollback_to_a_collected_stack_waits_for_its_server(make: Make) -> None:
    world = SlowStacks()
    model = second_life(make, world)
    older = world.traffic.previous
    world.tick(10_000)
    model = with_status(model, run_until_settled(model, world)[-1][1].status)
    asked = {"retrieval-operator.io/rollback": f"{model.status.champion.token}:{older}"}
    created = len(world.created)
    asking = make({"spec.data.revision": "2"}, status=model.status, generation=2, annotations=asked)
    run_until_settled(asking, world)
    assert world.traffic.live.stack == older
    assert world.created[created:] == [f"stack {older}", f"switch to {older}"]


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


def test_a_retraining_that_gives_the_same_bundle_ends_and_is_not_done_again(make: Make) -> None:
    world = World(outcomes=same_bundle)
    status = live(make, world)
    switched_at = world.traffic.switched_at
    again = make(status=status, annotations={"retrieval-operator.io/retrain": "1"})
    final = run_until_settled(again, world)[-1][1].status
    assert world.traffic.switched_at == switched_at, "no client noticed"
    assert final.champion.revision != status.champion.revision
    assert (final.history[0].outcome, final.phase) == ("Promoted", "Live")
    before = list(world.created)
    run_until_settled(make(annotations={"retrieval-operator.io/retrain": "1"}), world)  # status wiped
    assert world.created == before


def test_going_back_to_an_earlier_manifest_is_a_promotion_and_not_a_rollback(make: Make) -> None:
    world = World()
    model = second_life(make, world)
    world.tick(10)
    reverted = run_until_settled(make(status=model.status, generation=3), world)[-1][1].status
    assert [entry.outcome for entry in reverted.history] == ["Promoted"] * 3
    assert world.traffic.previous in world.stacks, "the stack it left is kept for the rollback window"
    world.tick(10)
    once_more = make({"spec.data.revision": "2"}, status=reverted, generation=4)
    assert run_until_settled(once_more, world)[-1][1].status.phase == "Baking"


def test_after_a_wiped_status_nothing_begins_before_the_registry_can_say_what_was_refused(make: Make) -> None:
    world = World()
    model = second_life(make, world)
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


@pytest.mark.parametrize("at", [Step.DEPLOYING, Step.VERIFYING])
def test_an_annotation_cannot_promote_a_stack_that_was_never_live(make: Make, at: Step) -> None:
    world = SlowStacks()
    status = live(make, world)
    second = {"spec.data.revision": "2"}
    model = until(make(second, status=status, generation=2), world, at)
    dark = model.status.candidate.stack
    asked = {"retrieval-operator.io/rollback": f"{status.champion.token}:{dark}"}
    step(make(second, status=model.status, generation=2, annotations=asked), world)
    assert world.traffic.live.stack == status.champion.stack


def test_another_served_width_is_evaluated_anew(make: Make) -> None:
    world = World()
    wide = {"spec.model.servedDimension": 128}
    status = live(make, world, wide)
    second = {"spec.data.revision": "2"}
    model = until(make(wide | second, status=status, generation=2), world, Step.INDEXING_SERVING)
    run_until_settled(make({"spec.model.servedDimension": 64} | second, status=model.status, generation=3), world)
    widths = [
        spec.arguments[spec.arguments.index("--served-dimension") + 1]
        for spec in world.specs.values()
        if spec.step == "idxeval"
    ]
    assert widths == ["128", "128", "64"]


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


def test_suspension_for_longer_than_the_progress_deadline_does_not_fail_the_candidate(make: Make) -> None:
    world = World()
    model = until(make(), world, Step.EVALUATING)
    suspended = make({"spec.suspend": True}, status=model.status, generation=2)
    suspended, _ = step(suspended, world)
    world.tick(10_000)
    suspended, _ = step(suspended, world)
    assert run_until_settled(make(status=suspended.status, generation=3), world)[-1][1].status.phase == "Live"


def test_a_night_without_a_control_plane_does_not_fail_the_candidate(make: Make) -> None:
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


def test_an_approval_does_not_outlive_a_retry(make: Make) -> None:
    world = World()
    manual = {"spec.promotion.mode": "Manual"}
    status = live(make, world)
    second = manual | {"spec.data.revision": "2"}
    model = until(make(second, status=status, generation=2), world, Step.AWAITING_APPROVAL)
    model, _ = step(model, world)
    bundle = next(bundle for bundle, version in world.versions.items() if version.number == "2")
    world.versions[bundle] = replace(world.versions[bundle], tags={**world.versions[bundle].tags, "approved_by": "ana"})
    model = with_status(model, run_until_settled(model, world)[-1][1].status)
    asked = {"retrieval-operator.io/rollback": f"{model.status.champion.token}:{world.traffic.previous}"}
    back = run_until_settled(make(second, status=model.status, generation=2, annotations=asked), world)[-1][1].status
    retried = make(second, status=back, generation=2, annotations=asked | {"retrieval-operator.io/retry": "again"})
    final = run_until_settled(retried, world)[-1][1].status
    assert final.candidate.step is Step.AWAITING_APPROVAL


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


def test_writing_down_the_default_name_of_the_registered_model_changes_nothing(make: Make) -> None:
    world = World()
    status = live(make, world)
    named = make({"spec.registry": {"name": "default.feed"}}, status=status, generation=2)
    assert run_until_settled(named, world)[-1][1].status.phase == "Live"


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


def test_a_clock_that_was_ahead_does_not_hold_up_the_next_attempt(make: Make) -> None:
    world = World(outcomes=lambda _: Outcome(exit_code=1), now=5_000_000)
    model = make()
    for _ in range(3):
        model, _ = step(model, world)
    world.now -= 2_592_000
    plan = decide(model, world.observe(), world.now)
    assert plan.requeue_after_s is not None and plan.requeue_after_s <= 600


def test_the_champions_repair_comes_before_what_a_candidate_wants(make: Make) -> None:
    world = World()
    status = live(make, world)
    world.stacks.clear()
    plan = decide(make({"spec.data.revision": "2"}, status=status, generation=2), world.observe(), world.now)
    assert type(plan.actions[0]).__name__ == "CreateStack"
