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
from retrieval_operator.ports import Gone

# Kinds whose definitions others install: without them the operator runs, and Surroundings says what is missing.
OPTIONAL = (PYTORCH_JOB, INFERENCE_SERVICE)
WATCHED = (RETRIEVAL_MODEL, POD, SERVICE, JOB, POD_DISRUPTION_BUDGET, *OPTIONAL)
_OURS = {LABEL_MANAGED_BY: MANAGED_BY}


def labels_of(kind: Kind) -> dict[str, str]:
    """What the API server selects objects of this kind by: of children, only ours are of interest."""
    return {} if kind == RETRIEVAL_MODEL else dict(_OURS)


class Feed:
    """`namespaces` are watched, none given: all. `wake` gets the key of each object that has to be looked at."""

    def __init__(
        self, api: KubernetesApi, cache: Cache, namespaces: Sequence[str], wake: Callable[[str], None]
    ) -> None:
        self._api = api
        self._cache = cache
        self._namespaces = namespaces
        self._wake = wake

    def hear(self, kind: Kind, event: str | None, obj: Object) -> None:
        """One watch event: ADDED, MODIFIED, DELETED, or None for an object of a watch's first listing."""
        # Items of a listing do not say what they are.
        obj = {**obj, "apiVersion": kind.api_version, "kind": kind.kind}
        changed = self._cache.remove(kind, obj) if event == "DELETED" else self._cache.put(kind, obj)
        if changed:
            self._wake_for(kind, obj)

    async def resync(self, kind: Kind) -> bool:
        """List the kind and take in what differs. False when its definition is not installed.

        Raises Retryable, or Rejected when the operator may not list it.
        """
        before = self._cache.all(kind)
        listed: list[Object] = []
        try:
            for namespace in self._namespaces or (None,):
                listed += await self._api.list(kind, namespace, labels_of(kind))
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

    def _wake_for(self, kind: Kind, obj: Object) -> None:
        metadata = obj["metadata"]
        name = metadata["name"] if kind == RETRIEVAL_MODEL else metadata.get("labels", {}).get(LABEL_NAME)
        if name:
            self._wake(f"{metadata['namespace']}/{name}")
