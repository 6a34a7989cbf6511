"""The pod template: what the manifest's Pod section, its storage and its resources become, for jobs and servers alike.

Every pod satisfies PodSecurity "restricted" (https://kubernetes.io/docs/concepts/security/pod-security-standards/) and
runs on a read-only root. The same manifest gives the same bytes: nothing here looks at a clock or at the cluster.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from urllib.parse import unquote, urlsplit

from retrieval_operator.adapters.kubernetes.kinds import Object
from retrieval_operator.api.pod import EnvironmentVariable, Pod, Resources, Volume
from retrieval_operator.api.spec import Storage
from retrieval_operator.ports import Rejected

# The user of our images (core/Dockerfile). Images of others run under it as well: only /tmp and volumes are writable.
USER = 10001
TERMINATION_LOG = "/dev/termination-log"

_TMP, _SHM, _STORAGE = "retrieval-tmp", "retrieval-shm", "retrieval-storage"
_TMP_PATH, _SHM_PATH = "/tmp", "/dev/shm"  # noqa: S108 (paths in the container, where the root is read-only)


@dataclass(frozen=True, kw_only=True)
class Program:
    """What the one container of a pod runs. `command` replaces the image's entry point.

    `environment` wins over what the manifest's pod sets, `defaults` give way to it. `secrets` names Secrets whose keys
    become variables as well, "" for none; they give way to both. `processes` share the container's processors.
    """

    container: str
    image: str
    command: tuple[str, ...]
    arguments: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    defaults: Mapping[str, str] = field(default_factory=dict)
    secrets: tuple[str, ...] = ()
    processes: int = 1


def template(
    program: Program,
    storage: Storage,
    pod: Pod,
    resources: Resources,
    *,
    labels: Mapping[str, str],
    annotations: Mapping[str, str] | None = None,
) -> Object:
    """A pod template: metadata and spec. Ours win over labels and annotations that the manifest sets."""
    metadata: Object = {"labels": {**pod.labels, **labels}}
    if pod.annotations or annotations:
        metadata["annotations"] = {**pod.annotations, **(annotations or {})}
    return {"metadata": metadata, "spec": spec(program, storage, pod, resources)}


def spec(program: Program, storage: Storage, pod: Pod, resources: Resources) -> Object:
    """A PodSpec with one container. Raises Rejected for storage that cannot be mounted."""
    volumes, mounts = _volumes(storage, pod, program.processes)
    found: Object = {
        "automountServiceAccountToken": False,
        # The variables of Services would be taken for settings of ours: a Service named `grpc` sets GRPC_PORT.
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        **_placement(pod),
        "containers": [
            {
                "name": program.container,
                "image": program.image,
                "command": [_literal(word) for word in program.command],
                "args": [_literal(word) for word in program.arguments],
                "env": _environment(program, pod, resources),
                "envFrom": [{"secretRef": {"name": name}} for name in _secrets(program, storage)],
                "resources": resources.model_dump(mode="json", exclude_defaults=True),
                "volumeMounts": mounts,
                "terminationMessagePath": TERMINATION_LOG,
                "terminationMessagePolicy": "FallbackToLogsOnError",
                "securityContext": {
                    "allowPrivilegeEscalation": False,
                    "readOnlyRootFilesystem": True,
                    "capabilities": {"drop": ["ALL"]},
                },
            }
        ],
        "volumes": volumes,
    }
    found["containers"] = [{key: value for key, value in one.items() if value} for one in found["containers"]]
    return found


def directory(uri: str) -> str | None:
    """The path of a plain path or a file URI; None for anything remote."""
    if "://" not in uri:
        return uri
    parts = urlsplit(uri)
    return unquote(parts.path) if parts.scheme == "file" else None


def storage_problem(storage: Storage) -> str:
    """Why a pod cannot reach the storage by this section alone, in a sentence; "" when it can."""
    path = directory(storage.uri)
    if storage.persistent_volume_claim is not None and (path is None or not path.startswith("/")):
        return (
            f"storage.uri: found {storage.uri} with storage.persistentVolumeClaim, expected an absolute path, at which "
            "the claim is mounted"
        )
    return ""


def _secrets(program: Program, storage: Storage) -> Iterator[str]:
    yield from (name for name in program.secrets if name)
    if storage.secret_ref is not None:
        yield storage.secret_ref


def _placement(pod: Pod) -> Object:
    """Where it runs, and as whom; nothing for what the manifest does not say."""
    chosen: Object = {
        "nodeSelector": dict(sorted(pod.node_selector.items())),
        "tolerations": [toleration.model_dump(by_alias=True, exclude_none=True) for toleration in pod.tolerations],
        "priorityClassName": pod.priority_class_name,
        "runtimeClassName": pod.runtime_class_name,
        "serviceAccountName": pod.service_account_name,
        "imagePullSecrets": [{"name": name} for name in pod.image_pull_secrets],
    }
    return {key: value for key, value in chosen.items() if value}


def _environment(program: Program, pod: Pod, resources: Resources) -> list[Object]:
    """Sorted by name, each name once: what must be, over what the manifest sets, over what is sensible."""
    sensible = {
        "HOME": _TMP_PATH,
        "PYTHONUNBUFFERED": "1",  # a log that ends where the program ended
        # Threads that spin while they wait take the processors from others (adapters/local/programs.py has numbers).
        "OMP_WAIT_POLICY": "PASSIVE",
        **_threads(resources, program.processes),
        **program.defaults,
    }
    required = {"RETRIEVAL_TERMINATION_LOG": TERMINATION_LOG, **program.environment}
    entries = {name: {"name": name, "value": _literal(value)} for name, value in sensible.items()}
    entries |= {variable.name: _variable(variable) for variable in pod.env}
    entries |= {name: {"name": name, "value": _literal(value)} for name, value in required.items()}
    return [entries[name] for name in sorted(entries)]


def _variable(variable: EnvironmentVariable) -> Object:
    if variable.value is not None:
        return {"name": variable.name, "value": _literal(variable.value)}
    if variable.secret is not None:
        reference = {"secretKeyRef": {"name": variable.secret.name, "key": variable.secret.key}}
    else:
        assert variable.config_map is not None, "a variable has exactly one source"
        reference = {"configMapKeyRef": {"name": variable.config_map.name, "key": variable.config_map.key}}
    return {"name": variable.name, "valueFrom": reference}


def _threads(resources: Resources, processes: int) -> dict[str, str]:
    """The math libraries count the node's processors, not the container's. Without a limit that is what it may use."""
    limit = re.fullmatch(r"([0-9.]+)(m?)", resources.limits.get("cpu", ""))
    if limit is None:
        return {}
    processors = Decimal(limit[1]) / (1000 if limit[2] else 1)
    return {"OMP_NUM_THREADS": str(max(1, int(processors / processes)))}


def _volumes(storage: Storage, pod: Pod, processes: int) -> tuple[list[Object], list[Object]]:
    """The pod's volumes, and where its container sees them: storage, /tmp, /dev/shm, then the manifest's own."""
    problem = storage_problem(storage)
    if problem:
        raise Rejected(problem)
    volumes: list[Object] = []
    mounts: list[Object] = []

    def add(name: str, path: str, source: Object, *, read_only: bool = False) -> None:
        volumes.append({"name": name, **source})
        mounts.append({"name": name, "mountPath": path, **({"readOnly": True} if read_only else {})})

    taken = {volume.mount_path.rstrip("/") for volume in pod.volumes}
    if storage.persistent_volume_claim is not None:
        claim = {"persistentVolumeClaim": {"claimName": storage.persistent_volume_claim}}
        add(_STORAGE, directory(storage.uri) or "", claim)
    if _TMP_PATH not in taken:
        add(_TMP, _TMP_PATH, {"emptyDir": {}})
    if pod.shared_memory is not None or (processes > 1 and _SHM_PATH not in taken):
        # Processes of a node exchange gradients there (nccl), for which the runtime's 64Mi are soon too little. Without
        # a size the container's memory limit bounds it: https://kubernetes.io/docs/concepts/storage/volumes/#emptydir
        size = {"sizeLimit": pod.shared_memory} if pod.shared_memory is not None else {}
        add(_SHM, _SHM_PATH, {"emptyDir": {"medium": "Memory", **size}})
    for volume in pod.volumes:
        add(volume.name, volume.mount_path, _source(volume), read_only=volume.read_only)
    return volumes, mounts


def _source(volume: Volume) -> Object:
    if volume.persistent_volume_claim is not None:
        return {"persistentVolumeClaim": {"claimName": volume.persistent_volume_claim}}
    if volume.config_map is not None:
        return {"configMap": {"name": volume.config_map}}
    if volume.secret is not None:
        return {"secret": {"secretName": volume.secret}}
    return {"emptyDir": {"sizeLimit": volume.empty_dir_size}}


def _literal(text: str) -> str:
    """The kubelet expands $(NAME) in arguments and values; $$ is its $."""
    return text.replace("$", "$$")
