"""The operator's own settings: environment variables named RETRIEVAL_OPERATOR_*. The CLI's options override them."""

from __future__ import annotations

import os
import re
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic.alias_generators import to_camel
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError

from retrieval_operator.addresses import plain_address
from retrieval_operator.api.types import Name

ENVIRONMENT_PREFIX = "RETRIEVAL_OPERATOR_"

LogFormat = Literal["console", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]


class InvalidSettings(ValueError):
    """An environment variable cannot be used; the message names it."""


def default_home() -> Path:
    """`$XDG_DATA_HOME/retrieval-operator`, or below ~/.local/share (XDG Base Directory Specification 0.8)."""
    data = os.environ.get("XDG_DATA_HOME", "")
    # The specification: a relative path is invalid and must be ignored.
    base = Path(data) if Path(data).is_absolute() else Path.home() / ".local" / "share"
    return base / "retrieval-operator"


class _Part(BaseModel):
    """A setting that is a JSON object, with the names of the chart's values."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", alias_generator=to_camel, populate_by_name=True, hide_input_in_errors=True
    )


def _default_image(name: str) -> str:
    return f"{name}:{version('retrieval-operator')}"


class Images(_Part):
    """The image of each component, for objects that do not name one. `data` is what moves and removes files."""

    trainer: str = Field(default=_default_image("retrieval-trainer"), min_length=1)
    indexer: str = Field(default=_default_image("retrieval-indexer"), min_length=1)
    encoder_server: str = Field(default=_default_image("retrieval-encoder-server"), min_length=1)
    data: str = Field(default=_default_image("retrieval-indexer"), min_length=1)


class MlflowConnection(_Part):
    """One tracking server that spec.registry.connection may name. Holds paths and names of secrets, never a secret.

    `credentials` and `ca_file` are paths in the operator's container (adapters/mlflow/connection.py says what is in
    them). `pod_secret` names a Secret in each object's namespace whose keys become environment of the pods that report.
    """

    uri: str
    public_uri: str = ""
    credentials: Path | None = None
    ca_file: Path | None = None
    pod_secret: str = ""

    @field_validator("uri", "public_uri")
    @classmethod
    def _is_plain_address(cls, value: str) -> str:
        return plain_address(value) if value else value


class Settings(BaseSettings):
    """Every setting is one environment variable: `mlflow_uri` is RETRIEVAL_OPERATOR_MLFLOW_URI."""

    model_config = SettingsConfigDict(
        env_prefix=ENVIRONMENT_PREFIX,
        env_ignore_empty=True,
        frozen=True,
        extra="ignore",
        hide_input_in_errors=True,  # it may hold a password
    )

    home: Path = Field(default_factory=default_home, description="local mode keeps everything below this directory")
    mlflow_uri: str | None = Field(
        default=None, description="an MLflow that already runs; default: local mode runs its own"
    )
    cluster: Name = Field(default="local", description="first part of the owner tag in the registry")
    ports: dict[str, Annotated[int, Field(ge=1, le=65_535)]] = Field(
        default_factory=dict, description='fixed loopback ports of addresses, as JSON: {"default/feed": 8600}'
    )
    workers: Annotated[int, Field(ge=1, le=64)] = 4
    poll_seconds: Annotated[float, Field(gt=0, le=60)] = Field(
        default=1.0, description="how often local mode looks for changed manifests and annotations"
    )
    registry_poll_seconds: Annotated[int, Field(ge=1, le=3600)] = Field(
        default=30, description="how old the view of a settled object's registry entries may become"
    )
    metrics_port: Annotated[int, Field(ge=0, le=65_535)] = Field(
        default=0, description="serve Prometheus metrics on this port (local mode: of loopback only); 0: do not"
    )
    probe_port: Annotated[int, Field(ge=0, le=65_535)] = Field(
        default=8080, description="in a cluster, answer liveness probes at /healthz of this port; 0: do not"
    )
    namespaces: list[str] = Field(
        default_factory=list, description='in a cluster, look after these namespaces only, as JSON: ["ml"]; none: all'
    )
    own_namespace: str = Field(
        default="", description="in a cluster, where the Lease is kept; default: the pod's own; needed outside of a pod"
    )
    images: Images = Field(
        default_factory=Images, description='in a cluster, the images of the components, as JSON: {"trainer": "..."}'
    )
    connections: dict[str, MlflowConnection] = Field(
        default_factory=dict, description='in a cluster, MLflow servers by name, as JSON: {"default": {"uri": "..."}}'
    )
    log_format: LogFormat = "console"
    log_level: LogLevel = "info"

    @field_validator("mlflow_uri")
    @classmethod
    def _is_plain_address(cls, value: str | None) -> str | None:
        return None if value is None else plain_address(value)


def load_settings() -> Settings:
    """Settings from the environment. Raises InvalidSettings naming each variable that cannot be used."""
    try:
        return Settings()
    except ValidationError as error:
        problems = [_problem(detail) for detail in error.errors(include_url=False)]
        raise InvalidSettings("\n".join(problems)) from None
    except SettingsError as error:  # of a setting that is read as JSON; it says which in its sentence only
        named = re.search(r'field "(\w+)"', str(error))
        variable = f"{ENVIRONMENT_PREFIX}{named[1].upper()}" if named else "a variable"
        raise InvalidSettings(
            f"{variable}: found no JSON; {_expected(named[1]) if named else 'expected JSON'}"
        ) from error


def _problem(detail: Any) -> str:
    """One thing that is wrong, with the variable and, within JSON, the path to it."""
    name, *rest = map(str, detail["loc"])
    variable = f"{ENVIRONMENT_PREFIX}{name.upper()}" + "".join(f".{part}" for part in rest)
    return f"{variable}: found {_shown(detail['input'])}; {detail['msg'].removeprefix('Value error, ')}"


def _expected(setting: str) -> str:
    """`expected fixed loopback ports ..., as JSON: {...}`: a JSON setting's description ends with an example."""
    return f"expected {Settings.model_fields[setting].description}"


def _shown(value: object) -> str:
    """The value as it was found, without what may be a user and password: everything before the last `@`."""
    text = repr(value)
    before, at, host = text.rpartition("@")
    return f"{before[:1]}…@{host}" if at else text
