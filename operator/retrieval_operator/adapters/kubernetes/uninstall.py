"""What has to be done before the operator leaves a cluster: see charts/retrieval-operator/templates/uninstall.yaml.

Our finalizer holds an object with deletionPolicy Delete until its files are removed. With the operator gone nobody
takes it off, and neither the object nor its namespace could ever be deleted.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

from retrieval_operator.adapters.kubernetes.api import KubernetesApi
from retrieval_operator.adapters.kubernetes.kinds import DEPLOYMENT, POD, RETRIEVAL_MODEL, Object
from retrieval_operator.api.constants import FINALIZER
from retrieval_operator.ports import Gone, Stale

Pause = Callable[[], Awaitable[None]]


async def delete_objects(api: KubernetesApi, namespaces: Sequence[str], pause: Pause) -> list[str]:
    """Delete every RetrievalModel and wait until all are gone, which with deletionPolicy Delete the operator decides.

    Returns their keys. Has no end of its own: without a running operator an object may never go.
    """
    deleted: dict[str, None] = {}
    while found := await _objects(api, namespaces):
        for obj in found:
            metadata = obj["metadata"]
            if "deletionTimestamp" not in metadata:
                await api.delete(RETRIEVAL_MODEL, metadata["namespace"], metadata["name"], uid=metadata["uid"])
            deleted[_key(obj)] = None
        await pause()
    return list(deleted)


async def stop_operator(api: KubernetesApi, namespace: str, deployment: str, pause: Pause) -> None:
    """Scale the operator's Deployment to 0 and wait until its pods are gone. One that does not exist is fine."""
    found = await api.get(DEPLOYMENT, namespace, deployment)
    if found is None:
        return
    await api.patch(DEPLOYMENT, namespace, deployment, {"spec": {"replicas": 0}})
    while await api.list(POD, namespace, found["spec"]["selector"]["matchLabels"]):
        await pause()


async def release_finalizers(api: KubernetesApi, namespaces: Sequence[str], pause: Pause) -> list[str]:
    """Take our finalizer off every RetrievalModel that has it; the finalizers of others stay. Returns their keys."""
    released: dict[str, None] = {}
    while held := [obj for obj in await _objects(api, namespaces) if FINALIZER in _finalizers(obj)]:
        for obj in held:
            if await _release(api, obj):
                released[_key(obj)] = None
        await pause()
    return list(released)


async def _release(api: KubernetesApi, obj: Object) -> bool:
    """Whether it has no finalizer of ours any more; False when somebody changed it meanwhile."""
    metadata = obj["metadata"]
    others = [finalizer for finalizer in _finalizers(obj) if finalizer != FINALIZER]
    with suppress(Gone):  # it was being deleted, and held by nothing else
        try:
            await api.patch(
                RETRIEVAL_MODEL,
                metadata["namespace"],
                metadata["name"],
                {"metadata": {"finalizers": others}},
                resource_version=metadata["resourceVersion"],
            )
        except Stale:
            return False
    return True


async def _objects(api: KubernetesApi, namespaces: Sequence[str]) -> list[Object]:
    """Every RetrievalModel of the namespaces; none given: of all. None when the kind itself is gone."""
    found: list[Object] = []
    for namespace in namespaces or (None,):
        with suppress(Gone):
            found += await api.list(RETRIEVAL_MODEL, namespace, {})
    return found


def _finalizers(obj: Object) -> list[str]:
    finalizers: list[str] = obj["metadata"].get("finalizers", [])
    return finalizers


def _key(obj: Object) -> str:
    return f"{obj['metadata']['namespace']}/{obj['metadata']['name']}"
