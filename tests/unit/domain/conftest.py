"""Builders for objects and worlds, so that a test says only what matters to it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import yaml

from retrieval_operator.api.objects import RetrievalModel, parse_manifest
from retrieval_operator.api.status import RetrievalModelStatus

MANIFEST = """
apiVersion: retrieval-operator.io/v1alpha1
kind: RetrievalModel
metadata: {name: feed, creationTimestamp: 1000}
spec:
  storage: {uri: /store}
  data: {uri: /data/one, revision: "1"}
  model: {base: "preset:tiny", dimensions: [128, 64]}
  promotion:
    gates:
      - {metric: recall, k: 10, pool: matched, min: "0.20", maxRegression: "0.02"}
"""


def _set(document: dict[str, Any], path: str, value: Any) -> None:
    *parents, leaf = path.split(".")
    for parent in parents:
        document = document.setdefault(parent, {})
    if value is ...:
        document.pop(leaf, None)
    else:
        document[leaf] = value


@pytest.fixture
def make() -> Callable[..., RetrievalModel]:
    """make({"spec.data.revision": "2"}, status=...) is the plain manifest with these paths set; `...` removes one."""

    def build(
        changes: dict[str, Any] | None = None,
        *,
        status: RetrievalModelStatus | None = None,
        annotations: dict[str, str] | None = None,
        generation: int = 1,
        deleting: bool = False,
    ) -> RetrievalModel:
        document = yaml.safe_load(MANIFEST)
        for path, value in (changes or {}).items():
            _set(document, path, value)
        document["metadata"] |= {"annotations": annotations or {}, "generation": generation}
        if deleting:
            document["metadata"]["deletionTimestamp"] = 2_000_000
        model = parse_manifest(document, "test")
        return model.model_copy(update={"status": status or RetrievalModelStatus()})

    return build
