"""What a person may still change of an object that is being deleted, and bounds that one machine cannot use."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from retrieval_operator.adapters.local.home import LocalHome
from retrieval_operator.adapters.local.store import LocalModelStore
from retrieval_operator.api.objects import RetrievalModel, parse_manifest
from retrieval_operator.ports import Rejected


def manifest(**spec: Any) -> RetrievalModel:
    document: dict[str, Any] = {
        "apiVersion": "retrieval-operator.io/v1alpha1",
        "kind": "RetrievalModel",
        "metadata": {"name": "feed"},
        "spec": {
            "storage": {"uri": "/storage"},
            "data": {"uri": "/data", "revision": "1"},
            "model": {"base": "preset:tiny"},
            "promotion": {"gates": [{"min": "0.1"}]},
            **spec,
        },
    }
    return parse_manifest(document, "test")


@pytest.fixture
def store(tmp_path: Path) -> LocalModelStore:
    return LocalModelStore(LocalHome(tmp_path))


def test_an_object_that_waits_for_its_files_to_go_can_be_told_to_leave_them(store: LocalModelStore) -> None:
    made = store.apply(manifest(deletionPolicy="Delete"), now=1).model
    asyncio.run(store.set_finalizer(made, True))
    assert store.request_deletion(made.key, now=2) is False, "the finalizer holds it"

    changed = store.apply(manifest(deletionPolicy="Retain"), now=3)
    assert changed.outcome == "configured"
    assert changed.model.metadata.deletion_timestamp == 2
    asyncio.run(store.set_finalizer(changed.model, False))
    assert asyncio.run(store.get(made.key)) is None


@pytest.mark.parametrize(
    "spec",
    [
        {"deletionPolicy": "Delete"},
        {"deletionPolicy": "Retain", "suspend": True},
        {"deletionPolicy": "Delete", "data": {"uri": "/data", "revision": "2"}},
    ],
    ids=str,
)
def test_nothing_else_of_it_can_be_changed(store: LocalModelStore, spec: dict[str, Any]) -> None:
    made = store.apply(manifest(deletionPolicy="Delete"), now=1).model
    asyncio.run(store.set_finalizer(made, True))
    store.request_deletion(made.key, now=2)
    with pytest.raises(Rejected, match="only deletionPolicy may change"):
        store.apply(manifest(**spec), now=3)


def test_a_bound_for_an_autoscaler_is_refused_where_there_is_none(store: LocalModelStore) -> None:
    with pytest.raises(Rejected, match="one machine has no autoscaler"):
        store.apply(manifest(serving={"replicas": {"min": 2, "max": 3}}), now=1)
    store.apply(manifest(serving={"replicas": {"min": 2, "max": 2}}), now=1)
