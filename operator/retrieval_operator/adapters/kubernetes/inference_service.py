"""A stack besides its Service: an InferenceService in Standard mode, and a disruption budget. Pure.

Immutable but for the number of servers: KServe copies labels and annotations of an InferenceService to its pods, so a
change of one restarts them. The only one that changes is the class of autoscaler, when a person adds or takes away its
bound: the pods are then replaced one by one, with none unavailable.
"""

from __future__ import annotations

from collections.abc import Mapping

from retrieval_operator.adapters.kubernetes import children, pods
from retrieval_operator.adapters.kubernetes.kinds import INFERENCE_SERVICE, POD_DISRUPTION_BUDGET, Object
from retrieval_operator.adapters.kubernetes.programs import image
from retrieval_operator.adapters.kubernetes.services import (
    GRPC_PORT,
    HTTP_PORT,
    record_annotations,
    stack_labels,
    stack_name,
)
from retrieval_operator.api.constants import LABEL_STACK
from retrieval_operator.api.objects import RetrievalModel
from retrieval_operator.api.pod import Resources
from retrieval_operator.api.spec import Serving
from retrieval_operator.api.status import StackRecord
from retrieval_operator.domain.serving import SERVER, server_environment

# KServe reads the container of this name.
CONTAINER = "kserve-container"
_MODE = "serving.kserve.io/deploymentMode"
_AUTOSCALER = "serving.kserve.io/autoscalerClass"
# KServe makes no Ingress or route for it: a dark stack is nobody's, the live one is reached by the stable Service.
_VISIBILITY = {"networking.kserve.io/visibility": "cluster-local"}

# kube-proxy on every node hears of an endpoint's end within about a second; until then it sends new connections.
_SLEEP_S = 5
# The server's own default. Each answer ends its connection meanwhile.
_DRAIN_S = 15
# After the drain, answers under way: the server's REQUEST_TIMEOUT_SECONDS (30), and its exit.
_CLOSING_S = 32
# A server that is ready is known to be so within this time. Probes cost it next to nothing.
_STARTUP_PERIOD_S = 2
# Where the manifest says nothing. KServe's own defaults, which its webhook would fill in.
_RESOURCES = {"cpu": "1", "memory": "2Gi"}


def inference_service(
    model: RetrievalModel, record: StackRecord, images: Mapping[str, str], replicas: int, max_replicas: int
) -> Object:
    """The servers of a stack, by its record and the object's storage. `images` by component are the operator's.

    Raises Rejected for storage that cannot be mounted, and without any image.
    """
    serving = Serving.model_validate(record.serving)
    spec = pods.spec(_program(model, record, serving, images), model.spec.storage, serving.pod, _complete(serving))
    spec["containers"][0] |= _serving_container(model.spec.promotion.progress_deadline_seconds)
    metadata = children.metadata(model, stack_name(model, record.stack), {LABEL_STACK: record.stack, **_VISIBILITY})
    numbers = bounds(replicas, max_replicas)
    return {
        "apiVersion": INFERENCE_SERVICE.api_version,
        "kind": INFERENCE_SERVICE.kind,
        "metadata": {**metadata, "annotations": {_MODE: "Standard", **numbers["metadata"]["annotations"]}},
        "spec": {
            "predictor": {
                **spec,
                "terminationGracePeriodSeconds": _SLEEP_S + _DRAIN_S + _CLOSING_S,
                "deploymentStrategy": {
                    "type": "RollingUpdate",
                    "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1},
                },
                "labels": {**serving.pod.labels, **metadata["labels"]},  # by ours they are watched and selected
                **({"annotations": dict(serving.pod.annotations)} if serving.pod.annotations else {}),
                **numbers["spec"]["predictor"],
            }
        },
    }


def bounds(replicas: int, max_replicas: int) -> Object:
    """The part of an InferenceService that says how many servers: a merge patch. `max_replicas` 0: no autoscaler."""
    return {
        "metadata": {"annotations": {_AUTOSCALER: "hpa" if max_replicas else "none"}},
        "spec": {"predictor": {"minReplicas": replicas, "maxReplicas": max_replicas or replicas}},
    }


def bounds_of(service: Object) -> tuple[int, int]:
    """What `bounds` was given for this InferenceService."""
    predictor = service["spec"]["predictor"]
    scaled = service["metadata"].get("annotations", {}).get(_AUTOSCALER) == "hpa"
    return predictor.get("minReplicas", 1), predictor.get("maxReplicas", 0) if scaled else 0


def disruption_budget(model: RetrievalModel, record: StackRecord) -> Object:
    """Nodes are drained of one server at a time, and of one that is not ready whenever.

    A lone server may be evicted: a budget that keeps it would keep the node from being drained for ever.

    It holds the stack's record once more: whoever deletes the stack's Service by hand leaves servers that can still be
    told, and made whole or removed. The InferenceService cannot hold it: KServe would copy it to the pods.
    """
    stack = record.stack
    metadata = children.metadata(model, stack_name(model, stack), {LABEL_STACK: stack})
    return {
        "apiVersion": POD_DISRUPTION_BUDGET.api_version,
        "kind": POD_DISRUPTION_BUDGET.kind,
        "metadata": {**metadata, "annotations": record_annotations(record)},
        "spec": {
            "maxUnavailable": 1,
            "selector": {"matchLabels": stack_labels(model, stack)},
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
        },
    }


def _program(model: RetrievalModel, record: StackRecord, serving: Serving, images: Mapping[str, str]) -> pods.Program:
    return pods.Program(
        container=CONTAINER,
        image=image(images, "encoderServer", serving.image),
        command=(SERVER,),
        environment={
            **server_environment(model.metadata.name, record),
            "CONNECTION_AGE_SECONDS": str(serving.connection_age_seconds),
            "DRAIN_SECONDS": str(_DRAIN_S),
            "HOST": "0.0.0.0",  # noqa: S104 (the pod's own address)
            "PORT": str(HTTP_PORT),
            "GRPC_PORT": str(GRPC_PORT),
        },
    )


def _serving_container(startup_s: int) -> Object:
    """Ports, probes and the end. The ports refuse connections until bundle and generation are verified."""
    return {
        "ports": [
            {"name": "http", "containerPort": HTTP_PORT, "protocol": "TCP"},
            {"name": "grpc", "containerPort": GRPC_PORT, "protocol": "TCP"},
        ],
        # A load may take as long as a rollout's step may.
        "startupProbe": _probe("ready", _STARTUP_PERIOD_S, failures=max(1, startup_s // _STARTUP_PERIOD_S)),
        "readinessProbe": _probe("ready", 5, failures=3),
        # It says so itself when its threads are stuck; a busy machine alone must not restart it.
        "livenessProbe": _probe("live", 10, failures=6),
        "lifecycle": {"preStop": {"sleep": {"seconds": _SLEEP_S}}},
    }


def _probe(what: str, period_s: int, *, failures: int) -> Object:
    return {
        "httpGet": {"path": f"/v2/health/{what}", "port": HTTP_PORT},
        "periodSeconds": period_s,
        "timeoutSeconds": 5,
        "failureThreshold": failures,
    }


def _complete(serving: Serving) -> Resources:
    """Requests and limits of processor and memory, all four: what is missing KServe would fill in by itself.

    It does so field by field, so that a request of 4 processors would meet a limit of 1. Here the one that the
    manifest has is both.
    """
    requests, limits = dict(serving.resources.requests), dict(serving.resources.limits)
    for name, default in _RESOURCES.items():
        given = requests.get(name) or limits.get(name) or default
        requests.setdefault(name, given)
        limits.setdefault(name, given)
    return Resources(requests=requests, limits=limits)
