"""Two operators never act at once: the Lease, with a clock of the tests' own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

from retrieval_operator.adapters.kubernetes.kinds import LEASE
from retrieval_operator.adapters.kubernetes.lease import (
    DURATION_S,
    RENEW_DEADLINE_S,
    RENEW_EVERY_S,
    RETRY_EVERY_S,
    LeaderLease,
    LeaseLost,
)
from retrieval_operator.ports import Rejected, Retryable


class Over(Exception):
    """Ends a loop that has no end."""


class Process:
    """One process and its clock: sleeping moves it, up to a limit, and lets `meanwhile` happen."""

    def __init__(self, world: Any, identity: str, now: float = 1000.0) -> None:
        self.world = world
        self.now = now
        self.slept: list[float] = []
        self.meanwhile: Callable[[], None] = lambda: None
        self.limit = 100
        self.lease = LeaderLease(
            world,
            "operator",
            "retrieval-operator",
            identity,
            monotonic=lambda: self.now,
            wall=lambda: 1_700_000_000 + self.now,
            sleep=self._sleep,
        )

    async def _sleep(self, seconds: float) -> None:
        if len(self.slept) >= self.limit:
            raise Over
        self.slept.append(seconds)
        self.now += seconds
        self.meanwhile()

    async def acquires(self, limit: int) -> bool:
        """Whether it has the lease after at most so many waits."""
        self.slept, self.limit = [], limit
        with suppress(Over):
            await self.lease.acquire()
        return self.lease.is_held

    async def holds(self, limit: int) -> None:
        """Hold it for so many waits. Raises LeaseLost."""
        self.slept, self.limit = [], limit
        with suppress(Over):
            await self.lease.hold()


def spec(world: Any) -> Any:
    return world.object(LEASE, "operator", "retrieval-operator")["spec"]


async def test_the_first_makes_the_lease_and_the_second_waits_while_it_is_renewed(world: Any) -> None:
    first, second = Process(world, "first"), Process(world, "second")
    assert await first.acquires(0)
    assert spec(world)["holderIdentity"] == "first"
    assert spec(world)["renewTime"] == "2023-11-14T22:30:00.000000Z"

    def renew() -> None:
        world.change(LEASE, "operator", "retrieval-operator", {"spec": {"renewTime": str(second.now)}})

    second.meanwhile = renew
    assert not await second.acquires(100)


async def test_a_lease_that_is_not_renewed_runs_out_by_the_clock_of_the_one_who_waits(world: Any) -> None:
    first = Process(world, "first")
    second = Process(world, "second", now=5.0)  # another machine's clock has nothing to do with the first's
    await first.acquires(0)
    assert await second.acquires(100)
    assert sum(second.slept) == DURATION_S
    assert spec(world)["holderIdentity"] == "second"
    assert spec(world)["leaseTransitions"] == 1


async def test_a_lease_that_was_released_is_free_at_once(world: Any) -> None:
    first, second = Process(world, "first"), Process(world, "second")
    await first.acquires(0)
    await first.lease.release()
    assert not first.lease.is_held
    assert await second.acquires(0)


async def test_the_same_process_started_again_does_not_wait(world: Any) -> None:
    await Process(world, "pod-1").acquires(0)
    assert await Process(world, "pod-1").acquires(0)


async def test_of_two_who_take_a_free_lease_one_gets_it(world: Any) -> None:
    first, second = Process(world, "first"), Process(world, "second")
    await first.acquires(0)
    await first.lease.release()
    world.fail("patch", LEASE, Retryable("busy"))
    assert not await second.acquires(0)
    third = Process(world, "third")
    assert await third.acquires(0)
    assert not await second.acquires(3)


async def test_holding_it_costs_one_request_per_renewal(world: Any) -> None:
    first = Process(world, "first")
    await first.acquires(0)
    before = len(world.requests)
    await first.holds(10)
    assert first.slept == [RENEW_EVERY_S] * 10
    assert world.requests[before:] == [("patch", "Lease", "retrieval-operator")] * 10


async def test_a_server_that_is_away_for_long_ends_the_holding_before_the_lease_runs_out(world: Any) -> None:
    first = Process(world, "first")
    await first.acquires(0)
    world.fail("patch", LEASE, Retryable("no route"), times=100)
    started = first.now
    with pytest.raises(LeaseLost, match="could not be renewed for 50 s: no route"):
        await first.holds(100)
    assert RENEW_DEADLINE_S <= first.now - started <= RENEW_DEADLINE_S + RETRY_EVERY_S < DURATION_S
    assert not first.lease.is_held


async def test_a_server_that_is_away_for_a_moment_does_not(world: Any) -> None:
    first = Process(world, "first")
    await first.acquires(0)
    world.fail("patch", LEASE, Retryable("no route"), times=2)
    await first.holds(6)
    assert first.lease.is_held
    assert first.slept == [RENEW_EVERY_S, RETRY_EVERY_S, RETRY_EVERY_S, *[RENEW_EVERY_S] * 3]


async def test_a_lease_that_somebody_took_is_lost_at_once(world: Any) -> None:
    first = Process(world, "first")
    await first.acquires(0)
    world.change(LEASE, "operator", "retrieval-operator", {"spec": {"holderIdentity": "second"}})
    with pytest.raises(LeaseLost, match="held by second"):
        await first.holds(5)
    assert first.slept == [RENEW_EVERY_S]


async def test_a_lease_that_somebody_deleted_is_lost_at_once(world: Any) -> None:
    first = Process(world, "first")
    await first.acquires(0)
    world.remove(LEASE, "operator", "retrieval-operator")
    with pytest.raises(LeaseLost, match="held by nobody"):
        await first.holds(20)
    assert first.slept == [RENEW_EVERY_S], "another operator may make it anew within seconds"


async def test_a_note_on_the_lease_does_not_cost_it(world: Any) -> None:
    first = Process(world, "first")
    await first.acquires(0)
    world.change(LEASE, "operator", "retrieval-operator", {"metadata": {"annotations": {"note": "x"}}})
    await first.holds(3)
    assert first.lease.is_held
    assert spec(world)["renewTime"] == "2023-11-14T22:31:30.000000Z"


async def test_who_may_not_have_a_lease_says_so(world: Any) -> None:
    world.fail("create", LEASE, Rejected("leases is forbidden"))
    with pytest.raises(Rejected, match="forbidden"):
        await Process(world, "first").lease.acquire()


async def test_releasing_without_an_answer_is_no_error(world: Any) -> None:
    first = Process(world, "first")
    await first.acquires(0)
    world.fail("patch", LEASE, Retryable("no route"))
    await first.lease.release()
    assert not first.lease.is_held
    await asyncio.wait_for(first.lease.release(), 1)
