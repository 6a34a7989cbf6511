"""deletionPolicy: an object goes at once and leaves its files, or takes them with it and says so while it cannot."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from retrieval_operator.api.constants import FINALIZER, TAG_REPORT
from retrieval_operator.api.objects import RetrievalModel
from retrieval_operator.domain.decide import decide
from retrieval_operator.domain.observed import Problem
from retrieval_operator.domain.plan import DeleteStack, Plan, SetFinalizer, StartWorkload, StopTraffic, TagRun
from retrieval_operator.domain.simulate import Outcome, World, all_pass, run_until_settled

Make = Callable[..., RetrievalModel]


def with_finalizer(model: RetrievalModel) -> RetrievalModel:
    return model.model_copy(update={"metadata": model.metadata.model_copy(update={"finalizers": [FINALIZER]})})


def deleting(make: Make, world: World, policy: str, status: Any = None) -> RetrievalModel:
    """The object after a whole life, and the request to delete it."""
    changes = {"spec.deletionPolicy": policy}
    if status is None:
        status = run_until_settled(make(changes), world)[-1][1].status
    return with_finalizer(make(changes, status=status, generation=2, deleting=True))


def passes(model: RetrievalModel, world: World, count: int, **disturbed: int) -> list[Plan]:
    """Passes until the finalizer goes; `performed` cuts every second one after so many actions."""
    taken: list[Plan] = []
    for number in range(count):
        plan = decide(model, world.observe(), world.now)
        taken.append(plan)
        cut = disturbed.get("performed") if number % 2 else None
        for action in plan.actions[:cut]:
            world.apply(action)
        if cut is None:
            model = model.model_copy(update={"status": plan.status})
        if world.finalizer is False:
            return taken
        world.tick(5)
    return taken


@pytest.mark.parametrize(("policy", "present", "wanted"), [("Delete", False, True), ("Retain", True, False)])
def test_the_finalizer_follows_the_policy_before_anything_is_made(
    make: Make, policy: str, present: bool, wanted: bool
) -> None:
    model = make({"spec.deletionPolicy": policy})
    model = with_finalizer(model) if present else model
    assert decide(model, World().observe(), 1_000_000).actions[0] == SetFinalizer(present=wanted)


@pytest.mark.parametrize("policy", ["Delete", "Retain"])
def test_a_finalizer_as_it_should_be_is_left_alone(make: Make, policy: str) -> None:
    world = World()
    run_until_settled(make({"spec.deletionPolicy": policy}), world)
    assert world.finalizer is (True if policy == "Delete" else None)
    assert sum(isinstance(action, SetFinalizer) for action in world.events) == 0


def test_retain_ends_serving_and_lets_the_object_go_without_a_removal(make: Make) -> None:
    world = World()
    model = deleting(make, world, "Retain")
    passes(model, world, 10)
    assert world.finalizer is False
    assert not world.stacks
    assert "collect" not in {work.step for work in world.specs.values()}
    assert all(run.report is not None for run in world.runs.values())


@pytest.mark.parametrize("performed", [None, 0, 1, 2])
def test_delete_ends_serving_then_withdraws_the_proofs_then_removes_everything_then_lets_go(
    make: Make, performed: int | None
) -> None:
    world = World()
    model = deleting(make, world, "Delete")
    plans = passes(model, world, 40, **({} if performed is None else {"performed": performed}))
    assert world.finalizer is False
    assert not world.stacks
    assert world.traffic.live is None
    removals = [work for work in world.specs.values() if work.step == "collect"]
    assert [work.arguments for work in removals] == [("remove", "/store/default/feed", "--all", "--keep=/data/one")]
    assert all(run.report is None for run in world.runs.values()), "an object of the same name starts anew"
    kinds = [type(action) for plan in plans for action in plan.actions]
    assert kinds.index(TagRun) < kinds.index(StartWorkload) < kinds.index(SetFinalizer)
    assert len(world.versions) == 1, "MLflow's record stays"


@pytest.mark.parametrize("policy", ["Delete", "Retain"])
def test_no_stack_is_removed_before_the_traffic_is_seen_to_be_gone(make: Make, policy: str) -> None:
    """A cluster shows a deletion later: until then the adapter refuses to remove what is live."""
    world = World()
    model = deleting(make, world, policy)
    before = world.observe()
    (stack,) = before.stacks
    for _ in range(3):  # the Service is still seen
        plan = decide(model, replace(world.observe(), traffic=before.traffic), world.now)
        assert StopTraffic() in plan.actions
        assert not [action for action in plan.actions if isinstance(action, DeleteStack | SetFinalizer)]
        assert plan.requeue_after_s == 1, "soon, also when no watch tells"
        for action in plan.actions:
            world.apply(action)
        model = model.model_copy(update={"status": plan.status})
    assert world.workloads == {}, "what is independent of it does not wait"
    assert decide(model, world.observe(), world.now).actions == (DeleteStack(stack=stack),)


def test_a_removal_that_fails_keeps_the_object_says_why_and_is_tried_again(make: Make) -> None:
    world = World()
    model = deleting(make, world, "Delete")
    fire = Outcome(exit_code=65, reason="BadInput", message="revisions is a symbolic link")
    world.outcomes = lambda work: fire if work.step == "collect" else all_pass(work)
    plans = passes(model, world, 60)
    assert world.finalizer is True, "the object stays as long as its files do"
    stalled = next(condition for condition in plans[-1].status.conditions if condition.type == "Stalled")
    assert stalled.reason == "RemovalFailed"
    assert "symbolic link" in stalled.message
    assert "deletionPolicy: Retain" in stalled.message
    assert any(event.reason == "RemovalFailed" and event.type == "Warning" for event in world.events)
    attempts = [work.attempt for work in world.specs.values() if work.step == "collect"]
    assert 2 <= len(attempts) <= 6, "with growing pauses"
    assert attempts == sorted(set(attempts))

    world.outcomes = all_pass
    passes(model, world, 200)
    assert world.finalizer is False


@pytest.mark.parametrize("policy", ["Delete", "Retain"])
def test_every_pass_says_that_the_deletion_was_seen(make: Make, policy: str) -> None:
    """A cluster counts the deletion as a generation: else the object looks as if no operator were there."""
    world = World()
    taken = passes(deleting(make, world, policy), world, 40)
    assert len(taken) > 2, "else no pass in between was looked at"
    assert {plan.status.observed_generation for plan in taken} == {2}


def test_going_back_to_retain_lets_the_object_go_at_once(make: Make) -> None:
    world = World()
    model = deleting(make, world, "Delete")
    world.outcomes = lambda work: Outcome(exit_code=74) if work.step == "collect" else all_pass(work)
    status = passes(model, world, 20)[-1].status
    started = [work for work in world.specs.values() if work.step == "collect"]
    passes(deleting(make, world, "Retain", status), world, 4)
    assert world.finalizer is False
    assert [work for work in world.specs.values() if work.step == "collect"] == started
    assert not world.workloads


def test_without_the_registry_nothing_is_removed_and_the_object_says_why_it_stays(make: Make) -> None:
    world = World()
    model = deleting(make, world, "Delete")
    world.registry_is_up = False
    plan = passes(model, world, 10)[-1]
    assert world.finalizer is True
    assert plan.requeue_after_s
    assert "MLflow is not reachable" in plan.why
    assert [c.reason for c in plan.status.conditions if c.type == "Stalled"] == ["RegistryUnavailable"]
    assert [(c.status, c.reason) for c in plan.status.conditions if c.type == "Ready"] == [("False", "Deleting")]
    assert plan.status.address == "", "nothing serves while it waits"
    world.registry_is_up = True
    passes(model, world, 20)
    assert world.finalizer is False


@pytest.mark.parametrize("registry_is_up", [True, False])
def test_a_namespace_that_is_being_deleted_is_not_held_up_for_files_that_no_job_can_remove(
    make: Make, registry_is_up: bool
) -> None:
    world = World()
    model = deleting(make, world, "Delete")
    world.registry_is_up = registry_is_up
    going = (Problem(dependency="namespace", message="namespace default is being deleted"),)
    for _ in range(10):
        plan = decide(model, replace(world.observe(), problems=going), world.now)
        for action in plan.actions:
            world.apply(action)
        world.tick(5)
        if world.finalizer is False:
            break
    assert world.finalizer is False
    assert not world.stacks
    assert "collect" not in {work.step for work in world.specs.values()}
    assert all((run.report is None) is registry_is_up for run in world.runs.values()), "proofs go where MLflow answers"
    told = world.events[-1]
    assert (told.type, told.reason) == ("Warning", "RemovalFailed")
    assert "/store/default/feed" in told.message


def test_a_removal_of_old_files_under_way_is_ended_before_everything_is_removed(make: Make) -> None:
    world = World()
    model = deleting(make, world, "Delete")
    running = next(iter(world.workloads.values()))
    world.workloads["feed-0123abcd-collect-1"] = type(running)(
        name="feed-0123abcd-collect-1", step=running.step, key="0123abcd", attempt=1, state="Running"
    )
    plan = decide(model, world.observe(), world.now)
    assert "feed-0123abcd-collect-1" in [getattr(action, "name", "") for action in plan.actions]
    assert not [action for action in plan.actions if isinstance(action, StartWorkload)]


def test_the_proof_is_withdrawn_by_its_tag(make: Make) -> None:
    world = World()
    model = deleting(make, world, "Delete")
    tags = [action.tags for plan in passes(model, world, 20) for action in plan.actions if isinstance(action, TagRun)]
    assert tags
    assert all(tag == {TAG_REPORT: ""} for tag in tags)
