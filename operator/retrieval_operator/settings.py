"""The operator's own settings: environment variables named RETRIEVAL_OPERATOR_*. The CLI's options override them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError, field_validator
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
        default=0, description="serve Prometheus metrics on this loopback port; 0: do not"
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
        problems = [
            f"{ENVIRONMENT_PREFIX}{str(detail['loc'][0]).upper()}: found {_shown(detail['input'])}; "
            + detail["msg"].removeprefix("Value error, ")
            for detail in error.errors(include_url=False)
        ]
        raise InvalidSettings("\n".join(problems)) from None
    except SettingsError as error:  # `ports` is the only setting that is read as JSON
        raise InvalidSettings(
            f'{ENVIRONMENT_PREFIX}PORTS: found no JSON; expected an object such as {{"default/feed": 8600}}'
        ) from error


def _shown(value: object) -> str:
    """The value as it was found, without what may be a user and password: everything before the last `@`."""
    text = repr(value)
    before, at, host = text.rpartition("@")
    return f"{before[:1]}…@{host}" if at else text
