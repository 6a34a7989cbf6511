"""The RetrievalModel objects of a cluster, their status and events. Nothing here ever writes a spec.

Objects are read from the cache. The status is written by server-side apply, whole.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import structlog
from pydantic import ValidationError

from retrieval_operator.adapters.kubernetes.api import STATUS_MANAGER, KubernetesApi
from retrieval_operator.adapters.kubernetes.cache import Cache
from retrieval_operator.adapters.kubernetes.events import EventRecorder
from retrieval_operator.adapters.kubernetes.kinds import RETRIEVAL_MODEL, Object
from retrieval_operator.api.conditions import Reason
from retrieval_operator.api.constants import FINALIZER
from retrieval_operator.api.objects import InvalidManifest, RetrievalModel, parse_stored
from retrieval_operator.api.status import RetrievalModelStatus
from retrieval_operator.api.wire import from_wire, to_wire
from retrieval_operator.domain.conditions import not_looked_after
from retrieval_operator.domain.plan import EmitEvent
from retrieval_operator.ports import Gone, Rejected, Stale

log = structlog.get_logger(__name__)


class KubernetesModelStore:
    """Fills the port ModelStore. `clock` gives seconds since the epoch; `instance` names the process in events."""

    def __init__(self, api: KubernetesApi, cache: Cache, clock: Callable[[], int], *, instance: str) -> None:
        self._api = api
        self._cache = cache
        self._clock = clock
        self._events = EventRecorder(api, instance)

    async def keys(self) -> Sequence[str]:
        return sorted(key_of(obj) for obj in self._cache.all(RETRIEVAL_MODEL))

    async def get(self, key: str) -> RetrievalModel | None:
        """The object as last seen; without its schedules when nothing but they cannot be read.

        Raises Rejected for one that this operator cannot read: another version of the definition let it in. Its status
        then says so, and everything that runs for it is left as it is.
        """
        obj = self._seen(key)
        if obj is None:
            return None
        try:
            model = parse_stored(obj, key)
        except InvalidManifest as error:
            await self._stall(obj, error)
            raise Rejected(str(error)) from error
        return model.model_copy(update={"status": read_status(obj)})

    async def write_status(self, model: RetrievalModel, status: RetrievalModelStatus) -> None:
        await self._write_status(self._current(model), status)

    async def emit(self, model: RetrievalModel, event: EmitEvent, now: int) -> None:
        await self._events.record(self._current(model), event, now)

    async def set_finalizer(self, model: RetrievalModel, present: bool) -> None:
        """Ours only: the list is sent whole, so the resourceVersion guards what others put in it."""
        metadata = self._current(model)["metadata"]
        names = metadata.get("finalizers", [])
        if present and "deletionTimestamp" in metadata:
            raise Gone(f"{model.key} is being deleted; a finalizer can only be removed now")
        if present == (FINALIZER in names):
            return
        others = [name for name in names if name != FINALIZER]
        patch = {"metadata": {"finalizers": [*others, FINALIZER] if present else others}}
        await self._api.patch(
            RETRIEVAL_MODEL,
            metadata["namespace"],
            metadata["name"],
            patch,
            resource_version=metadata["resourceVersion"],
        )

    async def _write_status(self, obj: Object, status: RetrievalModelStatus) -> None:
        """The version is the precondition: the API server would write the status of another UID without a word."""
        metadata = {key: obj["metadata"][key] for key in ("name", "namespace", "resourceVersion")}
        document = {**_type(obj), "metadata": metadata, "status": to_wire(status)}
        await self._api.apply_status(document, manager=STATUS_MANAGER)

    async def _stall(self, obj: Object, error: InvalidManifest) -> None:
        """Say in the status why nothing happens; level-based, so it is written only when it does not say so yet."""
        generation = int(obj["metadata"].get("generation", 1))
        before = read_status(obj)
        message = _sentence(obj, before, error)
        status = not_looked_after(before, generation, Reason.INVALID_SPEC, message, self._clock())
        if status.document() != before.document():
            await self._write_status(obj, status)

    def _seen(self, key: str) -> Object | None:
        namespace, _, name = key.partition("/")
        return self._cache.get(RETRIEVAL_MODEL, namespace, name)

    def _current(self, model: RetrievalModel) -> Object:
        """The object as it is now. Raises Gone when it vanished, Stale when another one has its name."""
        obj = self._seen(model.key)
        if obj is None:
            raise Gone(f"{model.key} does not exist")
        if obj["metadata"]["uid"] != model.metadata.uid:
            raise Stale(f"{model.key} was deleted and created again meanwhile")
        return obj


def key_of(obj: Object) -> str:
    """`namespace/name`."""
    return f"{obj['metadata']['namespace']}/{obj['metadata']['name']}"


def read_status(obj: Object) -> RetrievalModelStatus:
    """What was written. The status is no source of truth, so one that cannot be read is a wiped one."""
    try:
        return from_wire(obj.get("status") or {})
    except ValidationError as error:
        log.warning("status ignored: it cannot be read and will be written anew", object=key_of(obj), error=str(error))
        return RetrievalModelStatus()


def _sentence(obj: Object, status: RetrievalModelStatus, error: InvalidManifest) -> str:
    """What is wrong, after what that means: the end of a long message is cut."""
    means = "cannot be read by this operator; correct it, or install the definition that came with it"
    if "deletionTimestamp" in obj["metadata"]:
        means = f"cannot be read, so its files cannot be removed; correct it or remove the finalizer {FINALIZER}"
    if status.champion is not None:
        means += f"; until then nobody looks after stack {status.champion.stack}, which serves"
    return f"{means}: {'; '.join(error.problems)}"


def _type(obj: Object) -> Object:
    return {"apiVersion": obj["apiVersion"], "kind": obj["kind"]}
