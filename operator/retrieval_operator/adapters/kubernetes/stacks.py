"""Stacks in a cluster: a Service that holds the record, a disruption budget, and an InferenceService, all of one name.

Created in this order, each once, and removed in the reverse one, so that whatever is there can be found by its record:
a creation or removal that was cut shows as a stack that is not `complete`, and is done again. So does a stack whose
Service somebody deleted: the disruption budget has a copy of the record.

A budget that an older operator made has no copy. A stack without a record that can be read is left out; what it is,
nobody guesses. `unreadable_stacks` tells of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from retrieval_operator.adapters.kubernetes import children, services
from retrieval_operator.adapters.kubernetes.api import KubernetesApi
from retrieval_operator.adapters.kubernetes.cache import Cache
from retrieval_operator.adapters.kubernetes.inference_service import (
    CONTAINER,
    bounds,
    bounds_of,
    disruption_budget,
    inference_service,
)
from retrieval_operator.adapters.kubernetes.kinds import (
    INFERENCE_SERVICE,
    POD_DISRUPTION_BUDGET,
    SERVICE,
    Kind,
    Object,
)
from retrieval_operator.adapters.kubernetes.pod_status import image_digest
from retrieval_operator.adapters.kubernetes.servers import Servers, lacking_since, pods_by_stack, read_servers
from retrieval_operator.adapters.kubernetes.traffic import stable_service_of
from retrieval_operator.api.constants import LABEL_STACK
from retrieval_operator.api.objects import RetrievalModel
from retrieval_operator.api.status import StackRecord
from retrieval_operator.domain.observed import StackObserved
from retrieval_operator.ports import Gone, Rejected, Stale

_PARTS = (SERVICE, POD_DISRUPTION_BUDGET, INFERENCE_SERVICE)
_Parts = Sequence[Object | None]  # of one stack, in this order
_LACKING_KEPT = 1024  # more objects with failing servers at once than any cluster has


class KubernetesStacks:
    """Fills the port Stacks. `clock` gives seconds since the epoch, `images` are the operator's by component."""

    def __init__(
        self, api: KubernetesApi, cache: Cache, clock: Callable[[], int], *, images: Mapping[str, str]
    ) -> None:
        self._api = api
        self._cache = cache
        self._clock = clock
        self._images = images
        # Since when pods lack something, by the object's UID and the pod's. No status says so, and another operator
        # starts anew: then a server that cannot start is given its grace once more.
        self._lacking: dict[str, Mapping[str, int]] = {}

    async def observe(self, model: RetrievalModel) -> Mapping[str, StackObserved]:
        """Raises Rejected when the record of the live stack cannot be read: that one must not look as if it were gone.

        One that has lost its Service, and is not known by its budget, is: the champion's is made again.
        """
        live, pods = _live_stack(self._cache, model), pods_by_stack(self._cache, model)
        lacking = self._lacking_since(model, pods)
        found: dict[str, StackObserved] = {}
        for stack, parts in _parts(self._cache, model).items():
            try:
                record = _record(parts)
            except Rejected:
                if stack == live and parts[0] is not None:
                    raise
                continue
            found[stack] = self._observed(record, parts, pods.get(stack, ()), lacking)
        return found

    async def create(self, model: RetrievalModel, record: StackRecord, replicas: int, max_replicas: int = 0) -> None:
        wanted = (
            services.direct_service(model, record),
            disruption_budget(model, record),
            inference_service(model, record, self._images, replicas, max_replicas),
        )
        for kind, obj in zip(_PARTS, wanted, strict=True):
            if record.stack not in _by_stack(self._cache, model, kind):
                await children.create_once(self._api, self._cache, model, obj)

    async def scale(self, model: RetrievalModel, stack: str, replicas: int, max_replicas: int = 0) -> None:
        service = _by_stack(self._cache, model, INFERENCE_SERVICE).get(stack)
        if service is None:
            raise Stale(f"stack {stack} of {model.key} does not exist any more")
        if bounds_of(service) == (replicas, max_replicas):
            return
        patch, metadata = bounds(replicas, max_replicas), service["metadata"]
        try:
            await self._api.patch(INFERENCE_SERVICE, metadata["namespace"], metadata["name"], patch)
        except Gone as error:  # the stack is; of the object itself that is not known
            raise Stale(f"stack {stack} of {model.key} does not exist any more: {error}") from error

    async def delete(self, model: RetrievalModel, stack: str) -> None:
        if _live_stack(self._cache, model) == stack:
            raise Rejected(f"stack {stack} of {model.key} is live; switch the traffic away first")
        for kind in reversed(_PARTS):
            found = _by_stack(self._cache, model, kind).get(stack)
            if found is not None:
                metadata = found["metadata"]
                await self._api.delete(kind, metadata["namespace"], metadata["name"], uid=metadata["uid"])

    def _lacking_since(self, model: RetrievalModel, pods: Mapping[str, Sequence[Object]]) -> Mapping[str, int]:
        """Of this object's servers; forgotten when they lack nothing any more, or are gone."""
        servers = (pod for stack, found in pods.items() if stack for pod in found)
        lacking = lacking_since(servers, self._lacking.pop(model.metadata.uid, {}), self._clock())
        if lacking:
            self._lacking[model.metadata.uid] = lacking
        while len(self._lacking) > _LACKING_KEPT:
            del self._lacking[next(iter(self._lacking))]
        return lacking

    def _observed(
        self, record: StackRecord, parts: _Parts, pods: Sequence[Object], lacking: Mapping[str, int]
    ) -> StackObserved:
        server, holder = parts[-1], parts[0] or parts[1]
        assert holder is not None, "it had the record"
        staying = [part is not None and not children.is_going(part) for part in parts]
        replicas, max_replicas = bounds_of(server) if server else (0, 0)
        # What is going is not ready, whatever its pods say for a moment more.
        own = _made_for(server, pods) if server else []
        seen = read_servers(own, server, self._clock(), lacking) if server and staying[-1] else Servers(0)
        return StackObserved(
            record=record,
            ready_replicas=seen.ready,
            replicas=replicas,
            max_replicas=max_replicas,
            address=services.address(holder),
            created_at=children.seconds(holder["metadata"]["creationTimestamp"]),
            failed=seen.failed,
            waits_for=seen.waits_for,
            complete=all(staying),
            image=image_digest(own, CONTAINER),
        )


def unreadable_stacks(cache: Cache, model: RetrievalModel) -> Iterator[str]:
    """A sentence on each stack that `observe` leaves out and nobody removes. Of the live one the ports themselves tell.

    Of what is only half gone nothing: its servers went first, and the rest goes with the next pass.
    """
    live = _live_stack(cache, model)
    for stack, parts in _parts(cache, model).items():
        service, _, server = parts
        if stack == live or (service is None and (server is None or children.is_going(server))):
            continue
        try:
            _record(parts)
        except Rejected as error:
            there = ",".join(kind.plural for kind, part in zip(_PARTS, parts, strict=True) if part is not None)
            what = f"{there} {services.stack_name(model, stack)}"
            remedy = f"kubectl --namespace {model.metadata.namespace} delete {what}"
            yield f"{error}; stack {stack} is left out: write its record anew, or {remedy}"


def _live_stack(cache: Cache, model: RetrievalModel) -> str:
    stable = stable_service_of(cache, model)
    return services.selected_stack(stable) if stable is not None else ""


def _parts(cache: Cache, model: RetrievalModel) -> dict[str, _Parts]:
    """What there is of each stack."""
    by_kind = [_by_stack(cache, model, kind) for kind in _PARTS]
    return {stack: [found.get(stack) for found in by_kind] for found in by_kind for stack in found}


def _by_stack(cache: Cache, model: RetrievalModel, kind: Kind) -> dict[str, Object]:
    """The object's children of this kind, by the stack that they are part of."""
    owned = cache.children(kind, model.metadata.namespace, model.metadata.uid)
    labelled = ((obj["metadata"].get("labels", {}).get(LABEL_STACK), obj) for obj in owned)
    return {stack: obj for stack, obj in labelled if stack}


def _record(parts: _Parts) -> StackRecord:
    """What the stack is. Raises Rejected when that cannot be read, or nothing says it any more."""
    service, budget, _ = parts
    record = services.record_of(service, budget)
    if record is None:
        metadata = next(part for part in parts if part is not None)["metadata"]
        lost = f"Service {metadata['namespace']}/{metadata['name']}, which held the record of a stack"
        raise Rejected(f"{lost}, is gone")
    return record


def _made_for(service: Object, pods: Sequence[Object]) -> list[Object]:
    """A deleted object of the same name may have left pods of the same stack: they are older."""
    since = service["metadata"]["creationTimestamp"]
    return [pod for pod in pods if pod["metadata"]["creationTimestamp"] >= since]
