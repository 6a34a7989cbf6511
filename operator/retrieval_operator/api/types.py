"""The building blocks of the manifest types: base model, bounded strings, decimal strings, durations."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal
from typing import Annotated, Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer
from pydantic.alias_generators import to_camel


class Manifest(BaseModel):
    """Base of everything a user writes: frozen, camelCase in YAML, unknown fields refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", alias_generator=to_camel, populate_by_name=True)

    def explicit(self) -> dict[str, Any]:
        """The fields the user set, nested, by their YAML names; defaults and empty objects are absent."""
        explicit: dict[str, Any] = _without_empty(self.model_dump(mode="json", by_alias=True, exclude_unset=True))
        return explicit


def _without_empty(value: Any) -> Any:
    """An empty object or list says nothing: written down or left out, it names the same thing in a hash."""
    if not isinstance(value, dict):
        return value
    inner = {key: _without_empty(part) for key, part in value.items()}
    return {key: part for key, part in inner.items() if part not in ({}, [], None)}


def _decimal_from_string(value: object) -> object:
    """Kubernetes' API conventions keep floats out of specs: 0.1 does not survive JSON in every client."""
    if isinstance(value, Decimal):
        return value
    if not isinstance(value, str):
        raise ValueError(f'found {value!r} ({_kind(value)}), expected a decimal in quotes such as "0.02"')
    return value


def _kind(value: object) -> str:
    return {bool: "a boolean", int: "a number", float: "a number", list: "a list", dict: "an object"}.get(
        type(value), "nothing" if value is None else type(value).__name__
    )


def _plain(value: Decimal) -> str:
    return format(value.normalize(), "f")  # "0.10" and "0.1" are one value and have one hash


def _is_cron(value: str) -> str:
    try:
        CronSim(value, dt.datetime(2026, 1, 1, tzinfo=dt.UTC))
    except CronSimError as error:
        raise ValueError(
            f'{value!r} is not a cron expression ({error}); expected five fields such as "0 3 * * *"'
        ) from None
    return value


def _has_no_credentials(value: str) -> str:
    """A URI ends up in command lines, statuses and tags."""
    authority = value.partition("://")[2].partition("/")[0]
    if "@" in authority:
        raise ValueError("found credentials in the URI; leave them out and name their Secret in storage.secretRef")
    return value


def _is_time_zone(value: str) -> str:
    try:
        ZoneInfo(value)
    except (ZoneInfoNotFoundError, ValueError):
        raise ValueError(f"{value!r} is no time zone; expected an IANA name such as Europe/Berlin") from None
    return value


DecimalString = Annotated[
    Decimal,
    BeforeValidator(_decimal_from_string),
    Field(max_digits=18, decimal_places=12, allow_inf_nan=False),
    PlainSerializer(_plain, return_type=str, when_used="json"),
]
Fraction = Annotated[DecimalString, Field(ge=0, le=1)]
Name = Annotated[str, Field(pattern=r"^[a-z]([-a-z0-9]*[a-z0-9])?$", max_length=32)]
Label = Annotated[str, Field(pattern=r"^[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$", max_length=63)]
Uri = Annotated[
    str, Field(min_length=1, max_length=1024, pattern=r"^[^\s\x00-\x1f]+$"), AfterValidator(_has_no_credentials)
]
Image = Annotated[str, Field(min_length=1, max_length=512, pattern=r"^\S+$")]
TimeZone = Annotated[str, Field(min_length=1, max_length=64), AfterValidator(_is_time_zone)]
Cron = Annotated[str, Field(min_length=9, max_length=128), AfterValidator(_is_cron)]
