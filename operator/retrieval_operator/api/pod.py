"""The bounded part of a pod a user may shape. There is no raw pod template: what is listed is what is tested."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from retrieval_operator.api.types import Label, Manifest, Name

ShortText = Annotated[str, Field(max_length=256)]
LabelMap = Annotated[dict[ShortText, ShortText], Field(max_length=32)]
Quantity = Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)?(m|k|Ki|M|Mi|G|Gi|T|Ti)?$", max_length=32)]


class Resources(Manifest):
    """Kubernetes resources of one container. On one machine they are ignored."""

    requests: dict[ShortText, Quantity] = Field(default_factory=dict, max_length=8)
    limits: dict[ShortText, Quantity] = Field(default_factory=dict, max_length=8)


class KeyReference(Manifest):
    name: Annotated[str, Field(min_length=1, max_length=253)]
    key: Annotated[str, Field(min_length=1, max_length=253)]


class EnvironmentVariable(Manifest):
    """One variable: a literal value, or a key of a Secret or ConfigMap that the pod (never the operator) reads."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", max_length=128)]
    value: Annotated[str, Field(max_length=4096)] | None = None
    secret: KeyReference | None = None
    config_map: KeyReference | None = None

    @model_validator(mode="after")
    def one_source(self) -> EnvironmentVariable:
        given = [source for source in (self.value, self.secret, self.config_map) if source is not None]
        if len(given) != 1:
            raise ValueError(f"found {len(given)} sources, expected exactly one of value, secret, configMap")
        return self


class Toleration(Manifest):
    key: ShortText | None = None
    operator: Literal["Equal", "Exists"] = "Equal"
    value: ShortText | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    toleration_seconds: Annotated[int, Field(ge=0)] | None = None


class Volume(Manifest):
    """A mounted volume: exactly one source."""

    name: Name
    mount_path: Annotated[str, Field(pattern=r"^/[^\x00]*$", max_length=512)]
    read_only: bool = True
    persistent_volume_claim: Annotated[str, Field(min_length=1, max_length=253)] | None = None
    config_map: Annotated[str, Field(min_length=1, max_length=253)] | None = None
    secret: Annotated[str, Field(min_length=1, max_length=253)] | None = None
    empty_dir_size: Quantity | None = None

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

    node_selector: LabelMap = Field(default_factory=dict)
    tolerations: Annotated[list[Toleration], Field(max_length=16)] = Field(default_factory=list)
    priority_class_name: Annotated[str, Field(max_length=253)] | None = None
    runtime_class_name: Annotated[str, Field(max_length=253)] | None = None
    service_account_name: Annotated[str, Field(max_length=253)] | None = None
    image_pull_secrets: Annotated[list[Label], Field(max_length=8)] = Field(default_factory=list)
    labels: LabelMap = Field(default_factory=dict)
    annotations: LabelMap = Field(default_factory=dict)
    env: Annotated[list[EnvironmentVariable], Field(max_length=64)] = Field(default_factory=list)
    volumes: Annotated[list[Volume], Field(max_length=16)] = Field(default_factory=list)
    shared_memory: Quantity | None = None
