"""Stacks in a cluster: cut anywhere and repeated, found again, never another object's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from retrieval_operator.adapters.kubernetes.kinds import (
    INFERENCE_SERVICE,
    POD,
    POD_DISRUPTION_BUDGET,
    SERVICE,
    Kind,
)
from retrieval_operator.adapters.kubernetes.stacks import unreadable_stacks
from retrieval_operator.ports import Rejected, Retryable, Stale

Make = Callable[..., Any]
PARTS = (SERVICE, POD_DISRUPTION_BUDGET, INFERENCE_SERVICE)


async def stack_of(cluster: Any, stack: str = "s1") -> Any:
    return (await cluster.stacks.observe(cluster.model)).get(stack)


async def test_a_stack_is_three_children_of_one_name(cluster: Any, record: Make) -> None:
    await cluster.stacks.create(cluster.model, record("s1"), 2)
    for kind in PARTS:
        (found,) = cluster.world.objects(kind)
        assert found["metadata"]["name"] == "feed-s1"
        (owner,) = found["metadata"]["ownerReferences"]
        assert (owner["uid"], owner["controller"]) == (cluster.model.metadata.uid, True)
    assert (await stack_of(cluster)).address == "http://feed-s1.tenant.svc"


@pytest.mark.parametrize("kind", PARTS, ids=str)
async def test_a_creation_that_was_cut_is_seen_and_goes_on(cluster: Any, record: Make, kind: Kind) -> None:
    cluster.world.fail("create", kind, Retryable("the connection was reset"))
    with pytest.raises(Retryable):
        await cluster.stacks.create(cluster.model, record("s1"), 1)
    cluster.restart()
    seen = await stack_of(cluster)
    assert seen is None if kind is SERVICE else not seen.complete
    await cluster.stacks.create(cluster.model, record("s1"), 1)
    assert (await stack_of(cluster)).complete
    assert [len(cluster.world.objects(part)) for part in PARTS] == [1, 1, 1]


@pytest.mark.parametrize("kind", PARTS, ids=str)
async def test_a_removal_that_was_cut_is_seen_and_goes_on(cluster: Any, record: Make, kind: Kind) -> None:
    await cluster.stacks.create(cluster.model, record("s1"), 1)
    cluster.world.fail("delete", kind, Retryable("the connection was reset"))
    with pytest.raises(Retryable):
        await cluster.stacks.delete(cluster.model, "s1")
    cluster.restart()
    seen = await stack_of(cluster)
    assert seen.complete is (kind is INFERENCE_SERVICE)  # it goes first
    assert seen.ready_replicas == 0
    await cluster.stacks.delete(cluster.model, "s1")
    assert await stack_of(cluster) is None
    assert [cluster.world.objects(part) for part in PARTS] == [[], [], []]


@pytest.mark.parametrize("kind", PARTS, ids=str)
async def test_what_somebody_removes_is_made_again_by_the_next_create(cluster: Any, record: Make, kind: Kind) -> None:
    await cluster.stacks.create(cluster.model, record("s1"), 1)
    cluster.world.remove(kind, "tenant", "feed-s1")
    seen = await stack_of(cluster)
    assert seen is None or not seen.complete
    await cluster.stacks.create(cluster.model, record("s1"), 1)
    assert (await stack_of(cluster)).complete


async def test_a_create_of_what_is_there_asks_the_server_nothing(cluster: Any, record: Make) -> None:
    """A failed champion is created again in every pass."""
    await cluster.stacks.create(cluster.model, record("s1"), 1)
    cluster.world.requests.clear()
    await cluster.stacks.create(cluster.model, record("s1"), 1)
    await cluster.stacks.observe(cluster.model)
    assert cluster.world.requests == []


async def test_only_pods_that_are_ready_and_stay_count(cluster: Any, record: Make) -> None:
    await cluster.stacks.create(cluster.model, record("s1"), 3)
    first, second, _ = cluster.world.add_predictor_pods("tenant", "feed-s1", 3)
    cluster.world.run_pod("tenant", first, ready=False)
    cluster.world.change(POD, "tenant", second, {"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}})
    seen = await stack_of(cluster)
    assert (seen.ready_replicas, seen.replicas) == (1, 3)


async def test_a_stack_that_is_being_removed_has_no_ready_servers_though_its_pods_still_run(
    cluster: Any, record: Make
) -> None:
    """Nobody may roll back to it."""
    await cluster.stacks.create(cluster.model, record("s1"), 1)
    cluster.world.add_predictor_pods("tenant", "feed-s1", 1)
    going = {"metadata": {"finalizers": ["foregroundDeletion"], "deletionTimestamp": "2026-01-01T00:00:00Z"}}
    cluster.world.change(INFERENCE_SERVICE, "tenant", "feed-s1", going)
    seen = await stack_of(cluster)
    assert (seen.ready_replicas, seen.complete, seen.is_ready) == (0, False, False)
    with pytest.raises(Stale):
        await cluster.switch(record("s1"))


async def test_pods_that_a_former_object_of_the_same_name_left_do_not_count(cluster: Any, record: Make) -> None:
    await cluster.stacks.create(cluster.model, record("s1"), 1)
    cluster.world.add_predictor_pods("tenant", "feed-s1", 1)
    for kind in PARTS:
        cluster.world.remove(kind, "tenant", "feed-s1")
    cluster.now += 10
    await cluster.stacks.create(cluster.model, record("s1"), 1)
    assert (await stack_of(cluster)).ready_replicas == 0


async def test_the_image_of_a_stack_is_that_of_its_server_and_not_of_what_was_put_beside_it(
    cluster: Any, record: Make
) -> None:
    await cluster.stacks.create(cluster.model, record("s1"), 1)
    (pod,) = cluster.world.add_predictor_pods("tenant", "feed-s1", 1)
    (ours,) = cluster.world.object(POD, "tenant", pod)["status"]["containerStatuses"]
    proxy = {**ours, "name": "istio-proxy", "imageID": "proxy@sha256:1"}
    statuses = {"containerStatuses": [proxy, {**ours, "imageID": "server@sha256:2"}]}
    cluster.world.change(POD, "tenant", pod, {"status": statuses})
    assert (await stack_of(cluster)).image == "server@sha256:2"


async def test_stacks_and_objects_are_told_apart(cluster: Any, record: Make) -> None:
    other = cluster.another_object("feed-two")
    for model, stack in ((cluster.model, "s1"), (cluster.model, "s2"), (other, "s1")):
        await cluster.stacks.create(model, record(stack), 1)
    cluster.world.add_predictor_pods("tenant", "feed-s2", 1)
    cluster.world.add_predictor_pods("tenant", "feed-two-s1", 1)
    ready = {name: found.ready_replicas for name, found in (await cluster.stacks.observe(cluster.model)).items()}
    assert ready == {"s1": 0, "s2": 1}


@pytest.mark.parametrize(("bounds", "autoscaler"), [((3, 0), "none"), ((2, 5), "hpa")])
async def test_scaling_patches_the_numbers_and_nothing_else(
    cluster: Any, record: Make, bounds: tuple[int, int], autoscaler: str
) -> None:
    await cluster.stacks.create(cluster.model, record("s1"), 1, bounds[1])
    before = cluster.world.object(INFERENCE_SERVICE, "tenant", "feed-s1")
    await cluster.stacks.scale(cluster.model, "s1", *bounds)
    after = cluster.world.object(INFERENCE_SERVICE, "tenant", "feed-s1")
    assert after["metadata"]["annotations"]["serving.kserve.io/autoscalerClass"] == autoscaler
    assert after["metadata"]["annotations"] == before["metadata"]["annotations"]
    assert after["metadata"]["labels"] == before["metadata"]["labels"]
    changed = {key for key, value in after["spec"]["predictor"].items() if before["spec"]["predictor"][key] != value}
    assert changed <= {"minReplicas", "maxReplicas"}
    seen = await stack_of(cluster)
    assert (seen.replicas, seen.max_replicas) == bounds
    cluster.world.requests.clear()
    await cluster.stacks.scale(cluster.model, "s1", *bounds)
    assert cluster.world.requests == []


async def test_a_name_that_somebody_else_uses_is_refused_and_theirs_stays(cluster: Any, record: Make) -> None:
    theirs = {"apiVersion": "v1", "kind": "Service", "spec": {"selector": {"app": "theirs"}}}
    cluster.world.put({**theirs, "metadata": {"name": "feed-s1", "namespace": "tenant"}})
    with pytest.raises(Rejected, match="Service tenant/feed-s1"):
        await cluster.stacks.create(cluster.model, record("s1"), 1)
    assert await cluster.stacks.observe(cluster.model) == {}
    await cluster.stacks.delete(cluster.model, "s1")
    assert cluster.world.object(SERVICE, "tenant", "feed-s1")["spec"] == theirs["spec"]


async def test_a_former_objects_children_are_waited_for(cluster: Any, record: Make, as_other: Make) -> None:
    await cluster.stacks.create(as_other(cluster.model), record("s1"), 1)
    with pytest.raises(Retryable, match="waiting until it is removed"):
        await cluster.stacks.create(cluster.model, record("s1"), 1)


DAMAGED = {"metadata": {"annotations": {"retrieval-operator.io/record": "{"}}}
RECORDLESS = {"metadata": {"annotations": {"retrieval-operator.io/record": None}}}


def untold(cluster: Any) -> list[str]:
    return list(unreadable_stacks(cluster.world.cache, cluster.model))


def damage(cluster: Any, name: str) -> None:
    """Both copies of a stack's record."""
    for kind in (SERVICE, POD_DISRUPTION_BUDGET):
        cluster.world.change(kind, "tenant", name, DAMAGED)


async def test_the_live_stacks_record_is_never_guessed(cluster: Any, record: Make) -> None:
    await cluster.stacks.create(cluster.model, record("s1"), 1)
    await cluster.switch(record("s1"))
    damage(cluster, "feed-s1")
    with pytest.raises(Rejected, match=r"Service tenant/feed-s1.*retrieval-operator\.io/record"):
        await cluster.stacks.observe(cluster.model)


async def test_another_stack_whose_record_is_damaged_is_left_out_and_told(cluster: Any, record: Make) -> None:
    """It must not stop the champion's object."""
    for stack in ("s1", "s2"):
        await cluster.stacks.create(cluster.model, record(stack), 1)
    await cluster.switch(record("s1"))
    assert untold(cluster) == []
    damage(cluster, "feed-s2")
    assert set(await cluster.stacks.observe(cluster.model)) == {"s1"}
    (sentence,) = untold(cluster)
    assert sentence.startswith("Service tenant/feed-s2 cannot be read: annotation retrieval-operator.io/record")
    words = "kubectl --namespace tenant delete services,poddisruptionbudgets,inferenceservices feed-s2"
    assert sentence.endswith(words)
    for kind in (SERVICE, POD_DISRUPTION_BUDGET, INFERENCE_SERVICE):
        cluster.world.remove(kind, "tenant", "feed-s2")
    assert untold(cluster) == [], "as the remedy promises"


@pytest.mark.parametrize("kind", [SERVICE, POD_DISRUPTION_BUDGET], ids=str)
async def test_one_of_two_copies_of_a_record_is_enough(cluster: Any, record: Make, kind: Any) -> None:
    await cluster.stacks.create(cluster.model, record("s1"), 1)
    await cluster.switch(record("s1"))
    before = await stack_of(cluster)
    cluster.world.change(kind, "tenant", "feed-s1", DAMAGED)
    assert await stack_of(cluster) == before
    assert untold(cluster) == []


async def test_a_stack_whose_service_was_deleted_by_hand_is_seen_made_whole_and_removed(
    cluster: Any, record: Make
) -> None:
    await cluster.stacks.create(cluster.model, record("s1"), 1)
    before = await stack_of(cluster)
    cluster.world.remove(SERVICE, "tenant", "feed-s1")
    cluster.restart()
    seen = await stack_of(cluster)
    assert (seen.record, seen.address, seen.complete) == (record("s1"), before.address, False)
    assert untold(cluster) == []
    await cluster.stacks.create(cluster.model, seen.record, 1)
    assert await stack_of(cluster) == before
    cluster.world.remove(SERVICE, "tenant", "feed-s1")
    await cluster.stacks.delete(cluster.model, "s1")
    assert [cluster.world.objects(part) for part in PARTS] == [[], [], []]


async def test_the_traffic_goes_back_to_a_stack_whose_service_was_deleted_by_hand(cluster: Any, record: Make) -> None:
    for stack in ("s1", "s2"):
        await cluster.stacks.create(cluster.model, record(stack), 1)
        await cluster.switch(record(stack))
    cluster.world.remove(SERVICE, "tenant", "feed-s1")
    await cluster.switch((await stack_of(cluster, "s1")).record)
    assert (await cluster.traffic.observe(cluster.model)).live == record("s1")


@pytest.mark.parametrize("keeps_budget", [True, False], ids=["of an older operator", "whose budget went, too"])
async def test_servers_that_nothing_has_the_record_of_are_told_with_the_remedy(
    cluster: Any, record: Make, keeps_budget: bool
) -> None:
    await cluster.stacks.create(cluster.model, record("s1"), 1)
    cluster.world.change(POD_DISRUPTION_BUDGET, "tenant", "feed-s1", RECORDLESS)
    assert (await stack_of(cluster)).complete, "its Service has the record, as ever"
    cluster.world.remove(SERVICE, "tenant", "feed-s1")
    if not keeps_budget:
        cluster.world.remove(POD_DISRUPTION_BUDGET, "tenant", "feed-s1")
    assert await cluster.stacks.observe(cluster.model) == {}
    (sentence,) = untold(cluster)
    assert "tenant/feed-s1" in sentence
    there = "poddisruptionbudgets,inferenceservices" if keeps_budget else "inferenceservices"
    assert sentence.endswith(f"delete {there} feed-s1")
    going = {"metadata": {"finalizers": ["x/y"], "deletionTimestamp": "2026-01-01T00:00:00Z"}}
    cluster.world.change(INFERENCE_SERVICE, "tenant", "feed-s1", going)
    assert untold(cluster) == [], "KServe ends its pods"


async def test_the_champions_stack_of_an_older_operator_that_lost_its_service_is_made_again(
    cluster: Any, record: Make
) -> None:
    await cluster.stacks.create(cluster.model, record("s1"), 1)
    await cluster.switch(record("s1"))
    cluster.world.change(POD_DISRUPTION_BUDGET, "tenant", "feed-s1", RECORDLESS)
    cluster.world.remove(SERVICE, "tenant", "feed-s1")
    assert await stack_of(cluster) is None, "which its repair answers"
    assert untold(cluster) == []
    await cluster.stacks.create(cluster.model, record("s1"), 1)
    assert (await stack_of(cluster)).complete


def waits_for_its_image(cluster: Any, pod: str) -> None:
    container = {"name": "c", "image": "server:1", "state": {"waiting": {"reason": "ErrImagePull"}}}
    status = {"containerStatuses": [container], "conditions": [{"type": "Ready", "status": "False"}]}
    cluster.world.change(POD, "tenant", pod, {"status": status})


@pytest.fixture
async def serving(cluster: Any, record: Make) -> str:
    """The pod of a stack that has served for an hour."""
    await cluster.stacks.create(cluster.model, record("s1"), 1)
    (pod,) = cluster.world.add_predictor_pods("tenant", "feed-s1", 1)
    cluster.now += 3600
    return str(pod)


async def test_a_server_of_some_age_that_lacks_something_for_a_moment_has_not_failed(
    cluster: Any, serving: str
) -> None:
    """It would end a rollout, or have a baking champion rolled back."""
    waits_for_its_image(cluster, serving)
    assert (await stack_of(cluster)).failed == ""
    cluster.now += 59
    assert (await stack_of(cluster)).failed == ""
    cluster.now += 1
    assert "server:1, which cannot be pulled" in (await stack_of(cluster)).failed


async def test_a_lack_that_went_by_does_not_count_when_the_next_one_comes(cluster: Any, serving: str) -> None:
    waits_for_its_image(cluster, serving)
    await stack_of(cluster)
    cluster.world.run_pod("tenant", serving)
    cluster.now += 3600
    await stack_of(cluster)
    waits_for_its_image(cluster, serving)
    assert (await stack_of(cluster)).failed == ""


async def test_another_operator_gives_a_server_its_grace_once_more(cluster: Any, serving: str) -> None:
    waits_for_its_image(cluster, serving)
    await stack_of(cluster)
    cluster.now += 60
    cluster.restart()
    assert (await stack_of(cluster)).failed == ""
    cluster.now += 60
    assert (await stack_of(cluster)).failed
