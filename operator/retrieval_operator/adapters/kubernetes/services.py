"""The Services of an object: one per stack, and the stable one whose selector is the traffic switch. Pure.

    <name>-<stack>   reaches this stack before any traffic does, and holds its record: create begins with it, removal
                     ends with it; the disruption budget has a copy. KServe's own Service is not used: it may be
                     headless (KServe's configuration), where port 80 leads nowhere, and has KServe's name.
    <name>           reaches the live stack. The selector is the champion's truth; annotations hold its record, which
                     stack was live before, and since when.

Both have `http` on port 80 and `grpc` on 8081. Pods are selected directly, by the labels of object and stack.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from retrieval_operator.adapters.kubernetes import children
from retrieval_operator.adapters.kubernetes.kinds import SERVICE, Object
from retrieval_operator.api.constants import GROUP, LABEL_NAME, LABEL_STACK
from retrieval_operator.api.objects import RetrievalModel
from retrieval_operator.api.status import StackRecord
from retrieval_operator.ports import Rejected

HTTP_PORT = 8080  # of the pods; KServe's defaults, both
GRPC_PORT = 8081
RECORD_ANNOTATION = f"{GROUP}/record"
PREVIOUS_ANNOTATION = f"{GROUP}/previous"
SWITCHED_AT_ANNOTATION = f"{GROUP}/switched-at"  # seconds since the epoch

_PORTS: list[Object] = [
    {"name": "http", "port": 80, "targetPort": HTTP_PORT, "protocol": "TCP"},
    # So that a mesh, or a gateway, speaks HTTP/2 to the pods.
    {
        "name": "grpc",
        "port": GRPC_PORT,
        "targetPort": GRPC_PORT,
        "protocol": "TCP",
        "appProtocol": "kubernetes.io/h2c",
    },
]


def stack_name(model: RetrievalModel, stack: str) -> str:
    """The name of all children of a stack: at most 32 + 1 + 8 characters; an InferenceService may have 48."""
    return f"{model.metadata.name}-{stack}"


def stack_labels(model: RetrievalModel, stack: str) -> dict[str, str]:
    """What selects the pods of a stack."""
    return {LABEL_NAME: model.metadata.name, LABEL_STACK: stack}


def direct_service(model: RetrievalModel, record: StackRecord) -> Object:
    metadata = children.metadata(model, stack_name(model, record.stack), {LABEL_STACK: record.stack})
    return _service({**metadata, "annotations": record_annotations(record)}, stack_labels(model, record.stack))


def stable_service(model: RetrievalModel, annotations: Mapping[str, str], selector: Mapping[str, str]) -> Object:
    return _service({**children.metadata(model, model.metadata.name), "annotations": dict(annotations)}, selector)


def record_annotations(record: StackRecord) -> dict[str, str]:
    """Of what holds a stack's record; `read_record` reads it."""
    return {RECORD_ANNOTATION: json.dumps(record.document(), sort_keys=True, separators=(",", ":"))}


def live_annotations(record: StackRecord, previous: str, switched_at: int) -> dict[str, str]:
    """Of the stable Service."""
    return {
        **record_annotations(record),
        PREVIOUS_ANNOTATION: previous,
        SWITCHED_AT_ANNOTATION: str(switched_at),
    }


def read_record(holder: Object) -> StackRecord:
    """The record that a Service or a disruption budget holds. Raises Rejected when it cannot be read: never guessed."""
    try:
        document: Any = json.loads(holder["metadata"].get("annotations", {})[RECORD_ANNOTATION])
        return StackRecord.model_validate(document)
    except (KeyError, ValueError, ValidationError) as error:
        problem = f"expected a stack's record as JSON: {type(error).__name__}"
        raise Rejected(f"{_shown(holder)} cannot be read: annotation {RECORD_ANNOTATION}, {problem}") from error


def record_of(service: Object | None, budget: Object | None) -> StackRecord | None:
    """What a stack is, by its Service, else by the copy on its budget; None without either. Raises as read_record."""
    problem: Rejected | None = None
    for holder in (service, budget):
        try:
            if holder is not None:
                return read_record(holder)
        except Rejected as error:
            problem = problem or error
    if problem is not None:
        raise problem
    return None


def selected_stack(service: Object) -> str:
    """The stack that the Service sends new connections to, "" for none that can be told."""
    return str(service["spec"].get("selector", {}).get(LABEL_STACK, ""))


def leads_to(service: Object, model: RetrievalModel, stack: str) -> bool:
    """Whether new connections to its ports reach the pods of the stack.

    Any other key in the selector asks of pods what they do not have. A port that somebody added is not our business.
    """
    return service["spec"].get("selector") == stack_labels(model, stack) and _has_our_ports(service)


def way_to(service: Object, model: RetrievalModel, stack: str) -> Object:
    """The merge patch of its spec after which it leads to the stack. What somebody added to the selector goes."""
    added = dict.fromkeys(service["spec"].get("selector", {}))
    selector = {"selector": {**added, **stack_labels(model, stack)}}
    return selector if _has_our_ports(service) else {**selector, "ports": _PORTS}


def read_switch(service: Object) -> tuple[str, int]:
    """Of the stable Service: the stack that was live before, and when it was switched. Raises Rejected."""
    annotations = service["metadata"].get("annotations", {})
    try:
        return annotations.get(PREVIOUS_ANNOTATION, ""), int(annotations[SWITCHED_AT_ANNOTATION])
    except (KeyError, ValueError) as error:
        found = f"annotation {SWITCHED_AT_ANNOTATION} is no time in seconds"
        raise unreadable(service, found, "set it to when the stack became live") from error


def address(service: Object) -> str:
    """Within the cluster, whatever its domain is. Of a stack any of its parts will do: they have one name."""
    return f"http://{service['metadata']['name']}.{service['metadata']['namespace']}.svc"


def unreadable(service: Object, found: str, remedy: str) -> Rejected:
    return Rejected(f"{_shown(service)} cannot be read: {found}; {remedy}")


def _has_our_ports(service: Object) -> bool:
    """As far as they decide where a connection goes. The API server, and older operators, differ in the rest."""
    ways = [_way(port) for port in service["spec"].get("ports", [])]
    return all(_way(port) in ways for port in _PORTS)


def _way(port: Object) -> tuple[Any, ...]:
    return port.get("name"), port.get("port"), port.get("targetPort"), port.get("protocol", "TCP")


def _service(metadata: Object, selector: Mapping[str, str]) -> Object:
    return {
        "apiVersion": SERVICE.api_version,
        "kind": SERVICE.kind,
        "metadata": metadata,
        "spec": {"type": "ClusterIP", "selector": dict(selector), "ports": [dict(port) for port in _PORTS]},
    }


def _shown(obj: Object) -> str:
    return f"{obj['kind']} {obj['metadata']['namespace']}/{obj['metadata']['name']}"
