"""What nothing may need any more is removed; what may serve again, or is being made, never is."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from retrieval_operator.api.constants import HISTORY_MAX_ENTRIES, TAG_COLLECTED, TAG_REPORT, ExitCode
from retrieval_operator.api.objects import RetrievalModel
from retrieval_operator.api.status import RetrievalModelStatus
from retrieval_operator.domain.decide import decide
from retrieval_operator.domain.history import promoted_records
from retrieval_operator.domain.identity import revision_hash
from retrieval_operator.domain.observed import Observed, Problem
from retrieval_operator.domain.plan import Action, DeleteStack, StartWorkload, StopWorkload, TagRun
from retrieval_operator.domain.simulate import Outcome, World, run_until_settled, with_status
from retrieval_operator.domain.simulated_reports import passing_report
from retrieval_operator.domain.workloads import WorkloadSpec, WorkloadStep

Make = Callable[..., RetrievalModel]
ROOT = "/store/default/feed"
SETTLED_BY = 400


@dataclass
class Disk(World):
    """A world with files: programs make directories, need what they read, and removals take directories away."""

    files: set[str] = field(default_factory=set)
    removed: list[str] = field(default_factory=list)
    removal: Outcome = field(default_factory=Outcome)

    def __post_init__(self) -> None:
        self.outcomes = self._run

    def _run(self, work: WorkloadSpec) -> Outcome:
        if work.step is WorkloadStep.COLLECT:
            if not self.removal.exit_code:
                self._remove(work.arguments)
            return self.removal
        words = [word for word in work.arguments if word.startswith(ROOT)]
        out = work.arguments[work.arguments.index("--out") + 1]
        missing = [word for word in words if word != out and _is_made(word) and word not in self.files]
        if missing:
            return Outcome(exit_code=ExitCode.BAD_INPUT, message=f"{missing} does not exist")
        self.files.add(out)
        return Outcome(report=passing_report(work))

    def _remove(self, arguments: tuple[str, ...]) -> None:
        gone = {path for path in self.files for name in arguments[2:] if path.startswith(f"{ROOT}/{name}")}
        gone |= self.files if "--all" in arguments else set()
        self.removed += sorted(gone)
        self.files -= gone


def _is_made(word: str) -> bool:
    return word.startswith((f"{ROOT}/revisions/", f"{ROOT}/indexes/")) and not word.endswith("/checkpoints")


def needed(model: RetrievalModel, world: Disk) -> set[str]:
    """What the champion, whatever runs, and every stack that a rollback may name refer to."""
    records = [*promoted_records(model.status.history), *[stack.record for stack in world.stacks.values()]]
    records += [world.traffic.live] if world.traffic.live else []
    return {uri for record in records for uri in (record.bundle_uri, record.generation_uri)}


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


@dataclass
class Life:
    """What became of an object: how many passes it took, how many files there are in the end, the last status."""

    passes: int
    files: int
    status: RetrievalModelStatus


def never_idle(
    make: Make, world: Disk, promotions: int, *, status: RetrievalModelStatus | None = None, **spec: Any
) -> Life:
    """The next slot is due before the candidate of the last one has ended, so many times."""
    asked = {"metadata.creationTimestamp": 1_700_000_000, "spec.revisionHistoryLimit": 1}
    asked |= {"spec.rollback.windowSeconds": 60, "spec.serving.connectionAgeSeconds": 60}
    model = make(asked | {f"spec.{path}": value for path, value in spec.items()}, status=status, generation=9)
    was, promoted = "", 0
    for number in range(100 * promotions):
        plan = decide(model, world.observe(), world.now)
        for action in plan.actions:
            world.apply(action)
        model = with_status(model, plan.status)
        world.tick(10 if model.status.candidate else 4)
        assert needed(model, world) <= world.files
        champion = model.status.champion
        slot = f"{champion.slot} {champion.refresh_slot}" if champion is not None else ""
        was, promoted = slot, promoted + (slot != was)
        if promoted == promotions:
            files = [path for path in world.files if "/revisions/" in path or "/indexes/" in path]
            return Life(number, len(files), model.status)
    raise AssertionError(f"only {promoted} were promoted: {plan.why}")


EVERY_MINUTE = [{"data.schedule": "* * * * *"}, {"index.refresh.schedule": "* * * * *"}]
SCHEDULES = pytest.mark.parametrize("schedule", EVERY_MINUTE, ids=["training", "refresh"])
FEW, MANY = HISTORY_MAX_ENTRIES, 2 * HISTORY_MAX_ENTRIES


@SCHEDULES
def test_a_schedule_that_is_never_idle_keeps_no_more_files_than_another(make: Make, schedule: dict[str, str]) -> None:
    few, many = (never_idle(make, Disk(now=1_700_000_000), count, **schedule) for count in (FEW, MANY))
    assert many.files <= few.files + 1


def test_refreshes_that_find_nothing_new_leave_no_files_either(make: Make) -> None:
    def files_after(promotions: int) -> int:
        world = Disk(now=1_700_000_000)
        same = lambda report: json.loads(re.sub("g-[0-9a-f]{16}", "g-0123456789abcdef", json.dumps(report)))  # noqa: E731

        def run(work: WorkloadSpec) -> Outcome:
            outcome = world._run(work)
            return replace(outcome, report=same(outcome.report)) if work.step in ("index", "verify") else outcome

        world.outcomes = run
        return never_idle(make, world, promotions, **EVERY_MINUTE[1]).files

    assert files_after(MANY) <= files_after(FEW) + 1


def test_beside_a_serving_spec_that_was_refused_a_schedule_leaves_no_more_files(make: Make) -> None:
    def files_after(promotions: int) -> int:
        world = Disk(now=1_700_000_000)
        first = never_idle(make, world, 1, **EVERY_MINUTE[1])
        world.outcomes = lambda work: Outcome(exit_code=65) if work.step == "verify" else world._run(work)
        edited = make({"spec.serving.image": "other:1"}, status=first.status, generation=10)
        status = run_until_settled(edited, world)[-1][1].status
        assert status.history[0].outcome == "Failed"
        world.outcomes = world._run
        return never_idle(
            make, world, promotions, status=status, **EVERY_MINUTE[1], **{"serving.image": "other:1"}
        ).files

    assert files_after(MANY) <= files_after(FEW) + 1


@dataclass
class Stuck(Disk):
    """Removals that never end, or stacks that never go."""

    what: str = ""

    def tick(self, seconds: int = 1) -> None:
        hanging = {n: w for n, w in self.workloads.items() if w.step is WorkloadStep.COLLECT and w.state == "Running"}
        super().tick(seconds)
        self.workloads |= hanging if self.what == "removals" else {}

    def apply(self, action: Action) -> None:
        if not (isinstance(action, DeleteStack) and self.what == "stacks"):
            super().apply(action)


@SCHEDULES
@pytest.mark.parametrize("trouble", ["failing removals", "removals", "stacks"])
def test_files_that_cannot_go_hold_no_schedule_up_for_long(make: Make, schedule: dict[str, str], trouble: str) -> None:
    failing = Outcome(exit_code=74, reason="StorageFailed") if trouble.startswith("failing") else Outcome()
    usual = never_idle(make, Disk(now=1_700_000_000), MANY, **schedule)
    stuck = never_idle(make, Stuck(now=1_700_000_000, removal=failing, what=trouble), MANY, **schedule)
    assert stuck.passes <= usual.passes + 46 * MANY, "three minutes each at most"


class Ahead(Disk):
    """The clock that says when programs ended is a minute ahead of ours."""

    def observe(self) -> Observed:
        seen = super().observe()
        ends = [replace(work, finished_at=work.finished_at and work.finished_at + 60) for work in seen.workloads]
        return replace(seen, workloads=tuple(ends))


@SCHEDULES
def test_a_clock_that_is_ahead_keeps_no_files(make: Make, schedule: dict[str, str]) -> None:
    few, many = (never_idle(make, Ahead(now=1_700_000_000), count, **schedule) for count in (FEW, MANY))
    assert many.files <= few.files + 1


@SCHEDULES
def test_files_hold_up_a_schedule_and_say_so_but_never_an_edit(make: Make, schedule: dict[str, str]) -> None:
    world = Disk(now=1_700_000_000)
    status = never_idle(make, world, MANY, **{"revisionHistoryLimit": 7, **schedule}).status
    asked = {f"spec.{path}": value for path, value in schedule.items()} | {"spec.revisionHistoryLimit": 1}
    for number in range(60):
        model = make(asked | {"metadata.creationTimestamp": 1_700_000_000}, status=status, generation=10 + number)
        plan = decide(model, world.observe(), world.now)
        if "old files go" in plan.why:
            break
        for action in plan.actions:
            world.apply(action)
        status = plan.status
        world.tick(10 if status.candidate else 4)
    assert plan.status.candidate is None
    promoted = next(said for said in plan.status.conditions if said.type == "Promoted")
    assert promoted.status == "True"
    edited = make(asked | {"spec.data.revision": "9"}, status=status, generation=99)
    for _ in range(2):  # a removal that runs is stopped first
        plan = decide(edited, world.observe(), world.now)
        assert plan.status.candidate is not None
        assert plan.status.candidate.kind == "Revision"


@SCHEDULES
def test_a_backlog_of_files_goes_little_by_little(make: Make, schedule: dict[str, str]) -> None:
    world = Disk(now=1_700_000_000)
    much = never_idle(make, world, MANY, revisionHistoryLimit=7, **schedule)
    usual = never_idle(make, Disk(now=1_700_000_000), 3, **schedule)
    some = never_idle(make, world, 3, status=much.status, **schedule)
    assert some.passes <= usual.passes + 46 * 3
    assert some.files < much.files


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
