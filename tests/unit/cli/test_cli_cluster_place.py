"""What `kubectl retrieval` reads of the objects in a cluster."""

from __future__ import annotations

from typing import Any

import pytest

from retrieval_operator.api.objects import InvalidManifest
from retrieval_operator.cli.cluster.place import read

SPEC: dict[str, Any] = {
    "storage": {"uri": "/srv"},
    "data": {"uri": "/data", "revision": "1"},
    "model": {"base": "/base"},
    "promotion": {"gates": [{"min": "0.1"}]},
}


def stored(**data: Any) -> dict[str, Any]:
    """As an older definition may have let it in."""
    return {
        "apiVersion": "retrieval-operator.io/v1alpha1",
        "kind": "RetrievalModel",
        "metadata": {"name": "feed", "namespace": "tenant"},
        "spec": {**SPEC, "data": {**SPEC["data"], **data}},
    }


def test_a_schedule_that_cannot_be_read_keeps_nobody_from_a_rollback() -> None:
    model = read(stored(timeZone="Mars/Olympus"))
    assert model.key == "tenant/feed"
    assert "Mars/Olympus" in model.left_out[0]


def test_what_is_more_than_a_schedule_is_told() -> None:
    with pytest.raises(InvalidManifest, match=r"spec\.data\.colour"):
        read(stored(timeZone="Mars/Olympus", colour="red"))
