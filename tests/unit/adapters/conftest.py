"""Builders for the adapters' unit tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from retrieval_operator.adapters.local.home import LocalHome
from retrieval_operator.adapters.local.store import LocalModelStore
from retrieval_operator.api.objects import RetrievalModel, parse_manifest


@pytest.fixture
def home(tmp_path: Path) -> LocalHome:
    return LocalHome(tmp_path / "home")


@pytest.fixture
def store(home: LocalHome) -> LocalModelStore:
    return LocalModelStore(home)


@pytest.fixture
def make() -> Callable[..., RetrievalModel]:
    """make("feed", namespace=..., annotations=..., storage={"uri": ...}, ...): a valid manifest with these parts."""

    def build(
        name: str = "feed", *, namespace: str = "default", annotations: dict[str, str] | None = None, **spec: Any
    ) -> RetrievalModel:
        document = {
            "apiVersion": "retrieval-operator.io/v1alpha1",
            "kind": "RetrievalModel",
            "metadata": {"name": name, "namespace": namespace, "annotations": annotations or {}},
            "spec": {
                "storage": {"uri": "/storage"},
                "data": {"uri": "/data", "revision": "1"},
                "model": {"base": "preset:tiny"},
                "promotion": {"gates": [{"min": "0.1"}]},
                **spec,
            },
        }
        return parse_manifest(document, "test")

    return build
