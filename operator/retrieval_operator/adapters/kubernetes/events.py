"""Events: what happened, for people who run `kubectl describe`. The cluster forgets them after an hour or so.

The same event again raises the count of the one that is there: its name is a hash of what it says and about whom.
"""

from __future__ import annotations

import hashlib

import structlog

from retrieval_operator.adapters.kubernetes.api import MANAGER, KubernetesApi
from retrieval_operator.adapters.kubernetes.kinds import EVENT, Object
from retrieval_operator.api.constants import LABEL_MANAGED_BY, MANAGED_BY
from retrieval_operator.api.types import rfc3339
from retrieval_operator.domain.plan import EmitEvent
from retrieval_operator.ports import Gone, Rejected

log = structlog.get_logger(__name__)


class EventRecorder:
    """Writes core/v1 Events in the namespace of the object they are about. `instance` names the process."""

    def __init__(self, api: KubernetesApi, instance: str) -> None:
        self._api = api
        self._instance = instance

    async def record(self, about: Object, event: EmitEvent, now: int) -> None:
        """Tell people. An event that the namespace (one that is being deleted) does not take is only logged."""
        try:
            await self._record(about, event, now)
        except (Gone, Rejected) as error:
            log.warning("event not recorded", reason=event.reason.value, message=event.message, error=str(error))

    async def _record(self, about: Object, event: EmitEvent, now: int) -> None:
        namespace, name = about["metadata"]["namespace"], _name(about, event)
        if await self._api.create(self._document(about, event, name, now)) is not None:
            return
        known = await self._api.get(EVENT, namespace, name)
        if known is None:  # it was forgotten a moment ago
            await self._api.create(self._document(about, event, name, now))
            return
        again = {"count": int(known.get("count") or 1) + 1, "lastTimestamp": rfc3339(now)}
        await self._api.patch(EVENT, namespace, name, again)

    def _document(self, about: Object, event: EmitEvent, name: str, now: int) -> Object:
        metadata = about["metadata"]
        return {
            "apiVersion": EVENT.api_version,
            "kind": EVENT.kind,
            "metadata": {"name": name, "namespace": metadata["namespace"], "labels": {LABEL_MANAGED_BY: MANAGED_BY}},
            "involvedObject": {
                "apiVersion": about["apiVersion"],
                "kind": about["kind"],
                "namespace": metadata["namespace"],
                "name": metadata["name"],
                "uid": metadata["uid"],
                "resourceVersion": metadata["resourceVersion"],
            },
            "type": event.type,
            "reason": event.reason.value,
            "message": event.message,
            "count": 1,
            "firstTimestamp": rfc3339(now),
            "lastTimestamp": rfc3339(now),
            "source": {"component": MANAGER},
            "reportingComponent": MANAGER,
            "reportingInstance": self._instance,
        }


def _name(about: Object, event: EmitEvent) -> str:
    said = "\n".join((about["metadata"]["uid"], event.type, event.reason.value, event.message))
    return f"{about['metadata']['name']}.{hashlib.sha256(said.encode()).hexdigest()[:16]}"
