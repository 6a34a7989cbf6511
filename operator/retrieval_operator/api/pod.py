"""The bounded part of a pod a user may shape. There is no raw pod template: what is listed is what is tested."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from retrieval_operator.api.types import Label, Manifest, Name

ShortText = Annotated[str, Field(max_length=256)]
LabelMap = Annotated[dict[ShortText, ShortText], Field(max_length=32)]
ObjectName = Annotated[str, Field(min_length=1, max_length=253)]
Quantity = Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)?(m|k|Ki|M|Mi|G|Gi|T|Ti)?$", max_length=32)]


class Resources(Manifest):
    """Kubernetes resources of one container. On one machine they are ignored."""

    requests: dict[ShortText, Quantity] = Field(
        default_factory=dict, max_length=8, description='requests: what the scheduler sets aside, such as cpu: "2".'
    )
    limits: dict[ShortText, Quantity] = Field(
        default_factory=dict, max_length=8, description="limits: what the container may not exceed."
    )


class KeyReference(Manifest):
    """One key of a Secret or ConfigMap in the object's namespace."""

    name: ObjectName = Field(description="name of the Secret or ConfigMap.")
    key: ObjectName = Field(description="key in it.")


class EnvironmentVariable(Manifest):
    """One variable: a literal value, or a key of a Secret or ConfigMap that the pod (never the operator) reads.

    A literal is stored as it is typed, and again with each stack of the history (a rollback starts them the same way).
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", max_length=128)] = Field(
        description="name of the variable."
    )
    value: Annotated[str, Field(max_length=4096)] | None = Field(
        default=None, description="value, written out: not for secrets."
    )
    secret: KeyReference | None = Field(default=None, description="secret and key that hold the value.")
    config_map: KeyReference | None = Field(default=None, description="configMap and key that hold the value.")

    @model_validator(mode="after")
    def one_source(self) -> EnvironmentVariable:
        given = [source for source in (self.value, self.secret, self.config_map) if source is not None]
        if len(given) != 1:
            raise ValueError(f"found {len(given)} sources, expected exactly one of value, secret, configMap")
        return self


class Toleration(Manifest):
    """A taint of nodes that the pods may run on."""

    key: ShortText | None = Field(default=None, description="key of the taint; without it, every key.")
    operator: Literal["Equal", "Exists"] = Field(
        default="Equal", description="operator is Equal (key and value match) or Exists (any value)."
    )
    value: ShortText | None = Field(default=None, description="value of the taint, for Equal.")
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = Field(
        default=None, description="effect of the taint; without it, every effect."
    )
    toleration_seconds: Annotated[int, Field(ge=0, le=31_536_000)] | None = Field(
        default=None, description="tolerationSeconds: how long NoExecute is tolerated; without it, for ever."
    )


class Volume(Manifest):
    """A mounted volume: exactly one source."""

    name: Name = Field(description="name of the volume in the pod.")
    mount_path: Annotated[str, Field(pattern=r"^/[^\x00]*$", max_length=512)] = Field(
        description="mountPath is the absolute path in the container."
    )
    read_only: bool = Field(default=True, description="readOnly: false lets the pod write to it.")
    persistent_volume_claim: ObjectName | None = Field(
        default=None, description="persistentVolumeClaim names the claim to mount."
    )
    config_map: ObjectName | None = Field(default=None, description="configMap names the ConfigMap to mount.")
    secret: ObjectName | None = Field(default=None, description="secret names the Secret to mount.")
    empty_dir_size: Quantity | None = Field(
        default=None, description="emptyDirSize: an empty directory of at most this size, gone with the pod."
    )

    @model_validator(mode="after")
    def one_source(self) -> Volume:
        sources = (self.persistent_volume_claim, self.config_map, self.secret, self.empty_dir_size)
        given = sum(source is not None for source in sources)
        if given != 1:
            raise ValueError(
                f"found {given} sources, expected exactly one of persistentVolumeClaim, configMap, secret, emptyDirSize"
            )
        return self


class Pod(Manifest):
    """Where and how a step's pods run. On one machine only `env` values are used."""

    node_selector: LabelMap = Field(default_factory=dict, description="nodeSelector: labels a node must have.")
    tolerations: Annotated[list[Toleration], Field(max_length=16)] = Field(
        default_factory=list, description="tolerations: taints of nodes that are no obstacle."
    )
    priority_class_name: ObjectName | None = Field(
        default=None, description="priorityClassName decides who goes first when room is short."
    )
    runtime_class_name: ObjectName | None = Field(
        default=None, description="runtimeClassName names a container runtime other than the default."
    )
    service_account_name: ObjectName | None = Field(
        default=None, description="serviceAccountName the pods run as; default: the namespace's own."
    )
    image_pull_secrets: Annotated[list[Label], Field(max_length=8)] = Field(
        default_factory=list, description="imagePullSecrets: Secrets with credentials for the image registry."
    )
    labels: LabelMap = Field(default_factory=dict, description="labels added to the pods.")
    annotations: LabelMap = Field(default_factory=dict, description="annotations added to the pods.")
    env: Annotated[list[EnvironmentVariable], Field(max_length=64)] = Field(
        default_factory=list, description="env: variables of the container, one entry per name."
    )
    volumes: Annotated[list[Volume], Field(max_length=16)] = Field(
        default_factory=list, description="volumes mounted into the container, one entry per name."
    )
    shared_memory: Quantity | None = Field(
        default=None,
        description="sharedMemory is the size of /dev/shm; default: the container runtime's (64Mi), and for several "
        "processes on a node as much as the memory limit allows.",
    )
