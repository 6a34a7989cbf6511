"""What nothing may need any more is removed; what may serve again, or is being made, never is."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import pytest
from disk_world import ROOT, Disk, needed
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from retrieval_operator.api.constants import HISTORY_MAX_ENTRIES, TAG_COLLECTED, TAG_REPORT
from retrieval_operator.api.objects import RetrievalModel
from retrieval_operator.api.status import RetrievalModelStatus
from retrieval_operator.domain.decide import decide
from retrieval_operator.domain.history import promoted_records
from retrieval_operator.domain.identity import revision_hash
from retrieval_operator.domain.observed import Observed, Problem
from retrieval_operator.domain.plan import Action, StartWorkload, StopWorkload, TagRun
from retrieval_operator.domain.simulate import Outcome, run_until_settled, with_status
from retrieval_operator.domain.simulated_reports import passing_report
from retrieval_operator.domain.workloads import WorkloadStep

Make = Callable[..., RetrievalModel]
SETTLED_BY = 400


def live_through(make: Make, world: Disk, revisions: Sequence[str], **spec: Any) -> RetrievalModel:
    """Promote one revision after the other, and let each rollback window pass."""
    model = make()
    for number, revision in enumerate(revisions):
        changes = {"spec.data.revision": revision, **{f"spec.{path}": value for path, value in spec.items()}}
        model = make(changes, status=model.status, generation=number + 1)
        for _ in range(2):
            before, plan = run_until_settled(model, world, passes=SETTLED_BY)[-1]
            model = world.after_pass(before, plan.status)
            world.tick(4000)
    before, plan = run_until_settled(model, world, passes=SETTLED_BY)[-1]
    return world.after_pass(before, plan.status)


def revision_of(make: Make, revision: str) -> str:
    return revision_hash(make({"spec.data.revision": revision}).spec, "")


def kept_revisions(make: Make, world: Disk) -> str:
    return "".join(name for name in "12345678" if f"{ROOT}/revisions/{revision_of(make, name)}/bundle" in world.files)


@pytest.mark.parametrize(("limit", "kept"), [(1, "56"), (2, "456"), (5, "123456"), (None, "123456")], ids=str)
def test_the_champion_and_as_many_stacks_as_the_limit_keep_their_files(make: Make, limit: int, kept: str) -> None:
    world = Disk()
    spec = {} if limit is None else {"revisionHistoryLimit": limit}
    model = live_through(make, world, "123456", **spec)
    assert kept_revisions(make, world) == kept
    assert needed(model, world) <= world.files
    offered = {record.revision for record in promoted_records(model.status.history)}
    assert offered == {revision_of(make, revision) for revision in kept}, "a rollback offers what has its files"


def test_every_index_of_a_collected_revision_goes_too(make: Make) -> None:
    world = Disk()
    live_through(make, world, "1234", revisionHistoryLimit=1)
    runs = [run for run in world.runs.values() if run.report is not None and run.step.startswith("i")]
    assert {f"{ROOT}/indexes/{run.key}" for run in runs} == {path for path in world.files if "/indexes/" in path}
    made = sum(run.step.startswith("i") for run in world.runs.values())
    kept = 2 * 2 + 1
    assert made > kept == len(runs), "of both kept stacks: what they served, their judgement; and 3 as 4 was judged"
    assert sum("/evaluations/" in path for path in world.files) == 4, "verdicts are small, and stay"


def test_a_bundle_that_stays_does_not_keep_each_index_that_it_was_ever_judged_with(make: Make) -> None:
    """One that is imported, or trained again to the same bytes, over other data each night."""
    one = "b-0123456789abcdef"

    def indexes_after(nights: int) -> int:
        world = Disk()
        programs = world.outcomes
        world.outcomes = lambda work: replace(
            outcome := programs(work), report=json.loads(re.sub("b-[0-9a-f]{16}", one, json.dumps(outcome.report)))
        )
        live_through(make, world, [str(night) for night in range(nights)], revisionHistoryLimit=1)
        assert {run.report["id"] for run in world.runs.values() if run.step == "train" and run.report} == {one}
        return sum("/indexes/" in path for path in world.files)

    assert indexes_after(2 * HISTORY_MAX_ENTRIES) == indexes_after(HISTORY_MAX_ENTRIES + 4)


def test_a_settled_object_removes_nothing_again(make: Make) -> None:
    world = Disk()
    model = live_through(make, world, "123", revisionHistoryLimit=1)
    assert world.removed
    for _ in range(3):
        world.tick(60)
        assert decide(model, world.observe(), world.now).actions == ()
    assert not [work for work in world.workloads.values() if work.step is WorkloadStep.COLLECT]


def test_the_proof_goes_before_the_files_and_the_note_comes_after(make: Make) -> None:
    world, order = Disk(), list[str]()
    model = live_through(make, world, "123", revisionHistoryLimit=2)
    run = world.runs[f"train:{revision_of(make, '1')}"]
    model = make({"spec.data.revision": "3", "spec.revisionHistoryLimit": 1}, status=model.status, generation=9)
    apply = world.apply

    def noted(action: Action) -> None:
        match action:
            case TagRun(run_id=run.run_id, tags=tags):
                order.extend(tags)
            case StartWorkload(workload=work) if work.key == run.key:
                order.append("remove")
        apply(action)

    world.apply = noted  # type: ignore[method-assign]
    model = with_status(model, run_until_settled(model, world)[-1][1].status)
    run_until_settled(model, world)
    assert order == [TAG_REPORT, "remove", TAG_COLLECTED]


def test_a_collected_revision_that_is_wanted_again_is_made_again(make: Make) -> None:
    world = Disk()
    model = live_through(make, world, "1234", revisionHistoryLimit=1)
    back = make({"spec.data.revision": "1", "spec.revisionHistoryLimit": 1}, status=model.status, generation=9)
    model = run_until_settled(back, world, passes=SETTLED_BY)[-1][1].status
    assert world.traffic.live is not None
    assert world.traffic.live.revision == revision_of(make, "1")
    assert needed(with_status(back, model), world) <= world.files
    assert all(run.report is None for run in world.runs.values() if run.tags.get(TAG_COLLECTED))


def test_a_stack_beyond_the_limit_cannot_be_rolled_back_to(make: Make) -> None:
    world = Disk()
    model = live_through(make, world, "123", revisionHistoryLimit=1)
    first = next(entry for entry in model.status.history if entry.revision == revision_of(make, "1"))
    assert first.record is None
    champion = model.status.champion
    stacks = [record.stack for record in promoted_records(model.status.history)]
    assert champion is not None
    assert stacks[0] == champion.stack
    assert len(stacks) == 2


def test_a_wiped_status_costs_no_file_that_was_kept(make: Make) -> None:
    world = Disk()
    model = live_through(make, world, "1234", revisionHistoryLimit=2)
    before = set(world.files)
    run_until_settled(with_status(model, RetrievalModelStatus()), world)
    assert world.files == before


def test_refused_candidates_keep_their_files_up_to_the_limit(make: Make) -> None:
    world = Disk()
    passing = world.outcomes
    model = live_through(make, world, "1", revisionHistoryLimit=2)
    world.outcomes = lambda work: Outcome(exit_code=65, reason="BadInput") if work.step == "eval" else passing(work)
    for number, revision in enumerate("2345"):
        changes = {"spec.data.revision": revision, "spec.revisionHistoryLimit": 2}
        model = make(changes, status=model.status, generation=number + 2)
        before, plan = run_until_settled(model, world, passes=SETTLED_BY)[-1]
        model = world.after_pass(before, plan.status)
    assert kept_revisions(make, world) == "145"


def test_a_refused_training_of_a_counter_keeps_the_index_of_the_champion_that_it_was_compared_with(make: Make) -> None:
    """A retry measures with it: the data may be others by then, and both have to be of the same."""
    world = Disk()
    passing = world.outcomes
    model = live_through(make, world, "1")
    world.outcomes = lambda work: Outcome(exit_code=65, reason="BadInput") if work.step == "eval" else passing(work)
    again = make(status=model.status, generation=2, annotations={"retrieval-operator.io/retrain": "1"})
    for _ in range(2):
        before, plan = run_until_settled(again, world, passes=SETTLED_BY)[-1]
        again = world.after_pass(before, plan.status)
        world.tick(4000)
    assert again.status.history[0].outcome != "Promoted"
    (compared,) = [run.key for run in world.runs.values() if run.step == "idxchamp"]
    assert f"{ROOT}/indexes/{compared}" in world.files


def test_a_bundle_of_our_own_that_is_imported_stays(make: Make) -> None:
    world = Disk()
    model = live_through(make, world, "123", revisionHistoryLimit=2)
    bundle = f"{ROOT}/revisions/{revision_of(make, '1')}/bundle"
    changes = {"spec.model": {"bundleUri": bundle}, "spec.revisionHistoryLimit": 1}
    imported = make(changes, status=model.status, generation=3)
    run, first = world.outcomes, revision_of(make, "1")
    as_imported = lambda work: Outcome(report=passing_report(replace(work, key=first)))  # noqa: E731
    world.outcomes = lambda work: as_imported(work) if "--import" in work.arguments else run(work)
    for _ in range(10):
        before, plan = run_until_settled(imported, world, passes=SETTLED_BY)[-1]
        imported = with_status(before, plan.status)
        world.tick(4000)
    assert f"{ROOT}/revisions/{revision_of(make, '2')}/bundle" in world.removed
    assert bundle in world.files


def test_a_removal_that_fails_is_told_and_tried_again_ever_later(make: Make) -> None:
    world = Disk(removal=Outcome(exit_code=74, reason="StorageFailed", message="the disk is on fire"))
    model = live_through(make, world, "123", revisionHistoryLimit=1)
    starts = []
    for _ in range(60):
        plan = decide(model, world.observe(), world.now)
        starts += [world.now for action in plan.actions if isinstance(action, StartWorkload)]
        for action in plan.actions:
            world.apply(action)
        model = with_status(model, plan.status)
        assert plan.actions or plan.requeue_after_s is not None
        world.tick(30)
    warnings = [event.message for event in world.events if event.reason == "RemovalFailed"]
    assert "the disk is on fire" in warnings[0]
    gaps = [after - before for before, after in pairwise(starts)]
    assert max(gaps) > 4 * min(gaps)
    failed = [work for work in world.workloads.values() if work.step is WorkloadStep.COLLECT]
    keys = {work.key for work in failed}
    assert len(failed) <= 2 * len(keys), "at most the last two of each: logs of real work are worth more"
    assert kept_revisions(make, world) == "123"

    world.removal = Outcome()
    world.tick(700)
    run_until_settled(model, world)
    world.tick(700)
    run_until_settled(model, world)
    assert kept_revisions(make, world) == "23"


def test_a_candidate_has_a_running_removal_stopped_and_waits_for_that(make: Make) -> None:
    world = Disk()
    model = live_through(make, world, "123", revisionHistoryLimit=2)
    model = make({"spec.data.revision": "3", "spec.revisionHistoryLimit": 1}, status=model.status, generation=8)
    while not any(work.step == "collect" for work in world.workloads.values()):
        plan = decide(model, world.observe(), world.now)
        for action in plan.actions:
            world.apply(action)
        model = with_status(model, plan.status)
        world.now += 1
    edited = make({"spec.data.revision": "4"}, status=model.status, generation=9)
    plan = decide(edited, world.observe(), world.now)
    assert [type(action) for action in plan.actions if not isinstance(action, TagRun)] == [StopWorkload]
    assert plan.status.candidate is not None
    assert "removal" in plan.status.candidate.message
    for action in plan.actions:
        world.apply(action)
    run_until_settled(with_status(edited, plan.status), world, passes=SETTLED_BY)
    assert world.traffic.live is not None
    assert world.traffic.live.revision == revision_of(make, "4")


def test_nothing_is_removed_while_suspended_or_while_the_registry_is_away(make: Make) -> None:
    world = Disk()
    model = live_through(make, world, "123", revisionHistoryLimit=2)
    tight = {"spec.data.revision": "3", "spec.revisionHistoryLimit": 1}
    status, before = model.status, len(world.removed)
    for up, suspend, removes in ((True, True, False), (False, False, False), (True, False, True)):
        world.registry_is_up = up
        for _ in range(2):
            asked = make({**tight, "spec.suspend": suspend}, status=status, generation=3)
            status = run_until_settled(asked, world)[-1][1].status
        assert (len(world.removed) > before) is removes


# From every crash point ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Disturbance:
    performed: int | None = None
    repeated: bool = False
    stale_by: int = 0
    status_lost: bool = False
    registry_away: bool = False
    without_time: bool = False


@pytest.mark.parametrize("unknown", [True, False], ids=["not known", "known"])
def test_no_file_goes_while_it_is_not_known_what_a_stack_needs(make: Make, unknown: bool) -> None:
    """A stack whose record cannot be read may run on a bundle that nobody else remembers."""
    world = Disk()
    model = live_through(make, world, "1234", revisionHistoryLimit=5)
    model = make({"spec.data.revision": "4", "spec.revisionHistoryLimit": 1}, status=model.status, generation=9)
    problem, before = (
        Problem(dependency="address", message="a record", holds_back=False, keeps_files=True),
        set(world.files),
    )
    for _ in range(20):
        world.tick(60)
        plan = decide(model, replace(world.observe(), problems=(problem,) if unknown else ()), world.now)
        for action in plan.actions:
            world.apply(action)
        model = with_status(model, plan.status)
    assert (world.files == before) is unknown


disturbances = st.builds(
    Disturbance,
    performed=st.none() | st.integers(0, 3),
    repeated=st.booleans(),
    stale_by=st.integers(0, 3),
    status_lost=st.integers(0, 9).map(lambda draw: draw == 0),
    registry_away=st.integers(0, 4).map(lambda draw: draw == 0),
    without_time=st.booleans(),
)


def disturbed(model: RetrievalModel, world: Disk, trouble: list[Disturbance], seen: list[Observed]) -> RetrievalModel:
    for bad in trouble:
        world.registry_is_up = not bad.registry_away
        seen.append(world.observe())
        if bad.status_lost:
            model = with_status(model, RetrievalModelStatus())
        plan = decide(model, seen[max(0, len(seen) - 1 - bad.stale_by)], world.now)
        for action in plan.actions[: bad.performed]:
            for _ in range(1 + bad.repeated):
                world.apply(action)
        if bad.performed is None:
            model = with_status(model, plan.status)
        if not bad.without_time:
            world.tick(20)
        missing = needed(model, world) - world.files
        assert not missing, f"{missing} may serve, and has no files"
    world.registry_is_up = True
    return model


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    trouble=st.lists(disturbances, max_size=60),
    turns=st.lists(st.sampled_from("12345"), min_size=1, max_size=5),
    limit=st.integers(1, 2),
)
def test_what_may_serve_has_its_files_at_every_moment_and_the_last_wish_wins(
    make: Make, trouble: list[Disturbance], turns: list[str], limit: int
) -> None:
    world = Disk()
    model = live_through(make, world, "1234", revisionHistoryLimit=limit)
    seen: list[Observed] = []
    share = max(1, len(trouble) // len(turns))
    for number, revision in enumerate(turns):
        spec = {"spec.data.revision": revision, "spec.revisionHistoryLimit": limit}
        model = make(spec, status=model.status, generation=number + 10)
        model = disturbed(model, world, trouble[number * share : (number + 1) * share], seen)
        world.tick(4000 if number % 2 else 1)
    for _ in range(3):
        model = run_until_settled(model, world, passes=SETTLED_BY)[-1][0]
        world.tick(4000)
        model = with_status(model, decide(model, world.observe(), world.now).status)

    assert world.traffic.live is not None
    assert world.traffic.live.revision == revision_hash(model.spec, "")
    assert needed(model, world) <= world.files
    proofs = [run for run in world.runs.values() if run.report is not None and run.step == "train"]
    assert {f"{ROOT}/revisions/{run.key}/bundle" for run in proofs} <= world.files, "no proof outlives its files"
