"""MLflow's word for work without a report: for people, and true in the end whatever happens on the way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from retrieval_operator.api.constants import TAG_IMAGE, TAG_SERVER_IMAGE
from retrieval_operator.api.objects import RetrievalModel
from retrieval_operator.api.status import Step
from retrieval_operator.domain.observed import TrafficObserved
from retrieval_operator.domain.plan import SetRunStatus, TagRun
from retrieval_operator.domain.simulate import Outcome, World, all_pass, run_until_settled, with_status
from retrieval_operator.domain.workloads import WorkloadSpec

Make = Callable[..., RetrievalModel]
Call = Callable[..., Any]  # a fixture of conftest.py


def statuses(world: World) -> dict[str, str]:
    return {run.step: run.status for run in world.runs.values()}


def test_runs_with_a_report_are_finished_and_nothing_is_left_running(make: Make) -> None:
    world = World()
    run_until_settled(make(), world)
    assert set(statuses(world).values()) == {"Finished"}


def test_the_run_of_a_training_that_failed_for_good_says_so(make: Make) -> None:
    world = World(outcomes=lambda _: Outcome(exit_code=1))
    passes = run_until_settled(make(), world)
    assert statuses(world) == {"train": "Failed"}
    changes = [a for _, plan in passes for a in plan.actions if isinstance(a, SetRunStatus)]
    assert len(changes) == 1, "not before the last attempt, and once"


def test_the_run_of_work_that_is_no_longer_wanted_is_killed_and_stays_so(make: Make, until: Call) -> None:
    world = World()
    model = until(make(), world, Step.EVALUATING)
    (evaluation,) = [run for run in world.runs.values() if run.step == "eval"]
    edited = make({"spec.data.revision": "2"}, status=model.status, generation=2)
    run_until_settled(edited, world)
    assert world.runs[f"eval:{evaluation.key}"].report is None, "else this is about something else"
    assert world.runs[f"eval:{evaluation.key}"].status == "Killed"


def test_a_retry_takes_the_run_up_again_and_ends_it_as_finished(make: Make, step: Call) -> None:
    fails = True

    def outcome(workload: WorkloadSpec) -> Outcome:
        return Outcome(exit_code=65) if fails else all_pass(workload)

    world = World(outcomes=outcome)
    status = run_until_settled(make(), world)[-1][1].status
    fails = False
    retried = make(status=status, annotations={"retrieval-operator.io/retry": "mended"})
    model, plan = step(retried, world)
    assert [a.status for a in plan.actions if isinstance(a, SetRunStatus)] == ["Running"]
    run_until_settled(model, world)
    assert set(statuses(world).values()) == {"Finished"}


def test_a_suspended_training_goes_on_as_far_as_its_run_is_concerned(make: Make, until: Call) -> None:
    world = World()
    model = until(make(), world, Step.TRAINING)
    model = make({"spec.suspend": True}, status=model.status, generation=2)
    assert run_until_settled(model, world)[-1][1].status.candidate is not None
    assert statuses(world) == {"train": "Running"}


def test_nothing_is_said_while_the_registry_is_away(make: Make) -> None:
    world = World(outcomes=lambda _: Outcome(exit_code=65))
    status = run_until_settled(make(), world)[-1][1].status
    world.runs = {key: run.__class__(**vars(run) | {"status": "Running"}) for key, run in world.runs.items()}
    world.registry_is_up = False
    passes = run_until_settled(with_status(make(), status), world)
    assert not [a for _, plan in passes for a in plan.actions if isinstance(a, SetRunStatus)]


def test_the_images_that_ran_are_written_once_and_stay_when_the_workloads_are_gone(make: Make, step: Call) -> None:
    world = World()
    model = make(status=run_until_settled(make(), world)[-1][1].status)
    world.workloads = {name: replace(work, image=f"{work.step}@sha256:1") for name, work in world.workloads.items()}
    model, plan = step(model, world)
    assert {type(action) for action in plan.actions} == {TagRun}
    images = {run.step: run.tags[TAG_IMAGE] for run in world.runs.values() if TAG_IMAGE in run.tags}
    assert images == {run.step: f"{run.step}@sha256:1" for run in world.runs.values()}
    world.workloads.clear()
    _, plan = step(model, world)
    assert not plan.actions
    assert images == {run.step: run.tags[TAG_IMAGE] for run in world.runs.values()}


@pytest.mark.parametrize("is_proved", [True, False], ids=["reported", "report withdrawn"])
def test_servers_of_another_image_are_asked_anew_and_what_the_others_answered_stays_theirs(
    make: Make, is_proved: bool
) -> None:
    """The object is deleted, its files stay, and the operator that it is applied to again has a newer server."""
    world = WorldOfImages("server@sha256:old")
    run_until_settled(make(), world)
    world.traffic, world.stacks, world.workloads = TrafficObserved(), {}, {}
    if not is_proved:
        world.runs = {n: replace(r, report=None) if r.step == "verify" else r for n, r in world.runs.items()}
    world.server_image = "server@sha256:new"
    before = len(world.created)
    final = run_until_settled(make(), world)[-1][1].status
    assert final.phase == "Live"
    assert [name.split("-")[2] for name in world.created[before:] if name.startswith("workload")] == ["verify"]
    asked = [run.tags[TAG_SERVER_IMAGE] for run in world.runs.values() if run.step == "verify"]
    assert asked == ["server@sha256:old", "server@sha256:new"]
    outs = {spec.arguments[spec.arguments.index("--out") + 1] for spec in world.specs.values() if spec.step == "verify"}
    assert len(outs) == 2, "nobody finds the answers of the others"


class WorldOfImages(World):
    """Its servers run this image, by digest, as in a cluster."""

    def __init__(self, server_image: str) -> None:
        super().__init__()
        self.server_image = server_image

    def tick(self, seconds: int = 1) -> None:
        super().tick(seconds)
        self.stacks = {name: replace(s, image=s.image or self.server_image) for name, s in self.stacks.items()}
