"""Local mode's watch: what Kubernetes would send as events."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from io import StringIO
from typing import Any

import pytest

from retrieval_operator.adapters.memory import MemoryWorld
from retrieval_operator.api.objects import RetrievalModel
from retrieval_operator.api.status import RetrievalModelStatus, StackRecord
from retrieval_operator.domain.workloads import WorkloadSpec
from retrieval_operator.local_mode import Watch, _keep_running
from retrieval_operator.perform import Ports
from retrieval_operator.ports import Rejected, Retryable
from retrieval_operator.work_queue import WorkQueue

KEY = "default/feed"
Call = Callable[..., Any]  # a fixture of conftest.py


class Watched:
    """A world with one object, its watch, and what the watch asked for."""

    def __init__(self, manifest: Callable[..., RetrievalModel], record: StackRecord, workload: WorkloadSpec) -> None:
        self.manifest, self.record, self.workload = manifest, record, workload
        self.world = MemoryWorld(lambda: 1000)
        self.queue = WorkQueue()
        self.collections = 0
        world = self.world
        self.ports = Ports(
            models=world.models,
            workloads=world.workloads,
            stacks=world.stacks,
            traffic=world.traffic,
            registry=world.registry,
            surroundings=world.surroundings,
        )
        self.watch = Watch(self.ports, self.queue, self._collect)
        self.world.models.apply(manifest(), now=1000)

    async def _collect(self) -> None:
        self.collections += 1

    @property
    def model(self) -> RetrievalModel:
        return self.world.models._now[KEY]

    async def added(self) -> bool:
        """Whether one look adds the key."""
        await self.watch.look()
        try:
            key = await asyncio.wait_for(self.queue.get(), 0.001)
        except TimeoutError:
            return False
        self.queue.done(key)
        assert key == KEY
        return True


async def _new_revision(watched: Watched) -> None:
    watched.world.models.apply(watched.manifest("2"), now=1001)


async def _annotation(watched: Watched) -> None:
    watched.world.models.annotate(KEY, {"retrieval-operator.io/retry": "now"})


async def _workload_ends(watched: Watched) -> None:
    watched.world.workloads.finish(watched.workload.name)


async def _workload_is_lost(watched: Watched) -> None:
    watched.world.workloads.lose(watched.workload.name)


async def _stack_becomes_ready(watched: Watched) -> None:
    watched.world.stacks.make_ready("s-1")


async def _stack_breaks(watched: Watched) -> None:
    watched.world.stacks.break_down("s-1")


async def _traffic_moves(watched: Watched) -> None:
    await watched.world.traffic.switch(watched.model, watched.record, "0", 1001)


async def _deletion(watched: Watched) -> None:
    watched.world.models.request_deletion(KEY, now=1001)


CHANGES = [
    _new_revision,
    _annotation,
    _workload_ends,
    _workload_is_lost,
    _stack_becomes_ready,
    _stack_breaks,
    _traffic_moves,
    _deletion,
]


@pytest.fixture
def watched(a_model: Call, record: StackRecord, workload: WorkloadSpec) -> Watched:
    return Watched(a_model, record, workload)


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__.strip("_"))
def test_each_change_adds_the_object_once(in_virtual_time: Call, watched: Watched, change: Call) -> None:
    async def story() -> None:
        await watched.world.workloads.start(watched.model, watched.workload)
        await watched.world.stacks.create(watched.model, watched.record, 1)
        assert await watched.added(), "a new object is a change"
        assert not await watched.added()
        await change(watched)
        assert await watched.added()
        assert not await watched.added()

    in_virtual_time(story())


def test_a_status_that_was_written_is_no_change(in_virtual_time: Call, watched: Watched) -> None:
    """Else every pass that writes would cause the next one."""

    async def story() -> None:
        assert await watched.added()
        await watched.world.models.write_status(watched.model, RetrievalModelStatus(observed_generation=1))
        assert not await watched.added()

    in_virtual_time(story())


def test_without_changes_every_object_is_looked_at_once_a_minute(in_virtual_time: Call, watched: Watched) -> None:
    async def story() -> None:
        assert await watched.added()
        await asyncio.sleep(59)
        assert not await watched.added()
        await asyncio.sleep(1)
        assert await watched.added()

    in_virtual_time(story())


def test_what_a_deleted_object_ran_is_collected(in_virtual_time: Call, watched: Watched) -> None:
    async def story() -> None:
        assert await watched.added()
        before = watched.collections
        watched.world.models.request_deletion(KEY, now=1001)  # no finalizer: gone at once
        assert await watched.added()
        assert watched.collections == before + 1

    in_virtual_time(story())


def test_an_unreadable_child_is_reported_by_a_pass_not_by_the_watch(in_virtual_time: Call, watched: Watched) -> None:
    async def story() -> None:
        assert await watched.added()
        watched.world.workloads.fail("observe", times=2)
        assert await watched.added(), "a change from readable to unreadable"
        assert not await watched.added()

    in_virtual_time(story())


def test_an_object_that_cannot_be_looked_at_does_not_hide_the_others(
    in_virtual_time: Call, watched: Watched, log: StringIO
) -> None:
    """Such as one whose stack.json was damaged by hand."""

    async def story() -> None:
        watched.world.models.apply(watched.manifest(name="another"), now=1000)
        observe = watched.world.stacks.observe

        async def damaged(model: RetrievalModel) -> object:
            if model.metadata.name == "another":
                raise KeyError("record")
            return await observe(model)

        watched.world.stacks.observe = damaged  # type: ignore[method-assign,assignment]
        await watched.watch.look()
        assert {await watched.queue.get(), await watched.queue.get()} == {"default/another", KEY}
        await watched.watch.look()

    in_virtual_time(story())
    told = [line for line in log.getvalue().splitlines() if "cannot be watched" in line]
    assert len(told) == 1, "told once, not in every look"
    assert "default/another" in told[0]
    assert "Traceback" in told[0]


@pytest.mark.parametrize("error", [Rejected("traffic.json is damaged"), PermissionError("locks")])
def test_garbage_that_cannot_be_collected_does_not_end_the_watch(
    in_virtual_time: Call, watched: Watched, error: Exception
) -> None:
    async def story() -> None:

        async def refuse() -> None:
            raise error

        watched.watch = Watch(watched.ports, watched.queue, refuse)
        assert await watched.added()

    in_virtual_time(story())


def test_a_home_that_cannot_be_listed_is_looked_at_again(in_virtual_time: Call, watched: Watched) -> None:
    async def story() -> None:
        keys, failures = watched.world.models.keys, [OSError("stale file handle"), Retryable("busy")]

        async def failing_at_first() -> object:
            if failures:
                raise failures.pop()
            return await keys()

        watched.world.models.keys = failing_at_first  # type: ignore[method-assign,assignment]
        stop = asyncio.Event()
        follow = asyncio.create_task(watched.watch.follow(stop, 1.0))
        assert await watched.queue.get() == KEY
        stop.set()
        await follow

    in_virtual_time(story())


class FailingMlflow:
    """A server whose start fails in the ways listed, then succeeds; healthy once it was started."""

    def __init__(self, *failures: Exception) -> None:
        self.failures = list(failures)

    async def ensure(self) -> None:
        if self.failures:
            raise self.failures.pop(0)

    async def is_healthy(self) -> bool:
        return True


def test_whatever_goes_wrong_with_mlflow_is_told_once_and_tried_again(in_virtual_time: Call, log: StringIO) -> None:
    """Without it the controller goes on; an unexpected error must not end it either."""

    async def story() -> None:
        stop = asyncio.Event()

        async def stop_then() -> None:
            stop.set()

        full = OSError(28, "No space left on device")
        server = FailingMlflow(Rejected("port in use"), Rejected("port in use"), full, full)
        await _keep_running(server, stop, stop_then)  # type: ignore[arg-type]
        assert server.failures == []

    in_virtual_time(story())
    told = [line for line in log.getvalue().splitlines() if "MLflow cannot be looked after" in line]
    assert ["Traceback" in line for line in told] == [False, True]
