"""A schedule whose next slot is due before the candidate of the last one has ended leaves no time for old files to go.

So they go between its candidates, which they hold up for a moment, and nobody else.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
from disk_world import Disk, needed

from retrieval_operator.api.constants import HISTORY_MAX_ENTRIES
from retrieval_operator.api.objects import RetrievalModel
from retrieval_operator.api.status import RetrievalModelStatus
from retrieval_operator.domain.decide import decide
from retrieval_operator.domain.observed import Observed
from retrieval_operator.domain.plan import Action, DeleteStack, Plan
from retrieval_operator.domain.simulate import Outcome, run_until_settled, with_status
from retrieval_operator.domain.workloads import WorkloadSpec, WorkloadStep

Make = Callable[..., RetrievalModel]


@dataclass
class Life:
    """What became of an object: how many passes it took, how many files there are in the end, the last status."""

    passes: int
    files: int
    status: RetrievalModelStatus


def one_pass(model: RetrievalModel, world: Disk) -> tuple[RetrievalModel, Plan]:
    """Programs take ten seconds, removals four."""
    plan = decide(model, world.observe(), world.now)
    for action in plan.actions:
        world.apply(action)
    world.tick(10 if plan.status.candidate else 4)
    return with_status(model, plan.status), plan


def never_idle(
    make: Make, world: Disk, promotions: int, *, status: RetrievalModelStatus | None = None, **spec: Any
) -> Life:
    """The next slot is due before the candidate of the last one has ended, so many times."""
    asked = {"metadata.creationTimestamp": 1_700_000_000, "spec.revisionHistoryLimit": 1}
    asked |= {"spec.rollback.windowSeconds": 60, "spec.serving.connectionAgeSeconds": 60}
    model = make(asked | {f"spec.{path}": value for path, value in spec.items()}, status=status, generation=9)
    was, promoted = "", 0
    for number in range(100 * promotions):
        model, plan = one_pass(model, world)
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
            outcome = world.run(work)
            return replace(outcome, report=same(outcome.report)) if work.step in ("index", "verify") else outcome

        world.outcomes = run
        return never_idle(make, world, promotions, **EVERY_MINUTE[1]).files

    assert files_after(MANY) <= files_after(FEW) + 1


def test_beside_a_serving_spec_that_was_refused_a_schedule_leaves_no_more_files(make: Make) -> None:
    def files_after(promotions: int) -> int:
        world = Disk(now=1_700_000_000)
        first = never_idle(make, world, 1, **EVERY_MINUTE[1])
        world.outcomes = lambda work: Outcome(exit_code=65) if work.step == "verify" else world.run(work)
        edited = make({"spec.serving.image": "other:1"}, status=first.status, generation=10)
        status = run_until_settled(edited, world)[-1][1].status
        assert status.history[0].outcome == "Failed"
        world.outcomes = world.run
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
    model = make(asked | {"metadata.creationTimestamp": 1_700_000_000}, status=status, generation=10)
    for _ in range(60):
        model, plan = one_pass(model, world)
        if "old files go" in plan.why:
            break
    assert plan.status.candidate is None
    promoted = next(said for said in plan.status.conditions if said.type == "Promoted")
    assert promoted.status == "True"
    edited = make(asked | {"spec.data.revision": "9"}, status=model.status, generation=99)
    for _ in range(2):  # a removal that runs is stopped first
        edited, plan = one_pass(edited, world)
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
