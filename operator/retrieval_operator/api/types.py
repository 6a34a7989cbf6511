"""The building blocks of the manifest types: base model, bounded strings, decimal strings, times.

A type with a validator of its own carries a JSON schema `format`: crd/rules.py has the rule the API server checks
for it.
"""

from __future__ import annotations

import datetime as dt
import re
from decimal import Decimal
from typing import Annotated, Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    SerializationInfo,
    WithJsonSchema,
)
from pydantic.alias_generators import to_camel

# At most 18 digits, 12 of them after the point, in both forms ("0.00001" and "1e-5"). No leading sign but minus, no
# infinities: the API server reads the same strings as numbers (CEL `double`) and knows no other decimal.
DECIMAL_PATTERN = r"^-?([0-9]{1,6}(\.[0-9]{1,12})?|[0-9]{1,3}(\.[0-9]{1,3})?[eE]-[1-9])$"
WIRE = "wire"  # the serialisation context in which times are RFC 3339 strings (wire.py)
_FIVE_FIELDS = r"^[0-9A-Za-z*?,/#-]+( +[0-9A-Za-z*?,/#-]+){4}$"  # CronSim would take seconds as well
CREDENTIALS_PATTERN = "://[^/]*@"  # anywhere: fsspec chains URIs, as in zip://part::s3://user:secret@host
LATEST_TIME = 253_402_300_799  # 9999-12-31T23:59:59Z: RFC 3339 has no later year


class Manifest(BaseModel):
    """Base of everything a user writes: frozen, camelCase in YAML, unknown fields refused.

    Strict, as the API server is: "2" is no integer, 1 is no boolean.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, alias_generator=to_camel, populate_by_name=True)

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


def _decimal_from_string(value: object) -> Decimal:
    """Kubernetes' API conventions keep floats out of specs: 0.1 does not survive JSON in every client."""
    if isinstance(value, Decimal):
        return value
    if not isinstance(value, str):
        raise ValueError(f'found {value!r} ({_kind(value)}), expected a decimal in quotes such as "0.02"')
    if not re.fullmatch(DECIMAL_PATTERN, value):
        raise ValueError(f'found {value!r}, expected a decimal such as "0.02" or "1e-5", at most 12 places')
    return Decimal(value)


def _kind(value: object) -> str:
    return {bool: "a boolean", int: "a number", float: "a number", list: "a list", dict: "an object"}.get(
        type(value), "nothing" if value is None else type(value).__name__
    )


def _plain(value: Decimal) -> str:
    return format(value.normalize(), "f")  # "0.10" and "0.1" are one value and have one hash


def _is_cron(value: str) -> str:
    expected = 'is not a cron expression; expected five fields such as "0 3 * * *"'
    if not re.fullmatch(_FIVE_FIELDS, value):
        raise ValueError(f"{value!r} {expected}")
    try:
        CronSim(value, dt.datetime(2026, 1, 1, tzinfo=dt.UTC))
    except CronSimError as error:
        raise ValueError(f"{value!r} {expected} ({error})") from None
    return value


def _has_no_credentials(value: str) -> str:
    """A URI ends up in command lines, statuses and tags."""
    if re.search(CREDENTIALS_PATTERN, value):
        raise ValueError("found credentials in the URI; leave them out and name their Secret in storage.secretRef")
    return value


def _is_time_zone(value: str) -> str:
    try:
        ZoneInfo(value)
    except (ZoneInfoNotFoundError, ValueError, OSError):  # an area alone, such as Europe, is a directory
        raise ValueError(f"{value!r} is no time zone; expected an IANA name such as Europe/Berlin") from None
    return value


def rfc3339(seconds: int) -> str:
    """`2026-01-31T12:00:00Z` for seconds since the epoch."""
    return dt.datetime.fromtimestamp(seconds, dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _seconds_from_rfc3339(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        moment = dt.datetime.fromisoformat(value)
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        raise ValueError(f"found {value!r}, expected a time with a zone such as 2026-01-31T12:00:00Z")
    return int(moment.timestamp() // 1)


def _written_time(value: int, to: SerializationInfo) -> int | str:
    return rfc3339(value) if to.context == WIRE else value


DecimalString = Annotated[
    Decimal,
    BeforeValidator(_decimal_from_string),
    Field(max_digits=18, decimal_places=12, allow_inf_nan=False),
    PlainSerializer(_plain, return_type=str, when_used="json"),
]
Fraction = Annotated[DecimalString, Field(ge=0, le=1)]
# Seconds since the epoch, UTC, everywhere in the operator and on this machine; RFC 3339 in Kubernetes (wire.py).
Time = Annotated[
    int,
    BeforeValidator(_seconds_from_rfc3339),
    Field(ge=0, le=LATEST_TIME),
    PlainSerializer(_written_time),
    WithJsonSchema({"type": "string", "format": "date-time"}),
]
Name = Annotated[str, Field(pattern=r"^[a-z]([-a-z0-9]*[a-z0-9])?$", max_length=32)]
Label = Annotated[str, Field(pattern=r"^[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$", max_length=63)]
Uri = Annotated[
    str,
    Field(min_length=1, max_length=1024, pattern=r"^[^\s\x00-\x1f]+$", json_schema_extra={"format": "uri"}),
    AfterValidator(_has_no_credentials),
]
Image = Annotated[str, Field(min_length=1, max_length=512, pattern=r"^\S+$")]
TimeZone = Annotated[
    str, Field(min_length=1, max_length=64, json_schema_extra={"format": "time-zone"}), AfterValidator(_is_time_zone)
]
Cron = Annotated[
    str, Field(min_length=9, max_length=128, json_schema_extra={"format": "cron"}), AfterValidator(_is_cron)
]
