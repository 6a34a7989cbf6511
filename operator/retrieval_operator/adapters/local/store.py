"""The RetrievalModel objects of this machine, their status and events, shared by the CLI and the control plane.

An object is one file, metadata and spec together: there is no moment at which a new spec has the old generation.
Every change of an object happens under one lock, so that rules over all objects hold.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import structlog
import yaml
from pydantic import ValidationError

from retrieval_operator.adapters.local import rules
from retrieval_operator.adapters.local.home import LocalHome, read_json, write_json, write_text
from retrieval_operator.api.constants import API_VERSION, FINALIZER, KIND
from retrieval_operator.api.objects import InvalidManifest, RetrievalModel, parse_manifest
from retrieval_operator.api.status import RetrievalModelStatus
from retrieval_operator.domain.plan import EmitEvent
from retrieval_operator.ports import Gone, Rejected, Stale

log = structlog.get_logger(__name__)

# Enough for people to see what led to the present state. A gut feeling.
_EVENTS_KEPT = 200
_OBJECTS_LOCK = "objects"


@dataclass(frozen=True, kw_only=True)
class Applied:
    model: RetrievalModel
    outcome: Literal["created", "configured", "unchanged"]


@dataclass(frozen=True, kw_only=True)
class EventRecord:
    """One line of `describe`: the same (reason, message) again raises `count` and moves `last_seen`."""

    type: str
    reason: str
    message: str
    count: int
    first_seen: int
    last_seen: int


class LocalModelStore:
    """Fills the port ModelStore; `apply`, `annotate`, `request_deletion` and `events` are for the command line."""

    def __init__(self, home: LocalHome) -> None:
        self._home = home

    async def keys(self) -> Sequence[str]:
        return self._home.keys("objects")

    async def get(self, key: str) -> RetrievalModel | None:
        """Raises Rejected when the object's own file was damaged; a damaged status reads as no status."""
        model = self._read(key)
        return model.model_copy(update={"status": self._read_status(model)}) if model else None

    async def write_status(self, model: RetrievalModel, status: RetrievalModelStatus) -> None:
        with self._home.locked(_OBJECTS_LOCK):
            self._current(model)
            document = {"uid": model.metadata.uid, "status": status.document()}
            write_json(self._home.status_file(model.key), document)

    async def emit(self, model: RetrievalModel, event: EmitEvent, now: int) -> None:
        with self._home.locked(_OBJECTS_LOCK):
            self._current(model)
            records = {(record.reason, record.message): record for record in self.events(model.key)}
            before = records.pop((event.reason.value, event.message), None)
            records[event.reason.value, event.message] = EventRecord(
                type=event.type,
                reason=event.reason.value,
                message=event.message,
                count=before.count + 1 if before else 1,
                first_seen=before.first_seen if before else now,
                last_seen=now,
            )
            lines = [json.dumps(vars(record)) + "\n" for record in list(records.values())[-_EVENTS_KEPT:]]
            write_text(self._home.events_file(model.key), "".join(lines))

    async def set_finalizer(self, model: RetrievalModel, present: bool) -> None:
        with self._home.locked(_OBJECTS_LOCK):
            current = self._current(model)
            others = [name for name in current.metadata.finalizers if name != FINALIZER]
            if present and current.metadata.deletion_timestamp is not None:
                raise Gone(f"{model.key} is being deleted; a finalizer can only be removed now")
            self._update(current, finalizers=[*others, FINALIZER] if present else others)

    def events(self, key: str) -> list[EventRecord]:
        """What was emitted, oldest first by its last time. Lines that cannot be read are left out."""
        try:
            lines = self._home.events_file(key).read_text().splitlines()
        except FileNotFoundError:
            return []
        records = []
        for line in lines:
            try:
                records.append(EventRecord(**json.loads(line)))
            except (ValueError, TypeError):
                log.warning("event line ignored", object=key, line=line[:80])
        return records

    def apply(self, manifest: RetrievalModel, *, now: int) -> Applied:
        """Create the object, or change it to the manifest. A new generation only when the spec says something else.

        Raises Rejected for a change of an immutable field, a relative path, a storage prefix that another object
        uses, or an object that is being deleted; nothing is changed then.
        """
        with self._home.locked(_OBJECTS_LOCK):
            current = self._read(manifest.key)
            others = [self._read(key) for key in self._home.keys("objects") if key != manifest.key]
            rules.check(manifest, current, [other for other in others if other])
            if current is None:
                return Applied(model=self._create(manifest, now), outcome="created")
            same_spec = current.spec.explicit() == manifest.spec.explicit()
            metadata = {
                "labels": manifest.metadata.labels,
                # Requests that the CLI noted (approve, retry) are not in the manifest and stay.
                "annotations": current.metadata.annotations | manifest.metadata.annotations,
                "generation": current.metadata.generation + (not same_spec),
            }
            if same_spec and all(getattr(current.metadata, name) == value for name, value in metadata.items()):
                return Applied(model=current, outcome="unchanged")
            return Applied(model=self._update(current, spec=manifest.spec, **metadata), outcome="configured")

    def annotate(self, key: str, annotations: Mapping[str, str | None]) -> RetrievalModel:
        """Set annotations; None removes one. Raises Gone for an unknown object."""
        with self._home.locked(_OBJECTS_LOCK):
            current = self._existing(key)
            merged = {**current.metadata.annotations, **annotations}
            return self._update(current, annotations={name: text for name, text in merged.items() if text is not None})

    def request_deletion(self, key: str, *, now: int) -> bool:
        """Mark the object as being deleted. True when it is gone already, because no finalizer holds it.

        Its processes are not stopped here: collect_garbage does that for objects that are gone.
        """
        with self._home.locked(_OBJECTS_LOCK):
            current = self._existing(key)
            marked_at = current.metadata.deletion_timestamp
            self._update(current, deletion_timestamp=now if marked_at is None else marked_at)
            return not self._home.object_file(key).exists()

    def owners(self) -> dict[str, str | None]:
        """The uid of every object by its key; None for one that cannot be read, whose children nobody may judge."""
        found: dict[str, str | None] = {}
        for key in self._home.keys("objects"):
            try:
                model = self._read(key)
            except Rejected as error:
                log.warning("object cannot be read", object=key, error=str(error))
                found[key] = None
            else:
                found |= {key: model.metadata.uid} if model else {}
        return found

    def _create(self, manifest: RetrievalModel, now: int) -> RetrievalModel:
        self._forget(manifest.key)  # what a deletion that was cut may have left
        return self._update(
            manifest,
            uid=str(uuid.uuid4()),
            generation=1,
            resource_version="0",
            creation_timestamp=now,
            deletion_timestamp=None,
            finalizers=[],
        )

    def _update(self, model: RetrievalModel, *, spec: Any = None, **metadata: Any) -> RetrievalModel:
        """Write the object with these fields changed; or remove it, once it is marked and no finalizer is left."""
        version = str(int(metadata.pop("resource_version", model.metadata.resource_version)) + 1)
        changed = model.metadata.model_copy(update={**metadata, "resource_version": version})
        updated = model.model_copy(update={"metadata": changed, "spec": spec or model.spec})
        if changed.deletion_timestamp is not None and not changed.finalizers:
            self._forget(model.key)
        else:
            write_text(self._home.object_file(model.key), _to_yaml(updated))
        return updated

    def _forget(self, key: str) -> None:
        """Remove the object's file first: without it the others mean nothing."""
        for path in (self._home.object_file(key), self._home.status_file(key), self._home.events_file(key)):
            path.unlink(missing_ok=True)

    def _existing(self, key: str) -> RetrievalModel:
        model = self._read(key)
        if model is None:
            raise Gone(f"{key} does not exist")
        return model

    def _current(self, seen: RetrievalModel) -> RetrievalModel:
        """The object as it is now. Raises Gone when it vanished, Stale when another one has its name."""
        current = self._existing(seen.key)
        if current.metadata.uid != seen.metadata.uid:
            raise Stale(f"{seen.key} was deleted and created again meanwhile")
        return current

    def _read(self, key: str) -> RetrievalModel | None:
        path = self._home.object_file(key)
        try:
            return parse_manifest(yaml.safe_load(path.read_text()), str(path))
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError, yaml.YAMLError, InvalidManifest) as error:
            raise Rejected(f"{path}: the stored object cannot be read: {error}") from error

    def _read_status(self, model: RetrievalModel) -> RetrievalModelStatus:
        """What was written for this very object. The status is no source of truth, so a damaged one is a wiped one."""
        path = self._home.status_file(model.key)
        try:
            document = read_json(path)
            if document is None or document["uid"] != model.metadata.uid:
                return RetrievalModelStatus()
            return RetrievalModelStatus.model_validate(document["status"])
        except (Rejected, KeyError, ValidationError) as error:
            log.warning(
                "status file ignored: it cannot be read and will be written anew", path=str(path), error=str(error)
            )
            return RetrievalModelStatus()


def _to_yaml(model: RetrievalModel) -> str:
    document = {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": model.metadata.model_dump(mode="json", by_alias=True, exclude_none=True),
        "spec": model.spec.explicit(),
    }
    return yaml.safe_dump(document, sort_keys=False, allow_unicode=True)
