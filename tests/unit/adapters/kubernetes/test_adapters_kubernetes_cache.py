"""The cache of watched objects, and the feed that fills it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval_operator.adapters.kubernetes.cache import Cache, WriteThrough
from retrieval_operator.adapters.kubernetes.feed import OPTIONAL, WATCHED, Feed, labels_of
from retrieval_operator.adapters.kubernetes.kinds import INFERENCE_SERVICE, JOB, POD, RETRIEVAL_MODEL, SERVICE, Object
from retrieval_operator.adapters.kubernetes.pod_status import first_failure, first_lack, image_digest, is_alive
from retrieval_operator.adapters.kubernetes.servers import read_servers
from retrieval_operator.api.constants import LABEL_MANAGED_BY, LABEL_NAME, LABEL_STACK, MANAGED_BY
from retrieval_operator.api.types import rfc3339
from retrieval_operator.ports import Retryable


def job(version: int, *, name: str = "job", uid: str = "u1", owner: str = "", label: str = "", **spec: Any) -> Object:
    metadata: Object = {"name": name, "namespace": "ml", "uid": uid, "resourceVersion": str(version)}
    if owner:
        metadata["ownerReferences"] = [{"kind": "RetrievalModel", "name": "feed", "uid": owner}]
    if label:
        metadata["labels"] = {LABEL_NAME: label, LABEL_MANAGED_BY: MANAGED_BY}
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": spec}


def test_an_older_version_of_an_object_does_not_replace_a_newer_one() -> None:
    cache = Cache()
    assert cache.put(JOB, job(10, suspend=True))
    assert not cache.put(JOB, job(9, suspend=False))
    assert not cache.put(JOB, job(10, suspend=True))
    assert cache.get(JOB, "ml", "job") == job(10, suspend=True)
    assert cache.put(JOB, job(11))  # as numbers: "9" is older than "10"


def test_a_late_answer_does_not_bring_back_what_is_gone() -> None:
    cache = Cache()
    cache.put(JOB, job(1))
    assert cache.remove(JOB, job(3))
    assert not cache.put(JOB, job(2))
    assert cache.get(JOB, "ml", "job") is None


def test_an_older_end_undoes_nothing_that_was_told_since() -> None:
    """A listing repeats what it saw before the watch told more."""
    cache = Cache()
    cache.put(JOB, job(10))
    cache.remove(JOB, job(12))
    assert not cache.remove(JOB, job(10))
    assert not cache.put(JOB, job(11)), "a late answer"
    assert cache.put(JOB, job(13)), "its label was set again"
    assert not cache.remove(JOB, job(10))
    assert cache.get(JOB, "ml", "job") == job(13)


def test_the_end_of_a_predecessor_does_not_remove_its_successor() -> None:
    cache = Cache()
    cache.put(JOB, job(1, uid="before"))
    cache.put(JOB, job(5, uid="after"))
    assert not cache.put(JOB, job(3, uid="before"))
    assert not cache.remove(JOB, job(4, uid="before"))
    found = cache.get(JOB, "ml", "job")
    assert found is not None
    assert found["metadata"]["uid"] == "after"


def test_children_are_found_by_their_owner_and_leave_it_with_their_reference() -> None:
    cache = Cache()
    cache.put(JOB, job(1, name="b", uid="b", owner="us"))
    cache.put(JOB, job(2, name="a", uid="a", owner="us"))
    cache.put(JOB, job(3, name="c", uid="c", owner="others"))
    assert [child["metadata"]["name"] for child in cache.children(JOB, "ml", "us")] == ["a", "b"]
    assert cache.children(SERVICE, "ml", "us") == []
    cache.put(JOB, job(4, name="a", uid="a"))
    assert [child["metadata"]["name"] for child in cache.children(JOB, "ml", "us")] == ["b"]


def test_what_names_an_owner_from_another_namespace_is_not_its_child() -> None:
    """Anybody who may make a Job somewhere may write any UID into it."""
    cache = Cache()
    cache.put(JOB, job(1, name="ours", owner="us"))
    foreign = job(2, name="theirs", uid="theirs", owner="us")
    cache.put(JOB, {**foreign, "metadata": foreign["metadata"] | {"namespace": "elsewhere"}})
    assert [child["metadata"]["name"] for child in cache.children(JOB, "ml", "us")] == ["ours"]


def test_objects_are_found_by_the_label_of_their_model_whoever_owns_them() -> None:
    cache = Cache()
    cache.put(JOB, job(1, owner="replica-set", label="feed"))
    assert [found["metadata"]["name"] for found in cache.labelled(JOB, "ml", "feed")] == ["job"]
    assert cache.labelled(JOB, "other", "feed") == []
    cache.put(JOB, job(2, label="other"))
    assert cache.labelled(JOB, "ml", "feed") == []
    cache.remove(JOB, job(3))
    assert cache.labelled(JOB, "ml", "other") == []


def test_who_manages_which_field_is_not_kept() -> None:
    cache, obj = Cache(), job(1)
    obj["metadata"]["managedFields"] = [{"manager": "kubectl"}]
    cache.put(JOB, obj)
    found = cache.get(JOB, "ml", "job")
    assert found is not None
    assert "managedFields" not in found["metadata"]
    assert "managedFields" in obj["metadata"]


def test_what_is_told_of_again_is_back() -> None:
    """An object whose label is taken off is told as deleted, and as added when it is set again."""
    cache = Cache()
    cache.put(JOB, job(1))
    cache.remove(JOB, job(2))
    assert cache.put(JOB, job(3))
    assert cache.get(JOB, "ml", "job") is not None


NOW = 1_700_000_000
POD_METADATA = {
    "name": "feed-1-train-1-00000",
    "namespace": "ml",
    "uid": "p1",
    "resourceVersion": "1",
    "creationTimestamp": rfc3339(NOW - 600),
    "deletionTimestamp": rfc3339(NOW - 300),
    "labels": {LABEL_NAME: "feed", LABEL_STACK: "s1", LABEL_MANAGED_BY: MANAGED_BY},
    "annotations": {"kubernetes.io/limit-ranger": "a long sentence"},
    "ownerReferences": [{"kind": "Job", "name": "feed-1-train-1", "uid": "us"}],
}
ENDED = {"terminated": {"exitCode": 65, "reason": "Error", "message": "items: none", "finishedAt": rfc3339(NOW)}}
WAITING = {"waiting": {"reason": "CreateContainerConfigError", "message": 'secret "keys" not found'}}
RUNNING = {"running": {"startedAt": rfc3339(NOW)}}


@pytest.mark.parametrize(
    ("phase", "state"), [("Failed", ENDED), ("Pending", WAITING), ("Running", RUNNING)], ids=["failed", "waits", "runs"]
)
def test_of_a_pod_is_kept_what_is_read_and_not_what_it_was_made_from(phase: str, state: Object) -> None:
    container = {"name": "main", "image": "i:1", "imageID": "i@sha256:1", "restartCount": 1, "state": state}
    conditions = [{"type": "Ready", "status": "False"}]
    status = {"phase": phase, "conditions": conditions, "containerStatuses": [container]}
    spec = {"containers": [{"name": "main", "env": [{"name": "A", "value": "x"}]}]}
    whole = {"apiVersion": "v1", "kind": "Pod", "metadata": POD_METADATA, "spec": spec, "status": status}
    cache = Cache()
    cache.put(POD, whole)
    (kept,) = cache.children(POD, "ml", "us")
    assert cache.labelled(POD, "ml", "feed") == [kept]
    assert not {"spec", "annotations"} & (kept.keys() | kept["metadata"].keys())
    staying = [{**pod, "metadata": without_end(pod)} for pod in (whole, kept)]
    readers: list[Callable[[Object], Any]] = [
        lambda pod: pod["metadata"]["labels"],
        lambda pod: is_alive(pod, NOW, 60),
        lambda pod: is_alive(pod, NOW, 600),
        lambda pod: first_failure([pod]),
        lambda pod: first_lack([pod]),
        lambda pod: image_digest([pod], "main"),
        lambda pod: read_servers([pod], {}, NOW, {}),
    ]
    for read in readers:
        assert read(kept) == read(whole)
        assert read(staying[1]) == read(staying[0])


def without_end(pod: Object) -> Object:
    """Its metadata as long as nobody deletes it."""
    return {key: value for key, value in pod["metadata"].items() if key != "deletionTimestamp"}


EVENTS = st.lists(st.tuples(st.integers(1, 6), st.sampled_from(["u1", "u2"]), st.booleans()), max_size=12)


@settings(max_examples=60)
@given(events=EVENTS, data=st.data())
def test_what_is_known_never_depends_on_answers_that_come_late(events: Any, data: st.DataObject) -> None:
    """A watch tells in order; answers to writes repeat any of its versions at any later moment."""
    watch, told = Cache(), Cache()
    version, seen = 0, []
    for step, uid, is_removal in events:
        version += step
        obj = job(version, name=uid, uid=uid, owner="us", label="feed")
        for cache in (watch, told):
            (cache.remove if is_removal else cache.put)(JOB, obj)
        seen.append(obj)
        if data.draw(st.booleans()):
            told.put(JOB, data.draw(st.sampled_from(seen)))
    assert told.all(JOB) == watch.all(JOB)
    assert told.children(JOB, "ml", "us") == watch.children(JOB, "ml", "us") == watch.labelled(JOB, "ml", "feed")


async def test_the_answer_to_a_write_is_known_before_its_watch_event(world: Any) -> None:
    world.watch(JOB)
    world.hold_watches()
    api = WriteThrough(world, world.cache)
    await api.create({**job(0), "metadata": {"name": "job", "namespace": "ml"}})
    assert world.cache.get(JOB, "ml", "job") is not None
    await api.patch(JOB, "ml", "job", {"spec": {"suspend": True}})
    found = world.cache.get(JOB, "ml", "job")
    assert found is not None
    assert found["spec"] == {"suspend": True}


async def test_a_kind_that_nobody_watches_is_not_kept(world: Any) -> None:
    await WriteThrough(world, Cache()).create({**job(0), "metadata": {"name": "job", "namespace": "ml"}})
    cache = Cache()
    await WriteThrough(world, cache).patch(JOB, "ml", "job", {"spec": {"suspend": True}})
    assert cache.get(JOB, "ml", "job") is None


class Woken:
    def __init__(self, world: Any, *namespaces: str) -> None:
        self.cache = Cache()
        self.keys: list[str] = []
        self.feed = Feed(world, self.cache, namespaces, self.keys.append)


def test_a_change_wakes_the_object_it_concerns_once(world: Any) -> None:
    woken = Woken(world)
    model = {**job(1, name="feed"), "apiVersion": RETRIEVAL_MODEL.api_version, "kind": RETRIEVAL_MODEL.kind}
    for event in (None, "ADDED", "MODIFIED"):
        woken.feed.hear(RETRIEVAL_MODEL, event, model)
    assert woken.keys == ["ml/feed"]
    woken.feed.hear(JOB, "ADDED", job(2, name="feed-1-train-1", uid="u2", label="feed"))
    woken.feed.hear(JOB, "DELETED", job(3, name="feed-1-train-1", uid="u2", label="feed"))
    assert woken.keys == ["ml/feed"] * 3
    woken.feed.hear(JOB, "ADDED", job(4, name="theirs", uid="u3"))
    assert woken.keys == ["ml/feed"] * 3


async def test_a_listing_finds_what_no_watch_told_of(world: Any) -> None:
    world.put({**job(0, label="feed"), "metadata": {**job(0, label="feed")["metadata"], "name": "new"}})
    woken = Woken(world)
    woken.cache.put(JOB, job(1, name="gone", uid="gone", label="feed"))
    assert not woken.cache.is_watched(JOB)
    assert await woken.feed.resync(JOB)
    assert [found["metadata"]["name"] for found in woken.cache.all(JOB)] == ["new"]
    assert woken.keys == ["ml/feed", "ml/feed"]
    assert woken.cache.is_watched(JOB)


async def test_a_listing_reads_only_the_namespaces_that_are_watched_and_only_what_is_ours(world: Any) -> None:
    for namespace, label in (("ml", "feed"), ("ml", ""), ("other", "feed")):
        obj = job(0, name=f"job{label}", label=label)
        obj["metadata"]["namespace"] = namespace
        world.put(obj)
    woken = Woken(world, "ml")
    await woken.feed.resync(JOB)
    assert [(found["metadata"]["namespace"], found["metadata"]["name"]) for found in woken.cache.all(JOB)] == [
        ("ml", "jobfeed")
    ]


async def test_a_definition_that_is_removed_takes_its_objects_with_it(world: Any) -> None:
    woken = Woken(world)
    service = {**job(1, name="s"), "apiVersion": INFERENCE_SERVICE.api_version, "kind": INFERENCE_SERVICE.kind}
    woken.cache.watch(INFERENCE_SERVICE)
    woken.cache.put(INFERENCE_SERVICE, service)
    world.uninstall(INFERENCE_SERVICE)
    assert not await woken.feed.resync(INFERENCE_SERVICE)
    assert woken.cache.all(INFERENCE_SERVICE) == []
    assert not woken.cache.is_watched(INFERENCE_SERVICE)


async def test_a_listing_that_fails_changes_nothing(world: Any) -> None:
    woken = Woken(world)
    woken.cache.put(JOB, job(1))
    world.fail("list", JOB, Retryable("busy"))
    with pytest.raises(Retryable):
        await woken.feed.resync(JOB)
    assert woken.cache.get(JOB, "ml", "job") is not None
    assert not woken.cache.is_watched(JOB)


def test_only_objects_are_listed_without_our_label() -> None:
    assert labels_of(RETRIEVAL_MODEL) == {}
    assert all(labels_of(kind) == {LABEL_MANAGED_BY: MANAGED_BY} for kind in WATCHED if kind != RETRIEVAL_MODEL)
    assert set(OPTIONAL) < set(WATCHED)


@pytest.mark.parametrize("label", ["feed", ""], ids=["ours", "somebody else's"])
async def test_the_world_of_the_tests_tells_what_a_listing_lists(world: Any, label: str) -> None:
    """Else a test could pass on a view that no cluster gives."""
    woken = Woken(world)
    made = world.put(job(0, label=label))
    await woken.feed.resync(JOB)
    assert world.cache.all(JOB) == woken.cache.all(JOB)
    world.change(JOB, "ml", made["metadata"]["name"], {"metadata": {"labels": None}})
    assert world.cache.all(JOB) == []
