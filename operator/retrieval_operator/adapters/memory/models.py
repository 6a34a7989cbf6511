"""The objects in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from retrieval_operator.adapters.memory.faults import Fake
from retrieval_operator.api.constants import FINALIZER
from retrieval_operator.api.objects import RetrievalModel
from retrieval_operator.api.status import RetrievalModelStatus
from retrieval_operator.domain.plan import EmitEvent
from retrieval_operator.ports import Gone, Stale

Objects = Mapping[str, RetrievalModel]


@dataclass(frozen=True, kw_only=True)
class MemoryEvent:
    event: EmitEvent
    count: int
    first_seen: int
    last_seen: int


class MemoryModelStore(Fake[Objects]):
    """Fills the port ModelStore. `apply`, `annotate` and `request_deletion` are what people do."""

    def __init__(self) -> None:
        super().__init__({})
        self._uids = 0
        self._events: dict[tuple[str, str, str], MemoryEvent] = {}

    async def keys(self) -> Sequence[str]:
        with self._call("keys", ""):
            return sorted(self._seen)

    async def get(self, key: str) -> RetrievalModel | None:
        with self._call("get", key):
            return self._seen.get(key)

    async def write_status(self, model: RetrievalModel, status: RetrievalModelStatus) -> None:
        with self._call("write_status", model.key):
            self._put(self._current(model).model_copy(update={"status": status}))

    async def emit(self, model: RetrievalModel, event: EmitEvent, now: int) -> None:
        with self._call("emit", model.key):
            self._current(model)
            identity = (model.key, event.reason.value, event.message)
            before = self._events.pop(identity, None)
            self._events[identity] = MemoryEvent(
                event=event,
                count=before.count + 1 if before else 1,
                first_seen=before.first_seen if before else now,
                last_seen=now,
            )

    async def set_finalizer(self, model: RetrievalModel, present: bool) -> None:
        with self._call("set_finalizer", model.key):
            current = self._current(model)
            if present and current.metadata.deletion_timestamp is not None:
                raise Gone(f"{model.key} is being deleted")
            others = [name for name in current.metadata.finalizers if name != FINALIZER]
            self._put(_with(current, finalizers=[*others, FINALIZER] if present else others))

    def apply(self, manifest: RetrievalModel, *, now: int) -> RetrievalModel:
        """Create the object or replace its spec; a new generation only when the spec says something else."""
        current = self._now.get(manifest.key)
        if current is None:
            self._uids += 1
            created = _with(
                manifest,
                uid=f"uid-{self._uids}",
                generation=1,
                creation_timestamp=now,
                deletion_timestamp=None,
                finalizers=[],
            )
            self._put(created.model_copy(update={"status": RetrievalModelStatus()}))
        elif current.spec.explicit() != manifest.spec.explicit():
            changed = current.model_copy(update={"spec": manifest.spec})
            self._put(_with(changed, generation=current.metadata.generation + 1))
        return self._now[manifest.key]

    def annotate(self, key: str, annotations: Mapping[str, str | None]) -> None:
        current = self._existing(key)
        merged = {**current.metadata.annotations, **annotations}
        self._put(_with(current, annotations={name: text for name, text in merged.items() if text is not None}))

    def request_deletion(self, key: str, *, now: int) -> None:
        current = self._existing(key)
        marked_at = current.metadata.deletion_timestamp
        self._put(_with(current, deletion_timestamp=now if marked_at is None else marked_at))

    def wipe_status(self, key: str) -> None:
        """What a person may do at any time; nothing may be lost by it."""
        self._put(self._existing(key).model_copy(update={"status": RetrievalModelStatus()}))

    def events(self, key: str) -> list[MemoryEvent]:
        return [record for (of, _, _), record in self._events.items() if of == key]

    def _put(self, model: RetrievalModel) -> None:
        rest = {key: other for key, other in self._now.items() if key != model.key}
        is_gone = model.metadata.deletion_timestamp is not None and not model.metadata.finalizers
        self._change(rest if is_gone else {**rest, model.key: model})

    def _existing(self, key: str) -> RetrievalModel:
        if key not in self._now:
            raise Gone(f"{key} does not exist")
        return self._now[key]

    def _current(self, seen: RetrievalModel) -> RetrievalModel:
        current = self._existing(seen.key)
        if current.metadata.uid != seen.metadata.uid:
            raise Stale(f"{seen.key} was deleted and created again")
        return current


def _with(model: RetrievalModel, **metadata: Any) -> RetrievalModel:
    return model.model_copy(update={"metadata": model.metadata.model_copy(update=metadata)})
