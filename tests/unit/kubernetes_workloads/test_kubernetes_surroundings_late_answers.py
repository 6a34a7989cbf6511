"""An API server that is slow, away or silent: its last answers count on, and no pass ends for one."""

from __future__ import annotations

import asyncio
from typing import Any

from structlog.testing import capture_logs

from retrieval_operator.adapters.kubernetes.kinds import EVENT, NAMESPACE, PERSISTENT_VOLUME_CLAIM, POD, SERVICE
from retrieval_operator.adapters.kubernetes.surroundings import KubernetesSurroundings
from retrieval_operator.ports import Retryable

BUSY = Retryable("429: too many requests")


async def test_an_answer_that_cannot_be_had_ends_no_pass_and_is_asked_for_once_in_a_while(
    told, surroundings, world, model, now, claims
):
    """What is repaired or rolled back in the same pass is known from the cache."""
    world.fail("get", PERSISTENT_VOLUME_CLAIM, BUSY, times=2)
    with capture_logs() as logs:
        for _ in range(3):
            problems = await surroundings.problems(model)
    assert [(problem.dependency, problem.holds_back) for problem in problems] == [("storage", True)] * 2
    assert "PersistentVolumeClaim search/models could not be looked up" in problems[0].message
    assert await surroundings.storage_id(model) == "", "no proof is taken back for it"
    assert world.requests.count(("get", "PersistentVolumeClaim", "models")) == 1
    assert [entry["about"].split()[2] for entry in logs] == ["models", "base-models"]
    now[0] += 30
    assert await told(model) == {}


async def test_what_was_known_counts_on_for_a_while_when_no_answer_can_be_had(surroundings, world, model, now, claims):
    world.remove(PERSISTENT_VOLUME_CLAIM, "search", "base-models")
    first, storage = await surroundings.problems(model), await surroundings.storage_id(model)
    world.fail("get", PERSISTENT_VOLUME_CLAIM, BUSY, times=100)
    with capture_logs() as logs:
        for _ in range(9):
            now[0] += 30
            assert await surroundings.problems(model) == first
            assert await surroundings.storage_id(model) == storage
    assert len(logs) == 2, "once for each claim"
    now[0] += 30
    assert all("could not be looked up" in problem.message for problem in await surroundings.problems(model))
    assert await surroundings.storage_id(model) == ""


async def test_whose_the_address_is_holds_work_back_while_it_is_not_known(
    told, surroundings, world, model, now, claims
):
    world.fail("get", SERVICE, BUSY)
    (problem,) = await surroundings.problems(model)
    assert (problem.dependency, problem.holds_back) == ("address", True)
    assert "Service search/feed could not be looked up" in problem.message
    now[0] += 30
    assert await told(model) == {}


async def test_events_that_cannot_be_listed_leave_what_they_said_before(told, surroundings, world, model, server, now):
    now[0] += 61
    world.fail("list", EVENT, BUSY)
    assert await told(model) == {}
    world.warn(world.object(POD, "search", server), "FailedMount", 'secret "certificates" not found')
    now[0] += 30
    first = await surroundings.problems(model)
    assert [problem.dependency for problem in first] == ["secret"]
    world.fail("list", EVENT, BUSY)
    now[0] += 30
    assert await surroundings.problems(model) == first


async def test_a_namespace_that_is_not_known_to_go_stays(told, world, model, claims, going):
    world.fail("get", NAMESPACE, BUSY)
    assert await told(going) == {}


class SilentApi:
    """Takes every request, and never answers."""

    def __init__(self) -> None:
        self.requests = 0

    async def get(self, *_: Any) -> Any:
        self.requests += 1
        await asyncio.Event().wait()

    list = get


async def test_a_pass_does_not_wait_long_for_an_api_server_that_is_silent(world, model, server, now):
    """All of its answers together, and not again in the next one."""
    api = SilentApi()
    surroundings = KubernetesSurroundings(api, world.cache, lambda: now[0], deadline_s=0.5)
    now[0] += 61
    async with asyncio.timeout(1.5):
        first = await surroundings.problems(model)
    asked, api.requests = api.requests, 0
    assert asked == 4, "two claims, the stable Service, and the events of a server that does not start"
    assert [problem.dependency for problem in first] == ["storage", "storage", "address"]
    assert await surroundings.problems(model) == first
    assert api.requests == 0
