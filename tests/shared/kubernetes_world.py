"""An API server in memory: what the Kubernetes adapters need of one, with the real one's answers.

Creates, server-side apply, merge patches and deletions with uid, resourceVersion, generation, finalizers, field
managers and garbage collection. What the other controllers of a cluster do is played by the methods below
`# The other controllers`. No admission and no defaults: those are tested on the real one (tests/e2e).
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from typing import Any

from merge_patch import merge_patch

from retrieval_operator.adapters.kubernetes import permissions
from retrieval_operator.adapters.kubernetes.cache import Cache, WriteThrough, owner_uids
from retrieval_operator.adapters.kubernetes.feed import labels_of
from retrieval_operator.adapters.kubernetes.kinds import (
    INFERENCE_SERVICE,
    JOB,
    NAMESPACE,
    POD,
    PYTORCH_JOB,
    Kind,
    Object,
    kind_of,
)
from retrieval_operator.api.types import rfc3339
from retrieval_operator.ports import Gone, PortError, Rejected, Retryable, Stale

# What the chart lets the operator do, its uninstall hook included. A request beyond it fails the test that makes it.
_ALLOWED = {(row.kind, verb) for rows in permissions.SCOPES.values() for row in rows for verb in row.verbs}
# Kinds without a generation.
_NO_SPEC = {"Event", "Lease"}


class KubernetesWorld:
    """Fills KubernetesApi; `cache` is fed as by watches, at once unless `hold_watches` was called.

    `api` is this world with WriteThrough before it: what adapters get. `clock` gives seconds since the epoch.
    """

    def __init__(self, clock: Callable[[], int], *, is_limited: bool = True) -> None:
        """`is_limited`: to what the chart allows the operator."""
        self.cache = Cache()
        self.api = WriteThrough(self, self.cache)
        self.requests: list[tuple[str, str, str]] = []  # (verb, kind, name)
        self._is_limited = is_limited
        self._clock = clock
        self._objects: dict[tuple[Kind, str, str], Object] = {}
        self._applied: dict[tuple[str, str], Object] = {}  # by uid and manager: the status applied last
        self._version = 0
        self._uids = 0
        self._terminating: set[str] = set()
        self._missing_kinds: set[Kind] = set()
        self._failures: list[tuple[str, str, PortError]] = []
        self._held: list[tuple[str, Kind, Object]] | None = None

    # The API server ---------------------------------------------------------------------------------------------------

    async def get(self, kind: Kind, namespace: str | None, name: str) -> Object | None:
        self._request("get", kind, name)
        if kind == NAMESPACE:
            return self._namespace(name)
        return copy.deepcopy(self._objects.get((kind, namespace or "", name)))

    async def list(self, kind: Kind, namespace: str | None, labels: Mapping[str, str]) -> list[Object]:
        self._request("list", kind, "")
        if kind in self._missing_kinds:
            raise Gone(f"{kind.plural}.{kind.group}: the definition is not installed")
        return [
            copy.deepcopy(obj)
            for (of, inside, _), obj in sorted(self._objects.items(), key=lambda item: item[0][1:])
            if of == kind
            and namespace in (None, inside)
            and labels.items() <= obj["metadata"].get("labels", {}).items()
        ]

    async def create(self, obj: Object) -> Object | None:
        kind, namespace, name = _address(obj)
        self._request("create", kind, name)
        self._check_kind_and_namespace(kind, namespace)
        return None if (kind, namespace, name) in self._objects else self._create(obj)

    async def apply_status(self, obj: Object, *, manager: str) -> Object:
        kind, namespace, name = _address(obj)
        self._request("patch", kind, name)
        current = self._objects.get((kind, namespace, name))
        if current is None:
            raise Gone(f'{kind.plural} "{name}" not found')
        return self._apply(current, {"metadata": obj["metadata"], "status": obj["status"]}, manager)

    async def patch(
        self, kind: Kind, namespace: str, name: str, patch: Object, *, resource_version: str = ""
    ) -> Object:
        self._request("patch", kind, name)
        current = self._objects.get((kind, namespace, name))
        if current is None:
            raise Gone(f'{kind.plural} "{name}" not found')
        if resource_version and resource_version != current["metadata"]["resourceVersion"]:
            raise Stale(f"{kind} {name}: the object has been modified")
        merged = merge_patch(current, patch)
        added = set(merged["metadata"].get("finalizers", [])) - set(current["metadata"].get("finalizers", []))
        if added and "deletionTimestamp" in current["metadata"]:
            raise Rejected(f"{kind} {name}: no new finalizers can be added if the object is being deleted")
        return self._update(current, merged)

    async def delete(self, kind: Kind, namespace: str, name: str, *, uid: str = "", foreground: bool = False) -> None:
        self._request("delete", kind, name)
        current = self._objects.get((kind, namespace, name))
        if current is not None and uid in ("", current["metadata"]["uid"]):
            self._delete(current)

    # What tests do ----------------------------------------------------------------------------------------------------

    def watch(self, *kinds: Kind) -> None:
        """The cache is complete for these kinds."""
        for kind in kinds:
            self.cache.watch(kind)

    def hold_watches(self) -> None:
        """From now on the cache hears nothing by itself, until `deliver`."""
        self._held = self._held or []

    def deliver(self) -> None:
        """Tell the cache what it did not hear."""
        held, self._held = self._held or [], None
        for event in held:
            self._tell(*event)

    def terminate_namespace(self, namespace: str) -> None:
        """It is being deleted: creates in it are refused. Its objects stay until a test deletes them."""
        self._terminating.add(namespace)

    def uninstall(self, kind: Kind) -> None:
        """The definition of this kind is not there, nor any object of it."""
        self._missing_kinds.add(kind)
        for key in [key for key in self._objects if key[0] == kind]:
            self._remove(self._objects[key])

    def fail(self, verb: str, kind: Kind, error: PortError, *, times: int = 1) -> None:
        """The next requests of this verb (get, list, create, patch, delete) and kind raise the error."""
        self._failures += [(verb, kind.kind, error)] * times

    def object(self, kind: Kind, namespace: str, name: str) -> Object:
        """A copy of what is stored. Raises KeyError when there is none."""
        return copy.deepcopy(self._objects[kind, namespace, name])

    def objects(self, kind: Kind) -> list[Object]:
        return [copy.deepcopy(obj) for (of, _, _), obj in sorted(self._objects.items(), key=str) if of == kind]

    def put(self, obj: Object) -> Object:
        """Create, or replace metadata.labels, metadata.annotations and all but metadata and status: kubectl apply."""
        current = self._objects.get(_address(obj))
        if current is None:
            return self._create(obj)
        kept = {key: current["metadata"].get(key) for key in ("labels", "annotations")}
        asked = {key: {**(kept[key] or {}), **obj["metadata"].get(key, {})} for key in kept}
        changed = {**current, **{key: value for key, value in obj.items() if key not in ("metadata", "status")}}
        changed["metadata"] = {**current["metadata"], **{key: value for key, value in asked.items() if value}}
        return self._update(current, changed)

    def change(self, kind: Kind, namespace: str, name: str, patch: Object) -> Object:
        """Somebody else's merge patch, status included."""
        current = self._objects[kind, namespace, name]
        return self._update(current, merge_patch(current, patch))

    def remove(self, kind: Kind, namespace: str, name: str) -> None:
        """Somebody else's deletion."""
        self._delete(self._objects[kind, namespace, name])

    # The other controllers --------------------------------------------------------------------------------------------

    def set_status(self, kind: Kind, namespace: str, name: str, status: Object) -> None:
        """Replace the status, as the kind's controller would."""
        self.change(kind, namespace, name, {"status": None})
        self.change(kind, namespace, name, {"status": status})

    def warn(self, obj: Object, reason: str, message: str) -> None:
        """An event about an object that exists, as its controller or the kubelet records one."""
        metadata = obj["metadata"]
        self.put(
            {
                "apiVersion": "v1",
                "kind": "Event",
                "metadata": {"name": f"{metadata['name']}.{reason.lower()}", "namespace": metadata["namespace"]},
                "type": "Warning",
                "involvedObject": {"kind": obj["kind"], "name": metadata["name"], "uid": metadata["uid"]},
                "reason": reason,
                "message": message,
            }
        )

    def add_pod(self, owner: Object, template: Object, name: str, *, labels: Mapping[str, str] | None = None) -> Object:
        """A pod from a template (metadata and spec) of an owner that exists, as yet Pending."""
        metadata = template.get("metadata", {})
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": name,
                "namespace": owner["metadata"]["namespace"],
                "labels": {**metadata.get("labels", {}), **(labels or {})},
                "annotations": dict(metadata.get("annotations", {})),
                "ownerReferences": [owner_reference(owner)],
            },
            "spec": copy.deepcopy(template.get("spec", {})),
            "status": {"phase": "Pending"},
        }
        return self.put(pod)

    def run_pod(self, namespace: str, name: str, *, ready: bool = True) -> None:
        """All its containers run since now."""
        started = {"running": {"startedAt": rfc3339(self._clock())}}
        self._set_pod_status(namespace, name, "Running", started, ready=ready)

    def end_pod(self, namespace: str, name: str, code: int, *, reason: str = "", message: str = "") -> None:
        """All its containers end with this exit code and termination message; `reason` such as OOMKilled."""
        now = rfc3339(self._clock())
        ended = {
            "exitCode": code,
            "reason": reason or ("Completed" if code == 0 else "Error"),
            "message": message,
            "startedAt": now,
            "finishedAt": now,
        }
        self._set_pod_status(namespace, name, "Failed" if code else "Succeeded", {"terminated": ended}, ready=False)

    def start_job(self, namespace: str, name: str, *, index: int | None = None) -> str:
        """The Job's controller makes one pod, which runs. Its name; `index` for one of an Indexed Job."""
        job = self.object(JOB, namespace, name)
        number = sum(1 for pod in self.objects(POD) if job["metadata"]["uid"] in owner_uids(pod))
        labels = {"batch.kubernetes.io/job-name": name}
        if index is not None:
            labels["batch.kubernetes.io/job-completion-index"] = str(index)
        pod = self.add_pod(job, job["spec"]["template"], f"{name}-{number:05d}", labels=labels)["metadata"]["name"]
        self.run_pod(namespace, pod)
        status = {"active": 1, "startTime": rfc3339(self._clock())}
        self.change(JOB, namespace, name, {"status": status})
        return str(pod)

    def finish_job(self, namespace: str, name: str, code: int = 0, *, reason: str = "", message: str = "") -> None:
        """A pod of the Job ends like this, and its controller believes it for good. `message`: raw, or JSON text."""
        pod = self.start_job(namespace, name)
        self.end_pod(namespace, pod, code, reason=reason, message=message)
        now = rfc3339(self._clock())
        kinds = ("SuccessCriteriaMet", "Complete") if code == 0 else ("FailureTarget", "Failed")
        why = "CompletionsReached" if code == 0 else "BackoffLimitExceeded"
        conditions = [{"type": kind, "status": "True", "reason": why, "lastTransitionTime": now} for kind in kinds]
        done: Object = {"succeeded": 1, "completionTime": now} if code == 0 else {"failed": 1}
        self.change(JOB, namespace, name, {"status": {"active": None, "conditions": conditions, **done}})

    def start_pytorch_job(self, namespace: str, name: str) -> list[str]:
        """The training-operator makes the pods of every replica type, which run. Their names, the master first."""
        job = self.object(PYTORCH_JOB, namespace, name)
        names = []
        for kind, replicas in sorted(job["spec"]["pytorchReplicaSpecs"].items()):
            for index in range(replicas.get("replicas", 1)):
                labels = {
                    "training.kubeflow.org/job-name": name,
                    "training.kubeflow.org/replica-type": kind.lower(),
                    "training.kubeflow.org/replica-index": str(index),
                }
                pod = self.add_pod(job, replicas["template"], f"{name}-{kind.lower()}-{index}", labels=labels)
                self.run_pod(namespace, pod["metadata"]["name"])
                names.append(pod["metadata"]["name"])
        now = rfc3339(self._clock())
        running = [{"type": kind, "status": "True", "lastTransitionTime": now} for kind in ("Created", "Running")]
        self.change(PYTORCH_JOB, namespace, name, {"status": {"startTime": now, "conditions": running}})
        return names

    def finish_pytorch_job(
        self, namespace: str, name: str, code: int = 0, *, reason: str = "", message: str = ""
    ) -> None:
        """All its pods end like this, and the training-operator believes it for good."""
        for pod in self.start_pytorch_job(namespace, name):
            self.end_pod(namespace, pod, code, reason=reason, message=message)
        now = rfc3339(self._clock())
        conditions = [
            {"type": "Running", "status": "False", "lastTransitionTime": now},
            {"type": "Failed" if code else "Succeeded", "status": "True", "lastTransitionTime": now},
        ]
        self.change(PYTORCH_JOB, namespace, name, {"status": {"conditions": conditions, "completionTime": now}})

    def add_predictor_pods(self, namespace: str, name: str, count: int, *, ready: bool = True) -> list[str]:
        """KServe brings the pods of an InferenceService to `count`; like there, they carry all of its labels."""
        service = self.object(INFERENCE_SERVICE, namespace, name)
        selector = f"isvc.{name}-predictor"
        present = [
            pod["metadata"]["name"]
            for pod in self.objects(POD)
            if pod["metadata"].get("labels", {}).get("app") == selector
        ]
        for pod in present[count:]:
            self.remove(POD, namespace, pod)
        predictor = service["spec"]["predictor"]
        labels = {
            **service["metadata"].get("labels", {}),
            **predictor.get("labels", {}),
            "app": selector,
            "component": "predictor",
            "serving.kserve.io/inferenceservice": name,
        }
        template = {"metadata": {"labels": labels}, "spec": {"containers": predictor.get("containers", [])}}
        names = present[:count]
        for _ in range(count - len(names)):
            self._uids += 1
            pod = self.add_pod(service, template, f"{name}-predictor-{self._uids:05d}")
            # Its owner is the Deployment's ReplicaSet, which no adapter may rely on.
            owner = {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": name, "uid": f"rs-{name}"}
            self.change(POD, namespace, pod["metadata"]["name"], {"metadata": {"ownerReferences": [owner]}})
            names.append(pod["metadata"]["name"])
        for pod_name in names:
            self.run_pod(namespace, pod_name, ready=ready)
        return names

    # How it is kept ---------------------------------------------------------------------------------------------------

    def _request(self, verb: str, kind: Kind, name: str) -> None:
        may = not self._is_limited or (kind, verb) in _ALLOWED
        assert may, f"no row of permissions.py lets the operator {verb} {kind.plural}"
        self.requests.append((verb, kind.kind, name))
        for failure in self._failures:
            if failure[:2] == (verb, kind.kind):
                self._failures.remove(failure)
                raise failure[2]

    def _check_kind_and_namespace(self, kind: Kind, namespace: str) -> None:
        if kind in self._missing_kinds:
            raise Retryable(f"{kind.plural}.{kind.group}: the server could not find the requested resource")
        if namespace in self._terminating:
            raise Gone(f"the namespace {namespace} is being terminated")

    def _namespace(self, name: str) -> Object:
        """Every namespace is there, as far as anybody asks."""
        metadata = {"name": name, **({"deletionTimestamp": rfc3339(0)} if name in self._terminating else {})}
        return {"apiVersion": NAMESPACE.api_version, "kind": NAMESPACE.kind, "metadata": metadata}

    def _create(self, obj: Object) -> Object:
        self._uids += 1
        kind = kind_of(obj)
        created = copy.deepcopy({key: value for key, value in obj.items() if key != "status" or kind == POD})
        created["metadata"] |= {
            "uid": f"uid-{self._uids}",
            "creationTimestamp": rfc3339(self._clock()),
            "managedFields": [{"manager": "somebody"}],
        }
        if kind.kind not in _NO_SPEC:
            created["metadata"]["generation"] = 1
        return self._store("ADDED", created)

    def _apply(self, current: Object, wanted: Object, manager: str) -> Object:
        uid = current["metadata"]["uid"]
        version = wanted["metadata"].get("resourceVersion", "")
        if version not in ("", current["metadata"]["resourceVersion"]):
            raise Stale(f"{current['metadata']['name']}: the object has been modified")
        before = self._applied.get((uid, manager), {})
        self._applied[uid, manager] = copy.deepcopy(wanted)
        return self._update(current, _merge(_without(current, before, wanted), wanted))

    def _update(self, current: Object, changed: Object) -> Object:
        """Store what differs; equal is no update. Without finalizers, what is marked as deleted goes."""
        changed = copy.deepcopy(changed)
        changed["metadata"] |= {"uid": current["metadata"]["uid"]}
        if changed == current:
            return copy.deepcopy(current)
        if "generation" in current["metadata"] and changed.get("spec") != current.get("spec"):
            changed["metadata"]["generation"] = current["metadata"]["generation"] + 1
        if "deletionTimestamp" in changed["metadata"] and not changed["metadata"].get("finalizers"):
            return self._remove(changed)
        return self._store("MODIFIED", changed)

    def _delete(self, current: Object) -> None:
        if not current["metadata"].get("finalizers"):
            self._remove(current)
        elif "deletionTimestamp" not in current["metadata"]:
            marked = copy.deepcopy(current)
            marked["metadata"]["deletionTimestamp"] = rfc3339(self._clock())
            self._store("MODIFIED", marked)

    def _remove(self, obj: Object) -> Object:
        """The object goes, then the garbage collector comes for what it owns."""
        self._version += 1
        gone = copy.deepcopy(obj)
        gone["metadata"]["resourceVersion"] = str(self._version)
        del self._objects[_address(obj)]
        self._announce("DELETED", gone)
        for other in [other for other in self._objects.values() if gone["metadata"]["uid"] in owner_uids(other)]:
            self._delete(other)
        return gone

    def _store(self, event: str, obj: Object) -> Object:
        self._version += 1
        obj["metadata"]["resourceVersion"] = str(self._version)
        self._objects[_address(obj)] = obj
        self._announce(event, obj)
        return copy.deepcopy(obj)

    def _announce(self, event: str, obj: Object) -> None:
        seen = (event, kind_of(obj), copy.deepcopy(obj))
        if self._held is None:
            self._tell(*seen)
        else:
            self._held.append(seen)

    def _tell(self, event: str, kind: Kind, obj: Object) -> None:
        """As the watches ask: of children only what has our label. One that loses it is told as deleted."""
        is_asked_for = labels_of(kind).items() <= obj["metadata"].get("labels", {}).items()
        if event == "DELETED" or not is_asked_for:
            self.cache.remove(kind, obj)
        else:
            self.cache.put(kind, obj)

    def _set_pod_status(self, namespace: str, name: str, phase: str, state: Object, *, ready: bool) -> None:
        pod = self._objects[POD, namespace, name]
        containers = [
            {"name": container["name"], "ready": ready, "restartCount": 0, "state": state}
            for container in pod["spec"].get("containers", [])
        ]
        conditions = [{"type": "Ready", "status": str(ready)}]
        status = {"phase": phase, "conditions": conditions, "containerStatuses": containers, "podIP": "10.244.0.9"}
        self.change(POD, namespace, name, {"status": status})


def owner_reference(owner: Object) -> Object:
    """A controller reference to an object that exists."""
    return {
        "apiVersion": owner["apiVersion"],
        "kind": owner["kind"],
        "name": owner["metadata"]["name"],
        "uid": owner["metadata"]["uid"],
        "controller": True,
    }


def termination_message(reason: str, message: str) -> str:
    """What our programs leave in /dev/termination-log (docs/contracts.md section 2)."""
    return json.dumps({"reason": reason, "message": message})


def waiting_pod(reason: str, message: str = "") -> Object:
    """The status of a pod that a node has and whose container waits, in the kubelet's words."""
    waiting = {"reason": reason, "message": message}
    container = {"name": "main", "image": "registry.example/indexer:1", "state": {"waiting": waiting}}
    return {"phase": "Pending", "containerStatuses": [container]}


def _address(obj: Object) -> tuple[Kind, str, str]:
    return kind_of(obj), obj["metadata"].get("namespace", ""), obj["metadata"]["name"]


def _merge(current: Any, wanted: Any) -> Any:
    """Server-side apply with every list atomic."""
    if not isinstance(current, dict) or not isinstance(wanted, dict):
        return copy.deepcopy(wanted)
    return {**current, **{key: _merge(current.get(key), value) for key, value in wanted.items()}}


def _without(current: Any, before: Any, wanted: Any) -> Any:
    """`current` less what this manager applied before and leaves out now."""
    if not isinstance(current, dict) or not isinstance(before, dict) or not isinstance(wanted, dict):
        return current
    dropped = set(before) - set(wanted)
    return {
        key: _without(value, before.get(key), wanted.get(key)) for key, value in current.items() if key not in dropped
    }
