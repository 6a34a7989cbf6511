"""What the watches tell goes into the cache, and the objects it concerns into the work queue.

A watch that was interrupted for long starts again with a listing, which does not tell of what vanished meanwhile:
`resync` finds that out. An object that is in the cache before a listing and not in it is gone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from retrieval_operator.adapters.kubernetes.api import KubernetesApi
from retrieval_operator.adapters.kubernetes.cache import Cache
from retrieval_operator.adapters.kubernetes.kinds import (
    INFERENCE_SERVICE,
    JOB,
    POD,
    POD_DISRUPTION_BUDGET,
    PYTORCH_JOB,
    RETRIEVAL_MODEL,
    SERVICE,
    Kind,
    Object,
)
from retrieval_operator.api.constants import LABEL_MANAGED_BY, LABEL_NAME, MANAGED_BY
from retrieval_operator.ports import Gone, Rejected

# Kinds whose definitions others install: without them the operator runs, and Surroundings says what is missing.
OPTIONAL = (PYTORCH_JOB, INFERENCE_SERVICE)
WATCHED = (RETRIEVAL_MODEL, POD, SERVICE, JOB, POD_DISRUPTION_BUDGET, *OPTIONAL)
_OURS = {LABEL_MANAGED_BY: MANAGED_BY}


def labels_of(kind: Kind) -> dict[str, str]:
    """What the API server selects objects of this kind by: of children, only ours are of interest."""
    return {} if kind == RETRIEVAL_MODEL else dict(_OURS)


class NamespaceRefused(Rejected):
    """The operator may not list a kind in this namespace: our Role goes with a namespace that is deleted."""

    def __init__(self, namespace: str, message: str) -> None:
        super().__init__(message)
        self.namespace = namespace


class Feed:
    """`namespaces` are watched, none given: all. `wake` gets the key of each object that has to be looked at."""

    def __init__(
        self, api: KubernetesApi, cache: Cache, namespaces: Sequence[str], wake: Callable[[str], None]
    ) -> None:
        self._api = api
        self._cache = cache
        self._namespaces = list(namespaces)
        self._left_out: list[str] = []
        self._wake = wake

    @property
    def namespaces(self) -> Sequence[str]:
        """What is listed, and to be watched; none: all."""
        return self._namespaces

    def leave_out(self, namespace: str) -> bool:
        """List this namespace no more; its objects go with the next listing. False, and it stays, for the last one.

        To be called before the watches are started.
        """
        if self._namespaces == [namespace]:  # none at all would mean all
            return False
        self._namespaces.remove(namespace)
        self._left_out.append(namespace)
        return True

    async def are_back(self) -> list[str]:
        """What was left out and can be listed by now, every kind of it. Raises Retryable."""
        return [namespace for namespace in self._left_out if await self._may_list(namespace)]

    def hear(self, kind: Kind, event: str | None, obj: Object) -> None:
        """One watch event: ADDED, MODIFIED, DELETED, or None for an object of a watch's first listing."""
        # Items of a listing do not say what they are.
        obj = {**obj, "apiVersion": kind.api_version, "kind": kind.kind}
        changed = self._cache.remove(kind, obj) if event == "DELETED" else self._cache.put(kind, obj)
        if changed:
            self._wake_for(kind, obj)

    async def resync(self, kind: Kind) -> bool:
        """List the kind and take in what differs. False when its definition is not installed.

        Raises Retryable, or Rejected when the operator may not list it: NamespaceRefused where not all are watched.
        """
        before = self._cache.all(kind)
        listed: list[Object] = []
        try:
            for namespace in self._namespaces or (None,):
                listed += await self._list(kind, namespace)
        except Gone:
            self._cache.unwatch(kind)
            return False
        for obj in listed:
            self.hear(kind, None, obj)
        present = {obj["metadata"]["uid"] for obj in listed}
        for obj in before:
            if obj["metadata"]["uid"] not in present:
                self.hear(kind, "DELETED", obj)
        self._cache.watch(kind)
        return True

    async def _list(self, kind: Kind, namespace: str | None) -> list[Object]:
        try:
            return await self._api.list(kind, namespace, labels_of(kind))
        except Rejected as error:
            if namespace is None:
                raise
            raise NamespaceRefused(namespace, str(error)) from error

    async def _may_list(self, namespace: str) -> bool:
        for kind in WATCHED:  # one that may not be listed would have it left out again at once
            try:
                await self._list(kind, namespace)
            except Gone:
                continue
            except NamespaceRefused:
                return False
        return True

    def _wake_for(self, kind: Kind, obj: Object) -> None:
        metadata = obj["metadata"]
        name = metadata["name"] if kind == RETRIEVAL_MODEL else metadata.get("labels", {}).get(LABEL_NAME)
        if name:
            self._wake(f"{metadata['namespace']}/{name}")
