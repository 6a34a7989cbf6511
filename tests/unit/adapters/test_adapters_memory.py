"""What the fakes can do to a test, beyond the ports' contracts."""

from __future__ import annotations

import pytest

from retrieval_operator.adapters.memory import MemoryWorld
from retrieval_operator.api.status import StackRecord
from retrieval_operator.domain.observed import Problem
from retrieval_operator.domain.plan import EnsureRun, RegisterVersion
from retrieval_operator.domain.workloads import WorkloadSpec, WorkloadStep
from retrieval_operator.ports import Rejected, Retryable, Stale

NOW = 1_700_000_000
WORKLOAD = WorkloadSpec(
    name="feed-1-train-1", step=WorkloadStep.TRAIN, key="1", attempt=1, program="retrieval-train", arguments=()
)


def record(stack):
    return StackRecord(
        stack=stack,
        bundle_id="b-1",
        bundle_uri="/b",
        generation_id="g-1",
        generation_uri="/g",
        generation_key="k",
        serving_hash="h",
        revision="r",
    )


class Clock:
    def __init__(self):
        self.now = NOW

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def world(clock):
    return MemoryWorld(clock)


@pytest.fixture
def model(world, make):
    return world.models.apply(make(), now=NOW)


async def test_a_failure_before_has_no_effect(world, model):
    world.workloads.fail("start")
    with pytest.raises(Retryable):
        await world.workloads.start(model, WORKLOAD)
    assert world.created == []
    await world.workloads.start(model, WORKLOAD)
    assert world.created == ["workload feed-1-train-1"]


async def test_a_failure_after_is_an_answer_that_was_lost(world, model):
    world.workloads.fail("start", Retryable("no answer"), moment="after")
    with pytest.raises(Retryable, match="no answer"):
        await world.workloads.start(model, WORKLOAD)
    await world.workloads.start(model, WORKLOAD)
    assert world.created == ["workload feed-1-train-1"]


async def test_failures_come_in_the_order_they_were_asked_for(world, model):
    world.stacks.fail("create", Rejected("first"))
    world.stacks.fail("create", Stale("second"))
    for error in (Rejected, Stale):
        with pytest.raises(error):
            await world.stacks.create(model, record("s1"), 1)
    await world.stacks.create(model, record("s1"), 1)
    assert world.stacks.calls == [("create", "s1")] * 3


async def test_a_lagging_observation_shows_the_past_and_acting_meets_the_present(world, model):
    await world.stacks.create(model, record("s1"), 1)
    await world.stacks.create(model, record("s2"), 1)
    version = (await world.traffic.observe(model)).version
    await world.traffic.switch(model, record("s1"), version, NOW)
    world.set_lag(1)
    assert set(await world.stacks.observe(model)) == {"s1"}
    stale = await world.traffic.observe(model)
    assert stale.live is None
    with pytest.raises(Stale):
        await world.traffic.switch(model, record("s2"), stale.version, NOW)
    world.set_lag(0)
    assert (await world.traffic.observe(model)).live == record("s1")


async def test_workloads_end_as_a_test_wishes_at_the_clocks_time(world, model, clock):
    await world.workloads.start(model, WORKLOAD)
    clock.now += 60
    world.workloads.finish(WORKLOAD.name, 69, reason="Diverged", message="loss is NaN at step 12")
    (ended,) = await world.workloads.observe(model)
    assert (ended.state, ended.exit_code, ended.reason) == ("Failed", 69, "Diverged")
    assert (ended.started_at, ended.finished_at) == (NOW, NOW + 60)


async def test_a_workload_may_be_lost_or_vanish(world, model):
    await world.workloads.start(model, WORKLOAD)
    world.workloads.lose(WORKLOAD.name)
    (lost,) = await world.workloads.observe(model)
    assert (lost.state, lost.exit_code, lost.reason) == ("Failed", None, "Lost")
    world.workloads.vanish(WORKLOAD.name)
    assert list(await world.workloads.observe(model)) == []


async def test_stacks_become_ready_break_down_and_are_repaired_by_create(world, model):
    await world.stacks.create(model, record("s1"), 2)
    world.stacks.make_ready("s1")
    assert (await world.stacks.observe(model))["s1"].ready_replicas == 2
    world.stacks.break_down("s1", "out of memory")
    assert (await world.stacks.observe(model))["s1"].failed == "out of memory"
    await world.stacks.create(model, record("s1"), 2)
    assert (await world.stacks.observe(model))["s1"].failed == ""
    assert world.stacks.created == ["s1"]


async def test_a_reviewers_tag_and_a_moved_alias_are_seen(world, model):
    await world.registry.ensure_run(model, EnsureRun(step="train", key="1", name="run"))
    run_id = (await world.registry.observe(model)).runs["train:1"].run_id
    await world.registry.register_version(model, RegisterVersion(bundle_id="b-1", run_id=run_id, tags={}))
    world.registry.tag_version(model, "1", "approved_by", "Ada")
    world.registry.move_alias(model, "champion", "1")
    found = await world.registry.observe(model)
    assert found.versions["b-1"].tags["approved_by"] == "Ada"
    assert found.aliases == {"champion": "1"}
    assert world.created == ["run train:1", "version b-1"]


async def test_problems_last_until_they_are_taken_back(world, model):
    problem = Problem(dependency="storage", message="the disk is full")
    world.surroundings.report(problem)
    assert list(await world.surroundings.problems(model)) == [problem]
    world.surroundings.report()
    assert list(await world.surroundings.problems(model)) == []


async def test_a_wiped_status_leaves_the_object(world, model):
    await world.models.write_status(model, model.status.model_copy(update={"phase": "Live"}))
    world.models.wipe_status(model.key)
    found = await world.models.get(model.key)
    assert (found.status.phase, found.metadata.uid) == ("", model.metadata.uid)
