"""When the next pass comes: the table at the top of controller.py."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import pytest
from controller_examples import NOW, RECORD

from retrieval_operator.api.conditions import Condition, ConditionType, Reason
from retrieval_operator.api.status import Champion, RetrievalModelStatus, StackRecord
from retrieval_operator.controller import settled_for_s
from retrieval_operator.domain.plan import Action, CreateStack, DeleteWorkload, Plan, SetAlias, StopWorkload
from retrieval_operator.ports import Gone, PortError, Rejected, Retryable, Stale
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
        pytest.param([()], None, [0], id="settled without a date: not soon"),
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


def with_champion(ready: bool, address: str) -> RetrievalModelStatus:
    champion = Champion(**RECORD.model_dump(), promoted_at=NOW, token="t", baking_until=NOW)
    said = Condition(
        type=ConditionType.READY,
        status="True" if ready else "False",
        reason=Reason.CHAMPION_SERVING if ready else Reason.CHAMPION_NOT_READY,
        observed_generation=1,
        last_transition_time=NOW,
    )
    return RetrievalModelStatus(champion=champion, conditions=[said], address=address)


SERVES = with_champion(ready=True, address="http://feed")
NOT_READY = with_champion(ready=False, address="http://feed")
WITHOUT_TRAFFIC = with_champion(ready=True, address="")
BACKED_OFF = [0, 1, 3, 7, 15, 31]
EVERY_5_S = [0, 1, 3, 7, 12, 17, 22, 27, 32, 37]


@pytest.mark.parametrize(
    ("status", "requeue", "expected"),
    [
        pytest.param(SERVES, 2, BACKED_OFF, id="it serves: backed off"),
        pytest.param(RetrievalModelStatus(), 2, BACKED_OFF, id="nothing was promoted yet: backed off"),
        pytest.param(NOT_READY, None, BACKED_OFF, id="the plan waits for nothing: backed off"),
        pytest.param(NOT_READY, 5, EVERY_5_S, id="it is not ready: when the plan says"),
        pytest.param(NOT_READY, 1, EVERY_5_S, id="but not sooner than after 5 s"),
        pytest.param(NOT_READY, 12, [0, 1, 3, 7, 15, 27, 39], id="nor than the plan says"),
        pytest.param(WITHOUT_TRAFFIC, 5, EVERY_5_S, id="its address is gone: when the plan says"),
    ],
)
@pytest.mark.parametrize("error", [Retryable("it refuses writes"), Rejected("never")], ids=["delayed", "refused"])
def test_how_long_a_back_off_may_be_while_the_champion_does_not_serve(
    in_virtual_time: Any,
    world: Any,
    a_plan: Call,
    error: PortError,
    status: RetrievalModelStatus,
    requeue: float | None,
    expected: list[float],
) -> None:
    world.failures["registry.set_alias"] = error
    plan = a_plan(SetAlias(alias="champion", version="1"), status=status, requeue=requeue)
    assert passes(in_virtual_time, world, [plan], until_s=40) == pytest.approx(expected)


OTHERS = RECORD.model_copy(update={"stack": "another"})


@pytest.mark.parametrize(
    ("refused", "record", "expected"),
    [
        (["stacks.create"], RECORD, BACKED_OFF),
        (["workloads.stop", "stacks.create"], RECORD, BACKED_OFF),
        (["workloads.stop"], RECORD, EVERY_5_S),
        (["stacks.create"], OTHERS, EVERY_5_S),
    ],
    ids=["the repair", "the repair and something else", "something else", "the candidate's stack"],
)
def test_only_the_repair_itself_is_backed_off_when_it_is_refused(
    in_virtual_time: Any,
    world: Any,
    a_plan: Call,
    refused: list[str],
    record: StackRecord,
    expected: list[float],
) -> None:
    world.failures = dict.fromkeys(refused, Rejected("never"))
    plan = a_plan(STOP, CreateStack(record=record, replicas=1), status=NOT_READY, requeue=5)
    assert passes(in_virtual_time, world, [plan], until_s=40) == pytest.approx(expected)


def test_a_settled_object_is_looked_at_about_every_hour(in_virtual_time: Any, world: Any, a_plan: Call) -> None:
    """Nobody tells of what changed in MLflow."""
    times = passes(in_virtual_time, world, [a_plan()], until_s=3 * 3600)
    assert times == pytest.approx([0, settled_for_s(KEY), 2 * settled_for_s(KEY)])


def test_settled_objects_are_not_looked_at_all_at_once() -> None:
    turns = sorted(settled_for_s(f"default/feed-{number}") for number in range(100))
    assert turns[0] >= 3300 and turns[-1] <= 3900
    assert max(later - sooner for sooner, later in pairwise(turns)) < 60
    assert len({round(turn) for turn in turns}) > 80


def test_a_pass_that_repeats_itself_is_followed_in_time_too(in_virtual_time: Any, world: Any, a_plan: Call) -> None:
    plan = a_plan(STOP, status=NOT_READY, requeue=5)
    assert passes(in_virtual_time, world, [plan], until_s=24) == pytest.approx([0, 0, 1, 3, 7, 12, 17, 22])


def test_a_pass_that_came_to_no_plan_is_backed_off(in_virtual_time: Any, world: Any, a_plan: Call) -> None:
    world.failures["stacks.observe"] = Retryable("busy")
    plan = a_plan(STOP, status=NOT_READY, requeue=5)
    assert passes(in_virtual_time, world, [plan], until_s=40) == pytest.approx(BACKED_OFF)
