"""What every KubernetesApi does: the client against a real API server, and the fake of the contract tests beside it.

What the fake gets wrong here, the contract tests of the adapters would believe.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from retrieval_operator.adapters.kubernetes.api import STATUS_MANAGER, KubernetesApi
from retrieval_operator.adapters.kubernetes.client import connected
from retrieval_operator.adapters.kubernetes.kinds import (
    INFERENCE_SERVICE,
    LEASE,
    NAMESPACE,
    RETRIEVAL_MODEL,
    Kind,
    Object,
)
from retrieval_operator.ports import Gone, Rejected, Retryable, Stale

SPEC = {
    "storage": {"uri": "/storage"},
    "data": {"uri": "/data", "revision": "1"},
    "model": {"base": "preset:tiny"},
    "promotion": {"gates": [{"min": "0.1"}]},
}


class World:
    """An API and a namespace of the test's own."""

    def __init__(self, api: KubernetesApi, namespace: str) -> None:
        self.api = api
        self.namespace = namespace

    def lease(self, name: str = "one", *, notes: Mapping[str, str] | None = None, **metadata: Any) -> Object:
        """An object with these annotations."""
        return self._object(LEASE, name, metadata={"annotations": dict(notes or {"a": "1"}), **metadata}, spec={})

    def model(self, name: str = "feed", **fields: Any) -> Object:
        return self._object(RETRIEVAL_MODEL, name, **{"spec": SPEC, **fields})

    def _object(self, kind: Kind, name: str, **fields: Any) -> Object:
        metadata = {"name": name, "namespace": self.namespace, **fields.pop("metadata", {})}
        return {"apiVersion": kind.api_version, "kind": kind.kind, "metadata": metadata, **fields}

    async def terminate(self) -> None:
        """Delete the namespace. Without its controller nothing finishes that: it stays terminating."""
        if hasattr(self.api, "terminate_namespace"):
            self.api.terminate_namespace(self.namespace)
        else:
            await self.api.delete(NAMESPACE, "", self.namespace)


def _notes(notes: Mapping[str, str | None]) -> Object:
    return {"metadata": {"annotations": dict(notes)}}


@pytest.fixture(params=["memory", pytest.param("server", marks=pytest.mark.e2e)])
async def world(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    namespace = f"test-{uuid.uuid4().hex[:8]}"
    if request.param == "memory":
        from kubernetes_world import KubernetesWorld

        memory = KubernetesWorld(lambda: 1_700_000_000, is_limited=False)
        memory.uninstall(INFERENCE_SERVICE)
        yield World(memory, namespace)
        return
    kubeconfig: Path = request.getfixturevalue("kubeconfig")
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
    async with connected("retrieval-operator-test") as api:
        await api.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}})
        yield World(api, namespace)


async def test_a_created_object_is_found_and_a_second_of_its_name_is_told_apart(world: World) -> None:
    created = await world.api.create(world.lease())
    assert created is not None
    assert created["metadata"]["uid"]
    assert await world.api.create(world.lease()) is None
    found = await world.api.get(LEASE, world.namespace, "one")
    assert found is not None
    assert (found["kind"], found["metadata"]["uid"]) == ("Lease", created["metadata"]["uid"])
    assert found["metadata"]["annotations"] == {"a": "1"}
    assert await world.api.get(LEASE, world.namespace, "other") is None


async def test_a_listing_is_by_labels_and_its_items_say_what_they_are(world: World) -> None:
    await world.api.create(world.lease("one", labels={"x": "1", "y": "1"}))
    await world.api.create(world.lease("two", labels={"x": "2"}))
    found = await world.api.list(LEASE, world.namespace, {"x": "1"})
    shown = [(obj["kind"], obj["apiVersion"], obj["metadata"]["name"]) for obj in found]
    assert shown == [("Lease", "coordination.k8s.io/v1", "one")]
    everywhere = await world.api.list(LEASE, None, {})
    assert {"one", "two"} <= {obj["metadata"]["name"] for obj in everywhere}
    assert await world.api.list(LEASE, "no-such-namespace", {}) == []


async def test_a_kind_that_is_not_installed_cannot_be_listed_and_not_yet_be_created(world: World) -> None:
    with pytest.raises(Gone):
        await world.api.list(INFERENCE_SERVICE, world.namespace, {})
    metadata = {"name": "one", "namespace": world.namespace}
    with pytest.raises(Retryable):
        await world.api.create(
            {"apiVersion": "serving.kserve.io/v1beta1", "kind": "InferenceService", "metadata": metadata}
        )
    assert await world.api.get(INFERENCE_SERVICE, world.namespace, "one") is None


async def test_an_object_with_a_specification_counts_its_changes(world: World) -> None:
    created = await world.api.create(world.model())
    assert created is not None
    assert created["metadata"]["generation"] == 1
    changed = await world.api.patch(RETRIEVAL_MODEL, world.namespace, "feed", {"spec": {"suspend": True}})
    assert changed["metadata"]["generation"] == 2
    annotated = await world.api.patch(
        RETRIEVAL_MODEL, world.namespace, "feed", {"metadata": {"annotations": {"a": "b"}}}
    )
    assert annotated["metadata"]["generation"] == 2


async def test_a_merge_patch_removes_what_is_null_and_minds_the_version(world: World) -> None:
    created = await world.api.create(world.lease(notes={"a": "1", "b": "2"}))
    assert created is not None
    version = created["metadata"]["resourceVersion"]
    patched = await world.api.patch(
        LEASE, world.namespace, "one", _notes({"a": None, "c": "3"}), resource_version=version
    )
    assert patched["metadata"]["annotations"] == {"b": "2", "c": "3"}
    assert int(patched["metadata"]["resourceVersion"]) > int(version)
    with pytest.raises(Stale):
        await world.api.patch(LEASE, world.namespace, "one", _notes({"c": "4"}), resource_version=version)
    with pytest.raises(Gone):
        await world.api.patch(LEASE, world.namespace, "other", _notes({}))


async def test_a_patch_that_changes_nothing_makes_no_new_version(world: World) -> None:
    created = await world.api.create(world.lease())
    assert created is not None
    same = await world.api.patch(LEASE, world.namespace, "one", _notes({"a": "1"}))
    assert same["metadata"]["resourceVersion"] == created["metadata"]["resourceVersion"]


async def test_a_status_is_applied_whole_and_touches_nothing_else(world: World) -> None:
    created = await world.api.create(world.model())
    assert created is not None
    first = {"phase": "Training", "immutable": {"a": "b"}}
    written = await world.api.apply_status(world.model(status=first, spec={}), manager=STATUS_MANAGER)
    assert written["status"] == first
    again = await world.api.apply_status({**world.model(), "status": {"phase": "Live"}}, manager=STATUS_MANAGER)
    assert again["status"] == {"phase": "Live"}
    assert again["spec"] == created["spec"]
    assert again["metadata"]["generation"] == 1


async def test_a_status_minds_the_version_and_is_gone_with_its_object(world: World) -> None:
    """The status subresource ignores a UID: only the version tells a former object of the same name."""
    created = await world.api.create(world.model())
    assert created is not None
    version = {"resourceVersion": created["metadata"]["resourceVersion"]}
    status = {**world.model(metadata=version), "status": {"phase": "Live"}}
    await world.api.apply_status(status, manager=STATUS_MANAGER)
    with pytest.raises(Stale):
        await world.api.apply_status({**status, "status": {"phase": "Late"}}, manager=STATUS_MANAGER)
    await world.api.delete(RETRIEVAL_MODEL, world.namespace, "feed")
    with pytest.raises(Gone):
        await world.api.apply_status(status, manager=STATUS_MANAGER)


async def test_a_deletion_spares_an_object_with_another_uid_and_what_is_missing_is_fine(world: World) -> None:
    await world.api.create(world.lease())
    await world.api.delete(LEASE, world.namespace, "one", uid="00000000-0000-0000-0000-000000000000")
    assert await world.api.get(LEASE, world.namespace, "one") is not None
    await world.api.delete(LEASE, world.namespace, "one")
    assert await world.api.get(LEASE, world.namespace, "one") is None
    await world.api.delete(LEASE, world.namespace, "one")


async def test_a_finalizer_holds_an_object_and_no_new_one_comes_once_it_is_being_deleted(world: World) -> None:
    await world.api.create(world.lease(finalizers=["example.com/hold"]))
    await world.api.delete(LEASE, world.namespace, "one")
    held = await world.api.get(LEASE, world.namespace, "one")
    assert held is not None
    assert held["metadata"]["deletionTimestamp"]
    more = {"metadata": {"finalizers": ["example.com/hold", "example.com/more"]}}
    with pytest.raises(Rejected):
        await world.api.patch(LEASE, world.namespace, "one", more)
    await world.api.patch(LEASE, world.namespace, "one", {"metadata": {"finalizers": []}})
    assert await world.api.get(LEASE, world.namespace, "one") is None


async def test_nothing_is_created_in_a_namespace_that_is_being_deleted(world: World) -> None:
    await world.terminate()
    with pytest.raises(Gone):
        await world.api.create(world.lease())


@pytest.mark.e2e
async def test_an_object_that_the_definition_refuses_is_rejected_with_its_words(
    kubeconfig: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
    async with connected("retrieval-operator-test") as api:
        world = World(api, "default")
        with pytest.raises(Rejected, match="five fields"):
            await api.create(world.model(spec={**SPEC, "data": {**SPEC["data"], "schedule": "often"}}))
        with pytest.raises(Gone):
            await api.create({**world.lease(), "metadata": {"name": "one", "namespace": "no-such-namespace"}})
