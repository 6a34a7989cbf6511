"""A status as Kubernetes stores it: times as RFC 3339 strings, so that kubectl, kstatus and people can read them.

In the operator and on this machine times are integers (types.Time); nothing else differs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from retrieval_operator.api.status import RetrievalModelStatus
from retrieval_operator.api.types import WIRE


def to_wire(status: RetrievalModelStatus) -> dict[str, Any]:
    """The `status` of a custom resource; what is None is left out."""
    return status.model_dump(mode="json", by_alias=True, exclude_none=True, context=WIRE)


def from_wire(document: Mapping[str, Any]) -> RetrievalModelStatus:
    """Read it back; fields that are not known are left out, an empty document is an empty status.

    Fractions of a second are cut off. Raises pydantic.ValidationError for what `to_wire` never wrote.
    """
    return RetrievalModelStatus.model_validate(document)
