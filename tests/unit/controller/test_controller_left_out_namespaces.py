"""Namespaces that the operator may not read: left out, and told, while it looks after the others."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from io import StringIO
from typing import Any

import kopf
import pytest
from controller_examples import NOW
from kubernetes_world import KubernetesWorld
from mode_process import MODEL, Process, until

from retrieval_operator import kopf_app, kubernetes_mode
from retrieval_operator.adapters.kubernetes.kinds import JOB, RETRIEVAL_MODEL, Kind, Object
from retrieval_operator.ports import Rejected


class WorldWithRoles(KubernetesWorld):
    """In the `forbidden` namespaces nothing may be listed; the values are the kinds, none given: every kind."""

    def __init__(self, clock: Callable[[], int]) -> None:
        super().__init__(clock)
        self.forbidden: dict[str, tuple[Kind, ...]] = {}

    async def list(self, kind: Kind, namespace: str | None, labels: Mapping[str, str]) -> list[Object]:
        if namespace in self.forbidden and kind in (self.forbidden[namespace] or (kind,)):
            raise Rejected(f'{kind.plural} is forbidden in the namespace "{namespace}"')
        return await super().list(kind, namespace, labels)


@pytest.fixture
def namespaced(monkeypatch: pytest.MonkeyPatch) -> Process:
    """Looks after the namespaces ml and gone; each turn of its loop is due at once."""
    for constant in ("_RETRY_S", "_RESYNC_AFTER_LISTING_S", "_RESYNC_S", "_RETRY_AFTER_RESYNC_S", "_MISSING_KINDS_S"):
        monkeypatch.setattr(kubernetes_mode, constant, 0)
    world = WorldWithRoles(lambda: NOW)
    for namespace in ("ml", "gone"):
        world.put({**MODEL, "metadata": {"name": "feed", "namespace": namespace}})
    return Process(world, "ml", "gone")


@pytest.mark.parametrize("kinds", [(), (JOB,)], ids=["every kind", "a kind that is listed later"])
async def test_a_namespace_without_our_role_is_left_out_and_the_others_are_looked_after(
    namespaced: Process, kinds: tuple[Kind, ...], log: StringIO
) -> None:
    namespaced.world.forbidden["gone"] = kinds
    running = await namespaced.start()
    await until(namespaced.status)
    namespaced.stop.set()
    await running
    assert [namespace for namespace, _, _ in namespaced.mode.statuses()] == ["ml"]
    assert "status" not in namespaced.world.object(RETRIEVAL_MODEL, "gone", "feed")
    [warning] = [line for line in map(json.loads, log.getvalue().splitlines()) if "is left out" in line["event"]]
    assert (warning["level"], warning["namespace"]) == ("warning", "gone")
    assert "watch.namespaces" in warning["event"]


async def test_a_namespace_that_is_left_out_is_not_watched(
    namespaced: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    """kopf would end the process when its watch is refused."""
    asked: dict[str, Any] = {}

    async def operator(**settings: Any) -> None:
        asked.update(settings)

    monkeypatch.setattr(kopf, "operator", operator)
    namespaced.world.forbidden["gone"] = ()
    await kopf_app.serve(namespaced.mode)
    assert (asked["clusterwide"], asked["namespaces"]) == (False, ["ml"])


async def test_a_namespace_that_was_left_out_and_can_be_listed_again_ends_the_process(namespaced: Process) -> None:
    namespaced.world.forbidden["gone"] = ()
    running = await namespaced.start()
    await until(namespaced.status)
    namespaced.world.forbidden["gone"] = (JOB,)
    for _ in range(100):
        await asyncio.sleep(0)
    assert not namespaced.stop.is_set(), "it would be left out again at once"
    del namespaced.world.forbidden["gone"]
    await running
    assert namespaced.stop.is_set()
    assert not namespaced.holder()


async def test_a_namespace_that_loses_our_role_ends_the_process_which_starts_again_without_it(
    namespaced: Process,
) -> None:
    running = await namespaced.start()
    await until(namespaced.status)
    namespaced.world.fail("list", JOB, Rejected("jobs.batch is forbidden"))
    for _ in range(100):
        await asyncio.sleep(0)
    assert not namespaced.stop.is_set(), "an API server that starts refuses for a moment"
    namespaced.world.forbidden["gone"] = ()
    await running
    assert namespaced.stop.is_set()
    assert not namespaced.holder()


async def test_an_operator_that_may_list_none_of_its_namespaces_ends_with_the_servers_words(
    namespaced: Process,
) -> None:
    namespaced.world.forbidden |= {"ml": (), "gone": ()}
    with pytest.raises(Rejected, match='forbidden in the namespace "gone"'):
        await namespaced.mode.discover()
