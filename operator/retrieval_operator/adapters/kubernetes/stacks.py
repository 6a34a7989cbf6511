"""Stacks in a cluster: a Service that holds the record, a disruption budget, and an InferenceService, all of one name.

Created in this order, each once, and removed in the reverse one, so that whatever is there can be found by its record:
a creation or removal that was cut shows as a stack that is not `complete`, and is done again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

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
from retrieval_operator.adapters.kubernetes.servers import Servers, pods_by_stack, read_servers
from retrieval_operator.adapters.kubernetes.traffic import stable_service_of
from retrieval_operator.api.constants import LABEL_STACK
from retrieval_operator.api.objects import RetrievalModel
from retrieval_operator.api.status import StackRecord
from retrieval_operator.domain.observed import StackObserved
from retrieval_operator.ports import Gone, Rejected, Stale

_PARTS = (SERVICE, POD_DISRUPTION_BUDGET, INFERENCE_SERVICE)


class KubernetesStacks:
    """Fills the port Stacks. `clock` gives seconds since the epoch, `images` are the operator's by component."""

    def __init__(
        self, api: KubernetesApi, cache: Cache, clock: Callable[[], int], *, images: Mapping[str, str]
    ) -> None:
        self._api = api
        self._cache = cache
        self._clock = clock
        self._images = images

    async def observe(self, model: RetrievalModel) -> Mapping[str, StackObserved]:
        parts = [self._by_stack(model, kind) for kind in _PARTS]
        pods = pods_by_stack(self._cache, model)
        return {
            stack: self._observed(service, [found.get(stack) for found in parts], pods[stack])
            for stack, service in parts[0].items()
        }

    async def create(self, model: RetrievalModel, record: StackRecord, replicas: int, max_replicas: int = 0) -> None:
        wanted = (
            services.direct_service(model, record),
            disruption_budget(model, record.stack),
            inference_service(model, record, self._images, replicas, max_replicas),
        )
        for kind, obj in zip(_PARTS, wanted, strict=True):
            if record.stack not in self._by_stack(model, kind):
                await children.create_once(self._api, self._cache, model, obj)

    async def scale(self, model: RetrievalModel, stack: str, replicas: int, max_replicas: int = 0) -> None:
        service = self._by_stack(model, INFERENCE_SERVICE).get(stack)
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
        stable = stable_service_of(self._cache, model)
        if stable is not None and services.selected_stack(stable) == stack:
            raise Rejected(f"stack {stack} of {model.key} is live; switch the traffic away first")
        for kind in reversed(_PARTS):
            found = self._by_stack(model, kind).get(stack)
            if found is not None:
                metadata = found["metadata"]
                await self._api.delete(kind, metadata["namespace"], metadata["name"], uid=metadata["uid"])

    def _by_stack(self, model: RetrievalModel, kind: Kind) -> dict[str, Object]:
        """The object's children of this kind, by the stack that they are part of."""
        owned = self._cache.children(kind, model.metadata.uid)
        labelled = ((obj["metadata"].get("labels", {}).get(LABEL_STACK), obj) for obj in owned)
        return {stack: obj for stack, obj in labelled if stack}

    def _observed(self, service: Object, parts: Sequence[Object | None], pods: Sequence[Object]) -> StackObserved:
        server = parts[-1]
        staying = [part is not None and "deletionTimestamp" not in part["metadata"] for part in parts]
        replicas, max_replicas = bounds_of(server) if server else (0, 0)
        # What is going is not ready, whatever its pods say for a moment more.
        own = _made_for(server, pods) if server else []
        seen = read_servers(own, server, self._clock()) if server and staying[-1] else Servers(0)
        return StackObserved(
            record=services.read_record(service),
            ready_replicas=seen.ready,
            replicas=replicas,
            max_replicas=max_replicas,
            address=services.address(service),
            created_at=children.seconds(service["metadata"]["creationTimestamp"]),
            failed=seen.failed,
            waits_for=seen.waits_for,
            complete=all(staying),
            image=image_digest(own, CONTAINER),
        )


def _made_for(service: Object, pods: Sequence[Object]) -> list[Object]:
    """A deleted object of the same name may have left pods of the same stack: they are older."""
    since = service["metadata"]["creationTimestamp"]
    return [pod for pod in pods if pod["metadata"]["creationTimestamp"] >= since]
