"""When the next pass comes: the table at the top of controller.py."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from retrieval_operator.domain.plan import Action, DeleteWorkload, Plan, StopWorkload
from retrieval_operator.ports import Gone, Rejected, Retryable, Stale
from retrieval_operator.work_queue import Backoff, WorkQueue

Call = Callable[..., Any]  # a fixture of conftest.py

KEY = "default/feed"
DELETE, STOP = DeleteWorkload(name="first"), StopWorkload(name="second")


def passes(in_virtual_time: Any, world: Any, plans: Sequence[Plan], until_s: float) -> Sequence[float]:
    """The times at which passes began, from one key added at 0, with a back-off of 1, 2, 4, ... seconds."""

    async def story() -> list[float]:
        loop = asyncio.get_running_loop()
        times: list[float] = []
        queue = WorkQueue(backoff=Backoff(jitter=0))

        async def note() -> None:
            times.append(loop.time())

        world.during["workloads.observe"] = note
        queue.add(KEY)
        work = asyncio.create_task(world.controller(*plans).work(queue, workers=2))
        await asyncio.sleep(until_s)
        queue.stop()
        await work
        return times

    return in_virtual_time(story())


@pytest.mark.parametrize(
    ("actions", "requeue", "expected"),
    [
        pytest.param([()], None, [0], id="settled without a date: never"),
        pytest.param([()], 4, [0, 4, 8], id="settled: when the plan says"),
        pytest.param([(DELETE,), (STOP,), ()], None, [0, 0, 0], id="acted: at once"),
        pytest.param([(STOP,)], None, [0, 0, 1, 3, 7], id="repeated: backed off"),
    ],
)
def test_when_the_next_pass_comes(
    in_virtual_time: Any,
    world: Any,
    a_plan: Call,
    actions: list[tuple[Action, ...]],
    requeue: float | None,
    expected: list[float],
) -> None:
    script = [a_plan(*of_pass, requeue=requeue) for of_pass in actions]
    assert passes(in_virtual_time, world, script, until_s=9) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (Retryable("busy"), [0, 1, 3, 7]),
        (Rejected("quota"), [0, 1, 3, 7]),
        (Stale("older"), [0, 0, 2, 6]),
        (ZeroDivisionError("a defect"), [0, 1, 3, 7]),
        (Gone("its namespace is being deleted"), [0, 0, 2, 6]),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_when_a_failed_pass_is_repeated(
    in_virtual_time: Any, world: Any, error: Exception, expected: list[float], a_plan: Call
) -> None:
    world.failures["workloads.stop"] = error
    assert passes(in_virtual_time, world, [a_plan(STOP)], until_s=9) == pytest.approx(expected)
