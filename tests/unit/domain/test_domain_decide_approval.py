"""Manual mode: who may say yes, when an answer counts, and to what."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from retrieval_operator.api.objects import RetrievalModel
from retrieval_operator.api.status import RetrievalModelStatus, Step
from retrieval_operator.domain.simulate import Outcome, World, all_pass, run_until_settled, with_status
from retrieval_operator.domain.workloads import WorkloadSpec

Make = Callable[..., RetrievalModel]
Call = Callable[..., Any]  # a fixture of conftest.py


def test_manual_mode_waits_and_an_approval_tag_set_before_the_verdict_does_not_count(
    make: Make, step: Call, until: Call
) -> None:
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
    final = run_until_settled(model, world)[-1][1].status
    assert final.phase == "Live"
    assert final.history[0].message == f"stack {final.champion.stack} is live, approved by ana"  # type: ignore[union-attr]


def test_manual_mode_goes_on_when_the_annotation_names_the_token(make: Make, step: Call, until: Call) -> None:
    world = World()
    manual = {"spec.promotion.mode": "Manual"}
    model = until(make(manual), world, Step.AWAITING_APPROVAL)
    assert model.status.candidate is not None
    token = model.status.candidate.approval_token
    wrong = make(manual, status=model.status, annotations={"retrieval-operator.io/approve": "another"})
    assert step(wrong, world)[1].status.candidate.step is Step.AWAITING_APPROVAL  # type: ignore[union-attr]
    right = make(manual, status=model.status, annotations={"retrieval-operator.io/approve": token})
    assert run_until_settled(right, world)[-1][1].status.phase == "Live"


def test_a_reviewer_who_says_no_ends_the_candidate(make: Make, step: Call, until: Call) -> None:
    world = World()
    model = until(make({"spec.promotion.mode": "Manual"}), world, Step.AWAITING_APPROVAL)
    model, _ = step(model, world)
    bundle = next(iter(world.versions))
    world.versions[bundle] = replace(world.versions[bundle], tags={**world.versions[bundle].tags, "rejected_by": "ana"})
    final = run_until_settled(model, world)[-1][1]
    assert final.status.history[0].reason == "RejectedByReviewer"
    assert world.traffic.live is None


def test_an_approval_does_not_outlive_a_retry(make: Make, step: Call, live: Call, until: Call) -> None:
    world = World()
    manual = {"spec.promotion.mode": "Manual"}
    status = live(world)
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


def answered(world: World, number: str, **tags: str) -> None:
    """What a reviewer does on a version's page."""
    bundle = next(bundle for bundle, version in world.versions.items() if version.number == number)
    world.versions[bundle] = replace(world.versions[bundle], tags={**world.versions[bundle].tags, **tags})


MANUAL = {"spec.promotion.mode": "Manual"}


def test_an_approval_outlives_a_wiped_status_also_after_a_retry(make: Make, step: Call, until: Call) -> None:
    """It is for this stack after this verdict and this retry: all that can be seen without a status."""
    fails = True

    def outcome(workload: WorkloadSpec) -> Outcome:
        return Outcome(exit_code=65) if fails else all_pass(workload)

    world = World(outcomes=outcome)
    status = run_until_settled(make(MANUAL), world)[-1][1].status
    fails = False
    retry = {"retrieval-operator.io/retry": "mended"}
    model = until(make(MANUAL, status=status, annotations=retry), world, Step.AWAITING_APPROVAL)
    model, _ = step(model, world)
    answered(world, "1", approved_by="ana")
    verifications = sum(spec.step == "verify" for spec in world.specs.values())

    final = run_until_settled(with_status(model, RetrievalModelStatus()), world)[-1][1]

    assert final.status.phase == "Live"
    assert sum(spec.step == "verify" for spec in world.specs.values()) == verifications


class StacksOfOne(World):
    """A world in which a second replica takes its time, so that a promotion does too."""

    def tick(self, seconds: int = 1) -> None:
        super().tick(seconds)
        self.stacks = {name: replace(found, ready_replicas=1) for name, found in self.stacks.items()}


def test_an_approval_by_annotation_is_written_down_and_outlives_annotation_and_status(
    make: Make, step: Call, until: Call
) -> None:
    world = StacksOfOne()
    manual = MANUAL | {"spec.serving.replicas": {"min": 2}}
    model = until(make(manual), world, Step.AWAITING_APPROVAL)
    model, _ = step(model, world)
    approve = {"retrieval-operator.io/approve": model.status.candidate.approval_token}
    for _ in range(3):
        model, plan = step(make(manual, status=model.status, annotations=approve), world)
    assert plan.status.candidate.step is Step.PROMOTING
    assert next(iter(world.versions.values())).tags["approved_by"] == "annotation"

    _, plan = step(make(manual), world)  # annotation and status are gone

    assert plan.status.candidate is not None
    assert plan.status.candidate.step is Step.PROMOTING


def test_without_manual_mode_nobody_is_said_to_have_approved(make: Make, step: Call, until: Call) -> None:
    world = World()
    model = until(make(MANUAL), world, Step.AWAITING_APPROVAL)
    run_until_settled(make(status=model.status, generation=2), world)
    assert world.traffic.live is not None
    assert "approved_by" not in next(iter(world.versions.values())).tags


def test_each_time_that_a_stack_is_to_follow_another_a_person_is_asked_anew(make: Make) -> None:
    """The evaluation is the same one, and the answer that it got is still on the version's page."""
    world, status, approve = World(), RetrievalModelStatus(), dict[str, str]()
    asked = []
    for generation, revision in enumerate(["1", "2", "1", "2"], start=1):
        manifest = MANUAL | {"spec.data.revision": revision}
        world.tick(100_000)
        model = make(manifest, status=status, annotations=approve, generation=generation)
        status = run_until_settled(model, world)[-1][1].status
        assert status.candidate is not None, f"nobody was asked the {generation}. time"
        asked.append(status.candidate.approval_token)
        approve = {"retrieval-operator.io/approve": asked[-1]}
        model = make(manifest, status=status, annotations=approve, generation=generation)
        status = run_until_settled(model, world)[-1][1].status
        assert status.history[0].outcome == "Promoted"
    assert len(set(asked)) == 4
