"""The registry is polled only when its view may have become wrong."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import httpx
import pytest

from retrieval_operator.adapters.mlflow import Connection, MlflowRegistry
from retrieval_operator.api.status import Candidate, CandidateKind, RetrievalModelStatus
from retrieval_operator.controller import Controller
from retrieval_operator.domain.observed import Problem
from retrieval_operator.ports import Retryable
from retrieval_operator.work_queue import WorkQueue

Call = Callable[..., Any]  # a fixture of conftest.py

KEY = "default/feed"
NOW = 1_700_000_000
CANDIDATE = Candidate(
    id="1", kind=CandidateKind.REVISION, revision="1", generation=1, started_at=NOW, step_started_at=NOW
)


async def test_a_settled_objects_registry_view_is_used_until_it_is_too_old(world: Any, a_plan: Call) -> None:
    controller = world.controller(a_plan(), registry_poll_s=30)
    for seconds, polls in ((0, 1), (10, 1), (29, 1), (30, 2), (31, 2)):
        world.now = NOW + seconds
        await controller.reconcile(KEY)
        assert world.count("registry.observe") == polls, f"after {seconds} s"


@pytest.mark.parametrize(
    "change",
    [
        {"generation": 2},
        {"annotations": {"retrieval-operator.io/retry": "now"}},
        {"uid": "u-2"},
    ],
)
async def test_whatever_people_ask_for_polls_the_registry(
    world: Any, change: dict[str, Any], a_model: Call, a_plan: Call
) -> None:
    controller = world.controller(a_plan())
    await controller.reconcile(KEY)
    world.model = a_model(**change)
    await controller.reconcile(KEY)
    assert world.count("registry.observe") == 2


async def test_a_candidate_in_flight_polls_the_registry_in_every_pass(world: Any, a_plan: Call) -> None:
    status = RetrievalModelStatus(candidate=CANDIDATE)
    controller = world.controller(a_plan(status=status))
    for _ in range(3):
        await controller.reconcile(KEY)
    assert world.count("registry.observe") == 3


async def test_an_unreachable_registry_is_asked_again_in_the_next_pass(world: Any, a_plan: Call) -> None:
    controller = world.controller(a_plan())
    world.failures["registry.observe"] = Retryable("away")
    await controller.reconcile(KEY)
    del world.failures["registry.observe"]
    await controller.reconcile(KEY)
    assert world.count("registry.observe") == 2


def test_a_registry_that_takes_too_long_does_not_hold_up_the_rest(
    in_virtual_time: Any, world: Any, a_plan: Call
) -> None:
    async def story() -> None:
        world.during["registry.observe"] = lambda: asyncio.sleep(10_000)
        result = await world.controller(a_plan(requeue=5.0), registry_deadline_s=20).reconcile(KEY)
        assert asyncio.get_running_loop().time() == pytest.approx(20)
        assert result.outcome == "settled"
        observed = world.seen[0][1]
        assert observed.registry is None
        late = "its runs and reports were not read within 20 s; the next look goes on from there"
        assert observed.problems == (Problem(dependency="registry", message=late),)

    in_virtual_time(story())


def test_a_preview_waits_for_the_registry_however_long_it_takes(in_virtual_time: Any, world: Any, a_plan: Call) -> None:
    """Nothing is late for it, and a command that begins anew each time would never get beyond a deadline."""
    world.during["registry.observe"] = lambda: asyncio.sleep(10_000)
    observed, _ = in_virtual_time(world.controller(a_plan()).preview(world.model))
    assert observed.registry is not None


def test_a_hundred_objects_whose_mlflow_hangs_are_still_looked_at_in_time(
    in_virtual_time: Any, world: Any, a_plan: Call
) -> None:
    looks: list[float] = []

    async def hang(_request: httpx.Request) -> httpx.Response:
        await asyncio.sleep(15)
        raise httpx.ReadTimeout("")

    async def story() -> None:
        loop, queue = asyncio.get_running_loop(), WorkQueue()
        connections = {"default": Connection(uri="http://mlflow.test")}
        registry = MlflowRegistry(connections, now=loop.time, transport=httpx.MockTransport(hang))

        def decide(*_: Any) -> Any:
            looks.append(loop.time())
            return a_plan(requeue=5.0)

        controller = Controller(replace(world.ports(), registry=registry), decide, lambda: NOW + int(loop.time()))
        for number in range(100):
            queue.add(f"default/feed-{number}")
        work = asyncio.create_task(controller.work(queue, workers=4))
        await asyncio.sleep(120)
        queue.stop()
        await work
        await registry.close()

    in_virtual_time(story())
    assert len(looks) > 100 * 120 / 5 * 0.8, "each about every 5 s; 32 if each had to wait for its own time-out"
