"""Traffic in a cluster: the stable Service of an object. Its selector is the only switch, and the champion's truth.

A switch is one patch of selector and annotations, with the resourceVersion that was observed as its precondition. It
affects new connections; the servers end the old ones within the connection age.
"""

from __future__ import annotations

from collections.abc import Callable

from retrieval_operator.adapters.kubernetes import children, services
from retrieval_operator.adapters.kubernetes.api import KubernetesApi
from retrieval_operator.adapters.kubernetes.cache import Cache, owner_uids
from retrieval_operator.adapters.kubernetes.kinds import INFERENCE_SERVICE, POD_DISRUPTION_BUDGET, SERVICE, Kind, Object
from retrieval_operator.api.objects import RetrievalModel
from retrieval_operator.api.status import StackRecord
from retrieval_operator.domain.history import record_of_champion
from retrieval_operator.domain.observed import TrafficObserved
from retrieval_operator.ports import Gone, Stale

_NEVER = "0"  # the version of an object that was never switched; no resourceVersion is 0


class KubernetesTraffic:
    """Fills the port Traffic. `clock` gives seconds since the epoch."""

    def __init__(self, api: KubernetesApi, cache: Cache, clock: Callable[[], int]) -> None:
        self._api = api
        self._cache = cache
        self._clock = clock

    async def observe(self, model: RetrievalModel) -> TrafficObserved:
        return read_traffic(self._cache, model, self._clock())

    async def switch(self, model: RetrievalModel, record: StackRecord, observed_version: str, now: int) -> None:
        before = read_traffic(self._cache, model, now)
        if before.live == record:
            return
        if before.version != observed_version:
            raise Stale(f"the traffic of {model.key} is at version {before.version}, not {observed_version}")
        if not _runs(self._cache, model, record.stack):
            raise Stale(f"stack {record.stack} of {model.key} does not exist any more")
        service = stable_service_of(self._cache, model)
        # Not `before.live`: that is None, too, of a Service that only leads nowhere.
        former = services.selected_stack(service) if service is not None else ""
        if former == record.stack:
            annotations = services.live_annotations(record, before.previous, before.switched_at)
        else:
            annotations = services.live_annotations(record, former, now)
        if service is None:
            selector = services.stack_labels(model, record.stack)
            await self._open(model, services.stable_service(model, annotations, selector))
        else:
            spec = services.way_to(service, model, record.stack)
            await self._move(service, {"metadata": {"annotations": annotations}, "spec": spec})

    async def close(self, model: RetrievalModel) -> None:
        service = stable_service_of(self._cache, model)
        if service is not None:
            metadata = service["metadata"]
            await self._api.delete(SERVICE, metadata["namespace"], metadata["name"], uid=metadata["uid"])

    async def _open(self, model: RetrievalModel, service: Object) -> None:
        await children.create_once(self._api, self._cache, model, service)
        found = stable_service_of(self._cache, model)
        if found is None or services.selected_stack(found) != services.selected_stack(service):
            raise Stale(f"the traffic of {model.key} was switched by somebody else")

    async def _move(self, service: Object, patch: Object) -> None:
        metadata = service["metadata"]
        namespace, name, version = metadata["namespace"], metadata["name"], metadata["resourceVersion"]
        try:
            await self._api.patch(SERVICE, namespace, name, patch, resource_version=version)
        except Gone as error:  # the Service is; of the object itself that is not known
            raise Stale(f"Service {namespace}/{name} does not exist any more: {error}") from error


def read_traffic(cache: Cache, model: RetrievalModel, now: int) -> TrafficObserved:
    """Where new connections go, as last seen. Raises Rejected when that cannot be read.

    Nowhere, as without the Service, while its selector or ports are not as a switch left them: then the champion that
    the status remembers gets it back as it was. Only if that is the very stack that the selector names: what serves is
    never guessed, so of another one, or under a lost status, this is told a pass later.
    """
    service = stable_service_of(cache, model)
    if service is None:
        return TrafficObserved(version=_NEVER)
    selected, recorded = services.selected_stack(service), services.read_record(service)
    if selected == recorded.stack:
        record, (previous, switched_at) = recorded, services.read_switch(service)
    else:
        record = _record_of(cache, model, service, selected)
        previous, switched_at = _moved_by_hand(model, selected, recorded.stack, now)
    is_lost = not services.leads_to(service, model, selected) and _is_remembered(model, record)
    return TrafficObserved(
        live=None if is_lost else record,
        previous=previous,
        switched_at=switched_at,
        address=services.address(service),
        version=service["metadata"]["resourceVersion"],
    )


def _moved_by_hand(model: RetrievalModel, selected: str, recorded: str, now: int) -> tuple[str, int]:
    """What was live before a selector was moved by hand, and since when it is moved: as with_memory takes them.

    It is the truth, but the annotations are still of the switch before it. The status knows it once it was seen; until
    then the window to go back begins now, and what was live is what the status calls champion.
    """
    champion = model.status.champion
    if champion is None:
        return recorded, now
    return ("", champion.promoted_at) if champion.stack == selected else (champion.stack, now)


def _is_remembered(model: RetrievalModel, record: StackRecord) -> bool:
    champion = model.status.champion
    return champion is not None and record_of_champion(champion) == record


def stable_service_of(cache: Cache, model: RetrievalModel) -> Object | None:
    """The stable Service of this very object, None when it has none."""
    return _child(cache, SERVICE, model, model.metadata.name)


def _record_of(cache: Cache, model: RetrievalModel, stable: Object, stack: str) -> StackRecord:
    name = services.stack_name(model, stack)
    parts = [_child(cache, kind, model, name) if stack else None for kind in (SERVICE, POD_DISRUPTION_BUDGET)]
    record = services.record_of(*parts)
    if record is None:
        found = f"its selector names stack {stack!r}, of which nothing is known"
        raise services.unreadable(stable, found, "set its selector to a stack that runs (kubectl get isvc)")
    return record


def _runs(cache: Cache, model: RetrievalModel, stack: str) -> bool:
    """The stack is there and stays: not half made, and not being removed.

    Its servers are made last and removed first. A Service that somebody deleted must not keep the traffic from going
    back: the stable Service selects the pods themselves.
    """
    server = _child(cache, INFERENCE_SERVICE, model, services.stack_name(model, stack))
    return server is not None and not children.is_going(server)


def _child(cache: Cache, kind: Kind, model: RetrievalModel, name: str) -> Object | None:
    found = cache.get(kind, model.metadata.namespace, name)
    return found if found is not None and model.metadata.uid in owner_uids(found) else None
