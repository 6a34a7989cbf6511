"""The stable Service: what it says, who may move it, and what a person does to it by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from retrieval_operator.adapters.kubernetes.kinds import INFERENCE_SERVICE, SERVICE
from retrieval_operator.api.status import Champion, RetrievalModelStatus
from retrieval_operator.ports import Rejected, Retryable, Stale

Make = Callable[..., Any]
SELECTOR = {"retrieval-operator.io/name": "feed", "retrieval-operator.io/stack": "s1"}
PORTS: list[dict[str, Any]] = [
    {"name": "http", "port": 80, "targetPort": 8080},
    {"name": "grpc", "port": 8081, "targetPort": 8081, "protocol": "TCP"},
]
DAMAGES: dict[str, Any] = {
    "another key in its selector": {"spec": {"selector": {"app": "typo"}}},
    "another object in its selector": {"spec": {"selector": {"retrieval-operator.io/name": "typo"}}},
    "another port": {"spec": {"ports": [PORTS[0] | {"port": 8080}, PORTS[1]]}},
    "another port of the pods": {"spec": {"ports": [PORTS[0] | {"targetPort": 80}, PORTS[1]]}},
    "no port for gRPC": {"spec": {"ports": PORTS[:1]}},
}


@pytest.fixture
async def live(cluster: Any, record: Make) -> Any:
    """Stacks s1 and s2 exist, s1 is live."""
    for stack in ("s1", "s2"):
        await cluster.stacks.create(cluster.model, record(stack), 1)
    await cluster.switch(record("s1"))
    cluster.now += 100
    return cluster


def stable(cluster: Any) -> Any:
    return cluster.world.object(SERVICE, "tenant", "feed")


async def test_the_first_switch_makes_the_service_with_its_selector(live: Any) -> None:
    assert stable(live)["spec"]["selector"] == SELECTOR
    seen = await live.traffic.observe(live.model)
    assert seen.address == "http://feed.tenant.svc"
    assert seen.version == stable(live)["metadata"]["resourceVersion"]


async def test_a_switch_is_one_patch(live: Any, record: Make) -> None:
    live.world.requests.clear()
    await live.switch(record("s2"))
    assert live.world.requests == [("patch", "Service", "feed")]
    assert stable(live)["spec"]["selector"] == {**SELECTOR, "retrieval-operator.io/stack": "s2"}
    seen = await live.traffic.observe(live.model)
    assert (seen.live, seen.previous, seen.switched_at) == (record("s2"), "s1", live.now)


async def test_the_same_stack_under_another_record_keeps_since_when_it_is_live(live: Any, record: Make) -> None:
    await live.switch(record("s2"))
    before = await live.traffic.observe(live.model)
    live.now += 100
    await live.switch(record("s2", revision="another"))
    seen = await live.traffic.observe(live.model)
    assert seen.live == record("s2", revision="another")
    assert (seen.previous, seen.switched_at) == (before.previous, before.switched_at)
    assert seen.version != before.version


async def test_a_change_that_the_cache_has_not_heard_of_makes_a_switch_stale(live: Any, record: Make) -> None:
    """The API server compares, not the operator."""
    version = (await live.traffic.observe(live.model)).version
    live.world.hold_watches()
    live.world.change(SERVICE, "tenant", "feed", {"metadata": {"labels": {"by": "hand"}}})
    with pytest.raises(Stale):
        await live.traffic.switch(live.model, record("s2"), version, live.now)
    assert stable(live)["spec"]["selector"] == SELECTOR


async def test_a_service_that_was_made_meanwhile_makes_the_first_switch_stale(cluster: Any, record: Make) -> None:
    for stack in ("s1", "s2"):
        await cluster.stacks.create(cluster.model, record(stack), 1)
    await cluster.switch(record("s1"))
    with pytest.raises(Stale):
        await cluster.traffic.switch(cluster.model, record("s2"), "0", cluster.now)


async def test_a_cut_switch_has_happened_or_not(live: Any, record: Make) -> None:
    live.world.fail("patch", SERVICE, Retryable("the connection was reset"))
    with pytest.raises(Retryable):
        await live.switch(record("s2"))
    assert (await live.traffic.observe(live.model)).live == record("s1")


async def test_a_service_that_vanished_is_stale_and_not_the_end_of_the_object(live: Any, record: Make) -> None:
    version = (await live.traffic.observe(live.model)).version
    live.world.hold_watches()
    live.world.remove(SERVICE, "tenant", "feed")
    with pytest.raises(Stale):
        await live.traffic.switch(live.model, record("s2"), version, live.now)


async def test_a_stack_without_servers_is_not_switched_to(live: Any, record: Make) -> None:
    live.world.remove(INFERENCE_SERVICE, "tenant", "feed-s2")
    with pytest.raises(Stale, match="s2"):
        await live.switch(record("s2"))


async def test_a_selector_moved_by_hand_is_the_truth(live: Any, record: Make) -> None:
    """`kubectl patch service` in an emergency: the record is that of the stack's own Service."""
    moved = {"spec": {"selector": {"retrieval-operator.io/stack": "s2"}}}
    live.world.change(SERVICE, "tenant", "feed", moved)
    seen = await live.traffic.observe(live.model)
    assert (seen.live, seen.previous) == (record("s2"), "s1")
    with pytest.raises(Rejected, match="s2"):
        await live.stacks.delete(live.model, "s2")
    await live.switch(record("s1"))
    assert (await live.traffic.observe(live.model)).live == record("s1")


async def test_a_selector_that_somebody_moved_to_a_stack_without_its_service_is_read_by_its_budget(
    live: Any, record: Make
) -> None:
    live.world.remove(SERVICE, "tenant", "feed-s2")
    live.world.change(SERVICE, "tenant", "feed", {"spec": {"selector": {"retrieval-operator.io/stack": "s2"}}})
    assert (await live.traffic.observe(live.model)).live == record("s2")


def remembering(live: Any, record: Any, promoted_at: int) -> Any:
    """The object whose status has this champion."""
    champion = Champion(**record.model_dump(), promoted_at=promoted_at, baking_until=promoted_at)
    return live.model.model_copy(update={"status": RetrievalModelStatus(champion=champion)})


async def test_a_selector_moved_by_hand_bakes_from_when_it_was_first_seen(live: Any, record: Make) -> None:
    """The time in the annotations is that of the switch before it, whose window may be over."""
    since = (await live.traffic.observe(live.model)).switched_at
    live.world.change(SERVICE, "tenant", "feed", {"spec": {"selector": {"retrieval-operator.io/stack": "s2"}}})
    for model in (live.model, remembering(live, record("s1"), since)):
        seen = await live.traffic.observe(model)
        assert (seen.live, seen.previous, seen.switched_at) == (record("s2"), "s1", live.now)
    first_seen = live.now
    live.now += 50
    live.restart()
    seen = await live.traffic.observe(remembering(live, record("s2"), first_seen))
    assert (seen.live, seen.switched_at) == (record("s2"), first_seen), "another operator knows it, too"


async def test_what_a_selector_was_moved_away_from_is_what_was_live_last(live: Any, record: Make) -> None:
    """Not what the annotations say after a second move by hand."""
    live.world.change(SERVICE, "tenant", "feed", {"spec": {"selector": {"retrieval-operator.io/stack": "s2"}}})
    await live.stacks.create(live.model, record("s3"), 1)
    live.world.change(SERVICE, "tenant", "feed", {"spec": {"selector": {"retrieval-operator.io/stack": "s3"}}})
    seen = await live.traffic.observe(remembering(live, record("s2"), live.now - 10))
    assert (seen.live, seen.previous, seen.switched_at) == (record("s3"), "s2", live.now)


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
async def test_a_service_that_leads_nowhere_any_more_is_seen_and_made_whole(
    live: Any, record: Make, damage: Any
) -> None:
    """Under its champion, since when it is that, and what was live before."""
    await live.switch(record("s2"))
    before, whole = await live.traffic.observe(live.model), stable(live)["spec"]
    live.now += 100
    live.world.change(SERVICE, "tenant", "feed", damage)
    model = remembering(live, record("s2"), before.switched_at)
    seen = await live.traffic.observe(model)
    assert (seen.live, seen.address) == (None, before.address)
    await live.traffic.switch(model, record("s2"), seen.version, live.now)
    assert stable(live)["spec"] == whole
    after = await live.traffic.observe(model)
    assert replace(after, version="") == replace(before, version="")


async def test_a_service_that_leads_nowhere_is_switched_to_another_stack_at_once(live: Any, record: Make) -> None:
    live.world.change(SERVICE, "tenant", "feed", {"spec": {"selector": {"app": "typo"}}})
    model = remembering(live, record("s1"), live.now)
    await live.traffic.switch(model, record("s2"), (await live.traffic.observe(model)).version, live.now)
    seen = await live.traffic.observe(model)
    assert (seen.live, seen.previous, seen.switched_at) == (record("s2"), "s1", live.now)


@pytest.mark.parametrize("remembered", ["", "s1"], ids=["a lost status", "a status of before"])
async def test_a_champion_that_the_status_does_not_know_is_told_before_what_is_wrong_with_its_service(
    live: Any, record: Make, remembered: str
) -> None:
    """Else the traffic would go back to another one, or everything would be removed."""
    moved = {"spec": {"selector": {"retrieval-operator.io/stack": "s2", "app": "typo"}}}
    live.world.change(SERVICE, "tenant", "feed", moved)
    model = remembering(live, record(remembered), live.now) if remembered else live.model
    assert (await live.traffic.observe(model)).live == record("s2")


@pytest.mark.parametrize(
    "change",
    [
        {"spec": {"type": "LoadBalancer"}, "metadata": {"annotations": {"cloud": "yes"}}},
        {"spec": {"ports": [*PORTS, {"name": "metrics", "port": 9090, "targetPort": 9090}]}},
        {"spec": {"ports": [PORTS[0] | {"nodePort": 30080}, PORTS[1] | {"appProtocol": None}]}},
    ],
    ids=["its type", "another port", "what does not decide where connections go"],
)
async def test_what_people_may_do_to_the_service_is_left_alone(live: Any, record: Make, change: Any) -> None:
    live.world.change(SERVICE, "tenant", "feed", change)
    assert (await live.traffic.observe(remembering(live, record("s1"), live.now))).live == record("s1")


async def test_what_somebody_added_to_the_selector_goes_with_the_next_switch(live: Any, record: Make) -> None:
    live.world.change(SERVICE, "tenant", "feed", {"spec": {"selector": {"app": "typo"}}})
    await live.switch(record("s2"))
    assert stable(live)["spec"]["selector"] == {**SELECTOR, "retrieval-operator.io/stack": "s2"}


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ({"metadata": {"annotations": {"retrieval-operator.io/record": None}}}, "retrieval-operator.io/record"),
        ({"metadata": {"annotations": {"retrieval-operator.io/record": '{"stack": 1}'}}}, "a stack's record"),
        ({"metadata": {"annotations": {"retrieval-operator.io/switched-at": "noon"}}}, "no time in seconds"),
        ({"spec": {"selector": {"retrieval-operator.io/stack": "s9"}}}, "names stack 's9'"),
        ({"spec": {"selector": {"retrieval-operator.io/stack": None}}}, "names stack ''"),
    ],
)
async def test_a_champion_is_never_guessed(live: Any, damage: Any, words: str) -> None:
    live.world.change(SERVICE, "tenant", "feed", damage)
    with pytest.raises(Rejected, match=words):
        await live.traffic.observe(live.model)


async def test_a_service_of_somebody_else_is_refused_and_stays(cluster: Any, record: Make) -> None:
    theirs = {"apiVersion": "v1", "kind": "Service", "spec": {"selector": {"app": "theirs"}}}
    cluster.world.put({**theirs, "metadata": {"name": "feed", "namespace": "tenant"}})
    await cluster.stacks.create(cluster.model, record("s1"), 1)
    assert (await cluster.traffic.observe(cluster.model)).live is None
    with pytest.raises(Rejected, match="Service tenant/feed"):
        await cluster.switch(record("s1"))
    await cluster.traffic.close(cluster.model)
    assert stable(cluster)["spec"] == theirs["spec"]
